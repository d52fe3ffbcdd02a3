//! Perplexity of language models.

use optix_ir::Tensor;

use super::classes::no_samples;
use super::fidelity::log_softmax;
use super::{Basis, Change, Measured, Meter, Metric, Seen};
use crate::batch::{Batch, LabelValues};
use crate::error::DataError;
use crate::statistics::{Interval, Mean};

/// The exponential of the mean negative log-likelihood of a token.
///
/// Logits are `[samples, tokens, vocabulary]`. What each position should predict is the label of that
/// position where the data have labels (`[tokens]` integers a sample, negative ones are passed over), else
/// the next token of the input `input_ids`; positions whose `attention_mask` is 0 are passed over.
#[derive(Default)]
pub(super) struct Perplexity {
    found: Mean,
    reference: Mean,
    difference: Mean,
}

/// What each position of each sample should predict.
fn targets(batch: &Batch) -> Result<Vec<Vec<Option<usize>>>, DataError> {
    let integers = |tensor: &Tensor| tensor.to_i64s().map_err(|error| DataError::Metric(error.to_string()));
    match batch.labels.as_ref().map(|labels| &labels.values) {
        Some(LabelValues::Tensors(tensors)) => {
            let target = |label: i64| usize::try_from(label).ok();
            return tensors
                .iter()
                .map(|tensor| Ok(integers(tensor)?.into_iter().map(target).collect()))
                .collect();
        }
        Some(_) => {
            let what =
                "perplexity needs a label for every token, or none at all: then the next token is predicted";
            return Err(DataError::Labels(what.to_owned()));
        }
        None => {}
    }
    let named = |name: &str| batch.feeds.iter().find(|(input, _)| input == name).map(|(_, tensor)| tensor);
    let Some(tokens) = named("input_ids") else {
        let what = "perplexity predicts the next token of the input `input_ids`, which this model does not have; \
                    give labels for every token";
        return Err(DataError::Metric(what.to_owned()));
    };
    let (tokens, mask) = (integers(tokens)?, named("attention_mask").map(integers).transpose()?);
    let length = tokens.len().checked_div(batch.count).unwrap_or(0).max(1);
    let rows = tokens.chunks(length).enumerate().map(|(row, tokens)| {
        let shown = |position: usize| {
            let at = row.saturating_mul(length).saturating_add(position);
            mask.as_ref().is_none_or(|mask| mask.get(at).is_some_and(|&mask| mask != 0))
        };
        let next = |position: usize| {
            let after = position.saturating_add(1);
            let token = tokens.get(after).filter(|_| shown(position) && shown(after))?;
            usize::try_from(*token).ok()
        };
        (0..tokens.len()).map(next).collect()
    });
    Ok(rows.collect())
}

/// Sum of the negative log-likelihoods of a sample, and the tokens in it.
fn sum(logits: &[f64], vocabulary: usize, targets: &[Option<usize>]) -> Result<(f64, f64), DataError> {
    let (mut sum, mut count) = (0.0, 0.0);
    for (row, target) in logits.chunks(vocabulary).zip(targets) {
        let Some(target) = target else { continue };
        let Some(log) = log_softmax(row).get(*target).copied() else {
            let what = format!("token {target} is not among the {vocabulary} that the model knows");
            return Err(DataError::Labels(what));
        };
        sum -= log;
        count += 1.0;
    }
    Ok((sum, count))
}

/// Sums of all samples of a batch.
fn sums(
    batch: &Batch,
    logits: &Tensor,
    targets: &[Vec<Option<usize>>],
) -> Result<Vec<(f64, f64)>, DataError> {
    let [samples, tokens, vocabulary] = *logits.shape() else {
        let what = format!(
            "perplexity takes logits of shape [samples, tokens, vocabulary], not {:?}; --output names another output",
            logits.shape()
        );
        return Err(DataError::Metric(what));
    };
    if samples != batch.count || targets.iter().any(|row| row.len() != tokens) || vocabulary == 0 {
        let what =
            format!("logits of shape {:?} do not fit {} samples of tokens", logits.shape(), batch.count);
        return Err(DataError::Metric(what));
    }
    let size = tokens.saturating_mul(vocabulary).max(1);
    let width = logits.dtype().byte_len(size).unwrap_or(0);
    let mut all = Vec::with_capacity(samples);
    for (index, targets) in targets.iter().enumerate() {
        // One sample at a time: a vocabulary makes logits large.
        let start = index.saturating_mul(width);
        let bytes = logits.bytes().slice(start..start.saturating_add(width));
        let own = Tensor::new(logits.dtype(), vec![size], bytes).and_then(|own| own.to_f64s());
        let own = own.map_err(|error| DataError::Metric(error.to_string()))?;
        all.push(sum(&own, vocabulary, targets)?);
    }
    Ok(all)
}

impl Meter for Perplexity {
    fn add(&mut self, seen: &Seen<'_>) -> Result<(), DataError> {
        let targets = targets(seen.batch)?;
        let found = sums(seen.batch, seen.found, &targets)?;
        for (sum, count) in &found {
            self.found.add(*sum, *count);
        }
        let Some(reference) = seen.reference else { return Ok(()) };
        let reference = sums(seen.batch, reference, &targets)?;
        for ((found, count), (reference, _)) in found.iter().zip(&reference) {
            self.reference.add(*reference, *count);
            self.difference.add(found - reference, *count);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Measured, DataError> {
        let Some(found) = self.found.value() else { return Err(no_samples()) };
        let exp = |interval: Interval| Interval { low: interval.low.exp(), high: interval.high.exp() };
        let reference = self.reference.value().map(f64::exp);
        let change = reference.map(|reference| {
            // The ratio of perplexities is what is known to an interval; times the reference it is a change.
            let scaled = |log: f64| reference * (log.exp() - 1.0);
            let interval = self.difference.interval();
            Change {
                difference: found.exp() - reference,
                interval: interval.map(|i| Interval { low: scaled(i.low), high: scaled(i.high) }),
                counts: None,
            }
        });
        Ok(Measured {
            metric: Metric::Perplexity,
            samples: self.found.samples(),
            value: found.exp(),
            interval: self.found.interval().map(exp),
            reference,
            change,
            basis: Basis::Mean(self.found, true),
        })
    }
}
