//! Samples to learn from and others to judge by, both from all parts of the calibration data.

use bytes::Bytes;
use optix_ir::{Model, Tensor};
use optix_pipeline::{Batch, Cx, OracleError, PassError};

use crate::evenly;

/// Calibration samples in two parts.
pub(crate) struct Divided {
    /// To learn from.
    pub(crate) batches: Vec<Batch>,
    /// One sample each, none of those to learn from, where batches can be taken apart.
    pub(crate) judged: Vec<Batch>,
}

impl Divided {
    /// As many as are worth their price beside calibration, which runs all samples anyway: a quarter of them to learn
    /// from, but 8 in any case and no more than `most`, and a sixth to judge by.
    ///
    /// Fewer lose nothing that shows (OCR recognition, 64 samples: with 48 to learn from others are at 17.5 dB, with
    /// 16 at 18.7), and of 256 there are 48 anyway.
    ///
    /// # Errors
    /// When there is no data.
    pub(crate) fn in_proportion(mut self, most: usize, cx: &mut Cx<'_>) -> Result<Divided, PassError> {
        let here: usize = self.batches.iter().chain(&self.judged).map(|batch| batch.count).sum();
        let samples = known(cx)?.unwrap_or(here);
        self.batches = fewer(self.batches, (samples / 4).max(8).min(most));
        self.judged.truncate((samples / 6).max(2));
        Ok(self)
    }
}

/// Samples of the whole calibration data, where that is known.
fn known(cx: &mut Cx<'_>) -> Result<Option<usize>, PassError> {
    let (_, data) = cx.calibration()?;
    Ok(data.samples().map(|samples| usize::try_from(samples).unwrap_or(usize::MAX)))
}

/// The first samples of the calibration data, up to so many, together; those of the first batch alone where samples cannot be
/// taken apart or differ in shape. None where there are none.
///
/// # Errors
/// When the data cannot be read.
pub(crate) fn first(model: &Model, most: usize, cx: &mut Cx<'_>) -> Result<Option<Batch>, PassError> {
    let (_, data) = cx.calibration()?;
    let (mut batches, mut count) = (Vec::<Batch>::new(), 0);
    for batch in data.batches(model).map_err(OracleError::from)? {
        let batch = batch.map_err(OracleError::from)?;
        count += batch.count;
        batches.push(batch);
        if count >= most {
            break;
        }
    }
    let mut all: Vec<Batch> = batches.iter().flat_map(singles).collect();
    let shapes = |batch: &Batch| -> Vec<Vec<usize>> {
        batch.feeds.iter().map(|(_, tensor)| tensor.shape().to_vec()).collect()
    };
    let is_one_kind = all.windows(2).all(|pair| shapes(&pair[0]) == shapes(&pair[1]));
    if batches.len() < 2 || all.len() != count || !is_one_kind {
        return Ok(batches.into_iter().next().map(|batch| batch.truncated(most)));
    }
    all.truncate(most);
    Ok(Some(Batch { feeds: together(&all), count: all.len(), ..Batch::default() }))
}

/// Tensors of single samples as one, along the first axis.
///
/// # Panics
/// When there are none, or their types or shapes differ.
pub(crate) fn joined<'t>(mut tensors: impl Iterator<Item = &'t Tensor>) -> Tensor {
    let first = tensors.next().expect("at least one sample");
    let mut bytes = first.bytes().to_vec();
    let mut count = first.shape().first().copied().unwrap_or(1);
    for tensor in tensors {
        assert!(
            tensor.dtype() == first.dtype() && tensor.shape().get(1..) == first.shape().get(1..),
            "of one kind"
        );
        bytes.extend_from_slice(tensor.bytes());
        count += tensor.shape().first().copied().unwrap_or(1);
    }
    let shape: Vec<usize> = std::iter::once(count).chain(first.shape().iter().skip(1).copied()).collect();
    Tensor::new(first.dtype(), shape, Bytes::from(bytes)).expect("as many elements as the parts have")
}

/// Feeds of some samples together, by name.
pub(crate) fn together(samples: &[Batch]) -> Vec<(String, Tensor)> {
    let first = samples.first().expect("at least one sample");
    let feed = |(place, (name, _)): (usize, &(String, Tensor))| {
        (name.clone(), joined(samples.iter().map(|sample| &sample.feeds[place].1)))
    };
    first.feeds.iter().enumerate().map(feed).collect()
}

/// Up to so many samples of batches one by one, evenly apart.
pub(crate) fn single_few(batches: &[Batch], most: usize) -> Vec<Batch> {
    let all: Vec<Batch> = batches.iter().flat_map(singles).collect();
    let step = evenly::step(all.len(), most);
    all.into_iter().step_by(step).take(most).collect()
}

/// Batches spread evenly over the calibration data: about a quarter of it, within these bounds.
///
/// # Errors
/// When the data cannot be read.
pub(crate) fn quarter(
    model: &Model,
    (least, most): (usize, usize),
    cx: &mut Cx<'_>,
) -> Result<Vec<Batch>, PassError> {
    let batches = spread(model, most, cx)?;
    if batches.iter().all(|batch| batch.count == 0) {
        return Err(PassError::Options("the calibration data hold no samples".to_owned()));
    }
    let wanted = known(cx)?.map_or(most, |samples| (samples / 4).clamp(least, most));
    Ok(fewer(batches, wanted))
}

/// Of the batches so many, evenly, that they have about as many samples as are wanted; all where they have fewer.
fn fewer(batches: Vec<Batch>, wanted: usize) -> Vec<Batch> {
    let samples: usize = batches.iter().map(|batch| batch.count).sum();
    if samples <= wanted {
        return batches;
    }
    let total = batches.len();
    let kept = (total * wanted).div_ceil(samples).max(1);
    let is_kept = |place: usize| (place + 1) * kept / total > place * kept / total;
    batches.into_iter().enumerate().filter_map(|(place, batch)| is_kept(place).then_some(batch)).collect()
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
