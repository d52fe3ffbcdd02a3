//! Learning how to round the weights of some layers of a quantized model from what they read.

use optix_ir::{Model, NodeId, Use, ValueId};
use optix_linalg::{Moments, subtract_product};
use optix_pipeline::{Batch, Cx, PassError};
use rayon::prelude::*;

use super::descent::{Problem, Row, descend};
use super::pairs::dequantized;
use super::stored_weight::{partners, stored_weight};
use crate::moments::{self, Read};
use crate::unroll::Unrolled;

/// Share of the mean of its diagonal that is added to a matrix of second moments: what few positions do not
/// tell apart stays near the nearest integers.
const DAMPING: f32 = 0.01;

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

/// Second moments of a group with a share of their mean diagonal added to that.
fn damped(mut moments: Moments, depth: usize) -> Moments {
    let mean = moments.diagonal().sum::<f32>() / depth.max(1) as f32;
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
    // What was pruned stays so.
    let is_zero: Vec<bool> = unrolled.by_rows(&wanted.iter().map(|&w| w == 0.0).collect::<Vec<bool>>());
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
        let side = |(&error, &is_zero): (&f32, &bool)| match (is_zero, error > 0.0) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        let sides: Vec<i8> = errors.iter().zip(&is_zero[span.clone()]).map(side).collect();
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
    let unrolled: Vec<&Unrolled> = layers.iter().map(|layer| layer.unrolled).collect();
    let mut found: Vec<Option<Rounded>> = layers.iter().map(|_| None).collect();
    for Read { layers: places, moments } in
        moments::read(model, &unrolled, batches, "learning how to round", cx)?
    {
        let Some(moments) = moments else { continue };
        let depth = unrolled[places[0]].depth;
        let moments: Vec<Moments> = moments.into_iter().map(|moments| damped(moments, depth)).collect();
        for place in places {
            found[place] = of_layer(float, model, layers[place], &moments);
        }
    }
    Ok(found)
}
