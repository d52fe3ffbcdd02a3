//! The range whose quantized distribution tells most about the original one.

use optix_ir::DType;

use super::{Density, Observer};
use crate::quantize::affine::Affine;

/// Ranges tried at most.
const CANDIDATES: usize = 128;

/// Share that stands for none where the quantized distribution has nothing and the original has something.
const NOTHING: f64 = 1e-4;

/// x ln x, and 0 for 0.
fn x_ln_x(x: f64) -> f64 {
    if x > 0.0 { x * x.ln() } else { 0.0 }
}

/// Prefix sums over bins.
struct Prefixes {
    counts: Vec<f64>,
    occupied: Vec<f64>,
    x_ln_x: Vec<f64>,
}

impl Prefixes {
    fn new(counts: &[u64]) -> Prefixes {
        let sums = |of: fn(f64) -> f64| {
            let mut sum = 0.0;
            let add = counts.iter().map(|&count| {
                sum += of(count as f64);
                sum
            });
            std::iter::once(0.0).chain(add).collect::<Vec<f64>>()
        };
        Prefixes {
            counts: sums(|x| x),
            occupied: sums(|x| f64::from(u8::from(x > 0.0))),
            x_ln_x: sums(x_ln_x),
        }
    }

    /// Kullback-Leibler divergence, times the number of values, of the bins `from..to` with all that is
    /// outside added to the outermost ones, from the same bins gathered into so many levels.
    ///
    /// With c the count of a bin, P that count with what was added, M, N a level's count and occupied bins
    /// and U the count inside: sum P ln(P / T) - P ln(M / (N U)), which needs levels, not bins.
    fn divergence(&self, from: usize, to: usize, levels: usize) -> f64 {
        let last = self.counts.len() - 1;
        let total = self.counts[last];
        let inside = self.counts[to] - self.counts[from];
        if inside <= 0.0 {
            return f64::INFINITY;
        }
        let outside = [self.counts[from], total - self.counts[to]];
        let edges = [from, to - 1];
        let mut divergence = self.x_ln_x[to] - self.x_ln_x[from] - total * total.ln();
        for (bin, outside) in edges.into_iter().zip(outside) {
            let own = self.counts[bin + 1] - self.counts[bin];
            divergence += x_ln_x(own + outside) - x_ln_x(own);
        }
        let bins = to - from;
        for level in 0..levels {
            let start = from + level * bins / levels;
            let end = from + (level + 1) * bins / levels;
            let count = self.counts[end] - self.counts[start];
            let occupied = self.occupied[end] - self.occupied[start];
            let mut mass = count;
            for (bin, outside) in edges.into_iter().zip(outside) {
                if (start..end).contains(&bin) {
                    if self.counts[bin + 1] > self.counts[bin] {
                        mass += outside;
                    } else {
                        divergence -= outside * NOTHING.ln();
                    }
                }
            }
            if mass > 0.0 && count > 0.0 {
                divergence -= mass * (count / (occupied * inside)).ln();
            }
        }
        divergence
    }
}

impl Observer {
    /// The quantizer of the symmetrically clipped range with the least Kullback-Leibler divergence of the
    /// clipped from the quantized distribution (TensorRT's entropy calibration, Migacz 2017), and the number
    /// of ranges there were to choose from.
    ///
    /// Ranges are tried from one bin a level up to the whole, which has 8 bins a level or more. Zeros take no
    /// part, since every quantizer keeps them. Good for long tails, bad where rare great values matter, as
    /// the inputs of softmax do.
    pub fn entropy(&self, dtype: DType) -> (Affine, usize) {
        // With more levels than a histogram has bins, or uneven ones, there is nothing to gather.
        if !matches!(dtype, DType::U8 | DType::I8) {
            return (self.min_max(dtype), 1);
        }
        let density = Density::new(self);
        let levels = 256;
        let bins = density.counts.len();
        let below = usize::try_from(-density.first).unwrap_or(0).min(bins);
        let above = bins - below;
        let whole = below.max(above);
        let ends = |threshold: usize| (below - below.min(threshold), below + above.min(threshold));
        let least = (1..=whole).find(|&threshold| {
            let (from, to) = ends(threshold);
            to - from >= levels
        });
        let Some(least) = least else { return (self.min_max(dtype), 1) };
        let prefixes = Prefixes::new(&density.counts);
        let steps = CANDIDATES.min(whole - least + 1);
        let mut best = (f64::INFINITY, whole);
        // From the whole range downwards: of equal ones the widest is kept.
        for step in (0..steps).rev() {
            let threshold = if steps == 1 { whole } else { least + (whole - least) * step / (steps - 1) };
            let (from, to) = ends(threshold);
            let divergence = prefixes.divergence(from, to, levels);
            if divergence < best.0 {
                best = (divergence, threshold);
            }
        }
        let threshold = best.1 as f64 * density.width;
        (self.quantizer(-threshold, threshold, dtype), steps)
    }
}
