//! Attributes, both ways.

use optix_ir::{Attribute, AttributeValue, GraphId, StoredSparse, StoredTensor, Type};

use super::read::Reader;
use super::types;
use super::write::Writer;
use crate::error::{IoError, quoted};
use crate::proto::{AttributeProto, GraphProto, SparseTensorProto, TensorProto, TypeProto};
use crate::residue::{TYPE_ABSENT, VALUE_ABSENT, carry, put_text, restore, take_text};

/// `AttributeProto.AttributeType`.
mod kind {
    pub(super) const FLOAT: i32 = 1;
    pub(super) const INT: i32 = 2;
    pub(super) const STRING: i32 = 3;
    pub(super) const TENSOR: i32 = 4;
    pub(super) const GRAPH: i32 = 5;
    pub(super) const FLOATS: i32 = 6;
    pub(super) const INTS: i32 = 7;
    pub(super) const STRINGS: i32 = 8;
    pub(super) const TENSORS: i32 = 9;
    pub(super) const GRAPHS: i32 = 10;
    pub(super) const SPARSE_TENSOR: i32 = 11;
    pub(super) const SPARSE_TENSORS: i32 = 12;
    pub(super) const TYPE_PROTO: i32 = 13;
    pub(super) const TYPE_PROTOS: i32 = 14;
    pub(super) const NAMES: [&str; 15] = [
        "nothing",
        "FLOAT",
        "INT",
        "STRING",
        "TENSOR",
        "GRAPH",
        "FLOATS",
        "INTS",
        "STRINGS",
        "TENSORS",
        "GRAPHS",
        "SPARSE_TENSOR",
        "SPARSE_TENSORS",
        "TYPE_PROTO",
        "TYPE_PROTOS",
    ];
}

/// The kinds whose field holds something.
fn present(proto: &AttributeProto) -> Vec<i32> {
    let fields = [
        (proto.f.is_some(), kind::FLOAT),
        (proto.i.is_some(), kind::INT),
        (proto.s.is_some(), kind::STRING),
        (proto.t.is_set(), kind::TENSOR),
        (proto.g.is_set(), kind::GRAPH),
        (!proto.floats.is_empty(), kind::FLOATS),
        (!proto.ints.is_empty(), kind::INTS),
        (!proto.strings.is_empty(), kind::STRINGS),
        (!proto.tensors.is_empty(), kind::TENSORS),
        (!proto.graphs.is_empty(), kind::GRAPHS),
        (proto.sparse_tensor.is_set(), kind::SPARSE_TENSOR),
        (!proto.sparse_tensors.is_empty(), kind::SPARSE_TENSORS),
        (proto.tp.is_set(), kind::TYPE_PROTO),
        (!proto.type_protos.is_empty(), kind::TYPE_PROTOS),
    ];
    fields.into_iter().filter(|(set, _)| *set).map(|(_, kind)| kind).collect()
}

fn kind_name(kind: i32) -> &'static str {
    usize::try_from(kind).ok().and_then(|kind| kind::NAMES.get(kind)).copied().unwrap_or("an unknown type")
}

