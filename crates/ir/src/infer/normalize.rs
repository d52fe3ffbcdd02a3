//! Normalizations, softmax and losses.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, one};
use crate::infer::dims::Outcome;
use crate::infer::fact::Fact;
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("BatchNormalization", batch),
    ("GroupNormalization", same),
    ("Hardmax", softmax),
    ("InstanceNormalization", same),
    ("LayerNormalization", layer),
    ("LogSoftmax", softmax),
    ("LpNormalization", softmax),
    ("LRN", same),
    ("MeanVarianceNormalization", same),
    ("NegativeLogLikelihoodLoss", |call| loss(call, false)),
    ("RMSNormalization", same),
    // Onnxruntime's, in the standard's domain.
    ("SimplifiedLayerNormalization", simplified),
    ("Softmax", softmax),
    ("SoftmaxCrossEntropyLoss", |call| loss(call, true)),
];

fn same(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    Ok(vec![call.like(0)])
}

fn softmax(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    if let Some(rank) = call.rank(0)
        && rank > 0
    {
        call.axis(-1, rank)?;
    }
    same(call)
}

/// Statistics follow the output when training: one value a channel.
fn batch(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let mut facts = vec![call.like(0)];
    let channels = call.shape(0).and_then(|shape| shape.get(1)).cloned().unwrap_or(Dim::Unknown);
    for slot in 1..call.output_count() {
        // Types of the mean and variance given, which may differ from the input's.
        let dtype = call.dtype(if slot % 2 == 1 { 3 } else { 4 });
        facts.push(Fact::tensor(dtype, Some(vec![channels.clone()])));
    }
    Ok(facts)
}

/// The second output, of inverse deviations, is always of binary32.
fn simplified(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let mut facts = layer(call)?;
    facts.pop();
    facts[0] = Fact::tensor(call.dtype(1), call.shape(0).cloned());
    facts[1] = Fact::tensor(Some(DType::F32), facts[1].shape().cloned());
    Ok(facts)
}

fn layer(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let statistics = DType::from_onnx(i32::try_from(call.int("stash_type", 1)).unwrap_or(0));
    let reduced = match call.shape(0) {
        Some(shape) => {
            let axis = call.axis(-1, shape.len())?;
            let kept = shape.iter().enumerate();
            Some(
                kept.map(|(index, dim)| if index < axis { dim.clone() } else { Dim::Fixed(1) })
                    .collect::<Shape>(),
            )
        }
        None => None,
    };
    Ok(vec![call.like(0), Fact::tensor(statistics, reduced.clone()), Fact::tensor(statistics, reduced)])
}

fn loss(call: &Call<'_>, with_log: bool) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let shape = match call.node.string("reduction").unwrap_or("mean") {
        "none" => call.shape(1).cloned(),
        _ => Some(Shape::new()),
    };
    let mut facts = one(dtype, shape)?;
    if with_log {
        facts.push(call.like(0));
    }
    Ok(facts)
}
