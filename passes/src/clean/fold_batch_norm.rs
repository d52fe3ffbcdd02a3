//! Batch normalization as part of the layer before it.

use optix_ir::{Model, NodeId, Tensor, Use, ValueId};
use optix_pipeline::{Cx, Family, Interface, Named, Numerics, Pass, PassError, Promises, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{floats, layer_bias};

/// Folds BatchNormalization into the Conv, ConvTranspose or Gemm before it: weights times
/// gamma / sqrt(variance + epsilon), bias to match.
///
/// Computed in double precision. Results move by rounding only.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// layer (float[N, 1, 4, 4] x) => (float[N, 2, 4, 4] y)
/// <
///     float[2, 1, 1, 1] w = {1, 2},
///     float[2] gamma = {2, 3}, float[2] beta = {0.5, 1}, float[2] mean = {1, 4}, float[2] variance = {4, 9}
/// >
/// {
///     z = Conv (x, w)
///     y = BatchNormalization <epsilon = 0.0> (z, gamma, beta, mean, variance)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// layer (float[N, 1, 4, 4] x) => (float[N, 2, 4, 4] y)
/// <float[2, 1, 1, 1] w_folded = {1, 2}, float[2] w_bias_folded = {-0.5, -3}>
/// {
///     y = Conv (x, w_folded, w_bias_folded)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FoldBatchNorm {}

impl Named for FoldBatchNorm {
    const NAME: &'static str = "fold-batch-norm";
    const FAMILY: Family = Family::Clean;
}

impl Pass for FoldBatchNorm {
    fn promises(&self) -> Promises {
        Promises {
            // A deep network adds up the rounding of every layer.
            numerics: Numerics::Within(1e-3),
            interface: Interface::Kept,
            topology: Topology::Changed,
        }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let order: Vec<NodeId> = model.walk().collect();
        for id in order {
            if !model.node(id).is("BatchNormalization") {
                continue;
            }
            let folding = match prepare(model, id) {
                Ok(folding) => folding,
                Err(reason) => {
                    cx.skip(model, id, reason);
                    continue;
                }
            };
            if !cx.may_edit("fold-batch-norm") {
                return Ok(());
            }
            apply(model, id, folding)?;
            cx.count("batch normalizations folded", 1);
        }
        Ok(())
    }
}

struct Folding {
    layer: NodeId,
    weights: Tensor,
    bias: Tensor,
    replaced: Vec<ValueId>,
}

fn prepare(model: &Model, id: NodeId) -> Result<Folding, String> {
    let norm = model.node(id);
    if norm.int("training_mode").unwrap_or(0) != 0 {
        return Err("it is in training mode".to_owned());
    }
    if norm.outputs().iter().skip(1).flatten().any(|&output| !model.value(output).uses().is_empty()) {
        return Err("its statistics are used".to_owned());
    }
    let input = norm.input(0).ok_or("its input is missing")?;
    let (layer, _) = model.value(input).producer().ok_or("no layer is before it")?;
    let held = model.node(layer);
    if !["Conv", "ConvTranspose", "Gemm"].iter().any(|op| held.is(op)) {
        return Err(format!("{} is before it, not a layer with weights", held.op_type));
    }
    if !matches!(*model.value(input).uses(), [Use::Node(..)]) {
        return Err("the layer's output is used elsewhere too".to_owned());
    }
    if held.graph() != norm.graph() {
        return Err("the layer before it is in another graph".to_owned());
    }
    let gamma = floats(model, norm.input(1), "scale")?;
    let beta = floats(model, norm.input(2), "bias")?;
    let mean = floats(model, norm.input(3), "mean")?;
    let variance = floats(model, norm.input(4), "variance")?;
    let epsilon = f64::from(norm.float("epsilon").unwrap_or(1e-5));
    let channels = gamma.len();
    let weights_value = held.input(1).ok_or("the layer's weights are missing")?;
    let weights = floats(model, Some(weights_value), "layer's weights")?;
    let shape = model.constant(weights_value).map(|tensor| tensor.shape().to_vec()).unwrap_or_default();
    let (axis, groups) = match held.op_type.as_str() {
        "Conv" => (0, 1),
        "ConvTranspose" => (1, usize::try_from(held.int("group").unwrap_or(1)).unwrap_or(1).max(1)),
        _ => {
            let plain = [held.float("alpha"), held.float("beta")].iter().all(|f| f.unwrap_or(1.0) == 1.0);
            if !plain {
                return Err("the layer scales its operands".to_owned());
            }
            (if held.int("transB").unwrap_or(0) != 0 { 0 } else { 1 }, 1)
        }
    };
    let fits = shape.get(axis).is_some_and(|&size| size * groups == channels)
        && [&beta, &mean, &variance].iter().all(|list| list.len() == channels);
    if !fits {
        return Err("its channels do not fit the layer's".to_owned());
    }
    let bias = layer_bias(model, held, channels)?;
    let factors: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    if factors.iter().any(|factor| !factor.is_finite()) {
        return Err("its scale or variance is not finite or negative".to_owned());
    }
    let inner: usize = shape[axis + 1..].iter().product();
    let size = shape[axis];
    let rows = shape[..axis].iter().product::<usize>().max(1);
    let folded: Vec<f32> = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| {
            let channel = index / inner.max(1) % size;
            // Input channels of a transposed convolution are cut into groups, each with its own outputs.
            let group = if groups > 1 { index / (inner * size).max(1) / (rows / groups).max(1) } else { 0 };
            (weight * factors[group * size + channel]) as f32
        })
        .collect();
    let bias: Vec<f32> = (0..channels)
        .map(|channel| ((bias[channel] - mean[channel]) * factors[channel] + beta[channel]) as f32)
        .collect();
    let mut replaced: Vec<ValueId> = norm.inputs().iter().skip(1).flatten().copied().collect();
    replaced.extend(held.inputs().iter().skip(1).flatten().copied());
    Ok(Folding {
        layer,
        weights: Tensor::from_vec(shape, folded),
        bias: Tensor::from_vec(vec![channels], bias),
        replaced,
    })
}

fn apply(model: &mut Model, id: NodeId, folding: Folding) -> Result<(), PassError> {
    let Folding { layer, weights, bias, replaced } = folding;
    let graph = model.node(layer).graph();
    let name =
        |model: &Model, slot: usize| model.node(layer).input(slot).map(|v| model.value(v).name().to_owned());
    let weight_name = name(model, 1).unwrap_or_else(|| "weight".to_owned());
    let bias_name = name(model, 2).unwrap_or_else(|| format!("{weight_name}_bias"));
    let weights = model.add_constant(graph, &format!("{weight_name}_folded"), weights);
    let bias = model.add_constant(graph, &format!("{bias_name}_folded"), bias);
    model.set_input(layer, 1, Some(weights));
    model.set_input(layer, 2, Some(bias));
    let before = model.node(layer).output(0);
    let after = model.node(id).output(0);
    if let (Some(before), Some(after)) = (before, after) {
        model.replace_value(after, before)?;
    }
    model.remove_node(id)?;
    crate::quantize::drop_unused(model, replaced);
    Ok(())
}
