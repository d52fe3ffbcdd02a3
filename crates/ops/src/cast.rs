//! Conversion between element types.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use optix_ir::minifloat::{self, ScaleRounding};
use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::numbers::{Numbers, integer_tensor};

pub(crate) static KERNELS: &[KernelSpec] =
    &[KernelSpec::onnx("Cast", 6, cast), KernelSpec::onnx("CastLike", 15, cast_like)];

fn cast(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let to = call.node.int("to").and_then(|to| i32::try_from(to).ok()).and_then(DType::from_onnx);
    let to = to.ok_or_else(|| call.invalid("`to` is no element type"))?;
    Ok(vec![convert(call, call.input(0)?, to)?])
}

fn cast_like(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    Ok(vec![convert(call, call.input(0)?, call.input(1)?.dtype())?])
}

/// Numbers as a type of floats; small ones saturate when asked.
pub(crate) fn floats_as(
    call: &Call<'_>,
    values: &[f64],
    shape: Vec<usize>,
    dtype: DType,
    saturate: bool,
) -> Result<Tensor, OpError> {
    Ok(match dtype {
        DType::F32 => Tensor::from_vec(shape, values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
        DType::F64 => Tensor::from_vec(shape, values.to_vec()),
        DType::F16 => Tensor::from_vec(shape, values.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>()),
        DType::BF16 => Tensor::from_vec(shape, values.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>()),
        DType::F8E8M0 => {
            let rounding = match call.node.string("round_mode").unwrap_or("up") {
                "down" => ScaleRounding::Down,
                "nearest" => ScaleRounding::Nearest,
                _ => ScaleRounding::Up,
            };
            let codes: Vec<u8> =
                values.iter().map(|&x| minifloat::scale_from_f64(x, rounding, saturate)).collect();
            Tensor::from_codes(dtype, shape, &codes)
        }
        _ if dtype.is_float() => {
            let codes: Vec<u8> = values.iter().map(|&x| minifloat::from_f64(dtype, x, saturate)).collect();
            Tensor::from_codes(dtype, shape, &codes)
        }
        _ => return Err(call.unsupported(format!("floats as {dtype}"))),
    })
}

/// Between float32 and the 16-bit types: the nearest numbers, half to even, without the detour through double
/// precision.
fn between_floats(x: &Tensor, to: DType) -> Option<Tensor> {
    let shape = x.shape().to_vec();
    Some(match (x.dtype(), to) {
        (DType::F32, DType::F16) => {
            let mut halves = vec![f16::ZERO; x.len()];
            halves.convert_from_f32_slice(&x.to_slice::<f32>().ok()?);
            Tensor::from_vec(shape, halves)
        }
        (DType::F32, DType::BF16) => {
            let mut halves = vec![bf16::ZERO; x.len()];
            halves.convert_from_f32_slice(&x.to_slice::<f32>().ok()?);
            Tensor::from_vec(shape, halves)
        }
        (DType::F16, DType::F32) => {
            let mut floats = vec![0f32; x.len()];
            x.to_slice::<f16>().ok()?.convert_to_f32_slice(&mut floats);
            Tensor::from_vec(shape, floats)
        }
        (DType::BF16, DType::F32) => {
            let mut floats = vec![0f32; x.len()];
            x.to_slice::<bf16>().ok()?.convert_to_f32_slice(&mut floats);
            Tensor::from_vec(shape, floats)
        }
        _ => return None,
    })
}

fn convert(call: &Call<'_>, x: &Tensor, to: DType) -> Result<Tensor, OpError> {
    let from = x.dtype();
    let shape = x.shape().to_vec();
    if from == to {
        return Ok(x.clone());
    }
    call.check_size(DType::F64, &shape)?;
    if let Some(tensor) = between_floats(x, to) {
        return Ok(tensor);
    }
    let saturate = call.node.int("saturate").unwrap_or(1) != 0;
    if from == DType::String {
        return from_strings(call, x, to, saturate);
    }
    if to == DType::String {
        let texts = to_strings(call, x)?;
        return Ok(Tensor::from_strings(shape, &texts));
    }
    match Numbers::of(call, x)? {
        Numbers::Floats(values) if to == DType::Bool => {
            let bits: Vec<bool> = values.iter().map(|&x| x != 0.0).collect();
            Ok(Tensor::from_bools(shape, &bits))
        }
        Numbers::Floats(values) if to.is_integer() => {
            // Out of range is undefined by the standard: here it saturates, and NaN becomes 0, except that
            // types narrower than 32 bits wrap around as a conversion through 32 bits would.
            let whole: Vec<i64> = match to {
                DType::U64 => values.iter().map(|&x| x as u64 as i64).collect(),
                DType::U32 => values.iter().map(|&x| x as i64).collect(),
                DType::I64 => values.iter().map(|&x| x as i64).collect(),
                _ => values.iter().map(|&x| i64::from(x as i32)).collect(),
            };
            integer_tensor(call, to, shape, &whole)
        }
        Numbers::Floats(values) => floats_as(call, &values, shape, to, saturate),
        Numbers::Integers(values) if to.is_integer() || to == DType::Bool => {
            if to == DType::Bool {
                let bits: Vec<bool> = values.iter().map(|&x| x != 0).collect();
                return Ok(Tensor::from_bools(shape, &bits));
            }
            integer_tensor(call, to, shape, &values)
        }
        Numbers::Integers(values) => {
            let unsigned = from == DType::U64;
            if to == DType::F32 {
                // Straight to binary32: through binary64 a large integer would be rounded twice.
                let values: Vec<f32> =
                    values.iter().map(|&x| if unsigned { x as u64 as f32 } else { x as f32 }).collect();
                return Ok(Tensor::from_vec(shape, values));
            }
            let values: Vec<f64> =
                values.iter().map(|&x| if unsigned { x as u64 as f64 } else { x as f64 }).collect();
            floats_as(call, &values, shape, to, saturate)
        }
    }
}

fn from_strings(call: &Call<'_>, x: &Tensor, to: DType, saturate: bool) -> Result<Tensor, OpError> {
    let texts = x.strings().map_err(|error| call.tensor_error(error))?;
    let shape = x.shape().to_vec();
    let parse = |text: &[u8]| {
        let text = std::str::from_utf8(text).ok()?.trim();
        text.parse::<f64>().ok()
    };
    if to.is_integer() {
        let whole: Option<Vec<i64>> = texts
            .iter()
            .map(|text| {
                let plain = std::str::from_utf8(text).ok()?.trim();
                plain.parse::<i64>().ok().or_else(|| parse(text).map(|value| value as i64))
            })
            .collect();
        let whole = whole.ok_or_else(|| call.invalid("a string is no number"))?;
        return integer_tensor(call, to, shape, &whole);
    }
    let values: Option<Vec<f64>> = texts.iter().map(|text| parse(text)).collect();
    let values = values.ok_or_else(|| call.invalid("a string is no number"))?;
    floats_as(call, &values, shape, to, saturate)
}

fn to_strings(call: &Call<'_>, x: &Tensor) -> Result<Vec<String>, OpError> {
    Ok(match Numbers::of(call, x)? {
        Numbers::Integers(values) if x.dtype() == DType::Bool => {
            values.iter().map(|&x| if x != 0 { "True" } else { "False" }.to_owned()).collect()
        }
        Numbers::Integers(values) => values.iter().map(i64::to_string).collect(),
        Numbers::Floats(values) => values
            .iter()
            .map(|&value| match () {
                () if value.is_nan() => "NaN".to_owned(),
                () if value.is_infinite() => if value > 0.0 { "INF" } else { "-INF" }.to_owned(),
                () if x.dtype() == DType::F32 => format!("{}", value as f32),
                () => format!("{value}"),
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(x: &Tensor, to: DType) -> Tensor {
        let node = Node::new("Cast", []).with("to", i64::from(to.onnx()));
        cast(&Call::new(&node, 21, &[Some(x)])).unwrap().remove(0)
    }

    #[test]
    fn floats_to_integers_truncate() {
        let x = Tensor::from_vec(vec![4], vec![1.9f32, -1.9, 0.5, -0.5]);
        assert_eq!(run(&x, DType::I32).to_i64s().unwrap(), [1, -1, 0, 0]);
        assert_eq!(run(&x, DType::Bool).bools().unwrap(), [true; 4]);
    }

    #[test]
    fn integers_to_floats_are_rounded_once() {
        let x = Tensor::from_vec(vec![1], vec![(1i64 << 24) + 1]);
        assert_eq!(run(&x, DType::F32).to_f64s().unwrap(), [16_777_216.0]);
        let x = Tensor::from_vec(vec![1], vec![u64::MAX]);
        assert_eq!(run(&x, DType::F64).to_f64s().unwrap(), [u64::MAX as f64]);
    }

    #[test]
    fn small_integers_wrap() {
        let x = Tensor::from_vec(vec![3], vec![300i32, -1, 9]);
        assert_eq!(run(&x, DType::U8).to_i64s().unwrap(), [44, 255, 9]);
        assert_eq!(run(&x, DType::I4).to_i64s().unwrap(), [-4, -1, -7]);
    }

    #[test]
    fn between_floats_the_nearest_is_taken() {
        let mut bits: Vec<u32> = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        // Halfway between neighbours, and at both ends of the range.
        bits.extend((0..=u16::MAX).map(|code| f16::from_bits(code).to_f32().to_bits() + 0x1000));
        let floats: Vec<f32> = bits.into_iter().map(f32::from_bits).filter(|x| !x.is_nan()).collect();
        let tensor = Tensor::from_vec(vec![floats.len()], floats.clone());
        let half = between_floats(&tensor, DType::F16).expect("it is covered");
        let brain = between_floats(&tensor, DType::BF16).expect("it is covered");
        let (halves, brains) =
            (half.to_slice::<f16>().expect("f16"), brain.to_slice::<bf16>().expect("bf16"));
        for (index, &x) in floats.iter().enumerate() {
            let (h, b) = (halves[index], brains[index]);
            assert_eq!(h.to_bits(), f16::from_f64(x.into()).to_bits(), "{x:e}");
            // Half to even, in integers: the sign is apart, and a carry goes into the exponent as it should.
            let nearest = (x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) >> 16;
            assert_eq!(u32::from(b.to_bits()), nearest, "{x:e}");
        }
        let back = between_floats(&half, DType::F32).expect("it is covered");
        assert_eq!(back.to_f64s().expect("numbers"), half.to_f64s().expect("numbers"));
    }
}
