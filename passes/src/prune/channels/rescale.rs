//! Output channels of layers whose weights became zero, scaled and moved to what they gave before.
//!
//! Two numbers a channel, by least squares on calibration data. It is what corrected biases (Nagel et al. 2019,
//! arXiv 1906.04721) and statistics of batch normalizations that are taken anew (Li et al. 2020, arXiv 2007.02491) do,
//! for layers that those have become part of. Zeros stay zeros.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::{Batch, Cx, OracleError, PassError};

use super::recover::{Bias, Layer, rows_at, weights};
use crate::moments::ROOM;
use crate::numbered;
use crate::unroll::some;

/// Positions of a layer's output that are looked at, over all samples, where there is room.
const POSITIONS: usize = 8192;

/// How far a channel may be scaled.
const WITHIN: (f64, f64) = (0.25, 4.0);

/// What a layer's channels are multiplied with, and what is added to each afterwards; nothing is added where the layer
/// has no place for it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::prune) struct Scaled {
    pub(in crate::prune) scale: Vec<f32>,
    pub(in crate::prune) shift: Vec<f32>,
}

/// Sums over positions, of each channel: what it gave `x` now and `y` in the original.
struct Sums<'a> {
    layer: &'a Layer,
    has_place: bool,
    given: BTreeMap<usize, Vec<f32>>,
    count: f64,
    /// `x`, `y`, `x x`, `x y`.
    sums: Vec<[f64; 4]>,
    is_broken: bool,
}

/// Whether a number for each channel is added to what the layer gives, so that more can be without another input.
fn has_place(model: &Model, layer: &Layer) -> bool {
    match layer.bias {
        None => false,
        Some(Bias::Own) => model.node(layer.node).input(2).is_some(),
        Some(Bias::Behind(..)) => true,
    }
}

/// Whether scaling a layer's weights scales what it gives, or all of that but for a bias that can be scaled with it.
pub(in crate::prune) fn can_be_scaled(model: &Model, layer: &Layer) -> bool {
    layer.bias.is_some() || model.node(layer.node).input(2).is_none()
}

/// Positions of a layer that there is room for.
fn positions(layer: &Layer) -> usize {
    POSITIONS.min(ROOM as usize / 4 / layer.unrolled.channels().max(1)).max(64)
}

/// Layers in parts, in order, that no layer of reads what another one of gives: scales would be found twice.
fn parts<'a>(model: &Model, layers: &'a [Layer]) -> Vec<&'a [Layer]> {
    let (mut parts, mut start, mut taken) = (Vec::new(), 0, 0u64);
    let mut reached: BTreeSet<ValueId> = BTreeSet::new();
    for (place, layer) in layers.iter().enumerate() {
        let own = 4 * (positions(layer) * layer.unrolled.channels()) as u64;
        if place > start && (reached.contains(&layer.unrolled.input) || taken + own > ROOM) {
            parts.push(&layers[start..place]);
            (start, taken) = (place, 0);
            reached.clear();
        }
        taken += own;
        reached.extend(model.node(layer.node).outputs().iter().flatten());
        for node in model.nodes_of(model.main()) {
            if model.node(node).inputs().iter().flatten().any(|value| reached.contains(value)) {
                reached.extend(model.node(node).outputs().iter().flatten());
            }
        }
    }
    parts.push(&layers[start..]);
    parts
}

impl Sums<'_> {
    fn rows(&self, elements: &[f32], shape: &[usize], share: f64) -> Option<Vec<f32>> {
        let Layer { unrolled, channels, .. } = self.layer;
        let looked_at = |count| some(count, (positions(self.layer) as f64 * share).ceil() as usize);
        let rows = rows_at(unrolled, channels, elements, shape, &looked_at)?;
        rows.iter().all(|x| x.is_finite()).then_some(rows)
    }

    fn give(&mut self, batch: usize, rows: Option<Vec<f32>>) {
        match rows {
            Some(rows) => drop(self.given.insert(batch, rows)),
            None => self.is_broken = true,
        }
    }

    fn read(&mut self, batch: usize, rows: Option<Vec<f32>>) {
        let given = self.given.remove(&batch);
        let (Some(now), Some(given)) = (rows, given) else { return self.is_broken = true };
        let channels = self.sums.len();
        if now.len() != given.len() || channels == 0 {
            return self.is_broken = true;
        }
        for (now, given) in now.chunks_exact(channels).zip(given.chunks_exact(channels)) {
            for ((sums, &x), &y) in self.sums.iter_mut().zip(now).zip(given) {
                let (x, y) = (f64::from(x), f64::from(y));
                for (sum, add) in sums.iter_mut().zip([x, y, x * x, x * y]) {
                    *sum += add;
                }
            }
            self.count += 1.0;
        }
    }

    fn solve(&self) -> Option<Scaled> {
        if self.is_broken || self.count < 2.0 {
            return None;
        }
        let mut found = Scaled { scale: Vec::new(), shift: Vec::new() };
        for [x, y, xx, xy] in self.sums.iter().map(|sums| sums.map(|sum| sum / self.count)) {
            let (mean_x, mean_y) = if self.has_place { (x, y) } else { (0.0, 0.0) };
            let (own, both) = (xx - mean_x * mean_x, xy - mean_x * mean_y);
            // A channel that gives the same everywhere, or has to do with what it gave no more, is only moved.
            let scale = match own > 1e-9 * xx && both > 0.0 {
                true => (both / own).clamp(WITHIN.0, WITHIN.1),
                false => 1.0,
            };
            found.scale.push(scale as f32);
            if self.has_place {
                found.shift.push((mean_y - scale * mean_x) as f32);
            }
        }
        found.scale.iter().chain(&found.shift).all(|x| x.is_finite()).then_some(found)
    }
}

