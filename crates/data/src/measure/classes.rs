//! Metrics of class scores: shares of samples, and F1.

use optix_ir::Tensor;

use super::{Basis, Change, Measured, Meter, Metric, Probe, Seen, rows_of};
use crate::error::DataError;
use crate::metrics::{correct, top_classes};
use crate::statistics::{Interval, PairedCounts, wilson};

/// A share of samples, each right or wrong.
pub(super) struct Shares {
    metric: Metric,
    probes: Vec<Probe>,
    counts: PairedCounts,
    /// Whether there is another model.
    is_paired: bool,
}

impl Shares {
    pub(super) fn new(metric: Metric, probes: Vec<Probe>) -> Result<Shares, DataError> {
        if metric == Metric::Probe && probes.is_empty() {
            let what = "the metric `probe` fits a classifier first: give labelled data for that with --train";
            return Err(DataError::Metric(what.to_owned()));
        }
        Ok(Shares { metric, probes, counts: PairedCounts::default(), is_paired: false })
    }

    /// Whether each sample is right.
    fn verdicts(&self, seen: &Seen<'_>, scores: &Tensor, which: usize) -> Result<Vec<bool>, DataError> {
        match (&self.metric, self.probes.get(which)) {
            (Metric::Probe, Some(probe)) => {
                let labels = seen.classes(usize::MAX)?;
                let classes = probe.classify(scores, seen.batch.count)?;
                Ok(classes.iter().zip(labels).map(|(class, label)| class == label).collect())
            }
            (Metric::BinaryAccuracy, _) => {
                let labels = seen.classes(2)?;
                let rows = rows_of(scores, seen.batch.count)?;
                let verdict = |(row, &label): (&Vec<f64>, &i64)| match row.as_slice() {
                    [score] => Ok(!score.is_nan() && (*score > 0.5) == (label == 1)),
                    _ => Err(DataError::Metric(format!(
                        "binary-accuracy is of one score a sample; output `{}` has {}: use top1",
                        seen.output,
                        row.len()
                    ))),
                };
                rows.iter().zip(labels).map(verdict).collect()
            }
            (metric, _) => {
                let k = if let Metric::Top(k) = metric { *k } else { 1 };
                let classes = class_count(scores);
                correct(scores, seen.classes(classes)?, k)
            }
        }
    }
}

/// Classes of `[samples, classes]` scores; the metric itself complains of other shapes.
fn class_count(scores: &Tensor) -> usize {
    let axis = usize::from(scores.rank() > 1);
    scores.shape().get(axis).copied().unwrap_or(0)
}

impl Meter for Shares {
    fn add(&mut self, seen: &Seen<'_>) -> Result<(), DataError> {
        if self.metric == Metric::Agreement {
            let Some(reference) = seen.reference else {
                let what = "agreement is with another model: give it with --vs";
                return Err(DataError::Metric(what.to_owned()));
            };
            let pairs = top_classes(reference)?;
            let found = top_classes(seen.found)?;
            if pairs.len() != found.len() || class_count(reference) != class_count(seen.found) {
                let what = format!(
                    "outputs of different shapes cannot agree: {:?} and {:?}",
                    reference.shape(),
                    seen.found.shape()
                );
                return Err(DataError::Metric(what));
            }
            let same: Vec<bool> = pairs.iter().zip(&found).map(|(a, b)| a.is_some() && a == b).collect();
            self.counts.add(&vec![true; same.len()], &same);
            return Ok(());
        }
        let found = self.verdicts(seen, seen.found, 0)?;
        let reference = match seen.reference {
            None => vec![false; found.len()],
            Some(reference) => self.verdicts(seen, reference, 1)?,
        };
        self.is_paired |= seen.reference.is_some();
        self.counts.add(&reference, &found);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Measured, DataError> {
        let Some(change) = self.counts.change() else { return Err(no_samples()) };
        let good = self.counts.both.saturating_add(self.counts.only_candidate);
        Ok(Measured {
            metric: self.metric,
            samples: self.counts.total(),
            value: change.candidate,
            interval: Some(wilson(good, self.counts.total())),
            reference: self.is_paired.then_some(change.reference),
            change: self.is_paired.then_some(Change {
                difference: change.difference,
                interval: Some(change.interval),
                counts: Some(self.counts),
            }),
            basis: Basis::Share(good, self.counts.total()),
        })
    }
}

pub(super) fn no_samples() -> DataError {
    DataError::Metric("there were no samples to measure".to_owned())
}

/// F1 from all labels and decisions.
pub(super) struct F1 {
    metric: Metric,
    classes: usize,
    /// Label, decision, the other model's decision; a decision of [`NONE`] is wrong whatever the label.
    seen: Vec<[u32; 3]>,
    is_paired: bool,
}

/// No class: scores with NaN among them.
const NONE: u32 = u32::MAX;

/// Resamples for an interval, and the samples they may go through in all.
const RESAMPLES: u64 = 1000;
const MOST_DRAWS: u64 = 200_000_000;

impl F1 {
    pub(super) fn new(metric: Metric) -> F1 {
        F1 { metric, classes: 0, seen: Vec::new(), is_paired: false }
    }

