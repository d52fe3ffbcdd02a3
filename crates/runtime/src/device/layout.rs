//! Shape operators in burn's primitives. Shapes and axes must be on the host.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensorOps;

use super::{B, DeviceCall, DeviceTensor, axis, reshape};

pub(crate) fn transpose(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let tensor = call.tensor(0)?;
    let rank = tensor.shape().num_dims();
    let order: Vec<usize> = match call.node.ints("perm") {
        None => (0..rank).rev().collect(),
        Some(order) => order.iter().map(|&axis| usize::try_from(axis).ok()).collect::<Option<_>>()?,
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return None;
    }
    Some(B::float_permute(tensor, &order))
}

pub(crate) fn reshaped(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let dims = call.shape(0)?;
    let wanted = call.host(1)?.to_i64s().ok()?;
    if call.node.int("allowzero").unwrap_or(0) != 0 || wanted.is_empty() {
        return None;
    }
    let count: usize = dims.iter().product();
    let mut shape = Vec::with_capacity(wanted.len());
    for (index, &dim) in wanted.iter().enumerate() {
        shape.push(match dim {
            0 => *dims.get(index)?,
            -1 => 1,
            dim => usize::try_from(dim).ok()?,
        });
    }
    if let Some(free) = wanted.iter().position(|&dim| dim == -1) {
        let known: usize = shape.iter().product();
        shape[free] = count.checked_div(known)?;
    }
    (shape.iter().product::<usize>() == count).then(|| call.tensor(0))?.map(|tensor| reshape(tensor, shape))
}

pub(crate) fn flatten(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let axis = call.node.int("axis").unwrap_or(1);
    let axis = if axis == shape.len() as i64 { shape.len() } else { self::axis(axis, shape.len())? };
    let sizes = vec![shape[..axis].iter().product(), shape[axis..].iter().product()];
    Some(reshape(call.tensor(0)?, sizes))
}

fn axes(call: &DeviceCall<'_>, rank: usize) -> Option<Vec<usize>> {
    call.host(1)?.to_i64s().ok()?.into_iter().map(|number| axis(number, rank)).collect()
}

pub(crate) fn squeeze(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let axes = axes(call, shape.len())?;
    if axes.iter().any(|&axis| shape[axis] != 1) {
        return None;
    }
    let result: Vec<usize> =
        (0..shape.len()).filter(|axis| !axes.contains(axis)).map(|axis| shape[axis]).collect();
    if result.is_empty() { None } else { Some(reshape(call.tensor(0)?, result)) }
}

pub(crate) fn unsqueeze(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let rank = shape.len() + call.shape(1)?.first().copied().unwrap_or(1);
    let axes = axes(call, rank)?;
    let mut dims = shape.into_iter();
    let result: Vec<usize> = (0..rank)
        .map(|axis| if axes.contains(&axis) { Some(1) } else { dims.next() })
        .collect::<Option<_>>()?;
    dims.next().is_none().then_some(())?;
    Some(reshape(call.tensor(0)?, result))
}

pub(crate) fn concat(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let tensors: Vec<DeviceTensor> =
        (0..call.inputs.len()).map(|slot| call.tensor(slot)).collect::<Option<_>>()?;
    let first = tensors.first()?.shape().to_vec();
    let axis = self::axis(call.node.int("axis")?, first.len())?;
    let fits = tensors.iter().all(|tensor| {
        let shape = tensor.shape().to_vec();
        shape.len() == first.len()
            && (0..first.len()).all(|other| other == axis || shape[other] == first[other])
    });
    fits.then(|| B::float_cat(tensors, axis))
}
