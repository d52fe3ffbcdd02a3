//! QuantizeLinear and DequantizeLinear on a device: 8-bit numbers as whole floats. Products and sums behind
//! them are those of floats, so this is emulation.

use burn::tensor::ops::FloatTensorOps;
use optix_ir::DType;

use super::{B, DeviceCall, DeviceTensor, OnDevice, scalar};

/// Scale and zero point in the shape that broadcasts over the input: one each, or one for every place
/// along an axis. Blocks and other types are left to the host.
fn grid(call: &DeviceCall<'_>, zero_type: DType) -> Option<(DeviceTensor, Option<DeviceTensor>)> {
    let (dims, scale) = (call.shape(0)?, call.host(1)?);
    if call.node.int("block_size").unwrap_or(0) != 0 || scale.dtype() != DType::F32 {
        return None;
    }
    let scales = scale.to_slice::<f32>().ok()?.into_owned();
    let mut shape = vec![1; dims.len()];
    if scales.len() != 1 {
        let axis = call.axis("axis", 1, dims.len())?;
        if scale.rank() != 1 || dims[axis] != scales.len() {
            return None;
        }
        shape[axis] = scales.len();
    }
    let zeros = match call.has(2) {
        true => {
            let zero = call.host(2)?;
            if zero.dtype() != zero_type || zero.len() != scales.len() {
                return None;
            }
            let zeros: Vec<f32> = zero.to_i64s().ok()?.into_iter().map(|zero| zero as f32).collect();
            zeros.iter().any(|&zero| zero != 0.0).then_some(zeros)
        }
        false => None,
    };
    let zeros = zeros.map(|zeros| call.floats(shape.clone(), zeros));
    Some((call.floats(shape, scales), zeros))
}

pub(crate) fn quantize(call: &DeviceCall<'_>) -> Option<Vec<OnDevice>> {
    let dtype = match (call.has(2), call.node.int("output_dtype").unwrap_or(0)) {
        (true, _) => call.dtype(2)?,
        (false, 0) => DType::U8,
        (false, code) => DType::from_onnx(i32::try_from(code).ok()?)?,
    };
    let (low, high) = match dtype {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        _ => return None,
    };
    if call.node.int("precision").unwrap_or(0) > 1 {
        return None;
    }
    let x = call.tensor(0)?;
    let (scales, zeros) = grid(call, dtype)?;
    let mut level = B::float_round(B::float_div(x, scales));
    if let Some(zeros) = zeros {
        level = B::float_add(level, zeros);
    }
    Some(vec![OnDevice { tensor: B::float_clamp(level, scalar(low), scalar(high)), dtype }])
}

pub(crate) fn dequantize(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let dtype = call.dtype(0)?;
    if !matches!(dtype, DType::U8 | DType::I8) || !matches!(call.node.int("output_dtype").unwrap_or(0), 0 | 1)
    {
        return None;
    }
    let codes = call.held(0)?.tensor;
    let (scales, zeros) = grid(call, dtype)?;
    let level = match zeros {
        Some(zeros) => B::float_sub(codes, zeros),
        None => codes,
    };
    Some(B::float_mul(level, scales))
}
