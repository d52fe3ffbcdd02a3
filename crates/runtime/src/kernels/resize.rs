//! Resize of 32-bit float pictures: nearest and linear over the last two axes (onnx/docs/Operators.md).

use optix_ir::{Node, Tensor};

use super::{Fast, Job, KernelSpec, floats_or_decline, parallel, size};

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[KernelSpec::plain("Resize", 11, resize)];

/// How one output position along an axis is made: two input positions and the second one's weight.
#[derive(Clone, Copy)]
pub(crate) struct Mix {
    /// Place of the first input element.
    pub first: usize,
    /// Place of the second.
    pub second: usize,
    /// Weight of the second, from 0 to 1.
    pub weight: f32,
}

/// How a picture is resized.
pub(crate) struct Plan {
    /// Shape of the output.
    pub shape: Vec<usize>,
    /// How the last two axes are made.
    pub mixes: Vec<Vec<Mix>>,
    /// Interpolated, or else the first element of each mix.
    pub linear: bool,
}

/// Reads the node for an input of given dimensions; `scales` and `sizes` have elements where they are given.
/// `None` for what is left to the reference.
pub(crate) fn plan(
    node: &Node,
    dims: &[usize],
    scales: Option<&Tensor>,
    sizes: Option<&Tensor>,
) -> Option<Plan> {
    let rank = dims.len();
    let plain = rank >= 3
        && !dims.contains(&0)
        && node.int("antialias").unwrap_or(0) == 0
        && node.int("exclude_outside").unwrap_or(0) == 0
        && node.ints("axes").is_none()
        && node.string("keep_aspect_ratio_policy").unwrap_or("stretch") == "stretch";
    let linear = match node.string("mode").unwrap_or("nearest") {
        "nearest" => false,
        "linear" => true,
        _ => return None,
    };
    let transform = node.string("coordinate_transformation_mode").unwrap_or("half_pixel");
    let nearest = node.string("nearest_mode").unwrap_or("round_prefer_floor");
    if !plain {
        return None;
    }
    let (shape, scales): (Vec<usize>, Vec<f32>) = match (scales, sizes) {
        (Some(scales), None) => {
            let scales = super::floats(scales)?.into_owned();
            if scales.len() != rank || scales.iter().any(|&scale| scale.is_nan() || scale <= 0.0) {
                return None;
            }
            let size = |(&dim, &scale): (&usize, &f32)| (dim as f32 * scale).floor() as usize;
            (dims.iter().zip(&scales).map(size).collect(), scales)
        }
        (None, Some(sizes)) => {
            let sizes = sizes.to_i64s().ok()?;
            let shape: Vec<usize> =
                sizes.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<_>>()?;
            if shape.len() != rank {
                return None;
            }
            let scales = shape.iter().zip(dims).map(|(&new, &old)| new as f32 / old as f32).collect();
            (shape, scales)
        }
        _ => return None,
    };
    if shape[..rank - 2] != dims[..rank - 2] || shape.contains(&0) {
        return None;
    }
    let mixes: Vec<Vec<Mix>> = (rank - 2..rank)
        .map(|axis| mix(dims[axis], shape[axis], scales[axis], transform, nearest, linear))
        .collect::<Option<_>>()?;
    Some(Plan { shape, mixes, linear })
}

fn resize(call: &Job<'_>) -> Fast {
    let input = call.input(0)?;
    let (dims, rank) = (input.shape(), input.rank());
    // Empty scales and sizes count as missing.
    let given = |slot: usize| call.optional(slot).filter(|tensor| !tensor.is_empty());
    let Some(Plan { shape, mixes, linear }) = plan(call.node, dims, given(2), given(3)) else {
        return Ok(None);
    };
    let elements = floats_or_decline!(input);
    let mut output = call.buffer(&shape)?;
    let (width, plane) = (dims[rank - 1], dims[rank - 2] * dims[rank - 1]);
    let columns = &mixes[1];
    parallel::rows(&mut output, size(&shape[rank - 2..]), 4, |index, out| {
        let picture = &elements[index * plane..][..plane];
        for (row, y) in out.chunks_mut(columns.len()).zip(&mixes[0]) {
            let top = &picture[y.first * width..][..width];
            let bottom = &picture[y.second * width..][..width];
            if linear {
                for (value, x) in row.iter_mut().zip(columns) {
                    let upper = top[x.first] * (1.0 - x.weight) + top[x.second] * x.weight;
                    let lower = bottom[x.first] * (1.0 - x.weight) + bottom[x.second] * x.weight;
                    *value = upper * (1.0 - y.weight) + lower * y.weight;
                }
            } else {
                row.iter_mut().zip(columns).for_each(|(value, x)| *value = top[x.first]);
            }
        }
    });
    call.one(shape, output)
}

/// The mixes of one axis; `None` for modes that are left to the reference.
fn mix(old: usize, new: usize, scale: f32, transform: &str, nearest: &str, linear: bool) -> Option<Vec<Mix>> {
    let place = |at: usize| -> Option<f32> {
        let at = at as f32;
        Some(match transform {
            _ if old == new && scale == 1.0 => at,
            "half_pixel" => (at + 0.5) / scale - 0.5,
            "pytorch_half_pixel" if new > 1 => (at + 0.5) / scale - 0.5,
            "pytorch_half_pixel" => 0.0,
            "asymmetric" => at / scale,
            // Between whole sizes engines differ: left to the reference kernel.
            "align_corners" if (scale * old as f32 - new as f32).abs() > 1e-4 => return None,
            "align_corners" if new > 1 => at * (old - 1) as f32 / (new - 1) as f32,
            "align_corners" => 0.0,
            _ => return None,
        })
    };
    let last = (old - 1) as f32;
    (0..new)
        .map(|at| {
            let place = place(at)?;
            if linear {
                let place = place.clamp(0.0, last);
                let first = place.floor() as usize;
                return Some(Mix { first, second: (first + 1).min(old - 1), weight: place - first as f32 });
            }
            let rounded = match nearest {
                "round_prefer_floor" => (place - 0.5).ceil(),
                "round_prefer_ceil" => (place + 0.5).floor(),
                "floor" => place.floor(),
                "ceil" => place.ceil(),
                _ => return None,
            };
            let first = rounded.clamp(0.0, last) as usize;
            Some(Mix { first, second: first, weight: 0.0 })
        })
        .collect()
}
