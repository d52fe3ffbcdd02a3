//! Conv and ConvTranspose (onnx/docs/Operators.md).

use std::borrow::Cow;

use optix_ir::{Node, Tensor};

use super::{Fast, Job, KernelSpec, Prepared, Setup, Window, floats, floats_or_decline, parallel, size};
use crate::math::conv::{ConvShape, PackedFilters, convolve};
use crate::math::gemm::{Columns, Offsets, PADDING, Rows, Start, multiply, pack_rows};

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] =
    &[KernelSpec::prepared("Conv", 1, Conv::prepare), KernelSpec::plain("ConvTranspose", 1, transposed)];

/// Convolution over one or two spatial axes. Constant filters are packed once.
struct Conv {
    packed: Option<PackedFilters>,
}

/// Filters `[filters, channels / groups, height, width]`, whatever the number of spatial axes.
fn filter_shape(weights: &Tensor) -> Option<[usize; 4]> {
    match *weights.shape() {
        [filters, channels, width] => Some([filters, channels, 1, width]),
        [filters, channels, height, width] => Some([filters, channels, height, width]),
        _ => None,
    }
}

pub(super) fn groups(node: &Node) -> Option<usize> {
    usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&groups| groups > 0)
}

impl Conv {
    fn prepare(setup: &Setup<'_>) -> Option<Box<dyn Prepared>> {
        let packed = setup.constant(1).and_then(|weights| {
            let [filters, per_group, height, width] = filter_shape(weights)?;
            let groups = groups(setup.node)?;
            let shape = pack_shape(filters, per_group, [height, width], groups)?;
            Some(PackedFilters::new(&shape, &floats(weights)?))
        });
        Some(Box::new(Conv { packed }))
    }
}

/// A number an axis, vertical first; `missing` where there is one axis only.
pub(super) fn pair(values: &[usize], missing: usize) -> [usize; 2] {
    match *values {
        [x] => [missing, x],
        [y, x] => [y, x],
        _ => unreachable!("one or two spatial axes"),
    }
}

/// As much of a shape as packing needs.
fn pack_shape(filters: usize, per_group: usize, kernel: [usize; 2], groups: usize) -> Option<ConvShape> {
    if !filters.is_multiple_of(groups) || filters == 0 {
        return None;
    }
    Some(ConvShape {
        batch: 0,
        channels: per_group.checked_mul(groups)?,
        input: [0; 2],
        filters,
        kernel,
        output: [0; 2],
        strides: [1; 2],
        dilations: [1; 2],
        pads: [0; 2],
        groups,
    })
}

impl Prepared for Conv {
    fn run(&self, call: &Job<'_>) -> Fast {
        let (input, weights) = (call.input(0)?, call.input(1)?);
        let (Some([filters, per_group, height, width]), Some(groups)) =
            (filter_shape(weights), groups(call.node))
        else {
            return Ok(None);
        };
        let Some(mut shape) = pack_shape(filters, per_group, [height, width], groups) else {
            return Ok(None);
        };
        let spatial = weights.rank() - 2;
        // The reference kernel says what is wrong with a shape that is not the weights'.
        let declared = call.node.ints("kernel_shape").into_iter().flatten();
        if call.node.ints("kernel_shape").is_some()
            && declared
                .map(|&size| usize::try_from(size).ok())
                .ne(weights.shape()[2..].iter().copied().map(Some))
        {
            return Ok(None);
        }
        if input.rank() != weights.rank() || input.shape()[1] != shape.channels || input.is_empty() {
            return Ok(None);
        }
        let Some(window) = Window::resolve(call.node, &input.shape()[2..], &weights.shape()[2..]) else {
            return Ok(None);
        };
        shape.batch = input.shape()[0];
        shape.input = pair(&input.shape()[2..], 1);
        shape.output = pair(&window.output, 1);
        shape.strides = pair(&window.strides, 1);
        shape.dilations = pair(&window.dilations, 1);
        shape.pads = pair(&window.before, 0);
        let elements = floats_or_decline!(input);
        let bias = match call.optional(2) {
            Some(bias) if bias.len() != filters => return Ok(None),
            Some(bias) => Some(floats_or_decline!(bias)),
            None => None,
        };
        let unpacked;
        let packed = match &self.packed {
            Some(packed) => packed,
            None => {
                unpacked = PackedFilters::new(&shape, &floats_or_decline!(weights));
                &unpacked
            }
        };
        let mut result = vec![shape.batch, filters];
        result.extend_from_slice(&window.output[..spatial]);
        let mut output = call.buffer(&result)?;
        let chain = call.chain(&result);
        let finish = chain.as_ref().map(|chain| |start: usize, part: &mut [f32]| chain.apply(start, part));
        let finish = finish.as_ref().map(|finish| finish as &(dyn Fn(usize, &mut [f32]) + Sync));
        convolve(&shape, &elements, packed, bias.as_deref(), &mut output, finish);
        call.one(result, output)
    }
}

