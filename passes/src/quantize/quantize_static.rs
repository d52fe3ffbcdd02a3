//! Static quantization to int8.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_pipeline::{
    Cx, Family, Interface, Layer, Named, Numerics, OracleError, Pass, PassError, Promises, Requires, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::affine::Affine;
use super::bias_correction;
use super::calibrate::{Choice, RangeObserver, calibrate, choose};
use super::clips::{self, Clips};
use super::decided;
use super::faster;
use super::ledger::{self, Ledger};
use super::measure::Measured;
use super::node_weights::{SharedWeights, WeightOptions, quantize_node};
use super::observer::Observer;
use super::placement::{self, Placement};
use super::quantized::{float_layer, refuse_quantized};
use super::rewrite;
use super::sensitivity;
use super::target::{self, Bias, Runs, Target, TargetChoice};
use super::types::{ActivationType, Saturation, WeightType};
use crate::decided::chosen_nodes;
use crate::names::{check_patterns, not_excluded};
use crate::samples;

/// Quantizes Conv, Gemm and MatMul with constant weights to 8 bits (weights also to 4), with ranges of activations from
/// calibration data, and writes the result as QDQ.
///
/// Weights become symmetric int8 with one scale a channel, biases int32, activations asymmetric 8-bit
/// integers with one scale a tensor. An activation function that clips (Relu, Clip) is folded into the
/// range of the quantizer behind it. Operators that only move elements share the scale of their input;
/// Add, Concat and average pools between integer layers run in integers too. Everything else stays
/// float, and the report says why. This is what onnxruntime on a processor runs in integers; another
/// `target` has other operators and types (docs/targets.md).
///
/// Needs operator set 13 or newer when weights have a scale a channel, 21 for 16 bits and
/// float8, which a target that computes it natively has from 19 on (`convert-opset` raises it).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct QuantizeStatic {
    /// One scale for each output channel of the weights, instead of one for the whole tensor.
    pub per_channel: bool,
    /// How ranges of activations are chosen.
    pub observer: RangeObserver,
    /// Share of values in percent, above 50 and up to 100, that the observer `percentile` keeps.
    pub percentile: f64,
    /// The engine that the model is meant for: a built-in target (`optix targets` lists them) or a profile as a
    /// table. It says which operators and types run in integers, and what `activation-type` and `saturation` are
    /// by default.
    pub target: TargetChoice,
    /// Type of activations; weights are float8 where activations are. By default the target's first.
    pub activation_type: Option<ActivationType>,
    /// Type of weights beside integer activations. int4 needs operator set 21.
    pub weight_type: WeightType,
    /// Ranges of int4 weights end before the greatest weight of a channel where layers lose less by it, on what they
    /// read with the layers before them in integers.
    pub clip_weights: bool,
    /// What to do about kernels that clip sums of two products to int16. By default what the target needs.
    pub saturation: Option<Saturation>,
    /// Quantize embedding tables too.
    pub embeddings: bool,
    /// Signal-to-noise ratio in dB that every output of the model must keep on calibration samples: where it
    /// does not, layers are judged one by one and the loudest stay float. 0 quantizes them all.
    pub min_sqnr: f64,
    /// Bring the mean of every channel back to what it is in float by changing biases, layer by layer: kept
    /// where the outputs gain by it on calibration samples that it was not measured on.
    pub bias_correction: bool,
    /// Leave layers float that are not faster in integers, quantizers counted in, as measured on the engine
    /// that the model is meant for. Without such an engine all layers are quantized.
    pub only_faster: bool,
    /// How much is measured for the layer ledger.
    pub ledger: Ledger,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for QuantizeStatic {
    fn default() -> Self {
        QuantizeStatic {
            per_channel: true,
            observer: RangeObserver::default(),
            percentile: 99.999,
            target: TargetChoice::default(),
            activation_type: None,
            weight_type: WeightType::default(),
            clip_weights: true,
            saturation: None,
            embeddings: true,
            min_sqnr: 20.0,
            bias_correction: true,
            only_faster: true,
            ledger: Ledger::default(),
            exclude: Vec::new(),
        }
    }
}

impl Named for QuantizeStatic {
    const NAME: &'static str = "quantize-static";
    const FAMILY: Family = Family::Quantize;
}

