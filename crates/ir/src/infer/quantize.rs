//! Between real numbers and quantized ones.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, one};
use crate::infer::dims::{self, Outcome, wrong};
use crate::infer::fact::Fact;
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("DequantizeLinear", dequantize),
    ("DynamicQuantizeLinear", quantize_dynamically),
    ("QuantizeLinear", quantize),
];

pub(super) fn quantize(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let named = call.dtype_attribute("output_dtype");
    let dtype = match (call.has(2), named) {
        (true, None) => call.dtype(2),
        (false, None) => Some(DType::U8),
        (_, named) => named,
    };
    if let (Some(named), Some(found)) = (named, call.dtype(2))
        && named != found
    {
        return wrong(format!("`output_dtype` is {named}, but the zero point is {found}"));
    }
    check_scale(call)?;
    one(dtype, call.shape(0).cloned())
}

pub(super) fn dequantize(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    if let (Some(codes), Some(zero)) = (call.dtype(0), call.dtype(2))
        && codes != zero
    {
        return wrong(format!("the input is {codes}, but its zero point is {zero}"));
    }
    check_scale(call)?;
    one(call.dtype_attribute("output_dtype").or(call.dtype(1)), call.shape(0).cloned())
}

/// The scale is a scalar, a vector along the axis, or has the input's shape with blocks along the axis.
fn check_scale(call: &Call<'_>) -> Outcome<()> {
    let (Some(shape), Some(scale)) = (call.shape(0), call.shape(1)) else { return Ok(()) };
    if let (Some(scale), Some(zero)) = (fixed_count(scale), call.shape(2).and_then(fixed_count))
        && scale != zero
    {
        return wrong(format!("{scale} scales, but {zero} zero points"));
    }
    let block = call.int("block_size", 0);
    if block < 0 {
        return wrong(format!("`block_size` is {block}"));
    }
    if block == 0 && (scale.is_empty() || scale.iter().all(|dim| dim.fixed() == Some(1))) {
        return Ok(());
    }
    let axis = call.axis(1, shape.len())?;
    if block == 0 {
        if scale.len() != 1 {
            return wrong(format!(
                "the scale has {} dimensions: 0 or 1 are allowed without `block_size`",
                scale.len()
            ));
        }
        dims::same(&shape[axis], &scale[0], "the size along the axis and the number of scales")?;
        return Ok(());
    }
    if scale.len() != shape.len() {
        return wrong("with `block_size` the scale needs as many dimensions as the input");
    }
    for (index, (dim, scale)) in shape.iter().zip(scale).enumerate() {
        let expected = if index == axis { dims::map(dim, |dim| dim.ceil_div(block))? } else { dim.clone() };
        dims::same(&expected, scale, "the input's blocks and the scale's shape")?;
    }
    Ok(())
}

fn fixed_count(shape: &Shape) -> Option<usize> {
    shape.iter().map(Dim::fixed).try_fold(1usize, |count, size| count.checked_mul(size?))
}

fn quantize_dynamically(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    Ok(vec![
        Fact::tensor(Some(DType::U8), call.shape(0).cloned()),
        Fact::tensor(Some(DType::F32), Some(Shape::new())),
        Fact::tensor(Some(DType::U8), Some(Shape::new())),
    ])
}
