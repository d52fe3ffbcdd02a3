//! Floating-point types of 4 and 8 bits.

use crate::dtype::DType;

/// The number a code of an 8- or 4-bit float stands for.
///
/// # Panics
/// When `dtype` is not such a type.
pub fn to_f32(dtype: DType, code: u8) -> f32 {
    let _ = code;
    panic!("{dtype} is not a small float")
}
