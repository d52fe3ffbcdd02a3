//! Models and tensors from their protobuf encodings.

use bytes::Bytes;
use optix_base::Limits;
use optix_ir::{Model, Tensor};

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
