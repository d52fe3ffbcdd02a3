//! Types and shapes of all values, symbolically.
//!
//! Facts flow forward from the declared inputs through one rule an operator. Besides types, the contents of
//! small integer tensors are followed, each element an expression over symbolic sizes, so that the chains
//! of `Shape`, `Gather`, `Concat` and `Reshape` that exporters write for dynamic shapes resolve. What a rule
//! cannot know it leaves unknown, and an operator without a rule gives nothing but what the file declares.
//!
//! Rules, by operator family, are in the files of this directory, each with a `RULES` table. A rule that
//! finds its operator misused says so in the [`InferReport`]; inference then goes on behind it with what
//! the file declares.
//!
//! Symbols are taken to be sizes of at least 1. Sizes of main graph inputs that the file leaves open get
//! symbols of their own (`unknown_0`, ...), so that equal ones are known to be equal further on.

mod attention;
mod call;
mod containers;
mod contrib;
mod control;
mod convolution;
mod dims;
mod elementwise;
mod expr;
mod fact;
mod generate;
mod indexing;
mod linear;
mod normalize;
mod quantize;
mod recurrent;
mod reduce;
mod resample;
mod reshape;
mod signal;
mod walk;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::ids::{NodeId, ValueId};
use crate::model::Model;
use crate::tensor::Tensor;
use crate::types::Type;

pub use dims::broadcast;
pub use expr::Expr;
pub use fact::{Fact, MAX_CONTENTS};

use call::Rule;
use dims::Fault;
use walk::Walker;

/// Computes nodes whose inputs are all known.
///
/// Implemented where the reference kernels are; inference itself knows shapes only.
pub trait Evaluator {
    /// The outputs of a node on these inputs (one entry an input slot, `None` where omitted), or `None`
    /// when it cannot be computed. Called for small tensors only, and never for nodes that hold subgraphs,
    /// call functions or draw random numbers.
    fn evaluate(&self, model: &Model, node: NodeId, inputs: &[Option<&Tensor>]) -> Option<Vec<Tensor>>;
}

/// Computes nothing: shapes that depend on computed constants stay unknown unless they are made of
/// integers that inference follows anyway.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvaluator;

impl Evaluator for NoEvaluator {
    fn evaluate(&self, _: &Model, _: NodeId, _: &[Option<&Tensor>]) -> Option<Vec<Tensor>> {
        None
    }
}

/// Something inference found wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The node concerned; `None` when it is about a graph's input or constant.
    pub node: Option<NodeId>,
    /// The value concerned, when it is about one.
    pub value: Option<ValueId>,
    /// What is wrong.
    pub kind: ProblemKind,
    /// Whether it is wrong in every run. False inside a branch of an `If` whose condition is not known:
    /// models are found whose branches fit other shapes than the ones they are run with.
    pub certain: bool,
}

/// What kind of wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProblemKind {
    /// The file declares a type that the value cannot have.
    #[error("declared as {declared}, but it is {inferred}")]
    Declared {
        /// What the file says.
        declared: Type,
        /// What follows from the node's inputs.
        inferred: Type,
    },
    /// Inputs or attributes break the operator's rules.
    #[error("{0}")]
    Invalid(String),
    /// A size that no machine can address.
    #[error("{0}")]
    TooLarge(String),
    /// Inference gave up: the model asks for more work than it is allowed.
    #[error("{0}")]
    Budget(String),
}

impl Problem {
    /// The problem with its place, for people.
    pub fn describe(&self, model: &Model) -> String {
        let value = self.value.map(|value| format!("value `{}`", model.value(value).name()));
        let node = self.node.map(|node| format!("node {}", model.describe(node)));
        let place: Vec<String> = node.into_iter().chain(value).collect();
        if place.is_empty() { self.kind.to_string() } else { format!("{}: {}", place.join(", "), self.kind) }
    }
}

/// What came of an inference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferReport {
    /// What is wrong with the model, in execution order; at most some thousands.
    pub problems: Vec<Problem>,
    /// Nodes whose operator has no rule here, in execution order.
    pub without_rule: Vec<NodeId>,
    /// Values looked at: those of function bodies, which have no one type, not among them.
    pub values: usize,
    /// Of these, the ones whose element type and rank are known and every size at least by name.
    pub known: usize,
    /// Of these, the ones whose sizes are all fixed numbers.
    pub fixed: usize,
}

