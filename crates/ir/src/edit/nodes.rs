//! Nodes: put in, taken out, connected.

use std::collections::HashSet;

use super::{EditError, Position};
use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{Node, Use};

impl Model {
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
}
