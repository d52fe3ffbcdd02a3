//! Attention.
//!
//! The standard defines it by simpler operators in the type of the query, so results are rounded to that
//! type after each step. What a query sees, and what becomes of its scores, is up to each operator; the
//! products are common to all.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{broadcast_strides, integers};
use crate::normalization::floats;
use crate::numbers::{float_tensor, narrow};
use crate::recurrent::expect;

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Attention", 23, attention),
    KernelSpec { domain: "ai.onnx.preview", op_type: "FlexAttention", since: 1, run: flex },
];

/// Queries, keys or values: a row of `width` numbers for each of `[batch, heads, length]`.
#[derive(Clone, Debug)]
pub(crate) struct Heads {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) length: usize,
    pub(crate) width: usize,
    pub(crate) values: Vec<f64>,
}

impl Heads {
    /// An input of 4 dimensions, or of 3 with `heads` side by side in the last.
    pub(crate) fn of(call: &Call<'_>, slot: usize, heads: Option<usize>) -> Result<Heads, OpError> {
        let values = floats(call, slot)?;
        match (call.input(slot)?.shape(), heads) {
            (&[batch, heads, length, width], _) => Ok(Heads { batch, heads, length, width, values }),
            (&[batch, length, all], Some(heads)) => {
                if heads == 0 || !all.is_multiple_of(heads) {
                    let what = format!("{all} numbers of input {slot} do not make {heads} heads");
                    return Err(call.invalid(what));
                }
                Ok(Heads::apart(&values, [batch, length, heads, all / heads]))
            }
            (&[_, _, _], None) => Err(call.invalid("with 3 dimensions the number of heads is needed")),
            (shape, _) => Err(call.invalid(format!("input {slot} has shape {shape:?}"))),
        }
    }

    /// From rows in the order `[batch, length, heads, width]`.
    pub(crate) fn apart(values: &[f64], [batch, length, heads, width]: [usize; 4]) -> Heads {
        let mut result = Vec::with_capacity(values.len());
        for row in 0..if values.is_empty() { 0 } else { batch * heads * length } {
            let (at, head, sample) = (row % length, row / length % heads, row / length / heads);
            let start = ((sample * length + at) * heads + head) * width;
            result.extend_from_slice(&values[start..start + width]);
        }
        Heads { batch, heads, length, width, values: result }
    }

    /// The rows in the order `[batch, length, heads, width]`.
    pub(crate) fn side_by_side(&self) -> Vec<f64> {
        Heads::apart(&self.values, [self.batch, self.heads, self.length, self.width]).values
    }

    pub(crate) fn row(&self, sample: usize, head: usize, at: usize) -> &[f64] {
        let start = ((sample * self.heads + head) * self.length + at) * self.width;
        &self.values[start..start + self.width]
    }

    pub(crate) fn row_mut(&mut self, sample: usize, head: usize, at: usize) -> &mut [f64] {
        let start = ((sample * self.heads + head) * self.length + at) * self.width;
        &mut self.values[start..start + self.width]
    }

    pub(crate) fn shape(&self) -> Vec<usize> {
        vec![self.batch, self.heads, self.length, self.width]
    }

    /// These rows, then the other ones.
    pub(crate) fn then(&self, call: &Call<'_>, other: &Heads) -> Result<Heads, OpError> {
        let fits = (self.batch, self.heads, self.width) == (other.batch, other.heads, other.width);
        if !fits {
            let what = format!("{:?} before and {:?} now do not go together", self.shape(), other.shape());
            return Err(call.invalid(what));
        }
        let length = self.length.saturating_add(other.length);
        call.check_size(DType::F64, &[self.batch, self.heads, length, self.width])?;
        let (old, new) = (self.length * self.width, other.length * other.width);
        let mut values = Vec::with_capacity(self.values.len() + other.values.len());
        for matrix in 0..if old + new == 0 { 0 } else { self.batch * self.heads } {
            values.extend_from_slice(&self.values[matrix * old..(matrix + 1) * old]);
            values.extend_from_slice(&other.values[matrix * new..(matrix + 1) * new]);
        }
        Ok(Heads { length, values, ..*self })
    }
}

/// Where a query is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    pub(crate) sample: usize,
    pub(crate) head: usize,
    pub(crate) at: usize,
}

