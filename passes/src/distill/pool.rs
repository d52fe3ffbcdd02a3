//! Samples to learn from, in random order, and others to stop by.

use bytes::Bytes;
use optix_ir::{Model, Tensor};
use optix_pipeline::{Batch, Cx, OracleError, PassError};
use rand_chacha::ChaCha8Rng;

use super::augment::below;
use crate::samples::singles;

/// Bytes of samples that are kept.
const ROOM: usize = 1 << 30;

/// Of so many samples one is held out.
const EACH: usize = 10;

/// Samples that are held out at most.
const HELD: usize = 1024;

/// Samples of one shape.
pub(super) struct Pool {
    pub(super) train: Vec<Batch>,
    /// None of those to learn from.
    pub(super) held: Vec<Batch>,
    /// Order of the samples to learn from, from `next` on still to come.
    pub(super) order: Vec<usize>,
    pub(super) next: usize,
}

/// Names and shapes of what a sample feeds.
pub(super) fn shapes(sample: &Batch) -> Vec<(String, Vec<usize>)> {
    sample.feeds.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect()
}

impl Pool {
    /// Reads the calibration data.
    ///
    /// # Errors
    /// When they cannot be read, cannot be taken apart, have samples of several shapes, or are too few.
    pub(super) fn read(model: &Model, cx: &mut Cx<'_>) -> Result<Pool, PassError> {
        let mut all: Vec<Batch> = Vec::new();
        let mut is_cut = false;
        {
            let (_, data) = cx.calibration()?;
            let mut bytes = 0;
            for batch in data.batches(model).map_err(OracleError::from)? {
                let batch = batch.map_err(OracleError::from)?;
                let samples = singles(&batch);
                if samples.is_empty() {
                    let what = "an input has no axis of samples, or holds packed elements or texts: samples cannot be \
                                shuffled";
                    return Err(PassError::Options(what.to_owned()));
                }
                let size =
                    |batch: &Batch| batch.feeds.iter().map(|(_, tensor)| tensor.bytes().len()).sum::<usize>();
                bytes += size(&batch);
                if bytes > ROOM && !all.is_empty() {
                    is_cut = true;
                    break;
                }
                all.extend(samples);
            }
        }
        let Some(first) = all.first().map(shapes) else {
            return Err(PassError::Options("the data hold no samples".to_owned()));
        };
        if let Some(other) = all.iter().map(shapes).find(|shapes| *shapes != first) {
            let differs = first.iter().zip(&other).find(|(a, b)| a != b);
            let what = match differs {
                Some(((name, a), (_, b))) => {
                    format!("samples differ in shape: `{name}` is {a:?} in one and {b:?} in another")
                }
                None => "samples differ in shape".to_owned(),
            };
            return Err(PassError::Options(format!("{what}; pad or resize them (docs/data.md)")));
        }
        if is_cut {
            cx.warn(format!("only the first {} samples are learned from: they take 1 GiB", all.len()));
        }
        let (mut train, mut held) = (Vec::new(), Vec::new());
        for (place, sample) in all.into_iter().enumerate() {
            match place % EACH == EACH - 1 && held.len() < HELD {
                true => held.push(sample),
                false => train.push(sample),
            }
        }
        if held.is_empty() {
            let what =
                format!("{} samples are too few to learn from: one in {EACH} is held out", train.len());
            return Err(PassError::Options(what));
        }
        cx.count("samples to learn from", train.len() as u64);
        cx.count("samples held out", held.len() as u64);
        let order = (0..train.len()).collect();
        Ok(Pool { next: train.len(), order, train, held })
    }

    /// The next `count` samples to learn from, shuffled anew whenever all were seen (Fisher and Yates).
    pub(super) fn draw(&mut self, count: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count {
            if self.next >= self.order.len() {
                for place in (1..self.order.len()).rev() {
                    self.order.swap(place, below(random, place + 1));
                }
                self.next = 0;
            }
            drawn.push(self.order[self.next]);
            self.next += 1;
        }
        drawn
    }
}

/// Tensors of single samples as one, along the first axis.
///
/// # Panics
/// When there are none, or their types or shapes differ.
pub(super) fn joined<'t>(mut tensors: impl Iterator<Item = &'t Tensor>) -> Tensor {
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
pub(super) fn together(samples: &[&Batch]) -> Vec<(String, Tensor)> {
    let first = samples.first().expect("at least one sample");
    let feed = |(place, (name, _)): (usize, &(String, Tensor))| {
        (name.clone(), joined(samples.iter().map(|sample| &sample.feeds[place].1)))
    };
    first.feeds.iter().enumerate().map(feed).collect()
}
