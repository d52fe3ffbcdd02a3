//! What channels are worth by the gradients of what the model gives.
//!
//! Near a model that is compared with itself the loss is flat: its first derivatives are zero and say nothing. Its second ones
//! are the expected squares of the gradients of answers that are drawn from what the model gives (Fisher information; Theis
//! et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"; with the products of weights and gradients of
//! Molchanov et al. 2019, "Importance estimation for neural network pruning"): no labels are needed.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{DType, Model, Tensor, Type, ValueId};
use optix_pipeline::check::OpsEvaluator;
use optix_pipeline::{Batch, Cx, PassError, Prepared};
use optix_training::loss::{Distance, is_softmax_of_rows};
use optix_training::{Aim, Parameter, Student};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::groups::Group;
use super::worth::{Curve, Reader, in_order};

/// By how much answers that are drawn differ from what the model gives, as a share of it: little, since the loss counts in
/// shares of the answers.
const APART: f32 = 1e-2;

/// The model with its gradients, for samples of one shape.
struct Learner {
    prepared: Box<dyn Prepared>,
    student: Student,
    /// What samples feed, in their order.
    feeds: Vec<ValueId>,
    shapes: Vec<Vec<usize>>,
    outputs: Vec<(ValueId, Distance)>,
    /// The gradients, by the parameters' places.
    gradients: Vec<ValueId>,
    learned: Vec<usize>,
}

fn shapes(sample: &Batch) -> Vec<Vec<usize>> {
    sample.feeds.iter().map(|(_, tensor)| tensor.shape().to_vec()).collect()
}

impl Learner {
    fn new(
        model: &Model,
        parameters: &[Parameter],
        sample: &Batch,
        cx: &mut Cx<'_>,
    ) -> Result<Learner, PassError> {
        let refuse = |what: String| PassError::Options(format!("`importance` \"taylor\": {what}"));
        let inputs = model.graph(model.main()).inputs().iter().map(|input| input.value);
        let by_name: BTreeMap<&str, ValueId> =
            inputs.map(|value| (model.value(value).name(), value)).collect();
        let mut feeds = Vec::new();
        for (name, _) in &sample.feeds {
            let value = by_name.get(name.as_str());
            feeds.push(*value.ok_or_else(|| refuse(format!("the model takes no `{name}`")))?);
        }
        let shapes = shapes(sample);
        let fed: Vec<(ValueId, Vec<usize>)> = feeds.iter().copied().zip(shapes.iter().cloned()).collect();
        let shaped = optix_training::shaped(model, &fed, &OpsEvaluator);
        let (mut outputs, mut aims) = (Vec::new(), Vec::new());
        for output in model.graph(model.main()).outputs().iter().map(|output| output.value) {
            let ty = shaped.value(output).ty.as_ref();
            let Some(shape) = ty.filter(|ty| ty.dtype() == Some(DType::F32)).and_then(Type::fixed_shape)
            else {
                continue;
            };
            let rows = shape.split_last().map_or(1, |(_, front)| front.iter().product::<usize>()).max(1);
            let elements = shape.iter().product::<usize>().max(1);
            let suited = match Distance::suited(model, output, 1.0) {
                // Answers are drawn along the last axis.
                Distance::Probabilities if !is_softmax_of_rows(model, output, shape.len()) => {
                    Distance::Squares
                }
                suited => suited,
            };
            // So that squares of gradients are what outputs lose: shares of their squares, or nats in the mean of all rows.
            let (distance, weight) = match suited {
                Distance::Squares => (suited, (elements as f32).sqrt() / (2.0 * APART)),
                other => {
                    let of_logits = matches!(other, Distance::Logits { .. });
                    (Distance::Classes { of_logits }, (0.5 * rows as f32).sqrt())
                }
            };
            outputs.push((output, suited));
            aims.push((Aim { value: output, distance, weight, is_border: false }, shape));
        }
        if aims.is_empty() {
            return Err(refuse("no output is of 32-bit floats in a shape that is known".to_owned()));
        }
        let student = Student::new(model, &fed, parameters, &aims, true, &OpsEvaluator)
            .map_err(|error| refuse(error.to_string()))?;
        let learned = (0..parameters.len()).filter(|&place| student.gradients[place].is_some()).collect();
        let gradients = student.gradients.iter().flatten().copied().collect();
        let prepared = cx.oracle().prepare(&student.model)?;
        Ok(Learner { prepared, student, feeds, shapes, outputs, gradients, learned })
    }

    /// The gradients of one answer that is drawn.
    fn gradients(
        &mut self,
        sample: &Batch,
        weights: &[Tensor],
        random: &mut ChaCha8Rng,
    ) -> Result<Vec<Tensor>, PassError> {
        let data = self.feeds.iter().copied().zip(sample.feeds.iter().map(|(_, tensor)| tensor.clone()));
        let parameters = self.student.inputs.iter().copied().zip(weights.iter().cloned());
        let mut fed: Vec<(ValueId, Tensor)> = data.chain(parameters).collect();
        let wanted: Vec<ValueId> = self.outputs.iter().map(|(value, _)| *value).collect();
        let given = self.prepared.run(&fed, &wanted)?;
        for ((target, (_, distance)), given) in self.student.targets.iter().zip(&self.outputs).zip(&given) {
            fed.push((*target, drawn(given, *distance, random)?));
        }
        Ok(self.prepared.run(&fed, &self.gradients)?)
    }
}

