//! Ranges of activations: one pass over the calibration data, then one choice a tensor.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, ValueId};
use optix_pipeline::{Cx, OracleError, PassError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::affine::Affine;
use super::observer::Observer;
use super::placement::Placement;

/// How the range of an activation is chosen from what calibration saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RangeObserver {
    /// The whole range seen.
    MinMax,
    /// The range with the least mean squared error over a histogram of 2,048 bins.
    #[default]
    Mse,
}

/// One pass over the calibration data: statistics of every value whose quantizer is its own.
pub(super) fn calibrate(
    model: &Model,
    placement: &Placement,
    cx: &mut Cx<'_>,
) -> Result<BTreeMap<ValueId, Observer>, PassError> {
    let roots: Vec<ValueId> =
        placement.quantized.iter().filter(|(value, root)| value == root).map(|(value, _)| *value).collect();
    let mut observers: BTreeMap<ValueId, Observer> =
        roots.iter().map(|&value| (value, Observer::default())).collect();
    let (oracle, data) = cx.calibration()?;
    let mut batches = data.batches(model).map_err(OracleError::from)?;
    let samples = oracle.observe(model, &roots, &mut *batches, &mut |value, tensor| {
        let elements = tensor
            .to_slice::<f32>()
            .map_err(|error| OracleError::Feeds(format!("value `{}`: {error}", model.value(value).name())))?;
        if let Some(observer) = observers.get_mut(&value) {
            observer.observe(&elements);
        }
        Ok(())
    })?;
    drop(batches);
    cx.count("calibration samples", samples);
    if samples == 0 {
        return Err(PassError::Options("the calibration data hold no samples".to_owned()));
    }
    for (&value, observer) in &observers {
        let name = model.value(value).name();
        if observer.non_finite() > 0 {
            cx.warn(format!(
                "`{name}`: {} values were NaN or infinite during calibration",
                observer.non_finite()
            ));
        }
        match observer.range() {
            None => {
                cx.warn(format!("`{name}` never had a finite value during calibration: its scale is a guess"))
            }
            Some((min, max)) if min == max => {
                cx.warn(format!("`{name}` was {min} throughout calibration: its scale is a guess"));
            }
            Some(_) => {}
        }
    }
    Ok(observers)
}

/// The quantizer of every value that gets one, from what calibration saw of its root.
pub(super) fn choose(
    how: RangeObserver,
    dtype: DType,
    model: &Model,
    placement: &Placement,
    observers: &BTreeMap<ValueId, Observer>,
    cx: &mut Cx<'_>,
) -> BTreeMap<ValueId, Affine> {
    let mut quantizers = BTreeMap::new();
    for &(value, root) in &placement.quantized {
        let quantizer = match quantizers.get(&root) {
            Some(&quantizer) => quantizer,
            None => match (observers.get(&root), how) {
                (Some(observer), RangeObserver::MinMax) => observer.min_max(dtype),
                (Some(observer), RangeObserver::Mse) => observer.mean_squared_error(dtype),
                (None, _) => {
                    // Roots are observed; a value without one would be a bug of the placement.
                    cx.warn(format!("`{}` was not observed", model.value(value).name()));
                    Affine::asymmetric(0.0, 0.0, dtype)
                }
            },
        };
        quantizers.insert(value, quantizer);
    }
    quantizers
}
