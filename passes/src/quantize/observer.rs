//! What calibration remembers of a tensor: fixed memory, one streaming pass.
//!
//! A histogram of [`BINS`] bins whose range doubles (bins merge pairwise) when values exceed it. Exact
//! zeros, which ReLU makes in masses and every quantizer keeps exact, are counted apart.

use super::affine::Affine;
use optix_ir::DType;

/// Bins of a histogram: eight for each step of an 8-bit quantizer.
pub const BINS: usize = 2048;

/// Statistics of one tensor over all calibration samples.
#[derive(Clone, Debug)]
pub struct Observer {
    bins: Vec<u64>,
    /// Left edge of the first bin.
    low: f64,
    /// Width of a bin; 0 before the first non-zero value.
    width: f64,
    min: f32,
    max: f32,
    zeros: u64,
    count: u64,
    non_finite: u64,
}

impl Default for Observer {
    fn default() -> Self {
        Observer {
            bins: vec![0; BINS],
            low: 0.0,
            width: 0.0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            zeros: 0,
            count: 0,
            non_finite: 0,
        }
    }
}

impl Observer {
    /// Takes in some elements. Non-finite ones are counted and otherwise ignored.
    pub fn observe(&mut self, elements: &[f32]) {
        let (mut min, mut max, mut finite) = (f32::INFINITY, f32::NEG_INFINITY, true);
        for &x in elements {
            min = min.min(x);
            max = max.max(x);
            finite &= x.is_finite();
        }
        if !finite {
            let kept: Vec<f32> = elements.iter().copied().filter(|x| x.is_finite()).collect();
            self.non_finite += (elements.len() - kept.len()) as u64;
            self.observe(&kept);
            return;
        }
        if elements.is_empty() {
            return;
        }
        self.count += elements.len() as u64;
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        self.cover(min, max);
        if self.width == 0.0 {
            self.zeros += elements.len() as u64;
            return;
        }
        let (low, scale) = (self.low as f32, (1.0 / self.width) as f32);
        let mut zeros = 0;
        for &x in elements {
            if x == 0.0 {
                zeros += 1;
            } else {
                // Truncation saturates, so a hair below the edge lands in bin 0.
                let bin = ((x - low) * scale) as usize;
                self.bins[bin.min(BINS - 1)] += 1;
            }
        }
        self.zeros += zeros;
    }

    /// Makes the histogram's range cover `min..=max`.
    fn cover(&mut self, min: f32, max: f32) {
        let (min, max) = (f64::from(min).min(0.0), f64::from(max).max(0.0));
        if min == max {
            return;
        }
        if self.width == 0.0 {
            self.low = min;
            self.width = (max - min) / BINS as f64;
        }
        while max > self.low + self.width * BINS as f64 {
            for bin in 0..BINS / 2 {
                self.bins[bin] = self.bins[2 * bin] + self.bins[2 * bin + 1];
            }
            self.bins[BINS / 2..].fill(0);
            self.width *= 2.0;
        }
        while min < self.low {
            for bin in (0..BINS / 2).rev() {
                self.bins[BINS / 2 + bin] = self.bins[2 * bin] + self.bins[2 * bin + 1];
            }
            self.bins[..BINS / 2].fill(0);
            self.low -= self.width * BINS as f64;
            self.width *= 2.0;
        }
    }

    /// Elements taken in.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// NaN and infinite elements met.
    pub fn non_finite(&self) -> u64 {
        self.non_finite
    }

