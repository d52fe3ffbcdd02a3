//! Training against a teacher.

use optix_ir::{Model, Tensor};
use optix_pipeline::{
    Cx, DecisionError, Family, Interface, Layer, Named, Numerics, OracleError, PackedFloats, Pass, PassError,
    Promises, Requires, Topology, digest, fingerprint, naming,
};
use optix_training::loss::Distance;
use optix_training::optimizer::{AdamW, Trained, cosine, norm};
use optix_training::{Aim, Parameter, gradient, parameters};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::augment::{Augmentation, augmented};
use super::pool::{Pool, together};
use super::school::{Class, Teacher, pairs};
use super::state::State;
use crate::names::{check_patterns, not_excluded};

/// How outputs are compared with the teacher's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// `probabilities` behind a Softmax; `logits` for outputs of two axes that are called logits, scores or classes;
    /// `squares` for all others.
    #[default]
    Auto,
    /// Kullback-Leibler divergence of their softmax.
    Logits,
    /// Kullback-Leibler divergence of outputs that are probabilities.
    Probabilities,
    /// Squared differences over the squares of the teacher's.
    Squares,
}

/// Trains a model to give what another one gives: the one that came into the run, or that of `--teacher`. No labels are
/// needed.
///
/// Weights, biases and scales of the main graph are trained with AdamW on the calibration data, in random order; a tenth
/// of them is held out, and what did best on that is kept: a model never becomes worse by it than it was. Zeros of a
/// pruned model stay zeros. Nothing about the graph changes but its numbers.
///
/// Needs operator set 13, and 16 where tables that `Gather` reads are trained (`convert-opset` raises it).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Distill {
    /// Steps. 0 leaves the model as it is.
    pub steps: u64,
    /// Samples of a step.
    pub batch_size: usize,
    /// The greatest learning rate: it rises over the first twentieth of the steps and falls to nothing at the end.
    pub learning_rate: f32,
    /// Share of the weights that goes in a step, times the learning rate; biases and scales stay.
    pub weight_decay: f32,
    /// How outputs are compared.
    pub loss: Loss,
    /// What logits are divided by before they are compared: above 1, classes that are not the first count more.
    pub temperature: f32,
    /// Gradients longer than this, all together, are shortened to it; 0 for never.
    pub clip_norm: f32,
    /// Changes of pictures.
    pub augment: Vec<Augmentation>,
    /// Ends when the loss on samples that are held out has not fallen for so many looks, of 20 in all.
    pub patience: usize,
    /// Take what is read by operators without a gradient as constant instead of refusing.
    pub freeze_unsupported: bool,
    /// Leave the weights of these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for Distill {
    fn default() -> Self {
        Distill {
            steps: 500,
            batch_size: 64,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            loss: Loss::Auto,
            temperature: 2.0,
            clip_norm: 1.0,
            augment: Vec::new(),
            patience: 10,
            freeze_unsupported: false,
            exclude: Vec::new(),
        }
    }
}

impl Named for Distill {
    const NAME: &'static str = "distill";
    const FAMILY: Family = Family::Distill;
}

/// Looks at the samples that are held out, over all steps.
const LOOKS: u64 = 20;

/// Share of zeros from which on a constant counts as pruned.
const PRUNED: f64 = 0.1;

/// A trained constant as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    /// Its name, for people.
    name: String,
    /// Its number among those that can be trained.
    place: usize,
    elements: PackedFloats,
}

/// What came of training.
struct Learned {
    /// Elements of every parameter.
    kept: Vec<Vec<f32>>,
    summary: String,
}

impl Distill {
    fn check(&self, model: &Model) -> Result<(), PassError> {
        let refuse = |what: &str| Err(PassError::Options(what.to_owned()));
        if self.batch_size == 0 {
            return refuse("`batch-size` 0: a step needs samples");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return refuse("`learning-rate` must be above 0");
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return refuse("`temperature` must be above 0");
        }
        if !(0.0..1.0).contains(&self.weight_decay) {
            return refuse("`weight-decay` is from 0 to below 1");
        }
        if self.clip_norm.is_nan() || self.clip_norm < 0.0 {
            return refuse("`clip-norm` is 0 or more");
        }
        check_patterns(model, &self.exclude)
    }

