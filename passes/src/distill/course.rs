//! Training: steps along gradients until samples that are held out show no more gain.

use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::{Cx, OracleError, PassError, digest, fingerprint};
use optix_training::loss::Distance;
use optix_training::optimizer::{AdamW, Trained, cosine, norm};
use optix_training::{Aim, Parameter};

use super::augment::{Augmentation, augmented};
use super::distill::Loss;
use super::features;
use super::pool::{Pool, together};
use super::school::{self, Class, Teacher, fed, pairs};
use super::state::State;
use crate::names::check_patterns;

/// How to train: the options that all passes which train have.
#[derive(Clone, Debug)]
pub(super) struct Course<'a> {
    pub(super) steps: u64,
    pub(super) batch_size: usize,
    pub(super) learning_rate: f32,
    pub(super) weight_decay: f32,
    pub(super) loss: Loss,
    pub(super) temperature: f32,
    pub(super) clip_norm: f32,
    pub(super) augment: &'a [Augmentation],
    pub(super) patience: usize,
    pub(super) freeze_unsupported: bool,
    pub(super) features: &'a [String],
    pub(super) feature_weight: f32,
    pub(super) label_weight: f32,
    pub(super) exclude: &'a [String],
}

/// Looks at the samples that are held out, over all steps.
const LOOKS: u64 = 20;

/// What becomes of parameters when they are written.
pub(super) type Written<'a> = &'a dyn Fn(Vec<Vec<f32>>) -> Vec<Vec<f32>>;

/// What came of training.
pub(super) struct Learned {
    /// Elements of every parameter.
    pub(super) kept: Vec<Vec<f32>>,
    pub(super) summary: String,
}

