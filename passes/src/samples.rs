//! Samples to learn from and others to judge by, both from all parts of the calibration data.

use optix_ir::Model;
use optix_pipeline::{Batch, Cx, OracleError, PassError};

/// Calibration samples in two parts.
pub(crate) struct Divided {
    /// To learn from.
    pub(crate) batches: Vec<Batch>,
    /// One sample each, none of those to learn from, where batches can be taken apart.
    pub(crate) judged: Vec<Batch>,
}

/// Batches spread evenly over the calibration data, of about so many samples.
///
/// # Errors
/// When the data cannot be read.
pub(crate) fn spread(model: &Model, samples: usize, cx: &mut Cx<'_>) -> Result<Vec<Batch>, PassError> {
    let (_, data) = cx.calibration()?;
    let (mut kept, mut step, mut count) = (Vec::<Batch>::new(), 1usize, 0usize);
    for (index, batch) in data.batches(model).map_err(OracleError::from)?.enumerate() {
        let batch = batch.map_err(OracleError::from)?;
        if index % step != 0 {
            continue;
        }
        count += batch.count;
        kept.push(batch);
        if count >= 2 * samples && kept.len() > 1 {
            kept = kept.into_iter().step_by(2).collect();
            count = kept.iter().map(|batch| batch.count).sum();
            step *= 2;
        }
    }
    Ok(kept)
}

/// The samples of a batch one by one; none where it cannot be taken apart.
pub(crate) fn singles(batch: &Batch) -> Vec<Batch> {
    (0..batch.count).filter_map(|index| batch.sample(index)).collect()
}

/// About `learned` samples in batches, and up to `judged` others, at most a quarter of all.
///
/// # Errors
/// When the data cannot be read.
pub(crate) fn divide(
    model: &Model,
    learned: usize,
    judged: usize,
    cx: &mut Cx<'_>,
) -> Result<Divided, PassError> {
    let mut batches = spread(model, learned + judged, cx)?;
    let samples: usize = batches.iter().map(|batch| batch.count).sum();
    let wanted = judged.min(samples / 4);
    if batches.len() == 1 {
        let all = singles(&batches.remove(0));
        let step = (all.len() / wanted.max(1)).max(1);
        let (judged, batches): (Vec<_>, Vec<_>) =
            all.into_iter().enumerate().partition(|(index, _)| index % step == step - 1);
        let only = |part: Vec<(usize, Batch)>| part.into_iter().map(|(_, sample)| sample).collect();
        return Ok(Divided { batches: only(batches), judged: only(judged) });
    }
    let mut judged: Vec<Batch> = Vec::new();
    while batches.len() > 1 && judged.len() < wanted {
        // From the middle first, then from the end.
        let place = if judged.is_empty() { batches.len() / 2 } else { batches.len() - 1 };
        let batch = batches.remove(place);
        let of_batch = singles(&batch);
        judged.extend(if of_batch.is_empty() { vec![batch] } else { of_batch });
    }
    judged.truncate(wanted.max(1));
    Ok(Divided { batches, judged })
}
