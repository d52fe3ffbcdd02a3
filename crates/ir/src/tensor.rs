//! The one host tensor type: weights, activations and calibration data alike.

use std::borrow::Cow;
use std::fmt;

use bytemuck::Pod;
use bytes::Bytes;
use half::{bf16, f16};

use crate::dtype::DType;

#[cfg(target_endian = "big")]
compile_error!("tensor payloads are little-endian and read in place: big-endian machines are not supported");

/// A dense tensor in row-major order.
///
/// `bytes` holds the little-endian payload exactly as ONNX's `raw_data` would: sub-byte types packed,
/// low bits first; bool one byte each; complex as pairs. Strings, which have no fixed size, are stored
/// one after the other, each as a `u32` length and its bytes.
/// Cloning is free (the payload is shared); writing means making a new payload, so an original stays
/// comparable. Nothing may assume that `bytes` is aligned: read through the methods here.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
}

/// Why a tensor could not be made or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The product of the dimensions does not fit in memory arithmetic.
    #[error("shape {0:?} has more elements than can be addressed")]
    ShapeOverflow(Vec<usize>),
    /// Payload and shape disagree.
    #[error("a {dtype} tensor of shape {shape:?} takes {expected} bytes, but {found} are given")]
    WrongLength {
        /// The element type.
        dtype: DType,
        /// The dimensions.
        shape: Vec<usize>,
        /// Bytes the shape asks for.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// Read as another type than it has.
    #[error("the tensor holds {found}, not {wanted}")]
    WrongType {
        /// What the reader asked for.
        wanted: String,
        /// What the tensor holds.
        found: DType,
    },
    /// A string payload whose lengths do not add up.
    #[error("the payload of a string tensor of {0} elements is damaged")]
    BadStrings(usize),
}

/// A Rust type that is one tensor element in memory.
pub trait Element: Pod + PartialEq + fmt::Debug + Send + Sync {
    /// The element type it stands for.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => {$(
        impl Element for $rust { const DTYPE: DType = DType::$dtype; }
    )*};
}
elements!(f32 => F32, f64 => F64, f16 => F16, bf16 => BF16, u8 => U8, i8 => I8, u16 => U16, i16 => I16,
          u32 => U32, i32 => I32, u64 => U64, i64 => I64, [f32; 2] => Complex64, [f64; 2] => Complex128);

/// A vector that lends its memory to `Bytes`.
struct Owned<T>(Vec<T>);
impl<T: Pod> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Number of elements of a shape; `None` on overflow. An empty shape is a scalar: one element.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the product zero, however large the rest.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

