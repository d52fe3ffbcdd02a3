//! onnxruntime's own attention (domain `com.microsoft`).
//!
//! Of the forms that its many engines know, those of its CPU; what only some of them read is refused.

use optix_ir::{DType, Tensor};

use crate::attention::{Heads, Query, attend, softmax};
use crate::call::{Call, KernelSpec, OpError};
use crate::decoder::{count, rotate};
use crate::movement::{broadcast_strides, index, integers, sizes};
use crate::normalization::floats;
use crate::numbers::float_tensor;
use crate::recurrent::expect;

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::contrib("RotaryEmbedding", rotary_embedding),
    KernelSpec::contrib("MultiHeadAttention", multi_head),
    KernelSpec::contrib("Attention", attention),
    KernelSpec::contrib("GroupQueryAttention", group_query),
];

/// Refuses attributes that are neither absent nor 0.
fn refuse_flags(call: &Call<'_>, names: &[&str]) -> Result<(), OpError> {
    match names.iter().find(|name| call.node.int(name).unwrap_or(0) != 0) {
        Some(name) => Err(call.unsupported(format!("`{name}`"))),
        None => Ok(()),
    }
}

/// Refuses inputs.
fn refuse_inputs(call: &Call<'_>, slots: &[usize]) -> Result<(), OpError> {
    match slots.iter().find(|&&slot| call.optional(slot).is_some()) {
        Some(slot) => Err(call.unsupported(format!("input {slot}"))),
        None => Ok(()),
    }
}

fn needed_count(call: &Call<'_>, name: &str) -> Result<usize, OpError> {
    count(call, name)?.ok_or_else(|| call.invalid(format!("`{name}` is not positive")))
}

/// Tables of cosines and sines, a row for each position.
struct Tables {
    cosines: Vec<f64>,
    sines: Vec<f64>,
    positions: usize,
    half: usize,
    interleaved: bool,
}

impl Tables {
    fn of(call: &Call<'_>, slot: usize, interleaved: &str) -> Result<Tables, OpError> {
        let &[positions, half] = call.input(slot)?.shape() else {
            return Err(call.invalid(format!("input {slot} is no matrix")));
        };
        expect(call, slot + 1, &[positions, half])?;
        let interleaved = call.node.int(interleaved).unwrap_or(0) != 0;
        Ok(Tables {
            cosines: floats(call, slot)?,
            sines: floats(call, slot + 1)?,
            positions,
            half,
            interleaved,
        })
    }

    /// Rotates all rows of a position of a sample.
    fn rotate(
        &self,
        call: &Call<'_>,
        heads: &mut Heads,
        [sample, at]: [usize; 2],
        position: i64,
    ) -> Result<(), OpError> {
        if position < 0 || 2 * self.half > heads.width {
            let what = format!("position {position}, {} pairs of {} numbers", self.half, heads.width);
            return Err(call.invalid(what));
        }
        let row = index(call, position, self.positions)?;
        let row = row * self.half..(row + 1) * self.half;
        for head in 0..heads.heads {
            let numbers = heads.row_mut(sample, head, at);
            rotate(numbers, &self.cosines[row.clone()], &self.sines[row.clone()], self.interleaved);
        }
        Ok(())
    }
}

/// One position id is where every sample starts; else there is one for each place.
fn rotary_embedding(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    refuse_flags(call, &["is_packed_batching"])?;
    if call.node.float("scale").unwrap_or(1.0) != 1.0 {
        return Err(call.unsupported("`scale`"));
    }
    let x = call.input(0)?;
    let tables = Tables::of(call, 2, "interleaved")?;
    let rotated = count(call, "rotary_embedding_dim")?;
    if rotated.unwrap_or(2 * tables.half) != 2 * tables.half {
        return Err(call.invalid("`rotary_embedding_dim` does not fit the tables"));
    }
    let heads = match (count(call, "num_heads")?, x.shape()) {
        (None, &[_, _, all]) if rotated.is_none() => Some(all / (2 * tables.half).max(1)),
        (heads, _) => heads,
    };
    let mut rows = Heads::of(call, 0, heads)?;
    if rotated.is_none() && rows.width != 2 * tables.half {
        return Err(call.invalid(format!("heads of {} and {} angles", rows.width, tables.half)));
    }
    let (length, places) = (rows.length, if x.is_empty() { 0 } else { rows.batch * rows.length });
    let mut positions = integers(call, 1)?;
    if call.input(1)?.shape() == [1] {
        let start = positions[0];
        positions = (0..places).map(|place| start.saturating_add((place % length) as i64)).collect();
    } else {
        expect(call, 1, &[rows.batch, length])?;
    }
    for (place, &position) in positions.iter().enumerate().take(places) {
        tables.rotate(call, &mut rows, [place / length, place % length], position)?;
    }
    let values = if x.rank() == 3 { rows.side_by_side() } else { rows.values };
    Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?])
}

