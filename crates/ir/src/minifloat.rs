//! Floating-point types of 4, 6 and 8 bits.
//!
//! Sources: "FP8 Formats for Deep Learning" (arXiv 2209.05433), "8-bit Numerical Formats for Deep Neural
//! Networks" (arXiv 2206.02915) for the UZ forms, OCP Microscaling Formats (MX) v1.0 for E2M1, E2M3, E3M2 and
//! E8M0, and the ONNX documentation of `Cast`.

use std::sync::OnceLock;

use crate::dtype::DType;

/// How a value between two powers of two becomes `float8e8m0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleRounding {
    /// To the next power of two away from zero.
    #[default]
    Up,
    /// Towards zero.
    Down,
    /// To the nearer one, ties up.
    Nearest,
}

struct Layout {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    infinity: bool,
    /// NaN is the code of negative zero, and there is no negative zero.
    unsigned_zero: bool,
    /// Whether there is a NaN at all.
    nan: bool,
}

fn layout(dtype: DType) -> Layout {
    let (exponent_bits, mantissa_bits, bias, infinity, unsigned_zero, nan) = match dtype {
        DType::F8E4M3FN => (4, 3, 7, false, false, true),
        DType::F8E4M3FNUZ => (4, 3, 8, false, true, true),
        DType::F8E5M2 => (5, 2, 15, true, false, true),
        DType::F8E5M2FNUZ => (5, 2, 16, false, true, true),
        DType::F4E2M1 => (2, 1, 1, false, false, false),
        DType::F6E2M3 => (2, 3, 1, false, false, false),
        DType::F6E3M2 => (3, 2, 3, false, false, false),
        other => panic!("{other} is not a small float"),
    };
    Layout { exponent_bits, mantissa_bits, bias, infinity, unsigned_zero, nan }
}

/// The number a code of a small float stands for. Exact: every code is an `f32`.
///
/// # Panics
/// When `dtype` is not a small float.
pub fn to_f32(dtype: DType, code: u8) -> f32 {
    if dtype == DType::F8E8M0 {
        return if code == 0xFF { f32::NAN } else { 2f64.powi(i32::from(code) - 127) as f32 };
    }
    let layout = layout(dtype);
    let width = 1 + layout.exponent_bits + layout.mantissa_bits;
    let code = u32::from(code) & ((1 << width) - 1);
    let negative = code >> (width - 1) == 1;
    let magnitude = code & ((1 << (width - 1)) - 1);
    let (exponent, mantissa) =
        (magnitude >> layout.mantissa_bits, magnitude & ((1 << layout.mantissa_bits) - 1));
    if layout.unsigned_zero && negative && magnitude == 0 {
        return f32::NAN;
    }
    let top = (1 << layout.exponent_bits) - 1;
    if layout.infinity && exponent == top {
        return match (mantissa, negative) {
            (0, false) => f32::INFINITY,
            (0, true) => f32::NEG_INFINITY,
            _ => f32::NAN,
        };
    }
    if layout.nan && !layout.unsigned_zero && !layout.infinity && magnitude == (1 << (width - 1)) - 1 {
        return f32::NAN;
    }
    let scale = 2f64.powi(exponent.max(1) as i32 - layout.bias - layout.mantissa_bits as i32);
    let implicit = if exponent == 0 { 0 } else { 1 << layout.mantissa_bits };
    let value = f64::from(mantissa + implicit) * scale;
    (if negative { -value } else { value }) as f32
}

/// All finite magnitudes of a type in ascending order with their codes.
fn magnitudes(dtype: DType) -> &'static [(f64, u8)] {
    const TYPES: [DType; 7] = [
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F4E2M1,
        DType::F6E2M3,
        DType::F6E3M2,
    ];
    static TABLES: OnceLock<Vec<Vec<(f64, u8)>>> = OnceLock::new();
    let tables = TABLES.get_or_init(|| {
        let table = |dtype: &DType| {
            let codes = 0..1u16 << (dtype.bits() - 1);
            let values = codes.map(|code| (f64::from(to_f32(*dtype, code as u8)), code as u8));
            values.filter(|(value, _)| value.is_finite()).collect()
        };
        TYPES.iter().map(table).collect()
    });
    let index = TYPES
        .iter()
        .position(|known| *known == dtype)
        .unwrap_or_else(|| panic!("{dtype} is not a small float"));
    &tables[index]
}

