//! From the IR to `ModelProto`.

use std::collections::HashMap;

use bytes::Bytes;
use optix_ir::{
    Encoding, Function, GraphId, Initializer, Model, NodeId, OpsetImport, Property, StoredSparse,
    StoredTensor, ValueId, ValueInfo,
};

use super::attribute::still_says;
use super::{tensor, types};
use crate::proto::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, ValueInfoProto,
};
use crate::residue::{put_number, put_text, restore};

/// Tensors of up to this many bytes stay in the model when weights go to a data file.
const INLINE: usize = 1024;
/// Offsets in a data file are multiples of this, so that engines can map it.
const ALIGNMENT: u64 = 4096;

/// Which tensors go to the data file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum External {
    /// None.
    Nothing,
    /// Those that were in one.
    AsRead,
    /// Those and every initializer over 1 KiB.
    Everything,
}

/// What a data file is to hold.
#[derive(Debug, Default)]
pub(crate) struct DataFile {
    /// Payloads with their offsets, ascending, not overlapping.
    pub(crate) pieces: Vec<(u64, Bytes)>,
    /// Its length.
    pub(crate) length: u64,
    /// Offsets of payloads that are there, by address and length: shared ones are written once.
    known: HashMap<(usize, usize), u64>,
}

impl DataFile {
    fn place(&mut self, payload: &Bytes) -> u64 {
        let key = (payload.as_ptr().addr(), payload.len());
        if let Some(&offset) = self.known.get(&key) {
            return offset;
        }
        let offset = self.length.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        self.length = offset.saturating_add(payload.len() as u64);
        self.known.insert(key, offset);
        self.pieces.push((offset, payload.clone()));
        offset
    }
}

/// The message of a model and what goes to the data file of the name `location`.
pub(crate) fn write(model: &Model, external: External, location: &str) -> (ModelProto, DataFile) {
    let mut writer = Writer { model, external, location, data: DataFile::default() };
    let proto = writer.model();
    (proto, writer.data)
}

/// The message of one tensor by itself.
pub(crate) fn write_tensor(stored: &StoredTensor) -> TensorProto {
    let model = Model::new();
    let mut writer =
        Writer { model: &model, external: External::Nothing, location: "", data: DataFile::default() };
    writer.tensor(stored, None)
}

pub(super) struct Writer<'a> {
    model: &'a Model,
    external: External,
    location: &'a str,
    data: DataFile,
}

