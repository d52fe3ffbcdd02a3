//! What a convolution owes its filters: for each tap the products of the input pixels under it with the gradient
//! of the result.
//!
//! With channels last, the pixels under a row of taps are adjacent, so that a row of taps is one matrix product:
//! gradient (filters by results) times input (results by taps and channels), read in place. Pictures are split
//! into a number of parts that depends on the batch alone, whose sums are added up in order: results do not
//! depend on the number of threads.

use rayon::prelude::*;

use super::super::gemm::{Columns, Offsets, PADDING, Rows, Start, multiply, pack_rows};
use super::super::simd::vectorized;
use super::super::threads;
use super::{ConvShape, inside};

/// Parts that pictures are split into at most.
const PARTS: usize = 8;

/// Results that one product adds up, about: enough to be worth its writes, few enough for the caches.
const DEPTH: usize = 1 << 10;

/// Computes `weights`, of shape `[filters, channels / groups, height, width]`, from the input and the gradient of the
/// result.
pub(crate) fn filters(shape: &ConvShape, input: &[f32], gradient: &[f32], weights: &mut [f32]) {
    weights.fill(0.0);
    let pixels = shape.pixels();
    if shape.batch == 0 || pixels == 0 || weights.is_empty() {
        return;
    }
    let work = shape.batch * shape.filters * pixels * shape.depth();
    let is_alone = work < threads::WORTH || threads::count() == 1;
    if shape.groups == shape.channels && shape.groups == shape.filters {
        let taps = shape.kernel[0] * shape.kernel[1];
        let of_channel =
            |(channel, taps): (usize, &mut [f32])| depthwise(shape, input, gradient, channel, taps);
        match is_alone {
            true => weights.chunks_mut(taps).enumerate().for_each(of_channel),
            false => weights.par_chunks_mut(taps).enumerate().for_each(of_channel),
        }
        return;
    }
    let together = shape.batch.div_ceil(PARTS);
    let parts: Vec<usize> = (0..shape.batch.div_ceil(together)).collect();
    let of_part = |&part: &usize| {
        let first = part * together;
        sums(shape, input, gradient, first, together.min(shape.batch - first))
    };
    let found: Vec<Vec<f32>> = match is_alone {
        true => parts.iter().map(of_part).collect(),
        false => parts.par_iter().map(of_part).collect(),
    };
    // By tap, filter and channel, as they were summed, into the order of filters.
    let (depth, [height, width]) = (shape.channels / shape.groups, shape.kernel);
    let taps = height * width;
    for sums in &found {
        for (filter, weights) in weights.chunks_mut(depth * taps).enumerate() {
            for (y, row) in sums.chunks(shape.filters * width * depth).enumerate() {
                let row = &row[filter * width * depth..][..width * depth];
                for (x, row) in row.chunks(depth).enumerate() {
                    for (channel, sum) in row.iter().enumerate() {
                        weights[channel * taps + y * width + x] += sum;
                    }
                }
            }
        }
    }
}

