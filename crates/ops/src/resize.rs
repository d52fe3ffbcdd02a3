//! Resize and Upsample: sampling a tensor at other places.
//!
//! <https://onnx.ai/onnx/operators/onnx__Resize.html>, <https://onnx.ai/onnx/operators/onnx__Upsample.html>

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{Run, assemble, strides};
use crate::numbers::Numbers;

pub(crate) static KERNELS: &[KernelSpec] =
    &[KernelSpec::onnx("Resize", 10, resize), KernelSpec::onnx("Upsample", 7, upsample)];

/// One element of the output along an axis: places of the input and their weights; none where the element
/// lies outside of the input and is `extrapolation_value`.
type Taps = Vec<(usize, f64)>;

/// How one axis is resized.
struct Axis {
    size: usize,
    out: usize,
    scale: f64,
    /// First and last place, in parts of the axis: of `tf_crop_and_resize`.
    region: (f64, f64),
}

/// Positive scales, as many as there are axes.
fn given_scales(call: &Call<'_>, values: Vec<f64>, axes: usize) -> Result<Vec<f64>, OpError> {
    if values.len() != axes || values.iter().any(|scale| !(scale.is_finite() && *scale > 0.0)) {
        return Err(call.invalid(format!("scales {values:?} for {axes} axes: each must be positive")));
    }
    Ok(values)
}

/// Before Resize there was Upsample: the same with scales, at `place / scale`.
fn upsample(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let scales = match call.node.floats("scales") {
        Some(scales) => scales.iter().map(|&scale| f64::from(scale)).collect(),
        None => call.input(1)?.to_f64s().map_err(|error| call.tensor_error(error))?,
    };
    let scales = given_scales(call, scales, x.rank())?;
    let axes = x.shape().iter().zip(&scales).map(|(&size, &scale)| Axis {
        size,
        out: (size as f64 * scale).floor() as usize,
        scale,
        region: (0.0, 1.0),
    });
    run(&Call { opset: call.opset.min(10), ..*call }, x, &axes.collect::<Vec<_>>())
}

fn resize(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let rank = x.rank();
    let axes: Vec<usize> = match call.node.ints("axes") {
        None => (0..rank).collect(),
        Some(axes) => axes.iter().map(|&axis| call.axis(axis, rank)).collect::<Result<_, _>>()?,
    };
    let (scale_slot, size_slot) = if call.opset < 11 { (1, usize::MAX) } else { (2, 3) };
    let given = |slot: usize| call.optional(slot).filter(|tensor| !tensor.is_empty());
    let whole = |&size: &usize| Axis { size, out: size, scale: 1.0, region: (0.0, 1.0) };
    let mut plan: Vec<Axis> = x.shape().iter().map(whole).collect();
    let cropped = call.node.string("coordinate_transformation_mode") == Some("tf_crop_and_resize");
    if cropped {
        let regions = call.input(1)?.to_f64s().map_err(|error| call.tensor_error(error))?;
        if regions.len() != 2 * axes.len() || regions.iter().any(|at| !at.is_finite()) {
            return Err(call.invalid(format!("region {regions:?} for {} axes", axes.len())));
        }
        for (index, &axis) in axes.iter().enumerate() {
            plan[axis].region = (regions[index], regions[index + axes.len()]);
        }
    }
    if let Some(sizes) = given(size_slot) {
        let sizes = sizes.to_i64s().map_err(|error| call.tensor_error(error))?;
        if sizes.len() != axes.len() {
            return Err(call.invalid(format!("{} sizes for {} axes", sizes.len(), axes.len())));
        }
        for (&axis, &size) in axes.iter().zip(&sizes) {
            let out = usize::try_from(size).map_err(|_| call.invalid(format!("size {size} is negative")))?;
            plan[axis].out = out;
            plan[axis].scale = size as f64 / x.shape()[axis] as f64;
        }
        keep_aspect_ratio(call, &axes, &mut plan)?;
    } else {
        let tensor = given(scale_slot).ok_or_else(|| call.invalid("neither scales nor sizes are given"))?;
        let values = tensor.to_f64s().map_err(|error| call.tensor_error(error))?;
        for (&axis, &scale) in axes.iter().zip(&given_scales(call, values, axes.len())?) {
            let Axis { size, region, .. } = plan[axis];
            if region != (0.0, 1.0) {
                // The standard lets the region scale the output, its reference does not.
                return Err(call.unsupported("scales of a region that is cut out"));
            }
            plan[axis].scale = scale;
            plan[axis].out = (size as f64 * scale).floor() as usize;
        }
    }
    run(call, x, &plan)
}

