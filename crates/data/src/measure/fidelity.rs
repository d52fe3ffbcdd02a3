//! How near an output is to a reference.

use super::classes::no_samples;
use super::{Basis, Measured, Meter, Metric, Seen, rows_of};
use crate::error::DataError;
use crate::metrics::Distance;
use crate::statistics::Mean;

/// A mean over samples: cosine, absolute error, divergence.
pub(super) struct Means {
    metric: Metric,
    mean: Mean,
    /// Whether the reference holds probabilities already; decided by the first batch.
    are_probabilities: Option<bool>,
}

impl Means {
    pub(super) fn new(metric: Metric) -> Means {
        Means { metric, mean: Mean::default(), are_probabilities: None }
    }
}

/// Whether rows are distributions: nothing negative, a sum of one.
fn are_probabilities<'a>(mut rows: impl Iterator<Item = &'a [f64]>) -> bool {
    rows.all(|row| row.iter().all(|&p| p >= 0.0) && (row.iter().sum::<f64>() - 1.0).abs() < 1e-3)
}

/// Logarithms of a distribution that scores stand for.
pub(super) fn log_softmax(row: &[f64]) -> Vec<f64> {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|score| (score - most).exp()).sum();
    let log = most + sum.ln();
    row.iter().map(|score| score - log).collect()
}

fn divergence(reference: &[f64], found: &[f64], are_probabilities: bool) -> f64 {
    /// Probabilities that were rounded to zero are taken for the least that 32-bit floats hold.
    const LEAST: f64 = f32::MIN_POSITIVE as f64;
    let logs = |row: &[f64]| match are_probabilities {
        true => row.iter().map(|p| p.max(LEAST).ln()).collect(),
        false => log_softmax(row),
    };
    let (p, q) = (logs(reference), logs(found));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
    match norms {
        // Two zero vectors point the same way; one alone points nowhere.
        0.0 => f64::from(u8::from(a == b)),
        norms => (dot(a, b) / norms).clamp(-1.0, 1.0),
    }
}

impl Meter for Means {
    fn add(&mut self, seen: &Seen<'_>) -> Result<(), DataError> {
        let (found, reference) = (rows_of(seen.found, seen.batch.count)?, seen.references()?);
        let width = seen.found.shape().last().copied().unwrap_or(1).max(1);
        if self.metric == Metric::Kl && self.are_probabilities.is_none() {
            let rows = reference.iter().flat_map(|row| row.chunks(width));
            self.are_probabilities = Some(are_probabilities(rows));
        }
        for (found, reference) in found.iter().zip(&reference) {
            if found.len() != reference.len() {
                let what = format!(
                    "output `{}` has {} numbers a sample, the reference {}",
                    seen.output,
                    found.len(),
                    reference.len()
                );
                return Err(DataError::Metric(what));
            }
            match self.metric {
                Metric::Cosine => self.mean.add(cosine(reference, found), 1.0),
                Metric::MeanAbsError => {
                    let pairs = found.iter().zip(reference);
                    // The same infinity on both sides is no difference.
                    let error = pairs.map(|(a, b)| if a == b { 0.0 } else { (a - b).abs() }).sum();
                    self.mean.add(error, found.len() as f64);
                }
                _ => {
                    let known = self.are_probabilities.unwrap_or(false);
                    let pairs = reference.chunks(width).zip(found.chunks(width));
                    let (sum, count) = pairs.fold((0.0, 0.0), |(sum, count), (reference, found)| {
                        (sum + divergence(reference, found, known), count + 1.0)
                    });
                    self.mean.add(sum, count);
                }
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Measured, DataError> {
        let Some(value) = self.mean.value() else { return Err(no_samples()) };
        Ok(Measured {
            metric: self.metric,
            samples: self.mean.samples(),
            value,
            interval: self.mean.interval(),
            reference: None,
            change: None,
            basis: Basis::Mean(self.mean, false),
        })
    }
}

/// A figure over all elements of all samples.
pub(super) struct Whole {
    metric: Metric,
    samples: u64,
    distance: Distance,
}

impl Whole {
    pub(super) fn new(metric: Metric) -> Whole {
        Whole { metric, samples: 0, distance: Distance::new() }
    }
}

impl Meter for Whole {
    fn add(&mut self, seen: &Seen<'_>) -> Result<(), DataError> {
        self.samples = self.samples.saturating_add(seen.batch.count as u64);
        if let Some(reference) = seen.reference {
            return self.distance.add(reference, seen.found);
        }
        let found = rows_of(seen.found, seen.batch.count)?;
        for (reference, found) in seen.references()?.into_iter().zip(found) {
            if reference.len() != found.len() {
                return Err(DataError::Labels(format!(
                    "a sample's label has {} numbers and its output {}: --metric says what to measure, --output on which output",
                    reference.len(),
                    found.len()
                )));
            }
            let flat = |row: Vec<f64>| optix_ir::Tensor::from_vec(vec![row.len()], row);
            self.distance.add(&flat(reference), &flat(found))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Measured, DataError> {
        let value = match self.metric {
            Metric::SqnrDb => self.distance.sqnr_db(),
            _ => self.distance.max_absolute_error(),
        };
        if self.distance.elements() == 0 {
            return Err(no_samples());
        }
        Ok(Measured {
            metric: self.metric,
            samples: self.samples,
            // There is no signal: any noise is infinitely more.
            value: value.unwrap_or(f64::NEG_INFINITY),
            interval: None,
            reference: None,
            change: None,
            basis: Basis::Plain,
        })
    }
}
