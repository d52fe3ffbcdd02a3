//! onnxruntime's own activations and normalizations (domain `com.microsoft`).

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{broadcast, index, integers, product};
use crate::normalization::floats;
use crate::numbers::float_tensor;
use crate::recurrent::{expect, sigmoid};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::contrib("Gelu", |call| activation(call, gelu)),
    KernelSpec::contrib("BiasGelu", |call| activation(call, gelu)),
    KernelSpec::contrib("FastGelu", |call| activation(call, fast_gelu)),
    KernelSpec::contrib("QuickGelu", |call| {
        let alpha = f64::from(call.node.float("alpha").unwrap_or(1.702));
        activation(call, |x| x * sigmoid(alpha * x))
    }),
    KernelSpec::contrib("SkipLayerNormalization", |call| skip(call, true)),
    KernelSpec::contrib("SkipSimplifiedLayerNormalization", |call| skip(call, false)),
    KernelSpec::contrib("EmbedLayerNormalization", embed),
    // onnxruntime keeps this one in the standard's domain.
    KernelSpec::onnx("SimplifiedLayerNormalization", 1, simplified),
];

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn fast_gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

/// An activation of the first input, to which the second, where there is one, is added.
fn activation(call: &Call<'_>, function: impl Fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let mut values = floats(call, 0)?;
    if call.optional(1).is_some() {
        let size = x.shape().last().copied().unwrap_or(1);
        expect(call, 1, &[size])?;
        let bias = floats(call, 1)?;
        values.iter_mut().enumerate().for_each(|(index, value)| *value += bias[index % size]);
    }
    let values: Vec<f64> = values.into_iter().map(function).collect();
    Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?])
}

/// Scales a row to a variance of 1 (and a mean of 0 when `centred`); its mean and inverse deviation.
fn normalize(row: &mut [f64], epsilon: f64, centred: bool) -> (f64, f64) {
    let count = row.len() as f64;
    let mean = if centred { row.iter().sum::<f64>() / count } else { 0.0 };
    let square = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    let inverse = 1.0 / (square + epsilon).sqrt();
    row.iter_mut().for_each(|value| *value = (*value - mean) * inverse);
    (mean, inverse)
}

/// Input `slot` as a number for each of a row, when it is there.
fn row_of(call: &Call<'_>, slot: usize, size: usize) -> Result<Option<Vec<f64>>, OpError> {
    if call.optional(slot).is_none() {
        return Ok(None);
    }
    expect(call, slot, &[size])?;
    floats(call, slot).map(Some)
}

/// Normalizes the sum of two inputs and a bias. The sum is the fourth output; the second and third are
/// for training and empty in onnxruntime.
fn skip(call: &Call<'_>, centred: bool) -> Result<Vec<Tensor>, OpError> {
    let (x, skip) = (call.input(0)?, call.input(1)?);
    let &[.., size] = x.shape() else { return Err(call.invalid("the input is a scalar")) };
    if call.wants(1) || call.wants(2) {
        return Err(call.unsupported("an output of statistics"));
    }
    // Leading dimensions of the second may be 1 or missing.
    let skipped = broadcast(call, &floats(call, 1)?, skip.shape(), x.shape())?;
    if skip.shape().last() != Some(&size) {
        return Err(call.invalid(format!("rows of {size} and of {:?}", skip.shape().last())));
    }
    let mut values = floats(call, 0)?;
    values.iter_mut().zip(skipped).for_each(|(value, skipped)| *value += skipped);
    let scale = row_of(call, 2, size)?.ok_or_else(|| call.invalid("the scale is missing"))?;
    let shift = if centred { row_of(call, 3, size)? } else { None };
    if let Some(bias) = row_of(call, if centred { 4 } else { 3 }, size)? {
        values.iter_mut().enumerate().for_each(|(index, value)| *value += bias[index % size]);
    }
    let sum = float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?;
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-12));
    for row in values.chunks_mut(size.max(1)) {
        normalize(row, epsilon, centred);
        for (place, value) in row.iter_mut().enumerate() {
            *value = *value * scale[place] + shift.as_ref().map_or(0.0, |shift| shift[place]);
        }
    }
    let y = float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?;
    let nothing = || Tensor::from_vec(vec![0], Vec::<f32>::new());
    Ok(vec![y, nothing(), nothing(), sum])
}

