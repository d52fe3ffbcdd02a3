//! Quantizers: between floats and the types of few bits.
//!
//! Computed as the standard's reference does: the division in the type of the scale, then rounding half to
//! even, then the zero point, then saturation. Bit for bit.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::cast::floats_as;
use crate::movement::{broadcast_strides, places};
use crate::numbers::{float_tensor, integer_tensor};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("QuantizeLinear", 10, quantize),
    KernelSpec::onnx("DequantizeLinear", 10, dequantize),
    KernelSpec::onnx("DynamicQuantizeLinear", 11, dynamic),
    // onnxruntime's own came first for 16 bits and fewer than 8; they compute the same.
    KernelSpec::contrib("QuantizeLinear", quantize),
    KernelSpec::contrib("DequantizeLinear", dequantize),
];

/// Index of the scale of every element of a tensor of shape `shape`.
fn scale_places(call: &Call<'_>, shape: &[usize], scale: &Tensor) -> Result<Vec<usize>, OpError> {
    let rank = shape.len();
    let block = call.node.int("block_size").unwrap_or(0);
    if scale.len() == 1 && block == 0 && scale.rank() <= 1 {
        return Ok(vec![0; optix_ir::element_count(shape).unwrap_or(0)]);
    }
    let axis = call.axis(call.node.int("axis").unwrap_or(1), rank)?;
    if block == 0 {
        if scale.shape() != [shape[axis]] {
            let what = format!("{:?} scales for an axis of size {}", scale.shape(), shape[axis]);
            return Err(call.invalid(what));
        }
        let mut spread = vec![1; rank];
        spread[axis] = shape[axis];
        let strides = broadcast_strides(call, &spread, shape)?;
        return Ok(places(shape, 0, &strides).collect());
    }
    let block = usize::try_from(block).map_err(|_| call.invalid("`block_size` is negative"))?;
    let fits = scale.rank() == rank
        && scale.shape().iter().zip(shape).enumerate().all(|(at, (&scales, &size))| {
            if at == axis { scales == size.div_ceil(block) } else { scales == size }
        });
    if !fits {
        let what = format!("scales of shape {:?} for {shape:?} in blocks of {block}", scale.shape());
        return Err(call.invalid(what));
    }
    let inner: usize = shape[axis + 1..].iter().product();
    let count = optix_ir::element_count(shape).unwrap_or(0);
    let blocks = scale.shape()[axis];
    Ok((0..count)
        .map(|index| {
            let (outer, along, within) =
                (index / (inner * shape[axis]), index / inner % shape[axis], index % inner);
            (outer * blocks + along / block) * inner + within
        })
        .collect())
}

fn quantize(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, scale) = (call.input(0)?, call.input(1)?);
    let zero_point = call.optional(2);
    let declared =
        call.node.int("output_dtype").and_then(|code| i32::try_from(code).ok()).and_then(DType::from_onnx);
    let to = zero_point.map(Tensor::dtype).or(declared).unwrap_or(DType::U8);
    let shape = x.shape().to_vec();
    call.check_size(DType::F64, &shape)?;
    let at = scale_places(call, &shape, scale)?;
    let values = x.to_f64s().map_err(|error| call.tensor_error(error))?;
    let scales = scale.to_f64s().map_err(|error| call.tensor_error(error))?;
    if let Some(zero_point) = zero_point
        && zero_point.len() != scales.len()
    {
        return Err(call.invalid(format!("{} zero points for {} scales", zero_point.len(), scales.len())));
    }
    // The quotient is rounded to the type the division is done in.
    let precision =
        call.node.int("precision").and_then(|code| i32::try_from(code).ok()).and_then(DType::from_onnx);
    let arithmetic =
        precision.unwrap_or(if scale.dtype() == DType::F8E8M0 { x.dtype() } else { scale.dtype() });
    let narrow = |value: f64| match arithmetic {
        DType::F16 => half::f16::from_f64(value).to_f64(),
        DType::BF16 => half::bf16::from_f64(value).to_f64(),
        DType::F64 => value,
        _ => f64::from(value as f32),
    };
    let quotients = values.iter().zip(&at).map(|(&value, &at)| narrow(value / scales[at]));
    if to.is_float() {
        let saturate = call.node.int("saturate").unwrap_or(1) != 0;
        // The zero point is zero; adding it takes the sign off a negative zero.
        let quotients: Vec<f64> = quotients.map(|quotient| quotient + 0.0).collect();
        return Ok(vec![floats_as(call, &quotients, shape, to, saturate)?]);
    }
    let Some((low, high)) = to.integer_range() else { return Err(call.wrong_type(2, to)) };
    let zeros = match zero_point {
        Some(zero_point) => zero_point.to_i64s().map_err(|error| call.tensor_error(error))?,
        None => vec![0; scales.len()],
    };
    let integers: Vec<i64> = quotients
        .zip(&at)
        .map(|(quotient, &at)| {
            let integer = quotient.round_ties_even() + zeros[at] as f64;
            integer.clamp(low as f64, high as f64) as i64
        })
        .collect();
    Ok(vec![integer_tensor(call, to, shape, &integers)?])
}