    /// What is learned at an output.
    fn distance(&self, model: &Model, output: usize) -> Distance {
        let value = model.graph(model.main()).outputs()[output].value;
        let made_by = |op_type: &str| {
            model.value(value).producer().is_some_and(|(node, _)| model.node(node).is(op_type))
        };
        let name = model.value(value).name().to_lowercase();
        let is_flat =
            model.value(value).ty.as_ref().and_then(|ty| ty.shape()).is_some_and(|shape| shape.len() == 2);
        let logits = Distance::Logits { temperature: self.temperature };
        match self.loss {
            Loss::Logits => logits,
            Loss::Probabilities => Distance::Probabilities,
            Loss::Squares => Distance::Squares,
            Loss::Auto if made_by("Softmax") => Distance::Probabilities,
            Loss::Auto if is_flat && ["logit", "score", "class"].iter().any(|word| name.contains(word)) => {
                logits
            }
            Loss::Auto => Distance::Squares,
        }
    }

    /// Trains; nothing where the samples that are held out show no gain.
    fn learn(
        &self,
        model: &Model,
        parameters: &[Parameter],
        cx: &mut Cx<'_>,
    ) -> Result<Option<Learned>, PassError> {
        let Some(teacher_model) = cx.teacher() else {
            return Err(PassError::Options("there is no teacher".to_owned()));
        };
        let pairs = pairs(teacher_model, model)?;
        let aims: Vec<Aim> = pairs
            .iter()
            .map(|&(_, output)| Aim { output, distance: self.distance(model, output), weight: 1.0 })
            .collect();
        let mut random = cx.rng("distill");
        let mut pool = Pool::read(model, cx)?;
        let count = self.batch_size.min(pool.train.len());
        let places = pairs.iter().map(|&(place, _)| place);
        // Samples held out have the numbers behind those to learn from.
        let held = pool.train.len();
        let mut teacher = Teacher::new(teacher_model, places, &pool.train[0], held + pool.held.len(), cx)?;
        let class = |count: usize, teacher: &mut Teacher, cx: &mut Cx<'_>| -> Result<Class, PassError> {
            let samples: Vec<_> = pool.train.iter().cycle().take(count).collect();
            let given = teacher.asked(&together(&samples))?;
            Class::new(model, parameters, (&aims, &given), (samples[0], count), self.freeze_unsupported, cx)
        };
        let mut at_work = class(count, &mut teacher, cx)?;
        let mut at_exam = class(count.min(pool.held.len()), &mut teacher, cx)?;
        for (node, reason) in at_work.frozen() {
            cx.warn(format!("no gradient passes {node}: {reason}"));
        }
        let learns: Vec<bool> = at_work.learns().collect();
        if !learns.contains(&true) {
            return Err(PassError::Options("no gradient reaches any weight".to_owned()));
        }
        let trained: Vec<Trained> = parameters.iter().map(|one| started(model, one)).collect();
        let first = at_exam.loss(&pool.held, held, &mut teacher, &trained)?;
        if !first.is_finite() {
            return Err(PassError::Options(
                "the loss is not finite before the first step: outputs hold NaN or infinities".to_owned(),
            ));
        }
        let mut now = State {
            step: 0,
            since: 0,
            first,
            best: first,
            best_step: 0,
            random: random.get_word_pos(),
            order: pool.order.clone(),
            next: pool.next,
            kept: trained.iter().map(|one| one.elements.clone()).collect(),
            trained,
        };
        let identity = self.identity(model, teacher_model, &pool, cx)?;
        if let Some(kept) = resumed(&now, &identity, cx)? {
            cx.note(format!("training went on from step {} of the checkpoint", kept.step));
            random.set_word_pos(kept.random);
            pool.order.clone_from(&kept.order);
            pool.next = kept.next;
            now = kept;
        }
        let adam = AdamW { decay: self.weight_decay, ..AdamW::default() };
        let each = (self.steps / LOOKS).max(1);
        let mut ended = None;
        while now.step < self.steps && now.since < self.patience.max(1) as u64 {
            cx.progress(&format!("learning, loss on others {:.4}", now.best), now.step, self.steps)?;
            let numbers = pool.draw(count, &mut random);
            let samples: Vec<_> = numbers.iter().map(|&number| &pool.train[number]).collect();
            let mut feeds = together(&samples);
            let given = if self.augment.is_empty() {
                teacher.remembered(&numbers, &feeds)?
            } else {
                let change = |(name, tensor)| (name, augmented(tensor, &self.augment, &mut random));
                feeds = feeds.into_iter().map(change).collect();
                teacher.asked(&feeds)?
            };
            let (loss, gradients) = at_work.gradients(&feeds, given, &now.trained)?;
            let floats: Vec<_> = gradients
                .iter()
                .map(|gradient| gradient.to_slice::<f32>())
                .collect::<Result<_, _>>()
                .map_err(|error| {
                    PassError::Options(format!("a gradient is not of 32-bit floats: {error}"))
                })?;
            let length = norm(&floats.iter().map(|floats| &**floats).collect::<Vec<_>>());
            if !loss.is_finite() || !length.is_finite() {
                ended = Some(now.step + 1);
                break;
            }
            let factor = match self.clip_norm {
                most if most > 0.0 && length > f64::from(most) => (f64::from(most) / length) as f32,
                _ => 1.0,
            };
            let rate = cosine(self.learning_rate, now.step, self.steps, self.steps / 20);
            let learning = now.trained.iter_mut().zip(&learns).filter(|(_, learns)| **learns);
            for ((trained, _), gradient) in learning.zip(&floats) {
                adam.step(trained, gradient, factor, rate, now.step + 1);
            }
            now.step += 1;
            if now.step.is_multiple_of(each) || now.step == self.steps {
                let loss = at_exam.loss(&pool.held, held, &mut teacher, &now.trained)?;
                now.since += 1;
                if loss < now.best {
                    (now.best, now.best_step, now.since) = (loss, now.step, 0);
                    now.kept = now.trained.iter().map(|one| one.elements.clone()).collect();
                }
                (now.random, now.next) = (random.get_word_pos(), pool.next);
                now.order.clone_from(&pool.order);
                keep(&now, &identity, cx)?;
            }
        }
        let State { step, since, best, best_step, kept, .. } = now;
        if step < self.steps && ended.is_none() {
            cx.note(format!(
                "ended after step {step}: nothing was gained for {since} looks at samples held out"
            ));
        }
        if let Some(step) = ended {
            cx.warn(format!("the loss was not finite at step {step}: a smaller `learning-rate` may help"));
        }
        cx.count("steps that were kept", best_step);
        if best_step == 0 {
            cx.note(format!(
                "the model stays as it was: the loss on samples held out did not fall below {first:.3e}"
            ));
            return Ok(None);
        }
        let summary = format!(
            "the loss on {} samples held out fell from {first:.3e} to {best:.3e} in {best_step} steps of {count} samples",
            pool.held.len()
        );
        Ok(Some(Learned { kept, summary }))
    }

    /// What tells this training from all others.
    fn identity(
        &self,
        model: &Model,
        teacher: &Model,
        pool: &Pool,
        cx: &mut Cx<'_>,
    ) -> Result<[u8; 32], PassError> {
        let of = |model: &Model| {
            fingerprint(model)
                .map_err(|error| PassError::Options(format!("the model cannot be written: {error}")))
        };
        if cx.checkpoint().is_none() {
            return Ok([0; 32]);
        }
        let (options, seed) = (format!("{self:?}"), cx.seed().to_le_bytes());
        let (own, teachers) = (of(model)?, of(teacher)?);
        let samples =
            pool.train.iter().chain(&pool.held).flat_map(|sample| &sample.hashes).map(|hash| &hash[..]);
        let parts = [options.as_bytes(), &seed, &own, &teachers];
        Ok(digest(parts.into_iter().chain(samples)))
    }
}