/// A number from 0 to below 1.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// An answer that is drawn from what the model gives: a class for each row, or the same a little apart.
fn drawn(given: &Tensor, distance: Distance, random: &mut ChaCha8Rng) -> Result<Tensor, PassError> {
    let floats = given.to_slice::<f32>();
    let elements =
        floats.map_err(|error| PassError::Options(format!("an output is not of floats: {error}")))?;
    let of_row = |row: &[f32], random: &mut ChaCha8Rng| -> Vec<f32> {
        let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let share = |x: f32| match distance {
            Distance::Logits { .. } => f64::from(x - greatest).exp(),
            _ => f64::from(x).max(0.0),
        };
        let mut left = unit(random) * row.iter().map(|&x| share(x)).sum::<f64>();
        let class = row.iter().position(|&x| {
            left -= share(x);
            left < 0.0
        });
        let class = class.unwrap_or(row.len().saturating_sub(1));
        (0..row.len()).map(|one| f32::from(u8::from(one == class))).collect()
    };
    let answer = match distance {
        Distance::Squares => {
            let mean = elements.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
                / elements.len().max(1) as f64;
            let apart = APART * mean.sqrt() as f32;
            let sign = |random: &mut ChaCha8Rng| if random.next_u32() & 1 == 0 { apart } else { -apart };
            elements.iter().map(|x| x + sign(random)).collect()
        }
        _ => {
            let width = given.shape().last().copied().unwrap_or(1).max(1);
            elements.chunks(width).flat_map(|row| of_row(row, random)).collect()
        }
    };
    Ok(Tensor::from_vec(given.shape().to_vec(), answer))
}

/// For each group, the curve of what outputs lose with its channels by the convolutions and products that read them; none where
/// there are none, or a gradient does not reach one of them.
///
/// # Errors
/// When the engine fails, or no output can be told apart by classes or squares.
pub(in crate::prune) fn by_gradients(
    model: &Model,
    groups: &[Group],
    readers: &[Vec<Reader>],
    samples: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<Curve>>, PassError> {
    if samples.is_empty() {
        let what = "`importance` \"taylor\": there are no samples that can be shown one by one";
        return Err(PassError::Options(what.to_owned()));
    }
    let mut places: BTreeMap<ValueId, usize> = BTreeMap::new();
    let (mut parameters, mut weights) = (Vec::new(), Vec::new());
    for reader in readers.iter().flatten() {
        let value = reader.value();
        if let (None, Some(held)) = (places.get(&value), model.constant(value)) {
            places.insert(value, parameters.len());
            parameters.push(Parameter { value, node: reader.node, is_weight: true });
            weights.push(held.clone());
        }
    }
    let columns: Vec<Vec<Vec<Vec<usize>>>> = (groups.iter().zip(readers))
        .map(|(group, own)| {
            let of = |reader: &Reader| group.channels.iter().map(|channel| reader.columns(channel)).collect();
            own.iter().map(of).collect()
        })
        .collect();
    let mut worth: Vec<Vec<f64>> = groups.iter().map(|group| vec![0.0; group.channels.len()]).collect();
    let mut random = cx.rng("taylor");
    let mut learner: Option<Learner> = None;
    let (mut seen, mut learned) = (0u64, Vec::new());
    for (number, sample) in samples.iter().enumerate() {
        cx.progress("gradients of what the model gives", number as u64, samples.len() as u64)?;
        let same = learner.take().filter(|known| known.shapes == shapes(sample));
        let known = learner.insert(match same {
            Some(known) => known,
            None => Learner::new(model, &parameters, sample, cx)?,
        });
        let gradients = known.gradients(sample, &weights, &mut random)?;
        learned.clone_from(&known.learned);
        let mut by_place: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for (&place, gradient) in known.learned.iter().zip(&gradients) {
            by_place.insert(place, gradient.to_slice::<f32>().map(Vec::from).unwrap_or_default());
        }
        if by_place.values().flatten().any(|x| !x.is_finite()) {
            continue;
        }
        seen += 1;
        for ((worth, own), columns) in worth.iter_mut().zip(readers).zip(&columns) {
            let mut change = vec![0f64; worth.len()];
            // Layers that share weights share the gradient too.
            let mut counted = BTreeSet::new();
            for (reader, columns) in own.iter().zip(columns) {
                if !counted.insert(reader.value()) {
                    continue;
                }
                let Some(gradient) = places.get(&reader.value()).and_then(|place| by_place.get(place)) else {
                    continue;
                };
                let by_column = reader.products(gradient);
                for (change, columns) in change.iter_mut().zip(columns) {
                    *change += columns.iter().map(|&column| by_column[column]).sum::<f64>();
                }
            }
            worth.iter_mut().zip(change).for_each(|(worth, change)| *worth += change * change);
        }
    }
    if seen == 0 {
        let what = "`importance` \"taylor\": no sample has gradients that are finite";
        return Err(PassError::Options(what.to_owned()));
    }
    let curve = |(worth, readers): (Vec<f64>, &Vec<Reader>)| {
        let has_gradient =
            |reader: &Reader| places.get(&reader.value()).is_some_and(|place| learned.contains(place));
        let is_known = !readers.is_empty() && readers.iter().all(has_gradient);
        is_known.then(|| in_order(&worth.into_iter().map(|sum| sum / seen as f64).collect::<Vec<_>>()))
    };
    Ok(worth.into_iter().zip(readers).map(curve).collect())
}