/// What is added to the scores: a mask over keys, causality, and a bias.
struct Mask<'a> {
    call: &'a Call<'a>,
    /// Whether each key of each sample, or of each query of it, is seen; empty when all are.
    seen: Vec<bool>,
    each_query: bool,
    queries: usize,
    keys: usize,
    /// Added where a key is not seen.
    filter: f64,
    /// The position of the first query, when none sees later ones.
    causal: Option<usize>,
    bias: Option<(Vec<f64>, Vec<isize>)>,
}

impl<'a> Mask<'a> {
    fn new(
        call: &'a Call<'a>,
        [mask_slot, bias_slot]: [usize; 2],
        q: &Heads,
        keys: usize,
        past: usize,
    ) -> Result<Mask<'a>, OpError> {
        let filter = f64::from(call.node.float("mask_filter_value").unwrap_or(-10000.0));
        let (batch, queries) = (q.batch, q.length);
        let (mut seen, mut each_query) = (Vec::new(), false);
        if let Some(mask) = call.optional(mask_slot) {
            let values = integers(call, mask_slot)?;
            let all = batch.saturating_mul(keys);
            call.check_size(DType::F64, &[all])?;
            match *mask.shape() {
                // Lengths, or ends and then starts.
                [count] if count == batch || count == 2 * batch => {
                    seen = (0..all)
                        .map(|at| {
                            let (sample, key) = (at / keys, (at % keys) as i64);
                            key < values[sample] && (count == batch || key >= values[batch + sample])
                        })
                        .collect();
                }
                [b, k] if (b, k) == (batch, keys) => seen = values.iter().map(|&flag| flag > 0).collect(),
                [b, s, k] if (b, s, k) == (batch, queries, keys) => {
                    (seen, each_query) = (values.iter().map(|&flag| flag > 0).collect(), true);
                }
                _ => return Err(call.unsupported(format!("a mask of shape {:?}", mask.shape()))),
            }
        }
        let bias = match call.optional(bias_slot) {
            Some(bias) => {
                if bias.rank() != 4 {
                    return Err(call.invalid(format!("a bias of shape {:?}", bias.shape())));
                }
                let strides = broadcast_strides(call, bias.shape(), &[batch, q.heads, queries, keys])?;
                Some((floats(call, bias_slot)?, strides))
            }
            None => None,
        };
        let causal = (call.node.int("unidirectional").unwrap_or(0) != 0).then_some(past);
        Ok(Mask { call, seen, each_query, queries, keys, filter, causal, bias })
    }

    fn at(&self, query: Query, key: usize) -> f64 {
        let row = if self.each_query { query.sample * self.queries + query.at } else { query.sample };
        let seen = self.seen.is_empty() || self.seen[row * self.keys + key];
        if self.causal.is_some_and(|past| key > past + query.at) {
            return f64::from(f32::MIN);
        }
        let bias = self.bias.as_ref().map_or(0.0, |(values, strides)| {
            let place = [query.sample, query.head, query.at, key];
            let place: isize = place.iter().zip(strides).map(|(&at, &stride)| at as isize * stride).sum();
            values[place as usize]
        });
        if seen { bias } else { bias + self.filter }
    }

    /// Attention with these masks.
    fn attend(&self, heads: [&Heads; 3]) -> Result<Heads, OpError> {
        let scale = self.call.node.float("scale").filter(|&scale| scale != 0.0);
        let scale = scale.map_or(1.0 / (heads[0].width as f64).sqrt(), f64::from);
        attend(self.call, heads, |query, scores| {
            for (key, score) in scores.iter_mut().enumerate() {
                // Binary32, like onnxruntime: where all keys are masked, what is left is its rounding.
                *score = f64::from((*score * scale + self.at(query, key)) as f32);
            }
            softmax(scores, DType::F64);
            Ok(())
        })
    }
}

/// Heads side by side as a tensor.
fn output(call: &Call<'_>, y: &Heads) -> Result<Tensor, OpError> {
    let shape = vec![y.batch, y.length, y.heads * y.width];
    float_tensor(call, call.input(0)?.dtype(), shape, &y.side_by_side())
}

