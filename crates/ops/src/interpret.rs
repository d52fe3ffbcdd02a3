//! A plain interpreter of whole models: every operator of this crate, control flow, local functions.
//!
//! Slow and exact; what engines do with control flow is checked against it.

use std::borrow::Cow;

use optix_ir::{AttributeValue, GraphId, Initializer, Model, Node, NodeId, Type, ValueId};

use crate::call::OpError;
use crate::control::{run_loop, run_map, run_scan};
use crate::datum::{Datum, DatumCall};
use crate::{evaluate_datum, find};

/// Why a model was not interpreted: a node, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {source}")]
pub struct InterpretError {
    /// The node, described.
    pub node: String,
    /// What it says.
    pub source: OpError,
}

/// Attributes of the function call that nodes of its body may refer to.
type Bindings<'a> = Option<&'a Node>;

/// Either the error of a nested node, named already, or one of the node that holds it.
enum Nested {
    Inner(InterpretError),
    Own(OpError),
}

impl From<OpError> for Nested {
    fn from(error: OpError) -> Nested {
        Nested::Own(error)
    }
}

struct Interpreter<'m> {
    model: &'m Model,
    /// By value; bodies keep theirs in the same table, since each value belongs to one graph.
    values: Vec<Option<Datum>>,
}

/// Runs the main graph of a model on its inputs, in order (`None` where a default is to be taken), and
/// gives its outputs.
///
/// # Errors
/// At the first node that cannot be computed.
pub fn interpret(model: &Model, inputs: Vec<Option<Datum>>) -> Result<Vec<Datum>, InterpretError> {
    let mut interpreter = Interpreter { model, values: vec![None; model.value_capacity()] };
    interpreter.graph(model.main(), inputs, None)
}

/// A node whose attributes that refer to those of a call have the call's values; those that it does not
/// give are left out.
pub fn with_bindings<'n>(model: &Model, node: &'n Node, call: Option<&Node>) -> Cow<'n, Node> {
    let Some(call) = call else { return Cow::Borrowed(node) };
    let refers = |attribute: &optix_ir::Attribute| matches!(attribute.value, AttributeValue::Reference(..));
    if !node.attributes.iter().any(refers) {
        return Cow::Borrowed(node);
    }
    let function = model.function_of(call);
    let mut bound = node.clone();
    bound.attributes.retain_mut(|attribute| {
        let AttributeValue::Reference(name, _) = &attribute.value else { return true };
        let default = || {
            let defaults = function.into_iter().flat_map(|function| &function.attributes);
            defaults.into_iter().find(|default| default.name == *name).map(|default| &default.value)
        };
        match call.attribute(name).or_else(default) {
            Some(value) => {
                attribute.value = value.clone();
                true
            }
            None => false,
        }
    });
    Cow::Owned(bound)
}

impl Interpreter<'_> {
    fn named(&self, id: NodeId, error: Nested) -> InterpretError {
        match error {
            Nested::Inner(error) => error,
            Nested::Own(source) => InterpretError { node: self.model.describe(id), source },
        }
    }

    fn graph(
        &mut self,
        graph: GraphId,
        inputs: Vec<Option<Datum>>,
        bindings: Bindings<'_>,
    ) -> Result<Vec<Datum>, InterpretError> {
        let model = self.model;
        for &value in model.graph(graph).initializers() {
            if let Some(Initializer::Dense(stored)) = model.value(value).initializer() {
                self.values[value.index()] = Some(stored.tensor.clone().into());
            }
        }
        for (info, datum) in model.graph(graph).inputs().iter().zip(inputs) {
            if datum.is_some() {
                self.values[info.value.index()] = datum;
            }
        }
        for id in model.nodes_of(graph) {
            let outputs = self.node(id, bindings).map_err(|error| self.named(id, error))?;
            for (value, datum) in model.node(id).outputs().iter().zip(outputs) {
                if let Some(value) = value {
                    self.values[value.index()] = Some(datum);
                }
            }
        }
        let outputs = model.graph(graph).outputs().iter().map(|info| self.value(info.value));
        outputs.collect::<Option<_>>().ok_or_else(|| InterpretError {
            node: "the graph".into(),
            source: OpError::Invalid { op: "output".into(), what: "was not computed".into() },
        })
    }

    fn value(&self, value: ValueId) -> Option<Datum> {
        self.values[value.index()].clone()
    }

    fn node(&mut self, id: NodeId, bindings: Bindings<'_>) -> Result<Vec<Datum>, Nested> {
        let model = self.model;
        let node = with_bindings(model, model.node(id), bindings);
        let opset = model.opset_of(id).unwrap_or(i64::MAX);
        let inputs: Vec<Option<Datum>> =
            node.inputs().iter().map(|input| input.and_then(|value| self.value(value))).collect();
        for (slot, (given, wanted)) in inputs.iter().zip(node.inputs()).enumerate() {
            if wanted.is_some() && given.is_none() {
                let what = format!("input {slot} has no value");
                return Err(OpError::Invalid { op: node.op_type.clone(), what }.into());
            }
        }
        if let Some(function) = model.function_of(&node) {
            return self.graph(function.graph, inputs, Some(&node)).map_err(Nested::Inner);
        }
        let inputs: Vec<Option<&Datum>> = inputs.iter().map(Option::as_ref).collect();
        let call = DatumCall { node: &node, opset, inputs: &inputs };
        let body = |name: &str| match node.attribute(name) {
            Some(AttributeValue::Graph(graph)) => Ok(*graph),
            _ => Err(call.invalid(format!("it has no graph `{name}`"))),
        };
        let mut run = |graph: GraphId, inputs: Vec<Datum>| {
            self.graph(graph, inputs.into_iter().map(Some).collect(), bindings).map_err(Nested::Inner)
        };
        match node.op_type.as_str() {
            _ if !node.domain().is_empty() => {}
            "If" => {
                let branch = if call.truth(0)? { "then_branch" } else { "else_branch" };
                return run(body(branch)?, Vec::new());
            }
            "Loop" => {
                let graph = body("body")?;
                return run_loop(&call, &output_types(model, graph), &mut |inputs| run(graph, inputs));
            }
            "Scan" => {
                let graph = body("body")?;
                return run_scan(&call, &output_types(model, graph), &mut |inputs| run(graph, inputs));
            }
            "SequenceMap" => {
                let graph = body("body")?;
                let outputs = model.graph(graph).outputs().len();
                return run_map(&call, outputs, &mut |inputs| run(graph, inputs));
            }
            _ => {}
        }
        if node.subgraphs().next().is_some() && find(node.domain(), &node.op_type).is_none() {
            return Err(call.unsupported("an operator of this kind with subgraphs").into());
        }
        Ok(evaluate_datum(&node, opset, &inputs)?)
    }
}

/// The declared or inferred types of a graph's outputs.
pub fn output_types(model: &Model, graph: GraphId) -> Vec<Option<Type>> {
    let outputs = model.graph(graph).outputs().iter();
    outputs.map(|info| info.ty.clone().or_else(|| model.value(info.value).ty.clone())).collect()
}
