//! Reductions, softmax and normalizations in burn's primitives.

use burn::tensor::ops::FloatTensorOps;

use super::layout::{padded, whole};
use super::{B, DeviceCall, DeviceTensor, axis, reshape, scalar};

/// A reduction of everything behind the channels.
pub(crate) fn global(
    call: &DeviceCall<'_>,
    function: fn(DeviceTensor, usize) -> DeviceTensor,
) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let mut result = vec![1; shape.len()];
    result.get_mut(..2)?.copy_from_slice(&shape[..2]);
    let flat = reshape(call.tensor(0)?, vec![shape[0], shape[1], shape[2..].iter().product()]);
    Some(reshape(function(flat, 2), result))
}

/// The greatest number along an axis. Backends that start from the lowest finite number would never find an
/// infinite one below it; of halves none is that low, and what was started from doubles to infinity.
pub(crate) fn greatest(tensor: DeviceTensor, axis: usize) -> DeviceTensor {
    let halves = B::float_mul_scalar(tensor, scalar(0.5));
    B::float_mul_scalar(B::float_max_dim(halves, axis), scalar(2.0))
}

/// The least number along an axis, as [`greatest`].
pub(crate) fn least(tensor: DeviceTensor, axis: usize) -> DeviceTensor {
    let halves = B::float_mul_scalar(tensor, scalar(0.5));
    B::float_mul_scalar(B::float_min_dim(halves, axis), scalar(2.0))
}

/// Reductions axis by axis.
pub(crate) fn reduce(
    call: &DeviceCall<'_>,
    function: fn(DeviceTensor, usize) -> DeviceTensor,
) -> Option<DeviceTensor> {
    reduced(call, call.tensor(0)?, function)
}

/// Sums of a function of the elements, and a function of the sums.
pub(crate) fn around(
    call: &DeviceCall<'_>,
    before: fn(DeviceTensor) -> DeviceTensor,
    after: fn(DeviceTensor) -> DeviceTensor,
) -> Option<DeviceTensor> {
    reduced(call, before(call.tensor(0)?), B::float_sum_dim).map(after)
}

fn reduced(
    call: &DeviceCall<'_>,
    mut tensor: DeviceTensor,
    function: fn(DeviceTensor, usize) -> DeviceTensor,
) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let rank = shape.len();
    let listed = match call.node.ints("axes") {
        Some(listed) => listed.to_vec(),
        None if call.has(1) => call.integers(1)?,
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
    for axis in axes {
        tensor = function(tensor, axis);
    }
    Some(reshape(tensor, result))
}

/// `Softmax` and `LogSoftmax`: along an axis, and before version 13 over all axes from one on.
pub(crate) fn softmax(
    call: &DeviceCall<'_>,
    function: fn(DeviceTensor, usize) -> DeviceTensor,
) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    if call.opset >= 13 {
        let axis = call.axis("axis", -1, shape.len())?;
        return Some(function(call.tensor(0)?, axis));
    }
    let axis = call.axis("axis", 1, shape.len())?;
    let flat = vec![shape[..axis].iter().product(), shape[axis..].iter().product()];
    Some(reshape(function(reshape(call.tensor(0)?, flat), 1), shape))
}

fn square(x: DeviceTensor) -> DeviceTensor {
    B::float_mul(x.clone(), x)
}

/// Rows made zero on average and of variance 1, along dimension 1 of two.
fn normalized(rows: DeviceTensor, epsilon: f32) -> DeviceTensor {
    let centred = B::float_sub(rows.clone(), B::float_mean_dim(rows, 1));
    let variance = B::float_mean_dim(square(centred.clone()), 1);
    B::float_div(centred, B::float_sqrt(B::float_add_scalar(variance, scalar(epsilon))))
}

/// The input as rows of the elements from an axis on, and a parameter as one such row.
struct Rows {
    shape: Vec<usize>,
    rows: usize,
    length: usize,
}

impl Rows {
    fn new(call: &DeviceCall<'_>) -> Option<Rows> {
        let shape = call.shape(0)?;
        let axis = call.axis("axis", -1, shape.len())?;
        if call.node.int("stash_type").unwrap_or(1) != 1 {
            return None;
        }
        let (rows, length) = (shape[..axis].iter().product(), shape[axis..].iter().product());
        Some(Rows { shape, rows, length })
    }

