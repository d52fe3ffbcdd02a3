//! What makes a model valid, and the check of it.
//!
//! Invariants of a valid model:
//!
//! * **Ownership.** Every graph is the main one, the body of exactly one function, or held by exactly one
//!   attribute of the node it names as its owner. Every id that anything refers to is alive.
//! * **Depth.** Graphs are nested at most [`MAX_DEPTH`] deep.
//! * **Order.** The nodes of a graph form one chain from the first to the last, with ascending labels; the
//!   chain holds exactly the nodes that say they are in the graph.
//! * **Single assignment.** A value is at most one of: output of one node, input of its graph, constant.
//!   (An input may have a constant too: its default.) Producers and outputs agree.
//! * **Names.** A value has a name, unique in its graph, that no graph around it uses either.
//! * **Uses.** A value's use list holds exactly the inputs and graph outputs that are connected to it.
//! * **Definition before use.** Whatever a node or a graph output uses is defined: in the same graph
//!   before the node, or in a graph around it before the node that holds the subgraph.
//! * **Interface.** Inputs belong to their graph, are listed once and marked as inputs.
//! * **Constants.** Listed once, in their own graph; sparse ones have one index for each value. Function
//!   bodies have none.
//! * **Attributes.** Named, once each a node; references occur only within functions and name an
//!   attribute that the function has.
//! * **Operators.** A node names its operator; the operator set it belongs to is imported, by the model or
//!   by the function around it, in one version between 1 and [`MAX_OPSET`].
//! * **Arity.** Standard operators have as many inputs and outputs as some version of them allows.
//! * **Functions.** Named, unique, and not recursive, neither directly nor through each other.
//!
//! Types and shapes are [`crate::infer`]'s, and whether an engine can run an operator is the engine's.

mod arity;
mod graphs;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{AttributeValue, Initializer, Node, OpsetImport, Use};

/// How deep graphs may be nested, the main graph or function body counted.
pub const MAX_DEPTH: usize = 32;

/// The greatest version of an operator set that is believed.
pub const MAX_OPSET: i64 = 1000;

/// Violations beyond this many are not collected.
pub const MAX_VIOLATIONS: usize = 1000;

/// The invariant that is violated; see the [module](self)'s documentation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "each is a paragraph of the module's documentation")]
pub enum Rule {
    Ownership,
    Depth,
    Order,
    SingleAssignment,
    Names,
    Uses,
    DefinitionBeforeUse,
    Interface,
    Constants,
    Attributes,
    Operators,
    Arity,
    Functions,
}

/// One violated invariant. Displays as one line that says where, what and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The invariant.
    pub rule: Rule,
    /// The graph it is in.
    pub graph: Option<GraphId>,
    /// The node it is at.
    pub node: Option<NodeId>,
    /// The value it is about.
    pub value: Option<ValueId>,
    /// The whole line: ids mean nothing without the model.
    text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Checks every invariant; the violations found, grouped by invariant. A valid model has none.
///
/// Takes time in proportion to the model and never panics, however damaged the model is.
pub fn verify(model: &Model) -> Vec<Violation> {
    let mut verifier = Verifier { model, found: Vec::new(), chains: HashMap::new() };
    verifier.ownership();
    verifier.order();
    verifier.values();
    verifier.names();
    verifier.uses();
    verifier.definitions();
    verifier.opset_imports();
    verifier.nodes();
    verifier.functions();
    verifier.found
}

/// Where a violation is.
#[derive(Clone, Copy, Default)]
struct At {
    graph: Option<GraphId>,
    node: Option<NodeId>,
    value: Option<ValueId>,
}

impl At {
    fn graph(graph: GraphId) -> At {
        At { graph: Some(graph), ..At::default() }
    }

    fn node(node: NodeId) -> At {
        At { node: Some(node), ..At::default() }
    }

    fn value(value: ValueId) -> At {
        At { value: Some(value), ..At::default() }
    }

    fn with_value(self, value: ValueId) -> At {
        At { value: Some(value), ..self }
    }
}

struct Verifier<'a> {
    model: &'a Model,
    found: Vec<Violation>,
    /// For every sound graph the graphs around it, itself first; each with the node in it that holds the
    /// one before.
    chains: HashMap<GraphId, Vec<(GraphId, Option<NodeId>)>>,
}

