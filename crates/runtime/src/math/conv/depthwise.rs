//! Depthwise convolution: every channel has one filter of its own.
//!
//! There is no product to speak of, only a weighted sum of shifted pictures, so what counts is how little is
//! done around it: a channel is copied into a zero-padded picture, and whole vectors of neighbouring results
//! are summed from it, tap by tap. Results between those that a horizontal stride asks for are computed and
//! dropped: that costs less than taking the picture apart. Every result is one chain of multiply-adds in the
//! order of the taps, as in the rest of this folder.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::super::simd::{dispatch, store};
use super::runs::Runs;
use super::{ConvShape, Convolution, Finish, Scratch, with_scratch};

/// Elements of padded pictures that stay in the first-level cache, with their results.
const BLOCK: usize = 3 << 10;

/// Elements of a padded picture that stays in the second-level cache.
const PICTURE: usize = 64 << 10;

/// Whether this is a depthwise convolution for this file.
pub(super) fn fits(shape: &ConvShape) -> bool {
    let padded = shape.seen(0).saturating_mul(shape.seen(1));
    shape.groups == shape.channels && shape.groups == shape.filters && padded <= PICTURE
}

/// Computes all pictures, some channels of one at a time.
pub(super) fn run(convolution: &Convolution<'_>, threads: usize, output: &mut [f32], finish: Finish<'_>) {
    let shape = convolution.shape;
    let pixels = shape.pixels();
    let shared = threads == 1 || shape.batch >= 2 * threads;
    let channels = if shared { shape.channels } else { shape.channels.div_ceil(2 * threads) };
    let run = |(image, first, output): (usize, usize, &mut [f32])| {
        with_scratch(|scratch| dispatch(Channels { convolution, image, first, output, scratch }));
        if let Some(finish) = finish {
            finish((image * shape.channels + first) * pixels, output);
        }
    };
    let tasks = output.chunks_mut(shape.channels * pixels).enumerate().flat_map(|(image, output)| {
        let parts = output.chunks_mut(channels * pixels).enumerate();
        parts.map(move |(part, output)| (image, part * channels, output))
    });
    if threads == 1 {
        tasks.for_each(run);
    } else {
        tasks.collect::<Vec<_>>().into_par_iter().for_each(run);
    }
}

/// Channels of a picture from number `first` on.
struct Channels<'a> {
    convolution: &'a Convolution<'a>,
    image: usize,
    first: usize,
    /// Channels by rows by columns.
    output: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl WithSimd for Channels<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let shape = self.convolution.shape;
        match shape.kernel {
            [3, 3] if shape.dilations == [1, 1] => self.run::<S, 3>(simd),
            [5, 5] if shape.dilations == [1, 1] => self.run::<S, 5>(simd),
            _ => self.run::<S, 0>(simd),
        }
    }
}

impl Channels<'_> {
    /// `K` is the size of a dense square filter; 0 stands for any filter.
    #[inline(always)]
    fn run<S: Simd, const K: usize>(self, simd: S) {
        let Channels { convolution, image, first, output, scratch } = self;
        let Convolution { shape, filters, bias, .. } = *convolution;
        let [height, width] = [shape.seen(0), shape.seen(1)];
        let [rows, columns] = shape.output;
        let (plane, pixels) = (shape.plane(), rows * columns);
        let taps = shape.kernel[0] * shape.kernel[1];
        // Results of a row, those that are dropped included, and the same in whole vectors.
        let length = (columns - 1) * shape.strides[1] + 1;
        let line = length.next_multiple_of(S::F32_LANES);
        // The last vectors are read whole.
        let picture = height * width + line - length;
        // Several channels at a time: vectors that are read right after shorter or shifted ones were
        // written would wait for them.
        let block = (BLOCK / picture).clamp(1, 16);
        let Scratch { padded: pictures, flat: sums, .. } = scratch;
        pictures.clear();
        pictures.resize(block * picture, 0.0);
        sums.resize(rows * line, 0.0);
        let inner = shape.padding();
        let (to_step, from_step, stride) = (columns, line, shape.strides[1]);
        let out = Runs { to: 0, to_step, from: 0, from_step, rows, count: columns, stride };
        let count = output.len() / pixels;
        let input = &convolution.picture(image)[first * plane..][..count * plane];
        let mut channel = 0;
        for inputs in input.chunks(block * plane) {
            for (target, source) in pictures.chunks_mut(picture).zip(inputs.chunks(plane)) {
                // Every channel writes the same places: the zeros of the border stay.
                inner.copy(target, source);
            }
            for picture in pictures.chunks(picture).take(inputs.len() / plane) {
                let filter = Filter {
                    taps: &filters.data[(first + channel) * taps..][..taps],
                    bias: bias.map_or(0.0, |bias| bias[first + channel]),
                    shape,
                    width,
                };
                let spread = filter.spread::<S, K>(simd);
                let output = &mut output[channel * pixels..];
                if shape.strides[1] == 1 && output.len() >= pixels + line {
                    // Whole vectors: what is too much lands where the next row or channel is written.
                    if K == 3 && shape.strides[0] == 1 {
                        filter.down(simd, &spread, picture, [rows, columns], output);
                    } else {
                        for row in 0..rows {
                            let picture = &picture[row * shape.strides[0] * width..];
                            filter.line(simd, &spread, picture, length, &mut output[row * columns..]);
                        }
                    }
                } else {
                    for (row, target) in sums.chunks_mut(line).enumerate() {
                        filter.line(
                            simd,
                            &spread,
                            &picture[row * shape.strides[0] * width..],
                            length,
                            target,
                        );
                    }
                    out.copy(output, sums);
                }
                channel += 1;
            }
        }
    }
}