    fn parameter(&self, call: &DeviceCall<'_>, slot: usize) -> Option<DeviceTensor> {
        let fits = call.shape(slot)?.iter().product::<usize>() == self.length;
        if fits { Some(reshape(call.operand(slot)?, vec![1, self.length])) } else { None }
    }
}

pub(crate) fn layer_normalization(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let rows = Rows::new(call)?;
    let x = reshape(call.tensor(0)?, vec![rows.rows, rows.length]);
    let epsilon = call.node.float("epsilon").unwrap_or(1e-5);
    let mut result = B::float_mul(normalized(x, epsilon), rows.parameter(call, 1)?);
    if call.has(2) {
        result = B::float_add(result, rows.parameter(call, 2)?);
    }
    Some(reshape(result, rows.shape))
}

pub(crate) fn rms_normalization(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let rows = Rows::new(call)?;
    let x = reshape(call.tensor(0)?, vec![rows.rows, rows.length]);
    let epsilon = call.node.float("epsilon").unwrap_or(1e-5);
    let mean = B::float_add_scalar(B::float_mean_dim(square(x.clone()), 1), scalar(epsilon));
    let result = B::float_mul(B::float_div(x, B::float_sqrt(mean)), rows.parameter(call, 1)?);
    Some(reshape(result, rows.shape))
}

pub(crate) fn batch_normalization(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    if call.node.int("training_mode").unwrap_or(0) != 0 || shape.len() < 2 {
        return None;
    }
    let mut channel = vec![1; shape.len()];
    channel[1] = shape[1];
    let parameter = |slot: usize| Some(reshape(call.tensor(slot)?, channel.clone()));
    let epsilon = call.node.float("epsilon").unwrap_or(1e-5);
    let deviation = B::float_sqrt(B::float_add_scalar(parameter(4)?, scalar(epsilon)));
    let factor = B::float_div(parameter(1)?, deviation);
    let shift = B::float_sub(parameter(2)?, B::float_mul(parameter(3)?, factor.clone()));
    Some(B::float_add(B::float_mul(call.tensor(0)?, factor), shift))
}

pub(crate) fn instance_normalization(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    if shape.len() < 3 {
        return None;
    }
    let flat = vec![shape[0] * shape[1], shape[2..].iter().product()];
    let rows = reshape(call.tensor(0)?, flat);
    let rows = reshape(normalized(rows, call.node.float("epsilon").unwrap_or(1e-5)), shape.clone());
    let mut channel = vec![1; shape.len()];
    channel[1] = shape[1];
    let parameter = |slot: usize| {
        if call.shape(slot)? == [shape[1]] {
            Some(reshape(call.tensor(slot)?, channel.clone()))
        } else {
            None
        }
    };
    Some(B::float_add(B::float_mul(rows, parameter(1)?), parameter(2)?))
}

/// `LRN`: the squares of neighbouring channels are summed as slices of a padded tensor.
pub(crate) fn local_response_normalization(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let size = usize::try_from(call.node.int("size")?).ok().filter(|size| (1..=64).contains(size))?;
    if shape.len() < 3 {
        return None;
    }
    let x = call.tensor(0)?;
    let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
    before[1] = (size - 1) / 2;
    after[1] = size / 2;
    let squares = padded(call, square(x.clone()), &before, &after, 0.0);
    let part = |start: usize| {
        let mut slices = whole(&shape);
        slices[1] = burn::tensor::Slice::new(start as isize, Some((start + shape[1]) as isize), 1);
        B::float_slice(squares.clone(), &slices)
    };
    let sum = (1..size).fold(part(0), |sum, start| B::float_add(sum, part(start)));
    let (alpha, beta) = (call.node.float("alpha").unwrap_or(1e-4), call.node.float("beta").unwrap_or(0.75));
    let bias = call.node.float("bias").unwrap_or(1.0);
    let base = B::float_add_scalar(B::float_mul_scalar(sum, scalar(alpha / size as f32)), scalar(bias));
    Some(B::float_div(x, B::float_powf_scalar(base, scalar(beta))))
}
