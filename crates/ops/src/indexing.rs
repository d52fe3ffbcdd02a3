//! Elements chosen and replaced by index: Gather, GatherElements, GatherND, Scatter, ScatterElements,
//! ScatterND, Compress, OneHot, NonZero.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{Run, assemble, index, integers, product, strides};
use crate::numbers::Numbers;

/// The kernels of this file.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Compress", 9, compress),
    KernelSpec::onnx("Gather", 1, gather),
    KernelSpec::onnx("GatherElements", 11, gather_elements),
    KernelSpec::onnx("GatherND", 11, gather_nd),
    KernelSpec::onnx("NonZero", 9, non_zero),
    KernelSpec::onnx("OneHot", 9, one_hot),
    KernelSpec::onnx("Scatter", 9, scatter_elements),
    KernelSpec::onnx("ScatterElements", 11, scatter_elements),
    KernelSpec::onnx("ScatterND", 11, scatter_nd),
];

type Outputs = Result<Vec<Tensor>, OpError>;

fn gather(call: &Call<'_>) -> Outputs {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(call.node.int("axis").unwrap_or(0), data.rank())?;
    let size = data.shape()[axis];
    let chosen: Vec<usize> =
        integers(call, 1)?.into_iter().map(|at| index(call, at, size)).collect::<Result<_, _>>()?;
    let (before, after) = (&data.shape()[..axis], &data.shape()[axis + 1..]);
    let shape = [before, indices.shape(), after].concat();
    let length = product(after);
    let outer = if length == 0 || chosen.is_empty() { 0 } else { product(before) };
    let runs = (0..outer).flat_map(|row| {
        chosen.iter().map(move |at| Run { source: 0, start: (row * size + at) * length, length })
    });
    Ok(vec![assemble(call, &[data], shape, runs)?])
}

/// Checks that indices lie within the data beside the axis they index.
fn check_beside(call: &Call<'_>, data: &Tensor, indices: &Tensor, axis: usize) -> Result<(), OpError> {
    let fits = indices.rank() == data.rank()
        && (0..data.rank()).all(|other| other == axis || indices.shape()[other] <= data.shape()[other]);
    if fits {
        return Ok(());
    }
    Err(call.invalid(format!("indices of shape {:?} for data of shape {:?}", indices.shape(), data.shape())))
}

/// For each index, in row-major order, the place of the element it names.
fn element_places(
    call: &Call<'_>,
    data: &Tensor,
    indices: &Tensor,
    values: &[i64],
    axis: usize,
) -> Result<Vec<usize>, OpError> {
    check_beside(call, data, indices, axis)?;
    let (from, to) = (strides(data.shape()), strides(indices.shape()));
    let place = |(at, &value): (usize, &i64)| {
        let chosen = index(call, value, data.shape()[axis])?;
        let coordinate = |other: usize| at / to[other] % indices.shape()[other];
        let beside = (0..data.rank()).filter(|&other| other != axis);
        Ok(beside.map(|other| coordinate(other) * from[other]).sum::<usize>() + chosen * from[axis])
    };
    values.iter().enumerate().map(place).collect()
}

fn gather_elements(call: &Call<'_>) -> Outputs {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(call.node.int("axis").unwrap_or(0), data.rank())?;
    let places = element_places(call, data, indices, &integers(call, 1)?, axis)?;
    let runs = places.into_iter().map(|place| Run::one(0, place));
    Ok(vec![assemble(call, &[data], indices.shape().to_vec(), runs)?])
}

