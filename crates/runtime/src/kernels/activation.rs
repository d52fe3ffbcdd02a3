//! Functions of one element: activations and elementary functions on 32-bit floats
//! (onnx/docs/Operators.md).

use super::elementwise::chained;
use super::{Fast, Job, KernelSpec, floats_or_decline, parallel};
use crate::math::simd::vectorized;
use crate::math::unary;

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("Relu", 6, |call| map(call, 1, unary::relu)),
    KernelSpec::plain("Clip", 6, clip),
    KernelSpec::plain("LeakyRelu", 6, |call| {
        let alpha = call.node.float("alpha").unwrap_or(0.01);
        map(call, 1, move |x| unary::leaky_relu(x, alpha))
    }),
    KernelSpec::plain("Sigmoid", 6, |call| map(call, 8, unary::sigmoid)),
    KernelSpec::plain("HardSigmoid", 6, |call| {
        let alpha = call.node.float("alpha").unwrap_or(0.2);
        let beta = call.node.float("beta").unwrap_or(0.5);
        map(call, 1, move |x| unary::hard_sigmoid(x, alpha, beta))
    }),
    KernelSpec::plain("HardSwish", 14, |call| map(call, 1, unary::hard_swish)),
    KernelSpec::plain("Tanh", 6, |call| map(call, 8, unary::tanh)),
    KernelSpec::plain("Erf", 9, |call| map(call, 12, unary::erf)),
    KernelSpec::plain("Gelu", 20, gelu),
    KernelSpec::plain("Exp", 6, |call| map(call, 8, unary::exp)),
    KernelSpec::plain("Elu", 6, |call| {
        let alpha = call.node.float("alpha").unwrap_or(1.0);
        // Near zero the difference would lose digits: there, e^x - 1 is tanh(x / 2) (e^x + 1).
        map(
            call,
            8,
            move |x| {
                if x < 0.0 { alpha * (unary::tanh(0.5 * x) * (unary::exp(x) + 1.0)) } else { x }
            },
        )
    }),
    KernelSpec::plain("Sqrt", 6, |call| map(call, 1, f32::sqrt)),
    KernelSpec::plain("Reciprocal", 6, |call| map(call, 1, |x| 1.0 / x)),
    KernelSpec::plain("Neg", 6, |call| map(call, 1, |x| -x)),
    KernelSpec::plain("Abs", 6, |call| map(call, 1, f32::abs)),
    KernelSpec::plain("Floor", 6, |call| map(call, 1, f32::floor)),
    KernelSpec::plain("Ceil", 6, |call| map(call, 1, f32::ceil)),
    KernelSpec::plain("Log", 6, |call| map(call, 16, f32::ln)),
];

/// Applies `function`, of about `weight` multiply-adds, to every element of the first input.
#[inline(always)]
fn map(call: &Job<'_>, weight: usize, function: impl Fn(f32) -> f32 + Copy + Send + Sync) -> Fast {
    let input = call.input(0)?;
    let elements = floats_or_decline!(input);
    let mut output = call.scratch(elements.len());
    let chain = call.chain(input.shape());
    let compute = |start: usize, part: &mut [f32]| {
        let source = &elements[start..start + part.len()];
        vectorized(
            #[inline(always)]
            || {
                // By value: what it captured must not be read anew after every store.
                for (value, &x) in part.iter_mut().zip(source) {
                    *value = function(x);
                }
            },
        );
    };
    parallel::chunks(&mut output, weight, |start, part| chained(start, part, chain.as_ref(), compute));
    call.one(input.shape().to_vec(), output)
}

fn clip(call: &Job<'_>) -> Fast {
    // Limits are attributes before version 11 and inputs since.
    let bound = |slot: usize, name: &str, default: f32| -> Option<f32> {
        if call.opset < 11 {
            return Some(call.node.float(name).unwrap_or(default));
        }
        match call.optional(slot) {
            None => Some(default),
            Some(tensor) if tensor.len() == 1 => super::floats(tensor).map(|values| values[0]),
            Some(_) => None,
        }
    };
    let (Some(low), Some(high)) = (bound(1, "min", f32::MIN), bound(2, "max", f32::MAX)) else {
        return Ok(None);
    };
    // A lower limit above the upper one means the upper one everywhere.
    map(call, 1, move |x| unary::clamp(x, low, high))
}

fn gelu(call: &Job<'_>) -> Fast {
    match call.node.string("approximate").unwrap_or("none") {
        "none" => map(call, 16, unary::gelu),
        "tanh" => map(call, 16, unary::gelu_tanh),
        _ => Ok(None),
    }
}
