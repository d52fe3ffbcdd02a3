//! Static quantization to int8.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, Tensor, ValueId};
use optix_pipeline::{
    Cx, Family, Interface, Layer, Named, Numerics, OracleError, Pass, PassError, Promises, Requires, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::affine::{Affine, channel_maxima, quantize_weights};
use super::observer::Observer;
use super::placement::{self, Placement, WeightedNode};
use super::rewrite;

/// Samples on which the error of every layer is measured once the model is quantized.
const MEASURED_SAMPLES: usize = 8;

/// How the range of an activation is chosen from what calibration saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RangeObserver {
    /// The whole range seen.
    MinMax,
    /// The range with the least mean squared error over a histogram of 2,048 bins.
    #[default]
    Mse,
}

/// Integer type of activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationType {
    /// 0 to 255: the fast one on x86.
    #[default]
    Uint8,
    /// -128 to 127.
    Int8,
}

impl ActivationType {
    fn dtype(self) -> DType {
        match self {
            ActivationType::Uint8 => DType::U8,
            ActivationType::Int8 => DType::I8,
        }
    }
}

/// Quantizes Conv, Gemm and MatMul with constant weights to 8 bits, with ranges of activations from
/// calibration data, and writes the result as QDQ.
///
/// Weights become symmetric int8 with one scale a channel, biases int32, activations asymmetric 8-bit
/// integers with one scale a tensor. An activation function that clips (Relu, Clip) is folded into the
/// range of the quantizer behind it. Operators that only move elements share the scale of their input;
/// Add, Concat and average pools between integer layers run in integers too. Everything else stays
/// float, and the report says why.
///
/// Needs operator set 13 or newer when weights have a scale a channel (`convert-opset` raises it).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct QuantizeStatic {
    /// One scale for each output channel of the weights, instead of one for the whole tensor.
    pub per_channel: bool,
    /// How ranges of activations are chosen.
    pub observer: RangeObserver,
    /// Integer type of activations.
    pub activation_type: ActivationType,
    /// Quantize embedding tables too.
    pub embeddings: bool,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for QuantizeStatic {
    fn default() -> Self {
        QuantizeStatic {
            per_channel: true,
            observer: RangeObserver::default(),
            activation_type: ActivationType::default(),
            embeddings: true,
            exclude: Vec::new(),
        }
    }
}

impl Named for QuantizeStatic {
    const NAME: &'static str = "quantize-static";
    const FAMILY: Family = Family::Quantize;
}

/// Operators whose presence means that a model is quantized already.
pub(super) const QUANTIZED: &[&str] = &[
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulNBits",
    "QGemm",
    "QLinearAdd",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulBnb4",
    "GatherBlockQuantized",
    "QAttention",
];

/// Refuses a model that is quantized already.
pub(super) fn refuse_quantized(model: &Model) -> Result<(), PassError> {
    match model.walk().find(|&id| QUANTIZED.contains(&model.node(id).op_type.as_str())) {
        None => Ok(()),
        Some(node) => Err(PassError::Model {
            place: format!("node {}", model.describe(node)),
            what: "the model is quantized already; start from the float model (OX-M002)".to_owned(),
        }),
    }
}

