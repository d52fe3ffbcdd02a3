//! What calibration remembers of a tensor: fixed memory, one streaming pass, mergeable.
//!
//! An [`Observer`] keeps extremes, a histogram, per-sample extremes and, where asked, statistics of channels.
//! Statistics of parts that were observed apart and merged in order equal those of all samples observed at
//! once bit for bit, and do not depend on how samples were batched as long as each tensor has its samples
//! along axis 0. (The moving averages are equal up to rounding.) How a range is chosen from an observer is
//! one file a method: `min_max`, `moving_average`, `mean_extremes`, `percentile`, `entropy`,
//! `mean_squared_error`. A search for the greatest signal-to-quantization-noise ratio is the last one: the
//! signal does not depend on the quantizer.

mod channels;
mod density;
mod encoding;
mod entropy;
mod exact_sum;
mod growth;
mod histogram;
mod mean_extremes;
mod mean_squared_error;
mod min_max;
mod moving_average;
mod percentile;
#[cfg(test)]
mod tests;

pub use channels::Channel;
pub(super) use encoding::{Reader, Truncated, Writer};
pub use histogram::BINS;

use channels::Channels;
use density::Density;
use growth::Growth;
use histogram::Histogram;
use mean_extremes::SampleExtremes;
use moving_average::MovingAverage;
use optix_ir::DType;
use optix_pipeline::SignalNoise;

use super::affine::Affine;

/// Statistics of one tensor over all calibration samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Observer {
    histogram: Histogram,
    min: f32,
    max: f32,
    zeros: u64,
    count: u64,
    nan: u64,
    infinite: u64,
    /// Samples seen, those without a finite element included.
    samples: u64,
    extremes: SampleExtremes,
    average: MovingAverage,
    growth: Growth,
    channels: Channels,
}

impl Default for Observer {
    fn default() -> Self {
        Observer::new(None)
    }
}

/// Least element, greatest element and sum. What is not finite makes the sum so.
fn scan(elements: &[f32]) -> (f32, f32, f64) {
    const LANES: usize = 8;
    let (mut least, mut most) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut sums = [0f64; LANES];
    let mut take = |block: &[f32]| {
        for (((least, most), sum), &x) in least.iter_mut().zip(&mut most).zip(&mut sums).zip(block) {
            *least = if x < *least { x } else { *least };
            *most = if x > *most { x } else { *most };
            *sum += f64::from(x);
        }
    };
    let blocks = elements.chunks_exact(LANES);
    let rest = blocks.remainder();
    blocks.for_each(&mut take);
    take(rest);
    let min = least.into_iter().fold(f32::INFINITY, f32::min);
    let max = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    (min, max, sums.into_iter().sum())
}

impl Observer {
    /// An observer of tensors whose channels lie along `channel_axis` (negative: from the end), where it is
    /// given.
    pub fn new(channel_axis: Option<i64>) -> Observer {
        Observer {
            histogram: Histogram::default(),
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            zeros: 0,
            count: 0,
            nan: 0,
            infinite: 0,
            samples: 0,
            extremes: SampleExtremes::default(),
            average: MovingAverage::default(),
            growth: Growth::default(),
            channels: channel_axis.map_or(Channels::None, |axis| Channels::Along(axis, Vec::new())),
        }
    }

    /// Takes in a tensor of `samples` samples: along axis 0 where that has this size, else it counts as one.
    /// Elements that are not finite are counted and otherwise ignored.
    pub fn observe(&mut self, elements: &[f32], shape: &[usize], samples: usize) {
        let apart = samples > 1 && shape.first() == Some(&samples) && elements.len().is_multiple_of(samples);
        if !apart {
            self.observe_one(elements, shape, samples.max(1) as u64);
            return;
        }
        let mut one = shape.to_vec();
        one[0] = 1;
        let size = elements.len() / samples;
        for sample in 0..samples {
            self.observe_one(&elements[sample * size..(sample + 1) * size], &one, 1);
        }
    }