/// The state to go on from, where one was kept.
fn resumed(start: &State, identity: &[u8; 32], cx: &mut Cx<'_>) -> Result<Option<State>, PassError> {
    let Some(store) = cx.checkpoint() else { return Ok(None) };
    let refused = |what: String| PassError::Options(format!("--checkpoint: {what}"));
    let Some(bytes) = store.load().map_err(refused)? else { return Ok(None) };
    let help = "remove the file to start anew, or name another";
    State::from_bytes(&bytes, identity, start).map(Some).map_err(|what| refused(format!("{what}; {help}")))
}

/// Keeps a state where the user wants that.
fn keep(state: &State, identity: &[u8; 32], cx: &mut Cx<'_>) -> Result<(), PassError> {
    let Some(store) = cx.checkpoint() else { return Ok(()) };
    let saved = store.save(&state.to_bytes(identity));
    Ok(saved.map_err(|what| OracleError::Environment(format!("--checkpoint: {what}")))?)
}

/// A parameter as it stands in the model.
fn started(model: &Model, parameter: &Parameter) -> Trained {
    let elements =
        model.constant(parameter.value).and_then(|held| held.to_slice::<f32>().ok().map(Vec::from));
    let elements = elements.unwrap_or_default();
    let zeros = elements.iter().filter(|&&x| x == 0.0).count();
    let is_pruned = parameter.is_weight && zeros as f64 >= PRUNED * elements.len().max(1) as f64;
    Trained::new(elements, parameter.is_weight, is_pruned)
}

