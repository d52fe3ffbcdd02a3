//! Reductions of 32-bit floats (onnx/docs/Operators.md), in a fixed order of sums.

use optix_ir::DType;

use super::softmax::{maximum, sum};
use super::{Fast, Job, KernelSpec, floats_or_decline, parallel, size};
use crate::math::simd::vectorized;

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("ReduceMean", 1, |call| reduce(call, Kind::Mean)),
    KernelSpec::plain("ReduceSum", 1, |call| reduce(call, Kind::Sum)),
    KernelSpec::plain("ReduceMax", 1, |call| reduce(call, Kind::Max)),
    KernelSpec::plain("ReduceMin", 1, |call| reduce(call, Kind::Min)),
    KernelSpec::plain("ReduceSumSquare", 1, |call| reduce(call, Kind::SumSquare)),
    KernelSpec::plain("ReduceL2", 1, |call| reduce(call, Kind::L2)),
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Mean,
    Sum,
    Max,
    Min,
    SumSquare,
    L2,
}

/// The axes to reduce, from attribute or input; `None` for what the fast kernel does not cover.
fn axes(call: &Job<'_>, rank: usize) -> Option<Vec<bool>> {
    let from_input;
    let listed = match call.node.ints("axes") {
        Some(listed) => Some(listed),
        None => match call.optional(1) {
            Some(tensor) if tensor.dtype() == DType::I64 => {
                from_input = tensor.to_i64s().ok()?;
                Some(&from_input[..])
            }
            Some(_) => return None,
            None => None,
        },
    };
    let listed = listed.filter(|listed| !listed.is_empty());
    let Some(listed) = listed else {
        // No axes: all of them, unless that is declared to mean none.
        return (call.node.int("noop_with_empty_axes").unwrap_or(0) == 0).then(|| vec![true; rank]);
    };
    let mut reduced = vec![false; rank];
    for &axis in listed {
        reduced[call.axis(axis, rank).ok()?] = true;
    }
    Some(reduced)
}

fn reduce(call: &Job<'_>, kind: Kind) -> Fast {
    let input = call.input(0)?;
    let elements = floats_or_decline!(input);
    let (rank, dims) = (input.rank(), input.shape());
    let Some(reduced) = axes(call, rank) else { return Ok(None) };
    // One run of neighbouring axes; others are left to the reference.
    let Some(first) = reduced.iter().position(|&reduced| reduced) else { return Ok(None) };
    let last = reduced.iter().rposition(|&reduced| reduced).unwrap_or(first);
    if input.is_empty() || reduced[first..=last].contains(&false) {
        return Ok(None);
    }
    let (length, inner) = (size(&dims[first..=last]), size(&dims[last + 1..]));
    let keep = call.node.int("keepdims").unwrap_or(1) != 0;
    let shape: Vec<usize> = (0..rank)
        .filter(|&axis| keep || !reduced[axis])
        .map(|axis| if reduced[axis] { 1 } else { dims[axis] })
        .collect();
    let mut output = call.scratch(size(&dims[..first]) * inner);
    parallel::rows(&mut output, inner, length, |row, part| {
        let source = &elements[row * length * inner..][..length * inner];
        vectorized(
            #[inline(always)]
            || {
                if inner == 1 {
                    part[0] = along(source, kind);
                } else {
                    across(source, part, kind);
                }
                for value in part.iter_mut() {
                    *value = match kind {
                        Kind::Mean => *value / length as f32,
                        Kind::L2 => value.sqrt(),
                        _ => *value,
                    };
                }
            },
        );
    });
    call.one(shape, output)
}

/// One number from adjacent elements.
#[inline(always)]
fn along(source: &[f32], kind: Kind) -> f32 {
    match kind {
        Kind::Mean | Kind::Sum => sum(source),
        Kind::Max if source.iter().any(|x| x.is_nan()) => f32::NAN,
        Kind::Max => maximum(source),
        Kind::Min => source.iter().fold(f32::INFINITY, |a, &b| if b < a || b.is_nan() { b } else { a }),
        Kind::SumSquare | Kind::L2 => {
            let (chunks, rest) = source.as_chunks::<16>();
            let mut parts = [0.0f32; 16];
            for chunk in chunks {
                for (part, value) in parts.iter_mut().zip(chunk) {
                    *part += value * value;
                }
            }
            parts.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
        }
    }
}

/// Row by row into `target`.
#[inline(always)]
fn across(source: &[f32], target: &mut [f32], kind: Kind) {
    target.fill(match kind {
        Kind::Max => f32::NEG_INFINITY,
        Kind::Min => f32::INFINITY,
        _ => 0.0,
    });
    for row in source.chunks(target.len()) {
        for (value, &x) in target.iter_mut().zip(row) {
            *value = match kind {
                Kind::Mean | Kind::Sum => *value + x,
                Kind::Max => {
                    if x > *value || x.is_nan() {
                        x
                    } else {
                        *value
                    }
                }
                Kind::Min => {
                    if x < *value || x.is_nan() {
                        x
                    } else {
                        *value
                    }
                }
                Kind::SumSquare | Kind::L2 => *value + x * x,
            };
        }
    }
}
