//! Data matched with a model's inputs, and the batches that come of it.

use optix_ir::{Dim, Tensor};

use crate::batch::{Batch, LabelValues, Labels};
use crate::dataset::{Dataset, InputSpec, Samples};
use crate::error::DataError;
use crate::mismatch::{Row, cure, table, written};
use crate::source::{Label, Sample};
use crate::spec::{InputSteps, did_you_mean};
use crate::steps::{Chain, ChainError, Given, Side, Step, StepError, Tokenizers, cast};

/// A data set whose samples fit a model's inputs.
#[derive(Clone, Debug)]
pub struct Bound {
    dataset: Dataset,
    inputs: Vec<BoundInput>,
    /// Names of the source's arrays.
    names: Vec<String>,
    batch: usize,
    /// The model's batch axis has a fixed size above one.
    is_fixed: bool,
    is_batched: bool,
    unused: Vec<String>,
}

#[derive(Clone, Debug)]
struct BoundInput {
    spec: InputSpec,
    /// Index among the source's arrays.
    array: usize,
    steps: Chain,
}

impl BoundInput {
    /// How samples of different lengths are made one length, where the steps say so.
    fn fill(&self, a: &Tensor, b: &Tensor) -> Option<(i64, Side)> {
        self.steps.fill().filter(|_| a.rank() == 1 && b.rank() == 1)
    }

    /// The samples, each as long as the longest one.
    fn filled(&self, column: Vec<Tensor>) -> Result<Vec<Tensor>, String> {
        let longest = column.iter().map(Tensor::len).max().unwrap_or(0);
        let (Some((value, side)), true) =
            (self.steps.fill(), column.iter().any(|tensor| tensor.rank() == 1 && tensor.len() != longest))
        else {
            return Ok(column);
        };
        let fill = |tensor: Tensor| {
            let one = cast(&Tensor::scalar(value), tensor.dtype())?;
            let rest = one.bytes().repeat(longest.saturating_sub(tensor.len()));
            let parts: [&[u8]; 2] = match side {
                Side::Right => [tensor.bytes(), &rest],
                Side::Left => [&rest, tensor.bytes()],
            };
            Tensor::new(tensor.dtype(), vec![longest], parts.concat().into())
                .map_err(|error| error.to_string())
        };
        column.into_iter().map(fill).collect()
    }
}

/// How an input gets its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The model's input.
    pub input: String,
    /// Its type and shape.
    pub wanted: String,
    /// The array of the source; empty where it has no name.
    pub array: String,
    /// Type and shape of one sample of it, before any step.
    pub found: String,
    /// Names of the steps.
    pub steps: Vec<String>,
}

/// How a sample relates to an input.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// One axis less: samples are put together along axis 0.
    Batched,
    /// The input's own rank: fed one at a time.
    Whole,
    No,
}

fn fit(sample: &Tensor, input: &InputSpec) -> Fit {
    let admits = |dims: &[Dim]| dims.iter().zip(sample.shape()).all(|(dim, &size)| dim.admits(size));
    let rank = input.shape.len();
    if sample.dtype() != input.dtype {
        Fit::No
    } else if sample.rank() == rank && admits(&input.shape) {
        Fit::Whole
    } else if sample.rank().checked_add(1) == Some(rank) && admits(input.shape.get(1..).unwrap_or_default()) {
        Fit::Batched
    } else {
        Fit::No
    }
}

