//! Convolution in single precision, channels first.
//!
//! A convolution is one matrix product per group: filters times input pixels, one row of `B` a filter tap.
//! Where the rows of `B` come from depends on the shape: [`shifted`] reads them as views of padded
//! pictures, [`pointwise`] has them already, and [`depthwise`] has too few filters for a product. All of them add the same numbers in the same order.

use std::cell::RefCell;

use rayon::prelude::*;

use super::gemm::{Offsets, ROWS, Rows, Start, pack_rows};
use super::threads;
use runs::Runs;

mod depthwise;
pub(crate) mod gradient;
mod pointwise;
mod runs;
mod shifted;

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

impl ConvShape {
    fn depth(&self) -> usize {
        self.channels / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Elements of a channel of an input picture.
    fn plane(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Elements of a channel of an output picture.
    fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Input places that results see along an axis, padding included.
    fn seen(&self, axis: usize) -> usize {
        (self.output[axis] - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }

    /// How a channel gets into its padded picture, which holds all that results see.
    fn padding(&self) -> Runs {
        let [height, width] = [self.seen(0), self.seen(1)];
        let rows = inside(height, self.input[0], 0, 1, self.pads[0]);
        let columns = inside(width, self.input[1], 0, 1, self.pads[1]);
        Runs {
            to: rows.first * width + columns.first,
            to_step: width,
            from: rows.from * self.input[1] + columns.from,
            from_step: self.input[1],
            rows: rows.end - rows.first,
            count: columns.end - columns.first,
            stride: 1,
        }
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

/// A convolution and what it reads.
#[derive(Clone, Copy)]
struct Convolution<'a> {
    shape: &'a ConvShape,
    /// Pictures by channels by rows by columns.
    input: &'a [f32],
    filters: &'a PackedFilters,
    /// One number a filter.
    bias: Option<&'a [f32]>,
}

impl<'a> Convolution<'a> {
    /// The filters of a group from its number `first` on.
    fn rows(&self, group: usize, first: usize) -> Rows<'a> {
        let (depth, per_group) = (self.shape.depth(), self.shape.filters / self.shape.groups);
        Rows { data: &self.filters.data[group * per_group * depth..][..per_group * depth], depth }.from(first)
    }

    /// What the sums of the filters of a group start from, from its number `first` on.
    fn start(&self, group: usize, first: usize) -> Start<'a> {
        let per_group = self.shape.filters / self.shape.groups;
        self.bias.map_or(Start::Zero, |bias| Start::PerRow(&bias[group * per_group + first..]))
    }

    /// All channels of a picture.
    fn picture(&self, image: usize) -> &'a [f32] {
        let size = self.shape.channels * self.shape.plane();
        &self.input[image * size..][..size]
    }

    /// The channels of a group of a picture.
    fn image(&self, image: usize, group: usize) -> &'a [f32] {
        let size = self.shape.channels / self.shape.groups * self.shape.plane();
        &self.picture(image)[group * size..][..size]
    }
}

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
    let pixels = shape.pixels();
    if pixels == 0 || shape.filters == 0 || shape.batch == 0 {
        return;
    }
    let convolution = Convolution { shape, input, filters, bias };
    let work = shape.batch * shape.filters * pixels * shape.depth();
    let threads = if work < threads::WORTH { 1 } else { threads::count() };
    if depthwise::fits(shape) {
        depthwise::run(&convolution, threads, output, finish);
        return;
    }
    let rows = rows_per_task(shape);
    if rows == shape.output[0] {
        // Whole pictures: each is finished in one piece.
        let size = shape.filters * pixels;
        let together = if threads == 1 { shape.batch } else { shape.batch.div_ceil(2 * threads) };
        let whole = |(number, output): (usize, &mut [f32])| {
            with_scratch(|scratch| {
                prepare(shape, 0, rows, scratch);
                for (image, output) in (number * together..).zip(output.chunks_mut(size)) {
                    let targets = output.chunks_mut(pixels).collect();
                    Task { image, first: 0, count: rows, targets }.run(&convolution, scratch, None);
                    if let Some(finish) = finish {
                        finish(image * size, output);
                    }
                }
            });
        };
        let parts = output.chunks_mut(together * size).enumerate();
        if threads == 1 {
            parts.for_each(whole);
        } else {
            parts.collect::<Vec<_>>().into_par_iter().for_each(whole);
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
    let run = |task: Task<'_>| {
        with_scratch(|scratch| {
            prepare(shape, task.first, task.count, scratch);
            task.run(&convolution, scratch, finish);
        });
    };
    if threads == 1 {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().for_each(run);
    }
}

