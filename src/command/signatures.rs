//! What computes a value, as a number: equal for values that are computed the same way, whatever their names.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use optix_ir::{AttributeValue, Model, Node, Tensor, ValueId};

/// How much must be the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// Operators, attributes and the content of constants.
    Exact,
    /// Operators and how they are connected. Constants may hold other numbers, quantizers and casts are looked
    /// through, and an operator on integers counts as the one it stands for.
    Structure,
}

/// Operators whose result stands for the same numbers as their first input.
const TRANSPARENT: &[&str] =
    &["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "Identity"];

/// Whether a node only gives its input another form.
pub fn is_transparent(node: &Node) -> bool {
    TRANSPARENT.contains(&node.op_type.as_str())
}

/// Operators on integers: what they stand for, and which of their inputs are operands.
const INTEGER: &[(&str, &str, &[usize])] = &[
    ("QLinearConv", "Conv", &[0, 3, 8]),
    ("ConvInteger", "Conv", &[0, 1]),
    ("QLinearMatMul", "MatMul", &[0, 3]),
    ("MatMulInteger", "MatMul", &[0, 1]),
    ("MatMulIntegerToFloat", "MatMul", &[0, 1]),
    ("DynamicQuantizeMatMul", "MatMul", &[0, 1]),
    ("MatMulNBits", "MatMul", &[0, 1]),
    ("QGemm", "Gemm", &[0, 3, 6]),
    ("QLinearAdd", "Add", &[0, 3]),
    ("QLinearMul", "Mul", &[0, 3]),
    ("QLinearSigmoid", "Sigmoid", &[0]),
    ("QLinearLeakyRelu", "LeakyRelu", &[0]),
    ("QLinearSoftmax", "Softmax", &[0]),
    ("QLinearAveragePool", "AveragePool", &[0]),
    ("QLinearGlobalAveragePool", "GlobalAveragePool", &[0]),
];

/// The slots of scale and zero point of the integers that an operator gives.
pub fn output_quantizer(node: &Node) -> Option<[usize; 2]> {
    match node.op_type.as_str() {
        "QLinearConv" | "QLinearMatMul" | "QLinearAdd" | "QLinearMul" => Some([6, 7]),
        "QGemm" => Some([7, 8]),
        "QLinearSigmoid"
        | "QLinearLeakyRelu"
        | "QLinearSoftmax"
        | "QLinearAveragePool"
        | "QLinearGlobalAveragePool" => Some([3, 4]),
        "QLinearConcat" => Some([0, 1]),
        "QuantizeLinear" => Some([1, 2]),
        _ => None,
    }
}

/// Input and output of an activation function that integer operators take in, and that alone reads what it does:
/// with it, the two count as one operator.
pub fn folded(model: &Model, node: &Node) -> Option<(ValueId, ValueId)> {
    let (input, output) = (node.input(0)?, node.output(0)?);
    let alone = model.value(input).uses().len() == 1 && model.value(input).producer().is_some();
    (matches!(node.op_type.as_str(), "Relu" | "Clip") && alone).then_some((input, output))
}

/// Of each value of the main graph a number that depends on how it is computed, down to inputs (by place) and
/// constants. Nothing for values behind nodes with bodies.
pub fn signatures(model: &Model, likeness: Likeness) -> HashMap<ValueId, u64> {
    let mut found: HashMap<ValueId, u64> = HashMap::new();
    let hash = |what: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        what(&mut hasher);
        hasher.finish()
    };
    let is_exact = likeness == Likeness::Exact;
    for (index, info) in model.graph(model.main()).inputs().iter().enumerate() {
        found.insert(info.value, hash(&|hasher| ("input", index).hash(hasher)));
    }
    let constant = |tensor: &Tensor| {
        hash(&|hasher| match is_exact {
            true => of_tensor(tensor, hasher),
            false => "constant".hash(hasher),
        })
    };
    for value in model.values() {
        if let Some(tensor) = model.value(value).tensor() {
            found.entry(value).or_insert_with(|| constant(tensor));
        }
    }
    for id in model.nodes_of(model.main()) {
        let node = model.node(id);
        let first = node.output(0);
        if !is_exact
            && let Some(output) = first
            && (is_transparent(node) || model.constant(output).is_some())
        {
            let signature = match (model.constant(output), node.input(0)) {
                (Some(tensor), _) => Some(constant(tensor)),
                (None, Some(input)) => found.get(&input).copied(),
                (None, None) => None,
            };
            found.extend(signature.map(|signature| (output, signature)));
            continue;
        }
        if !is_exact && let Some((input, output)) = folded(model, node) {
            let signature = found.get(&input).copied();
            found.extend(signature.map(|signature| (output, signature)));
            continue;
        }
        let known = INTEGER.iter().find(|(op_type, ..)| !is_exact && *op_type == node.op_type);
        let (op_type, operands): (&str, Vec<Option<ValueId>>) = match known {
            None => (&node.op_type, node.inputs().to_vec()),
            Some((_, op_type, slots)) => (op_type, slots.iter().map(|&slot| node.input(slot)).collect()),
        };
        let operands: Option<Vec<Option<u64>>> = operands
            .iter()
            .map(|input| match input {
                None => Some(None),
                Some(input) => found.get(input).map(|signature| Some(*signature)),
            })
            .collect();
        let (Some(mut operands), None) = (operands, node.subgraphs().next()) else { continue };
        let domain = if known.is_some() { "" } else { node.domain() };
        if !is_exact {
            while operands.last() == Some(&None) {
                operands.pop();
            }
        }
        for (slot, output) in node.outputs().iter().enumerate() {
            let Some(output) = output else { continue };
            let signature = hash(&|hasher| {
                (domain, op_type, &operands, slot).hash(hasher);
                if is_exact {
                    of_attributes(node, hasher);
                }
            });
            found.insert(*output, signature);
        }
    }
    found
}

fn of_tensor(tensor: &Tensor, hasher: &mut DefaultHasher) {
    (tensor.dtype().onnx(), tensor.shape(), tensor.bytes().as_ref()).hash(hasher);
}

fn of_attributes(node: &Node, hasher: &mut DefaultHasher) {
    let mut attributes: Vec<_> = node.attributes.iter().collect();
    attributes.sort_by(|a, b| a.name.cmp(&b.name));
    for attribute in attributes {
        attribute.name.hash(hasher);
        match &attribute.value {
            AttributeValue::Tensor(stored) => of_tensor(&stored.tensor, hasher),
            value => format!("{value:?}").hash(hasher),
        }
    }
}
