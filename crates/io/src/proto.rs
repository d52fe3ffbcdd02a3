//! The messages of `proto/onnx.proto`, and how they are decoded and encoded: the only module that knows
//! which protobuf library does it.

use buffa::{DecodeError, DecodeOptions, Message, Rope};
use bytes::Bytes;

#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    unused_imports,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
mod generated {
    buffa::include_proto!("optix.onnx");
}

pub(crate) use generated::__buffa::oneof::tensor_shape_proto::dimension::Value as DimValue;
pub(crate) use generated::__buffa::oneof::type_proto::Value as TypeValue;
pub(crate) use generated::tensor_shape_proto::Dimension;
pub(crate) use generated::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// Messages a level of subgraphs takes: graph, node, attribute.
const MESSAGES_A_GRAPH: u32 = 3;
/// Messages around and within the graphs: model, attribute, tensor, its properties, nested types.
const MESSAGES_BESIDE: u32 = 24;
/// More nesting than this is refused whatever the limits say: decoding recurses.
const MOST_GRAPHS: u64 = 256;
/// Memory that repeated elements may take beside what the size of the file allows.
const ELEMENT_MEMORY: usize = 64 << 20;
/// Memory of repeated elements allowed for every byte of the file: a small node takes about 25 times its
/// encoding, a bomb of empty nodes 150 times.
const ELEMENT_MEMORY_A_BYTE: usize = 32;
/// Unknown fields of one file.
const UNKNOWN_FIELDS: usize = 200_000;

/// Decodes a message within the limits. Payloads (`bytes` fields) are slices of `bytes`, not copies.
pub(crate) fn decode<M: Message>(bytes: &Bytes, limits: &optix_base::Limits) -> Result<M, String> {
    let graphs = u32::try_from(limits.depth.min(MOST_GRAPHS)).unwrap_or(u32::MAX);
    let memory = match usize::try_from(limits.element_memory).unwrap_or(usize::MAX) {
        0 => bytes.len().saturating_mul(ELEMENT_MEMORY_A_BYTE).saturating_add(ELEMENT_MEMORY),
        limit => limit,
    };
    let options = DecodeOptions::new()
        .with_recursion_limit(graphs.saturating_mul(MESSAGES_A_GRAPH).saturating_add(MESSAGES_BESIDE))
        .with_unknown_field_limit(UNKNOWN_FIELDS)
        .with_element_memory_limit(memory);
    options.decode(&mut bytes.clone()).map_err(|error| explain(&error))
}

/// What a decoding error means to somebody with a file that does not load.
fn explain(error: &DecodeError) -> String {
    match error {
        DecodeError::UnexpectedEof => "a field reaches past the end: the file is cut short or damaged".into(),
        DecodeError::MessageTooLarge => {
            "more than 2 GiB in one message, which protobuf forbids: keep its weights in external data".into()
        }
        DecodeError::InvalidUtf8 => "a name or text is not UTF-8".into(),
        DecodeError::RecursionLimitExceeded => {
            "graphs are nested too deep; `--limits depth=N` allows more".into()
        }
        DecodeError::ElementMemoryLimitExceeded => {
            "a small file that would take a lot of memory; `--limits element-memory=N` (bytes) allows it"
                .into()
        }
        DecodeError::UnknownFieldLimitExceeded => {
            format!("more than {UNKNOWN_FIELDS} fields that ONNX does not define")
        }
        DecodeError::WireTypeMismatch { field_number, .. } => {
            format!("field {field_number} has another type than ONNX gives it")
        }
        other => other.to_string(),
    }
}

/// Encoded size in bytes; `None` beyond protobuf's 2 GiB.
pub(crate) fn encoded_len<M: Message>(message: &M) -> Option<u32> {
    message.try_encoded_len().ok()
}

/// Encodes a message as a sequence of segments; payloads are shared, not copied. `None` beyond 2 GiB.
pub(crate) fn encode<M: Message>(message: &M) -> Option<Vec<Bytes>> {
    let mut rope = Rope::new();
    message.try_encode(&mut rope).ok()?;
    Some(rope.into_segments())
}

/// Encodes a small message into one piece.
pub(crate) fn encode_small<M: Message>(message: &M) -> Bytes {
    message.try_encode_to_bytes().unwrap_or_default()
}

/// Decodes what [`encode_small`] made.
pub(crate) fn decode_small<M: Message>(bytes: &[u8]) -> Option<M> {
    DecodeOptions::new()
        .with_recursion_limit(1000)
        .with_element_memory_limit(usize::MAX)
        .with_unknown_field_limit(usize::MAX)
        .decode_from_slice(bytes)
        .ok()
}
