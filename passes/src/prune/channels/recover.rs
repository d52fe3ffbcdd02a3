//! Gives the layers of a smaller model weights with which they come as near as they can to what they gave before.
//!
//! Least squares, layer by layer: what a layer now reads, on calibration data, against what it gave in the original
//! model (He et al. 2017, "Channel pruning for accelerating very deep neural networks"). Layers are treated in
//! parts, each on what the layers before it, with their new weights, pass on.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, Tensor, Use, ValueId};
use optix_linalg::{Gram, add_products, damped_inverse};
use optix_pipeline::{Batch, Cx, OracleError, PassError};

use crate::unroll::{Unrolled, Window, some};
use crate::{moments, numbered};

/// Share of the mean variance of what a layer reads by which weights are held where they are.
const DAMPING: f64 = 0.01;

/// Parts that layers are treated in at most.
const PARTS: usize = 24;

/// A layer of the smaller model.
pub(in crate::prune) struct Layer {
    pub(in crate::prune) node: NodeId,
    /// As it is in the smaller model.
    pub(super) unrolled: Unrolled,
    /// Its channels among those of the original.
    pub(super) channels: Vec<usize>,
    /// Where a number for each channel can be added.
    pub(super) bias: Option<Bias>,
}

impl Layer {
    /// Its numbers of what is added, where it has a place for them.
    pub(in crate::prune) fn with_place_for_shift(&self, found: &Found) -> Found {
        let shift = if self.bias.is_some() { found.shift.clone() } else { Vec::new() };
        Found { weights: found.weights.clone(), shift }
    }

    /// Whether these are numbers for it.
    pub(in crate::prune) fn fits(&self, found: &Found) -> bool {
        let Unrolled { groups, rows, depth, .. } = self.unrolled;
        let channels = if self.bias.is_some() { groups * rows } else { 0 };
        found.weights.len() == groups * rows * depth && found.shift.len() == channels
    }
}

/// A constant with a number for each channel of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    /// The layer's own, which may be missing: it is part of what the layer gives.
    Own,
    /// Of an `Add` that alone reads the layer.
    Behind(NodeId, usize),
}

/// New numbers of a layer.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::prune) struct Found {
    /// In the order of rows.
    pub(in crate::prune) weights: Vec<f32>,
    /// Added to what each channel's bias is; empty where there is none.
    pub(in crate::prune) shift: Vec<f32>,
}

fn bias(model: &Model, node: NodeId, channels: usize) -> Option<Bias> {
    let layer = model.node(node);
    let fits = |value: ValueId, is_row: &dyn Fn(&[usize]) -> bool| {
        let is_alone = model.value(value).uses().len() == 1 && model.value(value).producer().is_none();
        model
            .constant(value)
            .is_some_and(|held| held.dtype() == DType::F32 && is_alone && is_row(held.shape()))
    };
    if !layer.is("MatMul") {
        return layer
            .input(2)
            .is_none_or(|value| fits(value, &|shape| shape == [channels]))
            .then_some(Bias::Own);
    }
    let [Use::Node(add, slot)] = *model.value(layer.output(0)?).uses() else { return None };
    let other = 1usize.checked_sub(slot as usize).filter(|_| model.node(add).is("Add"))?;
    let is_row =
        |shape: &[usize]| shape.last() == Some(&channels) && shape.iter().product::<usize>() == channels;
    fits(model.node(add).input(other)?, &is_row).then_some(Bias::Behind(add, other))
}

/// The layers of a smaller model that can be treated, in order. `kept` says which places of an axis of the original
/// stay.
pub(in crate::prune) fn layers(model: &Model, kept: &dyn Fn(NodeId) -> Option<Vec<usize>>) -> Vec<Layer> {
    let of = |node: NodeId| {
        let read = model.node(node);
        if !matches!(read.op_type.as_str(), "Conv" | "Gemm" | "MatMul") || !read.domain().is_empty() {
            return None;
        }
        let value = read.input(1)?;
        let held = model.constant(value).filter(|held| held.dtype() == DType::F32)?;
        if model.value(value).uses().len() != 1 || model.value(value).producer().is_some() {
            return None;
        }
        let unrolled = Unrolled::of(model, node, held.shape()).ok()?;
        let channels = kept(node)?;
        let bias = bias(model, node, unrolled.channels());
        (channels.len() == unrolled.channels()).then_some(Layer { node, unrolled, channels, bias })
    };
    model.nodes_of(model.main()).filter_map(of).collect()
}

/// Sums over positions, for each group of a layer.
struct Sums<'a> {
    layer: &'a Layer,
    /// What the original gave at the positions that are looked at, batch by batch, one position behind the other.
    given: BTreeMap<usize, Vec<f32>>,
    grams: Vec<Gram>,
    /// Sums of products of outputs and inputs.
    products: Vec<Vec<f32>>,
    /// Sums of outputs.
    totals: Vec<f64>,
    is_broken: bool,
}

/// Positions of a layer's output that are looked at, over all samples: some for each weight of a channel.
fn most(depth: usize) -> usize {
    (16 * depth).clamp(8192, 49152)
}

