//! Layers that follow one another with nothing between them but operators that let a positive factor a
//! channel through.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{DType, Model, NodeId, ValueId};

use super::divide::readers;
use super::placement::float_weights;

/// Weights of a layer in double precision, and how they are laid out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Weights {
    /// The layer.
    pub(super) node: NodeId,
    /// The weights, in their own order.
    pub(super) values: Vec<f64>,
    /// Their shape.
    pub(super) shape: Vec<usize>,
    /// Bias: one a channel of the output.
    pub(super) bias: Option<Vec<f64>>,
    /// Channels of the input.
    pub(super) inputs: usize,
    /// Channels of the output.
    pub(super) outputs: usize,
    /// Whether nothing is padded.
    pub(super) unpadded: bool,
    order: Order,
}

/// Which channels a weight joins.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// `[outputs, inputs / groups, taps]`.
    OutputFirst { groups: usize },
    /// `[inputs, outputs / groups, taps]`.
    InputFirst { groups: usize },
}

impl Weights {
    fn read(model: &Model, id: NodeId) -> Result<Weights, String> {
        let node = model.node(id);
        let tensor = float_weights(model, node.input(1))?;
        let shape = tensor.shape().to_vec();
        let values = tensor.to_f64s().map_err(|error| error.to_string())?;
        if shape.len() < 2 {
            return Err("its weights have too few axes".to_owned());
        }
        let groups = usize::try_from(node.int("group").unwrap_or(1)).ok().filter(|&groups| groups > 0);
        let groups = groups.ok_or("its number of groups is not valid")?;
        let all = |size: usize| size.checked_mul(groups).ok_or("it is too large");
        let (inputs, outputs, order) = match node.op_type.as_str() {
            "Conv" => (all(shape[1])?, shape[0], Order::OutputFirst { groups }),
            "ConvTranspose" => (shape[0], all(shape[1])?, Order::InputFirst { groups }),
            _ => {
                let plain = [node.float("alpha"), node.float("beta")].iter().all(|f| f.unwrap_or(1.0) == 1.0);
                if !plain || node.int("transA").unwrap_or(0) != 0 || shape.len() != 2 {
                    return Err("it scales or transposes its operands".to_owned());
                }
                match node.int("transB").unwrap_or(0) {
                    0 => (shape[0], shape[1], Order::InputFirst { groups: 1 }),
                    _ => (shape[1], shape[0], Order::OutputFirst { groups: 1 }),
                }
            }
        };
        if !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
            return Err("its channels do not fit its groups".to_owned());
        }
        let bias = match node.input(2) {
            None => None,
            Some(bias) => {
                let tensor = model.constant(bias).filter(|bias| bias.dtype() == DType::F32);
                let tensor = tensor.ok_or("its bias is not a float constant")?;
                if tensor.shape() != [outputs] {
                    return Err("its bias is not one number a channel".to_owned());
                }
                Some(tensor.to_f64s().map_err(|error| error.to_string())?)
            }
        };
        let padded = node.ints("pads").is_some_and(|pads| pads.iter().any(|&pad| pad != 0));
        let same = node.string("auto_pad").is_some_and(|pad| pad.starts_with("SAME"));
        let unpadded = !padded && !same && !node.is("ConvTranspose");
        Ok(Weights { node: id, values, shape, bias, inputs, outputs, unpadded, order })
    }

    /// Number, input channel and output channel of every weight.
    fn places(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let taps: usize = self.shape[2..].iter().product::<usize>().max(1);
        let (second, order) = (self.shape[1].max(1), self.order);
        let (inputs, outputs) = (self.inputs, self.outputs);
        (0..self.values.len()).map(move |index| {
            let (first, inner) = (index / taps / second, index / taps % second);
            match order {
                Order::OutputFirst { groups } => (index, first / (outputs / groups) * second + inner, first),
                Order::InputFirst { groups } => (index, first, first / (inputs / groups) * second + inner),
            }
        })
    }

    /// Shows every weight with its input and output channel.
    pub(super) fn each(&self, mut look: impl FnMut(f64, usize, usize)) {
        for (index, input, output) in self.places() {
            look(self.values[index], input, output);
        }
    }

    /// Greatest magnitude of the weights of every output channel.
    pub(super) fn output_maxima(&self) -> Vec<f64> {
        let mut maxima = vec![0f64; self.outputs];
        self.each(|value, _, output| maxima[output] = maxima[output].max(value.abs()));
        maxima
    }

    /// Greatest magnitude of the weights that read every input channel.
    pub(super) fn input_maxima(&self) -> Vec<f64> {
        let mut maxima = vec![0f64; self.inputs];
        self.each(|value, input, _| maxima[input] = maxima[input].max(value.abs()));
        maxima
    }

    /// Divides what every output channel gives.
    pub(super) fn divide_outputs(&mut self, scales: &[f64]) {
        for (index, _, output) in self.places() {
            self.values[index] /= scales[output];
        }
        if let Some(bias) = &mut self.bias {
            bias.iter_mut().zip(scales).for_each(|(bias, scale)| *bias /= scale);
        }
    }

    /// Multiplies what is read of every input channel.
    pub(super) fn multiply_inputs(&mut self, scales: &[f64]) {
        for (index, input, _) in self.places() {
            self.values[index] *= scales[input];
        }
    }

    /// Whether every output channel reads one input channel of its own.
    pub(super) fn is_depthwise(&self) -> bool {
        let groups = match self.order {
            Order::OutputFirst { groups } | Order::InputFirst { groups } => groups,
        };
        groups > 1 && groups == self.inputs && groups == self.outputs
    }

    /// Whether all weights and biases are finite as 32-bit floats.
    pub(super) fn is_finite(&self) -> bool {
        self.values.iter().chain(self.bias.iter().flatten()).all(|&value| (value as f32).is_finite())
    }
}

