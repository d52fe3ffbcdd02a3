//! Resize of 32-bit float pictures: nearest and linear over the last two axes (onnx/docs/Operators.md).

use super::{Fast, Job, KernelSpec, floats_or_decline, parallel, size};

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[KernelSpec::plain("Resize", 11, resize)];

/// How one output position along an axis is made: two input positions and the second one's weight.
#[derive(Clone, Copy)]
struct Mix {
    first: usize,
    second: usize,
    weight: f32,
}

fn resize(call: &Job<'_>) -> Fast {
    let (input, node) = (call.input(0)?, call.node);
    let rank = input.rank();
    let plain = rank >= 3
        && !input.is_empty()
        && node.int("antialias").unwrap_or(0) == 0
        && node.int("exclude_outside").unwrap_or(0) == 0
        && node.ints("axes").is_none()
        && node.string("keep_aspect_ratio_policy").unwrap_or("stretch") == "stretch";
    let linear = match node.string("mode").unwrap_or("nearest") {
        "nearest" => false,
        "linear" => true,
        _ => return Ok(None),
    };
    let transform = node.string("coordinate_transformation_mode").unwrap_or("half_pixel");
    let nearest = node.string("nearest_mode").unwrap_or("round_prefer_floor");
    if !plain {
        return Ok(None);
    }
    // Scales or sizes; empty ones count as missing.
    let dims = input.shape();
    let given = |slot: usize| call.optional(slot).filter(|tensor| !tensor.is_empty());
    let (shape, scales): (Vec<usize>, Vec<f32>) = match (given(2), given(3)) {
        (Some(scales), None) => {
            let scales = floats_or_decline!(scales).into_owned();
            if scales.len() != rank || scales.iter().any(|&scale| scale.is_nan() || scale <= 0.0) {
                return Ok(None);
            }
            (
                dims.iter()
                    .zip(&scales)
                    .map(|(&dim, &scale)| (dim as f32 * scale).floor() as usize)
                    .collect(),
                scales,
            )
        }
        (None, Some(sizes)) => {
            let sizes = sizes.to_i64s().map_err(|error| call.tensor_error(error))?;
            let Some(shape) =
                sizes.iter().map(|&size| usize::try_from(size).ok()).collect::<Option<Vec<_>>>()
            else {
                return Ok(None);
            };
            if shape.len() != rank {
                return Ok(None);
            }
            let scales = shape.iter().zip(dims).map(|(&new, &old)| new as f32 / old as f32).collect();
            (shape, scales)
        }
        _ => return Ok(None),
    };
    if shape[..rank - 2] != dims[..rank - 2] || shape.contains(&0) {
        return Ok(None);
    }
    let mut mixes = Vec::with_capacity(2);
    for axis in rank - 2..rank {
        match mix(dims[axis], shape[axis], scales[axis], transform, nearest, linear) {
            Some(mix) => mixes.push(mix),
            None => return Ok(None),
        }
    }
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