impl Bound {
    pub(crate) fn new(dataset: &Dataset, inputs: &[InputSpec], batch: usize) -> Result<Bound, DataError> {
        if inputs.is_empty() {
            return Err(dataset.complain("the model has no inputs, so there is nothing to feed data to"));
        }
        let tables = tables_of(dataset, inputs)?;
        let matched = match_arrays(dataset, inputs, &tables);
        let first = dataset.first()?;
        let names: Vec<String> = dataset.arrays().iter().map(|info| info.name.clone()).collect();
        let (mut rows, mut cures, mut good) = (Vec::new(), Vec::new(), true);
        let (mut bound, mut fits): (Vec<BoundInput>, _) = (Vec::new(), Vec::new());
        let mut tokenizers = Tokenizers::default();
        for ((input, table), array) in inputs.iter().zip(&tables).zip(&matched) {
            let wanted = format!("{}: {}", input.name, written(input.dtype, &input.shape));
            let steps = table.map(|table| table.steps.as_slice()).unwrap_or_default();
            let Some(array) = array.filter(|index| first.tensors.get(*index).is_some()) else {
                good = false;
                rows.push(Row { wanted, found: "nothing of this name".to_owned() });
                continue;
            };
            let refuse = |error: StepError| {
                let line = table.and_then(|table| table.lines.get(error.index)).copied();
                dataset.step_error(line, format!("input `{}`: {error}{}", input.name, first.facts.place()))
            };
            let chain = match Chain::new(steps, &input.name, &mut tokenizers, dataset.limits()) {
                Ok(chain) => chain,
                Err(ChainError::Step(error)) => return Err(refuse(error)),
                Err(ChainError::File(error)) => return Err(error),
            };
            let sample = chain.apply(&Given { names: &names, sample: &first, array }).map_err(refuse)?;
            let name = dataset.arrays().get(array).map_or("", |info| info.name.as_str());
            let separator = if name.is_empty() { "" } else { ": " };
            rows.push(Row {
                wanted,
                found: format!("{name}{separator}{}", written(sample.dtype(), sample.shape())),
            });
            let fit = fit(&sample, input);
            good &= fit != Fit::No;
            fits.push(fit);
            if fit == Fit::No {
                cures.extend(cure(input, &sample));
            }
            bound.push(BoundInput { spec: input.clone(), array, steps: chain });
        }
        let pairs: Vec<&str> = bound.iter().filter_map(|input| input.steps.pair()).collect();
        let used = |index: usize, name: &str| matched.contains(&Some(index)) || pairs.contains(&name);
        let arrays = dataset.arrays().iter().enumerate().filter(|(index, info)| !used(*index, &info.name));
        let unused: Vec<String> = arrays.map(|(_, info)| info.name.clone()).collect();
        if dataset.is_ordered() && !unused.is_empty() {
            good = false;
            cures.push(format!(
                "the data have {} inputs, the model takes {}",
                dataset.arrays().len(),
                inputs.len()
            ));
        } else if !good && !unused.is_empty() {
            let list: Vec<String> = unused.iter().map(|name| format!("`{name}`")).collect();
            cures.push(format!(
                "arrays that match no input: {} (`from = \"NAME\"` under [input.NAME] in a data.toml pairs them)",
                list.join(", ")
            ));
        }
        if !good {
            return Err(dataset.complain(table(&rows, &cures)));
        }
        let (batch, is_batched, is_fixed) = batch_size(dataset, &bound, &fits, batch)?;
        if is_fixed && dataset.len().is_some_and(|count| count < batch as u64) {
            let count = dataset.len().unwrap_or(0);
            let what =
                format!("the model takes exactly {batch} samples at a time and there are only {count}");
            return Err(dataset.complain(what));
        }
        Ok(Bound { dataset: dataset.clone(), inputs: bound, names, batch, is_fixed, is_batched, unused })
    }

    /// The data set.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Greatest number of samples in a batch.
    pub fn batch_size(&self) -> usize {
        self.batch
    }

    /// Whether axis 0 of every feed counts samples; otherwise samples have the input's own rank and each
    /// batch is one sample as it is.
    pub fn is_batched(&self) -> bool {
        self.is_batched
    }

    /// Number of samples that the batches will have; `None` when only a pass over the data tells.
    pub fn len(&self) -> Option<u64> {
        let count = self.dataset.len()?;
        let rest = count.checked_rem(self.batch as u64).unwrap_or(0);
        Some(if self.is_fixed { count.saturating_sub(rest) } else { count })
    }

