//! What surrounds attention in decoders: rotations, caches, gates, and the layers that stand in for it.

use optix_ir::{DType, Tensor};

use crate::attention::Heads;
use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{Run, assemble, index, integers};
use crate::normalization::floats;
use crate::numbers::{float_tensor, narrow};
use crate::recurrent::{expect, sigmoid};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("RotaryEmbedding", 23, rotary_embedding),
    KernelSpec::onnx("TensorScatter", 24, tensor_scatter),
    KernelSpec::onnx("SwiGLU", 28, swi_glu),
    KernelSpec::onnx("CausalConvWithState", 27, causal_conv),
    KernelSpec::onnx("LinearAttention", 27, linear_attention),
];

/// The attribute as a count; `None` when absent or 0.
pub(crate) fn count(call: &Call<'_>, name: &str) -> Result<Option<usize>, OpError> {
    let number = call.node.int(name).unwrap_or(0);
    let count = usize::try_from(number).map_err(|_| call.invalid(format!("`{name}` is {number}")))?;
    Ok(Some(count).filter(|&count| count > 0))
}

/// Rotates pairs of numbers of a row by angles whose cosines and sines are given: neighbours when
/// `interleaved`, else one from each half. What is behind the pairs stays.
pub(crate) fn rotate(row: &mut [f64], cosines: &[f64], sines: &[f64], interleaved: bool) {
    let half = cosines.len();
    for (pair, (cosine, sine)) in cosines.iter().zip(sines).enumerate() {
        let (first, second) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
        let (a, b) = (row[first], row[second]);
        row[first] = cosine * a - sine * b;
        row[second] = sine * a + cosine * b;
    }
}

/// Pairs of numbers are rotated by the angle of their position. Position ids, where given, select rows of
/// the tables; else these have a row for each position of each sample.
fn rotary_embedding(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let heads = count(call, "num_heads")?;
    let mut rows = Heads::of(call, 0, heads)?;
    let rotated = count(call, "rotary_embedding_dim")?.unwrap_or(rows.width);
    if rotated % 2 != 0 || rotated > rows.width {
        return Err(call.invalid(format!("{rotated} of {} numbers cannot be rotated in pairs", rows.width)));
    }
    let half = rotated / 2;
    let tables = [floats(call, 1)?, floats(call, 2)?];
    let (batch, length) = (rows.batch, rows.length);
    let positions: Vec<usize> = match call.optional(3) {
        Some(_) => {
            expect(call, 3, &[batch, length])?;
            let &[known, _] = call.input(1)?.shape() else {
                return Err(call.invalid("with positions, the tables need two dimensions"));
            };
            for slot in [1, 2] {
                expect(call, slot, &[known, half])?;
            }
            let positions = integers(call, 3)?;
            positions.into_iter().map(|at| index(call, at, known)).collect::<Result<_, _>>()?
        }
        None => {
            for slot in [1, 2] {
                expect(call, slot, &[batch, length, half])?;
            }
            // Without pairs there may be any number of positions.
            (0..if half == 0 { 0 } else { batch * length }).collect()
        }
    };
    let interleaved = call.node.int("interleaved").unwrap_or(0) != 0;
    if half > 0 && rows.heads > 0 {
        for (place, at) in positions.into_iter().enumerate() {
            let [cosines, sines] = [&tables[0], &tables[1]].map(|table| &table[at * half..(at + 1) * half]);
            for head in 0..rows.heads {
                rotate(rows.row_mut(place / length, head, place % length), cosines, sines, interleaved);
            }
        }
    }
    let values = if x.rank() == 3 { rows.side_by_side() } else { rows.values };
    Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?])
}

/// Writes an update into a cache, at a place of its own for each sample.
fn tensor_scatter(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (past, update) = (call.input(0)?, call.input(1)?);
    let shape = past.shape();
    let axis = call.axis(call.node.int("axis").unwrap_or(-2), shape.len())?;
    let mut fitting = shape.to_vec();
    let length = update.shape().get(axis).copied().unwrap_or(usize::MAX);
    fitting[axis] = length;
    if axis == 0 || update.shape() != fitting || length > shape[axis] {
        return Err(call.invalid(format!(
            "an update of shape {:?} along axis {axis} of a cache of shape {shape:?}",
            update.shape()
        )));
    }
    let (batch, size) = (shape[0], shape[axis]);
    let starts = match call.optional(2) {
        Some(_) => {
            expect(call, 2, &[batch])?;
            integers(call, 2)?
        }
        None => Vec::new(),
    };
    let circular = match call.node.string("mode").unwrap_or("linear") {
        "linear" => false,
        "circular" => true,
        other => return Err(call.invalid(format!("mode `{other}`"))),
    };
    if past.is_empty() {
        return Ok(vec![past.clone()]);
    }
    let place = |start: i64| match usize::try_from(start) {
        _ if circular => Ok(start.rem_euclid(size as i64) as usize),
        Ok(start) if start <= size - length => Ok(start),
        _ => Err(call.invalid(format!("{length} places from {start} on in a cache of {size}"))),
    };
    let starts: Vec<usize> = if starts.is_empty() {
        vec![0; batch]
    } else {
        starts.into_iter().map(place).collect::<Result<_, _>>()?
    };
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let runs = (0..outer * size).map(|row| {
        let (prefix, at) = (row / size, row % size);
        let written = (at + size - starts[prefix / (outer / batch)]) % size;
        if written < length {
            Run { source: 1, start: (prefix * length + written) * inner, length: inner }
        } else {
            Run { source: 0, start: row * inner, length: inner }
        }
    });
    Ok(vec![assemble(call, &[past, update], shape.to_vec(), runs)?])
}