/// By how much elements moved, as a share of what they were.
fn moved(before: &[f32], after: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let by: f64 = before.iter().zip(after).map(|(a, b)| square(a - b)).sum();
    (by / before.iter().map(|&x| square(x)).sum::<f64>().max(f64::MIN_POSITIVE)).sqrt()
}

impl Pass for Distill {
    fn requires(&self) -> Requires {
        Requires { calibration: true, inferred_types: true, opset: gradient::OPERATOR_SET }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Kept }
    }

    fn wants_teacher(&self) -> bool {
        true
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        self.check(model)?;
        let all: Vec<Parameter> = parameters(model)
            .into_iter()
            .filter(|parameter| not_excluded(model, parameter.node, &self.exclude).is_ok())
            .collect();
        if all.is_empty() {
            return Err(PassError::NothingToDo("no layer has weights of 32-bit floats to train".to_owned()));
        }
        if self.steps == 0 {
            return Ok(());
        }
        let name = |model: &Model, parameter: &Parameter| model.value(parameter.value).name().to_owned();
        let found = cx.decide("weights", |cx| {
            let Some(learned) = self.learn(model, &all, cx)? else { return Ok(Vec::new()) };
            cx.note(learned.summary);
            let recorded = all.iter().zip(learned.kept).enumerate().map(|(place, (parameter, elements))| {
                Recorded { name: name(model, parameter), place, elements: PackedFloats(elements) }
            });
            Ok(recorded.collect::<Vec<_>>())
        })?;
        for Recorded { name: known, place, elements: PackedFloats(elements) } in found {
            let unusable = |what: String| DecisionError::Unusable { key: "weights".to_owned(), what };
            let parameter = all.get(place).filter(|parameter| name(model, parameter) == known);
            let Some(parameter) = parameter else {
                return Err(unusable(format!("constant {place} of the model is not `{known}`")).into());
            };
            let before = started(model, parameter).elements;
            if before.len() != elements.len() || elements.iter().any(|x| !x.is_finite()) {
                return Err(unusable(format!("`{known}` has {} finite elements", before.len())).into());
            }
            if !cx.may_edit("train-weights") {
                return Ok(());
            }
            let shape = model.constant(parameter.value).map(|held| held.shape().to_vec()).unwrap_or_default();
            let (node, op) = naming::node_and_op(model, parameter.node);
            let bytes = 4 * elements.len() as u64;
            if before != elements {
                let reason = format!("`{known}` moved by {:.1}%", moved(&before, &elements) * 100.0);
                cx.layer(Layer {
                    node,
                    op,
                    action: "trained".to_owned(),
                    reason: Some(reason),
                    bytes_before: bytes,
                    bytes_after: bytes,
                    ..Layer::default()
                });
                cx.count("constants trained", 1);
            }
            model.set_tensor(parameter.value, Tensor::from_vec(shape, elements));
        }
        Ok(())
    }
}
