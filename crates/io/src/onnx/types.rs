//! Types of values, to and from `TypeProto`.

use buffa::MessageField;
use optix_ir::{DType, Dim, Shape, TensorType, Type};

use crate::proto::{DimValue, Dimension, TensorShapeProto, TypeProto, TypeValue, type_proto};

/// Dimensions a shape may have: more is a damaged or hostile file.
pub(super) const MAX_RANK: usize = 64;

/// The type a message states; `None` when it states none.
pub(super) fn read(proto: &TypeProto) -> Result<Option<Type>, String> {
    let Some(value) = &proto.value else { return Ok(None) };
    let inner = |held: Option<&TypeProto>, what: &str| {
        let ty = held.map(read).transpose()?.flatten();
        ty.map(Box::new).ok_or_else(|| format!("{what} type does not say of what"))
    };
    Ok(Some(match value {
        TypeValue::TensorType(tensor) => {
            Type::Tensor(tensor_type(tensor.elem_type, tensor.shape.as_option())?)
        }
        TypeValue::SparseTensorType(tensor) => {
            Type::SparseTensor(tensor_type(tensor.elem_type, tensor.shape.as_option())?)
        }
        TypeValue::SequenceType(sequence) => {
            Type::Sequence(inner(sequence.elem_type.as_option(), "a sequence")?)
        }
        TypeValue::OptionalType(optional) => {
            Type::Optional(inner(optional.elem_type.as_option(), "an optional")?)
        }
        TypeValue::MapType(map) => {
            let key = element_type(map.key_type)?.ok_or("a map type does not state the type of its keys")?;
            Type::Map(key, inner(map.value_type.as_option(), "a map")?)
        }
        TypeValue::OpaqueType(opaque) => Type::Opaque {
            domain: opaque.domain.clone().unwrap_or_default(),
            name: opaque.name.clone().unwrap_or_default(),
        },
    }))
}

/// The message that states a type, in the form that ONNX's own tools write.
pub(super) fn write(ty: &Type) -> TypeProto {
    let value = match ty {
        Type::Tensor(tensor) => {
            let (elem_type, shape) = (elem_type(tensor), shape(tensor));
            TypeValue::TensorType(Box::new(type_proto::Tensor { elem_type, shape, ..Default::default() }))
        }
        Type::SparseTensor(tensor) => {
            let (elem_type, shape) = (elem_type(tensor), shape(tensor));
            let sparse = type_proto::SparseTensor { elem_type, shape, ..Default::default() };
            TypeValue::SparseTensorType(Box::new(sparse))
        }
        Type::Sequence(element) => {
            let elem_type = MessageField::some(write(element));
            TypeValue::SequenceType(Box::new(type_proto::Sequence { elem_type, ..Default::default() }))
        }
        Type::Optional(element) => {
            let elem_type = MessageField::some(write(element));
            TypeValue::OptionalType(Box::new(type_proto::Optional { elem_type, ..Default::default() }))
        }
        Type::Map(key, value) => {
            let (key_type, value_type) = (Some(key.onnx()), MessageField::some(write(value)));
            TypeValue::MapType(Box::new(type_proto::Map { key_type, value_type, ..Default::default() }))
        }
        Type::Opaque { domain, name } => {
            let text = |text: &String| if text.is_empty() { None } else { Some(text.clone()) };
            let (domain, name) = (text(domain), text(name));
            TypeValue::OpaqueType(Box::new(type_proto::Opaque { domain, name, ..Default::default() }))
        }
    };
    TypeProto { value: Some(value), ..Default::default() }
}

/// Whether [`write`] would give back that very message.
pub(super) fn is_usual(proto: &TypeProto, ty: Option<&Type>) -> bool {
    // Compared as bytes: equality of messages does not tell absent from empty.
    ty.is_some_and(|ty| crate::proto::encode_small(&write(ty)) == crate::proto::encode_small(proto))
}

fn element_type(code: Option<i32>) -> Result<Option<DType>, String> {
    match code.unwrap_or(0) {
        0 => Ok(None),
        code => match DType::from_onnx(code) {
            Some(dtype) => Ok(Some(dtype)),
            None => Err(format!("element type {code} is none that ONNX 1.23 defines")),
        },
    }
}

fn tensor_type(code: Option<i32>, shape: Option<&TensorShapeProto>) -> Result<TensorType, String> {
    let dtype = element_type(code)?;
    let Some(shape) = shape else { return Ok(TensorType { dtype, shape: None }) };
    if shape.dim.len() > MAX_RANK {
        return Err(format!("a shape of {} dimensions; at most {MAX_RANK} are supported", shape.dim.len()));
    }
    let dims: Shape = shape.dim.iter().map(dimension).collect();
    Ok(TensorType { dtype, shape: Some(dims) })
}

fn dimension(dim: &Dimension) -> Dim {
    match &dim.value {
        // Some exporters write -1 or an empty name where they mean that nothing is known.
        Some(DimValue::DimValue(size)) => usize::try_from(*size).map_or(Dim::Unknown, Dim::Fixed),
        Some(DimValue::DimParam(name)) if !name.is_empty() => Dim::symbol(name),
        _ => Dim::Unknown,
    }
}

fn elem_type(tensor: &TensorType) -> Option<i32> {
    tensor.dtype.map(DType::onnx)
}

fn shape(tensor: &TensorType) -> MessageField<TensorShapeProto> {
    let Some(shape) = &tensor.shape else { return MessageField::none() };
    let dim = shape.iter().map(|dim| {
        let value = match dim {
            // A size beyond i64 cannot come from a file and fits no memory.
            Dim::Fixed(size) => Some(DimValue::DimValue(i64::try_from(*size).unwrap_or(i64::MAX))),
            Dim::Symbol(name) => Some(DimValue::DimParam(name.to_string())),
            Dim::Unknown => None,
        };
        Dimension { value, ..Default::default() }
    });
    MessageField::some(TensorShapeProto { dim: dim.collect(), ..Default::default() })
}