/// What some channels give at positions, one position behind the other.
pub(super) fn rows_at(
    unrolled: &Unrolled,
    channels: &[usize],
    elements: &[f32],
    shape: &[usize],
    looked_at: &dyn Fn(usize) -> Vec<usize>,
) -> Option<Vec<f32>> {
    let is_row = unrolled.window == Window::Row;
    let inner: usize = if is_row { 1 } else { shape.iter().skip(2).product() };
    let all = *if is_row { shape.last() } else { shape.get(1) }.filter(|all| **all > 0)?;
    let looked_at = looked_at(elements.len() / all);
    let mut rows = Vec::with_capacity(looked_at.len() * channels.len());
    for position in looked_at {
        let start = position / inner.max(1) * all;
        rows.extend(
            channels.iter().map(|channel| elements[(start + channel) * inner + position % inner.max(1)]),
        );
    }
    Some(rows)
}

/// Positions of a batch that are looked at, of so many.
fn positions(count: usize, depth: usize, share: f64) -> Vec<usize> {
    some(count, (most(depth) as f64 * share).ceil() as usize)
}

impl<'a> Sums<'a> {
    fn new(layer: &'a Layer) -> Sums<'a> {
        let Unrolled { groups, rows, depth, .. } = layer.unrolled;
        Sums {
            layer,
            given: BTreeMap::new(),
            grams: (0..groups).map(|_| Gram::new(depth)).collect(),
            products: vec![vec![0f32; rows * depth]; groups],
            totals: vec![0.0; groups * rows],
            is_broken: false,
        }
    }

    /// What the original gives, one batch.
    fn give(&mut self, batch: usize, share: f64, elements: &[f32], shape: &[usize]) {
        let Layer { unrolled, channels, .. } = self.layer;
        let looked_at = |count| positions(count, unrolled.depth, share);
        let Some(rows) = rows_at(unrolled, channels, elements, shape, &looked_at) else {
            return self.is_broken = true;
        };
        self.is_broken |= rows.iter().any(|x| !x.is_finite());
        self.given.insert(batch, rows);
    }

    /// What the smaller model's layer reads of the same batch.
    fn read(&mut self, batch: usize, share: f64, elements: &[f32], shape: &[usize]) {
        let unrolled = &self.layer.unrolled;
        let (Some(given), Some(count)) = (self.given.remove(&batch), unrolled.positions(shape)) else {
            return self.is_broken = true;
        };
        let looked_at = positions(count, unrolled.depth, share);
        let (all, rows) = (self.layer.channels.len(), unrolled.rows);
        if self.is_broken || looked_at.len() * all != given.len() {
            return self.is_broken = true;
        }
        for group in 0..unrolled.groups {
            let Some(read) = unrolled.inputs(elements, shape, group, &looked_at) else {
                return self.is_broken = true;
            };
            if read.iter().any(|x| !x.is_finite()) {
                return self.is_broken = true;
            }
            let own: Vec<f32> = given
                .chunks_exact(all)
                .flat_map(|row| &row[group * rows..(group + 1) * rows])
                .copied()
                .collect();
            let totals = &mut self.totals[group * rows..(group + 1) * rows];
            for row in own.chunks_exact(rows) {
                totals.iter_mut().zip(row).for_each(|(total, &y)| *total += f64::from(y));
            }
            self.grams[group].add(&read);
            add_products(&mut self.products[group], &own, rows, &read, unrolled.depth);
        }
    }

    /// The new numbers of the layer; none where nothing can be learned.
    fn solve(self, weights: &[f32], own_bias: &[f32]) -> Option<Found> {
        let Unrolled { rows, depth, .. } = self.layer.unrolled;
        if self.is_broken {
            return None;
        }
        let has_bias = self.layer.bias.is_some();
        let mut found = Found { weights: Vec::with_capacity(weights.len()), shift: Vec::new() };
        for (group, (gram, products)) in self.grams.into_iter().zip(&self.products).enumerate() {
            let moments = gram.finish();
            if moments.positions < 2 {
                return None;
            }
            let count = moments.positions as f64;
            // Without a place for a bias, means are not taken off.
            let mean = |at: usize| if has_bias { f64::from(moments.mean[at]) } else { 0.0 };
            let average = moments.average(has_bias);
            let inverse = damped_inverse(average.clone(), depth, DAMPING)?;
            for row in 0..rows {
                let channel = group * rows + row;
                let own: Vec<f64> =
                    weights[channel * depth..][..depth].iter().map(|&weight| f64::from(weight)).collect();
                let total = self.totals[channel] / count;
                // What the layer falls short of, seen through each input.
                let short: Vec<f64> = (0..depth)
                    .map(|at| {
                        let given = f64::from(products[row * depth + at]) / count - total * mean(at);
                        let line = &average[at * depth..][..depth];
                        given - line.iter().zip(&own).map(|(a, b)| a * b).sum::<f64>()
                    })
                    .collect();
                let new: Vec<f64> = (0..depth)
                    .map(|at| {
                        let line = &inverse[at * depth..][..depth];
                        own[at] + line.iter().zip(&short).map(|(a, b)| a * b).sum::<f64>()
                    })
                    .collect();
                if has_bias {
                    let passed: f64 = new.iter().enumerate().map(|(at, weight)| weight * mean(at)).sum();
                    let before = own_bias.get(channel).map_or(0.0, |&bias| f64::from(bias));
                    found.shift.push((total - passed - before) as f32);
                }
                found.weights.extend(new.into_iter().map(|weight| weight as f32));
            }
        }
        found.weights.iter().chain(&found.shift).all(|x| x.is_finite()).then_some(found)
    }
}

/// Bytes that is kept of a layer while it is looked at.
fn bytes(layer: &Layer) -> u64 {
    let Unrolled { groups, rows, depth, .. } = layer.unrolled;
    moments::bytes(&layer.unrolled) + 4 * (groups * rows * (depth + most(depth))) as u64
}

/// Treats the layers of a smaller model, in order, and gives back the new numbers of each; none for those from whose
/// inputs nothing can be learned.
///
/// # Errors
/// When a model cannot be run.
pub(in crate::prune) fn recover(
    original: &Model,
    smaller: &mut Model,
    layers: &[Layer],
    batches: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<Found>>, PassError> {
    let samples: usize = batches.iter().map(|batch| batch.count).sum();
    let share = |batch: usize| batches[batch].count as f64 / samples.max(1) as f64;
    let mut all = Vec::new();
    for part in moments::in_parts(layers, moments::ROOM, layers.len().div_ceil(PARTS), &bytes) {
        let mut sums: Vec<Sums<'_>> = part.iter().map(Sums::new).collect();
        let by_value = |model: &Model, of: &dyn Fn(&Layer) -> Option<ValueId>| {
            let mut map: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
            for (place, layer) in part.iter().enumerate() {
                if let Some(value) = of(layer).filter(|&value| model.get_value(value).is_some()) {
                    map.entry(value).or_default().push(place);
                }
            }
            map
        };
        let given = by_value(original, &|layer| original.get_node(layer.node)?.output(0));
        let read = by_value(smaller, &|layer| Some(layer.unrolled.input));
        for (model, map, is_given) in [(original, given, true), (&*smaller, read, false)] {
            let wanted: Vec<ValueId> = map.keys().copied().collect();
            let what = ("fitting layers to what they gave", samples);
            numbered::observe(
                what,
                model,
                &wanted,
                &mut batches.iter().cloned(),
                cx,
                &mut |batch, value, tensor| {
                    let elements =
                        tensor.to_slice::<f32>().map_err(|error| OracleError::Feeds(error.to_string()))?;
                    for &place in &map[&value] {
                        match is_given {
                            true => sums[place].give(batch, share(batch), &elements, tensor.shape()),
                            false => sums[place].read(batch, share(batch), &elements, tensor.shape()),
                        }
                    }
                    Ok(())
                },
            )?;
        }
        for sums in sums {
            let layer = sums.layer;
            let own = own_bias(smaller, layer);
            let found = match weights(smaller, layer) {
                Some(weights) => sums.solve(&weights, &own),
                None => None,
            };
            if let Some(found) = &found {
                put(smaller, layer, found);
            }
            all.push(found);
        }
    }
    Ok(all)
}

pub(super) fn weights(model: &Model, layer: &Layer) -> Option<Vec<f32>> {
    let held = model.constant(model.node(layer.node).input(1)?)?;
    Some(layer.unrolled.by_rows(&held.to_slice::<f32>().ok()?))
}

/// The bias that is part of what a layer gives.
fn own_bias(model: &Model, layer: &Layer) -> Vec<f32> {
    let value = match layer.bias {
        Some(Bias::Own) => model.node(layer.node).input(2),
        _ => None,
    };
    let held = value.and_then(|value| model.constant(value));
    held.and_then(|held| held.to_slice::<f32>().ok()).map_or(Vec::new(), Vec::from)
}

/// Gives a layer new numbers.
pub(in crate::prune) fn put(model: &mut Model, layer: &Layer, found: &Found) {
    let Some(value) = model.node(layer.node).input(1) else { return };
    let Some(shape) = model.constant(value).map(|held| held.shape().to_vec()) else { return };
    model.set_tensor(value, Tensor::from_vec(shape, layer.unrolled.by_elements(&found.weights)));
    let (node, slot) = match layer.bias {
        None => return,
        Some(Bias::Own) => (layer.node, 2),
        Some(Bias::Behind(node, slot)) => (node, slot),
    };
    match model.node(node).input(slot) {
        Some(value) => {
            let Some(held) = model.constant(value) else { return };
            let Ok(before) = held.to_slice::<f32>() else { return };
            let sums =
                before.iter().zip(&found.shift).map(|(bias, shift)| bias + shift).collect::<Vec<f32>>();
            model.set_tensor(value, Tensor::from_vec(held.shape().to_vec(), sums));
        }
        None => {
            let hint = format!("{}_bias", model.node(layer.node).name);
            let own = model.add_constant(
                model.main(),
                &hint,
                Tensor::from_vec(vec![found.shift.len()], found.shift.clone()),
            );
            model.set_input(node, slot, Some(own));
        }
    }
}