impl Writer<'_> {
    fn model(&mut self) -> ModelProto {
        let model = self.model;
        let (mut proto, _): (ModelProto, u8) = restore(&model.carry);
        proto.ir_version = Some(model.ir_version);
        put_text(&mut proto.producer_name, &model.producer_name);
        put_text(&mut proto.producer_version, &model.producer_version);
        put_text(&mut proto.domain, &model.domain);
        put_number(&mut proto.model_version, model.model_version);
        put_text(&mut proto.doc_string, &model.doc_string);
        proto.graph = self.graph(model.main()).into();
        proto.opset_import = opset_imports(&model.opset_imports);
        proto.metadata_props = properties(&model.metadata);
        proto.functions = model.functions.iter().map(|function| self.function(function)).collect();
        proto
    }

    /// The message of a graph; recursive over subgraphs, which the reader and the verifier keep shallow.
    pub(super) fn graph(&mut self, id: GraphId) -> GraphProto {
        let model = self.model;
        let graph = model.graph(id);
        let (mut proto, _): (GraphProto, u8) = restore(&graph.carry);
        put_text(&mut proto.name, &graph.name);
        put_text(&mut proto.doc_string, &graph.doc_string);
        proto.metadata_props = properties(&graph.metadata);
        proto.input = graph.inputs().iter().map(|info| self.value_info(info)).collect();
        proto.output = graph.outputs().iter().map(|info| self.value_info(info)).collect();
        proto.value_info = self.value_infos(id);
        for &value in graph.initializers() {
            let value = model.value(value);
            match value.initializer() {
                Some(Initializer::Dense(stored)) => {
                    let tensor = self.tensor(stored, Some(value.name()));
                    proto.initializer.push(tensor);
                }
                Some(Initializer::Sparse(sparse)) => {
                    let sparse = self.sparse(sparse, Some(value.name()));
                    proto.sparse_initializer.push(sparse);
                }
                None => {}
            }
        }
        proto.node = model.nodes_of(id).map(|node| self.node(node)).collect();
        proto
    }

    fn function(&mut self, function: &Function) -> FunctionProto {
        let graph = self.model.graph(function.graph);
        let (mut proto, _): (FunctionProto, u8) = restore(&function.carry);
        put_text(&mut proto.name, &function.name);
        put_text(&mut proto.domain, &function.domain);
        put_text(&mut proto.overload, &function.overload);
        put_text(&mut proto.doc_string, &function.doc_string);
        proto.input = graph.inputs().iter().map(|info| self.value_name(info.value)).collect();
        proto.output = graph.outputs().iter().map(|info| self.value_name(info.value)).collect();
        proto.attribute.clone_from(&function.attribute_names);
        proto.attribute_proto =
            function.attributes.iter().map(|attribute| self.attribute(attribute)).collect();
        proto.node = self.model.nodes_of(function.graph).map(|node| self.node(node)).collect();
        proto.opset_import = opset_imports(&function.opset_imports);
        proto.value_info = self.value_infos(function.graph);
        proto.metadata_props = properties(&function.metadata);
        proto
    }

    fn node(&mut self, id: NodeId) -> NodeProto {
        let node = self.model.node(id);
        let (mut proto, _): (NodeProto, u8) = restore(&node.carry);
        let name = |value: &Option<ValueId>| value.map(|value| self.value_name(value)).unwrap_or_default();
        proto.input = node.inputs().iter().map(name).collect();
        proto.output = node.outputs().iter().map(name).collect();
        put_text(&mut proto.name, &node.name);
        put_text(&mut proto.op_type, &node.op_type);
        put_text(&mut proto.domain, &node.domain);
        put_text(&mut proto.overload, &node.overload);
        put_text(&mut proto.doc_string, &node.doc_string);
        proto.attribute = node.attributes.iter().map(|attribute| self.attribute(attribute)).collect();
        proto.metadata_props = properties(&node.metadata);
        proto
    }

    fn value_name(&self, value: ValueId) -> String {
        self.model.value(value).name().to_owned()
    }

    fn value_infos(&self, graph: GraphId) -> Vec<ValueInfoProto> {
        let infos = self.model.graph(graph).value_infos.iter();
        // A declaration in a subgraph of a value around it can outlive the value.
        let alive = infos.filter(|info| self.model.get_value(info.value).is_some());
        alive.map(|info| self.value_info(info)).collect()
    }

    fn value_info(&self, info: &ValueInfo) -> ValueInfoProto {
        let (mut proto, _): (ValueInfoProto, u8) = restore(&info.carry);
        put_text(&mut proto.name, self.model.value(info.value).name());
        put_text(&mut proto.doc_string, &info.doc_string);
        proto.metadata_props = properties(&info.metadata);
        match &info.ty {
            Some(ty) if !still_says(proto.r#type.as_option(), ty) => proto.r#type = types::write(ty).into(),
            // A message that states no type stays; one that states what is no longer so does not.
            None if proto.r#type.as_option().is_some_and(|held| held.value.is_some()) => {
                proto.r#type.take();
            }
            _ => {}
        }
        proto
    }

    /// The message of a tensor; `name` is that of the value it belongs to.
    pub(super) fn tensor(&mut self, stored: &StoredTensor, name: Option<&str>) -> TensorProto {
        let (mut proto, _): (TensorProto, u8) = restore(&stored.carry);
        let held = &stored.tensor;
        proto.dims = dims(held.shape());
        proto.data_type = Some(held.dtype().onnx());
        put_text(&mut proto.name, name.unwrap_or(&stored.name));
        put_text(&mut proto.doc_string, &stored.doc_string);
        proto.metadata_props = properties(&stored.metadata);
        let is_string = held.dtype() == optix_ir::DType::String;
        let was_external = stored.encoding == Encoding::External;
        let goes_out = !is_string
            && match self.external {
                External::Nothing => false,
                External::AsRead => was_external,
                // Engines look for external data in initializers.
                External::Everything => was_external || name.is_some() && held.bytes().len() > INLINE,
            };
        if goes_out {
            self.put_external(&mut proto, held.bytes());
        } else if is_string || stored.encoding == Encoding::Typed {
            tensor::put_typed(&mut proto, held);
        } else {
            proto.raw_data = Some(held.bytes().clone());
        }
        if was_external && !goes_out {
            proto.external_data.clear();
        }
        proto
    }

    fn put_external(&mut self, proto: &mut TensorProto, payload: &Bytes) {
        let offset = self.data.place(payload);
        proto.data_location = Some(1);
        let place = [
            ("location", self.location.to_owned()),
            ("offset", offset.to_string()),
            ("length", payload.len().to_string()),
        ];
        // A checksum was that of the old file.
        proto.external_data.retain(|entry| entry.key.as_deref() != Some("checksum"));
        for (key, value) in place {
            match proto.external_data.iter_mut().find(|entry| entry.key.as_deref() == Some(key)) {
                Some(entry) => entry.value = Some(value),
                None => {
                    let (key, value) = (Some(key.to_owned()), Some(value));
                    proto.external_data.push(StringStringEntryProto { key, value, ..Default::default() });
                }
            }
        }
    }

    pub(super) fn sparse(&mut self, stored: &StoredSparse, name: Option<&str>) -> SparseTensorProto {
        let (mut proto, _): (SparseTensorProto, u8) = restore(&stored.carry);
        proto.values = self.tensor(&stored.values, name).into();
        proto.indices = self.tensor(&stored.indices, None).into();
        proto.dims = dims(&stored.shape);
        proto
    }
}

fn dims(shape: &[usize]) -> Vec<i64> {
    // A zero-size tensor may have any other size beside; none is beyond i64 that came from a file.
    shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect()
}

fn properties(properties: &[Property]) -> Vec<StringStringEntryProto> {
    let entry = |property: &Property| {
        let (mut proto, _): (StringStringEntryProto, u8) = restore(&property.carry);
        put_text(&mut proto.key, &property.key);
        put_text(&mut proto.value, &property.value);
        proto
    };
    properties.iter().map(entry).collect()
}

fn opset_imports(imports: &[OpsetImport]) -> Vec<OperatorSetIdProto> {
    let entry = |import: &OpsetImport| {
        let (mut proto, _): (OperatorSetIdProto, u8) = restore(&import.carry);
        put_text(&mut proto.domain, &import.domain);
        put_number(&mut proto.version, import.version);
        proto
    };
    imports.iter().map(entry).collect()
}
