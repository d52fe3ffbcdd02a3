//! Convolution without writing out all that filters see.
//!
//! The input rows of a task are copied into zero-padded pictures in which the input pixel of a filter tap lies
//! at a constant distance from that of its neighbour: the rows of `B` are shifted views of them, in the flat
//! order of their rows. There is one picture for every phase of the vertical stride and, horizontally, either
//! one for every phase of the stride, as wide as what the taps see together, or one for every column of taps,
//! no wider than the output. The first costs fewer copies, but the sums that belong to the padding columns
//! are computed and dropped; narrow outputs take the second.

use super::super::gemm::{Columns, PADDING, multiply};
use super::super::simd::{lanes, vectorized};
use super::runs::Runs;
use super::{ConvShape, Convolution, Scratch, filters_per_pass, inside};

/// The pictures of a channel.
struct Pictures {
    height: usize,
    width: usize,
    /// Pictures by axis.
    count: [usize; 2],
    /// Whether there is one for every column of taps.
    by_tap: bool,
}

/// Columns of taps times channels of a group up to which pictures by tap stay in the caches.
const CHANNELS: usize = 256;

impl Pictures {
    fn new(shape: &ConvShape, rows: usize) -> Pictures {
        let reach = [0, 1].map(|axis| (shape.kernel[axis] - 1) * shape.dilations[axis]);
        let phases = [0, 1].map(|axis| shape.strides[axis].min(reach[axis] + 1));
        let (height, width) = (rows + reach[0] / shape.strides[0], shape.output[1]);
        let padded = width + reach[1] / shape.strides[1];
        let lanes = lanes();
        let by_tap = (rows * width).div_ceil(lanes) * 10 <= ((rows - 1) * padded + width).div_ceil(lanes) * 9
            && shape.channels / shape.groups * shape.kernel[1] <= CHANNELS;
        if by_tap {
            Pictures { height, width, count: [phases[0], shape.kernel[1]], by_tap }
        } else {
            Pictures { height, width: padded, count: phases, by_tap }
        }
    }

    /// Elements of the pictures of one channel.
    fn size(&self) -> usize {
        self.count[0] * self.count[1] * self.height * self.width
    }
}

/// Finds the places that rows `first..first + count` of an output picture are computed from; what is copied
/// is the same for every channel and group.
pub(super) fn prepare(shape: &ConvShape, first: usize, count: usize, scratch: &mut Scratch) {
    let pictures = Pictures::new(shape, count);
    let [stride_y, stride_x] = shape.strides;
    let (channels, size) = (shape.channels / shape.groups, pictures.height * pictures.width);
    scratch.offsets.clear();
    for channel in 0..channels {
        for ky in 0..shape.kernel[0] {
            for kx in 0..shape.kernel[1] {
                let (y, x) = (ky * shape.dilations[0], kx * shape.dilations[1]);
                let (column, x) = if pictures.by_tap { (kx, 0) } else { (x % stride_x, x / stride_x) };
                let number = (channel * pictures.count[0] + y % stride_y) * pictures.count[1] + column;
                scratch.offsets.push(number * size + y / stride_y * pictures.width + x);
            }
        }
    }
    // Every group writes the same places, so the zeros of the border stay from group to group.
    scratch.padded.clear();
    scratch.padded.resize(channels * pictures.size() + PADDING, 0.0);
    scratch.runs.clear();
    for a in 0..pictures.count[0] {
        let rows = inside(pictures.height, shape.input[0], a + first * stride_y, stride_y, shape.pads[0]);
        for b in 0..pictures.count[1] {
            let first = if pictures.by_tap { b * shape.dilations[1] } else { b };
            let columns = inside(pictures.width, shape.input[1], first, stride_x, shape.pads[1]);
            scratch.runs.push(Runs {
                to: (a * pictures.count[1] + b) * size + rows.first * pictures.width + columns.first,
                to_step: pictures.width,
                from: rows.from * shape.input[1] + columns.from,
                from_step: stride_y * shape.input[1],
                rows: rows.end - rows.first,
                count: columns.end - columns.first,
                stride: stride_x,
            });
        }
    }
}

/// The filters of a group on the `count` rows that the scratch is prepared for; `targets` has one slice a
/// filter.
pub(super) fn run(
    convolution: &Convolution<'_>,
    image: usize,
    group: usize,
    count: usize,
    scratch: &mut Scratch,
    targets: &mut [&mut [f32]],
) {
    let shape = convolution.shape;
    let pictures = Pictures::new(shape, count);
    let (width, out_width) = (pictures.width, shape.output[1]);
    let flat = (count - 1) * width + out_width;
    let Scratch { padded, flat: sums, offsets, runs, .. } = scratch;
    let image = convolution.image(image, group);
    vectorized(
        #[inline(always)]
        || {
            for (target, source) in padded.chunks_mut(pictures.size().max(1)).zip(image.chunks(shape.plane()))
            {
                for runs in runs.iter() {
                    runs.copy(target, source);
                }
            }
        },
    );
    let out = Runs {
        to: 0,
        to_step: out_width,
        from: 0,
        from_step: width,
        rows: count,
        count: out_width,
        stride: 1,
    };
    let step = filters_per_pass(shape.depth());
    for (pass, targets) in targets.chunks_mut(step).enumerate() {
        let (rows, start) = (convolution.rows(group, pass * step), convolution.start(group, pass * step));
        let columns = Columns::new(padded, offsets, flat);
        if width == out_width {
            multiply(rows, columns, start, targets);
            continue;
        }
        sums.resize(targets.len() * flat, 0.0);
        let mut flats: Vec<&mut [f32]> = sums.chunks_mut(flat).collect();
        multiply(rows, columns, start, &mut flats);
        vectorized(
            #[inline(always)]
            || {
                for (target, sums) in targets.iter_mut().zip(sums.chunks(flat)) {
                    out.copy(target, sums);
                }
            },
        );
    }
}
