//! Learning how to round the weights of some layers of a quantized model from what they read.

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId, Use, ValueId};
use optix_linalg::{Gram, Moments, subtract_product};
use optix_pipeline::{Batch, Cx, OracleError, PassError};
use rayon::prelude::*;

use super::descent::{Problem, Row, descend};
use super::numbered;
use super::pairs::dequantized;
use super::stored_weight::{partners, stored_weight};
use crate::unroll::{Unrolled, some};

/// Share of the mean of its diagonal that is added to a matrix of second moments: what few positions do not
/// tell apart stays near the nearest integers.
const DAMPING: f32 = 0.01;

/// Positions of a layer's output that are looked at, over all samples: some for each weight of a channel.
fn positions(depth: usize) -> usize {
    (8 * depth).clamp(8192, 32768)
}

/// A layer of the quantized model.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) node: NodeId,
    pub(super) unrolled: &'a Unrolled,
}

/// How to round its weights.
pub(super) struct Rounded {
    /// Which weights move, in the order of rows.
    pub(super) moved: Vec<bool>,
    /// Of those that move, which move up.
    pub(super) up: Vec<bool>,
    /// What rounding adds to the layer's output, by what it added before: ratio of energies.
    pub(super) error: f64,
}

/// Layers that read the same, with the sums of what they read.
struct Shared<'a> {
    layers: Vec<(usize, Wanted<'a>)>,
    /// A sum for each group.
    grams: Vec<Gram>,
    /// Whether something that was read is not finite.
    is_broken: bool,
}

