//! Convolution in single precision, channels first.
//!
//! No im2col: a task copies the input rows it needs into a zero-padded scratch (with a stride of two or
//! more, one picture for every phase of the stride), where the input pixel of a filter tap lies at a
//! constant distance from that of its neighbour. A convolution is then one matrix product per group whose
//! `B` rows are shifted views of the scratch: filter times pixels, in the flat order of the padded rows.
//! The few sums that belong to padding columns are dropped when rows are copied out.

use std::cell::RefCell;

use rayon::prelude::*;

use super::gemm::{Columns, PADDING, PANEL, Panel, Rows, Start, multiply, pack_rows};
use super::threads;

/// What a convolution is, shapes resolved. Spatial pairs are (vertical, horizontal).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConvShape {
    /// Pictures.
    pub batch: usize,
    /// Channels of the input.
    pub channels: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Channels of the output.
    pub filters: usize,
    /// Height and width of a filter.
    pub kernel: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Steps between output pixels.
    pub strides: [usize; 2],
    /// Steps between filter taps.
    pub dilations: [usize; 2],
    /// Zero rows above and zero columns to the left.
    pub pads: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

/// Elements of scratch a task should stay under: about half a second-level cache.
const SCRATCH: usize = 96 << 10;

/// Multiply-adds below which splitting among threads does not pay.
const SPLIT: usize = 1 << 19;

impl ConvShape {
    fn depth(&self) -> usize {
        self.channels / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Whether a filter is one pixel that meets every input pixel in place.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.strides == [1, 1] && self.pads == [0, 0] && self.input == self.output
    }
}

/// The filters of a convolution, in the order tiles read them.
#[derive(Debug)]
pub(crate) struct PackedFilters {
    data: Vec<f32>,
}

impl PackedFilters {
    /// Packs `weights` of shape `[filters, channels / groups, height, width]`.
    pub(crate) fn new(shape: &ConvShape, weights: &[f32]) -> PackedFilters {
        let (depth, per_group) = (shape.depth(), shape.filters / shape.groups);
        let mut data = Vec::with_capacity(shape.filters * depth);
        if depth > 0 {
            for group in weights.chunks(per_group * depth) {
                pack_rows(&mut data, group, per_group, depth, depth, 1);
            }
        }
        PackedFilters { data }
    }
}

/// What is done to a part of the output once it is computed: it gets the number of the part's first element
/// and its elements.
pub(crate) type Finish<'a> = Option<&'a (dyn Fn(usize, &mut [f32]) + Sync)>;

/// Computes `output` (its length is `batch * filters * output pixels`) from `input`, and finishes it a run
/// of rows of one filter at a time, while the caches hold them.
pub(crate) fn convolve(
    shape: &ConvShape,
    input: &[f32],
    filters: &PackedFilters,
    bias: Option<&[f32]>,
    output: &mut [f32],
    finish: Finish<'_>,
) {
    let pixels = shape.output[0] * shape.output[1];
    if pixels == 0 || shape.filters == 0 || shape.batch == 0 {
        return;
    }
    let rows = rows_per_task(shape);
    let work = shape.batch * shape.filters * pixels * shape.depth();
    let serial = work < SPLIT || threads::count() == 1;
    let run = |task: Task<'_>, finish: Finish<'_>| {
        let size = shape.channels * shape.input[0] * shape.input[1];
        let image = &input[task.image * size..][..size];
        SCRATCH_OF_THREAD.with_borrow_mut(|scratch| {
            if shape.is_pointwise() {
                pointwise(shape, image, filters, bias, task, scratch, finish);
            } else {
                shifted(shape, image, filters, bias, task, scratch, finish);
            }
        });
    };
    if rows == shape.output[0] {
        // Whole pictures: each is finished in one piece.
        let size = shape.filters * pixels;
        let whole = |(image, output): (usize, &mut [f32])| {
            let targets = output.chunks_mut(pixels).collect();
            run(Task { image, first: 0, count: rows, targets }, None);
            if let Some(finish) = finish {
                finish(image * size, output);
            }
        };
        if serial || shape.batch == 1 {
            output.chunks_mut(size).enumerate().for_each(whole);
        } else {
            output.par_chunks_mut(size).enumerate().for_each(whole);
        }
        return;
    }
    let mut tasks = Vec::new();
    for (image, output) in output.chunks_mut(shape.filters * pixels).enumerate() {
        let mut first = 0;
        let mut planes: Vec<&mut [f32]> = output.chunks_mut(pixels).collect();
        while first < shape.output[0] {
            let count = rows.min(shape.output[0] - first);
            let mut targets = Vec::with_capacity(shape.filters);
            for plane in &mut planes {
                let (head, tail) = std::mem::take(plane).split_at_mut(count * shape.output[1]);
                targets.push(head);
                *plane = tail;
            }
            tasks.push(Task { image, first, count, targets });
            first += count;
        }
    }
    if serial {
        tasks.into_iter().for_each(|task| run(task, finish));
    } else {
        tasks.into_par_iter().for_each(|task| run(task, finish));
    }
}