/// For each query its products with all keys, which `finish` makes weights, times the values. Several
/// heads of the query may share one of the keys.
pub(crate) fn attend(
    call: &Call<'_>,
    [q, k, v]: [&Heads; 3],
    mut finish: impl FnMut(Query, &mut [f64]) -> Result<(), OpError>,
) -> Result<Heads, OpError> {
    let fits = q.batch == k.batch
        && (k.batch, k.heads, k.length) == (v.batch, v.heads, v.length)
        && q.width == k.width
        && q.heads > 0
        && k.heads > 0
        && q.heads.is_multiple_of(k.heads);
    if !fits || q.width == 0 {
        let shapes = [q, k, v].map(Heads::shape);
        return Err(call.invalid(format!("query, key and value of {shapes:?} do not go together")));
    }
    call.check_size(DType::F64, &[q.batch, q.heads, q.length, v.width])?;
    if q.values.is_empty() {
        // No queries, whatever the other sizes are.
        return Ok(Heads { width: v.width, values: Vec::new(), ..*q });
    }
    let share = q.heads / k.heads;
    let mut values = Vec::with_capacity(q.batch * q.heads * q.length * v.width);
    let mut scores = vec![0.0; k.length];
    for sample in 0..q.batch {
        for head in 0..q.heads {
            for at in 0..q.length {
                let query = q.row(sample, head, at);
                for (other, score) in scores.iter_mut().enumerate() {
                    let key = k.row(sample, head / share, other);
                    *score = query.iter().zip(key).map(|(a, b)| a * b).sum();
                }
                finish(Query { sample, head, at }, &mut scores)?;
                let start = values.len();
                values.resize(start + v.width, 0.0);
                for (other, &weight) in scores.iter().enumerate() {
                    let row = v.row(sample, head / share, other);
                    values[start..].iter_mut().zip(row).for_each(|(sum, value)| *sum += weight * value);
                }
            }
        }
    }
    Ok(Heads { batch: q.batch, heads: q.heads, length: q.length, width: v.width, values })
}

/// Softmax in place, rounded to a type at each step; all zero when every score is minus infinity.
pub(crate) fn softmax(scores: &mut [f64], dtype: DType) {
    let round = narrow(dtype);
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if greatest == f64::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
        scores.fill(0.0);
        return;
    }
    scores.iter_mut().for_each(|score| *score = round(round(*score - greatest).exp()));
    let sum = match dtype {
        // The standard's cases have it so: term by term in bfloat16, in more digits otherwise.
        DType::BF16 => scores.iter().fold(0.0, |sum, score| round(sum + score)),
        _ => round(scores.iter().sum()),
    };
    scores.iter_mut().for_each(|score| *score = round(*score / sum));
}

/// Numbers added to the scores of `[batch, heads, queries, keys]`, broadcast.
pub(crate) struct Bias {
    values: Vec<f64>,
    strides: Vec<isize>,
    /// Keys it is for; the ones behind are not seen.
    keys: usize,
}

impl Bias {
    /// Input `slot`: true where a key is seen, or numbers. Its last dimension may be short.
    pub(crate) fn of(
        call: &Call<'_>,
        slot: usize,
        [batch, heads, queries, keys]: [usize; 4],
    ) -> Result<Option<Bias>, OpError> {
        let Some(mask) = call.optional(slot) else { return Ok(None) };
        let values: Vec<f64> = match mask.bools() {
            Ok(seen) => seen.iter().map(|&seen| if seen { 0.0 } else { f64::NEG_INFINITY }).collect(),
            Err(_) => floats(call, slot)?,
        };
        let own = mask.shape().last().copied().unwrap_or(keys);
        if own > keys {
            return Err(call.invalid(format!("a mask for {own} keys, but there are {keys}")));
        }
        if own == 1 && keys > 1 {
            // For all keys, or for the first one only? The standard can be read both ways.
            return Err(call.unsupported("a mask whose last dimension is 1"));
        }
        let strides = broadcast_strides(call, mask.shape(), &[batch, heads, queries, own])?;
        Ok(Some(Bias { values, strides, keys: own }))
    }

    pub(crate) fn at(&self, query: Query, key: usize) -> f64 {
        if key >= self.keys {
            return f64::NEG_INFINITY;
        }
        let index = [query.sample, query.head, query.at, key];
        let place: isize = index.iter().zip(&self.strides).map(|(&at, &stride)| at as isize * stride).sum();
        self.values[place as usize]
    }
}