/// The places of the slices that rows of an index tensor name, and the length of a slice. `batch` leading
/// axes are common to data and indices.
fn slice_places(
    call: &Call<'_>,
    data: &Tensor,
    indices: &Tensor,
    values: &[i64],
    batch: usize,
) -> Result<(Vec<usize>, usize), OpError> {
    let refused = || {
        let what = format!("indices of shape {:?} for data of shape {:?}", indices.shape(), data.shape());
        call.invalid(what)
    };
    let depth = *indices.shape().last().ok_or_else(refused)?;
    let fits = batch < indices.rank()
        && batch.checked_add(depth).is_some_and(|used| used <= data.rank())
        && indices.shape()[..batch] == data.shape()[..batch];
    if !fits {
        return Err(refused());
    }
    let steps = strides(data.shape());
    let length = product(&data.shape()[batch + depth..]);
    let rows = product(&indices.shape()[..indices.rank() - 1]);
    let rows_a_batch = product(&indices.shape()[batch..indices.rank() - 1]).max(1);
    call.check_size(DType::U64, &[rows])?;
    let whole = product(&data.shape()[batch..]);
    let place = |row: usize| {
        let mut place = row / rows_a_batch * whole;
        for (at, &value) in values[row * depth..][..depth].iter().enumerate() {
            place += index(call, value, data.shape()[batch + at])? * steps[batch + at];
        }
        Ok(place)
    };
    Ok(((0..rows).map(place).collect::<Result<_, _>>()?, length))
}

fn gather_nd(call: &Call<'_>) -> Outputs {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let batch = call.node.int("batch_dims").unwrap_or(0);
    let batch = usize::try_from(batch).map_err(|_| call.invalid(format!("{batch} batch axes")))?;
    let (places, length) = slice_places(call, data, indices, &integers(call, 1)?, batch)?;
    let depth = indices.shape()[indices.rank() - 1];
    let shape = [&indices.shape()[..indices.rank() - 1], &data.shape()[batch + depth..]].concat();
    let runs = places.into_iter().map(|start| Run { source: 0, start, length });
    Ok(vec![assemble(call, &[data], shape, runs)?])
}

/// Replaces elements of `data`: those at `places` by the elements of `updates` in order, one after the
/// other, each joined with what is there by the node's reduction.
fn replaced(call: &Call<'_>, data: &Tensor, updates: &Tensor, places: &[usize]) -> Outputs {
    let reduction = call.node.string("reduction").unwrap_or("none");
    if reduction == "none" {
        call.check_size(DType::U64, data.shape())?;
        let mut origins: Vec<Run> = (0..data.len()).map(|place| Run::one(0, place)).collect();
        for (update, &place) in places.iter().enumerate() {
            origins[place] = Run::one(1, update);
        }
        return Ok(vec![assemble(call, &[data, updates], data.shape().to_vec(), origins)?]);
    }
    if data.dtype() != updates.dtype() {
        return Err(call.invalid(format!("data are {}, updates {}", data.dtype(), updates.dtype())));
    }
    let unsigned = data.dtype() == DType::U64;
    let mut result = Numbers::of(call, data)?;
    match (&mut result, Numbers::of(call, updates)?) {
        (Numbers::Floats(result), Numbers::Floats(updates)) => {
            let join: fn(f64, f64) -> f64 = match reduction {
                "add" => |a, b| a + b,
                "mul" => |a, b| a * b,
                "min" => |a, b| if a.is_nan() || a < b { a } else { b },
                "max" => |a, b| if a.is_nan() || a > b { a } else { b },
                other => return Err(call.invalid(format!("there is no reduction `{other}`"))),
            };
            for (&place, update) in places.iter().zip(updates) {
                result[place] = join(result[place], update);
            }
        }
        (Numbers::Integers(result), Numbers::Integers(updates)) => {
            let join: fn(i64, i64) -> i64 = match reduction {
                "add" => i64::wrapping_add,
                "mul" => i64::wrapping_mul,
                "min" if unsigned => |a, b| (a as u64).min(b as u64) as i64,
                "max" if unsigned => |a, b| (a as u64).max(b as u64) as i64,
                "min" => i64::min,
                "max" => i64::max,
                other => return Err(call.invalid(format!("there is no reduction `{other}`"))),
            };
            for (&place, update) in places.iter().zip(updates) {
                result[place] = join(result[place], update);
            }
        }
        _ => return Err(call.wrong_type(2, updates.dtype())),
    }
    Ok(vec![result.tensor(call, data.dtype(), data.shape().to_vec())?])
}

