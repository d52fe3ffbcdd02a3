//! Where quantizers go in a graph.
//!
//! An integer kernel wants its inputs behind `QuantizeLinear`/`DequantizeLinear` pairs; a convolution
//! wants one behind itself too, or onnxruntime will not run it in integers. This module decides which
//! *values* get a pair, which of them share scale and zero point, and says of every other node why it
//! stays float. It changes nothing.
//!
//! Which operators are treated how, the target's profile says ([`Target`]); the lists named here are its:
//! 1. `weighted` operators with constant weights are quantized: their input gets a pair, and the output of
//!    those in `quantized-output`. An activation that only one of `folded` sees is absorbed: the pair goes
//!    behind that. Both inputs of `products` get a pair.
//! 2. `movers` pass a quantizer through unchanged.
//! 3. `bridges` run in integers where all their inputs come from integer kernels and an integer kernel
//!    follows; elsewhere they stay float, because rounding them costs accuracy and wins nothing.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, Tensor, Use, ValueId};

use super::target::Target;
use super::target::operators::{Bridge, Folded, Mover, Product, Weighted};

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
    /// Products of two activations that run in integers, in order.
    pub products: Vec<NodeId>,
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

impl Placement {
    /// Nodes that integer kernels compute whatever their neighbours are.
    pub fn computed(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.weighted.iter().map(|weighted| weighted.node).chain(self.products.iter().copied())
    }
}

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

/// A node that integer kernels compute whatever its neighbours are.
enum Computed {
    /// With constant weights.
    Weighted(WeightedNode),
    /// From two activations.
    Product,
}

/// The quantized form of a node, or the reason it has none.
fn classify(model: &Model, id: NodeId, target: &Target) -> Result<Computed, String> {
    let node = model.node(id);
    let input = node.input(0).ok_or("its input is missing")?;
    let output = node.output(0).ok_or("nothing uses its output")?;
    let is_float = |value: ValueId| match model.value(value).ty.as_ref().and_then(|ty| ty.dtype()) {
        Some(dtype) if dtype != DType::F32 => Err(format!("its input is {dtype}, only float is quantized")),
        _ => Ok(()),
    };
    is_float(input)?;
    let dequantized = |value: ValueId| {
        model.value(value).producer().is_some_and(|(producer, _)| model.node(producer).is("DequantizeLinear"))
    };
    if dequantized(input) || node.input(1).is_some_and(dequantized) {
        return Err("it is quantized already".to_owned());
    }
    if model.constant(input).is_some() && node.op_type != "MatMul" {
        return Err("its input is constant".to_owned());
    }
    if let (Some(product), Some(right)) = (Product::of(&node.op_type), node.input(1))
        && model.constant(input).is_none()
        && model.constant(right).is_none()
    {
        if !target.operators.products.contains(&product) {
            return Err("both operands are activations".to_owned());
        }
        is_float(right)?;
        return Ok(Computed::Product);
    }
    let operator = Weighted::of(&node.op_type);
    if !operator.is_some_and(|operator| target.operators.weighted.contains(&operator)) {
        return Err(format!("{} has no integer kernel for it", target.engine));
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
            if model.constant(input).is_some() {
                return Err("its first operand is constant".to_owned());
            }
            match float_weights(model, Some(right))?.rank() {
                2 => Some(1),
                _ => None,
            }
        }
        "ConvTranspose" => {
            float_weights(model, node.input(1))?;
            if let Some(bias) = node.input(2) {
                if model.constant(bias).is_none_or(|bias| bias.dtype() != DType::F32) {
                    return Err("its bias is computed while the model runs, not constant".to_owned());
                }
                bias_slot = Some(2);
            }
            // Its weights are [inputs, outputs of a group, ...]: groups would have to share scales.
            (node.int("group").unwrap_or(1) == 1).then_some(1)
        }
        other => return Err(format!("{other} has no integer form here")),
    };
    let weighted = WeightedNode { node: id, input, weight_slot: 1, channel_axis, bias_slot, output };
    Ok(Computed::Weighted(weighted))
}

/// The value behind an activation that can be folded into the range of `value`, if only that sees it.
fn absorb_activation(model: &Model, value: ValueId, folded: &[Folded]) -> ValueId {
    let [Use::Node(user, 0)] = *model.value(value).uses() else { return value };
    let node = model.node(user);
    if node.graph() != model.value(value).graph() {
        return value;
    }
    let function = Folded::of(&node.op_type).filter(|function| folded.contains(function));
    function.and_then(|function| function.output(model, user)).unwrap_or(value)
}

