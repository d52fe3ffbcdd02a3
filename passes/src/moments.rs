//! Second moments of what layers read, over samples.

use std::collections::BTreeMap;

use optix_ir::{Model, ValueId};
use optix_linalg::{Gram, Moments};
use optix_pipeline::{Batch, Cx, OracleError, PassError};

use crate::numbered;
use crate::unroll::{Unrolled, some};

/// Bytes that what is kept of all layers that are looked at together may take.
pub(crate) const ROOM: u64 = 256 << 20;

/// Positions of a layer's output that are looked at, over all samples: some for each weight of a channel.
fn positions(depth: usize) -> usize {
    (8 * depth).clamp(8192, 32768)
}

/// Layers that read the same, with the moments of what they read, a set for each group; none where something of
/// that was not finite, or not what the layer expects.
pub(crate) struct Read {
    /// Places in the list of layers.
    pub(crate) layers: Vec<usize>,
    pub(crate) moments: Option<Vec<Moments>>,
}

/// Sums that are not finished.
struct Shared<'a> {
    layers: Vec<usize>,
    unrolled: &'a Unrolled,
    grams: Vec<Gram>,
    is_broken: bool,
}

impl<'a> Shared<'a> {
    /// Layers with what they have in common.
    fn among(layers: &[&'a Unrolled]) -> Vec<Shared<'a>> {
        let mut shared: Vec<Shared<'a>> = Vec::new();
        for (place, &own) in layers.iter().enumerate() {
            let is_same = |known: &&mut Shared<'_>| {
                let other = known.unrolled;
                (other.input, &other.window, other.groups, other.depth)
                    == (own.input, &own.window, own.groups, own.depth)
            };
            match shared.iter_mut().find(is_same) {
                Some(known) => known.layers.push(place),
                None => {
                    let grams = (0..own.groups).map(|_| Gram::new(own.depth)).collect();
                    shared.push(Shared { layers: vec![place], unrolled: own, grams, is_broken: false });
                }
            }
        }
        shared
    }

    /// Adds a batch of inputs, at most so many of its positions.
    fn add(&mut self, elements: &[f32], shape: &[usize], most: usize) {
        let Some(count) = self.unrolled.positions(shape) else {
            self.is_broken = true;
            return;
        };
        let positions = some(count, most);
        for (group, gram) in self.grams.iter_mut().enumerate() {
            match self.unrolled.inputs(elements, shape, group, &positions) {
                Some(read) if read.iter().all(|x| x.is_finite()) => gram.add(&read),
                _ => self.is_broken = true,
            }
        }
    }
}

/// Layers in parts that there is room for at a time, in order.
pub(crate) fn parts<'a, T>(layers: &'a [T], unrolled: &dyn Fn(&T) -> &Unrolled) -> Vec<&'a [T]> {
    in_parts(layers, ROOM, usize::MAX, &|layer| bytes(unrolled(layer)))
}

/// Bytes that the sums of a layer take.
pub(crate) fn bytes(unrolled: &Unrolled) -> u64 {
    Gram::bytes(unrolled.depth).saturating_mul(unrolled.groups as u64)
}

/// Parts of a list, in order: of at most so many, and within `room` bytes where more than one is in it.
pub(crate) fn in_parts<'a, T>(
    all: &'a [T],
    room: u64,
    most: usize,
    bytes: &dyn Fn(&T) -> u64,
) -> Vec<&'a [T]> {
    let (mut parts, mut start, mut taken) = (Vec::new(), 0, 0u64);
    for (index, one) in all.iter().enumerate() {
        let own = bytes(one);
        if index > start && (index - start >= most || taken.saturating_add(own) > room) {
            parts.push(&all[start..index]);
            (start, taken) = (index, 0);
        }
        taken = taken.saturating_add(own);
    }
    if start < all.len() {
        parts.push(&all[start..]);
    }
    parts
}

/// What some layers of a model read, in one run over the batches.
///
/// # Errors
/// When the model cannot be run.
pub(crate) fn read(
    model: &Model,
    layers: &[&Unrolled],
    batches: &[Batch],
    what: &str,
    cx: &mut Cx<'_>,
) -> Result<Vec<Read>, PassError> {
    let mut shared = Shared::among(layers);
    let mut by_input: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (place, shared) in shared.iter().enumerate() {
        by_input.entry(shared.unrolled.input).or_default().push(place);
    }
    let inputs: Vec<ValueId> = by_input.keys().copied().collect();
    let samples: usize = batches.iter().map(|batch| batch.count).sum();
    let given = &mut batches.iter().cloned();
    numbered::observe((what, samples), model, &inputs, given, cx, &mut |batch, value, tensor| {
        let elements = tensor.to_slice::<f32>().map_err(|error| OracleError::Feeds(error.to_string()))?;
        for &place in &by_input[&value] {
            let share = positions(shared[place].unrolled.depth) * batches[batch].count.max(1);
            shared[place].add(&elements, tensor.shape(), share.div_ceil(samples.max(1)));
        }
        Ok(())
    })?;
    let finished = shared.into_iter().map(|Shared { layers, grams, is_broken, .. }| {
        let moments = (!is_broken).then(|| grams.into_iter().map(Gram::finish).collect());
        Read { layers, moments }
    });
    Ok(finished.collect())
}