/// All facts of a model; see [`analyse`].
#[derive(Clone, Debug)]
pub struct Analysis {
    /// What came of it.
    pub report: InferReport,
    facts: Vec<Fact>,
    nothing: Fact,
}

impl Analysis {
    /// What is known of a value; nothing for values made since.
    pub fn fact(&self, value: ValueId) -> &Fact {
        self.facts.get(value.index()).unwrap_or(&self.nothing)
    }
}

/// Infers types and shapes of all values and leaves the model as it is.
pub fn analyse(model: &Model, evaluator: &dyn Evaluator) -> Analysis {
    let (facts, report) = Walker::new(model, evaluator).run();
    Analysis { report, facts, nothing: Fact::unknown() }
}

/// Infers types and shapes and sets [`Value::ty`](crate::Value::ty) wherever something is known.
///
/// Facts start from what the graphs declare ([`ValueInfo`](crate::ValueInfo)) and from constants; where a
/// declaration contradicts what follows from the inputs, the report says so and the inferred type is taken.
/// A value's earlier `ty` stays only where nothing else is known.
pub fn infer(model: &mut Model, evaluator: &dyn Evaluator) -> InferReport {
    let Analysis { report, facts, .. } = analyse(model, evaluator);
    let values: Vec<ValueId> = model.values().collect();
    for value in values {
        if let Some(ty) = facts.get(value.index()).and_then(|fact| fact.ty.clone()) {
            model.value_mut(value).ty = Some(ty);
        }
    }
    report
}

/// Every place where the file declares a type that the value cannot have; see also [`Problem::certain`].
pub fn contradictions(model: &Model, evaluator: &dyn Evaluator) -> Vec<Problem> {
    let mut problems = analyse(model, evaluator).report.problems;
    problems.retain(|problem| matches!(problem.kind, ProblemKind::Declared { .. }));
    problems
}

/// Facts of one node's outputs (one entry an output slot) from facts of its inputs (one entry an input
/// slot, `None` where omitted). Declarations are not looked at; operators with subgraphs, calls of
/// functions and unknown operators give unknown facts.
///
/// # Errors
/// When the node breaks its operator's rules, or its outputs are too large to address.
pub fn infer_node(
    model: &Model,
    node: NodeId,
    inputs: &[Option<&Fact>],
    evaluator: &dyn Evaluator,
) -> Result<Vec<Fact>, ProblemKind> {
    let opset = model.opset_of(node).unwrap_or(i64::MAX);
    walk::apply(model, node, model.node(node), opset, inputs, evaluator)
        .map(|facts| facts.unwrap_or_else(|| vec![Fact::unknown(); model.node(node).outputs().len()]))
        .map_err(ProblemKind::from)
}

impl From<Fault> for ProblemKind {
    fn from(fault: Fault) -> ProblemKind {
        match fault {
            Fault::Wrong(what) => ProblemKind::Invalid(what),
            Fault::TooLarge(what) => ProblemKind::TooLarge(what),
        }
    }
}

/// Whether there is a rule for an operator (of the standard operator set, by name).
pub fn has_rule(op_type: &str) -> bool {
    rule("", op_type).is_some() || control::is_control(op_type)
}

/// The families; the order is that of the files.
const FAMILIES: &[&[(&str, Rule)]] = &[
    attention::RULES,
    containers::RULES,
    convolution::RULES,
    elementwise::RULES,
    generate::RULES,
    indexing::RULES,
    linear::RULES,
    normalize::RULES,
    quantize::RULES,
    recurrent::RULES,
    reduce::RULES,
    resample::RULES,
    reshape::RULES,
    signal::RULES,
];

/// The rule of an operator of a domain; `""` is the standard one.
fn rule(domain: &str, op_type: &str) -> Option<Rule> {
    static TABLES: OnceLock<[HashMap<&'static str, Rule>; 2]> = OnceLock::new();
    let [standard, contrib] = TABLES.get_or_init(|| {
        [FAMILIES, &[contrib::RULES]].map(|families| families.iter().copied().flatten().copied().collect())
    });
    match domain {
        "" => standard.get(op_type).copied(),
        "com.microsoft" => contrib.get(op_type).copied(),
        _ => None,
    }
}
