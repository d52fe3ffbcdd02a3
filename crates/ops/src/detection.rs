//! Boxes in images: RoiAlign, MaxRoiPool and NonMaxSuppression.
//!
//! <https://onnx.ai/onnx/operators/onnx__RoiAlign.html>,
//! <https://onnx.ai/onnx/operators/onnx__MaxRoiPool.html>,
//! <https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html>

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{integers, product};
use crate::numbers::{Numbers, float_tensor};
use crate::sampling::position;

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("RoiAlign", 10, roi_align),
    KernelSpec::onnx("MaxRoiPool", 1, max_roi_pool),
    KernelSpec::onnx("NonMaxSuppression", 10, non_max_suppression),
];

/// Greatest number of sampled points: beyond it the regions are hostile, not large.
const MOST_SAMPLES: u64 = 1 << 32;

/// Four elements of an image and their weights; nothing for a point outside of it.
type Bilinear = Option<[(usize, f64); 4]>;

fn bilinear(y: f64, x: f64, height: usize, width: usize) -> Bilinear {
    if !((-1.0..=height as f64).contains(&y) && (-1.0..=width as f64).contains(&x)) {
        return None;
    }
    let along = |at: f64, size: usize| {
        let at = at.max(0.0);
        let low = at as usize;
        if low + 1 >= size { (size - 1, size - 1, 0.0) } else { (low, low + 1, at - low as f64) }
    };
    let ((top, bottom, dy), (left, right, dx)) = (along(y, height), along(x, width));
    Some([
        (top * width + left, (1.0 - dy) * (1.0 - dx)),
        (top * width + right, (1.0 - dy) * dx),
        (bottom * width + left, dy * (1.0 - dx)),
        (bottom * width + right, dy * dx),
    ])
}

fn image_shape(call: &Call<'_>, x: &Tensor) -> Result<[usize; 4], OpError> {
    let shape = <[usize; 4]>::try_from(x.shape())
        .map_err(|_| call.invalid(format!("shape {:?} is not that of images", x.shape())))?;
    if shape[2] == 0 || shape[3] == 0 {
        return Err(call.invalid("the images have no elements"));
    }
    Ok(shape)
}

fn positive(call: &Call<'_>, name: &str, value: Option<i64>) -> Result<usize, OpError> {
    let value = value.unwrap_or(1);
    usize::try_from(value)
        .ok()
        .filter(|size| (1..1 << 31).contains(size))
        .ok_or_else(|| call.invalid(format!("`{name}` is {value}; it must be positive")))
}

fn batch_index(call: &Call<'_>, index: i64, batch: usize) -> Result<usize, OpError> {
    usize::try_from(index)
        .ok()
        .filter(|&index| index < batch)
        .ok_or_else(|| call.invalid(format!("there is no image {index} in a batch of {batch}")))
}

