//! Sequences, optional values and strings.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, one, rank_only};
use crate::infer::dims::{self, Outcome, unknowns};
use crate::infer::fact::Fact;
use crate::types::{Dim, Shape, TensorType, Type};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("ConcatFromSequence", concat_from_sequence),
    ("Optional", optional),
    ("OptionalGetElement", get_element),
    ("OptionalHasElement", |_| one(Some(DType::Bool), Some(Shape::new()))),
    ("RegexFullMatch", |call| one(Some(DType::Bool), call.shape(0).cloned())),
    ("SequenceAt", sequence_at),
    ("SequenceConstruct", construct),
    ("SequenceEmpty", empty),
    ("SequenceErase", |call| Ok(vec![call.input(0).map(Fact::without_contents).unwrap_or_default()])),
    ("SequenceInsert", insert),
    ("SequenceLength", |_| one(Some(DType::I64), Some(Shape::new()))),
    ("SplitToSequence", split_to_sequence),
    ("StringConcat", string_concat),
    ("StringNormalizer", |call| Ok(vec![rank_only(Some(DType::String), call.rank(0).unwrap_or(1))])),
    ("StringSplit", string_split),
    ("TfIdfVectorizer", tf_idf),
];

fn sequence(element: Type) -> Vec<Fact> {
    vec![Fact::of_type(Type::Sequence(Box::new(element)))]
}

/// What the elements of a sequence have in common.
fn element(call: &Call<'_>, slot: usize) -> Option<Type> {
    match call.ty(slot)? {
        Type::Sequence(element) => Some((**element).clone()),
        _ => None,
    }
}

fn construct(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let joined =
        call.inputs.iter().flatten().map(|fact| fact.without_contents()).reduce(|all, next| all.join(&next));
    Ok(joined.and_then(|fact| fact.ty).map_or_else(Vec::new, sequence))
}

fn empty(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype_attribute("dtype").or(Some(DType::F32));
    Ok(sequence(Type::Tensor(TensorType { dtype, shape: None })))
}

fn insert(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let (Some(before), Some(added)) = (element(call, 0), call.ty(1)) else { return Ok(Vec::new()) };
    let joined = Fact::of_type(before).join(&Fact::of_type(added.clone()));
    Ok(joined.ty.map_or_else(Vec::new, sequence))
}

fn sequence_at(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    Ok(vec![Fact { ty: element(call, 0), ..Fact::default() }])
}

fn split_to_sequence(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let Some(shape) = call.shape(0) else {
        return Ok(sequence(Type::Tensor(TensorType { dtype, shape: None })));
    };
    let axis = call.axis(0, shape.len())?;
    let mut part: Vec<Option<Dim>> = shape.iter().cloned().map(Some).collect();
    part[axis] = match (call.has(1), call.scalar(1), call.rank(1)) {
        (false, ..) => (call.int("keepdims", 1) != 0).then_some(Dim::Fixed(1)),
        // Parts of one size: but the last one takes what is left.
        (true, Some(size), Some(0)) => match (size.constant(), shape[axis].fixed()) {
            (Some(size), Some(whole))
                if size > 0 && whole.is_multiple_of(usize::try_from(size).unwrap_or(usize::MAX)) =>
            {
                Some(dims::size(size, "the size of a part")?)
            }
            _ => Some(Dim::Unknown),
        },
        _ => {
            let sizes = call.integers(1).filter(|sizes| sizes.windows(2).all(|pair| pair[0] == pair[1]));
            let size = sizes.and_then(|sizes| sizes.first().copied());
            Some(size.map_or(Ok(Dim::Unknown), |size| dims::size(size, "the size of a part"))?)
        }
    };
    Ok(sequence(Type::Tensor(TensorType { dtype, shape: Some(part.into_iter().flatten().collect()) })))
}

fn concat_from_sequence(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(Type::Tensor(part)) = element(call, 0) else { return Ok(Vec::new()) };
    let Some(shape) = part.shape else { return one(part.dtype, None) };
    let mut result = shape;
    if call.flag("new_axis") {
        let axis = call.axis(0, result.len() + 1)?;
        result.insert(axis, Dim::Unknown);
    } else {
        let axis = call.axis(0, result.len())?;
        result[axis] = Dim::Unknown;
    }
    one(part.dtype, Some(result))
}

fn optional(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let ty = match (call.ty(0), call.node.attribute("type")) {
        (Some(ty), _) => Some(ty.clone()),
        (None, Some(crate::node::AttributeValue::Type(ty))) => Some(ty.clone()),
        _ => None,
    };
    Ok(ty.map_or_else(Vec::new, |ty| vec![Fact::of_type(Type::Optional(Box::new(ty)))]))
}

fn get_element(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let ty = call.ty(0).map(|ty| match ty {
        Type::Optional(element) => (**element).clone(),
        other => other.clone(),
    });
    Ok(vec![Fact { ty, ..Fact::default() }])
}

fn string_concat(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let shape = match (call.shape(0), call.shape(1)) {
        (Some(left), Some(right)) => Some(dims::broadcast_two(left, right)?),
        _ => None,
    };
    one(Some(DType::String), shape)
}

fn string_split(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let parts = call.shape(0).map(|shape| {
        let mut shape = shape.clone();
        shape.push(Dim::Unknown);
        shape
    });
    Ok(vec![Fact::tensor(Some(DType::String), parts), Fact::tensor(Some(DType::I64), call.shape(0).cloned())])
}

fn tf_idf(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let terms = call.node.ints("ngram_indexes").and_then(|indexes| indexes.iter().max()?.checked_add(1));
    let terms = terms.and_then(|terms| usize::try_from(terms).ok()).map_or(Dim::Unknown, Dim::Fixed);
    let shape = call.shape(0).map(|shape| match shape.as_slice() {
        [] | [_] => vec![terms],
        [batch, _] => vec![batch.clone(), terms],
        more => unknowns(more.len()),
    });
    one(Some(DType::F32), shape)
}
