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

use optix_ir::{Model, Node};

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
