//! The search behind `smooth-activations`: how much of an activation's spread between channels goes into
//! the weights, by the error that int8 would make on a sample of rows.

use rayon::prelude::*;

use optix_ir::DType;

use super::affine::Affine;

/// Rows a task works on; fixed, so that sums do not depend on the number of threads.
const ROWS: usize = 16;

/// Columns of a tile: with [`ROWS`] rows of results it stays in the first cache.
const COLUMNS: usize = 256;

/// Rows on which the range with the least squared error is looked for.
const RANGE_ROWS: usize = 64;

/// Greatest divisor and multiplier, relative to the middle channel's.
const MOST: f32 = 1e4;

/// Products that read one activation, and what is known of it.
pub(super) struct Problem<'a> {
    /// Sampled rows of the activation, `[rows, depth]`.
    pub(super) rows: &'a [f32],
    /// Least element of each channel over all calibration samples.
    pub(super) low: &'a [f32],
    /// Greatest element of each channel.
    pub(super) high: &'a [f32],
    /// Weights of all products side by side, `[depth, columns]`.
    pub(super) weights: Vec<f32>,
    /// Columns of each product.
    pub(super) widths: Vec<usize>,
    /// Type of the activation's integers.
    pub(super) dtype: DType,
    /// One weight scale a column instead of one a product.
    pub(super) per_channel: bool,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// Share of the spread that goes into the weights; `None` where leaving things alone is best.
    pub(super) alpha: Option<f32>,
    /// One a channel; ones without an alpha.
    pub(super) divisors: Vec<f32>,
    /// Expected signal-to-noise ratio at the outputs in dB, untouched.
    pub(super) before_db: f64,
    /// The same with the divisors.
    pub(super) after_db: f64,
}

fn decibels(noise: f64) -> f64 {
    if noise > 0.0 { -10.0 * noise.log10() } else { f64::INFINITY }
}

