//! A look at all samples of a data set, as a model would get them.

use std::collections::{BTreeMap, HashMap};

use optix_ir::{DType, Tensor};

use crate::bind::Bound;
use crate::dataset::{ArrayInfo, Dataset};
use crate::error::DataError;
use crate::source::{Label, Sample};
use crate::steps::{Chain, ChainError, Given, StepError, Tokenizers};

/// Samples that cannot be used and are named; the rest is counted.
const NAMED: usize = 20;

/// Different shapes that are told apart.
const SHAPES: usize = 64;

/// Samples whose hashes are kept to find equal ones.
const HASHED: usize = 2_000_000;

/// Samples shown.
const SHOWN: usize = 3;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Samples that can be used.
    pub good: u64,
    /// Samples that cannot.
    pub broken: u64,
    /// Why, for the first of them.
    pub errors: Vec<String>,
    /// Whether reading stopped at the last error: what follows it is unknown.
    pub stopped: bool,
    /// Samples that equal an earlier one, before any step.
    pub duplicates: u64,
    /// The first of these: a sample, and the earlier one it equals.
    pub equal: Vec<(u64, u64)>,
    /// Whether only the first two million samples were looked at for equal ones.
    pub hashes_full: bool,
    /// Samples of each class.
    pub classes: BTreeMap<i64, u64>,
    /// Samples with a label that is no class.
    pub other_labels: u64,
    /// What each input of the model gets; without a model, what the steps give.
    pub inputs: Vec<Values>,
    /// The first samples.
    pub first: Vec<Preview>,
}

/// The values of one input over all samples.
#[derive(Clone, Debug)]
pub struct Values {
    /// The input, or the array where no model is given.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shapes of samples, with how many have each; those beyond 64 different ones are left out.
    pub shapes: BTreeMap<Vec<usize>, u64>,
    /// Least and greatest finite value.
    pub range: Option<(f64, f64)>,
    /// Mean of the finite values.
    pub mean: f64,
    /// Standard deviation of the finite values.
    pub std: f64,
    /// Values that are NaN.
    pub nan: u64,
    /// Values that are infinite.
    pub infinite: u64,
    /// Samples whose values are all the same.
    pub constant: u64,
    count: u64,
    squares: f64,
}

/// One sample, for people.
#[derive(Clone, Debug)]
pub struct Preview {
    /// Its number, from 0.
    pub index: u64,
    /// Its file or line; empty where there is none.
    pub place: String,
    /// Its label.
    pub label: Option<String>,
    /// What the inputs get, in their order.
    pub inputs: Vec<String>,
}

impl Values {
    fn new(name: &str, dtype: DType) -> Values {
        Values {
            name: name.to_owned(),
            dtype,
            shapes: BTreeMap::new(),
            range: None,
            mean: 0.0,
            std: 0.0,
            nan: 0,
            infinite: 0,
            constant: 0,
            count: 0,
            squares: 0.0,
        }
    }

