//! Sequences and optionals.

use optix_ir::{DType, Node, Tensor};

use crate::call::{Call, OpError};
use crate::datum::{Datum, DatumCall, DatumKernel};
use crate::evaluate_limited;
use crate::movement::{Run, assemble, product};

/// Operators of the standard set on values that are not all tensors, and since which version.
pub(crate) static KERNELS: &[(&str, i64, DatumKernel)] = &[
    ("Identity", 1, identity),
    ("SequenceConstruct", 11, construct),
    ("SequenceEmpty", 11, empty),
    ("SequenceAt", 11, at),
    ("SequenceInsert", 11, insert),
    ("SequenceErase", 11, erase),
    ("SequenceLength", 11, length),
    ("SplitToSequence", 11, split),
    ("ConcatFromSequence", 11, concat),
    ("Optional", 15, optional),
    ("OptionalHasElement", 15, has_element),
    ("OptionalGetElement", 15, get_element),
];

type Outputs = Result<Vec<Datum>, OpError>;

fn one(datum: Datum) -> Outputs {
    Ok(vec![datum])
}

fn identity(call: &DatumCall<'_>) -> Outputs {
    one(call.input(0)?.clone())
}

fn construct(call: &DatumCall<'_>) -> Outputs {
    let elements = (0..call.inputs.len()).map(|slot| call.input(slot).cloned());
    one(Datum::Sequence(elements.collect::<Result<_, _>>()?))
}

fn empty(_: &DatumCall<'_>) -> Outputs {
    one(Datum::Sequence(Vec::new()))
}

/// A place in a sequence of `size`, counted from the end when negative.
fn place(call: &DatumCall<'_>, slot: usize, size: usize) -> Result<usize, OpError> {
    let given = call.integer(slot)?;
    let place = if given < 0 { given.saturating_add_unsigned(size as u64) } else { given };
    usize::try_from(place)
        .map_err(|_| call.invalid(format!("position {given} is outside a sequence of {size} elements")))
}

fn at(call: &DatumCall<'_>) -> Outputs {
    let elements = call.sequence(0)?;
    let place = place(call, 1, elements.len())?;
    let element = elements.get(place).ok_or_else(|| {
        call.invalid(format!("position {place} is outside a sequence of {} elements", elements.len()))
    })?;
    one(element.clone())
}

fn insert(call: &DatumCall<'_>) -> Outputs {
    let mut elements = call.sequence(0)?.to_vec();
    let place = match call.optional(2) {
        Some(_) => place(call, 2, elements.len())?,
        None => elements.len(),
    };
    if place > elements.len() {
        return Err(call.invalid(format!("position {place} is behind a sequence of {}", elements.len())));
    }
    elements.insert(place, call.input(1)?.clone());
    one(Datum::Sequence(elements))
}

fn erase(call: &DatumCall<'_>) -> Outputs {
    let mut elements = call.sequence(0)?.to_vec();
    let place = match call.optional(1) {
        Some(_) => place(call, 1, elements.len())?,
        None => elements.len().wrapping_sub(1),
    };
    if place >= elements.len() {
        return Err(call.invalid(format!("nothing to erase there: the sequence has {}", elements.len())));
    }
    elements.remove(place);
    one(Datum::Sequence(elements))
}

fn length(call: &DatumCall<'_>) -> Outputs {
    one(Tensor::scalar(call.sequence(0)?.len() as i64).into())
}

fn split(call: &DatumCall<'_>) -> Outputs {
    let data = call.tensor(0)?;
    let inner = Call::new(call.node, call.opset, &[]);
    let axis = inner.axis(call.node.int("axis").unwrap_or(0), data.rank())?;
    let size = data.shape()[axis];
    let mut drop_axis = false;
    let parts: Vec<usize> = match call.optional(1) {
        None => {
            drop_axis = call.node.int("keepdims").unwrap_or(1) == 0;
            vec![1; size]
        }
        Some(_) => {
            let split = call.tensor(1)?;
            let wanted = split.to_i64s().map_err(|error| inner.tensor_error(error))?;
            let positive = |&part: &i64| usize::try_from(part).ok().filter(|&part| part > 0);
            let parts: Option<Vec<usize>> = wanted.iter().map(positive).collect();
            match (parts, split.rank()) {
                (Some(parts), 0) => {
                    let part = parts[0];
                    (0..size.div_ceil(part)).map(|index| part.min(size - index * part)).collect()
                }
                (Some(parts), 1) if parts.iter().try_fold(0usize, |a, &b| a.checked_add(b)) == Some(size) => {
                    parts
                }
                _ => {
                    return Err(call.invalid(format!(
                        "parts {wanted:?} do not divide {size} elements along axis {axis}"
                    )));
                }
            }
        }
    };
    let mut start = 0;
    let mut elements = Vec::with_capacity(parts.len());
    for part in parts {
        let mut element = slice(&inner, data, axis, start, part)?;
        if drop_axis {
            element = without_axis(&inner, &element, axis)?;
        }
        elements.push(element.into());
        start += part;
    }
    one(Datum::Sequence(elements))
}

