//! onnxruntime's own operators on quantized numbers (domain `com.microsoft`): what the name says, computed
//! on the real numbers and quantized again. Onnxruntime computes some of them in steps of its own and may
//! be one unit away.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::contrib_matmul::{quantized, single};
use crate::movement::{broadcast, common_shape, product};
use crate::numbers::float_tensor;
use crate::recurrent::sigmoid;

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::contrib("QLinearAdd", |call| binary(call, |a, b| a + b)),
    KernelSpec::contrib("QLinearMul", |call| binary(call, |a, b| a * b)),
    KernelSpec::contrib("QLinearConcat", concat),
    KernelSpec::contrib("QLinearAveragePool", |call| pool(call, crate::conv::average_pool)),
    KernelSpec::contrib("QLinearGlobalAveragePool", |call| pool(call, crate::conv::global_average_pool)),
    KernelSpec::contrib("QLinearLeakyRelu", |call| {
        let alpha = f64::from(call.node.float("alpha").unwrap_or(0.01));
        unary(call, |x| if x >= 0.0 { x } else { alpha * x })
    }),
    KernelSpec::contrib("QLinearSigmoid", |call| unary(call, sigmoid)),
    KernelSpec::contrib("QLinearSoftmax", softmax),
    KernelSpec::contrib("QLinearWhere", choose),
];

/// The real numbers of an input whose scale and zero point follow it.
fn reals(call: &Call<'_>, slot: usize) -> Result<Vec<f64>, OpError> {
    let x = call.input(slot)?;
    if !matches!(x.dtype(), DType::U8 | DType::I8 | DType::U16 | DType::I16) {
        return Err(call.wrong_type(slot, x.dtype()));
    }
    let scale = single(call, slot + 1)?;
    let zero = if call.optional(slot + 2).is_some() { single(call, slot + 2)? } else { 0.0 };
    let codes = x.to_f64s().map_err(|error| call.tensor_error(error))?;
    Ok(codes.into_iter().map(|code| (code - zero) * scale).collect())
}

fn unary(call: &Call<'_>, function: impl Fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let values: Vec<f64> = reals(call, 0)?.into_iter().map(function).collect();
    quantized(call, &values, x.shape().to_vec(), [3, 4], x.dtype())
}

fn binary(call: &Call<'_>, function: fn(f64, f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(3)?);
    let shape = common_shape(call, a.shape(), b.shape())?;
    call.check_size(DType::F64, &shape)?;
    let left = broadcast(call, &reals(call, 0)?, a.shape(), &shape)?;
    let right = broadcast(call, &reals(call, 3)?, b.shape(), &shape)?;
    let values: Vec<f64> = left.iter().zip(right).map(|(&a, b)| function(a, b)).collect();
    quantized(call, &values, shape, [6, 7], a.dtype())
}

fn choose(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (condition, x, y) = (call.input(0)?, call.input(1)?, call.input(4)?);
    let flags = condition.bools().map_err(|error| call.tensor_error(error))?;
    let shape = common_shape(call, condition.shape(), &common_shape(call, x.shape(), y.shape())?)?;
    call.check_size(DType::F64, &shape)?;
    let flags = broadcast(call, &flags, condition.shape(), &shape)?;
    let left = broadcast(call, &reals(call, 1)?, x.shape(), &shape)?;
    let right = broadcast(call, &reals(call, 4)?, y.shape(), &shape)?;
    let both = left.iter().zip(&right);
    let values: Vec<f64> = flags.iter().zip(both).map(|(&flag, (&a, &b))| if flag { a } else { b }).collect();
    quantized(call, &values, shape, [7, 8], x.dtype())
}