/// The code for a number: nearest, ties to even. Beyond the greatest number it becomes that number with
/// `saturate`, and otherwise infinity where the type has one, else NaN; infinity likewise. Types without
/// NaN (4 and 6 bits) always saturate, and NaN becomes their negative zero.
///
/// # Panics
/// When `dtype` is not a small float, or is `float8e8m0`: see [`scale_from_f64`].
pub fn from_f64(dtype: DType, value: f64, saturate: bool) -> u8 {
    let layout = layout(dtype);
    let width = 1 + layout.exponent_bits + layout.mantissa_bits;
    let sign_bit = 1u8 << (width - 1);
    let sign = if value.is_sign_negative() { sign_bit } else { 0 };
    let table = magnitudes(dtype);
    let (greatest, greatest_code) = *table.last().expect("every type has numbers");
    let nan = if layout.unsigned_zero {
        sign_bit
    } else if layout.infinity {
        // A quiet NaN: the top mantissa bit set.
        sign | (((1 << layout.exponent_bits) - 1) << layout.mantissa_bits | 1 << (layout.mantissa_bits - 1))
            as u8
    } else {
        sign | (sign_bit - 1)
    };
    if value.is_nan() {
        return if layout.nan { nan } else { sign_bit };
    }
    let magnitude = value.abs();
    let beyond = |code: u8| match () {
        () if saturate || !layout.nan => sign | code,
        () if layout.infinity => sign | (((1u32 << layout.exponent_bits) - 1) << layout.mantissa_bits) as u8,
        () => nan,
    };
    if magnitude.is_infinite() {
        return beyond(greatest_code);
    }
    let above = table.partition_point(|(known, _)| *known < magnitude);
    let code = match table.get(above) {
        None => {
            // Rounds to the greatest number up to half a step beyond it.
            let step = greatest - table[table.len() - 2].0;
            let half = greatest + step / 2.0;
            // The next code up would be even where the greatest is odd: a tie goes there.
            let fits = magnitude < half || (magnitude == half && greatest_code.is_multiple_of(2));
            if !fits {
                return beyond(greatest_code);
            }
            greatest_code
        }
        Some(&(known, code)) if known == magnitude => code,
        Some(&(upper, upper_code)) => {
            let (lower, lower_code) = table[above - 1];
            match (magnitude - lower).total_cmp(&(upper - magnitude)) {
                std::cmp::Ordering::Less => lower_code,
                std::cmp::Ordering::Greater => upper_code,
                std::cmp::Ordering::Equal if lower_code.is_multiple_of(2) => lower_code,
                std::cmp::Ordering::Equal => upper_code,
            }
        }
    };
    // Without a negative zero, zero has no sign.
    if layout.unsigned_zero && code == 0 { 0 } else { sign | code }
}