/// Inputs: query, key, value, bias, key mask, score bias, past key, past value.
fn multi_head(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    refuse_inputs(call, &[8, 9])?;
    if call.wants(3) {
        return Err(call.unsupported("an output of scores"));
    }
    let heads = needed_count(call, "num_heads")?;
    let (Some(key), Some(value)) = (call.optional(1), call.optional(2)) else {
        return Err(call.unsupported("packed keys and values"));
    };
    if call.input(0)?.rank() != 3 || key.rank() != value.rank() {
        return Err(call.unsupported("packed queries"));
    }
    let cross = key.rank() == 4;
    let of = |slot| Heads::of(call, slot, Some(heads));
    let (mut q, mut k, mut v) = (of(0)?, of(1)?, of(2)?);
    if call.optional(3).is_some() {
        if cross {
            return Err(call.unsupported("a bias for keys in heads"));
        }
        let parts = [&mut q, &mut k, &mut v];
        expect(call, 3, &[parts.iter().map(|part| part.heads * part.width).sum()])?;
        let bias = floats(call, 3)?;
        let mut start = 0;
        for part in parts {
            let width = part.width;
            for (row, values) in part.values.chunks_mut(width.max(1)).enumerate() {
                let head = row / part.length % part.heads;
                let bias = &bias[start + head * width..start + (head + 1) * width];
                values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
            }
            start += width * part.heads;
        }
    }
    let mut past = 0;
    match (call.optional(6), call.optional(7)) {
        (None, None) => {}
        (Some(_), Some(_)) if !cross => {
            let (old_k, old_v) = (Heads::of(call, 6, None)?, Heads::of(call, 7, None)?);
            past = old_k.length;
            (k, v) = (old_k.then(call, &k)?, old_v.then(call, &v)?);
        }
        _ => return Err(call.unsupported("a past of only one of keys and values, or of keys in heads")),
    }
    let y = Mask::new(call, [4, 5], &q, k.length, past)?.attend([&q, &k, &v])?;
    let dtype = call.input(0)?.dtype();
    Ok(vec![
        output(call, &y)?,
        float_tensor(call, dtype, k.shape(), &k.values)?,
        float_tensor(call, dtype, v.shape(), &v.values)?,
    ])
}

/// Inputs: hidden states, weights of query, key and value side by side, bias, mask, past, score bias.
fn attention(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    refuse_flags(call, &["do_rotary", "past_present_share_buffer"])?;
    refuse_inputs(call, &[6])?;
    let heads = needed_count(call, "num_heads")?;
    let (&[batch, length, depth], &[rows, columns]) = (call.input(0)?.shape(), call.input(1)?.shape()) else {
        return Err(call.invalid("the input or the weights have the wrong number of dimensions"));
    };
    if rows != depth {
        return Err(call.invalid(format!("{rows} rows of weights for {depth} numbers")));
    }
    let widths = match call.node.ints("qkv_hidden_sizes") {
        Some(given) => sizes(call, given)?,
        None => vec![columns / 3; 3],
    };
    let fits = widths.len() == 3
        && widths.iter().copied().fold(0, usize::saturating_add) == columns
        && widths.iter().all(|width| width.is_multiple_of(heads));
    if !fits {
        return Err(call.invalid(format!("{columns} columns of weights as {widths:?} for {heads} heads")));
    }
    let (x, weights) = ((floats(call, 0)?, [batch, length, depth]), floats(call, 1)?);
    let (mut projected, _) = crate::matmul::float_product(call, (&x.0, &x.1), (&weights, &[depth, columns]))?;
    if call.optional(2).is_some() {
        expect(call, 2, &[columns])?;
        let bias = floats(call, 2)?;
        projected.iter_mut().enumerate().for_each(|(index, value)| *value += bias[index % columns]);
    }
    let part = |number: usize| {
        let start: usize = widths[..number].iter().sum();
        let rows = projected.chunks(columns.max(1));
        let values: Vec<f64> = rows.flat_map(|row| &row[start..start + widths[number]]).copied().collect();
        Heads::apart(&values, [batch, length, heads, widths[number] / heads])
    };
    let (q, mut k, mut v) = (part(0), part(1), part(2));
    let mut past = 0;
    if let Some(given) = call.optional(4) {
        let &[2, b, h, before, width] = given.shape() else {
            return Err(call.invalid(format!("a past of shape {:?}", given.shape())));
        };
        let values = floats(call, 4)?;
        let old =
            |values: &[f64]| Heads { batch: b, heads: h, length: before, width, values: values.to_vec() };
        let (old_k, old_v) = values.split_at(values.len() / 2);
        (k, v) = (old(old_k).then(call, &k)?, old(old_v).then(call, &v)?);
        past = before;
    }
    let y = Mask::new(call, [3, 5], &q, k.length, past)?.attend([&q, &k, &v])?;
    let mut outputs = vec![output(call, &y)?];
    if call.wants(1) {
        if k.width != v.width {
            return Err(call.unsupported("a present of keys and values that differ in width"));
        }
        let shape = [vec![2], k.shape()].concat();
        let dtype = call.input(0)?.dtype();
        outputs.push(float_tensor(call, dtype, shape, &[k.values, v.values].concat())?);
    }
    Ok(outputs)
}