fn roi_align(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, rois) = (call.input(0)?, call.input(1)?);
    let [batch, channels, height, width] = image_shape(call, x)?;
    let indices = integers(call, 2)?;
    if rois.shape() != [indices.len(), 4] {
        return Err(call.invalid(format!("{} indices for regions {:?}", indices.len(), rois.shape())));
    }
    // Version 10 knew no shift by half a pixel.
    let default = if call.opset < 16 { "output_half_pixel" } else { "half_pixel" };
    let half = match call.node.string("coordinate_transformation_mode").unwrap_or(default) {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return Err(call.invalid(format!("there is no coordinate_transformation_mode `{other}`"))),
    };
    let average = match call.node.string("mode").unwrap_or("avg") {
        "avg" => true,
        "max" => false,
        other => return Err(call.invalid(format!("there is no mode `{other}`"))),
    };
    let rows = positive(call, "output_height", call.node.int("output_height"))?;
    let columns = positive(call, "output_width", call.node.int("output_width"))?;
    let ratio = call.node.int("sampling_ratio").unwrap_or(0);
    let scale = f64::from(call.node.float("spatial_scale").unwrap_or(1.0));
    let shape = [indices.len(), channels, rows, columns];
    call.check_size(DType::F64, &shape)?;
    let (Numbers::Floats(values), Numbers::Floats(corners)) =
        (Numbers::of(call, x)?, Numbers::of(call, rois)?)
    else {
        return Err(call.wrong_type(0, x.dtype()));
    };
    let round = |value: f64| position(rois.dtype(), value);
    let mut result = vec![0f64; product(&shape)];
    let mut samples = 0u64;
    for (region, (&image, corners)) in indices.iter().zip(corners.chunks(4)).enumerate() {
        let image = batch_index(call, image, batch)?;
        let shift = if half { 0.5 } else { 0.0 };
        let at = |corner: f64| round(round(corner * scale) - shift);
        // Regions less than a pixel wide are widened in the older coordinates.
        let least = if half { f64::NEG_INFINITY } else { 1.0 };
        let span = |low: f64, high: f64| round(high - low).max(least);
        let (left, top) = (at(corners[0]), at(corners[1]));
        let bin_height = round(span(top, at(corners[3])) / rows as f64);
        let bin_width = round(span(left, at(corners[2])) / columns as f64);
        let points = |bin: f64| if ratio > 0 { ratio as u64 } else { bin.ceil().max(0.0) as u64 };
        let (down, across) = (points(bin_height), points(bin_width));
        samples = samples.saturating_add(
            down.saturating_mul(across).saturating_mul(rows as u64).saturating_mul(columns as u64),
        );
        if samples > MOST_SAMPLES {
            return Err(call.unsupported(format!("regions of {samples} samples")));
        }
        for place in 0..rows * columns {
            let (row, column) = ((place / columns) as f64, (place % columns) as f64);
            let mut taps = Vec::new();
            for iy in 0..down {
                let y = top + row * bin_height + (iy as f64 + 0.5) * bin_height / down as f64;
                for ix in 0..across {
                    let x = left + column * bin_width + (ix as f64 + 0.5) * bin_width / across as f64;
                    taps.push(bilinear(y, x, height, width));
                }
            }
            for channel in 0..channels {
                let pixels = &values[(image * channels + channel) * height * width..];
                let weighted = |&(place, weight): &(usize, f64)| pixels[place] * weight;
                let value = if average {
                    let sum: f64 = taps.iter().flatten().flatten().map(weighted).sum();
                    sum / (taps.len().max(1)) as f64
                } else {
                    // The greatest weighted element, not the greatest interpolated one.
                    let all = taps.iter().map(|taps| match taps {
                        Some(taps) => taps.iter().map(weighted).fold(f64::NEG_INFINITY, f64::max),
                        None => 0.0,
                    });
                    all.reduce(f64::max).unwrap_or(0.0)
                };
                result[(region * channels + channel) * rows * columns + place] = value;
            }
        }
    }
    Ok(vec![float_tensor(call, x.dtype(), shape.to_vec(), &result)?])
}

fn max_roi_pool(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, rois) = (call.input(0)?, call.input(1)?);
    let [batch, channels, height, width] = image_shape(call, x)?;
    let (&[count, 5], Some(&[rows, columns])) = (rois.shape(), call.node.ints("pooled_shape")) else {
        return Err(call.invalid("its regions are no list of five, or `pooled_shape` is no pair"));
    };
    let rows = positive(call, "pooled_shape", Some(rows))?;
    let columns = positive(call, "pooled_shape", Some(columns))?;
    let scale = f64::from(call.node.float("spatial_scale").unwrap_or(1.0));
    let shape = [count, channels, rows, columns];
    call.check_size(DType::F64, &shape)?;
    let (Numbers::Floats(values), Numbers::Floats(corners)) =
        (Numbers::of(call, x)?, Numbers::of(call, rois)?)
    else {
        return Err(call.wrong_type(0, x.dtype()));
    };
    let round = |value: f64| position(rois.dtype(), value);
    let mut result = vec![0f64; product(&shape)];
    for (region, corners) in corners.chunks(5).enumerate() {
        let image = batch_index(call, corners[0] as i64, batch)?;
        let at = |corner: f64| round(corner * scale).round();
        let (left, top) = (at(corners[1]), at(corners[2]));
        let bin_width = round((at(corners[3]) - left + 1.0).max(1.0) / columns as f64);
        let bin_height = round((at(corners[4]) - top + 1.0).max(1.0) / rows as f64);
        // The elements of a bin along an axis; bins overlap where they end within an element.
        let bin = |index: usize, start: f64, step: f64, size: usize| {
            let edge = |at: f64| (at + start).clamp(0.0, size as f64) as usize;
            edge(round(index as f64 * step).floor())..edge(round((index + 1) as f64 * step).ceil())
        };
        for place in 0..rows * columns {
            let down = bin(place / columns, top, bin_height, height);
            let across = bin(place % columns, left, bin_width, width);
            for channel in 0..channels {
                let pixels = &values[(image * channels + channel) * height * width..];
                let all = down.clone().flat_map(|y| across.clone().map(move |x| pixels[y * width + x]));
                let greatest = all.reduce(|a, b| if a > b || a.is_nan() { a } else { b });
                result[(region * channels + channel) * rows * columns + place] = greatest.unwrap_or(0.0);
            }
        }
    }
    Ok(vec![float_tensor(call, x.dtype(), shape.to_vec(), &result)?])
}

