//! Convolution in single precision, channels first.
//!
//! No im2col: a task copies the input rows it needs into a zero-padded scratch (with a stride of two or
//! more, one picture for every phase of the stride), where the input pixel of a filter tap lies at a
//! constant distance from that of its neighbour. A convolution is then one matrix product per group whose
//! `B` rows are shifted views of the scratch: filter times pixels, in the flat order of the padded rows.
//! The few sums that belong to padding columns are dropped when rows are copied out.

use rayon::prelude::*;

use super::gemm::{Columns, PADDING, Rows, Start, multiply, pack_rows};
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

/// Computes `output` (its length is `batch * filters * output pixels`) from `input`.
pub(crate) fn convolve(
    shape: &ConvShape,
    input: &[f32],
    filters: &PackedFilters,
    bias: Option<&[f32]>,
    output: &mut [f32],
) {
    let pixels = shape.output[0] * shape.output[1];
    if pixels == 0 || shape.filters == 0 || shape.batch == 0 {
        return;
    }
    let rows = rows_per_task(shape);
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
    let work = shape.batch * shape.filters * pixels * shape.depth();
    let run = |scratch: &mut Scratch, task: Task<'_>| {
        let size = shape.channels * shape.input[0] * shape.input[1];
        let image = &input[task.image * size..][..size];
        if shape.is_pointwise() {
            pointwise(shape, image, filters, bias, task, scratch);
        } else {
            shifted(shape, image, filters, bias, task, scratch);
        }
    };
    if tasks.len() == 1 || work < SPLIT || threads::count() == 1 {
        let mut scratch = Scratch::default();
        tasks.into_iter().for_each(|task| run(&mut scratch, task));
    } else {
        tasks.into_par_iter().for_each_init(Scratch::default, run);
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

#[derive(Default)]
struct Scratch {
    padded: Vec<f32>,
    flat: Vec<f32>,
    offsets: Vec<usize>,
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
) {
    let (channels, per_group) = (shape.channels / shape.groups, shape.filters / shape.groups);
    let plane = shape.input[0] * shape.input[1];
    let (begin, count) = (task.first * shape.output[1], task.count * shape.output[1]);
    // Whole vectors are read in place; the columns left over get a padded copy.
    let whole = count / PADDING * PADDING;
    let rest = count - whole;
    for group in 0..shape.groups {
        let image = &image[group * channels * plane..][..channels * plane];
        let rows = Rows {
            data: &filters.data[group * per_group * channels..][..per_group * channels],
            depth: channels,
        };
        let targets = &mut task.targets[group * per_group..][..per_group];
        let bias = bias.map(|bias| &bias[group * per_group..][..per_group]);
        if whole > 0 {
            scratch.offsets.clear();
            scratch.offsets.extend((0..channels).map(|channel| channel * plane + begin));
            let step = filters_per_pass(channels);
            for (pass, targets) in targets.chunks_mut(step).enumerate() {
                let start = bias.map_or(Start::Zero, |bias| Start::PerRow(&bias[pass * step..]));
                let columns = Columns { data: image, offsets: &scratch.offsets, count: whole };
                multiply(rows.from(pass * step), columns, start, targets);
            }
        }
        if rest > 0 {
            scratch.padded.clear();
            scratch.padded.resize(channels * PADDING, 0.0);
            for (row, channel) in scratch.padded.chunks_mut(PADDING).zip(image.chunks(plane)) {
                row[..rest].copy_from_slice(&channel[begin + whole..][..rest]);
            }
            scratch.offsets.clear();
            scratch.offsets.extend((0..channels).map(|channel| channel * PADDING));
            let columns = Columns { data: &scratch.padded, offsets: &scratch.offsets, count: rest };
            let mut tails: Vec<&mut [f32]> = targets.iter_mut().map(|target| &mut target[whole..]).collect();
            multiply(rows, columns, bias.map_or(Start::Zero, Start::PerRow), &mut tails);
        }
    }
}

fn shifted(
    shape: &ConvShape,
    image: &[f32],
    filters: &PackedFilters,
    bias: Option<&[f32]>,
    mut task: Task<'_>,
    scratch: &mut Scratch,
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
    for group in 0..shape.groups {
        // Every group writes the same places, so the zeros of the border stay from group to group.
        for channel in 0..channels {
            let source = &image[(group * channels + channel) * plane..][..plane];
            for (phase, target) in (0..phases[0] * phases[1])
                .zip(scratch.padded[channel * phases[0] * phases[1] * picture..].chunks_mut(picture))
            {
                let (a, b) = (phase / phases[1], phase % phases[1]);
                for (y, row) in target.chunks_mut(width).enumerate() {
                    let from = ((task.first + y) * stride_y + a).checked_sub(shape.pads[0]);
                    if let Some(from) = from.filter(|&from| from < shape.input[0]) {
                        let source = &source[from * shape.input[1]..][..shape.input[1]];
                        copy_row(row, source, b, stride_x, shape.pads[1]);
                    }
                }
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
            let mut flats: Vec<&mut [f32]> = scratch.flat.chunks_mut(flat).take(targets.len()).collect();
            multiply(rows.from(pass * step), columns, start, &mut flats);
            for (target, flat) in targets.iter_mut().zip(flats) {
                for (target, flat) in target.chunks_mut(out_width).zip(flat.chunks(width)) {
                    target.copy_from_slice(&flat[..out_width]);
                }
            }
        }
    }
}

/// One row of a phase's picture: `row[x]` is the padded input pixel `x * stride + phase`. Places outside
/// the input are left as they are (zero).
#[inline]
fn copy_row(row: &mut [f32], source: &[f32], phase: usize, stride: usize, pad: usize) {
    // The first x whose pixel is inside, and the end of those inside.
    let first = pad.saturating_sub(phase).div_ceil(stride);
    let end = ((source.len() + pad).saturating_sub(phase)).div_ceil(stride).min(row.len());
    if first >= end {
        return;
    }
    let from = first * stride + phase - pad;
    let row = &mut row[first..end];
    if stride == 1 {
        row.copy_from_slice(&source[from..from + row.len()]);
    } else {
        for (value, pixel) in row.iter_mut().zip(source[from..].iter().step_by(stride)) {
            *value = *pixel;
        }
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
                    pool.install(|| convolve(&shape, &x, &packed, bias, &mut got));
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