impl Tensor {
    /// A tensor over an existing payload.
    ///
    /// # Errors
    /// When the payload's length is not what dtype and shape ask for.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>, bytes: Bytes) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        let count = element_count(&shape).ok_or_else(|| TensorError::ShapeOverflow(shape.clone()))?;
        if dtype == DType::String {
            let tensor = Tensor { dtype, shape, bytes };
            if tensor.string_ranges().is_none_or(|ranges| ranges.len() != count) {
                return Err(TensorError::BadStrings(count));
            }
            return Ok(tensor);
        }
        let expected = dtype.byte_len(count).ok_or_else(|| TensorError::ShapeOverflow(shape.clone()))?;
        if expected != bytes.len() {
            return Err(TensorError::WrongLength { dtype, shape, expected, found: bytes.len() });
        }
        Ok(Tensor { dtype, shape, bytes })
    }

    /// A tensor that takes over a vector, without copying it.
    ///
    /// # Panics
    /// When the vector's length is not the shape's element count.
    pub fn from_vec<T: Element>(shape: impl Into<Vec<usize>>, data: Vec<T>) -> Tensor {
        let shape = shape.into();
        assert_eq!(element_count(&shape), Some(data.len()), "element count of shape {shape:?}");
        Tensor { dtype: T::DTYPE, shape, bytes: Bytes::from_owner(Owned(data)) }
    }

    /// How many elements are NaN and how many infinite. Types without such values have none; float8 and
    /// complex elements are not looked into.
    pub fn non_finite(&self) -> (usize, usize) {
        fn count<const N: usize>(bytes: &[u8], infinity: u64, number: fn([u8; N]) -> u64) -> (usize, usize) {
            // Without its sign a float is ordered as its bits are: infinity first, then every NaN.
            let sign = !(1u64 << (8 * N - 1));
            bytes
                .as_chunks::<N>()
                .0
                .iter()
                .map(|chunk| number(*chunk) & sign)
                .fold((0, 0), |(nan, inf), bits| {
                    (nan + usize::from(bits > infinity), inf + usize::from(bits == infinity))
                })
        }
        match self.dtype {
            DType::F32 => count(&self.bytes, 0x7f80_0000, |chunk| u32::from_le_bytes(chunk).into()),
            DType::F64 => count(&self.bytes, 0x7ff0_0000_0000_0000, u64::from_le_bytes),
            DType::F16 => count(&self.bytes, 0x7c00, |chunk| u16::from_le_bytes(chunk).into()),
            DType::BF16 => count(&self.bytes, 0x7f80, |chunk| u16::from_le_bytes(chunk).into()),
            _ => (0, 0),
        }
    }

    /// A rank-0 tensor.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::from_vec(vec![], vec![value])
    }

    /// A rank-1 tensor of 64-bit integers: ONNX's form of shapes, axes and indices.
    pub fn from_i64s(values: &[i64]) -> Tensor {
        Tensor::from_vec(vec![values.len()], values.to_vec())
    }

    /// A bool tensor.
    ///
    /// # Panics
    /// When the length is not the shape's element count.
    pub fn from_bools(shape: impl Into<Vec<usize>>, data: &[bool]) -> Tensor {
        let bytes: Vec<u8> = data.iter().map(|&bit| u8::from(bit)).collect();
        Tensor::from_vec(shape, bytes).with_dtype_unchecked(DType::Bool)
    }

    /// A string tensor.
    ///
    /// # Panics
    /// When the length is not the shape's element count, or one string is over 4 GiB.
    pub fn from_strings<S: AsRef<[u8]>>(shape: impl Into<Vec<usize>>, data: &[S]) -> Tensor {
        let shape = shape.into();
        assert_eq!(element_count(&shape), Some(data.len()), "element count of shape {shape:?}");
        let mut bytes = Vec::new();
        for text in data {
            let text = text.as_ref();
            let length = u32::try_from(text.len()).expect("a string element is under 4 GiB");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(text);
        }
        Tensor { dtype: DType::String, shape, bytes: bytes.into() }
    }

    /// A tensor from one number an element, packed as the type asks; each number is the element's bit
    /// pattern in its low bits. For types of at most 8 bits.
    ///
    /// # Panics
    /// When the type is wider than 8 bits or the length is not the shape's element count.
    pub fn from_codes(dtype: DType, shape: impl Into<Vec<usize>>, codes: &[u8]) -> Tensor {
        let shape = shape.into();
        assert_eq!(element_count(&shape), Some(codes.len()), "element count of shape {shape:?}");
        let bytes = match dtype.bits() {
            8 => codes.to_vec(),
            bits @ (2 | 4 | 6) => {
                let (mask, count) = ((1u8 << bits) - 1, codes.len());
                let mut bytes = vec![0u8; dtype.byte_len(count).expect("no more bytes than codes")];
                for (index, code) in codes.iter().enumerate() {
                    // A 6-bit code may straddle two bytes.
                    let wide = u16::from(code & mask) << (index * bits % 8);
                    let [low, high] = wide.to_le_bytes();
                    bytes[index * bits / 8] |= low;
                    if high != 0 {
                        bytes[index * bits / 8 + 1] |= high;
                    }
                }
                bytes
            }
            bits => panic!("{dtype} elements take {bits} bits, codes are for at most 8"),
        };
        Tensor { dtype, shape, bytes: bytes.into() }
    }

    /// All elements zero (false, empty string).
    ///
    /// # Errors
    /// When the shape overflows. The caller bounds the size.
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        let count = element_count(&shape).ok_or_else(|| TensorError::ShapeOverflow(shape.clone()))?;
        let bytes = if dtype == DType::String { count.checked_mul(4) } else { dtype.byte_len(count) };
        let bytes = bytes.ok_or_else(|| TensorError::ShapeOverflow(shape.clone()))?;
        Ok(Tensor { dtype, shape, bytes: vec![0; bytes].into() })
    }

    fn with_dtype_unchecked(mut self, dtype: DType) -> Tensor {
        self.dtype = dtype;
        self
    }

    /// The same payload under another shape with the same element count.
    ///
    /// # Errors
    /// When the element counts differ.
    pub fn reshaped(&self, shape: impl Into<Vec<usize>>) -> Result<Tensor, TensorError> {
        let shape = shape.into();
        match element_count(&shape) {
            Some(count) if count == self.len() => {
                Ok(Tensor { dtype: self.dtype, shape, bytes: self.bytes.clone() })
            }
            Some(_) => Err(TensorError::WrongLength {
                dtype: self.dtype,
                expected: element_count(&shape).and_then(|n| self.dtype.byte_len(n)).unwrap_or(usize::MAX),
                shape,
                found: self.bytes.len(),
            }),
            None => Err(TensorError::ShapeOverflow(shape)),
        }
    }

    /// The same bits read as another type of the same width (int8 as uint8, say).
    ///
    /// # Errors
    /// When the widths differ or either type is string.
    pub fn bitcast(&self, dtype: DType) -> Result<Tensor, TensorError> {
        if dtype.bits() != self.dtype.bits() || dtype.bits() == 0 {
            return Err(TensorError::WrongType { wanted: dtype.to_string(), found: self.dtype });
        }
        Ok(self.clone().with_dtype_unchecked(dtype))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        element_count(&self.shape).expect("checked when made")
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The payload; see the type's documentation for its layout.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The elements, without copying when the payload happens to be aligned.
    ///
    /// # Errors
    /// When the tensor holds another type than `T`.
    pub fn to_slice<T: Element>(&self) -> Result<Cow<'_, [T]>, TensorError> {
        if self.dtype != T::DTYPE {
            return Err(TensorError::WrongType { wanted: T::DTYPE.to_string(), found: self.dtype });
        }
        Ok(cast(&self.bytes))
    }

    /// The elements of a bool tensor; any non-zero byte is true.
    ///
    /// # Errors
    /// When the tensor is not bool.
    pub fn bools(&self) -> Result<Vec<bool>, TensorError> {
        match self.dtype {
            DType::Bool => Ok(self.bytes.iter().map(|&byte| byte != 0).collect()),
            found => Err(TensorError::WrongType { wanted: "bool".into(), found }),
        }
    }

    /// The elements of a string tensor, as raw bytes (UTF-8 by the standard, not checked).
    ///
    /// # Errors
    /// When the tensor does not hold strings.
    pub fn strings(&self) -> Result<Vec<&[u8]>, TensorError> {
        match self.dtype {
            DType::String => {
                let ranges = self.string_ranges().ok_or(TensorError::BadStrings(self.len()))?;
                Ok(ranges.into_iter().map(|range| &self.bytes[range]).collect())
            }
            found => Err(TensorError::WrongType { wanted: "string".into(), found }),
        }
    }

    fn string_ranges(&self) -> Option<Vec<std::ops::Range<usize>>> {
        let (mut ranges, mut at) = (Vec::new(), 0usize);
        while at < self.bytes.len() {
            let length = self.bytes.get(at..at.checked_add(4)?)?;
            let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
            let start = at + 4;
            at = start.checked_add(length).filter(|&end| end <= self.bytes.len())?;
            ranges.push(start..at);
        }
        Some(ranges)
    }

    /// One number an element, each the element's bit pattern zero-extended: the inverse of
    /// [`Tensor::from_codes`].
    ///
    /// # Errors
    /// When the elements are wider than 8 bits.
    pub fn codes(&self) -> Result<Cow<'_, [u8]>, TensorError> {
        match self.dtype.bits() {
            8 => Ok(Cow::Borrowed(&self.bytes)),
            bits @ (2 | 4 | 6) => {
                let mask = (1u8 << bits) - 1;
                let code = |index: usize| {
                    let at = index * bits / 8;
                    let high = self.bytes.get(at + 1).copied().unwrap_or(0);
                    (u16::from_le_bytes([self.bytes[at], high]) >> (index * bits % 8)) as u8 & mask
                };
                Ok((0..self.len()).map(code).collect())
            }
            _ => Err(TensorError::WrongType { wanted: "a type of at most 8 bits".into(), found: self.dtype }),
        }
    }

    /// Every element as `f64`. Exact for every type but 64-bit integers beyond 2^53, which are rounded.
    ///
    /// # Errors
    /// For string and complex tensors.
    pub fn to_f64s(&self) -> Result<Vec<f64>, TensorError> {
        use DType::*;
        Ok(match self.dtype {
            F32 => cast::<f32>(&self.bytes).iter().map(|&x| x as f64).collect(),
            F64 => cast::<f64>(&self.bytes).into_owned(),
            F16 => cast::<f16>(&self.bytes).iter().map(|x| x.to_f64()).collect(),
            BF16 => cast::<bf16>(&self.bytes).iter().map(|x| x.to_f64()).collect(),
            I64 => cast::<i64>(&self.bytes).iter().map(|&x| x as f64).collect(),
            U64 => cast::<u64>(&self.bytes).iter().map(|&x| x as f64).collect(),
            F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F4E2M1 | F8E8M0 | F6E2M3 | F6E3M2 => {
                let to_f32 = |&code: &u8| crate::minifloat::to_f32(self.dtype, code) as f64;
                self.codes()?.iter().map(to_f32).collect()
            }
            String | Complex64 | Complex128 => {
                return Err(TensorError::WrongType { wanted: "real numbers".into(), found: self.dtype });
            }
            _ => self.to_i64s()?.into_iter().map(|x| x as f64).collect(),
        })
    }

    /// Every element of an integer or bool tensor as `i64`; `u64` beyond `i64::MAX` saturates.
    ///
    /// # Errors
    /// For every other type.
    pub fn to_i64s(&self) -> Result<Vec<i64>, TensorError> {
        use DType::*;
        macro_rules! widen {
            ($rust:ty) => {
                cast::<$rust>(&self.bytes).iter().map(|&x| i64::from(x)).collect()
            };
        }
        Ok(match self.dtype {
            I64 => cast::<i64>(&self.bytes).into_owned(),
            I32 => widen!(i32),
            I16 => widen!(i16),
            I8 => widen!(i8),
            U32 => widen!(u32),
            U16 => widen!(u16),
            U8 => widen!(u8),
            U64 => cast::<u64>(&self.bytes).iter().map(|&x| i64::try_from(x).unwrap_or(i64::MAX)).collect(),
            Bool => self.bytes.iter().map(|&byte| i64::from(byte != 0)).collect(),
            U4 | U2 => self.codes()?.iter().map(|&code| i64::from(code)).collect(),
            I4 | I2 => {
                // Sign extension: the pattern's top bit counts negative.
                let half = 1i64 << (self.dtype.bits() - 1);
                self.codes()?.iter().map(|&code| (i64::from(code) ^ half) - half).collect()
            }
            found => return Err(TensorError::WrongType { wanted: "integers".into(), found }),
        })
    }

    /// The only element of a one-element numeric tensor.
    pub fn single(&self) -> Option<f64> {
        if self.len() == 1 { self.to_f64s().ok().map(|values| values[0]) } else { None }
    }
}

