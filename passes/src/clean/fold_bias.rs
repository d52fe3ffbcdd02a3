//! A constant added behind a layer as that layer's bias.

use optix_ir::{Model, NodeId, Tensor, Use, ValueId};
use optix_pipeline::{Cx, Family, Interface, Named, Numerics, Pass, PassError, Promises, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{floats, layer_bias};

/// Makes a constant that is added behind a Conv, ConvTranspose or Gemm, one number a channel, part of the
/// layer's bias.
///
/// Engines then run one operator in place of two, and quantization can round the bias to int32 as integer
/// kernels want it. Results move by rounding only.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// layer (float[N, 1, 4, 4] x) => (float[N, 2, 4, 4] y)
/// <float[2, 1, 1, 1] w = {1, 2}, float[1, 2, 1, 1] shift = {0.5, -1}>
/// {
///     z = Conv (x, w)
///     y = Add (shift, z)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// layer (float[N, 1, 4, 4] x) => (float[N, 2, 4, 4] y)
/// <float[2, 1, 1, 1] w = {1, 2}, float[2] shift_bias = {0.5, -1}>
/// {
///     y = Conv (x, w, shift_bias)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct FoldBias {}

impl Named for FoldBias {
    const NAME: &'static str = "fold-bias";
    const FAMILY: Family = Family::Clean;
}

impl Pass for FoldBias {
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
            // Most additions have no layer before them: that is no reason to list them.
            let Some(layer) = layer_before(model, id) else { continue };
            let folding = match prepare(model, id, layer) {
                Ok(folding) => folding,
                Err(reason) => {
                    cx.skip(model, id, reason);
                    continue;
                }
            };
            if !cx.may_edit("fold-bias") {
                return Ok(());
            }
            apply(model, id, folding)?;
            cx.count("additions folded", 1);
        }
        Ok(())
    }
}

/// An addition of a constant behind a layer.
#[derive(Clone, Copy)]
struct Addition {
    layer: NodeId,
    constant: ValueId,
}

struct Folding {
    layer: NodeId,
    constant: ValueId,
    bias: Vec<f32>,
    replaced: Vec<ValueId>,
}

/// The layer whose result, and a constant, an Add takes.
fn layer_before(model: &Model, id: NodeId) -> Option<Addition> {
    let node = model.node(id);
    if !node.is("Add") {
        return None;
    }
    let (left, right) = (node.input(0)?, node.input(1)?);
    let (summed, constant) = if model.constant(right).is_some() { (left, right) } else { (right, left) };
    model.constant(constant)?;
    let (layer, _) = model.value(summed).producer()?;
    let held = model.node(layer);
    let has_bias = ["Conv", "ConvTranspose", "Gemm"].iter().any(|op| held.is(op));
    (has_bias && held.graph() == node.graph()).then_some(Addition { layer, constant })
}

/// Channels of a layer's result, the axis they lie along, and the number of its axes.
fn channels(model: &Model, layer: NodeId) -> Result<(usize, usize, usize), String> {
    let node = model.node(layer);
    let weights = node.input(1).and_then(|weights| model.constant(weights));
    let shape = weights.ok_or("the layer's weights are not constant")?.shape();
    let at = |axis: usize| shape.get(axis).copied().ok_or("the layer's weights have too few axes");
    if node.is("Conv") {
        return Ok((at(0)?, 1, shape.len()));
    }
    if node.is("ConvTranspose") {
        let groups = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(1).max(1);
        let channels = at(1)?.checked_mul(groups).ok_or("the layer has too many channels")?;
        return Ok((channels, 1, shape.len()));
    }
    if node.float("beta").unwrap_or(1.0) != 1.0 {
        return Err("the layer scales its bias (beta)".to_owned());
    }
    Ok((at(if node.int("transB").unwrap_or(0) != 0 { 0 } else { 1 })?, 1, 2))
}

