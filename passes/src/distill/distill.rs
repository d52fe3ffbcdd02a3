//! Training against a teacher.

use optix_ir::{Model, Tensor};
use optix_pipeline::{
    Augmentation, Cx, DecisionError, Family, Interface, Layer, Named, Numerics, PackedFloats, Pass,
    PassError, Promises, Requires, Topology, naming,
};
use optix_training::optimizer::Trained;
use optix_training::{Parameter, gradient, parameters};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::course::Course;
use crate::names::not_excluded;

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
    /// Changes of pictures, about which the teacher is asked anew. By default those that the `data.toml` names.
    pub augment: Option<Vec<Augmentation>>,
    /// Ends when the loss on samples that are held out has not fallen for so many looks, of 20 in all.
    pub patience: usize,
    /// Take what is read by operators without a gradient as constant instead of refusing.
    pub freeze_unsupported: bool,
    /// Values on the way that are learned too: names that both models have, with `*` for any run of characters (behind a
    /// Softmax of attention these are its maps); `auto` for up to four that blocks end with. Where widths differ an
    /// adapter, which is left behind afterwards, stands between.
    pub features: Vec<String>,
    /// What they count all together, where outputs count 1.
    pub feature_weight: f32,
    /// Learn block by block: each is fed what the teacher gives before it, and learns what the teacher gives behind it.
    /// Blocks end at `features`, or else wherever two values on the way are added, or at every layer where nothing is.
    /// Values there must have the names and shapes of the teacher's. Needs less memory.
    pub blocks: bool,
    /// What the classes that samples are labelled with count, where the teacher counts 1.
    pub label_weight: f32,
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
            augment: None,
            patience: 10,
            freeze_unsupported: false,
            features: Vec::new(),
            feature_weight: 1.0,
            blocks: false,
            label_weight: 0.0,
            exclude: Vec::new(),
        }
    }
}

impl Named for Distill {
    const NAME: &'static str = "distill";
    const FAMILY: Family = Family::Distill;
}

/// Share of zeros from which on a constant counts as pruned.
pub(super) const PRUNED: f64 = 0.1;

/// Whether at least such a share of elements is 0.
pub(super) fn is_pruned(elements: &[f32], share: f64) -> bool {
    let zeros = elements.iter().filter(|&&x| x == 0.0).count();
    zeros as f64 >= share * elements.len().max(1) as f64
}

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

impl Distill {
    fn course(&self) -> Course<'_> {
        Course {
            steps: self.steps,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            loss: self.loss,
            temperature: self.temperature,
            clip_norm: self.clip_norm,
            augment: self.augment.as_deref(),
            patience: self.patience,
            freeze_unsupported: self.freeze_unsupported,
            features: &self.features,
            feature_weight: self.feature_weight,
            blocks: self.blocks,
            label_weight: self.label_weight,
            exclude: &self.exclude,
        }
    }
}

/// A parameter as it stands in the model.
fn started(model: &Model, parameter: &Parameter) -> Trained {
    let elements =
        model.constant(parameter.value).and_then(|held| held.to_slice::<f32>().ok().map(Vec::from));
    let elements = elements.unwrap_or_default();
    let is_pruned = parameter.is_weight && is_pruned(&elements, PRUNED);
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
        let course = self.course();
        course.check(model)?;
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
            let trained: Vec<Trained> = all.iter().map(|one| started(model, one)).collect();
            let Some(learned) = course.learn(model, &all, trained, &|elements| elements, cx)? else {
                return Ok(Vec::new());
            };
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
