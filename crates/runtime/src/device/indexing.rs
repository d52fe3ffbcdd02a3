//! Taking parts of tensors in burn's primitives. Indices must be on the host.

use burn::tensor::ops::{FloatTensorOps, IntTensorOps};
use burn::tensor::{Shape, Slice};

use super::layout::whole;
use super::{B, DeviceCall, DeviceTensor, OnDevice, axis, reshape, scalar};
use crate::kernels::resize::{self, Mix};

pub(crate) fn slice(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let dims = call.shape(0)?;
    // Attributes before version 10.
    let list = |name: &str, slot: usize| -> Option<Option<Vec<i64>>> {
        if call.opset < 10 {
            return Some(call.node.ints(name).map(<[i64]>::to_vec));
        }
        if call.has(slot) { call.integers(slot).map(Some) } else { Some(None) }
    };
    let (starts, ends) = (list("starts", 1)??, list("ends", 2)??);
    let axes = match list("axes", 3)? {
        Some(axes) => axes,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match if call.opset < 10 { None } else { list("steps", 4)? } {
        Some(steps) => steps,
        None => vec![1; starts.len()],
    };
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return None;
    }
    let mut slices = whole(&dims);
    let mut backwards: Vec<(usize, Vec<usize>)> = Vec::new();
    let mut seen = vec![false; dims.len()];
    for index in 0..starts.len() {
        let axis = axis(axes[index], dims.len())?;
        if std::mem::replace(&mut seen[axis], true) {
            return None;
        }
        let (dim, step) = (dims[axis] as i64, steps[index]);
        let wrapped = |at: i64| if at < 0 { at.saturating_add(dim) } else { at };
        let (start, end) = (wrapped(starts[index]), wrapped(ends[index]));
        if step > 0 {
            let (start, end) = (start.clamp(0, dim), end.clamp(0, dim));
            if start >= end {
                return None;
            }
            // The primitives want the end to be reachable.
            slices[axis] =
                Slice::new(start as isize, Some(end as isize), isize::try_from(step.min(dim)).ok()?);
        } else if step < 0 {
            let (start, end) = (start.clamp(-1, dim - 1), end.clamp(-1, dim - 1));
            if start <= end {
                return None;
            }
            let places = (0..).map(|count: i64| start + count * step.max(-dim)).take_while(|&at| at > end);
            backwards.push((axis, places.map(|at| at as usize).collect()));
        } else {
            return None;
        }
    }
    let mut tensor = call.held(0)?.tensor;
    if slices != whole(&dims) {
        tensor = B::float_slice(tensor, &slices);
    }
    for (axis, places) in backwards {
        tensor = B::float_select(tensor, axis, call.places(&places)?);
    }
    Some(tensor)
}

pub(crate) fn split(call: &DeviceCall<'_>) -> Option<Vec<OnDevice>> {
    let dims = call.shape(0)?;
    let axis = call.axis("axis", 0, dims.len())?;
    let count = call.node.outputs().len();
    let given = match call.node.ints("split") {
        Some(sizes) => Some(sizes.to_vec()),
        None if call.has(1) => Some(call.integers(1)?),
        None => None,
    };
    let sizes: Vec<usize> = match given {
        Some(sizes) => sizes.into_iter().map(|size| usize::try_from(size).ok()).collect::<Option<_>>()?,
        None => {
            let part = dims[axis].div_ceil(count.max(1));
            (0..count).map(|index| part.min(dims[axis].saturating_sub(index * part))).collect()
        }
    };
    if sizes.len() != count || sizes.contains(&0) || sizes.iter().sum::<usize>() != dims[axis] {
        return None;
    }
    // As in kernels that move: what is no float is not worth a transfer.
    if call.dtype(0)? != optix_ir::DType::F32 && call.host(0).is_some() {
        return None;
    }
    let held = call.held(0)?;
    let mut start = 0;
    let parts = sizes.into_iter().map(|size| {
        let mut slices = whole(&dims);
        slices[axis] = Slice::new(start as isize, Some((start + size) as isize), 1);
        start += size;
        OnDevice { tensor: B::float_slice(held.tensor.clone(), &slices), dtype: held.dtype }
    });
    Some(parts.collect())
}

/// Indices counted from the front; `None` when one lies outside.
fn inside(indices: &[i64], dim: usize) -> Option<Vec<usize>> {
    let dim = dim as i64;
    indices
        .iter()
        .map(|&index| if index < 0 { index.checked_add(dim) } else { Some(index) })
        .map(|index| index.filter(|index| (0..dim).contains(index)).map(|index| index as usize))
        .collect()
}

pub(crate) fn gather(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (dims, shape) = (call.shape(0)?, call.shape(1)?);
    let axis = call.axis("axis", 0, dims.len())?;
    let indices = inside(&call.integers(1)?, dims[axis])?;
    let result = [&dims[..axis], &shape, &dims[axis + 1..]].concat();
    if indices.is_empty() || result.is_empty() {
        return None;
    }
    let taken = B::float_select(call.held(0)?.tensor, axis, call.places(&indices)?);
    Some(reshape(taken, result))
}

pub(crate) fn gather_elements(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (dims, shape) = (call.shape(0)?, call.shape(1)?);
    let axis = call.axis("axis", 0, dims.len())?;
    let alike = shape.len() == dims.len()
        && (0..dims.len()).all(|other| other == axis || shape[other] == dims[other]);
    let indices = inside(&call.integers(1)?, dims[axis])?;
    if !alike || indices.is_empty() {
        return None;
    }
    let places = B::int_reshape(call.places(&indices)?, Shape::from(shape));
    Some(B::float_gather(axis, call.held(0)?.tensor, places))
}

/// `Resize` by the nearest and by linear interpolation over the last two axes.
pub(crate) fn resize(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let dims = call.shape(0)?;
    let given = |slot: usize| match call.has(slot) {
        true => Some(Some(call.host(slot)?).filter(|tensor| !tensor.is_empty())),
        false => Some(None),
    };
    let plan = resize::plan(call.node, &dims, given(2)?, given(3)?)?;
    let mut tensor = call.tensor(0)?;
    for (axis, mixes) in (dims.len() - 2..).zip(&plan.mixes) {
        let places = |of: fn(&Mix) -> usize| mixes.iter().map(of).collect::<Vec<usize>>();
        let first = B::float_select(tensor.clone(), axis, call.places(&places(|mix| mix.first))?);
        if !plan.linear {
            tensor = first;
            continue;
        }
        let second = B::float_select(tensor, axis, call.places(&places(|mix| mix.second))?);
        let mut shape = vec![1; dims.len()];
        shape[axis] = mixes.len();
        let weight = call.floats(shape, mixes.iter().map(|mix| mix.weight).collect());
        let rest = B::float_add_scalar(B::float_neg(weight.clone()), scalar(1.0));
        tensor = B::float_add(B::float_mul(first, rest), B::float_mul(second, weight));
    }
    Some(tensor)
}
