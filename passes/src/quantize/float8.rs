//! Quantizing to floats of 8 bits.
//!
//! A scale brings the greatest magnitude to 448, the greatest finite number of float8e4m3fn. float8e5m2 goes up to
//! 57,344, 2^7 times as far, but the same scale loses it nothing: it has as many digits everywhere. With a scale so
//! much smaller the float biases that onnxruntime rounds to multiples of both scales' product would leave int32.
//! Rounding is to the nearest float, half to even, and what is beyond saturates: ONNX operator specification, `QuantizeLinear` of
//! operator set 19; "FP8 Formats for Deep Learning" (arXiv 2209.05433).

use std::sync::OnceLock;

use optix_ir::{DType, Tensor, minifloat};

use super::affine::QuantizedWeights;

/// Types that are quantized to.
pub(super) const TYPES: [DType; 2] = [DType::F8E4M3FN, DType::F8E5M2];

/// The greatest finite number of a type; none for types that are no such floats.
pub(super) fn greatest(dtype: DType) -> Option<i32> {
    match dtype {
        DType::F8E4M3FN => Some(448),
        DType::F8E5M2 => Some(57_344),
        _ => None,
    }
}

/// The number that the greatest magnitude becomes; none for types that are no such floats.
pub(super) fn full_scale(dtype: DType) -> Option<i32> {
    TYPES.contains(&dtype).then_some(448)
}

/// The nearest number of a type; NaN becomes 0.
pub(super) fn round(number: f32, dtype: DType) -> f32 {
    if number.is_nan() {
        return 0.0;
    }
    minifloat::to_f32(dtype, minifloat::from_f64(dtype, f64::from(number), true))
}

/// All finite numbers of a type in ascending order, zero once.
pub(super) fn numbers(dtype: DType) -> &'static [f64] {
    static TABLES: OnceLock<[Vec<f64>; 2]> = OnceLock::new();
    let tables = TABLES.get_or_init(|| {
        TYPES.map(|dtype| {
            let all = (0..=u8::MAX).map(|code| f64::from(minifloat::to_f32(dtype, code)));
            let mut numbers: Vec<f64> = all.filter(|number| number.is_finite()).map(|x| x + 0.0).collect();
            numbers.sort_by(f64::total_cmp);
            numbers.dedup();
            numbers
        })
    });
    &tables[usize::from(dtype == DType::F8E5M2)]
}

/// Weights as 8-bit floats with the given scales, one a channel along `axis` or a single one. Sums of signal and
/// noise are double-precision.
pub(super) fn quantize_weights(
    weights: &[f32],
    shape: &[usize],
    axis: Option<usize>,
    scales: Vec<f32>,
    dtype: DType,
) -> QuantizedWeights {
    let inner: usize = axis.map_or(weights.len(), |axis| shape[axis + 1..].iter().product()).max(1);
    let (mut signal, mut noise) = (0f64, 0f64);
    let codes: Vec<u8> = weights
        .iter()
        .enumerate()
        .map(|(at, &weight)| {
            let scale = scales[at / inner % scales.len()];
            let code = minifloat::from_f64(dtype, f64::from(weight / scale), true);
            let error = f64::from(weight) - f64::from(minifloat::to_f32(dtype, code)) * f64::from(scale);
            signal += f64::from(weight) * f64::from(weight);
            noise += error * error;
            code
        })
        .collect();
    QuantizedWeights { integers: Tensor::from_codes(dtype, shape.to_vec(), &codes), scales, signal, noise }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::affine::Affine;

    #[test]
    fn tables_are_those_of_the_types() {
        assert_eq!(numbers(DType::F8E4M3FN).len(), 253);
        assert_eq!(numbers(DType::F8E5M2).len(), 247);
        for dtype in TYPES {
            let numbers = numbers(dtype);
            assert_eq!(numbers.last().copied(), greatest(dtype).map(f64::from));
            assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(numbers.iter().all(|&number| f64::from(round(number as f32, dtype)) == number));
        }
        assert_eq!(round(1e9, DType::F8E4M3FN), 448.0);
        assert_eq!(round(f32::NEG_INFINITY, DType::F8E5M2), -57_344.0);
        assert_eq!(round(f32::NAN, DType::F8E5M2), 0.0);
    }

    /// Distance of neighbouring numbers of a type around a number.
    fn step(number: f64, dtype: DType) -> f64 {
        let (mantissa, least) = if dtype == DType::F8E4M3FN { (3, -6) } else { (2, -14) };
        let exponent = number.abs().log2().floor().max(f64::from(least)) as i32;
        2f64.powi(exponent - mantissa)
    }

    proptest::proptest! {
        #[test]
        fn errors_are_at_most_half_a_step_where_nothing_clips(
            low in -1e3f32..=0.0,
            high in 1e-3f32..=1e3,
            places in proptest::collection::vec(0f32..=1.0, 1..40),
        ) {
            for dtype in [DType::U8, DType::I8, DType::U16, DType::I16, DType::F8E4M3FN, DType::F8E5M2] {
                let wide = Affine::asymmetric(low, high, dtype);
                let symmetric = dtype.integer_range().is_none_or(|(low, _)| low < 0);
                let all = [Some(wide), symmetric.then(|| wide.made_symmetric(dtype))];
                for affine in all.into_iter().flatten() {
                    for place in &places {
                        let real = low + place * (high - low);
                        let within = match affine.float_type() {
                            Some(dtype) => step(f64::from(real / affine.scale), dtype) / 2.0,
                            None => 0.5,
                        };
                        let error = f64::from((affine.round_trip(real) - real).abs());
                        // Numbers and scale are rounded to f32 on the way.
                        let bound = f64::from(affine.scale) * within + f64::from(high - low) * 4e-7;
                        proptest::prop_assert!(error <= bound, "{dtype} {real}: {error} beyond {bound}");
                    }
                    proptest::prop_assert_eq!(affine.round_trip(0.0), 0.0);
                }
            }
        }
    }

    #[test]
    fn errors_stay_within_half_a_step_of_the_float() {
        let weights: Vec<f32> = (0..600).map(|i| (i as f32 * 0.37).sin() * (1 + i % 7) as f32).collect();
        for dtype in TYPES {
            let scales: Vec<f32> = [3.0f32, 5.0, 8.0].map(|max| Affine::symmetric(max, dtype).scale).into();
            let quantized = quantize_weights(&weights, &[3, 200], Some(0), scales.clone(), dtype);
            assert_eq!(quantized.integers.dtype(), dtype);
            let codes = quantized.integers.to_f64s().unwrap();
            for (at, (weight, code)) in weights.iter().zip(codes).enumerate() {
                let scale = scales[at / 200];
                let affine = Affine { scale, ..Affine::symmetric(1.0, dtype) };
                assert_eq!(affine.round_trip(*weight), code as f32 * scale);
            }
        }
    }
}
