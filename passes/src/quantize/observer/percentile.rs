//! A range that holds a share of all values.

use optix_ir::DType;

use super::{Density, Observer};
use crate::quantize::affine::Affine;

impl Observer {
    /// The quantizer of the range that holds `percent` (0 to 100) of the values: half of the rest is cut off
    /// on either side, or all of it on one side where values have one sign. onnxruntime's default is 99.999.
    pub fn percentile(&self, percent: f64, dtype: DType) -> Affine {
        let rest = (1.0 - percent / 100.0).clamp(0.0, 1.0) * self.count as f64;
        let density = Density::new(self);
        let (down, up) = match self.range() {
            Some((min, _)) if min >= 0.0 => (0.0, rest),
            Some((_, max)) if max <= 0.0 => (rest, 0.0),
            _ => (rest / 2.0, rest / 2.0),
        };
        let all = density.all().count;
        // Zeros are values too, but a range always holds zero: cuts end there.
        let low = density.place_of(down.min(density.below(0.0).count));
        let high = density.place_of(all - up.min(all - density.below(0.0).count));
        self.quantizer(low * density.width, high * density.width, dtype)
    }
}

impl Density {
    /// The place below which `count` values lie.
    fn place_of(&self, count: f64) -> f64 {
        let (mut low, mut high) = self.ends;
        if count <= 0.0 {
            return low;
        }
        if count >= self.all().count {
            return high;
        }
        // Half a bin's width is halved until no further digit of an f32 would change.
        for _ in 0..60 {
            let middle = low + (high - low) / 2.0;
            if self.below(middle).count < count { low = middle } else { high = middle }
        }
        high
    }
}
