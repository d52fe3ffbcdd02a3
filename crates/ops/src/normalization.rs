//! Normalization, and softmax with its kin.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::numbers::float_tensor;

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Softmax", 1, |call| softmax(call, Kind::Softmax)),
    KernelSpec::onnx("LogSoftmax", 1, |call| softmax(call, Kind::Log)),
    KernelSpec::onnx("Hardmax", 1, |call| softmax(call, Kind::Hard)),
    KernelSpec::onnx("BatchNormalization", 7, batch),
    KernelSpec::onnx("InstanceNormalization", 6, instance),
    KernelSpec::onnx("LayerNormalization", 17, layer),
    KernelSpec::onnx("RMSNormalization", 23, root_mean_square),
    KernelSpec::onnx("GroupNormalization", 21, group),
    KernelSpec::onnx("LpNormalization", 1, lp),
    KernelSpec::onnx("LRN", 1, local_response),
    KernelSpec::onnx("MeanVarianceNormalization", 9, mean_variance),
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Softmax,
    Log,
    Hard,
}

pub(crate) fn floats(call: &Call<'_>, slot: usize) -> Result<Vec<f64>, OpError> {
    let tensor = call.input(slot)?;
    if !tensor.dtype().is_float() {
        return Err(call.wrong_type(slot, tensor.dtype()));
    }
    tensor.to_f64s().map_err(|error| call.tensor_error(error))
}

fn softmax(call: &Call<'_>, kind: Kind) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let shape = x.shape();
    let default = if call.opset < 13 { 1 } else { -1 };
    let wanted = call.node.int("axis").unwrap_or(default);
    let rank = shape.len();
    // Before version 13 everything from the axis on is one row, and the axis may be the rank itself.
    let (size, inner) = if call.opset < 13 {
        let axis = if wanted == rank as i64 { rank } else { call.axis(wanted, rank)? };
        (shape[axis..].iter().product::<usize>(), 1)
    } else {
        let axis = call.axis(wanted, rank)?;
        (shape[axis], shape[axis + 1..].iter().product())
    };
    let mut values = floats(call, 0)?;
    if size == 0 || values.is_empty() {
        return Ok(vec![x.clone()]);
    }
    for row in 0..values.len() / size {
        let start = row / inner * size * inner + row % inner;
        let at = |index: usize| start + index * inner;
        let greatest = (0..size).map(|index| values[at(index)]).fold(f64::NEG_INFINITY, f64::max);
        if kind == Kind::Hard {
            let first = (0..size).find(|&index| values[at(index)] == greatest).unwrap_or(0);
            (0..size).for_each(|index| values[at(index)] = f64::from(u8::from(index == first)));
            continue;
        }
        let sum: f64 = (0..size).map(|index| (values[at(index)] - greatest).exp()).sum();
        for index in 0..size {
            let shifted = values[at(index)] - greatest;
            values[at(index)] = if kind == Kind::Log { shifted - sum.ln() } else { shifted.exp() / sum };
        }
    }
    Ok(vec![float_tensor(call, x.dtype(), shape.to_vec(), &values)?])
}

/// Input `slot` as one number a channel.
fn per_channel(call: &Call<'_>, slot: usize, channels: usize) -> Result<Vec<f64>, OpError> {
    let values = floats(call, slot)?;
    if values.len() == channels {
        Ok(values)
    } else {
        Err(call.invalid(format!("input {slot} has {} elements for {channels} channels", values.len())))
    }
}

fn channels(call: &Call<'_>) -> Result<(usize, usize), OpError> {
    let shape = call.input(0)?.shape();
    match shape {
        [] => Err(call.invalid("the input is a scalar")),
        [_] => Ok((1, 1)),
        [_, channels, rest @ ..] => Ok((*channels, rest.iter().product())),
    }
}

