//! The range with the least squared error.

use optix_ir::DType;

use super::{Density, Observer};
use crate::quantize::affine::Affine;

/// Ratio of neighbouring candidates in the coarse searches.
const RATIO: f64 = 0.96;

/// Coarse candidates: the narrowest keeps 4% of a range's end.
const COARSE: i32 = 80;

/// Failures in a row that end a search: along a line the error has few minima.
const PATIENCE: usize = 12;

/// Fine candidates to either side of the best, each 0.5% of the range's end away from the next.
const FINE: i32 = 8;

/// A search for the shares of a range's two ends that are worth keeping.
struct Search<'a> {
    density: &'a Density,
    range: [f64; 2],
    dtype: DType,
    least: f64,
    keep: [f64; 2],
}

impl Search<'_> {
    fn quantizer(&self, keep: [f64; 2]) -> Affine {
        let [min, max] = self.range;
        Affine::asymmetric((min * keep[0]) as f32, (max * keep[1]) as f32, self.dtype)
    }

    /// Tries candidates in order.
    fn walk(&mut self, candidates: impl Iterator<Item = [f64; 2]>) {
        let mut failures = 0;
        for keep in candidates {
            let noise = self.density.noise(&self.quantizer(keep));
            if noise < self.least {
                (self.least, self.keep, failures) = (noise, keep, 0);
            } else {
                failures += 1;
                if failures > PATIENCE {
                    break;
                }
            }
        }
    }

    /// Tries other shares of one end.
    fn walk_end(&mut self, end: usize, shares: impl Iterator<Item = f64>) {
        if self.range[end] != 0.0 {
            let start = self.keep;
            self.walk(shares.map(|share| {
                let mut keep = start;
                keep[end] = share;
                keep
            }));
        }
    }
}

impl Observer {
    /// The quantizer with the least mean squared error over the histogram, its zero point rounded: both ends
    /// of the range are narrowed together, then each on its own, first coarsely and then finely. The whole
    /// range is always a candidate.
    pub fn mean_squared_error(&self, dtype: DType) -> Affine {
        let (min, max) = self.range().unwrap_or((0.0, 0.0));
        let density = Density::new(self);
        let range = [f64::from(min.min(0.0)), f64::from(max.max(0.0))];
        let mut search = Search { density: &density, range, dtype, least: 0.0, keep: [1.0; 2] };
        search.least = density.noise(&search.quantizer([1.0; 2]));
        search.walk((1..COARSE).map(|step| [RATIO.powi(step); 2]));
        for end in [0, 1] {
            search.walk_end(end, (0..COARSE).map(|step| RATIO.powi(step)));
        }
        for end in [0, 1, 0, 1] {
            let share = search.keep[end];
            let fine = (-FINE..=FINE).filter(|step| *step != 0);
            search.walk_end(
                end,
                fine.map(|step| share + f64::from(step) * 0.005).filter(|share| (0.02..=1.0).contains(share)),
            );
        }
        search.quantizer(search.keep)
    }
}
