//! From QDQ to operators on integers.

use optix_ir::{DType, Model, Node, NodeId, OpsetImport, Position, Tensor, ValueId};
use optix_pipeline::{Cx, Family, Interface, Named, Numerics, Pass, PassError, Promises, Requires, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use super::pairs::{self, Integers, Quantizer};
use super::rewrite::drop_unused;

/// Turns QDQ, float operators between DequantizeLinear and QuantizeLinear, into operators on integers.
///
/// Conv becomes QLinearConv and MatMul QLinearMatMul; Add, Mul, Concat, average pools, LeakyRelu and Sigmoid
/// become onnxruntime's operators of that name with QLinear before it, Gemm its QGemm. A MatMul whose result
/// stays float becomes MatMulIntegerToFloat. Operators that only move elements work on the integers. A Relu
/// or Clip that cuts no more than the quantizer behind it does is dropped. Everything else stays QDQ, and
/// the reason is said.
///
/// For onnxruntime on CPUs alone: it makes the same of QDQ when it loads a model, and other engines want
/// QDQ. Results are those of QDQ but for the order of roundings: each operator may be one integer off.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (uint8[N, 4] x) => (uint8[N, 4] y)
/// <float s = {0.5}, uint8 z = {3}, float t = {0.25}, uint8 u = {0}>
/// {
///     a = DequantizeLinear (x, s, z)
///     b = Sigmoid (a)
///     y = QuantizeLinear (b, t, u)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
/// model (uint8[N, 4] x) => (uint8[N, 4] y)
/// <float s = {0.5}, uint8 z = {3}, float t = {0.25}, uint8 u = {0}>
/// {
///     y = com.microsoft.QLinearSigmoid (x, s, z, t, u)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ToQoperator {}

impl Named for ToQoperator {
    const NAME: &'static str = "to-qoperator";
    const FAMILY: Family = Family::Quantize;
}

/// Operators that move elements, whatever these are: the first input is data.
pub(super) const MOVES: &[&str] =
    &["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Slice", "Identity"];

/// An input of the new node.
enum Part {
    Value(ValueId),
    /// Zero points that were not written, as a constant of the shape of the scales.
    Zero(DType, Vec<usize>),
    Missing,
}

/// The new node.
struct Plan {
    op_type: &'static str,
    domain: &'static str,
    inputs: Vec<Part>,
    /// Attributes that are not taken over.
    dropped: &'static [&'static str],
    /// Whose result the new node gives; none if it gives the float result itself.
    quantizer: Option<Quantizer>,
}

