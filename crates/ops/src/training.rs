//! Steps of gradient descent: Adagrad, Adam and Momentum.
//!
//! <https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adam.html> and its neighbours

use optix_ir::Tensor;

use crate::call::{Call, KernelSpec, OpError};
use crate::numbers::{Numbers, float_tensor};

const DOMAIN: &str = "ai.onnx.preview.training";

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::of(DOMAIN, "Adagrad", 1, adagrad),
    KernelSpec::of(DOMAIN, "Adam", 1, adam),
    KernelSpec::of(DOMAIN, "Momentum", 1, momentum),
];

fn parameter(call: &Call<'_>, name: &str, default: Option<f32>) -> Result<f64, OpError> {
    let value = call.node.float(name).or(default);
    value.map(f64::from).ok_or_else(|| call.invalid(format!("`{name}` is missing")))
}

/// Learning rate and count of updates.
fn progress(call: &Call<'_>) -> Result<(f64, f64), OpError> {
    let single = |slot: usize| {
        let value = call.input(slot)?.single();
        value.ok_or_else(|| call.invalid(format!("input {slot} is not one number")))
    };
    Ok((single(0)?, single(1)?))
}

/// Updates every tensor on its own. Inputs behind the first two, and the outputs, are lists one after
/// the other: tensors, their gradients, and so on; `GIVEN` of them go in and `MADE` come out.
fn update<const GIVEN: usize, const MADE: usize>(
    call: &Call<'_>,
    step: impl Fn([f64; GIVEN]) -> [f64; MADE],
) -> Result<Vec<Tensor>, OpError> {
    let count = call.inputs.len().saturating_sub(2) / GIVEN;
    if count == 0 || call.inputs.len() != 2 + count * GIVEN {
        return Err(call.invalid(format!("{} inputs are not {GIVEN} for each tensor", call.inputs.len())));
    }
    let mut made: [Vec<Tensor>; MADE] = [const { Vec::new() }; MADE];
    for index in 0..count {
        let x = call.input(2 + index)?;
        let mut given: [Vec<f64>; GIVEN] = [const { Vec::new() }; GIVEN];
        for (list, values) in given.iter_mut().enumerate() {
            let slot = 2 + list * count + index;
            let tensor = call.input(slot)?;
            if (tensor.dtype(), tensor.shape()) != (x.dtype(), x.shape()) {
                return Err(call.invalid(format!("input {slot} is not of the form of its tensor")));
            }
            let Numbers::Floats(floats) = Numbers::of(call, tensor)? else {
                return Err(call.wrong_type(slot, tensor.dtype()));
            };
            *values = floats;
        }
        let mut results: [Vec<f64>; MADE] = [const { Vec::new() }; MADE];
        for values in (0..x.len()).map(|at| step(given.each_ref().map(|list| list[at]))) {
            for (result, value) in results.iter_mut().zip(values) {
                result.push(value);
            }
        }
        for (list, values) in made.iter_mut().zip(results) {
            list.push(float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?);
        }
    }
    Ok(made.into_iter().flatten().collect())
}

fn adagrad(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (rate, count) = progress(call)?;
    let rate = rate / (1.0 + count * parameter(call, "decay_factor", Some(0.0))?);
    let epsilon = parameter(call, "epsilon", Some(1e-6))?;
    let norm = parameter(call, "norm_coefficient", Some(0.0))?;
    update(call, |[x, gradient, squares]| {
        let gradient = norm * x + gradient;
        let squares = squares + gradient * gradient;
        [x - rate * gradient / (squares.sqrt() + epsilon), squares]
    })
}

fn adam(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (rate, count) = progress(call)?;
    let (alpha, beta) = (parameter(call, "alpha", Some(0.9))?, parameter(call, "beta", Some(0.999))?);
    let epsilon = parameter(call, "epsilon", Some(1e-6))?;
    let norm = parameter(call, "norm_coefficient", Some(0.0))?;
    let norm_after = parameter(call, "norm_coefficient_post", Some(0.0))?;
    // The first means are too small by what they started from.
    let corrected = rate * (1.0 - beta.powf(count)).sqrt() / (1.0 - alpha.powf(count));
    let rate = if count > 0.0 { corrected } else { rate };
    update(call, |[x, gradient, mean, square]| {
        let gradient = norm * x + gradient;
        let mean = alpha * mean + (1.0 - alpha) * gradient;
        let square = beta * square + (1.0 - beta) * gradient * gradient;
        [(1.0 - norm_after) * (x - rate * mean / (square.sqrt() + epsilon)), mean, square]
    })
}

fn momentum(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (rate, count) = progress(call)?;
    let (alpha, beta) = (parameter(call, "alpha", None)?, parameter(call, "beta", None)?);
    let norm = parameter(call, "norm_coefficient", None)?;
    let nesterov = match call.node.string("mode") {
        Some("standard") => false,
        Some("nesterov") => true,
        other => return Err(call.invalid(format!("there is no mode {other:?}"))),
    };
    // The first gradient counts in full.
    let beta = if count > 0.0 { beta } else { 1.0 };
    update(call, |[x, gradient, velocity]| {
        let gradient = norm * x + gradient;
        let velocity = alpha * velocity + beta * gradient;
        let step = if nesterov { gradient + alpha * velocity } else { velocity };
        [x - rate * step, velocity]
    })
}
