//! Teacher and student at work: what the one gives is what the other learns.

use optix_ir::{DType, Model, Tensor, Type, ValueId};
use optix_pipeline::check::OpsEvaluator;
use optix_pipeline::{Batch, Cx, OracleError, PassError, Prepared, check_labels};
use optix_training::optimizer::Trained;
use optix_training::{Aim, Parameter, Student, StudentError};

use super::pool::{Pool, shapes};
use crate::samples::{joined, together};

/// A model that answers, and the inputs it takes, in the order of the student's.
pub(super) struct Teacher {
    prepared: Box<dyn Prepared>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// What it gave for each sample, while there is room.
    known: Vec<Option<Vec<Tensor>>>,
    room: usize,
    /// How many of the values it is asked for are outputs; the others lie on the way.
    last: usize,
}

/// Bytes of a teacher's outputs that are kept.
pub(super) const ROOM: usize = 256 << 20;

/// Bytes of memory that one of them takes beside its elements.
pub(super) const BESIDE: usize = 200;

/// Inputs of a graph that are no constants with a default: values and names.
fn inputs(model: &Model) -> Vec<(ValueId, String)> {
    let inputs = model.graph(model.main()).inputs().iter().map(|input| input.value);
    inputs
        .filter(|&value| model.value(value).initializer().is_none())
        .map(|value| (value, model.value(value).name().to_owned()))
        .collect()
}

