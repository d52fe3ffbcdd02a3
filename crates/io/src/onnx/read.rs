//! From `ModelProto` to the IR.
//!
//! Every part of a message is taken out and put where the IR has a place for it; what is left is carried
//! (see [`crate::residue`]). Graphs within graphs are read recursively, as deep as the budget says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use optix_base::{Budget, BudgetError, ErrorClass, Limits};
use optix_ir::{
    Encoding, Function, GraphId, Initializer, Model, Node, OpsetImport, Position, Property, StoredSparse,
    StoredTensor, ValueId, ValueInfo,
};

use super::external::{ExternalFiles, Refusal};
use super::{order, tensor, types};
use crate::error::{IoError, quoted};
use crate::proto::{
    self, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, ValueInfoProto,
};
use crate::residue::{carry, take_number, take_text};
use crate::source::SourceFile;

/// Values by name, of one graph.
type Names = HashMap<String, ValueId>;

/// A model read, and what came with it.
pub(crate) struct Read {
    pub(crate) model: Model,
    pub(crate) external: Vec<SourceFile>,
    pub(crate) warnings: Vec<String>,
}

/// Reads a model from its encoding. `file` is what external data is beside.
pub(crate) fn read(
    bytes: &Bytes,
    path: &Path,
    file: Option<SourceFile>,
    map: bool,
    limits: Limits,
) -> Result<Read, IoError> {
    let content =
        |what| IoError::Content { path: path.to_owned(), place: "not a readable ONNX model".into(), what };
    let proto: ModelProto = proto::decode(bytes, &limits).map_err(content)?;
    let mut reader = Reader::new(path, file, map, limits);
    reader.model(proto)?;
    let external = reader.external.sources().cloned().collect();
    reader.warnings.append(&mut reader.external.warnings);
    Ok(Read { model: reader.model, external, warnings: reader.warnings })
}

/// Reads one tensor from its encoding (a `.pb` sample); its name comes with it.
pub(crate) fn read_tensor(bytes: &Bytes, path: &Path, limits: Limits) -> Result<StoredTensor, IoError> {
    let bad = |what: String| IoError::Content {
        path: path.to_owned(),
        place: "not a readable tensor".into(),
        what,
    };
    let proto: TensorProto = proto::decode(bytes, &limits).map_err(bad)?;
    // What is a tensor's `segment`, which nobody writes, is the content of a sequence or optional.
    if proto.segment.is_some() || proto.raw_data.is_none() && proto.dims.is_empty() && bytes.len() <= 2 {
        return Err(bad("it holds a sequence or an optional value; only tensors are supported".into()));
    }
    let mut reader = Reader::new(path, None, false, limits);
    reader.tensor(proto, "the tensor", false)
}

pub(super) struct Reader {
    path: PathBuf,
    pub(super) model: Model,
    budget: Budget,
    external: ExternalFiles,
    /// Names visible where we are: of the outermost graph first.
    scopes: Vec<Names>,
    warnings: Vec<String>,
}

