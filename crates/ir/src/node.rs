//! What a model is made of: nodes, values, graphs, functions, stored as the file had them.

use bytes::Bytes;

use crate::ids::{GraphId, NodeId, ValueId};
use crate::tensor::Tensor;
use crate::types::Type;

/// What a file said beside what the IR models: unknown fields, presence of empty fields, denotations.
///
/// Opaque to everything but the reader and writer of the format it came from, which put it there so
/// that writing an untouched thing gives back exactly what was read. Empty for things made by a pass.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Carry(Option<Box<Bytes>>);

impl Carry {
    /// Carries `bytes`; nothing is stored when they are empty.
    pub fn new(bytes: Bytes) -> Carry {
        if bytes.is_empty() { Carry(None) } else { Carry(Some(Box::new(bytes))) }
    }

    /// What is carried; empty when nothing is.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |bytes| bytes)
    }

    /// Whether nothing is carried.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// A key and its value (`StringStringEntryProto`), as in `metadata_props`.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Property {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// What else the file said.
    pub carry: Carry,
}

/// How a tensor's payload is written in its file.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// `raw_data`: what new tensors get.
    #[default]
    Raw,
    /// The typed field of its element type (`float_data`, `int32_data`, ...).
    Typed,
    /// In a file beside the model.
    External,
}

/// A tensor as a model file holds it: an initializer or an attribute.
#[derive(Clone, PartialEq, Debug)]
pub struct StoredTensor {
    /// The payload.
    pub tensor: Tensor,
    /// Name of a tensor in an attribute; an initializer is named by its value instead.
    pub name: String,
    /// How it was encoded; `Raw` as soon as somebody replaces the payload.
    pub encoding: Encoding,
    /// Documentation.
    pub doc_string: String,
    /// Free-form properties.
    pub metadata: Vec<Property>,
    /// What else the file said.
    pub carry: Carry,
}

impl From<Tensor> for StoredTensor {
    fn from(tensor: Tensor) -> Self {
        StoredTensor {
            tensor,
            name: String::new(),
            encoding: Encoding::Raw,
            doc_string: String::new(),
            metadata: Vec::new(),
            carry: Carry::default(),
        }
    }
}

/// A sparse tensor in coordinate form (`SparseTensorProto`).
#[derive(Clone, PartialEq, Debug)]
pub struct StoredSparse {
    /// The non-default elements, rank 1.
    pub values: StoredTensor,
    /// Their places: int64 of shape `[n]` (linear) or `[n, rank]`.
    pub indices: StoredTensor,
    /// Shape of the dense form.
    pub shape: Vec<usize>,
    /// What else the file said.
    pub carry: Carry,
}

/// A constant that belongs to a value.
#[derive(Clone, PartialEq, Debug)]
pub enum Initializer {
    /// A dense tensor.
    Dense(Box<StoredTensor>),
    /// A sparse tensor.
    Sparse(Box<StoredSparse>),
}

/// The value of an attribute.
#[derive(Clone, PartialEq, Debug)]
pub enum AttributeValue {
    /// `f`
    Float(f32),
    /// `i`
    Int(i64),
    /// `s`: bytes, UTF-8 by the standard.
    String(Bytes),
    /// `t`
    Tensor(Box<StoredTensor>),
    /// `sparse_tensor`
    SparseTensor(Box<StoredSparse>),
    /// `g`: a subgraph of this model.
    Graph(GraphId),
    /// `tp`
    Type(Type),
    /// `floats`
    Floats(Vec<f32>),
    /// `ints`
    Ints(Vec<i64>),
    /// `strings`
    Strings(Vec<Bytes>),
    /// `tensors`
    Tensors(Vec<StoredTensor>),
    /// `sparse_tensors`
    SparseTensors(Vec<StoredSparse>),
    /// `graphs`
    Graphs(Vec<GraphId>),
    /// `type_protos`
    Types(Vec<Type>),
    /// Inside a function body: the value of the function's attribute with this name. The second part is
    /// the declared `AttributeProto.AttributeType` number.
    Reference(String, i32),
}