fn dequantize(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, scale) = (call.input(0)?, call.input(1)?);
    let zero_point = call.optional(2);
    let declared =
        call.node.int("output_dtype").and_then(|code| i32::try_from(code).ok()).and_then(DType::from_onnx);
    let to = declared.unwrap_or(scale.dtype());
    let shape = x.shape().to_vec();
    call.check_size(DType::F64, &shape)?;
    let at = scale_places(call, &shape, scale)?;
    let scales = scale.to_f64s().map_err(|error| call.tensor_error(error))?;
    let zeros = match zero_point {
        Some(zero_point) if zero_point.dtype() != x.dtype() => {
            return Err(call.invalid(format!(
                "the zero point is {} and the input {}",
                zero_point.dtype(),
                x.dtype()
            )));
        }
        Some(zero_point) if zero_point.len() != scales.len() => {
            return Err(call.invalid(format!(
                "{} zero points for {} scales",
                zero_point.len(),
                scales.len()
            )));
        }
        Some(zero_point) => zero_point.to_f64s().map_err(|error| call.tensor_error(error))?,
        None => vec![0.0; scales.len()],
    };
    let values = x.to_f64s().map_err(|error| call.tensor_error(error))?;
    // The difference of two integers becomes binary32 before it is scaled.
    let reals: Vec<f64> = values
        .iter()
        .zip(&at)
        .map(|(&value, &at)| f64::from((value - zeros[at]) as f32) * scales[at])
        .collect();
    Ok(vec![float_tensor(call, to, shape, &reals)?])
}

/// `DynamicQuantizeLinear`: uint8 over the range of the input, which is widened to hold 0.
pub(crate) fn dynamic(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let values = x.to_slice::<f32>().map_err(|error| call.tensor_error(error))?;
    let low = values.iter().fold(0f32, |low, &x| low.min(x));
    let high = values.iter().fold(0f32, |high, &x| high.max(x));
    let range = high - low;
    let scale = range / 255.0;
    let zero_point = if scale == 0.0 { 0.0 } else { (-low / scale).clamp(0.0, 255.0).round_ties_even() };
    let integers: Vec<u8> = values
        .iter()
        .map(|&x| {
            let quotient = if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even() };
            (quotient + zero_point).clamp(0.0, 255.0) as u8
        })
        .collect();
    Ok(vec![
        Tensor::from_vec(x.shape().to_vec(), integers),
        Tensor::scalar(scale),
        Tensor::scalar(zero_point as u8),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, inputs: &[&Tensor]) -> Tensor {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|tensor| Some(*tensor)).collect();
        let spec = crate::find("", &node.op_type).unwrap();
        (spec.run)(&Call::new(node, 21, &inputs)).unwrap().remove(0)
    }

    #[test]
    fn rounds_half_to_even_and_saturates() {
        let x = Tensor::from_vec(vec![6], vec![1.0f32, 3.0, -1.0, 1000.0, -1000.0, 5.0]);
        let (scale, zero) = (Tensor::scalar(2f32), Tensor::scalar(10u8));
        let result = run(&Node::new("QuantizeLinear", []), &[&x, &scale, &zero]);
        assert_eq!(result.to_i64s().unwrap(), [10, 12, 10, 255, 0, 12]);
        let back = run(&Node::new("DequantizeLinear", []), &[&result, &scale, &zero]);
        assert_eq!(back.to_f64s().unwrap(), [0.0, 4.0, 0.0, 490.0, -20.0, 4.0]);
    }

    #[test]
    fn channels_and_blocks() {
        let x = Tensor::from_vec(vec![2, 4], vec![2f32, 4.0, 6.0, 8.0, 2.0, 4.0, 6.0, 8.0]);
        let scale = Tensor::from_vec(vec![2], vec![1f32, 2.0]);
        let zero = Tensor::from_vec(vec![2], vec![0i8, 1]);
        let node = Node::new("QuantizeLinear", []).with("axis", 0i64);
        assert_eq!(run(&node, &[&x, &scale, &zero]).to_i64s().unwrap(), [2, 4, 6, 8, 2, 3, 4, 5]);
        let scale = Tensor::from_vec(vec![2, 2], vec![1f32, 2.0, 1.0, 4.0]);
        let zero = Tensor::from_vec(vec![2, 2], vec![0i8; 4]);
        let node = Node::new("QuantizeLinear", []).with("axis", 1i64).with("block_size", 2i64);
        assert_eq!(run(&node, &[&x, &scale, &zero]).to_i64s().unwrap(), [2, 4, 3, 4, 2, 4, 2, 2]);
    }
}