/// ConvTranspose over one or two spatial axes: a matrix product gives what every input pixel adds to every
/// tap's place, which is then added up.
fn transposed(call: &Job<'_>) -> Fast {
    let (input, weights) = (call.input(0)?, call.input(1)?);
    let (Some([channels, per_group, height, width]), Some(groups)) =
        (filter_shape(weights), groups(call.node))
    else {
        return Ok(None);
    };
    let node = call.node;
    let spatial = weights.rank() - 2;
    if input.rank() != weights.rank()
        || input.shape()[1] != channels
        || !channels.is_multiple_of(groups)
        || input.is_empty()
        || weights.is_empty()
        || node.ints("output_shape").is_some()
        || node.string("auto_pad").unwrap_or("NOTSET") != "NOTSET"
    {
        return Ok(None);
    }
    let list = |name: &str, length: usize, default: i64| -> Option<Vec<usize>> {
        match node.ints(name) {
            None => Some(vec![default as usize; length]),
            Some(values) if values.len() == length => {
                values.iter().map(|&value| usize::try_from(value).ok()).collect()
            }
            Some(_) => None,
        }
    };
    let (Some(strides), Some(dilations), Some(pads), Some(extra)) = (
        list("strides", spatial, 1),
        list("dilations", spatial, 1),
        list("pads", 2 * spatial, 0),
        list("output_padding", spatial, 0),
    ) else {
        return Ok(None);
    };
    let mut result = vec![input.shape()[0], per_group * groups];
    for axis in 0..spatial {
        let full = (input.shape()[2 + axis] - 1) * strides[axis]
            + extra[axis]
            + (weights.shape()[2 + axis] - 1) * dilations[axis]
            + 1;
        let Some(size) = full.checked_sub(pads[axis] + pads[axis + spatial]) else { return Ok(None) };
        result.push(size);
    }
    let (strides, dilations) = (pair(&strides, 1), pair(&dilations, 1));
    let pads = pair(&pads[..spatial], 0);
    let (source, target) = (pair(&input.shape()[2..], 1), pair(&result[2..], 1));
    let elements = floats_or_decline!(input);
    let weights = floats_or_decline!(weights);
    let bias: Option<Cow<'_, [f32]>> = match call.optional(2) {
        Some(bias) if bias.len() != per_group * groups => return Ok(None),
        Some(bias) => Some(floats_or_decline!(bias)),
        None => None,
    };
    let depth = channels / groups;
    let shape = Transposed {
        batch: input.shape()[0],
        groups,
        depth,
        per_group,
        kernel: [height, width],
        source,
        target,
        strides,
        dilations,
        pads,
    };
    if let Some(convolution) = shape.as_convolution() {
        let mut output = call.buffer(&result)?;
        shape.convolve(&convolution, &elements, &weights, bias.as_deref(), &mut output);
        return call.one(result, output);
    }
    let taps = per_group * height * width;
    let mut packed = Vec::new();
    for group in weights.chunks(depth * taps) {
        // Row (filter, tap), column (channel): the transposed picture of the weights.
        pack_rows(&mut packed, group, taps, depth, 1, taps);
    }
    let mut output = call.buffer(&result)?;
    let (pixels, plane) = (size(&source), size(&target));
    if plane == 0 {
        return call.one(result, output);
    }
    parallel::rows(&mut output, per_group * groups * plane, depth * height * width, |index, output| {
        let image = &elements[index * channels * pixels..][..channels * pixels];
        // The last rows need padding to be read as whole vectors.
        let stride = pixels.next_multiple_of(PADDING);
        let mut padded = call.scratch(depth * stride);
        padded.fill(0.0);
        let mut sums = call.scratch(taps * pixels);
        let offsets: Offsets = (0..depth).map(|channel| channel * stride).collect();
        for group in 0..groups {
            for (row, channel) in
                padded.chunks_mut(stride).zip(image[group * depth * pixels..].chunks(pixels))
            {
                row[..pixels].copy_from_slice(channel);
            }
            let rows = Rows { data: &packed[group * depth * taps..][..depth * taps], depth };
            let columns = Columns::new(&padded, &offsets, pixels);
            let mut targets: Vec<&mut [f32]> = sums.chunks_mut(pixels).collect();
            multiply(rows, columns, Start::Zero, &mut targets);
            for filter in 0..per_group {
                let channel = group * per_group + filter;
                let out = &mut output[channel * plane..][..plane];
                out.fill(bias.as_ref().map_or(0.0, |bias| bias[channel]));
                for tap in 0..height * width {
                    let (ky, kx) = (tap / width, tap % width);
                    let sums = &sums[(filter * height * width + tap) * pixels..][..pixels];
                    for (y, row) in sums.chunks(source[1]).enumerate() {
                        let at = (y * strides[0] + ky * dilations[0]).wrapping_sub(pads[0]);
                        if at >= target[0] {
                            continue;
                        }
                        let out = &mut out[at * target[1]..][..target[1]];
                        for (x, &sum) in row.iter().enumerate() {
                            let at = (x * strides[1] + kx * dilations[1]).wrapping_sub(pads[1]);
                            if let Some(place) = out.get_mut(at) {
                                *place += sum;
                            }
                        }
                    }
                }
            }
        }
    });
    call.one(result, output)
}

