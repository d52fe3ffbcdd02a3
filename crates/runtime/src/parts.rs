//! Running a batch in parts when a device has no memory for all of it.

use optix_ir::{Tensor, ValueId};

use crate::engine::{Session, Visit};
use crate::error::RuntimeError;

/// How many samples a device has had memory for, and what there is to say about it.
#[derive(Debug)]
pub(crate) struct AtOnce {
    /// Samples that are run together at most.
    most: usize,
}

impl Default for AtOnce {
    fn default() -> Self {
        AtOnce { most: usize::MAX }
    }
}

impl AtOnce {
    /// What a user should know.
    pub(crate) fn remark(&self) -> Option<String> {
        let samples = if self.most == 1 { "1 sample".into() } else { format!("{} samples", self.most) };
        (self.most < usize::MAX).then(|| format!("memory ran out, so {samples} at a time were run"))
    }

    /// [`Session::run_with`] on a batch of `count` samples; when memory runs out, on halves of it, and of
    /// those, whose results are put together. A batch that is made of samples may be cut anywhere.
    ///
    /// # Errors
    /// As [`Session::run_with`]; [`RuntimeError::OutOfMemory`] when not even one sample fits.
    pub(crate) fn run_with(
        &mut self,
        session: &mut dyn Session,
        feeds: &[(ValueId, Tensor)],
        wanted: &[ValueId],
        count: usize,
        visit: Visit<'_>,
    ) -> Result<(), RuntimeError> {
        let mut seen: Vec<ValueId> = Vec::new();
        if count <= self.most {
            let result = session.run_with(feeds, wanted, &mut |value, tensor| {
                seen.push(value);
                visit(value, tensor)
            });
            match result {
                Err(RuntimeError::OutOfMemory { .. }) if can_be_cut(feeds, count) => {}
                other => return other,
            }
        } else if !can_be_cut(feeds, count) {
            return session.run_with(feeds, wanted, visit);
        }
        let left: Vec<ValueId> = wanted.iter().copied().filter(|value| !seen.contains(value)).collect();
        let outputs = self.run(session, feeds, &left, count)?;
        for (value, tensor) in left.iter().zip(&outputs) {
            visit(*value, tensor)?;
        }
        Ok(())
    }

    /// The same, with the wanted values kept.
    ///
    /// # Errors
    /// As [`AtOnce::run_with`].
    pub(crate) fn run(
        &mut self,
        session: &mut dyn Session,
        feeds: &[(ValueId, Tensor)],
        wanted: &[ValueId],
        count: usize,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        if count <= self.most || !can_be_cut(feeds, count) {
            match session.run(feeds, wanted) {
                Err(RuntimeError::OutOfMemory { .. }) if can_be_cut(feeds, count) => {
                    self.most = count.div_ceil(2);
                }
                other => return other,
            }
        }
        let first = count.div_ceil(2).min(self.most.max(1));
        let part = |start: usize, end: usize| -> Result<Vec<(ValueId, Tensor)>, RuntimeError> {
            feeds.iter().map(|(value, tensor)| Ok((*value, rows(tensor, count, start, end)?))).collect()
        };
        let mut left = self.run(session, &part(0, first)?, wanted, first)?;
        let right = self.run(session, &part(first, count)?, wanted, count - first)?;
        for (left, right) in left.iter_mut().zip(right) {
            *left = joined(left, &right, first, count - first)?;
        }
        Ok(left)
    }
}

/// Whether the samples of a batch lie one behind the other in every feed.
fn can_be_cut(feeds: &[(ValueId, Tensor)], count: usize) -> bool {
    let cut = |tensor: &Tensor| tensor.shape().first() == Some(&count) && tensor.dtype().bits() >= 8;
    count > 1 && !feeds.is_empty() && feeds.iter().all(|(_, tensor)| cut(tensor))
}

fn fault(what: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::Environment(format!("a batch cannot be run in parts: {what}"))
}

/// Samples `start..end` of `count`.
fn rows(tensor: &Tensor, count: usize, start: usize, end: usize) -> Result<Tensor, RuntimeError> {
    let row = tensor.bytes().len() / count;
    let mut shape = tensor.shape().to_vec();
    shape[0] = end - start;
    Tensor::new(tensor.dtype(), shape, tensor.bytes().slice(start * row..end * row)).map_err(fault)
}

