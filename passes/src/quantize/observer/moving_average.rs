//! Extremes of samples, averaged with ever less weight for older ones.

use optix_ir::DType;

use super::Observer;
use crate::quantize::affine::Affine;

/// Weight of a new sample, as onnxruntime's quantization tools have it by default.
const WEIGHT: f64 = 0.01;

/// `m += 0.01 (x - m)` of the least and the greatest element of every sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MovingAverage {
    /// Samples taken in.
    pub(super) samples: u64,
    /// The first sample's extremes, which the averages start from.
    pub(super) first: [f32; 2],
    /// The averages.
    pub(super) now: [f64; 2],
}

impl MovingAverage {
    pub(super) fn add(&mut self, min: f32, max: f32) {
        for (end, new) in [min, max].into_iter().enumerate() {
            if self.samples == 0 {
                self.first[end] = new;
                self.now[end] = f64::from(new);
            } else {
                self.now[end] += WEIGHT * (f64::from(new) - self.now[end]);
            }
        }
        self.samples += 1;
    }

    /// Goes on with samples that were averaged apart. The average is linear in where it starts, so what
    /// starting elsewhere changes can be put in afterwards.
    pub(super) fn merge(&mut self, later: &MovingAverage) {
        if later.samples == 0 {
            return;
        }
        if self.samples == 0 {
            self.clone_from(later);
            return;
        }
        let left = (1.0 - WEIGHT).powf(later.samples as f64);
        let start = (1.0 - WEIGHT).powf((later.samples - 1) as f64);
        for end in 0..2 {
            let first = f64::from(later.first[end]);
            let started =
                left * self.now[end] + (1.0 - WEIGHT).powf((later.samples - 1) as f64) * WEIGHT * first;
            self.now[end] = later.now[end] - start * first + started;
        }
        self.samples = self.samples.saturating_add(later.samples);
    }
}

impl Observer {
    /// The quantizer of the moving averages of samples' extremes.
    pub fn moving_average(&self, dtype: DType) -> Affine {
        self.quantizer(self.average.now[0], self.average.now[1], dtype)
    }
}
