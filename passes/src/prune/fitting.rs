//! Layers of a smaller model, fitted to what they gave in the original.

use optix_ir::{Model, NodeId};
use optix_pipeline::{Cx, DecisionError, PackedFloats, PassError, decibels, naming};
use serde::{Deserialize, Serialize};

use super::channels::{self, Found, Layer, Scaled};
use super::layers::{Prunable, put_all};
use super::mask::Pattern;
use crate::judge::Judge;
use crate::samples::{self, Divided};

/// Samples on which it is judged what fitting gained.
const JUDGED: usize = 32;

/// New numbers of a layer, as a lock holds them.
#[derive(Serialize, Deserialize)]
struct Fitted {
    weights: PackedFloats,
    shift: PackedFloats,
}

/// A decision of a lock that does not fit the model.
pub(super) fn unusable(key: &str, what: String) -> DecisionError {
    DecisionError::Unusable { key: key.to_owned(), what }
}

fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len().max(1) as f64
}

/// What layers are to become, and what that gains; nothing where other samples show no gain.
fn search(
    original: &Model,
    smaller: &Model,
    layers: &[Layer],
    samples: usize,
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<Found>>, PassError> {
    let Divided { batches, judged } = samples::divide(original, samples, JUDGED, cx)?;
    let mut fitted = smaller.clone();
    let found = channels::recover(original, &mut fitted, layers, &batches, cx)?;
    let judge = Judge::new(original, Vec::new(), &judged, cx)?;
    let (before, after) = (judge.errors(smaller, cx)?, judge.errors(&fitted, cx)?);
    if !after.is_less_than(&before) {
        let said = after.said_beside(&before);
        cx.note(format!("layers were not fitted to what they gave before: that has {said}"));
        return Ok(layers.iter().map(|_| None).collect());
    }
    cx.note(format!(
        "layers were fitted to what they gave before: outputs are {:.1} dB above their error on {} other samples, {:.1} \
         dB without",
        decibels(mean(&after.samples)),
        judged.len(),
        decibels(mean(&before.samples))
    ));
    Ok(found)
}

/// Scales and shifts of a layer's channels, as a lock holds them.
#[derive(Serialize, Deserialize)]
struct Recorded {
    scale: PackedFloats,
    shift: PackedFloats,
}

/// By what the channels of pruned layers are to be scaled and moved, and what that gains; nothing where other samples show no
/// gain.
fn search_scales(
    original: &Model,
    pruned: &Model,
    layers: &[Layer],
    samples: usize,
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<Recorded>>, PassError> {
    let Divided { batches, judged } = samples::divide(original, samples, JUDGED, cx)?;
    if judged.len() < 2 {
        cx.note("channels were not scaled to what they gave before: the samples are too few to judge by");
        return Ok(Vec::new());
    }
    let mut scaled = pruned.clone();
    let found = channels::rescale(original, &mut scaled, layers, &batches, cx)?;
    let judge = Judge::new(original, Vec::new(), &judged, cx)?;
    let (before, after) = (judge.errors(pruned, cx)?, judge.errors(&scaled, cx)?);
    let said = after.said_beside(&before);
    if !after.is_less_than(&before) {
        cx.note(format!("channels were not scaled and moved to what they gave before: that has {said}"));
        return Ok(layers.iter().map(|_| None).collect());
    }
    cx.note(format!(
        "channels of {} layers were scaled and moved to what they gave before: {said}",
        found.iter().flatten().count()
    ));
    let pack =
        |Scaled { scale, shift }: Scaled| Recorded { scale: PackedFloats(scale), shift: PackedFloats(shift) };
    Ok(found.into_iter().map(|found| found.map(pack)).collect())
}

/// Gives layers the weights that were found for them, of which some are zero, and where it is wanted scales and moves their
/// channels, by so many samples, to what they gave before.
///
/// # Errors
/// As [`rescale`].
pub(super) fn put_zeros(
    model: &mut Model,
    (layers, found): (&[Prunable], Vec<Result<Vec<f32>, String>>),
    pattern: Pattern,
    rescaled_by: Option<usize>,
    cx: &mut Cx<'_>,
) -> Result<(), PassError> {
    let original = rescaled_by.map(|samples| (model.clone(), samples));
    put_all(model, layers, found, pattern, cx);
    match original {
        Some((original, samples)) => rescale(&original, model, samples, cx),
        None => Ok(()),
    }
}

/// Scales and moves the channels of layers whose weights became zero to what they gave in the original, where there is data
/// or a lock that says how.
///
/// # Errors
/// When a model cannot be run, or the lock does not fit.
fn rescale(original: &Model, pruned: &mut Model, samples: usize, cx: &mut Cx<'_>) -> Result<(), PassError> {
    let weights = |model: &Model, node: NodeId| {
        model.node(node).input(1).and_then(|value| model.constant(value)).cloned()
    };
    let changed = |node: NodeId| {
        let is_changed = weights(original, node) != weights(pruned, node);
        channels::all_channels(pruned, node).filter(|_| is_changed)
    };
    let mut layers = channels::layers(pruned, &changed);
    layers.retain(|layer| channels::can_be_scaled(pruned, layer));
    // Decided in any case: a lock of a run without data says so too.
    let found = cx.decide("scales", |cx| match cx.has_calibration() && !layers.is_empty() {
        true => search_scales(original, pruned, &layers, samples, cx),
        false => Ok(Vec::new()),
    })?;
    if found.is_empty() {
        return Ok(());
    }
    if found.len() != layers.len() {
        return Err(unusable("scales", format!("{} layers, not {}", found.len(), layers.len())).into());
    }
    for (layer, found) in layers.iter().zip(found) {
        let Some(Recorded { scale, shift }) = found else { continue };
        let found = Scaled { scale: scale.0, shift: shift.0 };
        if !channels::fits_scaled(pruned, layer, &found) {
            let name = naming::node_and_op(pruned, layer.node).0;
            return Err(unusable("scales", format!("`{name}` has other channels")).into());
        }
        channels::put_scaled(pruned, layer, &found);
    }
    Ok(())
}

/// Fits layers of a smaller model to what they gave in the original, where there is data or a lock that says how.
///
/// # Errors
/// When a model cannot be run, or the lock does not fit.
pub(super) fn fit(
    original: &Model,
    smaller: &mut Model,
    layers: &[Layer],
    samples: usize,
    cx: &mut Cx<'_>,
) -> Result<(), PassError> {
    // Decided in any case: a lock of a run without data says so too.
    let fitted: Vec<Option<Fitted>> = cx.decide("fitted", |cx| {
        if !cx.has_calibration() {
            return Ok(Vec::new());
        }
        let found = search(original, smaller, layers, samples, cx)?;
        let pack = |Found { weights, shift }: Found| Fitted {
            weights: PackedFloats(weights),
            shift: PackedFloats(shift),
        };
        Ok(found.into_iter().map(|found| found.map(pack)).collect())
    })?;
    if fitted.is_empty() {
        return Ok(());
    }
    if fitted.len() != layers.len() {
        return Err(unusable("fitted", format!("{} layers, not {}", fitted.len(), layers.len())).into());
    }
    for (layer, fitted) in layers.iter().zip(fitted) {
        let Some(Fitted { weights, shift }) = fitted else { continue };
        let found = Found { weights: weights.0, shift: shift.0 };
        if !layer.fits(&found) {
            let name = naming::node_and_op(smaller, layer.node).0;
            return Err(unusable("fitted", format!("`{name}` has other weights")).into());
        }
        channels::put(smaller, layer, &found);
    }
    Ok(())
}