/// Reads a little-endian payload as elements; copies only when it is not aligned.
fn cast<T: Pod>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(slice) => Cow::Borrowed(slice),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        match self.to_f64s() {
            Ok(values) if values.len() <= 16 => write!(f, " {values:?}"),
            Ok(values) => write!(f, " [{} {} {} ...]", values[0], values[1], values[2]),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinity_are_counted() {
        let odd = [1.0, f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0, 1e-45];
        assert_eq!(Tensor::from_vec(vec![8], odd.to_vec()).non_finite(), (2, 2));
        let wide: Vec<f64> = odd.iter().map(|&x| f64::from(x)).collect();
        assert_eq!(Tensor::from_vec(vec![8], wide).non_finite(), (2, 2));
        let half: Vec<f16> = odd.iter().map(|&x| f16::from_f32(x)).collect();
        // The greatest float32 is beyond float16.
        assert_eq!(Tensor::from_vec(vec![8], half).non_finite(), (2, 3));
        let brain: Vec<bf16> = odd.iter().map(|&x| bf16::from_f32(x)).collect();
        assert_eq!(Tensor::from_vec(vec![8], brain).non_finite(), (2, 3));
        assert_eq!(Tensor::from_i64s(&[-1, i64::MAX]).non_finite(), (0, 0));
    }

    #[test]
    fn packed_codes_round_trip() {
        for dtype in [DType::U4, DType::I4, DType::F4E2M1, DType::U2, DType::I2, DType::F6E2M3, DType::F6E3M2]
        {
            let mask = (1u8 << dtype.bits()) - 1;
            for count in 0..9usize {
                let codes: Vec<u8> = (0..count as u8).map(|i| i.wrapping_mul(5) & mask).collect();
                let tensor = Tensor::from_codes(dtype, vec![count], &codes);
                assert_eq!(Some(tensor.bytes().len()), dtype.byte_len(count));
                assert_eq!(tensor.codes().unwrap().as_ref(), codes);
            }
        }
        assert_eq!(Tensor::from_codes(DType::I4, vec![2], &[0x8, 0x7]).to_i64s().unwrap(), [-8, 7]);
        assert_eq!(Tensor::from_codes(DType::I2, vec![4], &[0, 1, 2, 3]).to_i64s().unwrap(), [0, 1, -2, -1]);
        assert_eq!(Tensor::from_codes(DType::I4, vec![3], &[1, 2, 3]).bytes().as_ref(), [0x21, 0x03]);
    }

    #[test]
    fn lengths_are_checked() {
        assert!(Tensor::new(DType::F32, vec![2], Bytes::from_static(&[0; 7])).is_err());
        assert!(Tensor::new(DType::F32, vec![usize::MAX, 2], Bytes::new()).is_err());
        assert!(Tensor::new(DType::F32, vec![usize::MAX, 0], Bytes::new()).unwrap().is_empty());
        assert!(Tensor::new(DType::String, vec![1], Bytes::from_static(&[9, 0, 0, 0, b'a'])).is_err());
    }

    #[test]
    fn strings_round_trip() {
        let tensor = Tensor::from_strings(vec![3], &["a", "", "two words"]);
        assert_eq!(tensor.strings().unwrap(), [b"a".as_slice(), b"", b"two words"]);
        assert_eq!(Tensor::zeros(DType::String, vec![2]).unwrap().strings().unwrap(), [b"", b""]);
    }

    #[test]
    fn unaligned_payloads_read_right() {
        let mut payload = vec![0u8];
        payload.extend_from_slice(&1.5f32.to_le_bytes());
        payload.extend_from_slice(&(-2f32).to_le_bytes());
        let tensor = Tensor::new(DType::F32, vec![2], Bytes::from(payload).slice(1..)).unwrap();
        assert_eq!(tensor.to_slice::<f32>().unwrap().as_ref(), [1.5, -2.0]);
    }
}
