//! Layers whose quantization the model's outputs notice most.
//!
//! One layer at a time is quantized while everything else stays float, and the noise at the model's outputs
//! is measured. Noises of different layers are nearly independent, so their energies add up: leaving out
//! the loudest layers brings the sum to where it should be, and measuring the whole model says whether it
//! did (one-at-a-time sensitivity; the float fallback of accuracy-aware quantization).

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{DType, Model, NodeId, Tensor};
use optix_pipeline::{Cx, OracleError, PassError, SignalNoise, decibels, noise_at};

/// Samples that single layers are judged by.
const SAMPLES: usize = 2;

/// Samples that the whole model is judged by.
const WHOLE: usize = 8;

/// Times that more layers are left out when the sum of noises was too optimistic.
const ROUNDS: usize = 6;

/// What comes from the search.
pub(super) struct Protected {
    /// Layers to leave float, each with the reason.
    pub(super) float: BTreeMap<NodeId, String>,
    /// The outcome in a sentence; empty when nothing had to be done.
    pub(super) summary: String,
}

/// Energy of the noise over that of the signal, at the worst of the outputs that are floats. Infinite where
/// one of the two is not finite.
fn noise(expected: &[Tensor], found: &[Tensor]) -> f64 {
    let of_pair = |(a, b): (&Tensor, &Tensor)| -> Option<f64> {
        if a.dtype() != DType::F32 || b.dtype() != DType::F32 || a.shape() != b.shape() {
            return None;
        }
        let (a, b) = (a.to_slice::<f32>().ok()?, b.to_slice::<f32>().ok()?);
        Some(SignalNoise::of(&a, &b).ratio())
    };
    expected.iter().zip(found).filter_map(of_pair).fold(0.0, f64::max)
}

/// Makes the model in which only the given layers are quantized.
pub(super) type Build<'b> = &'b dyn Fn(&BTreeSet<NodeId>) -> Result<Model, PassError>;

/// Finds the layers that must stay float for the outputs to keep `least` decibels on calibration samples.
/// `layers` are all that could be quantized, in order.
///
/// # Errors
/// When the model or the data cannot be run.
pub(super) fn protect(
    model: &Model,
    layers: &[NodeId],
    least: f64,
    build: Build<'_>,
    cx: &mut Cx<'_>,
) -> Result<Protected, PassError> {
    let nothing = Protected { float: BTreeMap::new(), summary: String::new() };
    let batch = {
        let (_, data) = cx.calibration()?;
        data.batches(model).map_err(OracleError::from)?.next().transpose().map_err(OracleError::from)?
    };
    let Some(batch) = batch else { return Ok(nothing) };
    let (few, whole) = (batch.clone().truncated(SAMPLES), batch.truncated(WHOLE));
    let expected = cx.oracle().outputs(model, &whole.feeds)?;
    let mut quiet: BTreeSet<NodeId> = layers.iter().copied().collect();
    let all = noise(&expected, &cx.oracle().outputs(&build(&quiet)?, &whole.feeds)?);
    let allowed = noise_at(least);
    if all <= allowed || layers.is_empty() {
        return Ok(nothing);
    }
    let single = cx.oracle().outputs(model, &few.feeds)?;
    let mut loudness: Vec<(NodeId, f64)> = Vec::new();
    for (done, &layer) in layers.iter().enumerate() {
        cx.progress("judging layers one by one", done as u64, layers.len() as u64)?;
        let candidate = build(&BTreeSet::from([layer]))?;
        loudness.push((layer, noise(&single, &cx.oracle().outputs(&candidate, &few.feeds)?)));
    }
    // Stable: of equally loud ones the later goes first.
    loudness.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut total: f64 = loudness.iter().map(|(_, noise)| noise).sum();
    // What single layers add up to and what they make together differ; the goal is corrected by that.
    let mut goal = allowed;
    let mut float = BTreeMap::new();
    let mut reached = all;
    for round in 0..ROUNDS {
        let before = quiet.len();
        while let Some(&(layer, loud)) = loudness.last() {
            // At least one more each round, or nothing would change.
            if (total <= goal && quiet.len() < before) || quiet.is_empty() {
                break;
            }
            loudness.pop();
            total -= loud;
            quiet.remove(&layer);
            let reason = format!("quantizing it alone leaves the outputs {:.1} dB", decibels(loud));
            float.insert(layer, reason);
        }
        cx.progress("judging what is left", round as u64, ROUNDS as u64)?;
        reached = noise(&expected, &cx.oracle().outputs(&build(&quiet)?, &whole.feeds)?);
        if reached <= allowed || quiet.is_empty() {
            break;
        }
        goal = (total * allowed / reached).min(total * 0.7);
    }
    let count = float.len();
    let summary = format!(
        "{count} of {} layers stay float: the outputs keep {:.1} dB on {} calibration samples, {:.1} dB with all \
         layers in integers",
        layers.len(),
        decibels(reached),
        whole.count,
        decibels(all)
    );
    Ok(Protected { float, summary })
}
