//! Numbers of any type in the two forms that sums of products are computed in.
//!
//! Floating-point kernels compute in `f64` whatever the element type, and round once at the end: products
//! of two binary32 numbers are exact there. Integer kernels compute in `i64` modulo 2^64, which agrees
//! with arithmetic modulo the size of every narrower type.

use half::{bf16, f16};
use optix_ir::{DType, Tensor};

use crate::call::{Call, OpError};

/// Elements of a tensor for arithmetic.
#[derive(Clone, Debug)]
pub(crate) enum Numbers {
    /// Of a floating-point type.
    Floats(Vec<f64>),
    /// Of an integer type or bool; `uint64` as the `i64` with the same bits.
    Integers(Vec<i64>),
}

impl Numbers {
    /// The elements of a numeric tensor; complex ones are not among them.
    pub(crate) fn of(call: &Call<'_>, tensor: &Tensor) -> Result<Numbers, OpError> {
        let dtype = tensor.dtype();
        let result = match dtype {
            DType::U64 => tensor
                .to_slice::<u64>()
                .map(|values| Numbers::Integers(values.iter().map(|&value| value as i64).collect())),
            DType::Bool => tensor.to_i64s().map(Numbers::Integers),
            _ if dtype.is_integer() => tensor.to_i64s().map(Numbers::Integers),
            _ => tensor.to_f64s().map(Numbers::Floats),
        };
        result.map_err(|_| call.unsupported(format!("element type {dtype}")))
    }

    /// A tensor of these numbers. Floats are rounded to nearest even, integers wrap around.
    pub(crate) fn tensor(self, call: &Call<'_>, dtype: DType, shape: Vec<usize>) -> Result<Tensor, OpError> {
        match self {
            Numbers::Floats(values) => float_tensor(call, dtype, shape, &values),
            Numbers::Integers(values) => integer_tensor(call, dtype, shape, &values),
        }
    }
}

/// A tensor of floats, each rounded once to the nearest, ties to even.
pub(crate) fn float_tensor(
    call: &Call<'_>,
    dtype: DType,
    shape: Vec<usize>,
    values: &[f64],
) -> Result<Tensor, OpError> {
    Ok(match dtype {
        DType::F64 => Tensor::from_vec(shape, values.to_vec()),
        DType::F32 => Tensor::from_vec(shape, values.iter().map(|&x| x as f32).collect::<Vec<f32>>()),
        DType::F16 => {
            Tensor::from_vec(shape, values.iter().map(|&x| f16::from_f32(to_odd(x))).collect::<Vec<f16>>())
        }
        DType::BF16 => {
            Tensor::from_vec(shape, values.iter().map(|&x| bf16::from_f32(to_odd(x))).collect::<Vec<bf16>>())
        }
        _ => return Err(call.unsupported(format!("element type {dtype}"))),
    })
}

/// Rounding to a type, for operators that the standard defines by a chain of operators of that type.
pub(crate) fn narrow(dtype: DType) -> fn(f64) -> f64 {
    match dtype {
        DType::F16 => |value| f16::from_f32(to_odd(value)).to_f64(),
        DType::BF16 => |value| bf16::from_f32(to_odd(value)).to_f64(),
        DType::F32 => |value| f64::from(value as f32),
        _ => |value| value,
    }
}

/// Rounds to binary32 such that rounding the result to a narrower type is as if it was rounded directly:
/// a number in between goes to its neighbour with an odd last bit.
fn to_odd(value: f64) -> f32 {
    let rounded = value as f32;
    if rounded.is_nan() || f64::from(rounded) == value || rounded.to_bits() & 1 == 1 {
        return rounded;
    }
    // The last bit is even, so the odd neighbour is on the other side of the exact number.
    let away = f64::from(rounded).abs() < value.abs();
    f32::from_bits(if away { rounded.to_bits() + 1 } else { rounded.to_bits() - 1 })
}

/// A tensor of integers modulo the size of its type.
pub(crate) fn integer_tensor(
    call: &Call<'_>,
    dtype: DType,
    shape: Vec<usize>,
    values: &[i64],
) -> Result<Tensor, OpError> {
    macro_rules! narrow {
        ($rust:ty) => {
            Tensor::from_vec(shape, values.iter().map(|&value| value as $rust).collect::<Vec<$rust>>())
        };
    }
    Ok(match dtype {
        DType::I64 => Tensor::from_vec(shape, values.to_vec()),
        DType::U64 => narrow!(u64),
        DType::I32 => narrow!(i32),
        DType::U32 => narrow!(u32),
        DType::I16 => narrow!(i16),
        DType::U16 => narrow!(u16),
        DType::I8 => narrow!(i8),
        DType::U8 => narrow!(u8),
        DType::Bool => Tensor::from_bools(shape, &values.iter().map(|&value| value != 0).collect::<Vec<_>>()),
        DType::U4 | DType::I4 | DType::U2 | DType::I2 => {
            let mask = (1u8 << dtype.bits()) - 1;
            Tensor::from_codes(
                dtype,
                shape,
                &values.iter().map(|&value| value as u8 & mask).collect::<Vec<_>>(),
            )
        }
        _ => return Err(call.unsupported(format!("element type {dtype}"))),
    })
}

/// A tensor of whole numbers of any numeric type.
pub(crate) fn whole_tensor(
    call: &Call<'_>,
    dtype: DType,
    shape: Vec<usize>,
    values: &[i64],
) -> Result<Tensor, OpError> {
    if dtype.is_integer() || dtype == DType::Bool {
        integer_tensor(call, dtype, shape, values)
    } else {
        float_tensor(call, dtype, shape, &values.iter().map(|&value| value as f64).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_once() {
        // Just above the middle of two neighbours; binary32 cannot tell it from the middle.
        let value = 1.0 + 2f64.powi(-11) + 2f64.powi(-40);
        assert_eq!(f16::from_f32(to_odd(value)), f16::from_f32(1.0 + 2f32.powi(-10)));
        assert_eq!(f16::from_f32(to_odd(-value)), f16::from_f32(-1.0 - 2f32.powi(-10)));
        let value = 1.0 + 2f64.powi(-11) - 2f64.powi(-40);
        assert_eq!(f16::from_f32(to_odd(value)), f16::ONE);
        for exact in [0.0, -0.0, 1.5, f64::INFINITY, 1e300] {
            assert_eq!(f16::from_f32(to_odd(exact)), f16::from_f32(exact as f32), "{exact}");
        }
        assert!(to_odd(f64::NAN).is_nan());
    }
}
