//! The affine quantizer: real = scale * (integer - zero point).
//!
//! Rounding is half to even, as ONNX's `QuantizeLinear` rounds. Source of the formulas: ONNX operator
//! specification, `QuantizeLinear` and `DequantizeLinear`; Jacob et al. 2018 (arXiv 1712.05877).

use optix_ir::{DType, Tensor};

/// Scale and zero point of one tensor or channel.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Affine {
    /// Real distance between neighbouring integers; positive and finite.
    pub scale: f32,
    /// The integer that stands for 0.
    pub zero_point: i32,
    /// Least integer used.
    pub low: i32,
    /// Greatest integer used.
    pub high: i32,
}

impl Affine {
    /// Quantizer of the full range of an 8-bit type for reals in `min..=max`, which is widened to hold 0.
    /// A range of no width, or one that is not finite, gets scale 1.
    pub fn asymmetric(min: f32, max: f32, dtype: DType) -> Affine {
        let (low, high) = match dtype {
            DType::I8 => (-128, 127),
            _ => (0, 255),
        };
        let (min, max) = (f64::from(min.min(0.0)), f64::from(max.max(0.0)));
        let scale = ((max - min) / f64::from(high - low)) as f32;
        if !scale.is_normal() {
            return Affine { scale: 1.0, zero_point: low.max(0), low, high };
        }
        let zero_point = (f64::from(low) - min / f64::from(scale)).round_ties_even();
        let zero_point = zero_point.clamp(f64::from(low), f64::from(high)) as i32;
        // Rounding must not make the integer farthest from zero stand for infinity.
        let farthest = (high - zero_point).max(zero_point - low) as f32;
        let scale = if (scale * farthest).is_finite() { scale } else { (f32::MAX / farthest).next_down() };
        Affine { scale, zero_point, low, high }
    }

    /// Symmetric quantizer to -127..=127 for magnitudes up to `max`.
    pub fn symmetric_int8(max: f32) -> Affine {
        let scale = max / 127.0;
        Affine { scale: if scale.is_normal() { scale } else { 1.0 }, zero_point: 0, low: -127, high: 127 }
    }

    /// The integer for a real; NaN goes to the zero point.
    pub fn quantize(&self, real: f32) -> i32 {
        let integer = (real / self.scale).round_ties_even() + self.zero_point as f32;
        if integer.is_nan() {
            return self.zero_point;
        }
        integer.clamp(self.low as f32, self.high as f32) as i32
    }

    /// The real for an integer.
    pub fn dequantize(&self, integer: i32) -> f32 {
        (integer - self.zero_point) as f32 * self.scale
    }

    /// The nearest real that an integer stands for.
    pub fn round_trip(&self, real: f32) -> f32 {
        self.dequantize(self.quantize(real))
    }
}

/// Weights as int8 with the scales they need.
#[derive(Clone, Debug)]
pub struct QuantizedWeights {
    /// int8, of the shape of the weights.
    pub integers: Tensor,
    /// One a channel, or a single one.
    pub scales: Vec<f32>,
    /// Sum of squares of the weights.
    pub signal: f64,
    /// Sum of squares of the rounding errors.
    pub noise: f64,
}

impl QuantizedWeights {
    /// Signal-to-quantization-noise ratio in dB; `None` when nothing was lost.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }
}

/// Greatest magnitude of every channel along `axis` (or of everything).
pub fn channel_maxima(weights: &[f32], shape: &[usize], axis: Option<usize>) -> Vec<f32> {
    let Some(axis) = axis else {
        return vec![weights.iter().fold(0.0, |max, weight| weight.abs().max(max))];
    };
    let channels = shape[axis];
    let inner: usize = shape[axis + 1..].iter().product();
    let mut maxima = vec![0f32; channels];
    if inner > 0 && channels > 0 {
        for (index, row) in weights.chunks_exact(inner).enumerate() {
            let max = &mut maxima[index % channels];
            *max = row.iter().fold(*max, |max, weight| weight.abs().max(max));
        }
    }
    maxima
}