/// Scale and zero point of the result come first, then each input with its own.
fn concat(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let slots: Vec<usize> = (2..call.inputs.len()).step_by(3).collect();
    let first = call.input(2)?;
    let axis = call.node.int("axis").ok_or_else(|| call.invalid("`axis` is missing"))?;
    let axis = call.axis(axis, first.rank())?;
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    let mut parts = Vec::new();
    for &slot in &slots {
        let part = call.input(slot)?;
        let mut same = part.shape().to_vec();
        let size = same.get_mut(axis).map_or(0, std::mem::take);
        let mut expected = shape.clone();
        expected[axis] = 0;
        if same != expected || part.dtype() != first.dtype() {
            return Err(call.invalid(format!("input {slot} has shape {:?}", part.shape())));
        }
        shape[axis] = shape[axis].saturating_add(size);
        parts.push((size, reals(call, slot)?));
    }
    call.check_size(DType::F64, &shape)?;
    let inner = product(&shape[axis + 1..]);
    let mut values = Vec::with_capacity(parts.iter().map(|(_, part)| part.len()).sum());
    if product(&shape) > 0 {
        for row in 0..shape[..axis].iter().product() {
            for (size, part) in &parts {
                values.extend_from_slice(&part[row * size * inner..(row + 1) * size * inner]);
            }
        }
    }
    quantized(call, &values, shape, [0, 1], first.dtype())
}

/// The numbers of a tensor with an axis moved to another place.
fn moved(values: &[f64], [outer, first, second]: [usize; 3]) -> Vec<f64> {
    let size = (first * second).max(1);
    (0..outer * first * second)
        .map(|at| {
            let (matrix, at) = (at / size, at % size);
            values[matrix * size + at % first * second + at / first]
        })
        .collect()
}

/// A pool over the real numbers; channels may be last.
fn pool(
    call: &Call<'_>,
    pool: fn(&Call<'_>) -> Result<Vec<Tensor>, OpError>,
) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let last = call.node.int("channels_last").unwrap_or(0) != 0;
    let (mut values, mut shape) = (reals(call, 0)?, x.shape().to_vec());
    if shape.len() < 3 || values.is_empty() {
        return Err(call.invalid(format!("there is nothing to pool in shape {shape:?}")));
    }
    if last {
        let channels = shape.remove(shape.len() - 1);
        values = moved(&values, [shape[0], shape[1..].iter().product(), channels]);
        shape.insert(1, channels);
    }
    let pooled = pool(&Call { inputs: &[Some(&float_tensor(call, DType::F64, shape, &values)?)], ..*call })?;
    let mut shape = pooled[0].shape().to_vec();
    let mut values = pooled[0].to_f64s().map_err(|error| call.tensor_error(error))?;
    if last {
        let channels = shape.remove(1);
        values = moved(&values, [shape[0], channels, shape[1..].iter().product()]);
        shape.push(channels);
    }
    quantized(call, &values, shape, [3, 4], x.dtype())
}

/// The attribute `opset` says by which version of the standard's softmax: before 13 all axes from `axis`
/// on are one.
fn softmax(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let version = call.node.int("opset").ok_or_else(|| call.invalid("`opset` is missing"))?;
    // Onnxruntime's default is 1 by its schema, whatever the version.
    let axis = call.node.int("axis").ok_or_else(|| call.unsupported("no `axis`"))?;
    let axis = call.axis(axis, x.rank())?;
    let shape = x.shape();
    let (size, inner) =
        if version < 13 { (product(&shape[axis..]), 1) } else { (shape[axis], product(&shape[axis + 1..])) };
    let mut values = reals(call, 0)?;
    for row in 0..if values.is_empty() { 0 } else { values.len() / size } {
        let start = row / inner * size * inner + row % inner;
        let places = || (0..size).map(|index| start + index * inner);
        let greatest = places().map(|at| values[at]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = places().map(|at| (values[at] - greatest).exp()).sum();
        places().for_each(|at| values[at] = (values[at] - greatest).exp() / sum);
    }
    quantized(call, &values, shape.to_vec(), [3, 4], x.dtype())
}
