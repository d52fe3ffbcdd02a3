//! The ONNX format.

mod attribute;
mod external;
mod order;
mod read;
mod sparse;
mod tensor;
mod types;
mod write;

pub(crate) use read::{read, read_tensor};
pub(crate) use write::{DataFile, External, write, write_tensor};