/// Inputs: query, key, value, past key, past value, lengths less one, greatest length, cosines, sines,
/// positions, score bias, sinks. Queries come last among the keys and see none behind them.
fn group_query(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    refuse_flags(call, &["qk_output", "kv_cache_bit_width", "sliding_window_cache"])?;
    // Positions (which a prompt reads differently), quantized caches, normalized queries, padded ones.
    refuse_inputs(call, &[9, 12, 13, 14, 15, 16])?;
    if call.node.int("causal").unwrap_or(1) != 1 {
        return Err(call.unsupported("`causal` of 0"));
    }
    if call.wants(3) {
        return Err(call.unsupported("an output of scores"));
    }
    for name in ["k_quant_type", "v_quant_type"] {
        if !matches!(call.node.string(name), None | Some("NONE")) {
            return Err(call.unsupported(format!("`{name}`")));
        }
    }
    let (heads, kv_heads) = (needed_count(call, "num_heads")?, needed_count(call, "kv_num_heads")?);
    for slot in 0..3 {
        if let Some(tensor) = call.optional(slot).filter(|tensor| tensor.rank() != 3) {
            return Err(call.invalid(format!("input {slot} has shape {:?}", tensor.shape())));
        }
    }
    let (mut q, mut k, v) = match (call.optional(1), call.optional(2)) {
        (Some(_), Some(_)) => (
            Heads::of(call, 0, Some(heads))?,
            Heads::of(call, 1, Some(kv_heads))?,
            Heads::of(call, 2, Some(kv_heads))?,
        ),
        (None, None) => packed(call, heads, kv_heads)?,
        _ => return Err(call.invalid("only one of keys and values is given")),
    };
    if (k.batch, k.length) != (q.batch, q.length) || k.shape() != v.shape() {
        let shapes = [&q, &k, &v].map(Heads::shape);
        return Err(call.invalid(format!("query, key and value of {shapes:?} do not go together")));
    }
    let (batch, length) = (q.batch, q.length);
    let lengths = integers(call, 5)?;
    if lengths.len() != batch {
        return Err(call.invalid(format!("{} lengths for {batch} samples", lengths.len())));
    }
    let greatest = match integers(call, 6)?[..] {
        [greatest] => sizes(call, &[greatest])?[0],
        _ => return Err(call.invalid("more than one greatest length")),
    };
    let prompt = greatest == length;
    let mut befores = Vec::with_capacity(batch);
    for length_less_one in lengths {
        let before = length_less_one.checked_add(1).and_then(|total| total.checked_sub(length as i64));
        match before.and_then(|before| usize::try_from(before).ok()) {
            Some(before) if before + length <= greatest && (!prompt || before == 0) => befores.push(before),
            // Padding behind a prompt: what its rows become is nobody's business.
            _ => return Err(call.unsupported(format!("{length} new positions of {length_less_one} + 1"))),
        }
    }
    if call.node.int("do_rotary").unwrap_or(0) != 0 {
        let tables = Tables::of(call, 7, "rotary_interleaved")?;
        for place in 0..if q.values.is_empty() { 0 } else { batch * length } {
            let (sample, at) = (place / length, place % length);
            let position = (befores[sample] + at) as i64;
            tables.rotate(call, &mut q, [sample, at], position)?;
            tables.rotate(call, &mut k, [sample, at], position)?;
        }
    }
    let (k, v) = (cached(call, 3, &k, &befores, greatest)?, cached(call, 4, &v, &befores, greatest)?);
    if k.length != v.length {
        return Err(call.invalid("the past keys and values differ in length"));
    }
    let window = match call.node.int("local_window_size").unwrap_or(-1) {
        -1 => usize::MAX,
        size => match usize::try_from(size) {
            Ok(size) if size > 0 => size,
            _ => return Err(call.invalid(format!("`local_window_size` is {size}"))),
        },
    };
    let softcap = f64::from(call.node.float("softcap").unwrap_or(0.0));
    let scale = call.node.float("scale").filter(|&scale| scale != 0.0);
    let scale = scale.map_or(1.0 / (q.width as f64).sqrt(), f64::from);
    let bias = match call.optional(10) {
        Some(bias) => {
            let &[_, _, _, keys] = bias.shape() else {
                return Err(call.invalid(format!("a bias of shape {:?}", bias.shape())));
            };
            if keys < greatest {
                return Err(call.invalid(format!("a bias for {keys} of {greatest} keys")));
            }
            let strides = broadcast_strides(call, bias.shape(), &[batch, heads, length, keys])?;
            Some((floats(call, 10)?, strides))
        }
        None => None,
    };
    let sinks = match call.optional(11) {
        Some(_) => {
            expect(call, 11, &[heads])?;
            Some(floats(call, 11)?)
        }
        None => (call.node.int("smooth_softmax").unwrap_or(0) > 0).then(|| vec![0.0; heads]),
    };
    let y = attend(call, [&q, &k, &v], |query, scores| {
        let position = befores[query.sample] + query.at;
        // A key more, of no value, takes its part of the weights.
        let mut weights: Vec<f64> = Vec::with_capacity(position + 2);
        // The window counts the query's own position.
        let first = (position + 1).saturating_sub(window);
        for (key, score) in scores.iter().enumerate().take(position + 1).skip(first) {
            let capped = match *score * scale {
                score if softcap > 0.0 => (score / softcap).tanh() * softcap,
                score => score,
            };
            let bias = bias.as_ref().map_or(0.0, |(values, strides)| {
                let place = [query.sample, query.head, query.at, key];
                let place: isize = place.iter().zip(strides).map(|(&at, &stride)| at as isize * stride).sum();
                values[place as usize]
            });
            weights.push(capped + bias);
        }
        weights.extend(sinks.as_ref().map(|sinks| sinks[query.head]));
        softmax(&mut weights, DType::F64);
        scores.fill(0.0);
        scores[first..=position].iter_mut().zip(weights).for_each(|(score, weight)| *score = weight);
        Ok(())
    })?;
    let dtype = call.input(0)?.dtype();
    Ok(vec![
        output(call, &y)?,
        float_tensor(call, dtype, k.shape(), &k.values)?,
        float_tensor(call, dtype, v.shape(), &v.values)?,
    ])
}