/// A layer of a chain.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// Its weights.
    pub(super) weights: Weights,
    /// What it reads.
    pub(super) input: ValueId,
    /// What it gives, before any activation function.
    pub(super) output: ValueId,
    /// Whether one Relu and nothing else stands between it and the next.
    pub(super) rectified: bool,
}

/// Two or more layers that follow one another.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// The layers, in order.
    pub(super) layers: Vec<Link>,
}

/// The next layer behind a layer, and whether one Relu stands between; or why there is none.
fn next(model: &Model, id: NodeId) -> Result<(NodeId, bool), String> {
    let mut passed = Vec::new();
    let mut value = model.node(id).output(0).ok_or("nothing uses its output")?;
    loop {
        let name = model.value(value).name();
        let readers = readers(model, value).ok_or_else(|| format!("`{name}` is an output of the model"))?;
        // A reader of the shape would see no difference, but the engine keeps the value for it.
        let (node, slot) = match *readers {
            [one] => one,
            _ => return Err(format!("`{name}` is read {} times", readers.len())),
        };
        let held = model.node(node);
        let op = held.op_type.as_str();
        if held.graph() != model.main() || !held.domain().is_empty() || slot != 0 {
            return Err(format!("{} comes next", model.describe(node)));
        }
        match op {
            "Conv" | "ConvTranspose" | "Gemm" => return Ok((node, passed == ["Relu"])),
            "Relu" | "LeakyRelu" | "Identity" => {}
            // Its slopes are factors too, whatever their shape: they do not depend on the element.
            "PRelu" if held.input(1).is_some_and(|slope| model.constant(slope).is_some()) => {}
            _ => {
                return Err(format!(
                    "{} comes next, which lets no factor a channel through",
                    model.describe(node)
                ));
            }
        }
        passed.push(op.to_owned());
        value = held.output(0).ok_or("nothing uses its output")?;
    }
}

/// All chains of the main graph, and the layers in none, with the reason. `wanted` filters nodes: an `Err`
/// is a reason to leave one.
pub(super) fn find(
    model: &Model,
    wanted: &dyn Fn(NodeId) -> Result<(), String>,
) -> (Vec<Chain>, Vec<(NodeId, String)>) {
    let mut layers: BTreeMap<NodeId, Weights> = BTreeMap::new();
    let mut order = Vec::new();
    let mut reasons: BTreeMap<NodeId, String> = BTreeMap::new();
    for id in model.walk() {
        let node = model.node(id);
        if !["Conv", "ConvTranspose", "Gemm"].iter().any(|op| node.is(op)) {
            continue;
        }
        order.push(id);
        let shared = |slot: usize| node.input(slot).is_some_and(|value| model.value(value).uses().len() > 1);
        let read = match wanted(id) {
            Err(reason) => Err(reason),
            Ok(()) if node.graph() != model.main() => Err("it is inside a subgraph".to_owned()),
            Ok(()) if shared(1) || shared(2) => Err("it shares weights or bias with another node".to_owned()),
            Ok(()) => Weights::read(model, id),
        };
        match read {
            Ok(weights) => drop(layers.insert(id, weights)),
            Err(reason) => drop(reasons.insert(id, reason)),
        }
    }
    let mut follows: BTreeMap<NodeId, (NodeId, bool)> = BTreeMap::new();
    let mut led: BTreeSet<NodeId> = BTreeSet::new();
    for &id in &order {
        let Some(weights) = layers.get(&id) else { continue };
        let found = next(model, id).and_then(|(after, rectified)| match layers.get(&after) {
            None => Err(format!("{} comes next and is left alone", model.describe(after))),
            Some(read) if read.inputs != weights.outputs => {
                Err(format!("{} reads another number of channels", model.describe(after)))
            }
            Some(_) => Ok((after, rectified)),
        });
        match found {
            Ok((after, rectified)) => {
                follows.insert(id, (after, rectified));
                led.insert(after);
            }
            Err(reason) => drop(reasons.insert(id, reason)),
        }
    }
    let mut chains = Vec::new();
    for &start in order.iter().filter(|id| follows.contains_key(id) && !led.contains(id)) {
        let (mut links, mut at) = (Vec::new(), Some(start));
        while let Some(id) = at {
            let step = follows.get(&id).copied();
            let ends = (model.node(id).input(0), model.node(id).output(0));
            if let (Some(weights), (Some(input), Some(output))) = (layers.remove(&id), ends) {
                let rectified = step.is_some_and(|(_, rectified)| rectified);
                links.push(Link { weights, input, output, rectified });
            }
            reasons.remove(&id);
            at = step.map(|(after, _)| after);
        }
        chains.push(Chain { layers: links });
    }
    let alone = order.into_iter().filter_map(|id| Some((id, reasons.remove(&id)?))).collect();
    (chains, alone)
}
