//! Weights rounded for what layers compute, and not each for itself.

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId};
use optix_pipeline::{
    Cx, DecisionError, Family, Interface, Layer, Named, Numerics, PackedBits, Pass, PassError, Promises,
    Requires, Topology,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantized::constant_bytes;
use super::reconstruct::{self, Rounded, Wanted};
use super::stored_weight::{FLOAT, StoredWeight, stored_weight};
use crate::decided::named_at;
use crate::judge::Judge;
use crate::moments;
use crate::names::{check_patterns, not_excluded};
use crate::samples::{self, Divided};
use crate::unroll::Unrolled;

/// Rounds integer weights again, so that layers compute what they compute in float.
///
/// Rounding every weight to the nearest integer is best for each weight alone, and not for their sum of
/// products with inputs that go together. This step moves weights to the other integer beside them wherever
/// that brings the layer nearer to what float weights would make of the same inputs: those that it reads on
/// calibration data, with the layers before it in integers already. Scales and sizes stay. The error is known
/// exactly for every move, so moves are made one at a time as long as they help (coordinate descent over
/// AdaRound's objective). The result is kept where layers and outputs come nearer to the float model on samples
/// that nothing was learned from.
///
/// Put it behind the steps that quantize, in the same recipe: it compares with the model as it was before
/// them. It finds weights of Conv, Gemm and MatMul behind a `DequantizeLinear` (of a tensor, a channel or a
/// block) or stored by `compress-weights`. Weights that kernels add up in pairs stay within what they can hold.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct LearnRounding {
    /// Calibration samples to learn from at most, taken evenly from the data: a quarter of them, but 8 in any
    /// case. Up to 16 others, a sixth of all, are judged by. 0 leaves weights as they are.
    pub samples: usize,
    /// Leave the weights of these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for LearnRounding {
    fn default() -> Self {
        LearnRounding { samples: 48, exclude: Vec::new() }
    }
}

impl Named for LearnRounding {
    const NAME: &'static str = "learn-rounding";
    const FAMILY: Family = Family::Quantize;
}

/// Samples that a part is judged by.
const JUDGED: usize = 16;

/// Share of the error that must be expected to go: less is chance.
const WORTHWHILE: f64 = 0.03;

/// A layer as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    /// Its name, for people.
    node: String,
    /// Its place in the order of execution.
    place: usize,
    /// Which of its weights are moved, output channel by output channel.
    moved: PackedBits,
    /// Of those that are moved, which are moved up.
    up: PackedBits,
    /// By which factor the error at its output changed.
    error: f64,
}

/// A layer whose weights may be rounded again.
struct Candidate {
    node: NodeId,
    place: usize,
    unrolled: Unrolled,
}

impl LearnRounding {
    /// A node's layer; `None` for nodes without weights in integers that nobody would expect anything of.
    fn examine(&self, model: &Model, node: NodeId, place: usize) -> Option<Result<Candidate, String>> {
        if !matches!(model.node(node).op_type.as_str(), "Conv" | "Gemm" | "MatMul" | "ConvTranspose")
            || !model.node(node).domain().is_empty()
        {
            return None;
        }
        let weight = match stored_weight(model, node) {
            Ok(weight) => weight,
            Err(reason) if reason == FLOAT => return None,
            Err(reason) => return Some(Err(reason)),
        };
        if model.node(node).graph() != model.main() {
            return Some(Err("it lies in a body of control flow, where nothing is observed".to_owned()));
        }
        let made = not_excluded(model, node, &self.exclude)
            .and_then(|()| Unrolled::of(model, node, &weight.shape).map_err(str::to_owned));
        Some(made.map(|unrolled| Candidate { node, place, unrolled }))
    }

    /// Learns part by part; what was found for each layer that gains.
    fn learn(
        &self,
        model: &Model,
        candidates: &[Candidate],
        cx: &mut Cx<'_>,
    ) -> Result<Vec<Recorded>, PassError> {
        if !cx.has_calibration() {
            cx.warn(
                "statistics do not say how to round: weights stay at the nearest integer without `--calib`",
            );
            return Ok(Vec::new());
        }
        let Some(float) = cx.float().cloned() else {
            return Err(PassError::Options(
                "it compares with the model before it was quantized: put it behind the step that quantizes, in the \
                 same recipe"
                    .to_owned(),
            ));
        };
        let Divided { batches, judged } =
            samples::divide(model, self.samples, JUDGED, cx)?.in_proportion(self.samples, cx)?;
        if judged.len() < 2 || batches.is_empty() {
            cx.warn("too few calibration samples to learn how to round: weights stay as they are");
            return Ok(Vec::new());
        }
        let nodes = candidates.iter().map(|layer| layer.node).collect();
        let judge = Judge::new(&float, nodes, &judged, cx)?;
        let mut current = model.clone();
        let first = judge.errors(&current, cx)?;
        let mut errors = first.clone();
        let parts = moments::parts(candidates, &|candidate| &candidate.unrolled);
        let (mut found, mut dropped) = (Vec::new(), 0usize);
        for (index, part) in parts.iter().enumerate() {
            cx.progress("learning how to round", index as u64, parts.len() as u64)?;
            let wanted: Vec<Wanted<'_>> =
                part.iter().map(|layer| Wanted { node: layer.node, unrolled: &layer.unrolled }).collect();
            let rounded = reconstruct::round(&float, &current, &wanted, &batches, cx)?;
            let mut next = current.clone();
            let mut of_part = Vec::new();
            for (layer, rounded) in part.iter().zip(rounded) {
                let Some(Rounded { moved, up, error }) = rounded else { continue };
                let (node, _) = optix_pipeline::naming::node_and_op(model, layer.node);
                let (moved, up) = (PackedBits(moved), PackedBits(up));
                let recorded = Recorded { node, place: layer.place, moved, up, error };
                let weight = stored_weight(&next, layer.node).map_err(PassError::Options)?;
                apply(&mut next, &weight, &layer.unrolled, &recorded)?;
                of_part.push(recorded);
            }
            if of_part.is_empty() {
                continue;
            }
            let after = judge.errors(&next, cx)?;
            let from = candidates.len() - parts[index..].iter().map(|part| part.len()).sum::<usize>();
            if after.expected_change(&errors, from) < -WORTHWHILE {
                (current, errors) = (next, after);
                found.extend(of_part);
            } else {
                dropped += of_part.len();
            }
        }
        if !found.is_empty() {
            cx.note(format!(
                "weights of {} layers are rounded again: {}",
                found.len(),
                errors.said_beside(&first)
            ));
        }
        if dropped > 0 {
            cx.note(format!(
                "weights of {dropped} layers stay as they are: rounding them again gains next to nothing"
            ));
        }
        Ok(found)
    }
}

