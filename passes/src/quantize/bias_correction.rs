//! Biases that take back what rounding moves on average.
//!
//! Rounding of weights and activations moves the mean of every channel a little, and later layers add that
//! up. Layer by layer, in the order of execution, the mean that a layer has with everything before it in
//! integers, and corrected, is brought back to that of the float model (bias correction; Nagel et al. 2019,
//! "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with measured
//! means). One run suffices: the model that is run has nodes behind each layer that compute its mean and
//! shift it, so that what comes later sees layers that are corrected already.

use std::collections::BTreeMap;

use optix_ir::{DType, Dim, Model, Node, NodeId, Position, Tensor, Type, Use, ValueId, ValueInfo};
use optix_pipeline::{Batch, Cx, DecisionError, PackedFloats, PassError};
use serde::{Deserialize, Serialize};

use super::placement::Placement;
use crate::decided::named_at;
use crate::judge::Judge;
use crate::numbered;
use crate::samples::{self, Divided};

/// Samples that means are taken over, at most.
const SAMPLES: usize = 48;

/// Samples that the outcome is judged by, others than those.
const JUDGED: usize = 16;

/// Where the shift of a layer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    /// The bias of the layer itself, which need not be there yet.
    Bias,
    /// The constant at this slot of an Add that alone reads the layer.
    Constant(NodeId, usize),
}

/// A layer that can be corrected.
#[derive(Clone, Copy, Debug)]
struct Layer {
    node: NodeId,
    output: ValueId,
    channels: usize,
    axis: usize,
    rank: usize,
    home: Home,
}

/// By how much the channels of a layer are shifted, as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shift {
    /// The layer's name, for people.
    node: String,
    /// Its place in the order of execution.
    place: usize,
    /// What is added to each channel.
    shift: PackedFloats,
}

/// The layer of a node, if it has channels and a place for their shifts.
fn layer(model: &Model, id: NodeId) -> Option<Layer> {
    let node = model.node(id);
    let output = node.output(0)?;
    let weights = model.constant(node.input(1)?)?;
    let made = |channels: usize, axis: usize, rank: usize, home: Home| {
        (channels > 0).then_some(Layer { node: id, output, channels, axis, rank, home })
    };
    // A bias that is there must be constant, with a float for each channel.
    let with_bias = |channels: usize, rank: usize| {
        let held = node.input(2).map(|bias| model.constant(bias));
        let is_free = held.is_none_or(|held| {
            held.is_some_and(|held| held.dtype() == DType::F32 && held.shape() == [channels])
        });
        is_free.then(|| made(channels, 1, rank, Home::Bias))?
    };
    match (node.op_type.as_str(), weights.shape()) {
        ("Conv", shape) => with_bias(*shape.first()?, shape.len()),
        ("Gemm", &[rows, columns]) => {
            with_bias(if node.int("transB").unwrap_or(0) != 0 { rows } else { columns }, 2)
        }
        ("MatMul", &[_, channels]) => {
            let rank = model.value(output).ty.as_ref()?.shape()?.len();
            let [Use::Node(add, slot)] = *model.value(output).uses() else { return None };
            let added = model.node(add);
            let other = 1usize.checked_sub(slot as usize)?;
            let constant = added.input(other).filter(|_| added.is("Add"))?;
            let shape = model.constant(constant).filter(|held| held.dtype() == DType::F32)?.shape();
            let fits = shape.split_last().is_some_and(|(last, rest)| {
                *last == channels && rest.iter().all(|&size| size == 1) && shape.len() <= rank
            });
            (fits && rank > 1).then(|| made(channels, rank - 1, rank, Home::Constant(add, other)))?
        }
        _ => None,
    }
}

/// Whether the means of a layer's channels can be corrected.
pub(super) fn has_place(model: &Model, id: NodeId) -> bool {
    layer(model, id).is_some()
}

