//! Where the error of a layer comes from: see [`ErrorSplit`] for what is measured.
//!
//! One model holds the float layers and, beside each, the same node with some of its inputs quantized: what
//! the quantized model says about them is copied, whatever its types are. The differences from the float
//! output are looked at as they are computed, so that one run a sample is all it takes.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, Node, NodeId, Position, Tensor, ValueId};
use optix_pipeline::{Batch, Cx, ErrorSplit, PassError};

use super::measure::Measured;
use super::quantized::constant_bytes;
use crate::{moments, numbered};

/// A source of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Weights,
    Rounding,
    Clipping,
    /// All of them, as in the quantized model.
    All,
}

/// The values of one layer that are looked at.
#[derive(Debug)]
struct Branches {
    output: ValueId,
    /// Errors at the output by source; a source may have several that are independent.
    errors: Vec<(Source, ValueId)>,
    /// Axis of channels, from the end where negative.
    axis: isize,
}

/// An activation as it passes a quantizer.
#[derive(Clone, Copy)]
struct Activation {
    /// All of it: rounded and clipped.
    quantized: ValueId,
    /// What lies in the range, rounded; the rest as it is.
    rounded: ValueId,
    /// What lies beyond the range, moved to its ends; the rest as it is. `None` for types without ends.
    clipped: Option<ValueId>,
}

/// A float model with quantized layers beside its own.
struct Builder<'a> {
    model: Model,
    float: &'a Model,
    quantized: &'a Model,
    activations: BTreeMap<ValueId, Activation>,
    weights: BTreeMap<ValueId, ValueId>,
}

/// A node like another one, with other inputs.
fn copy_of(node: &Node, inputs: Vec<Option<ValueId>>) -> Node {
    let mut copy = Node::with_optional_inputs(&node.op_type, inputs).in_domain(&node.domain);
    copy.attributes = node.attributes.clone();
    copy
}

