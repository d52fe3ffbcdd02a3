//! Operators that move elements without looking at them, for every type of whole bytes
//! (onnx/docs/Operators.md).

use bytes::Bytes;
use optix_ir::{DType, Tensor};
use optix_ops::OpError;

use super::buffers::Block;
use super::{Fast, Job, KernelSpec, parallel, size};

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("Transpose", 1, transpose),
    KernelSpec::plain("Concat", 4, concat),
    KernelSpec::plain("Gather", 1, gather),
    KernelSpec::plain("Slice", 10, slice),
    KernelSpec::plain("Expand", 8, expand),
];

/// Runs a body with the element size as a constant, or declines.
macro_rules! by_width {
    ($dtype:expr, $width:ident => $body:expr) => {
        match width($dtype) {
            Some(1) => {
                const $width: usize = 1;
                $body
            }
            Some(2) => {
                const $width: usize = 2;
                $body
            }
            Some(4) => {
                const $width: usize = 4;
                $body
            }
            Some(8) => {
                const $width: usize = 8;
                $body
            }
            _ => return Ok(None),
        }
    };
}

/// Bytes of an element, for types of whole bytes.
fn width(dtype: DType) -> Option<usize> {
    match dtype.bits() {
        bits if bits >= 8 => Some(bits / 8),
        _ => None,
    }
}

fn tensor(call: &Job<'_>, dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> Fast {
    let made = Tensor::new(dtype, shape, Bytes::from(bytes)).map_err(|error| call.tensor_error(error))?;
    Ok(Some(vec![made]))
}

/// The payload of a result, written from its start to its end.
struct Payload {
    block: Block,
    dtype: DType,
    shape: Vec<usize>,
    /// Bytes written.
    written: usize,
}

impl Payload {
    /// Room for a result of elements of `width` bytes, its size checked first.
    fn new(call: &Job<'_>, dtype: DType, width: usize, shape: Vec<usize>) -> Result<Payload, OpError> {
        call.check_size(dtype, &shape)?;
        let block = call.scratch((size(&shape) * width).div_ceil(size_of::<f32>()));
        Ok(Payload { block, dtype, shape, written: 0 })
    }

    fn bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.block)
    }

    fn push(&mut self, bytes: &[u8]) {
        let at = self.written;
        self.bytes()[at..at + bytes.len()].copy_from_slice(bytes);
        self.written += bytes.len();
    }

    fn finish(self, call: &Job<'_>) -> Fast {
        let made = self.block.into_tensor_of(self.dtype, self.shape);
        Ok(Some(vec![made.map_err(|error| call.tensor_error(error))?]))
    }
}

fn transpose(call: &Job<'_>) -> Fast {
    let input = call.input(0)?;
    let rank = input.rank();
    let order: Option<Vec<usize>> = match call.node.ints("perm") {
        None => Some((0..rank).rev().collect()),
        Some(order) => order.iter().map(|&axis| usize::try_from(axis).ok()).collect(),
    };
    let Some(order) = order else { return Ok(None) };
    let mut seen = vec![false; rank];
    let valid = order.len() == rank
        && order.iter().all(|&axis| axis < rank && !std::mem::replace(&mut seen[axis], true));
    if !valid || input.is_empty() {
        return Ok(None);
    }
    let dims = input.shape();
    let shape: Vec<usize> = order.iter().map(|&axis| dims[axis]).collect();
    let mut strides = vec![1; rank];
    for axis in (0..rank.saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * dims[axis + 1];
    }
    // The result's dimensions with their input strides, neighbours that stay together merged.
    let mut merged: Vec<(usize, usize)> = Vec::new();
    for &axis in &order {
        let (dim, stride) = (dims[axis], strides[axis]);
        match merged.last_mut() {
            _ if dim == 1 => {}
            Some(last) if last.1 == stride * dim => *last = (last.0 * dim, stride),
            _ => merged.push((dim, stride)),
        }
    }
    if merged.len() <= 1 {
        let same = input.reshaped(shape).map_err(|error| call.tensor_error(error))?;
        return Ok(Some(vec![same]));
    }
    let Some(width) = width(input.dtype()) else { return Ok(None) };
    let bytes = size(&shape) * width;
    let mut output = Payload::new(call, input.dtype(), width, shape)?;
    by_width!(input.dtype(), WIDTH => {
        let (source, _) = input.bytes().as_chunks::<WIDTH>();
        let (target, _) = output.bytes()[..bytes].as_chunks_mut::<WIDTH>();
        permute(source, &merged, target);
    });
    output.finish(call)
}

