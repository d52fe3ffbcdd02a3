//! Changing a model: the only code that touches producers, use lists and order.
//!
//! Readers of files build a model through the same methods. Methods that could break an invariant check
//! first and change nothing when they refuse.

use std::collections::HashSet;

use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{Graph, Initializer, Node, StoredTensor, Use, Value, ValueInfo};
use crate::tensor::Tensor;
use crate::types::Type;

/// Distance between the order labels of neighbours when there is room.
const LABEL_STEP: u64 = 1 << 20;

/// Why an edit was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// A node was to be removed whose output is still used.
    #[error("node {node} cannot be removed: its output `{value}` is still used")]
    StillUsed {
        /// The node, described.
        node: String,
        /// The output.
        value: String,
    },
    /// A value that is part of a graph's interface was to be replaced by one that has its own name there.
    #[error("`{old}` is an output of the graph and `{new}` must keep its own name")]
    InterfaceName {
        /// The graph output.
        old: String,
        /// What was to stand in its place.
        new: String,
    },
    /// A second node was to compute a value.
    #[error("`{0}` is already produced by a node, an input or an initializer")]
    AlreadyProduced(String),
    /// The name is taken by another value of the graph.
    #[error("the name `{0}` is taken")]
    NameTaken(String),
}

/// Where to put a node in its graph's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// Behind all nodes.
    End,
    /// Directly before that node.
    Before(NodeId),
    /// Directly behind that node.
    After(NodeId),
    /// Before all nodes.
    Start,
}

impl Model {
    // ---- graphs -------------------------------------------------------------------------------------

    /// A new, empty graph; `owner` is the node whose attribute will hold it, `None` for a function body.
    pub fn add_graph(&mut self, owner: Option<NodeId>) -> GraphId {
        self.graphs.push(Graph { owner, ..Graph::default() })
    }

    /// Says which node holds a graph (made before the node was).
    pub fn set_owner(&mut self, graph: GraphId, owner: NodeId) {
        self.graph_mut(graph).owner = Some(owner);
    }

    /// Removes a graph with all it holds, subgraphs included.
    pub fn remove_graph(&mut self, graph: GraphId) {
        let mut doomed = vec![graph];
        while let Some(graph) = doomed.pop() {
            let nodes = self.node_list(graph);
            for &node in &nodes {
                doomed.extend(self.node(node).subgraphs());
            }
            for index in 0..self.graph(graph).outputs.len() {
                let value = self.graph(graph).outputs[index].value;
                self.forget_use(value, Use::Output(graph, index as u32));
            }
            for &node in &nodes {
                for slot in 0..self.node(node).inputs.len() {
                    if let Some(value) = self.node(node).inputs[slot] {
                        self.forget_use(value, Use::Node(node, slot as u32));
                    }
                }
                self.nodes.remove(node);
            }
            let values: Vec<ValueId> = self.values().filter(|&id| self.value(id).graph == graph).collect();
            for value in values {
                self.drop_value(value);
            }
            self.graphs.remove(graph);
        }
    }

    // ---- values -------------------------------------------------------------------------------------

    /// A new value of that very name, with nothing producing it yet.
    ///
    /// Names are not checked here: the reader and `verify` do.
    pub fn add_value(&mut self, graph: GraphId, name: impl Into<String>) -> ValueId {
        let name = name.into();
        if let Some(names) = self.names.get_mut() {
            names.insert(name.clone());
        }
        self.values.push(Value {
            name,
            graph,
            producer: None,
            is_input: false,
            uses: Vec::new(),
            initializer: None,
            ty: None,
        })
    }

    /// A name no value of the model has: `hint` itself, or `hint_1`, `hint_2`, ...
    pub fn fresh_name(&self, hint: &str) -> String {
        let names = self.names.get_or_init(|| {
            let mut names: HashSet<String> = self.values().map(|id| self.value(id).name.clone()).collect();
            names.insert(String::new());
            names
        });
        if !names.contains(hint) {
            return hint.to_owned();
        }
        let mut number = 1u64;
        loop {
            let name = format!("{hint}_{number}");
            if !names.contains(&name) {
                return name;
            }
            number += 1;
        }
    }

    /// A new value whose name starts with `hint` and is unique in the model.
    pub fn add_fresh_value(&mut self, graph: GraphId, hint: &str) -> ValueId {
        let name = self.fresh_name(hint);
        self.add_value(graph, name)
    }