impl Builder<'_> {
    /// Puts a node at a place of the main graph, which moves behind it.
    fn push(&mut self, at: &mut Position, node: Node) -> ValueId {
        let main = self.model.main();
        let (id, output) = self.model.add_node(main, *at, node, "error_split");
        *at = Position::After(id);
        output
    }

    fn scalar(&mut self, number: f32) -> ValueId {
        let main = self.model.main();
        self.model.add_constant(main, "error_split", Tensor::scalar(number))
    }

    /// A node of the quantized model that reads `first` and constants, as a copy here.
    fn copy_with(&mut self, id: NodeId, first: ValueId) -> Option<Node> {
        let quantized = self.quantized;
        let node = quantized.node(id);
        let mut inputs = vec![Some(first)];
        for slot in 1..node.inputs().len() {
            let constant = node.input(slot).map(|value| quantized.constant(value).cloned());
            inputs.push(match constant {
                None => None,
                Some(tensor) => {
                    let main = self.model.main();
                    Some(self.model.add_constant(main, "error_split", tensor?))
                }
            });
        }
        Some(copy_of(node, inputs))
    }

    /// The quantizer and the dequantizer that make a value of the quantized model.
    fn pair(&self, dequantized: ValueId) -> Option<[NodeId; 2]> {
        let made_by = |value: ValueId, op_type: &str| {
            let (id, _) = self.quantized.value(value).producer()?;
            self.quantized.node(id).is(op_type).then_some(id)
        };
        let dequantizer = made_by(dequantized, "DequantizeLinear")?;
        let quantizer = made_by(self.quantized.node(dequantizer).input(0)?, "QuantizeLinear")?;
        Some([quantizer, dequantizer])
    }

    /// The ends of a quantizer's range.
    fn ends(&self, quantizer: NodeId) -> Option<(f32, f32)> {
        let node = self.quantized.node(quantizer);
        let scale = self.quantized.constant(node.input(1)?)?.single()?;
        let (dtype, zero) = match node.input(2) {
            Some(zero) => {
                let zero = self.quantized.constant(zero)?;
                (zero.dtype(), zero.single()?)
            }
            None => (DType::U8, 0.0),
        };
        let (low, high) = dtype.integer_range()?;
        Some((((low as f64 - zero) * scale) as f32, ((high as f64 - zero) * scale) as f32))
    }

    /// What a quantizer of the quantized model makes of a value of the float one.
    fn activation(&mut self, dequantized: ValueId, own: ValueId) -> Option<Activation> {
        if let Some(&known) = self.activations.get(&dequantized) {
            return Some(known);
        }
        let [quantizer, dequantizer] = self.pair(dequantized)?;
        if self.quantized.node(quantizer).input(0) != Some(own) {
            return None;
        }
        let mut at = match self.model.value(own).producer() {
            Some((producer, _)) => Position::After(producer),
            None => Position::Start,
        };
        let quantized = self.through(&mut at, [quantizer, dequantizer], own)?;
        let made = match self.ends(quantizer) {
            None => Activation { quantized, rounded: quantized, clipped: None },
            Some((low, high)) => {
                let (low, high) = (self.scalar(low), self.scalar(high));
                let below = self.push(&mut at, Node::new("Min", [own, high]));
                let clipped = self.push(&mut at, Node::new("Max", [below, low]));
                // Beyond the range, rounding the clipped value changes nothing: it is an integer's.
                let error = self.push(&mut at, Node::new("Sub", [quantized, clipped]));
                let rounded = self.push(&mut at, Node::new("Add", [own, error]));
                Activation { quantized, rounded, clipped: Some(clipped) }
            }
        };
        self.activations.insert(dequantized, made);
        Some(made)
    }

    /// A value behind a copy of a pair of the quantized model.
    fn through(&mut self, at: &mut Position, pair: [NodeId; 2], value: ValueId) -> Option<ValueId> {
        let quantize = self.copy_with(pair[0], value)?;
        let integers = self.push(at, quantize);
        let dequantize = self.copy_with(pair[1], integers)?;
        Some(self.push(at, dequantize))
    }

    /// The dequantized weights of the quantized model.
    fn weights(&mut self, dequantized: ValueId) -> Option<ValueId> {
        if let Some(&known) = self.weights.get(&dequantized) {
            return Some(known);
        }
        let (id, _) = self.quantized.value(dequantized).producer()?;
        let node = self.quantized.node(id);
        let integers = node.input(0).filter(|_| node.is("DequantizeLinear"))?;
        let integers = self.quantized.constant(integers)?.clone();
        let main = self.model.main();
        let integers = self.model.add_constant(main, "error_split", integers);
        let copy = self.copy_with(id, integers)?;
        let made = self.push(&mut Position::Start, copy);
        self.weights.insert(dequantized, made);
        Some(made)
    }

    /// Puts what is looked at of one layer beside it; `None` where its quantized form is not understood.
    fn layer(&mut self, measured: &Measured) -> Option<Branches> {
        let (float, quantized) = (self.float, self.quantized);
        let node = float.node(measured.node);
        let new = quantized.get_node(measured.node)?;
        // A layer without a bias may have got one, when it was corrected.
        let is_alike = node.op_type == new.op_type && node.inputs().len() <= new.inputs().len();
        if !is_alike || node.graph() != float.main() {
            return None;
        }
        let (last, _) = float.value(measured.float).producer()?;
        // An activation that is folded into the layer's quantizer belongs to it.
        let activation = (last != measured.node).then_some(last);
        let mut inputs = node.inputs().to_vec();
        inputs.resize(new.inputs().len(), None);
        let mut variants: BTreeMap<Source, Vec<Option<ValueId>>> = BTreeMap::new();
        let is_bridge = !super::placement::is_quantizable(&node.op_type);
        for slot in 0..inputs.len() {
            let Some(other) = new.input(slot) else { continue };
            // What reads through the quantizers of a node without weights counts there.
            if node.input(slot) == Some(other) || is_bridge {
                continue;
            }
            let mut set = |source: Source, value: ValueId| {
                variants.entry(source).or_insert_with(|| inputs.clone())[slot] = Some(value);
            };
            if self.pair(other).is_some() {
                let activation = self.activation(other, node.input(slot)?)?;
                set(Source::Rounding, activation.rounded);
                if let Some(clipped) = activation.clipped {
                    set(Source::Clipping, clipped);
                }
                set(Source::All, activation.quantized);
            } else {
                let weights = self.weights(other)?;
                set(Source::Weights, weights);
                set(Source::All, weights);
            }
        }
        let output = measured.float;
        let own_pair = measured.owns_output.then(|| self.pair(measured.quantized)).flatten();
        let own = match own_pair {
            Some(pair) => Some((pair, self.activation(measured.quantized, output)?)),
            None => None,
        };
        // Behind all that is read here.
        let behind = own.and_then(|(_, own)| self.model.value(own.rounded).producer()).map(|(id, _)| id);
        let mut at = Position::After(behind.unwrap_or(last));
        let mut errors = Vec::new();
        let mut all = output;
        for (source, inputs) in variants {
            let mut value = self.push(&mut at, copy_of(node, inputs));
            if let Some(id) = activation {
                let node = float.node(id);
                let mut inputs = node.inputs().to_vec();
                *inputs.first_mut()? = Some(value);
                value = self.push(&mut at, copy_of(node, inputs));
            }
            if source == Source::All {
                all = value;
            } else {
                errors.push((source, self.push(&mut at, Node::new("Sub", [value, output]))));
            }
        }
        if let Some((pair, own)) = own {
            all = self.through(&mut at, pair, all)?;
            for (source, value) in [(Source::Rounding, Some(own.rounded)), (Source::Clipping, own.clipped)] {
                if let Some(value) = value {
                    errors.push((source, self.push(&mut at, Node::new("Sub", [value, output]))));
                }
            }
        }
        if all == output {
            return None;
        }
        errors.push((Source::All, self.push(&mut at, Node::new("Sub", [all, output]))));
        let is_convolution = node.op_type.starts_with("Conv");
        let is_image = float.value(output).ty.as_ref().and_then(|ty| ty.shape()).is_some_and(|s| s.len() > 3);
        let axis = if is_convolution || (is_bridge && is_image) { 1 } else { -1 };
        Some(Branches { output, errors, axis })
    }
}

