//! Nesting, order and interface of graphs.

use std::collections::{HashMap, HashSet};

use super::{At, MAX_DEPTH, Rule, Verifier};
use crate::ids::{GraphId, NodeId, ValueId};

impl Verifier<'_> {
    /// Who holds which graph, and how deep; leaves the chains of sound graphs behind.
    pub(super) fn ownership(&mut self) {
        let model = self.model;
        let mut holders: HashMap<GraphId, Vec<Option<NodeId>>> = HashMap::new();
        for id in self.node_ids() {
            let Some(node) = model.nodes.get(id) else { continue };
            if node.graph.and_then(|graph| model.graphs.get(graph)).is_none() {
                self.report(Rule::Ownership, At::node(id), "the node is in no graph that exists");
            }
            for graph in node.subgraphs() {
                holders.entry(graph).or_default().push(Some(id));
                if model.graphs.get(graph).is_none() {
                    let problem = "an attribute holds a graph that was removed: remove the attribute";
                    self.report(Rule::Ownership, At::node(id), problem);
                }
            }
        }
        for function in &model.functions {
            holders.entry(function.graph).or_default().push(None);
            if model.graphs.get(function.graph).is_none() {
                let problem = format!("the body of the function `{}` was removed", function.name);
                self.report(Rule::Ownership, At::default(), problem);
            }
        }
        let bodies: HashSet<GraphId> = model.functions.iter().map(|function| function.graph).collect();
        for id in model.graphs.ids() {
            let Some(graph) = model.graphs.get(id) else { continue };
            let holders = holders.get(&id).map_or(&[][..], |holders| holders);
            let problem = match holders {
                [] if id == model.main => None,
                [] => Some("nothing holds the graph: remove it, or put it into an attribute".to_owned()),
                _ if id == model.main => Some("the main graph is held by a node or a function".to_owned()),
                [holder] if *holder == graph.owner => None,
                [_] => Some("what holds the graph is not its owner: call `set_owner`".to_owned()),
                many => Some(format!("{} attributes or functions hold the graph: copy it", many.len())),
            };
            if let Some(problem) = problem {
                self.report(Rule::Ownership, At::graph(id), problem);
            } else {
                self.chain(id);
            }
            self.interface(id);
            self.constants(id, bodies.contains(&id));
        }
    }

    /// The graphs around a graph, outermost last.
    fn chain(&mut self, id: GraphId) {
        let model = self.model;
        let mut chain = vec![(id, None)];
        let mut at = id;
        while let Some(owner) = model.graphs.get(at).and_then(|graph| graph.owner) {
            let Some(around) = model.nodes.get(owner).and_then(|node| node.graph) else {
                let problem = "the node that owns the graph was removed: remove the graph too";
                return self.report(Rule::Ownership, At::graph(at), problem);
            };
            if chain.len() >= MAX_DEPTH {
                let problem = format!("the graph is nested deeper than {MAX_DEPTH}, or in itself");
                return self.report(Rule::Depth, At::graph(id), problem);
            }
            chain.push((around, Some(owner)));
            at = around;
        }
        self.chains.insert(id, chain);
    }

    fn interface(&mut self, id: GraphId) {
        let model = self.model;
        let Some(graph) = model.graphs.get(id) else { return };
        let mut seen = HashSet::new();
        for info in &graph.inputs {
            let at = At::graph(id).with_value(info.value);
            match model.values.get(info.value) {
                None => self.report(Rule::Ownership, at, "an input of the graph was removed"),
                Some(value) if value.graph != id || !value.is_input => {
                    let problem = "it is listed as input of the graph but is not marked as one there";
                    self.report(Rule::Interface, at, problem);
                }
                Some(_) => {}
            }
            if !seen.insert(info.value) {
                self.report(Rule::Interface, at, "it is listed twice as input of the graph: keep one");
            }
        }
        let declared = graph.value_infos.iter().chain(&graph.outputs);
        for info in declared {
            if model.values.get(info.value).is_none() {
                let problem = "an output or declared type is of a value that was removed";
                self.report(Rule::Ownership, At::graph(id).with_value(info.value), problem);
            }
        }
    }

    pub(super) fn order(&mut self) {
        let model = self.model;
        let mut placed = vec![false; model.nodes.capacity()];
        for id in model.graphs.ids() {
            let Some(graph) = model.graphs.get(id) else { continue };
            let (mut previous, mut next, mut label, mut count) = (None, graph.first, None, 0usize);
            let problem = loop {
                let Some(at) = next else {
                    let sound = graph.last == previous && graph.node_count == count;
                    break (!sound).then_some("the chain of nodes ends at another node than the last");
                };
                let Some(node) = model.nodes.get(at) else {
                    break Some("the chain of nodes has a removed node");
                };
                if node.graph != Some(id) || node.previous != previous {
                    break Some("the chain of nodes is broken or shared with another graph");
                }
                if std::mem::replace(&mut placed[at.index()], true) {
                    break Some("the chain of nodes runs in a circle");
                }
                if label.is_some_and(|label| label >= node.label) {
                    break Some("the labels of the nodes do not ascend along their chain");
                }
                (previous, next, label, count) = (Some(at), node.next, Some(node.label), count + 1);
            };
            if let Some(problem) = problem {
                let problem = format!("{problem}: move nodes through the model's edit methods only");
                self.report(Rule::Order, At { graph: Some(id), node: previous, value: None }, problem);
            }
        }
        for id in self.node_ids() {
            if !placed[id.index()] {
                self.report(Rule::Order, At::node(id), "the node is not in the order of its graph");
            }
        }
        let graphs = model.graphs.ids().filter_map(|id| model.graphs.get(id));
        let listed: HashSet<ValueId> =
            graphs.flat_map(|graph| &graph.inputs).map(|info| info.value).collect();
        for id in model.values.ids() {
            if model.values.get(id).is_some_and(|value| value.is_input) && !listed.contains(&id) {
                let problem = "it is marked as input, but its graph does not list it";
                self.report(Rule::Interface, At::value(id), problem);
            }
        }
    }
}
