//! Onnxruntime's own operators, domain `com.microsoft`: those that its optimizer and exporters write.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, one};
use crate::infer::convolution::{convolve, pool};
use crate::infer::dims::{self, Outcome, broadcast_two, show, sum, unknowns, wrong};
use crate::infer::expr::Expr;
use crate::infer::fact::Fact;
use crate::infer::linear::{gemm, product, product_of};
use crate::infer::quantize::{dequantize, quantize};
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Attention", attention),
    ("BiasGelu", same),
    ("DequantizeLinear", dequantize),
    ("DynamicQuantizeMatMul", |call| one(call.dtype(0), product(call, 0, 1)?)),
    ("EmbedLayerNormalization", embed),
    ("FastGelu", same),
    ("FusedConv", |call| convolve(call, 0, 1, call.dtype(0))),
    ("FusedGemm", gemm),
    ("FusedMatMul", fused_mat_mul),
    ("Gelu", same),
    ("GroupQueryAttention", group_query),
    ("MatMulIntegerToFloat", |call| one(call.dtype(2).or(call.dtype(3)), product(call, 0, 1)?)),
    ("MatMulNBits", mat_mul_n_bits),
    ("MultiHeadAttention", multi_head),
    ("QGemm", q_gemm),
    ("QLinearAdd", |call| broadcast(call, &[0, 3])),
    ("QLinearAveragePool", average_pool),
    ("QLinearConcat", concat),
    ("QLinearGlobalAveragePool", global_pool),
    ("QLinearLeakyRelu", same),
    ("QLinearMul", |call| broadcast(call, &[0, 3])),
    ("QLinearSigmoid", same),
    ("QLinearSoftmax", same),
    ("QLinearWhere", where_quantized),
    ("QuantizeLinear", quantize),
    ("QuickGelu", same),
    ("RotaryEmbedding", same),
    ("SkipLayerNormalization", skip),
    ("SkipSimplifiedLayerNormalization", skip),
];

fn same(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    Ok(vec![call.like(0)])
}

/// The fourth output is the sum; between are statistics that nothing writes.
fn skip(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    Ok(vec![call.like(0), Fact::unknown(), Fact::unknown(), call.like(0)])
}

fn embed(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(2);
    let (ids, words) = (call.shape(0).map(Vec::as_slice), call.shape(2).map(Vec::as_slice));
    let (Some([batch, length]), Some([_, width])) = (ids, words) else { return one(dtype, None) };
    let output = Fact::tensor(dtype, Some(vec![batch.clone(), length.clone(), width.clone()]));
    let counts = Fact::tensor(Some(DType::I32), Some(vec![batch.clone()]));
    Ok(vec![output.clone(), counts, output])
}

fn mat_mul_n_bits(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let Some(shape) = call.shape(0) else { return one(dtype, None) };
    let Some((last, rows)) = shape.split_last() else { return wrong("the input is a scalar") };
    dims::same(last, &dims::size(call.int("K", 0), "`K`")?, "the last size of the input and `K`")?;
    let columns = dims::size(call.int("N", 0), "`N`")?;
    one(dtype, Some([rows, &[columns]].concat()))
}

fn fused_mat_mul(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0).or(call.dtype(1));
    let (Some(a), Some(b)) = (call.shape(0), call.shape(1)) else { return one(dtype, None) };
    if call.flag("transBatchA") || call.flag("transBatchB") {
        return one(dtype, None);
    }
    let turned = |shape: &Shape, flag: &str| {
        let (mut shape, rank) = (shape.clone(), shape.len());
        if call.flag(flag) && rank > 1 {
            shape.swap(rank - 2, rank - 1);
        }
        shape
    };
    one(dtype, Some(product_of(&turned(a, "transA"), &turned(b, "transB"))?))
}

fn q_gemm(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = if call.has(7) { call.dtype(8).or(call.dtype(0)) } else { Some(DType::F32) };
    let operand = |slot: usize, flag: &str| match call.shape(slot).map(Vec::as_slice) {
        Some([rows, columns]) if call.flag(flag) => Ok([columns.clone(), rows.clone()]),
        Some([rows, columns]) => Ok([rows.clone(), columns.clone()]),
        Some(shape) => wrong(format!("operands need two dimensions, but input {slot} is {}", show(shape))),
        None => Ok([Dim::Unknown, Dim::Unknown]),
    };
    let ([rows, inner], [other, columns]) = (operand(0, "transA")?, operand(3, "transB")?);
    dims::same(&inner, &other, "inner dimensions of the product")?;
    one(dtype, Some(vec![rows, columns]))
}

fn broadcast(call: &Call<'_>, slots: &[usize]) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(slots[0]);
    let mut result = Shape::new();
    for &slot in slots {
        let Some(shape) = call.shape(slot) else { return one(dtype, None) };
        result = broadcast_two(&result, shape)?;
    }
    one(dtype, Some(result))
}

fn where_quantized(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let mut facts = broadcast(call, &[0, 1, 4])?;
    facts[0] = Fact::tensor(call.dtype(1), facts[0].shape().cloned());
    Ok(facts)
}

