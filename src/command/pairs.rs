//! Which values of two models are meant to be the same: those of one name, those computed the same way, and
//! those at the same place of the same structure.

use std::collections::{HashMap, HashSet};

use optix_ir::{DType, Model, Node, Position, Use, ValueId};

use super::signatures::{Likeness, folded, is_transparent, output_quantizer, signatures};

/// A value of the first model, its counterpart, and the name of the first.
pub struct Pair {
    pub a: ValueId,
    pub b: ValueId,
    pub name: String,
}

/// Ends of names that rewrites give to other forms of a value.
const FORMS: &[&str] = &["_dequantized", "_DequantizeLinear_Output", "_quantized", "_QuantizeLinear_Output"];

/// Pairs the values that the main graphs' nodes compute, in the first one's order, and counts those of the
/// first without a counterpart. Where a counterpart is integers that stand for floats, `b` gets a node that
/// dequantizes them.
///
/// A value's counterpart has its name, or that name with an end that says it is quantized or dequantized; else
/// it is the one that is computed by the same operators from the same inputs and constants; else the one at
/// its place in the same structure, quantizers, casts and the numbers of constants left aside. Where the
/// second model quantizes a value that the first does not, its counterpart is what comes out of the
/// dequantizer: that is what the users of the value see.
pub fn pairs(a: &Model, b: &mut Model) -> (Vec<Pair>, usize) {
    let found = counterparts(a, b);
    let missing = found.iter().filter(|(_, other)| other.is_none()).count();
    let pairs = found.into_iter().filter_map(|(value, other)| {
        let other = match behind_quantizer(a, value) {
            None => behind_quantizer(b, other?).or(other)?,
            Some(_) => other?,
        };
        let other = dequantized(a, value, b, other).unwrap_or(other);
        Some(Pair { a: value, b: other, name: a.value(value).name().to_owned() })
    });
    let pairs = pairs.collect();
    (pairs, missing)
}

/// What a name is another form of: a number at its end makes it unique, and says nothing.
fn base<'n>(name: &'n str, form: &str) -> Option<&'n str> {
    let numbered = name.rsplit_once('_').filter(|(_, end)| end.bytes().all(|byte| byte.is_ascii_digit()));
    name.strip_suffix(form).or_else(|| numbered?.0.strip_suffix(form))
}

/// The counterpart of each value that the first model computes.
fn counterparts(a: &Model, b: &Model) -> Vec<(ValueId, Option<ValueId>)> {
    let by_name: HashMap<&str, ValueId> = computed(b).map(|id| (b.value(id).name(), id)).collect();
    let mut forms: HashMap<&str, ValueId> = HashMap::new();
    for form in FORMS {
        for id in computed(b) {
            if let Some(base) = base(b.value(id).name(), form) {
                forms.entry(base).or_insert(id);
            }
        }
    }
    let named = |name: &str| by_name.get(name).or_else(|| forms.get(name)).copied();
    let mut found: Vec<(ValueId, Option<ValueId>)> =
        computed(a).map(|id| (id, named(a.value(id).name()))).collect();
    // Constants are hashed for it: only where names leave something open.
    for likeness in [Likeness::Exact, Likeness::Structure] {
        if found.iter().all(|(_, other)| other.is_some()) {
            break;
        }
        let (own, others) = (alike(a, likeness), alike(b, likeness));
        let taken: HashSet<ValueId> = found.iter().filter_map(|(_, other)| *other).collect();
        let places: HashMap<ValueId, (u64, usize)> = own
            .iter()
            .flat_map(|(&signature, values)| {
                values.iter().enumerate().map(move |(place, &value)| (value, (signature, place)))
            })
            .collect();
        for (value, other) in found.iter_mut().filter(|(_, other)| other.is_none()) {
            let Some((signature, place)) = places.get(value) else { continue };
            let (Some(values), Some(alike)) = (own.get(signature), others.get(signature)) else { continue };
            // As many on both sides, in the same order: else it is a guess which of them it is. Of values
            // computed the same way from the same constants only one is known to be meant.
            let is_clear = match likeness {
                Likeness::Exact => alike.len() == 1,
                Likeness::Structure => alike.len() == values.len(),
            };
            *other = alike.get(if alike.len() == 1 { 0 } else { *place }).copied();
            *other =
                other.filter(|other| is_clear && !(likeness == Likeness::Structure && taken.contains(other)));
        }
    }
    found
}

/// The values that a model computes, by signature and in order; forms of other values left out where the
/// structure looks through them.
fn alike(model: &Model, likeness: Likeness) -> HashMap<u64, Vec<ValueId>> {
    let own = signatures(model, likeness);
    let mut found: HashMap<u64, Vec<ValueId>> = HashMap::new();
    for value in computed(model) {
        let producer = model.value(value).producer().map(|(id, _)| model.node(id));
        // What an activation function alone reads counts as one with its result.
        let is_inner = || match model.value(value).uses() {
            [Use::Node(reader, 0)] => folded(model, model.node(*reader)).is_some(),
            _ => false,
        };
        let is_form = likeness == Likeness::Structure && (producer.is_some_and(is_transparent) || is_inner());
        if let Some(&signature) = own.get(&value).filter(|_| !is_form) {
            found.entry(signature).or_default().push(value);
        }
    }
    found
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

/// Where `b` has integers for floats of `a`: the floats they stand for, which a new node of `b` computes.
fn dequantized(a: &Model, value: ValueId, b: &mut Model, other: ValueId) -> Option<ValueId> {
    let dtype = |model: &Model, value: ValueId| model.value(value).ty.as_ref().and_then(|ty| ty.dtype());
    let is_float = dtype(a, value).is_none_or(DType::is_float);
    let (id, _) = b.value(other).producer()?;
    let node = b.node(id);
    let [scale, zero_point] = output_quantizer(node)?;
    let scale = node.input(scale)?;
    if !is_float || dtype(b, other).is_some_and(DType::is_float) {
        return None;
    }
    let inputs = vec![Some(other), Some(scale), node.input(zero_point)];
    let mut new = Node::with_optional_inputs("DequantizeLinear", inputs);
    // Integers of a quantizer along an axis are dequantized along it.
    for attribute in b.node(id).attributes.iter().filter(|_| b.node(id).op_type == "QuantizeLinear") {
        if matches!(attribute.name.as_str(), "axis" | "block_size") {
            new.attributes.push(attribute.clone());
        }
    }
    let main = b.main();
    Some(b.add_node(main, Position::After(id), new, "compared").1)
}

/// Whether values of these types can be compared number by number.
pub fn are_comparable(a: DType, b: DType) -> bool {
    let numbers = |dtype: DType| {
        dtype != DType::String && !matches!(dtype, DType::Complex64 | DType::Complex128) && !dtype.is_packed()
    };
    a == b && numbers(a) || a.is_float() && b.is_float() && numbers(a) && numbers(b)
}
