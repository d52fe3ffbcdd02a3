//! BatchNormalization, LayerNormalization and InstanceNormalization on 32-bit floats
//! (onnx/docs/Operators.md).

use super::softmax::sum;
use super::{Fast, Job, KernelSpec, floats_or_decline, parallel, size};
use crate::math::simd::vectorized;

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("BatchNormalization", 7, batch),
    KernelSpec::plain("LayerNormalization", 17, layer),
    KernelSpec::plain("InstanceNormalization", 6, instance),
];

fn batch(call: &Job<'_>) -> Fast {
    let input = call.input(0)?;
    // One output: the form of inference.
    if call.node.int("training_mode").unwrap_or(0) != 0
        || call.node.int("spatial").unwrap_or(1) == 0
        || call.node.outputs().len() > 1
        || input.rank() < 2
    {
        return Ok(None);
    }
    let channels = input.shape()[1];
    let elements = floats_or_decline!(input);
    let mut parameters = Vec::with_capacity(4);
    for slot in 1..5 {
        let tensor = call.input(slot)?;
        if tensor.len() != channels {
            return Ok(None);
        }
        parameters.push(floats_or_decline!(tensor));
    }
    let epsilon = call.node.float("epsilon").unwrap_or(1e-5);
    let [scale, bias, mean, variance] = &parameters[..] else { return Ok(None) };
    let plane = size(&input.shape()[2..]);
    let mut output = call.scratch(elements.len());
    parallel::rows(&mut output, plane, 1, |row, part| {
        let channel = row % channels;
        let (factor, shift) =
            affine(scale[channel], bias[channel], mean[channel], variance[channel], epsilon);
        let source = &elements[row * plane..][..plane];
        vectorized(
            #[inline(always)]
            || part.iter_mut().zip(source).for_each(|(value, &x)| *value = x * factor + shift),
        );
    });
    call.one(input.shape().to_vec(), output)
}

/// Factor and summand that a batch normalization comes to for a channel.
pub(crate) fn affine(scale: f32, bias: f32, mean: f32, variance: f32, epsilon: f32) -> (f32, f32) {
    let factor = scale / (variance + epsilon).sqrt();
    (factor, bias - mean * factor)
}

/// Mean and 1 / standard deviation.
#[inline(always)]
fn moments(source: &[f32], scratch: &mut [f32], epsilon: f32) -> (f32, f32) {
    let mean = sum(source) / source.len() as f32;
    for (value, &x) in scratch.iter_mut().zip(source) {
        *value = (x - mean) * (x - mean);
    }
    let variance = sum(scratch) / source.len() as f32;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

fn layer(call: &Job<'_>) -> Fast {
    let (input, scale) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(call.node.int("axis").unwrap_or(-1), input.rank())?;
    let length = size(&input.shape()[axis..]);
    let bias = call.optional(2);
    if call.node.outputs().len() > 1
        || input.is_empty()
        || call.node.int("stash_type").unwrap_or(1) != 1
        || scale.len() != length
        || bias.is_some_and(|bias| bias.len() != length)
    {
        return Ok(None);
    }
    let elements = floats_or_decline!(input);
    let scale = floats_or_decline!(scale);
    let bias = match bias {
        Some(bias) => Some(floats_or_decline!(bias)),
        None => None,
    };
    let epsilon = call.node.float("epsilon").unwrap_or(1e-5);
    let mut output = call.scratch(elements.len());
    parallel::rows(&mut output, length, 4, |row, part| {
        let source = &elements[row * length..][..length];
        vectorized(
            #[inline(always)]
            || {
                let (mean, factor) = moments(source, part, epsilon);
                for ((value, &x), &scale) in part.iter_mut().zip(source).zip(scale.iter()) {
                    *value = (x - mean) * factor * scale;
                }
                if let Some(bias) = &bias {
                    part.iter_mut().zip(bias.iter()).for_each(|(value, bias)| *value += bias);
                }
            },
        );
    });
    call.one(input.shape().to_vec(), output)
}

fn instance(call: &Job<'_>) -> Fast {
    let (input, scale, bias) = (call.input(0)?, call.input(1)?, call.input(2)?);
    if input.rank() < 3 || input.is_empty() {
        return Ok(None);
    }
    let channels = input.shape()[1];
    if scale.len() != channels || bias.len() != channels {
        return Ok(None);
    }
    let plane = size(&input.shape()[2..]);
    let elements = floats_or_decline!(input);
    let (scale, bias) = (floats_or_decline!(scale), floats_or_decline!(bias));
    let epsilon = call.node.float("epsilon").unwrap_or(1e-5);
    let mut output = call.scratch(elements.len());
    parallel::rows(&mut output, plane, 4, |row, part| {
        let source = &elements[row * plane..][..plane];
        vectorized(
            #[inline(always)]
            || {
                let (mean, factor) = moments(source, part, epsilon);
                let factor = factor * scale[row % channels];
                for (value, &x) in part.iter_mut().zip(source) {
                    *value = (x - mean) * factor + bias[row % channels];
                }
            },
        );
    });
    call.one(input.shape().to_vec(), output)
}