/// Query, key and value side by side in one input.
fn packed(call: &Call<'_>, heads: usize, kv_heads: usize) -> Result<(Heads, Heads, Heads), OpError> {
    let together = heads.saturating_add(kv_heads.saturating_mul(2));
    let all = Heads::of(call, 0, Some(together))?;
    let part = |first: usize, heads: usize| {
        let size = all.length * all.width;
        let matrices = (0..if size == 0 { 0 } else { all.batch * heads }).flat_map(|matrix| {
            let start = (matrix / heads * together + first + matrix % heads) * size;
            all.values[start..start + size].iter().copied()
        });
        Heads { batch: all.batch, heads, length: all.length, width: all.width, values: matrices.collect() }
    };
    Ok((part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads)))
}

/// What a cache holds of each sample, and behind it the new rows; zeros up to its length.
fn cached(
    call: &Call<'_>,
    slot: usize,
    new: &Heads,
    befores: &[usize],
    greatest: usize,
) -> Result<Heads, OpError> {
    let past = match call.optional(slot) {
        Some(_) => Heads::of(call, slot, None)?,
        None => Heads { length: 0, values: Vec::new(), ..*new },
    };
    if (past.batch, past.heads, past.width) != (new.batch, new.heads, new.width) {
        return Err(call.invalid(format!("a past of shape {:?} for {:?}", past.shape(), new.shape())));
    }
    if let Some(before) = befores.iter().find(|&&before| before > past.length) {
        return Err(call.invalid(format!("{before} positions of a past of {}", past.length)));
    }
    let length = past.length.max(greatest);
    let shape = [new.batch, new.heads, length, new.width];
    call.check_size(DType::F64, &shape)?;
    let mut all = Heads { length, values: vec![0.0; crate::movement::product(&shape)], ..*new };
    if all.values.is_empty() {
        return Ok(all);
    }
    for (sample, &before) in befores.iter().enumerate() {
        for head in 0..new.heads {
            for at in 0..before {
                all.row_mut(sample, head, at).copy_from_slice(past.row(sample, head, at));
            }
            for at in 0..new.length {
                all.row_mut(sample, head, before + at).copy_from_slice(new.row(sample, head, at));
            }
        }
    }
    Ok(all)
}
