//! Where quantizers go in a graph.
//!
//! An integer kernel wants its inputs behind `QuantizeLinear`/`DequantizeLinear` pairs; a convolution
//! wants one behind itself too, or onnxruntime will not run it in integers. This module decides which
//! *values* get a pair, which of them share scale and zero point, and says of every other node why it
//! stays float. It changes nothing.
//!
//! Rules:
//! 1. `Conv`, `Gemm` and `MatMul` with constant weights are quantized: their input gets a pair, and
//!    `Conv`'s output. An activation that only a `Relu` or `Clip` sees is absorbed: the pair goes behind it.
//! 2. Operators that only move elements (`Reshape`, `MaxPool`, ...) pass a quantizer through unchanged.
//! 3. `Add`, `Concat` and average pools run in integers where all their inputs come from integer kernels
//!    and an integer kernel follows; elsewhere they stay float, because rounding them costs accuracy and
//!    wins nothing.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, Tensor, Use, ValueId};

/// How a node with weights is quantized.
#[derive(Clone, Debug)]
pub struct WeightedNode {
    /// The node.
    pub node: NodeId,
    /// Its activation input.
    pub input: ValueId,
    /// Slot of the weights.
    pub weight_slot: usize,
    /// Axis of the weights' output channels; `None` where only one scale for all is possible.
    pub channel_axis: Option<usize>,
    /// Slot of the bias, when it has one that is constant.
    pub bias_slot: Option<usize>,
    /// The value behind the node and its absorbed activation.
    pub output: ValueId,
}

/// The decision about a graph.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// Nodes whose weights are quantized, in order.
    pub weighted: Vec<WeightedNode>,
    /// Other nodes that will run in integers, in order.
    pub bridges: Vec<NodeId>,
    /// Nodes considered and left float, with the reason, in order.
    pub skipped: Vec<(NodeId, String)>,
    /// Every value that gets a pair, mapped to the value whose statistics it uses (itself or one it is
    /// an image of), in order of execution.
    pub quantized: Vec<(ValueId, ValueId)>,
    /// Values produced by integer kernels: everybody reads them dequantized.
    pub resident: Vec<ValueId>,
    /// Inputs of each integer node that read through a pair.
    pub reads: Vec<(NodeId, usize)>,
}

/// Operators whose output elements are all elements of their first input (or zero).
const PASS_THROUGH: &[&str] = &[
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "MaxPool",
    "Slice",
    "Identity",
    "DepthToSpace",
    "SpaceToDepth",
    "Expand",
    "Tile",
];

/// Operators that run in integers between integer neighbours: all tensor inputs are activations.
const BRIDGES: &[&str] = &["Add", "Concat", "AveragePool", "GlobalAveragePool"];

/// Whether an operator belongs to those whose fate is reported.
pub fn is_quantizable(op_type: &str) -> bool {
    matches!(op_type, "Conv" | "ConvTranspose" | "Gemm" | "MatMul")
}

/// Weights as f32, or the reason they cannot be quantized.
pub fn float_weights(model: &Model, value: Option<ValueId>) -> Result<&Tensor, String> {
    let value = value.ok_or("its weights are missing")?;
    let tensor =
        model.constant(value).ok_or("its weights are computed while the model runs, not constant")?;
    if tensor.dtype() != DType::F32 {
        return Err(format!("its weights are {}, only float is quantized", tensor.dtype()));
    }
    if tensor.is_empty() {
        return Err("its weights are empty".to_owned());
    }
    let bad = tensor.to_slice::<f32>().map_or(0, |weights| weights.iter().filter(|w| !w.is_finite()).count());
    if bad > 0 {
        return Err(format!("{bad} of its weights are NaN or infinite"));
    }
    Ok(tensor)
}