fn concat(call: &DatumCall<'_>) -> Outputs {
    let axis = call.node.int("axis").ok_or_else(|| call.invalid("it has no axis"))?;
    let tensors: Option<Vec<&Tensor>> = call.sequence(0)?.iter().map(Datum::as_tensor).collect();
    let tensors = tensors.ok_or_else(|| call.invalid("the sequence holds something else than tensors"))?;
    if tensors.is_empty() {
        return Err(call.invalid("an empty sequence has no shape to concatenate"));
    }
    let inner = Call::new(call.node, call.opset, &[]);
    if call.node.int("new_axis").unwrap_or(0) != 0 {
        let axis = inner.axis(axis, tensors[0].rank() + 1)?;
        return one(stack(&inner, &tensors, axis)?.into());
    }
    let inputs: Vec<Option<&Tensor>> = tensors.into_iter().map(Some).collect();
    let node = Node::new("Concat", []).with("axis", axis);
    let mut outputs = evaluate_limited(&node, call.opset, &inputs, inner.limit)?;
    one(outputs.remove(0).into())
}

fn optional(call: &DatumCall<'_>) -> Outputs {
    one(Datum::Optional(call.optional(0).cloned().map(Box::new)))
}

fn has_element(call: &DatumCall<'_>) -> Outputs {
    let has = !matches!(call.optional(0), None | Some(Datum::Optional(None)));
    one(Tensor::from_bools([], &[has]).into())
}

fn get_element(call: &DatumCall<'_>) -> Outputs {
    match call.input(0)? {
        Datum::Optional(Some(inner)) => one((**inner).clone()),
        Datum::Optional(None) => Err(call.invalid("the optional value is empty")),
        other => one(other.clone()),
    }
}

/// `length` elements along an axis, from `start` on.
pub(crate) fn slice(
    call: &Call<'_>,
    data: &Tensor,
    axis: usize,
    start: usize,
    length: usize,
) -> Result<Tensor, OpError> {
    let mut shape = data.shape().to_vec();
    let size = std::mem::replace(&mut shape[axis], length);
    let inner = product(&data.shape()[axis + 1..]);
    let outer = if data.is_empty() { 0 } else { product(&data.shape()[..axis]) };
    let runs =
        (0..outer).map(|row| Run { source: 0, start: (row * size + start) * inner, length: length * inner });
    assemble(call, &[data], shape, runs)
}

/// The same elements without an axis of size one.
pub(crate) fn without_axis(call: &Call<'_>, data: &Tensor, axis: usize) -> Result<Tensor, OpError> {
    let mut shape = data.shape().to_vec();
    shape.remove(axis);
    data.reshaped(shape).map_err(|error| call.tensor_error(error))
}

/// Tensors of one shape put behind each other along a new axis.
pub(crate) fn stack(call: &Call<'_>, tensors: &[&Tensor], axis: usize) -> Result<Tensor, OpError> {
    let first = *tensors.first().ok_or_else(|| call.invalid("there is nothing to stack"))?;
    if let Some(other) = tensors.iter().find(|tensor| {
        (tensor.dtype(), tensor.shape()) != (first.dtype(), first.shape()) || axis > tensor.rank()
    }) {
        return Err(call.invalid(format!(
            "{}{:?} and {}{:?} cannot be stacked",
            first.dtype(),
            first.shape(),
            other.dtype(),
            other.shape()
        )));
    }
    let mut shape = first.shape().to_vec();
    shape.insert(axis, tensors.len());
    call.check_size(first.dtype(), &shape)?;
    let inner = product(&first.shape()[axis..]);
    let outer = if first.is_empty() { 0 } else { product(&first.shape()[..axis]) };
    let runs = (0..outer).flat_map(|row| {
        (0..tensors.len()).map(move |source| Run { source, start: row * inner, length: inner })
    });
    assemble(call, tensors, shape, runs)
}

/// An empty tensor of a type.
pub(crate) fn nothing(dtype: DType, shape: Vec<usize>) -> Option<Tensor> {
    Tensor::zeros(dtype, shape).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(node: Node, inputs: &[Datum]) -> Outputs {
        let inputs: Vec<Option<&Datum>> = inputs.iter().map(Some).collect();
        crate::evaluate_datum(&node, 18, &inputs)
    }

    #[test]
    fn positions_are_checked() {
        let sequence = Datum::Sequence(vec![Tensor::scalar(1f32).into(), Tensor::scalar(2f32).into()]);
        for (position, found) in [(0, Some(1.0)), (-1, Some(2.0)), (2, None), (-3, None), (i64::MIN, None)] {
            let result =
                run(Node::new("SequenceAt", []), &[sequence.clone(), Tensor::scalar(position).into()]);
            assert_eq!(
                result.ok().map(|out| out[0].as_tensor().unwrap().single().unwrap()),
                found,
                "{position}"
            );
        }
        assert!(run(Node::new("SequenceErase", []), &[Datum::Sequence(vec![])]).is_err());
        let far = [sequence.clone(), Tensor::scalar(1f32).into(), Tensor::scalar(3i64).into()];
        assert!(run(Node::new("SequenceInsert", []), &far).is_err());
        assert!(
            run(Node::new("ConcatFromSequence", []).with("axis", 0), &[Datum::Sequence(vec![])]).is_err()
        );
        assert!(run(Node::new("OptionalGetElement", []), &[Datum::Optional(None)]).is_err());
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let data: Datum = Tensor::from_vec([5], vec![0f32, 1.0, 2.0, 3.0, 4.0]).into();
        let split = |parts: Tensor| run(Node::new("SplitToSequence", []), &[data.clone(), parts.into()]);
        for parts in [vec![2, 2], vec![5, 1], vec![-1, 6], vec![i64::MAX, i64::MAX]] {
            assert!(split(Tensor::from_i64s(&parts)).is_err(), "{parts:?}");
        }
        assert!(split(Tensor::scalar(0i64)).is_err());
        let parts = split(Tensor::scalar(2i64)).unwrap();
        assert!(matches!(&parts[0], Datum::Sequence(parts) if parts.len() == 3));
    }
}
