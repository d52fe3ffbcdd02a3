//! Elements put in order: TopK, Unique.

use std::cmp::Ordering;

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{Run, assemble, integers, product, strides};
use crate::numbers::Numbers;

/// The kernels of this file.
pub(crate) static KERNELS: &[KernelSpec] =
    &[KernelSpec::onnx("TopK", 1, top_k), KernelSpec::onnx("Unique", 11, unique)];

type Outputs = Result<Vec<Tensor>, OpError>;

/// Elements that can be compared.
enum Keys<'a> {
    Floats(Vec<f64>),
    Integers(Vec<i64>),
    Unsigned(Vec<u64>),
    Strings(Vec<&'a [u8]>),
}

impl<'a> Keys<'a> {
    fn of(call: &Call<'_>, tensor: &'a Tensor) -> Result<Keys<'a>, OpError> {
        if tensor.dtype() == DType::String {
            return tensor.strings().map(Keys::Strings).map_err(|error| call.tensor_error(error));
        }
        Ok(match Numbers::of(call, tensor)? {
            Numbers::Floats(values) => Keys::Floats(values),
            Numbers::Integers(values) if tensor.dtype() == DType::U64 => {
                Keys::Unsigned(values.into_iter().map(|value| value as u64).collect())
            }
            Numbers::Integers(values) => Keys::Integers(values),
        })
    }

    /// Compares two elements. NaN is the greatest number and equal to itself; the zeros are equal.
    fn compare(&self, a: usize, b: usize) -> Ordering {
        match self {
            Keys::Floats(values) => {
                let (a, b) = (values[a], values[b]);
                a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
            }
            Keys::Integers(values) => values[a].cmp(&values[b]),
            Keys::Unsigned(values) => values[a].cmp(&values[b]),
            Keys::Strings(values) => values[a].cmp(values[b]),
        }
    }
}

fn top_k(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let axis = call.axis(call.node.int("axis").unwrap_or(-1), data.rank())?;
    let wanted = match call.opset {
        ..10 => call.node.int("k").ok_or_else(|| call.invalid("it has no k"))?,
        _ => *integers(call, 1)?.first().ok_or_else(|| call.invalid("k is empty"))?,
    };
    let size = data.shape()[axis];
    let count = usize::try_from(wanted).ok().filter(|&count| count <= size).ok_or_else(|| {
        call.invalid(format!("the first {wanted} of {size} elements along axis {axis} do not exist"))
    })?;
    let largest = call.node.int("largest").unwrap_or(1) != 0;
    let keys = Keys::of(call, data)?;
    let mut shape = data.shape().to_vec();
    shape[axis] = count;
    call.check_size(DType::U64, &shape)?;
    let step = strides(data.shape())[axis];
    let result_step = strides(&shape)[axis];
    let mut chosen = vec![(0usize, 0i64); product(&shape)];
    // Each line along the axis, by its first element in the data and in the result.
    let rows = if data.is_empty() { 0 } else { data.len() / (size * step) };
    for line in 0..rows * step {
        let (row, column) = (line / step, line % step);
        let first = row * size * step + column;
        let mut order: Vec<usize> = (0..size).collect();
        // Equal elements stay in order of their indices: the sort is stable.
        order.sort_by(|&a, &b| {
            let (a, b) = (first + a * step, first + b * step);
            if largest { keys.compare(b, a) } else { keys.compare(a, b) }
        });
        let result_first = row * count * result_step + column;
        for (rank, at) in order.into_iter().take(count).enumerate() {
            chosen[result_first + rank * result_step] = (first + at * step, at as i64);
        }
    }
    let values = assemble(call, &[data], shape.clone(), chosen.iter().map(|&(place, _)| Run::one(0, place)))?;
    let indices: Vec<i64> = chosen.iter().map(|&(_, at)| at).collect();
    Ok(vec![values, Tensor::from_vec(shape, indices)])
}

