//! Float weights stored as integers.

use std::collections::BTreeMap;

use optix_ir::{DType, GraphId, Model, Node, NodeId, Position, Tensor, Use, ValueId};
use optix_pipeline::{
    Cx, Family, Interface, Layer, Named, Numerics, Pass, PassError, Promises, Requires, SignalNoise, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::rewrite::drop_unused;
use crate::names::{check_patterns, not_excluded};

/// Stores float weights as int8 with a scale a channel. Engines turn them back into floats when they load
/// the model, so it is smaller and exactly as fast; activations are not touched.
///
/// Each weight becomes `Cast` and `Mul` on constants. Unlike a `DequantizeLinear`, which onnxruntime keeps
/// for integer kernels and then computes in every run, these are folded at load time by every engine that
/// folds constants. Works from operator set 7 on, in bodies of If and Loop, and for weights that are
/// Constant nodes.
///
/// Run it behind `quantize-static` or `quantize-dynamic`, it takes what they left float; alone, it makes any
/// model smaller without calibration data. A weight stays float when that would save nothing or when
/// rounding it would leave less than `min-sqnr` decibels.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N, 32] x) => (float[N, 2] y)
/// <
///     float[32, 2] w = {127, 127, 119, 123, 111, 119, 103, 115, 95, 111, 87, 107, 79, 103, 71,
///         99, 63, 95, 55, 91, 47, 87, 39, 83, 31, 79, 23, 75, 15, 71, 7, 67, -1, 63, -9, 59, -17,
///         55, -25, 51, -33, 47, -41, 43, -49, 39, -57, 35, -65, 31, -73, 27, -81, 23, -89, 19,
///         -97, 15, -105, 11, -113, 7, -121, 3}
/// >
/// {
///     [dense] y = MatMul (x, w)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N, 32] x) => (float[N, 2] y)
/// <
///     int8[32, 2] w_integers = {127, 127, 119, 123, 111, 119, 103, 115, 95, 111, 87, 107, 79,
///         103, 71, 99, 63, 95, 55, 91, 47, 87, 39, 83, 31, 79, 23, 75, 15, 71, 7, 67, -1, 63, -9,
///         59, -17, 55, -25, 51, -33, 47, -41, 43, -49, 39, -57, 35, -65, 31, -73, 27, -81, 23,
///         -89, 19, -97, 15, -105, 11, -113, 7, -121, 3},
///     float[1, 2] w_scale = {1, 1}
/// >
/// {
///     w_cast = Cast <to = 1> (w_integers)
///     w_restored = Mul (w_cast, w_scale)
///     [dense] y = MatMul (x, w_restored)
/// }
/// ```
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CompressWeights {
    /// Least signal-to-quantization-noise ratio in dB that a weight must keep.
    pub min_sqnr: f64,
    /// Leave the weights of these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for CompressWeights {
    fn default() -> Self {
        CompressWeights { min_sqnr: 30.0, exclude: Vec::new() }
    }
}

impl Named for CompressWeights {
    const NAME: &'static str = "compress-weights";
    const FAMILY: Family = Family::Quantize;
}

/// Weights below this many elements are left alone whatever they are: biases, scales, shapes.
const SMALLEST: usize = 64;

/// Bytes that two nodes, their names and the scale's take in a file, beside three times the weight's name.
const OVERHEAD: usize = 120;

/// A weight that is worth storing in integers.
struct Found {
    graph: GraphId,
    /// A node that reads it: the row of the ledger is about it.
    reader: NodeId,
    tensor: Tensor,
    /// Whether an axis has scales of its own.
    kept: Vec<bool>,
}

/// Which input of an operator is a weight, and along which of its axes the scales differ. Anything else
/// that is large and constant (a table of positions, an anchor box) is no weight: its rounding goes
/// straight into the activations.
fn kept_axes(node: &Node, slot: usize, rank: usize) -> Option<Vec<bool>> {
    let axes: &[usize] = match (node.op_type.as_str(), slot, rank) {
        ("Conv", 1, 3..) => &[0],
        // Inputs first, then outputs of a group.
        ("ConvTranspose", 1, 3..) => &[1],
        ("Gemm", 1, 2) if node.int("transB").unwrap_or(0) != 0 => &[0],
        ("Gemm" | "MatMul", 1, 2) => &[1],
        // Each matrix of a stack has scales of its own.
        ("MatMul", 1, 3..) => return Some((0..rank).map(|axis| axis + 2 != rank).collect()),
        ("MatMul" | "Gemm", 0, 2) => &[0],
        // Directions and gates x hidden units.
        ("LSTM" | "GRU" | "RNN", 1 | 2, 3) => &[0, 1],
        // Rows of a table.
        ("Gather", 0, 2..) if matches!(node.int("axis"), None | Some(0)) => &[0],
        _ => return None,
    };
    Some((0..rank).map(|axis| axes.contains(&axis)).collect())
}

/// Why a weight stays as it is; `None` for constants that nobody would expect anything of.
type Refusal = Option<(NodeId, String)>;

impl CompressWeights {
    fn examine(&self, model: &Model, weight: ValueId) -> Result<Found, Refusal> {
        let tensor = model.constant(weight).ok_or(None)?;
        if tensor.dtype() != DType::F32 || tensor.len() < SMALLEST {
            return Err(None);
        }
        let mut reader: Option<(NodeId, Vec<bool>)> = None;
        for used in model.value(weight).uses() {
            let Use::Node(id, slot) = *used else { return Err(None) };
            let node = model.node(id);
            let kept = Some(node).filter(|node| node.domain().is_empty());
            let kept = kept.and_then(|node| kept_axes(node, slot as usize, tensor.rank())).ok_or(None)?;
            reader.get_or_insert((id, kept));
        }
        let (reader, kept) = reader.ok_or(None)?;
        not_excluded(model, reader, &self.exclude).map_err(|reason| Some((reader, reason)))?;
        // What may be fed over is no constant.
        let graph = model.value(weight).graph();
        if model.graph(graph).inputs().iter().any(|info| info.value == weight) && graph != model.main() {
            return Err(None);
        }
        if model.opset_version(graph, "").is_none_or(|version| version < 7) {
            let why = "its operator set is below 7, whose Mul does not broadcast".to_owned();
            return Err(Some((reader, why)));
        }
        Ok(Found { graph, reader, tensor: tensor.clone(), kept })
    }
}

/// A weight in integers.
struct Stored {
    integers: Tensor,
    scales: Tensor,
    sqnr_db: Option<f64>,
}

/// Index of the scale of every run of `run` neighbouring elements.
struct Groups {
    /// Sizes of the axes, the last ones left out that are one run.
    shape: Vec<usize>,
    /// By axis: how far the scale's index moves; 0 where scales do not differ.
    strides: Vec<usize>,
    run: usize,
    count: usize,
}

impl Groups {
    fn new(shape: &[usize], kept: &[bool]) -> Groups {
        // Trailing axes without scales of their own are one run.
        let outer = kept.iter().rposition(|&kept| kept).map_or(0, |last| last + 1);
        let mut strides = vec![0; outer];
        let mut count = 1;
        for axis in (0..outer).rev() {
            if kept[axis] {
                strides[axis] = count;
                count *= shape[axis];
            }
        }
        let run = shape[outer..].iter().product();
        Groups { shape: shape[..outer].to_vec(), strides, run, count }
    }

    /// The scale of each run, in order.
    fn indices(&self) -> impl Iterator<Item = usize> + '_ {
        let total: usize = self.shape.iter().product();
        let mut at = vec![0; self.shape.len()];
        let mut index = 0;
        (0..total).map(move |_| {
            let current = index;
            for axis in (0..at.len()).rev() {
                at[axis] += 1;
                index += self.strides[axis];
                if at[axis] < self.shape[axis] {
                    break;
                }
                index -= self.strides[axis] * self.shape[axis];
                at[axis] = 0;
            }
            current
        })
    }
}