/// `A sigmoid(alpha A) B`, by the operators it is short for.
fn swi_glu(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if (a.dtype(), a.shape()) != (b.dtype(), b.shape()) {
        return Err(call.invalid("the inputs differ in type or shape"));
    }
    let alpha = f64::from(call.node.float("alpha").unwrap_or(1.0));
    let round = narrow(a.dtype());
    let gated = |(a, b): (&f64, &f64)| round(a * round(sigmoid(round(alpha * a)))) * b;
    let values: Vec<f64> = floats(call, 0)?.iter().zip(&floats(call, 1)?).map(gated).collect();
    Ok(vec![float_tensor(call, a.dtype(), a.shape().to_vec(), &values)?])
}

/// A depthwise convolution that looks back only, over what came before as well.
fn causal_conv(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, weight) = (call.input(0)?, call.input(1)?);
    let (&[batch, channels, length], &[_, _, taps]) = (x.shape(), weight.shape()) else {
        return Err(call.invalid(format!("shapes {:?} and {:?}", x.shape(), weight.shape())));
    };
    expect(call, 1, &[channels, 1, taps])?;
    let Some(before) = taps.checked_sub(1) else { return Err(call.invalid("the kernel is empty")) };
    let state_shape = vec![batch, channels, before];
    call.check_size(DType::F64, &state_shape)?;
    call.check_size(DType::F64, &[batch, channels, before.saturating_add(length)])?;
    let bias = match call.optional(2) {
        Some(_) => {
            expect(call, 2, &[channels])?;
            floats(call, 2)?
        }
        None => vec![0.0; channels],
    };
    let past = match call.optional(3) {
        Some(_) => {
            expect(call, 3, &state_shape)?;
            floats(call, 3)?
        }
        None => vec![0.0; batch * channels * before],
    };
    let silu = match call.node.string("activation").unwrap_or("none") {
        "none" => false,
        "silu" | "swish" => true,
        other => return Err(call.invalid(format!("activation `{other}`"))),
    };
    let (values, weights, round) = (floats(call, 0)?, floats(call, 1)?, narrow(x.dtype()));
    let (mut outputs, mut state) = (Vec::with_capacity(values.len()), Vec::with_capacity(past.len()));
    if before + length > 0 {
        for row in 0..batch * channels {
            let channel = row % channels;
            let taps = &weights[channel * taps..(channel + 1) * taps];
            let seen = [&past[row * before..(row + 1) * before], &values[row * length..(row + 1) * length]];
            let seen = seen.concat();
            for window in seen.windows(taps.len()) {
                let sum: f64 = window.iter().zip(taps).map(|(x, w)| x * w).sum();
                let sum = round(sum + bias[channel]);
                outputs.push(if silu { sum * sigmoid(sum) } else { sum });
            }
            state.extend_from_slice(&seen[length..]);
        }
    }
    Ok(vec![
        float_tensor(call, x.dtype(), x.shape().to_vec(), &outputs)?,
        float_tensor(call, x.dtype(), state_shape, &state)?,
    ])
}

