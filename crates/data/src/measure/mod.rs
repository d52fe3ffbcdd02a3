//! Metrics by name: what a user may ask `eval` for, fed batch by batch, and what came of it.
//!
//! Each metric looks at one output of a model. Those that say how right it is need labels; those that say
//! how near it is need a reference: another model's output on the same samples, or outputs and targets
//! that the data hold. With another model, the difference is always that of the same samples.

mod classes;
mod command;
mod fidelity;
mod probe;
mod text;

use optix_ir::Tensor;

use crate::batch::{Batch, LabelValues};
use crate::error::DataError;
use crate::spec::did_you_mean;
use crate::statistics::{Interval, Mean, PairedCounts, Verdict, judge_share};

pub use probe::{Probe, ProbeFit};

/// A metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Share of samples whose label is among the so many highest scores.
    Top(usize),
    /// Share of samples where a single score is on the right side of one half; labels are 0 and 1.
    BinaryAccuracy,
    /// F1 of the classes, averaged over those that occur.
    F1Macro,
    /// F1 over all decisions; with one label a sample this is the accuracy.
    F1Micro,
    /// Perplexity of a language model: the exponential of the mean negative log-likelihood of a token.
    Perplexity,
    /// Share of samples that a linear classifier gets right from the output, after it was fitted on the
    /// outputs for labelled training data: what an encoder's embeddings are good for.
    Probe,
    /// Share of samples whose highest score is in the same place as in the reference.
    Agreement,
    /// Mean divergence of Kullback and Leibler from the reference's distribution to the output's, in nats.
    Kl,
    /// Mean over the samples of the cosine between output and reference.
    Cosine,
    /// Ratio of signal to quantization noise over all elements, in dB.
    SqnrDb,
    /// Greatest absolute difference of an element.
    MaxAbsError,
    /// Mean absolute difference of an element.
    MeanAbsError,
    /// A command that reads one JSON document a sample and prints a number.
    Command(String),
}

/// What a metric needs beside the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Labels.
    Labels,
    /// Another model's output, or outputs among the data.
    Reference,
    /// Neither.
    Nothing,
}

/// Which values of a metric are good ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// High ones.
    Higher,
    /// Low ones.
    Lower,
}

/// The names, as users write them; `topN` stands for one with any N.
const NAMES: [(&str, Option<Metric>); 14] = [
    ("topN", None),
    ("accuracy", Some(Metric::Top(1))),
    ("binary-accuracy", Some(Metric::BinaryAccuracy)),
    ("f1", Some(Metric::F1Macro)),
    ("f1-micro", Some(Metric::F1Micro)),
    ("perplexity", Some(Metric::Perplexity)),
    ("probe", Some(Metric::Probe)),
    ("agreement", Some(Metric::Agreement)),
    ("kl", Some(Metric::Kl)),
    ("cosine", Some(Metric::Cosine)),
    ("sqnr-db", Some(Metric::SqnrDb)),
    ("max-abs-error", Some(Metric::MaxAbsError)),
    ("mean-abs-error", Some(Metric::MeanAbsError)),
    ("cmd:COMMAND", None),
];

