//! Weight-only quantization.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, Node, NodeId, OpsetImport, Position, Type, Use, ValueId};
use optix_pipeline::{
    Cx, Family, Interface, Layer, Named, Numerics, Pass, PassError, Promises, Requires, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::blocks::{Algorithm, Grid, ZeroPoint};
use super::packing::{Layout, QuantizedMatrix};
use super::quantized::{QUANTIZED, constant_bytes, float_layer};
use super::weights::{self, Operand, Shared};
use super::{embedding, rewrite};
use crate::names::{check_patterns, not_excluded};

/// How quantized weights are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WeightFormat {
    /// Integers behind a DequantizeLinear, which every engine reads.
    #[default]
    Qdq,
    /// The operator MatMulNBits of onnxruntime, for any version of the operator set.
    MatmulNBits,
}

/// How scales and zero points are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WeightAlgorithm {
    /// From the least and the greatest weight of a block.
    Rtn,
    /// Of least squared error, by search.
    #[default]
    Mse,
    /// Half-quadratic quantization: a zero point that large weights move less.
    Hqq,
}

/// What the zero points of asymmetric weights may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroPoints {
    /// Integers, packed as the weights are.
    #[default]
    Integer,
    /// Floats: less error (18% at blocks of 32, 9% at 128), 4 bytes a block, and up to twice slower in
    /// onnxruntime. For matmul-n-bits with 4 or 2 bits.
    Float,
}