/// Means of the channels of every sample, along the first axis: one behind the other.
fn means(elements: &[f32], shape: &[usize], axis: usize) -> Vec<f32> {
    let (samples, channels) = (shape[0], shape[axis]);
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[1..axis].iter().product();
    let mut sums = vec![0f64; samples * channels];
    if inner == 0 || outer == 0 || channels == 0 {
        return vec![0.0; sums.len()];
    }
    for (block, elements) in elements.chunks_exact(channels * inner).enumerate() {
        let of_sample = &mut sums[block / outer * channels..][..channels];
        for (sum, part) in of_sample.iter_mut().zip(elements.chunks_exact(inner)) {
            *sum += part.iter().map(|&x| f64::from(x)).sum::<f64>();
        }
    }
    sums.iter().map(|sum| (sum / (inner * outer) as f64) as f32).collect()
}

/// The quantized model with nodes behind each layer that bring the means of its channels to those that are
/// fed. Returns the inputs' names and the values by which they are shifted.
fn instrumented(quantized: &Model, layers: &[Layer]) -> (Model, Vec<String>, Vec<ValueId>) {
    let mut model = quantized.clone();
    let graph = model.main();
    let axes_are_input = model.opset_version(graph, "").unwrap_or(0) >= 18;
    let (mut names, mut gaps) = (Vec::new(), Vec::new());
    for layer in layers {
        let name = model.value(layer.output).name().to_owned();
        // The mean over some axes, which keep a place each.
        let mean = |model: &mut Model, value: ValueId, behind: NodeId, axes: Vec<i64>, what: &str| {
            let node = if axes_are_input {
                let axes = Tensor::from_vec(vec![axes.len()], axes);
                let axes = model.add_constant(graph, &format!("{name}_axes"), axes);
                Node::new("ReduceMean", [value, axes])
            } else {
                Node::new("ReduceMean", [value]).with("axes", axes)
            };
            let node = node.with("keepdims", 1i64);
            model.add_node(graph, Position::After(behind), node, &format!("{name}_{what}"))
        };
        let inner: Vec<i64> =
            (1..layer.rank).filter(|&axis| axis != layer.axis).map(|axis| axis as i64).collect();
        let mut own = Vec::new();
        let (behind, of_samples) = match inner.is_empty() {
            true => (layer.node, layer.output),
            false => {
                let (node, value) = mean(&mut model, layer.output, layer.node, inner, "means");
                own.push(Use::Node(node, 0));
                (node, value)
            }
        };
        let wanted = model.add_fresh_value(graph, &format!("{name}_wanted_means"));
        let shape = (0..layer.rank).map(|axis| match axis {
            0 => Dim::Unknown,
            axis => Dim::Fixed(if axis == layer.axis { layer.channels } else { 1 }),
        });
        let ty = Type::tensor(DType::F32, shape);
        model.add_input(ValueInfo::new(wanted, Some(ty)));
        let subtract = Node::new("Sub", [wanted, of_samples]);
        let (subtract, gap) =
            model.add_node(graph, Position::After(behind), subtract, &format!("{name}_gaps"));
        own.push(Use::Node(subtract, 1));
        let (shift, by) = mean(&mut model, gap, subtract, vec![0], "shift");
        let add = Node::new("Add", [layer.output, by]);
        let (add, moved) = model.add_node(graph, Position::After(shift), add, &format!("{name}_moved"));
        own.push(Use::Node(add, 0));
        model.replace_uses_where(layer.output, moved, |_, used| !own.contains(&used));
        names.push(model.value(wanted).name().to_owned());
        gaps.push(gap);
    }
    (model, names, gaps)
}

/// A mean over samples, shrunk by what chance alone may have made of it (positive-part estimator; James and Stein
/// 1961): sums are those of the samples and of their squares.
fn shrunk(sum: f64, squares: f64, count: f64) -> f64 {
    let mean = sum / count;
    if count < 2.0 || mean == 0.0 {
        return mean;
    }
    let variance = ((squares / count - mean * mean) / (count - 1.0)).max(0.0);
    mean * (1.0 - variance / (mean * mean)).max(0.0)
}

