//! Pooling on 32-bit floats over one or two spatial axes (onnx/docs/Operators.md).

use super::softmax::{maximum, sum};
use super::{Fast, Job, KernelSpec, Window, floats_or_decline, parallel, size};
use crate::math::simd::vectorized;

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("MaxPool", 1, |call| pool(call, true)),
    KernelSpec::plain("AveragePool", 7, |call| pool(call, false)),
    KernelSpec::plain("GlobalAveragePool", 1, |call| global(call, |plane| sum(plane) / plane.len() as f32)),
    KernelSpec::plain("GlobalMaxPool", 1, |call| global(call, maximum)),
];

#[inline(always)]
fn global(call: &Job<'_>, function: impl Fn(&[f32]) -> f32 + Send + Sync) -> Fast {
    let input = call.input(0)?;
    if input.rank() < 3 || input.is_empty() {
        return Ok(None);
    }
    let elements = floats_or_decline!(input);
    let plane = size(&input.shape()[2..]);
    let mut shape = vec![1; input.rank()];
    shape[..2].copy_from_slice(&input.shape()[..2]);
    let mut output = call.scratch(size(&shape));
    parallel::chunks(&mut output, plane, |at, part| {
        vectorized(
            #[inline(always)]
            || {
                for (value, plane) in part.iter_mut().zip(elements[at * plane..].chunks(plane)) {
                    *value = function(plane);
                }
            },
        );
    });
    call.one(shape, output)
}

fn pool(call: &Job<'_>, greatest: bool) -> Fast {
    let input = call.input(0)?;
    let node = call.node;
    let spatial = input.rank().saturating_sub(2);
    let Some(kernel) = node.ints("kernel_shape") else { return Ok(None) };
    let kernel: Option<Vec<usize>> = kernel.iter().map(|&v| usize::try_from(v).ok()).collect();
    let Some(kernel) = kernel.filter(|kernel| kernel.len() == spatial) else { return Ok(None) };
    if !matches!(spatial, 1 | 2) || input.is_empty() || node.outputs().len() > 1 {
        return Ok(None);
    }
    let Some(window) = Window::resolve(node, &input.shape()[2..], &kernel) else { return Ok(None) };
    let elements = floats_or_decline!(input);
    let mut shape = input.shape()[..2].to_vec();
    shape.extend_from_slice(&window.output);
    let pair = |values: &[usize], missing: usize| match *values {
        [x] => [missing, x],
        [y, x] => [y, x],
        _ => unreachable!("one or two spatial axes"),
    };
    let source = pair(&input.shape()[2..], 1);
    let target = pair(&window.output, 1);
    let (kernel, strides) = (pair(&window.kernel, 1), pair(&window.strides, 1));
    let (dilations, before, after) =
        (pair(&window.dilations, 1), pair(&window.before, 0), pair(&window.after, 0));
    let count_pads = node.int("count_include_pad").unwrap_or(0) != 0;
    let mut output = call.buffer(&shape)?;
    let (pixels, plane) = (size(&source), size(&target));
    // For each output position along an axis, how many of its taps count for an average.
    let counted = |axis: usize| -> Vec<usize> {
        let counts = |place: usize| match count_pads {
            true => place < before[axis] + source[axis] + after[axis],
            false => (before[axis]..before[axis] + source[axis]).contains(&place),
        };
        let of = |at: usize| {
            (0..kernel[axis]).filter(|tap| counts(at * strides[axis] + tap * dilations[axis])).count()
        };
        (0..target[axis]).map(of).collect()
    };
    let (tall, wide) = (counted(0), counted(1));
    // For each column of taps: the results that it lies inside the input for, and where it lies for the
    // first of them.
    let columns: Vec<(usize, usize, usize)> = (0..kernel[1])
        .map(|tap| {
            let offset = tap * dilations[1];
            let first = before[1].saturating_sub(offset).div_ceil(strides[1]);
            let end = (source[1] + before[1]).saturating_sub(offset).div_ceil(strides[1]).min(target[1]);
            (first, end.max(first), (first * strides[1] + offset).saturating_sub(before[1]))
        })
        .collect();
    let combine = if greatest { take_greatest } else { add_up };
    parallel::rows(&mut output, plane, kernel[0] * kernel[1], |index, out| {
        let picture = &elements[index * pixels..][..pixels];
        for (at, row) in out.chunks_mut(target[1]).enumerate() {
            row.fill(if greatest { f32::NEG_INFINITY } else { 0.0 });
            for tap in 0..kernel[0] {
                let place = at * strides[0] + tap * dilations[0];
                let Some(line) = place.checked_sub(before[0]).filter(|&y| y < source[0]) else { continue };
                let line = &picture[line * source[1]..][..source[1]];
                for &(first, end, from) in columns.iter().filter(|(first, end, _)| end > first) {
                    combine(&mut row[first..end], &line[from..], strides[1]);
                }
            }
            if !greatest {
                for (value, wide) in row.iter_mut().zip(&wide) {
                    *value /= (tall[at] * wide) as f32;
                }
            }
        }
    });
    call.one(shape, output)
}

/// Of each result and every `stride`-th pixel the greater one; NaN counts as the greatest.
fn take_greatest(row: &mut [f32], line: &[f32], stride: usize) {
    vectorized(
        #[inline(always)]
        || {
            with_pixels(
                row,
                line,
                stride,
                |best, pixel| {
                    if pixel > best || pixel.is_nan() { pixel } else { best }
                },
            );
        },
    );
}

/// Adds every `stride`-th pixel to a result.
fn add_up(row: &mut [f32], line: &[f32], stride: usize) {
    vectorized(
        #[inline(always)]
        || with_pixels(row, line, stride, |sum, pixel| sum + pixel),
    );
}

/// Replaces each result by what `function` makes of it and its pixel.
#[inline(always)]
fn with_pixels(row: &mut [f32], line: &[f32], stride: usize, function: impl Fn(f32, f32) -> f32) {
    match stride {
        1 => {
            for (value, pixel) in row.iter_mut().zip(line) {
                *value = function(*value, *pixel);
            }
        }
        2 => {
            let (pairs, last) = line.as_chunks::<2>();
            let whole = pairs.len().min(row.len());
            for (value, pair) in row[..whole].iter_mut().zip(pairs) {
                *value = function(*value, pair[0]);
            }
            if let (Some(value), Some(pixel)) = (row.get_mut(whole), last.first()) {
                *value = function(*value, *pixel);
            }
        }
        _ => {
            for (value, pixel) in row.iter_mut().zip(line.iter().step_by(stride)) {
                *value = function(*value, *pixel);
            }
        }
    }
}