/// Rounds weights to int8 with the given scales, one a channel along `axis` or a single one.
pub fn quantize_weights(
    weights: &[f32],
    shape: &[usize],
    axis: Option<usize>,
    scales: Vec<f32>,
) -> QuantizedWeights {
    let inner: usize = axis.map_or(weights.len(), |axis| shape[axis + 1..].iter().product());
    let (mut integers, mut signal, mut noise) = (Vec::with_capacity(weights.len()), 0.0, 0.0);
    if inner > 0 {
        for (index, row) in weights.chunks_exact(inner).enumerate() {
            let scale = scales[index % scales.len()];
            let quantizer = Affine { scale, zero_point: 0, low: -127, high: 127 };
            let (mut row_signal, mut row_noise) = (0f64, 0f64);
            for &weight in row {
                let integer = quantizer.quantize(weight);
                let error = f64::from(weight - quantizer.dequantize(integer));
                row_signal += f64::from(weight) * f64::from(weight);
                row_noise += error * error;
                integers.push(integer as i8);
            }
            signal += row_signal;
            noise += row_noise;
        }
    }
    QuantizedWeights { integers: Tensor::from_vec(shape.to_vec(), integers), scales, signal, noise }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_widened_to_hold_zero_and_zero_is_exact() {
        for (min, max) in [(0.5, 2.0), (-3.0, -1.0), (-1.0, 3.0), (0.0, 6.0)] {
            for dtype in [DType::U8, DType::I8] {
                let affine = Affine::asymmetric(min, max, dtype);
                assert_eq!(affine.round_trip(0.0), 0.0);
                for real in [min, max] {
                    assert!(
                        (affine.round_trip(real) - real).abs() <= affine.scale * 0.51,
                        "{min} {max} {real}"
                    );
                }
            }
        }
    }

    #[test]
    fn odd_ranges_do_not_break_it() {
        for (min, max) in [(0.0, 0.0), (f32::NAN, 1.0), (f32::NEG_INFINITY, f32::INFINITY), (0.0, 1e-44)] {
            let affine = Affine::asymmetric(min, max, DType::U8);
            assert!(affine.scale.is_normal() && affine.scale > 0.0);
            assert!((0..=255).contains(&affine.zero_point));
            let _ = affine.quantize(f32::NAN);
        }
    }

    #[test]
    fn rounding_is_half_to_even() {
        let affine = Affine { scale: 1.0, zero_point: 0, low: -128, high: 127 };
        assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5].map(|x| affine.quantize(x)), [0, 2, 2, 0, -2]);
    }

    #[test]
    fn channels_along_any_axis() {
        let weights = [1.0, -2.0, 3.0, -4.0, 5.0, 6.0];
        assert_eq!(channel_maxima(&weights, &[2, 3], Some(0)), [3.0, 6.0]);
        assert_eq!(channel_maxima(&weights, &[2, 3], Some(1)), [4.0, 5.0, 6.0]);
        assert_eq!(channel_maxima(&weights, &[2, 3], None), [6.0]);
        let scales = channel_maxima(&weights, &[2, 3], Some(1)).into_iter().map(|max| max / 127.0).collect();
        let quantized = quantize_weights(&weights, &[2, 3], Some(1), scales);
        assert_eq!(quantized.integers.to_i64s().unwrap(), [32, -51, 64, -127, 127, 127]);
    }

    #[test]
    fn errors_stay_within_half_a_step() {
        let weights: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let scale = Affine::symmetric_int8(1.0).scale;
        let quantized = quantize_weights(&weights, &[1000], None, vec![scale]);
        for (weight, integer) in weights.iter().zip(quantized.integers.to_i64s().unwrap()) {
            assert!((weight - integer as f32 * scale).abs() <= scale * 0.5001);
        }
        assert!(quantized.sqnr_db().unwrap() > 40.0);
    }
}
