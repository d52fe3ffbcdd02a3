//! The affine quantizer: real = scale * (integer - zero point).
//!
//! Quantizers to 8-bit floats are symmetric: real = scale * float. They have the same form, and are told by
//! their bounds, the greatest float on either side, which no integer type has.
//!
//! Rounding is half to even, as ONNX's `QuantizeLinear` rounds. Source of the formulas: ONNX operator
//! specification, `QuantizeLinear` and `DequantizeLinear`; Jacob et al. 2018 (arXiv 1712.05877).

use optix_ir::{DType, Tensor};
use optix_pipeline::SignalNoise;

use super::float8;

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
    /// Quantizer of the full range of a type (8 or 16 bits, or an 8-bit float) for reals in `min..=max`, which is
    /// widened to hold 0. A range of no width, or one that is not finite, gets scale 1.
    pub fn asymmetric(min: f32, max: f32, dtype: DType) -> Affine {
        let (low, high) = match dtype {
            DType::I8 => (-128, 127),
            DType::I16 => (i32::from(i16::MIN), i32::from(i16::MAX)),
            DType::U16 => (0, i32::from(u16::MAX)),
            _ if dtype.is_float() => return Affine::symmetric(min.abs().max(max.abs()), dtype),
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

    /// Symmetric quantizer to a signed type for magnitudes up to `max`: integers from -127, -7 or -32,767 on, floats
    /// up to the type's greatest. The type's own least integer is left out: it is no end of a range, though
    /// weights of 4 bits may be rounded to it.
    pub fn symmetric(max: f32, dtype: DType) -> Affine {
        let high = match dtype {
            DType::I16 => i32::from(i16::MAX),
            DType::I4 => 7,
            _ => float8::greatest(dtype).unwrap_or(127),
        };
        let scale = max / float8::full_scale(dtype).unwrap_or(high) as f32;
        Affine { scale: if scale.is_normal() { scale } else { 1.0 }, zero_point: 0, low: -high, high }
    }

    /// The symmetric quantizer of the reals that this one covers, for a signed type.
    pub fn made_symmetric(&self, dtype: DType) -> Affine {
        if self.float_type().is_some() {
            return *self;
        }
        let end = |integer: i32| (integer - self.zero_point) as f32 * self.scale;
        Affine::symmetric(end(self.low).abs().max(end(self.high).abs()), dtype)
    }

    /// The type of 8-bit floats that it quantizes to; none when it quantizes to integers.
    pub fn float_type(&self) -> Option<DType> {
        let bounds = (self.low, self.high);
        float8::TYPES
            .into_iter()
            .find(|dtype| float8::greatest(*dtype).is_some_and(|greatest| bounds == (-greatest, greatest)))
    }

    /// The integer for a real; NaN goes to the zero point. Not for quantizers to floats.
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
        if let Some(dtype) = self.float_type() {
            return float8::round(real / self.scale, dtype) * self.scale;
        }
        self.dequantize(self.quantize(real))
    }
}

/// Weights in few bits with the scales they need.
#[derive(Clone, Debug)]
pub struct QuantizedWeights {
    /// Integers, or 8-bit floats, of the shape of the weights.
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
        SignalNoise::new(self.signal, self.noise).sqnr_db()
    }
}

/// Sums and maxima are kept in so many lanes, so that loops become vector instructions.
const LANES: usize = 16;

/// Elements after which single-precision sums are added to the double-precision ones.
const PIECE: usize = 4096;

/// Adding it rounds a float below 2^22 to an integer, half to even, and leaves that integer in the low bits:
/// 1.5 * 2^23.
const ROUNDER: f32 = 12_582_912.0;

/// The greater one; the second if the first is NaN.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Greatest magnitude of a run of numbers, NaN left out.
fn greatest(numbers: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, number) in lanes.iter_mut().zip(chunk) {
            *lane = greater(number.abs(), *lane);
        }
    }
    lanes.iter().chain(rest).fold(0.0, |max, number| greater(number.abs(), max))
}

/// Greatest magnitude of every channel along `axis` (or of everything).
pub fn channel_maxima(weights: &[f32], shape: &[usize], axis: Option<usize>) -> Vec<f32> {
    let Some(axis) = axis else {
        return vec![greatest(weights)];
    };
    let channels = shape[axis];
    let inner: usize = shape[axis + 1..].iter().product();
    let mut maxima = vec![0f32; channels];
    if channels == 0 || inner == 0 {
        return maxima;
    }
    if inner == 1 {
        for row in weights.chunks_exact(channels) {
            for (max, weight) in maxima.iter_mut().zip(row) {
                *max = greater(weight.abs(), *max);
            }
        }
        return maxima;
    }
    for (index, row) in weights.chunks_exact(inner).enumerate() {
        let max = &mut maxima[index % channels];
        *max = greater(greatest(row), *max);
    }
    maxima
}

/// Rounds a piece of at most [`PIECE`] weights; `scale` gives the scale of each by its place. Returns the
/// sums of squares of weights and errors.
#[inline(always)]
fn round_piece(weights: &[f32], integers: &mut [i8], scale: impl Fn(usize) -> f32) -> (f64, f64) {
    let (mut signal, mut noise) = ([0f32; LANES], [0f32; LANES]);
    let mut round = |lane: usize, at: usize, weight: f32| {
        let scale = scale(at);
        // NaN ends at the lower bound.
        let ratio = greater(weight / scale, -127.0);
        let moved = if ratio < 127.0 { ratio } else { 127.0 } + ROUNDER;
        let error = weight - (moved - ROUNDER) * scale;
        signal[lane] += weight * weight;
        noise[lane] += error * error;
        moved.to_bits() as i8
    };
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let (out, out_rest) = integers.as_chunks_mut::<LANES>();
    for (index, (chunk, out)) in chunks.iter().zip(out).enumerate() {
        for lane in 0..LANES {
            out[lane] = round(lane, index * LANES + lane, chunk[lane]);
        }
    }
    let done = chunks.len() * LANES;
    for (lane, (weight, out)) in rest.iter().zip(out_rest).enumerate() {
        *out = round(lane, done + lane, *weight);
    }
    let total = |lanes: [f32; LANES]| lanes.into_iter().map(f64::from).sum();
    (total(signal), total(noise))
}