/// One scale for all axes where `keep_aspect_ratio_policy` asks for it.
fn keep_aspect_ratio(call: &Call<'_>, axes: &[usize], plan: &mut [Axis]) -> Result<(), OpError> {
    let scales = axes.iter().map(|&axis| plan[axis].scale);
    let scale = match call.node.string("keep_aspect_ratio_policy").unwrap_or("stretch") {
        "stretch" => return Ok(()),
        "not_larger" => scales.reduce(f64::min),
        "not_smaller" => scales.reduce(f64::max),
        other => return Err(call.invalid(format!("there is no keep_aspect_ratio_policy `{other}`"))),
    };
    let Some(scale) = scale.filter(|scale| scale.is_finite()) else {
        return Err(call.invalid("there is no aspect ratio without elements"));
    };
    for &axis in axes {
        plan[axis].scale = scale;
        // Shape inference rounds in binary32, and it must not be another size than that one.
        plan[axis].out = (scale as f32 * plan[axis].size as f32 + 0.5).floor() as usize;
    }
    Ok(())
}

fn run(call: &Call<'_>, x: &Tensor, plan: &[Axis]) -> Result<Vec<Tensor>, OpError> {
    let out: Vec<usize> = plan.iter().map(|axis| axis.out).collect();
    let antialias = call.node.int("antialias").unwrap_or(0) != 0;
    if antialias && call.node.string("mode").unwrap_or("nearest") == "nearest" {
        return Err(call.unsupported("antialias of the nearest element"));
    }
    let outside = f64::from(call.node.float("extrapolation_value").unwrap_or(0.0));
    call.check_size(DType::F64, &out)?;
    call.check_size(DType::F64, x.shape())?;
    if x.is_empty() && !out.contains(&0) {
        return Err(call.invalid("there is nothing to sample"));
    }
    if out.contains(&0) {
        return Ok(vec![Tensor::zeros(x.dtype(), out).map_err(|error| call.tensor_error(error))?]);
    }
    if call.node.string("mode").unwrap_or("nearest") == "nearest"
        && let Some(result) = pick(call, x, plan)?
    {
        return Ok(vec![result]);
    }
    let floats = match Numbers::of(call, x)? {
        Numbers::Floats(values) => values,
        Numbers::Integers(_) => x.to_f64s().map_err(|error| call.tensor_error(error))?,
    };
    let (mut values, mut shape) = (floats, x.shape().to_vec());
    for (axis, info) in plan.iter().enumerate() {
        if info.out == info.size && info.scale == 1.0 && info.region == (0.0, 1.0) {
            continue;
        }
        // Half way the sizes of some axes are old and of others new.
        shape[axis] = info.out;
        call.check_size(DType::F64, &shape)?;
        let inner = strides(&shape)[axis];
        let taps: Vec<Taps> =
            (0..info.out).map(|at| taps(call, at, info, antialias)).collect::<Result<_, _>>()?;
        let block = inner * info.size;
        let outer = values.len() / block.max(1);
        let mut next = Vec::with_capacity(outer * info.out * inner);
        for start in (0..outer).map(|index| index * block) {
            for taps in &taps {
                for lane in start..start + inner {
                    let sum = taps.iter().map(|&(place, weight)| values[lane + place * inner] * weight).sum();
                    next.push(if taps.is_empty() { outside } else { sum });
                }
            }
        }
        values = next;
    }
    let numbers = match x.dtype().integer_range() {
        None if x.dtype().is_float() => Numbers::Floats(values),
        // Interpolation may reach beyond the type's range.
        range => Numbers::Integers(values.into_iter().map(|value| whole(value, range)).collect()),
    };
    Ok(vec![numbers.tensor(call, x.dtype(), out)?])
}

/// Picks the nearest elements, of any type; nothing where some lie outside of the input.
fn pick(call: &Call<'_>, x: &Tensor, plan: &[Axis]) -> Result<Option<Tensor>, OpError> {
    let mut starts = vec![0usize];
    let out: Vec<usize> = plan.iter().map(|axis| axis.out).collect();
    call.check_size(DType::I64, &out)?;
    for (axis, step) in plan.iter().zip(strides(x.shape())) {
        let mut places = Vec::with_capacity(axis.out);
        for at in 0..axis.out {
            let Some(&(place, _)) = taps(call, at, axis, false)?.first() else { return Ok(None) };
            places.push(
                if axis.out == axis.size && axis.scale == 1.0 && axis.region == (0.0, 1.0) {
                    at
                } else {
                    place
                } * step,
            );
        }
        starts = starts.iter().flat_map(|start| places.iter().map(move |place| start + place)).collect();
    }
    assemble(call, &[x], out, starts.into_iter().map(|start| Run::one(0, start))).map(Some)
}

/// The nearest whole number within a range, in the form of [`Numbers::Integers`].
fn whole(value: f64, range: Option<(i128, i128)>) -> i64 {
    let (low, high) = range.unwrap_or((0, 1));
    (value.round_ties_even() as i128).clamp(low, high) as i64
}