/// Finishes the rows of a task for the filters from number `first` on.
fn finish_task(
    shape: &ConvShape,
    task: (usize, usize),
    first: usize,
    targets: &mut [&mut [f32]],
    finish: Finish<'_>,
) {
    let Some(finish) = finish else { return };
    let (image, row) = task;
    let pixels = shape.output[0] * shape.output[1];
    for (filter, target) in targets.iter_mut().enumerate() {
        finish((image * shape.filters + first + filter) * pixels + row * shape.output[1], target);
    }
}

/// Output rows of one picture that one task computes: few enough for the caches and to keep all threads
/// busy, enough to be worth a task.
fn rows_per_task(shape: &ConvShape) -> usize {
    let height = shape.output[0];
    let per_row = shape.filters * shape.output[1] * shape.depth();
    let least = (SPLIT / 2).div_ceil(per_row.max(1));
    let pictures = shape.channels / shape.groups * shape.input[1] * shape.strides[0]
        + shape.filters / shape.groups * (shape.output[1] + shape.kernel[1]);
    let fitting = (SCRATCH / pictures.max(1)).max(2 * shape.kernel[0]);
    let threads = threads::count();
    let shared = if shape.batch >= 2 * threads { height } else { height.div_ceil(2 * threads) };
    fitting.min(shared).max(least).clamp(1, height)
}

/// Rows `first..first + count` of one output picture.
struct Task<'t> {
    image: usize,
    first: usize,
    count: usize,
    /// Where they go: one slice a filter.
    targets: Vec<&'t mut [f32]>,
}

thread_local! {
    /// Kept from call to call: fresh memory costs more than what is written to it.
    static SCRATCH_OF_THREAD: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    padded: Vec<f32>,
    flat: Vec<f32>,
    offsets: Vec<usize>,
    copies: Vec<RowCopy>,
}

/// A run of pixels of a channel that goes into the pictures of its phases.
#[derive(Clone, Copy)]
struct RowCopy {
    to: usize,
    from: usize,
    count: usize,
}

/// Output channels of a product whose packed filters stay in the first-level cache or nearly.
fn filters_per_pass(depth: usize) -> usize {
    ((16 << 10) / depth.max(1)).clamp(8, 64) / 8 * 8
}