fn scatter_elements(call: &Call<'_>) -> Outputs {
    let (data, indices, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let axis = call.axis(call.node.int("axis").unwrap_or(0), data.rank())?;
    if indices.shape() != updates.shape() {
        let what = format!("indices of shape {:?} for updates of {:?}", indices.shape(), updates.shape());
        return Err(call.invalid(what));
    }
    let places = element_places(call, data, indices, &integers(call, 1)?, axis)?;
    replaced(call, data, updates, &places)
}

fn scatter_nd(call: &Call<'_>) -> Outputs {
    let (data, indices, updates) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let (starts, length) = slice_places(call, data, indices, &integers(call, 1)?, 0)?;
    if starts.len().checked_mul(length) != Some(updates.len()) {
        let what =
            format!("{} slices of {length} elements for updates of {:?}", starts.len(), updates.shape());
        return Err(call.invalid(what));
    }
    let places: Vec<usize> = starts.into_iter().flat_map(|start| start..start + length).collect();
    replaced(call, data, updates, &places)
}

fn compress(call: &Call<'_>) -> Outputs {
    let (data, condition) = (call.input(0)?, call.input(1)?);
    let condition = condition.bools().map_err(|error| call.tensor_error(error))?;
    let (before, size, after) = match call.node.int("axis") {
        Some(axis) => {
            let axis = call.axis(axis, data.rank())?;
            (&data.shape()[..axis], data.shape()[axis], &data.shape()[axis + 1..])
        }
        None => (&[][..], data.len(), &[][..]),
    };
    if condition.len() > size {
        return Err(call.invalid(format!("{} conditions for {size} elements", condition.len())));
    }
    let kept: Vec<usize> = (0..condition.len()).filter(|&at| condition[at]).collect();
    let shape = [before, &[kept.len()], after].concat();
    let length = product(after);
    let outer = if length == 0 || kept.is_empty() { 0 } else { product(before) };
    let runs = (0..outer).flat_map(|row| {
        kept.iter().map(move |at| Run { source: 0, start: (row * size + at) * length, length })
    });
    Ok(vec![assemble(call, &[data], shape, runs)?])
}

fn one_hot(call: &Call<'_>) -> Outputs {
    let (indices, depth, values) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let whole = |tensor: &Tensor| {
        Ok(match Numbers::of(call, tensor)? {
            Numbers::Integers(values) => values,
            Numbers::Floats(values) => values.into_iter().map(|value| value as i64).collect(),
        })
    };
    let depth = match whole(depth)?.as_slice() {
        &[depth] if depth > 0 => depth,
        other => return Err(call.invalid(format!("the depth is {other:?}; it must be one positive number"))),
    };
    if values.len() != 2 {
        return Err(call.invalid(format!("{} values instead of two", values.len())));
    }
    let axis = call.axis(call.node.int("axis").unwrap_or(-1), indices.rank() + 1)?;
    let mut shape = indices.shape().to_vec();
    shape.insert(axis, depth as usize);
    call.check_size(values.dtype(), &shape)?;
    let hot: Vec<i64> =
        whole(indices)?.iter().map(|&at| if at < 0 { at.saturating_add(depth) } else { at }).collect();
    let inner = product(&indices.shape()[axis..]);
    let outer = if hot.is_empty() { 0 } else { hot.len() / inner };
    let runs = (0..outer).flat_map(|row| {
        let hot = &hot[row * inner..][..inner];
        (0..depth).flat_map(move |at| hot.iter().map(move |&hot| Run::one(0, usize::from(hot == at))))
    });
    Ok(vec![assemble(call, &[values], shape, runs)?])
}

fn non_zero(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let zero: Vec<bool> = match Numbers::of(call, data)? {
        Numbers::Floats(values) => values.into_iter().map(|value| value == 0.0).collect(),
        Numbers::Integers(values) => values.into_iter().map(|value| value == 0).collect(),
    };
    let found: Vec<usize> = (0..zero.len()).filter(|&place| !zero[place]).collect();
    call.check_size(DType::I64, &[data.rank(), found.len()])?;
    let steps = strides(data.shape());
    let coordinates = steps.iter().zip(data.shape()).flat_map(|(step, size)| {
        let coordinate = move |place: &usize| (place / step % size) as i64;
        found.iter().map(coordinate)
    });
    Ok(vec![Tensor::from_vec(vec![data.rank(), found.len()], coordinates.collect::<Vec<i64>>())])
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
    fn strings_and_packed_elements_are_gathered() {
        let at = Tensor::from_i64s(&[2, -3]);
        let texts = Tensor::from_strings([3], &["a", "b", "c"]);
        let result = run(&Node::new("Gather", []), &[&texts, &at]).unwrap();
        assert_eq!(result[0].strings().unwrap(), [b"c", b"a"]);
        let codes = Tensor::from_codes(DType::U4, [3], &[7, 8, 9]);
        let result = run(&Node::new("Gather", []), &[&codes, &at]).unwrap();
        assert_eq!(result[0].codes().unwrap().as_ref(), [9, 7]);
    }

    #[test]
    fn integers_are_reduced_exactly() {
        let data = Tensor::from_vec([1], vec![u64::MAX - 1]);
        let at = Tensor::from_vec([1, 1], vec![0i64]);
        let one = Tensor::from_vec([1], vec![1u64]);
        for (reduction, expected) in [("add", u64::MAX), ("max", u64::MAX - 1), ("min", 1)] {
            let node = Node::new("ScatterND", []).with("reduction", reduction);
            let result = run(&node, &[&data, &at, &one]).unwrap();
            assert_eq!(result[0].to_slice::<u64>().unwrap().as_ref(), [expected], "{reduction}");
        }
    }

    #[test]
    fn indices_outside_are_refused() {
        let x = Tensor::from_vec([2, 3], vec![0f32; 6]);
        let scalar = Tensor::scalar(1f32);
        let far = Tensor::from_vec([1, 1], vec![2i64]);
        let least = Tensor::from_vec([1, 1], vec![i64::MIN]);
        let wide = Tensor::from_vec([1, 4], vec![0i64; 4]);
        let text = Tensor::from_strings([1], &["a"]);
        let update = Tensor::from_vec([1, 1], vec![0f32]);
        let depth = Tensor::scalar(i64::MAX);
        let zero = Tensor::scalar(0i64);
        let pair = Tensor::from_vec([2], vec![0f32, 1.0]);
        let cases: Vec<(&str, Vec<&Tensor>)> = vec![
            ("Gather", vec![&x, &far]),
            ("Gather", vec![&x, &least]),
            ("Gather", vec![&scalar, &far]),
            ("Gather", vec![&x, &text]),
            ("GatherElements", vec![&x, &far]),
            ("GatherElements", vec![&x, &wide]),
            ("GatherND", vec![&x, &far]),
            ("GatherND", vec![&x, &wide]),
            ("GatherND", vec![&x, &depth]),
            ("ScatterElements", vec![&x, &far, &update]),
            ("ScatterElements", vec![&x, &far, &x]),
            ("ScatterND", vec![&x, &far, &update]),
            ("ScatterND", vec![&x, &zero, &update]),
            ("OneHot", vec![&far, &depth, &pair]),
            ("OneHot", vec![&far, &far, &update]),
            ("Compress", vec![&x, &x]),
        ]
        .into_iter()
        .collect();
        for (op, inputs) in cases {
            let error = run(&Node::new(op, []), &inputs).expect_err(op);
            assert!(!matches!(error, OpError::NoKernel(_)), "{error}");
        }
    }
}
