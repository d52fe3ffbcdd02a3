//! Values and graphs: what there is, interfaces, constants.

use std::collections::HashSet;

use super::EditError;
use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{Graph, Initializer, StoredTensor, Use, Value, ValueInfo};
use crate::tensor::Tensor;
use crate::types::Type;

impl Model {
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

    pub(super) fn drop_value(&mut self, value: ValueId) {
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
}