fn pointwise(
    shape: &ConvShape,
    image: &[f32],
    filters: &PackedFilters,
    bias: Option<&[f32]>,
    mut task: Task<'_>,
    scratch: &mut Scratch,
    finish: Finish<'_>,
) {
    let (channels, per_group) = (shape.channels / shape.groups, shape.filters / shape.groups);
    let plane = shape.input[0] * shape.input[1];
    let (begin, count) = (task.first * shape.output[1], task.count * shape.output[1]);
    scratch.padded.resize(channels * PANEL, 0.0);
    for group in 0..shape.groups {
        let image = &image[group * channels * plane..][..channels * plane];
        let data = &filters.data[group * per_group * channels..][..per_group * channels];
        let rows = Rows { data, depth: channels };
        let bias = bias.map(|bias| &bias[group * per_group..][..per_group]);
        let targets = &mut task.targets[group * per_group..][..per_group];
        // Read in place, the pixels of a panel would lie a plane apart and fall on few cache sets.
        for first in (0..count).step_by(PANEL) {
            let width = PANEL.min(count - first);
            for (row, channel) in scratch.padded.chunks_mut(PANEL).zip(image.chunks(plane)) {
                copy_pixels(&mut row[..width], &channel[begin + first..], 1);
            }
            let panel = Panel { data: &scratch.padded[..channels * PANEL], count: width };
            let mut pieces: Vec<&mut [f32]> =
                targets.iter_mut().map(|target| &mut target[first..first + width]).collect();
            multiply(rows, panel, bias.map_or(Start::Zero, Start::PerRow), &mut pieces);
        }
        finish_task(shape, (task.image, task.first), group * per_group, targets, finish);
    }
}

fn shifted(
    shape: &ConvShape,
    image: &[f32],
    filters: &PackedFilters,
    bias: Option<&[f32]>,
    mut task: Task<'_>,
    scratch: &mut Scratch,
    finish: Finish<'_>,
) {
    let [out_width, stride_y, stride_x] = [shape.output[1], shape.strides[0], shape.strides[1]];
    let (channels, per_group) = (shape.channels / shape.groups, shape.filters / shape.groups);
    let plane = shape.input[0] * shape.input[1];
    let reach = [(shape.kernel[0] - 1) * shape.dilations[0], (shape.kernel[1] - 1) * shape.dilations[1]];
    // One picture a phase: pixel (y, x) of phase (a, b) is padded input pixel (y * stride + a, ...).
    let height = task.count + reach[0] / stride_y;
    let width = out_width + reach[1] / stride_x;
    let phases = [stride_y.min(reach[0] + 1), stride_x.min(reach[1] + 1)];
    let picture = height * width;
    let flat = (task.count - 1) * width + out_width;
    let depth = shape.depth();

    scratch.offsets.clear();
    for channel in 0..channels {
        for ky in 0..shape.kernel[0] {
            for kx in 0..shape.kernel[1] {
                let (y, x) = (ky * shape.dilations[0], kx * shape.dilations[1]);
                let phase = (channel * phases[0] + y % stride_y) * phases[1] + x % stride_x;
                scratch.offsets.push(phase * picture + y / stride_y * width + x / stride_x);
            }
        }
    }
    let size = channels * phases[0] * phases[1] * picture;
    scratch.padded.clear();
    scratch.padded.resize(size + PADDING, 0.0);
    // What is copied is the same for every channel.
    scratch.copies.clear();
    for b in 0..phases[1] {
        let columns = inside(width, shape.input[1], b, stride_x, shape.pads[1]);
        for a in 0..phases[0] {
            let rows = inside(height, shape.input[0], a + task.first * stride_y, stride_y, shape.pads[0]);
            for (number, y) in (rows.first..rows.end).enumerate() {
                scratch.copies.push(RowCopy {
                    to: (a * phases[1] + b) * picture + y * width + columns.first,
                    from: (rows.from + number * stride_y) * shape.input[1] + columns.from,
                    count: columns.end - columns.first,
                });
            }
        }
    }
    for group in 0..shape.groups {
        // Every group writes the same places, so the zeros of the border stay from group to group.
        let pictures = scratch.padded.chunks_mut((phases[0] * phases[1] * picture).max(1));
        for (channel, target) in (0..channels).zip(pictures) {
            let source = &image[(group * channels + channel) * plane..][..plane];
            for copy in &scratch.copies {
                copy_pixels(&mut target[copy.to..][..copy.count], &source[copy.from..], stride_x);
            }
        }
        let rows = Rows { data: &filters.data[group * per_group * depth..][..per_group * depth], depth };
        let bias = bias.map(|bias| &bias[group * per_group..][..per_group]);
        let targets = &mut task.targets[group * per_group..][..per_group];
        let step = filters_per_pass(depth);
        for (pass, targets) in targets.chunks_mut(step).enumerate() {
            let start = bias.map_or(Start::Zero, |bias| Start::PerRow(&bias[pass * step..]));
            let columns = Columns { data: &scratch.padded, offsets: &scratch.offsets, count: flat };
            if width == out_width {
                multiply(rows.from(pass * step), columns, start, targets);
                continue;
            }
            scratch.flat.resize(targets.len() * flat, 0.0);
            if targets.len() == 1 {
                multiply(rows.from(pass * step), columns, start, &mut [&mut scratch.flat[..]]);
            } else {
                let mut flats: Vec<&mut [f32]> = scratch.flat.chunks_mut(flat).collect();
                multiply(rows.from(pass * step), columns, start, &mut flats);
            }
            for (target, flat) in targets.iter_mut().zip(scratch.flat.chunks(flat)) {
                for (target, flat) in target.chunks_mut(out_width).zip(flat.chunks(width)) {
                    copy_pixels(target, flat, 1);
                }
            }
        }
        finish_task(shape, (task.image, task.first), group * per_group, targets, finish);
    }
}