macro_rules! attribute_from {
    ($($rust:ty => |$value:ident| $make:expr;)*) => {$(
        impl From<$rust> for AttributeValue { fn from($value: $rust) -> Self { $make } }
    )*};
}
attribute_from! {
    f32 => |x| AttributeValue::Float(x);
    i64 => |x| AttributeValue::Int(x);
    &str => |x| AttributeValue::String(Bytes::copy_from_slice(x.as_bytes()));
    Tensor => |x| AttributeValue::Tensor(Box::new(x.into()));
    Vec<f32> => |x| AttributeValue::Floats(x);
    Vec<i64> => |x| AttributeValue::Ints(x);
    &[i64] => |x| AttributeValue::Ints(x.to_vec());
    GraphId => |x| AttributeValue::Graph(x);
}

/// A named attribute of a node.
#[derive(Clone, PartialEq, Debug)]
pub struct Attribute {
    /// The name the operator knows it by.
    pub name: String,
    /// Its value.
    pub value: AttributeValue,
    /// Documentation.
    pub doc_string: String,
    /// What else the file said.
    pub carry: Carry,
}

impl Attribute {
    /// An attribute without documentation.
    pub fn new(name: &str, value: impl Into<AttributeValue>) -> Attribute {
        Attribute {
            name: name.into(),
            value: value.into(),
            doc_string: String::new(),
            carry: Carry::default(),
        }
    }

    /// The subgraphs it holds.
    pub fn graphs(&self) -> &[GraphId] {
        match &self.value {
            AttributeValue::Graph(graph) => std::slice::from_ref(graph),
            AttributeValue::Graphs(graphs) => graphs,
            _ => &[],
        }
    }
}

/// One operator application, kept as the file said it.
///
/// Inputs and outputs change only through the edit methods of [`crate::Model`], which keep use lists and
/// order right; the other fields are free to edit (an attribute that holds a graph: remove it through
/// [`crate::Model::remove_graph`]).
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Node {
    /// Name of the operator set, as written; see [`Node::domain`].
    pub domain: String,
    /// Name of the operator.
    pub op_type: String,
    /// Overload of a local function; mostly empty.
    pub overload: String,
    /// Name of the node; may be empty and need not be unique.
    pub name: String,
    /// Attributes in file order.
    pub attributes: Vec<Attribute>,
    /// Documentation.
    pub doc_string: String,
    /// Free-form properties.
    pub metadata: Vec<Property>,
    /// What else the file said.
    pub carry: Carry,
    pub(crate) inputs: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<Option<ValueId>>,
    pub(crate) graph: Option<GraphId>,
    pub(crate) previous: Option<NodeId>,
    pub(crate) next: Option<NodeId>,
    pub(crate) label: u64,
}

impl Node {
    /// A node of the standard operator set, not yet in a graph, with those inputs.
    pub fn new(op_type: &str, inputs: impl IntoIterator<Item = ValueId>) -> Node {
        Node { op_type: op_type.into(), inputs: inputs.into_iter().map(Some).collect(), ..Node::default() }
    }

    /// The same with inputs that may be omitted.
    pub fn with_optional_inputs(op_type: &str, inputs: Vec<Option<ValueId>>) -> Node {
        Node { op_type: op_type.into(), inputs, ..Node::default() }
    }

    /// Sets the domain.
    pub fn in_domain(mut self, domain: &str) -> Node {
        self.domain = domain.into();
        self
    }

    /// Sets the name.
    pub fn named(mut self, name: &str) -> Node {
        self.name = name.into();
        self
    }

    /// Adds an attribute.
    pub fn with(mut self, name: &str, value: impl Into<AttributeValue>) -> Node {
        self.attributes.push(Attribute::new(name, value));
        self
    }

    /// The operator's domain with ONNX's two spellings of the standard one (`""`, `"ai.onnx"`) as `""`.
    pub fn domain(&self) -> &str {
        if self.domain == "ai.onnx" { "" } else { &self.domain }
    }

