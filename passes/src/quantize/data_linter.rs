//! What calibration data look like, and what is wrong with them.
//!
//! Only what can be shown is claimed. Inputs in the wrong layout do not come this far where the model states
//! its shapes: binding data to it refuses them.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

use optix_ir::{DType, Model, Tensor, ValueId};
use optix_pipeline::{Batch, Cx, DataError};

use super::observer::Observer;

/// Things of one kind that are named; the rest is counted.
const NAMED: usize = 5;

/// Sample hashes kept to find equal samples: 8 bytes each.
const HASHES: usize = 1 << 20;

/// Growth of a range in the last tenth of the samples that is told.
const GROWTH: f64 = 0.05;

/// Samples from which on growth and settling say something.
const ENOUGH: u64 = 20;

/// What one input was fed.
#[derive(Clone, Debug)]
struct Fed {
    least: f64,
    most: f64,
    /// Whether all values were whole numbers.
    whole: bool,
    rank: usize,
    /// Samples whose values were all the same.
    constant: u64,
}

/// What the batches were.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Samples before the current batch.
    before: u64,
    /// Samples of the current batch.
    count: usize,
    inputs: BTreeMap<String, Fed>,
    /// Only asked whether it holds something, never gone through.
    hashes: HashSet<u64>,
    /// Samples equal to an earlier one.
    equal: u64,
    /// The first of them.
    first_equal: Option<u64>,
    /// Samples kept to measure on, with their numbers.
    kept: Vec<(u64, Batch)>,
    /// They are every first, second, fourth ... one, as binary logarithm.
    spacing: u32,
}

/// Samples kept at most.
const KEPT: usize = 32;

/// Bytes of samples kept at most, unless one alone has more.
const KEPT_BYTES: usize = 1 << 25;

fn size(sample: &Batch) -> usize {
    sample.feeds.iter().map(|(_, tensor)| tensor.bytes().len()).sum()
}

/// One sample of a batch with bytes of its own: a part would keep all of the batch in memory.
fn alone(batch: &Batch, index: usize) -> Option<Batch> {
    let mut sample = match batch.sample(index) {
        Some(sample) => sample,
        None if batch.count == 1 => batch.clone(),
        None => return None,
    };
    for (_, tensor) in &mut sample.feeds {
        let bytes = tensor.bytes().to_vec();
        *tensor = Tensor::new(tensor.dtype(), tensor.shape().to_vec(), bytes.into()).ok()?;
    }
    sample.labels = None;
    Some(sample)
}

impl Seen {
    /// Samples of the current batch.
    pub(super) fn batch(&self) -> usize {
        self.count
    }

    /// So many of the samples, spread over all that were seen.
    pub(super) fn spread(&self, count: usize) -> Vec<Batch> {
        let wanted = count.min(self.kept.len());
        (0..wanted).map(|index| self.kept[index * self.kept.len() / wanted].1.clone()).collect()
    }

    /// Keeps samples that are evenly apart, whatever the batches are.
    fn keep(&mut self, batch: &Batch) {
        for (number, index) in (self.before..).zip(0..batch.count) {
            if number & ((1 << self.spacing) - 1) == 0
                && let Some(sample) = alone(batch, index)
            {
                self.kept.push((number, sample));
            }
            let bytes: usize = self.kept.iter().map(|(_, sample)| size(sample)).sum();
            if self.kept.len() > KEPT || (bytes > KEPT_BYTES && self.kept.len() > 1) {
                self.spacing += 1;
                let mask = (1 << self.spacing) - 1;
                self.kept.retain(|(number, _)| number & mask == 0);
            }
        }
    }

    fn look(&mut self, batch: &Batch) {
        self.before += self.count as u64;
        self.count = batch.count;
        self.keep(batch);
        for (index, hash) in batch.hashes.iter().enumerate() {
            let short = u64::from_le_bytes(std::array::from_fn(|byte| hash[byte]));
            if self.hashes.contains(&short) {
                self.equal += 1;
                self.first_equal.get_or_insert(self.before + index as u64);
            } else if self.hashes.len() < HASHES {
                self.hashes.insert(short);
            }
        }
        for (name, tensor) in &batch.feeds {
            if tensor.dtype() != DType::F32 {
                continue;
            }
            let Ok(values) = tensor.to_slice::<f32>() else { continue };
            let nothing =
                Fed { least: f64::INFINITY, most: f64::NEG_INFINITY, whole: true, rank: 0, constant: 0 };
            let fed = self.inputs.entry(name.clone()).or_insert(nothing);
            fed.rank = tensor.rank();
            let samples = if tensor.shape().first() == Some(&batch.count) { batch.count } else { 1 };
            let size = values.len() / samples.max(1);
            if size == 0 {
                continue;
            }
            for sample in values.chunks_exact(size) {
                let (mut least, mut most, mut whole) = (f32::INFINITY, f32::NEG_INFINITY, true);
                for &x in sample {
                    least = least.min(x);
                    most = most.max(x);
                    whole &= x == x.trunc();
                }
                fed.constant += u64::from(least == most && size > 1);
                fed.least = fed.least.min(f64::from(least));
                fed.most = fed.most.max(f64::from(most));
                fed.whole &= whole;
            }
        }
    }
}