    /// Renames a value.
    ///
    /// # Errors
    /// When another value of the model has that name.
    pub fn rename_value(&mut self, value: ValueId, name: &str) -> Result<(), EditError> {
        if self.value(value).name == name {
            return Ok(());
        }
        if self.fresh_name(name) != name {
            return Err(EditError::NameTaken(name.to_owned()));
        }
        let old = std::mem::replace(&mut self.value_mut(value).name, name.to_owned());
        if let Some(names) = self.names.get_mut() {
            names.remove(&old);
            names.insert(name.to_owned());
        }
        Ok(())
    }

    /// Removes a value that nothing uses, with its initializer and its `value_info`. A value that a node
    /// produces, a used one, or a graph input stays, and `false` is returned.
    pub fn remove_value(&mut self, value: ValueId) -> bool {
        let held = self.value(value);
        if !held.uses.is_empty() || held.producer.is_some() || held.is_input {
            return false;
        }
        self.drop_value(value);
        true
    }

    fn drop_value(&mut self, value: ValueId) {
        let Some(removed) = self.values.remove(value) else { return };
        if let Some(graph) = self.graphs.get_mut(removed.graph) {
            graph.value_infos.retain(|info| info.value != value);
            if removed.initializer.is_some() {
                graph.initializers.retain(|&id| id != value);
            }
        }
        if let Some(names) = self.names.get_mut() {
            names.remove(&removed.name);
        }
    }

    /// Makes a value an input of its graph, the last one.
    pub fn add_input(&mut self, info: ValueInfo) {
        let value = self.value_mut(info.value);
        value.is_input = true;
        value.ty = value.ty.take().or_else(|| info.ty.clone());
        let graph = value.graph;
        self.graph_mut(graph).inputs.push(info);
    }

    /// Removes an input from a graph's interface; the value stays.
    pub fn remove_input(&mut self, value: ValueId) {
        let graph = self.value(value).graph;
        self.graph_mut(graph).inputs.retain(|info| info.value != value);
        self.value_mut(value).is_input = false;
    }

    /// Makes a value (of that graph or one around it) an output of a graph, the last one.
    pub fn add_output(&mut self, graph: GraphId, info: ValueInfo) {
        let index = self.graph(graph).outputs.len() as u32;
        let value = self.value_mut(info.value);
        value.uses.push(Use::Output(graph, index));
        value.ty = value.ty.take().or_else(|| info.ty.clone());
        self.graph_mut(graph).outputs.push(info);
    }

    /// The declaration of input or output number `index`, to edit its type or documentation.
    pub fn input_info_mut(&mut self, graph: GraphId, index: usize) -> Option<&mut ValueInfo> {
        self.graph_mut(graph).inputs.get_mut(index)
    }

    /// See [`Model::input_info_mut`].
    pub fn output_info_mut(&mut self, graph: GraphId, index: usize) -> Option<&mut ValueInfo> {
        self.graph_mut(graph).outputs.get_mut(index)
    }

    /// Declares a type in a graph's `value_info`.
    pub fn add_value_info(&mut self, graph: GraphId, info: ValueInfo) {
        let value = self.value_mut(info.value);
        value.ty = value.ty.take().or_else(|| info.ty.clone());
        self.graph_mut(graph).value_infos.push(info);
    }

    /// Gives a value its constant, replacing one it had; the type follows.
    pub fn set_initializer(&mut self, value: ValueId, initializer: Initializer) {
        let held = self.value_mut(value);
        let graph = held.graph;
        held.ty = match &initializer {
            Initializer::Dense(stored) => Some(Type::of(&stored.tensor)),
            Initializer::Sparse(_) => held.ty.take(),
        };
        let is_new = held.initializer.replace(initializer).is_none();
        if is_new {
            self.graph_mut(graph).initializers.push(value);
        }
    }

    /// Gives a value a dense constant, keeping the documentation of one it had.
    pub fn set_tensor(&mut self, value: ValueId, tensor: Tensor) {
        let mut stored = match self.value_mut(value).initializer.take() {
            Some(Initializer::Dense(stored)) => {
                // Still listed among the graph's initializers: put back in place below.
                self.value_mut(value).initializer = Some(Initializer::Dense(stored.clone()));
                StoredTensor { doc_string: stored.doc_string, metadata: stored.metadata, ..tensor.into() }
            }
            other => {
                self.value_mut(value).initializer = other;
                tensor.into()
            }
        };
        stored.name.clear();
        self.set_initializer(value, Initializer::Dense(Box::new(stored)));
    }

