//! Signals and their spectra: DFT, STFT, windows and MelWeightMatrix.
//!
//! <https://onnx.ai/onnx/operators/onnx__DFT.html>, <https://onnx.ai/onnx/operators/onnx__STFT.html>,
//! <https://onnx.ai/onnx/operators/onnx__HannWindow.html> and its neighbours,
//! <https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html>

use std::f64::consts::{LN_10, PI};

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::conv::MOST_STEPS;
use crate::movement::{integers, product};
use crate::numbers::{Numbers, float_tensor, whole_tensor};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("DFT", 17, dft),
    KernelSpec::onnx("STFT", 17, stft),
    KernelSpec::onnx("HannWindow", 17, |call| window(call, |angle| (angle / 2.0).sin().powi(2))),
    KernelSpec::onnx("HammingWindow", 17, |call| {
        window(call, |angle| 25.0 / 46.0 - 21.0 / 46.0 * angle.cos())
    }),
    KernelSpec::onnx("BlackmanWindow", 17, |call| {
        window(call, |angle| 0.42 - 0.5 * angle.cos() + 0.08 * (2.0 * angle).cos())
    }),
    KernelSpec::onnx("MelWeightMatrix", 17, mel_weights),
];

type Complex = (f64, f64);

fn plus(a: Complex, b: Complex) -> Complex {
    (a.0 + b.0, a.1 + b.1)
}