/// Energy of errors, and their sum in every channel.
#[derive(Clone, Debug, Default)]
struct Sums {
    energy: f64,
    channels: Vec<f64>,
    /// Elements of a channel.
    each: u64,
}

impl Sums {
    fn add(&mut self, elements: &[f32], shape: &[usize], axis: isize) {
        let axis = if axis < 0 { shape.len().checked_add_signed(axis) } else { Some(axis.unsigned_abs()) };
        let axis = axis.filter(|&axis| axis < shape.len());
        let channels = axis.map_or(1, |axis| shape[axis]).max(1);
        let inner: usize = axis.map_or(elements.len(), |axis| shape[axis + 1..].iter().product()).max(1);
        if self.channels.is_empty() {
            self.channels = vec![0.0; channels];
        }
        // Samples whose number of channels differs have none in common.
        if self.channels.len() != channels {
            self.channels = vec![self.channels.iter().sum()];
            self.each = 0;
        }
        let known = self.channels.len();
        for (index, run) in elements.chunks(inner).enumerate() {
            let (mut sum, mut energy) = (0.0, 0.0);
            for &element in run {
                let element = f64::from(element);
                sum += element;
                energy += element * element;
            }
            self.channels[index % channels % known] += sum;
            self.energy += energy;
        }
        self.each += (elements.len() / channels) as u64;
    }

