//! Element types of tensors: every one of ONNX's `TensorProto.DataType`.

use std::fmt;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $bits:literal;)*) => {
        /// The element type of a tensor; the discriminant is ONNX's `TensorProto.DataType` number.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum DType { $($(#[$doc])* $variant = $code,)* }

        impl DType {
            /// Every element type, in the order of ONNX's numbers.
            pub const ALL: &'static [DType] = &[$(DType::$variant,)*];

            /// The type with ONNX's number `code`; `None` for 0 (undefined) and unknown numbers.
            pub fn from_onnx(code: i32) -> Option<DType> {
                match code { $($code => Some(DType::$variant),)* _ => None }
            }

            /// Name in ONNX's text syntax, such as `float` or `uint8`.
            pub fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// The type with that name in ONNX's text syntax.
            pub fn from_name(name: &str) -> Option<DType> {
                match name { $($name => Some(DType::$variant),)* _ => None }
            }

            /// Bits of one element; 0 for strings, whose elements have no fixed size.
            pub fn bits(self) -> usize {
                match self { $(DType::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    /// IEEE binary32.
    F32 = 1, "float", 32;
    /// Unsigned 8-bit integer.
    U8 = 2, "uint8", 8;
    /// Signed 8-bit integer.
    I8 = 3, "int8", 8;
    /// Unsigned 16-bit integer.
    U16 = 4, "uint16", 16;
    /// Signed 16-bit integer.
    I16 = 5, "int16", 16;
    /// Signed 32-bit integer.
    I32 = 6, "int32", 32;
    /// Signed 64-bit integer.
    I64 = 7, "int64", 64;
    /// Byte strings (UTF-8 by the standard); see [`crate::Tensor::strings`].
    String = 8, "string", 0;
    /// One byte an element, 0 or 1.
    Bool = 9, "bool", 8;
    /// IEEE binary16.
    F16 = 10, "float16", 16;
    /// IEEE binary64.
    F64 = 11, "double", 64;
    /// Unsigned 32-bit integer.
    U32 = 12, "uint32", 32;
    /// Unsigned 64-bit integer.
    U64 = 13, "uint64", 64;
    /// Pair of binary32: real, imaginary.
    Complex64 = 14, "complex64", 64;
    /// Pair of binary64: real, imaginary.
    Complex128 = 15, "complex128", 128;
    /// bfloat16: the upper half of binary32.
    BF16 = 16, "bfloat16", 16;
    /// 8-bit float, 4 exponent bits, no infinities, one NaN a sign.
    F8E4M3FN = 17, "float8e4m3fn", 8;
    /// As `F8E4M3FN` with bias 8, no negative zero, NaN at 0x80.
    F8E4M3FNUZ = 18, "float8e4m3fnuz", 8;
    /// 8-bit float, 5 exponent bits, infinities and NaN as IEEE.
    F8E5M2 = 19, "float8e5m2", 8;
    /// As `F8E5M2` with bias 16, no infinities, no negative zero, NaN at 0x80.
    F8E5M2FNUZ = 20, "float8e5m2fnuz", 8;
    /// Unsigned 4-bit integer, two a byte, low nibble first.
    U4 = 21, "uint4", 4;
    /// Signed 4-bit integer, two a byte, low nibble first.
    I4 = 22, "int4", 4;
    /// 4-bit float (0, 0.5, 1, 1.5, 2, 3, 4, 6 and negatives), two a byte, low nibble first.
    F4E2M1 = 23, "float4e2m1", 4;
    /// Power-of-two scale, bias 127, NaN at 0xFF.
    F8E8M0 = 24, "float8e8m0", 8;
    /// Unsigned 2-bit integer, four a byte, low bits first.
    U2 = 25, "uint2", 2;
    /// Signed 2-bit integer, four a byte, low bits first.
    I2 = 26, "int2", 2;
    /// 6-bit float, 2 exponent bits, a dense bit stream of four elements in three bytes, low bits first.
    F6E2M3 = 27, "float6e2m3", 6;
    /// 6-bit float, 3 exponent bits, packed as `F6E2M3`.
    F6E3M2 = 28, "float6e3m2", 6;
}

impl DType {
    /// ONNX's number for the type.
    pub fn onnx(self) -> i32 {
        self as i32
    }

    /// Bytes that `count` elements take, packed; `None` on overflow and for strings.
    pub fn byte_len(self, count: usize) -> Option<usize> {
        match self.bits() {
            0 => None,
            bits if bits >= 8 => count.checked_mul(bits / 8),
            // In two steps, so that no count overflows: whole groups of eight elements, then the rest.
            bits => (count / 8).checked_mul(bits)?.checked_add((count % 8 * bits).div_ceil(8)),
        }
    }

    /// Whether several elements share a byte.
    pub fn is_packed(self) -> bool {
        matches!(self.bits(), 2 | 4 | 6)
    }

    /// Any floating-point type, complex ones not included.
    pub fn is_float(self) -> bool {
        use DType::*;
        matches!(self, F32 | F16 | F64 | BF16 | F8E4M3FN | F8E4M3FNUZ | F8E5M2 | F8E5M2FNUZ | F4E2M1 | F8E8M0)
    }

    /// Any integer type, bool not included.
    pub fn is_integer(self) -> bool {
        self.integer_range().is_some()
    }

    /// Integer types that hold negative numbers.
    pub fn is_signed_integer(self) -> bool {
        self.integer_range().is_some_and(|(low, _)| low < 0)
    }

    /// Least and greatest number an integer type holds; `None` for the other types.
    pub fn integer_range(self) -> Option<(i128, i128)> {
        use DType::*;
        let signed = match self {
            I2 | I4 | I8 | I16 | I32 | I64 => true,
            U2 | U4 | U8 | U16 | U32 | U64 => false,
            _ => return None,
        };
        let bits = self.bits();
        Some(if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_a_bijection() {
        for (index, &dtype) in DType::ALL.iter().enumerate() {
            assert_eq!(dtype.onnx() as usize, index + 1, "{dtype} has ONNX's number");
            assert_eq!(DType::from_onnx(dtype.onnx()), Some(dtype));
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(DType::from_onnx(0), None);
        assert_eq!(DType::from_onnx(99), None);
    }

    #[test]
    fn packed_lengths_round_up() {
        assert_eq!(DType::I4.byte_len(3), Some(2));
        assert_eq!(DType::U2.byte_len(5), Some(2));
        assert_eq!([0, 1, 2, 3, 4, 5].map(|n| DType::F6E2M3.byte_len(n)), [0, 1, 2, 3, 3, 4].map(Some));
        assert_eq!(DType::U2.byte_len(0), Some(0));
        assert_eq!(DType::F64.byte_len(usize::MAX), None);
        assert_eq!(DType::I4.byte_len(usize::MAX), Some(usize::MAX / 2 + 1));
        assert_eq!(DType::String.byte_len(1), None);
    }

    #[test]
    fn integer_ranges() {
        assert_eq!(DType::I4.integer_range(), Some((-8, 7)));
        assert_eq!(DType::U64.integer_range(), Some((0, u64::MAX as i128)));
        assert_eq!(DType::I64.integer_range(), Some((i64::MIN as i128, i64::MAX as i128)));
        assert_eq!(DType::Bool.integer_range(), None);
    }
}
