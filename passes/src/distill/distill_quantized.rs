//! Training of a model in integers against a teacher.

use optix_ir::{Model, NodeId};
use optix_pipeline::{
    Augmentation, Cx, DecisionError, Family, Interface, Layer, Named, Numerics, PackedFloats, Pass,
    PassError, Promises, Requires, Topology, naming,
};
use optix_training::gradient;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::course::Course;
use super::distill::Loss;
use super::folded::Change;
use super::unfolded::Unfolded;

/// Trains a model in integers to give what its original gives, or the model of `--teacher`: quantization-aware training
/// without labels.
///
/// Weights are trained as floats that are rounded in every step, gradients pass the rounding as if it were not there,
/// and scales of weights and activations learn along (LSQ). What comes out is the same graph with other integers,
/// biases and scales: engines run it as before. A tenth of the calibration data is held out, and what did best on that
/// is kept: a model never becomes worse by it than it was. Weights that were zeros of a pruned model stay zeros, and
/// weights that kernels add up in pairs stay within what they can hold.
///
/// Put it behind the steps that quantize, in the same recipe, or give a quantized model and `--teacher`. Needs
/// operator set 13 (`convert-opset` raises it) and a model written as QDQ (`to-qdq`).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DistillQuantized {
    /// Steps. 0 leaves the model as it is.
    pub steps: u64,
    /// Samples of a step.
    pub batch_size: usize,
    /// The greatest learning rate: it rises over the first twentieth of the steps and falls to nothing at the end. By
    /// default 5e-4 where weights have fewer than 8 bits, and 5e-5 where a step of theirs is that much smaller.
    pub learning_rate: Option<f32>,
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

impl Default for DistillQuantized {
    fn default() -> Self {
        DistillQuantized {
            steps: 500,
            batch_size: 64,
            learning_rate: None,
            loss: Loss::Auto,
            temperature: 2.0,
            clip_norm: 1.0,
            augment: None,
            patience: 20,
            freeze_unsupported: false,
            features: Vec::new(),
            feature_weight: 1.0,
            blocks: false,
            label_weight: 0.0,
            exclude: Vec::new(),
        }
    }
}

impl Named for DistillQuantized {
    const NAME: &'static str = "distill-quantized";
    const FAMILY: Family = Family::Distill;
}

/// A trained part as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    /// Its name, for people.
    name: String,
    /// Its number among those that can be trained.
    place: usize,
    elements: PackedFloats,
}

impl DistillQuantized {
    fn course(&self, is_coarse: bool) -> Course<'_> {
        Course {
            steps: self.steps,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate.unwrap_or(if is_coarse { 5e-4 } else { 5e-5 }),
            weight_decay: 0.0,
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

/// The row of a layer.
fn row(model: &Model, layer: NodeId, change: Change) -> Layer {
    let (node, op) = naming::node_and_op(model, layer);
    let reason = format!(
        "{:.1}% of its integers are others, scales moved by {:.1}%",
        change.integers * 100.0,
        change.scales * 100.0
    );
    Layer { node, op, action: "trained".to_owned(), reason: Some(reason), ..Layer::default() }
}

impl Pass for DistillQuantized {
    fn requires(&self) -> Requires {
        Requires { calibration: true, inferred_types: true, opset: gradient::OPERATOR_SET }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Kept }
    }

    fn wants_teacher(&self) -> bool {
        true
    }

    fn wants_float(&self) -> bool {
        self.steps > 0
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let unfolded = Unfolded::of(model, cx.float(), &self.exclude);
        let course = self.course(unfolded.is_coarse());
        course.check(model)?;
        if !unfolded.has_integers() {
            return Err(PassError::NothingToDo(
                "no layer has weights in integers behind a DequantizeLinear that can be trained: put it behind \
                 `quantize-static`, or `to-qdq`; `distill` trains floats"
                    .to_owned(),
            ));
        }
        if self.steps == 0 {
            return Ok(());
        }
        for (layer, why) in &unfolded.left {
            cx.skip(model, *layer, why.clone());
        }
        let found = cx.decide("weights", |cx| {
            let written = |elements: Vec<Vec<f32>>| unfolded.rounded(model, elements, &self.exclude);
            let (student, parameters) = (&unfolded.model, &unfolded.parameters);
            let learned = course.learn(student, parameters, unfolded.trained(), &written, cx)?;
            let Some(learned) = learned else { return Ok(Vec::new()) };
            cx.note(learned.summary);
            let parts = unfolded.parts.iter().zip(unfolded.plain(learned.kept)).enumerate();
            let recorded = parts.map(|(place, (part, elements))| Recorded {
                name: part.name.clone(),
                place,
                elements: PackedFloats(elements),
            });
            Ok(recorded.collect::<Vec<_>>())
        })?;
        if found.is_empty() || !cx.may_edit("train-weights") {
            return Ok(());
        }
        let unusable = |what: String| DecisionError::Unusable { key: "weights".to_owned(), what };
        let is_known = |(place, one): (usize, &Recorded)| {
            one.place == place
                && unfolded.parts.get(place).is_some_and(|part| part.name == one.name)
                && unfolded.len(place) == one.elements.0.len()
                && one.elements.0.iter().all(|x| x.is_finite())
        };
        if found.len() != unfolded.parts.len() || !found.iter().enumerate().all(is_known) {
            let what =
                format!("the model has {} constants that can be trained, and others", unfolded.parts.len());
            return Err(unusable(what).into());
        }
        let elements: Vec<Vec<f32>> = found.into_iter().map(|one| one.elements.0).collect();
        for (layer, change) in unfolded.fold(model, &elements).map_err(unusable)? {
            cx.layer(row(model, layer, change));
            cx.count("layers trained", 1);
        }
        Ok(())
    }
}