    /// A new constant with a name made from `hint`.
    pub fn add_constant(&mut self, graph: GraphId, hint: &str, tensor: Tensor) -> ValueId {
        let value = self.add_fresh_value(graph, hint);
        self.set_initializer(value, Initializer::Dense(Box::new(tensor.into())));
        // Up to IR version 3 every initializer had to be an input of the model too.
        self.ir_version = self.ir_version.max(4);
        value
    }

    /// Takes a value's initializer away.
    pub fn take_initializer(&mut self, value: ValueId) -> Option<Initializer> {
        let taken = self.value_mut(value).initializer.take()?;
        let graph = self.value(value).graph;
        self.graph_mut(graph).initializers.retain(|&id| id != value);
        Some(taken)
    }

    // ---- nodes --------------------------------------------------------------------------------------

    /// Puts a node into a graph. `outputs` are existing values that nothing produces yet.
    ///
    /// # Errors
    /// When an output already has a producer or is an input of its graph. That the inputs are computed
    /// before `position` is the caller's duty, which `verify` checks.
    pub fn insert_node(
        &mut self,
        graph: GraphId,
        position: Position,
        mut node: Node,
        outputs: Vec<Option<ValueId>>,
    ) -> Result<NodeId, EditError> {
        let mut seen = HashSet::new();
        for &output in outputs.iter().flatten() {
            let value = self.value(output);
            if value.producer.is_some()
                || value.is_input
                || value.initializer.is_some()
                || !seen.insert(output)
            {
                return Err(EditError::AlreadyProduced(value.name.clone()));
            }
        }
        node.graph = Some(graph);
        node.outputs = outputs;
        let id = self.nodes.push(node);
        self.link(graph, position, id);
        for slot in 0..self.node(id).inputs.len() {
            if let Some(value) = self.node(id).inputs[slot] {
                self.value_mut(value).uses.push(Use::Node(id, slot as u32));
            }
        }
        for slot in 0..self.node(id).outputs.len() {
            if let Some(value) = self.node(id).outputs[slot] {
                self.value_mut(value).producer = Some((id, slot as u32));
            }
        }
        let graphs: Vec<GraphId> = self.node(id).subgraphs().collect();
        for graph in graphs {
            self.set_owner(graph, id);
        }
        Ok(id)
    }

    /// Puts a node with one new output into a graph; returns the node and its output, whose name is made
    /// from `hint`.
    pub fn add_node(
        &mut self,
        graph: GraphId,
        position: Position,
        node: Node,
        hint: &str,
    ) -> (NodeId, ValueId) {
        let output = self.add_fresh_value(graph, hint);
        let id = self.insert_node(graph, position, node, vec![Some(output)]).expect("the output is new");
        (id, output)
    }

    /// Takes a node out of its graph, with its subgraphs and its outputs.
    ///
    /// # Errors
    /// When an output is still used.
    pub fn remove_node(&mut self, id: NodeId) -> Result<(), EditError> {
        let used =
            self.node(id).outputs.iter().flatten().find(|&&output| !self.value(output).uses.is_empty());
        if let Some(&value) = used {
            let value = self.value(value).name.clone();
            return Err(EditError::StillUsed { node: self.describe(id), value });
        }
        let graphs: Vec<GraphId> = self.node(id).subgraphs().collect();
        for graph in graphs {
            self.remove_graph(graph);
        }
        self.unlink(id);
        let node = self.nodes.remove(id).expect("looked at above");
        for (slot, value) in node.inputs.iter().enumerate() {
            if let Some(value) = value {
                self.forget_use(*value, Use::Node(id, slot as u32));
            }
        }
        for value in node.outputs.into_iter().flatten() {
            self.drop_value(value);
        }
        Ok(())
    }

    /// Connects input `slot` of a node to another value (or to none); inputs before it that are missing
    /// become omitted ones, trailing omitted ones are cut.
    pub fn set_input(&mut self, id: NodeId, slot: usize, value: Option<ValueId>) {
        let node = self.node_mut(id);
        if node.inputs.len() <= slot {
            node.inputs.resize(slot + 1, None);
        }
        let old = std::mem::replace(&mut node.inputs[slot], value);
        while node.inputs.last() == Some(&None) {
            node.inputs.pop();
        }
        if let Some(old) = old {
            self.forget_use(old, Use::Node(id, slot as u32));
        }
        if let Some(new) = value {
            self.value_mut(new).uses.push(Use::Node(id, slot as u32));
        }
    }