/// Places of a phase's picture along an axis that lie inside the input.
struct Inside {
    /// The first one, and the end.
    first: usize,
    end: usize,
    /// The input position of the first one.
    from: usize,
}

/// Place `x` of the picture is the padded input position `x * stride + phase`.
fn inside(count: usize, input: usize, phase: usize, stride: usize, pad: usize) -> Inside {
    let first = pad.saturating_sub(phase).div_ceil(stride);
    let end = (input + pad).saturating_sub(phase).div_ceil(stride).min(count).max(first);
    Inside { first, end, from: (first * stride + phase).saturating_sub(pad) }
}

/// Every `stride`-th pixel. Rows are short: a call of the library's copy would cost more than the copy.
#[inline(always)]
fn copy_pixels(target: &mut [f32], source: &[f32], stride: usize) {
    if stride == 1 {
        let source = &source[..target.len()];
        if target.len() >= 8 {
            blocks::<8>(target, source);
        } else if target.len() >= 4 {
            blocks::<4>(target, source);
        } else {
            target.iter_mut().zip(source).for_each(|(value, pixel)| *value = *pixel);
        }
    } else if stride == 2 {
        let (pairs, last) = source.as_chunks::<2>();
        let pixels = pairs.iter().map(|pair| &pair[0]).chain(last);
        target.iter_mut().zip(pixels).for_each(|(value, pixel)| *value = *pixel);
    } else {
        target.iter_mut().zip(source.iter().step_by(stride)).for_each(|(value, pixel)| *value = *pixel);
    }
}

