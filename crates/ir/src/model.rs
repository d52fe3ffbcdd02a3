//! The model: tables of graphs, nodes and values, and the walks over them.
//!
//! Reading is here; every change that touches connections is in `edit.rs`.

use std::cell::OnceCell;
use std::collections::HashSet;

use crate::ids::{Arena, GraphId, NodeId, ValueId};
use crate::node::{Carry, Function, Graph, Node, OpsetImport, Property, Value};

/// A model, complete: nothing that a file said is lost.
///
/// SSA: every value has at most one producer. Nodes of a graph are in an execution order that is kept
/// apart from the tables and is always topological. Use lists are kept right by the edit methods.
#[derive(Clone, Debug)]
pub struct Model {
    /// IR version of the format (`ir_version`).
    pub ir_version: i64,
    /// Operator sets the main graph is written in.
    pub opset_imports: Vec<OpsetImport>,
    /// The tool that made it.
    pub producer_name: String,
    /// That tool's version.
    pub producer_version: String,
    /// Reverse-DNS name space of the model.
    pub domain: String,
    /// Version of the model itself.
    pub model_version: i64,
    /// Documentation.
    pub doc_string: String,
    /// Free-form properties (`metadata_props`).
    pub metadata: Vec<Property>,
    /// Functions the model defines.
    pub functions: Vec<Function>,
    /// What else the file said: training info, device configurations, unknown fields.
    pub carry: Carry,
    pub(crate) graphs: Arena<GraphId, Graph>,
    pub(crate) nodes: Arena<NodeId, Node>,
    pub(crate) values: Arena<ValueId, Value>,
    pub(crate) main: GraphId,
    /// Names in use, made when the first fresh name is asked for.
    pub(crate) names: OnceCell<HashSet<String>>,
}

impl Default for Model {
    fn default() -> Self {
        Model::new()
    }
}

impl Model {
    /// An empty model of IR version 8 with no operator set imported.
    pub fn new() -> Model {
        let mut graphs = Arena::new();
        let main = graphs.push(Graph::default());
        Model {
            ir_version: 8,
            opset_imports: Vec::new(),
            producer_name: String::new(),
            producer_version: String::new(),
            domain: String::new(),
            model_version: 0,
            doc_string: String::new(),
            metadata: Vec::new(),
            functions: Vec::new(),
            carry: Carry::default(),
            graphs,
            nodes: Arena::new(),
            values: Arena::new(),
            main,
            names: OnceCell::new(),
        }
    }

    /// The main graph.
    pub fn main(&self) -> GraphId {
        self.main
    }

    /// A graph.
    ///
    /// # Panics
    /// When it was removed: holding on to a removed id is a programming error. The same goes for
    /// [`Model::node`] and [`Model::value`].
    pub fn graph(&self, id: GraphId) -> &Graph {
        self.graphs.get(id).unwrap_or_else(|| panic!("graph {id:?} was removed"))
    }