/// Two parts of a value, of so many samples each; a value that does not depend on the samples is the same
/// in both.
fn joined(left: &Tensor, right: &Tensor, first: usize, second: usize) -> Result<Tensor, RuntimeError> {
    let batched = left.shape().first() == Some(&first)
        && right.shape().first() == Some(&second)
        && left.shape()[1..] == right.shape()[1..]
        && left.dtype() == right.dtype()
        && left.dtype().bits() >= 8;
    if batched {
        let mut shape = left.shape().to_vec();
        shape[0] = first + second;
        let bytes = [left.bytes().as_ref(), right.bytes()].concat();
        return Tensor::new(left.dtype(), shape, bytes.into()).map_err(fault);
    }
    if left == right {
        return Ok(left.clone());
    }
    Err(fault(format!("a value of shape {:?} has no axis of samples", left.shape())))
}

#[cfg(test)]
mod tests {
    use optix_ir::{Model, ModelBuilder};
    use optix_ops::Datum;

    use super::*;
    use crate::{Cpu, Engine, LoadOptions};

    /// A session with memory for some samples only.
    struct Small {
        inner: Box<dyn Session>,
        fits: usize,
        runs: Vec<usize>,
    }

    impl Session for Small {
        fn run_with(
            &mut self,
            feeds: &[(ValueId, Tensor)],
            wanted: &[ValueId],
            visit: Visit<'_>,
        ) -> Result<(), RuntimeError> {
            let count = feeds[0].1.shape()[0];
            self.runs.push(count);
            if count > self.fits {
                // The first value comes out before memory does.
                self.inner.run_with(feeds, &wanted[..1], visit)?;
                return Err(RuntimeError::OutOfMemory { node: "`n`".into(), what: "64 bytes".into() });
            }
            self.inner.run_with(feeds, wanted, visit)
        }

        fn run_data(
            &mut self,
            feeds: &[(ValueId, Datum)],
            wanted: &[ValueId],
        ) -> Result<Vec<Datum>, RuntimeError> {
            self.inner.run_data(feeds, wanted)
        }

        fn required_inputs(&self) -> &[(ValueId, String)] {
            self.inner.required_inputs()
        }
    }

    fn model() -> Model {
        ModelBuilder::new(18)
            .input("x", "float[n, 3]")
            .constant("w", Tensor::from_vec(vec![3], vec![1f32, 2.0, 3.0]))
            .node("Neg", ["w"], ["k"])
            .node("Exp", ["x"], ["a"])
            .node("Mul", ["a", "k"], ["y"])
            .output("y", "float[n, 3]")
            .build()
    }

    fn value(model: &Model, name: &str) -> ValueId {
        model.find_value(model.main(), name).unwrap()
    }

    #[test]
    fn a_batch_that_does_not_fit_is_run_in_parts() {
        let model = model();
        let x = Tensor::from_vec(vec![7, 3], (0..21).map(|i| i as f32 / 8.0).collect::<Vec<f32>>());
        let feeds = [(value(&model, "x"), x)];
        let wanted = ["a", "y", "k"].map(|name| value(&model, name));
        let whole = Cpu.load(&model, &LoadOptions::default()).unwrap().run(&feeds, &wanted).unwrap();
        let inner = Cpu.load(&model, &LoadOptions::default()).unwrap();
        let mut small = Small { inner, fits: 2, runs: Vec::new() };
        let mut at_once = AtOnce::default();
        assert_eq!(at_once.remark(), None);
        for _ in 0..2 {
            let mut found = Vec::new();
            at_once
                .run_with(&mut small, &feeds, &wanted, 7, &mut |value, tensor| {
                    found.push((value, tensor.clone()));
                    Ok(())
                })
                .unwrap();
            for (value, tensor) in wanted.iter().zip(&whole) {
                let shown: Vec<_> = found.iter().filter(|(id, _)| id == value).collect();
                assert_eq!(shown.len(), 1, "each value is shown once");
                assert_eq!(shown[0].1, *tensor);
            }
        }
        assert_eq!(at_once.remark().unwrap(), "memory ran out, so 2 samples at a time were run");
        // The second batch does not try again what did not fit.
        assert_eq!(small.runs.iter().filter(|&&count| count > 2).count(), 3, "{:?}", small.runs);
    }

    #[test]
    fn one_sample_that_does_not_fit_is_an_error() {
        let model = model();
        let x = Tensor::from_vec(vec![2, 3], vec![0f32; 6]);
        let inner = Cpu.load(&model, &LoadOptions::default()).unwrap();
        let mut small = Small { inner, fits: 0, runs: Vec::new() };
        let y = value(&model, "y");
        let error = AtOnce::default().run(&mut small, &[(value(&model, "x"), x)], &[y], 2).unwrap_err();
        assert!(matches!(error, RuntimeError::OutOfMemory { .. }), "{error}");
        assert!(error.to_string().contains("fewer samples"), "{error}");
    }
}
