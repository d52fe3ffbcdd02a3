//! Where ranges of weights end: before the greatest weight, where layers lose less by it.
//!
//! Each of a few ends is tried for every output channel, and the one is taken whose rounding errors make the least of
//! what the layer reads, with everything before it in integers (the search of sequential MSE; Nagel et al. 2021,
//! "A White Paper on Neural Network Quantization", section 3.1, with measured inputs). Part by part, it is kept where
//! layers and outputs gain on samples that nothing was learned from.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_linalg::{Moments, subtract_product};
use optix_pipeline::naming::node_and_op;
use optix_pipeline::{Cx, DecisionError, PackedFloats, PassError};
use serde::{Deserialize, Serialize};

use super::affine::{Affine, channel_maxima};
use super::bias_correction;
use super::node_weights::clipped_scales;
use super::placement::WeightedNode;
use crate::decided::named_at;
use crate::judge::Judge;
use crate::moments::{self, Read};
use crate::samples::{self, Divided};
use crate::unroll::Unrolled;

/// For each layer, which share of their greatest weight the ranges of its channels end at.
pub(super) type Clips = BTreeMap<NodeId, Vec<f32>>;

/// Ends that are tried: 1, 0.97, ... 0.4.
const ENDS: usize = 21;
const APART: f32 = 0.03;

/// Samples to learn from, and others to judge by, at most.
const SAMPLES: usize = 48;
const JUDGED: usize = 16;

/// The clips of a layer as they are recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    /// Its name, for people.
    node: String,
    /// Its place in the order of execution.
    place: usize,
    /// For each channel.
    ends: PackedFloats,
}

/// A layer whose weights may be clipped.
pub(super) struct Layer {
    node: NodeId,
    weights: ValueId,
    /// Axis of the channels.
    axis: Option<usize>,
    channels: usize,
    /// Whether its bias takes back what moves means.
    is_corrected: bool,
    unrolled: Unrolled,
}

impl Layer {
    /// The layer of a node; none for one that is no product.
    pub(super) fn of(
        model: &Model,
        weighted: &WeightedNode,
        per_channel: bool,
        corrects: bool,
    ) -> Option<Layer> {
        let node = weighted.node;
        let weights = model.node(node).input(weighted.weight_slot)?;
        let tensor = model.constant(weights).filter(|held| held.dtype() == DType::F32)?;
        let unrolled = Unrolled::of(model, node, tensor.shape()).ok()?;
        let axis = weighted.channel_axis.filter(|_| per_channel);
        let channels = axis.map_or(1, |axis| tensor.shape()[axis]);
        let is_corrected = corrects && bias_correction::has_place(model, node);
        let is_known =
            model.node(node).graph() == model.main() && [1, unrolled.channels()].contains(&channels);
        is_known.then_some(Layer { node, weights, axis, channels, is_corrected, unrolled })
    }

    /// The ends of its channels' ranges that lose least of what it reads.
    fn best(&self, model: &Model, moments: &[Moments], dtype: DType) -> Option<Vec<f32>> {
        let held = model.constant(self.weights)?;
        let floats = held.to_slice::<f32>().ok()?;
        let maxima = channel_maxima(&floats, held.shape(), self.axis);
        let Unrolled { rows, depth, .. } = self.unrolled;
        let weights = self.unrolled.by_rows(&floats);
        let (low, high) = dtype.integer_range()?;
        let mut least = vec![(f64::INFINITY, 1f32); self.channels];
        for end in (0..ENDS).map(|place| 1.0 - APART * place as f32) {
            let scales = clipped_scales(&maxima, Some(&vec![end; self.channels]), dtype);
            let off = |(at, &weight): (usize, &f32)| {
                let scale = scales[at / depth % scales.len()];
                let affine = Affine { scale, zero_point: 0, low: low as i32, high: high as i32 };
                weight - affine.round_trip(weight)
            };
            let errors: Vec<f32> = weights.iter().enumerate().map(off).collect();
            let mut lost = vec![0f64; self.channels];
            for (group, moments) in moments.iter().enumerate() {
                let errors = &errors[group * rows * depth..][..rows * depth];
                let mut products = vec![0f32; errors.len()];
                subtract_product(&mut products, errors, &moments.products, depth);
                for row in 0..rows {
                    let span = row * depth..(row + 1) * depth;
                    let sum = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
                    };
                    let mean =
                        if self.is_corrected { sum(&errors[span.clone()], &moments.mean) } else { 0.0 };
                    lost[(group * rows + row) % self.channels] -=
                        sum(&errors[span.clone()], &products[span]) + moments.positions as f64 * mean * mean;
                }
            }
            for (least, lost) in least.iter_mut().zip(lost) {
                if lost < least.0 {
                    *least = (lost, end);
                }
            }
        }
        Some(least.into_iter().map(|(_, end)| end).collect())
            .filter(|ends: &Vec<f32>| ends.iter().any(|&end| end < 1.0))
    }
}

