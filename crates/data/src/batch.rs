//! What a data set hands to an engine.

use optix_ir::{DType, Tensor};

use crate::error::DataError;

/// Samples that are fed together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// One tensor for each input of the model, by name, in the model's order.
    pub feeds: Vec<(String, Tensor)>,
    /// Labels of the samples, when the data set has some.
    pub labels: Option<Labels>,
    /// Content hash of each sample as it stands in the source, before any preprocessing: equal samples of
    /// different files have equal hashes.
    pub hashes: Vec<[u8; 32]>,
    /// Number of samples.
    pub count: usize,
}

impl Batch {
    /// Sample `index` as a batch of its own; `None` when there is no such sample or a feed cannot be taken
    /// apart (packed elements, or a feed without an axis of samples).
    pub fn sample(&self, index: usize) -> Option<Batch> {
        if index >= self.count {
            return None;
        }
        let cut = |tensor: &Tensor| {
            let (&samples, rest) = tensor.shape().split_first()?;
            if samples != self.count || tensor.dtype().is_packed() {
                return None;
            }
            let shape: Vec<usize> = std::iter::once(1).chain(rest.iter().copied()).collect();
            let elements = optix_ir::element_count(&shape)?;
            if tensor.dtype() == DType::String {
                let strings = tensor.strings().ok()?;
                return Some(Tensor::from_strings(shape, strings.chunks(elements.max(1)).nth(index)?));
            }
            let size = tensor.dtype().byte_len(elements)?;
            let start = size.checked_mul(index)?;
            let end = start.checked_add(size).filter(|&end| end <= tensor.bytes().len())?;
            Tensor::new(tensor.dtype(), shape, tensor.bytes().slice(start..end)).ok()
        };
        let feeds = self.feeds.iter().map(|(name, tensor)| Some((name.clone(), cut(tensor)?)));
        let labels = self.labels.as_ref().and_then(|labels| labels.sample(index));
        let hashes = self.hashes.get(index).copied().into_iter().collect();
        Some(Batch { feeds: feeds.collect::<Option<_>>()?, labels, hashes, count: 1 })
    }

    /// The first `count` samples of it; all of it when it has no more, or when a feed is not one tensor of
    /// all samples. Labels are left out.
    pub fn truncated(self, count: usize) -> Batch {
        let batched = |tensor: &Tensor| tensor.shape().first() == Some(&self.count);
        if count >= self.count || count == 0 || !self.feeds.iter().all(|(_, tensor)| batched(tensor)) {
            return Batch { labels: None, ..self };
        }
        let cut = |tensor: &Tensor| {
            let shape: Vec<usize> =
                std::iter::once(count).chain(tensor.shape().iter().skip(1).copied()).collect();
            let elements = optix_ir::element_count(&shape)?;
            let bytes = tensor.dtype().byte_len(elements)?;
            // A packed type may end in the middle of a byte, a string has no fixed size: those stay whole.
            let whole = !tensor.dtype().is_packed() && bytes <= tensor.bytes().len();
            whole.then(|| Tensor::new(tensor.dtype(), shape, tensor.bytes().slice(..bytes)).ok()).flatten()
        };
        let feeds: Option<Vec<(String, Tensor)>> =
            self.feeds.iter().map(|(name, tensor)| Some((name.clone(), cut(tensor)?))).collect();
        match feeds {
            Some(feeds) => {
                Batch { feeds, labels: None, hashes: self.hashes.into_iter().take(count).collect(), count }
            }
            None => Batch { labels: None, ..self },
        }
    }
}

/// Labels of consecutive samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// Index of the first sample among those the data set yields, from 0.
    pub first: u64,
    /// One label a sample.
    pub values: LabelValues,
}

/// What the labels are.
#[derive(Clone, Debug, PartialEq)]
pub enum LabelValues {
    /// Class indices.
    Classes(Vec<i64>),
    /// Anything else that is one tensor a sample: strings, regression targets, masks.
    Tensors(Vec<Tensor>),
    /// Outputs that were recorded with the sample (`output_N.pb`), with their names, in order.
    Outputs(Vec<Vec<(String, Tensor)>>),
}

impl Labels {
    /// The label of sample `index`.
    fn sample(&self, index: usize) -> Option<Labels> {
        let values = match &self.values {
            LabelValues::Classes(classes) => LabelValues::Classes(vec![*classes.get(index)?]),
            LabelValues::Tensors(tensors) => LabelValues::Tensors(vec![tensors.get(index)?.clone()]),
            LabelValues::Outputs(outputs) => LabelValues::Outputs(vec![outputs.get(index)?.clone()]),
        };
        Some(Labels { first: self.first.saturating_add(index as u64), values })
    }

    /// The class indices, when the labels are that.
    pub fn classes(&self) -> Option<&[i64]> {
        match &self.values {
            LabelValues::Classes(classes) => Some(classes),
            _ => None,
        }
    }
}

/// Checks that all labels are class indices from 0 to `class_count - 1` and returns them.
///
/// # Errors
/// Naming the first sample whose label is not, and the label.
pub fn check_labels(labels: &Labels, class_count: usize) -> Result<&[i64], DataError> {
    let Some(classes) = labels.classes() else {
        let what = match &labels.values {
            LabelValues::Tensors(tensors) => match tensors.first() {
                Some(tensor) => format!("{} tensors of shape {:?}", tensor.dtype(), tensor.shape()),
                None => "no integers".to_owned(),
            },
            _ => "recorded outputs".to_owned(),
        };
        return Err(DataError::Labels(format!(
            "the labels are {what}, but class indices (integers from 0) are needed for accuracy"
        )));
    };
    let outside = |label: i64| usize::try_from(label).is_ok_and(|label| label < class_count);
    match classes.iter().zip(labels.first..).find(|(label, _)| !outside(**label)) {
        None => Ok(classes),
        Some((label, sample)) => Err(DataError::Labels(format!(
            "sample {sample} (from 0) has label {label}, but the model has {class_count} classes: labels must \
             be 0 to {}; check that the labels belong to this model and start at 0",
            class_count.saturating_sub(1)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_outside_the_classes_are_named() {
        let labels = |values| Labels { first: 100, values };
        let good = labels(LabelValues::Classes(vec![0, 9]));
        assert_eq!(check_labels(&good, 10).unwrap(), [0, 9]);
        let cases = [
            (LabelValues::Classes(vec![3, 10]), "sample 101 (from 0) has label 10"),
            (LabelValues::Classes(vec![-1]), "sample 100 (from 0) has label -1"),
            (LabelValues::Tensors(vec![Tensor::scalar(0.5f32)]), "float tensors"),
            (LabelValues::Tensors(vec![Tensor::from_strings(vec![], &["cat"])]), "string tensors"),
            (LabelValues::Outputs(vec![]), "recorded outputs"),
        ];
        for (values, expected) in cases {
            let error = check_labels(&labels(values), 10).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