    /// Energy of the channels' means, without what means of so few elements have by chance: of `n` elements
    /// with variance `v` and no mean, `v` on average.
    fn of_means(&self) -> f64 {
        if self.each < 2 {
            return 0.0;
        }
        let of_means = self.channels.iter().map(|sum| sum * sum).sum::<f64>() / self.each as f64;
        let within = (self.energy - of_means).max(0.0);
        (of_means - within / (self.each - 1) as f64).max(0.0)
    }

    /// Energy of what is left when the means are taken off.
    fn of_rest(&self) -> f64 {
        (self.energy - self.of_means()).max(0.0)
    }
}

/// What was measured.
pub(super) struct Split {
    /// Of every layer in the given order; `None` where it could not be told.
    pub(super) errors: Vec<Option<ErrorSplit>>,
    /// The error of every layer by its place and the sample's, as far as there was room.
    pub(super) kept: BTreeMap<(usize, usize), Tensor>,
    /// Whether all errors of the samples to be kept are there.
    pub(super) is_complete: bool,
}

/// Bytes of weights whose layers are split in one run: an engine holds them packed, as they are and quantized.
const PART: u64 = 12 << 20;

/// Runs every layer on what it reads in the float model, with its sources of errors one by one and together.
/// Errors of the first `keep` samples are kept up to `most` bytes.
pub(super) fn split(
    float: &Model,
    quantized: &Model,
    measured: &[Measured],
    samples: &[Batch],
    keep: usize,
    most: usize,
    cx: &mut Cx<'_>,
) -> Result<Split, PassError> {
    let mut split = Split { errors: Vec::new(), kept: BTreeMap::new(), is_complete: true };
    let mut bytes = 0usize;
    let weights = |one: &Measured| {
        let read = float.node(one.node).inputs().iter().flatten();
        read.map(|&value| constant_bytes(float, value)).sum::<u64>()
    };
    for part in moments::in_parts(measured, PART, usize::MAX, &weights) {
        let mut builder = Builder {
            model: float.clone(),
            float,
            quantized,
            activations: BTreeMap::new(),
            weights: BTreeMap::new(),
        };
        let first = split.errors.len();
        let branches: Vec<Option<Branches>> = part.iter().map(|one| builder.layer(one)).collect();
        let mut wanted: BTreeMap<ValueId, (usize, Option<Source>, isize)> = BTreeMap::new();
        for (place, branches) in branches.iter().enumerate() {
            let Some(branches) = branches else { continue };
            wanted.insert(branches.output, (first + place, None, branches.axis));
            for &(source, value) in &branches.errors {
                wanted.insert(value, (first + place, Some(source), branches.axis));
            }
        }
        let mut sums: BTreeMap<ValueId, Sums> = BTreeMap::new();
        let values: Vec<ValueId> = wanted.keys().copied().collect();
        let batches = &mut samples.iter().cloned();
        let what = ("splitting errors", samples.len());
        let mut look = |sample: usize, value: ValueId, tensor: &Tensor| {
            let Some(&(place, source, axis)) = wanted.get(&value) else { return Ok(()) };
            if let (DType::F32, Ok(elements)) = (tensor.dtype(), tensor.to_slice::<f32>()) {
                sums.entry(value).or_default().add(&elements, tensor.shape(), axis);
            }
            if source == Some(Source::All) && sample < keep {
                bytes += tensor.bytes().len();
                if bytes <= most {
                    split.kept.insert((place, sample), tensor.clone());
                } else {
                    split.is_complete = false;
                }
            }
            Ok(())
        };
        if !values.is_empty() {
            numbered::observe(what, &builder.model, &values, batches, cx, &mut look)?;
        }
        let errors = branches.iter().map(|branches| of_layer(branches.as_ref()?, &sums));
        split.errors.extend(errors);
    }
    Ok(split)
}