impl Reader {
    /// Reads an attribute of a node at `depth`.
    pub(super) fn attribute(
        &mut self,
        mut proto: AttributeProto,
        depth: u64,
        node: &str,
    ) -> Result<Attribute, IoError> {
        let name = take_text(&mut proto.name);
        self.name(&name)?;
        let place = format!("{node}, attribute {}", quoted(&name));
        let doc_string = take_text(&mut proto.doc_string);
        let present = present(&proto);
        let mut flags = 0;
        let reference = take_text(&mut proto.ref_attr_name);
        if !reference.is_empty() {
            if !present.is_empty() {
                return self.bad(&place, "it has a value and refers to another attribute");
            }
            if proto.r#type.is_none() {
                flags |= TYPE_ABSENT;
            }
            let value = AttributeValue::Reference(reference, proto.r#type.take().unwrap_or(0));
            return Ok(Attribute { name, value, doc_string, carry: carry(&proto, flags) });
        }
        let stated = match proto.r#type.take() {
            Some(stated) if stated != 0 => stated,
            // IR version 1 did not state types; then the field that is there says it.
            other => {
                proto.r#type = other;
                flags |= TYPE_ABSENT;
                match present.as_slice() {
                    &[only] => only,
                    [] => return self.bad(&place, "it has no type and no value"),
                    _ => return self.bad(&place, "it has no type and several values"),
                }
            }
        };
        if let Some(&other) = present.iter().find(|&&kind| kind != stated) {
            let (stated, other) = (kind_name(stated), kind_name(other));
            return self.bad(&place, format!("it says it is {stated}, but holds {other}"));
        }
        let value = match stated {
            kind::FLOAT => AttributeValue::Float(or_absent(proto.f.take(), &mut flags)),
            kind::INT => AttributeValue::Int(or_absent(proto.i.take(), &mut flags)),
            kind::STRING => AttributeValue::String(or_absent(proto.s.take(), &mut flags)),
            kind::FLOATS => AttributeValue::Floats(std::mem::take(&mut proto.floats)),
            kind::INTS => AttributeValue::Ints(std::mem::take(&mut proto.ints)),
            kind::STRINGS => AttributeValue::Strings(std::mem::take(&mut proto.strings)),
            kind::TENSOR => match proto.t.take() {
                Some(tensor) => AttributeValue::Tensor(Box::new(self.tensor(tensor, &place, false)?)),
                None => return self.bad(&place, "it says it is TENSOR, but holds nothing"),
            },
            kind::GRAPH => match proto.g.take() {
                Some(graph) => AttributeValue::Graph(self.subgraph(graph, depth, &place)?),
                None => return self.bad(&place, "it says it is GRAPH, but holds nothing"),
            },
            kind::SPARSE_TENSOR => match proto.sparse_tensor.take() {
                Some(sparse) => AttributeValue::SparseTensor(Box::new(self.sparse(sparse, &place, false)?)),
                None => return self.bad(&place, "it says it is SPARSE_TENSOR, but holds nothing"),
            },
            kind::TENSORS => {
                let tensors = std::mem::take(&mut proto.tensors).into_iter();
                let tensors: Result<Vec<StoredTensor>, IoError> =
                    tensors.map(|tensor| self.tensor(tensor, &place, false)).collect();
                AttributeValue::Tensors(tensors?)
            }
            kind::GRAPHS => {
                let graphs = std::mem::take(&mut proto.graphs).into_iter();
                let graphs: Result<Vec<GraphId>, IoError> =
                    graphs.map(|graph| self.subgraph(graph, depth, &place)).collect();
                AttributeValue::Graphs(graphs?)
            }
            kind::SPARSE_TENSORS => {
                let sparse = std::mem::take(&mut proto.sparse_tensors).into_iter();
                let sparse: Result<Vec<StoredSparse>, IoError> =
                    sparse.map(|sparse| self.sparse(sparse, &place, false)).collect();
                AttributeValue::SparseTensors(sparse?)
            }
            kind::TYPE_PROTO => {
                let ty = self.attribute_type(&proto.tp, &place)?;
                if types::is_usual(&proto.tp, Some(&ty)) {
                    proto.tp.take();
                }
                AttributeValue::Type(ty)
            }
            kind::TYPE_PROTOS => {
                let held = &proto.type_protos;
                let types: Result<Vec<Type>, IoError> =
                    held.iter().map(|ty| self.attribute_type(ty, &place)).collect();
                let types = types?;
                if held.iter().zip(&types).all(|(proto, ty)| types::is_usual(proto, Some(ty))) {
                    proto.type_protos.clear();
                }
                AttributeValue::Types(types)
            }
            other => return self.bad(&place, format!("its type is {other}, which ONNX does not define")),
        };
        Ok(Attribute { name, value, doc_string, carry: carry(&proto, flags) })
    }

    fn attribute_type(&self, proto: &TypeProto, place: &str) -> Result<Type, IoError> {
        match types::read(proto) {
            Ok(Some(ty)) => Ok(ty),
            Ok(None) => self.bad(place, "a type that says nothing"),
            Err(what) => self.bad(place, what),
        }
    }

    fn subgraph(&mut self, proto: GraphProto, depth: u64, place: &str) -> Result<GraphId, IoError> {
        let graph = self.model.add_graph(None);
        self.graph(proto, graph, depth.saturating_add(1), &format!("the graph in {place}"))?;
        Ok(graph)
    }
}