    fn add(&mut self, tensor: &Tensor) {
        if self.shapes.len() < SHAPES || self.shapes.contains_key(tensor.shape()) {
            let slot = self.shapes.entry(tensor.shape().to_vec()).or_default();
            *slot = slot.saturating_add(1);
        }
        let Ok(values) = tensor.to_f64s() else { return };
        let mut range: Option<(f64, f64)> = None;
        for value in &values {
            if value.is_nan() {
                self.nan = self.nan.saturating_add(1);
            } else if value.is_infinite() {
                self.infinite = self.infinite.saturating_add(1);
            } else {
                range = Some(
                    range.map_or((*value, *value), |(least, most)| (least.min(*value), most.max(*value))),
                );
                // Welford's way: no digits are lost in large sums.
                self.count = self.count.saturating_add(1);
                let before = value - self.mean;
                self.mean += before / self.count as f64;
                self.squares += before * (value - self.mean);
            }
        }
        if values.len() > 1 && range.is_some_and(|(least, most)| least == most) {
            self.constant = self.constant.saturating_add(1);
        }
        self.range = match (self.range, range) {
            (Some(a), Some(b)) => Some((a.0.min(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        self.std = (self.squares / (self.count.max(1)) as f64).sqrt();
    }
}

/// What makes a sample ready: a model's inputs, or the tables of the specification.
enum Maker<'a> {
    Bound(&'a Bound),
    Tables(Vec<(String, usize, Chain)>),
}

impl Maker<'_> {
    fn make(&self, dataset: &Dataset, sample: &Sample, index: u64) -> Result<Vec<Tensor>, DataError> {
        match self {
            Maker::Bound(bound) => bound.feeds(sample, index),
            Maker::Tables(tables) => {
                let names: Vec<String> = dataset.arrays().iter().map(|info| info.name.clone()).collect();
                let make = |(name, array, chain): &(String, usize, Chain)| {
                    chain.apply(&Given { names: &names, sample, array: *array }).map_err(|error| {
                        let place = sample.facts.place();
                        dataset.complain(format!("sample {index} (from 0){place}, input `{name}`: {error}"))
                    })
                };
                tables.iter().map(make).collect()
            }
        }
    }
}

/// The steps of the specification without a model: each table, and arrays without one as they are.
fn tables(dataset: &Dataset) -> Result<Vec<(String, usize, Chain)>, DataError> {
    let mut known = Tokenizers::default();
    let mut made = Vec::new();
    if dataset.spec().inputs.is_empty() {
        return Ok(as_they_are(dataset, &mut known));
    }
    let first = dataset.first()?;
    let names: Vec<String> = dataset.arrays().iter().map(|info| info.name.clone()).collect();
    for table in &dataset.spec().inputs {
        let wanted = table.from.as_deref().or(table.name.as_deref());
        let by_name = wanted.and_then(|name| dataset.arrays().iter().position(|info| info.name == name));
        let Some(array) =
            by_name.or_else(|| dataset.text_array()).or((dataset.arrays().len() == 1).then_some(0))
        else {
            continue;
        };
        let name = table.name.clone().unwrap_or_else(|| "input".to_owned());
        let refuse = |error: StepError| {
            let line = table.lines.get(error.index).copied();
            dataset.step_error(line, format!("input `{name}`: {error}{}", first.facts.place()))
        };
        let chain = match Chain::new(&table.steps, &name, &mut known, dataset.limits()) {
            Ok(chain) => chain,
            Err(ChainError::File(error)) => return Err(error),
            Err(ChainError::Step(error)) => return Err(refuse(error)),
        };
        chain.apply(&Given { names: &names, sample: &first, array }).map_err(refuse)?;
        made.push((name, array, chain));
    }
    if made.is_empty() {
        return Ok(as_they_are(dataset, &mut known));
    }
    Ok(made)
}

/// Every array without any step.
fn as_they_are(dataset: &Dataset, known: &mut Tokenizers) -> Vec<(String, usize, Chain)> {
    let arrays = dataset.arrays().iter().enumerate();
    let of = |(index, info): (usize, &ArrayInfo)| {
        let chain = Chain::new(&[], "", known, dataset.limits()).ok()?;
        Some((info.name.clone(), index, chain))
    };
    arrays.filter_map(of).collect()
}

impl Dataset {
    /// Reads every sample once, with the inputs of a model (`bound`) or without one. `tick` is told how many
    /// samples have been read.
    ///
    /// # Errors
    /// When the steps make no sense whatever the sample; samples that cannot be used are in the survey.
    pub fn survey(&self, bound: Option<&Bound>, tick: &mut dyn FnMut(u64)) -> Result<Survey, DataError> {
        let maker = match bound {
            Some(bound) => Maker::Bound(bound),
            None => Maker::Tables(tables(self)?),
        };
        let dataset = bound.map_or(self, Bound::dataset);
        let names: Vec<String> = match &maker {
            Maker::Bound(bound) => bound.input_names().map(str::to_owned).collect(),
            Maker::Tables(tables) => tables.iter().map(|(name, ..)| name.clone()).collect(),
        };
        let mut survey = Survey::default();
        let mut hashes: HashMap<[u8; 16], u64> = HashMap::new();
        let mut samples = dataset.samples()?;
        loop {
            let index = samples.taken();
            let made = match samples.next() {
                None => break,
                Some(Ok((sample, hash))) => {
                    maker.make(dataset, &sample, index).map(|feeds| (sample, hash, feeds))
                }
                Some(Err(error)) => Err(error),
            };
            match made {
                Ok((sample, hash, feeds)) => {
                    survey.add(dataset, &names, index, &sample, &feeds);
                    if sample.tensors.is_empty() {
                        continue;
                    }
                    let [short, _] = hash.as_chunks::<16>().0 else { continue };
                    match hashes.get(short) {
                        Some(&earlier) => {
                            survey.duplicates = survey.duplicates.saturating_add(1);
                            if survey.equal.len() < SHOWN {
                                survey.equal.push((index, earlier));
                            }
                        }
                        None if hashes.len() < HASHED => {
                            hashes.insert(*short, index);
                        }
                        None => survey.hashes_full = true,
                    }
                }
                Err(error) => {
                    survey.broken = survey.broken.saturating_add(1);
                    if survey.errors.len() < NAMED {
                        survey.errors.push(error.to_string());
                    }
                    if samples.is_over() && (!samples.has_more() || !samples.resume()) {
                        survey.stopped = samples.has_more();
                        break;
                    }
                }
            }
            tick(survey.good.saturating_add(survey.broken));
        }
        Ok(survey)
    }
}

impl Survey {
    fn add(&mut self, dataset: &Dataset, names: &[String], index: u64, sample: &Sample, feeds: &[Tensor]) {
        self.good = self.good.saturating_add(1);
        if self.inputs.is_empty() {
            self.inputs =
                names.iter().zip(feeds).map(|(name, feed)| Values::new(name, feed.dtype())).collect();
        }
        for (values, feed) in self.inputs.iter_mut().zip(feeds) {
            values.add(feed);
        }
        match &sample.label {
            Some(Label::Class(class)) => {
                let slot = self.classes.entry(*class).or_default();
                *slot = slot.saturating_add(1);
            }
            Some(_) => self.other_labels = self.other_labels.saturating_add(1),
            None => {}
        }
        if self.first.len() < SHOWN {
            let label = sample.label.as_ref().map(|label| match label {
                Label::Class(class) => {
                    let name = dataset.class_name(*class);
                    name.map_or_else(|| class.to_string(), |name| format!("{class} ({name})"))
                }
                Label::Tensor(tensor) => shown(tensor),
                Label::Outputs(outputs) => format!("{} recorded outputs", outputs.len()),
            });
            let place = sample.facts.place().trim_start_matches(", ").to_owned();
            self.first.push(Preview { index, place, label, inputs: feeds.iter().map(shown).collect() });
        }
    }
}

/// A tensor in a few words: type, shape, and its values or their range.
fn shown(tensor: &Tensor) -> String {
    let head = format!("{}{:?}", tensor.dtype(), tensor.shape());
    if let Ok(texts) = tensor.strings() {
        let text =
            texts.first().map(|text| String::from_utf8_lossy(text).chars().take(60).collect::<String>());
        return format!("{head} \"{}\"", optix_base::escape_for_terminal(&text.unwrap_or_default()));
    }
    let Ok(values) = tensor.to_f64s() else { return head };
    if values.len() <= 8 || (!tensor.dtype().is_float() && tensor.rank() == 1) {
        let list: Vec<String> = values.iter().take(12).map(|value| number(*value)).collect();
        let more = if values.len() > list.len() { ", ..." } else { "" };
        return format!("{head} {}{more}", list.join(", "));
    }
    let (least, most) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &value| (a.min(value), b.max(value)));
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    format!("{head} least {} mean {} greatest {}", number(least), number(mean), number(most))
}

/// A number in as many digits as people want to see.
fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e9 { format!("{value}") } else { format!("{value:.4}") }
}
