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
    // For each output position along an axis: the taps inside the input, and how many count.
    let spans = |axis: usize| -> Vec<(usize, usize, usize)> {
        (0..target[axis])
            .map(|at| {
                let start = at * strides[axis];
                let place = |tap: usize| start + tap * dilations[axis];
                let inside = |tap: &usize| (before[axis]..before[axis] + source[axis]).contains(&place(*tap));
                let taps: Vec<usize> = (0..kernel[axis]).filter(inside).collect();
                let end = before[axis] + source[axis] + after[axis];
                let counted = if count_pads {
                    (0..kernel[axis]).filter(|&tap| place(tap) < end).count()
                } else {
                    taps.len()
                };
                match taps.first() {
                    Some(&first) => (place(first) - before[axis], taps.len(), counted),
                    None => (0, 0, counted),
                }
            })
            .collect()
    };
    let (rows, columns) = (spans(0), spans(1));
    parallel::rows(&mut output, plane, kernel[0] * kernel[1], |index, out| {
        let picture = &elements[index * pixels..][..pixels];
        for (row, &(top, height, tall)) in out.chunks_mut(target[1]).zip(&rows) {
            for (value, &(left, width, wide)) in row.iter_mut().zip(&columns) {
                let mut best = if greatest { f32::NEG_INFINITY } else { 0.0 };
                for y in 0..height {
                    let line = &picture[(top + y * dilations[0]) * source[1]..][..source[1]];
                    for x in 0..width {
                        let pixel = line[left + x * dilations[1]];
                        if !greatest {
                            best += pixel;
                        } else if pixel > best || pixel.is_nan() {
                            best = pixel;
                        }
                    }
                }
                *value = if greatest { best } else { best / (tall * wide) as f32 };
            }
        }
    });
    call.one(shape, output)
}
