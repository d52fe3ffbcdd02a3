//! Constant weights of products: who reads them, how they lie, and whether they may become integers.

use optix_ir::{DType, Model, NodeId, Use, ValueId};

use super::packing::Layout;
use super::placement::float_weights;

/// The constant operand of a node.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    /// The node.
    pub(super) node: NodeId,
    /// Its weights: the constant itself, also where a Transpose stands between.
    pub(super) weights: ValueId,
    /// The Transpose between weights and node.
    pub(super) transpose: Option<NodeId>,
    /// How the constant lies.
    pub(super) layout: Layout,
    /// Outputs the weights make.
    pub(super) outputs: usize,
    /// Weights that make one output.
    pub(super) depth: usize,
    /// Added to the product by the node itself (Gemm).
    pub(super) bias: Option<ValueId>,
    /// Whether the node is a convolution.
    pub(super) is_convolution: bool,
}

/// A constant and all nodes that read it as weights.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    /// The constant.
    pub(super) weights: ValueId,
    /// Never empty.
    pub(super) operands: Vec<Operand>,
}

/// The constant behind a value, and the node that turns it around, if there is one.
fn look_through(model: &Model, value: ValueId) -> (ValueId, Option<NodeId>) {
    let turned = || {
        let (id, _) = model.value(value).producer()?;
        let node = model.node(id);
        let input = node.input(0)?;
        let rank = model.constant(input)?.rank();
        let turns = matches!(node.ints("perm"), None | Some([1, 0]));
        (node.is("Transpose") && turns && rank == 2).then_some((input, Some(id)))
    };
    turned().unwrap_or((value, None))
}

/// The weights of a MatMul, Gemm or (if wanted) Conv, or the reason why they stay float.
pub(super) fn operand(model: &Model, id: NodeId, convolutions: bool) -> Result<Operand, String> {
    let node = model.node(id);
    let input = node.input(0).ok_or("its input is missing")?;
    let is_convolution = node.op_type == "Conv";
    match node.op_type.as_str() {
        "MatMul" | "Gemm" => {}
        "Conv" if convolutions => {}
        "Conv" => return Err("convolutions are left float unless `convolutions` is set".to_owned()),
        other => return Err(format!("{other} has no form with quantized weights here")),
    }
    if model.constant(input).is_some() {
        return Err("its first operand is constant".to_owned());
    }
    if let Some(dtype) = model.value(input).ty.as_ref().and_then(|ty| ty.dtype())
        && dtype != DType::F32
    {
        return Err(format!("its input is {dtype}, only float is quantized"));
    }
    let read = node.input(1).ok_or("its weights are missing")?;
    let producer = model.value(read).producer().map(|(producer, _)| model.node(producer));
    if producer.is_some_and(|producer| producer.op_type == "DequantizeLinear") {
        return Err("its weights are quantized already".to_owned());
    }
    let (weights, transpose) = look_through(model, read);
    if model.constant(weights).is_none() && node.op_type == "MatMul" {
        return Err("both operands are activations".to_owned());
    }
    let tensor = float_weights(model, Some(weights))?;
    let bias = match node.op_type.as_str() {
        "Gemm" => node.input(2),
        _ => None,
    };
    let turned = transpose.is_some() != (node.is("Gemm") && node.int("transB").unwrap_or(0) != 0);
    let (layout, outputs, depth) = match (is_convolution, tensor.shape()) {
        (true, [outputs, rest @ ..]) => (Layout::OutputFirst, *outputs, rest.iter().product()),
        (false, &[outputs, depth]) if turned => (Layout::OutputFirst, outputs, depth),
        (false, &[depth, outputs]) => (Layout::DepthFirst, outputs, depth),
        _ => return Err("its weights are not a matrix".to_owned()),
    };
    if node.is("Gemm") {
        if node.int("transA").unwrap_or(0) != 0 {
            return Err("its activation is transposed (transA)".to_owned());
        }
        if [node.float("alpha"), node.float("beta")].iter().any(|factor| factor.unwrap_or(1.0) != 1.0) {
            return Err("it scales its operands (alpha, beta)".to_owned());
        }
    }
    node.output(0).ok_or("nothing uses its output")?;
    Ok(Operand { node: id, weights, transpose, layout, outputs, depth, bias, is_convolution })
}

impl Shared {
    /// Whether all that read the constant can read it quantized: were one left with the float weights, the
    /// file would hold both. `dequantized` is whether others may read the dequantized weights, as tables.
    ///
    /// # Errors
    /// The reason why not.
    pub(super) fn check(&self, model: &Model, dequantized: bool) -> Result<(), String> {
        let [first, rest @ ..] = &self.operands[..] else { return Ok(()) };
        let reads = |constant: ValueId| model.value(constant).uses().to_vec();
        let is_operand = |id: NodeId| self.operands.iter().any(|operand| operand.node == id);
        let mut open = reads(self.weights);
        while let Some(used) = open.pop() {
            let (id, slot) = match used {
                Use::Node(id, slot) => (id, slot),
                Use::Output(..) => return Err("its weights are an output of the model".to_owned()),
            };
            let node = model.node(id);
            if slot == 1 && is_operand(id) {
                continue;
            }
            if self.operands.iter().any(|operand| operand.transpose == Some(id)) {
                open.extend(node.output(0).into_iter().flat_map(reads));
                continue;
            }
            let is_table = slot == 0 && node.is("Gather");
            if is_table && dequantized {
                continue;
            }
            let reader = model.describe(id);
            return Err(if is_table {
                format!(
                    "its weights are also the table of {reader}, which cannot read them packed: format = \
                     \"qdq\" shares them"
                )
            } else {
                format!("its weights are also read by {reader}, which would keep the float ones")
            });
        }
        // Packed, the two ways to lie are two constants.
        if !dequantized && rest.iter().any(|other| other.layout != first.layout) {
            return Err("its weights are read transposed elsewhere: format = \"qdq\" shares them".to_owned());
        }
        if rest.iter().any(|other| other.is_convolution != first.is_convolution) {
            return Err("its weights are shared by a convolution and a product".to_owned());
        }
        Ok(())
    }
}
