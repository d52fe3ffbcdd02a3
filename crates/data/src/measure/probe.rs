//! A linear classifier on a model's outputs: what embeddings are good for.

use std::collections::BTreeMap;

use optix_ir::Tensor;

use super::{Seen, rows_of};
use crate::error::DataError;

/// Weight of the squared coefficients in the fit, as in ridge regression.
const RIDGE: f64 = 0.1;

/// Widest embedding that is fitted: the equations have its square as size.
const WIDEST: usize = 8192;

/// Most classes.
const MOST_CLASSES: usize = 10_000;

/// The normal equations of a classifier, filled batch by batch from labelled data.
#[derive(Clone, Debug, Default)]
pub struct ProbeFit {
    /// Numbers of an embedding, and a one.
    width: usize,
    /// Lower triangle of the products of all pairs, row by row.
    products: Vec<f64>,
    /// Of each class: the sum of its samples.
    sums: BTreeMap<i64, Vec<f64>>,
    samples: u64,
}

/// A row of unit length, with a one behind it.
fn unit(mut row: Vec<f64>) -> Vec<f64> {
    let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|x| *x /= norm);
    }
    row.push(1.0);
    row
}

impl ProbeFit {
    /// Adds labelled samples; `seen.found` is their embeddings, any shape with an axis of samples.
    ///
    /// # Errors
    /// Without class labels, with embeddings of changing or very great width, or with NaN in them.
    pub fn add(&mut self, seen: &Seen<'_>) -> Result<(), DataError> {
        let labels = seen.classes(MOST_CLASSES)?;
        for (row, &label) in rows_of(seen.found, seen.batch.count)?.into_iter().zip(labels) {
            let row = unit(row);
            if self.samples == 0 {
                self.width = row.len();
                self.products = vec![0.0; triangle(row.len())];
            }
            if row.len() != self.width || row.len() > WIDEST {
                let what = format!(
                    "a probe takes embeddings of one size, at most {WIDEST} numbers; output `{}` has {}",
                    seen.output,
                    row.len().saturating_sub(1)
                );
                return Err(DataError::Metric(what));
            }
            if row.iter().any(|x| !x.is_finite()) {
                let what =
                    format!("output `{}` has NaN or infinite numbers: no probe fits them", seen.output);
                return Err(DataError::Metric(what));
            }
            let mut products = self.products.iter_mut();
            for (index, x) in row.iter().enumerate() {
                for (y, product) in row.iter().take(index.saturating_add(1)).zip(&mut products) {
                    *product += x * y;
                }
            }
            let sums = self.sums.entry(label).or_insert_with(|| vec![0.0; row.len()]);
            sums.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x);
            self.samples = self.samples.saturating_add(1);
        }
        Ok(())
    }

    /// Solves the equations: one column a class, 1 for its samples and -1 for the others.
    ///
    /// # Errors
    /// With fewer than two classes.
    pub fn finish(mut self) -> Result<Probe, DataError> {
        if self.sums.len() < 2 {
            let what = format!(
                "a probe is fitted on samples of two classes or more; the training data have {}",
                self.sums.len()
            );
            return Err(DataError::Labels(what));
        }
        for index in 0..self.width {
            if let Some(diagonal) = self.products.get_mut(triangle(index).saturating_add(index)) {
                *diagonal += RIDGE;
            }
        }
        let factor = cholesky(self.products, self.width);
        let mut all = vec![0.0; self.width];
        for sums in self.sums.values() {
            all.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
        }
        let column = |sums: &Vec<f64>| {
            let right = sums.iter().zip(&all).map(|(own, all)| 2.0 * own - all).collect();
            solve(&factor, right)
        };
        let classes = self.sums.keys().copied().collect();
        Ok(Probe { classes, weights: self.sums.values().map(column).collect() })
    }
}

/// Elements above row `row` of a lower triangle.
fn triangle(row: usize) -> usize {
    row.saturating_mul(row.saturating_add(1)).checked_div(2).unwrap_or(0)
}

/// The lower factor of a symmetric positive definite matrix (Cholesky), both as lower triangles.
fn cholesky(mut a: Vec<f64>, width: usize) -> Vec<f64> {
    for row in 0..width {
        let (before, own) = a.split_at_mut(triangle(row));
        for column in 0..=row {
            let start = triangle(column);
            let (done, rest) = own.split_at_mut(column);
            let Some(element) = rest.first_mut() else { continue };
            if column == row {
                let sum: f64 = done.iter().map(|x| x * x).sum();
                // Positive because of the ridge; rounding cannot eat all of it.
                *element = (*element - sum).max(f64::MIN_POSITIVE).sqrt();
            } else {
                let above = before.get(start..start.saturating_add(column)).unwrap_or_default();
                let sum: f64 = done.iter().zip(above).map(|(x, y)| x * y).sum();
                let diagonal = before.get(start.saturating_add(column)).copied().unwrap_or(1.0);
                *element = (*element - sum) / diagonal;
            }
        }
    }
    a
}

/// Solves with the factor of [`cholesky`]: forwards, then backwards.
fn solve(factor: &[f64], mut x: Vec<f64>) -> Vec<f64> {
    for row in 0..x.len() {
        let coefficients = factor.get(triangle(row)..).unwrap_or_default();
        let (done, rest) = x.split_at_mut(row);
        let sum: f64 = coefficients.iter().zip(done.iter()).map(|(a, b)| a * b).sum();
        let diagonal = coefficients.get(row).copied().unwrap_or(1.0);
        if let Some(own) = rest.first_mut() {
            *own = (*own - sum) / diagonal;
        }
    }
    for row in (0..x.len()).rev() {
        let coefficients = factor.get(triangle(row)..).unwrap_or_default();
        let (before, rest) = x.split_at_mut(row);
        let Some(own) = rest.first_mut() else { continue };
        *own /= coefficients.get(row).copied().unwrap_or(1.0);
        before.iter_mut().zip(coefficients).for_each(|(x, a)| *x -= a * *own);
    }
    x
}

/// A fitted classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    classes: Vec<i64>,
    /// Of each class: one coefficient a number of the embedding, and one for the one behind it.
    weights: Vec<Vec<f64>>,
}

impl Probe {
    /// The class of each sample.
    ///
    /// # Errors
    /// When the embeddings are not what the classifier was fitted on.
    pub fn classify(&self, embeddings: &Tensor, samples: usize) -> Result<Vec<i64>, DataError> {
        let mut found = Vec::with_capacity(samples);
        for row in rows_of(embeddings, samples)? {
            let row = unit(row);
            if self.weights.first().is_some_and(|weights| weights.len() != row.len()) {
                let what = format!(
                    "the probe was fitted on embeddings of another size than {}",
                    row.len().saturating_sub(1)
                );
                return Err(DataError::Metric(what));
            }
            let score = |weights: &Vec<f64>| weights.iter().zip(&row).map(|(a, b)| a * b).sum::<f64>();
            let scores = self.weights.iter().map(score).zip(&self.classes);
            let best = scores.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, class)| *class);
            found.push(best.unwrap_or(i64::MIN));
        }
        Ok(found)
    }
}