    /// Never: a data set without samples does not open.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Arrays of the data that no input takes.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// How each input gets its data: the input, the array it comes from, the steps, and what they give.
    pub fn bindings(&self) -> Vec<Binding> {
        let arrays = self.dataset.arrays();
        let of = |input: &BoundInput| {
            let info = arrays.get(input.array);
            Binding {
                input: input.spec.name.clone(),
                wanted: written(input.spec.dtype, &input.spec.shape),
                array: info.map_or_else(String::new, |info| info.name.clone()),
                found: info.map_or_else(String::new, |info| written(info.dtype, &info.shape)),
                steps: input.steps.steps().iter().map(|step| step.name().to_owned()).collect(),
            }
        };
        self.inputs.iter().map(of).collect()
    }

    /// What the user should know: arrays not used, samples left out because the model's batch axis is fixed.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.unused.is_empty() {
            notes.push(format!("arrays not used: {}", self.unused.join(", ")));
        }
        let left_out = self.dataset.len().zip(self.len()).map_or(0, |(all, used)| all.saturating_sub(used));
        if left_out > 0 {
            notes.push(format!(
                "the last {left_out} samples are left out: the model takes exactly {} at a time",
                self.batch
            ));
        }
        notes
    }

    /// A fresh stream of batches, from the first sample.
    ///
    /// # Errors
    /// When the source cannot be opened again.
    pub fn batches(&self) -> Result<Batches, DataError> {
        Ok(Batches {
            bound: self.clone(),
            samples: self.dataset.samples()?,
            pending: None,
            left_out: 0,
            done: false,
        })
    }

    fn prepare(&self, sample: Sample, hash: [u8; 32], index: u64) -> Result<Ready, DataError> {
        Ok(Ready { feeds: self.feeds(&sample, index)?, label: sample.label, hash, index })
    }

    /// Names of the model's inputs, in its order.
    pub(crate) fn input_names(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| input.spec.name.as_str())
    }

    /// What the inputs get of a sample.
    pub(crate) fn feeds(&self, sample: &Sample, index: u64) -> Result<Vec<Tensor>, DataError> {
        let mut feeds = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let at = |what: String| {
                let place = sample.facts.place();
                let what = format!("sample {index} (from 0){place}, input `{}`: {what}", input.spec.name);
                self.dataset.complain(what)
            };
            let given = Given { names: &self.names, sample, array: input.array };
            let tensor = input.steps.apply(&given).map_err(|error| at(error.to_string()))?;
            let wanted = if self.is_batched { Fit::Batched } else { Fit::Whole };
            let fit = fit(&tensor, &input.spec);
            // A sample that is fed alone may lack the axis of size one.
            let tensor = match (fit, wanted) {
                (Fit::Batched, Fit::Whole) => with_batch_axis(&tensor, 1).map_err(at)?,
                (fit, wanted) if fit == wanted => tensor,
                _ => {
                    let wanted = written(input.spec.dtype, &input.spec.shape);
                    let found = written(tensor.dtype(), tensor.shape());
                    return Err(at(format!("{found} does not fit {wanted}, though the first sample did")));
                }
            };
            feeds.push(tensor);
        }
        Ok(feeds)
    }

    fn assemble(&self, ready: Vec<Ready>) -> Result<Batch, DataError> {
        let (mut columns, mut labels, mut hashes) =
            (vec![Vec::new(); self.inputs.len()], Vec::new(), Vec::new());
        let count = ready.len();
        let first = ready.first().map_or(0, |ready| ready.index);
        for sample in ready {
            hashes.push(sample.hash);
            labels.extend(sample.label);
            for (column, tensor) in columns.iter_mut().zip(sample.feeds) {
                column.push(tensor);
            }
        }
        let feeds = self.inputs.iter().zip(columns).map(|(input, column)| {
            let tensor = if self.is_batched {
                let column = input.filled(column).map_err(|what| self.dataset.complain(what))?;
                stack(&column).map_err(|what| self.dataset.complain(what))?
            } else {
                column.into_iter().next().ok_or_else(|| self.dataset.complain("an empty batch"))?
            };
            Ok((input.spec.name.clone(), tensor))
        });
        let feeds = feeds.collect::<Result<_, DataError>>()?;
        let labels =
            if labels.len() == count { Some(Labels { first, values: collect(labels) }) } else { None };
        Ok(Batch { feeds, labels, hashes, count })
    }
}

