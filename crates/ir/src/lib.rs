//! What a model is.
//!
//! The intermediate representation of optix: a complete, lossless picture of an ONNX model in arenas
//! with stable ids. Nodes are stored untyped, just as the file said them, so unknown operators and custom
//! domains pass through unharmed; typed views read them where a pass wants to know more. This crate does
//! no I/O: readers and writers of formats live in `optix-io`.

mod builder;
mod dtype;
mod edit;
mod ids;
pub mod infer;
pub mod minifloat;
mod model;
mod node;
pub mod patch;
pub mod pattern;
mod tensor;
pub mod text;
mod types;
pub mod verify;
pub mod view;

pub use builder::{BuildError, ModelBuilder};
pub use dtype::DType;
pub use edit::{EditError, Position};
pub use ids::{GraphId, NodeId, ValueId};
pub use model::{Model, Walk};
pub use node::{
    Attribute, AttributeValue, Carry, Encoding, Function, Graph, Initializer, Node, OpsetImport, Property,
    StoredSparse, StoredTensor, Use, Value, ValueInfo,
};
pub use tensor::{Element, Tensor, TensorError, element_count};
pub use types::{Dim, Shape, TensorType, Type};