/// Shares of the greatest magnitude that a scale may be made for: cutting the largest weights can make all
/// others more precise.
const CUTS: usize = 20;

fn store(tensor: &Tensor, kept: &[bool]) -> Result<Stored, String> {
    let floats = tensor.to_slice::<f32>().map_err(|error| error.to_string())?;
    let bad = floats.iter().filter(|weight| !weight.is_finite()).count();
    if bad > 0 {
        return Err(format!("{bad} of its weights are NaN or infinite"));
    }
    let groups = Groups::new(tensor.shape(), kept);
    let indices: Vec<usize> = groups.indices().collect();
    let runs = || floats.chunks_exact(groups.run.max(1)).zip(&indices);
    let mut maxima = vec![0f32; groups.count];
    for (run, &index) in runs() {
        maxima[index] = run.iter().fold(maxima[index], |max, weight| max.max(weight.abs()));
    }
    let scale_of = |max: f32| {
        let scale = max / 127.0;
        if scale.is_normal() { scale } else { 1.0 }
    };
    let mut best: Vec<(f64, f32)> = vec![(f64::INFINITY, 1.0); groups.count];
    for cut in 0..CUTS {
        let share = 1.0 - cut as f32 * 0.02;
        let scales: Vec<f32> = maxima.iter().map(|&max| scale_of(max * share)).collect();
        let mut noise = vec![0f64; groups.count];
        for (run, &index) in runs() {
            let (scale, inverse) = (scales[index], scales[index].recip());
            let of_run: f32 = run.iter().map(|&weight| squared_error(weight, scale, inverse)).sum();
            noise[index] += f64::from(of_run);
        }
        for ((best, noise), scale) in best.iter_mut().zip(noise).zip(scales) {
            if noise < best.0 {
                *best = (noise, scale);
            }
        }
    }
    let mut integers = Vec::with_capacity(floats.len());
    for (run, &index) in runs() {
        let inverse = best[index].1.recip();
        integers.extend(run.iter().map(|&weight| rounded(weight, inverse) as i8));
    }
    let signal: f64 = floats.iter().map(|&weight| f64::from(weight) * f64::from(weight)).sum();
    let noise: f64 = best.iter().map(|(noise, _)| noise).sum();
    let sizes = tensor.shape().iter().zip(kept);
    let shape: Vec<usize> = sizes.map(|(&size, &kept)| if kept { size } else { 1 }).collect();
    Ok(Stored {
        integers: Tensor::from_vec(tensor.shape().to_vec(), integers),
        scales: Tensor::from_vec(shape, best.into_iter().map(|(_, scale)| scale).collect()),
        sqnr_db: SignalNoise::new(signal, noise).sqnr_db(),
    })
}