fn simplified(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let axis = call.axis(call.node.int("axis").unwrap_or(-1), x.rank())?;
    let row = &x.shape()[axis..];
    let scale = floats(call, 1)?;
    let size = product(row);
    if scale.len() != size || scale.is_empty() {
        return Err(call.invalid(format!("{} scales for rows of {row:?}", scale.len())));
    }
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-5));
    let (mut values, mut inverses) = (floats(call, 0)?, Vec::new());
    for row in values.chunks_mut(size) {
        inverses.push(normalize(row, epsilon, false).1);
        row.iter_mut().zip(&scale).for_each(|(value, scale)| *value *= scale);
    }
    let mut kept = x.shape()[..axis].to_vec();
    kept.resize(x.rank(), 1);
    Ok(vec![
        float_tensor(call, call.input(1)?.dtype(), x.shape().to_vec(), &values)?,
        float_tensor(call, DType::F32, kept, &inverses)?,
    ])
}

/// The sum of three embeddings, normalized. The second output counts each sample's mask.
fn embed(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let ids = call.input(0)?;
    let (&[batch, length], &[words, size]) = (ids.shape(), call.input(2)?.shape()) else {
        let what = format!("ids of shape {:?}, words of {:?}", ids.shape(), call.input(2)?.shape());
        return Err(call.invalid(what));
    };
    let shape = vec![batch, length, size];
    call.check_size(DType::F64, &shape)?;
    call.check_size(DType::F64, &[batch])?;
    let &[positions, _] = call.input(3)?.shape() else { return Err(call.invalid("positions are no matrix")) };
    expect(call, 3, &[positions, size])?;
    let mut sums = vec![0.0; batch * length * size];
    let mut add = |table: &[f64], rows: usize, at: &dyn Fn(usize) -> i64| -> Result<(), OpError> {
        for place in 0..if size == 0 { 0 } else { batch * length } {
            let at = at(place);
            let at =
                if at < 0 { return Err(call.invalid(format!("id {at}"))) } else { index(call, at, rows)? };
            let sum = &mut sums[place * size..(place + 1) * size];
            sum.iter_mut().zip(&table[at * size..]).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    };
    let word = integers(call, 0)?;
    add(&floats(call, 2)?, words, &|place| word[place])?;
    match call.optional(8) {
        Some(given) => {
            let repeated = given.shape() == [1, length];
            if !repeated {
                expect(call, 8, &[batch, length])?;
            }
            let given = integers(call, 8)?;
            add(&floats(call, 3)?, positions, &|place| given[place % given.len()])?;
        }
        None => add(&floats(call, 3)?, positions, &|place| (place % length) as i64)?,
    }
    if let Some(table) = call.optional(4) {
        let &[segments, _] = table.shape() else { return Err(call.invalid("segments are no matrix")) };
        expect(call, 4, &[segments, size])?;
        expect(call, 1, &[batch, length])?;
        let segment = integers(call, 1)?;
        add(&floats(call, 4)?, segments, &|place| segment[place])?;
    }
    let dtype = call.input(2)?.dtype();
    let sum = float_tensor(call, dtype, shape.clone(), &sums)?;
    let missing = |name: &str| call.invalid(format!("the {name} is missing"));
    let scale = row_of(call, 5, size)?.ok_or_else(|| missing("scale"))?;
    let shift = row_of(call, 6, size)?.ok_or_else(|| missing("bias"))?;
    let epsilon = f64::from(call.node.float("epsilon").unwrap_or(1e-12));
    for row in sums.chunks_mut(size.max(1)) {
        normalize(row, epsilon, true);
        for (place, value) in row.iter_mut().enumerate() {
            *value = *value * scale[place] + shift[place];
        }
    }
    let mut counts = vec![0i32; batch];
    if call.optional(7).is_some() {
        expect(call, 7, &[batch, length])?;
        for (place, flag) in integers(call, 7)?.into_iter().enumerate() {
            counts[place / length] += i32::from(flag == 1);
        }
    }
    Ok(vec![float_tensor(call, dtype, shape, &sums)?, Tensor::from_vec(vec![batch], counts), sum])
}