/// Quantizes the constant weights of MatMul and Gemm to 8, 4 or 2 bits and leaves activations float. Needs
/// no calibration data.
///
/// Weights that are multiplied and summed into one output are cut into blocks, each with a scale and a zero
/// point of its own. By default these are searched for the least squared error of the block; no algorithm
/// leaves a block with a greater error than rounding between its least and greatest weight would. Written
/// are either DequantizeLinear nodes, which onnxruntime turns into MatMulNBits where a MatMul follows, or
/// MatMulNBits itself. Weights that several nodes read stay one constant.
/// Embedding tables that Gather reads become int8, a scale a row.
///
/// Small inputs gain: a token at a time runs several times faster than in float, since reading weights is
/// what takes the time. With many rows (images, long texts) it is slower than float, and static or dynamic
/// quantization the better choice.
///
/// In form qdq 8 bits with a scale a channel (block-size 0) need operator set 13, 8 and 4 bits in blocks
/// 21, 2 bits 25 (`convert-opset` raises it).
///
/// ```text
/// <ir_version: 10, opset_import: ["" : 21]>
/// model (float[N, 4] x) => (float[N, 2] y)
/// <float[4, 2] w = {0.5, 0, 1, -1, 1.5, -2, 8, -3}>
/// {
///     [dense] y = MatMul (x, w)
/// }
/// ---
/// <ir_version: 10, opset_import: ["" : 21]>
/// model (float[N, 4] x) => (float[N, 2] y)
/// <
///     uint4[4, 2] w_quantized = {1, 15, 2, 10, 3, 5, 15, 0},
///     float[1, 2] w_scale = {0.5313808, 0.2}, uint4[1, 2] w_zero_point = {0, 15}
/// >
/// {
///     [w_DequantizeLinear] w_dequantized = DequantizeLinear <axis = 0, block_size = 16> (w_quantized, w_scale, w_zero_point)
///     [dense] y = MatMul (x, w_dequantized)
/// }
/// ```
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct QuantizeWeights {
    /// Bits of a weight: 8, 4 or 2.
    pub bits: u32,
    /// Weights that share a scale: a power of two from 16 on, or 0 for all that make one output. Blocks are
    /// no longer than the least power of two that holds all weights of an output.
    pub block_size: usize,
    /// Zero points in the middle of the integers, which then are not written.
    pub symmetric: bool,
    /// How scales and zero points are chosen.
    pub algorithm: WeightAlgorithm,
    /// What zero points may be.
    pub zero_points: ZeroPoints,
    /// How the result is written.
    pub format: WeightFormat,
    /// What MatMulNBits may round activations to. 4: int8, in blocks, which has the fast kernels; 1: not at
    /// all; 0: up to the engine. With 8 bits 0 is refused: onnxruntime has no fast kernel for it and
    /// becomes 75 times slower.
    pub accuracy_level: i64,
    /// Quantize embedding tables too, to int8.
    pub embeddings: bool,
    /// Quantize the weights of convolutions too, with a scale a channel. For qdq.
    pub convolutions: bool,
    /// Take a model that is quantized in part and quantize what is still float. Without it such models are
    /// refused.
    pub extend: bool,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for QuantizeWeights {
    fn default() -> Self {
        QuantizeWeights {
            bits: 4,
            block_size: 32,
            symmetric: false,
            algorithm: WeightAlgorithm::default(),
            zero_points: ZeroPoints::default(),
            format: WeightFormat::default(),
            accuracy_level: 4,
            embeddings: true,
            convolutions: false,
            extend: false,
            exclude: Vec::new(),
        }
    }
}

impl Named for QuantizeWeights {
    const NAME: &'static str = "quantize-weights";
    const FAMILY: Family = Family::Quantize;
}

impl Pass for QuantizeWeights {
    fn requires(&self) -> Requires {
        let opset = match (self.format, self.bits, self.block_size) {
            (WeightFormat::MatmulNBits, ..) => 10,
            (WeightFormat::Qdq, 2, _) => 25,
            (WeightFormat::Qdq, 8, 0) => 13,
            (WeightFormat::Qdq, ..) => 21,
        };
        Requires { inferred_types: true, opset, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        self.check_options().map_err(PassError::Options)?;
        check_patterns(model, &self.exclude)?;
        cx.keep_float(model);
        let quantized = model
            .walk()
            .find(|&id| QUANTIZED.contains(&model.node(id).op_type.as_str()))
            .filter(|_| !self.extend);
        if let Some(node) = quantized {
            return Err(PassError::Model {
                place: format!("node {}", model.describe(node)),
                what: "the model is quantized already; start from the float model, or set `extend` to \
                       quantize what is still float (OX-M002)"
                    .to_owned(),
            });
        }
        let wanted = |model: &Model, id: NodeId| not_excluded(model, id, &self.exclude);
        // What is to be quantized, by the constant that holds it, in the order of its first reader.
        let mut groups: Vec<Shared> = Vec::new();
        let mut place: BTreeMap<ValueId, usize> = BTreeMap::new();
        let mut left: Vec<(NodeId, String)> = Vec::new();
        for id in model.walk() {
            let node = model.node(id);
            if !node.domain().is_empty() || !super::placement::is_quantizable(&node.op_type) {
                continue;
            }
            let verdict = wanted(model, id).and_then(|()| self.classify(model, id));
            match verdict {
                Ok(operand) => {
                    let at = *place.entry(operand.weights).or_insert_with(|| {
                        groups.push(Shared { weights: operand.weights, operands: Vec::new() });
                        groups.len() - 1
                    });
                    groups[at].operands.push(operand);
                }
                Err(reason) => left.push((id, reason)),
            }
        }
        groups.retain(|group| match group.check(model, self.format == WeightFormat::Qdq) {
            Ok(()) => true,
            Err(reason) => {
                left.extend(group.operands.iter().map(|operand| (operand.node, reason.clone())));
                false
            }
        });
        for (id, reason) in left {
            cx.skip(model, id, reason.clone());
            cx.layer(float_layer(model, id, &reason));
        }
        let total = groups.len() as u64;
        for (index, group) in groups.iter().enumerate() {
            cx.progress("quantizing weights", index as u64, total)?;
            if !cx.may_edit("quantize-weights") {
                return Ok(());
            }
            self.treat(model, group, cx)?;
        }
        if self.embeddings {
            embedding::quantize_tables_by_row(model, cx, &wanted)?;
        }
        Ok(())
    }
}

impl QuantizeWeights {
    fn check_options(&self) -> Result<(), String> {
        let n_bits = self.format == WeightFormat::MatmulNBits;
        if ![2, 4, 8].contains(&self.bits) {
            return Err(format!("`bits` is {}, possible are 8, 4 and 2", self.bits));
        }
        let block = self.block_size;
        if block != 0 && !(block.is_power_of_two() && (16..=1 << 16).contains(&block)) {
            return Err(format!("`block-size` is {block}, neither 0 nor a power of two from 16 to 65536"));
        }
        if n_bits && block == 0 {
            return Err(
                "`block-size` 0 has no form as matmul-n-bits: set one, or format = \"qdq\"".to_owned()
            );
        }
        if !(0..=4).contains(&self.accuracy_level) {
            return Err(format!("`accuracy-level` is {}, outside 0 to 4", self.accuracy_level));
        }
        if n_bits && self.bits == 8 && self.accuracy_level == 0 {
            return Err(
                "`accuracy-level` 0 with 8 bits runs 75 times slower than 4 in onnxruntime: set 4, or 1 \
                        to keep activations float"
                    .to_owned(),
            );
        }
        if self.zero_points == ZeroPoints::Float && !n_bits {
            return Err("`zero-points` can be float only in format = \"matmul-n-bits\"".to_owned());
        }
        if self.zero_points == ZeroPoints::Float && self.bits == 8 {
            return Err("`zero-points` can be float with 4 and 2 bits only: onnxruntime refuses 8".to_owned());
        }
        if self.zero_points == ZeroPoints::Float && self.symmetric {
            return Err("`zero-points` are not written when `symmetric` is set".to_owned());
        }
        if self.convolutions && n_bits {
            return Err("`convolutions` have no form as matmul-n-bits: set format = \"qdq\"".to_owned());
        }
        Ok(())
    }

    /// The weights of a node, or the reason why they stay float.
    fn classify(&self, model: &Model, id: NodeId) -> Result<Operand, String> {
        let operand = weights::operand(model, id, self.convolutions)?;
        if self.format == WeightFormat::MatmulNBits {
            let rank = model.node(id).input(0).and_then(|input| model.value(input).ty.as_ref()?.shape());
            match rank.map(Vec::len) {
                None => {
                    return Err("the rank of its input is not known, MatMulNBits needs 2 or more".to_owned());
                }
                Some(0 | 1) => {
                    return Err("its input is a vector, MatMulNBits needs rank 2 or more".to_owned());
                }
                Some(_) => {}
            }
            if operand.depth < 16 {
                return Err(format!(
                    "each output is a sum of {} products only, the least block is 16",
                    operand.depth
                ));
            }
        }
        Ok(operand)
    }

    fn grid(&self) -> Grid {
        let zero_point = match (self.symmetric, self.zero_points) {
            // A negative scale is odd enough that some readers of the portable form refuse it.
            (true, _) => ZeroPoint::Middle { signed: self.format == WeightFormat::MatmulNBits },
            (false, ZeroPoints::Integer) => ZeroPoint::Integer,
            (false, ZeroPoints::Float) => ZeroPoint::Real,
        };
        Grid { bits: self.bits, zero_point }
    }

    /// Quantizes one constant and rewrites all that read it.
    fn treat(&self, model: &mut Model, group: &Shared, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let [first, ..] = &group.operands[..] else { return Ok(()) };
        let tensor = match model.constant(group.weights) {
            Some(tensor) => tensor.clone(),
            None => return Ok(()),
        };
        let floats = tensor.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
        let block = match self.block_size {
            0 => first.depth,
            _ if first.is_convolution => first.depth,
            // No block is longer than what it cuts, or padding would outgrow the weights.
            size => size.min(first.depth.next_power_of_two().max(16)),
        };
        let algorithm = match self.algorithm {
            WeightAlgorithm::Rtn => Algorithm::Rtn,
            WeightAlgorithm::Mse => Algorithm::Mse,
            WeightAlgorithm::Hqq => Algorithm::Hqq,
        };
        let sizes = [first.outputs, first.depth, block];
        let quantized = QuantizedMatrix::new(&floats, first.layout, sizes, self.grid(), algorithm);
        drop(floats);
        let bytes_before = constant_bytes(model, group.weights);
        let per_channel = self.block_size == 0 || first.is_convolution;
        let rows: Vec<(String, String)> =
            group.operands.iter().map(|o| optix_pipeline::naming::node_and_op(model, o.node)).collect();
        let (dtype, bytes_after) = match self.format {
            WeightFormat::Qdq => self.write_qdq(model, group, &quantized, tensor.shape(), per_channel),
            WeightFormat::MatmulNBits => self.write_n_bits(model, group, &quantized)?,
        };
        let grouping =
            if per_channel { "a scale a channel".to_owned() } else { format!("blocks of {block}") };
        let symmetry = match self.grid().zero_point {
            ZeroPoint::Middle { .. } => "symmetric",
            ZeroPoint::Integer => "asymmetric",
            ZeroPoint::Real => "asymmetric with zero points between integers",
        };
        for (index, (node, op)) in rows.iter().enumerate() {
            let shares = (index > 0).then(|| format!("shares the weights of {}", rows[0].0));
            cx.layer(Layer {
                node: node.clone(),
                op: op.clone(),
                action: format!("{dtype} weights, {grouping}"),
                reason: shares,
                bytes_before: if index == 0 { bytes_before } else { 0 },
                bytes_after: if index == 0 { bytes_after } else { 0 },
                weight_sqnr_db: quantized.sqnr_db(),
                weight_bits: Some(self.bits),
                scheme: Some(format!("weights {dtype} {symmetry}, {grouping}")),
                ..Layer::default()
            });
            cx.count("nodes quantized", 1);
        }
        rewrite::drop_unused(model, [group.weights]);
        Ok(())
    }

    /// A `DequantizeLinear` that everybody reads instead of the weights.
    fn write_qdq(
        &self,
        model: &mut Model,
        group: &Shared,
        quantized: &QuantizedMatrix,
        shape: &[usize],
        per_channel: bool,
    ) -> (String, u64) {
        let layout = group.operands[0].layout;
        let (integers, scales, zeros) = quantized.dequantize_linear(layout, shape, per_channel);
        let dtype = integers.dtype();
        let bytes = [Some(&integers), Some(&scales), zeros.as_ref()];
        let bytes = bytes.into_iter().flatten().map(|tensor| tensor.bytes().len() as u64).sum();
        // Types of 4 and 2 bits came with these versions of the file format.
        model.ir_version = model.ir_version.max(match dtype.bits() {
            2 => 13,
            4 => 10,
            _ => 0,
        });
        let graph = model.value(group.weights).graph();
        let name = model.value(group.weights).name().to_owned();
        let users: Vec<Use> = model.value(group.weights).uses().to_vec();
        let mut inputs = vec![
            model.add_constant(graph, &format!("{name}_quantized"), integers),
            model.add_constant(graph, &format!("{name}_scale"), scales),
        ];
        if let Some(zeros) = zeros {
            inputs.push(model.add_constant(graph, &format!("{name}_zero_point"), zeros));
        }
        let outputs_axis = if layout == Layout::DepthFirst { 1i64 } else { 0 };
        let mut node = Node::new("DequantizeLinear", inputs).named(&format!("{name}_DequantizeLinear"));
        node = if per_channel {
            node.with("axis", outputs_axis)
        } else {
            node.with("axis", 1 - outputs_axis).with("block_size", quantized.block as i64)
        };
        // Before its only reader; before everything else where there are more.
        let position = match users[..] {
            [Use::Node(user, _)] if model.node(user).graph() == graph => Position::Before(user),
            _ => Position::Start,
        };
        let (_, dequantized) = model.add_node(graph, position, node, &format!("{name}_dequantized"));
        let dims: Vec<optix_ir::Dim> = shape.iter().map(|&size| size.into()).collect();
        model.value_mut(dequantized).ty = Some(Type::tensor(DType::F32, dims));
        for user in users {
            if let Use::Node(user, slot) = user {
                model.set_input(user, slot as usize, Some(dequantized));
            }
        }
        (dtype.name().to_owned(), bytes)
    }

    /// `MatMulNBits` in the place of every reader.
    fn write_n_bits(
        &self,
        model: &mut Model,
        group: &Shared,
        quantized: &QuantizedMatrix,
    ) -> Result<(String, u64), PassError> {
        let (integers, scales, zeros) = quantized.matmul_n_bits();
        let bytes = [Some(&integers), Some(&scales), zeros.as_ref()];
        let bytes = bytes.into_iter().flatten().map(|tensor| tensor.bytes().len() as u64).sum();
        let graph = model.value(group.weights).graph();
        let name = model.value(group.weights).name().to_owned();
        let integers = model.add_constant(graph, &format!("{name}_quantized"), integers);
        let scales = model.add_constant(graph, &format!("{name}_scale"), scales);
        let zeros = zeros.map(|zeros| model.add_constant(graph, &format!("{name}_zero_point"), zeros));
        if model.opset_version(model.main(), "com.microsoft").is_none() {
            model.opset_imports.push(OpsetImport {
                domain: "com.microsoft".to_owned(),
                version: 1,
                carry: Default::default(),
            });
        }
        for operand in &group.operands {
            let id = operand.node;
            let (Some(input), Some(output)) = (model.node(id).input(0), model.node(id).output(0)) else {
                continue;
            };
            let graph = model.node(id).graph();
            let node_name = model.node(id).name.clone();
            let output_name = model.value(output).name().to_owned();
            let fused_bias = operand.bias.filter(|&bias| {
                model.value(bias).ty.as_ref().and_then(Type::fixed_shape) == Some(vec![quantized.outputs])
            });
            let inputs = vec![Some(input), Some(integers), Some(scales), zeros, None, fused_bias];
            let inputs = match inputs.iter().rposition(Option::is_some) {
                Some(last) => inputs[..=last].to_vec(),
                None => inputs,
            };
            let node = Node::with_optional_inputs("MatMulNBits", inputs)
                .in_domain("com.microsoft")
                .named(&node_name)
                .with("K", quantized.depth as i64)
                .with("N", quantized.outputs as i64)
                .with("bits", i64::from(self.bits))
                .with("block_size", quantized.block as i64)
                .with("accuracy_level", self.accuracy_level);
            let before = Position::Before(id);
            let (_, mut result) = model.add_node(graph, before, node, &format!("{output_name}_product"));
            model.value_mut(result).ty = model.value(output).ty.clone();
            if let Some(bias) = operand.bias.filter(|_| fused_bias.is_none()) {
                let add = Node::new("Add", [result, bias]);
                result = model.add_node(graph, before, add, &format!("{output_name}_biased")).1;
                model.value_mut(result).ty = model.value(output).ty.clone();
            }
            model.replace_value(output, result)?;
            model.remove_node(id)?;
            if let Some(transpose) = operand.transpose
                && let Some(turned) = model.get_node(transpose).and_then(|node| node.output(0))
                && model.value(turned).uses().is_empty()
            {
                model.remove_node(transpose)?;
            }
        }
        let sign = if zeros.is_none() { "int" } else { "uint" };
        Ok((format!("{sign}{}", self.bits), bytes))
    }
}
