//! Recurrent layers: RNN, GRU and LSTM.
//!
//! All directions, both layouts, sequences of unequal length, every activation function of the standard.
//! Parameters of activation functions are consumed, in order, by the functions that have them; where a list
//! could be read otherwise, the node is refused.

use optix_ir::{AttributeValue, DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::normalization::floats;
use crate::numbers::float_tensor;

pub(crate) static KERNELS: &[KernelSpec] =
    &[KernelSpec::onnx("RNN", 1, rnn), KernelSpec::onnx("GRU", 1, gru), KernelSpec::onnx("LSTM", 1, lstm)];

/// Whether an activation function has a parameter, and its value when none is given.
#[derive(Clone, Copy)]
enum Parameter {
    Absent,
    Default(f64),
    Needed,
}

type Function = fn(f64, f64, f64) -> f64;

/// Name, function of (x, alpha, beta), alpha, beta.
const FUNCTIONS: &[(&str, Function, Parameter, Parameter)] = {
    use Parameter::*;
    &[
        ("relu", |x, _, _| x.max(0.0), Absent, Absent),
        ("tanh", |x, _, _| x.tanh(), Absent, Absent),
        ("sigmoid", |x, _, _| sigmoid(x), Absent, Absent),
        ("affine", |x, alpha, beta| alpha * x + beta, Needed, Needed),
        ("leakyrelu", |x, alpha, _| if x >= 0.0 { x } else { alpha * x }, Default(0.01), Absent),
        ("thresholdedrelu", |x, alpha, _| if x >= alpha { x } else { 0.0 }, Default(1.0), Absent),
        ("scaledtanh", |x, alpha, beta| alpha * (beta * x).tanh(), Needed, Needed),
        (
            "hardsigmoid",
            |x, alpha, beta| (alpha * x + beta).clamp(0.0, 1.0),
            Default(0.2f32 as f64),
            Default(0.5),
        ),
        ("elu", |x, alpha, _| if x >= 0.0 { x } else { alpha * x.exp_m1() }, Default(1.0), Absent),
        ("softsign", |x, _, _| x / (1.0 + x.abs()), Absent, Absent),
        ("softplus", |x, _, _| x.max(0.0) + (-x.abs()).exp().ln_1p(), Absent, Absent),
    ]
};

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// An activation function with its parameters.
#[derive(Clone, Copy)]
struct Activation {
    function: Function,
    alpha: f64,
    beta: f64,
    clip: f64,
}

impl Activation {
    fn of(&self, x: f64) -> f64 {
        // A NaN passes.
        let x = if x > self.clip { self.clip } else { x };
        let x = if x < -self.clip { -self.clip } else { x };
        (self.function)(x, self.alpha, self.beta)
    }
}

/// The activation functions of all directions, `defaults` for each when the node names none.
fn activations(call: &Call<'_>, defaults: &[&str], directions: usize) -> Result<Vec<Activation>, OpError> {
    let names: Vec<String> = match call.node.attribute("activations") {
        Some(AttributeValue::Strings(names)) if !names.is_empty() => {
            names.iter().map(|name| String::from_utf8_lossy(name).to_lowercase()).collect()
        }
        _ => defaults.repeat(directions).iter().map(|&name| name.to_owned()).collect(),
    };
    if names.len() != defaults.len() * directions {
        let needed = defaults.len() * directions;
        return Err(call.invalid(format!("{} activation functions where {needed} are needed", names.len())));
    }
    let clip = call.node.float("clip").map_or(f64::INFINITY, f64::from);
    if clip.is_nan() || clip < 0.0 {
        return Err(call.invalid(format!("`clip` is {clip}")));
    }
    let list = |name: &str| call.node.floats(name).unwrap_or(&[]).iter().map(|&value| f64::from(value));
    let (mut alphas, mut betas) = (list("activation_alpha"), list("activation_beta"));
    let mut result = Vec::new();
    for name in &names {
        let known = FUNCTIONS.iter().find(|(known, ..)| known == name);
        let Some(&(_, function, alpha, beta)) = known else {
            return Err(call.invalid(format!("`{name}` is no activation function")));
        };
        let take = |parameter: Parameter, given: &mut dyn Iterator<Item = f64>| match parameter {
            Parameter::Absent => Ok(0.0),
            Parameter::Default(value) => Ok(given.next().unwrap_or(value)),
            Parameter::Needed => {
                given.next().ok_or_else(|| call.unsupported(format!("`{name}` without its parameters")))
            }
        };
        let (alpha, beta) = (take(alpha, &mut alphas)?, take(beta, &mut betas)?);
        result.push(Activation { function, alpha, beta, clip });
    }
    if alphas.next().is_some() || betas.next().is_some() {
        // One entry a function, or one for each that has the parameter? Engines differ.
        return Err(call.unsupported("more activation parameters than the functions have"));
    }
    Ok(result)
}

/// What the three layers share.
struct Layer<'a> {
    call: &'a Call<'a>,
    dtype: DType,
    gates: usize,
    length: usize,
    batch: usize,
    width: usize,
    hidden: usize,
    /// For each direction, whether it runs from the end.
    reversed: Vec<bool>,
    batch_first: bool,
    x: Vec<f64>,
    weights: Vec<f64>,
    recurrence: Vec<f64>,
    bias: Vec<f64>,
    lengths: Vec<usize>,
    activations: Vec<Activation>,
}

