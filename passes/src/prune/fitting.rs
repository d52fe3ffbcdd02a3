//! Layers of a smaller model, fitted to what they gave in the original.

use optix_ir::Model;
use optix_pipeline::{Cx, DecisionError, PackedFloats, PassError, decibels, naming};
use serde::{Deserialize, Serialize};

use super::channels::{self, Found, Layer};
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
    if !cx.has_calibration() && !cx.is_replaying() {
        return Ok(());
    }
    let fitted: Vec<Option<Fitted>> = cx.decide("fitted", |cx| {
        let found = search(original, smaller, layers, samples, cx)?;
        let pack = |Found { weights, shift }: Found| Fitted {
            weights: PackedFloats(weights),
            shift: PackedFloats(shift),
        };
        Ok(found.into_iter().map(|found| found.map(pack)).collect())
    })?;
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
