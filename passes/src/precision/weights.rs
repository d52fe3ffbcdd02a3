//! Constants in 16 bits: what rounding does to each, found before anything is rewritten.

use std::collections::BTreeMap;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use optix_ir::{AttributeValue, DType, Model, Tensor, ValueId};
use optix_pipeline::SignalNoise;

/// The greatest finite number and the least positive one of a 16-bit type.
pub(super) fn limits(low: DType) -> (f32, f32) {
    match low {
        DType::BF16 => (bf16::MAX.to_f32(), 9.183_55e-41),
        // The least subnormal number, 2^-24: below it onnxruntime's converter sees a flush to zero too.
        _ => (f16::MAX.to_f32(), 5.960_464_5e-8),
    }
}

/// Below this signal-to-noise ratio a constant has lost what it says: 16-bit rounding of normal numbers
/// leaves 73 dB (float16) or 54 dB (bfloat16); what lies below are constants beneath the normal range.
const LEAST_SQNR_DB: f64 = 40.0;

/// A constant and what it is in 16 bits.
#[derive(Clone, Debug)]
pub(super) struct Rounded {
    /// The constant in the 16-bit type.
    pub tensor: Tensor,
    /// Whether no element changed.
    pub exact: bool,
    /// Finite elements beyond the type's range.
    pub over: usize,
    /// Elements other than zero below the least positive number.
    pub under: usize,
    /// Least and greatest element; infinite ones not counted.
    pub range: (f32, f32),
    /// Signal-to-noise ratio of the rounding in dB; none when nothing was rounded.
    pub sqnr_db: Option<f64>,
    /// Whether elements were clamped to the range.
    pub clamped: bool,
}

impl Rounded {
    /// Rounds a float32 tensor; `clamp` lets elements beyond the range become the greatest finite number.
    pub(super) fn of(tensor: &Tensor, low: DType, clamp: bool) -> Option<Rounded> {
        let floats = tensor.to_slice::<f32>().ok()?;
        let shape = tensor.shape().to_vec();
        let mut facts = Facts::new(limits(low));
        let tensor = match low {
            DType::F16 => {
                let mut to = vec![f16::ZERO; floats.len()];
                facts.convert(
                    &floats,
                    &mut to,
                    clamp,
                    |x, y| y.convert_from_f32_slice(x),
                    |x, y| x.convert_to_f32_slice(y),
                );
                Tensor::from_vec(shape, to)
            }
            DType::BF16 => {
                let mut to = vec![bf16::ZERO; floats.len()];
                facts.convert(
                    &floats,
                    &mut to,
                    clamp,
                    |x, y| y.convert_from_f32_slice(x),
                    |x, y| x.convert_to_f32_slice(y),
                );
                Tensor::from_vec(shape, to)
            }
            _ => return None,
        };
        let sqnr_db = SignalNoise::new(facts.signal, facts.noise).sqnr_db();
        Some(Rounded {
            tensor,
            exact: facts.exact,
            over: facts.over,
            under: facts.under,
            range: (facts.min, facts.max),
            sqnr_db,
            clamped: clamp && facts.over > 0,
        })
    }

    /// Why the constant cannot be a 16-bit one, if so. `divides`: whether something is divided by it.
    pub(super) fn unfit(&self, name: &str, low: DType, divides: bool) -> Option<String> {
        let (max, least) = limits(low);
        if self.over > 0 && !self.clamped {
            let worst = if -self.range.0 > self.range.1 { self.range.0 } else { self.range.1 };
            return Some(format!(
                "{} of `{name}` {} beyond {low}'s {}: up to {worst:e}",
                elements(self.over),
                if self.over == 1 { "is" } else { "are" },
                end(max)
            ));
        }
        if self.sqnr_db.is_some_and(|sqnr| sqnr < LEAST_SQNR_DB) && !self.clamped || divides && self.under > 0
        {
            let what = if self.under > 0 {
                format!(
                    "{} of `{name}` {} below {least:e}",
                    elements(self.under),
                    if self.under == 1 { "is" } else { "are" }
                )
            } else {
                format!("`{name}` is too small for {low}'s full precision")
            };
            return Some(format!(
                "{what}: rounding leaves {}",
                self.sqnr_db.map_or_else(
                    || "zeros to divide by".to_owned(),
                    |sqnr| format!("{:.0} dB of it", sqnr.max(0.0))
                )
            ));
        }
        None
    }
}

/// The end of a type's range, for people.
pub(super) fn end(max: f32) -> String {
    if max < 1e6 { max.to_string() } else { format!("{max:.2e}") }
}

fn elements(count: usize) -> String {
    if count == 1 { "1 element".to_owned() } else { format!("{count} elements") }
}

/// Sums over the elements.
struct Facts {
    limits: (f32, f32),
    exact: bool,
    over: usize,
    under: usize,
    min: f32,
    max: f32,
    signal: f64,
    noise: f64,
}

