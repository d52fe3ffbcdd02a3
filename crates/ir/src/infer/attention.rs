//! Attention.

use crate::infer::call::{Call, Rule, one};
use crate::infer::dims::{self, Outcome, product, sum, wrong};
use crate::infer::fact::Fact;
use crate::types::Dim;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Attention", attention),
    ("LinearAttention", linear_attention),
    ("RotaryEmbedding", |call| Ok(vec![call.like(0)])),
];

/// Batch, heads, length and width of a query, key or value, given as 4 dimensions or as 3 with the heads
/// side by side in the last.
fn heads(call: &Call<'_>, slot: usize, attribute: &str) -> Outcome<Option<[Dim; 4]>> {
    Ok(match call.shape(slot).map(Vec::as_slice) {
        Some([batch, heads, length, width]) => {
            Some([batch.clone(), heads.clone(), length.clone(), width.clone()])
        }
        Some([batch, length, all]) => {
            let count = call.int(attribute, 0);
            if count <= 0 {
                return wrong(format!("with 3 dimensions `{attribute}` is needed"));
            }
            let width = dims::map(all, |all| all.floor_div(count))?;
            Some([batch.clone(), dims::size(count, attribute)?, length.clone(), width])
        }
        Some(shape) => {
            return wrong(format!("input {slot} has {} dimensions, but 3 or 4 are needed", shape.len()));
        }
        None => None,
    })
}

fn attention(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let query = heads(call, 0, "q_num_heads")?;
    let key = heads(call, 1, "kv_num_heads")?;
    let value = heads(call, 2, "kv_num_heads")?;
    let (Some([batch, q_heads, length, _]), Some([_, _, _, v_width])) = (query, value.clone()) else {
        return one(dtype, None);
    };
    let output = if call.rank(0) == Some(3) {
        vec![batch.clone(), length.clone(), product([&q_heads, &v_width])?]
    } else {
        vec![batch.clone(), q_heads.clone(), length.clone(), v_width]
    };
    let mut facts = one(dtype, Some(output))?;
    // What was there before comes first.
    let mut total = Dim::Unknown;
    for (slot, now) in [(4, key), (5, value)] {
        let shape = match now {
            Some([batch, heads, length, width]) => {
                let past = call.shape(slot).map(|shape| shape.get(2).cloned().unwrap_or(Dim::Unknown));
                let past = past.unwrap_or(if call.has(slot) { Dim::Unknown } else { Dim::Fixed(0) });
                total = sum([&past, &length])?;
                Some(vec![batch, heads, total.clone(), width])
            }
            None => None,
        };
        facts.push(Fact::tensor(call.dtype(if slot == 4 { 1 } else { 2 }), shape));
    }
    facts.push(Fact::tensor(dtype, Some(vec![batch, q_heads, length, total])));
    Ok(facts)
}

/// Heads lie side by side; the state is one matrix a head.
fn linear_attention(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let query = heads(call, 0, "q_num_heads")?;
    let key = heads(call, 1, "kv_num_heads")?;
    let value = heads(call, 2, "kv_num_heads")?;
    let (Some([batch, q_heads, length, _]), Some([_, heads, _, k_width]), Some([_, _, _, v_width])) =
        (query, key, value)
    else {
        return one(dtype, None);
    };
    let output = vec![batch.clone(), length, product([&q_heads, &v_width])?];
    let state = Fact::tensor(call.dtype(3).or(dtype), Some(vec![batch, heads, k_width, v_width]));
    Ok(vec![Fact::tensor(dtype, Some(output)), state])
}
