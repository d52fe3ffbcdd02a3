//! Training: steps along gradients until samples that are held out show no more gain.

use optix_ir::Model;
use optix_pipeline::{Augmentation, Cx, PassError, digest, fingerprint};
use optix_training::Parameter;
use optix_training::loss::Distance;
use optix_training::optimizer::{AdamW, Trained, cosine, norm};

use super::distill::Loss;
use super::lesson::Lesson;
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
    /// None: those of the data.
    pub(super) augment: Option<&'a [Augmentation]>,
    pub(super) patience: usize,
    pub(super) freeze_unsupported: bool,
    pub(super) features: &'a [String],
    pub(super) feature_weight: f32,
    pub(super) blocks: bool,
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
        if self.blocks && self.feature_weight == 0.0 {
            return refuse("`feature-weight` 0 with `blocks`: only what follows the last block would learn");
        }
        check_patterns(model, self.exclude)
    }

    /// What is learned at an output.
    pub(super) fn distance(&self, model: &Model, output: usize) -> Distance {
        let value = model.graph(model.main()).outputs()[output].value;
        match self.loss {
            Loss::Logits => Distance::Logits { temperature: self.temperature },
            Loss::Probabilities => Distance::Probabilities,
            Loss::Squares => Distance::Squares,
            Loss::Auto => Distance::suited(model, value, self.temperature),
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
        let Some(teacher) = cx.teacher() else {
            return Err(PassError::Options("there is no teacher".to_owned()));
        };
        let mut random = cx.rng("distill");
        let plain = parameters.len();
        let (mut lesson, trained) = Lesson::new(self, (model, teacher), (parameters, trained), cx)?;
        let as_written = |trained: &[Trained]| -> Vec<Trained> {
            let elements = written(trained[..plain].iter().map(|one| one.elements.clone()).collect());
            let own = elements.into_iter().map(|elements| Trained::new(elements, false, false));
            own.chain(trained[plain..].iter().cloned()).collect()
        };
        let first = lesson.exam(&as_written(&trained))?;
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
            order: lesson.pool.order.clone(),
            next: lesson.pool.next,
            kept: trained.iter().map(|one| one.elements.clone()).collect(),
            trained,
            curve: vec![[0.0, first]],
        };
        let identity = self.identity(model, teacher, &lesson, cx)?;
        if let Some(kept) = resumed(&now, &identity, cx)? {
            cx.note(format!("training went on from step {} of the checkpoint", kept.step));
            random.set_word_pos(kept.random);
            lesson.pool.order.clone_from(&kept.order);
            lesson.pool.next = kept.next;
            now = kept;
        }
        let adam = AdamW { decay: self.weight_decay, ..AdamW::default() };
        let each = self.steps.div_ceil(LOOKS).max(1);
        let mut ended = None;
        while now.step < self.steps && now.since < self.patience.max(1) as u64 {
            let memory = &lesson.memory;
            cx.progress(&format!("learning,{memory}, loss on others {:.4}", now.best), now.step, self.steps)?;
            let (loss, gradients) = lesson.step(&now.trained, &mut random)?;
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
            let learning = now.trained.iter_mut().zip(&lesson.learns).filter(|(_, learns)| **learns);
            for ((trained, _), gradient) in learning.zip(&floats) {
                adam.step(trained, gradient, factor, rate, now.step + 1);
            }
            now.step += 1;
            if now.step.is_multiple_of(each) || now.step == self.steps {
                let loss = lesson.exam(&as_written(&now.trained))?;
                now.since += 1;
                now.curve.push([now.step as f64, loss]);
                if loss < now.best {
                    (now.best, now.best_step, now.since) = (loss, now.step, 0);
                    now.kept = now.trained.iter().map(|one| one.elements.clone()).collect();
                }
                (now.random, now.next) = (random.get_word_pos(), lesson.pool.next);
                now.order.clone_from(&lesson.pool.order);
                cx.keep_state(&now.to_bytes(&identity))?;
            }
        }
        Ok(self.told(now, ended, plain, &lesson, cx))
    }

    /// Says what came of training.
    fn told(
        &self,
        state: State,
        ended: Option<u64>,
        plain: usize,
        lesson: &Lesson,
        cx: &mut Cx<'_>,
    ) -> Option<Learned> {
        let State { step, since, first, best, best_step, mut kept, curve, .. } = state;
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
            return None;
        }
        let summary = format!(
            "the loss on {} samples held out fell from {first:.3e} to {best:.3e} in {best_step} steps of {} samples",
            lesson.judged(),
            lesson.count
        );
        Some(Learned { kept, summary })
    }

    /// What tells this training from all others.
    fn identity(
        &self,
        model: &Model,
        teacher: &Model,
        lesson: &Lesson,
        cx: &mut Cx<'_>,
    ) -> Result<[u8; 32], PassError> {
        let of = |model: &Model| {
            fingerprint(model)
                .map_err(|error| PassError::Options(format!("the model cannot be written: {error}")))
        };
        if !cx.has_checkpoint() {
            return Ok([0; 32]);
        }
        let (options, seed) = (format!("{self:?} {:?}", lesson.changes), cx.seed().to_le_bytes());
        let (own, teachers) = (of(model)?, of(teacher)?);
        let engine = cx.oracle().describe();
        let parts = [options.as_bytes(), &seed, &own, &teachers, engine.as_bytes()];
        let samples = lesson.pool.digests.iter().map(|digest| &digest[..]);
        Ok(digest(parts.into_iter().chain(samples)))
    }
}

/// The state to go on from, where one was kept.
fn resumed(start: &State, identity: &[u8; 32], cx: &mut Cx<'_>) -> Result<Option<State>, PassError> {
    let Some(bytes) = cx.kept_state() else { return Ok(None) };
    let help = "remove the file to start anew, or name another";
    let refused = |what: String| PassError::Options(format!("--checkpoint: {what}; {help}"));
    State::from_bytes(&bytes, identity, start).map(Some).map_err(refused)
}