impl Pass for ToQoperator {
    fn requires(&self) -> Requires {
        Requires { inferred_types: true, opset: 10, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let order: Vec<NodeId> = model.walk().collect();
        let total = order.len() as u64;
        for (index, id) in order.into_iter().enumerate() {
            if index % 256 == 0 {
                cx.progress("converting", index as u64, total)?;
            }
            let Some(node) = model.get_node(id) else { continue };
            let reads = |value: &ValueId| {
                let producer = model.value(*value).producer();
                producer.is_some_and(|(producer, _)| pairs::is_dequantize(model.node(producer)))
            };
            if pairs::is_quantize(node) || !node.inputs().iter().flatten().any(reads) {
                continue;
            }
            match plan(model, id) {
                Err(reason) => cx.skip(model, id, reason),
                Ok(plan) => {
                    if !cx.may_edit("to-qoperator") {
                        return Ok(());
                    }
                    cx.count(&format!("{} converted", model.node(id).op_type), 1);
                    write(model, id, plan)?;
                }
            }
        }
        Ok(())
    }
}

/// Integers that an operator with one scale takes: 8 bits.
fn activation(model: &Model, node: &Node, slot: usize) -> Result<Integers, String> {
    let value = node.input(slot).ok_or("an input is missing")?;
    let integers = pairs::dequantized(model, value)?;
    narrow(&integers)?;
    integers.single(model).ok_or("an input has more than one scale")?;
    Ok(integers)
}

fn narrow(integers: &Integers) -> Result<(), String> {
    match integers.dtype {
        DType::U8 | DType::I8 => Ok(()),
        other => Err(format!("integers are {other}, integer operators take 8 bits")),
    }
}

/// Value, scale and zero point, as most operators take them.
fn triple(model: &Model, integers: &Integers) -> [Part; 3] {
    [Part::Value(integers.value), Part::Value(integers.scale), zero(model, integers)]
}

fn zero(model: &Model, integers: &Integers) -> Part {
    let shape = model.constant(integers.scale).map_or(vec![], |scale| scale.shape().to_vec());
    integers.zero_point.map_or(Part::Zero(integers.dtype, shape), Part::Value)
}

/// Weights with one scale, or one a place along one of `axes` (which may count from the end).
fn weights(model: &Model, value: ValueId, axes: &[i64]) -> Result<Integers, String> {
    let integers = pairs::dequantized(model, value)?;
    narrow(&integers)?;
    match integers.axis {
        None => Ok(integers),
        Some(axis) if axes.contains(&axis) => Ok(integers),
        Some(_) => Err("its weights have scales along another axis than that of the outputs".to_owned()),
    }
}

/// An int32 bias in the unit of the product.
fn bias(model: &Model, value: ValueId, x: &Integers, w: &Integers) -> Result<ValueId, String> {
    let bias = pairs::dequantized(model, value).map_err(|_| "its bias is float".to_owned())?;
    if bias.dtype != DType::I32 || bias.zero_points(model).iter().any(|&zero| zero != 0) {
        return Err("its bias is not int32 with zero point 0".to_owned());
    }
    let x_scale = x.scales(model).first().copied().unwrap_or(f32::NAN);
    let (own, w_scales) = (bias.scales(model), w.scales(model));
    let count = own.len().max(w_scales.len());
    let of = |list: &[f32], at: usize| list.get(if list.len() == 1 { 0 } else { at }).copied();
    // The product as float32, as everybody computes it; another order may be a rounding away.
    let same = (0..count).all(|at| match (of(&own, at), of(&w_scales, at)) {
        (Some(own), Some(w)) => (own - x_scale * w).abs() <= own.abs() * f32::EPSILON,
        _ => false,
    });
    if same { Ok(bias.value) } else { Err("the scale of its bias is not that of the product".to_owned()) }
}

/// What becomes of a node, or why it stays.
fn plan(model: &Model, id: NodeId) -> Result<Plan, String> {
    let node = model.node(id);
    if !node.domain().is_empty() {
        return Err(format!("{} has no form on integers", node.op_type));
    }
    let output = node.output(0).ok_or("it has no result")?;
    if node.outputs().iter().skip(1).any(Option::is_some) {
        return Err("it has more than one result".to_owned());
    }
    let result = || -> Result<Quantizer, String> {
        let quantizer = pairs::quantizer(model, output)?;
        narrow(&quantizer.integers)?;
        quantizer.integers.single(model).ok_or("its result has more than one scale")?;
        Ok(quantizer)
    };
    let same = |a: &Integers, b: &Integers| match a.dtype == b.dtype {
        true => Ok(()),
        false => Err(format!("it would read {} and make {}", a.dtype, b.dtype)),
    };
    let after =
        |quantizer: &Quantizer| [Part::Value(quantizer.integers.scale), zero(model, &quantizer.integers)];
    let contrib = |op_type: &'static str, inputs: Vec<Part>, quantizer: Quantizer| {
        Ok(Plan { op_type, domain: "com.microsoft", inputs, dropped: &[], quantizer: Some(quantizer) })
    };
    match node.op_type.as_str() {
        "Conv" => {
            let x = activation(model, node, 0)?;
            let w = weights(model, node.input(1).ok_or("its weights are missing")?, &[0])?;
            let quantizer = result()?;
            same(&x, &quantizer.integers)?;
            if x.dtype == DType::I8 && w.dtype != DType::I8 {
                return Err("its weights are unsigned and its input is signed".to_owned());
            }
            let mut inputs = Vec::from(triple(model, &x));
            inputs.extend(triple(model, &w));
            inputs.extend(after(&quantizer));
            if let Some(value) = node.input(2) {
                inputs.push(Part::Value(bias(model, value, &x, &w)?));
            }
            Ok(Plan { op_type: "QLinearConv", domain: "", inputs, dropped: &[], quantizer: Some(quantizer) })
        }
        "MatMul" => {
            let a = activation(model, node, 0)?;
            let right = node.input(1).ok_or("an input is missing")?;
            let b = weights(model, right, &[1, -1])?;
            let rank = model.value(right).ty.as_ref().and_then(|ty| ty.shape()).map(Vec::len);
            if b.axis.is_some() && rank != Some(2) {
                return Err("its weights have more than one scale and are no matrix".to_owned());
            }
            if a.dtype == DType::I8 && b.dtype != DType::I8 {
                return Err("its weights are unsigned and its input is signed".to_owned());
            }
            match result() {
                Ok(quantizer) => {
                    same(&a, &quantizer.integers)?;
                    let inputs = triple(model, &a)
                        .into_iter()
                        .chain(triple(model, &b))
                        .chain(after(&quantizer))
                        .collect();
                    let quantizer = Some(quantizer);
                    Ok(Plan { op_type: "QLinearMatMul", domain: "", inputs, dropped: &[], quantizer })
                }
                Err(_) => {
                    let zeros = [zero(model, &a), zero(model, &b)];
                    let [left, left_scale, _] = triple(model, &a);
                    let [right, right_scale, _] = triple(model, &b);
                    let inputs = [left, right, left_scale, right_scale].into_iter().chain(zeros).collect();
                    let op_type = "MatMulIntegerToFloat";
                    Ok(Plan { op_type, domain: "com.microsoft", inputs, dropped: &[], quantizer: None })
                }
            }
        }
        "Gemm" => {
            let a = activation(model, node, 0)?;
            let turned = node.int("transB").unwrap_or(0) != 0;
            let axes: &[i64] = if turned { &[0, -2] } else { &[1, -1] };
            let b = weights(model, node.input(1).ok_or("its weights are missing")?, axes)?;
            if a.dtype == DType::I8 && b.dtype != DType::I8 {
                return Err("its weights are unsigned and its input is signed".to_owned());
            }
            if [node.float("alpha"), node.float("beta")].iter().any(|f| f.unwrap_or(1.0) != 1.0) {
                return Err("it scales its operands (alpha, beta)".to_owned());
            }
            let addend = match node.input(2) {
                None => Part::Missing,
                Some(value) => Part::Value(bias(model, value, &a, &b)?),
            };
            let quantizer = result().ok();
            let mut inputs: Vec<Part> = triple(model, &a).into_iter().chain(triple(model, &b)).collect();
            inputs.push(addend);
            if let Some(quantizer) = &quantizer {
                same(&a, &quantizer.integers)?;
                inputs.extend(after(quantizer));
            }
            Ok(Plan { op_type: "QGemm", domain: "com.microsoft", inputs, dropped: &["beta"], quantizer })
        }
        op @ ("Add" | "Mul") => {
            let (a, b) = (activation(model, node, 0)?, activation(model, node, 1)?);
            let quantizer = result()?;
            same(&a, &b)?;
            same(&a, &quantizer.integers)?;
            let inputs =
                triple(model, &a).into_iter().chain(triple(model, &b)).chain(after(&quantizer)).collect();
            contrib(if op == "Add" { "QLinearAdd" } else { "QLinearMul" }, inputs, quantizer)
        }
        "Concat" => {
            let quantizer = result()?;
            let mut inputs = Vec::from(after(&quantizer));
            for slot in 0..node.inputs().len() {
                let part = activation(model, node, slot)?;
                same(&part, &quantizer.integers)?;
                inputs.extend(triple(model, &part));
            }
            contrib("QLinearConcat", inputs, quantizer)
        }
        op @ ("AveragePool" | "GlobalAveragePool" | "LeakyRelu" | "Sigmoid") => {
            if node.ints("dilations").is_some_and(|all| all.iter().any(|&step| step != 1)) {
                return Err("it leaves elements out (dilations)".to_owned());
            }
            let x = activation(model, node, 0)?;
            let quantizer = result()?;
            same(&x, &quantizer.integers)?;
            let inputs = triple(model, &x).into_iter().chain(after(&quantizer)).collect();
            let op_type = match op {
                "AveragePool" => "QLinearAveragePool",
                "GlobalAveragePool" => "QLinearGlobalAveragePool",
                "LeakyRelu" => "QLinearLeakyRelu",
                _ => "QLinearSigmoid",
            };
            let domain = "com.microsoft";
            Ok(Plan { op_type, domain, inputs, dropped: &["dilations"], quantizer: Some(quantizer) })
        }
        op => {
            let Some(op_type) = MOVES.iter().find(|known| **known == op) else {
                return Err(format!("{op} has no form on integers"));
            };
            let x = activation(model, node, 0)?;
            let quantizer = result()?;
            same(&x, &quantizer.integers)?;
            if x.single(model) != quantizer.integers.single(model) {
                return Err("scale or zero point change across it".to_owned());
            }
            let old = model.opset_version(node.graph(), "").unwrap_or(0) < 12;
            if op == "MaxPool" && old {
                return Err("MaxPool takes integers from operator set 12 on".to_owned());
            }
            let rest = node.inputs().iter().skip(1).map(|input| input.map_or(Part::Missing, Part::Value));
            let inputs = std::iter::once(Part::Value(x.value)).chain(rest).collect();
            Ok(Plan { op_type, domain: "", inputs, dropped: &[], quantizer: Some(quantizer) })
        }
    }
}