/// Each third input from the third on is one of the parts.
fn concat(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let slots: Vec<usize> = (2..call.inputs.len()).step_by(3).collect();
    let dtype = slots.iter().find_map(|&slot| call.dtype(slot));
    let Some(rank) = slots.iter().find_map(|&slot| call.rank(slot)) else { return one(dtype, None) };
    let axis = call.axis(1, rank)?;
    let (mut result, mut parts) = (unknowns(rank), Vec::new());
    for slot in slots {
        let Some(shape) = call.shape(slot) else {
            parts.push(Dim::Unknown);
            continue;
        };
        if shape.len() != rank {
            return wrong(format!("inputs of {rank} and of {} dimensions", shape.len()));
        }
        parts.push(shape[axis].clone());
        for (index, dim) in shape.iter().enumerate().filter(|(index, _)| *index != axis) {
            result[index] = dims::same(&result[index], dim, "sizes off the axis of concatenation")?;
        }
    }
    result[axis] = sum(&parts)?;
    one(dtype, Some(result))
}

fn average_pool(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    if call.flag("channels_last") {
        return one(call.dtype(0), call.rank(0).map(unknowns));
    }
    pool(call)
}

fn global_pool(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let mut shape = call.shape(0).cloned();
    if let Some(shape) = &mut shape {
        let rank = shape.len();
        if rank < 3 {
            return wrong(format!("the input {} has no spatial dimensions", show(shape)));
        }
        let spatial = if call.flag("channels_last") { 1..rank - 1 } else { 2..rank };
        shape[spatial].fill(Dim::Fixed(1));
    }
    one(call.dtype(0), shape)
}

/// A dimension divided by a count from an attribute; unknown without one.
fn share(all: &Dim, count: i64) -> Outcome<Dim> {
    if count <= 0 {
        return Ok(Dim::Unknown);
    }
    dims::map(all, |all| all.floor_div(count))
}

/// What came before, of which dimension `axis` of input `slot` tells, and what comes now.
fn total(call: &Call<'_>, slot: usize, axis: usize, now: &Dim) -> Outcome<Dim> {
    match (call.has(slot), call.shape(slot).and_then(|shape| shape.get(axis))) {
        (false, _) => Ok(now.clone()),
        (true, Some(before)) => sum([before, now]),
        (true, None) => Ok(Dim::Unknown),
    }
}

fn multi_head(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let heads = call.int("num_heads", 0);
    let (Some([batch, length, _]), Some(value), true) =
        (call.shape(0).map(Vec::as_slice), call.shape(2), heads > 0)
    else {
        return one(dtype, None);
    };
    let widths = match (call.shape(1).map(Vec::as_slice), value.as_slice()) {
        (Some([_, keys, key]), [_, _, value]) => {
            let present = |slot: usize, all: &Dim| -> Outcome<Fact> {
                // With a length of the past given, past and present are one buffer.
                let keys = if call.has(8) { Dim::Unknown } else { total(call, slot, 2, keys)? };
                let heads = Dim::Fixed(usize::try_from(heads).unwrap_or(0));
                Ok(Fact::tensor(dtype, Some(vec![batch.clone(), heads, keys, share(all, heads_of(call))?])))
            };
            Some((value.clone(), vec![present(6, key)?, present(7, value)?]))
        }
        (_, [_, heads, _, width]) => Some((dims::product([heads, width])?, Vec::new())),
        _ => None,
    };
    let Some((width, present)) = widths else { return one(dtype, None) };
    let output = Fact::tensor(dtype, Some(vec![batch.clone(), length.clone(), width]));
    Ok([vec![output], present].concat())
}

fn heads_of(call: &Call<'_>) -> i64 {
    call.int("num_heads", 0)
}

fn attention(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let (Some([batch, length, _]), Some([_, columns])) =
        (call.shape(0).map(Vec::as_slice), call.shape(1).map(Vec::as_slice))
    else {
        return one(dtype, None);
    };
    let width = match call.node.ints("qkv_hidden_sizes") {
        Some([_, _, width]) => dims::size(*width, "a size in `qkv_hidden_sizes`")?,
        Some(other) => return wrong(format!("`qkv_hidden_sizes` has {} entries, not 3", other.len())),
        None => share(columns, 3)?,
    };
    let output = Fact::tensor(dtype, Some(vec![batch.clone(), length.clone(), width.clone()]));
    let heads = heads_of(call);
    let keys = match call.flag("past_present_share_buffer") {
        true => Dim::Unknown,
        false => total(call, 4, 3, length)?,
    };
    let present =
        vec![Dim::Fixed(2), batch.clone(), dims::size(heads, "`num_heads`")?, keys, share(&width, heads)?];
    Ok(vec![output, Fact::tensor(dtype, Some(present))])
}

/// The present may be as long as the past, where that is a buffer with room.
fn group_query(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let (heads, kv_heads) = (heads_of(call), call.int("kv_num_heads", 0));
    let Some([batch, length, all]) = call.shape(0).map(Vec::as_slice) else { return one(dtype, None) };
    if heads <= 0 || kv_heads <= 0 {
        return wrong("`num_heads` and `kv_num_heads` are needed");
    }
    let together = kv_heads.checked_mul(2).and_then(|two| two.checked_add(heads)).unwrap_or(0);
    let size = share(all, if call.has(1) { heads } else { together })?;
    let width = dims::map(&size, |size| size.mul(&Expr::from(heads)))?;
    let present = |slot: usize| {
        let shape = vec![batch.clone(), Dim::Fixed(kv_heads as usize), Dim::Unknown, size.clone()];
        // A quantized cache has a type, and a packed width, of its own.
        let plain = call.int("kv_cache_bit_width", 0) == 0;
        Fact::tensor(if call.has(slot) { call.dtype(slot) } else { dtype }, plain.then_some(shape))
    };
    let output = Fact::tensor(dtype, Some(vec![batch.clone(), length.clone(), width]));
    Ok(vec![output, present(3), present(4)])
}
