//! Convolutions and pools in burn's primitives, over one to three spatial axes.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions, FloatTensorOps, ModuleOps};
use optix_ir::Node;

use super::layout::{padded, whole};
use super::{B, DeviceCall, DeviceTensor, reshape};
use crate::kernels::Window;

fn take<const N: usize>(values: &[usize]) -> Option<[usize; N]> {
    values.try_into().ok()
}

fn groups(node: &Node) -> Option<usize> {
    usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&groups| groups > 0)
}

/// Zeros around the spatial axes of a tensor.
fn around(
    call: &DeviceCall<'_>,
    x: DeviceTensor,
    before: &[usize],
    after: &[usize],
    value: f32,
) -> DeviceTensor {
    let all = |pads: &[usize]| [&[0, 0][..], pads].concat();
    padded(call, x, &all(before), &all(after), value)
}

pub(crate) fn conv(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (input, weights) = (call.shape(0)?, call.shape(1)?);
    let groups = groups(call.node)?;
    let window = Window::resolve(call.node, input.get(2..)?, weights.get(2..)?)?;
    if input.len() != weights.len()
        || input[1] != weights[1] * groups
        || weights[0] % groups != 0
        || call.node.ints("kernel_shape").is_some_and(|kernel| {
            kernel
                .iter()
                .map(|&size| usize::try_from(size).ok())
                .ne(window.kernel.iter().map(|&size| Some(size)))
        })
    {
        return None;
    }
    let bias = if call.has(2) { Some(call.tensor(2)?) } else { None };
    let (mut x, w) = (call.tensor(0)?, call.tensor(1)?);
    let mut pads = window.before.clone();
    // The primitives pad both sides alike.
    if window.before != window.after {
        x = around(call, x, &window.before, &window.after, 0.0);
        pads.fill(0);
    }
    macro_rules! convolve {
        ($function:expr) => {{
            let (strides, pads, dilations) = (take(&window.strides)?, take(&pads)?, take(&window.dilations)?);
            Some($function(x, w, bias, ConvOptions::new(strides, pads, dilations, groups)))
        }};
    }
    match window.kernel.len() {
        1 => convolve!(B::conv1d),
        2 => convolve!(B::conv2d),
        3 => convolve!(B::conv3d),
        _ => None,
    }
}