/// Decides about the main graph of a model. `wanted` filters nodes: an `Err` is a reason to leave one.
pub fn place(model: &Model, target: &Target, wanted: &dyn Fn(NodeId) -> Result<(), String>) -> Placement {
    let rules = &target.operators;
    let mut placement = Placement::default();
    let main = model.main();
    let order = model.node_list(main);
    for id in model.walk() {
        let node = model.node(id);
        if !node.domain().is_empty() || !is_quantizable(&node.op_type) {
            continue;
        }
        let verdict = if node.graph() == main {
            wanted(id).and_then(|()| classify(model, id, target))
        } else {
            Err("it is inside a subgraph".to_owned())
        };
        match verdict {
            Ok(Computed::Weighted(weighted)) => placement.weighted.push(weighted),
            Ok(Computed::Product) => placement.products.push(id),
            Err(reason) => placement.skipped.push((id, reason)),
        }
    }
    // Values that integer kernels produce, and what feeds through to them.
    let mut needed = vec![false; model.value_capacity()];
    let mut resident = vec![false; model.value_capacity()];
    for weighted in &mut placement.weighted {
        needed[weighted.input.index()] = true;
        weighted.output = absorb_activation(model, weighted.output, &rules.folded);
        if has_quantized_output(target, model, weighted.node) {
            needed[weighted.output.index()] = true;
            resident[weighted.output.index()] = true;
        }
    }
    for &product in &placement.products {
        for input in [0, 1].into_iter().filter_map(|slot| model.node(product).input(slot)) {
            needed[input.index()] = true;
        }
        if has_quantized_output(target, model, product)
            && let Some(output) = model.node(product).output(0)
        {
            needed[output.index()] = true;
            resident[output.index()] = true;
        }
    }
    // Nodes that a quantizer passes through, with what is before and behind them.
    let mut passed: BTreeMap<NodeId, (ValueId, ValueId)> = BTreeMap::new();
    // Forward: what could stay in integers if somebody behind wants it.
    let mut may_stay = resident.clone();
    let gives_integers = |id: NodeId| {
        let operator = Weighted::of(&model.node(id).op_type);
        operator.is_some_and(|operator| rules.integer_output.contains(&operator))
    };
    let computed = placement.weighted.iter().map(|weighted| (weighted.node, Some(weighted.output)));
    let products = placement.products.iter().map(|&product| (product, model.node(product).output(0)));
    for (_, output) in computed.chain(products).filter(|(node, _)| gives_integers(*node)) {
        if let Some(output) = output {
            may_stay[output.index()] = true;
        }
    }
    let mut candidates: BTreeMap<NodeId, (Vec<usize>, ValueId)> = BTreeMap::new();
    for &id in &order {
        let node = model.node(id);
        if let Some(mover) = Mover::of_node(model, id).filter(|mover| rules.movers.contains(mover))
            && let (Some(input), Some(output)) = (node.input(0), node.output(0))
        {
            let passes =
                model.constant(input).is_none() && (!mover.drops_elements() || may_stay[input.index()]);
            if passes {
                passed.insert(id, (input, output));
                may_stay[output.index()] |= may_stay[input.index()];
            }
            continue;
        }
        let bridge = Bridge::of(&node.op_type).filter(|bridge| rules.bridges.contains(bridge));
        if !node.domain().is_empty() || bridge.is_none() {
            continue;
        }
        let all = !node.inputs().is_empty()
            && node.inputs().iter().all(|input| input.is_some_and(|input| may_stay[input.index()]));
        if let (true, Some(output)) = (all && wanted(id).is_ok(), node.output(0)) {
            let output = absorb_activation(model, output, &rules.folded);
            may_stay[output.index()] = true;
            candidates.insert(id, ((0..node.inputs().len()).collect(), output));
        }
    }
    // Backward: who is wanted in integers.
    for &id in order.iter().rev() {
        if let Some((input, output)) = passed.get(&id)
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
    for &product in &placement.products {
        placement.reads.extend([(product, 0), (product, 1)]);
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
        let through = passed.get(&id).copied();
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

/// Whether a node runs in integers only with a quantizer behind it.
pub(super) fn has_quantized_output(target: &Target, model: &Model, id: NodeId) -> bool {
    let operator = Weighted::of(&model.node(id).op_type);
    operator.is_some_and(|operator| target.operators.quantized_output.contains(&operator))
}