/// The sums over some pictures: rows of taps by filters by taps of the row by channels.
fn sums(shape: &ConvShape, input: &[f32], gradient: &[f32], first: usize, count: usize) -> Vec<f32> {
    let (depth, per_group, pixels) =
        (shape.channels / shape.groups, shape.filters / shape.groups, shape.pixels());
    let [height, width] = shape.kernel;
    // Taps of a row lie side by side where no channel of another group stands between them.
    let run = if shape.groups == 1 && shape.dilations[1] == 1 { width } else { 1 };
    let row = width * depth;
    let mut sums = vec![0f32; height * shape.filters * row];
    let mut product = vec![0f32; per_group * run * depth];
    let [tall, wide] = [shape.seen(0), shape.seen(1)];
    let at_once = (DEPTH / pixels).clamp(1, count);
    let plane = tall * wide * shape.channels;
    let mut pictures = vec![0f32; at_once * plane + PADDING];
    let (mut gathered, mut packed, mut offsets) = (Vec::new(), Vec::new(), Offsets::default());
    let mut image = first;
    while image < first + count {
        let now = at_once.min(first + count - image);
        for (picture, number) in pictures.chunks_mut(plane).zip(image..image + now) {
            channels_last(shape, &input[number * shape.channels * shape.plane()..], picture);
        }
        for group in 0..shape.groups {
            // Filters by the results of all these pictures.
            gathered.clear();
            for filter in group * per_group..(group + 1) * per_group {
                for number in image..image + now {
                    gathered
                        .extend_from_slice(&gradient[(number * shape.filters + filter) * pixels..][..pixels]);
                }
            }
            packed.clear();
            pack_rows(&mut packed, &gathered, per_group, now * pixels, now * pixels, 1);
            for tap in (0..height * width).step_by(run) {
                let (y, x) = (tap / width, tap % width);
                offsets.clear();
                for picture in 0..now {
                    for result in 0..pixels {
                        let down = result / shape.output[1] * shape.strides[0] + y * shape.dilations[0];
                        let right = result % shape.output[1] * shape.strides[1] + x * shape.dilations[1];
                        offsets
                            .push(picture * plane + (down * wide + right) * shape.channels + group * depth);
                    }
                }
                let mut targets: Vec<&mut [f32]> = product.chunks_mut(run * depth).collect();
                multiply(
                    Rows { data: &packed, depth: now * pixels },
                    Columns::new(&pictures, &offsets, run * depth),
                    Start::Zero,
                    &mut targets,
                );
                for (number, product) in product.chunks(run * depth).enumerate() {
                    let filter = group * per_group + number;
                    let target = &mut sums[(y * shape.filters + filter) * row + x * depth..][..run * depth];
                    target.iter_mut().zip(product).for_each(|(sum, part)| *sum += part);
                }
            }
        }
        image += now;
    }
    sums
}

/// A picture with its channels last, and with zeros around it as far as results see.
fn channels_last(shape: &ConvShape, input: &[f32], picture: &mut [f32]) {
    let [tall, wide] = [shape.seen(0), shape.seen(1)];
    let rows = inside(tall, shape.input[0], 0, 1, shape.pads[0]);
    let columns = inside(wide, shape.input[1], 0, 1, shape.pads[1]);
    picture.fill(0.0);
    let plane = shape.plane();
    for (down, to) in (rows.from..).zip(rows.first..rows.end) {
        let line = &mut picture
            [(to * wide + columns.first) * shape.channels..(to * wide + columns.end) * shape.channels];
        let from = down * shape.input[1] + columns.from;
        for (right, pixel) in line.chunks_mut(shape.channels).enumerate() {
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = input[channel * plane + from + right];
            }
        }
    }
}

/// Lanes that products of rows are summed in.
const LANES: usize = 8;

/// One channel's taps.
fn depthwise(shape: &ConvShape, input: &[f32], gradient: &[f32], channel: usize, taps: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            let [height, width] = shape.kernel;
            let (plane, pixels) = (shape.plane(), shape.pixels());
            let mut sums = vec![[0f32; LANES]; height * width];
            for image in 0..shape.batch {
                let picture = &input[(image * shape.channels + channel) * plane..][..plane];
                let gradient = &gradient[(image * shape.channels + channel) * pixels..][..pixels];
                for (down, gradient) in gradient.chunks(shape.output[1]).enumerate() {
                    for y in 0..height {
                        let at =
                            (down * shape.strides[0] + y * shape.dilations[0]).wrapping_sub(shape.pads[0]);
                        if at >= shape.input[0] {
                            continue;
                        }
                        let line = &picture[at * shape.input[1]..][..shape.input[1]];
                        for x in 0..width {
                            along(shape, line, gradient, x * shape.dilations[1], &mut sums[y * width + x]);
                        }
                    }
                }
            }
            for (tap, sums) in taps.iter_mut().zip(&sums) {
                *tap = sums.iter().sum();
            }
        },
    );
}