/// Rounds finite weights to int8 with the given scales, one a channel along `axis` or a single one. Sums
/// are single-precision within a few thousand weights and double-precision beyond.
pub fn quantize_weights(
    weights: &[f32],
    shape: &[usize],
    axis: Option<usize>,
    scales: Vec<f32>,
) -> QuantizedWeights {
    let inner: usize = axis.map_or(weights.len(), |axis| shape[axis + 1..].iter().product());
    let mut integers = vec![0i8; weights.len()];
    let (mut signal, mut noise) = (0.0, 0.0);
    let mut add = |sums: (f64, f64)| {
        signal += sums.0;
        noise += sums.1;
    };
    if inner == 1 && scales.len() > 1 {
        let channels = scales.len();
        for (row, out) in weights.chunks(channels).zip(integers.chunks_mut(channels)) {
            let pieces = row.chunks(PIECE).zip(out.chunks_mut(PIECE)).zip(scales.chunks(PIECE));
            for ((weights, integers), scales) in pieces {
                let scales = &scales[..weights.len()];
                add(round_piece(weights, integers, |at| scales[at]));
            }
        }
    } else if inner > 0 {
        for (index, (row, out)) in weights.chunks_exact(inner).zip(integers.chunks_mut(inner)).enumerate() {
            let scale = scales[index % scales.len()];
            for (weights, integers) in row.chunks(PIECE).zip(out.chunks_mut(PIECE)) {
                add(round_piece(weights, integers, |_| scale));
            }
        }
    }
    QuantizedWeights { integers: Tensor::from_vec(shape.to_vec(), integers), scales, signal, noise }
}

/// Rounds weights to a small integer type, the least integer of which may be used, with the given scales: one a
/// channel along `axis` or a single one. A weight that is not a number becomes 0.
pub fn round_weights(
    weights: &[f32],
    shape: &[usize],
    axis: Option<usize>,
    scales: Vec<f32>,
    dtype: DType,
) -> QuantizedWeights {
    let (low, high) = dtype.integer_range().unwrap_or((0, 0));
    let affine = |scale: f32| Affine { scale, zero_point: 0, low: low as i32, high: high as i32 };
    let inner: usize = axis.map_or(weights.len(), |axis| shape[axis + 1..].iter().product()).max(1);
    let (mut signal, mut noise) = (0f64, 0f64);
    let mut codes = Vec::with_capacity(weights.len());
    for (at, &weight) in weights.iter().enumerate() {
        let affine = affine(scales[at / inner % scales.len()]);
        let integer = affine.quantize(weight);
        signal += f64::from(weight).powi(2);
        noise += f64::from(weight - affine.dequantize(integer)).powi(2);
        // The bits of a narrow integer are the low ones of a wide one.
        codes.push(integer as u8);
    }
    QuantizedWeights { integers: Tensor::from_codes(dtype, shape.to_vec(), &codes), scales, signal, noise }
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

    #[test]
    fn fast_loops_agree_with_the_plain_quantizer() {
        for (shape, axis) in
            [(vec![7, 33], Some(0)), (vec![7, 33], Some(1)), (vec![5, 3, 21], Some(1)), (vec![9001], None)]
        {
            let count: usize = shape.iter().product();
            let mut weights: Vec<f32> =
                (0..count).map(|i| (i as f32 * 0.37).sin() * (i % 5) as f32).collect();
            // Halves, which go to the even neighbour, and what has to be clipped.
            weights[..6].copy_from_slice(&[0.5, 1.5, -2.5, 1e12, -1e12, 127.5]);
            let channels = axis.map_or(1, |axis: usize| shape[axis]);
            let scales: Vec<f32> = (0..channels).map(|c| 1.0 / (1 + c) as f32).collect();
            let quantized = quantize_weights(&weights, &shape, axis, scales.clone());
            let inner: usize = axis.map_or(count, |axis| shape[axis + 1..].iter().product());
            let (mut signal, mut noise) = (0.0, 0.0);
            for (at, integer) in quantized.integers.to_i64s().unwrap().into_iter().enumerate() {
                let scale = scales[at / inner % channels];
                let plain = Affine { scale, zero_point: 0, low: -127, high: 127 };
                assert_eq!(integer, i64::from(plain.quantize(weights[at])), "{shape:?} {axis:?} {at}");
                signal += f64::from(weights[at]).powi(2);
                noise += f64::from(weights[at] - plain.round_trip(weights[at])).powi(2);
            }
            assert!((quantized.signal / signal - 1.0).abs() < 1e-5, "{} {signal}", quantized.signal);
            assert!((quantized.noise / noise - 1.0).abs() < 1e-5, "{} {noise}", quantized.noise);
            let maxima = channel_maxima(&weights, &shape, axis);
            for (channel, max) in maxima.iter().enumerate() {
                let own = weights.iter().enumerate().filter(|(at, _)| at / inner % channels == channel);
                assert_eq!(*max, own.fold(0f32, |max, (_, w)| max.max(w.abs())));
            }
        }
    }
}