/// Where ranges of the layers' weights end, recorded as `clips`. `build` gives the model with all layers in integers.
///
/// # Errors
/// When models or data cannot be run; when a lock does not fit the model.
pub(super) fn decide(
    model: &Model,
    layers: &[Layer],
    dtype: DType,
    build: &dyn Fn(&Clips) -> Result<Model, PassError>,
    cx: &mut Cx<'_>,
) -> Result<Clips, PassError> {
    let order: Vec<NodeId> = model.walk().collect();
    let recorded = cx.decide("clips", |cx| {
        let found = search(model, layers, dtype, build, cx)?;
        let nodes = order.iter().enumerate().filter_map(|(place, &id)| {
            let ends = PackedFloats(found.get(&id)?.clone());
            Some(Recorded { node: node_and_op(model, id).0, place, ends })
        });
        Ok(nodes.collect::<Vec<Recorded>>())
    })?;
    let mut clips = Clips::new();
    for Recorded { node, place, ends: PackedFloats(ends) } in recorded {
        let unusable = |what: String| DecisionError::Unusable { key: "clips".to_owned(), what };
        let layer = named_at(model, &order, place, &node)
            .and_then(|id| layers.iter().find(|layer| layer.node == id))
            .ok_or_else(|| unusable(format!("node {place} of the model is not layer `{node}`")))?;
        if ends.len() != layer.channels || ends.iter().any(|end| !(*end > 0.0 && *end <= 1.0)) {
            let what = format!("`{node}` has {} channels with ends above 0 and up to 1", layer.channels);
            return Err(unusable(what).into());
        }
        clips.insert(layer.node, ends);
    }
    Ok(clips)
}

/// Searches part by part, in the order of execution.
fn search(
    model: &Model,
    layers: &[Layer],
    dtype: DType,
    build: &dyn Fn(&Clips) -> Result<Model, PassError>,
    cx: &mut Cx<'_>,
) -> Result<Clips, PassError> {
    let mut clips = Clips::new();
    if !cx.has_calibration() {
        cx.warn(
            "statistics do not say what layers read: ranges of weights are not clipped without `--calib`",
        );
        return Ok(clips);
    }
    if layers.is_empty() {
        return Ok(clips);
    }
    let Divided { batches, judged } =
        samples::divide(model, SAMPLES, JUDGED, cx)?.in_proportion(SAMPLES, cx)?;
    if judged.len() < 2 || batches.is_empty() {
        cx.warn("too few calibration samples to clip ranges of weights by");
        return Ok(clips);
    }
    let judge = Judge::new(model, layers.iter().map(|layer| layer.node).collect(), &judged, cx)?;
    let mut current = build(&clips)?;
    let first = judge.errors(&current, cx)?;
    let mut errors = first.clone();
    let mut from = 0;
    for part in moments::parts(layers, &|layer| &layer.unrolled) {
        cx.progress("clipping weights", from as u64, layers.len() as u64)?;
        // What layers read in the quantized model has other names there.
        let unrolled: Vec<Unrolled> = part
            .iter()
            .filter_map(|layer| {
                let shape = model.constant(layer.weights)?.shape();
                Unrolled::of(&current, layer.node, shape).ok()
            })
            .collect();
        let mut tried = clips.clone();
        if unrolled.len() == part.len() {
            let unrolled: Vec<&Unrolled> = unrolled.iter().collect();
            for Read { layers: places, moments } in
                moments::read(&current, &unrolled, &batches, "clipping weights", cx)?
            {
                let Some(moments) = moments else { continue };
                for place in places {
                    if let Some(ends) = part[place].best(model, &moments, dtype) {
                        tried.insert(part[place].node, ends);
                    }
                }
            }
        }
        if tried.len() > clips.len() {
            let next = build(&tried)?;
            let after = judge.errors(&next, cx)?;
            if after.expected_change(&errors, from) < 0.0 {
                (clips, current, errors) = (tried, next, after);
            }
        }
        from += part.len();
    }
    if !clips.is_empty() {
        cx.note(format!(
            "ranges of weights of {} layers are clipped: {}",
            clips.len(),
            errors.said_beside(&first)
        ));
    }
    Ok(clips)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::placement;

    #[test]
    fn what_nobody_reads_does_not_set_the_range() {
        let mut model = optix_ir::text::parse(
            r#"<ir_version: 10, opset_import: ["" : 21]>
            net (float[N, 3] x) => (float[N, 2] y)
            <float[2, 3] w = {0.31, -0.22, 9.0, 0.31, -0.22, 0.13}> { y = Gemm <transB = 1> (x, w) }"#,
        )
        .expect("it is a model");
        optix_ir::infer::infer(&mut model, &optix_ir::infer::NoEvaluator);
        let node = model.walk().next().expect("a node");
        let input = model.node(node).input(0).expect("its input");
        let output = model.node(node).output(0).expect("its output");
        let weighted = placement::WeightedNode {
            node,
            input,
            weight_slot: 1,
            channel_axis: Some(0),
            bias_slot: None,
            output,
        };
        let layer = Layer::of(&model, &weighted, true, false).expect("a layer");
        // The third input is always 0.
        let products = vec![1.0, 0.2, 0.0, 0.2, 1.0, 0.0, 0.0, 0.0, 0.0];
        let moments = Moments { products, mean: vec![0.0; 3], positions: 1 };
        let ends = layer.best(&model, &[moments], DType::I4).expect("it gains");
        let lost = |end: f32| {
            let affine = Affine::symmetric(9.0 * end, DType::I4);
            let off = |x: f32| f64::from(x - affine.round_trip(x));
            off(0.31).powi(2) + off(-0.22).powi(2) + 0.4 * off(0.31) * off(-0.22)
        };
        assert!(ends[0] < 1.0 && lost(ends[0]) <= lost(1.0), "{ends:?}");
        assert!((0..ENDS).all(|place| lost(ends[0]) <= lost(1.0 - APART * place as f32) + 1e-6), "{ends:?}");
        assert!(Layer::of(&model, &weighted, false, false).is_some_and(|layer| layer.channels == 1));
    }
}
