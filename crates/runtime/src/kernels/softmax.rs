//! Softmax and LogSoftmax on 32-bit floats (onnx/docs/Operators.md).

use super::{Fast, Job, KernelSpec, floats_or_decline, parallel, size};
use crate::math::simd::vectorized;
use crate::math::unary;

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("Softmax", 1, |call| softmax(call, false)),
    KernelSpec::plain("LogSoftmax", 1, |call| softmax(call, true)),
];

fn softmax(call: &Job<'_>, log: bool) -> Fast {
    let input = call.input(0)?;
    let elements = floats_or_decline!(input);
    let rank = input.rank();
    if rank == 0 || input.is_empty() {
        return Ok(None);
    }
    // Before version 13 all axes from `axis` on are one; since then it is the axis alone.
    let old = call.opset < 13;
    let axis = call.axis(call.node.int("axis").unwrap_or(if old { 1 } else { -1 }), rank)?;
    let length = if old { size(&input.shape()[axis..]) } else { input.shape()[axis] };
    let inner = if old { 1 } else { size(&input.shape()[axis + 1..]) };
    let mut output = call.scratch(elements.len());
    parallel::rows(&mut output, length * inner, 16, |row, part| {
        let source = &elements[row * length * inner..][..length * inner];
        vectorized(
            #[inline(always)]
            || {
                if inner == 1 {
                    contiguous(source, part, log);
                } else {
                    strided(source, part, inner, log);
                }
            },
        );
    });
    call.one(input.shape().to_vec(), output)
}

/// Sum in sixteen interleaved parts: a fixed order that vectors can follow.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    sum_of(values, |value| value)
}

/// The same of what a function makes of the elements.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32], function: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut parts = [0.0f32; 16];
    for chunk in chunks {
        for (part, &value) in parts.iter_mut().zip(chunk) {
            *part += function(value);
        }
    }
    parts.iter().sum::<f32>() + rest.iter().map(|&value| function(value)).sum::<f32>()
}

/// The greatest element; NaN is passed over.
#[inline(always)]
pub(crate) fn maximum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut parts = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (part, &value) in parts.iter_mut().zip(chunk) {
            *part = if value > *part { value } else { *part };
        }
    }
    parts.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

#[inline(always)]
fn contiguous(source: &[f32], target: &mut [f32], log: bool) {
    let greatest = maximum(source);
    for (value, &x) in target.iter_mut().zip(source) {
        *value = unary::exp(x - greatest);
    }
    let total = sum(target);
    if log {
        let shift = greatest + total.ln();
        for (value, &x) in target.iter_mut().zip(source) {
            *value = x - shift;
        }
    } else {
        for value in target.iter_mut() {
            *value /= total;
        }
    }
}

#[inline(always)]
fn strided(source: &[f32], target: &mut [f32], inner: usize, log: bool) {
    let (mut greatest, mut total) = (vec![f32::NEG_INFINITY; inner], vec![0.0f32; inner]);
    for row in source.chunks(inner) {
        for (best, &x) in greatest.iter_mut().zip(row) {
            *best = if x > *best { x } else { *best };
        }
    }
    for (row, result) in source.chunks(inner).zip(target.chunks_mut(inner)) {
        for (((value, &x), &best), total) in result.iter_mut().zip(row).zip(&greatest).zip(&mut total) {
            *value = unary::exp(x - best);
            *total += *value;
        }
    }
    for (row, result) in source.chunks(inner).zip(target.chunks_mut(inner)) {
        for (((value, &x), &best), &total) in result.iter_mut().zip(row).zip(&greatest).zip(&total) {
            *value = if log { x - best - total.ln() } else { *value / total };
        }
    }
}