/// Output rows of one picture that one task computes: few enough for the caches and to keep all threads
/// busy, enough to be worth a task.
fn rows_per_task(shape: &ConvShape) -> usize {
    let height = shape.output[0];
    let per_row = shape.filters * shape.output[1] * shape.depth();
    let least = (threads::WORTH / 8).div_ceil(per_row.max(1));
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

impl Task<'_> {
    /// Computes the rows and finishes them, a group at a time. The scratch is prepared for them.
    fn run(mut self, convolution: &Convolution<'_>, scratch: &mut Scratch, finish: Finish<'_>) {
        let shape = convolution.shape;
        let per_group = shape.filters / shape.groups;
        for (group, targets) in self.targets.chunks_mut(per_group).enumerate() {
            if shape.is_pointwise() {
                pointwise::run(convolution, self.image, group, self.first, scratch, targets);
            } else {
                shifted::run(convolution, self.image, group, self.count, scratch, targets);
            }
            let Some(finish) = finish else { continue };
            for (number, target) in targets.iter_mut().enumerate() {
                let filter = self.image * shape.filters + group * per_group + number;
                finish(filter * shape.pixels() + self.first * shape.output[1], target);
            }
        }
    }
}

/// Prepares the scratch for rows `first..first + count` of any picture.
fn prepare(shape: &ConvShape, first: usize, count: usize, scratch: &mut Scratch) {
    if !shape.is_pointwise() {
        shifted::prepare(shape, first, count, scratch);
    }
}

thread_local! {
    /// Kept from call to call: fresh memory costs more than what is written to it.
    static SCRATCH_OF_THREAD: RefCell<Scratch> = RefCell::default();
}

fn with_scratch<R>(body: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH_OF_THREAD.with_borrow_mut(body)
}

/// Memory that the kernels of this folder work in.
#[derive(Default)]
struct Scratch {
    padded: Vec<f32>,
    flat: Vec<f32>,
    offsets: Offsets,
    runs: Vec<Runs>,
}

/// Output channels of a product whose packed filters stay in the first-level cache or nearly.
fn filters_per_pass(depth: usize) -> usize {
    ((16 << 10) / depth.max(1)).clamp(ROWS, 3 * ROWS) / ROWS * ROWS
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
            (3, 21, [15, 9], 21, [3, 3], [2, 2], [1, 1], [1, 1, 1, 1], 21),
            (2, 17, [4, 4], 17, [5, 5], [1, 1], [1, 1], [2, 2, 2, 2], 17),
            (1, 9, [11, 40], 9, [3, 3], [1, 1], [2, 1], [2, 1, 2, 1], 9),
            (5, 7, [30, 45], 7, [3, 3], [1, 2], [1, 1], [0, 1, 1, 0], 7),
            (1, 6, [1, 50], 6, [1, 31], [1, 1], [1, 1], [0, 15, 0, 15], 6),
            (1, 3, [2, 2], 3, [3, 3], [2, 2], [1, 1], [3, 3, 3, 3], 3),
            (8, 300, [12, 12], 300, [3, 3], [1, 1], [1, 1], [1, 1, 1, 1], 300),
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
