//! What graphs of gradients need beside the standard's operators (domain `ai.optix`).

use super::conv::{groups, pair};
use super::{Fast, Job, KernelSpec, Window, elementwise, floats_or_decline};
use crate::math::conv::{ConvShape, gradient};

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("ConvGradWeights", 1, conv_grad_weights),
    KernelSpec::plain("WherePositive", 1, |call| {
        elementwise::binary(call, |a, x| if x > 0.0 { a } else { 0.0 })
    }),
    KernelSpec::plain("WhereZero", 1, |call| {
        elementwise::binary(call, |a, x| if x == 0.0 { a } else { 0.0 })
    }),
];

/// Over one or two spatial axes.
fn conv_grad_weights(call: &Job<'_>) -> Fast {
    let (x, dy) = (call.input(0)?, call.input(1)?);
    let spatial = x.rank().saturating_sub(2);
    if !(1..=2).contains(&spatial) || dy.rank() != x.rank() || x.shape()[0] != dy.shape()[0] {
        return Ok(None);
    }
    let kernel: Option<Vec<usize>> = call
        .node
        .ints("kernel_shape")
        .unwrap_or_default()
        .iter()
        .map(|&size| usize::try_from(size).ok())
        .collect();
    let (Some(kernel), Some(groups)) = (kernel, groups(call.node)) else { return Ok(None) };
    let (channels, filters) = (x.shape()[1], dy.shape()[1]);
    if kernel.len() != spatial
        || kernel.contains(&0)
        || x.is_empty()
        || dy.is_empty()
        || !channels.is_multiple_of(groups)
        || !filters.is_multiple_of(groups)
    {
        return Ok(None);
    }
    let Some(window) = Window::resolve(call.node, &x.shape()[2..], &kernel) else { return Ok(None) };
    if window.output != dy.shape()[2..] {
        return Ok(None);
    }
    let shape = ConvShape {
        batch: x.shape()[0],
        channels,
        input: pair(&x.shape()[2..], 1),
        filters,
        kernel: pair(&kernel, 1),
        output: pair(&window.output, 1),
        strides: pair(&window.strides, 1),
        dilations: pair(&window.dilations, 1),
        pads: pair(&window.before, 0),
        groups,
    };
    let (input, gradients) = (floats_or_decline!(x), floats_or_decline!(dy));
    let mut result = vec![filters, channels / groups];
    result.extend(&kernel);
    let mut output = call.buffer(&result)?;
    gradient::filters(&shape, &input, &gradients, &mut output);
    call.one(result, output)
}