/// Whether the steps begin with text.
fn tokenizes(table: &InputSteps) -> bool {
    matches!(table.steps.first(), Some(Step::Tokenize(_)))
}

/// The table of steps of each input.
fn tables_of<'a>(
    dataset: &'a Dataset,
    inputs: &[InputSpec],
) -> Result<Vec<Option<&'a InputSteps>>, DataError> {
    let tables = &dataset.spec().inputs;
    for table in tables {
        match &table.name {
            None if inputs.len() > 1 && !tokenizes(table) => {
                let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
                let what = format!(
                    "[input] alone is for a model with one input; this one has {}: write [input.NAME] for each ({})",
                    inputs.len(),
                    names.join(", ")
                );
                return Err(dataset.spec_error(what));
            }
            Some(name) if inputs.iter().all(|input| input.name != *name) => {
                let names = || inputs.iter().map(|input| input.name.as_str());
                let hint = did_you_mean(name, names());
                let list: Vec<&str> = names().collect();
                let what = format!(
                    "[input.{name}]: the model has no input `{name}`{hint} (it has: {})",
                    list.join(", ")
                );
                return Err(dataset.spec_error(what));
            }
            _ => {}
        }
    }
    let table_of = |input: &InputSpec| {
        tables.iter().find(|table| table.name.as_ref().is_none_or(|name| *name == input.name))
    };
    Ok(inputs.iter().map(table_of).collect())
}

/// Index of the array of each input.
fn match_arrays(
    dataset: &Dataset,
    inputs: &[InputSpec],
    tables: &[Option<&InputSteps>],
) -> Vec<Option<usize>> {
    let arrays = dataset.arrays();
    let named = |name: &str| arrays.iter().position(|info| info.name == name);
    // What tokenizes takes the text, whatever its input is called.
    let text = dataset.text_array();
    let array_of = |(input, table): (&InputSpec, &Option<&InputSteps>)| match table {
        Some(InputSteps { from: Some(from), .. }) => named(from),
        Some(table) if tokenizes(table) => named(&input.name).or(text),
        _ => named(&input.name),
    };
    let by_name: Vec<Option<usize>> = inputs.iter().zip(tables).map(array_of).collect();
    if by_name.iter().all(Option::is_some) || tables.iter().flatten().any(|table| table.from.is_some()) {
        return by_name;
    }
    // One array and one input leave no question; recorded inputs come in the model's order.
    if (arrays.len() == 1 && inputs.len() == 1)
        || (dataset.is_ordered() && by_name.iter().all(Option::is_none))
    {
        return (0..inputs.len()).map(|index| Some(index).filter(|&index| index < arrays.len())).collect();
    }
    by_name
}

/// Samples a batch, whether axis 0 counts samples, and whether the model fixes the number.
fn batch_size(
    dataset: &Dataset,
    inputs: &[BoundInput],
    fits: &[Fit],
    wanted: usize,
) -> Result<(usize, bool, bool), DataError> {
    let batched = inputs.iter().zip(fits).filter(|(_, fit)| **fit == Fit::Batched);
    let fixed: Vec<(&str, usize)> = batched
        .filter_map(|(input, _)| Some((input.spec.name.as_str(), input.spec.shape.first()?.fixed()?)))
        .collect();
    let is_batched = fits.iter().all(|fit| *fit == Fit::Batched);
    let size = fixed.first().map(|(_, size)| *size);
    let list = || fixed.iter().map(|(name, size)| format!("`{name}` {size}")).collect::<Vec<_>>().join(", ");
    if fixed.iter().any(|(_, other)| Some(*other) != size || *other == 0) {
        return Err(
            dataset.complain(format!("the model's inputs take different numbers of samples: {}", list()))
        );
    }
    if !is_batched {
        if size.is_some_and(|size| size != 1) {
            let what = format!(
                "some samples have their input's own rank and are fed one at a time, but other inputs take several: {}",
                list()
            );
            return Err(dataset.complain(what));
        }
        return Ok((1, false, false));
    }
    Ok((size.unwrap_or(wanted.max(1)), true, size.is_some_and(|size| size > 1)))
}