/// The figures of a layer, where they are finite.
fn of_layer(branches: &Branches, sums: &BTreeMap<ValueId, Sums>) -> Option<ErrorSplit> {
    let signal = sums.get(&branches.output)?.energy;
    let mut error = ErrorSplit::default();
    for (source, value) in &branches.errors {
        let sums = sums.get(value)?;
        match source {
            Source::Weights => error.weight_rounding += sums.of_rest() / signal,
            Source::Rounding => error.activation_rounding += sums.of_rest() / signal,
            Source::Clipping => error.clipping += sums.of_rest() / signal,
            Source::All => {
                error.whole = sums.energy / signal;
                error.bias_shift = sums.of_means() / signal;
            }
        }
    }
    let all = error.parts().into_iter().map(|(_, part)| part).sum::<f64>() + error.whole;
    all.is_finite().then_some(error)
}

#[cfg(test)]
mod tests {
    use super::super::affine::Affine;
    use super::super::rewrite::insert_pair;
    use super::*;

    #[test]
    fn what_is_put_beside_a_layer_stands_behind_what_it_reads() {
        // A node without weights, whose own quantizer is all that there is of it; and a layer.
        let float = optix_ir::text::parse(
            r#"<ir_version: 8, opset_import: ["" : 18]>
            net (float[1, 2, 4, 4] x, float[1, 2, 4, 4] z) => (float[1, 2, 4, 4] y)
            <float[2, 2, 1, 1] w = {1, 2, 3, 4}> { s = Add (x, z) y = Conv (s, w) }"#,
        )
        .expect("the text is a model");
        let value = |name: &str| float.find_value(float.main(), name).expect("a value");
        let (x, s, w) = (value("x"), value("s"), value("w"));
        let mut quantized = float.clone();
        let pair = Affine::asymmetric(-1.0, 1.0, DType::U8);
        let mut behind = BTreeMap::new();
        for value in [x, s, w] {
            behind.insert(value, insert_pair(&mut quantized, value, &pair, DType::U8, true).expect("a pair"));
        }
        let order: Vec<NodeId> = float.walk().collect();
        let of = |node: usize, float: ValueId, quantized: ValueId| Measured {
            row: 0,
            node: order[node],
            float,
            quantized,
            owns_output: node == 0,
        };
        for own_first in [true, false] {
            let mut builder = Builder {
                model: float.clone(),
                float: &float,
                quantized: &quantized,
                activations: BTreeMap::new(),
                weights: BTreeMap::new(),
            };
            let (add, conv) = (of(0, s, behind[&s]), of(1, value("y"), value("y")));
            let measured = if own_first { [add, conv] } else { [conv, add] };
            let found = measured.map(|one| builder.layer(&one));
            assert!(found[usize::from(!own_first)].is_some(), "own_first {own_first}");
            assert_eq!(optix_ir::verify::verify(&builder.model), [], "own_first {own_first}");
        }
    }

    #[test]
    fn means_and_the_rest_are_all_of_the_energy() {
        // Two samples of two channels along axis 1: means 2 and -1.
        let mut sums = Sums::default();
        sums.add(&[1.0, 3.0, -1.0, -1.0], &[1, 2, 2], 1);
        sums.add(&[2.0, 2.0, -2.0, 0.0], &[1, 2, 2], 1);
        assert_eq!((sums.each, sums.energy), (4, 24.0));
        // 4 (4 + 1), less a third of the 4 around the means.
        assert!((sums.of_means() - (20.0 - 4.0 / 3.0)).abs() < 1e-12);
        assert!((sums.of_means() + sums.of_rest() - 24.0).abs() < 1e-12);
        // Along the last axis.
        let mut sums = Sums::default();
        sums.add(&[1.0, 0.0, 3.0, 0.0], &[2, 2], -1);
        assert_eq!((sums.of_means(), sums.of_rest()), (6.0, 4.0));
        // One element of each says nothing about means.
        let mut single = Sums::default();
        single.add(&[3.0, -4.0], &[1, 2], -1);
        assert_eq!((single.of_means(), single.of_rest()), (0.0, 25.0));
        // No axis at all, and none in common.
        sums.add(&[1.0], &[], -1);
        assert!(sums.of_rest() >= 0.0 && sums.energy == 11.0);
    }
}
