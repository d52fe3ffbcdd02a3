//! Operators that make tensors from little: constants, ranges, random numbers, windows.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, one, rank_only};
use crate::infer::dims::{self, Outcome, wrong};
use crate::infer::expr::Expr;
use crate::infer::fact::{Fact, MAX_CONTENTS};
use crate::node::AttributeValue;
use crate::tensor::Tensor;
use crate::types::{Dim, Shape, TensorType, Type};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("BlackmanWindow", window),
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("EyeLike", |call| one(call.dtype_attribute("dtype").or(call.dtype(0)), call.shape(0).cloned())),
    ("HammingWindow", window),
    ("HannWindow", window),
    ("ImageDecoder", |_| one(Some(DType::U8), Some(vec![Dim::Unknown, Dim::Unknown, Dim::Unknown]))),
    ("Multinomial", multinomial),
    ("RandomNormal", random),
    ("RandomNormalLike", |call| one(call.dtype_attribute("dtype").or(call.dtype(0)), call.shape(0).cloned())),
    ("RandomUniform", random),
    ("RandomUniformLike", |call| {
        one(call.dtype_attribute("dtype").or(call.dtype(0)), call.shape(0).cloned())
    }),
    ("Range", range),
];

fn constant(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let held = call.node.attributes.iter().find(|attribute| {
        matches!(
            attribute.name.as_str(),
            "value"
                | "sparse_value"
                | "value_int"
                | "value_ints"
                | "value_float"
                | "value_floats"
                | "value_string"
                | "value_strings"
        )
    });
    let tensor = match held.map(|attribute| &attribute.value) {
        Some(AttributeValue::Tensor(stored)) => stored.tensor.clone(),
        Some(AttributeValue::Int(value)) => Tensor::scalar(*value),
        Some(AttributeValue::Ints(values)) => Tensor::from_i64s(values),
        Some(AttributeValue::Float(value)) => Tensor::scalar(*value),
        Some(AttributeValue::Floats(values)) => Tensor::from_vec(vec![values.len()], values.clone()),
        Some(AttributeValue::String(_)) => return one(Some(DType::String), Some(Shape::new())),
        Some(AttributeValue::Strings(values)) => {
            return one(Some(DType::String), Some(vec![Dim::Fixed(values.len())]));
        }
        Some(AttributeValue::SparseTensor(sparse)) => {
            return Ok(vec![Fact::of_type(Type::Tensor(TensorType {
                dtype: Some(sparse.values.tensor.dtype()),
                shape: Some(sparse.shape.iter().map(|&size| Dim::Fixed(size)).collect()),
            }))]);
        }
        _ => return wrong("a constant without a value"),
    };
    Ok(vec![Fact::constant(&tensor)])
}

fn constant_of_shape(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let value = call.node.tensor("value");
    let dtype = value.map_or(DType::F32, Tensor::dtype);
    let Some(sizes) = call.contents(0) else {
        let rank =
            call.shape(0).and_then(|shape| shape.first()?.fixed()).filter(|&rank| rank <= MAX_CONTENTS);
        return Ok(vec![rank.map_or(Fact::tensor(Some(dtype), None), |rank| rank_only(Some(dtype), rank))]);
    };
    let mut shape = Shape::new();
    for size in sizes {
        match size {
            Some(size) if size.constant().is_some_and(|size| size < 0) => {
                return wrong(format!("a size is negative: {size}"));
            }
            size => shape.push(size.as_ref().map_or(Dim::Unknown, Expr::dim)),
        }
    }
    let element = match value {
        Some(value) => value.to_i64s().ok().and_then(|elements| elements.first().copied()),
        None => None,
    };
    let fixed: Option<Vec<usize>> = shape.iter().map(Dim::fixed).collect();
    let count =
        fixed.and_then(|sizes| crate::tensor::element_count(&sizes)).filter(|&count| count <= MAX_CONTENTS);
    let contents = element.zip(count).map(|(element, count)| vec![Some(Expr::from(element)); count]);
    Ok(vec![Fact::integers(Some(dtype), shape, contents)])
}

fn range(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0).or(call.dtype(1)).or(call.dtype(2));
    if let (Some(start), Some(limit), Some(delta)) = (call.scalar(0), call.scalar(1), call.scalar(2)) {
        let Some(delta) = delta.constant() else { return Ok(vec![rank_only(dtype, 1)]) };
        let distance = if delta < 0 { start.sub(&limit) } else { limit.sub(&start) };
        let (Some(distance), Some(step)) = (distance, delta.checked_abs()) else {
            return Ok(vec![rank_only(dtype, 1)]);
        };
        if step == 0 {
            return wrong("the step of the range is 0");
        }
        let length = match (distance.constant(), distance.least()) {
            (Some(distance), _) if distance <= 0 => Some(Expr::from(0)),
            (Some(distance), _) => Some(Expr::from((distance - 1) / step + 1)),
            (None, Some(least)) if least >= 0 => distance.ceil_div(step),
            // It might be negative, and the range then empty.
            _ => None,
        };
        let contents =
            length.as_ref().and_then(Expr::constant).filter(|&length| length <= MAX_CONTENTS as i64);
        let contents = contents.map(|length| {
            (0..length).map(|index| start.add(&Expr::from(index.checked_mul(delta)?))).collect()
        });
        return Ok(vec![Fact::integers(
            dtype,
            vec![length.map_or(Dim::Unknown, |length| length.dim())],
            contents,
        )]);
    }
    let number = |slot: usize| call.floats(slot).and_then(|values| values.first().copied());
    if let (Some(start), Some(limit), Some(delta)) = (number(0), number(1), number(2)) {
        let length = ((limit - start) / delta).ceil().max(0.0);
        if delta == 0.0 || !length.is_finite() {
            return wrong(format!("a range from {start} to {limit} by {delta} has no end"));
        }
        // Beyond this the quotient is no longer exact, and no such range is meant.
        if length < 1e15 {
            return one(dtype, Some(vec![Dim::Fixed(length as usize)]));
        }
    }
    Ok(vec![rank_only(dtype, 1)])
}

fn random(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype_attribute("dtype").or(Some(DType::F32));
    let Some(sizes) = call.node.ints("shape") else { return one(dtype, None) };
    let shape: Outcome<Shape> = sizes.iter().map(|&size| dims::size(size, "a size in `shape`")).collect();
    one(dtype, Some(shape?))
}

fn multinomial(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let batch = call.shape(0).and_then(|shape| shape.first()).cloned().unwrap_or(Dim::Unknown);
    let samples = dims::size(call.int("sample_size", 1), "`sample_size`")?;
    one(call.dtype_attribute("dtype").or(Some(DType::I32)), Some(vec![batch, samples]))
}

fn window(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype_attribute("output_datatype").or(Some(DType::F32));
    one(dtype, Some(vec![call.scalar(0).map_or(Dim::Unknown, |size| size.dim())]))
}