impl<'a> Shared<'a> {
    /// Layers with what they have in common.
    fn among(layers: &[Wanted<'a>]) -> Vec<Shared<'a>> {
        let mut shared: Vec<Shared<'a>> = Vec::new();
        for (place, &layer) in layers.iter().enumerate() {
            let own = layer.unrolled;
            let is_same = |known: &&mut Shared<'_>| {
                let other = known.layers[0].1.unrolled;
                (other.input, &other.window, other.groups, other.depth)
                    == (own.input, &own.window, own.groups, own.depth)
            };
            match shared.iter_mut().find(is_same) {
                Some(known) => known.layers.push((place, layer)),
                None => {
                    let grams = (0..own.groups).map(|_| Gram::new(own.depth)).collect();
                    shared.push(Shared { layers: vec![(place, layer)], grams, is_broken: false });
                }
            }
        }
        shared
    }

    /// Adds a batch of inputs, at most so many of its positions.
    fn add(&mut self, elements: &[f32], shape: &[usize], most: usize) {
        let unrolled = self.layers[0].1.unrolled;
        let Some(count) = unrolled.positions(shape) else { return };
        let positions = some(count, most);
        for (group, gram) in self.grams.iter_mut().enumerate() {
            match unrolled.inputs(elements, shape, group, &positions) {
                Some(read) if read.iter().all(|x| x.is_finite()) => gram.add(&read),
                _ => self.is_broken = true,
            }
        }
    }
}

/// Second moments of a group with a share of their mean diagonal added to that.
fn damped(gram: Gram, depth: usize) -> Moments {
    let mut moments = gram.finish();
    let diagonal = (0..depth).map(|place| moments.products[place * depth + place]);
    let mean = diagonal.sum::<f32>() / depth.max(1) as f32;
    for place in 0..depth {
        moments.products[place * depth + place] += DAMPING * mean;
    }
    moments
}

/// What is added to the channels of a layer: its own bias, or the constant of an Add that alone reads a MatMul.
fn bias(model: &Model, node: NodeId) -> Vec<f32> {
    let layer = model.node(node);
    let added = match layer.is("MatMul") {
        false => layer.input(2),
        true => layer.output(0).and_then(|output| match *model.value(output).uses() {
            [Use::Node(add, slot)] if model.node(add).is("Add") => {
                model.node(add).input(1usize.checked_sub(slot as usize)?)
            }
            _ => None,
        }),
    };
    added.and_then(|added| dequantized_constant(model, added)).unwrap_or_default()
}

/// A constant in float, behind a `DequantizeLinear` or not.
fn dequantized_constant(model: &Model, value: ValueId) -> Option<Vec<f32>> {
    if let Some(held) = model.constant(value) {
        return held.to_slice::<f32>().ok().map(Vec::from);
    }
    let integers = dequantized(model, value).ok()?;
    let (scales, zeros) = (integers.scales(model), integers.zero_points(model));
    let float = |(at, integer): (usize, i64)| {
        let zero = zeros.get(at % zeros.len().max(1)).copied().unwrap_or(0);
        Some((integer - zero) as f32 * scales.get(at % scales.len().max(1))?)
    };
    model.constant(integers.value)?.to_i64s().ok()?.into_iter().enumerate().map(float).collect()
}

/// Whether the bias of a layer makes up for how its weights are rounded: `moved` is by how much that moves the
/// mean of each of its channels.
fn is_corrected(float: &Model, model: &Model, node: NodeId, moved: &[f32]) -> bool {
    let (before, now) = (bias(float, node), bias(model, node));
    let count = before.len().max(now.len());
    let at = |bias: &[f32], channel: usize| bias.get(channel).copied().unwrap_or(0.0);
    let shift: f32 = (0..count).map(|channel| (at(&now, channel) - at(&before, channel)).abs()).sum();
    // Biases are rounded too, which is much less.
    shift > 0.1 * moved.iter().map(|by| by.abs()).sum::<f32>()
}

/// Rounds the weights of a layer; `None` where it has no counterpart in the float model, or nothing moves.
fn of_layer(float: &Model, model: &Model, layer: Wanted<'_>, moments: &[Moments]) -> Option<Rounded> {
    let weight = stored_weight(model, layer.node).ok()?;
    let node = float.get_node(layer.node)?;
    let held = float.constant(node.input(1)?)?;
    if node.op_type != model.node(layer.node).op_type || held.shape() != weight.shape {
        return None;
    }
    let unrolled = layer.unrolled;
    let Unrolled { rows, depth, .. } = *unrolled;
    let wanted = held.to_slice::<f32>().ok()?;
    let off = |(at, &integer): (usize, &i32)| weight.float(at, integer) - wanted[at];
    let errors: Vec<f32> = weight.integers.iter().enumerate().map(off).collect();
    let (errors, integers) = (unrolled.by_rows(&errors), unrolled.by_rows(&weight.integers));
    let steps = unrolled.by_rows(&weight.steps);
    let partners = partners(model, layer.node, unrolled, &weight);
    // By how much rounding moves the mean of each channel. Where the bias makes up for that, it is to stay.
    let moved_mean: Vec<f32> = errors
        .chunks_exact(depth)
        .enumerate()
        .map(|(channel, errors)| moments[channel / rows].mean.iter().zip(errors).map(|(x, e)| x * e).sum())
        .collect();
    let is_corrected = is_corrected(float, model, layer.node, &moved_mean);
    // Half of the derivative of each channel's error by its weights.
    let away: Vec<f32> = errors.iter().map(|error| -error).collect();
    let mut gradients = vec![0f32; errors.len()];
    let of_groups = gradients.chunks_exact_mut(rows * depth).zip(away.chunks_exact(rows * depth));
    for ((gradients, away), Moments { products, .. }) in of_groups.zip(moments) {
        subtract_product(gradients, away, products, depth);
    }
    let of_channel = |channel: usize| {
        let Moments { products: gram, mean, positions } = &moments[channel / rows];
        let span = channel * depth..(channel + 1) * depth;
        let (errors, mut integers) = (&errors[span.clone()], integers[span.clone()].to_vec());
        let sides: Vec<i8> = errors.iter().map(|&error| if error > 0.0 { -1 } else { 1 }).collect();
        let mut gradient = gradients[span.clone()].to_vec();
        if is_corrected {
            let by = moved_mean[channel] * *positions as f32;
            gradient.iter_mut().zip(mean).for_each(|(slope, x)| *slope -= by * x);
        }
        let before: f64 = errors.iter().zip(&gradient).map(|(error, slope)| f64::from(error * slope)).sum();
        let problem = Problem { gram, depth, range: weight.range, partners: partners.as_deref() };
        let row =
            Row { integers: &mut integers, steps: &steps[span], sides: &sides, gradient: &mut gradient };
        let (moved, saved) = descend(&problem, row);
        let up: Vec<bool> =
            moved.iter().zip(&sides).filter(|(moved, _)| **moved).map(|(_, side)| *side > 0).collect();
        (moved, up, before, saved)
    };
    let all: Vec<_> = (0..unrolled.channels()).into_par_iter().map(of_channel).collect();
    let mut rounded = Rounded { moved: Vec::new(), up: Vec::new(), error: 0.0 };
    let (mut before, mut saved) = (0.0, 0.0);
    for (moved, up, of_channel, of_moves) in all {
        rounded.moved.extend(moved);
        rounded.up.extend(up);
        (before, saved) = (before + of_channel, saved + of_moves);
    }
    rounded.error = (1.0 - saved / before.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
    Some(rounded).filter(|rounded| !rounded.up.is_empty())
}

/// How to round the weights of some layers, found out in one run of the quantized model over the batches; `None`
/// for a layer where nothing moves.
///
/// # Errors
/// When the model cannot be run.
pub(super) fn round(
    float: &Model,
    model: &Model,
    layers: &[Wanted<'_>],
    batches: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<Rounded>>, PassError> {
    let mut shared = Shared::among(layers);
    let mut by_input: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (place, shared) in shared.iter().enumerate() {
        by_input.entry(shared.layers[0].1.unrolled.input).or_default().push(place);
    }
    let inputs: Vec<ValueId> = by_input.keys().copied().collect();
    let samples: usize = batches.iter().map(|batch| batch.count).sum();
    let what = ("learning how to round", samples);
    numbered::observe(
        what,
        model,
        &inputs,
        &mut batches.iter().cloned(),
        cx,
        &mut |batch, value, tensor| {
            let elements = tensor.to_slice::<f32>().map_err(|error| OracleError::Feeds(error.to_string()))?;
            for &place in &by_input[&value] {
                let depth = shared[place].layers[0].1.unrolled.depth;
                let most = (positions(depth) * batches[batch].count.max(1)).div_ceil(samples.max(1));
                shared[place].add(&elements, tensor.shape(), most);
            }
            Ok(())
        },
    )?;
    let mut found: Vec<Option<Rounded>> = layers.iter().map(|_| None).collect();
    for Shared { layers, grams, is_broken } in shared {
        let depth = layers[0].1.unrolled.depth;
        if is_broken {
            continue;
        }
        let moments: Vec<Moments> = grams.into_iter().map(|gram| damped(gram, depth)).collect();
        for (place, layer) in layers {
            found[place] = of_layer(float, model, layer, &moments);
        }
    }
    Ok(found)
}