/// Outputs of the teacher that those of the student are compared with: for each pair their places.
pub(super) fn pairs(teacher: &Model, student: &Model) -> Result<Vec<(usize, usize)>, PassError> {
    let outputs = |model: &Model| -> Vec<(ValueId, String)> {
        let outputs = model.graph(model.main()).outputs().iter().map(|output| output.value);
        outputs.map(|value| (value, model.value(value).name().to_owned())).collect()
    };
    let (theirs, ours) = (outputs(teacher), outputs(student));
    let named = |names: &[(ValueId, String)]| {
        names.iter().map(|(_, name)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let is_float = |value: ValueId| {
        student.value(value).ty.as_ref().and_then(Type::dtype).is_none_or(|dtype| dtype == DType::F32)
    };
    let mut pairs = Vec::new();
    for (place, (value, name)) in ours.iter().enumerate() {
        if !is_float(*value) {
            continue;
        }
        let same = theirs.iter().position(|(_, other)| other == name);
        match same.or((theirs.len() == ours.len()).then_some(place)) {
            Some(other) => pairs.push((other, place)),
            None => {
                return Err(PassError::Options(format!(
                    "the teacher has no output `{name}`: it has {}, the student {}",
                    named(&theirs),
                    named(&ours)
                )));
            }
        }
    }
    match pairs.is_empty() {
        true => Err(PassError::Options("the student has no output of 32-bit floats to learn".to_owned())),
        false => Ok(pairs),
    }
}

impl Teacher {
    /// Loads a teacher for samples that feed the student; `outputs` are what it is asked for.
    pub(super) fn new(
        teacher: &Model,
        outputs: Vec<ValueId>,
        sample: &Batch,
        count: usize,
        cx: &mut Cx<'_>,
    ) -> Result<Teacher, PassError> {
        let theirs = inputs(teacher);
        let fed: Vec<&str> = sample.feeds.iter().map(|(name, _)| name.as_str()).collect();
        let listed =
            |names: Vec<&str>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        if theirs.len() != fed.len() {
            let names = theirs.iter().map(|(_, name)| name.as_str()).collect();
            return Err(PassError::Options(format!(
                "the teacher takes {} and the student {}: they must take the same",
                listed(names),
                listed(fed)
            )));
        }
        let of_feed = |(place, name): (usize, &&str)| {
            let same = theirs.iter().find(|(_, other)| other == name);
            same.unwrap_or(&theirs[place]).0
        };
        let inputs = fed.iter().enumerate().map(of_feed).collect();
        let prepared = cx.oracle().prepare(teacher)?;
        let last = outputs.len();
        Ok(Teacher { prepared, inputs, outputs, known: vec![None; count], room: ROOM, last })
    }

    /// Its inputs with the shapes of so many samples.
    pub(super) fn shapes(&self, sample: &Batch, count: usize) -> Vec<(ValueId, Vec<usize>)> {
        self.inputs.iter().copied().zip(of_count(sample, count).map(|(_, shape)| shape)).collect()
    }

    /// Asks for values on the way too.
    pub(super) fn watch(&mut self, values: impl Iterator<Item = ValueId>) {
        self.outputs.extend(values);
    }

    /// What it gives for feeds, values on the way behind outputs.
    pub(super) fn asked(&mut self, feeds: &[(String, Tensor)]) -> Result<Vec<Tensor>, PassError> {
        self.asked_for(self.outputs.len(), feeds)
    }

    /// The first so many of the values that it is asked for.
    fn asked_for(&mut self, count: usize, feeds: &[(String, Tensor)]) -> Result<Vec<Tensor>, PassError> {
        let fed: Vec<(ValueId, Tensor)> =
            self.inputs.iter().zip(feeds).map(|(&value, (_, tensor))| (value, tensor.clone())).collect();
        Ok(self.prepared.run(&fed, &self.outputs[..count]).map_err(of_teacher)?)
    }

    /// Checks that what it gives for a sample does not depend on the others beside it, and asks anew every time where it does:
    /// `given` is what it gives for several, the first of which is `first`.
    pub(super) fn check_rows(
        &mut self,
        given: &[Tensor],
        first: &[(String, Tensor)],
    ) -> Result<(), PassError> {
        let alone = self.asked(first)?;
        let is_own = |(many, one): (&Tensor, &Tensor)| {
            let count = many.shape().first().copied().unwrap_or(0);
            let row = row(many, 0, count);
            let is_row = row.is_some_and(|row| {
                row.shape() == one.shape() && optix_pipeline::check::relative_difference(&row, one) < 1e-3
            });
            is_row && one.shape().first() == Some(&1)
        };
        if !given.iter().zip(&alone).all(is_own) {
            self.room = 0;
        }
        Ok(())
    }

    /// What it gives for samples of the pool as they are, by their numbers: asked once. Of those held out outputs alone.
    pub(super) fn remembered(
        &mut self,
        numbers: &[usize],
        (feeds, is_held): (&[(String, Tensor)], bool),
    ) -> Result<Vec<Tensor>, PassError> {
        let count = if is_held { self.last } else { self.outputs.len() };
        let known: Option<Vec<&Vec<Tensor>>> =
            numbers.iter().map(|&number| self.known[number].as_ref()).collect();
        if let Some(known) = known {
            return Ok((0..count).map(|place| joined(known.iter().map(|row| &row[place]))).collect());
        }
        let given = self.asked_for(count, feeds)?;
        for (place, &number) in numbers.iter().enumerate() {
            let row: Option<Vec<Tensor>> =
                given.iter().map(|tensor| row(tensor, place, numbers.len())).collect();
            let Some(row) = row else { break };
            let size: usize = row.iter().map(|tensor| tensor.bytes().len() + BESIDE).sum();
            if self.known[number].is_none() && size <= self.room {
                self.room -= size;
                self.known[number] = Some(row);
            }
        }
        Ok(given)
    }
}

/// The part of a tensor that belongs to one of `count` samples, with memory of its own.
fn row(tensor: &Tensor, place: usize, count: usize) -> Option<Tensor> {
    let (&first, rest) = tensor.shape().split_first()?;
    if first != count || tensor.dtype() != DType::F32 {
        return None;
    }
    let size = rest.iter().product::<usize>();
    let elements = tensor.to_slice::<f32>().ok()?;
    let shape: Vec<usize> = std::iter::once(1).chain(rest.iter().copied()).collect();
    Some(Tensor::from_vec(shape, elements.get(place * size..(place + 1) * size)?.to_vec()))
}

fn of_teacher(error: OracleError) -> OracleError {
    match error {
        OracleError::Feeds(what) => {
            OracleError::Feeds(format!("the teacher does not take what the student does: {what}"))
        }
        OracleError::Node { node, what } => {
            OracleError::Node { node: format!("{node} of the teacher"), what }
        }
        other => other,
    }
}

/// Names and shapes of what so many samples like this one feed.
fn of_count(sample: &Batch, count: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
    let of_feed = move |(name, shape): (String, Vec<usize>)| {
        (name, std::iter::once(count).chain(shape.into_iter().skip(1)).collect())
    };
    shapes(sample).into_iter().map(of_feed)
}

/// Inputs of a model with the shapes of so many samples.
///
/// # Errors
/// When it takes something else.
pub(super) fn fed(
    model: &Model,
    sample: &Batch,
    count: usize,
) -> Result<Vec<(ValueId, Vec<usize>)>, PassError> {
    let values = inputs(model);
    let of_feed = |(name, shape): (String, Vec<usize>)| {
        let value = values.iter().find(|(_, other)| *other == name).map(|(value, _)| *value);
        value
            .map(|value| (value, shape))
            .ok_or_else(|| PassError::Options(format!("the model takes no `{name}`")))
    };
    of_count(sample, count).map(of_feed).collect()
}

/// The classes of samples as a row each, 1 at the class of a sample.
///
/// # Errors
/// When samples have no classes, or others than there are.
pub(super) fn classes(samples: &[Batch], count: usize) -> Result<Tensor, PassError> {
    let refuse = |what: String| PassError::Options(format!("`label-weight`: {what}"));
    let mut rows = Vec::with_capacity(samples.len() * count);
    for sample in samples {
        let labels = sample.labels.as_ref().ok_or_else(|| refuse("the samples have no labels".to_owned()))?;
        let class = check_labels(labels, count).map_err(|error| refuse(error.to_string()))?;
        let class = class.first().copied().unwrap_or(-1);
        rows.extend((0..count as i64).map(|one| f32::from(u8::from(one == class))));
    }
    Ok(Tensor::from_vec(vec![samples.len(), count], rows))
}

/// A part of a step: the whole, or a block.
struct Turn {
    /// What it adds to the loss.
    loss: ValueId,
    /// The parameters whose gradients it gives, by their places.
    learned: Vec<usize>,
}

/// A student for batches of one size.
pub(super) struct Class {
    prepared: Box<dyn Prepared>,
    feeds: Vec<ValueId>,
    student: Student,
    /// Shapes of the parameters.
    shapes: Vec<Vec<usize>>,
    /// What is computed at a time.
    turns: Vec<Turn>,
    pub(super) count: usize,
}

impl Class {
    /// A student that sees `count` samples like `sample` at a time; `given` is what the teacher gives for so many.
    pub(super) fn new(
        model: &Model,
        parameters: &[Parameter],
        (aims, given): (&[Aim], &[Tensor]),
        (sample, count): (&Batch, usize),
        freeze: bool,
        cx: &mut Cx<'_>,
    ) -> Result<Class, PassError> {
        let fed = fed(model, sample, count)?;
        let aims: Vec<(Aim, Vec<usize>)> =
            aims.iter().zip(given).map(|(&aim, tensor)| (aim, tensor.shape().to_vec())).collect();
        let student = Student::new(model, &fed, parameters, &aims, freeze, &OpsEvaluator).map_err(
            |error| match error {
                error @ StudentError::Gradient(_) => PassError::Options(format!(
                    "{error}; `freeze-unsupported` takes what they read as constant and trains the rest"
                )),
                error => {
                    PassError::Options(format!("{error}: student and teacher must give the same shapes"))
                }
            },
        )?;
        let shapes = parameters
            .iter()
            .map(|parameter| {
                model.constant(parameter.value).map(|held| held.shape().to_vec()).unwrap_or_default()
            })
            .collect();
        let learned = |place: &usize| student.gradients[*place].is_some();
        let turns = match aims.iter().any(|(aim, _)| aim.is_border) {
            false => {
                let learned = (0..parameters.len()).filter(learned).collect();
                vec![Turn { loss: student.loss, learned }]
            }
            // Block after block, so that what one needs is freed before the next one's turn.
            true => {
                let turn = |(&loss, own): (&ValueId, Vec<usize>)| Turn {
                    loss,
                    learned: own.into_iter().filter(learned).collect(),
                };
                student.terms.iter().zip(student.by_term()).map(turn).collect()
            }
        };
        let prepared = cx.oracle().prepare(&student.model)?;
        let feeds = fed.into_iter().map(|(value, _)| value).collect();
        Ok(Class { prepared, feeds, student, shapes, turns, count })
    }

    /// Bytes that values take together at the peak of a step, where the engine tells.
    pub(super) fn predicted_peak(&mut self) -> Option<u64> {
        let mut peak = None;
        for turn in 0..self.turns.len() {
            let wanted = self.wanted(turn);
            peak = peak.max(Some(self.prepared.predicted_peak(&self.student.model, &wanted)?));
        }
        peak
    }

    /// Nodes that gradients do not pass, each with the reason.
    pub(super) fn frozen(&self) -> Vec<(String, String)> {
        let named =
            |(node, why): &(optix_ir::NodeId, String)| (self.student.model.describe(*node), why.clone());
        self.student.frozen.iter().map(named).collect()
    }

    /// Whether each parameter has a gradient.
    pub(super) fn learns(&self) -> impl Iterator<Item = bool> {
        self.student.gradients.iter().map(Option::is_some)
    }

    /// What is computed in a turn.
    fn wanted(&self, turn: usize) -> Vec<ValueId> {
        let Turn { loss, learned } = &self.turns[turn];
        let gradients = learned.iter().filter_map(|&place| self.student.gradients[place]);
        std::iter::once(*loss).chain(gradients).collect()
    }

    fn fed(
        &self,
        feeds: &[(String, Tensor)],
        given: Vec<Tensor>,
        trained: &[Trained],
    ) -> Vec<(ValueId, Tensor)> {
        let data = self.feeds.iter().copied().zip(feeds.iter().map(|(_, tensor)| tensor.clone()));
        let of_teacher = self.student.targets.iter().copied().zip(given);
        let elements = trained.iter().zip(&self.shapes);
        let parameters =
            self.student.inputs.iter().copied().zip(
                elements.map(|(trained, shape)| Tensor::from_vec(shape.clone(), trained.elements.clone())),
            );
        data.chain(of_teacher).chain(parameters).collect()
    }

    /// The loss, and the gradients of the parameters that have one, in their order.
    pub(super) fn gradients(
        &mut self,
        feeds: &[(String, Tensor)],
        given: Vec<Tensor>,
        trained: &[Trained],
    ) -> Result<(f64, Vec<Tensor>), PassError> {
        let fed = self.fed(feeds, given, trained);
        let mut gradients: Vec<Option<Tensor>> = vec![None; trained.len()];
        let mut loss = 0.0;
        for turn in 0..self.turns.len() {
            let wanted = self.wanted(turn);
            let mut found = self.prepared.run(&fed, &wanted)?.into_iter();
            loss += found.next().and_then(|loss| loss.single()).unwrap_or(f64::NAN);
            for &place in &self.turns[turn].learned {
                gradients[place] = found.next();
            }
        }
        Ok((loss, gradients.into_iter().flatten().collect()))
    }

    /// The mean loss over samples that are held out, as many as fill whole batches.
    pub(super) fn loss(
        &mut self,
        pool: &mut Pool,
        teacher: &mut Teacher,
        trained: &[Trained],
    ) -> Result<f64, PassError> {
        let (mut sum, batches) = (0.0, pool.held() / self.count);
        for batch in 0..batches {
            let start = pool.learned() + batch * self.count;
            let numbers: Vec<usize> = (start..start + self.count).collect();
            let feeds = together(&pool.samples(numbers.iter().copied())?);
            let given = teacher.remembered(&numbers, (&feeds, true))?;
            let fed = self.fed(&feeds, given, trained);
            let found = self.prepared.run(&fed, &[self.student.loss])?;
            sum += found[0].single().unwrap_or(f64::NAN);
        }
        Ok(sum / batches.max(1) as f64)
    }
}
