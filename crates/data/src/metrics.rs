//! Metrics, each fed batch by batch. Sums are kept in doubles and added in order, so results do not depend
//! on anything but the data and the batch boundaries never matter.

use std::borrow::Cow;

use optix_ir::{DType, Tensor};

use crate::error::DataError;
use crate::signal_noise::decibels;

fn fail<T>(what: String) -> Result<T, DataError> {
    Err(DataError::Metric(what))
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>, DataError> {
    tensor.to_f64s().map_err(|error| DataError::Metric(error.to_string()))
}

/// Scores of classifiers as rows: one a sample. Takes `[samples, classes]`, further axes of size one, or
/// `[classes]` for one sample.
fn rows(scores: &Tensor) -> Result<(Vec<f64>, usize), DataError> {
    let classes = match scores.shape() {
        [classes] => *classes,
        [_, classes, rest @ ..] if rest.iter().all(|&dim| dim == 1) => *classes,
        shape => {
            return fail(format!(
                "class scores have shape [samples, classes]; this output has shape {shape:?}"
            ));
        }
    };
    if classes == 0 {
        return fail("class scores for no classes".to_owned());
    }
    Ok((numbers(scores)?, classes))
}

fn best(row: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (index, &score) in row.iter().enumerate() {
        if score.is_nan() {
            return None;
        }
        if best.is_none_or(|(_, highest)| score > highest) {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}

/// The class with the highest score of each sample, the first one where several have it; `None` for a
/// sample with NaN among its scores. Scores are `[samples, classes]` (see [`Accuracy`]).
///
/// # Errors
/// When the tensor is no such scores.
pub fn top_classes(scores: &Tensor) -> Result<Vec<Option<usize>>, DataError> {
    let (values, classes) = rows(scores)?;
    Ok(values.chunks_exact(classes).map(best).collect())
}

/// Whether the label of each sample is among its `k` highest scores. Of equal scores the lower class index
/// counts as higher; a sample with NaN among its scores is wrong.
///
/// # Errors
/// When the tensor is no `[samples, classes]`, the number of labels differs, or a label is no class.
pub fn correct(scores: &Tensor, labels: &[i64], k: usize) -> Result<Vec<bool>, DataError> {
    let (values, classes) = rows(scores)?;
    let samples = values.len().checked_div(classes).unwrap_or(0);
    if samples != labels.len() {
        return fail(format!("{samples} rows of scores for {} labels", labels.len()));
    }
    let verdict = |(row, &label): (&[f64], &i64)| {
        let place = usize::try_from(label).ok();
        let Some((place, &score)) = place.and_then(|place| Some((place, row.get(place)?))) else {
            return fail(format!(
                "label {label} is not one of the {classes} classes (0 to {})",
                classes.saturating_sub(1)
            ));
        };
        let before = |(index, &other): (usize, &f64)| other > score || (other == score && index < place);
        let rank = row.iter().enumerate().filter(|&pair| before(pair)).count();
        Ok(rank < k && !row.iter().any(|score| score.is_nan()))
    };
    values.chunks_exact(classes).zip(labels).map(verdict).collect()
}

/// Share of samples whose label is among the `k` highest scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accuracy {
    k: usize,
    correct: u64,
    total: u64,
}

impl Accuracy {
    /// Top-`k` accuracy; 1 is plain accuracy.
    pub fn new(k: usize) -> Accuracy {
        Accuracy { k: k.max(1), correct: 0, total: 0 }
    }

    /// Adds samples.
    ///
    /// # Errors
    /// As [`correct`].
    pub fn add(&mut self, scores: &Tensor, labels: &[i64]) -> Result<(), DataError> {
        let verdicts = correct(scores, labels, self.k)?;
        self.total = self.total.saturating_add(verdicts.len() as u64);
        self.correct = self.correct.saturating_add(verdicts.iter().filter(|&&good| good).count() as u64);
        Ok(())
    }

    /// The share, 0 to 1; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        (self.total > 0).then(|| self.correct as f64 / self.total as f64)
    }

    /// Right samples.
    pub fn correct(&self) -> u64 {
        self.correct
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// Share of samples to which two models give the same class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    same: u64,
    total: u64,
}

impl Agreement {
    /// Nothing compared yet.
    pub fn new() -> Agreement {
        Agreement::default()
    }

    /// Adds samples. A NaN among the scores of either model is disagreement.
    ///
    /// # Errors
    /// When a tensor is no `[samples, classes]` or the two differ in shape.
    pub fn add(&mut self, reference: &Tensor, candidate: &Tensor) -> Result<(), DataError> {
        same_shape(reference, candidate)?;
        let (reference, candidate) = (top_classes(reference)?, top_classes(candidate)?);
        self.total = self.total.saturating_add(reference.len() as u64);
        let same = reference.iter().zip(&candidate).filter(|(a, b)| a.is_some() && a == b).count();
        self.same = self.same.saturating_add(same as u64);
        Ok(())
    }

    /// The share, 0 to 1; `None` before the first sample.
    pub fn value(&self) -> Option<f64> {
        (self.total > 0).then(|| self.same as f64 / self.total as f64)
    }

    /// Samples with the same class.
    pub fn same(&self) -> u64 {
        self.same
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.total
    }
}

fn same_shape(reference: &Tensor, candidate: &Tensor) -> Result<(), DataError> {
    if reference.shape() == candidate.shape() {
        return Ok(());
    }
    fail(format!(
        "outputs of different shapes cannot be compared: {:?} and {:?}",
        reference.shape(),
        candidate.shape()
    ))
}

/// How far values are from reference values, over all elements of all batches.
///
/// Infinities and NaN that both sides have in the same place count as equal and stay out of the sums; one
/// that only one side has is counted in [`Distance::non_finite`] and makes every error infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    elements: u64,
    finite: u64,
    non_finite: u64,
    reference_squares: f64,
    candidate_squares: f64,
    products: f64,
    error_squares: f64,
    max_error: f64,
    max_reference: f64,
}

impl Distance {
    /// Nothing compared yet.
    pub fn new() -> Distance {
        Distance::default()
    }

    /// Adds two tensors of one shape; their element types may differ.
    ///
    /// # Errors
    /// When the shapes differ or the elements are no real numbers.
    pub fn add(&mut self, reference: &Tensor, candidate: &Tensor) -> Result<(), DataError> {
        same_shape(reference, candidate)?;
        if (reference.dtype(), candidate.dtype()) == (DType::F32, DType::F32) {
            let slice = |tensor| -> Result<Cow<'_, [f32]>, DataError> {
                Tensor::to_slice::<f32>(tensor).map_err(|error| DataError::Metric(error.to_string()))
            };
            let (reference, candidate) = (slice(reference)?, slice(candidate)?);
            let pairs = reference.iter().zip(candidate.iter());
            pairs.for_each(|(&reference, &candidate)| self.pair(f64::from(reference), f64::from(candidate)));
        } else {
            let (reference, candidate) = (numbers(reference)?, numbers(candidate)?);
            let pairs = reference.iter().zip(&candidate);
            pairs.for_each(|(&reference, &candidate)| self.pair(reference, candidate));
        }
        Ok(())
    }

    #[inline]
    fn pair(&mut self, reference: f64, candidate: f64) {
        self.elements = self.elements.saturating_add(1);
        let error = candidate - reference;
        if error.is_finite() {
            self.finite = self.finite.saturating_add(1);
            self.reference_squares += reference * reference;
            self.candidate_squares += candidate * candidate;
            self.products += reference * candidate;
            self.error_squares += error * error;
            self.max_error = self.max_error.max(error.abs());
            self.max_reference = self.max_reference.max(reference.abs());
        } else if reference != candidate && !(reference.is_nan() && candidate.is_nan()) {
            self.non_finite = self.non_finite.saturating_add(1);
            self.max_error = f64::INFINITY;
            self.error_squares = f64::INFINITY;
        }
    }

    /// Elements compared.
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// Elements where exactly one side is infinite or NaN, or both are in different ways.
    pub fn non_finite(&self) -> u64 {
        self.non_finite
    }

    /// Signal-to-quantization-noise ratio in dB: ten times the logarithm of the reference's power over the
    /// error's. Infinite when there is no error; `None` when there is no signal or nothing was compared.
    pub fn sqnr_db(&self) -> Option<f64> {
        if self.elements == 0 {
            None
        } else if self.error_squares == 0.0 {
            Some(f64::INFINITY)
        } else if self.reference_squares == 0.0 {
            None
        } else {
            Some(decibels(self.error_squares / self.reference_squares))
        }
    }

    /// Cosine of the angle between all reference values and all values, seen as two vectors; `None` when
    /// either is zero.
    pub fn cosine(&self) -> Option<f64> {
        let norm = self.reference_squares.sqrt() * self.candidate_squares.sqrt();
        (norm > 0.0 && self.non_finite == 0).then(|| (self.products / norm).clamp(-1.0, 1.0))
    }

    /// Greatest absolute difference; `None` before the first element.
    pub fn max_absolute_error(&self) -> Option<f64> {
        (self.elements > 0).then_some(self.max_error)
    }

    /// Greatest absolute difference over the greatest absolute reference value; 0 when there is no
    /// difference, `None` when only the reference is zero everywhere.
    pub fn max_relative_error(&self) -> Option<f64> {
        if self.elements == 0 {
            None
        } else if self.max_error == 0.0 {
            Some(0.0)
        } else {
            (self.max_reference > 0.0).then(|| self.max_error / self.max_reference)
        }
    }

    /// Mean of the squared differences; `None` before the first element.
    pub fn mean_squared_error(&self) -> Option<f64> {
        if self.error_squares.is_infinite() {
            return Some(f64::INFINITY);
        }
        match (self.elements, self.finite) {
            (0, _) => None,
            (_, 0) => Some(0.0),
            (_, finite) => Some(self.error_squares / finite as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_vec(shape.to_vec(), values.to_vec())
    }

    #[test]
    fn accuracy_counts_ranks_and_ties() {
        let nan = f32::NAN;
        let scores = tensor(&[4, 3], &[0.1, 0.7, 0.2, 0.5, 0.5, 0.1, 0.0, 0.0, 0.0, nan, 9.0, 1.0]);
        assert_eq!(top_classes(&scores).unwrap(), [Some(1), Some(0), Some(0), None]);
        assert_eq!(correct(&scores, &[1, 1, 2, 1], 1).unwrap(), [true, false, false, false]);
        assert_eq!(correct(&scores, &[2, 1, 2, 1], 2).unwrap(), [true, true, false, false]);
        let mut accuracy = Accuracy::new(1);
        assert_eq!(accuracy.value(), None);
        accuracy.add(&scores, &[1, 0, 0, 1]).unwrap();
        accuracy.add(&tensor(&[1, 3, 1, 1], &[0.0, 1.0, 0.0]), &[0]).unwrap();
        accuracy.add(&tensor(&[2], &[0.0, 1.0]), &[1]).unwrap();
        assert_eq!((accuracy.correct(), accuracy.total()), (4, 6));
        for (scores, labels) in [
            (tensor(&[1, 3], &[0.0; 3]), vec![3]),
            (tensor(&[1, 3], &[0.0; 3]), vec![-1]),
            (tensor(&[1, 3], &[0.0; 3]), vec![0, 0]),
            (tensor(&[1, 2, 2], &[0.0; 4]), vec![0]),
            (tensor(&[1, 0], &[]), vec![0]),
        ] {
            assert!(Accuracy::new(1).add(&scores, &labels).is_err(), "{scores:?} {labels:?}");
        }
    }

    #[test]
    fn agreement_is_of_the_best_class() {
        let mut agreement = Agreement::new();
        let reference = tensor(&[3, 2], &[1.0, 0.0, 0.0, 1.0, f32::NAN, 1.0]);
        agreement.add(&reference, &tensor(&[3, 2], &[9.0, 0.0, 1.0, 0.0, f32::NAN, 1.0])).unwrap();
        assert_eq!((agreement.same(), agreement.total()), (1, 3));
        assert!(agreement.add(&reference, &tensor(&[1, 2], &[0.0; 2])).is_err());
    }

    #[test]
    fn distances_are_those_of_their_formulas() {
        let mut distance = Distance::new();
        assert_eq!(distance.sqnr_db(), None);
        distance.add(&tensor(&[2], &[3.0, 4.0]), &tensor(&[2], &[3.0, 4.5])).unwrap();
        distance.add(&tensor(&[1], &[0.0]), &Tensor::from_vec(vec![1], vec![0.5f64])).unwrap();
        let close = |found: Option<f64>, expected: f64| {
            let found = found.unwrap();
            assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        };
        close(distance.sqnr_db(), 10.0 * 50f64.log10());
        close(distance.cosine(), 27.0 / (5.0 * 29.5f64.sqrt()));
        close(distance.max_absolute_error(), 0.5);
        close(distance.max_relative_error(), 0.125);
        close(distance.mean_squared_error(), 0.5 / 3.0);
        assert!(distance.add(&tensor(&[1], &[0.0]), &tensor(&[1, 1], &[0.0])).is_err());
    }

    #[test]
    fn equal_infinities_are_equal_and_others_are_errors() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let mut same = Distance::new();
        same.add(&tensor(&[3], &[inf, nan, 1.0]), &tensor(&[3], &[inf, nan, 1.0])).unwrap();
        assert_eq!(
            (same.non_finite(), same.max_absolute_error(), same.sqnr_db()),
            (0, Some(0.0), Some(f64::INFINITY))
        );
        for (a, b) in [(inf, 1.0), (1.0, nan), (inf, -inf), (nan, inf)] {
            let mut distance = Distance::new();
            distance.add(&tensor(&[2], &[1.0, a]), &tensor(&[2], &[1.0, b])).unwrap();
            assert_eq!((distance.non_finite(), distance.max_absolute_error()), (1, Some(f64::INFINITY)));
            assert_eq!(distance.sqnr_db(), Some(f64::NEG_INFINITY));
            assert_eq!(distance.mean_squared_error(), Some(f64::INFINITY));
            assert_eq!(distance.cosine(), None);
        }
    }
}