impl Pass for QuantizeStatic {
    fn requires(&self) -> Requires {
        let asked = self.activation_type.and_then(|asked| {
            let runs = self.target.resolve().ok()?.runs(asked)?;
            Some(asked.least_operator_set(runs))
        });
        let types = asked.unwrap_or(10);
        let opset = types.max(if self.per_channel { 13 } else { 10 });
        Requires { calibration: true, inferred_types: true, opset }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn reads_statistics(&self) -> bool {
        true
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        refuse_quantized(model)?;
        check_patterns(model, &self.exclude)?;
        cx.keep_float(model);
        let target = target::decide(&self.target, cx)?;
        self.decided_for(target, model, cx)?.quantize(model, cx)
    }
}

/// How activations and weights become integers.
#[derive(Clone, Copy)]
struct Ranges<'a> {
    /// Of activations. Empty when a lock is applied: what they say beside the quantizers is for the ledger alone.
    observers: &'a BTreeMap<ValueId, Observer>,
    quantizers: &'a BTreeMap<ValueId, Affine>,
    /// Of weights.
    clips: &'a Clips,
}

/// What a rewrite gives beside the model.
#[derive(Default)]
struct Rewritten {
    layers: Vec<Layer>,
    measured: Vec<Measured>,
    nodes: u64,
    activations: u64,
}

/// [`QuantizeStatic`] with all that its target decides.
struct Decided<'a> {
    options: &'a QuantizeStatic,
    target: Target,
    activations: ActivationType,
    /// Type of weights.
    weights: DType,
    saturation: Saturation,
    /// Whether speed is worth measuring: not of kernels that are not those of the target.
    is_timed: bool,
}

impl QuantizeStatic {
    /// The options as the target has them.
    ///
    /// # Errors
    /// When the target cannot run what is asked for.
    fn decided_for(&self, target: Target, model: &Model, cx: &mut Cx<'_>) -> Result<Decided<'_>, PassError> {
        let activations = self.activation_type.unwrap_or(target.default_activations());
        let runs = target::check_type(&target, activations)?;
        target::check_operator_set(&target, activations, runs, model, cx)?;
        if runs == Runs::Emulated {
            cx.note(format!(
                "{} computes {} activations in float: the results are those of the type, the speed is not",
                target.engine,
                activations.name()
            ));
        }
        let saturation = self.saturation.unwrap_or(target.weights.saturation);
        let beside = activations.weights();
        let weights = match (self.weight_type, beside) {
            (asked, ActivationType::Int8) => asked.dtype(),
            (WeightType::Int8, _) => beside.dtype(),
            (WeightType::Int4, _) => {
                return Err(PassError::Options(format!(
                    "weights beside {} activations are {}: int4 goes with integers",
                    activations.name(),
                    beside.name()
                )));
            }
        };
        if weights == DType::I4 {
            target::check_small_weights(&target, model, cx)?;
        }
        let is_timed = target.engine == "onnxruntime" && runs == Runs::Natively && weights != DType::I4;
        Ok(Decided { options: self, target, activations, weights, saturation, is_timed })
    }
}

impl std::ops::Deref for Decided<'_> {
    type Target = QuantizeStatic;

    fn deref(&self) -> &QuantizeStatic {
        self.options
    }
}