impl<'a> Verifier<'a> {
    fn report(&mut self, rule: Rule, at: At, problem: impl fmt::Display) {
        if self.found.len() >= MAX_VIOLATIONS {
            return;
        }
        let node = at.node.and_then(|id| self.model.nodes.get(id));
        let value = at.value.and_then(|id| self.model.values.get(id));
        let graph = at.graph.or(node.and_then(|node| node.graph)).or(value.map(|value| value.graph));
        let mut text = match graph.and_then(|id| self.model.graphs.get(id)) {
            Some(graph) => format!("graph `{}`", graph.name),
            None => "model".to_owned(),
        };
        if let Some(node) = node {
            text += &format!(", node {}", self.describe(node));
        }
        if let Some(value) = value {
            text += &format!(", value `{}`", value.name);
        }
        text += &format!(": {problem}");
        self.found.push(Violation { rule, graph, node: at.node, value: at.value, text });
    }

    /// As [`Model::describe`], for models whose ids may be dead.
    fn describe(&self, node: &Node) -> String {
        if !node.name.is_empty() {
            return format!("`{}` ({})", node.name, node.op_type);
        }
        let output = node.outputs.iter().flatten().next().and_then(|&id| self.model.values.get(id));
        format!("{} -> `{}`", node.op_type, output.map_or("nothing", |value| &value.name))
    }