/// Moves the weights of a layer.
///
/// # Errors
/// When the record, which may be that of a lock, does not fit them.
fn apply(
    model: &mut Model,
    weight: &StoredWeight,
    unrolled: &Unrolled,
    recorded: &Recorded,
) -> Result<(), PassError> {
    let unusable = |what: String| {
        let what = format!("`{}`: {what}", recorded.node);
        PassError::from(DecisionError::Unusable { key: "rounding".to_owned(), what })
    };
    let Recorded { moved, up, .. } = recorded;
    let count = weight.integers.len();
    let many = moved.0.iter().filter(|moved| **moved).count();
    if moved.0.len() != count || up.0.len() != many {
        let what = format!("{} of {} weights are moved, {} of them up", many, moved.0.len(), up.0.len());
        return Err(unusable(format!("{what}; it has {count}")));
    }
    let mut rows = unrolled.by_rows(&weight.integers);
    let (low, high) = weight.range;
    let of_moved = rows.iter_mut().zip(&moved.0).filter(|(_, moved)| **moved);
    for ((integer, _), up) in of_moved.zip(&up.0) {
        *integer += if *up { 1 } else { -1 };
        if !(low..=high).contains(integer) {
            return Err(unusable(format!("{integer} is not within {low} to {high}")));
        }
    }
    model.set_tensor(weight.value, weight.tensor(&unrolled.by_elements(&rows)));
    Ok(())
}

impl Pass for LearnRounding {
    fn requires(&self) -> Requires {
        Requires { calibration: true, inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Kept }
    }

    fn wants_float(&self) -> bool {
        self.samples > 0
    }

    fn reads_statistics(&self) -> bool {
        true
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        check_patterns(model, &self.exclude)?;
        if self.samples == 0 {
            return Ok(());
        }
        let order: Vec<NodeId> = model.walk().collect();
        let mut candidates = Vec::new();
        for (place, &node) in order.iter().enumerate() {
            match self.examine(model, node, place) {
                Some(Ok(candidate)) => candidates.push(candidate),
                Some(Err(reason)) => cx.skip(model, node, reason),
                None => {}
            }
        }
        if candidates.is_empty() {
            cx.warn("no layer of this model has weights in integers that could be rounded again");
        }
        let found = cx.decide("rounding", |cx| match candidates.is_empty() {
            true => Ok(Vec::new()),
            false => self.learn(model, &candidates, cx),
        })?;
        let by_node: BTreeMap<NodeId, &Candidate> =
            candidates.iter().map(|candidate| (candidate.node, candidate)).collect();
        for recorded in &found {
            let named = named_at(model, &order, recorded.place, &recorded.node);
            let Some(candidate) = named.and_then(|node| by_node.get(&node)) else {
                let what = format!("node {} of the model is not layer `{}`", recorded.place, recorded.node);
                return Err(DecisionError::Unusable { key: "rounding".to_owned(), what }.into());
            };
            if !cx.may_edit("round-weights") {
                return Ok(());
            }
            let weight = stored_weight(model, candidate.node).map_err(PassError::Options)?;
            apply(model, &weight, &candidate.unrolled, recorded)?;
            let (node, op) = optix_pipeline::naming::node_and_op(model, candidate.node);
            let (count, many) = (recorded.moved.0.len(), recorded.up.0.len());
            let bytes = constant_bytes(model, weight.value);
            cx.layer(Layer {
                node,
                op,
                action: "rounded again".to_owned(),
                reason: Some(format!(
                    "{:.0}% of weights moved, their error x {:.2}",
                    many as f64 * 100.0 / count.max(1) as f64,
                    recorded.error
                )),
                bytes_before: bytes,
                bytes_after: bytes,
                weight_bits: Some(weight.dtype.bits() as u32),
                ..Layer::default()
            });
            cx.count("layers rounded again", 1);
        }
        Ok(())
    }
}
