//! Dynamic quantization to int8.

use optix_ir::{DType, Model, Node, NodeId, Position, Tensor, ValueId};
use optix_pipeline::{
    Cx, Family, Interface, Layer, Named, Numerics, Pass, PassError, Promises, Requires, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::affine::{Affine, channel_maxima, quantize_weights};
use super::placement::float_weights;
use super::quantized::{constant_bytes, float_layer, refuse_quantized};
use super::{embedding, rewrite};
use crate::names::{check_patterns, not_excluded};

/// Quantizes MatMul and Gemm with constant weights to int8, with ranges of activations computed while the
/// model runs. Needs no calibration data.
///
/// Each layer becomes DynamicQuantizeLinear, MatMulInteger and a multiplication by the scales; weights are
/// symmetric int8 with one scale an output channel. Embedding tables become int8 as well. Convolutions
/// are left alone: their dynamic form is slower than float in every engine we know.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N, 2] x) => (float[N, 2] y)
/// <float[2, 2] w = {127, 0.5, -63.5, 1}>
/// {
///     [dense] y = MatMul (x, w)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N, 2] x) => (float[N, 2] y)
/// <
///     int8[2, 2] w_quantized = {127, 64, -64, 127},
///     float[2] w_scale = {1, 0.007874016}, int8[2] w_zero_point = {0, 0}
/// >
/// {
///     [x_DynamicQuantizeLinear] x_quantized, x_scale, x_zero_point = DynamicQuantizeLinear (x)
///     [dense_quantized] dense_integers = MatMulInteger (x_quantized, w_quantized, x_zero_point, w_zero_point)
///     dense_float = Cast <to = 1> (dense_integers)
///     dense_scales = Mul (x_scale, w_scale)
///     y = Mul (dense_float, dense_scales)
/// }
/// ```
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct QuantizeDynamic {
    /// One scale for each output channel of the weights, instead of one for the whole matrix.
    pub per_channel: bool,
    /// Quantize embedding tables too.
    pub embeddings: bool,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for QuantizeDynamic {
    fn default() -> Self {
        QuantizeDynamic { per_channel: true, embeddings: true, exclude: Vec::new() }
    }
}

impl Named for QuantizeDynamic {
    const NAME: &'static str = "quantize-dynamic";
    const FAMILY: Family = Family::Quantize;
}

impl Pass for QuantizeDynamic {
    fn requires(&self) -> Requires {
        Requires { calibration: false, inferred_types: true, opset: 11 }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        refuse_quantized(model)?;
        check_patterns(model, &self.exclude)?;
        let wanted = |model: &Model, id: NodeId| not_excluded(model, id, &self.exclude);
        let order: Vec<NodeId> = model.walk().collect();
        let total = order.len() as u64;
        let mut replaced = Vec::new();
        for (index, id) in order.into_iter().enumerate() {
            let node = model.node(id);
            if !super::placement::is_quantizable(&node.op_type) || !node.domain().is_empty() {
                continue;
            }
            cx.progress("quantizing layers", index as u64, total)?;
            match wanted(model, id).and_then(|()| prepare(model, id)) {
                Ok(layer) => {
                    if !cx.may_edit("quantize-node") {
                        return Ok(());
                    }
                    self.rewrite(model, id, layer, cx, &mut replaced)?;
                    cx.count("nodes quantized", 1);
                }
                Err(reason) => {
                    cx.skip(model, id, reason.clone());
                    let row = float_layer(model, id, &reason);
                    cx.layer(row);
                }
            }
        }
        rewrite::drop_unused(model, replaced);
        if self.embeddings {
            embedding::quantize_tables(model, cx, &wanted)?;
        }
        Ok(())
    }
}

/// A layer that can be quantized: its weights as [in, out].
struct Prepared {
    weights: ValueId,
    tensor: Tensor,
    bias: Option<ValueId>,
}

fn prepare(model: &Model, id: NodeId) -> Result<Prepared, String> {
    let node = model.node(id);
    let is_gemm = match node.op_type.as_str() {
        "MatMul" => false,
        "Gemm" => true,
        other => return Err(format!("{other} in dynamic integers is slower than in float")),
    };
    let input = node.input(0).ok_or("its input is missing")?;
    if model.constant(input).is_some() {
        return Err("its first operand is constant".to_owned());
    }
    if let Some(dtype) = model.value(input).ty.as_ref().and_then(|ty| ty.dtype())
        && dtype != DType::F32
    {
        return Err(format!("its input is {dtype}, only float is quantized"));
    }
    let weights = node.input(1).ok_or("its second operand is missing")?;
    if model.constant(weights).is_none() {
        return Err("both operands are activations".to_owned());
    }
    let tensor = float_weights(model, Some(weights))?.clone();
    if tensor.rank() != 2 {
        return Err("its weights are not a matrix".to_owned());
    }
    if !is_gemm {
        return Ok(Prepared { weights, tensor, bias: None });
    }
    if node.int("transA").unwrap_or(0) != 0 {
        return Err("its activation is transposed (transA)".to_owned());
    }
    if [node.float("alpha"), node.float("beta")].iter().any(|factor| factor.unwrap_or(1.0) != 1.0) {
        return Err("it scales its operands (alpha, beta)".to_owned());
    }
    let tensor = if node.int("transB").unwrap_or(0) != 0 { transposed(&tensor)? } else { tensor };
    Ok(Prepared { weights, tensor, bias: node.input(2) })
}

fn transposed(matrix: &Tensor) -> Result<Tensor, String> {
    let floats = matrix.to_slice::<f32>().map_err(|error| error.to_string())?;
    let (rows, columns) = (matrix.shape()[0], matrix.shape()[1]);
    let mut data = Vec::with_capacity(floats.len());
    for column in 0..columns {
        data.extend((0..rows).map(|row| floats[row * columns + column]));
    }
    Ok(Tensor::from_vec(vec![columns, rows], data))
}

impl QuantizeDynamic {
    fn rewrite(
        &self,
        model: &mut Model,
        id: NodeId,
        prepared: Prepared,
        cx: &mut Cx<'_>,
        replaced: &mut Vec<ValueId>,
    ) -> Result<(), PassError> {
        let Prepared { weights, tensor, bias } = prepared;
        let (name, op) = optix_pipeline::naming::node_and_op(model, id);
        let bytes_before = constant_bytes(model, weights);
        let floats = tensor.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
        let axis = self.per_channel.then_some(1);
        let maxima = channel_maxima(&floats, tensor.shape(), axis);
        let scales: Vec<f32> = maxima.iter().map(|&max| Affine::symmetric_int8(max).scale).collect();
        let quantized = quantize_weights(&floats, tensor.shape(), axis, scales);
        let sqnr = quantized.sqnr_db();
        let graph = model.node(id).graph();
        let (input, output) = match (model.node(id).input(0), model.node(id).output(0)) {
            (Some(input), Some(output)) => (input, output),
            _ => return Ok(()),
        };
        let weight_name = model.value(weights).name().to_owned();
        let bytes_after = (quantized.integers.bytes().len() + quantized.scales.len() * 5) as u64;
        let channels = if self.per_channel { vec![quantized.scales.len()] } else { vec![] };
        let integers = model.add_constant(graph, &format!("{weight_name}_quantized"), quantized.integers);
        let scale = Tensor::from_vec(channels.clone(), quantized.scales);
        let scale = model.add_constant(graph, &format!("{weight_name}_scale"), scale);
        let zeros =
            Tensor::zeros(DType::I8, channels).map_err(|error| PassError::Options(error.to_string()))?;
        let zero_point = model.add_constant(graph, &format!("{weight_name}_zero_point"), zeros);
        let before = Position::Before(id);
        let (quantized_input, input_scale, input_zero) = self.dynamic_input(model, input, id)?;
        let product = Node::with_optional_inputs(
            "MatMulInteger",
            vec![Some(quantized_input), Some(integers), Some(input_zero), Some(zero_point)],
        );
        let (_, product) = model.add_node(
            graph,
            before,
            product.named(&format!("{name}_quantized")),
            &format!("{name}_integers"),
        );
        let cast = Node::new("Cast", [product]).with("to", i64::from(DType::F32.onnx()));
        let (_, cast) = model.add_node(graph, before, cast, &format!("{name}_float"));
        let (_, both) =
            model.add_node(graph, before, Node::new("Mul", [input_scale, scale]), &format!("{name}_scales"));
        let (_, mut result) =
            model.add_node(graph, before, Node::new("Mul", [cast, both]), &format!("{name}_scaled"));
        if let Some(bias) = bias {
            result =
                model.add_node(graph, before, Node::new("Add", [result, bias]), &format!("{name}_biased")).1;
        }
        model.value_mut(result).ty = model.value(output).ty.clone();
        model.replace_value(output, result)?;
        model.remove_node(id)?;
        replaced.push(weights);
        cx.layer(Layer {
            node: name,
            op,
            action: "int8 (dynamic)".to_owned(),
            bytes_before,
            bytes_after,
            weight_sqnr_db: sqnr,
            weight_bits: Some(8),
            activation_bits: Some(8),
            scheme: Some(format!(
                "weights int8 symmetric, a scale for {}; activations uint8 asymmetric, a scale for all of each run",
                if self.per_channel { "a channel" } else { "all" }
            )),
            ..Layer::default()
        });
        Ok(())
    }

    /// The `DynamicQuantizeLinear` of a value: one for all that read it in the same graph.
    fn dynamic_input(
        &self,
        model: &mut Model,
        input: ValueId,
        user: NodeId,
    ) -> Result<(ValueId, ValueId, ValueId), PassError> {
        let graph = model.node(user).graph();
        let known = model.value(input).uses().iter().find_map(|used| match used {
            optix_ir::Use::Node(node, 0) if model.node(*node).is("DynamicQuantizeLinear") => Some(*node),
            _ => None,
        });
        if let Some(known) = known
            && model.node(known).graph() == graph
            && model.is_before(known, user)
            && let [Some(a), Some(b), Some(c)] = model.node(known).outputs()
        {
            return Ok((*a, *b, *c));
        }
        let name = model.value(input).name().to_owned();
        let outputs = ["quantized", "scale", "zero_point"]
            .map(|part| model.add_fresh_value(graph, &format!("{name}_{part}")));
        let node =
            Node::new("DynamicQuantizeLinear", [input]).named(&format!("{name}_DynamicQuantizeLinear"));
        model.insert_node(graph, Position::Before(user), node, outputs.map(Some).to_vec())?;
        Ok((outputs[0], outputs[1], outputs[2]))
    }
}