/// The quantized form of a node with weights, or the reason it has none.
fn classify(model: &Model, id: NodeId) -> Result<WeightedNode, String> {
    let node = model.node(id);
    let input = node.input(0).ok_or("its input is missing")?;
    let output = node.output(0).ok_or("nothing uses its output")?;
    if let Some(dtype) = model.value(input).ty.as_ref().and_then(|ty| ty.dtype())
        && dtype != DType::F32
    {
        return Err(format!("its input is {dtype}, only float is quantized"));
    }
    let dequantized = |value: ValueId| {
        model.value(value).producer().is_some_and(|(producer, _)| model.node(producer).is("DequantizeLinear"))
    };
    if dequantized(input) || node.input(1).is_some_and(dequantized) {
        return Err("it is quantized already".to_owned());
    }
    if model.constant(input).is_some() && node.op_type != "MatMul" {
        return Err("its input is constant".to_owned());
    }
    let mut bias_slot = None;
    let channel_axis = match node.op_type.as_str() {
        "Conv" => {
            float_weights(model, node.input(1))?;
            if let Some(bias) = node.input(2) {
                if model.constant(bias).is_none_or(|bias| bias.dtype() != DType::F32) {
                    return Err("its bias is computed while the model runs, not constant".to_owned());
                }
                bias_slot = Some(2);
            }
            Some(0)
        }
        "Gemm" => {
            let weights = float_weights(model, node.input(1))?;
            if weights.rank() != 2 {
                return Err("its weights are not a matrix".to_owned());
            }
            if node.int("transA").unwrap_or(0) != 0 {
                return Err("its activation is transposed (transA)".to_owned());
            }
            let ones = [node.float("alpha"), node.float("beta")].iter().all(|f| f.unwrap_or(1.0) == 1.0);
            if !ones {
                return Err("it scales its operands (alpha, beta)".to_owned());
            }
            let transposed = node.int("transB").unwrap_or(0) != 0;
            let channels = weights.shape()[if transposed { 0 } else { 1 }];
            // A bias of one number a channel becomes int32; another shape stays float.
            if let Some(bias) = node.input(2).and_then(|bias| model.constant(bias))
                && bias.dtype() == DType::F32
                && bias.shape() == [channels]
            {
                bias_slot = Some(2);
            }
            Some(if transposed { 0 } else { 1 })
        }
        "MatMul" => {
            let right = node.input(1).ok_or("its second operand is missing")?;
            match (model.constant(input), model.constant(right)) {
                (None, None) => return Err("both operands are activations".to_owned()),
                (Some(_), _) => return Err("its first operand is constant".to_owned()),
                (None, Some(_)) => {}
            }
            match float_weights(model, Some(right))?.rank() {
                2 => Some(1),
                _ => None,
            }
        }
        "ConvTranspose" => return Err("onnxruntime has no integer kernel for it".to_owned()),
        other => return Err(format!("{other} has no integer form here")),
    };
    Ok(WeightedNode { node: id, input, weight_slot: 1, channel_axis, bias_slot, output })
}

/// The value behind an activation that can be folded into the range of `value`, if only that sees it.
fn absorb_activation(model: &Model, value: ValueId) -> ValueId {
    let [Use::Node(user, 0)] = *model.value(value).uses() else { return value };
    let node = model.node(user);
    if node.graph() != model.value(value).graph() {
        return value;
    }
    let bound = |slot: usize, name: &str| match node.input(slot) {
        Some(value) => model.constant(value).and_then(Tensor::single),
        None => Some(f64::from(node.float(name).unwrap_or(if slot == 1 { f32::MIN } else { f32::MAX }))),
    };
    let folds = match node.op_type.as_str() {
        "Relu" if node.is("Relu") => true,
        // The folded range must hold zero, which every quantizer represents.
        "Clip" if node.is("Clip") => {
            bound(1, "min").is_some_and(|min| min <= 0.0) && bound(2, "max").is_some_and(|max| max >= 0.0)
        }
        _ => false,
    };
    if folds { node.output(0).unwrap_or(value) } else { value }
}

