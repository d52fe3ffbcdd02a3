//! Clean-up that changes no result.

mod convert_opset;
mod eliminate_common_subexpressions;
mod eliminate_dead;
mod eliminate_identity;
mod fold_batch_norm;
mod fold_bias;
mod fold_constants;
mod merge_initializers;
mod opset_changes;

pub use convert_opset::ConvertOpset;
pub use eliminate_common_subexpressions::EliminateCommonSubexpressions;
pub use eliminate_dead::EliminateDead;
pub use eliminate_identity::EliminateIdentity;
pub use fold_batch_norm::FoldBatchNorm;
pub use fold_bias::FoldBias;
pub use fold_constants::FoldConstants;
pub use merge_initializers::MergeInitializers;

use optix_ir::{DType, Model, Node, ValueId};

/// Operators that give another result each time or do more than compute their outputs.
const NOT_PURE: &[&str] =
    &["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"];

/// Whether a node of the standard operator set always gives the same outputs for the same inputs.
/// Operators of other domains and functions of the model are not known to be.
fn is_pure(model: &Model, node: &Node) -> bool {
    let training = node.is("Dropout") && node.input(2).is_some();
    node.domain().is_empty()
        && model.function_of(node).is_none()
        && !training
        && !NOT_PURE.contains(&node.op_type.as_str())
}

/// The numbers of a constant operand of a node, which `what` it is.
///
/// # Errors
/// Why there are none.
fn floats(model: &Model, value: Option<ValueId>, what: &str) -> Result<Vec<f64>, String> {
    let value = value.ok_or_else(|| format!("its {what} is missing"))?;
    let tensor = model.constant(value).ok_or_else(|| format!("its {what} is not constant"))?;
    match tensor.dtype() {
        DType::F32 => tensor.to_f64s().map_err(|error| error.to_string()),
        other => Err(format!("its {what} is {other}")),
    }
}

/// The bias of a Conv, ConvTranspose or Gemm with so many channels: zeros where it has none.
///
/// # Errors
/// When it is not one constant number a channel.
fn layer_bias(model: &Model, layer: &Node, channels: usize) -> Result<Vec<f64>, String> {
    let Some(bias) = layer.input(2) else { return Ok(vec![0.0; channels]) };
    let bias = floats(model, Some(bias), "layer's bias")?;
    if bias.len() != channels {
        return Err("the layer's bias has another shape than its channels".to_owned());
    }
    Ok(bias)
}