impl Metric {
    /// The metric of that name.
    ///
    /// # Errors
    /// What the names are, when it is none.
    pub fn parse(text: &str) -> Result<Metric, String> {
        if let Some(command) = text.strip_prefix("cmd:") {
            return match command.trim() {
                "" => Err("`cmd:` needs the command behind it".to_owned()),
                command => Ok(Metric::Command(command.to_owned())),
            };
        }
        if let Some(k) = text.strip_prefix("top").and_then(|k| k.parse::<usize>().ok()).filter(|&k| k > 0) {
            return Ok(Metric::Top(k));
        }
        let named = NAMES.iter().find(|(name, _)| *name == text).and_then(|(_, metric)| metric.clone());
        named.ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            let hint = did_you_mean(text, names.iter().copied().chain(["top1", "top5"]));
            format!("there is no metric `{text}`{hint} (there are: {})", names.join(", "))
        })
    }

    /// Its name, as [`Metric::parse`] takes it.
    pub fn name(&self) -> String {
        match self {
            Metric::Top(k) => format!("top{k}"),
            Metric::Command(command) => format!("cmd:{command}"),
            metric => NAMES
                .iter()
                .find(|(_, named)| named.as_ref() == Some(metric))
                .map_or_else(String::new, |(name, _)| (*name).to_owned()),
        }
    }

    /// What it needs.
    pub fn needs(&self) -> Needs {
        match self {
            Metric::Top(_) | Metric::BinaryAccuracy | Metric::F1Macro | Metric::F1Micro | Metric::Probe => {
                Needs::Labels
            }
            Metric::Perplexity | Metric::Command(_) => Needs::Nothing,
            _ => Needs::Reference,
        }
    }

    /// Which of its values are good ones.
    pub fn better(&self) -> Better {
        match self {
            Metric::Perplexity | Metric::Kl | Metric::MaxAbsError | Metric::MeanAbsError => Better::Lower,
            _ => Better::Higher,
        }
    }

    /// Whether it is a share of samples, which people read as percent.
    pub fn is_share(&self) -> bool {
        let scores =
            [Metric::BinaryAccuracy, Metric::F1Macro, Metric::F1Micro, Metric::Probe, Metric::Agreement];
        matches!(self, Metric::Top(_)) || scores.contains(self)
    }
}

/// A batch, what the model gave for it, and what another model gave.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The samples.
    pub batch: &'a Batch,
    /// Name of the output.
    pub output: &'a str,
    /// The model's output.
    pub found: &'a Tensor,
    /// The other model's output.
    pub reference: Option<&'a Tensor>,
}

impl Seen<'_> {
    /// Class labels, checked against the number of classes.
    fn classes(&self, count: usize) -> Result<&[i64], DataError> {
        match &self.batch.labels {
            Some(labels) => crate::batch::check_labels(labels, count),
            None => Err(DataError::Labels("the samples have no labels, which this metric needs".to_owned())),
        }
    }

    /// What is measured against: the other model's output, or what the data hold; one row a sample.
    fn references(&self) -> Result<Vec<Vec<f64>>, DataError> {
        let numbers =
            |tensor: &Tensor| tensor.to_f64s().map_err(|error| DataError::Metric(error.to_string()));
        if let Some(reference) = self.reference {
            return rows_of(reference, self.batch.count);
        }
        match self.batch.labels.as_ref().map(|labels| &labels.values) {
            Some(LabelValues::Tensors(tensors)) => tensors.iter().map(numbers).collect(),
            Some(LabelValues::Outputs(outputs)) => {
                let named = |outputs: &Vec<(String, Tensor)>| {
                    let found = outputs.iter().find(|(name, _)| name == self.output);
                    let missing =
                        || DataError::Labels(format!("the data record no output `{}`", self.output));
                    found.map(|(_, tensor)| numbers(tensor)).ok_or_else(missing)?
                };
                outputs.iter().map(named).collect()
            }
            _ => Err(DataError::Metric(
                "there is nothing to compare the output with: give another model with --vs, or data that hold the \
                 expected outputs"
                    .to_owned(),
            )),
        }
    }
}

/// The numbers of a value as one row a sample.
fn rows_of(tensor: &Tensor, count: usize) -> Result<Vec<Vec<f64>>, DataError> {
    let values = tensor.to_f64s().map_err(|error| DataError::Metric(error.to_string()))?;
    let size = values.len().checked_div(count).unwrap_or(0);
    if size.checked_mul(count) != Some(values.len()) {
        return Err(DataError::Metric(format!("{} numbers for {count} samples", values.len())));
    }
    if size == 0 {
        return Ok(vec![Vec::new(); count]);
    }
    Ok(values.chunks(size).map(<[f64]>::to_vec).collect())
}

