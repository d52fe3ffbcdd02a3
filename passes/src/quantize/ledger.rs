//! Completes the rows of quantized layers with what was lost where.

use optix_ir::Model;
use optix_pipeline::{Batch, Cx, OracleError, PassError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::error_share::shares;
use super::error_split::split;
use super::measure::{Measured, measure};
use super::scheme;

/// How much is measured for the layer ledger, once the model is quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ledger {
    /// On few samples, in less than a third of the time of calibration.
    #[default]
    Quick,
    /// On more samples, and every layer's share by a run of its own.
    Full,
    /// Nothing: neither errors nor shares.
    None,
}

/// Bytes of errors that are kept to be put into the float model.
const KEPT: usize = 256 << 20;

/// Samples and runs that measuring takes.
struct Effort {
    /// Samples on which the whole models are compared.
    compared: usize,
    /// Samples on which errors are split, at the price of about five runs each.
    split: usize,
    /// Samples whose errors are put into the float model.
    propagated: usize,
    /// Runs of one sample with such errors.
    runs: usize,
}

impl Ledger {
    /// What is done after calibration on so many samples.
    fn effort(self, samples: u64) -> Effort {
        let share = |of: u64, least: u64, most: u64| (samples / of).clamp(least, most) as usize;
        match self {
            Ledger::Full => Effort { compared: 8, split: 8, propagated: 2, runs: usize::MAX },
            _ => Effort {
                compared: share(32, 2, 8),
                split: share(128, 1, 4),
                propagated: 1,
                runs: share(8, 8, 48),
            },
        }
    }
}

/// The first samples of the calibration data one by one, whatever the batches are: a batch that cannot be taken
/// apart counts as one.
fn first_samples(model: &Model, count: usize, cx: &mut Cx<'_>) -> Result<Vec<Batch>, PassError> {
    let (_, data) = cx.calibration()?;
    let mut samples: Vec<Batch> = Vec::new();
    for batch in data.batches(model).map_err(OracleError::from)? {
        let batch = Batch { labels: None, ..batch.map_err(OracleError::from)? };
        let single: Option<Vec<Batch>> = (0..batch.count).map(|index| batch.sample(index)).collect();
        samples.extend(single.unwrap_or_else(|| vec![batch]));
        if samples.len() >= count {
            break;
        }
    }
    samples.truncate(count);
    Ok(samples)
}

/// Completes the rows of `measured` after calibration on `samples` samples. Without data there is nothing to
/// measure on: rows say then how they are quantized, and no more. The model is made by then: what cannot be
/// measured is a warning.
pub(super) fn complete(
    ledger: Ledger,
    float: &Model,
    quantized: &Model,
    measured: &[Measured],
    samples: u64,
    cx: &mut Cx<'_>,
) -> Result<(), PassError> {
    for one in measured {
        if let Some(layer) = cx.layers_mut().get_mut(one.row) {
            scheme::describe(quantized, one.node, layer);
        }
    }
    if measured.is_empty() || cx.is_replaying() || !cx.has_calibration() || ledger == Ledger::None {
        return Ok(());
    }
    match measure_all(ledger, float, quantized, measured, samples, cx) {
        Ok(()) => Ok(()),
        Err(PassError::Interrupted | PassError::Oracle(OracleError::Interrupted)) => {
            Err(PassError::Interrupted)
        }
        Err(error) => {
            cx.warn(format!("the errors of layers were not measured to the end: {error}"));
            Ok(())
        }
    }
}

fn measure_all(
    ledger: Ledger,
    float: &Model,
    quantized: &Model,
    measured: &[Measured],
    samples: u64,
    cx: &mut Cx<'_>,
) -> Result<(), PassError> {
    let effort = ledger.effort(samples);
    let batches = first_samples(float, effort.compared.max(effort.split), cx)?;
    measure(float, quantized, measured, &batches[..effort.compared.min(batches.len())], cx)?;
    let batches = &batches[..effort.split.min(batches.len())];
    let split = split(float, quantized, measured, batches, effort.propagated, KEPT, cx)?;
    for (one, error) in measured.iter().zip(&split.errors) {
        if let Some(layer) = cx.layers_mut().get_mut(one.row) {
            layer.error = *error;
        }
    }
    if !split.is_complete {
        cx.note(format!(
            "no shares of the error at the outputs: the errors of the layers take more than {} MiB",
            KEPT >> 20
        ));
        return Ok(());
    }
    let kept = effort.propagated.min(batches.len());
    if let Some(found) = shares(float, measured, &batches[..kept], &split.kept, effort.runs, cx)? {
        for (place, share) in found.of {
            if let Some(layer) = measured.get(place).and_then(|one| cx.layers_mut().get_mut(one.row)) {
                layer.error_share = Some(share);
            }
        }
        cx.note(found.how);
    }
    Ok(())
}