/// Where output element `at` of an axis samples the input.
fn taps(call: &Call<'_>, at: usize, axis: &Axis, antialias: bool) -> Result<Taps, OpError> {
    let &Axis { size, out, scale, region: (start, end) } = axis;
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
        "tf_crop_and_resize" => {
            // Rounded as the standard's arithmetic is: the last element must not end up outside by a hair.
            let round = |value: f64| f64::from(value as f32);
            let part = if out > 1 {
                let span = round(round(at * round(end - start)) * (length - 1.0));
                round(round(start * (length - 1.0)) + round(span / (wide - 1.0)))
            } else {
                round(round(0.5 * round(start + end)) * (length - 1.0))
            };
            if !(0.0..=length - 1.0).contains(&part) {
                return Ok(Taps::new());
            }
            part
        }
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
        "linear" | "cubic" if antialias => Ok(filtered(call, place, axis)),
        "linear" => {
            let place = place.clamp(0.0, last as f64);
            let low = place.floor();
            Ok(vec![(clamp(low), 1.0 - (place - low)), (clamp(low + 1.0), place - low)])
        }
        "cubic" => {
            let a = f64::from(call.node.float("cubic_coeff_a").unwrap_or(-0.75));
            let low = place.floor();
            let weight = |distance: f64| cubic(distance.abs(), a);
            let exclude = call.node.int("exclude_outside").unwrap_or(0) != 0;
            let mut taps: Taps = Vec::with_capacity(4);
            for step in -1..=2 {
                let position = low + f64::from(step);
                let inside = (0.0..=last as f64).contains(&position);
                let weight = if exclude && !inside { 0.0 } else { weight(place - position) };
                taps.push((clamp(position), weight));
            }
            if exclude {
                normalize(&mut taps);
            }
            Ok(taps)
        }
        other => Err(call.invalid(format!("there is no mode `{other}`"))),
    }
}

/// The weight of an element at that distance in cubic convolution.
fn cubic(d: f64, a: f64) -> f64 {
    if d <= 1.0 {
        ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    } else if d < 2.0 {
        ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    } else {
        0.0
    }
}

/// Scales the weights to a sum of 1.
fn normalize(taps: &mut Taps) {
    let sum: f64 = taps.iter().map(|(_, weight)| weight).sum();
    if sum != 0.0 {
        taps.iter_mut().for_each(|(_, weight)| *weight /= sum);
    }
}

/// The taps of a filter that is as much wider as the output is smaller.
fn filtered(call: &Call<'_>, place: f64, axis: &Axis) -> Taps {
    let scale = axis.scale.min(1.0);
    let a = f64::from(call.node.float("cubic_coeff_a").unwrap_or(-0.75));
    let is_cubic = call.node.string("mode") == Some("cubic");
    let reach = if is_cubic { 2.0 } else { 1.0 } / scale;
    let last = axis.size as f64 - 1.0;
    let exclude = call.node.int("exclude_outside").unwrap_or(0) != 0;
    let mut taps = Taps::new();
    let mut position = (place - reach).ceil();
    while position <= place + reach {
        let distance = ((position - place) * scale).abs();
        let weight = if is_cubic { cubic(distance, a) } else { (1.0 - distance).max(0.0) };
        if !exclude || (0.0..=last).contains(&position) {
            taps.push((position.clamp(0.0, last) as usize, weight));
        }
        position += 1.0;
    }
    normalize(&mut taps);
    taps
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    #[test]
    fn smaller_images_are_filtered_and_integers_saturate() {
        let run = |node: &Node, x: &Tensor, sizes: &[i64]| {
            let sizes = Tensor::from_i64s(sizes);
            let inputs = [Some(x), None, None, Some(&sizes)];
            let call = Call::new(node, 18, &inputs);
            resize(&call).map(|outputs| outputs[0].to_f64s().unwrap())
        };
        let x = Tensor::from_vec(vec![2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 7.0]);
        let node = Node::new("Resize", []).with("mode", "linear").with("antialias", 1);
        // What onnx.reference computes.
        let result = run(&node, &x, &[1, 2]).unwrap();
        assert!((result[0] - 17.0 / 6.0).abs() < 1e-6 && (result[1] - 4.5).abs() < 1e-6, "{result:?}");
        let x = Tensor::from_vec(vec![4], vec![0u8, 255, 255, 0]);
        let result = run(&Node::new("Resize", []).with("mode", "cubic"), &x, &[8]).unwrap();
        assert!(result.iter().all(|value| (0.0..=255.0).contains(value)) && result.contains(&255.0));
        assert!(result[0] < 30.0, "it does not wrap around: {result:?}");
        let x = Tensor::from_strings(vec![2], &["a", "b"]);
        let sizes = Tensor::from_i64s(&[4]);
        let node = Node::new("Resize", []);
        let doubled = resize(&Call::new(&node, 18, &[Some(&x), None, None, Some(&sizes)])).unwrap();
        assert_eq!(doubled[0].strings().unwrap(), [b"a", b"a", b"b", b"b"]);
        assert!(matches!(
            resize(&Call::new(&node, 18, &[Some(&x), None, None, Some(&Tensor::from_i64s(&[1 << 40]))])),
            Err(OpError::TooLarge { .. })
        ));
    }
}
