//! Tensors on their way to onnxruntime and back.

use optix_ir::{DType, Tensor};
use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};

use crate::error::RuntimeError;
use crate::onnxruntime::{NAME, refused};

/// Calls a macro with the element types that both sides know: ours, theirs, Rust's.
macro_rules! for_types {
    ($call:ident) => {
        $call! {
            F32 Float32 f32, F64 Float64 f64, F16 Float16 half::f16, BF16 Bfloat16 half::bf16,
            I8 Int8 i8, I16 Int16 i16, I32 Int32 i32, I64 Int64 i64,
            U8 Uint8 u8, U16 Uint16 u16, U32 Uint32 u32, U64 Uint64 u64
        }
    };
}

/// A tensor as the library takes it. Elements are borrowed where they are aligned.
pub(crate) fn feed<'t>(name: &str, tensor: &'t Tensor) -> Result<SessionInputValue<'t>, RuntimeError> {
    let shape = tensor.shape().to_vec();
    let complain = |what: String| RuntimeError::Feed { input: name.to_owned(), what };
    macro_rules! view {
        ($($ours:ident $theirs:ident $rust:ty),*) => {
            match tensor.dtype() {
                $(DType::$ours => {
                    let elements = tensor.to_slice::<$rust>().map_err(|error| complain(error.to_string()))?;
                    match elements {
                        std::borrow::Cow::Borrowed(elements) => {
                            TensorRef::from_array_view((shape, elements)).map(SessionInputValue::from)
                        }
                        std::borrow::Cow::Owned(elements) => {
                            ort::value::Tensor::from_array((shape, elements.into_boxed_slice())).map(SessionInputValue::from)
                        }
                    }
                })*
                DType::Bool => {
                    let truths = tensor.bools().map_err(|error| complain(error.to_string()))?;
                    ort::value::Tensor::from_array((shape, truths)).map(SessionInputValue::from)
                }
                DType::String => {
                    let strings = tensor.strings().map_err(|error| complain(error.to_string()))?;
                    let strings: Vec<String> =
                        strings.into_iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
                    ort::value::Tensor::from_string_array((shape, strings.as_slice())).map(SessionInputValue::from)
                }
                other => return Err(complain(format!("{other} elements cannot be handed to {NAME}"))),
            }
        };
    }
    for_types!(view).map_err(|error| complain(error.to_string()))
}

/// A result of the library on our side.
pub(crate) fn fetch(name: &str, value: &DynValue) -> Result<Tensor, RuntimeError> {
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(RuntimeError::NotATensor { node: format!("`{name}`"), kind: "no tensor" });
    };
    let sizes = |shape: &ort::value::Shape| -> Vec<usize> {
        shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect()
    };
    macro_rules! take {
        ($($ours:ident $theirs:ident $rust:ty),*) => {
            match ty {
                $(TensorElementType::$theirs => {
                    let (shape, elements) = value.try_extract_tensor::<$rust>().map_err(refused)?;
                    Tensor::from_vec(sizes(shape), elements.to_vec())
                })*
                TensorElementType::Bool => {
                    let (shape, elements) = value.try_extract_tensor::<bool>().map_err(refused)?;
                    Tensor::from_bools(sizes(shape), elements)
                }
                TensorElementType::String => {
                    let (shape, elements) = value.try_extract_strings().map_err(refused)?;
                    Tensor::from_strings(sizes(shape), &elements)
                }
                other => return Err(refused(format!("value `{name}` has elements of type {other:?}"))),
            }
        };
    }
    Ok(for_types!(take))
}
