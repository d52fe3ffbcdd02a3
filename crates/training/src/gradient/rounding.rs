//! Quantizers: rounding counts as if it were not there (the straight-through estimator, Bengio et al. 2013, arXiv
//! 1308.3432), and scales learn (LSQ, Esser et al. 2020, arXiv 1902.08153).

use optix_ir::{DType, Node, Tensor, Type, ValueId};

use super::Rule;
use super::back::{At, Back, axis};

pub(super) static RULES: &[(&str, Rule)] = &[("QuantizeLinear", quantize), ("DequantizeLinear", dequantize)];

/// A scale or a zero point, as floats that broadcast to a value of this shape.
fn parameter(back: &mut Back<'_>, at: &At, value: ValueId, shape: &[usize]) -> Result<ValueId, String> {
    if at.node.int("block_size").unwrap_or(0) != 0 {
        return Err("it has a scale a block".to_owned());
    }
    let own = back.shape(value)?;
    let is_float = back.model.value(value).ty.as_ref().and_then(Type::dtype) == Some(DType::F32)
        || back.model.constant(value).is_some_and(|tensor| tensor.dtype() == DType::F32);
    let float = if is_float { value } else { to_float(back, value, &own) };
    match own.as_slice() {
        [] | [1] => back.reshape(float, &[]),
        [count] => {
            let axis = axis(at.node.int("axis").unwrap_or(1), shape.len())?;
            let wide: Vec<usize> =
                (0..shape.len()).map(|other| if other == axis { *count } else { 1 }).collect();
            back.reshape(float, &wide)
        }
        _ => Err("it has a scale a block".to_owned()),
    }
}

fn to_float(back: &mut Back<'_>, value: ValueId, shape: &[usize]) -> ValueId {
    back.push(Node::new("Cast", [value]).with("to", i64::from(DType::F32.onnx())), shape)
}

/// Gives the gradient of a scale, which was computed for every element.
fn give_scale(
    back: &mut Back<'_>,
    at: &At,
    scale: ValueId,
    share: ValueId,
    shape: &[usize],
) -> Result<(), String> {
    let wide = parameter(back, at, scale, shape)?;
    let (broadcast, own) = (back.shape(wide)?, back.shape(scale)?);
    let summed = back.summed_to(share, &broadcast)?;
    let summed = back.reshape(summed, &own)?;
    back.give(scale, summed);
    Ok(())
}

/// `y = (q - z) * s`
fn dequantize(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (q, scale) = (at.input(0)?, at.input(1)?);
    let shape = back.shape(at.dy)?;
    let wide = parameter(back, at, scale, &shape)?;
    let share = back.mul(at.dy, wide);
    back.give(q, share);
    if back.wants(Some(scale)) {
        let mut steps = to_float(back, q, &shape);
        if let Some(zero) = at.node.input(2) {
            let zero = parameter(back, at, zero, &shape)?;
            steps = back.sub(steps, zero);
        }
        let share = back.mul(at.dy, steps);
        give_scale(back, at, scale, share, &shape)?;
    }
    Ok(())
}

/// `q = clip(round(x / s) + z)`, taken as `x / s + z` within the range and as its ends beyond.
fn quantize(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (x, scale) = (at.input(0)?, at.input(1)?);
    let shape = back.shape(x)?;
    let of_zero = |zero: ValueId| {
        back.model
            .value(zero)
            .ty
            .as_ref()
            .and_then(Type::dtype)
            .or_else(|| back.model.constant(zero).map(Tensor::dtype))
    };
    let declared = at.node.int("output_dtype").and_then(|code| DType::from_onnx(i32::try_from(code).ok()?));
    let dtype = at.node.input(2).and_then(of_zero).or(declared).unwrap_or(DType::U8);
    let (low, high) = dtype.integer_range().ok_or("its numbers are not integers")?;
    let wide = parameter(back, at, scale, &shape)?;
    let steps = back.div(x, wide);
    let moved = match at.node.input(2) {
        Some(zero) => {
            let zero = parameter(back, at, zero, &shape)?;
            back.add(steps, zero)
        }
        None => steps,
    };
    let (low, high) = (back.number(low as f32 - 0.5), back.number(high as f32 + 0.5));
    let inside = back.push(Node::new("Clip", [moved, low, high]), &shape);
    let dy = back.where_equal(at.dy, moved, inside);
    let share = back.div(dy, wide);
    back.give(x, share);
    if back.wants(Some(scale)) {
        let part = back.mul(share, steps);
        let part = back.unary("Neg", part);
        give_scale(back, at, scale, part, &shape)?;
    }
    Ok(())
}