fn prepare(model: &Model, id: NodeId, Addition { layer, constant }: Addition) -> Result<Folding, String> {
    let held = model.node(layer);
    let before = held.output(0).ok_or("the layer's output is missing")?;
    if !matches!(*model.value(before).uses(), [Use::Node(..)]) {
        return Err("the layer's output is used elsewhere too".to_owned());
    }
    let (channels, axis, rank) = channels(model, layer)?;
    let added = model.constant(constant).ok_or("what is added is not constant")?;
    // Shapes are aligned at their last axes; a longer one would give the result more axes.
    let lead = rank.checked_sub(added.rank()).ok_or("what is added has more axes than the layer's result")?;
    let apart = |place: usize, size: usize| place + lead == axis && size == channels;
    if added.shape().iter().enumerate().any(|(place, &size)| size != 1 && !apart(place, size)) {
        return Err("what is added is not one number a channel".to_owned());
    }
    let added = floats(model, Some(constant), "addend")?;
    let bias = layer_bias(model, held, channels)?;
    let of_channel = |channel: usize| added.get(if added.len() == 1 { 0 } else { channel }).copied();
    let bias = bias.iter().enumerate();
    let bias: Option<Vec<f32>> =
        bias.map(|(channel, old)| Some((old + of_channel(channel)?) as f32)).collect();
    let bias = bias.ok_or("what is added is empty")?;
    let mut replaced: Vec<ValueId> = model.node(id).inputs().iter().flatten().copied().collect();
    replaced.retain(|&value| value == constant);
    replaced.extend(held.input(2));
    Ok(Folding { layer, constant, bias, replaced })
}

fn apply(model: &mut Model, id: NodeId, folding: Folding) -> Result<(), PassError> {
    let Folding { layer, constant, bias, replaced } = folding;
    let graph = model.node(layer).graph();
    let name = format!("{}_bias", model.value(constant).name());
    let bias = model.add_constant(graph, &name, Tensor::from_vec(vec![bias.len()], bias));
    model.set_input(layer, 2, Some(bias));
    if let (Some(before), Some(after)) = (model.node(layer).output(0), model.node(id).output(0)) {
        // Names and types are those of what stays.
        model.replace_value(after, before)?;
    }
    model.remove_node(id)?;
    crate::quantize::drop_unused(model, replaced);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(added: &str, layer: &str) -> Result<Vec<f32>, String> {
        let text = format!(
            r#"<ir_version: 8, opset_import: ["" : 18]>
            net (float[N, 2, 4, 4] x, float[N, 2] m) => (float[N, 2, 4, 4] y)
            <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[2] b = {{10, 20}}, {added}>
            {{ {layer} }}"#
        );
        let model = optix_ir::text::parse(&text).expect("the text is a model");
        let add = model.walk().find(|&id| model.node(id).is("Add")).expect("an Add");
        let found = layer_before(&model, add).ok_or("no layer")?;
        prepare(&model, add, found).map(|folding| folding.bias)
    }

    #[test]
    fn only_one_number_a_channel_is_folded() {
        let plain = "z = Conv (x, w, b) y = Add (z, c)";
        assert_eq!(verdict("float[2, 1, 1] c = {1, 2}", plain), Ok(vec![11.0, 22.0]));
        assert_eq!(verdict("float[1, 2, 1, 1] c = {1, 2}", plain), Ok(vec![11.0, 22.0]));
        assert_eq!(verdict("float c = {5}", plain), Ok(vec![15.0, 25.0]));
        assert_eq!(verdict("float[1] c = {5}", plain), Ok(vec![15.0, 25.0]));
        // Along the last axis, over more axes, or more of them than the result has.
        assert!(verdict("float[2] c = {1, 2}", plain).is_err());
        assert!(verdict("float[1, 2, 1, 4] c = {1, 2, 3, 4, 5, 6, 7, 8}", plain).is_err());
        assert!(verdict("float[1, 1, 2, 1, 1] c = {1, 2}", plain).is_err());
        assert!(verdict("float[1, 1, 1, 1, 1] c = {1}", plain).is_err());
        // Read elsewhere too.
        assert!(
            verdict("float[2, 1, 1] c = {1, 2}", "z = Conv (x, w, b) q = Add (z, c) y = Mul (q, z)").is_err()
        );
    }
}
