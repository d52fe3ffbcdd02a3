//! Models and tensors from their protobuf encodings.

use bytes::Bytes;
use optix_base::Limits;
use optix_ir::{Model, Tensor};
use optix_ops::Datum;

use crate::cases::Sample;

/// Reads a model.
pub fn read_model(bytes: &Bytes) -> Model {
    optix_io::read_onnx(bytes, "a test's model", Limits::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// Reads a `TensorProto`, as the only initializer of a model put around it.
pub fn read_tensor(bytes: &Bytes) -> Tensor {
    let mut tensor = bytes.to_vec();
    field(&mut tensor, 8, b"tensor");
    let mut graph = Vec::new();
    field(&mut graph, 2, b"graph");
    field(&mut graph, 5, &tensor);
    // ir_version = 8; opset_import { version = 18 }.
    let mut model = vec![0x08, 8, 0x42, 2, 0x10, 18];
    field(&mut model, 7, &graph);
    let model = read_model(&model.into());
    let value = model.graph(model.main()).initializers()[0];
    model.value(value).tensor().expect("the initializer is dense").clone()
}

/// Reads a sample of a case.
pub fn read_sample(sample: &Sample) -> Datum {
    match sample {
        Sample::Tensor(bytes) => read_tensor(bytes).into(),
        Sample::Sequence(bytes) => read_sequence(bytes),
        Sample::Optional(bytes) => read_optional(bytes),
    }
}

/// `SequenceProto`: 2 the kind of its elements; 3 tensors, 5 sequences, 7 optionals.
fn read_sequence(bytes: &Bytes) -> Datum {
    let elements = messages(bytes).into_iter().filter_map(|(field, message)| match field {
        3 => Some(read_tensor(&message).into()),
        5 => Some(read_sequence(&message)),
        7 => Some(read_optional(&message)),
        _ => None,
    });
    Datum::Sequence(elements.collect())
}

/// `OptionalProto`: 2 the kind of its element; 3 a tensor, 5 a sequence, 7 an optional.
fn read_optional(bytes: &Bytes) -> Datum {
    let element = messages(bytes).into_iter().find_map(|(field, message)| match field {
        3 => Some(read_tensor(&message).into()),
        5 => Some(read_sequence(&message)),
        7 => Some(read_optional(&message)),
        _ => None,
    });
    Datum::Optional(element.map(Box::new))
}

/// The length-delimited fields of a message that has no others but varints.
fn messages(bytes: &Bytes) -> Vec<(u64, Bytes)> {
    let mut at = 0;
    let varint = |at: &mut usize| {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    };
    let mut found = Vec::new();
    while at < bytes.len() {
        let key = varint(&mut at);
        let value = varint(&mut at);
        match key & 7 {
            0 => {}
            2 => {
                let end = at + value as usize;
                found.push((key >> 3, bytes.slice(at..end)));
                at = end;
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

/// Appends a length-delimited protobuf field.
fn field(message: &mut Vec<u8>, number: u8, content: &[u8]) {
    message.push(number << 3 | 2);
    let mut length = content.len();
    while length >= 0x80 {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(content);
}