/// The shift of every layer's channels that brings the means of the quantized model to those of the float
/// one; none for layers whose means are not finite.
fn measured_shifts(
    float: &Model,
    quantized: &Model,
    layers: &[Layer],
    batches: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<Vec<f32>>>, PassError> {
    let outputs: Vec<ValueId> = layers.iter().map(|layer| layer.output).collect();
    let by_output: BTreeMap<ValueId, usize> = outputs.iter().copied().zip(0..).collect();
    let mut wanted: Vec<Vec<Vec<f32>>> = vec![vec![Vec::new(); layers.len()]; batches.len()];
    let samples: usize = batches.iter().map(|batch| batch.count).sum();
    let what = ("measuring means", samples);
    numbered::observe(
        what,
        float,
        &outputs,
        &mut batches.iter().cloned(),
        cx,
        &mut |batch, value, tensor| {
            let place = by_output[&value];
            let layer = &layers[place];
            let shape = tensor.shape();
            if shape.len() == layer.rank
                && shape[layer.axis] == layer.channels
                && shape[0] > 0
                && let Ok(elements) = tensor.to_slice::<f32>()
            {
                wanted[batch][place] = means(&elements, shape, layer.axis);
            }
            Ok(())
        },
    )?;
    let (model, names, gaps) = instrumented(quantized, layers);
    let fed: Vec<Batch> = batches
        .iter()
        .zip(&wanted)
        .map(|(batch, means)| {
            let mut batch = batch.clone();
            for ((name, layer), means) in names.iter().zip(layers).zip(means) {
                // One for all samples where there are none.
                let means = if means.is_empty() { vec![0.0; layer.channels] } else { means.clone() };
                let mut shape = vec![1; layer.rank];
                shape[0] = means.len() / layer.channels;
                shape[layer.axis] = layer.channels;
                batch.feeds.push((name.clone(), Tensor::from_vec(shape, means)));
            }
            batch
        })
        .collect();
    let by_gap: BTreeMap<ValueId, usize> = gaps.iter().copied().zip(0..).collect();
    // Of each channel: count, sum and sum of squares over samples.
    let mut sums: Vec<Vec<[f64; 3]>> = layers.iter().map(|layer| vec![[0.0; 3]; layer.channels]).collect();
    numbered::observe(what, &model, &gaps, &mut fed.iter().cloned(), cx, &mut |_, value, tensor| {
        let place = by_gap[&value];
        if let Ok(gaps) = tensor.to_slice::<f32>() {
            for of_sample in gaps.chunks_exact(layers[place].channels) {
                for (sums, &gap) in sums[place].iter_mut().zip(of_sample) {
                    let gap = f64::from(gap);
                    *sums = [sums[0] + 1.0, sums[1] + gap, sums[2] + gap * gap];
                }
            }
        }
        Ok(())
    })?;
    let is_seen = |place: usize| wanted.iter().all(|means| !means[place].is_empty());
    let shifts = sums.into_iter().enumerate().map(|(place, sums)| {
        let shift: Vec<f32> =
            sums.iter().map(|&[count, sum, squares]| shrunk(sum, squares, count.max(1.0)) as f32).collect();
        (is_seen(place) && shift.iter().all(|by| by.is_finite())).then_some(shift)
    });
    Ok(shifts.collect())
}

/// Shifts one layer's channels in the float model.
fn apply_one(model: &mut Model, layer: &Layer, shift: &[f32]) -> Vec<ValueId> {
    let graph = model.node(layer.node).graph();
    let (node, slot) = match layer.home {
        Home::Bias => (layer.node, 2),
        Home::Constant(add, slot) => (add, slot),
    };
    let old = model.node(node).input(slot);
    let held = old.and_then(|old| model.constant(old));
    let shape = held.map_or_else(|| vec![layer.channels], |held| held.shape().to_vec());
    let before = held.and_then(|held| held.to_slice::<f32>().ok()).map(Vec::from);
    let before: Vec<f32> = before.unwrap_or_else(|| vec![0.0; layer.channels]);
    let sums: Vec<f32> = before.iter().zip(shift).map(|(bias, by)| bias + by).collect();
    let name = match old {
        Some(old) => format!("{}_corrected", model.value(old).name()),
        None => format!("{}_bias", model.value(layer.output).name()),
    };
    let new = model.add_constant(graph, &name, Tensor::from_vec(shape, sums));
    model.set_input(node, slot, Some(new));
    old.into_iter().collect()
}

/// Applies shifts to the biases of a float model, those of the layers that are `wanted`.
///
/// # Errors
/// When a shift, which may be that of a lock, does not fit the model.
pub(super) fn apply(
    model: &mut Model,
    shifts: &[Shift],
    wanted: &dyn Fn(NodeId) -> bool,
) -> Result<(), PassError> {
    let order: Vec<NodeId> = model.walk().collect();
    let mut replaced = Vec::new();
    for Shift { node, place, shift } in shifts {
        let unusable = |what| PassError::from(DecisionError::Unusable { key: "bias".to_owned(), what });
        let Some(layer) = named_at(model, &order, *place, node).and_then(|id| layer(model, id)) else {
            return Err(unusable(format!("node {place} of the model is not `{node}`, or has no bias")));
        };
        if shift.0.len() != layer.channels || shift.0.iter().any(|by| !by.is_finite()) {
            return Err(unusable(format!(
                "`{node}` has {} channels to shift by finite numbers",
                layer.channels
            )));
        }
        if wanted(layer.node) {
            replaced.extend(apply_one(model, &layer, &shift.0));
        }
    }
    super::rewrite::drop_unused(model, replaced);
    Ok(())
}

/// What came of the search.
#[derive(Default)]
pub(super) struct Found {
    /// Empty where the outputs do not gain.
    pub(super) shifts: Vec<Shift>,
    /// The outcome in a sentence.
    pub(super) summary: String,
}

/// Measures the shifts and, unless they are trusted to, whether the model's outputs gain by them on samples they
/// were not measured on. `build` quantizes a float model.
///
/// # Errors
/// When models or data cannot be run.
pub(super) fn search(
    float: &Model,
    placement: &Placement,
    build: &dyn Fn(&Model) -> Result<Model, PassError>,
    is_trusted: bool,
    cx: &mut Cx<'_>,
) -> Result<Found, PassError> {
    let nothing = |why: &str| Found { shifts: Vec::new(), summary: why.to_owned() };
    let layers: Vec<Layer> =
        placement.weighted.iter().filter_map(|weighted| layer(float, weighted.node)).collect();
    if layers.is_empty() {
        return Ok(nothing("no layer has a bias to correct"));
    }
    cx.progress("correcting biases", 0, 3)?;
    let Divided { batches, judged } =
        samples::divide(float, SAMPLES, JUDGED, cx)?.in_proportion(SAMPLES, cx)?;
    if judged.len() < 2 || batches.is_empty() {
        return Ok(nothing("too few samples to correct biases by"));
    }
    let quantized = build(float)?;
    cx.progress("correcting biases", 1, 3)?;
    let measured = measured_shifts(float, &quantized, &layers, &batches, cx)?;
    let order: BTreeMap<NodeId, usize> = float.walk().zip(0..).collect();
    let shifts: Vec<Shift> = layers
        .iter()
        .zip(measured)
        .filter_map(|(layer, shift)| {
            let (node, _) = optix_pipeline::naming::node_and_op(float, layer.node);
            Some(Shift { node, place: *order.get(&layer.node)?, shift: PackedFloats(shift?) })
        })
        .collect();
    if is_trusted {
        let summary = format!("biases of {} layers are corrected for the layers that stay", shifts.len());
        return Ok(Found { shifts, summary });
    }
    let mut corrected = float.clone();
    apply(&mut corrected, &shifts, &|_| true)?;
    let corrected = build(&corrected)?;
    cx.progress("correcting biases", 2, 3)?;
    let nodes = layers.iter().map(|layer| layer.node).collect();
    let judge = Judge::new(float, nodes, &judged, cx)?;
    let before = judge.errors(&quantized, cx)?;
    let after = judge.errors(&corrected, cx)?;
    let said = after.said_beside(&before);
    // Means that are right are the better guess: this keeps out what shows no gain.
    if !after.is_less_than(&before) {
        return Ok(nothing(&format!("biases are left as they are: correcting them makes {said}")));
    }
    let summary = format!("biases of {} layers are corrected: {said}", shifts.len());
    Ok(Found { shifts, summary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_those_of_channels() {
        let elements: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(means(&elements, &[2, 3, 2], 1), [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]);
        assert_eq!(means(&elements, &[2, 2, 3], 2), [1.5, 2.5, 3.5, 7.5, 8.5, 9.5]);
        assert_eq!(means(&elements[..6], &[2, 3], 1), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(means(&[], &[0, 3], 1), [0.0; 0]);
        assert_eq!(means(&[], &[1, 3, 0], 1), [0.0; 3]);
    }

    #[test]
    fn means_are_shrunk_by_what_may_be_chance() {
        // The same in all samples: nothing is chance.
        assert_eq!(shrunk(8.0, 16.0, 4.0), 2.0);
        // 3 and 1: their mean is 2, the variance of that 1.
        assert_eq!(shrunk(4.0, 10.0, 2.0), 2.0 * (1.0 - 1.0 / 4.0));
        // 3 and -1: 1, and the variance of that is 4.
        assert_eq!(shrunk(2.0, 10.0, 2.0), 0.0);
        assert_eq!((shrunk(5.0, 25.0, 1.0), shrunk(0.0, 0.0, 3.0)), (5.0, 0.0));
    }

    fn parsed(text: &str) -> Model {
        optix_ir::text::parse(text).expect("the text is a model")
    }

    #[test]
    fn shifts_go_into_biases_wherever_they_are() {
        let mut model = parsed(
            r#"<ir_version: 8, opset_import: ["" : 18]>
            net (float[N, 1, 2, 2] x, float[N, 3, 2] m) => (float[N, 2, 2, 2] y, float[N, 3, 2] p)
            <float[2, 1, 1, 1] w = {1, 2}, float[2, 2] v = {1, 0, 0, 1}, float[2] b = {10, 20}>
            { y = Conv (x, w) q = MatMul (m, v) p = Add (b, q) }"#,
        );
        optix_ir::infer::infer(&mut model, &optix_ir::infer::NoEvaluator);
        let shift = |node: &str, place: usize, by: [f32; 2]| Shift {
            node: node.to_owned(),
            place,
            shift: PackedFloats(by.to_vec()),
        };
        let names: Vec<String> =
            model.walk().map(|id| optix_pipeline::naming::node_and_op(&model, id).0).collect();
        let shifts = [shift(&names[0], 0, [0.5, -1.0]), shift(&names[1], 1, [1.0, 2.0])];
        let mut moved = model.clone();
        apply(&mut moved, &shifts, &|_| true).expect("they fit");
        let bias = |model: &Model, place: usize, slot: usize| {
            let id = model.walk().nth(place).expect("a node");
            let value = model.node(id).input(slot).expect("a bias");
            model.constant(value).and_then(|held| held.to_f64s().ok()).expect("floats")
        };
        assert_eq!(bias(&moved, 0, 2), [0.5, -1.0]);
        assert_eq!(bias(&moved, 2, 0), [11.0, 22.0]);
        for wrong in
            [shift(&names[2], 2, [1.0, 1.0]), shift("another", 0, [1.0, 1.0]), shift(&names[0], 9, [0.0; 2])]
        {
            assert!(apply(&mut model.clone(), &[wrong], &|_| true).is_err());
        }
        let endless = shift(&names[0], 0, [f32::NAN, 0.0]);
        assert!(apply(&mut model.clone(), &[endless], &|_| true).is_err());
    }
}