impl Facts {
    fn new(limits: (f32, f32)) -> Facts {
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        Facts { limits, exact: true, over: 0, under: 0, min, max, signal: 0.0, noise: 0.0 }
    }

    #[allow(clippy::needless_range_loop, reason = "one lane of several arrays")]
    fn convert<T>(
        &mut self,
        from: &[f32],
        to: &mut [T],
        clamp: bool,
        narrow: impl Fn(&[f32], &mut [T]),
        widen: impl Fn(&[T], &mut [f32]),
    ) {
        const CHUNK: usize = 1024;
        const LANES: usize = 8;
        let mut back = [0f32; CHUNK];
        let mut clamped = [0f32; CHUNK];
        let (most, least) = self.limits;
        for (from, to) in from.chunks(CHUNK).zip(to.chunks_mut(CHUNK)) {
            let source = if clamp {
                for (slot, &x) in clamped.iter_mut().zip(from) {
                    *slot = if x.is_finite() { x.clamp(-most, most) } else { x };
                }
                &clamped[..from.len()]
            } else {
                from
            };
            narrow(source, to);
            let back = &mut back[..from.len()];
            widen(to, back);
            // Sums of a chunk in 8 lanes, one loop a statistic: the compiler makes them into vectors.
            let (mut signal, mut noise) = ([0f32; LANES], [0f32; LANES]);
            let (mut min, mut max) = ([self.min; LANES], [self.max; LANES]);
            let (mut beneath, mut differs) = ([0u32; LANES], [0u32; LANES]);
            let mut take = |xs: &[f32; LANES], ys: &[f32; LANES]| {
                for lane in 0..LANES {
                    let error = xs[lane] - ys[lane];
                    signal[lane] += xs[lane] * xs[lane];
                    noise[lane] += error * error;
                }
                for lane in 0..LANES {
                    min[lane] = if xs[lane] < min[lane] { xs[lane] } else { min[lane] };
                    max[lane] = if xs[lane] > max[lane] { xs[lane] } else { max[lane] };
                }
                for lane in 0..LANES {
                    let size = xs[lane].abs();
                    beneath[lane] += u32::from(size < least) & u32::from(size > 0.0);
                    differs[lane] |= xs[lane].to_bits() ^ ys[lane].to_bits();
                }
            };
            let ((xs, xs_rest), (ys, ys_rest)) = (from.as_chunks::<LANES>(), back.as_chunks::<LANES>());
            xs.iter().zip(ys).for_each(|(xs, ys)| take(xs, ys));
            // The last few, filled up with zeros, which change no sum.
            let (mut last_x, mut last_y) = ([0f32; LANES], [0f32; LANES]);
            last_x[..xs_rest.len()].copy_from_slice(xs_rest);
            last_y[..ys_rest.len()].copy_from_slice(ys_rest);
            if !xs_rest.is_empty() {
                take(&last_x, &last_y);
            }
            let same = differs.iter().all(|&bits| bits == 0);
            // NaN, infinity and squares that overflow make the sum what is not finite.
            let odd = !(signal.iter().sum::<f32>() + noise.iter().sum::<f32>()).is_finite();
            let under = beneath.iter().sum::<u32>() as usize;
            let mut min = min.iter().copied().fold(f32::INFINITY, f32::min);
            let mut max = max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let padded = !xs_rest.is_empty();
            if padded && (min == 0.0 || max == 0.0) && !from.contains(&0.0) {
                // A zero that only the filling has.
                (min, max) = (self.min, self.max);
                for &x in from {
                    (min, max) = (min.min(x), max.max(x));
                }
            }
            let beyond = odd || max > most || min < -most;
            let over =
                if beyond { from.iter().filter(|x| x.is_finite() && x.abs() > most).count() } else { 0 };
            self.exact &= same;
            self.over += over;
            self.under += under;
            if odd {
                // Squares that overflow, NaN and infinity: one by one, in double precision.
                for (&x, &y) in from.iter().zip(back.iter()).filter(|(x, _)| x.is_finite()) {
                    let error = if y.is_finite() { f64::from(x) - f64::from(y) } else { f64::from(x) };
                    self.min = self.min.min(x);
                    self.max = self.max.max(x);
                    self.signal += f64::from(x) * f64::from(x);
                    self.noise += error * error;
                }
            } else {
                (self.min, self.max) = (min, max);
                // Squares of small numbers vanish in single precision: scaled sums would, so they are redone.
                let (s, n) = (
                    signal.iter().map(|&x| f64::from(x)).sum::<f64>(),
                    noise.iter().map(|&x| f64::from(x)).sum::<f64>(),
                );
                if s < 1e-25 || n < 1e-30 && !same {
                    for (&x, &y) in from.iter().zip(back.iter()) {
                        self.signal += f64::from(x) * f64::from(x);
                        self.noise += (f64::from(x) - f64::from(y)).powi(2);
                    }
                } else {
                    self.signal += s;
                    self.noise += n;
                }
            }
        }
    }
}