/// `output` in row-major order of `dims`, each a size and the stride of the source.
fn permute<T: Copy + Send + Sync>(source: &[T], dims: &[(usize, usize)], output: &mut [T]) {
    let (outer, inner) = dims.split_at(dims.len() - 2);
    let [(rows, row_stride), (columns, column_stride)] = [inner[0], inner[1]];
    parallel::rows(output, rows * columns, 2, |mut index, part| {
        let mut start = 0;
        for &(dim, stride) in outer.iter().rev() {
            start += index % dim * stride;
            index /= dim;
        }
        if column_stride == 1 {
            for (row, target) in part.chunks_mut(columns).enumerate() {
                target.copy_from_slice(&source[start + row * row_stride..][..columns]);
            }
            return;
        }
        // In blocks, so that both sides stay in cache.
        const BLOCK: usize = 16;
        for first in (0..rows).step_by(BLOCK) {
            for left in (0..columns).step_by(BLOCK) {
                for row in first..(first + BLOCK).min(rows) {
                    let end = (left + BLOCK).min(columns);
                    let target = &mut part[row * columns + left..row * columns + end];
                    let source = source[start + row * row_stride + left * column_stride..].iter();
                    for (value, &element) in target.iter_mut().zip(source.step_by(column_stride)) {
                        *value = element;
                    }
                }
            }
        }
    });
}

fn concat(call: &Job<'_>) -> Fast {
    let first = call.input(0)?;
    let Some(width) = width(first.dtype()) else { return Ok(None) };
    let Some(axis) = call.node.int("axis") else { return Ok(None) };
    let axis = call.axis(axis, first.rank())?;
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    let mut parts = Vec::with_capacity(call.inputs.len());
    for slot in 0..call.inputs.len() {
        let input = call.input(slot)?;
        let fits = input.dtype() == first.dtype()
            && input.rank() == first.rank()
            && (0..shape.len()).all(|other| other == axis || input.shape()[other] == shape[other]);
        if !fits {
            return Ok(None);
        }
        shape[axis] += input.shape()[axis];
        parts.push((input.bytes(), size(&input.shape()[axis..]) * width));
    }
    let rows = size(&shape[..axis]);
    let mut output = Payload::new(call, first.dtype(), width, shape)?;
    for row in 0..rows {
        for (bytes, run) in &parts {
            output.push(&bytes[row * run..][..*run]);
        }
    }
    output.finish(call)
}

fn gather(call: &Job<'_>) -> Fast {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let Some(width) = width(data.dtype()) else { return Ok(None) };
    if !matches!(indices.dtype(), DType::I32 | DType::I64) || data.rank() == 0 {
        return Ok(None);
    }
    let axis = call.axis(call.node.int("axis").unwrap_or(0), data.rank())?;
    let length = data.shape()[axis];
    let mut places = Vec::with_capacity(indices.len());
    for index in indices.to_i64s().map_err(|error| call.tensor_error(error))? {
        let place = if index < 0 { index + length as i64 } else { index };
        match usize::try_from(place).ok().filter(|&place| place < length) {
            Some(place) => places.push(place),
            None => return Err(call.invalid(format!("index {index} is outside an axis of {length}"))),
        }
    }
    let mut shape = data.shape()[..axis].to_vec();
    shape.extend_from_slice(indices.shape());
    shape.extend_from_slice(&data.shape()[axis + 1..]);
    let run = size(&data.shape()[axis + 1..]) * width;
    let mut output = Payload::new(call, data.dtype(), width, shape)?;
    for outer in 0..size(&data.shape()[..axis]) {
        for place in &places {
            output.push(&data.bytes()[(outer * length + place) * run..][..run]);
        }
    }
    output.finish(call)
}