/// Copies in blocks, the last one overlapping the one before; there is at least one.
#[inline(always)]
fn blocks<const N: usize>(target: &mut [f32], source: &[f32]) {
    let (whole, _) = target.as_chunks_mut::<N>();
    whole.iter_mut().zip(source.as_chunks::<N>().0).for_each(|(target, source)| *target = *source);
    if let (Some(target), Some(source)) = (target.last_chunk_mut::<N>(), source.last_chunk::<N>()) {
        *target = *source;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(shape: &ConvShape, input: &[f32], weights: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (channels, per_group) = (shape.channels / shape.groups, shape.filters / shape.groups);
        let [height, width] = shape.input;
        let mut output = Vec::new();
        for n in 0..shape.batch {
            for f in 0..shape.filters {
                for y in 0..shape.output[0] {
                    for x in 0..shape.output[1] {
                        let mut sum = bias.map_or(0.0, |bias| bias[f]) as f64;
                        for c in 0..channels {
                            for i in 0..shape.kernel[0] {
                                for j in 0..shape.kernel[1] {
                                    let row = y * shape.strides[0] + i * shape.dilations[0];
                                    let column = x * shape.strides[1] + j * shape.dilations[1];
                                    let row = row.wrapping_sub(shape.pads[0]);
                                    let column = column.wrapping_sub(shape.pads[1]);
                                    if row < height && column < width {
                                        let plane = n * shape.channels + f / per_group * channels + c;
                                        let tap =
                                            ((f * channels + c) * shape.kernel[0] + i) * shape.kernel[1] + j;
                                        let pixel = input[(plane * height + row) * width + column];
                                        sum += f64::from(pixel) * f64::from(weights[tap]);
                                    }
                                }
                            }
                        }
                        output.push(sum as f32);
                    }
                }
            }
        }
        output
    }

    #[test]
    fn equals_the_definition() {
        let mut seed = 1u32;
        let mut random = |count: usize| -> Vec<f32> {
            let mut next = || {
                seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
            };
            (0..count).map(|_| next()).collect()
        };
        // batch, channels, input, filters, kernel, strides, dilations, pads (top, left, bottom, right), groups
        type Case = (usize, usize, [usize; 2], usize, [usize; 2], [usize; 2], [usize; 2], [usize; 4], usize);
        let cases: &[Case] = &[
            (2, 3, [9, 11], 5, [3, 3], [1, 1], [1, 1], [1, 1, 1, 1], 1),
            (3, 16, [28, 28], 24, [3, 3], [2, 2], [1, 1], [1, 1, 1, 1], 1),
            (1, 8, [14, 14], 8, [3, 3], [1, 1], [1, 1], [1, 1, 1, 1], 8),
            (2, 6, [7, 9], 12, [5, 3], [2, 1], [1, 1], [2, 0, 2, 1], 3),
            (1, 4, [10, 10], 4, [3, 3], [1, 1], [2, 3], [0, 3, 1, 3], 2),
            (1, 4, [13, 17], 4, [2, 2], [3, 3], [1, 1], [0, 0, 0, 0], 1),
            (2, 5, [6, 7], 9, [1, 1], [1, 1], [1, 1], [0, 0, 0, 0], 1),
            (1, 4, [5, 5], 4, [1, 1], [2, 2], [1, 1], [0, 0, 0, 0], 4),
            (1, 1, [1, 40], 3, [1, 7], [1, 2], [1, 1], [0, 3, 0, 3], 1),
            (1, 70, [64, 50], 33, [3, 3], [1, 1], [1, 1], [1, 1, 1, 1], 1),
            (1, 3, [3, 3], 2, [3, 3], [1, 1], [1, 1], [4, 4, 4, 4], 1),
        ];
        for &(batch, channels, input, filters, kernel, strides, dilations, pads, groups) in cases {
            let out = |axis: usize| {
                (input[axis] + pads[axis] + pads[axis + 2] - (kernel[axis] - 1) * dilations[axis] - 1)
                    / strides[axis]
                    + 1
            };
            let shape = ConvShape {
                batch,
                channels,
                input,
                filters,
                kernel,
                output: [out(0), out(1)],
                strides,
                dilations,
                pads: [pads[0], pads[1]],
                groups,
            };
            let x = random(batch * channels * input[0] * input[1]);
            let weights = random(filters * channels / groups * kernel[0] * kernel[1]);
            let bias = random(filters);
            for bias in [None, Some(&bias[..])] {
                let want = plain(&shape, &x, &weights, bias);
                let packed = PackedFilters::new(&shape, &weights);
                let mut results = Vec::new();
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut got = vec![f32::NAN; want.len()];
                    pool.install(|| convolve(&shape, &x, &packed, bias, &mut got, None));
                    let mut finished = vec![f32::NAN; want.len()];
                    let add = |start: usize, part: &mut [f32]| {
                        part.iter_mut().enumerate().for_each(|(i, value)| *value += (start + i) as f32);
                    };
                    pool.install(|| convolve(&shape, &x, &packed, bias, &mut finished, Some(&add)));
                    let sums = got.iter().enumerate().map(|(i, value)| value + i as f32);
                    assert_eq!(finished, sums.collect::<Vec<_>>(), "every element finished once: {shape:?}");
                    results.push(got);
                }
                assert_eq!(results[0], results[1], "the same whatever the threads: {shape:?}");
                for (index, (got, want)) in results[0].iter().zip(&want).enumerate() {
                    assert!((got - want).abs() < 1e-4, "{shape:?} at {index}: {got}, not {want}");
                }
            }
        }
    }
}