/// Decides about the main graph of a model. `wanted` filters nodes: an `Err` is a reason to leave one.
pub fn place(model: &Model, wanted: &dyn Fn(NodeId) -> Result<(), String>) -> Placement {
    let mut placement = Placement::default();
    let main = model.main();
    let order = model.node_list(main);
    let mut weighted_nodes: BTreeMap<NodeId, usize> = BTreeMap::new();
    for id in model.walk() {
        let node = model.node(id);
        if !node.domain().is_empty() || !is_quantizable(&node.op_type) {
            continue;
        }
        let verdict = if node.graph() == main {
            wanted(id).and_then(|()| classify(model, id))
        } else {
            Err("it is inside a subgraph".to_owned())
        };
        match verdict {
            Ok(weighted) => {
                weighted_nodes.insert(id, placement.weighted.len());
                placement.weighted.push(weighted);
            }
            Err(reason) => placement.skipped.push((id, reason)),
        }
    }
    // Values that integer kernels produce, and what feeds through to them.
    let mut needed = vec![false; model.value_capacity()];
    let mut resident = vec![false; model.value_capacity()];
    for weighted in &mut placement.weighted {
        needed[weighted.input.index()] = true;
        weighted.output = absorb_activation(model, weighted.output);
        if model.node(weighted.node).is("Conv") {
            needed[weighted.output.index()] = true;
            resident[weighted.output.index()] = true;
        }
    }
    let pass_through = |id: NodeId| {
        let node = model.node(id);
        let moves = node.domain().is_empty() && PASS_THROUGH.contains(&node.op_type.as_str());
        // A pool that also returns indices has no integer form in onnxruntime.
        if !moves || node.outputs().len() != 1 {
            return None;
        }
        Some((node.input(0)?, node.output(0)?))
    };
    // Forward: what could stay in integers if somebody behind wants it.
    let mut may_stay = resident.clone();
    let mut candidates: BTreeMap<NodeId, (Vec<usize>, ValueId)> = BTreeMap::new();
    for &id in &order {
        if let Some((input, output)) = pass_through(id) {
            may_stay[output.index()] |= may_stay[input.index()];
            continue;
        }
        let node = model.node(id);
        if !node.domain().is_empty() || !BRIDGES.contains(&node.op_type.as_str()) {
            continue;
        }
        let all = !node.inputs().is_empty()
            && node.inputs().iter().all(|input| input.is_some_and(|input| may_stay[input.index()]));
        if let (true, Some(output)) = (all && wanted(id).is_ok(), node.output(0)) {
            let output = absorb_activation(model, output);
            may_stay[output.index()] = true;
            candidates.insert(id, ((0..node.inputs().len()).collect(), output));
        }
    }
    // Backward: who is wanted in integers.
    for &id in order.iter().rev() {
        if let Some((input, output)) = pass_through(id)
            && needed[output.index()]
        {
            needed[input.index()] = true;
        }
        if let Some((slots, output)) = candidates.get(&id)
            && needed[output.index()]
        {
            resident[output.index()] = true;
            placement.bridges.push(id);
            for &slot in slots {
                placement.reads.push((id, slot));
                if let Some(input) = model.node(id).input(slot) {
                    needed[input.index()] = true;
                }
            }
        }
    }
    placement.bridges.reverse();
    placement.reads.reverse();
    for weighted in &placement.weighted {
        placement.reads.push((weighted.node, 0));
    }
    // Forward again: roots of shared quantizers, in order of execution.
    let mut root: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    let mut add = |value: ValueId, of: ValueId, placement: &mut Placement| {
        if root.insert(value, of).is_none() {
            placement.quantized.push((value, of));
        }
    };
    for info in model.graph(main).inputs() {
        if needed[info.value.index()] {
            add(info.value, info.value, &mut placement);
        }
    }
    let mut roots: Vec<Option<ValueId>> = vec![None; model.value_capacity()];
    for &id in &order {
        let through = pass_through(id);
        for &output in model.node(id).outputs().iter().flatten() {
            if !needed[output.index()] {
                continue;
            }
            let of = through
                .and_then(|(input, _)| needed[input.index()].then(|| roots[input.index()].unwrap_or(input)));
            roots[output.index()] = of;
            if through.is_some() {
                placement.reads.push((id, 0));
                resident[output.index()] = true;
            }
            add(output, of.unwrap_or(output), &mut placement);
        }
    }
    placement.resident =
        placement.quantized.iter().map(|(value, _)| *value).filter(|value| resident[value.index()]).collect();
    placement
}