fn batch(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (channels, inner) = channels(call)?;
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-5));
    let scale = per_channel(call, 1, channels)?;
    let bias = per_channel(call, 2, channels)?;
    let (mut mean, mut variance) = (per_channel(call, 3, channels)?, per_channel(call, 4, channels)?);
    let mut values = floats(call, 0)?;
    let training = call.node.int("training_mode").unwrap_or(0) != 0;
    let mut outputs = Vec::new();
    if training {
        let momentum = f64::from(call.node.float("momentum").unwrap_or(0.9));
        let count = (values.len() / channels.max(1)) as f64;
        let (mut seen_mean, mut seen_variance) = (vec![0.0; channels], vec![0.0; channels]);
        for (index, value) in values.iter().enumerate() {
            seen_mean[index / inner.max(1) % channels] += value / count;
        }
        for (index, value) in values.iter().enumerate() {
            let channel = index / inner.max(1) % channels;
            seen_variance[channel] += (value - seen_mean[channel]).powi(2) / count;
        }
        for (running, seen) in [(&mean, &seen_mean), (&variance, &seen_variance)] {
            let mixed: Vec<f64> =
                running.iter().zip(seen).map(|(old, new)| old * momentum + new * (1.0 - momentum)).collect();
            let slot = outputs.len() + 3;
            outputs.push(float_tensor(call, call.input(slot)?.dtype(), vec![channels], &mixed)?);
        }
        (mean, variance) = (seen_mean, seen_variance);
    }
    for (index, value) in values.iter_mut().enumerate() {
        let channel = index / inner.max(1) % channels;
        *value =
            scale[channel] * (*value - mean[channel]) / (variance[channel] + epsilon).sqrt() + bias[channel];
    }
    outputs.insert(0, float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?);
    Ok(outputs)
}

/// Mean and inverse standard deviation of every row of `size` elements.
fn statistics(values: &[f64], size: usize, epsilon: f64) -> Vec<(f64, f64)> {
    values
        .chunks(size.max(1))
        .map(|row| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / row.len() as f64;
            (mean, 1.0 / (variance + epsilon).sqrt())
        })
        .collect()
}

fn instance(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (channels, inner) = channels(call)?;
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-5));
    let (scale, bias) = (per_channel(call, 1, channels)?, per_channel(call, 2, channels)?);
    let mut values = floats(call, 0)?;
    let rows = statistics(&values, inner, epsilon);
    for (index, value) in values.iter_mut().enumerate() {
        let row = index / inner.max(1);
        let (mean, inverse) = rows[row];
        *value = (*value - mean) * inverse * scale[row % channels] + bias[row % channels];
    }
    Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?])
}

fn group(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (channels, inner) = channels(call)?;
    let groups = call.node.int("num_groups").and_then(|groups| usize::try_from(groups).ok()).unwrap_or(0);
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(call.invalid(format!("{channels} channels do not make {groups} groups")));
    }
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-5));
    let (scale, bias) = (per_channel(call, 1, channels)?, per_channel(call, 2, channels)?);
    let mut values = floats(call, 0)?;
    let size = channels / groups * inner;
    let rows = statistics(&values, size, epsilon);
    for (index, value) in values.iter_mut().enumerate() {
        let (mean, inverse) = rows[index / size.max(1)];
        let channel = index / inner.max(1) % channels;
        *value = (*value - mean) * inverse * scale[channel] + bias[channel];
    }
    Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?])
}

/// The axis from which on elements belong together, and how many they are.
fn row_size(call: &Call<'_>) -> Result<(usize, usize), OpError> {
    let x = call.input(0)?;
    let axis = call.axis(call.node.int("axis").unwrap_or(-1), x.rank())?;
    Ok((axis, x.shape()[axis..].iter().product()))
}

fn broadcast_to_row(call: &Call<'_>, slot: usize, row: &[usize]) -> Result<Option<Vec<f64>>, OpError> {
    let Some(tensor) = call.optional(slot) else { return Ok(None) };
    let values = floats(call, slot)?;
    // Leading dimensions of size 1 say nothing.
    let extra = tensor.rank().saturating_sub(row.len());
    let shape = &tensor.shape()[extra..];
    if tensor.shape()[..extra].iter().any(|&size| size != 1) {
        return Err(call.invalid(format!("input {slot} has shape {:?} for rows of {row:?}", tensor.shape())));
    }
    crate::movement::broadcast(call, &values, shape, row).map(Some)
}

fn layer(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (axis, size) = row_size(call)?;
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-5));
    let row = &x.shape()[axis..];
    let scale = broadcast_to_row(call, 1, row)?.ok_or_else(|| call.invalid("the scale is missing"))?;
    let bias = broadcast_to_row(call, 2, row)?.unwrap_or_else(|| vec![0.0; size]);
    let mut values = floats(call, 0)?;
    let rows = statistics(&values, size, epsilon);
    for (index, value) in values.iter_mut().enumerate() {
        let (mean, inverse) = rows[index / size];
        *value = (*value - mean) * inverse * scale[index % size] + bias[index % size];
    }
    let mut kept = x.shape()[..axis].to_vec();
    kept.resize(x.rank(), 1);
    let stash = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let (means, inverses): (Vec<f64>, Vec<f64>) = rows.into_iter().unzip();
    Ok(vec![
        float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?,
        float_tensor(call, stash, kept.clone(), &means)?,
        float_tensor(call, stash, kept, &inverses)?,
    ])
}