    /// Least and greatest element; `None` before the first.
    pub fn range(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    /// Sum of squares and sum of squared errors that a quantizer would make, from the histogram.
    pub fn signal_and_noise(&self, quantizer: &Affine) -> (f64, f64) {
        let (mut signal, mut noise) = (0.0, 0.0);
        for (bin, &count) in self.bins.iter().enumerate() {
            if count > 0 {
                let center = self.low + (bin as f64 + 0.5) * self.width;
                let error = center - f64::from(quantizer.round_trip(center as f32));
                signal += count as f64 * center * center;
                noise += count as f64 * error * error;
            }
        }
        (signal, noise)
    }

    /// Expected signal-to-quantization-noise ratio in dB; `None` when there is no noise.
    pub fn sqnr_db(&self, quantizer: &Affine) -> Option<f64> {
        let (signal, noise) = self.signal_and_noise(quantizer);
        (noise > 0.0 && signal > 0.0).then(|| 10.0 * (signal / noise).log10())
    }

    /// The quantizer of the whole range seen.
    pub fn min_max(&self, dtype: DType) -> Affine {
        let (min, max) = self.range().unwrap_or((0.0, 0.0));
        Affine::asymmetric(min, max, dtype)
    }

    /// The quantizer with the least mean squared error over the histogram, by narrowing both ends of the
    /// range together and then each on its own. The whole range is always a candidate.
    pub fn mean_squared_error(&self, dtype: DType) -> Affine {
        let (min, max) = self.range().unwrap_or((0.0, 0.0));
        let (min, max) = (min.min(0.0), max.max(0.0));
        let noise = |low: f32, high: f32| self.signal_and_noise(&Affine::asymmetric(low, high, dtype)).1;
        let mut best = (noise(min, max), 1.0f32, 1.0f32);
        let consider = |best: &mut (f64, f32, f32), low: f32, high: f32| {
            let found = noise(min * low, max * high);
            if found < best.0 {
                *best = (found, low, high);
                return true;
            }
            false
        };
        // Coarse: both ends together. Error is nearly convex in the share kept, so a run of failures ends it.
        let mut failures = 0;
        for step in 1..40 {
            let keep = 1.0 - step as f32 * 0.02;
            failures = if consider(&mut best, keep, keep) { 0 } else { failures + 1 };
            if failures > 8 {
                break;
            }
        }
        // Fine: one end at a time, around the best.
        for _ in 0..2 {
            for end in [0, 1] {
                if (end == 0 && min == 0.0) || (end == 1 && max == 0.0) {
                    continue;
                }
                let (_, low, high) = best;
                for step in -8i32..=8 {
                    let moved = (if end == 0 { low } else { high }) + step as f32 * 0.01;
                    if (0.05..=1.0).contains(&moved) {
                        let (low, high) = if end == 0 { (moved, high) } else { (low, moved) };
                        consider(&mut best, low, high);
                    }
                }
            }
        }
        Affine::asymmetric(min * best.1, max * best.2, dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_when_the_range_grows() {
        let mut observer = Observer::default();
        for scale in [0.01f32, 1.0, 0.5, 30.0, 7.0] {
            let values: Vec<f32> =
                (0..1000).map(|i| ((i * 37 % 1000) as f32 / 500.0 - 1.0) * scale).collect();
            observer.observe(&values);
        }
        assert_eq!(observer.count(), 5000);
        assert_eq!(observer.bins.iter().sum::<u64>() + observer.zeros, 5000);
        assert_eq!(observer.range(), Some((-30.0, 29.94)));
    }

    #[test]
    fn order_of_batches_does_not_change_ranges() {
        let values: Vec<f32> = (0..4096).map(|i| (i as f32 * 0.71).sin() * (i % 13) as f32).collect();
        let ranges = |chunk: usize, reverse: bool| {
            let mut observer = Observer::default();
            let mut chunks: Vec<&[f32]> = values.chunks(chunk).collect();
            if reverse {
                chunks.reverse();
            }
            chunks.into_iter().for_each(|chunk| observer.observe(chunk));
            observer.min_max(DType::U8)
        };
        assert_eq!(ranges(64, false), ranges(1000, true));
    }

    #[test]
    fn a_lone_outlier_is_cut_by_the_mse_observer_only() {
        let mut observer = Observer::default();
        let values: Vec<f32> =
            (0..1_000_000).map(|i| (f64::from(i) * 0.618).fract() as f32 * 2.0 - 1.0).collect();
        observer.observe(&values);
        observer.observe(&[4.0]);
        let (whole, best) = (observer.min_max(DType::U8), observer.mean_squared_error(DType::U8));
        assert!(best.scale < whole.scale * 0.9, "{} {}", best.scale, whole.scale);
        assert!(observer.sqnr_db(&best) > observer.sqnr_db(&whole));
    }

    #[test]
    fn never_worse_than_min_max() {
        for seed in 0..20u32 {
            let mut observer = Observer::default();
            let values: Vec<f32> = (0..3000u32)
                .map(|i| ((i * 7919 + seed * 104_729) % 9973) as f32 / 997.3 - seed as f32 * 0.4)
                .collect();
            observer.observe(&values);
            let noise = |quantizer| observer.signal_and_noise(&quantizer).1;
            assert!(noise(observer.mean_squared_error(DType::U8)) <= noise(observer.min_max(DType::U8)));
        }
    }

    #[test]
    fn non_finite_and_empty_input_is_survived() {
        let mut observer = Observer::default();
        observer.observe(&[]);
        observer.observe(&[f32::NAN, f32::INFINITY]);
        assert_eq!((observer.count(), observer.non_finite(), observer.range()), (0, 2, None));
        observer.observe(&[0.0, 0.0]);
        assert_eq!(observer.min_max(DType::U8), Affine { scale: 1.0, zero_point: 0, low: 0, high: 255 });
        observer.observe(&[1.0, f32::NAN]);
        assert_eq!(observer.range(), Some((0.0, 1.0)));
        assert_eq!(observer.non_finite(), 3);
    }
}