impl Decided<'_> {
    fn quantize(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let wanted = |model: &Model, id: NodeId| self.wanted(model, id);
        let placement = placement::place(model, &self.target, &|id| wanted(model, id));
        for (id, reason) in &placement.skipped {
            cx.skip(model, *id, reason.clone());
            cx.layer(float_layer(model, *id, reason));
        }
        if placement.computed().next().is_none() {
            cx.warn("no node of this model can be quantized: the reasons are listed");
            return Ok(());
        }
        let dtype = self.activations.dtype();
        let choice = Choice {
            observer: self.observer,
            percentile: self.percentile,
            dtype,
            symmetric: self.target.activations.symmetric,
        };
        let mut observers = BTreeMap::new();
        let quantizers = decided::quantizers(model, &placement, cx, |cx| {
            let calibrated = calibrate(model, &placement, &choice, cx)?;
            let chosen = choose(&choice, model, &placement, &calibrated, cx)?;
            observers = calibrated.observers;
            Ok(chosen)
        })?;
        let ranges = Ranges { observers: &observers, quantizers: &quantizers, clips: &Clips::new() };
        let clips = match self.clip_weights && self.weights == DType::I4 {
            true => self.clips(model, &placement, ranges, cx)?,
            false => Clips::new(),
        };
        let ranges = Ranges { clips: &clips, ..ranges };
        let float_model = model.clone();
        let without = |model: &Model, float: &BTreeMap<NodeId, String>| {
            placement::place(model, &self.target, &|id| match float.get(&id) {
                Some(reason) => Err(reason.clone()),
                None => wanted(model, id),
            })
        };
        // Of the layers that were in integers when they were judged, or nothing.
        let mut corrected: Option<bias_correction::Found> = None;
        // Whether layers were left out since.
        let mut is_stale = false;
        let float = chosen_nodes(model, "float", cx, |cx| {
            let mut float = BTreeMap::new();
            let mut left = Cow::Borrowed(&placement);
            // Statistics of an earlier run do without data; then there is nothing to judge on.
            if !cx.has_calibration() {
                self.warn_unmeasured(cx);
                return Ok(float);
            }
            // Before anything is learned about layers that stay float anyway.
            let is_timed = self.only_faster && self.is_timed && left.computed().next().is_some();
            if is_timed {
                float = self.slower_in_integers(model, &left, ranges, cx)?;
                left = Cow::Owned(without(model, &float));
            }
            if self.min_sqnr > 0.0 && left.computed().next().is_some() {
                // What a shift of its bias takes back is no reason to leave a layer float.
                if self.bias_correction {
                    corrected = Some(self.shifts(model, &left, ranges, false, cx)?);
                }
                let shifts = corrected.as_ref().map_or(&[][..], |found| &found.shifts);
                let loud = self.too_sensitive(model, shifts, &left, ranges, cx)?;
                if !loud.is_empty() {
                    // What gains with all of them does so with some, and is measured anew.
                    is_stale = true;
                    float.extend(loud);
                    left = Cow::Owned(without(model, &float));
                    // With more of it in float, what is left may not be worth it.
                    if is_timed && left.computed().next().is_some() {
                        float.extend(self.slower_in_integers(model, &left, ranges, cx)?);
                    }
                }
            }
            Ok(float)
        })?;
        let mut placement = without(model, &float);
        let shifts = match self.bias_correction {
            true => cx.decide("bias", |cx| {
                let found = match corrected {
                    Some(found) if !is_stale => found,
                    Some(found) if found.shifts.is_empty() => bias_correction::Found::default(),
                    known => {
                        let is_trusted = known.is_some();
                        self.shifts(model, &placement, ranges, is_trusted, cx)?
                    }
                };
                if !found.summary.is_empty() {
                    cx.note(found.summary);
                }
                Ok(found.shifts)
            })?,
            false => Vec::new(),
        };
        if !shifts.is_empty() {
            bias_correction::apply(model, &shifts, &|_| true)?;
            cx.count("biases corrected", shifts.len() as u64);
            // Layers may have biases now that had none.
            placement = without(model, &float);
        }
        for (&id, reason) in &float {
            cx.skip(model, id, reason.clone());
            cx.layer(float_layer(model, id, reason));
        }
        let mut edit = || cx.may_edit("quantize-node");
        let rewritten = self.rewrite(model, &placement, ranges, &mut edit)?;
        let before = cx.layers_mut().len();
        cx.layers_mut().extend(rewritten.layers);
        cx.count("nodes quantized", rewritten.nodes);
        cx.count("activations quantized", rewritten.activations);
        if self.embeddings {
            super::embedding::quantize_tables(model, cx, &wanted)?;
        }
        let measured: Vec<Measured> =
            rewritten.measured.into_iter().map(|one| Measured { row: before + one.row, ..one }).collect();
        let samples = ranges.observers.values().map(Observer::samples).max().unwrap_or(0);
        ledger::complete(self.ledger, &float_model, model, &measured, samples, cx)
    }

    /// Says what statistics alone cannot do.
    fn warn_unmeasured(&self, cx: &mut Cx<'_>) {
        let left = [
            (self.min_sqnr > 0.0, "no layer is kept float by min-sqnr"),
            (self.only_faster, "none by only-faster"),
            (self.bias_correction, "biases are not corrected"),
            (self.observer == RangeObserver::Auto, "the observer is mse instead of auto"),
            (self.ledger != Ledger::None, "the ledger has no errors at outputs"),
        ];
        let left: Vec<&str> =
            left.into_iter().filter_map(|(is_left, what)| is_left.then_some(what)).collect();
        if !left.is_empty() {
            cx.warn(format!(
                "with statistics alone nothing is measured: {}; `--calib` beside `--stats` does all of it",
                left.join(", ")
            ));
        }
    }

    /// Layers that cost the outputs too much, each with the reason. Those in integers have their biases shifted.
    fn too_sensitive(
        &self,
        model: &Model,
        shifts: &[bias_correction::Shift],
        placement: &Placement,
        ranges: Ranges<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<BTreeMap<NodeId, String>, PassError> {
        let layers: Vec<NodeId> = placement.computed().collect();
        let build = |kept: &BTreeSet<NodeId>| {
            let is_left = |id: NodeId| !layers.contains(&id) || kept.contains(&id);
            let mut base = model.clone();
            bias_correction::apply(&mut base, shifts, &|id| kept.contains(&id))?;
            self.candidate(&base, placement, ranges, &is_left)
        };
        let protected = sensitivity::protect(model, &layers, self.min_sqnr, &build, cx)?;
        if !protected.summary.is_empty() {
            cx.note(protected.summary);
        }
        Ok(protected.float)
    }

    /// Where ranges of weights end.
    fn clips(
        &self,
        model: &Model,
        placement: &Placement,
        ranges: Ranges<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<Clips, PassError> {
        let per_channel = self.per_channel && self.target.weights.per_channel;
        let build = |clips: &Clips| {
            let mut candidate = model.clone();
            self.rewrite(&mut candidate, placement, Ranges { clips, ..ranges }, &mut || true)?;
            Ok(candidate)
        };
        let layers: Vec<clips::Layer> = placement
            .weighted
            .iter()
            .filter_map(|weighted| clips::Layer::of(model, weighted, per_channel, self.bias_correction))
            .collect();
        clips::decide(model, &layers, self.weights, &build, cx)
    }

    /// What is added to biases; nothing where that gains nothing.
    fn shifts(
        &self,
        model: &Model,
        placement: &Placement,
        ranges: Ranges<'_>,
        is_trusted: bool,
        cx: &mut Cx<'_>,
    ) -> Result<bias_correction::Found, PassError> {
        // Statistics of an earlier run do without data; then there is nothing to measure on.
        if !cx.has_calibration() || placement.weighted.is_empty() {
            return Ok(bias_correction::Found::default());
        }
        let left: BTreeSet<NodeId> = placement.computed().collect();
        let build = |float: &Model| {
            let is_left =
                |id: NodeId| !placement::is_quantizable(&float.node(id).op_type) || left.contains(&id);
            self.candidate(float, placement, ranges, &is_left)
        };
        bias_correction::search(model, placement, &build, is_trusted, cx)
    }

    /// Nodes that are slower in integers on the engine the model is meant for, each with the reason.
    fn slower_in_integers(
        &self,
        model: &Model,
        placement: &Placement,
        ranges: Ranges<'_>,
        cx: &mut Cx<'_>,
    ) -> Result<BTreeMap<NodeId, String>, PassError> {
        if cx.deployment().is_none() {
            return Ok(BTreeMap::new());
        }
        cx.progress("measuring layers", 0, 0)?;
        let Some(batch) = samples::first(model, 1, cx)? else { return Ok(BTreeMap::new()) };
        let build =
            |float: &BTreeSet<NodeId>| self.candidate(model, placement, ranges, &|id| !float.contains(&id));
        let quantized = build(&BTreeSet::new())?;
        let question = faster::Question {
            float: model,
            quantized: &quantized,
            placement,
            observers: ranges.observers,
            feeds: &batch.feeds,
        };
        let Some(deployment) = cx.deployment() else { return Ok(BTreeMap::new()) };
        let build = |float: &BTreeSet<NodeId>| build(float).map_err(|error| error.to_string());
        match faster::ask(&question, deployment, &build) {
            Ok(verdict) => {
                cx.note(verdict.summary);
                Ok(verdict.float)
            }
            Err(OracleError::Interrupted) => Err(PassError::Interrupted),
            Err(error) => {
                cx.warn(format!("nothing was measured on the engine the model is meant for: {error}"));
                Ok(BTreeMap::new())
            }
        }
    }

    /// The model with those of the placement's layers in integers, and of the nodes between them, that are
    /// left by `is_left`.
    fn candidate(
        &self,
        model: &Model,
        placement: &Placement,
        ranges: Ranges<'_>,
        is_left: &dyn Fn(NodeId) -> bool,
    ) -> Result<Model, PassError> {
        let is_candidate = |id: NodeId| {
            placement.weighted.iter().any(|weighted| weighted.node == id)
                || placement.products.contains(&id)
                || !placement::is_quantizable(&model.node(id).op_type)
        };
        let placement = placement::place(model, &self.target, &|id| match is_candidate(id) && is_left(id) {
            true => self.wanted(model, id),
            false => Err(String::new()),
        });
        let mut candidate = model.clone();
        self.rewrite(&mut candidate, &placement, ranges, &mut || true)?;
        Ok(candidate)
    }

    /// Whether a node may be quantized as far as the user is concerned.
    fn wanted(&self, model: &Model, id: NodeId) -> Result<(), String> {
        not_excluded(model, id, &self.exclude)
    }

    fn rewrite(
        &self,
        model: &mut Model,
        placement: &Placement,
        ranges: Ranges<'_>,
        may_edit: &mut dyn FnMut() -> bool,
    ) -> Result<Rewritten, PassError> {
        let dtype = self.activations.dtype();
        // Weights first: names and reasons are those of the float model.
        let mut rewritten = Rewritten::default();
        let options = WeightOptions {
            per_channel: self.per_channel && self.target.weights.per_channel,
            no_saturation: self.saturation == Saturation::Avoid
                && matches!(self.activations, ActivationType::Uint8 | ActivationType::Int8),
            integer_bias: self.target.weights.bias == Bias::Int32,
            activations: self.activations,
            weights: self.weights,
        };
        let mut shared = SharedWeights::new();
        let mut replaced = Vec::new();
        for weighted in &placement.weighted {
            if !may_edit() {
                rewritten.measured.clear();
                return Ok(rewritten);
            }
            let input_scale = ranges.quantizers[&weighted.input].scale;
            let clip = ranges.clips.get(&weighted.node).map(|clip| &clip[..]);
            let mut layer =
                quantize_node(options, model, weighted, input_scale, clip, &mut shared, &mut replaced)?;
            let root = placement
                .quantized
                .iter()
                .find(|(value, _)| *value == weighted.output)
                .map(|(_, root)| *root);
            if let Some(observer) = root.and_then(|root| ranges.observers.get(&root)) {
                layer.activation_sqnr_db = observer.sqnr_db(&ranges.quantizers[&weighted.output]);
                layer.range = observer.range().map(|(min, max)| [f64::from(min), f64::from(max)]);
            }
            let row = rewritten.layers.len();
            rewritten.measured.push(Measured::new(placement, weighted.node, weighted.output, row));
            rewritten.layers.push(layer);
            rewritten.nodes += 1;
        }
        let mut dequantized: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let reads: Vec<(NodeId, usize, ValueId)> = placement
            .reads
            .iter()
            .filter_map(|&(node, slot)| Some((node, slot, model.node(node).input(slot)?)))
            .collect();
        for &(value, _) in &placement.quantized {
            let everybody = placement.resident.contains(&value);
            let new = rewrite::insert_pair(model, value, &ranges.quantizers[&value], dtype, everybody)?;
            dequantized.insert(value, new);
            rewritten.activations += 1;
        }
        for (node, slot, value) in reads {
            if let Some(&new) = dequantized.get(&value) {
                model.set_input(node, slot, Some(new));
            }
        }
        for &node in placement.products.iter().chain(&placement.bridges) {
            let (name, op) = optix_pipeline::naming::node_and_op(model, node);
            let action = dtype.name().to_owned();
            if let Some(output) = model.node(node).output(0) {
                rewritten.measured.push(Measured::new(placement, node, output, rewritten.layers.len()));
            }
            rewritten.layers.push(Layer { node: name, op, action, ..Layer::default() });
        }
        rewrite::drop_unused(model, replaced);
        for one in &mut rewritten.measured {
            one.quantized = dequantized.get(&one.float).copied().unwrap_or(one.float);
        }
        Ok(rewritten)
    }
}