fn root_mean_square(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (axis, size) = row_size(call)?;
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-5));
    let scale = broadcast_to_row(call, 1, &x.shape()[axis..])?;
    let scale = scale.ok_or_else(|| call.invalid("the scale is missing"))?;
    let mut values = floats(call, 0)?;
    for row in values.chunks_mut(size.max(1)) {
        let mean = row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64;
        let inverse = 1.0 / (mean + epsilon).sqrt();
        row.iter_mut().zip(&scale).for_each(|(value, scale)| *value = *value * inverse * scale);
    }
    Ok(vec![float_tensor(call, call.input(1)?.dtype(), x.shape().to_vec(), &values)?])
}

fn lp(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let axis = call.axis(call.node.int("axis").unwrap_or(-1), x.rank())?;
    let order = call.node.int("p").unwrap_or(2);
    let size = x.shape()[axis];
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let mut values = floats(call, 0)?;
    let rows = values.len().checked_div(size).unwrap_or(0);
    for row in 0..rows {
        let start = row / inner * size * inner + row % inner;
        let at = |index: usize| start + index * inner;
        let norm: f64 = match order {
            1 => (0..size).map(|index| values[at(index)].abs()).sum(),
            2 => (0..size).map(|index| values[at(index)].powi(2)).sum::<f64>().sqrt(),
            other => return Err(call.invalid(format!("norm {other} is neither 1 nor 2"))),
        };
        // A row of zeros stays one.
        if norm != 0.0 {
            (0..size).for_each(|index| values[at(index)] /= norm);
        }
    }
    Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?])
}

fn local_response(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (channels, inner) = channels(call)?;
    let size = call.node.int("size").and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0);
    let size = size.ok_or_else(|| call.invalid("`size` is missing"))?;
    let alpha = f64::from(call.node.float("alpha").unwrap_or(1e-4));
    let beta = f64::from(call.node.float("beta").unwrap_or(0.75));
    let bias = f64::from(call.node.float("bias").unwrap_or(1.0));
    let values = floats(call, 0)?;
    let results: Vec<f64> = values
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let channel = index / inner.max(1) % channels;
            let low = channel.saturating_sub((size - 1) / 2);
            let high = (channel + size / 2).min(channels - 1);
            let base = index - channel * inner;
            let sum: f64 = (low..=high).map(|channel| values[base + channel * inner].powi(2)).sum();
            value / (bias + alpha / size as f64 * sum).powf(beta)
        })
        .collect();
    Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &results)?])
}

fn mean_variance(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let axes = call.node.ints("axes").map_or_else(|| vec![0, 2, 3], <[i64]>::to_vec);
    let mut reduced = vec![false; x.rank()];
    for axis in axes {
        reduced[call.axis(axis, x.rank())?] = true;
    }
    let groups = crate::reduce::groups(x.shape(), &reduced);
    let count = groups.iter().max().map_or(0, |last| last + 1);
    let members = groups.len().checked_div(count).unwrap_or(1) as f64;
    let values = floats(call, 0)?;
    let (mut means, mut squares) = (vec![0.0; count], vec![0.0; count]);
    for (value, &group) in values.iter().zip(&groups) {
        means[group] += value / members;
        squares[group] += value * value / members;
    }
    let results: Vec<f64> = values
        .iter()
        .zip(&groups)
        .map(|(value, &group)| {
            let deviation = (squares[group] - means[group] * means[group]).max(0.0).sqrt();
            (value - means[group]) / (deviation + 1e-9)
        })
        .collect();
    Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &results)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    #[test]
    fn rows_of_softmax_sum_to_one_at_any_size() {
        let x = Tensor::from_vec(vec![2, 3], vec![1000f32, 1001.0, 1002.0, -1000.0, 0.0, 1.0]);
        let node = Node::new("Softmax", []);
        let result =
            softmax(&Call::new(&node, 13, &[Some(&x)]), Kind::Softmax).unwrap()[0].to_f64s().unwrap();
        for row in result.chunks(3) {
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-6 && row.iter().all(|x| x.is_finite()));
        }
    }

    #[test]
    fn old_softmax_flattens() {
        let x = Tensor::from_vec(vec![1, 2, 2], vec![0f32; 4]);
        let node = Node::new("Softmax", []);
        let old = softmax(&Call::new(&node, 11, &[Some(&x)]), Kind::Softmax).unwrap()[0].to_f64s().unwrap();
        let new = softmax(&Call::new(&node, 13, &[Some(&x)]), Kind::Softmax).unwrap()[0].to_f64s().unwrap();
        assert_eq!((old[0], new[0]), (0.25, 0.5));
    }
}