impl Reader {
    fn new(path: &Path, file: Option<SourceFile>, map: bool, limits: Limits) -> Reader {
        Reader {
            path: path.to_owned(),
            model: Model::new(),
            budget: Budget::new(limits),
            external: ExternalFiles::new(file, map),
            scopes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn bad<T>(&self, place: &str, what: impl Into<String>) -> Result<T, IoError> {
        Err(IoError::Content { path: self.path.clone(), place: place.to_owned(), what: what.into() })
    }

    fn within(&self, result: Result<(), BudgetError>) -> Result<(), IoError> {
        result.map_err(|source| IoError::Budget { path: self.path.clone(), source })
    }

    /// Takes a name from the budget.
    pub(super) fn name(&mut self, name: &str) -> Result<(), IoError> {
        let result = self.budget.name(name);
        self.within(result)
    }

    fn model(&mut self, mut proto: ModelProto) -> Result<(), IoError> {
        let Some(graph) = proto.graph.take() else {
            return self.bad("the model", "it has no graph: not an ONNX model, or a damaged one");
        };
        match proto.ir_version.take() {
            Some(version) if version >= 1 => self.model.ir_version = version,
            Some(version) => return self.bad("the model", format!("its IR version is {version}")),
            None => {
                return self.bad("the model", "it states no IR version: not an ONNX model, or a damaged one");
            }
        }
        self.model.producer_name = take_text(&mut proto.producer_name);
        self.model.producer_version = take_text(&mut proto.producer_version);
        self.model.domain = take_text(&mut proto.domain);
        self.model.model_version = take_number(&mut proto.model_version);
        self.model.doc_string = take_text(&mut proto.doc_string);
        self.model.metadata = properties(std::mem::take(&mut proto.metadata_props));
        self.model.opset_imports = opset_imports(std::mem::take(&mut proto.opset_import));
        let functions = std::mem::take(&mut proto.functions);
        self.model.carry = carry(&proto, 0);
        let main = self.model.main();
        self.graph(graph, main, 1, "the main graph")?;
        for (index, function) in functions.into_iter().enumerate() {
            self.function(function, index)?;
        }
        Ok(())
    }

    /// Reads a graph into one that exists. `place` is how to speak of it.
    pub(super) fn graph(
        &mut self,
        mut proto: GraphProto,
        id: GraphId,
        depth: u64,
        place: &str,
    ) -> Result<(), IoError> {
        self.within(self.budget.depth(depth))?;
        self.scopes.push(Names::new());
        for info in std::mem::take(&mut proto.input) {
            let name = info.name.clone().unwrap_or_default();
            let value = self.define(id, &name, place, "an input")?;
            let info = self.value_info(info, value)?;
            self.model.add_input(info);
        }
        for initializer in std::mem::take(&mut proto.initializer) {
            let name = initializer.name.clone().unwrap_or_default();
            let value = self.define_initializer(id, &name, place)?;
            let stored = self.tensor(initializer, &format!("initializer {}", quoted(&name)), true)?;
            self.model.set_initializer(value, Initializer::Dense(Box::new(stored)));
        }
        for sparse in std::mem::take(&mut proto.sparse_initializer) {
            let name = sparse.values.name.clone().unwrap_or_default();
            let value = self.define_initializer(id, &name, place)?;
            let stored = self.sparse(sparse, &format!("sparse initializer {}", quoted(&name)), true)?;
            self.model.set_initializer(value, Initializer::Sparse(Box::new(stored)));
        }
        self.nodes(std::mem::take(&mut proto.node), id, depth, place)?;
        for info in std::mem::take(&mut proto.output) {
            let name = info.name.clone().unwrap_or_default();
            let Some(value) = self.visible(&name) else {
                return self.bad(place, format!("its output {} is computed by nothing in it", quoted(&name)));
            };
            let info = self.value_info(info, value)?;
            self.model.add_output(id, info);
        }
        self.value_infos(std::mem::take(&mut proto.value_info), id)?;
        let name = take_text(&mut proto.name);
        let doc_string = take_text(&mut proto.doc_string);
        let metadata = properties(std::mem::take(&mut proto.metadata_props));
        let graph = self.model.graph_mut(id);
        (graph.name, graph.doc_string, graph.metadata) = (name, doc_string, metadata);
        graph.carry = carry(&proto, 0);
        self.scopes.pop();
        Ok(())
    }

    fn function(&mut self, mut proto: FunctionProto, index: usize) -> Result<(), IoError> {
        let name = take_text(&mut proto.name);
        let place =
            if name.is_empty() { format!("function {index}") } else { format!("function {}", quoted(&name)) };
        let id = self.model.add_graph(None);
        self.scopes.push(Names::new());
        for input in std::mem::take(&mut proto.input) {
            let value = self.define(id, &input, &place, "an input")?;
            self.model.add_input(ValueInfo::new(value, None));
        }
        self.nodes(std::mem::take(&mut proto.node), id, 1, &place)?;
        for output in std::mem::take(&mut proto.output) {
            let Some(value) = self.visible(&output) else {
                return self
                    .bad(&place, format!("its output {} is computed by nothing in it", quoted(&output)));
            };
            self.model.add_output(id, ValueInfo::new(value, None));
        }
        self.value_infos(std::mem::take(&mut proto.value_info), id)?;
        self.scopes.pop();
        let mut attributes = Vec::new();
        for attribute in std::mem::take(&mut proto.attribute_proto) {
            attributes.push(self.attribute(attribute, 1, &place)?);
        }
        let function = Function {
            name,
            domain: take_text(&mut proto.domain),
            overload: take_text(&mut proto.overload),
            attribute_names: std::mem::take(&mut proto.attribute),
            attributes,
            opset_imports: opset_imports(std::mem::take(&mut proto.opset_import)),
            graph: id,
            doc_string: take_text(&mut proto.doc_string),
            metadata: properties(std::mem::take(&mut proto.metadata_props)),
            carry: carry(&proto, 0),
        };
        self.model.functions.push(function);
        Ok(())
    }

    fn nodes(
        &mut self,
        nodes: Vec<NodeProto>,
        graph: GraphId,
        depth: u64,
        place: &str,
    ) -> Result<(), IoError> {
        match order::of(&nodes) {
            order::Order::Sorted => {
                for (index, node) in nodes.into_iter().enumerate() {
                    self.node(node, graph, depth, index)?;
                }
            }
            order::Order::Resorted(order) => {
                self.warnings.push(format!(
                    "the nodes of {place} are not in an order they can be executed in; they are written sorted"
                ));
                let mut nodes: Vec<Option<NodeProto>> = nodes.into_iter().map(Some).collect();
                for index in order {
                    if let Some(node) = nodes.get_mut(index).and_then(Option::take) {
                        self.node(node, graph, depth, index)?;
                    }
                }
            }
            order::Order::Cycle(index) => {
                let node = nodes.get(index).map(|node| describe(node, index)).unwrap_or_default();
                return self.bad(&node, "it needs its own result: the graph has a cycle");
            }
        }
        Ok(())
    }

    fn node(
        &mut self,
        mut proto: NodeProto,
        graph: GraphId,
        depth: u64,
        index: usize,
    ) -> Result<(), IoError> {
        let taken = self.budget.node();
        self.within(taken)?;
        let place = describe(&proto, index);
        let mut inputs = Vec::with_capacity(proto.input.len());
        for name in std::mem::take(&mut proto.input) {
            if name.is_empty() {
                inputs.push(None);
                continue;
            }
            let Some(value) = self.visible(&name) else {
                return self
                    .bad(&place, format!("its input {} is defined by nothing before it", quoted(&name)));
            };
            inputs.push(Some(value));
        }
        let op_type = take_text(&mut proto.op_type);
        if op_type.is_empty() {
            return self.bad(&place, "it does not say which operator it is");
        }
        let mut node = Node::with_optional_inputs(&op_type, inputs);
        for attribute in std::mem::take(&mut proto.attribute) {
            let attribute = self.attribute(attribute, depth, &place)?;
            node.attributes.push(attribute);
        }
        let mut outputs = Vec::with_capacity(proto.output.len());
        for name in std::mem::take(&mut proto.output) {
            outputs.push(if name.is_empty() {
                None
            } else {
                Some(self.define(graph, &name, &place, "an output")?)
            });
        }
        node.name = take_text(&mut proto.name);
        self.name(&node.name)?;
        node.domain = take_text(&mut proto.domain);
        node.overload = take_text(&mut proto.overload);
        node.doc_string = take_text(&mut proto.doc_string);
        node.metadata = properties(std::mem::take(&mut proto.metadata_props));
        node.carry = carry(&proto, 0);
        match self.model.insert_node(graph, Position::End, node, outputs) {
            Ok(_) => Ok(()),
            Err(error) => self.bad(&place, error.to_string()),
        }
    }

    /// A new value of the innermost graph.
    fn define(&mut self, graph: GraphId, name: &str, place: &str, what: &str) -> Result<ValueId, IoError> {
        if name.is_empty() {
            return self.bad(place, format!("{what} has no name"));
        }
        self.name(name)?;
        if self.scopes.last().is_some_and(|names| names.contains_key(name)) {
            return self
                .bad(place, format!("{what} has the name {}, which is taken in this graph", quoted(name)));
        }
        let value = self.model.add_value(graph, name);
        if let Some(names) = self.scopes.last_mut() {
            names.insert(name.to_owned(), value);
        }
        Ok(value)
    }

    /// The value an initializer is for: a new one, or an input whose default it is.
    fn define_initializer(&mut self, graph: GraphId, name: &str, place: &str) -> Result<ValueId, IoError> {
        let known = self.scopes.last().and_then(|names| names.get(name)).copied();
        match known {
            Some(value) if self.model.value(value).initializer().is_none() => Ok(value),
            _ => self.define(graph, name, place, "an initializer"),
        }
    }

    fn visible(&self, name: &str) -> Option<ValueId> {
        self.scopes.iter().rev().find_map(|names| names.get(name)).copied()
    }

    fn value_infos(&mut self, infos: Vec<ValueInfoProto>, graph: GraphId) -> Result<(), IoError> {
        // Exporters leave declarations of values that are gone; they get a value that nothing touches.
        let mut gone = Names::new();
        for info in infos {
            let name = info.name.clone().unwrap_or_default();
            let value = match self.visible(&name).or_else(|| gone.get(&name).copied()) {
                Some(value) => value,
                None => {
                    self.name(&name)?;
                    let value = self.model.add_value(graph, name.clone());
                    gone.insert(name, value);
                    value
                }
            };
            let info = self.value_info(info, value)?;
            self.model.add_value_info(graph, info);
        }
        Ok(())
    }

    fn value_info(&mut self, mut proto: ValueInfoProto, value: ValueId) -> Result<ValueInfo, IoError> {
        let place = format!("value {}", quoted(self.model.value(value).name()));
        let ty = match proto.r#type.as_option() {
            Some(stated) => match types::read(stated) {
                Ok(ty) => ty,
                Err(what) => return self.bad(&place, what),
            },
            None => None,
        };
        if proto.r#type.as_option().is_some_and(|stated| types::is_usual(stated, ty.as_ref())) {
            proto.r#type.take();
        }
        // The name is the value's; an empty one was refused where it matters.
        take_text(&mut proto.name);
        let mut info = ValueInfo::new(value, ty);
        info.doc_string = take_text(&mut proto.doc_string);
        info.metadata = properties(std::mem::take(&mut proto.metadata_props));
        info.carry = carry(&proto, 0);
        Ok(info)
    }

