//! Many elements to one: sums, extremes, norms, and running sums and products.

use optix_ir::{DType, Tensor, element_count};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{integers_or_attribute, strides};
use crate::numbers::Numbers;

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("ReduceSum", 1, |call| reduce(call, Kind::Sum)),
    KernelSpec::onnx("ReduceMean", 1, |call| reduce(call, Kind::Mean)),
    KernelSpec::onnx("ReduceMax", 1, |call| reduce(call, Kind::Max)),
    KernelSpec::onnx("ReduceMin", 1, |call| reduce(call, Kind::Min)),
    KernelSpec::onnx("ReduceProd", 1, |call| reduce(call, Kind::Product)),
    KernelSpec::onnx("ReduceL1", 1, |call| reduce(call, Kind::L1)),
    KernelSpec::onnx("ReduceL2", 1, |call| reduce(call, Kind::L2)),
    KernelSpec::onnx("ReduceLogSum", 1, |call| reduce(call, Kind::LogSum)),
    KernelSpec::onnx("ReduceLogSumExp", 1, |call| reduce(call, Kind::LogSumExp)),
    KernelSpec::onnx("ReduceSumSquare", 1, |call| reduce(call, Kind::SumSquare)),
    KernelSpec::onnx("ArgMax", 1, |call| arg(call, true)),
    KernelSpec::onnx("ArgMin", 1, |call| arg(call, false)),
    KernelSpec::onnx("CumSum", 11, |call| cumulative(call, (0.0, |a, b| a + b), (0, i64::wrapping_add))),
    KernelSpec::onnx("CumProd", 26, |call| cumulative(call, (1.0, |a, b| a * b), (1, i64::wrapping_mul))),
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sum,
    Mean,
    Max,
    Min,
    Product,
    L1,
    L2,
    LogSum,
    LogSumExp,
    SumSquare,
}

/// For every element of the input, where its group is in the output; and the output's shape.
pub(crate) fn groups(shape: &[usize], reduced: &[bool]) -> Vec<usize> {
    let kept: Vec<usize> =
        shape.iter().zip(reduced).map(|(&size, &gone)| if gone { 1 } else { size }).collect();
    let (in_strides, out_strides) = (strides(shape), strides(&kept));
    let count = element_count(shape).unwrap_or(0);
    (0..count)
        .map(|index| {
            (0..shape.len())
                .filter(|&axis| !reduced[axis])
                .map(|axis| index / in_strides[axis] % shape[axis] * out_strides[axis])
                .sum()
        })
        .collect()
}

fn reduced_axes(call: &Call<'_>, rank: usize) -> Result<Option<Vec<bool>>, OpError> {
    let axes = integers_or_attribute(call, 1, "axes")?.filter(|axes| !axes.is_empty());
    let Some(axes) = axes else {
        // Nothing named: everything, or nothing where the model says so.
        let nothing = call.node.int("noop_with_empty_axes").unwrap_or(0) != 0;
        return Ok((!nothing).then(|| vec![true; rank]));
    };
    let mut reduced = vec![false; rank];
    for axis in axes {
        reduced[call.axis(axis, rank)?] = true;
    }
    Ok(Some(reduced))
}

fn reduce(call: &Call<'_>, kind: Kind) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let keep = call.node.int("keepdims").unwrap_or(1) != 0;
    let (shape, dtype) = (x.shape(), x.dtype());
    let Some(reduced) = reduced_axes(call, shape.len())? else {
        // Without axes only what happens to every element is done.
        let single = vec![false; shape.len()];
        return reduce_over(call, x, kind, &single, true);
    };
    if dtype == DType::Bool && !matches!(kind, Kind::Max | Kind::Min) {
        return Err(call.wrong_type(0, dtype));
    }
    reduce_over(call, x, kind, &reduced, keep)
}