fn unique(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let keys = Keys::of(call, data)?;
    // Slices along the axis: each of `outer` rows holds `inner` elements of slice after slice.
    let (outer, size, inner, axis) = match call.node.int("axis") {
        Some(axis) => {
            let axis = call.axis(axis, data.rank())?;
            (
                product(&data.shape()[..axis]),
                data.shape()[axis],
                product(&data.shape()[axis + 1..]),
                Some(axis),
            )
        }
        None => (1, data.len(), 1, None),
    };
    call.check_size(DType::U64, &[size])?;
    let elements = if data.is_empty() { 0 } else { outer * inner };
    let element = |slice: usize, at: usize| at / inner * size * inner + slice * inner + at % inner;
    let compare = |a: usize, b: usize| {
        let unequal = |at| Some(keys.compare(element(a, at), element(b, at))).filter(|order| order.is_ne());
        (0..elements).find_map(unequal).unwrap_or(Ordering::Equal)
    };
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&a, &b| compare(a, b));
    // Groups of equal slices, each in order of appearance.
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for slice in order {
        match groups.last_mut() {
            Some(group) if compare(group[0], slice).is_eq() => group.push(slice),
            _ => groups.push(vec![slice]),
        }
    }
    if call.node.int("sorted").unwrap_or(1) == 0 {
        groups.sort_by_key(|group| group[0]);
    }
    let mut inverse = vec![0i64; size];
    for (number, group) in groups.iter().enumerate() {
        group.iter().for_each(|&slice| inverse[slice] = number as i64);
    }
    let mut shape = data.shape().to_vec();
    match axis {
        Some(axis) => shape[axis] = groups.len(),
        None => shape = vec![groups.len()],
    }
    let rows = if elements == 0 { 0 } else { outer };
    let runs = (0..rows).flat_map(|row| {
        let run = move |group: &Vec<usize>| Run {
            source: 0,
            start: (row * size + group[0]) * inner,
            length: inner,
        };
        groups.iter().map(run)
    });
    let values = assemble(call, &[data], shape, runs)?;
    let first: Vec<i64> = groups.iter().map(|group| group[0] as i64).collect();
    let counts: Vec<i64> = groups.iter().map(|group| group.len() as i64).collect();
    Ok(vec![values, Tensor::from_i64s(&first), Tensor::from_i64s(&inverse), Tensor::from_i64s(&counts)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, inputs: &[&Tensor]) -> Outputs {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|&tensor| Some(tensor)).collect();
        crate::evaluate_limited(node, 18, &inputs, 1 << 20)
    }

    #[test]
    fn equal_elements_keep_their_order() {
        let data = Tensor::from_vec([5], vec![1f32, f32::NAN, 3.0, 1.0, 3.0]);
        let k = Tensor::from_i64s(&[4]);
        let largest = run(&Node::new("TopK", []), &[&data, &k]).unwrap();
        assert_eq!(largest[1].to_i64s().unwrap(), [1, 2, 4, 0]);
        let least = run(&Node::new("TopK", []).with("largest", 0), &[&data, &k]).unwrap();
        assert_eq!(least[1].to_i64s().unwrap(), [0, 3, 2, 4]);
    }

    #[test]
    fn strings_are_made_unique() {
        let data = Tensor::from_strings([4], &["b", "a", "b", "c"]);
        let result = run(&Node::new("Unique", []).with("sorted", 0), &[&data]).unwrap();
        assert_eq!(result[0].strings().unwrap(), [b"b", b"a", b"c"]);
        assert_eq!(result[2].to_i64s().unwrap(), [0, 1, 0, 2]);
        assert_eq!(result[3].to_i64s().unwrap(), [2, 1, 1]);
    }

    #[test]
    fn hostile_values_are_refused() {
        let data = Tensor::from_vec([2], vec![0f32; 2]);
        for k in [3, -1, i64::MAX] {
            assert!(run(&Node::new("TopK", []), &[&data, &Tensor::from_i64s(&[k])]).is_err(), "{k}");
        }
        assert!(run(&Node::new("TopK", []), &[&Tensor::scalar(1f32), &Tensor::from_i64s(&[1])]).is_err());
        assert!(run(&Node::new("Unique", []).with("axis", 1), &[&data]).is_err());
        let empty = Tensor::zeros(DType::F32, [0, 3]).unwrap();
        assert_eq!(run(&Node::new("Unique", []), &[&empty]).unwrap()[0].shape(), [0]);
        let k = Tensor::from_i64s(&[0]);
        assert_eq!(run(&Node::new("TopK", []), &[&empty, &k]).unwrap()[0].shape(), [0, 0]);
    }
}
