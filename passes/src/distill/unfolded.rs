//! A model in integers as one whose weights, biases and scales are floats that can be trained.
//!
//! Weights become floats with a `QuantizeLinear` before their `DequantizeLinear`, scales are kept by their logarithms,
//! which keeps them positive and steps of them relative, and biases become the floats that they stand for.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{DType, Model, Node, NodeId, Position, Tensor, Use, ValueId};
use optix_training::optimizer::Trained;
use optix_training::{Parameter, parameters};

use super::distill::{PRUNED, is_pruned};
use crate::names::not_excluded;
use crate::quantize::{Integers, dequantized, stored_weight};

/// What a parameter is in the quantized model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Weights that this `DequantizeLinear` reads.
    Weights(NodeId),
    /// Scales of such weights.
    WeightScales(NodeId),
    /// The scale that these quantizers and dequantizers of activations have in common.
    Scale(Vec<NodeId>),
    /// A bias, which this `DequantizeLinear` reads.
    Bias(NodeId),
    /// Floats that are no weights in integers.
    Floats,
}

/// A constant that can be trained.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) kind: Kind,
    /// What it is called.
    pub(super) name: String,
    /// A layer that it belongs to.
    pub(super) layer: NodeId,
    /// Elements of the quantized model, or of the float one between the same integers.
    pub(super) start: Vec<f32>,
    /// Whether zeros stay zeros.
    keeps_zeros: bool,
}

/// A model that can be trained.
pub(super) struct Unfolded {
    pub(super) model: Model,
    pub(super) parameters: Vec<Parameter>,
    /// What each parameter is.
    pub(super) parts: Vec<Part>,
    /// Layers whose weights, or whose scales, stay as they are, and why.
    pub(super) left: Vec<(NodeId, String)>,
    /// Biases that are not trained and follow their scales all the same: the `DequantizeLinear` of each, and its floats.
    pub(super) fixed: Vec<(NodeId, Vec<f32>)>,
}

/// The same for integers of fewer than 8 bits, which round much to 0.
const PRUNED_OF_FEW_BITS: f64 = 0.4;

/// How far from the middle of its integer a float may be, in steps.
const WITHIN: f32 = 0.49;

/// Integer weights that can be trained.
struct Site {
    dequantize: NodeId,
    layer: NodeId,
    integers: Integers,
}

/// The only reader of a value.
pub(super) fn reader(model: &Model, value: ValueId) -> Option<(NodeId, usize)> {
    match *model.value(value).uses() {
        [Use::Node(node, slot)] => Some((node, slot as usize)),
        _ => None,
    }
}

/// Whether these are scales that logarithms stand for, and constants that stand by themselves: what a node `Constant` gives
/// is made one by `fold-constants`.
fn is_sound(model: &Model, integers: &Integers) -> bool {
    let stands = |value: ValueId| model.value(value).producer().is_none();
    let scales = integers.scales(model);
    stands(integers.scale)
        && integers.zero_point.is_none_or(stands)
        && !scales.is_empty()
        && scales.iter().all(|scale| scale.is_normal() && *scale > 0.0)
}

/// Whether a model has weights in integers that can be trained.
pub fn is_quantized(model: &Model) -> bool {
    model.nodes_of(model.main()).any(|layer| {
        let read = model.node(layer).input(1).and_then(|weights| model.value(weights).producer());
        let constant =
            |node: NodeId| model.node(node).input(0).is_some_and(|read| model.constant(read).is_some());
        read.is_some_and(|(node, _)| {
            model.node(node).is("DequantizeLinear") && constant(node) && site(model, node, layer).is_ok()
        })
    })
}