/// The `float8e8m0` code for a magnitude: a power of two from 2^-127 to 2^127. Zero and below become the
/// least code; NaN and infinity NaN, the latter the greatest code with `saturate`.
pub fn scale_from_f64(value: f64, rounding: ScaleRounding, saturate: bool) -> u8 {
    const NAN: u8 = 0xFF;
    const GREATEST: u8 = 0xFE;
    let magnitude = value.abs();
    if value.is_nan() {
        return NAN;
    }
    if magnitude.is_infinite() {
        return if saturate { GREATEST } else { NAN };
    }
    if magnitude == 0.0 {
        return 0;
    }
    let floor = magnitude.log2().floor();
    // log2 may be off by one unit at powers of two.
    let floor = [floor - 1.0, floor, floor + 1.0]
        .into_iter()
        .rev()
        .find(|&exponent| 2f64.powi(exponent as i32) <= magnitude)
        .unwrap_or(floor) as i32;
    let low = 2f64.powi(floor);
    let up = match rounding {
        ScaleRounding::Up => magnitude > low,
        ScaleRounding::Down => false,
        ScaleRounding::Nearest => magnitude >= low * 1.5,
    };
    let exponent = floor + i32::from(up);
    if exponent > 127 {
        return if saturate { GREATEST } else { NAN };
    }
    (exponent.max(-127) + 127) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH_TABLES: [DType; 7] = [
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F4E2M1,
        DType::F6E2M3,
        DType::F6E3M2,
    ];

    #[test]
    fn known_values() {
        for (dtype, code, value) in [
            (DType::F8E4M3FN, 0x7E, 448.0),
            (DType::F8E4M3FN, 0x01, 0.001953125),
            (DType::F8E4M3FNUZ, 0x7F, 240.0),
            (DType::F8E5M2, 0x7B, 57344.0),
            (DType::F8E5M2FNUZ, 0x7F, 57344.0),
            (DType::F8E5M2, 0x7C, f32::INFINITY),
            (DType::F4E2M1, 0x7, 6.0),
            (DType::F4E2M1, 0x9, -0.5),
            (DType::F6E2M3, 0x1F, 7.5),
            (DType::F6E3M2, 0x1F, 28.0),
            (DType::F8E8M0, 127, 1.0),
        ] {
            assert_eq!(to_f32(dtype, code), value, "{dtype} {code:#x}");
        }
        for (dtype, code) in
            [(DType::F8E4M3FN, 0x7F), (DType::F8E4M3FNUZ, 0x80), (DType::F8E5M2, 0x7E), (DType::F8E8M0, 0xFF)]
        {
            assert!(to_f32(dtype, code).is_nan());
        }
    }

    #[test]
    fn every_code_comes_back() {
        for dtype in WITH_TABLES {
            for code in 0..=((1u16 << dtype.bits()) - 1) as u8 {
                let value = to_f32(dtype, code);
                if value.is_finite() {
                    assert_eq!(from_f64(dtype, f64::from(value), true), code, "{dtype} {code:#x}");
                } else if value.is_nan() {
                    assert!(to_f32(dtype, from_f64(dtype, f64::NAN, true)).is_nan());
                } else {
                    assert_eq!(from_f64(dtype, f64::from(value), false), code);
                }
            }
        }
    }

    #[test]
    fn every_half_rounds_to_the_nearest_code() {
        for dtype in WITH_TABLES {
            let table = magnitudes(dtype);
            for bits in 0..=u16::MAX {
                let value = half::f16::from_bits(bits).to_f64();
                if !value.is_finite() {
                    continue;
                }
                let found = f64::from(to_f32(dtype, from_f64(dtype, value, true)));
                let best =
                    table.iter().map(|(known, _)| (known - value.abs()).abs()).fold(f64::INFINITY, f64::min);
                assert_eq!((found.abs() - value.abs()).abs(), best, "{dtype} {value}");
            }
        }
    }

    #[test]
    fn beyond_the_greatest() {
        assert_eq!(from_f64(DType::F8E4M3FN, 1e6, true), 0x7E);
        assert_eq!(from_f64(DType::F8E4M3FN, -1e6, false), 0xFF);
        assert_eq!(from_f64(DType::F8E5M2, 1e6, false), 0x7C);
        assert_eq!(from_f64(DType::F8E5M2FNUZ, f64::INFINITY, false), 0x80);
        assert_eq!(from_f64(DType::F4E2M1, 1e6, false), 0x7);
        assert_eq!(from_f64(DType::F8E4M3FN, 464.0, false), 0x7E, "a tie goes to the even code");
    }

    #[test]
    fn scales_are_powers_of_two() {
        for code in 0..=254u8 {
            let value = f64::from(to_f32(DType::F8E8M0, code));
            for rounding in [ScaleRounding::Up, ScaleRounding::Down, ScaleRounding::Nearest] {
                assert_eq!(scale_from_f64(value, rounding, true), code);
            }
        }
        assert_eq!(scale_from_f64(3.0, ScaleRounding::Up, true), 129);
        assert_eq!(scale_from_f64(3.0, ScaleRounding::Down, true), 128);
        assert_eq!(scale_from_f64(2.9, ScaleRounding::Nearest, true), 128);
        assert_eq!(scale_from_f64(f64::INFINITY, ScaleRounding::Up, false), 255);
    }
}