    /// F1 of the samples that `draw` gives, of the model and of the other one.
    fn of(&self, samples: impl Iterator<Item = usize>) -> (f64, f64) {
        /// Right decisions, decisions and labels of each class.
        #[derive(Clone, Copy, Default)]
        struct Class([u64; 3]);
        let mut classes = vec![[Class::default(); 2]; self.classes];
        for sample in samples {
            let Some(&[label, found, reference]) = self.seen.get(sample) else { continue };
            for (side, decision) in [found, reference].into_iter().enumerate() {
                let mut count = |class: u32, what: usize| {
                    let class = classes.get_mut(class as usize).and_then(|class| class.get_mut(side));
                    if let Some(count) = class.and_then(|class| class.0.get_mut(what)) {
                        *count = count.saturating_add(1);
                    }
                };
                if label == decision {
                    count(label, 0);
                }
                count(decision, 1);
                count(label, 2);
            }
        }
        let f1 = |[right, decided, labelled]: [u64; 3]| {
            2.0 * right as f64 / (decided.saturating_add(labelled)).max(1) as f64
        };
        let side = |side: usize| {
            let counts = classes.iter().filter_map(|class| class.get(side)).map(|class| class.0);
            let occurring = counts.filter(|[_, decided, labelled]| decided.saturating_add(*labelled) > 0);
            if self.metric == Metric::F1Micro {
                let add = |a: [u64; 3], b: [u64; 3]| {
                    let [a0, a1, a2] = a;
                    let [b0, b1, b2] = b;
                    [a0.saturating_add(b0), a1.saturating_add(b1), a2.saturating_add(b2)]
                };
                return f1(occurring.fold([0; 3], add));
            }
            let (sum, count) =
                occurring.fold((0.0, 0.0), |(sum, count), class| (sum + f1(class), count + 1.0));
            if count > 0.0 { sum / count } else { 0.0 }
        };
        (side(0), side(1))
    }

    /// Intervals of the value and of the change: the middle 95% of what samples drawn anew give (Efron's
    /// percentile bootstrap), the same ones for both models.
    fn intervals(&self) -> Option<(Interval, Interval)> {
        let n = self.seen.len() as u64;
        let rounds = MOST_DRAWS.checked_div(n)?.min(RESAMPLES);
        if n < 2 || rounds < 100 {
            return None;
        }
        let mut random = SplitMix(0);
        let (mut values, mut changes) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (found, reference) = self.of((0..n).map(|_| random.below(n)));
            values.push(found);
            changes.push(found - reference);
        }
        let middle = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            let at = |share: f64| {
                let index = (values.len() as f64 * share) as usize;
                values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
            };
            Interval { low: at(0.025), high: at(0.975) }
        };
        Some((middle(&mut values), middle(&mut changes)))
    }
}

impl Meter for F1 {
    fn add(&mut self, seen: &Seen<'_>) -> Result<(), DataError> {
        let classes = class_count(seen.found);
        self.classes = self.classes.max(classes);
        let found = top_classes(seen.found)?;
        let labels = seen.classes(classes)?;
        let reference = match seen.reference {
            None => found.clone(),
            Some(reference) => top_classes(reference)?,
        };
        self.is_paired |= seen.reference.is_some();
        if found.len() != labels.len() || reference.len() != labels.len() {
            let what = format!("{} rows of scores for {} labels", found.len(), labels.len());
            return Err(DataError::Metric(what));
        }
        let class = |class: Option<usize>| class.and_then(|class| u32::try_from(class).ok()).unwrap_or(NONE);
        let rows = labels.iter().zip(found).zip(reference);
        self.seen.extend(rows.map(|((&label, found), reference)| {
            [u32::try_from(label).unwrap_or(NONE), class(found), class(reference)]
        }));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Measured, DataError> {
        if self.seen.is_empty() {
            return Err(no_samples());
        }
        let (found, reference) = self.of(0..self.seen.len());
        let intervals = self.intervals();
        Ok(Measured {
            samples: self.seen.len() as u64,
            value: found,
            interval: intervals.map(|(value, _)| value),
            reference: self.is_paired.then_some(reference),
            change: self.is_paired.then_some(Change {
                difference: found - reference,
                interval: intervals.map(|(_, change)| change),
                counts: None,
            }),
            basis: Basis::Interval,
            metric: self.metric,
        })
    }
}

/// A small generator of random numbers (Steele, Lea and Flood, SplitMix64): the same intervals on every
/// machine.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, n: u64) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        usize::try_from(u128::from(z).saturating_mul(u128::from(n)) >> 64).unwrap_or(0)
    }
}
