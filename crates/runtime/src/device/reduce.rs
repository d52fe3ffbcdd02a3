//! Reductions, softmax and layer normalization in burn's primitives.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::{ActivationOps, FloatTensorOps};

use super::{B, DeviceCall, DeviceTensor, axis, reshape};

pub(crate) fn global_average(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let mut result = vec![1; shape.len()];
    result.get_mut(..2)?.copy_from_slice(&shape[..2]);
    let flat = reshape(call.tensor(0)?, vec![shape[0], shape[1], shape[2..].iter().product()]);
    Some(reshape(B::float_mean_dim(flat, 2), result))
}

/// ReduceMean and ReduceSum: axis by axis.
pub(crate) fn reduce(
    call: &DeviceCall<'_>,
    function: fn(DeviceTensor, usize) -> DeviceTensor,
) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let rank = shape.len();
    let listed = match call.node.ints("axes") {
        Some(listed) => listed.to_vec(),
        None if call.has(1) => call.host(1)?.to_i64s().ok()?,
        None => Vec::new(),
    };
    let mut axes: Vec<usize> = listed.iter().map(|&number| axis(number, rank)).collect::<Option<_>>()?;
    if axes.is_empty() {
        if call.node.int("noop_with_empty_axes").unwrap_or(0) != 0 {
            return None;
        }
        axes = (0..rank).collect();
    }
    let keep = call.node.int("keepdims").unwrap_or(1) != 0;
    let result: Vec<usize> = (0..rank)
        .filter(|axis| keep || !axes.contains(axis))
        .map(|axis| if axes.contains(&axis) { 1 } else { shape[axis] })
        .collect();
    if result.is_empty() {
        return None;
    }
    let mut tensor = call.tensor(0)?;
    for axis in axes {
        tensor = function(tensor, axis);
    }
    Some(reshape(tensor, result))
}

pub(crate) fn softmax(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let tensor = call.tensor(0)?;
    let axis = call.axis("axis", -1, tensor.shape().num_dims())?;
    Some(B::softmax(tensor, axis))
}

pub(crate) fn layer_normalization(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let axis = call.axis("axis", -1, shape.len())?;
    if call.node.outputs().len() > 1 || call.node.int("stash_type").unwrap_or(1) != 1 {
        return None;
    }
    let length: usize = shape[axis..].iter().product();
    let rows = shape[..axis].iter().product();
    let parameter = |slot: usize| {
        let fits = call.shape(slot)?.iter().product::<usize>() == length;
        if fits { Some(reshape(call.tensor(slot)?, vec![1, length])) } else { None }
    };
    let x = reshape(call.tensor(0)?, vec![rows, length]);
    let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
    let variance = B::float_mean_dim(B::float_mul(centred.clone(), centred.clone()), 1);
    let epsilon = call.node.float("epsilon").unwrap_or(1e-5);
    let deviation = B::float_sqrt(B::float_add_scalar(variance, epsilon.into()));
    let mut result = B::float_mul(B::float_div(centred, deviation), parameter(1)?);
    if call.has(2) {
        result = B::float_add(result, parameter(2)?);
    }
    Some(reshape(result, shape))
}