    /// A node. Panics as [`Model::graph`] does.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(id).unwrap_or_else(|| panic!("node {id:?} was removed"))
    }

    /// A value. Panics as [`Model::graph`] does.
    pub fn value(&self, id: ValueId) -> &Value {
        self.values.get(id).unwrap_or_else(|| panic!("value {id:?} was removed"))
    }

    /// A node, unless it was removed.
    pub fn get_node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// A value, unless it was removed.
    pub fn get_value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id)
    }

    /// A graph's freely editable parts. Panics as [`Model::graph`] does.
    pub fn graph_mut(&mut self, id: GraphId) -> &mut Graph {
        self.graphs.get_mut(id).unwrap_or_else(|| panic!("graph {id:?} was removed"))
    }

    /// A node's freely editable parts. Panics as [`Model::graph`] does.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(id).unwrap_or_else(|| panic!("node {id:?} was removed"))
    }

    /// A value's freely editable parts (its type). Panics as [`Model::graph`] does.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        self.values.get_mut(id).unwrap_or_else(|| panic!("value {id:?} was removed"))
    }

    /// Length of a table indexed by [`ValueId::index`].
    pub fn value_capacity(&self) -> usize {
        self.values.capacity()
    }

    /// Length of a table indexed by [`NodeId::index`].
    pub fn node_capacity(&self) -> usize {
        self.nodes.capacity()
    }

    /// All values of all graphs, in order of their making.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.values.ids()
    }

    /// All graphs, in order of their making: the main graph first.
    pub fn graphs(&self) -> impl Iterator<Item = GraphId> + '_ {
        self.graphs.ids()
    }

    /// The nodes of one graph in execution order, subgraphs not entered.
    pub fn nodes_of(&self, graph: GraphId) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::successors(self.graph(graph).first, |&node| self.node(node).next)
    }

    /// The nodes of the main graph in execution order, each followed by those of its subgraphs.
    pub fn walk(&self) -> Walk<'_> {
        self.walk_from(self.main)
    }

    /// The same, from another graph.
    pub fn walk_from(&self, graph: GraphId) -> Walk<'_> {
        Walk { model: self, pending: self.graph(graph).first.into_iter().collect() }
    }

    /// The nodes of a graph as a vector, for loops that edit while they go.
    pub fn node_list(&self, graph: GraphId) -> Vec<NodeId> {
        self.nodes_of(graph).collect()
    }

    /// Whether `graph` is `ancestor` or held, at any depth, by a node in it.
    pub fn is_within(&self, graph: GraphId, ancestor: GraphId) -> bool {
        let parent = |&graph: &GraphId| self.graph(graph).owner.map(|owner| self.node(owner).graph());
        std::iter::successors(Some(graph), parent).any(|graph| graph == ancestor)
    }

    /// The version of an operator set that applies to nodes of a graph: the model's, or the function's
    /// whose body the graph is or is within.
    pub fn opset_version(&self, graph: GraphId, domain: &str) -> Option<i64> {
        let normal = |domain: &str| if domain == "ai.onnx" { String::new() } else { domain.to_owned() };
        let function = self.functions.iter().find(|function| self.is_within(graph, function.graph));
        let imports = function.map_or(&self.opset_imports, |function| &function.opset_imports);
        let domain = normal(domain);
        imports.iter().find(|import| normal(&import.domain) == domain).map(|import| import.version)
    }

    /// The version of the operator set a node's operator belongs to.
    pub fn opset_of(&self, node: NodeId) -> Option<i64> {
        let node = self.node(node);
        self.opset_version(node.graph(), node.domain())
    }

    /// The function a node calls, if it calls one of the model's own.
    pub fn function_of(&self, node: &Node) -> Option<&Function> {
        self.functions.iter().find(|function| {
            function.name == node.op_type
                && function.domain == node.domain
                && function.overload == node.overload
        })
    }

    /// Whether node `a` comes before node `b` in the order of their common graph.
    ///
    /// # Panics
    /// When they are in different graphs.
    pub fn is_before(&self, a: NodeId, b: NodeId) -> bool {
        let (a, b) = (self.node(a), self.node(b));
        assert_eq!(a.graph, b.graph, "only nodes of one graph are ordered");
        a.label < b.label
    }

    /// The constant behind a value: a dense initializer that no caller can override, or the output of a
    /// `Constant` node with a dense `value`.
    pub fn constant(&self, value: ValueId) -> Option<&crate::Tensor> {
        let value = self.value(value);
        value.constant().or_else(|| {
            let (node, _) = value.producer()?;
            let node = self.node(node);
            if node.is("Constant") { node.tensor("value") } else { None }
        })
    }

    /// How to speak of a node to people: its name, or its operator and first output.
    pub fn describe(&self, id: NodeId) -> String {
        let node = self.node(id);
        if !node.name.is_empty() {
            return format!("`{}` ({})", node.name, node.op_type);
        }
        let output = node.outputs.iter().flatten().next().map(|&output| self.value(output).name());
        format!("{} -> `{}`", node.op_type, output.unwrap_or("nothing"))
    }

    /// The value of that name visible in a graph: its own or one of a graph around it.
    ///
    /// Walks the table: for a lookup or two, not for loops.
    pub fn find_value(&self, graph: GraphId, name: &str) -> Option<ValueId> {
        let mut found = None;
        for id in self.values() {
            let value = self.value(id);
            if value.name == name && self.is_within(graph, value.graph) {
                // The innermost one wins.
                if found.is_none_or(|best: ValueId| self.is_within(value.graph, self.value(best).graph)) {
                    found = Some(id);
                }
            }
        }
        found
    }

    /// Bytes of all tensors: initializers and tensor attributes, of every graph, each payload as long as
    /// its own slice.
    pub fn tensor_bytes(&self) -> u64 {
        use crate::node::{AttributeValue, Initializer};
        let initializers =
            self.values().filter_map(|id| self.value(id).initializer.as_ref()).map(|held| match held {
                Initializer::Dense(stored) => stored.tensor.bytes().len() as u64,
                Initializer::Sparse(sparse) => {
                    (sparse.values.tensor.bytes().len() + sparse.indices.tensor.bytes().len()) as u64
                }
            });
        let attributes = self.nodes.ids().flat_map(|id| &self.node(id).attributes).map(|attribute| {
            match &attribute.value {
                AttributeValue::Tensor(stored) => stored.tensor.bytes().len() as u64,
                AttributeValue::Tensors(tensors) => {
                    tensors.iter().map(|t| t.tensor.bytes().len() as u64).sum()
                }
                _ => 0,
            }
        });
        initializers.sum::<u64>() + attributes.sum::<u64>()
    }
}

/// Nodes of a graph and of the subgraphs in it; see [`Model::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    model: &'a Model,
    /// The next node of every graph we are in, innermost last.
    pending: Vec<NodeId>,
}

impl Iterator for Walk<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        let id = self.pending.pop()?;
        let node = self.model.node(id);
        self.pending.extend(node.next);
        // Pushed in reverse, so that the first subgraph is walked first.
        let mut firsts: Vec<NodeId> =
            node.subgraphs().filter_map(|graph| self.model.graphs.get(graph)?.first).collect();
        firsts.reverse();
        self.pending.extend(firsts);
        Some(id)
    }
}