/// Something that is fed batch by batch and in the end knows a metric.
pub trait Meter {
    /// Adds a batch.
    ///
    /// # Errors
    /// When output, labels or reference are not what the metric needs.
    fn add(&mut self, seen: &Seen<'_>) -> Result<(), DataError>;

    /// What came of it.
    ///
    /// # Errors
    /// When there were no samples, or a command failed.
    fn finish(self: Box<Self>) -> Result<Measured, DataError>;
}

/// Starts a meter. `probes` are the fitted classifiers of the model and of the other one, where the metric
/// is [`Metric::Probe`].
///
/// # Errors
/// When a command cannot be started, or a probe is missing.
pub fn meter(metric: &Metric, probes: Vec<Probe>) -> Result<Box<dyn Meter>, DataError> {
    Ok(match metric {
        Metric::Top(_) | Metric::BinaryAccuracy | Metric::Probe | Metric::Agreement => {
            Box::new(classes::Shares::new(metric.clone(), probes)?)
        }
        Metric::F1Macro | Metric::F1Micro => Box::new(classes::F1::new(metric.clone())),
        Metric::Perplexity => Box::new(text::Perplexity::default()),
        Metric::Kl | Metric::Cosine | Metric::MeanAbsError => Box::new(fidelity::Means::new(metric.clone())),
        Metric::SqnrDb | Metric::MaxAbsError => Box::new(fidelity::Whole::new(metric.clone())),
        Metric::Command(command) => Box::new(command::Command::start(command)?),
    })
}

/// A measured metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The metric.
    pub metric: Metric,
    /// Samples.
    pub samples: u64,
    /// Its value; shares are 0 to 1. Infinite where nothing differs, for a ratio of signal to noise.
    pub value: f64,
    /// 95% interval of the value, where samples are independent and it is a mean.
    pub interval: Option<Interval>,
    /// The other model's value on the same samples, of metrics that judge one model.
    pub reference: Option<f64>,
    /// The change from the other model's.
    pub change: Option<Change>,
    basis: Basis,
}

/// A change from one model to another on the same samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// This model's value minus the other's.
    pub difference: f64,
    /// Its 95% interval, from the paired samples.
    pub interval: Option<Interval>,
    /// Samples by which of the two is right, where that is what is counted.
    pub counts: Option<PairedCounts>,
}

/// What a verdict is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Basis {
    /// Successes of samples.
    Share(u64, u64),
    /// A mean over samples; the value is its exponential when the flag is set.
    Mean(Mean, bool),
    /// An interval without a known number of samples that would narrow it.
    Interval,
    /// A figure that is what it is.
    Plain,
}

impl Measured {
    /// Whether the value is at least (or, where low ones are better, at most) `threshold`, judged by the
    /// unfavourable end of its interval; and that end.
    pub fn judge(&self, threshold: f64) -> (Verdict, f64) {
        let better = self.metric.better();
        let bound = match (self.interval, better) {
            (None, _) => self.value,
            (Some(interval), Better::Higher) => interval.low,
            (Some(interval), Better::Lower) => interval.high,
        };
        let verdict = match self.basis {
            Basis::Share(good, total) => judge_share(good, total, threshold),
            Basis::Mean(mean, false) => mean.judge(threshold, better),
            Basis::Mean(mean, true) => mean.judge(threshold.ln(), better),
            Basis::Interval | Basis::Plain => {
                let good = |value: f64| match better {
                    Better::Higher => value >= threshold,
                    Better::Lower => value <= threshold,
                };
                let best = match (self.interval, better) {
                    (None, _) => self.value,
                    (Some(interval), Better::Higher) => interval.high,
                    (Some(interval), Better::Lower) => interval.low,
                };
                match (good(bound), good(best)) {
                    (true, _) => Verdict::Met,
                    (false, false) => Verdict::Missed,
                    (false, true) => Verdict::Inconclusive { samples_needed: None },
                }
            }
        };
        (verdict, bound)
    }

    /// Whether a share dropped by at most so many percentage points, judged by the upper bound of the drop,
    /// and that bound in points; `None` for other metrics and without another model.
    pub fn judge_drop(&self, points: f64) -> Option<(Verdict, f64)> {
        let change = self.change?.counts?.change()?;
        Some((change.judge_drop(points / 100.0), change.drop_upper_bound() * 100.0))
    }
}

#[cfg(test)]
mod tests;