/// The weights of a layer behind this node.
///
/// # Errors
/// Why they cannot be trained.
fn site(model: &Model, node: NodeId, layer: NodeId) -> Result<Site, String> {
    let output = model.node(node).output(0).ok_or("nothing reads it")?;
    let integers = dequantized(model, output)?;
    let is_weight = |used: &Use| {
        let Use::Node(user, 1) = *used else { return false };
        matches!(model.node(user).op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul")
    };
    if integers.dtype.integer_range().is_none() || integers.dtype.bits() > 8 {
        return Err(format!("its weights are {}", integers.dtype));
    }
    if !model.value(output).uses().iter().all(is_weight) || reader(model, integers.value).is_none() {
        return Err("its weights are read by others too".to_owned());
    }
    if !is_sound(model, &integers) || model.value(integers.value).producer().is_some() {
        return Err(
            "its weights or their scales are no plain constants (`fold-constants`), or scales are not above 0"
                .to_owned(),
        );
    }
    Ok(Site { dequantize: node, layer, integers })
}

/// The bias of a layer behind this node: its scales are those of the layer's input times those of its weights.
fn bias(model: &Model, node: NodeId) -> Option<(NodeId, Vec<f32>)> {
    let output = model.node(node).output(0)?;
    let (layer, slot) = reader(model, output)?;
    let read = model.node(layer);
    let is_bias = slot == 2 && matches!(read.op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm");
    let integers = dequantized(model, output).ok().filter(|integers| is_bias && is_sound(model, integers))?;
    dequantized(model, read.input(0)?).ok()?.single(model)?;
    let weights = dequantized(model, read.input(1)?).ok()?;
    let scales = integers.scales(model);
    let held = model.constant(integers.value)?.to_i64s().ok()?;
    let float =
        |(at, integer): (usize, &i64)| (*integer as f64 * f64::from(scales[at % scales.len()])) as f32;
    let is_plain = model.value(integers.value).producer().is_none()
        && scales.len() == weights.scales(model).len()
        && [1, held.len()].contains(&scales.len())
        && integers.zero_points(model).iter().all(|&zero| zero == 0);
    is_plain.then(|| (layer, held.iter().enumerate().map(float).collect()))
}

/// Floats that integer weights stand for; those of the float model where they round to the same integers.
fn floats(model: &Model, float: Option<&Model>, site: &Site) -> Option<(Vec<f32>, bool)> {
    let weight = stored_weight(model, site.layer).ok()?;
    let before = float.and_then(|float| {
        let node =
            float.get_node(site.layer).filter(|node| node.op_type == model.node(site.layer).op_type)?;
        let held = float.constant(node.input(1)?)?;
        (held.shape() == weight.shape).then(|| held.to_slice::<f32>().ok().map(Vec::from))?
    });
    let stands = |at: usize| weight.float(at, weight.integers[at]);
    Some(match before {
        Some(before) => {
            let keeps_zeros = is_pruned(&before, PRUNED);
            let near = |(at, &x): (usize, &f32)| {
                let reach = WITHIN * weight.steps[at];
                if x == 0.0 && keeps_zeros { 0.0 } else { x.clamp(stands(at) - reach, stands(at) + reach) }
            };
            (before.iter().enumerate().map(near).collect(), keeps_zeros)
        }
        None => {
            let floats: Vec<f32> = (0..weight.integers.len()).map(stands).collect();
            let share = if weight.dtype.bits() < 8 { PRUNED_OF_FEW_BITS } else { PRUNED };
            let keeps_zeros = is_pruned(&floats, share);
            (floats, keeps_zeros)
        }
    })
}

impl Unfolded {
    /// A quantized model made ready; `float` is what it was before, where that is known.
    pub(super) fn of(quantized: &Model, float: Option<&Model>, exclude: &[String]) -> Unfolded {
        let mut unfolded = Unfolded {
            model: quantized.clone(),
            parameters: Vec::new(),
            parts: Vec::new(),
            left: Vec::new(),
            fixed: Vec::new(),
        };
        let nodes: Vec<NodeId> = quantized.node_list(quantized.main());
        let is = |node: NodeId, op: &str| quantized.node(node).is(op);
        let of_constant = |node: NodeId| {
            let read = quantized.node(node).input(0).filter(|_| is(node, "DequantizeLinear"))?;
            quantized.constant(read)
        };
        let user = |node: NodeId| {
            let output = quantized.node(node).output(0)?;
            match *quantized.value(output).uses().first()? {
                Use::Node(layer, _) => Some(layer),
                Use::Output(..) => None,
            }
        };
        // Layers with a bias whose scales cannot follow theirs, which keep them therefore.
        let mut bound: BTreeSet<NodeId> = BTreeSet::new();
        let mut biases: BTreeSet<ValueId> = BTreeSet::new();
        let is_wide = |node: &NodeId| of_constant(*node).is_some_and(|held| held.dtype() == DType::I32);
        for &node in nodes.iter().filter(|node| is_wide(node)) {
            let Some((layer, floats)) = bias(quantized, node) else {
                let readers = quantized.node(node).output(0).map(|output| quantized.value(output).uses());
                bound.extend(readers.into_iter().flatten().filter_map(|used| match *used {
                    Use::Node(layer, _) => Some(layer),
                    Use::Output(..) => None,
                }));
                continue;
            };
            let value = unfolded.add_bias(node, &floats);
            biases.insert(value);
            if not_excluded(quantized, layer, exclude).is_err() {
                unfolded.fixed.push((node, floats));
                continue;
            }
            let name = unfolded.model.value(value).name().to_owned();
            let part = Part { kind: Kind::Bias(node), name, layer, start: floats, keeps_zeros: false };
            unfolded.parts.push(part);
            unfolded.parameters.push(Parameter { value, node: layer, is_weight: false });
        }
        for &layer in &bound {
            unfolded.left.push((layer, "scales are not trained: its bias could not follow them".to_owned()));
        }
        for &node in &nodes {
            let is_weight = of_constant(node).is_some_and(|held| held.dtype() != DType::I32);
            let Some(layer) = user(node).filter(|_| is_weight) else { continue };
            let made = not_excluded(quantized, layer, exclude).and_then(|()| site(quantized, node, layer));
            match made {
                Ok(site) => unfolded.add_weights(quantized, float, &site, &bound),
                Err(why) => unfolded.left.push((layer, why)),
            }
        }
        if bound.is_empty() {
            unfolded.add_scales(quantized, &nodes);
        }
        for parameter in parameters(&unfolded.model) {
            let name = unfolded.model.value(parameter.value).name().to_owned();
            let held = unfolded.model.constant(parameter.value);
            let start = held.and_then(|held| held.to_slice::<f32>().ok().map(Vec::from)).unwrap_or_default();
            if !biases.contains(&parameter.value) && not_excluded(quantized, parameter.node, exclude).is_ok()
            {
                let keeps_zeros = parameter.is_weight && is_pruned(&start, PRUNED);
                let layer = parameter.node;
                unfolded.parts.push(Part { kind: Kind::Floats, name, layer, start, keeps_zeros });
                unfolded.parameters.push(parameter);
            }
        }
        unfolded
    }

    fn add_bias(&mut self, node: NodeId, floats: &[f32]) -> ValueId {
        let model = &mut self.model;
        let output = model.node(node).output(0).expect("a node that gives a bias");
        let name = format!("{}_trained", model.value(output).name());
        let shape =
            model.node(node).input(0).and_then(|integers| model.constant(integers)).map(Tensor::shape);
        let shape = shape.map_or_else(|| vec![floats.len()], <[usize]>::to_vec);
        let value = model.add_constant(model.main(), &name, Tensor::from_vec(shape, floats.to_vec()));
        model.replace_uses_where(output, value, |_, _| true);
        value
    }

    /// The logarithms of scales, as a parameter; gives the scales.
    fn add_logarithms(&mut self, scales: &[f32], shape: &[usize], before: NodeId, part: Part) -> ValueId {
        let model = &mut self.model;
        let logs: Vec<f32> = scales.iter().map(|scale| scale.ln()).collect();
        let logs = Tensor::from_vec(shape.to_vec(), logs);
        let value = model.add_constant(model.main(), &format!("{}_log", part.name), logs);
        let exp = Node::new("Exp", [value]);
        let (node, output) =
            model.add_node(model.main(), Position::Before(before), exp, &format!("{}_exp", part.name));
        self.parameters.push(Parameter { value, node, is_weight: false });
        self.parts.push(part);
        output
    }

    /// Weights that are rounded as they run; with scales that are trained unless others depend on them.
    fn add_weights(
        &mut self,
        quantized: &Model,
        float: Option<&Model>,
        site: &Site,
        bound: &BTreeSet<NodeId>,
    ) {
        let Some((floats, keeps_zeros)) = floats(quantized, float, site) else {
            self.left.push((site.layer, "its weights cannot be read".to_owned()));
            return;
        };
        let Site { dequantize, layer, ref integers } = *site;
        let main = self.model.main();
        let name = quantized.value(integers.value).name().to_owned();
        let shape = quantized.constant(integers.value).map(|held| held.shape().to_vec()).unwrap_or_default();
        let held = Tensor::from_vec(shape, floats.clone());
        let value = self.model.add_constant(main, &format!("{name}_trained"), held);
        self.parameters.push(Parameter { value, node: layer, is_weight: true });
        self.parts.push(Part {
            kind: Kind::Weights(dequantize),
            name: name.clone(),
            layer,
            start: floats,
            keeps_zeros,
        });
        let of_scales =
            quantized.constant(integers.scale).map(|held| held.shape().to_vec()).unwrap_or_default();
        let output = quantized.node(dequantize).output(0).map(|output| quantized.value(output).uses());
        let is_bound = output.into_iter().flatten().any(|used| match used {
            Use::Node(reader, _) => bound.contains(reader),
            Use::Output(..) => false,
        });
        let scale = if is_bound {
            integers.scale
        } else {
            let scales = integers.scales(quantized);
            let part = Part {
                kind: Kind::WeightScales(dequantize),
                name: format!("{name}_scales"),
                layer,
                start: scales.clone(),
                keeps_zeros: false,
            };
            self.add_logarithms(&scales, &of_scales, dequantize, part)
        };
        let zeros = integers.zero_point.unwrap_or_else(|| {
            let zeros = Tensor::zeros(integers.dtype, of_scales).expect("as many zeros as there are scales");
            self.model.add_constant(main, &format!("{name}_zeros"), zeros)
        });
        let mut node = Node::new("QuantizeLinear", [value, scale, zeros]);
        if let Some(axis) = integers.axis {
            node = node.with("axis", axis);
        }
        let (_, rounded) =
            self.model.add_node(main, Position::Before(dequantize), node, &format!("{name}_rounded"));
        self.model.set_input(dequantize, 0, Some(rounded));
        self.model.set_input(dequantize, 1, Some(scale));
    }

    /// Scales of activations: quantizers with the same scale and zero point keep one.
    fn add_scales(&mut self, quantized: &Model, nodes: &[NodeId]) {
        let single = |node: NodeId| {
            let held = quantized.node(node);
            let scale = quantized.constant(held.input(1)?).filter(|scale| scale.len() == 1)?;
            let stands = |slot: usize| {
                held.input(slot).is_none_or(|value| quantized.value(value).producer().is_none())
            };
            // No zero point is one of 0.
            let zero = match held.input(2) {
                None => 0.0,
                Some(zero) => quantized.constant(zero)?.single()?,
            };
            let scale_value = *scale.to_slice::<f32>().ok()?.first()?;
            let is_plain = held.int("block_size").unwrap_or(0) == 0;
            let is_sound = is_plain && stands(1) && stands(2) && scale_value.is_normal() && scale_value > 0.0;
            is_sound.then_some((scale_value, scale.shape().to_vec(), zero.to_bits()))
        };
        type Key = (u32, u64);
        let mut groups: BTreeMap<Key, (Vec<NodeId>, f32, Vec<usize>)> = BTreeMap::new();
        let mut order: Vec<Key> = Vec::new();
        for op in ["QuantizeLinear", "DequantizeLinear"] {
            for &node in nodes.iter().filter(|&&node| quantized.node(node).is(op)) {
                let reads = quantized.node(node).input(0);
                let is_computed = reads.is_some_and(|read| quantized.constant(read).is_none());
                let Some((scale, shape, zero)) = single(node).filter(|_| is_computed) else { continue };
                let key = (scale.to_bits(), zero);
                match groups.get_mut(&key) {
                    Some((group, ..)) => group.push(node),
                    None if op == "QuantizeLinear" => {
                        order.push(key);
                        groups.insert(key, (vec![node], scale, shape));
                    }
                    None => {}
                }
            }
        }
        for key in order {
            let Some((group, scale, shape)) = groups.remove(&key) else { continue };
            let first = group[0];
            let named = quantized.node(first).output(0).map(|output| quantized.value(output).name());
            let part = Part {
                kind: Kind::Scale(group.clone()),
                name: format!("{}_scale", named.unwrap_or_default()),
                layer: first,
                start: vec![scale],
                keeps_zeros: false,
            };
            let earliest = nodes.iter().copied().find(|node| group.contains(node)).unwrap_or(first);
            let scale = self.add_logarithms(&[scale], &shape, earliest, part);
            for node in group {
                self.model.set_input(node, 1, Some(scale));
            }
        }
    }

    /// The parameters before the first step.
    pub(super) fn trained(&self) -> Vec<Trained> {
        let of = |(parameter, part): (&Parameter, &Part)| {
            let held = self.model.constant(parameter.value);
            let elements =
                held.and_then(|held| held.to_slice::<f32>().ok().map(Vec::from)).unwrap_or_default();
            Trained::new(elements, parameter.is_weight, part.keeps_zeros)
        };
        self.parameters.iter().zip(&self.parts).map(of).collect()
    }

    /// Parameters as they were trained, scales as they are and not by their logarithms.
    pub(super) fn plain(&self, kept: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let of = |(part, kept): (&Part, Vec<f32>)| match part.kind {
            Kind::WeightScales(_) | Kind::Scale(_) => {
                // To the bit where nothing moved.
                let one = |(log, &start): (f32, &f32)| if log == start.ln() { start } else { log.exp() };
                kept.into_iter().zip(&part.start).map(one).collect()
            }
            _ => kept,
        };
        self.parts.iter().zip(kept).map(of).collect()
    }

    /// Whether it is made of the same parts as another one.
    pub(super) fn has_parts_of(&self, other: &Unfolded) -> bool {
        let of = |parts: &[Part]| -> Vec<(Kind, usize)> {
            parts.iter().map(|part| (part.kind.clone(), part.start.len())).collect()
        };
        of(&self.parts) == of(&other.parts)
    }

    /// Whether there are weights in integers to train.
    pub(super) fn has_integers(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.kind, Kind::Weights(_)))
    }

    /// Whether most weights in integers have fewer than 8 bits.
    pub(super) fn is_coarse(&self) -> bool {
        let of = |part: &Part| match part.kind {
            Kind::Weights(node) => {
                let read = self.model.node(node).input(0)?;
                let (rounding, _) = self.model.value(read).producer()?;
                let zeros = self.model.node(rounding).input(2)?;
                Some((self.model.constant(zeros)?.dtype().bits() < 8, part.start.len()))
            }
            _ => None,
        };
        let count = |coarse: bool| -> usize {
            self.parts.iter().filter_map(of).filter(|(is, _)| *is == coarse).map(|(_, count)| count).sum()
        };
        count(true) > count(false)
    }

    /// How many elements a part has.
    pub(super) fn len(&self, place: usize) -> usize {
        self.parts[place].start.len()
    }
}