/// Treats layers, in order, each on what the layers before it pass on, and gives back the numbers of each; none for those
/// that give something that is not finite.
///
/// # Errors
/// When a model cannot be run.
pub(in crate::prune) fn rescale(
    original: &Model,
    pruned: &mut Model,
    layers: &[Layer],
    batches: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<Scaled>>, PassError> {
    let samples: usize = batches.iter().map(|batch| batch.count).sum();
    let share = |batch: usize| batches[batch].count as f64 / samples.max(1) as f64;
    let mut all = Vec::new();
    for part in parts(pruned, layers) {
        let mut sums: Vec<Sums<'_>> = Vec::new();
        let mut places: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (place, layer) in part.iter().enumerate() {
            places.extend(pruned.node(layer.node).output(0).map(|value| (value, place)));
            sums.push(Sums {
                layer,
                has_place: has_place(pruned, layer),
                given: BTreeMap::new(),
                count: 0.0,
                sums: vec![[0.0; 4]; layer.unrolled.channels()],
                is_broken: false,
            });
        }
        let wanted: Vec<ValueId> = places.keys().copied().collect();
        for (model, is_given) in [(original, true), (&*pruned, false)] {
            let what = ("scaling channels to what they gave", samples);
            let mut batches = batches.iter().cloned();
            numbered::observe(what, model, &wanted, &mut batches, cx, &mut |batch, value, tensor| {
                let elements =
                    tensor.to_slice::<f32>().map_err(|error| OracleError::Feeds(error.to_string()))?;
                let own = &mut sums[places[&value]];
                let rows = own.rows(&elements, tensor.shape(), share(batch));
                match is_given {
                    true => own.give(batch, rows),
                    false => own.read(batch, rows),
                }
                Ok(())
            })?;
        }
        let found: Vec<Option<Scaled>> = sums.iter().map(Sums::solve).collect();
        for (layer, found) in part.iter().zip(&found) {
            if let Some(found) = found {
                put_scaled(pruned, layer, found);
            }
        }
        all.extend(found);
    }
    Ok(all)
}

/// Whether these are numbers for a layer.
pub(in crate::prune) fn fits_scaled(model: &Model, layer: &Layer, found: &Scaled) -> bool {
    let channels = layer.unrolled.channels();
    let places = if has_place(model, layer) { channels } else { 0 };
    let is_within = found.scale.iter().all(|&scale| (WITHIN.0..=WITHIN.1).contains(&f64::from(scale)));
    let is_finite = found.shift.iter().all(|x| x.is_finite());
    found.scale.len() == channels && found.shift.len() == places && is_within && is_finite
}

/// Scales and moves the channels of a layer.
pub(in crate::prune) fn put_scaled(model: &mut Model, layer: &Layer, found: &Scaled) {
    let (Some(mut rows), Some(value)) = (weights(model, layer), model.node(layer.node).input(1)) else {
        return;
    };
    for (row, scale) in rows.chunks_exact_mut(layer.unrolled.depth).zip(&found.scale) {
        row.iter_mut().for_each(|weight| *weight *= scale);
    }
    let shape = model.constant(value).map(|held| held.shape().to_vec()).unwrap_or_default();
    model.set_tensor(value, Tensor::from_vec(shape, layer.unrolled.by_elements(&rows)));
    let (node, slot) = match layer.bias {
        None => return,
        Some(Bias::Own) => (layer.node, 2),
        Some(Bias::Behind(node, slot)) => (node, slot),
    };
    let Some(value) = model.node(node).input(slot) else { return };
    let Some(held) = model.constant(value) else { return };
    let Ok(own) = held.to_slice::<f32>() else { return };
    // The layer's own bias is part of what is scaled, one behind it is not.
    let is_own = layer.bias == Some(Bias::Own);
    let of = |(channel, bias): (usize, &f32)| {
        let scale = if is_own { found.scale[channel] } else { 1.0 };
        bias * scale + found.shift[channel]
    };
    let moved = own.iter().enumerate().map(of).collect::<Vec<f32>>();
    model.set_tensor(value, Tensor::from_vec(held.shape().to_vec(), moved));
}
