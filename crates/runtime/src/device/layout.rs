//! Shape operators in burn's primitives. Shapes and axes must be on the host.

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{FloatDType, Shape, Slice, TensorMetadata};

use super::{B, DeviceCall, DeviceTensor, axis, reshape, scalar};
use crate::kernels::elementwise::broadcast;

pub(crate) fn transpose(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let rank = call.shape(0)?.len();
    let order: Vec<usize> = match call.node.ints("perm") {
        None => (0..rank).rev().collect(),
        Some(order) => order.iter().map(|&axis| usize::try_from(axis).ok()).collect::<Option<_>>()?,
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..rank) {
        return None;
    }
    Some(B::float_permute(call.held(0)?.tensor, &order))
}

/// The first input in a shape of as many elements, unless that has no dimensions.
fn into_shape(call: &DeviceCall<'_>, shape: Vec<usize>) -> Option<DeviceTensor> {
    let count: usize = call.shape(0)?.iter().product();
    if shape.is_empty() || shape.iter().product::<usize>() != count {
        return None;
    }
    Some(reshape(call.held(0)?.tensor, shape))
}

pub(crate) fn reshaped(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let dims = call.shape(0)?;
    let wanted = call.integers(1)?;
    if call.node.int("allowzero").unwrap_or(0) != 0 {
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
    into_shape(call, shape)
}

pub(crate) fn flatten(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let axis = call.node.int("axis").unwrap_or(1);
    let axis = if axis == shape.len() as i64 { shape.len() } else { self::axis(axis, shape.len())? };
    into_shape(call, vec![shape[..axis].iter().product(), shape[axis..].iter().product()])
}

/// Axes given as an attribute, or since version 13 as an input.
fn axes(call: &DeviceCall<'_>, rank: usize) -> Option<Option<Vec<usize>>> {
    let listed = match call.node.ints("axes") {
        Some(listed) => listed.to_vec(),
        None if call.has(1) => call.integers(1)?,
        None => return Some(None),
    };
    listed.into_iter().map(|number| axis(number, rank)).collect::<Option<_>>().map(Some)
}

pub(crate) fn squeeze(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let axes = match axes(call, shape.len())? {
        Some(axes) => axes,
        None => (0..shape.len()).filter(|&axis| shape[axis] == 1).collect(),
    };
    if axes.iter().any(|&axis| shape[axis] != 1) {
        return None;
    }
    into_shape(call, (0..shape.len()).filter(|axis| !axes.contains(axis)).map(|axis| shape[axis]).collect())
}

pub(crate) fn unsqueeze(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    let count = match call.node.ints("axes") {
        Some(axes) => axes.len(),
        None => call.integers(1)?.len(),
    };
    let rank = shape.len() + count;
    let axes = axes(call, rank)??;
    let mut dims = shape.into_iter();
    let result: Vec<usize> = (0..rank)
        .map(|axis| if axes.contains(&axis) { Some(1) } else { dims.next() })
        .collect::<Option<_>>()?;
    dims.next().is_none().then_some(())?;
    into_shape(call, result)
}

pub(crate) fn concat(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let dtype = call.dtype(0)?;
    let same = (0..call.inputs.len()).all(|slot| call.dtype(slot) == Some(dtype));
    let first = call.shape(0)?;
    let axis = self::axis(call.node.int("axis")?, first.len())?;
    let fits = (0..call.inputs.len()).all(|slot| {
        call.shape(slot).is_some_and(|shape| {
            shape.len() == first.len()
                && (0..first.len()).all(|other| other == axis || shape[other] == first[other])
        })
    });
    if !same || !fits {
        return None;
    }
    // What has no elements adds nothing.
    let filled = |slot: &usize| call.shape(*slot).is_some_and(|shape| !shape.contains(&0));
    let tensors: Vec<DeviceTensor> = (0..call.inputs.len())
        .filter(filled)
        .map(|slot| Some(call.held(slot)?.tensor))
        .collect::<Option<_>>()?;
    match tensors.len() {
        0 => None,
        1 => tensors.into_iter().next(),
        _ => Some(B::float_cat(tensors, axis)),
    }
}

pub(crate) fn expand(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let dims = call.shape(0)?;
    let wanted: Vec<usize> =
        call.integers(1)?.into_iter().map(|dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    let shape = broadcast(&dims, &wanted)?;
    if shape.is_empty() || shape.contains(&0) {
        return None;
    }
    let mut own = vec![1; shape.len() - dims.len()];
    own.extend(&dims);
    // A lone number has one dimension on the device.
    let tensor = reshape(if dims.is_empty() { call.operand(0)? } else { call.held(0)?.tensor }, own);
    Some(B::float_expand(tensor, Shape::from(shape)))
}

pub(crate) fn tile(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let dims = call.shape(0)?;
    let repeats: Vec<usize> = call
        .integers(1)?
        .into_iter()
        .map(|times| usize::try_from(times).ok().filter(|&times| times > 0))
        .collect::<Option<_>>()?;
    if repeats.len() != dims.len() {
        return None;
    }
    let mut tensor = call.held(0)?.tensor;
    for (axis, &times) in repeats.iter().enumerate().filter(|(_, times)| **times > 1) {
        tensor = B::float_repeat_dim(tensor, axis, times);
    }
    Some(tensor)
}

/// The whole of some dimensions, as the primitives take it.
pub(crate) fn whole(dims: &[usize]) -> Vec<Slice> {
    dims.iter().map(|&dim| Slice::new(0, Some(dim as isize), 1)).collect()
}

/// A tensor with a border of one value.
pub(crate) fn padded(
    call: &DeviceCall<'_>,
    x: DeviceTensor,
    before: &[usize],
    after: &[usize],
    value: f32,
) -> DeviceTensor {
    let dims = x.shape().to_vec();
    if before.iter().chain(after).all(|&pad| pad == 0) {
        return x;
    }
    let shape: Vec<usize> =
        dims.iter().zip(before).zip(after).map(|((dim, before), after)| dim + before + after).collect();
    let middle: Vec<Slice> = dims
        .iter()
        .zip(before)
        .map(|(&dim, &before)| Slice::new(before as isize, Some((before + dim) as isize), 1))
        .collect();
    let border = B::float_full(Shape::from(shape), scalar(value), &call.place.device, FloatDType::F32);
    B::float_slice_assign(border, &middle, x)
}

/// `Pad` with a constant; what takes away is left to the host.
pub(crate) fn pad(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let rank = call.shape(0)?.len();
    if call.node.string("mode").unwrap_or("constant") != "constant" {
        return None;
    }
    let (pads, value) = match call.node.ints("pads") {
        Some(pads) => (pads.to_vec(), call.node.float("value").unwrap_or(0.0)),
        None => {
            let value = if call.has(2) { call.host(2)?.single()? as f32 } else { 0.0 };
            (call.integers(1)?, value)
        }
    };
    let axes: Vec<usize> = match call.has(3) {
        true => call.integers(3)?.into_iter().map(|number| axis(number, rank)).collect::<Option<_>>()?,
        false => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return None;
    }
    let pads: Vec<usize> = pads.into_iter().map(|pad| usize::try_from(pad).ok()).collect::<Option<_>>()?;
    let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
    for (index, &axis) in axes.iter().enumerate() {
        before[axis] = pads[index];
        after[axis] = pads[index + axes.len()];
    }
    Some(padded(call, call.tensor(0)?, &before, &after, value))
}

/// Block size, and the four dimensions.
fn blocks(call: &DeviceCall<'_>) -> Option<(usize, [usize; 4])> {
    let size = usize::try_from(call.node.int("blocksize")?).ok().filter(|&size| size > 0)?;
    Some((size, call.shape(0)?.try_into().ok()?))
}

/// Splits the axes, puts them into another order, and merges them again.
fn shuffled(
    call: &DeviceCall<'_>,
    split: Vec<usize>,
    order: [usize; 6],
    merged: Vec<usize>,
) -> Option<DeviceTensor> {
    let tensor = into_shape(call, split)?;
    Some(reshape(B::float_permute(tensor, &order), merged))
}

pub(crate) fn depth_to_space(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (size, [n, c, h, w]) = blocks(call)?;
    let depth = c.checked_div(size * size).filter(|depth| depth * size * size == c)?;
    let merged = vec![n, depth, h * size, w * size];
    match call.node.string("mode").unwrap_or("DCR") {
        "DCR" => shuffled(call, vec![n, size, size, depth, h, w], [0, 3, 4, 1, 5, 2], merged),
        "CRD" => shuffled(call, vec![n, depth, size, size, h, w], [0, 1, 4, 2, 5, 3], merged),
        _ => None,
    }
}

pub(crate) fn space_to_depth(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (size, [n, c, h, w]) = blocks(call)?;
    if call.node.string("mode").is_some_and(|mode| mode != "DCR") {
        return None;
    }
    if h % size != 0 || w % size != 0 {
        return None;
    }
    let (rows, columns) = (h / size, w / size);
    let split = vec![n, c, rows, size, columns, size];
    shuffled(call, split, [0, 3, 5, 1, 2, 4], vec![n, c * size * size, rows, columns])
}