fn reduce_over(
    call: &Call<'_>,
    x: &Tensor,
    kind: Kind,
    reduced: &[bool],
    keep: bool,
) -> Result<Vec<Tensor>, OpError> {
    let (shape, dtype) = (x.shape(), x.dtype());
    call.check_size(DType::F64, shape)?;
    let groups = groups(shape, reduced);
    let full: Vec<usize> =
        shape.iter().zip(reduced).map(|(&size, &gone)| if gone { 1 } else { size }).collect();
    let count = element_count(&full).unwrap_or(0);
    let members: usize = shape.iter().zip(reduced).filter(|(_, gone)| **gone).map(|(size, _)| size).product();
    let out_shape: Vec<usize> = if keep {
        full
    } else {
        shape.iter().zip(reduced).filter(|(_, gone)| !**gone).map(|(&size, _)| size).collect()
    };
    let numbers = match Numbers::of(call, x)? {
        Numbers::Floats(values) => Numbers::Floats(floats(kind, &values, &groups, count, members)),
        Numbers::Integers(values) => {
            let unsigned = dtype == DType::U64;
            let range = dtype.integer_range().unwrap_or((0, 1));
            Numbers::Integers(integers(kind, &values, &groups, count, members, unsigned, range))
        }
    };
    Ok(vec![numbers.tensor(call, dtype, out_shape)?])
}

fn floats(kind: Kind, values: &[f64], groups: &[usize], count: usize, members: usize) -> Vec<f64> {
    let start = match kind {
        Kind::Max | Kind::LogSumExp => f64::NEG_INFINITY,
        Kind::Min => f64::INFINITY,
        Kind::Product => 1.0,
        _ => 0.0,
    };
    let mut results = vec![start; count];
    for (&value, &group) in values.iter().zip(groups) {
        let result = &mut results[group];
        match kind {
            Kind::Sum | Kind::Mean | Kind::LogSum => *result += value,
            Kind::Max | Kind::LogSumExp => {
                if value.is_nan() || (value > *result) {
                    *result = value;
                }
            }
            Kind::Min => {
                if value.is_nan() || (value < *result) {
                    *result = value;
                }
            }
            Kind::Product => *result *= value,
            Kind::L1 => *result += value.abs(),
            Kind::L2 | Kind::SumSquare => *result += value * value,
        }
    }
    match kind {
        Kind::Mean => results.iter_mut().for_each(|result| *result /= members as f64),
        Kind::L2 => results.iter_mut().for_each(|result| *result = result.sqrt()),
        Kind::LogSum => results.iter_mut().for_each(|result| *result = result.ln()),
        Kind::LogSumExp => {
            // Shifted by the greatest, so that nothing overflows.
            let mut sums = vec![0.0; count];
            for (&value, &group) in values.iter().zip(groups) {
                let greatest = results[group];
                sums[group] += if greatest.is_finite() { (value - greatest).exp() } else { value.exp() };
            }
            for (result, sum) in results.iter_mut().zip(sums) {
                *result = if result.is_finite() { *result + f64::ln(sum) } else { f64::ln(sum) };
            }
        }
        _ => {}
    }
    results
}

