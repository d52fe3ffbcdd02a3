//! What every quantized layer lost, measured at its output in the whole quantized model.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_pipeline::{Batch, Cx, PassError, SignalNoise};

use super::placement::Placement;
use crate::evenly;

/// Elements of a value compared over all samples, about; evenly apart when it has more.
const ELEMENTS: usize = 1 << 16;

/// Bins of the histograms that are compared: wide enough to hold several integers of 8 bits.
const BINS: usize = 64;

/// Least elements that a histogram says something about.
const ENOUGH: usize = 4 * BINS;

/// What is measured once the model is quantized.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    /// Row of the ledger.
    pub(super) row: usize,
    /// The node, in both models.
    pub(super) node: NodeId,
    /// Value in the float model, behind an activation that is folded into the node.
    pub(super) float: ValueId,
    /// What stands for it in the quantized one.
    pub(super) quantized: ValueId,
    /// Whether no other layer reads through the quantizer behind it.
    pub(super) owns_output: bool,
}

impl Measured {
    /// A node's output, not quantized yet, for a row of the ledger.
    pub(super) fn new(placement: &Placement, node: NodeId, output: ValueId, row: usize) -> Measured {
        let root = placement.quantized.iter().find(|(value, _)| *value == output).map(|(_, root)| *root);
        let of_input = |input: ValueId| {
            placement.quantized.iter().find(|(value, _)| *value == input).map(|(_, root)| *root)
        };
        // Layers that read through it answer for it.
        let is_read = placement.weighted.iter().any(|weighted| of_input(weighted.input) == root);
        let owns_output = root.is_some() && !is_read;
        Measured { row, node, float: output, quantized: output, owns_output }
    }
}

/// Some elements of a sample's value, evenly apart.
fn some(elements: &[f32], most: usize) -> impl Iterator<Item = f32> {
    elements.iter().step_by(evenly::step(elements.len(), most)).copied()
}

/// Histogram of values in equal bins from `low` to `high`, those beyond in the last ones. Each value is shared
/// by the two bins whose middles it lies between (linear binning, Wand 1994): integers that fall one a bin
/// here and two a bin there make no pattern of their own.
fn histogram(values: &[f32], low: f64, high: f64) -> [f64; BINS] {
    let mut bins = [0.0; BINS];
    for &value in values {
        let place = (f64::from(value) - low) / (high - low) * BINS as f64 - 0.5;
        let place = place.clamp(0.0, (BINS - 1) as f64);
        let (bin, share) = (place as usize, place.fract());
        bins[bin] += 1.0 - share;
        if share > 0.0 {
            bins[bin + 1] += share;
        }
    }
    bins
}

/// Kullback-Leibler divergence in nats of the distribution of `found` from that of `expected`, by histograms
/// over the range of `expected` with half a count more in every bin (Krichevsky and Trofimov 1981). `None`
/// for too few values, values that are all the same and values that are not finite.
fn divergence(expected: &[f32], found: &[f32]) -> Option<f64> {
    let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    if expected.len() < ENOUGH || found.is_empty() || !is_finite(expected) || !is_finite(found) {
        return None;
    }
    let low = f64::from(expected.iter().copied().fold(f32::INFINITY, f32::min));
    let high = f64::from(expected.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if low >= high {
        return None;
    }
    let shares = |values: &[f32]| {
        let total = values.len() as f64 + 0.5 * BINS as f64;
        histogram(values, low, high).map(|count| (count + 0.5) / total)
    };
    let (expected, found) = (shares(expected), shares(found));
    let sum: f64 = expected.iter().zip(&found).map(|(p, q)| p * (p / q).ln()).sum();
    Some(sum.max(0.0))
}

/// Some elements of each of these values over all samples; nothing for values that are no floats.
fn gather(
    model: &Model,
    values: impl Iterator<Item = ValueId>,
    samples: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<BTreeMap<ValueId, Vec<f32>>, PassError> {
    let wanted = distinct(values);
    let mut found: BTreeMap<ValueId, Vec<f32>> = BTreeMap::new();
    let most = ELEMENTS / samples.len().max(1);
    let batches = &mut samples.iter().cloned().map(Ok);
    let total = samples.len() as u64;
    cx.observe_batches("comparing layers", total, model, &wanted, batches, &mut |value, tensor| {
        if let (DType::F32, Ok(elements)) = (tensor.dtype(), tensor.to_slice::<f32>()) {
            found.entry(value).or_default().extend(some(&elements, most));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Measures every quantized layer's output against the float model's on some calibration samples.
pub(super) fn measure(
    float: &Model,
    quantized: &Model,
    measured: &[Measured],
    samples: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<(), PassError> {
    let expected = gather(float, measured.iter().map(|one| one.float), samples, cx)?;
    let found = gather(quantized, measured.iter().map(|one| one.quantized), samples, cx)?;
    for one in measured {
        let (Some(a), Some(b)) = (expected.get(&one.float), found.get(&one.quantized)) else { continue };
        if let Some(layer) = cx.layers_mut().get_mut(one.row).filter(|_| a.len() == b.len()) {
            layer.output_sqnr_db = SignalNoise::of(a, b).sqnr_db();
            layer.output_kl = divergence(a, b);
        }
    }
    Ok(())
}

/// Each once.
fn distinct(values: impl Iterator<Item = ValueId>) -> Vec<ValueId> {
    values.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::affine::Affine;

    fn bell(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..count).map(|_| (0..6).map(|_| next()).sum::<f32>() - 3.0).collect()
    }

    #[test]
    fn divergence_is_that_of_the_distributions() {
        let values = bell(20_000, 1);
        assert_eq!(divergence(&values, &values), Some(0.0));
        // Other values of the same distribution, and the same ones rounded to 8 bits, are hardly told apart.
        assert!(divergence(&values, &bell(20_000, 2)).unwrap() < 5e-3);
        let affine = Affine::asymmetric(-3.0, 3.0, DType::U8);
        let rounded: Vec<f32> = values.iter().map(|&value| affine.round_trip(value)).collect();
        assert!(divergence(&values, &rounded).unwrap() < 1e-3);
        // Half as wide: the divergence of two normal distributions is ln(1/2) + 4/2 - 1/2.
        let narrow: Vec<f32> = values.iter().map(|value| value / 2.0).collect();
        let kl = divergence(&values, &narrow).unwrap();
        assert!((kl - 0.807).abs() < 0.25, "{kl}");
        // Clipped: what lies in the last bins is too much.
        let clipped: Vec<f32> = values.iter().map(|value| value.clamp(-0.5, 0.5)).collect();
        assert!(divergence(&values, &clipped).unwrap() > kl);
    }

    #[test]
    fn what_has_no_distribution_has_no_divergence() {
        let values = bell(1000, 1);
        assert_eq!(divergence(&values[..10], &values[..10]), None);
        assert_eq!(divergence(&[2.0; 1000], &values), None);
        let mut broken = values.clone();
        broken[3] = f32::NAN;
        assert_eq!((divergence(&broken, &values), divergence(&values, &broken)), (None, None));
    }
}
