//! Which values of two models are meant to be the same: those of one name, and those computed the same way.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use optix_ir::{AttributeValue, DType, Model, Node, Tensor, Use, ValueId};

/// A value of the first model, its counterpart, and the name of the first.
pub struct Pair {
    pub a: ValueId,
    pub b: ValueId,
    pub name: String,
}

/// Pairs the values that the main graphs' nodes compute, in the first one's order, and counts those of the
/// first without a counterpart.
///
/// A value's counterpart has its name; else it is the one that is computed by the same operators from the
/// same inputs and constants, whatever the names. Where the second model quantizes a value that the first
/// does not, its counterpart is what comes out of the dequantizer: that is what the users of the value see.
pub fn pairs(a: &Model, b: &Model) -> (Vec<Pair>, usize) {
    let by_name: HashMap<&str, ValueId> = computed(b).map(|id| (b.value(id).name(), id)).collect();
    let names: Vec<(ValueId, Option<ValueId>)> =
        computed(a).map(|id| (id, by_name.get(a.value(id).name()).copied())).collect();
    // Constants are hashed for it: only where names leave something open.
    let signatures = names.iter().any(|(_, other)| other.is_none()).then(|| (signatures(a), unique(b)));
    let mut missing = 0;
    let mut pairs = Vec::new();
    for (value, other) in names {
        let same = || {
            let (own, others) = signatures.as_ref()?;
            others.get(own.get(&value)?).copied().flatten()
        };
        match other.or_else(same) {
            Some(other) => {
                let other = match behind_quantizer(a, value) {
                    None => behind_quantizer(b, other).unwrap_or(other),
                    Some(_) => other,
                };
                pairs.push(Pair { a: value, b: other, name: a.value(value).name().to_owned() });
            }
            None => missing += 1,
        }
    }
    (pairs, missing)
}

/// What the nodes of the main graph compute, in order.
fn computed(model: &Model) -> impl Iterator<Item = ValueId> + '_ {
    model.nodes_of(model.main()).flat_map(|node| model.node(node).outputs().iter().flatten().copied())
}

/// The dequantized form of a value whose only reader is a quantizer.
fn behind_quantizer(model: &Model, value: ValueId) -> Option<ValueId> {
    let only = |value: ValueId, op_type: &str| match model.value(value).uses() {
        [Use::Node(node, 0)] if model.node(*node).op_type == op_type => model.node(*node).output(0),
        _ => None,
    };
    only(only(value, "QuantizeLinear")?, "DequantizeLinear")
}

/// A model's values by what computes them; `None` where several are computed the same way.
fn unique(model: &Model) -> HashMap<u64, Option<ValueId>> {
    let mut found: HashMap<u64, Option<ValueId>> = HashMap::new();
    let own = signatures(model);
    for value in computed(model) {
        if let Some(signature) = own.get(&value) {
            found.entry(*signature).and_modify(|other| *other = None).or_insert(Some(value));
        }
    }
    found
}

/// Of each value a number that depends on how it is computed, down to inputs (by place) and constants (by
/// content). Nothing for values behind nodes with bodies.
fn signatures(model: &Model) -> HashMap<ValueId, u64> {
    let mut found: HashMap<ValueId, u64> = HashMap::new();
    let hash = |what: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        what(&mut hasher);
        hasher.finish()
    };
    for (index, info) in model.graph(model.main()).inputs().iter().enumerate() {
        found.insert(info.value, hash(&|hasher| ("input", index).hash(hasher)));
    }
    for value in model.values() {
        if let Some(tensor) = model.value(value).tensor() {
            found.entry(value).or_insert_with(|| hash(&|hasher| of_tensor(tensor, hasher)));
        }
    }
    for id in model.nodes_of(model.main()) {
        let node = model.node(id);
        let inputs: Option<Vec<Option<u64>>> = node
            .inputs()
            .iter()
            .map(|input| match input {
                None => Some(None),
                Some(input) => found.get(input).map(|signature| Some(*signature)),
            })
            .collect();
        let (Some(inputs), None) = (inputs, node.subgraphs().next()) else { continue };
        for (slot, output) in node.outputs().iter().enumerate() {
            let Some(output) = output else { continue };
            let signature = hash(&|hasher| {
                (node.domain(), &node.op_type, &inputs, slot).hash(hasher);
                of_attributes(node, hasher);
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

/// Whether values of these types can be compared number by number.
pub fn are_comparable(a: DType, b: DType) -> bool {
    let numbers = |dtype: DType| {
        dtype != DType::String && !matches!(dtype, DType::Complex64 | DType::Complex128) && !dtype.is_packed()
    };
    a == b && numbers(a) || a.is_float() && b.is_float() && numbers(a) && numbers(b)
}