/// Slice with positive steps.
fn slice(call: &Job<'_>) -> Fast {
    let data = call.input(0)?;
    let Some(width) = width(data.dtype()) else { return Ok(None) };
    let list = |slot: usize| -> Option<Option<Vec<i64>>> {
        match call.optional(slot) {
            None => Some(None),
            Some(tensor) if matches!(tensor.dtype(), DType::I32 | DType::I64) => {
                tensor.to_i64s().ok().map(Some)
            }
            Some(_) => None,
        }
    };
    let (Some(Some(starts)), Some(Some(ends)), Some(axes), Some(steps)) =
        (list(1), list(2), list(3), list(4))
    else {
        return Ok(None);
    };
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()].iter().any(|&length| length != starts.len())
        || steps.iter().any(|&step| step < 1)
    {
        return Ok(None);
    }
    let rank = data.rank();
    let mut ranges: Vec<(usize, usize, usize)> = data.shape().iter().map(|&dim| (0, dim, 1)).collect();
    for i in 0..starts.len() {
        let axis = call.axis(axes[i], rank)?;
        let dim = data.shape()[axis] as i64;
        let bound = |at: i64| (if at < 0 { at.saturating_add(dim) } else { at }).clamp(0, dim) as usize;
        let (start, end) = (bound(starts[i]), bound(ends[i]));
        let step = steps[i] as usize;
        ranges[axis] = (start, end.saturating_sub(start).div_ceil(step), step);
    }
    let shape: Vec<usize> = ranges.iter().map(|range| range.1).collect();
    let mut output = Payload::new(call, data.dtype(), width, shape.clone())?;
    if !output.block.is_empty() {
        // The innermost axis that is cut, and what lies whole behind it.
        let cut = (0..rank).rposition(|axis| ranges[axis] != (0, data.shape()[axis], 1)).unwrap_or(0);
        let run = size(data.shape().get(cut + 1..).unwrap_or_default()) * width;
        let mut strides = vec![1usize; rank];
        for axis in (0..rank.saturating_sub(1)).rev() {
            strides[axis] = strides[axis + 1] * data.shape()[axis + 1];
        }
        let (first, length, step) = ranges.get(cut).copied().unwrap_or((0, 1, 1));
        for mut row in 0..size(&shape[..cut]) {
            let mut start = 0;
            for axis in (0..cut).rev() {
                let (from, count, step) = ranges[axis];
                start += (from + row % count * step) * strides[axis];
                row /= count;
            }
            let base = start * width + first * run;
            if step == 1 {
                output.push(&data.bytes()[base..base + length * run]);
            } else {
                for i in 0..length {
                    output.push(&data.bytes()[base + i * step * run..][..run]);
                }
            }
        }
    }
    output.finish(call)
}

fn expand(call: &Job<'_>) -> Fast {
    let (input, wanted) = (call.input(0)?, call.input(1)?);
    let Ok(wanted) = wanted.to_i64s() else { return Ok(None) };
    let wanted: Option<Vec<usize>> = wanted.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let Some(shape) = wanted.and_then(|wanted| super::elementwise::broadcast(input.shape(), &wanted)) else {
        return Ok(None);
    };
    if shape == input.shape() {
        return Ok(Some(vec![input.clone()]));
    }
    let Some(width) = width(input.dtype()) else { return Ok(None) };
    call.check_size(input.dtype(), &shape)?;
    if size(&shape) == 0 {
        return tensor(call, input.dtype(), shape, Vec::new());
    }
    // From the innermost axis out: what is there so far is repeated.
    let rank = shape.len();
    let mut dims = vec![1; rank - input.rank()];
    dims.extend_from_slice(input.shape());
    let mut bytes: Vec<u8> = input.bytes().to_vec();
    let mut run = width;
    for axis in (0..rank).rev() {
        if dims[axis] != shape[axis] {
            bytes = bytes
                .chunks(run)
                .flat_map(|piece| std::iter::repeat_n(piece, shape[axis]))
                .flatten()
                .copied()
                .collect();
        }
        run *= shape[axis];
    }
    tensor(call, input.dtype(), shape, bytes)
}
