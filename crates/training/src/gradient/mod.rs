//! Gradients as a graph: nodes behind a model that compute how a number changes with its parameters.
//!
//! Reverse-mode differentiation, operator by operator (Griewank and Walther 2008, chapter 3). The nodes are the
//! standard's own where it has them, so that whatever runs the model runs its gradients; three operators have no
//! counterpart there and belong to the domain [`DOMAIN`]:
//!
//! - `ConvGradWeights (x, dy)`, with the attributes of Conv: what a convolution of `x` owes its weights.
//! - `MaxPoolGrad (x, dy)`, with the attributes of MaxPool: results go to the first greatest place of their window.
//! - `WherePositive (a, x)` and `WhereZero (a, x)`: `a` where `x > 0` or `x = 0`, else 0; they broadcast.

pub(crate) mod back;
mod elementwise;
mod layout;
mod normalization;
mod product;
mod reduce;
mod rounding;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{Model, NodeId, OpsetImport, Tensor, ValueId};

pub use back::DOMAIN;
use back::{At, Back};

/// Hands a node's gradient on to its inputs, or says why it cannot.
type Rule = fn(&mut Back<'_>, &At) -> Result<(), String>;

/// Rules by family.
static RULES: &[&[(&str, Rule)]] = &[
    elementwise::RULES,
    reduce::RULES,
    layout::RULES,
    product::RULES,
    window::RULES,
    normalization::RULES,
    rounding::RULES,
];

/// Operators whose outputs do not change with their inputs, as far as a slope tells.
const FLAT: &[&str] = &[
    "Shape",
    "Size",
    "Greater",
    "Less",
    "Equal",
    "GreaterOrEqual",
    "LessOrEqual",
    "Not",
    "And",
    "Or",
    "ArgMax",
    "ArgMin",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "ConstantOfShape",
    "Range",
    "NonZero",
    "IsNaN",
    "IsInf",
];

/// The oldest operator set whose nodes gradients are made of.
pub const OPERATOR_SET: i64 = 13;

/// Why there are no gradients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GradientError {
    /// Nodes between the parameters and the loss have no gradient.
    #[error("{} of its nodes have no gradient: {}", nodes.len(), listed(nodes))]
    Unsupported {
        /// Each with the reason.
        nodes: Vec<(String, String)>,
    },
    /// The model is of an operator set that lacks what gradients are made of.
    #[error("gradients need operator set {OPERATOR_SET}, the model has {found}: `convert-opset` raises it")]
    OperatorSet {
        /// What it has.
        found: i64,
    },
}

fn listed(nodes: &[(String, String)]) -> String {
    let shown: Vec<String> =
        nodes.iter().take(8).map(|(node, reason)| format!("{node} ({reason})")).collect();
    let more = nodes.len().saturating_sub(shown.len());
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    /// Of each value that was asked for, in order; `None` where the loss does not depend on it.
    pub of: Vec<Option<ValueId>>,
    /// Nodes that gradients do not pass, each with the reason: what they read counts as constant.
    pub frozen: Vec<(NodeId, String)>,
}

/// The rule of an operator of the standard.
fn rule(op_type: &str) -> Option<Rule> {
    RULES.iter().copied().flatten().find(|(name, _)| *name == op_type).map(|(_, rule)| *rule)
}

/// Whether an operator has a gradient, or needs none.
pub fn has_gradient(op_type: &str) -> bool {
    FLAT.contains(&op_type) || rule(op_type).is_some()
}

/// Adds to the main graph of `model` the nodes that compute the gradients of `loss`, one number, by some values.
///
/// Every value on the way must have a fixed shape (infer types after the inputs' shapes are set). With `freeze`
/// nodes without a gradient are passed over and listed.
///
/// # Errors
/// When nodes on the way have no gradient and `freeze` is not set; all of them are named. The model is then
/// of no use any more.
pub fn differentiate(
    model: &mut Model,
    loss: ValueId,
    by: &[ValueId],
    freeze: bool,
) -> Result<Gradients, GradientError> {
    let main = model.main();
    let found = model.opset_version(main, "").unwrap_or(0);
    if found < OPERATOR_SET {
        return Err(GradientError::OperatorSet { found });
    }
    let order = model.node_list(main);
    // Forward: what depends on the parameters.
    let mut wanted: BTreeSet<ValueId> = by.iter().copied().collect();
    let mut passed = Vec::new();
    for &id in &order {
        let node = model.node(id);
        if node.inputs().iter().flatten().any(|input| wanted.contains(input)) {
            let is_flat = node.domain().is_empty() && FLAT.contains(&node.op_type.as_str());
            if !is_flat {
                wanted.extend(node.outputs().iter().flatten());
                passed.push(id);
            }
        }
    }
    if model.opset_version(main, DOMAIN).is_none() {
        model.opset_imports.push(OpsetImport {
            domain: DOMAIN.to_owned(),
            version: 1,
            ..OpsetImport::default()
        });
    }
    let mut back = Back::new(model, wanted);
    let one = back.constant(Tensor::scalar(1f32));
    let shape = back.shape(loss).unwrap_or_default();
    let one = back.reshape(one, &shape).unwrap_or(one);
    back.give(loss, one);
    let mut missing: BTreeMap<usize, (NodeId, String)> = BTreeMap::new();
    for (place, &id) in passed.iter().enumerate().rev() {
        let node = back.model.node(id).clone();
        let gradients = node.outputs().iter().flatten().filter_map(|&output| back.gradient(output));
        let Some(any) = gradients.into_iter().next() else { continue };
        let first = node.output(0).and_then(|output| back.gradient(output));
        let opset = back.model.opset_of(id).unwrap_or(0);
        let known = if node.domain().is_empty() { rule(&node.op_type) } else { None };
        let at = At { node, id, opset, dy: first.unwrap_or(any) };
        let passes = match (known, first) {
            (None, _) => Err("there is no rule for its operator".to_owned()),
            (Some(_), None) if at.node.op_type != "Split" => {
                Err("the loss depends on another output than its first".to_owned())
            }
            (Some(rule), _) => rule(&mut back, &at),
        };
        if let Err(reason) = passes {
            missing.insert(place, (at.id, reason));
        }
    }
    let frozen: Vec<(NodeId, String)> = missing.into_values().collect();
    if !frozen.is_empty() && !freeze {
        let nodes = frozen.into_iter().map(|(id, reason)| (back.model.describe(id), reason)).collect();
        return Err(GradientError::Unsupported { nodes });
    }
    Ok(Gradients { of: by.iter().map(|&value| back.gradient(value)).collect(), frozen })
}