/// Puts the new node in the place of the old one and its quantizer.
fn write(model: &mut Model, id: NodeId, plan: Plan) -> Result<(), PassError> {
    let old = model.node(id).clone();
    let Some(output) = old.output(0) else { return Ok(()) };
    let graph = old.graph();
    let mut inputs = Vec::with_capacity(plan.inputs.len());
    for part in plan.inputs {
        inputs.push(match part {
            Part::Value(value) => Some(value),
            Part::Missing => None,
            Part::Zero(dtype, shape) => {
                let zeros = Tensor::zeros(dtype, shape);
                let zeros = zeros.map_err(|error| PassError::Options(error.to_string()))?;
                Some(model.add_constant(graph, "zero_point", zeros))
            }
        });
    }
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    let read: Vec<Option<ValueId>> = old.inputs().to_vec();
    let mut node = Node::with_optional_inputs(plan.op_type, inputs).in_domain(plan.domain).named(&old.name);
    node.attributes = old
        .attributes
        .into_iter()
        .filter(|attribute| !plan.dropped.contains(&attribute.name.as_str()))
        .collect();
    if !plan.domain.is_empty() && model.opset_version(graph, plan.domain).is_none() {
        let domain = plan.domain.to_owned();
        model.opset_imports.push(OpsetImport { domain, version: 1, carry: Default::default() });
    }
    let dequantizers: Vec<NodeId> = read
        .iter()
        .flatten()
        .filter_map(|&input| Some(model.value(input).producer()?.0))
        .filter(|&producer| pairs::is_dequantize(model.node(producer)))
        .collect();
    // The new result stands where the old one was quantized: scales may be made in between.
    let (replaced, last, between) = match &plan.quantizer {
        None => (output, id, None),
        Some(quantizer) => match model.node(quantizer.node).output(0) {
            Some(integers) => (integers, quantizer.node, quantizer.absorbed),
            None => return Ok(()),
        },
    };
    let hint = model.value(replaced).name().to_owned();
    let ty = model.value(replaced).ty.clone();
    let (_, result) = model.add_node(graph, Position::Before(last), node, &hint);
    model.value_mut(result).ty = ty;
    model.replace_value(replaced, result)?;
    for gone in [Some(last), between, Some(id).filter(|&id| id != last)].into_iter().flatten() {
        let read: Vec<ValueId> = model.node(gone).inputs().iter().flatten().copied().collect();
        model.remove_node(gone)?;
        drop_unused(model, read);
    }
    for dequantizer in dequantizers {
        // Twice in the list when both operands are one value.
        let Some(node) = model.get_node(dequantizer) else { continue };
        let idle = node.outputs().iter().flatten().all(|&output| model.value(output).uses().is_empty());
        if idle {
            let read: Vec<ValueId> = node.inputs().iter().flatten().copied().collect();
            model.remove_node(dequantizer)?;
            drop_unused(model, read);
        }
    }
    Ok(())
}