    /// A tensor; `named` when its name is that of the value it belongs to.
    pub(super) fn tensor(
        &mut self,
        mut proto: TensorProto,
        place: &str,
        named: bool,
    ) -> Result<StoredTensor, IoError> {
        let taken = self.budget.tensor();
        self.within(taken)?;
        let (dtype, shape) = match tensor::header(&mut proto) {
            Ok(header) => header,
            Err(what) => return self.bad(place, what),
        };
        let name = take_text(&mut proto.name);
        self.name(&name)?;
        let (payload, encoding) = match proto.data_location {
            None | Some(0) => match tensor::take_payload(&mut proto, dtype, shape) {
                Ok((tensor, raw)) => (tensor, if raw { Encoding::Raw } else { Encoding::Typed }),
                Err(what) => return self.bad(place, what),
            },
            Some(1) => (self.external(&mut proto, dtype, shape, place)?, Encoding::External),
            Some(other) => {
                return self
                    .bad(place, format!("its data is at location {other}, which ONNX does not define"));
            }
        };
        let mut stored = StoredTensor::from(payload);
        stored.encoding = encoding;
        if !named {
            stored.name = name;
        }
        stored.doc_string = take_text(&mut proto.doc_string);
        stored.metadata = properties(std::mem::take(&mut proto.metadata_props));
        stored.carry = carry(&proto, 0);
        Ok(stored)
    }