    /// Takes in what belongs together, be it one sample or several that cannot be told apart.
    fn observe_one(&mut self, elements: &[f32], shape: &[usize], samples: u64) {
        self.samples += samples;
        let parts = self.channels.parts(elements, shape);
        let (min, max, sum) = match &parts {
            Some(parts) => {
                parts.iter().fold((f32::INFINITY, f32::NEG_INFINITY, 0.0), |(min, max, sum), part| {
                    (min.min(part.min), max.max(part.max), sum + part.sum)
                })
            }
            None => scan(elements),
        };
        if !sum.is_finite() {
            let nan = elements.iter().filter(|x| x.is_nan()).count();
            let kept: Vec<f32> = elements.iter().copied().filter(|x| x.is_finite()).collect();
            self.nan += nan as u64;
            self.infinite += (elements.len() - kept.len() - nan) as u64;
            // Which channels are left is not worth the trouble.
            if !matches!(self.channels, Channels::None) {
                self.channels = Channels::Varying;
            }
            let (min, max, _) = scan(&kept);
            self.take(&kept, min, max);
            return;
        }
        if let Some(parts) = parts {
            self.channels.add(&parts, (elements.len() / parts.len()) as u64);
        }
        self.take(elements, min, max);
    }

    /// Takes in finite elements of the sample counted last.
    fn take(&mut self, elements: &[f32], min: f32, max: f32) {
        if elements.is_empty() {
            return;
        }
        self.count += elements.len() as u64;
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        self.zeros += self.histogram.add(elements, min, max);
        self.extremes.add(min, max);
        self.average.add(min, max);
        self.growth.add(self.samples, min, max);
    }

    /// Puts statistics of later samples behind these.
    pub fn merge(&mut self, later: &Observer) {
        self.histogram.merge(&later.histogram);
        self.min = self.min.min(later.min);
        self.max = self.max.max(later.max);
        self.extremes.merge(&later.extremes);
        self.average.merge(&later.average);
        self.growth.merge(&later.growth, self.samples);
        self.channels.merge(&later.channels);
        for (mine, theirs) in [
            (&mut self.zeros, later.zeros),
            (&mut self.count, later.count),
            (&mut self.nan, later.nan),
            (&mut self.infinite, later.infinite),
            (&mut self.samples, later.samples),
        ] {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// Finite elements taken in.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Samples taken in.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// NaN and infinite elements met.
    pub fn non_finite(&self) -> u64 {
        self.nan.saturating_add(self.infinite)
    }

    /// NaN elements met.
    pub fn nan(&self) -> u64 {
        self.nan
    }

    /// Elements that were zero.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Least and greatest element; `None` before the first.
    pub fn range(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    /// Statistics of every channel; `None` where they were not asked for, or where the number of channels
    /// was not always the same or elements were not finite.
    pub fn channels(&self) -> Option<&[Channel]> {
        match &self.channels {
            Channels::Along(_, channels) if !channels.is_empty() => Some(channels),
            _ => None,
        }
    }

    /// The sample, counted from 1, after which the range was within 1% of its final ends.
    pub fn settled_after(&self) -> u64 {
        self.growth.settled(self.min.min(0.0), self.max.max(0.0))
    }

    /// By which share of its width after `samples` samples the range has grown since.
    pub fn growth_since(&self, samples: u64) -> f64 {
        let (before, now) = (self.growth.width_after(samples), self.growth.width_after(u64::MAX));
        if now == 0.0 { 0.0 } else { now / before - 1.0 }
    }

    /// Whether so many finite elements and a range make sense together with the counts.
    fn is_consistent(&self) -> bool {
        let counted = self.histogram.total().and_then(|total| total.checked_add(self.zeros));
        let range = self.count == 0 || (self.min.is_finite() && self.max.is_finite() && self.min <= self.max);
        counted == Some(self.count) && range
    }

    /// Sum of squares and sum of squared errors that a quantizer would make, from the histogram.
    pub fn signal_and_noise(&self, quantizer: &Affine) -> (f64, f64) {
        let density = Density::new(self);
        (density.signal(), density.noise(quantizer))
    }

    /// Expected signal-to-quantization-noise ratio in dB; `None` when there is no noise.
    pub fn sqnr_db(&self, quantizer: &Affine) -> Option<f64> {
        let (signal, noise) = self.signal_and_noise(quantizer);
        SignalNoise::new(signal, noise).sqnr_db()
    }

    /// The quantizer of a range, cut to what was seen.
    fn quantizer(&self, min: f64, max: f64, dtype: DType) -> Affine {
        let (least, most) = self.range().unwrap_or((0.0, 0.0));
        Affine::asymmetric((min as f32).max(least), (max as f32).min(most), dtype)
    }
}