/// Whether `name` matches `pattern`, in which `*` stands for any run of characters. Linear in practice:
/// backtracks to the last star only.
pub(super) fn matches_glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && pattern[p] == name[n] {
            p += 1;
            n += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            n = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// Checks that every pattern names at least one node.
pub(super) fn check_patterns(model: &Model, patterns: &[String]) -> Result<(), PassError> {
    let names: Vec<String> =
        model.walk().map(|id| optix_pipeline::naming::node_and_op(model, id).0).collect();
    for pattern in patterns {
        if !names.iter().any(|name| matches_glob(pattern, name)) {
            let hint = optix_pipeline::did_you_mean(pattern, names.iter().map(String::as_str));
            return Err(PassError::Options(format!("`exclude`: no node is called `{pattern}`{hint}")));
        }
    }
    Ok(())
}

/// A node as a row of the ledger, left as it is.
pub(super) fn float_layer(model: &Model, id: NodeId, reason: &str) -> Layer {
    let (node, op) = optix_pipeline::naming::node_and_op(model, id);
    let bytes: u64 = model.node(id).inputs().iter().flatten().map(|&v| constant_bytes(model, v)).sum();
    Layer {
        node,
        op,
        action: "float".to_owned(),
        reason: Some(reason.to_owned()),
        bytes_before: bytes,
        bytes_after: bytes,
        ..Layer::default()
    }
}

pub(super) fn constant_bytes(model: &Model, value: ValueId) -> u64 {
    model.constant(value).map_or(0, |tensor| tensor.bytes().len() as u64)
}

impl Pass for QuantizeStatic {
    fn requires(&self) -> Requires {
        Requires { calibration: true, inferred_types: true, opset: if self.per_channel { 13 } else { 10 } }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        refuse_quantized(model)?;
        check_patterns(model, &self.exclude)?;
        let wanted = |model: &Model, id: NodeId| {
            let (name, _) = optix_pipeline::naming::node_and_op(model, id);
            match self.exclude.iter().find(|pattern| matches_glob(pattern, &name)) {
                Some(pattern) => Err(format!("excluded by `{pattern}`")),
                None => Ok(()),
            }
        };
        let placement = placement::place(model, &|id| wanted(model, id));
        for (id, reason) in &placement.skipped {
            cx.skip(model, *id, reason.clone());
            cx.layer(float_layer(model, *id, reason));
        }
        if placement.weighted.is_empty() {
            cx.warn("no node of this model can be quantized: the reasons are listed");
            return Ok(());
        }
        let float_model = model.clone();
        let observers = calibrate(model, &placement, cx)?;
        let quantizers = self.choose(model, &placement, &observers, cx);
        let measured = self.rewrite(model, &placement, &observers, &quantizers, cx)?;
        if self.embeddings {
            super::embedding::quantize_tables(model, cx, &wanted)?;
        }
        measure(&float_model, model, &measured, cx)
    }
}

/// One pass over the calibration data: statistics of every value whose quantizer is its own.
fn calibrate(
    model: &Model,
    placement: &Placement,
    cx: &mut Cx<'_>,
) -> Result<BTreeMap<ValueId, Observer>, PassError> {
    let roots: Vec<ValueId> =
        placement.quantized.iter().filter(|(value, root)| value == root).map(|(value, _)| *value).collect();
    let mut observers: BTreeMap<ValueId, Observer> =
        roots.iter().map(|&value| (value, Observer::default())).collect();
    let (oracle, data) = cx.calibration()?;
    let mut batches = data.batches(model).map_err(OracleError::from)?;
    let samples = oracle.observe(model, &roots, &mut *batches, &mut |value, tensor| {
        let elements = tensor
            .to_slice::<f32>()
            .map_err(|error| OracleError::Feeds(format!("value `{}`: {error}", model.value(value).name())))?;
        if let Some(observer) = observers.get_mut(&value) {
            observer.observe(&elements);
        }
        Ok(())
    })?;
    drop(batches);
    cx.count("calibration samples", samples);
    if samples == 0 {
        return Err(PassError::Options("the calibration data hold no samples".to_owned()));
    }
    for (&value, observer) in &observers {
        let name = model.value(value).name();
        if observer.non_finite() > 0 {
            cx.warn(format!(
                "`{name}`: {} values were NaN or infinite during calibration",
                observer.non_finite()
            ));
        }
        match observer.range() {
            None => {
                cx.warn(format!("`{name}` never had a finite value during calibration: its scale is a guess"))
            }
            Some((min, max)) if min == max => {
                cx.warn(format!("`{name}` was {min} throughout calibration: its scale is a guess"));
            }
            Some(_) => {}
        }
    }
    Ok(observers)
}

/// What is measured afterwards: row of the ledger, value in the float model, value in the new one.
type Measured = Vec<(usize, ValueId, ValueId)>;

impl QuantizeStatic {
    fn choose(
        &self,
        model: &Model,
        placement: &Placement,
        observers: &BTreeMap<ValueId, Observer>,
        cx: &mut Cx<'_>,
    ) -> BTreeMap<ValueId, Affine> {
        let dtype = self.activation_type.dtype();
        let mut quantizers = BTreeMap::new();
        for &(value, root) in &placement.quantized {
            let quantizer = match quantizers.get(&root) {
                Some(&quantizer) => quantizer,
                None => match (observers.get(&root), self.observer) {
                    (Some(observer), RangeObserver::MinMax) => observer.min_max(dtype),
                    (Some(observer), RangeObserver::Mse) => observer.mean_squared_error(dtype),
                    (None, _) => {
                        // Roots are observed; a value without one would be a bug of the placement.
                        cx.warn(format!("`{}` was not observed", model.value(value).name()));
                        Affine::asymmetric(0.0, 0.0, dtype)
                    }
                },
            };
            quantizers.insert(value, quantizer);
        }
        quantizers
    }

    fn rewrite(
        &self,
        model: &mut Model,
        placement: &Placement,
        observers: &BTreeMap<ValueId, Observer>,
        quantizers: &BTreeMap<ValueId, Affine>,
        cx: &mut Cx<'_>,
    ) -> Result<Measured, PassError> {
        let dtype = self.activation_type.dtype();
        // Weights first: names and reasons are those of the float model.
        let mut measured = Measured::new();
        let mut shared: BTreeMap<(ValueId, Option<usize>), ValueId> = BTreeMap::new();
        let mut replaced = Vec::new();
        for (index, weighted) in placement.weighted.iter().enumerate() {
            if !cx.may_edit("quantize-node") {
                return Ok(Measured::new());
            }
            cx.progress("quantizing layers", index as u64, placement.weighted.len() as u64)?;
            let input_scale = quantizers[&weighted.input].scale;
            let mut layer =
                self.quantize_weights(model, weighted, input_scale, &mut shared, &mut replaced)?;
            let root = placement
                .quantized
                .iter()
                .find(|(value, _)| *value == weighted.output)
                .map(|(_, root)| *root);
            if let Some(observer) = root.and_then(|root| observers.get(&root)) {
                layer.activation_sqnr_db = observer.sqnr_db(&quantizers[&weighted.output]);
                layer.range = observer.range().map(|(min, max)| [f64::from(min), f64::from(max)]);
            }
            measured.push((cx.layers_mut().len(), weighted.output, weighted.output));
            cx.layer(layer);
            cx.count("nodes quantized", 1);
        }
        let mut dequantized: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let reads: Vec<(NodeId, usize, ValueId)> = placement
            .reads
            .iter()
            .filter_map(|&(node, slot)| Some((node, slot, model.node(node).input(slot)?)))
            .collect();
        for &(value, _) in &placement.quantized {
            let everybody = placement.resident.contains(&value);
            let new = rewrite::insert_pair(model, value, &quantizers[&value], dtype, everybody)?;
            dequantized.insert(value, new);
            cx.count("activations quantized", 1);
        }
        for (node, slot, value) in reads {
            if let Some(&new) = dequantized.get(&value) {
                model.set_input(node, slot, Some(new));
            }
        }
        for &node in &placement.bridges {
            let (name, op) = optix_pipeline::naming::node_and_op(model, node);
            let action = dtype.name().to_owned();
            cx.layer(Layer { node: name, op, action, ..Layer::default() });
        }
        rewrite::drop_unused(model, replaced);
        for (_, _, new) in &mut measured {
            *new = dequantized.get(new).copied().unwrap_or(*new);
        }
        Ok(measured)
    }

    /// Replaces weights and bias of one node; returns its row of the ledger.
    fn quantize_weights(
        &self,
        model: &mut Model,
        weighted: &WeightedNode,
        input_scale: f32,
        shared: &mut BTreeMap<(ValueId, Option<usize>), ValueId>,
        replaced: &mut Vec<ValueId>,
    ) -> Result<Layer, PassError> {
        let id = weighted.node;
        let (name, op) = optix_pipeline::naming::node_and_op(model, id);
        let weights = model.node(id).input(weighted.weight_slot).expect("checked by the placement");
        let tensor = model.constant(weights).expect("checked by the placement").clone();
        let axis = if self.per_channel { weighted.channel_axis } else { None };
        let floats = tensor.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
        let maxima = channel_maxima(&floats, tensor.shape(), axis);
        let mut scales: Vec<f32> = maxima.iter().map(|&max| Affine::symmetric_int8(max).scale).collect();
        let bias = weighted.bias_slot.and_then(|slot| model.node(id).input(slot));
        let bias_tensor = bias.and_then(|bias| model.constant(bias)).cloned();
        let mut reason = None;
        let mut shared_key = (weights, axis);
        if let Some(bias) = &bias_tensor {
            let biases = bias.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
            let fixed = fit_bias(&mut scales, &maxima, &biases, input_scale);
            if fixed > 0 {
                reason = Some(format!("{fixed} weight scales widened so that the bias fits int32"));
                // These scales are this node's own.
                shared_key = (bias_or(weights, model, id), axis);
            }
        }
        let quantized = quantize_weights(&floats, tensor.shape(), axis, scales);
        let graph = model.node(id).graph();
        let bytes_before =
            tensor.bytes().len() as u64 + bias_tensor.as_ref().map_or(0, |b| b.bytes().len() as u64);
        let mut bytes_after = (quantized.integers.bytes().len() + quantized.scales.len() * 5) as u64;
        let weight_name = model.value(weights).name().to_owned();
        let new = match shared.get(&shared_key) {
            Some(&known) if model.value(known).graph() == graph => known,
            _ => {
                let integers = quantized.integers.clone();
                let new = rewrite::dequantized_constant(
                    model,
                    graph,
                    id,
                    &weight_name,
                    integers,
                    &quantized.scales,
                    axis,
                );
                shared.insert(shared_key, new);
                new
            }
        };
        model.set_input(id, weighted.weight_slot, Some(new));
        replaced.push(weights);
        if let (Some(slot), Some(bias), Some(value)) = (weighted.bias_slot, bias_tensor, bias) {
            let biases = bias.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
            let scales: Vec<f32> = quantized.scales.iter().map(|scale| scale * input_scale).collect();
            let integers: Vec<i32> = biases
                .iter()
                .enumerate()
                .map(|(channel, &bias)| {
                    let scale = f64::from(scales[channel % scales.len()]);
                    (f64::from(bias) / scale).round_ties_even() as i32
                })
                .collect();
            let bias_axis = (scales.len() > 1 || axis.is_some()).then_some(0);
            let integers = Tensor::from_vec(bias.shape().to_vec(), integers);
            let bias_name = model.value(value).name().to_owned();
            let new =
                rewrite::dequantized_constant(model, graph, id, &bias_name, integers, &scales, bias_axis);
            model.set_input(id, slot, Some(new));
            bytes_after += (bias.bytes().len() + scales.len() * 8) as u64;
            replaced.push(value);
        }
        Ok(Layer {
            node: name,
            op,
            action: "int8".to_owned(),
            reason,
            bytes_before,
            bytes_after,
            weight_sqnr_db: quantized.sqnr_db(),
            ..Layer::default()
        })
    }
}

/// A key that only this node has: its bias if it has one.
fn bias_or(weights: ValueId, model: &Model, id: NodeId) -> ValueId {
    model.node(id).input(2).unwrap_or(weights)
}

/// Widens weight scales whose bias would not fit 32 bits, and gives channels without weights a scale
/// that keeps their bias precise. Returns how many were widened.
fn fit_bias(scales: &mut [f32], maxima: &[f32], biases: &[f32], input_scale: f32) -> usize {
    /// Greatest integer a bias may become; a little below the type's limit, which f32 cannot hold.
    const GREATEST: f64 = 2_147_483_000.0;
    /// Steps a bias gets when there are no weights to say how fine it must be.
    const FINE: f64 = 1_048_576.0;
    let mut widened = 0;
    let channels = scales.len();
    for (index, &bias) in biases.iter().enumerate() {
        let channel = index % channels;
        let magnitude = f64::from(bias.abs());
        if !magnitude.is_finite() || magnitude == 0.0 {
            continue;
        }
        if maxima[channel] == 0.0 && channels == biases.len() {
            scales[channel] = ((magnitude / FINE / f64::from(input_scale)) as f32).max(f32::MIN_POSITIVE);
        } else if magnitude / (f64::from(scales[channel]) * f64::from(input_scale)) > GREATEST {
            scales[channel] = (magnitude / GREATEST / f64::from(input_scale)) as f32;
            widened += 1;
        }
    }
    widened
}

/// Measures every quantized layer's output against the float model's on a few calibration samples.
fn measure(float: &Model, quantized: &Model, measured: &Measured, cx: &mut Cx<'_>) -> Result<(), PassError> {
    if measured.is_empty() {
        return Ok(());
    }
    let (oracle, data) = cx.calibration()?;
    let first = data.batches(float).map_err(OracleError::from)?.next();
    let Some(batch) = first.transpose().map_err(OracleError::from)? else { return Ok(()) };
    let batch = batch.truncated(MEASURED_SAMPLES);
    let wanted: Vec<ValueId> = measured.iter().map(|(_, old, _)| *old).collect();
    let mut expected: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    oracle.observe(float, &wanted, &mut std::iter::once(Ok(batch.clone())), &mut |value, tensor| {
        expected.insert(value, tensor.clone());
        Ok(())
    })?;
    let wanted: Vec<ValueId> = measured.iter().map(|(_, _, new)| *new).collect();
    let mut found: BTreeMap<ValueId, f64> = BTreeMap::new();
    let reference: BTreeMap<ValueId, ValueId> = measured.iter().map(|&(_, old, new)| (new, old)).collect();
    oracle.observe(quantized, &wanted, &mut std::iter::once(Ok(batch)), &mut |value, tensor| {
        let Some(expected) = reference.get(&value).and_then(|old| expected.get(old)) else { return Ok(()) };
        if let (Ok(a), Ok(b)) = (expected.to_slice::<f32>(), tensor.to_slice::<f32>()) {
            let (mut signal, mut noise) = (0f64, 0f64);
            for (&a, &b) in a.iter().zip(b.iter()) {
                signal += f64::from(a) * f64::from(a);
                noise += f64::from(a - b) * f64::from(a - b);
            }
            if noise > 0.0 && signal > 0.0 {
                found.insert(value, 10.0 * (signal / noise).log10());
            }
        }
        Ok(())
    })?;
    for &(row, _, new) in measured {
        if let (Some(layer), Some(&sqnr)) = (cx.layers_mut().get_mut(row), found.get(&new)) {
            layer.output_sqnr_db = Some(sqnr);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("conv1", "conv1", true),
            ("conv1", "conv10", false),
            ("conv*", "conv10", true),
            ("*/attention/*", "/layer.0/attention/query", true),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches_glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_bias_that_does_not_fit_widens_its_channel_only() {
        let mut scales = vec![1e-9, 0.01, 1.0];
        let widened = fit_bias(&mut scales, &[1e-7, 1.0, 0.0], &[100.0, 100.0, 0.3], 1e-4);
        assert_eq!(widened, 1);
        assert!((100.0 / (f64::from(scales[0]) * 1e-4)) < f64::from(i32::MAX));
        assert_eq!(scales[1], 0.01);
        let step = scales[2] * 1e-4;
        assert!(step < 1e-6, "a channel without weights keeps a precise bias");
    }
}