    /// Lets output `slot` of a node be another value, which nothing produces yet. The old one is left
    /// without producer.
    ///
    /// # Errors
    /// When the new value has a producer.
    pub fn set_output(&mut self, id: NodeId, slot: usize, value: Option<ValueId>) -> Result<(), EditError> {
        if let Some(new) = value {
            let held = self.value(new);
            if held.producer.is_some() || held.is_input || held.initializer.is_some() {
                return Err(EditError::AlreadyProduced(held.name.clone()));
            }
        }
        let node = self.node_mut(id);
        if node.outputs.len() <= slot {
            node.outputs.resize(slot + 1, None);
        }
        let old = std::mem::replace(&mut node.outputs[slot], value);
        if let Some(old) = old {
            self.value_mut(old).producer = None;
        }
        if let Some(new) = value {
            self.value_mut(new).producer = Some((id, slot as u32));
        }
        Ok(())
    }

    /// Lets every node that uses `old` use `new` instead, captures included; graph outputs are left.
    pub fn replace_node_uses(&mut self, old: ValueId, new: ValueId) {
        self.replace_uses_where(old, new, |_, used| matches!(used, Use::Node(..)));
    }

    /// Lets the chosen uses of `old` be uses of `new`. A graph output that changes its value changes its
    /// name with it: see [`Model::replace_value`] for the usual case.
    pub fn replace_uses_where(&mut self, old: ValueId, new: ValueId, chosen: impl Fn(&Model, Use) -> bool) {
        if old == new {
            return;
        }
        let uses = std::mem::take(&mut self.value_mut(old).uses);
        let (moved, kept): (Vec<Use>, Vec<Use>) = uses.into_iter().partition(|&used| chosen(self, used));
        self.value_mut(old).uses = kept;
        for &used in &moved {
            match used {
                Use::Node(node, slot) => self.node_mut(node).inputs[slot as usize] = Some(new),
                Use::Output(graph, index) => self.graph_mut(graph).outputs[index as usize].value = new,
            }
        }
        self.value_mut(new).uses.extend(moved);
    }

    /// Puts `new` in the place of `old` everywhere. Where `old` is an output of its graph, the two swap
    /// names, so that the interface keeps its names.
    ///
    /// # Errors
    /// When `old` is a graph output and `new` cannot give up its name, because it is itself a graph input
    /// or output, or belongs to another graph. Nothing is changed then; an `Identity` helps.
    pub fn replace_value(&mut self, old: ValueId, new: ValueId) -> Result<(), EditError> {
        if old == new {
            return Ok(());
        }
        let is_output = |value: &Value| value.uses.iter().any(|used| matches!(used, Use::Output(..)));
        let (held_old, held_new) = (self.value(old), self.value(new));
        let swap = is_output(held_old);
        if swap && (held_new.is_input || is_output(held_new) || held_new.graph != held_old.graph) {
            return Err(EditError::InterfaceName { old: held_old.name.clone(), new: held_new.name.clone() });
        }
        self.replace_uses_where(old, new, |_, _| true);
        if swap {
            let name = std::mem::take(&mut self.value_mut(old).name);
            let name = std::mem::replace(&mut self.value_mut(new).name, name);
            self.value_mut(old).name = name;
        }
        Ok(())
    }

    /// Moves a node to another place of its graph's order.
    pub fn move_node(&mut self, id: NodeId, position: Position) {
        if matches!(position, Position::Before(at) | Position::After(at) if at == id) {
            return;
        }
        let graph = self.node(id).graph();
        self.unlink(id);
        self.link(graph, position, id);
    }

    fn forget_use(&mut self, value: ValueId, used: Use) {
        if let Some(value) = self.values.get_mut(value)
            && let Some(at) = value.uses.iter().position(|&other| other == used)
        {
            value.uses.swap_remove(at);
        }
    }

    // ---- order --------------------------------------------------------------------------------------

    fn link(&mut self, graph: GraphId, position: Position, id: NodeId) {
        let (previous, next) = match position {
            Position::End => (self.graph(graph).last, None),
            Position::Start => (None, self.graph(graph).first),
            Position::Before(node) => (self.node(node).previous, Some(node)),
            Position::After(node) => (Some(node), self.node(node).next),
        };
        {
            let node = self.node_mut(id);
            node.previous = previous;
            node.next = next;
        }
        match previous {
            Some(previous) => self.node_mut(previous).next = Some(id),
            None => self.graph_mut(graph).first = Some(id),
        }
        match next {
            Some(next) => self.node_mut(next).previous = Some(id),
            None => self.graph_mut(graph).last = Some(id),
        }
        self.graph_mut(graph).node_count += 1;
        let low = previous.map_or(0, |node| self.node(node).label);
        let label = match next {
            None => low.checked_add(LABEL_STEP),
            Some(next) => Some(low + (self.node(next).label - low) / 2).filter(|&middle| middle > low),
        };
        match label {
            Some(label) => self.node_mut(id).label = label,
            // No room between the neighbours: spread the whole graph out again.
            None => {
                let mut label = 0u64;
                let mut at = self.graph(graph).first;
                while let Some(node) = at {
                    label += LABEL_STEP;
                    self.node_mut(node).label = label;
                    at = self.node(node).next;
                }
            }
        }
    }