pub(crate) fn conv_transpose(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (input, weights) = (call.shape(0)?, call.shape(1)?);
    let (node, groups) = (call.node, groups(call.node)?);
    let spatial = input.len().checked_sub(2).filter(|&spatial| spatial > 0)?;
    if weights.len() != input.len()
        || input[1] != weights[0]
        || weights[0] % groups != 0
        || node.string("auto_pad").unwrap_or("NOTSET") != "NOTSET"
        || node.ints("output_shape").is_some()
    {
        return None;
    }
    let list = |name: &str, missing: usize, count: usize| -> Option<Vec<usize>> {
        match node.ints(name) {
            None => Some(vec![missing; count]),
            Some(values) if values.len() == count => {
                values.iter().map(|&value| usize::try_from(value).ok()).collect()
            }
            Some(_) => None,
        }
    };
    let (strides, dilations) = (list("strides", 1, spatial)?, list("dilations", 1, spatial)?);
    let (pads, extra) = (list("pads", 0, 2 * spatial)?, list("output_padding", 0, spatial)?);
    let before = &pads[..spatial];
    // Output padding must be less than the stride or the dilation for the primitives to be defined.
    let plain = before == &pads[spatial..]
        && strides.iter().chain(&dilations).all(|&step| step > 0)
        && (0..spatial).all(|axis| {
            let reach = dilations[axis] * (weights[axis + 2].max(1) - 1);
            before[axis] <= reach && (extra[axis] == 0 || extra[axis] < strides[axis].max(dilations[axis]))
        });
    if !plain {
        return None;
    }
    let bias = if call.has(2) { Some(call.tensor(2)?) } else { None };
    let (x, mut w) = (call.tensor(0)?, call.tensor(1)?);
    // Kernels shorter than a step give zeros on wgpu and cuda (burn-cubecl 0.21 counts the inputs of an output as reach less
    // step): they are made as long with zeros behind, and what that adds to the output is not padded or is cut off.
    let longer: Vec<usize> = (0..spatial)
        .map(|axis| strides[axis].div_ceil(dilations[axis]).saturating_sub(weights[axis + 2]))
        .collect();
    let grown: Vec<usize> = longer.iter().zip(&dilations).map(|(more, step)| more * step).collect();
    let cut: Vec<usize> =
        grown.iter().zip(&extra).map(|(grown, extra)| grown.saturating_sub(*extra)).collect();
    let extra: Vec<usize> =
        grown.iter().zip(&extra).map(|(grown, extra)| extra.saturating_sub(*grown)).collect();
    if longer.iter().any(|&more| more > 0) {
        w = around(call, w, &vec![0; spatial], &longer, 0.0);
    }
    macro_rules! convolve {
        ($function:expr) => {{
            let options = ConvTransposeOptions::new(
                take(&strides)?,
                take(before)?,
                take(&extra)?,
                take(&dilations)?,
                groups,
            );
            Some($function(x, w, bias, options))
        }};
    }
    let given = match spatial {
        1 => convolve!(B::conv_transpose1d),
        2 => convolve!(B::conv_transpose2d),
        3 => convolve!(B::conv_transpose3d),
        _ => None,
    }?;
    if cut.iter().all(|&cut| cut == 0) {
        return Some(given);
    }
    let mut kept = whole(&given.shape().to_vec());
    for (axis, cut) in cut.iter().enumerate() {
        kept[axis + 2].end = Some(isize::try_from(given.shape()[axis + 2].checked_sub(*cut)?).ok()?);
    }
    Some(B::float_slice(given, &kept))
}

/// `MaxPool` and `AveragePool` over one or two axes.
pub(crate) fn pool(call: &DeviceCall<'_>, greatest: bool) -> Option<DeviceTensor> {
    let input = call.shape(0)?;
    let kernel: Option<Vec<usize>> =
        call.node.ints("kernel_shape")?.iter().map(|&size| usize::try_from(size).ok()).collect();
    let kernel = kernel.filter(|kernel| matches!(kernel.len(), 1 | 2) && input.len() == kernel.len() + 2)?;
    let window = Window::resolve(call.node, &input[2..], &kernel)?;
    let fits = |before: &[usize]| before.iter().zip(&kernel).all(|(&pad, &size)| 2 * pad <= size);
    if call.node.int("ceil_mode").unwrap_or(0) != 0 || call.node.outputs().len() > 1 {
        return None;
    }
    let count_pads = call.node.int("count_include_pad").unwrap_or(0) != 0;
    let mut x = call.tensor(0)?;
    let mut pads = window.before.clone();
    if window.before != window.after || !fits(&window.before) {
        if !greatest && !count_pads {
            return None;
        }
        x = around(call, x, &window.before, &window.after, if greatest { f32::MIN } else { 0.0 });
        pads.fill(0);
    }
    // One axis is two, the first of length 1.
    let pair = |values: &[usize], missing: usize| match *values {
        [value] => [missing, value],
        [first, second] => [first, second],
        _ => [missing; 2],
    };
    if kernel.len() == 1 {
        let shape = x.shape().to_vec();
        x = reshape(x, vec![shape[0], shape[1], 1, shape[2]]);
    }
    let (size, strides, pads) = (pair(&kernel, 1), pair(&window.strides, 1), pair(&pads, 0));
    let pooled = match greatest {
        true => B::max_pool2d(x, size, strides, pads, pair(&window.dilations, 1), false),
        false if window.dilations.iter().all(|&step| step == 1) => {
            B::avg_pool2d(x, size, strides, pads, count_pads, false)
        }
        false => return None,
    };
    let mut shape = input[..2].to_vec();
    shape.extend_from_slice(&window.output);
    Some(reshape(pooled, shape))
}
