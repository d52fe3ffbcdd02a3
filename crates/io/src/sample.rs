//! Tensors by themselves, as in ONNX's `test_data_set_*` directories.

use std::path::Path;

use bytes::Bytes;
use optix_base::Limits;
use optix_ir::{StoredTensor, Tensor};

use crate::error::IoError;
use crate::source::SourceFile;
use crate::{onnx, proto};

/// Reads a tensor (`TensorProto`) from a file: its name and itself.
///
/// # Errors
/// When the file is missing, damaged, or holds a sequence or an optional value.
pub fn read_tensor_file(path: &Path) -> Result<(String, Tensor), IoError> {
    let source = SourceFile::open(path, true)?;
    let stored = onnx::read_tensor(&source.bytes(), path, Limits::default())?;
    Ok((stored.name, stored.tensor))
}

/// Reads a tensor from its encoding: its name and itself. `place` stands for the file in messages.
///
/// # Errors
/// As [`read_tensor_file`].
pub fn read_tensor_pb(bytes: &Bytes, place: &str) -> Result<(String, Tensor), IoError> {
    let stored = onnx::read_tensor(bytes, Path::new(place), Limits::default())?;
    Ok((stored.name, stored.tensor))
}

/// The encoding of a tensor under a name, which may be empty; empty when it would be over 2 GiB.
pub fn write_tensor_pb(name: &str, tensor: &Tensor) -> Bytes {
    let mut stored = StoredTensor::from(tensor.clone());
    stored.name = name.to_owned();
    proto::encode_small(&onnx::write_tensor(&stored))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_round_trip() {
        for tensor in [
            Tensor::from_vec(vec![2, 3], vec![1f32, -2.0, f32::NAN, 0.0, 5.0, f32::INFINITY]),
            Tensor::scalar(7i64),
            Tensor::from_vec(vec![0, 4], Vec::<f32>::new()),
            Tensor::from_strings(vec![2], &["a", "ä"]),
        ] {
            let (name, read) = read_tensor_pb(&write_tensor_pb("x", &tensor), "x.pb").unwrap();
            assert_eq!(name, "x");
            assert_eq!(
                (read.dtype(), read.shape(), read.bytes()),
                (tensor.dtype(), tensor.shape(), tensor.bytes())
            );
        }
    }

    #[test]
    fn sequences_and_optionals_are_named() {
        let tensor = write_tensor_pb("", &Tensor::scalar(1f32));
        let length = tensor.len() as u8;
        // elem_type = 1 (tensor), tensor_values = 3 or tensor_value = 3; named and not; empty.
        let sequence = [&[0x10, 1, 0x1A, length], tensor.as_ref()].concat();
        let named = [&[0x0A, 3, b's', b'e', b'q'], sequence.as_slice()].concat();
        for bytes in [sequence, named, vec![0x10, 1], vec![]] {
            let error = read_tensor_pb(&bytes.into(), "input_0.pb").unwrap_err().to_string();
            assert!(error.contains("sequence"), "{error}");
        }
    }
}
