//! Layers whose weights may become zero.

use optix_ir::{DType, Model, NodeId, Tensor, Use, ValueId};
use optix_pipeline::{Cx, Layer, PassError};

use super::mask::Pattern;
use crate::names::{check_patterns, not_excluded};
use crate::unroll::Unrolled;

/// A layer whose weights may become zero.
pub(super) struct Prunable {
    pub(super) node: NodeId,
    /// Its name.
    pub(super) name: String,
    value: ValueId,
    shape: Vec<usize>,
    pub(super) unrolled: Unrolled,
    /// One output channel behind the other.
    pub(super) weights: Vec<f32>,
}

impl Prunable {
    /// Gives the layer other weights, in the order of rows.
    pub(super) fn put(&self, model: &mut Model, weights: &[f32]) {
        let tensor = Tensor::from_vec(self.shape.clone(), self.unrolled.by_elements(weights));
        model.set_tensor(self.value, tensor);
    }

    /// Its weights, some of them zero.
    pub(super) fn masked(&self, zeros: &[bool]) -> Vec<f32> {
        let pairs = self.weights.iter().zip(zeros);
        pairs.map(|(&weight, &zero)| if zero { 0.0 } else { weight }).collect()
    }
}

fn examine(
    model: &Model,
    node: NodeId,
    exclude: &[String],
    is_observed: bool,
) -> Option<Result<Prunable, String>> {
    let is_layer = matches!(model.node(node).op_type.as_str(), "Conv" | "Gemm" | "MatMul");
    if !is_layer || !model.node(node).domain().is_empty() {
        return None;
    }
    let value = model.node(node).input(1)?;
    let Some(tensor) = model.constant(value) else {
        return Some(Err("its weights are computed while the model runs".to_owned()));
    };
    let found = || {
        not_excluded(model, node, exclude)?;
        if is_observed && model.node(node).graph() != model.main() {
            return Err("it lies in a body of control flow, where nothing is observed".to_owned());
        }
        if tensor.dtype() != DType::F32 {
            return Err(format!("its weights are {}, only float is pruned", tensor.dtype()));
        }
        if !matches!(model.value(value).uses(), [Use::Node(..)]) {
            return Err("other nodes read its weights too".to_owned());
        }
        let unrolled = Unrolled::of(model, node, tensor.shape())?;
        let weights = tensor.to_slice::<f32>().map_err(|error| error.to_string())?;
        let bad = weights.iter().filter(|weight| !weight.is_finite()).count();
        if bad > 0 {
            return Err(format!("{bad} of its weights are NaN or infinite"));
        }
        let (name, _) = optix_pipeline::naming::node_and_op(model, node);
        let weights = unrolled.by_rows(&weights);
        Ok(Prunable { node, name, value, shape: tensor.shape().to_vec(), unrolled, weights })
    };
    Some(found())
}

/// All layers whose weights may become zero, in order, those of the main graph alone where what they read must be
/// observed; what is left alone is listed with its reason.
///
/// # Errors
/// When a pattern of `exclude` names no node, when `sparsity` is no share, or when nothing can be pruned.
pub(super) fn prunable(
    model: &Model,
    exclude: &[String],
    (sparsity, pattern, is_observed): (f64, Pattern, bool),
    cx: &mut Cx<'_>,
) -> Result<Vec<Prunable>, PassError> {
    if !(0.0..1.0).contains(&sparsity) {
        let what = format!("`sparsity` {sparsity}: a share of all weights, from 0 to below 1");
        return Err(PassError::Options(what));
    }
    if let Pattern::Runs { kept, of } = pattern {
        let own = 1.0 - kept as f64 / of as f64;
        cx.note(format!(
            "the pattern {kept}:{of} makes {:.0}% of the weights zero, whatever `sparsity` says",
            own * 100.0
        ));
    }
    check_patterns(model, exclude)?;
    let mut found = Vec::new();
    for node in model.walk().collect::<Vec<_>>() {
        match examine(model, node, exclude, is_observed) {
            Some(Ok(layer)) => found.push(layer),
            Some(Err(reason)) => cx.skip(model, node, reason),
            None => {}
        }
    }
    if found.is_empty() {
        return Err(PassError::Options(
            "no layer of this model can be pruned: Conv, Gemm and MatMul with constant float weights can"
                .to_owned(),
        ));
    }
    Ok(found)
}

/// Gives layers the weights that were found for them, in order, or lists why there are none; and says what the zeros
/// are worth.
pub(super) fn put_all(
    model: &mut Model,
    layers: &[Prunable],
    found: Vec<Result<Vec<f32>, String>>,
    pattern: Pattern,
    cx: &mut Cx<'_>,
) {
    for (layer, weights) in layers.iter().zip(found) {
        match weights {
            Err(reason) => cx.skip(model, layer.node, reason),
            Ok(_) if !cx.may_edit("prune-weights") => return,
            Ok(weights) => set_weights(model, layer, &weights, cx),
        }
    }
    say_what_runs_it(pattern, cx);
}

/// Gives a layer weights of which some are zero, and records how many.
fn set_weights(model: &mut Model, layer: &Prunable, weights: &[f32], cx: &mut Cx<'_>) {
    let zeros = weights.iter().filter(|weight| **weight == 0.0).count();
    layer.put(model, weights);
    let bytes = 4 * weights.len() as u64;
    let share = zeros as f64 * 100.0 / weights.len().max(1) as f64;
    let (node, op) = optix_pipeline::naming::node_and_op(model, layer.node);
    cx.layer(Layer {
        node,
        op,
        action: format!("{share:.1}% zero"),
        bytes_before: bytes,
        bytes_after: bytes,
        ..Layer::default()
    });
    cx.count("weights that are zero", zeros as u64);
    cx.count("weights looked at", weights.len() as u64);
}

/// Says what zeros are worth.
fn say_what_runs_it(pattern: Pattern, cx: &mut Cx<'_>) {
    let dense = "engines that know nothing of it (onnxruntime among them) run zeros as they run all numbers, and the \
                 file is as large as before, until it is compressed";
    cx.note(match pattern {
        Pattern::Runs { kept: 2, of: 4 } => {
            format!("2:4 runs faster in TensorRT, on GPUs from Ampere on, in float16 and int8; {dense}")
        }
        Pattern::Runs { .. } | Pattern::Blocks { .. } => {
            format!("kernels for this pattern are rare: know yours before you rely on it; {dense}")
        }
        Pattern::Unstructured => dense.to_owned(),
    });
}
