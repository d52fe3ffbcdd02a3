//! Means of samples' extremes.

use optix_ir::DType;

use super::Observer;
use super::exact_sum::ExactSum;
use crate::quantize::affine::Affine;

/// Sums of the least and of the greatest element of every sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SampleExtremes {
    pub(super) samples: u64,
    pub(super) least: ExactSum,
    pub(super) most: ExactSum,
}

impl SampleExtremes {
    pub(super) fn add(&mut self, min: f32, max: f32) {
        self.samples += 1;
        self.least.add(f64::from(min));
        self.most.add(f64::from(max));
    }

    pub(super) fn merge(&mut self, other: &SampleExtremes) {
        self.samples = self.samples.saturating_add(other.samples);
        self.least.merge(&other.least);
        self.most.merge(&other.most);
    }
}

impl Observer {
    /// The quantizer of the mean least and the mean greatest element of samples: NNCF's default for
    /// activations. One odd sample moves it little; what is beyond the means is clipped.
    pub fn mean_extremes(&self, dtype: DType) -> Affine {
        let samples = self.extremes.samples.max(1) as f64;
        self.quantizer(self.extremes.least.value() / samples, self.extremes.most.value() / samples, dtype)
    }
}