    fn node_ids(&self) -> impl Iterator<Item = NodeId> + 'a {
        self.model.nodes.ids()
    }

    /// The outermost graph around a graph: the main one or a function's body.
    fn root(&self, graph: GraphId) -> Option<GraphId> {
        self.chains.get(&graph)?.last().map(|&(root, _)| root)
    }

    // ---- values -------------------------------------------------------------------------------------

    fn values(&mut self) {
        let model = self.model;
        for id in model.values.ids() {
            let Some(value) = model.values.get(id) else { continue };
            if model.graphs.get(value.graph).is_none() {
                let problem = "it belongs to a graph that was removed: remove the value too";
                self.report(Rule::Ownership, At::value(id), problem);
            }
            let mut roles = Vec::new();
            if let Some((node, slot)) = value.producer {
                roles.push("a node's output");
                let produced = model.nodes.get(node).and_then(|node| node.output(slot as usize));
                if produced != Some(id) {
                    let problem = "its producer does not have it as output: connect them with `set_output`";
                    self.report(Rule::SingleAssignment, At::value(id), problem);
                }
            }
            if value.is_input {
                roles.push("a graph input");
            } else if value.initializer.is_some() {
                roles.push("a constant");
            }
            if value.producer.is_some() && value.is_input && value.initializer.is_some() {
                roles.push("a constant");
            }
            if roles.len() > 1 {
                let problem = format!("it is {}: give each its own name", roles.join(" and "));
                self.report(Rule::SingleAssignment, At::value(id), problem);
            }
        }
        for id in self.node_ids() {
            let Some(node) = model.nodes.get(id) else { continue };
            let mut seen = HashSet::new();
            for (slot, &output) in node.outputs.iter().enumerate() {
                let Some(output) = output else { continue };
                let Some(value) = model.values.get(output) else {
                    let problem = format!("output {slot} is a value that was removed");
                    self.report(Rule::Ownership, At::node(id), problem);
                    continue;
                };
                if value.producer != Some((id, slot as u32)) || !seen.insert(output) {
                    let problem = format!("it is output {slot} of the node, but something else produces it");
                    self.report(Rule::SingleAssignment, At::node(id).with_value(output), problem);
                }
                if node.graph != Some(value.graph) {
                    let problem = "the node's output belongs to another graph";
                    self.report(Rule::SingleAssignment, At::node(id).with_value(output), problem);
                }
            }
        }
    }

    fn names(&mut self) {
        let model = self.model;
        let mut names: HashMap<(GraphId, &str), ValueId> = HashMap::new();
        for id in model.values.ids() {
            let Some(value) = model.values.get(id) else { continue };
            if value.name.is_empty() {
                self.report(Rule::Names, At::value(id), "the value has no name: give it one");
            } else if names.insert((value.graph, &value.name), id).is_some() {
                let problem = "another value of the graph has the same name: rename one of them";
                self.report(Rule::Names, At::value(id), problem);
            }
        }
        for id in model.values.ids() {
            let Some(value) = model.values.get(id) else { continue };
            let around = self.chains.get(&value.graph).map_or(&[][..], |chain| &chain[1..]);
            let shadowed =
                around.iter().find(|(graph, _)| names.contains_key(&(*graph, value.name.as_str())));
            if let Some(&(graph, _)) = shadowed {
                let outer = model.graphs.get(graph).map_or("", |graph| &graph.name);
                let problem =
                    format!("its name hides a value of the graph `{outer}` around it: rename the inner one");
                self.report(Rule::Names, At::value(id), problem);
            }
        }
    }

    fn uses(&mut self) {
        let model = self.model;
        let mut expected: Vec<Vec<Use>> = vec![Vec::new(); model.values.capacity()];
        for id in self.node_ids() {
            let Some(node) = model.nodes.get(id) else { continue };
            for (slot, &input) in node.inputs.iter().enumerate() {
                if let Some(list) = input.and_then(|input| expected.get_mut(input.index())) {
                    list.push(Use::Node(id, slot as u32));
                }
            }
        }
        for id in model.graphs.ids() {
            let Some(graph) = model.graphs.get(id) else { continue };
            for (index, info) in graph.outputs.iter().enumerate() {
                if let Some(list) = expected.get_mut(info.value.index()) {
                    list.push(Use::Output(id, index as u32));
                }
            }
        }
        for id in model.values.ids() {
            let Some(value) = model.values.get(id) else { continue };
            let (mut listed, expected) = (value.uses.clone(), &mut expected[id.index()]);
            listed.sort_unstable();
            expected.sort_unstable();
            if listed != *expected {
                let problem = format!(
                    "its use list has {} entries and {} connections exist: change inputs through the model's \
                     edit methods only",
                    listed.len(),
                    expected.len()
                );
                self.report(Rule::Uses, At::value(id), problem);
            }
        }
    }

    fn definitions(&mut self) {
        let model = self.model;
        for id in self.node_ids() {
            let Some(node) = model.nodes.get(id) else { continue };
            let Some(graph) = node.graph else { continue };
            for (slot, &input) in node.inputs.iter().enumerate() {
                if let Some(input) = input
                    && let Some(problem) = self.undefined(input, graph, Some(node))
                {
                    let problem = format!("input {slot} {problem}");
                    self.report(Rule::DefinitionBeforeUse, At::node(id).with_value(input), problem);
                }
            }
        }
        for id in model.graphs.ids() {
            let Some(graph) = model.graphs.get(id) else { continue };
            for (index, info) in graph.outputs.iter().enumerate() {
                if let Some(problem) = self.undefined(info.value, id, None) {
                    let problem = format!("output {index} of the graph {problem}");
                    self.report(Rule::DefinitionBeforeUse, At::graph(id).with_value(info.value), problem);
                }
            }
        }
    }

    /// What is wrong with using a value in a graph, by a node in it or as its output.
    fn undefined(&self, value: ValueId, graph: GraphId, user: Option<&Node>) -> Option<&'static str> {
        let Some(value) = self.model.values.get(value) else {
            return Some("is a value that was removed: connect it to another one");
        };
        // A damaged nesting is reported elsewhere.
        let chain = self.chains.get(&graph)?;
        let Some(level) = chain.iter().position(|&(around, _)| around == value.graph) else {
            return Some("is a value of a graph that cannot be seen from there");
        };
        let Some((producer, _)) = value.producer else {
            let defined = value.is_input || value.initializer.is_some();
            return if defined {
                None
            } else {
                Some("is defined by nothing: no input, constant or node has that name")
            };
        };
        let producer = self.model.nodes.get(producer)?;
        let holder = chain.get(level).and_then(|&(_, holder)| holder);
        let user = match holder {
            Some(holder) => self.model.nodes.get(holder),
            None => user,
        }?;
        if producer.label < user.label {
            return None;
        }
        Some("is computed by that node itself or a later one: sort the nodes, or break the cycle")
    }

    // ---- operators ----------------------------------------------------------------------------------

    fn opset_imports(&mut self) {
        let model = self.model;
        self.imports(&model.opset_imports, At::default(), "the model");
        for function in &model.functions {
            let name = format!("the function `{}`", function.name);
            self.imports(&function.opset_imports, At::graph(function.graph), &name);
        }
    }

    fn imports(&mut self, imports: &[OpsetImport], at: At, whose: &str) {
        let mut versions: BTreeMap<&str, i64> = BTreeMap::new();
        for import in imports {
            let (domain, version) = (plain_domain(&import.domain), import.version);
            if !(1..=MAX_OPSET).contains(&version) {
                let problem = format!(
                    "{whose} imports version {version} of operator set `{domain}`: versions are 1 to {MAX_OPSET}"
                );
                self.report(Rule::Operators, at, problem);
            }
            let other = *versions.entry(domain).or_insert(version);
            if other != version {
                let problem = format!(
                    "{whose} imports operator set `{domain}` in versions {other} and {version}: keep one"
                );
                self.report(Rule::Operators, at, problem);
            }
        }
    }

    fn nodes(&mut self) {
        let model = self.model;
        let domains = |imports: &'a [OpsetImport]| -> HashSet<&'a str> {
            imports.iter().map(|import| plain_domain(&import.domain)).collect()
        };
        let mut imported = HashMap::from([(model.main, domains(&model.opset_imports))]);
        let mut functions = HashMap::new();
        let mut local = HashSet::new();
        for function in &model.functions {
            imported.insert(function.graph, domains(&function.opset_imports));
            functions.insert(function.graph, function);
            local.insert((function.domain.as_str(), function.name.as_str()));
        }
        for id in self.node_ids() {
            let Some(node) = model.nodes.get(id) else { continue };
            let at = At::node(id);
            let root = node.graph.and_then(|graph| self.root(graph));
            if node.op_type.is_empty() {
                self.report(Rule::Operators, at, "the node names no operator");
            }
            if let Some(domains) = root.and_then(|root| imported.get(&root))
                && !domains.contains(node.domain())
            {
                let problem = format!(
                    "operator `{}` is of operator set `{}`, which is not imported: add it to `opset_import`",
                    node.op_type,
                    node.domain()
                );
                self.report(Rule::Operators, at, problem);
            }
            if node.domain().is_empty()
                && !local.contains(&(node.domain.as_str(), node.op_type.as_str()))
                && let Some(problem) = arity::check(node)
            {
                self.report(Rule::Arity, at, problem);
            }
            let mut seen = HashSet::new();
            for attribute in &node.attributes {
                if attribute.name.is_empty() {
                    self.report(Rule::Attributes, at, "an attribute has no name");
                } else if !seen.insert(attribute.name.as_str()) {
                    let problem = format!("attribute `{}` is there twice: keep one", attribute.name);
                    self.report(Rule::Attributes, at, problem);
                }
                let AttributeValue::Reference(name, _) = &attribute.value else { continue };
                let function = root.and_then(|root| functions.get(&root));
                let known = function.is_none_or(|function| {
                    function.attribute_names.contains(name)
                        || function.attributes.iter().any(|attribute| attribute.name == *name)
                });
                if function.is_none() {
                    let problem = format!(
                        "attribute `{}` refers to the attribute `{name}` of a function, but the node is in \
                         none: give it a value",
                        attribute.name
                    );
                    self.report(Rule::Attributes, at, problem);
                } else if !known {
                    let problem = format!(
                        "attribute `{}` refers to `{name}`, which is no attribute of the function: declare it",
                        attribute.name
                    );
                    self.report(Rule::Attributes, at, problem);
                }
            }
        }
    }

    // ---- functions ----------------------------------------------------------------------------------

    fn functions(&mut self) {
        let model = self.model;
        let mut index = HashMap::new();
        for (number, function) in model.functions.iter().enumerate() {
            let at = At::graph(function.graph);
            if function.name.is_empty() {
                self.report(Rule::Functions, at, "the function has no name");
            }
            let key = (plain_domain(&function.domain), function.name.as_str(), function.overload.as_str());
            if index.insert(key, number).is_some() {
                let problem = format!(
                    "the function `{}` of domain `{}` is there twice: keep one, or give it an overload",
                    function.name, function.domain
                );
                self.report(Rule::Functions, at, problem);
            }
            let mut seen = HashSet::new();
            let defaults = function.attributes.iter().map(|attribute| &attribute.name);
            for name in function.attribute_names.iter().chain(defaults) {
                if !seen.insert(name) {
                    let problem = format!("the function's attribute `{name}` is declared twice");
                    self.report(Rule::Attributes, at, problem);
                }
            }
            let references = |value: &AttributeValue| matches!(value, AttributeValue::Reference(..));
            if function.attributes.iter().any(|attribute| references(&attribute.value)) {
                self.report(Rule::Attributes, at, "a default of the function's attributes is a reference");
            }
        }
        // Who calls whom.
        let mut calls: Vec<Vec<usize>> = vec![Vec::new(); model.functions.len()];
        let bodies: HashMap<GraphId, usize> =
            model.functions.iter().enumerate().map(|(number, function)| (function.graph, number)).collect();
        if bodies.is_empty() {
            return;
        }
        for id in self.node_ids() {
            let Some(node) = model.nodes.get(id) else { continue };
            let caller = node.graph.and_then(|graph| self.root(graph)).and_then(|root| bodies.get(&root));
            let callee = index.get(&(node.domain(), node.op_type.as_str(), node.overload.as_str()));
            if let (Some(&caller), Some(&callee)) = (caller, callee) {
                calls[caller].push(callee);
            }
        }
        for cyclic in cyclic(&calls) {
            let function = &model.functions[cyclic];
            let problem =
                format!("the function `{}` calls itself, directly or through others", function.name);
            self.report(Rule::Functions, At::graph(function.graph), problem);
        }
    }

    fn constants(&mut self, id: GraphId, is_body: bool) {
        let Some(graph) = self.model.graphs.get(id) else { return };
        let mut seen = HashSet::new();
        for &value in &graph.initializers {
            let at = At::graph(id).with_value(value);
            match self.model.values.get(value) {
                None => self.report(Rule::Ownership, at, "a constant of the graph was removed"),
                Some(held) if held.graph != id || held.initializer.is_none() => {
                    self.report(Rule::Constants, at, "it is listed as a constant of the graph and is none");
                }
                Some(held) => {
                    if let Some(Initializer::Sparse(sparse)) = &held.initializer {
                        let (values, indices) =
                            (sparse.values.tensor.len(), sparse.indices.tensor.shape().first());
                        if indices.copied().unwrap_or(1) != values {
                            let problem = "the sparse constant has not one index for each value";
                            self.report(Rule::Constants, at, problem);
                        }
                    }
                }
            }
            if !seen.insert(value) {
                self.report(Rule::Constants, at, "it is listed twice as a constant: keep one");
            }
        }
        if is_body && !graph.initializers.is_empty() {
            let problem = "a function's body cannot have initializers: use `Constant` nodes";
            self.report(Rule::Constants, At::graph(id), problem);
        }
    }
}

/// Both spellings of the standard operator set as `""`.
fn plain_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// Members of a graph of calls that can reach themselves.
fn cyclic(calls: &[Vec<usize>]) -> Vec<usize> {
    // Whatever calls nothing that is left is in no cycle; taking it away may free its callers.
    let mut callers = vec![Vec::new(); calls.len()];
    let mut pending: Vec<usize> = calls.iter().map(Vec::len).collect();
    for (caller, callees) in calls.iter().enumerate() {
        for &callee in callees {
            callers[callee].push(caller);
        }
    }
    let mut free: Vec<usize> = (0..calls.len()).filter(|&function| pending[function] == 0).collect();
    while let Some(function) = free.pop() {
        for &caller in &callers[function] {
            pending[caller] -= 1;
            if pending[caller] == 0 {
                free.push(caller);
            }
        }
    }
    // The rest reach a cycle; those that a cycle reaches back are in one.
    (0..calls.len())
        .filter(|&start| {
            let (mut seen, mut stack) = (HashSet::new(), calls[start].clone());
            while let Some(function) = stack.pop() {
                if function == start {
                    return true;
                }
                if pending[function] > 0 && seen.insert(function) {
                    stack.extend(&calls[function]);
                }
            }
            false
        })
        .collect()
}