    /// Whether this is that operator of the standard operator set.
    pub fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && self.domain().is_empty()
    }

    /// Inputs in order; an omitted optional one is `None`.
    pub fn inputs(&self) -> &[Option<ValueId>] {
        &self.inputs
    }

    /// Outputs in order; an omitted optional one is `None`.
    pub fn outputs(&self) -> &[Option<ValueId>] {
        &self.outputs
    }

    /// Input `slot`, when present.
    pub fn input(&self, slot: usize) -> Option<ValueId> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Output `slot`, when present.
    pub fn output(&self, slot: usize) -> Option<ValueId> {
        self.outputs.get(slot).copied().flatten()
    }

    /// The graph it is in.
    ///
    /// # Panics
    /// When the node was made by [`Node::new`] and is not in a model yet.
    pub fn graph(&self) -> GraphId {
        self.graph.expect("a node of a model is in a graph")
    }

    /// The attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeValue> {
        self.attributes.iter().find(|attribute| attribute.name == name).map(|attribute| &attribute.value)
    }

    /// Sets an attribute, in place when it is there already.
    pub fn set_attribute(&mut self, name: &str, value: impl Into<AttributeValue>) {
        let value = value.into();
        match self.attributes.iter_mut().find(|attribute| attribute.name == name) {
            Some(attribute) => {
                attribute.value = value;
                attribute.carry = Carry::default();
            }
            None => self.attributes.push(Attribute::new(name, value)),
        }
    }

    /// Removes an attribute.
    pub fn remove_attribute(&mut self, name: &str) {
        self.attributes.retain(|attribute| attribute.name != name);
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attribute(name)? {
            AttributeValue::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attribute(name)? {
            AttributeValue::Ints(values) => Some(values),
            _ => None,
        }
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attribute(name)? {
            AttributeValue::Float(value) => Some(*value),
            _ => None,
        }
    }

    /// A list of floats.
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        match self.attribute(name)? {
            AttributeValue::Floats(values) => Some(values),
            _ => None,
        }
    }

    /// A string attribute, when it is UTF-8.
    pub fn string(&self, name: &str) -> Option<&str> {
        match self.attribute(name)? {
            AttributeValue::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// A dense tensor attribute.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.attribute(name)? {
            AttributeValue::Tensor(stored) => Some(&stored.tensor),
            _ => None,
        }
    }

    /// All subgraphs its attributes hold, in order.
    pub fn subgraphs(&self) -> impl Iterator<Item = GraphId> + '_ {
        self.attributes.iter().flat_map(|attribute| attribute.graphs().iter().copied())
    }
}

/// Where a value is used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Use {
    /// As input `slot` of a node, which may be in a subgraph of the value's graph (a capture).
    Node(NodeId, u32),
    /// As output number `index` of a graph.
    Output(GraphId, u32),
}

/// A value: what a node computes, a graph input, or a constant.
#[derive(Clone, PartialEq, Debug)]
pub struct Value {
    pub(crate) name: String,
    pub(crate) graph: GraphId,
    pub(crate) producer: Option<(NodeId, u32)>,
    pub(crate) is_input: bool,
    pub(crate) uses: Vec<Use>,
    pub(crate) initializer: Option<Initializer>,
    /// What is known of its type: declared by the file, or inferred. Not written by itself; what is
    /// written is [`Graph::inputs`], [`Graph::outputs`] and [`Graph::value_infos`].
    pub ty: Option<Type>,
}

impl Value {
    /// Its name, unique among the values visible where it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The graph it belongs to.
    pub fn graph(&self) -> GraphId {
        self.graph
    }

    /// The node that computes it and which of its outputs it is.
    pub fn producer(&self) -> Option<(NodeId, usize)> {
        self.producer.map(|(node, slot)| (node, slot as usize))
    }

    /// Whether it is an input of its graph.
    pub fn is_input(&self) -> bool {
        self.is_input
    }

    /// Where it is used, in no particular order.
    pub fn uses(&self) -> &[Use] {
        &self.uses
    }