fn or_absent<T: Default>(value: Option<T>, flags: &mut u8) -> T {
    value.unwrap_or_else(|| {
        *flags |= VALUE_ABSENT;
        T::default()
    })
}

impl Writer<'_> {
    /// The message of an attribute.
    pub(super) fn attribute(&mut self, attribute: &Attribute) -> AttributeProto {
        let (mut proto, flags): (AttributeProto, u8) = restore(&attribute.carry);
        put_text(&mut proto.name, &attribute.name);
        put_text(&mut proto.doc_string, &attribute.doc_string);
        let written = |is_default: bool| flags & VALUE_ABSENT == 0 || !is_default;
        let stated = match &attribute.value {
            AttributeValue::Float(value) => {
                proto.f = written(value.to_bits() == 0).then_some(*value);
                kind::FLOAT
            }
            AttributeValue::Int(value) => {
                proto.i = written(*value == 0).then_some(*value);
                kind::INT
            }
            AttributeValue::String(value) => {
                proto.s = written(value.is_empty()).then(|| value.clone());
                kind::STRING
            }
            AttributeValue::Floats(values) => {
                proto.floats.clone_from(values);
                kind::FLOATS
            }
            AttributeValue::Ints(values) => {
                proto.ints.clone_from(values);
                kind::INTS
            }
            AttributeValue::Strings(values) => {
                proto.strings.clone_from(values);
                kind::STRINGS
            }
            AttributeValue::Tensor(tensor) => {
                proto.t = self.tensor(tensor, None).into();
                kind::TENSOR
            }
            AttributeValue::SparseTensor(sparse) => {
                proto.sparse_tensor = self.sparse(sparse, None).into();
                kind::SPARSE_TENSOR
            }
            AttributeValue::Tensors(tensors) => {
                proto.tensors =
                    tensors.iter().map(|tensor| self.tensor(tensor, None)).collect::<Vec<TensorProto>>();
                kind::TENSORS
            }
            AttributeValue::SparseTensors(sparse) => {
                proto.sparse_tensors =
                    sparse.iter().map(|sparse| self.sparse(sparse, None)).collect::<Vec<SparseTensorProto>>();
                kind::SPARSE_TENSORS
            }
            AttributeValue::Graph(id) => {
                proto.g = self.graph(*id).into();
                kind::GRAPH
            }
            AttributeValue::Graphs(ids) => {
                proto.graphs = ids.iter().map(|id| self.graph(*id)).collect::<Vec<GraphProto>>();
                kind::GRAPHS
            }
            AttributeValue::Type(ty) => {
                if !still_says(proto.tp.as_option(), ty) {
                    proto.tp = types::write(ty).into();
                }
                kind::TYPE_PROTO
            }
            AttributeValue::Types(types) => {
                let kept = proto.type_protos.len() == types.len()
                    && proto.type_protos.iter().zip(types).all(|(held, ty)| still_says(Some(held), ty));
                if !kept {
                    proto.type_protos = types.iter().map(types::write).collect();
                }
                kind::TYPE_PROTOS
            }
            AttributeValue::Reference(name, stated) => {
                proto.ref_attr_name = Some(name.clone());
                *stated
            }
        };
        if flags & TYPE_ABSENT == 0 {
            proto.r#type = Some(stated);
        }
        proto
    }
}

/// Whether a carried type still says what the IR says.
pub(super) fn still_says(held: Option<&TypeProto>, ty: &Type) -> bool {
    held.is_some_and(|held| types::read(held).is_ok_and(|read| read.as_ref() == Some(ty)))
}
