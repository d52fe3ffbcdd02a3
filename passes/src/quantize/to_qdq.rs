//! From operators on integers to QDQ.

use std::collections::BTreeMap;

use optix_ir::{DType, GraphId, Model, Node, NodeId, Position, Tensor, Type, ValueId};
use optix_pipeline::{Cx, Family, Interface, Named, Numerics, Pass, PassError, Promises, Requires, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use super::rewrite::drop_unused;
use super::to_qoperator::MOVES;

/// Turns operators on integers into QDQ, float operators between DequantizeLinear and QuantizeLinear, which
/// every engine reads.
///
/// QLinearConv, QLinearMatMul, and of onnxruntime's operators QLinearAdd, QLinearMul, QLinearConcat,
/// QLinearAveragePool, QLinearGlobalAveragePool, QLinearLeakyRelu, QLinearSigmoid, QGemm and
/// MatMulIntegerToFloat are turned around. So are operators that only move elements, where the scale of the
/// integers they move is known. Everything else stays, and the reason is said. Results are the same but for
/// the order of roundings: each operator may be one integer off.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
/// model (uint8[N, 4] x) => (uint8[N, 4] y)
/// <float s = {0.5}, uint8 z = {3}, float t = {0.25}, uint8 u = {0}>
/// {
///     y = com.microsoft.QLinearSigmoid (x, s, z, t, u)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
/// model (uint8[N, 4] x) => (uint8[N, 4] y)
/// <float s = {0.5}, uint8 z = {3}, float t = {0.25}, uint8 u = {0}>
/// {
///     [x_DequantizeLinear] x_dequantized = DequantizeLinear (x, s, z)
///     y_float = Sigmoid (x_dequantized)
///     y = QuantizeLinear (y_float, t, u)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ToQdq {}

impl Named for ToQdq {
    const NAME: &'static str = "to-qdq";
    const FAMILY: Family = Family::Quantize;
}

/// Integers in an input: the slots of value, scale and zero point, and the axis of their scales where they
/// may have more than one.
#[derive(Clone, Copy)]
struct Slots {
    value: usize,
    scale: usize,
    zero_point: usize,
    axis: Option<i64>,
}

const fn slots(value: usize, scale: usize, zero_point: usize, axis: Option<i64>) -> Slots {
    Slots { value, scale, zero_point, axis }
}

/// How an operator on integers reads.
struct Form {
    op_type: &'static str,
    contrib: bool,
    float: &'static str,
    inputs: &'static [Slots],
    /// An int32 bias in the unit of the product of the first two inputs, or an addend of the float result.
    bias: Option<usize>,
    /// Slots of scale and zero point of the result; without them, it is float.
    result: Option<[usize; 2]>,
}

const ONE: &[Slots] = &[slots(0, 1, 2, None)];
const TWO: &[Slots] = &[slots(0, 1, 2, None), slots(3, 4, 5, None)];

const fn form(op_type: &'static str, float: &'static str, inputs: &'static [Slots], result: usize) -> Form {
    Form { op_type, contrib: true, float, inputs, bias: None, result: Some([result, result + 1]) }
}

static FORMS: &[Form] = &[
    Form {
        contrib: false,
        bias: Some(8),
        ..form("QLinearConv", "Conv", &[slots(0, 1, 2, None), slots(3, 4, 5, Some(0))], 6)
    },
    Form {
        contrib: false,
        ..form("QLinearMatMul", "MatMul", &[slots(0, 1, 2, None), slots(3, 4, 5, Some(-1))], 6)
    },
    Form { bias: Some(6), ..form("QGemm", "Gemm", &[slots(0, 1, 2, None), slots(3, 4, 5, Some(1))], 7) },
    Form {
        result: None,
        bias: Some(6),
        ..form("MatMulIntegerToFloat", "MatMul", &[slots(0, 2, 4, None), slots(1, 3, 5, Some(-1))], 0)
    },
    form("QLinearAdd", "Add", TWO, 6),
    form("QLinearMul", "Mul", TWO, 6),
    form("QLinearAveragePool", "AveragePool", ONE, 3),
    form("QLinearGlobalAveragePool", "GlobalAveragePool", ONE, 3),
    form("QLinearLeakyRelu", "LeakyRelu", ONE, 3),
    form("QLinearSigmoid", "Sigmoid", ONE, 3),
    // Its inputs are as many as there are.
    form("QLinearConcat", "Concat", &[], 0),
];

/// Values whose integers stand for reals: scale and zero point.
type Known = BTreeMap<ValueId, (ValueId, Option<ValueId>)>;

/// The `DequantizeLinear` of each value: one serves all readers in its graph.
type Made = BTreeMap<(GraphId, ValueId, ValueId, Option<ValueId>, Option<i64>), ValueId>;

impl Pass for ToQdq {
    fn requires(&self) -> Requires {
        Requires { inferred_types: true, opset: 10, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let order: Vec<NodeId> = model.walk().collect();
        let (mut known, mut made) = (Known::new(), Made::new());
        let total = order.len() as u64;
        for (index, id) in order.into_iter().enumerate() {
            if index % 256 == 0 {
                cx.progress("converting", index as u64, total)?;
            }
            let node = model.node(id);
            let op = node.op_type.clone();
            if super::pairs::is_quantize(node) {
                // What is moved may not have a scale a channel: channels would move too.
                if let (Some(output), Some(scale)) = (node.output(0), node.input(1))
                    && scale_count(model, scale) == Some(1)
                {
                    known.insert(output, (scale, node.input(2)));
                }
                continue;
            }
            let form = FORMS.iter().find(|form| {
                form.op_type == op && node.domain() == if form.contrib { "com.microsoft" } else { "" }
            });
            let moves = form.is_none()
                && node.domain().is_empty()
                && MOVES.contains(&op.as_str())
                && node.outputs().len() == 1
                && node.input(0).is_some_and(|input| known.contains_key(&input));
            let integer = op.starts_with("QLinear") || op == "ConvInteger" || op == "MatMulInteger";
            if form.is_none() && !moves {
                if integer {
                    cx.skip(model, id, format!("{op} is not turned into QDQ"));
                }
                continue;
            }
            let plan = match form {
                Some(form) => read(model, id, form),
                None => Ok(moved(model, id, &known)),
            };
            match plan {
                Err(reason) => cx.skip(model, id, reason),
                Ok(plan) => {
                    if !cx.may_edit("to-qdq") {
                        return Ok(());
                    }
                    cx.count(&format!("{op} converted"), 1);
                    write(model, id, plan, &mut known, &mut made)?;
                }
            }
        }
        Ok(())
    }
}

/// An input of the float node.
enum Part {
    Integers {
        value: ValueId,
        scale: ValueId,
        zero_point: Option<ValueId>,
        axis: Option<i64>,
    },
    /// An int32 bias with the scales it stands for.
    Bias {
        value: ValueId,
        scales: Vec<f32>,
    },
    As(Option<ValueId>),
}

struct Plan {
    op_type: String,
    parts: Vec<Part>,
    /// Added to the float result.
    addend: Option<ValueId>,
    /// Scale and zero point of the result.
    result: Option<(ValueId, Option<ValueId>)>,
}

/// Elements of a value, by its type.
fn element_count(model: &Model, value: ValueId) -> Option<usize> {
    let shape = model.value(value).ty.as_ref().and_then(Type::fixed_shape);
    shape.map(|shape| shape.iter().product::<usize>())
}

/// How many scales a value holds, if that is known.
fn scale_count(model: &Model, scale: ValueId) -> Option<usize> {
    element_count(model, scale).or_else(|| model.constant(scale).map(Tensor::len))
}

/// An operator that moves integers whose scale is known.
fn moved(model: &Model, id: NodeId, known: &Known) -> Plan {
    let node = model.node(id);
    let parameters = node.input(0).and_then(|input| Some((input, *known.get(&input)?)));
    let mut parts: Vec<Part> = node.inputs().iter().map(|&input| Part::As(input)).collect();
    if let (Some((value, (scale, zero_point))), Some(first)) = (parameters, parts.first_mut()) {
        *first = Part::Integers { value, scale, zero_point, axis: None };
    }
    Plan { op_type: node.op_type.clone(), parts, addend: None, result: parameters.map(|(_, p)| p) }
}

/// The float form of an operator on integers, or why it stays.
fn read(model: &Model, id: NodeId, form: &Form) -> Result<Plan, String> {
    let node = model.node(id);
    if node.int("channels_last").unwrap_or(0) != 0 {
        return Err("its channels come last".to_owned());
    }
    let concat: Vec<Slots> = match form.op_type {
        "QLinearConcat" => {
            (2..node.inputs().len()).step_by(3).map(|at| slots(at, at + 1, at + 2, None)).collect()
        }
        _ => Vec::new(),
    };
    let version = model.opset_version(node.graph(), "").unwrap_or(0);
    let mut parts = Vec::new();
    for slots in if concat.is_empty() { form.inputs } else { &concat } {
        let value = node.input(slots.value).ok_or("an input is missing")?;
        let scale = node.input(slots.scale).ok_or("a scale is missing")?;
        let rank = |value: ValueId| model.value(value).ty.as_ref().and_then(|ty| ty.shape()).map(Vec::len);
        let zero_point = node.input(slots.zero_point);
        let several = match scale_count(model, scale) {
            None => return Err("how many scales there are is not known".to_owned()),
            Some(count) => count != 1,
        };
        let mut axis = None;
        if several {
            // In a transposed matrix the outputs come first.
            let turned = form.float == "Gemm" && node.int("transB").unwrap_or(0) != 0;
            let along = if turned { slots.axis.map(|_| 0) } else { slots.axis };
            let along = along.ok_or("an activation has more than one scale")?;
            if version < 13 {
                return Err(
                    "a scale a channel needs operator set 13 in QDQ (`convert-opset` raises it)".to_owned()
                );
            }
            if along == -1 && rank(value) != Some(2) {
                return Err("its weights have more than one scale and are no matrix".to_owned());
            }
            axis = Some(if along == -1 { 1 } else { along });
        }
        // Zero points are as many as scales in QDQ.
        if let Some(zero) = zero_point
            && element_count(model, zero).is_some_and(|zeros| (zeros != 1) != several)
            && model
                .constant(zero)
                .and_then(|zeros| zeros.to_i64s().ok())
                .is_none_or(|all| all.windows(2).any(|p| p[0] != p[1]))
        {
            return Err("it has more zero points than scales".to_owned());
        }
        parts.push(Part::Integers { value, scale, zero_point, axis });
    }
    let mut addend = None;
    if let Some(value) = form.bias.and_then(|slot| node.input(slot)) {
        if form.float == "MatMul" {
            addend = Some(value);
        } else {
            let floats = |slot: usize| -> Result<Vec<f32>, String> {
                let scale = node.input(slot).and_then(|value| model.constant(value));
                let scale = scale.ok_or("the unit of its bias is computed while the model runs")?;
                Ok(scale.to_slice::<f32>().map_err(|error| error.to_string())?.into_owned())
            };
            let x = floats(1)?.first().copied().ok_or("a scale is empty")?;
            let alpha = if form.float == "Gemm" { node.float("alpha").unwrap_or(1.0) } else { 1.0 };
            let scales: Vec<f32> = floats(4)?.into_iter().map(|w| x * w).collect();
            if alpha != 1.0 {
                return Err("it scales its operands (alpha)".to_owned());
            }
            let bias = model.value(value).ty.as_ref().and_then(Type::fixed_shape);
            let shape = bias.or_else(|| model.constant(value).map(|bias| bias.shape().to_vec()));
            if scales.len() > 1 && shape != Some(vec![scales.len()]) {
                return Err("its bias is not one number a channel".to_owned());
            }
            parts.push(Part::Bias { value, scales });
        }
    }
    let result = match form.result {
        Some([scale, zero]) if node.input(scale).is_some() => {
            node.input(scale).map(|scale| (scale, node.input(zero)))
        }
        Some(_) if form.op_type != "QGemm" => return Err("the scale of its result is missing".to_owned()),
        _ => None,
    };
    Ok(Plan { op_type: form.float.to_owned(), parts, addend, result })
}

/// A zero point of as many elements as there are scales.
fn matching_zero(model: &mut Model, scale: ValueId, zero: Option<ValueId>) -> Option<ValueId> {
    let zero = zero?;
    let (Some(tensor), Some(scales)) = (model.constant(zero).cloned(), model.constant(scale)) else {
        return Some(zero);
    };
    let shape = scales.shape().to_vec();
    if tensor.shape() == shape {
        return Some(zero);
    }
    let first = tensor.bytes().first().copied()?;
    let codes = vec![first; shape.iter().product()];
    let graph = model.value(zero).graph();
    let name = model.value(zero).name().to_owned();
    Some(model.add_constant(graph, &name, Tensor::from_codes(tensor.dtype(), shape, &codes)))
}

/// Puts the float node and what surrounds it in the place of the old one.
fn write(
    model: &mut Model,
    id: NodeId,
    plan: Plan,
    known: &mut Known,
    made: &mut Made,
) -> Result<(), PassError> {
    let old = model.node(id).clone();
    let Some(output) = old.output(0) else { return Ok(()) };
    let (graph, before) = (old.graph(), Position::Before(id));
    let mut inputs = Vec::new();
    for part in plan.parts {
        inputs.push(match part {
            Part::As(value) => value,
            Part::Integers { value, scale, zero_point, axis } => {
                let key = (graph, value, scale, zero_point, axis);
                let dequantized = match made.get(&key) {
                    Some(&known) => known,
                    None => {
                        let zero = matching_zero(model, scale, zero_point);
                        let new = dequantize(model, graph, before, [Some(value), Some(scale), zero], axis);
                        made.insert(key, new);
                        new
                    }
                };
                Some(dequantized)
            }
            Part::Bias { value, scales } => {
                let name = model.value(value).name().to_owned();
                let axis = (scales.len() > 1).then_some(0);
                let shape = if scales.len() > 1 { vec![scales.len()] } else { vec![] };
                let scale =
                    model.add_constant(graph, &format!("{name}_scale"), Tensor::from_vec(shape, scales));
                Some(dequantize(model, graph, before, [Some(value), Some(scale), None], axis))
            }
        });
    }
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    let name = model.value(output).name().to_owned();
    let mut node = Node::with_optional_inputs(&plan.op_type, inputs).named(&old.name);
    node.attributes = old.attributes.clone();
    node.remove_attribute("channels_last");
    let shape = model.value(output).ty.as_ref().and_then(|ty| ty.shape()).cloned();
    let float = shape.map(|shape| Type::tensor(DType::F32, shape));
    let (_, mut result) = model.add_node(graph, before, node, &format!("{name}_float"));
    model.value_mut(result).ty = float.clone();
    if let Some(addend) = plan.addend {
        let add = Node::new("Add", [result, addend]);
        result = model.add_node(graph, before, add, &format!("{name}_biased")).1;
        model.value_mut(result).ty = float;
    }
    if let Some((scale, zero)) = plan.result {
        let inputs = [Some(result), Some(scale), zero];
        let inputs = inputs.into_iter().take(if zero.is_some() { 3 } else { 2 }).collect();
        let quantize = Node::with_optional_inputs("QuantizeLinear", inputs);
        let ty = model.value(output).ty.clone();
        result = model.add_node(graph, before, quantize, &format!("{name}_quantized")).1;
        model.value_mut(result).ty = ty;
        known.insert(result, (scale, zero));
    }
    model.replace_value(output, result)?;
    // Where the old value was known or dequantized, nobody reads it any more.
    known.remove(&output);
    model.remove_node(id)?;
    drop_unused(model, old.inputs().iter().flatten().copied());
    Ok(())
}

fn dequantize(
    model: &mut Model,
    graph: GraphId,
    before: Position,
    inputs: [Option<ValueId>; 3],
    axis: Option<i64>,
) -> ValueId {
    let name = inputs[0].map(|value| model.value(value).name().to_owned()).unwrap_or_default();
    let shape = inputs[0].and_then(|value| model.value(value).ty.as_ref()?.shape().cloned());
    let count = if inputs[2].is_some() { 3 } else { 2 };
    let mut node = Node::with_optional_inputs("DequantizeLinear", inputs[..count].to_vec())
        .named(&format!("{name}_DequantizeLinear"));
    if let Some(axis) = axis {
        node = node.with("axis", axis);
    }
    let (_, dequantized) = model.add_node(graph, before, node, &format!("{name}_dequantized"));
    model.value_mut(dequantized).ty = shape.map(|shape| Type::tensor(DType::F32, shape));
    dequantized
}