fn with_batch_axis(tensor: &Tensor, count: usize) -> Result<Tensor, String> {
    let mut shape = vec![count];
    shape.extend_from_slice(tensor.shape());
    Tensor::new(tensor.dtype(), shape, tensor.bytes().clone()).map_err(|error| error.to_string())
}

/// Puts equal samples together along a new axis 0.
fn stack(samples: &[Tensor]) -> Result<Tensor, String> {
    let Some(first) = samples.first() else { return Err("an empty batch".to_owned()) };
    if samples.len() == 1 {
        return with_batch_axis(first, 1);
    }
    if first.dtype().is_packed() {
        return Err(format!("{} samples are fed one at a time: choose a batch size of 1", first.dtype()));
    }
    let parts: Vec<&[u8]> = samples.iter().map(|tensor| tensor.bytes().as_ref()).collect();
    let mut shape = vec![samples.len()];
    shape.extend_from_slice(first.shape());
    Tensor::new(first.dtype(), shape, parts.concat().into()).map_err(|error| error.to_string())
}

fn collect(labels: Vec<Label>) -> LabelValues {
    let classes: Option<Vec<i64>> = labels
        .iter()
        .map(|label| match label {
            Label::Class(class) => Some(*class),
            _ => None,
        })
        .collect();
    if let Some(classes) = classes {
        return LabelValues::Classes(classes);
    }
    if labels.iter().any(|label| matches!(label, Label::Outputs(_))) {
        let outputs = labels.into_iter().map(|label| match label {
            Label::Outputs(outputs) => outputs,
            _ => Vec::new(),
        });
        return LabelValues::Outputs(outputs.collect());
    }
    let tensors = labels.into_iter().map(|label| match label {
        Label::Class(class) => Tensor::scalar(class),
        Label::Tensor(tensor) => tensor,
        Label::Outputs(_) => Tensor::scalar(0i64),
    });
    LabelValues::Tensors(tensors.collect())
}

/// A sample after its steps.
struct Ready {
    feeds: Vec<Tensor>,
    label: Option<Label>,
    hash: [u8; 32],
    index: u64,
}

/// A stream of batches; ends after an error.
pub struct Batches {
    bound: Bound,
    samples: Samples,
    /// A sample of another shape than the batch before it.
    pending: Option<Ready>,
    left_out: u64,
    done: bool,
}

impl Batches {
    /// Samples left out so far because the model takes a fixed number at a time.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    fn advance(&mut self) -> Result<Option<Batch>, DataError> {
        loop {
            let mut ready: Vec<Ready> = self.pending.take().into_iter().collect();
            while ready.len() < self.bound.batch {
                let index = self.samples.taken();
                let Some(next) = self.samples.next() else { break };
                let (sample, hash) = next?;
                let next = self.bound.prepare(sample, hash, index)?;
                let inputs = &self.bound.inputs;
                let same = |first: &Ready| {
                    let mut pairs = first.feeds.iter().zip(&next.feeds).zip(inputs);
                    pairs.all(|((a, b), input)| a.shape() == b.shape() || input.fill(a, b).is_some())
                };
                if ready.first().is_none_or(same) {
                    ready.push(next);
                } else {
                    self.pending = Some(next);
                    break;
                }
            }
            if ready.is_empty() {
                return Ok(None);
            }
            if self.bound.is_fixed && ready.len() < self.bound.batch {
                self.left_out = self.left_out.saturating_add(ready.len() as u64);
                continue;
            }
            return self.bound.assemble(ready).map(Some);
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").field("bound", &self.bound).finish_non_exhaustive()
    }
}