/// The input at one step, and what is remembered.
struct Step<'a> {
    direction: usize,
    x: &'a [f64],
    h: &'a mut Vec<f64>,
    c: &'a mut Vec<f64>,
}

impl<'a> Layer<'a> {
    fn new(call: &'a Call<'a>, gates: usize, defaults: &[&str]) -> Result<Layer<'a>, OpError> {
        let (x, r) = (call.input(0)?, call.input(2)?);
        let reversed = match call.node.string("direction").unwrap_or("forward") {
            "forward" => vec![false],
            "reverse" => vec![true],
            "bidirectional" => vec![false, true],
            other => return Err(call.invalid(format!("`direction` is `{other}`, which is none"))),
        };
        let batch_first = call.node.int("layout").unwrap_or(0) != 0;
        let (&[first, second, width], &[.., hidden]) = (x.shape(), r.shape()) else {
            let what = format!("input of shape {:?} with weights of {:?}", x.shape(), r.shape());
            return Err(call.invalid(what));
        };
        let (length, batch) = if batch_first { (second, first) } else { (first, second) };
        let directions = reversed.len();
        let rows = hidden.saturating_mul(gates);
        for (slot, shape) in [(1, vec![directions, rows, width]), (2, vec![directions, rows, hidden])] {
            expect(call, slot, &shape)?;
        }
        if let Some(named) = call.node.int("hidden_size")
            && usize::try_from(named).ok() != Some(hidden)
        {
            return Err(call.invalid(format!("`hidden_size` is {named}, but the weights are for {hidden}")));
        }
        call.check_size(DType::F64, &[length, directions, batch, hidden])?;
        call.check_size(DType::F64, &[directions, batch, hidden.max(1)])?;
        let bias = match call.optional(3) {
            Some(_) => {
                expect(call, 3, &[directions, rows.saturating_mul(2)])?;
                floats(call, 3)?
            }
            None => vec![0.0; directions * rows * 2],
        };
        let lengths = match call.optional(4) {
            Some(_) => {
                expect(call, 4, &[batch])?;
                let lengths = crate::movement::sizes(call, &crate::movement::integers(call, 4)?)?;
                if let Some(long) = lengths.iter().find(|&&given| given > length) {
                    return Err(call.invalid(format!("a sequence of length {long} in a batch of {length}")));
                }
                if lengths.contains(&0) {
                    return Err(call.unsupported("a sequence of length 0"));
                }
                lengths
            }
            None => vec![length; batch],
        };
        let activations = activations(call, defaults, directions)?;
        Ok(Layer {
            call,
            dtype: x.dtype(),
            gates,
            length,
            batch,
            width,
            hidden,
            reversed,
            batch_first,
            x: floats(call, 0)?,
            weights: floats(call, 1)?,
            recurrence: floats(call, 2)?,
            bias,
            lengths,
            activations,
        })
    }

    /// Initial state in input `slot`.
    fn initial(&self, slot: usize) -> Result<Option<Vec<f64>>, OpError> {
        if self.call.optional(slot).is_none() {
            return Ok(None);
        }
        let shape = if self.batch_first {
            [self.batch, self.reversed.len(), self.hidden]
        } else {
            [self.reversed.len(), self.batch, self.hidden]
        };
        expect(self.call, slot, &shape)?;
        floats(self.call, slot).map(Some)
    }

    /// Where the state of a direction and a sequence lies.
    fn state_at(&self, direction: usize, sequence: usize) -> std::ops::Range<usize> {
        let row = if self.batch_first {
            sequence * self.reversed.len() + direction
        } else {
            direction * self.batch + sequence
        };
        row * self.hidden..(row + 1) * self.hidden
    }

    fn activation(&self, direction: usize, number: usize) -> Activation {
        self.activations[self.activations.len() / self.reversed.len() * direction + number]
    }

    /// `x W^T + Wb` of one unit of one gate.
    fn input_part(&self, direction: usize, gate: usize, unit: usize, x: &[f64]) -> f64 {
        let row = (direction * self.gates + gate) * self.hidden + unit;
        let weights = &self.weights[row * self.width..(row + 1) * self.width];
        dot(weights, x) + self.bias[(direction * 2 * self.gates + gate) * self.hidden + unit]
    }

    /// `h R^T + Rb` of one unit of one gate.
    fn state_part(&self, direction: usize, gate: usize, unit: usize, h: &[f64]) -> f64 {
        let row = (direction * self.gates + gate) * self.hidden + unit;
        let weights = &self.recurrence[row * self.hidden..(row + 1) * self.hidden];
        dot(weights, h) + self.bias[((direction * 2 + 1) * self.gates + gate) * self.hidden + unit]
    }

    /// Both, for all units.
    fn gate(&self, gate: usize, step: &Step<'_>) -> Vec<f64> {
        let unit = |unit| {
            self.input_part(step.direction, gate, unit, step.x)
                + self.state_part(step.direction, gate, unit, step.h)
        };
        (0..self.hidden).map(unit).collect()
    }

    /// Runs all sequences; what follows the end of one is zero. The last output is the cell state.
    fn run(&self, cell: usize, step: impl Fn(&mut Step<'_>)) -> Result<Vec<Tensor>, OpError> {
        let directions = self.reversed.len();
        let states = directions * self.batch * self.hidden;
        let mut all = vec![0.0; self.length * states];
        let mut h_last = self.initial(5)?.unwrap_or_else(|| vec![0.0; states]);
        let mut c_last =
            if cell == 0 { None } else { self.initial(cell)? }.unwrap_or_else(|| vec![0.0; states]);
        for (direction, &reversed) in self.reversed.iter().enumerate() {
            for (sequence, &length) in self.lengths.iter().enumerate() {
                let place = self.state_at(direction, sequence);
                let (mut h, mut c) = (h_last[place.clone()].to_vec(), c_last[place.clone()].to_vec());
                for time in 0..length {
                    let time = if reversed { length - 1 - time } else { time };
                    let row = if self.batch_first {
                        sequence * self.length + time
                    } else {
                        time * self.batch + sequence
                    };
                    let x = &self.x[row * self.width..(row + 1) * self.width];
                    step(&mut Step { direction, x, h: &mut h, c: &mut c });
                    let row = if self.batch_first {
                        row * directions + direction
                    } else {
                        (time * directions + direction) * self.batch + sequence
                    };
                    all[row * self.hidden..(row + 1) * self.hidden].copy_from_slice(&h);
                }
                h_last[place.clone()].copy_from_slice(&h);
                c_last[place].copy_from_slice(&c);
            }
        }
        let (batch, hidden) = (self.batch, self.hidden);
        let (all_shape, last_shape) = if self.batch_first {
            (vec![batch, self.length, directions, hidden], vec![batch, directions, hidden])
        } else {
            (vec![self.length, directions, batch, hidden], vec![directions, batch, hidden])
        };
        let mut outputs = vec![
            float_tensor(self.call, self.dtype, all_shape, &all)?,
            float_tensor(self.call, self.dtype, last_shape.clone(), &h_last)?,
        ];
        if cell != 0 {
            outputs.push(float_tensor(self.call, self.dtype, last_shape, &c_last)?);
        }
        Ok(outputs)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Refuses an input of another shape.
pub(crate) fn expect(call: &Call<'_>, slot: usize, shape: &[usize]) -> Result<(), OpError> {
    let found = call.input(slot)?.shape();
    if found == shape {
        Ok(())
    } else {
        Err(call.invalid(format!("input {slot} has shape {found:?}, {shape:?} is needed")))
    }
}

/// `H = f(x W^T + h R^T + Wb + Rb)`.
fn rnn(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let layer = Layer::new(call, 1, &["tanh"])?;
    layer.run(0, |step| {
        let f = layer.activation(step.direction, 0);
        *step.h = layer.gate(0, step).into_iter().map(|value| f.of(value)).collect();
    })
}

/// Gates in the order update, reset, hidden.
fn gru(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let layer = Layer::new(call, 3, &["sigmoid", "tanh"])?;
    let linear_before_reset = call.node.int("linear_before_reset").unwrap_or(0) != 0;
    layer.run(0, |step| {
        let direction = step.direction;
        let (f, g) = (layer.activation(direction, 0), layer.activation(direction, 1));
        let update: Vec<f64> = layer.gate(0, step).into_iter().map(|value| f.of(value)).collect();
        let reset: Vec<f64> = layer.gate(1, step).into_iter().map(|value| f.of(value)).collect();
        let kept: Vec<f64> = reset.iter().zip(&*step.h).map(|(reset, h)| reset * h).collect();
        let candidate = |unit: usize| {
            let state = if linear_before_reset {
                reset[unit] * layer.state_part(direction, 2, unit, step.h)
            } else {
                layer.state_part(direction, 2, unit, &kept)
            };
            g.of(layer.input_part(direction, 2, unit, step.x) + state)
        };
        let next = |unit: usize| (1.0 - update[unit]) * candidate(unit) + update[unit] * step.h[unit];
        *step.h = (0..layer.hidden).map(next).collect();
    })
}

/// Gates in the order input, output, forget, cell; peepholes input, output, forget.
fn lstm(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let layer = Layer::new(call, 4, &["sigmoid", "tanh", "tanh"])?;
    let hidden = layer.hidden;
    let peepholes = match call.optional(7) {
        Some(_) => {
            expect(call, 7, &[layer.reversed.len(), 3 * hidden])?;
            floats(call, 7)?
        }
        None => vec![0.0; layer.reversed.len() * 3 * hidden],
    };
    let coupled = call.node.int("input_forget").unwrap_or(0) != 0;
    // By the standard the clip bounds the input of h as well; onnxruntime lets the cell through.
    let disputed = std::cell::Cell::new(false);
    let outputs = layer.run(6, |step| {
        let act = |number: usize| layer.activation(step.direction, number);
        let (f, g, h) = (act(0), act(1), act(2));
        let gates: Vec<Vec<f64>> = (0..4).map(|gate| layer.gate(gate, step)).collect();
        let peephole = |gate: usize, unit: usize| peepholes[(step.direction * 3 + gate) * hidden + unit];
        let memory = step.c.iter_mut().zip(step.h.iter_mut());
        for (unit, (cell, state)) in memory.enumerate() {
            let before = *cell;
            let input = f.of(gates[0][unit] + peephole(0, unit) * before);
            let forget =
                if coupled { 1.0 - input } else { f.of(gates[2][unit] + peephole(2, unit) * before) };
            *cell = forget * before + input * g.of(gates[3][unit]);
            let output = f.of(gates[1][unit] + peephole(1, unit) * *cell);
            *state = output * h.of(*cell);
            disputed.set(disputed.get() || cell.abs() > h.clip);
        }
    })?;
    if disputed.get() {
        return Err(call.unsupported("a cell beyond `clip`, on which engines differ from the standard,"));
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node) -> Result<Vec<f64>, OpError> {
        let one = |shape: &[usize], value: f32| Tensor::from_vec(shape, vec![value; shape.iter().product()]);
        let (x, w, r) = (one(&[2, 1, 1], -1.0), one(&[1, 1, 1], 2.0), one(&[1, 1, 1], 0.5));
        let out = rnn(&Call::new(node, 14, &[Some(&x), Some(&w), Some(&r)]))?;
        Ok(out[0].to_f64s().unwrap())
    }

    fn named(activation: &str) -> Node {
        let mut node = Node::new("RNN", []);
        let names = vec![activation.as_bytes().to_vec().into()];
        node.set_attribute("activations", AttributeValue::Strings(names));
        node
    }

    #[test]
    fn parameters_go_to_the_functions_that_have_them() {
        assert_eq!(run(&named("Relu")).unwrap(), [0.0, 0.0]);
        let alpha = |node: Node| node.with("activation_alpha", vec![0.5f32]);
        assert_eq!(run(&alpha(named("LeakyRelu"))).unwrap(), [-1.0, -1.25]);
        assert_eq!(run(&alpha(named("affine")).with("activation_beta", vec![1f32])).unwrap(), [0.0, 0.0]);
        // Of no known use, or missing.
        assert!(matches!(run(&alpha(named("Relu"))), Err(OpError::Unsupported { .. })));
        assert!(matches!(run(&alpha(named("Affine"))), Err(OpError::Unsupported { .. })));
        assert!(matches!(run(&named("Nonsense")), Err(OpError::Invalid { .. })));
        assert_eq!(
            run(&named("LeakyRelu").with("clip", 1f32)).unwrap(),
            run(&named("LeakyRelu").with("clip", 1f32).with("activation_alpha", vec![0.01f32])).unwrap()
        );
    }
}