/// The filter of a channel.
struct Filter<'a> {
    taps: &'a [f32],
    bias: f32,
    shape: &'a ConvShape,
    /// Of the padded picture.
    width: usize,
}

impl Filter<'_> {
    /// The taps of a dense filter, each spread over a vector.
    #[inline(always)]
    fn spread<S: Simd, const K: usize>(&self, simd: S) -> [[S::f32s; K]; K] {
        let mut spread = [[simd.splat_f32s(0.0); K]; K];
        if K > 0
            && let Some(taps) = self.taps.as_chunks::<K>().0.first_chunk::<K>()
        {
            for y in 0..K {
                for x in 0..K {
                    spread[y][x] = simd.splat_f32s(taps[y][x]);
                }
            }
        }
        spread
    }

    /// All rows of a picture by a filter of three rows, a strip of columns after the other. What goes beyond
    /// the end of a row is overwritten by the row below, so the last strip comes first.
    #[inline(always)]
    fn down<S: Simd, const K: usize>(
        &self,
        simd: S,
        spread: &[[S::f32s; K]; K],
        picture: &[f32],
        [rows, columns]: [usize; 2],
        output: &mut [f32],
    ) {
        let lanes = S::F32_LANES;
        let Some(spread) = spread.first_chunk::<3>() else { return };
        let mut left = columns.div_ceil(lanes);
        let mut done = 0;
        while left > 0 {
            let size = if left.is_multiple_of(2) { 2 } else { 1 };
            left -= size;
            let Some(picture) = picture.get(left * lanes..) else { break };
            let Some(output) = output.get_mut(left * lanes..) else { break };
            done = match size {
                2 => self.strip::<S, K, 2>(simd, spread, picture, [rows, columns], output),
                _ => self.strip::<S, K, 1>(simd, spread, picture, [rows, columns], output),
            };
            if done < rows {
                break;
            }
        }
        assert_eq!(done, rows, "every tap is readable up to whole vectors");
    }

    /// `V` vectors of columns of all rows: every row of the picture is read once, for the three rows of
    /// results that see it. Says how many rows were done, which is all of them.
    #[inline(always)]
    fn strip<S: Simd, const K: usize, const V: usize>(
        &self,
        simd: S,
        spread: &[[S::f32s; K]; 3],
        picture: &[f32],
        [rows, columns]: [usize; 2],
        output: &mut [f32],
    ) -> usize {
        let bias = [simd.splat_f32s(self.bias); V];
        // Rows of results that two rows of taps, one and none have been added to.
        let (mut second, mut first) = (bias, bias);
        let (mut from, mut to) = (0usize, 0usize);
        // Nothing in this loop may panic, as below.
        for row in 0..rows.wrapping_add(2) {
            let Some(read) = picture.get(from..from.wrapping_add(V * S::F32_LANES + K - 1)) else { break };
            let mut sums = [second, first, bias];
            // One number for the pixels and three rows of taps.
            #[allow(clippy::needless_range_loop)]
            for kx in 0..K {
                let Some(read) = read.get(kx..kx + V * S::F32_LANES) else { break };
                let Some(read) = vectors::<S, V>(read) else { break };
                for v in 0..V {
                    sums[0][v] = simd.mul_add_e_f32s(spread[2][kx], read[v], sums[0][v]);
                    sums[1][v] = simd.mul_add_e_f32s(spread[1][kx], read[v], sums[1][v]);
                    sums[2][v] = simd.mul_add_e_f32s(spread[0][kx], read[v], sums[2][v]);
                }
            }
            if row >= 2 {
                let Some(target) = output.get_mut(to..to.wrapping_add(V * S::F32_LANES)) else { break };
                let Ok(target) = bytemuck::try_cast_slice_mut::<f32, S::f32s>(target) else { break };
                let Some(target) = target.first_chunk_mut::<V>() else { break };
                *target = sums[0];
                to = to.wrapping_add(columns);
            }
            (second, first) = (sums[1], sums[2]);
            from = from.wrapping_add(self.width);
        }
        to / columns.max(1)
    }

    /// A line of results, rounded up to whole vectors.
    #[inline(always)]
    fn line<S: Simd, const K: usize>(
        &self,
        simd: S,
        spread: &[[S::f32s; K]; K],
        picture: &[f32],
        length: usize,
        target: &mut [f32],
    ) {
        let lanes = S::F32_LANES;
        let mut at = 0;
        while at < length {
            let target = &mut target[at..];
            if length - at > 3 * lanes {
                self.sums::<S, K, 4>(simd, spread, picture, at, target);
                at += 4 * lanes;
            } else if length - at > lanes {
                self.sums::<S, K, 2>(simd, spread, picture, at, target);
                at += 2 * lanes;
            } else {
                self.sums::<S, K, 1>(simd, spread, picture, at, target);
                at += lanes;
            }
        }
    }

    /// `V` vectors of results, the first of which has its first tap at `at` of the picture.
    #[inline(always)]
    fn sums<S: Simd, const K: usize, const V: usize>(
        &self,
        simd: S,
        spread: &[[S::f32s; K]; K],
        picture: &[f32],
        at: usize,
        target: &mut [f32],
    ) {
        let lanes = S::F32_LANES;
        let mut sums = [simd.splat_f32s(self.bias); V];
        let mut done = 0;
        // Nothing in these loops may panic: a way out other than their end would keep the sums in memory.
        if K > 0 {
            for (ky, taps) in spread.iter().enumerate() {
                let start = at.wrapping_add(ky.wrapping_mul(self.width));
                let Some(row) = picture.get(start..start.wrapping_add(V * lanes + K - 1)) else { break };
                for (kx, &tap) in taps.iter().enumerate() {
                    let Some(row) = row.get(kx..kx + V * lanes) else { break };
                    let Some(row) = vectors::<S, V>(row) else { break };
                    for v in 0..V {
                        sums[v] = simd.mul_add_e_f32s(tap, row[v], sums[v]);
                    }
                    done += 1;
                }
            }
        } else {
            let [dilation_y, dilation_x] = self.shape.dilations;
            for (ky, taps) in self.taps.chunks(self.shape.kernel[1].max(1)).enumerate() {
                let mut start = at.wrapping_add(ky.wrapping_mul(dilation_y).wrapping_mul(self.width));
                for &tap in taps {
                    let Some(row) = picture.get(start..start.wrapping_add(V * lanes)) else { break };
                    let Some(row) = vectors::<S, V>(row) else { break };
                    let tap = simd.splat_f32s(tap);
                    for v in 0..V {
                        sums[v] = simd.mul_add_e_f32s(tap, row[v], sums[v]);
                    }
                    start = start.wrapping_add(dilation_x);
                    done += 1;
                }
            }
        }
        assert_eq!(done, self.taps.len(), "every tap is readable up to whole vectors");
        for (v, &sum) in sums.iter().enumerate() {
            store::<S>(&mut target[v * lanes..], sum);
        }
    }
}

/// The first `V` vectors of a row.
#[inline(always)]
fn vectors<S: Simd, const V: usize>(row: &[f32]) -> Option<&[S::f32s; V]> {
    bytemuck::try_cast_slice::<f32, S::f32s>(row).ok()?.first_chunk()
}