fn integers(
    kind: Kind,
    values: &[i64],
    groups: &[usize],
    count: usize,
    members: usize,
    unsigned: bool,
    (low, high): (i128, i128),
) -> Vec<i64> {
    // 128 bits hold any sum; the result wraps around as the type does.
    let start = match kind {
        Kind::Max | Kind::LogSumExp => low,
        Kind::Min => high,
        Kind::Product => 1,
        _ => 0,
    };
    let mut results = vec![start; count];
    let wide = |value: i64| if unsigned { i128::from(value as u64) } else { i128::from(value) };
    for (&value, &group) in values.iter().zip(groups) {
        let (result, value) = (&mut results[group], wide(value));
        match kind {
            Kind::Max => *result = (*result).max(value),
            Kind::Min => *result = (*result).min(value),
            Kind::Product => *result = result.wrapping_mul(value),
            Kind::L1 => *result = result.wrapping_add(value.abs()),
            Kind::L2 | Kind::SumSquare => *result = result.wrapping_add(value.wrapping_mul(value)),
            _ => *result = result.wrapping_add(value),
        }
    }
    match kind {
        Kind::Mean => results.iter_mut().for_each(|result| *result /= members.max(1) as i128),
        Kind::L2 => results.iter_mut().for_each(|result| *result = (*result as f64).sqrt() as i128),
        Kind::LogSum => results.iter_mut().for_each(|result| *result = (*result as f64).ln() as i128),
        Kind::LogSumExp => {
            let mut sums = vec![0f64; count];
            values.iter().zip(groups).for_each(|(&value, &group)| sums[group] += (wide(value) as f64).exp());
            results.iter_mut().zip(sums).for_each(|(result, sum)| *result = sum.ln() as i128);
        }
        _ => {}
    }
    results.into_iter().map(|result| result as i64).collect()
}

fn arg(call: &Call<'_>, greatest: bool) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let axis = call.axis(call.node.int("axis").unwrap_or(0), x.rank())?;
    let last = call.node.int("select_last_index").unwrap_or(0) != 0;
    let size = x.shape()[axis];
    if size == 0 {
        return Err(call.invalid("there is nothing along the axis"));
    }
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let outer: usize = x.shape()[..axis].iter().product();
    let values = x.to_f64s().map_err(|error| call.tensor_error(error))?;
    let mut found = Vec::with_capacity(outer * inner);
    for row in 0..outer * inner {
        let start = row / inner * size * inner + row % inner;
        let mut best = 0;
        for index in 1..size {
            let (value, known) = (values[start + index * inner], values[start + best * inner]);
            let better = if greatest { value > known } else { value < known };
            if better || (last && value == known) || (value.is_nan() && !known.is_nan()) {
                best = index;
            }
        }
        found.push(best as i64);
    }
    let mut shape = x.shape().to_vec();
    if call.node.int("keepdims").unwrap_or(1) != 0 {
        shape[axis] = 1;
    } else {
        shape.remove(axis);
    }
    Ok(vec![Tensor::from_vec(shape, found)])
}

/// Where a running sum or product starts, and its step.
type Running<T> = (T, fn(T, T) -> T);

fn cumulative(call: &Call<'_>, floats: Running<f64>, whole: Running<i64>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let axis = call.input(1)?.to_i64s().ok().and_then(|axes| axes.first().copied());
    let axis = call.axis(axis.ok_or_else(|| call.invalid("the axis is missing"))?, x.rank())?;
    let exclusive = call.node.int("exclusive").unwrap_or(0) != 0;
    let reverse = call.node.int("reverse").unwrap_or(0) != 0;
    if x.is_empty() {
        return Ok(vec![x.clone()]);
    }
    let size = x.shape()[axis];
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let rows: usize = x.shape()[..axis].iter().product::<usize>() * inner;
    fn run<T: Copy>(
        values: &mut [T],
        (rows, inner, size): (usize, usize, usize),
        (exclusive, reverse): (bool, bool),
        (first, add): Running<T>,
    ) {
        for row in 0..rows {
            let start = row / inner * size * inner + row % inner;
            let mut sum = first;
            for step in 0..size {
                let index = start + if reverse { size - 1 - step } else { step } * inner;
                let value = values[index];
                let with = add(sum, value);
                values[index] = if exclusive { sum } else { with };
                sum = with;
            }
        }
    }
    let mut numbers = Numbers::of(call, x)?;
    match &mut numbers {
        Numbers::Floats(values) => run(values, (rows, inner, size), (exclusive, reverse), floats),
        Numbers::Integers(values) => run(values, (rows, inner, size), (exclusive, reverse), whole),
    }
    Ok(vec![numbers.tensor(call, x.dtype(), x.shape().to_vec())?])
}