/// All float32 constants of a model in 16 bits.
#[derive(Debug)]
pub(super) struct Weights {
    rounded: BTreeMap<ValueId, Rounded>,
    /// The type they are rounded to.
    pub low: DType,
}

impl Weights {
    /// Rounds the given constants.
    pub(super) fn round(
        model: &Model,
        constants: impl IntoIterator<Item = ValueId>,
        low: DType,
        clamp: bool,
    ) -> Weights {
        let round = |value: ValueId| Some((value, Rounded::of(&constant(model, value)?, low, clamp)?));
        Weights { rounded: constants.into_iter().filter_map(round).collect(), low }
    }

    /// A constant in 16 bits.
    pub(super) fn get(&self, value: ValueId) -> Option<&Rounded> {
        self.rounded.get(&value)
    }
}

/// The float32 constant that a value is, whatever the file says it with: an initializer, which in IR
/// version 3 is an input too, or a `Constant` node.
pub(super) fn constant(model: &Model, value: ValueId) -> Option<Tensor> {
    let held = model.value(value);
    let is_listed = model.ir_version < 4 && held.is_input();
    let tensor = match held.producer() {
        None if is_listed => held.tensor().cloned(),
        None => held.constant().cloned(),
        Some((node, _)) if model.node(node).is("Constant") => {
            let node = model.node(node);
            match (node.attribute("value"), node.attribute("value_float"), node.attribute("value_floats")) {
                (Some(AttributeValue::Tensor(stored)), ..) => Some(stored.tensor.clone()),
                (_, Some(AttributeValue::Float(x)), _) => Some(Tensor::scalar(*x)),
                (_, _, Some(AttributeValue::Floats(xs))) => {
                    Some(Tensor::from_vec(vec![xs.len()], xs.clone()))
                }
                _ => None,
            }
        }
        Some(_) => None,
    };
    tensor.filter(|tensor| tensor.dtype() == DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(values: &[f32]) -> Rounded {
        Rounded::of(&Tensor::from_vec(vec![values.len()], values.to_vec()), DType::F16, false).unwrap()
    }

    #[test]
    fn constants_that_do_not_fit_are_named() {
        let unfit = |values: &[f32], divides| rounded(values).unfit("w", DType::F16, divides);
        assert_eq!(unfit(&[1.0, 65504.0, f32::NEG_INFINITY], false), None);
        assert_eq!(
            unfit(&[1.0, -3.4e38, 70000.0], false).unwrap(),
            "2 elements of `w` are beyond float16's 65504: up to -3.4e38"
        );
        assert_eq!(
            unfit(&[1e-12], false).unwrap(),
            "1 element of `w` is below 5.9604645e-8: rounding leaves 0 dB of it"
        );
        // Among larger ones it does not matter, unless something is divided by it.
        assert_eq!(unfit(&[1e-12, 1.0], false), None);
        assert!(unfit(&[1e-12, 1.0], true).is_some());
        assert_eq!(unfit(&[1e-5], false), None);
        assert!(unfit(&[1e-6], false).is_some());
        let odd = Tensor::from_vec(vec![2], vec![-3.4e38f32, 1.0]);
        let clamped = Rounded::of(&odd, DType::F16, true).unwrap();
        assert_eq!(clamped.unfit("w", DType::F16, false), None);
        assert_eq!(clamped.tensor.to_f64s().unwrap(), [-65504.0, 1.0]);
        // The least float32 is beyond bfloat16 too, by half a step.
        let brain = Rounded::of(&Tensor::scalar(f32::MIN), DType::BF16, false).unwrap();
        assert!(brain.unfit("w", DType::BF16, false).unwrap().contains("bfloat16's 3.39e38"));
        let brain = Rounded::of(&Tensor::scalar(-3.3e38f32), DType::BF16, false).unwrap();
        assert_eq!(brain.unfit("w", DType::BF16, false), None);
    }

    #[test]
    fn every_float16_is_exact_and_rounding_is_to_nearest() {
        let all: Vec<f32> =
            (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).filter(|x| !x.is_nan()).collect();
        let same = rounded(&all);
        assert!(same.exact && same.sqnr_db.is_none() && same.over == 0);
        assert_eq!(same.range, (-65504.0, 65504.0));
        let values: Vec<f32> = (0..5000).map(|i| ((i * 7919 % 4999) as f32 / 2500.0 - 1.0) * 0.3).collect();
        let found = rounded(&values);
        let (mut signal, mut noise) = (0.0, 0.0);
        for (&x, y) in values.iter().zip(found.tensor.to_f64s().unwrap()) {
            assert_eq!(y, f16::from_f32(x).to_f64());
            signal += f64::from(x).powi(2);
            noise += (f64::from(x) - y).powi(2);
        }
        let expected: f64 = 10.0 * (signal / noise).log10();
        assert!((found.sqnr_db.unwrap() - expected).abs() < 0.01 && expected > 70.0);
    }
}