/// A transposed convolution, shapes resolved. Spatial pairs are (vertical, horizontal).
struct Transposed {
    batch: usize,
    groups: usize,
    /// Channels of a group of the input, and of the output.
    depth: usize,
    per_group: usize,
    kernel: [usize; 2],
    /// Height and width of input and output.
    source: [usize; 2],
    target: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    pads: [usize; 2],
}

impl Transposed {
    /// The convolution that does the same: with turned filters over the input, between whose elements zeros stand
    /// where there are strides. Only where few of its products are with such zeros, or where a product of matrices
    /// would be one of vectors (one channel a group).
    fn as_convolution(&self) -> Option<ConvShape> {
        if self.strides != [1, 1] && (self.depth, self.per_group) != (1, 1) {
            return None;
        }
        let reach = |axis: usize| (self.kernel[axis] - 1) * self.dilations[axis];
        let pads = [reach(0).checked_sub(self.pads[0])?, reach(1).checked_sub(self.pads[1])?];
        Some(ConvShape {
            batch: self.batch,
            channels: self.depth * self.groups,
            input: self.spread(),
            filters: self.per_group * self.groups,
            kernel: self.kernel,
            output: self.target,
            strides: [1; 2],
            dilations: self.dilations,
            pads,
            groups: self.groups,
        })
    }

    /// Height and width of the input with zeros in it.
    fn spread(&self) -> [usize; 2] {
        std::array::from_fn(|axis| (self.source[axis] - 1) * self.strides[axis] + 1)
    }

    /// `weights` of shape `[channels, per_group, height, width]`.
    fn convolve(
        &self,
        shape: &ConvShape,
        elements: &[f32],
        weights: &[f32],
        bias: Option<&[f32]>,
        output: &mut [f32],
    ) {
        let taps = self.kernel[0] * self.kernel[1];
        let mut turned = vec![0f32; weights.len()];
        for (filter, row) in turned.chunks_mut(self.depth * taps).enumerate() {
            let (group, within) = (filter / self.per_group, filter % self.per_group);
            for (channel, row) in row.chunks_mut(taps).enumerate() {
                let from = ((group * self.depth + channel) * self.per_group + within) * taps;
                row.iter_mut()
                    .zip(weights[from..from + taps].iter().rev())
                    .for_each(|(to, from)| *to = *from);
            }
        }
        let filters = PackedFilters::new(shape, &turned);
        if self.strides == [1, 1] {
            convolve(shape, elements, &filters, bias, output, None);
            return;
        }
        let ([rows, columns], [tall, wide]) = (self.source, self.spread());
        let mut spread = vec![0f32; self.batch * shape.channels * tall * wide];
        for (from, to) in elements.chunks(rows * columns).zip(spread.chunks_mut(tall * wide)) {
            for (from, to) in from.chunks(columns).zip(to.chunks_mut(wide * self.strides[0])) {
                from.iter().zip(to.iter_mut().step_by(self.strides[1])).for_each(|(from, to)| *to = *from);
            }
        }
        convolve(shape, &spread, &filters, bias, output, None);
    }
}