/// Whether two boxes overlap by more than the threshold. Computed in binary32, the type of the boxes: the
/// comparison decides, and a threshold of 0.7 stands for the number it is rounded to.
fn overlap(a: &[f32], b: &[f32], centers: bool, threshold: f32) -> bool {
    let sides = |corners: &[f32], axis: usize| {
        if centers {
            let half = corners[2 + axis] / 2.0;
            (corners[axis] - half, corners[axis] + half)
        } else {
            let (one, other) = (corners[axis], corners[axis + 2]);
            if one >= other { (other, one) } else { (one, other) }
        }
    };
    let (mut both, mut area_a, mut area_b) = (1f32, 1f32, 1f32);
    for axis in 0..2 {
        let ((a_low, a_high), (b_low, b_high)) = (sides(a, axis), sides(b, axis));
        let shared = a_high.min(b_high) - a_low.max(b_low);
        if shared <= 0.0 {
            return false;
        }
        both *= shared;
        area_a *= a_high - a_low;
        area_b *= b_high - b_low;
    }
    let union = area_a + area_b - both;
    both > 0.0 && area_a > 0.0 && area_b > 0.0 && union > 0.0 && both / union > threshold
}

fn non_max_suppression(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (boxes, scores) = (call.input(0)?, call.input(1)?);
    let (&[batch, count, 4], &[score_batch, classes, score_count]) = (boxes.shape(), scores.shape()) else {
        return Err(call.invalid(format!("shapes {:?} and {:?} do not fit", boxes.shape(), scores.shape())));
    };
    if batch != score_batch || count != score_count {
        return Err(call.invalid(format!("shapes {:?} and {:?} do not fit", boxes.shape(), scores.shape())));
    }
    let centers = match call.node.int("center_point_box").unwrap_or(0) {
        0 => false,
        1 => true,
        other => return Err(call.invalid(format!("`center_point_box` is {other}; it must be 0 or 1"))),
    };
    let most = match call.optional(2) {
        Some(_) => integers(call, 2)?.first().copied().unwrap_or(0).max(0) as usize,
        None => 0,
    };
    let number = |slot: usize| -> Result<Option<f32>, OpError> {
        let Some(tensor) = call.optional(slot).filter(|tensor| !tensor.is_empty()) else { return Ok(None) };
        let values = tensor.to_slice::<f32>().map_err(|error| call.tensor_error(error))?;
        Ok(values.first().copied())
    };
    let (threshold, least) = (number(3)?.unwrap_or(0.0), number(4)?);
    let corners = boxes.to_slice::<f32>().map_err(|error| call.tensor_error(error))?;
    let all_scores = scores.to_slice::<f32>().map_err(|error| call.tensor_error(error))?;
    let mut selected: Vec<i64> = Vec::new();
    // Without boxes there may be an absurd number of classes.
    for list in 0..if count == 0 || most == 0 { 0 } else { batch * classes } {
        let corners = &corners[list / classes * count * 4..];
        let scores = &all_scores[list * count..(list + 1) * count];
        let mut order: Vec<usize> =
            (0..count).filter(|&index| least.is_none_or(|least| scores[index] > least)).collect();
        // Zero and minus zero are equal; of equal scores the first box comes first.
        order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
        let mut kept: Vec<usize> = Vec::new();
        for index in order {
            if kept.len() >= most {
                break;
            }
            let corners_of = |index: usize| &corners[index * 4..index * 4 + 4];
            if !kept.iter().any(|&other| overlap(corners_of(index), corners_of(other), centers, threshold)) {
                kept.push(index);
            }
        }
        selected.extend(
            kept.iter().flat_map(|&index| [(list / classes) as i64, (list % classes) as i64, index as i64]),
        );
    }
    Ok(vec![Tensor::from_vec(vec![selected.len() / 3, 3], selected)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_vec(shape.to_vec(), values.to_vec())
    }

    #[test]
    fn regions_are_pooled_as_by_onnxruntime() {
        let image = floats(&[1, 1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 7.0]);
        let node = Node::new("RoiAlign", [])
            .with("output_width", 2)
            .with("coordinate_transformation_mode", "output_half_pixel");
        let (rois, batch) = (floats(&[1, 4], &[0.0, 0.0, 2.0, 1.5]), Tensor::from_i64s(&[0]));
        let inputs = [Some(&image), Some(&rois), Some(&batch)];
        let call = Call::new(&node, 16, &inputs);
        assert_eq!(roi_align(&call).unwrap()[0].to_f64s().unwrap(), [3.5625, 4.90625]);
        let node = Node::new("MaxRoiPool", []).with("pooled_shape", vec![1i64, 2]);
        let rois = floats(&[2, 5], &[0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 5.0, 5.0, 9.0, 9.0]);
        let inputs = [Some(&image), Some(&rois)];
        let call = Call::new(&node, 11, &inputs);
        assert_eq!(max_roi_pool(&call).unwrap()[0].to_f64s().unwrap(), [4.0, 5.0, 0.0, 0.0]);
    }

    #[test]
    fn hostile_regions_are_refused() {
        let image = floats(&[1, 1, 2, 3], &[1.0; 6]);
        let node = Node::new("RoiAlign", []);
        for (corner, index) in [(1e30, 0), (f32::INFINITY, 0), (1.0, 1), (1.0, -1)] {
            let (rois, batch) = (floats(&[1, 4], &[0.0, 0.0, corner, corner]), Tensor::from_i64s(&[index]));
            let inputs = [Some(&image), Some(&rois), Some(&batch)];
            let call = Call::new(&node, 16, &inputs);
            assert!(roi_align(&call).is_err(), "{corner} {index}");
        }
        let rois = floats(&[1, 4], &[f32::NAN; 4]);
        let batch = Tensor::from_i64s(&[0]);
        let inputs = [Some(&image), Some(&rois), Some(&batch)];
        let call = Call::new(&node, 16, &inputs);
        assert_eq!(roi_align(&call).unwrap()[0].to_f64s().unwrap(), [0.0]);
    }

    #[test]
    fn of_overlapping_boxes_the_best_stays() {
        let boxes = [0.0, 0.0, 1.0, 1.0, 0.0, 0.1, 1.0, 1.1, 1.0, 1.0, 0.0, 0.0, 3.0, 3.0, 4.0, 4.0];
        let boxes = floats(&[1, 4, 4], &boxes);
        let node = Node::new("NonMaxSuppression", []);
        let run = |scores: [f32; 4], threshold: f32, least: Option<f32>| {
            let scores = floats(&[1, 1, 4], &scores);
            let (most, threshold) = (Tensor::from_i64s(&[3]), Tensor::scalar(threshold));
            let least = least.map(Tensor::scalar);
            let inputs = [Some(&boxes), Some(&scores), Some(&most), Some(&threshold), least.as_ref()];
            let found = non_max_suppression(&Call::new(&node, 11, &inputs)).unwrap()[0].to_i64s().unwrap();
            found.chunks(3).map(|place| place[2]).collect::<Vec<_>>()
        };
        assert_eq!(run([0.5, 0.9, 0.5, 0.1], 0.5, Some(0.05)), [1, 3]);
        assert_eq!(run([0.5, 0.9, 0.5, 0.1], 0.9, None), [1, 0, 3]);
        assert_eq!(run([-0.0, 0.0, f32::NAN, 0.0], 0.9, Some(-1.0)), [0, 1, 3]);
    }
}
