//! What every quantized layer lost, measured.

use std::collections::BTreeMap;

use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::{Cx, OracleError, PassError};

/// Samples on which the error of every layer is measured once the model is quantized.
const MEASURED_SAMPLES: usize = 8;

/// What is measured afterwards: row of the ledger, value in the float model, value in the new one.
pub(super) type Measured = Vec<(usize, ValueId, ValueId)>;

/// Measures every quantized layer's output against the float model's on a few calibration samples.
pub(super) fn measure(
    float: &Model,
    quantized: &Model,
    measured: &Measured,
    cx: &mut Cx<'_>,
) -> Result<(), PassError> {
    // Without data there is nothing to measure on.
    if measured.is_empty() || cx.is_replaying() {
        return Ok(());
    }
    let (oracle, data) = cx.calibration()?;
    let first = data.batches(float).map_err(OracleError::from)?.next();
    let Some(batch) = first.transpose().map_err(OracleError::from)? else { return Ok(()) };
    let batch = batch.truncated(MEASURED_SAMPLES);
    let wanted: Vec<ValueId> = measured.iter().map(|(_, old, _)| *old).collect();
    let mut expected: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    oracle.observe(float, &wanted, &mut std::iter::once(Ok(batch.clone())), &mut |value, tensor| {
        expected.insert(value, tensor.clone());
        Ok(())
    })?;
    let wanted: Vec<ValueId> = measured.iter().map(|(_, _, new)| *new).collect();
    let mut found: BTreeMap<ValueId, f64> = BTreeMap::new();
    let reference: BTreeMap<ValueId, ValueId> = measured.iter().map(|&(_, old, new)| (new, old)).collect();
    oracle.observe(quantized, &wanted, &mut std::iter::once(Ok(batch)), &mut |value, tensor| {
        let Some(expected) = reference.get(&value).and_then(|old| expected.get(old)) else { return Ok(()) };
        if let (Ok(a), Ok(b)) = (expected.to_slice::<f32>(), tensor.to_slice::<f32>()) {
            let (mut signal, mut noise) = (0f64, 0f64);
            for (&a, &b) in a.iter().zip(b.iter()) {
                signal += f64::from(a) * f64::from(a);
                noise += f64::from(a - b) * f64::from(a - b);
            }
            if noise > 0.0 && signal > 0.0 {
                found.insert(value, 10.0 * (signal / noise).log10());
            }
        }
        Ok(())
    })?;
    for &(row, _, new) in measured {
        if let (Some(layer), Some(&sqnr)) = (cx.layers_mut().get_mut(row), found.get(&new)) {
            layer.output_sqnr_db = Some(sqnr);
        }
    }
    Ok(())
}
