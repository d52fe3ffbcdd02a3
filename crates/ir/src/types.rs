//! Types of values: element type and symbolic shape, and ONNX's containers.

use std::fmt;
use std::sync::Arc;

use crate::dtype::DType;

/// One dimension of a shape.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Dim {
    /// A size known ahead.
    Fixed(usize),
    /// A name that stands for one size throughout the model (`dim_param`).
    Symbol(Arc<str>),
    /// Nothing known.
    Unknown,
}

impl Dim {
    /// A named dimension.
    pub fn symbol(name: &str) -> Dim {
        Dim::Symbol(name.into())
    }

    /// The size, when it is known ahead.
    pub fn fixed(&self) -> Option<usize> {
        match self {
            Dim::Fixed(size) => Some(*size),
            _ => None,
        }
    }

    /// Whether a tensor with size `size` here may have this dimension.
    pub fn admits(&self, size: usize) -> bool {
        self.fixed().is_none_or(|fixed| fixed == size)
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Dim {
        Dim::Fixed(size)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(size) => write!(f, "{size}"),
            Dim::Symbol(name) => f.write_str(name),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// Dimensions, outermost first; an empty shape is a scalar's.
pub type Shape = Vec<Dim>;

/// Element type and shape of a tensor, each as far as known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TensorType {
    /// The element type; `None` when not known.
    pub dtype: Option<DType>,
    /// The dimensions; `None` when not even the rank is known.
    pub shape: Option<Shape>,
}

/// The type of a value (ONNX's `TypeProto`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Type {
    /// A dense tensor.
    Tensor(TensorType),
    /// A sparse tensor.
    SparseTensor(TensorType),
    /// A sequence of values of one type.
    Sequence(Box<Type>),
    /// A value that may be absent.
    Optional(Box<Type>),
    /// A map from keys of an element type to values of a type.
    Map(DType, Box<Type>),
    /// Something only a custom domain knows.
    Opaque {
        /// The domain that defines it.
        domain: String,
        /// Its name there.
        name: String,
    },
}

impl Type {
    /// A tensor type with everything known.
    pub fn tensor(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> Type {
        Type::Tensor(TensorType { dtype: Some(dtype), shape: Some(shape.into_iter().collect()) })
    }

    /// The type of a given tensor.
    pub fn of(tensor: &crate::Tensor) -> Type {
        Type::tensor(tensor.dtype(), tensor.shape().iter().map(|&size| Dim::Fixed(size)))
    }

    /// The tensor type, when this is a dense tensor.
    pub fn as_tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The element type of a dense tensor, when known.
    pub fn dtype(&self) -> Option<DType> {
        self.as_tensor()?.dtype
    }

    /// The shape of a dense tensor, when its rank is known.
    pub fn shape(&self) -> Option<&Shape> {
        self.as_tensor()?.shape.as_ref()
    }

    /// The shape of a dense tensor when every dimension is fixed.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape()?.iter().map(Dim::fixed).collect()
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dtype.map_or("undefined", DType::name))?;
        match &self.shape {
            None => f.write_str("[]"),
            // In ONNX's text form a bare element type is a scalar, `[]` an unknown rank.
            Some(shape) if shape.is_empty() => Ok(()),
            Some(shape) => {
                let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
                write!(f, "[{}]", dims.join(","))
            }
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tensor(tensor) => tensor.fmt(f),
            Type::SparseTensor(tensor) => write!(f, "sparse_tensor({tensor})"),
            Type::Sequence(element) => write!(f, "seq({element})"),
            Type::Optional(element) => write!(f, "optional({element})"),
            Type::Map(key, value) => write!(f, "map({key}, {value})"),
            Type::Opaque { domain, name } => write!(f, "opaque({domain}, {name})"),
        }
    }
}