    fn unlink(&mut self, id: NodeId) {
        let (graph, previous, next) = {
            let node = self.node(id);
            (node.graph(), node.previous, node.next)
        };
        match previous {
            Some(previous) => self.node_mut(previous).next = next,
            None => self.graph_mut(graph).first = next,
        }
        match next {
            Some(next) => self.node_mut(next).previous = previous,
            None => self.graph_mut(graph).last = previous,
        }
        self.graph_mut(graph).node_count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(length: usize) -> (Model, Vec<NodeId>, ValueId) {
        let mut model = Model::new();
        let graph = model.main();
        let input = model.add_value(graph, "x");
        model.add_input(ValueInfo::new(input, None));
        let (mut value, mut nodes) = (input, Vec::new());
        for _ in 0..length {
            let (node, output) = model.add_node(graph, Position::End, Node::new("Relu", [value]), "y");
            nodes.push(node);
            value = output;
        }
        model.add_output(graph, ValueInfo::new(value, None));
        (model, nodes, value)
    }

    #[test]
    fn replacing_a_graph_output_keeps_the_interface_name() {
        let (mut model, nodes, output) = chain(3);
        let name = model.value(output).name().to_owned();
        let inner = model.node(nodes[1]).output(0).unwrap();
        model.replace_value(output, inner).unwrap();
        assert_eq!(model.graph(model.main()).outputs()[0].value, inner);
        assert_eq!(model.value(inner).name(), name);
        model.remove_node(nodes[2]).unwrap();
        assert_eq!(model.node_list(model.main()), nodes[..2]);
    }

    #[test]
    fn an_input_cannot_become_an_output_under_another_name() {
        let (mut model, nodes, output) = chain(1);
        let input = model.node(nodes[0]).input(0).unwrap();
        assert!(matches!(model.replace_value(output, input), Err(EditError::InterfaceName { .. })));
        assert_eq!(model.graph(model.main()).outputs()[0].value, output);
    }

    #[test]
    fn a_used_node_stays() {
        let (mut model, nodes, _) = chain(2);
        assert!(matches!(model.remove_node(nodes[0]), Err(EditError::StillUsed { .. })));
        assert!(matches!(model.remove_node(nodes[1]), Err(EditError::StillUsed { .. })));
    }

    #[test]
    fn order_survives_many_insertions_at_one_place() {
        let (mut model, nodes, _) = chain(2);
        let input = model.node(nodes[0]).input(0).unwrap();
        let mut newest = nodes[1];
        for _ in 0..200 {
            let node = Node::new("Neg", [input]);
            newest = model.add_node(model.main(), Position::Before(newest), node, "t").0;
        }
        let order = model.node_list(model.main());
        assert_eq!(order.len(), 202);
        assert!(order.windows(2).all(|pair| model.is_before(pair[0], pair[1])));
        assert_eq!((order[0], order[201]), (nodes[0], nodes[1]));
    }

    #[test]
    fn removing_a_node_removes_its_subgraphs_and_their_captures() {
        let (mut model, nodes, _) = chain(1);
        let captured = model.node(nodes[0]).output(0).unwrap();
        let body = model.add_graph(None);
        let (_, inner) = model.add_node(body, Position::End, Node::new("Neg", [captured]), "inner");
        model.add_output(body, ValueInfo::new(inner, None));
        let main = model.main();
        let (holder, _) =
            model.add_node(main, Position::End, Node::new("If", [captured]).with("then_branch", body), "z");
        assert_eq!(model.graph(body).owner(), Some(holder));
        assert_eq!(model.walk().count(), 3);
        assert_eq!(model.value(captured).uses().len(), 3);
        model.remove_node(holder).unwrap();
        assert_eq!(model.value(captured).uses().len(), 1);
        assert_eq!(model.graphs().count(), 1);
    }
}