/// Attention without a softmax: a matrix of state for each head, updated for each key and read for each
/// query.
fn linear_attention(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let rule = call.node.string("update_rule").unwrap_or("gated_delta");
    let (gated, delta) = match rule {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(call.invalid(format!("update rule `{other}`"))),
    };
    for (slot, needed) in [(4, gated), (5, delta)] {
        if call.optional(slot).is_some() != needed {
            let what = if needed { "is needed" } else { "has no use" };
            return Err(call.invalid(format!("with the rule `{rule}` input {slot} {what}")));
        }
    }
    for slot in 0..3 {
        if call.input(slot)?.rank() != 3 {
            return Err(call.invalid(format!("input {slot} has shape {:?}", call.input(slot)?.shape())));
        }
    }
    let missing = || call.invalid("`q_num_heads` and `kv_num_heads` are needed");
    let q_heads = count(call, "q_num_heads")?.ok_or_else(missing)?;
    let kv_heads = count(call, "kv_num_heads")?.ok_or_else(missing)?;
    let q = Heads::of(call, 0, Some(q_heads))?;
    let (k, v) = (Heads::of(call, 1, Some(kv_heads))?, Heads::of(call, 2, Some(kv_heads))?);
    let places = |heads: &Heads| (heads.batch, heads.length);
    let fits = places(&q) == places(&k) && places(&q) == places(&v) && q.width == k.width && q.width > 0;
    if !fits || !q_heads.is_multiple_of(kv_heads) {
        let shapes = [&q, &k, &v].map(Heads::shape);
        return Err(call.invalid(format!("query, key and value of {shapes:?} do not go together")));
    }
    let (batch, length, k_width, v_width) = (q.batch, q.length, q.width, v.width);
    let state_shape = vec![batch, kv_heads, k_width, v_width];
    call.check_size(DType::F64, &state_shape)?;
    call.check_size(DType::F64, &[batch, length, q_heads, v_width])?;
    let mut state = match call.optional(3) {
        Some(_) => {
            expect(call, 3, &state_shape)?;
            floats(call, 3)?
        }
        None => vec![0.0; batch * kv_heads * k_width * v_width],
    };
    // A number for each head, or one for each head and key dimension.
    let gate = |slot: usize, widths: [usize; 2]| -> Result<(Vec<f64>, usize), OpError> {
        let Some(tensor) = call.optional(slot) else { return Ok((Vec::new(), 0)) };
        let width = tensor.shape().last().copied().filter(|width| widths.contains(width));
        let Some(width) = width else {
            return Err(call.invalid(format!("input {slot} has shape {:?}", tensor.shape())));
        };
        expect(call, slot, &[batch, length, width])?;
        Ok((floats(call, slot)?, width))
    };
    let (decay, decay_width) = gate(4, [kv_heads, kv_heads * k_width])?;
    let (beta, beta_width) = gate(5, [kv_heads, 1])?;
    let scale = match call.node.float("scale").unwrap_or(0.0) {
        0.0 => 1.0 / (k_width as f64).sqrt(),
        scale => f64::from(scale),
    };
    let share = q_heads / kv_heads;
    let size = k_width * v_width;
    let mut outputs = Heads {
        batch,
        heads: q_heads,
        length,
        width: v_width,
        values: vec![0.0; batch * q_heads * length * v_width],
    };
    for head in 0..if size == 0 { 0 } else { batch * kv_heads } {
        let (sample, head) = (head / kv_heads, head % kv_heads);
        let start = (sample * kv_heads + head) * size;
        let state = &mut state[start..start + size];
        for at in 0..length {
            let (key, mut value) = (k.row(sample, head, at), v.row(sample, head, at).to_vec());
            let step = sample * length + at;
            if gated {
                for (dimension, row) in state.chunks_mut(v_width).enumerate() {
                    let place = if decay_width == kv_heads { head } else { head * k_width + dimension };
                    let factor = decay[step * decay_width + place].exp();
                    row.iter_mut().for_each(|value| *value *= factor);
                }
            }
            if delta {
                let rate = beta[step * beta_width + if beta_width == 1 { 0 } else { head }];
                for (column, value) in value.iter_mut().enumerate() {
                    let found: f64 =
                        key.iter().enumerate().map(|(row, key)| key * state[row * v_width + column]).sum();
                    *value = rate * (*value - found);
                }
            }
            for (row, key) in state.chunks_mut(v_width).zip(key) {
                row.iter_mut().zip(&value).for_each(|(state, value)| *state += key * value);
            }
            for reader in head * share..(head + 1) * share {
                let query = q.row(sample, reader, at);
                let out = outputs.row_mut(sample, reader, at);
                for (row, query) in state.chunks(v_width).zip(query) {
                    out.iter_mut().zip(row).for_each(|(sum, state)| *sum += scale * query * state);
                }
            }
        }
    }
    let dtype = call.input(0)?.dtype();
    let state_dtype = call.optional(3).map_or(dtype, Tensor::dtype);
    Ok(vec![
        float_tensor(call, dtype, vec![batch, length, q_heads * v_width], &outputs.side_by_side())?,
        float_tensor(call, state_dtype, state_shape, &state)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    #[test]
    fn caches_wrap_around_or_refuse() {
        let past = Tensor::from_i64s(&[0; 4]).reshaped(vec![1, 4, 1]).unwrap();
        let update = Tensor::from_i64s(&[1, 2]).reshaped(vec![1, 2, 1]).unwrap();
        let run = |at: i64, mode: &str| {
            let node = Node::new("TensorScatter", []).with("mode", mode);
            let at = Tensor::from_i64s(&[at]);
            tensor_scatter(&Call::new(&node, 24, &[Some(&past), Some(&update), Some(&at)]))
                .map(|out| out[0].to_i64s().unwrap())
        };
        assert_eq!(run(2, "linear").unwrap(), [0, 0, 1, 2]);
        assert_eq!(run(3, "circular").unwrap(), [2, 0, 0, 1]);
        assert_eq!(run(-1, "circular").unwrap(), [2, 0, 0, 1]);
        for at in [3, -1, i64::MAX, i64::MIN] {
            assert!(run(at, "linear").is_err(), "{at}");
        }
    }
}