fn times(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

/// Fourier transforms of one length.
struct Fourier {
    /// The powers of the root of unity.
    roots: Vec<Complex>,
}

impl Fourier {
    fn new(call: &Call<'_>, length: usize, inverse: bool, count: usize) -> Result<Fourier, OpError> {
        call.check_size(DType::Complex128, &[length])?;
        let mut work = 0u64;
        let mut rest = length;
        while rest > 1 {
            let factor = smallest_factor(rest);
            work += factor as u64;
            rest /= factor;
        }
        let work = work.saturating_mul(length as u64).saturating_mul(count as u64);
        if work > MOST_STEPS {
            return Err(call.unsupported(format!("transforms of {work} products")));
        }
        let sign = if inverse { 2.0 } else { -2.0 };
        let root = |power: usize| {
            // Quarter turns are exact.
            let (quarter, rest) = (power * 4 / length, power * 4 % length);
            let (sine, cosine) = (rest as f64 * PI / 2.0 / length as f64).sin_cos();
            let (x, y) = match quarter {
                0 => (cosine, sine),
                1 => (-sine, cosine),
                2 => (-cosine, -sine),
                _ => (sine, -cosine),
            };
            (x, if sign < 0.0 { -y } else { y })
        };
        Ok(Fourier { roots: (0..length).map(root).collect() })
    }

    fn run(&self, signal: &[Complex]) -> Vec<Complex> {
        self.part(signal, 0, 1)
    }

    /// The transform of every `step`th element: of its interleaved parts, as many as the length's smallest
    /// factor, put together.
    fn part(&self, signal: &[Complex], start: usize, step: usize) -> Vec<Complex> {
        let length = signal.len() / step;
        if length <= 1 {
            return signal[start..].first().copied().into_iter().collect();
        }
        let factor = smallest_factor(length);
        let parts: Vec<Vec<Complex>> =
            (0..factor).map(|part| self.part(signal, start + part * step, step * factor)).collect();
        let short = length / factor;
        (0..length)
            .map(|at| {
                let term = |(index, part): (usize, &Vec<Complex>)| {
                    times(part[at % short], self.roots[index * at % length * step])
                };
                parts.iter().enumerate().map(term).fold((0.0, 0.0), plus)
            })
            .collect()
    }
}

fn smallest_factor(number: usize) -> usize {
    let mut factor = 2;
    while factor * factor <= number {
        if number.is_multiple_of(factor) {
            return factor;
        }
        factor += 1;
    }
    number
}

fn scalar(call: &Call<'_>, slot: usize) -> Result<Option<i64>, OpError> {
    if call.optional(slot).is_none() {
        return Ok(None);
    }
    match integers(call, slot)?.as_slice() {
        [value] => Ok(Some(*value)),
        values => Err(call.invalid(format!("input {slot} has {} elements instead of one", values.len()))),
    }
}

fn positive(call: &Call<'_>, what: &str, value: i64) -> Result<usize, OpError> {
    let value = usize::try_from(value).ok().filter(|size| (1..1 << 40).contains(size));
    value.ok_or_else(|| call.invalid(format!("{what} must be positive")))
}

fn dft(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let rank = x.rank();
    // An attribute until version 19, an input since.
    let axis =
        if call.opset < 20 { call.node.int("axis").unwrap_or(1) } else { scalar(call, 2)?.unwrap_or(-2) };
    let axis = call.axis(axis, rank)?;
    let parts = x.shape().last().copied().unwrap_or(0);
    if axis + 1 == rank || !(1..=2).contains(&parts) {
        return Err(call.invalid(format!("axis {axis} of shape {:?} is not that of a signal", x.shape())));
    }
    let flag = |name: &str| call.node.int(name).unwrap_or(0) != 0;
    let (inverse, onesided) = (flag("inverse"), flag("onesided"));
    if onesided && (parts == 1) == inverse {
        return Err(call.unsupported("onesided between complex numbers"));
    }
    let size = x.shape()[axis];
    let length = match scalar(call, 1)? {
        Some(length) => length,
        None if inverse && onesided => 2 * (size as i64 - 1),
        None => size as i64,
    };
    let length = positive(call, "the length of the transform", length)?;
    let mut shape = x.shape().to_vec();
    shape[axis] = if onesided && !inverse { length / 2 + 1 } else { length };
    shape[rank - 1] = if onesided && inverse { 1 } else { 2 };
    call.check_size(DType::F64, &shape)?;
    let Numbers::Floats(values) = Numbers::of(call, x)? else { return Err(call.wrong_type(0, x.dtype())) };
    if shape.contains(&0) {
        return Ok(vec![float_tensor(call, x.dtype(), shape, &[])?]);
    }
    let (outer, inner) = (product(&x.shape()[..axis]), product(&x.shape()[axis + 1..rank - 1]));
    let fourier = Fourier::new(call, length, inverse, outer.saturating_mul(inner))?;
    let scale = if inverse { 1.0 / length as f64 } else { 1.0 };
    let (out, out_parts) = (shape[axis], shape[rank - 1]);
    let mut result = vec![0f64; product(&shape)];
    // Half a spectrum stands for the other half too.
    let used = if onesided && inverse { length / 2 + 1 } else { length };
    for row in 0..outer * inner {
        let (block, lane) = (row / inner, row % inner);
        let mut signal = vec![(0.0, 0.0); length];
        for (index, element) in signal.iter_mut().enumerate().take(used.min(size)) {
            let at = ((block * size + index) * inner + lane) * parts;
            *element = (values[at], if parts == 2 { values[at + 1] } else { 0.0 });
        }
        if onesided && inverse {
            signal[0].1 = 0.0;
            for index in 1..=length / 2 {
                let (real, imaginary) = signal[index];
                signal[index].1 = if index * 2 == length { 0.0 } else { imaginary };
                if index * 2 != length {
                    signal[length - index] = (real, -imaginary);
                }
            }
        }
        for (index, (real, imaginary)) in fourier.run(&signal).into_iter().enumerate().take(out) {
            let at = ((block * out + index) * inner + lane) * out_parts;
            result[at] = real * scale;
            if out_parts == 2 {
                result[at + 1] = imaginary * scale;
            }
        }
    }
    Ok(vec![float_tensor(call, x.dtype(), shape, &result)?])
}

fn stft(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let &[batch, size, parts @ 1..=2] = x.shape() else {
        return Err(call.invalid(format!("shape {:?} is not that of signals", x.shape())));
    };
    let floats = |tensor: &Tensor, slot: usize| match Numbers::of(call, tensor)? {
        Numbers::Floats(values) => Ok(values),
        Numbers::Integers(_) => Err(call.wrong_type(slot, tensor.dtype())),
    };
    let step = scalar(call, 1)?.ok_or_else(|| call.invalid("the step between frames is missing"))?;
    let step = positive(call, "the step between frames", step)?;
    let window = call.optional(2).map(|window| floats(window, 2)).transpose()?;
    let length = match (scalar(call, 3)?, &window) {
        (Some(length), _) => length,
        (None, Some(window)) => window.len() as i64,
        (None, None) => size as i64,
    };
    let length = positive(call, "the length of frames", length)?;
    if length > size || window.as_ref().is_some_and(|window| window.len() != length) {
        return Err(call.invalid(format!("frames of {length} fit neither the signal nor the window")));
    }
    let onesided = call.node.int("onesided").unwrap_or(1) != 0;
    if onesided && parts == 2 {
        return Err(call.unsupported("onesided with a complex signal"));
    }
    let frames = (size - length) / step + 1;
    let bins = if onesided { length / 2 + 1 } else { length };
    let shape = vec![batch, frames, bins, 2];
    call.check_size(DType::F64, &shape)?;
    let values = floats(x, 0)?;
    let fourier = Fourier::new(call, length, false, batch.saturating_mul(frames))?;
    let mut result = Vec::with_capacity(product(&shape));
    for start in (0..batch).flat_map(|signal| (0..frames).map(move |frame| signal * size + frame * step)) {
        let element = |index: usize| {
            let at = (start + index) * parts;
            let weight = window.as_ref().map_or(1.0, |window| window[index]);
            (values[at] * weight, if parts == 2 { values[at + 1] * weight } else { 0.0 })
        };
        let signal: Vec<Complex> = (0..length).map(element).collect();
        result.extend(fourier.run(&signal)[..bins].iter().flat_map(|&(real, imaginary)| [real, imaginary]));
    }
    Ok(vec![float_tensor(call, x.dtype(), shape, &result)?])
}

fn output_type(call: &Call<'_>) -> Result<DType, OpError> {
    let code = call.node.int("output_datatype").unwrap_or(1);
    let dtype = i32::try_from(code).ok().and_then(DType::from_onnx);
    dtype.ok_or_else(|| call.invalid(format!("`output_datatype` is {code}, which is no type")))
}

/// A window that is a function of the part of the circle gone through.
fn window(call: &Call<'_>, weight: fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let dtype = output_type(call)?;
    let size = scalar(call, 0)?.ok_or_else(|| call.invalid("the size is missing"))?;
    let size = usize::try_from(size).map_err(|_| call.invalid(format!("size {size} is negative")))?;
    let periodic = call.node.int("periodic").unwrap_or(1) != 0;
    if !dtype.is_float() {
        return Err(call.unsupported(format!("a window of {dtype}")));
    }
    if !periodic && size == 1 {
        // The formula divides zero by zero.
        return Err(call.unsupported("a symmetric window of one element"));
    }
    call.check_size(DType::F64, &[size])?;
    let whole = if periodic { size } else { size.wrapping_sub(1) } as f64;
    let values: Vec<f64> = (0..size).map(|at| weight(2.0 * PI * at as f64 / whole)).collect();
    Ok(vec![float_tensor(call, dtype, vec![size], &values)?])
}

fn mel_weights(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let dtype = output_type(call)?;
    let size = |slot: usize| -> Result<usize, OpError> {
        let value = scalar(call, slot)?.ok_or_else(|| call.invalid(format!("input {slot} is missing")))?;
        positive(call, "each of its sizes", value)
    };
    let (bins, length, rate) = (size(0)?, size(1)?, size(2)?);
    let edge = |slot: usize| -> Result<f64, OpError> {
        let hertz = call.input(slot)?.single().filter(|hertz| hertz.is_finite() && *hertz >= 0.0);
        hertz.ok_or_else(|| call.invalid(format!("input {slot} is no frequency")))
    };
    let (low, high) = (edge(3)?, edge(4)?);
    let shape = vec![length / 2 + 1, bins];
    call.check_size(DType::F64, &shape)?;
    let mel = |hertz: f64| 2595.0 * (hertz / 700.0).ln_1p() / LN_10;
    let step = (mel(high) - mel(low)) / (bins as f64 + 2.0);
    // The spectrum's bin that each corner of the triangles lies in.
    let corner = |index: usize| {
        let hertz = 700.0 * ((index as f64 * step + mel(low)) / 2595.0 * LN_10).exp_m1();
        ((length as f64 + 1.0) * hertz / rate as f64).floor().max(0.0) as usize
    };
    if high < low || corner(bins) >= shape[0] || corner(bins + 1) > shape[0] {
        return Err(call.invalid(format!("frequencies from {low} to {high} are not those of the spectrum")));
    }
    let mut result = vec![0f64; product(&shape)];
    for bin in 0..bins {
        let (left, center, right) = (corner(bin), corner(bin + 1), corner(bin + 2));
        for at in left..right.max(center + 1).min(shape[0]) {
            let rising = if center == left { 1.0 } else { (at - left) as f64 / (center - left) as f64 };
            let falling = (right as f64 - at as f64) / (right - center) as f64;
            result[at * bins + bin] = if at <= center { rising } else { falling };
        }
    }
    let tensor = if dtype.is_float() {
        float_tensor(call, dtype, shape, &result)?
    } else {
        let whole: Vec<i64> = result.iter().map(|&value| value as i64).collect();
        whole_tensor(call, dtype, shape, &whole)?
    };
    Ok(vec![tensor])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    #[test]
    fn every_length_transforms_back_and_forth() {
        for length in [1usize, 2, 3, 8, 12, 30, 37, 49] {
            let values: Vec<f64> = (0..length * 2).map(|at| ((at * at + 3) % 17) as f64 - 8.0).collect();
            let x = Tensor::from_vec(vec![1, length, 2], values.clone());
            let axis = Tensor::scalar(1i64);
            let run = |x: &Tensor, inverse: i64| {
                let node = Node::new("DFT", []).with("inverse", inverse);
                dft(&Call::new(&node, 20, &[Some(x), None, Some(&axis)])).unwrap().remove(0)
            };
            let spectrum = run(&x, 0);
            let sum: f64 = values.iter().step_by(2).sum();
            assert!((spectrum.to_f64s().unwrap()[0] - sum).abs() < 1e-9);
            let again = run(&spectrum, 1).to_f64s().unwrap();
            assert!(again.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-12), "{length}: {again:?}");
        }
    }

    #[test]
    fn half_a_spectrum_is_that_of_real_numbers() {
        let half = Tensor::from_vec(vec![1, 3, 2], vec![1f64, 2.0, 3.0, -1.0, 0.5, 4.0]);
        let node = Node::new("DFT", []).with("inverse", 1).with("onesided", 1);
        let run = |length: Option<i64>| {
            let length = length.map(Tensor::scalar);
            let inputs = [Some(&half), length.as_ref()];
            let call = Call::new(&node, 20, &inputs);
            dft(&call).map(|outputs| outputs[0].to_f64s().unwrap())
        };
        // What numpy makes of it.
        assert_eq!(run(None).unwrap(), [1.875, 0.625, -1.125, -0.375]);
        let five = [
            1.6,
            -0.151_016_802_774_948,
            1.047_787_532_614_287,
            -2.465_821_521_364_182,
            0.969_050_791_524_843,
        ];
        assert!(run(Some(5)).unwrap().iter().zip(five).all(|(a, b)| (a - b).abs() < 1e-12));
        assert!(run(Some(0)).is_err() && run(Some(-1)).is_err() && run(Some(1 << 50)).is_err());
    }

    #[test]
    fn hostile_sizes_are_refused() {
        let run = |op: &str, inputs: &[&Tensor]| {
            let node = Node::new(op, []);
            let inputs: Vec<Option<&Tensor>> = inputs.iter().copied().map(Some).collect();
            (crate::find("", op).unwrap().run)(&Call::new(&node, 17, &inputs))
        };
        let number = |value: i64| Tensor::scalar(value);
        for size in [-1, 1 << 50, i64::MAX] {
            assert!(run("HannWindow", &[&number(size)]).is_err());
        }
        assert!(run("HannWindow", &[&number(0)]).unwrap()[0].is_empty());
        let signal = Tensor::from_vec(vec![1, 4, 1], vec![1f32; 4]);
        let window = Tensor::from_vec(vec![2], vec![1f32; 2]);
        for step in [0, -1, i64::MIN] {
            assert!(run("STFT", &[&signal, &number(step), &window]).is_err());
        }
        assert_eq!(
            run("STFT", &[&signal, &number(i64::MAX >> 24), &window]).unwrap()[0].shape(),
            [1, 1, 2, 2]
        );
        let edge = |hertz: f32| Tensor::scalar(hertz);
        let sizes = [number(4), number(16), number(8000)];
        let mel = |low: f32, high: f32| {
            run("MelWeightMatrix", &[&sizes[0], &sizes[1], &sizes[2], &edge(low), &edge(high)])
        };
        assert!(mel(0.0, 3000.0).is_ok());
        assert!(mel(3000.0, 0.0).is_err() && mel(0.0, 1e30).is_err() && mel(f32::NAN, 1.0).is_err());
    }
}