/// A count of heads, when the attribute is there.
fn head_count(call: &Call<'_>, name: &str) -> Result<Option<usize>, OpError> {
    let count = |number: i64| {
        usize::try_from(number).map_err(|_| call.invalid(format!("`{name}` is {number}, a count is needed")))
    };
    call.node.int(name).map(count).transpose()
}

/// `softmax(Q K^T scale + bias) V`, versions 23 to 25.
fn attention(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (q_heads, kv_heads) = (head_count(call, "q_num_heads")?, head_count(call, "kv_num_heads")?);
    let mut q = Heads::of(call, 0, q_heads)?;
    let (mut k, mut v) = (Heads::of(call, 1, kv_heads)?, Heads::of(call, 2, kv_heads)?);
    let dtype = call.input(0)?.dtype();
    let round = narrow(dtype);
    let past = match (call.optional(4), call.optional(5)) {
        (Some(_), Some(_)) => {
            let (old_k, old_v) = (Heads::of(call, 4, None)?, Heads::of(call, 5, None)?);
            (k, v) = (old_k.then(call, &k)?, old_v.then(call, &v)?);
            Some(old_k.length)
        }
        (None, None) => None,
        _ => return Err(call.invalid("the past of only one of keys and values is given")),
    };
    let present = [
        float_tensor(call, call.input(1)?.dtype(), k.shape(), &k.values)?,
        float_tensor(call, call.input(2)?.dtype(), v.shape(), &v.values)?,
    ];
    // Valid keys of each sample.
    let valid = match call.optional(6) {
        Some(_) if past.is_some() => return Err(call.invalid("a past and a count of valid keys exclude")),
        Some(_) => {
            expect(call, 6, &[q.batch])?;
            Some(integers(call, 6)?)
        }
        None => None,
    };
    // The position among the keys of each sample's first query.
    let first = |sample: usize| match (past, &valid) {
        (Some(past), _) => past as i64,
        (None, Some(valid)) => valid[sample].saturating_sub(q.length as i64),
        (None, None) => 0,
    };
    let first: Vec<i64> = (0..q.batch.min(q.values.len())).map(first).collect();
    let mask = Bias::of(call, 3, [q.batch, q.heads, q.length, k.length])?;
    let causal = call.node.int("is_causal").unwrap_or(0) != 0;
    let window = |name: &str| match call.node.int(name).unwrap_or(-1) {
        -1 => Ok(i64::MAX),
        size if size >= 0 => Ok(size),
        other => Err(call.invalid(format!("`{name}` is {other}"))),
    };
    let (left, right) = (window("left_window_size")?, window("right_window_size")?);
    let bias = |query: Query, key: usize| {
        let (position, key_at) = (first[query.sample].saturating_add(query.at as i64), key as i64);
        let seen = (!causal || key_at <= position)
            && position.saturating_sub(key_at) <= left
            && key_at.saturating_sub(position) <= right
            && valid.as_ref().is_none_or(|valid| key_at < valid[query.sample]);
        let masked = if seen { 0.0 } else { f64::NEG_INFINITY };
        mask.as_ref().map_or(masked, |mask| mask.at(query, key) + masked)
    };
    let scale = call.node.float("scale").map_or(1.0 / (q.width as f64).sqrt(), f64::from);
    let scale = round(scale.sqrt());
    q.values.iter_mut().for_each(|value| *value = round(*value * scale));
    k.values.iter_mut().for_each(|value| *value = round(*value * scale));
    let softcap = f64::from(call.node.float("softcap").unwrap_or(0.0));
    let precision = precision(call)?.unwrap_or(dtype);
    let to_precision = narrow(precision);
    let mode = call.node.int("qk_matmul_output_mode").unwrap_or(0);
    let shape = vec![q.batch, q.heads, q.length, k.length];
    let mut shown = Vec::new();
    if call.wants(3) {
        call.check_size(DType::F64, &shape)?;
    }
    let mut show = |wanted: i64, scores: &[f64]| {
        if call.wants(3) && mode == wanted {
            shown.extend_from_slice(scores);
        }
    };
    let y = attend(call, [&q, &k, &v], |query, scores| {
        scores.iter_mut().for_each(|score| *score = round(*score));
        show(0, scores);
        if softcap > 0.0 {
            let cap = |score: f64| round(round(round(score / softcap).tanh()) * softcap);
            scores.iter_mut().for_each(|score| *score = cap(*score));
        }
        show(1, scores);
        let mut nothing_seen = true;
        for (key, score) in scores.iter_mut().enumerate() {
            let bias = bias(query, key);
            nothing_seen &= bias == f64::NEG_INFINITY;
            *score = round(*score + bias);
        }
        show(2, scores);
        scores.iter_mut().for_each(|score| *score = to_precision(*score));
        softmax(scores, precision);
        if nothing_seen {
            scores.fill(0.0);
        }
        scores.iter_mut().for_each(|score| *score = round(*score));
        show(3, scores);
        Ok(())
    })?;
    let y = if call.input(0)?.rank() == 3 {
        float_tensor(call, dtype, vec![y.batch, y.length, y.heads * y.width], &y.side_by_side())?
    } else {
        float_tensor(call, dtype, y.shape(), &y.values)?
    };
    let [k, v] = present;
    let mut outputs = vec![y, k, v];
    if call.wants(3) {
        if !(0..=3).contains(&mode) {
            return Err(call.invalid(format!("`qk_matmul_output_mode` is {mode}")));
        }
        outputs.push(float_tensor(call, dtype, shape, &shown)?);
    }
    Ok(outputs)
}