impl Problem<'_> {
    fn depth(&self) -> usize {
        self.low.len()
    }

    fn columns(&self) -> usize {
        self.widths.iter().sum()
    }

    /// The alpha of least expected error, starting from `alphas` and refined by halving between them.
    pub(super) fn search(&self, alphas: &[f32]) -> Found {
        let exact = product(self.rows, &self.weights, self.depth(), self.columns());
        let ones = vec![1.0; self.depth()];
        let off = self.noise(&exact, &ones);
        let mut best = (off, None, ones);
        let mut tried: Vec<f32> = Vec::new();
        let mut consider = |alpha: f32, best: &mut (f64, Option<f32>, Vec<f32>)| {
            if tried.iter().any(|other| (other - alpha).abs() < 1e-3) {
                return;
            }
            tried.push(alpha);
            let divisors = self.divisors(alpha);
            let noise = self.noise(&exact, &divisors);
            if noise < best.0 {
                *best = (noise, Some(alpha), divisors);
            }
        };
        for &alpha in alphas {
            consider(alpha, &mut best);
        }
        // Between the best and its neighbours.
        if let (Some(alpha), [_, _, ..]) = (best.1, alphas) {
            let gap = |other: &f32| (other - alpha).abs();
            let near = alphas.iter().filter(|other| gap(other) > 1e-3).map(gap).fold(f32::MAX, f32::min);
            for moved in [alpha - near / 2.0, alpha + near / 2.0] {
                if (0.0..=1.0).contains(&moved) {
                    consider(moved, &mut best);
                }
            }
        }
        let (noise, alpha, divisors) = best;
        Found { alpha, divisors, before_db: decibels(off), after_db: decibels(noise) }
    }

    /// max|X|^alpha / max|W|^(1 - alpha) of every channel, with 1 in their middle. Channels that are
    /// always zero, on either side, have the middle one's.
    fn divisors(&self, alpha: f32) -> Vec<f32> {
        let columns = self.columns();
        let mut divisors: Vec<f32> = (0..self.depth())
            .map(|channel| {
                let activation = self.low[channel].abs().max(self.high[channel].abs());
                let row = &self.weights[channel * columns..(channel + 1) * columns];
                let weight = row.iter().fold(0f32, |max, weight| max.max(weight.abs()));
                (activation.powf(alpha) / weight.powf(1.0 - alpha)).max(0.0)
            })
            .collect();
        let usable = |x: &f32| x.is_normal();
        let mut sorted: Vec<f32> = divisors.iter().copied().filter(usable).collect();
        sorted.sort_unstable_by(f32::total_cmp);
        let middle = sorted.get(sorted.len() / 2).copied().unwrap_or(1.0);
        for divisor in &mut divisors {
            let relative = *divisor / middle;
            *divisor = if usable(&relative) { relative.clamp(1.0 / MOST, MOST) } else { 1.0 };
        }
        divisors
    }

    /// Noise by signal that int8 makes at the outputs when the activation is divided and the weights are
    /// multiplied: the mean over the products, with the better of two ranges of the activation, the whole
    /// one and the one of least squared error.
    fn noise(&self, exact: &[f32], divisors: &[f32]) -> f64 {
        let weights = self.rounded_weights(divisors);
        let end = |ends: &[f32], better: fn(f32, f32) -> f32| {
            ends.iter().zip(divisors).map(|(end, divisor)| end / divisor).fold(0f32, better)
        };
        let (low, high) = (end(self.low, f32::min), end(self.high, f32::max));
        let whole = Affine::asymmetric(low, high, self.dtype);
        let narrow = self.least_squares(low, high, divisors);
        let first = self.noise_with(exact, divisors, &weights, &whole);
        if narrow == whole { first } else { first.min(self.noise_with(exact, divisors, &weights, &narrow)) }
    }

    fn noise_with(&self, exact: &[f32], divisors: &[f32], weights: &[f32], quantizer: &Affine) -> f64 {
        let rounded: Vec<f32> = self
            .rows
            .chunks_exact(self.depth())
            .flat_map(|row| {
                row.iter().zip(divisors).map(|(x, divisor)| quantizer.round_trip(x / divisor) * divisor)
            })
            .collect();
        let found = product(&rounded, weights, self.depth(), self.columns());
        let mut sums = vec![(0f64, 0f64); self.widths.len()];
        for (exact, found) in exact.chunks_exact(self.columns()).zip(found.chunks_exact(self.columns())) {
            let mut from = 0;
            for (sum, &width) in sums.iter_mut().zip(&self.widths) {
                for (a, b) in exact[from..from + width].iter().zip(&found[from..from + width]) {
                    sum.0 += f64::from(*a) * f64::from(*a);
                    sum.1 += f64::from(a - b) * f64::from(a - b);
                }
                from += width;
            }
        }
        let ratios = sums.iter().filter(|(signal, _)| *signal > 0.0).map(|(signal, noise)| noise / signal);
        ratios.sum::<f64>() / self.widths.len().max(1) as f64
    }

    /// Weights multiplied, rounded to int8 and divided again.
    fn rounded_weights(&self, factors: &[f32]) -> Vec<f32> {
        let columns = self.columns();
        let mut maxima = vec![0f32; columns];
        for (row, factor) in self.weights.chunks_exact(columns).zip(factors) {
            for (max, weight) in maxima.iter_mut().zip(row) {
                *max = max.max((weight * factor).abs());
            }
        }
        if !self.per_channel {
            let mut from = 0;
            for &width in &self.widths {
                let product = &mut maxima[from..from + width];
                let max = product.iter().copied().fold(0f32, f32::max);
                product.fill(max);
                from += width;
            }
        }
        let quantizers: Vec<Affine> = maxima.iter().map(|&max| Affine::symmetric_int8(max)).collect();
        let mut rounded = Vec::with_capacity(self.weights.len());
        for (row, factor) in self.weights.chunks_exact(columns).zip(factors) {
            rounded.extend(row.iter().zip(&quantizers).map(|(w, q)| q.round_trip(w * factor) / factor));
        }
        rounded
    }

    /// The quantizer of least squared error on the first rows, narrowing both ends together.
    fn least_squares(&self, low: f32, high: f32, divisors: &[f32]) -> Affine {
        let rows = self.rows.chunks_exact(self.depth()).take(RANGE_ROWS);
        let values: Vec<f32> = rows.flat_map(|row| row.iter().zip(divisors).map(|(x, d)| x / d)).collect();
        let error = |quantizer: &Affine| -> f64 {
            values.iter().map(|&x| f64::from(x - quantizer.round_trip(x)).powi(2)).sum()
        };
        let mut best = Affine::asymmetric(low, high, self.dtype);
        let mut least = error(&best);
        let mut failures = 0;
        for step in 1..14 {
            let keep = 1.0 - step as f32 * 0.06;
            let quantizer = Affine::asymmetric(low * keep, high * keep, self.dtype);
            let found = error(&quantizer);
            if found < least {
                (least, best, failures) = (found, quantizer, 0);
            } else {
                failures += 1;
                if failures > 2 {
                    break;
                }
            }
        }
        best
    }
}

/// `[rows, depth]` by `[depth, columns]`, every sum in the order of the depth.
pub(super) fn product(left: &[f32], right: &[f32], depth: usize, columns: usize) -> Vec<f32> {
    if depth == 0 || columns == 0 {
        return Vec::new();
    }
    let mut result = vec![0f32; left.len() / depth * columns];
    result.par_chunks_mut(ROWS * columns).zip(left.par_chunks(ROWS * depth)).for_each(|(result, left)| {
        for start in (0..columns).step_by(COLUMNS) {
            let end = (start + COLUMNS).min(columns);
            let mut k = 0;
            while k < depth {
                let taken = (depth - k).min(4);
                let row =
                    |offset: usize| &right[(k + offset) * columns + start..(k + offset) * columns + end];
                for (result, left) in result.chunks_exact_mut(columns).zip(left.chunks_exact(depth)) {
                    let sums = &mut result[start..end];
                    if taken == 4 {
                        let (a, b, c, d) = (left[k], left[k + 1], left[k + 2], left[k + 3]);
                        let rows = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
                        for (sum, (((w, x), y), z)) in sums.iter_mut().zip(rows) {
                            *sum = *sum + a * w + b * x + c * y + d * z;
                        }
                    } else {
                        for offset in 0..taken {
                            for (sum, w) in sums.iter_mut().zip(row(offset)) {
                                *sum += left[k + offset] * w;
                            }
                        }
                    }
                }
                k += taken;
            }
        }
    });
    result
}