    /// Its initializer, dense or sparse. With [`Value::is_input`] set it is only a default that the
    /// caller of the model may override (IR version 3 requires that form).
    pub fn initializer(&self) -> Option<&Initializer> {
        self.initializer.as_ref()
    }

    /// Its dense initializer's payload.
    pub fn tensor(&self) -> Option<&Tensor> {
        match self.initializer.as_ref()? {
            Initializer::Dense(stored) => Some(&stored.tensor),
            Initializer::Sparse(_) => None,
        }
    }

    /// Its payload when it is a constant no caller can override: a dense initializer that is not an input.
    pub fn constant(&self) -> Option<&Tensor> {
        if self.is_input { None } else { self.tensor() }
    }
}

/// A declaration of a value's type, as written in a graph's inputs, outputs and `value_info`.
#[derive(Clone, PartialEq, Debug)]
pub struct ValueInfo {
    /// The value declared.
    pub value: ValueId,
    /// Its declared type.
    pub ty: Option<Type>,
    /// Documentation.
    pub doc_string: String,
    /// Free-form properties.
    pub metadata: Vec<Property>,
    /// What else the file said.
    pub carry: Carry,
}

impl ValueInfo {
    /// A declaration without documentation.
    pub fn new(value: ValueId, ty: Option<Type>) -> ValueInfo {
        ValueInfo { value, ty, doc_string: String::new(), metadata: Vec::new(), carry: Carry::default() }
    }
}

/// A graph: its interface, constants and, in execution order, nodes.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Graph {
    /// Its name.
    pub name: String,
    /// Documentation.
    pub doc_string: String,
    /// Free-form properties.
    pub metadata: Vec<Property>,
    /// What else the file said, quantization annotations among it.
    pub carry: Carry,
    /// Types declared for inner values (`value_info`), in file order.
    pub value_infos: Vec<ValueInfo>,
    pub(crate) inputs: Vec<ValueInfo>,
    pub(crate) outputs: Vec<ValueInfo>,
    pub(crate) initializers: Vec<ValueId>,
    pub(crate) owner: Option<NodeId>,
    pub(crate) first: Option<NodeId>,
    pub(crate) last: Option<NodeId>,
    pub(crate) node_count: usize,
}

impl Graph {
    /// Inputs in order.
    pub fn inputs(&self) -> &[ValueInfo] {
        &self.inputs
    }

    /// Outputs in order.
    pub fn outputs(&self) -> &[ValueInfo] {
        &self.outputs
    }

    /// Values that have an initializer, dense or sparse, in file order.
    pub fn initializers(&self) -> &[ValueId] {
        &self.initializers
    }

    /// The node whose attribute holds it; `None` for the main graph and function bodies.
    pub fn owner(&self) -> Option<NodeId> {
        self.owner
    }

    /// Number of nodes, subgraphs not included.
    pub fn node_count(&self) -> usize {
        self.node_count
    }
}

/// An operator set the model or a function is written in.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct OpsetImport {
    /// The domain as written; `""` and `"ai.onnx"` are the standard one.
    pub domain: String,
    /// Its version.
    pub version: i64,
    /// What else the file said.
    pub carry: Carry,
}

/// A function the model defines (`FunctionProto`). Its body is a graph like any other.
#[derive(Clone, PartialEq, Debug)]
pub struct Function {
    /// Domain under which nodes call it.
    pub domain: String,
    /// Name under which nodes call it.
    pub name: String,
    /// Overload.
    pub overload: String,
    /// Names of attributes without default.
    pub attribute_names: Vec<String>,
    /// Attributes with default.
    pub attributes: Vec<Attribute>,
    /// Operator sets of the body.
    pub opset_imports: Vec<OpsetImport>,
    /// The body; its inputs and outputs carry no declared types.
    pub graph: GraphId,
    /// Documentation.
    pub doc_string: String,
    /// Free-form properties.
    pub metadata: Vec<Property>,
    /// What else the file said.
    pub carry: Carry,
}
