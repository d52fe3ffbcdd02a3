//! Static quantization to int8.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_pipeline::{
    Cx, Family, Interface, Layer, Named, Numerics, Pass, PassError, Promises, Requires, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::affine::Affine;
use super::calibrate::{Choice, RangeObserver, calibrate, choose};
use super::measure::{Measured, measure};
use super::observer::Observer;
use super::placement::{self, Placement};
use super::rewrite;
use super::weights::quantize_node;

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
    /// Share of values in percent, above 50 and up to 100, that the observer `percentile` keeps.
    pub percentile: f64,
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
            percentile: 99.999,
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
const QUANTIZED: &[&str] = &[
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
        let dtype = self.activation_type.dtype();
        let choice = Choice { observer: self.observer, percentile: self.percentile, dtype };
        let calibrated = calibrate(model, &placement, &choice, cx)?;
        let quantizers = choose(&choice, model, &placement, &calibrated, cx)?;
        let measured = self.rewrite(model, &placement, &calibrated.observers, &quantizers, cx)?;
        if self.embeddings {
            super::embedding::quantize_tables(model, cx, &wanted)?;
        }
        // Statistics of an earlier run do without data; then there is nothing to measure on.
        if cx.has_calibration() { measure(&float_model, model, &measured, cx) } else { Ok(()) }
    }
}

impl QuantizeStatic {
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
                quantize_node(self.per_channel, model, weighted, input_scale, &mut shared, &mut replaced)?;
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
}