/// Adds the products of a row of gradients with the places of an input row that a tap `ahead` sees.
#[inline(always)]
fn along(shape: &ConvShape, line: &[f32], gradient: &[f32], ahead: usize, sums: &mut [f32; LANES]) {
    let (stride, pad) = (shape.strides[1], shape.pads[1]);
    // Results whose place `result * stride + ahead - pad` lies in the row.
    let first = pad.saturating_sub(ahead).div_ceil(stride).min(gradient.len());
    let end = (line.len() + pad).saturating_sub(ahead).div_ceil(stride).clamp(first, gradient.len());
    let gradient = &gradient[first..end];
    if gradient.is_empty() {
        return;
    }
    let line = &line[first * stride + ahead - pad..];
    if stride == 1 {
        let (parts, rest) = gradient.as_chunks::<LANES>();
        let (of_line, rest_of_line) = line[..gradient.len()].as_chunks::<LANES>();
        for (a, b) in parts.iter().zip(of_line) {
            for lane in 0..LANES {
                sums[lane] += a[lane] * b[lane];
            }
        }
        for ((sum, a), b) in sums.iter_mut().zip(rest).zip(rest_of_line) {
            *sum += a * b;
        }
    } else {
        for (place, (a, b)) in gradient.iter().zip(line.iter().step_by(stride)).enumerate() {
            sums[place % LANES] += a * b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, by: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * by % 17) as f32 - 8.0) / 8.0).collect()
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        for (channels, filters, groups) in [(3, 5, 1), (16, 9, 1), (4, 6, 2), (5, 5, 5)] {
            for (kernel, strides, dilations, pads) in [
                ([3, 3], [1, 1], [1, 1], [1, 1]),
                ([3, 2], [2, 2], [1, 1], [1, 0]),
                ([1, 1], [1, 1], [1, 1], [0, 0]),
                ([2, 3], [1, 2], [2, 2], [2, 3]),
                ([1, 5], [1, 1], [1, 1], [0, 2]),
            ] {
                let (input, batch) = ([7, 9], 11);
                let output: [usize; 2] = std::array::from_fn(|axis| {
                    (input[axis] + 2 * pads[axis] - (kernel[axis] - 1) * dilations[axis] - 1) / strides[axis]
                        + 1
                });
                let shape = ConvShape {
                    batch,
                    channels,
                    input,
                    filters,
                    kernel,
                    output,
                    strides,
                    dilations,
                    pads,
                    groups,
                };
                let x = numbers(batch * channels * shape.plane(), 7);
                let dy = numbers(batch * filters * shape.pixels(), 5);
                let (depth, per_group) = (channels / groups, filters / groups);
                let mut found = vec![f32::NAN; filters * shape.depth()];
                super::filters(&shape, &x, &dy, &mut found);
                for filter in 0..filters {
                    for channel in 0..depth {
                        for (tap, found) in found[(filter * depth + channel) * kernel[0] * kernel[1]..]
                            .iter()
                            .take(kernel[0] * kernel[1])
                            .enumerate()
                        {
                            let (ky, kx) = (tap / kernel[1], tap % kernel[1]);
                            let mut wanted = 0f64;
                            for image in 0..batch {
                                for result in 0..shape.pixels() {
                                    let at = |index: usize, tap: usize, axis: usize| {
                                        (index * strides[axis] + tap * dilations[axis])
                                            .checked_sub(pads[axis])
                                            .filter(|&place| place < input[axis])
                                    };
                                    let (Some(y), Some(x_at)) =
                                        (at(result / output[1], ky, 0), at(result % output[1], kx, 1))
                                    else {
                                        continue;
                                    };
                                    let from = image * channels + filter / per_group * depth + channel;
                                    wanted += f64::from(x[from * shape.plane() + y * input[1] + x_at])
                                        * f64::from(dy[(image * filters + filter) * shape.pixels() + result]);
                                }
                            }
                            let error = (f64::from(*found) - wanted).abs();
                            assert!(
                                error < 1e-4 * (1.0 + wanted.abs()),
                                "{shape:?} {filter} {channel} {tap}: {found} {wanted}"
                            );
                        }
                    }
                }
            }
        }
    }
}