/// The integer of a weight as a float: between -127 and 127.
fn rounded(weight: f32, inverse: f32) -> f32 {
    (weight * inverse).round_ties_even().clamp(-127.0, 127.0)
}

fn squared_error(weight: f32, scale: f32, inverse: f32) -> f32 {
    let error = weight - rounded(weight, inverse) * scale;
    error * error
}

impl Pass for CompressWeights {
    fn requires(&self) -> Requires {
        Requires { calibration: false, inferred_types: false, opset: 7 }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        check_patterns(model, &self.exclude)?;
        cx.keep_float(model);
        let weights: Vec<ValueId> = model.values().collect();
        let total = weights.len() as u64;
        let mut added: BTreeMap<GraphId, NodeId> = BTreeMap::new();
        for (done, weight) in weights.into_iter().enumerate() {
            let found = match self.examine(model, weight) {
                Ok(found) => found,
                Err(None) => continue,
                Err(Some((node, reason))) => {
                    cx.skip(model, node, reason);
                    continue;
                }
            };
            cx.progress("storing weights in integers", done as u64, total)?;
            let (node, op) = optix_pipeline::naming::node_and_op(model, found.reader);
            let bytes_before = found.tensor.bytes().len() as u64;
            let scales: usize = found
                .tensor
                .shape()
                .iter()
                .zip(&found.kept)
                .filter(|(_, kept)| **kept)
                .map(|(size, _)| size)
                .product();
            let name = model.value(weight).name().to_owned();
            let bytes_after = (found.tensor.len() + 4 * scales) as u64;
            if bytes_after + (3 * name.len() + OVERHEAD) as u64 >= bytes_before {
                let reason = "its integers, scales and two more nodes would take as much room";
                cx.skip(model, found.reader, reason);
                continue;
            }
            let stored = match store(&found.tensor, &found.kept) {
                Ok(stored) => stored,
                Err(reason) => {
                    cx.skip(model, found.reader, reason);
                    continue;
                }
            };
            if let Some(sqnr) = stored.sqnr_db.filter(|sqnr| *sqnr < self.min_sqnr) {
                let reason = format!("rounding its weights would leave {sqnr:.1} dB, less than min-sqnr");
                cx.skip(model, found.reader, reason);
                continue;
            }
            if !cx.may_edit("compress-weight") {
                return Ok(());
            }
            let Stored { integers, scales, sqnr_db } = stored;
            let integers = model.add_constant(found.graph, &format!("{name}_integers"), integers);
            let scales = model.add_constant(found.graph, &format!("{name}_scale"), scales);
            // One behind the other at the start of the graph, where constants are.
            let position = added.get(&found.graph).map_or(Position::Start, |&node| Position::After(node));
            let cast = Node::new("Cast", [integers]).with("to", i64::from(DType::F32.onnx()));
            let (cast, floats) = model.add_node(found.graph, position, cast, &format!("{name}_cast"));
            let scale = Node::new("Mul", [floats, scales]);
            let (last, restored) =
                model.add_node(found.graph, Position::After(cast), scale, &format!("{name}_restored"));
            added.insert(found.graph, last);
            model.value_mut(restored).ty = model.value(weight).ty.clone();
            model.replace_node_uses(weight, restored);
            drop_unused(model, [weight]);
            cx.layer(Layer {
                node,
                op,
                action: "int8, stored".to_owned(),
                bytes_before,
                bytes_after,
                weight_sqnr_db: sqnr_db,
                weight_bits: Some(8),
                scheme: Some(
                    "weights int8 symmetric, a scale for a channel, floats again when loaded".to_owned(),
                ),
                ..Layer::default()
            });
            cx.count("weights stored as int8", 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_follow_the_kept_axes() {
        let groups = Groups::new(&[2, 3, 4], &[true, false, true]);
        assert_eq!((groups.count, groups.run), (8, 1));
        let indices: Vec<usize> = groups.indices().collect();
        assert_eq!(indices[..4], [0, 1, 2, 3]);
        assert_eq!(indices[4..8], [0, 1, 2, 3]);
        assert_eq!(indices[12..16], [4, 5, 6, 7]);
        let groups = Groups::new(&[3, 2, 5], &[true, false, false]);
        assert_eq!((groups.count, groups.run), (3, 10));
        assert_eq!(groups.indices().collect::<Vec<_>>(), [0, 1, 2]);
        let groups = Groups::new(&[3, 2], &[false, false]);
        assert_eq!((groups.count, groups.run), (1, 6));
        assert_eq!(groups.indices().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn integers_come_back_within_half_a_step_unless_cut() {
        let weights: Vec<f32> =
            (0..600).map(|i| ((i * 37 % 601) as f32 / 300.0 - 1.0) * (1 + i / 100) as f32).collect();
        let tensor = Tensor::from_vec(vec![6, 100], weights.clone());
        let stored = store(&tensor, &[true, false]).unwrap();
        let scales = stored.scales.to_slice::<f32>().unwrap().into_owned();
        assert_eq!(stored.scales.shape(), [6, 1]);
        for (index, (weight, integer)) in weights.iter().zip(stored.integers.to_i64s().unwrap()).enumerate() {
            let scale = scales[index / 100];
            let clipped = integer.abs() == 127;
            assert!(clipped || (weight - integer as f32 * scale).abs() <= scale * 0.5001, "{index}");
        }
        assert!(stored.sqnr_db.unwrap() > 40.0);
    }

    #[test]
    fn all_zero_and_tiny_channels_are_survived() {
        let tensor = Tensor::from_vec(
            vec![3, 4],
            vec![0f32, 0.0, 0.0, 0.0, 1e-44, 0.0, 1e-44, 0.0, 1.0, 2.0, 3.0, 4.0],
        );
        let stored = store(&tensor, &[true, false]).unwrap();
        assert!(stored.scales.to_slice::<f32>().unwrap().iter().all(|scale| scale.is_normal()));
        assert!(store(&Tensor::from_vec(vec![2], vec![f32::NAN, 1.0]), &[true]).is_err());
    }
}