impl Course<'_> {
    pub(super) fn check(&self, model: &Model) -> Result<(), PassError> {
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
        for (name, weight) in [("feature-weight", self.feature_weight), ("label-weight", self.label_weight)] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return refuse(&format!("`{name}` is 0 or more"));
            }
        }
        check_patterns(model, self.exclude)
    }

    /// What is learned at an output.
    fn distance(&self, model: &Model, output: usize) -> Distance {
        let value = model.graph(model.main()).outputs()[output].value;
        let name = model.value(value).name().to_lowercase();
        let is_flat =
            model.value(value).ty.as_ref().and_then(|ty| ty.shape()).is_some_and(|shape| shape.len() == 2);
        let logits = Distance::Logits { temperature: self.temperature };
        match self.loss {
            Loss::Logits => logits,
            Loss::Probabilities => Distance::Probabilities,
            Loss::Squares => Distance::Squares,
            Loss::Auto if is_softmax(model, value) => Distance::Probabilities,
            Loss::Auto if is_flat && ["logit", "score", "class"].iter().any(|word| name.contains(word)) => {
                logits
            }
            Loss::Auto => Distance::Squares,
        }
    }

    /// Trains parameters from where they start; nothing where the samples that are held out show no gain. These judge what
    /// is `written` of the parameters.
    pub(super) fn learn(
        &self,
        model: &Model,
        parameters: &[Parameter],
        trained: Vec<Trained>,
        written: Written<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<Option<Learned>, PassError> {
        let Some(teacher_model) = cx.teacher() else {
            return Err(PassError::Options("there is no teacher".to_owned()));
        };
        let pairs = pairs(teacher_model, model)?;
        let output = |model: &Model, place: usize| model.graph(model.main()).outputs()[place].value;
        let aim = |&(_, place): &(usize, usize)| Aim {
            value: output(model, place),
            distance: self.distance(model, place),
            weight: 1.0,
        };
        let mut aims: Vec<Aim> = pairs.iter().map(aim).collect();
        let mut random = cx.rng("distill");
        let mut pool = Pool::read(model, cx)?;
        let count = self.batch_size.min(pool.train.len());
        let of_teacher = pairs.iter().map(|&(place, _)| output(teacher_model, place)).collect();
        // Samples held out have the numbers behind those to learn from.
        let held = pool.train.len();
        let first = &pool.train[0];
        let mut teacher = Teacher::new(teacher_model, of_teacher, first, held + pool.held.len(), cx)?;
        let own = fed(model, first, count)?;
        let mut features =
            features::pairs((teacher_model, &teacher.shapes(first, count)), (model, &own), self.features)?;
        teacher.watch(features.iter().map(|feature| feature.teacher));
        // With adapters, which are trained along and left behind.
        let mut wide = model.clone();
        let (mut parameters, mut trained) = (parameters.to_vec(), trained);
        let plain = parameters.len();
        let many: Vec<_> = pool.train.iter().cycle().take(count).collect();
        let mut given = teacher.asked(&together(&many))?;
        teacher.check_rows(&given, &together(&many[..1]))?;
        let given_shapes: Vec<Vec<usize>> =
            given[aims.len()..].iter().map(|tensor| tensor.shape().to_vec()).collect();
        let adapters =
            features::adapt(&mut wide, &mut features, &given_shapes, &own, &mut cx.rng("adapters"));
        for (parameter, start) in adapters {
            parameters.push(parameter);
            trained.push(start);
        }
        // Samples held out are judged by what outputs alone lose.
        let judged = aims.len();
        aims.extend(features.iter().map(|feature| Aim {
            value: feature.student,
            distance: Distance::Squares,
            weight: self.feature_weight / features.len() as f32,
        }));
        let labelled = self.labelled(model, &aims[..judged], &given)?;
        if let Some((aim, classes)) = labelled {
            aims.push(aim);
            given.push(school::classes(&many, classes)?);
        }
        let freeze = self.freeze_unsupported;
        let mut at_work = Class::new(&wide, &parameters, (&aims, &given), (first, count), freeze, cx)?;
        let few = at_once(pool.held.len(), count);
        let given = teacher.asked(&together(&many[..few]))?;
        let mut at_exam =
            Class::new(&wide, &parameters, (&aims[..judged], &given), (first, few), freeze, cx)?;
        for (node, reason) in at_work.frozen() {
            cx.warn(format!("no gradient passes {node}: {reason}"));
        }
        let learns: Vec<bool> = at_work.learns().collect();
        if !learns[..plain].contains(&true) {
            return Err(PassError::Options("no gradient reaches any weight".to_owned()));
        }
        let needed = at_work.predicted_peak().map(|peak| {
            // Elements, two moments, what was best, and what is fed and comes back.
            let of_parameters: usize = trained.iter().map(|one| 6 * 4 * one.elements.len()).sum();
            let size = |tensor: &Tensor| tensor.bytes().len();
            let samples = pool.train.iter().chain(&pool.held).flat_map(|sample| &sample.feeds);
            let of_samples: usize = samples.map(|(_, tensor)| size(tensor)).sum();
            let answers = given.iter().map(size).sum::<usize>() / few.max(1) * (held + pool.held.len());
            // What kernels need for themselves, and what allocators keep: measured on two nets at two batch sizes.
            peak * 9 / 4 + (16 << 20) + (of_parameters + of_samples + answers.min(school::ROOM)) as u64
        });
        let said =
            needed.map_or_else(String::new, |bytes| format!(" about {} MB", bytes.div_ceil(1_000_000)));
        if needed.is_some() {
            cx.note(format!("memory of training, predicted:{said}, beside the program and the models"));
        }
        let as_written = |trained: &[Trained]| -> Vec<Trained> {
            let elements = written(trained[..plain].iter().map(|one| one.elements.clone()).collect());
            let own = elements.into_iter().map(|elements| Trained::new(elements, false, false));
            own.chain(trained[plain..].iter().cloned()).collect()
        };
        let first = at_exam.loss(&pool.held, held, &mut teacher, &as_written(&trained))?;
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
            curve: vec![[0.0, first]],
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
        let each = self.steps.div_ceil(LOOKS).max(1);
        let mut ended = None;
        while now.step < self.steps && now.since < self.patience.max(1) as u64 {
            cx.progress(&format!("learning,{said}, loss on others {:.4}", now.best), now.step, self.steps)?;
            let numbers = pool.draw(count, &mut random);
            let samples: Vec<_> = numbers.iter().map(|&number| &pool.train[number]).collect();
            let mut feeds = together(&samples);
            let mut given = if self.augment.is_empty() {
                teacher.remembered(&numbers, &feeds)?
            } else {
                let change = |(name, tensor)| (name, augmented(tensor, self.augment, &mut random));
                feeds = feeds.into_iter().map(change).collect();
                teacher.asked(&feeds)?
            };
            if let Some((_, classes)) = labelled {
                given.push(school::classes(&samples, classes)?);
            }
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
                let loss = at_exam.loss(&pool.held, held, &mut teacher, &as_written(&now.trained))?;
                now.since += 1;
                now.curve.push([now.step as f64, loss]);
                if loss < now.best {
                    (now.best, now.best_step, now.since) = (loss, now.step, 0);
                    now.kept = now.trained.iter().map(|one| one.elements.clone()).collect();
                }
                (now.random, now.next) = (random.get_word_pos(), pool.next);
                now.order.clone_from(&pool.order);
                keep(&now, &identity, cx)?;
            }
        }
        let State { step, since, best, best_step, mut kept, curve, .. } = now;
        kept.truncate(plain);
        cx.curve("loss on samples held out, by step", &curve);
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
            pool.held.len() / few * few
        );
        Ok(Some(Learned { kept, summary }))
    }

    /// What labels are learned at: the first output that has a row of classes for each sample, and how many these are.
    fn labelled(
        &self,
        model: &Model,
        aims: &[Aim],
        given: &[Tensor],
    ) -> Result<Option<(Aim, usize)>, PassError> {
        if self.label_weight == 0.0 {
            return Ok(None);
        }
        let found = aims.iter().zip(given).find(|(_, given)| given.shape().len() == 2);
        let Some((aim, given)) = found else {
            return Err(PassError::Options(
                "`label-weight`: no output has two axes, samples and classes".to_owned(),
            ));
        };
        let of_logits = !matches!(aim.distance, Distance::Probabilities) && !is_softmax(model, aim.value);
        let distance = Distance::Classes { of_logits };
        Ok(Some((Aim { value: aim.value, distance, weight: self.label_weight }, given.shape()[1])))
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
        let engine = cx.oracle().describe();
        // As they are fed: after preprocessing, and with their labels.
        let all = || pool.train.iter().chain(&pool.held);
        let samples = all().flat_map(|sample| &sample.feeds).map(|(_, tensor)| &tensor.bytes()[..]);
        let labels: String = match self.label_weight > 0.0 {
            true => all().map(|sample| format!("{:?} ", sample.labels)).collect(),
            false => String::new(),
        };
        let parts = [options.as_bytes(), &seed, &own, &teachers, engine.as_bytes(), labels.as_bytes()];
        Ok(digest(parts.into_iter().chain(samples)))
    }
}

/// How many of `all` to look at together, up to `most`, so that as few as can be are left over.
fn at_once(all: usize, most: usize) -> usize {
    let most = most.min(all).max(1);
    (most.div_ceil(2)..=most).max_by_key(|&size| (all / size * size, size)).unwrap_or(most)
}

/// Whether a value is what a Softmax gives, perhaps rounded or in another form.
fn is_softmax(model: &Model, mut value: ValueId) -> bool {
    const PASSED: &[&str] = &["QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Reshape", "Flatten"];
    while let Some((node, _)) = model.value(value).producer() {
        let made = model.node(node);
        if made.is("Softmax") {
            return true;
        }
        match made.input(0) {
            Some(before) if PASSED.iter().any(|op| made.is(op)) => value = before,
            _ => return false,
        }
    }
    false
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