/// Batches on their way to the engine, looked at.
pub(super) struct Watched<'a, I> {
    pub(super) batches: I,
    pub(super) seen: &'a RefCell<Seen>,
    /// Samples after which no further batch is given.
    pub(super) most: Option<u64>,
}

impl<I: Iterator<Item = Result<Batch, DataError>>> Iterator for Watched<'_, I> {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut seen = self.seen.borrow_mut();
        if self.most.is_some_and(|most| seen.before + seen.count as u64 >= most) {
            return None;
        }
        let batch = self.batches.next()?;
        if let Ok(batch) = &batch {
            seen.look(batch);
        }
        Some(batch)
    }
}

/// The first few of a list, and how many more there are.
fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let shown = names[..names.len().min(NAMED)].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn plural(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// Warns of everything that makes calibration doubtful.
pub(super) fn report(
    model: &Model,
    observers: &BTreeMap<ValueId, Observer>,
    samples: u64,
    seen: &Seen,
    cx: &mut Cx<'_>,
) {
    report_inputs(samples, seen, cx);
    for (&value, observer) in observers {
        let name = model.value(value).name();
        if observer.non_finite() > 0 {
            cx.warn(format!(
                "`{name}`: {} values were NaN and {} infinite during calibration",
                observer.nan(),
                observer.non_finite() - observer.nan()
            ));
        }
        match observer.range() {
            None => {
                cx.warn(format!(
                    "`{name}` never had a finite value during calibration: its scale is a guess"
                ));
            }
            Some((min, max)) if min == max => {
                cx.warn(format!("`{name}` was {min} throughout calibration: its scale is a guess"));
            }
            Some(_) => {}
        }
    }
    report_growth(model, observers, samples, cx);
    report_dead_channels(model, observers, cx);
}

fn report_inputs(samples: u64, seen: &Seen, cx: &mut Cx<'_>) {
    if let Some(first) = seen.first_equal {
        cx.warn(format!(
            "{} of {samples} calibration samples equal an earlier one (the first is sample {first}, from 0): they add nothing",
            seen.equal
        ));
    }
    for (name, fed) in &seen.inputs {
        if fed.constant > 0 {
            cx.warn(format!(
                "input `{name}`: all values are the same in {} of {samples} calibration samples",
                fed.constant
            ));
        }
        if fed.rank == 4 && fed.whole && fed.least >= 0.0 && fed.most > 100.0 && fed.most <= 255.0 {
            cx.warn(format!(
                "input `{name}` is float and was fed whole numbers up to {}: bytes of an image that were not scaled or normalized?",
                fed.most
            ));
        }
    }
}

/// Ranges that grew to the end, and the sample at which they had settled.
fn report_growth(model: &Model, observers: &BTreeMap<ValueId, Observer>, samples: u64, cx: &mut Cx<'_>) {
    if samples < ENOUGH {
        cx.warn(format!(
            "{} of calibration data: too few to see whether ranges settle; some hundred are usual",
            plural(samples, "sample")
        ));
        return;
    }
    let mut settled: Vec<u64> = observers.values().map(Observer::settled_after).collect();
    settled.sort_unstable();
    let Some(&last) = settled.last() else { return };
    let most = settled[(settled.len() - 1) * 9 / 10];
    cx.count("samples until 9 of 10 ranges settled", most);
    cx.count("samples until all ranges settled", last);
    let before = samples - samples / 10;
    let mut grown: Vec<(f64, &str)> = observers
        .iter()
        .map(|(&value, observer)| (observer.growth_since(before), model.value(value).name()))
        .filter(|(growth, _)| *growth > GROWTH)
        .collect();
    grown.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    if !grown.is_empty() {
        let of = observers.len();
        let names: Vec<String> = grown
            .iter()
            .map(|(growth, name)| {
                if growth.is_finite() {
                    format!("`{name}` by {:.0}%", growth * 100.0)
                } else {
                    format!("`{name}` from nothing")
                }
            })
            .collect();
        cx.warn(format!(
            "{} of {of} ranges still grew in the last tenth of {samples} samples: {}; 9 of 10 had settled after {most}: more samples may be needed",
            grown.len(),
            listed(&names)
        ));
    }
}

/// Channels that were zero in every sample though their tensor was not.
fn report_dead_channels(model: &Model, observers: &BTreeMap<ValueId, Observer>, cx: &mut Cx<'_>) {
    let (mut names, mut dead, mut of) = (Vec::new(), 0u64, 0u64);
    for (&value, observer) in observers {
        let (Some((min, max)), Some(channels)) = (observer.range(), observer.channels()) else { continue };
        if min < 0.0 || max <= 0.0 {
            continue;
        }
        of += channels.len() as u64;
        let here =
            channels.iter().filter(|channel| channel.range().is_some_and(|(_, max)| max <= 0.0)).count();
        if here > 0 {
            dead += here as u64;
            names.push(format!("`{}` {here} of {}", model.value(value).name(), channels.len()));
        }
    }
    if dead > 0 {
        cx.warn(format!(
            "{dead} of {of} channels after Relu and the like were never active: {}",
            listed(&names)
        ));
    }
}