/// The type the softmax is computed in, when the node names one.
fn precision(call: &Call<'_>) -> Result<Option<DType>, OpError> {
    let Some(code) = call.node.int("softmax_precision") else { return Ok(None) };
    match i32::try_from(code).ok().and_then(DType::from_onnx) {
        Some(dtype @ (DType::F16 | DType::BF16 | DType::F32 | DType::F64)) => Ok(Some(dtype)),
        _ => Err(call.invalid(format!("`softmax_precision` is {code}"))),
    }
}

/// `FlexAttention` without its subgraphs.
fn flex(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    if let Some(name) = ["score_mod", "prob_mod"].into_iter().find(|name| call.node.attribute(name).is_some())
    {
        return Err(call.unsupported(format!("the subgraph `{name}`")));
    }
    for slot in 0..3 {
        if call.input(slot)?.rank() != 4 {
            return Err(call.invalid(format!("input {slot} has shape {:?}", call.input(slot)?.shape())));
        }
    }
    let (mut q, mut k, v) = (Heads::of(call, 0, None)?, Heads::of(call, 1, None)?, Heads::of(call, 2, None)?);
    let dtype = call.input(0)?.dtype();
    let round = narrow(dtype);
    let scale = call.node.float("scale").map_or(1.0 / (q.width as f64).sqrt(), f64::from);
    let scale = round(scale.sqrt());
    q.values.iter_mut().for_each(|value| *value = round(*value * scale));
    k.values.iter_mut().for_each(|value| *value = round(*value * scale));
    let default = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let precision = precision(call)?.unwrap_or(default);
    let to_precision = narrow(precision);
    let y = attend(call, [&q, &k, &v], |_, scores| {
        scores.iter_mut().for_each(|score| *score = to_precision(round(*score)));
        softmax(scores, precision);
        Ok(())
    })?;
    Ok(vec![float_tensor(call, dtype, y.shape(), &y.values)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
        attention(&Call::new(node, 25, inputs))
    }

    #[test]
    fn a_query_that_sees_nothing_gives_zero() {
        let x = Tensor::from_vec(vec![1, 1, 2, 1], vec![1f32, 2.0]);
        let mask = Tensor::from_bools(vec![2, 2], &[false, false, true, false]);
        let node = Node::new("Attention", []);
        let y = &run(&node, &[Some(&x), Some(&x), Some(&x), Some(&mask)]).unwrap()[0];
        assert_eq!(y.to_f64s().unwrap(), [0.0, 1.0]);
    }

    #[test]
    fn misfits_are_refused() {
        let node = Node::new("Attention", []);
        let of = |shape: &[usize]| Tensor::zeros(DType::F32, shape).unwrap();
        let good = of(&[1, 2, 3, 4]);
        let shapes: [&[usize]; 8] = [
            &[1, 2, 3],
            &[1, 2, 3, 5],
            &[2, 2, 3, 4],
            &[1, 3, 3, 4],
            &[1, 0, 3, 4],
            &[1, 2, 3, 0],
            &[],
            &[1 << 40, 1 << 20, 0, 4],
        ];
        for shape in shapes {
            let bad = of(shape);
            for inputs in [[&bad, &good, &good], [&good, &bad, &good]] {
                assert!(run(&node, &inputs.map(Some)).is_err(), "{shape:?}");
            }
        }
        let nothing = of(&[1 << 40, 1 << 20, 0, 4]);
        assert!(run(&node, &[Some(&nothing); 3]).is_ok());
    }
}
