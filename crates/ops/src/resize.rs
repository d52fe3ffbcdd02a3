//! Resize: sampling a tensor at other places.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::strides;
use crate::numbers::Numbers;

pub(crate) static KERNELS: &[KernelSpec] = &[KernelSpec::onnx("Resize", 10, resize)];

/// One element of the output along an axis: places of the input and their weights.
type Taps = Vec<(usize, f64)>;

fn resize(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let rank = x.rank();
    if call.node.int("antialias").unwrap_or(0) != 0 {
        return Err(call.unsupported("antialias"));
    }
    if call.node.string("keep_aspect_ratio_policy").is_some_and(|policy| policy != "stretch") {
        return Err(call.unsupported("keep_aspect_ratio_policy other than stretch"));
    }
    let axes: Vec<usize> = match call.node.ints("axes") {
        None => (0..rank).collect(),
        Some(axes) => axes.iter().map(|&axis| call.axis(axis, rank)).collect::<Result<_, _>>()?,
    };
    let (scale_slot, size_slot) = if call.opset < 11 { (1, usize::MAX) } else { (2, 3) };
    let given = |slot: usize| call.optional(slot).filter(|tensor| !tensor.is_empty());
    let (mut scales, mut out) = (vec![1f64; rank], x.shape().to_vec());
    if let Some(sizes) = given(size_slot) {
        let sizes = sizes.to_i64s().map_err(|error| call.tensor_error(error))?;
        if sizes.len() != axes.len() {
            return Err(call.invalid(format!("{} sizes for {} axes", sizes.len(), axes.len())));
        }
        for (&axis, &size) in axes.iter().zip(&sizes) {
            out[axis] =
                usize::try_from(size).map_err(|_| call.invalid(format!("size {size} is negative")))?;
            scales[axis] = size as f64 / x.shape()[axis] as f64;
        }
    } else {
        let tensor = given(scale_slot).ok_or_else(|| call.invalid("neither scales nor sizes are given"))?;
        let values = tensor.to_f64s().map_err(|error| call.tensor_error(error))?;
        if values.len() != axes.len() || values.iter().any(|scale| !(scale.is_finite() && *scale > 0.0)) {
            return Err(
                call.invalid(format!("scales {values:?} for {} axes: each must be positive", axes.len()))
            );
        }
        for (&axis, &scale) in axes.iter().zip(&values) {
            scales[axis] = scale;
            out[axis] = (x.shape()[axis] as f64 * scale).floor() as usize;
        }
    }
    call.check_size(DType::F64, &out)?;
    call.check_size(DType::F64, x.shape())?;
    if x.is_empty() && !out.contains(&0) {
        return Err(call.invalid("there is nothing to sample"));
    }
    let floats = match Numbers::of(call, x)? {
        Numbers::Floats(values) => values,
        Numbers::Integers(values) => values.into_iter().map(|value| value as f64).collect(),
    };
    let (mut values, mut shape) = (floats, x.shape().to_vec());
    for axis in 0..rank {
        if out[axis] == shape[axis] && scales[axis] == 1.0 {
            continue;
        }
        let taps: Vec<Taps> = (0..out[axis])
            .map(|at| taps(call, at, shape[axis], out[axis], scales[axis]))
            .collect::<Result<_, _>>()?;
        let inner = strides(&shape)[axis];
        let outer = values.len() / (inner * shape[axis]).max(1);
        let mut next = Vec::with_capacity(outer * out[axis] * inner);
        for block in 0..outer {
            for taps in &taps {
                for lane in 0..inner {
                    let start = block * shape[axis] * inner + lane;
                    next.push(
                        taps.iter().map(|&(place, weight)| values[start + place * inner] * weight).sum(),
                    );
                }
            }
        }
        values = next;
        shape[axis] = out[axis];
    }
    let numbers = if x.dtype().is_float() {
        Numbers::Floats(values)
    } else {
        Numbers::Integers(values.into_iter().map(|value| value.round_ties_even() as i64).collect())
    };
    Ok(vec![numbers.tensor(call, x.dtype(), out)?])
}

/// Where output element `at` of an axis samples the input.
fn taps(call: &Call<'_>, at: usize, size: usize, out: usize, scale: f64) -> Result<Taps, OpError> {
    let (at, wide, length) = (at as f64, out as f64, size as f64);
    // Version 10 knew one way only.
    let default = if call.opset < 11 { "asymmetric" } else { "half_pixel" };
    let place = match call.node.string("coordinate_transformation_mode").unwrap_or(default) {
        "half_pixel" => (at + 0.5) / scale - 0.5,
        "half_pixel_symmetric" => {
            let adjustment = wide / (scale * length);
            let center = length / 2.0;
            center * (1.0 - adjustment) + (at + 0.5) / scale - 0.5
        }
        "pytorch_half_pixel" if out > 1 => (at + 0.5) / scale - 0.5,
        "pytorch_half_pixel" => 0.0,
        "asymmetric" => at / scale,
        // The size before it is rounded down to whole elements counts.
        "align_corners" if out > 1 => at * (length - 1.0) / (scale * length - 1.0),
        "align_corners" => 0.0,
        other => return Err(call.unsupported(format!("coordinate_transformation_mode {other}"))),
    };
    let last = size.saturating_sub(1);
    let clamp = |place: f64| place.clamp(0.0, last as f64) as usize;
    match call.node.string("mode").unwrap_or("nearest") {
        "nearest" => {
            let mode = call.node.string("nearest_mode").unwrap_or(if call.opset < 11 {
                "floor"
            } else {
                "round_prefer_floor"
            });
            let nearest = match mode {
                "round_prefer_floor" => (place - 0.5).ceil(),
                "round_prefer_ceil" => (place + 0.5).floor(),
                "floor" => place.floor(),
                "ceil" => place.ceil(),
                other => return Err(call.invalid(format!("there is no nearest_mode `{other}`"))),
            };
            Ok(vec![(clamp(nearest), 1.0)])
        }
        "linear" => {
            let place = place.clamp(0.0, last as f64);
            let low = place.floor();
            Ok(vec![(clamp(low), 1.0 - (place - low)), (clamp(low + 1.0), place - low)])
        }
        "cubic" => {
            let a = f64::from(call.node.float("cubic_coeff_a").unwrap_or(-0.75));
            let low = place.floor();
            let weight = |distance: f64| {
                let d = distance.abs();
                if d <= 1.0 {
                    ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
                } else if d < 2.0 {
                    ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
                } else {
                    0.0
                }
            };
            let exclude = call.node.int("exclude_outside").unwrap_or(0) != 0;
            let mut taps: Taps = Vec::with_capacity(4);
            for step in -1..=2 {
                let position = low + f64::from(step);
                let inside = (0.0..=last as f64).contains(&position);
                let weight = if exclude && !inside { 0.0 } else { weight(place - position) };
                taps.push((clamp(position), weight));
            }
            if exclude {
                let sum: f64 = taps.iter().map(|(_, weight)| weight).sum();
                taps.iter_mut().for_each(|(_, weight)| *weight /= sum);
            }
            Ok(taps)
        }
        other => Err(call.invalid(format!("there is no mode `{other}`"))),
    }
}