    fn external(
        &mut self,
        proto: &mut TensorProto,
        dtype: optix_ir::DType,
        shape: Vec<usize>,
        place: &str,
    ) -> Result<optix_ir::Tensor, IoError> {
        proto.data_location = None;
        let size = optix_ir::element_count(&shape).and_then(|count| dtype.byte_len(count));
        let Some(size) = size else {
            return self
                .bad(place, format!("a {dtype} tensor of shape {shape:?} cannot be in external data"));
        };
        if proto.raw_data.is_some() {
            return self.bad(place, "it has data in `raw_data` and in another file");
        }
        let result = self.external.payload(&proto.external_data, size).and_then(|payload| {
            tensor::check_bools(dtype, &payload)?;
            optix_ir::Tensor::new(dtype, shape, payload).map_err(|error| Refusal::Content(error.to_string()))
        });
        match result {
            Ok(tensor) => Ok(tensor),
            Err(Refusal::Content(what)) => self.bad(place, what),
            // Which file it is, is the model's choice: so the message names the model.
            Err(Refusal::File(error)) if error.class() == ErrorClass::Input => {
                self.bad(place, format!("its data file: {error}"))
            }
            Err(Refusal::File(error)) => Err(error),
        }
    }

    pub(super) fn sparse(
        &mut self,
        mut proto: SparseTensorProto,
        place: &str,
        named: bool,
    ) -> Result<StoredSparse, IoError> {
        let (Some(values), Some(indices)) = (proto.values.take(), proto.indices.take()) else {
            return self.bad(place, "a sparse tensor without values or indices");
        };
        let values = self.tensor(values, place, named)?;
        let indices = self.tensor(indices, &format!("indices of {place}"), false)?;
        let shape = match tensor::dims(std::mem::take(&mut proto.dims)) {
            Ok(shape) => shape,
            Err(what) => return self.bad(place, what),
        };
        if let Err(what) = super::sparse::check(&values.tensor, &indices.tensor, &shape) {
            return self.bad(place, what);
        }
        Ok(StoredSparse { values, indices, shape, carry: carry(&proto, 0) })
    }
}

/// How to speak of a node.
fn describe(node: &NodeProto, index: usize) -> String {
    let op_type = quoted(node.op_type.as_deref().unwrap_or_default());
    match node.name.as_deref().unwrap_or_default() {
        "" => format!("node {index} ({op_type})"),
        name => format!("node {} ({op_type})", quoted(name)),
    }
}

pub(super) fn properties(entries: Vec<StringStringEntryProto>) -> Vec<Property> {
    let property = |mut entry: StringStringEntryProto| Property {
        key: take_text(&mut entry.key),
        value: take_text(&mut entry.value),
        carry: carry(&entry, 0),
    };
    entries.into_iter().map(property).collect()
}

fn opset_imports(imports: Vec<OperatorSetIdProto>) -> Vec<OpsetImport> {
    let import = |mut import: OperatorSetIdProto| OpsetImport {
        domain: take_text(&mut import.domain),
        version: take_number(&mut import.version),
        carry: carry(&import, 0),
    };
    imports.into_iter().map(import).collect()
}
