//! The search behind `smooth-activations`: how much of an activation's spread between channels goes into
//! the weights, by the error that int8 would make on a sample of rows.

use rayon::prelude::*;

use optix_ir::DType;
use optix_pipeline::decibels;

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
    /// A sample of the columns of all products' weights side by side, `[depth, columns]`.
    pub(super) weights: Vec<f32>,
    /// Greatest magnitude of the weights of each channel, over all columns.
    pub(super) peaks: Vec<f32>,
    /// Root of the sum of their squares.
    pub(super) norms: Vec<f32>,
    /// Columns of each product in the sample.
    pub(super) widths: Vec<usize>,
    /// Type of the activation's integers.
    pub(super) dtype: DType,
    /// One weight scale a column instead of one a product.
    pub(super) per_channel: bool,
}

/// A way to treat an activation, with the noise by signal that int8 makes at the outputs then.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// Share of the spread that goes into the weights; `None` where nothing is divided.
    pub(super) alpha: Option<f32>,
    /// What the activation is divided by, one a channel.
    pub(super) divisors: Vec<f32>,
    /// Copies of each channel.
    pub(super) copies: Vec<u32>,
    noise: f64,
}

impl Found {
    /// Expected signal-to-noise ratio at the outputs in dB.
    pub(super) fn decibels(&self) -> f64 {
        decibels(self.noise)
    }
}

/// The range of an activation's quantizer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Range {
    /// The whole one.
    Whole,
    /// The better of the whole one and the one of least squared error.
    Better,
}

/// A problem being searched: its exact products are computed once.
pub(super) struct Search<'a> {
    problem: Problem<'a>,
    exact: Vec<f32>,
}

impl<'a> Search<'a> {
    pub(super) fn new(problem: Problem<'a>) -> Search<'a> {
        let exact = product(problem.rows, &problem.weights, problem.depth(), problem.columns());
        Search { problem, exact }
    }

    /// The activation as it is.
    pub(super) fn untouched(&self) -> Found {
        let depth = self.problem.depth();
        self.judge(None, vec![1.0; depth], vec![1; depth], Range::Better)
    }

    /// The alpha of least expected error among `alphas` and two between the best of them and its
    /// neighbours, with so many copies of each channel.
    pub(super) fn best(&self, alphas: &[f32], copies: &[u32]) -> Option<Found> {
        let try_one = |alpha: f32, range: Range| {
            self.judge(Some(alpha), self.problem.divisors(alpha, copies), copies.to_vec(), range)
        };
        let mut best: Option<(f32, Found)> = None;
        let mut consider = |alpha: f32| {
            let found = try_one(alpha, Range::Whole);
            if best.as_ref().is_none_or(|(_, best)| found.noise < best.noise) {
                best = Some((alpha, found));
            }
            best.as_ref().map_or(alpha, |(alpha, _)| *alpha)
        };
        let mut first = None;
        for &alpha in alphas {
            first = Some(consider(alpha));
        }
        if let Some(first) = first {
            // Half way to the neighbours on either side.
            let ends = alphas.iter().copied().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(x), b.max(x)));
            let gap = |other: &f32| (other - first).abs();
            let near = alphas.iter().filter(|other| gap(other) > 1e-3).map(gap).fold(f32::MAX, f32::min);
            for moved in [first - near / 2.0, first + near / 2.0] {
                if (ends.0..=ends.1).contains(&moved) {
                    consider(moved);
                }
            }
        }
        best.map(|(alpha, _)| try_one(alpha, Range::Better))
    }

    /// Copies for the channels that make the most noise on either side, `most` more channels at most and
    /// a multiple of eight, which kernels like. `None` where no channel stands out.
    pub(super) fn copies(&self, most: usize) -> Option<Vec<u32>> {
        /// Copies in one go.
        const STEP: usize = 8;
        /// What stands out, times the middle channel.
        const OUT: f32 = 4.0;
        let share: Vec<f32> =
            self.problem.maxima().iter().zip(&self.problem.norms).map(|(x, w)| x * w).collect();
        let middle = middle(&share)?;
        let mut copies = vec![1u32; share.len()];
        for _ in 0..most / STEP {
            let rest = |at: usize, copies: &[u32]| share[at] / copies[at] as f32;
            let greatest = |copies: &[u32]| {
                (0..share.len()).max_by(|&a, &b| rest(a, copies).total_cmp(&rest(b, copies)))
            };
            if greatest(&copies).is_none_or(|at| rest(at, &copies) <= OUT * middle) {
                break;
            }
            for _ in 0..STEP {
                if let Some(at) = greatest(&copies) {
                    copies[at] += 1;
                }
            }
        }
        copies.iter().any(|&copies| copies > 1).then_some(copies)
    }

    fn judge(&self, alpha: Option<f32>, divisors: Vec<f32>, copies: Vec<u32>, range: Range) -> Found {
        let noise = self.problem.noise(&self.exact, &divisors, &copies, range);
        Found { alpha, divisors, copies, noise }
    }
}

/// A positive number with eight binary places behind its first: the last bit of a power depends on the
/// machine, a file should not.
fn rounded(number: f32) -> f32 {
    f32::from_bits((number.to_bits() + (1 << 14)) & !0x7fff)
}

/// The middle one of the positive numbers.
pub(super) fn middle(numbers: &[f32]) -> Option<f32> {
    let mut sorted: Vec<f32> = numbers.iter().copied().filter(|x| x.is_normal() && *x > 0.0).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

impl Problem<'_> {
    fn depth(&self) -> usize {
        self.low.len()
    }

    fn columns(&self) -> usize {
        self.widths.iter().sum()
    }

    /// Greatest magnitude of every channel. Where one side of zero is much shorter than the other, as a
    /// GELU's negative one is, it counts more: channels that are hardly ever active would otherwise be
    /// divided by so little that the short side takes up half of the integers.
    fn maxima(&self) -> Vec<f32> {
        /// A side so many times shorter than the other is short.
        const SHORT: f32 = 4.0;
        /// What it counts.
        const MORE: f32 = 8.0;
        let below = self.low.iter().fold(0f32, |below, low| below.max(-low));
        let above = self.high.iter().fold(0f32, |above, high| above.max(*high));
        let weight = |side: f32, other: f32| if side * SHORT < other { MORE } else { 1.0 };
        let (down, up) = (weight(below, above), weight(above, below));
        self.low.iter().zip(self.high).map(|(low, high)| (-low * down).max(high * up).max(0.0)).collect()
    }

    /// max|X|^alpha / max|W / copies|^(1 - alpha) of every channel, with 1 in their middle. Channels that
    /// are always zero, on either side, have the middle one's.
    ///
    /// Activations below the middle channel's count as that: a channel that was seldom active in
    /// calibration may be much greater on other data, and must not fill the range already.
    fn divisors(&self, alpha: f32, copies: &[u32]) -> Vec<f32> {
        let maxima = self.maxima();
        let floor = middle(&maxima).unwrap_or(0.0);
        let weights = self.peaks.iter().zip(copies).map(|(peak, copies)| peak / *copies as f32);
        let mut divisors: Vec<f32> = (maxima.iter().zip(weights))
            .map(|(activation, weight)| activation.max(floor).powf(alpha) / weight.powf(1.0 - alpha))
            .collect();
        let middle = middle(&divisors).unwrap_or(1.0);
        for divisor in &mut divisors {
            let relative = *divisor / middle;
            *divisor = if relative.is_normal() { rounded(relative.clamp(1.0 / MOST, MOST)) } else { 1.0 };
        }
        divisors
    }

    /// Noise by signal that int8 makes at the outputs when the activation is divided and the weights are
    /// multiplied: the mean over the products.
    fn noise(&self, exact: &[f32], divisors: &[f32], copies: &[u32], range: Range) -> f64 {
        let factors: Vec<f32> = divisors.iter().zip(copies).map(|(divisor, n)| divisor / *n as f32).collect();
        let weights = self.rounded_weights(&factors);
        let end = |ends: &[f32], better: fn(f32, f32) -> f32| {
            ends.iter().zip(divisors).map(|(end, divisor)| end / divisor).fold(0f32, better)
        };
        let (low, high) = (end(self.low, f32::min), end(self.high, f32::max));
        let whole = Affine::asymmetric(low, high, self.dtype);
        let first = self.noise_with(exact, divisors, &weights, &whole);
        if range == Range::Whole {
            return first;
        }
        let narrow = self.least_squares(low, high, divisors);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Greatest magnitude and norm of every row.
    fn rows_of(weights: &[f32], depth: usize) -> (Vec<f32>, Vec<f32>) {
        let rows = || weights.chunks_exact(weights.len() / depth);
        let peaks = rows().map(|row| row.iter().fold(0f32, |max, w| max.max(w.abs()))).collect();
        (peaks, rows().map(|row| row.iter().map(|w| w * w).sum::<f32>().sqrt()).collect())
    }

    /// Rows whose channel 1 is far greater than the others, and weights of two products.
    fn outlier(rows: usize, depth: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>) {
        let wave = |index: usize| (index as f32 * 0.7).sin();
        let x: Vec<f32> =
            (0..rows * depth).map(|at| wave(at) * if at % depth == 1 { 40.0 } else { 1.0 }).collect();
        let low: Vec<f32> = (0..depth).map(|c| if c == 1 { -40.0 } else { -1.0 }).collect();
        let high: Vec<f32> = low.iter().map(|low| -low).collect();
        let weights = (0..depth * 5).map(|at| wave(at * 3 + 1)).collect();
        (x, low, high, weights)
    }

    #[test]
    fn an_outlier_is_worth_smoothing_and_copies() {
        let (rows, low, high, weights) = outlier(40, 12);
        let (peaks, norms) = rows_of(&weights, 12);
        let problem = Problem {
            rows: &rows,
            low: &low,
            high: &high,
            weights,
            peaks,
            norms,
            widths: vec![2, 3],
            dtype: DType::U8,
            per_channel: true,
        };
        let search = Search::new(problem);
        let untouched = search.untouched();
        let smoothed = search.best(&[0.3, 0.6, 0.9], &[1; 12]).unwrap();
        assert!(smoothed.decibels() > untouched.decibels() + 3.0, "{smoothed:?} {}", untouched.decibels());
        let copies = search.copies(8).unwrap();
        assert_eq!((copies[1], copies.iter().sum::<u32>()), (9, 20));
        let split = search.best(&[0.3, 0.6, 0.9], &copies).unwrap();
        assert!(split.decibels() > smoothed.decibels() + 0.5, "{split:?} {}", smoothed.decibels());
    }

    #[test]
    fn the_short_side_of_zero_counts_more() {
        let (low, high) = ([-0.2, -0.1, 0.0], [0.0, 10.0, 3.0]);
        let problem = Problem {
            rows: &[],
            low: &low,
            high: &high,
            weights: vec![1.0; 3],
            peaks: vec![1.0; 3],
            norms: vec![1.0; 3],
            widths: vec![1],
            dtype: DType::U8,
            per_channel: true,
        };
        assert_eq!(problem.maxima(), [1.6, 10.0, 3.0]);
        let even = Problem { high: &[1.0, 0.5, 0.0], low: &[-0.5, -1.0, 0.0], ..problem };
        assert_eq!(even.maxima(), [1.0, 1.0, 0.0]);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (rows, low, high, weights) = outlier(100, 12);
        let search = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (peaks, norms) = rows_of(&weights, 12);
                let problem = Problem {
                    rows: &rows,
                    low: &low,
                    high: &high,
                    weights: weights.clone(),
                    peaks,
                    norms,
                    widths: vec![2, 3],
                    dtype: DType::U8,
                    per_channel: false,
                };
                Search::new(problem).best(&[0.3, 0.6, 0.9], &[1; 12])
            })
        };
        assert_eq!(search(1), search(3));
    }

    #[test]
    fn channels_alike_get_no_copies_and_dead_ones_do_no_harm() {
        let rows: Vec<f32> = (0..160).map(|at| if at % 4 == 0 { 0.0 } else { (at as f32).cos() }).collect();
        let (low, high) = ([0.0, -1.0, -1.0, -1.0], [0.0, 1.0, 1.0, 1.0]);
        let weights = vec![0.5, 1.0, 0.0, -0.25];
        let (peaks, norms) = rows_of(&weights, 4);
        let problem = Problem {
            rows: &rows,
            low: &low,
            high: &high,
            weights,
            peaks,
            norms,
            widths: vec![1],
            dtype: DType::I8,
            per_channel: false,
        };
        assert!(problem.divisors(0.5, &[1; 4]).iter().all(|divisor| divisor.is_normal()));
        let search = Search::new(problem);
        assert_eq!(search.copies(8), None);
        assert!(search.best(&[0.5], &[1; 4]).unwrap().decibels() > 20.0);
        assert_eq!(search.best(&[], &[1; 4]), None);
    }

    #[test]
    fn products_are_those_of_plain_loops() {
        for (rows, depth, columns) in [(1, 1, 1), (17, 7, 300), (33, 12, 5)] {
            let left: Vec<f32> = (0..rows * depth).map(|at| (at % 13) as f32 - 6.0).collect();
            let right: Vec<f32> = (0..depth * columns).map(|at| (at % 7) as f32 - 3.0).collect();
            let found = product(&left, &right, depth, columns);
            for (at, found) in found.iter().enumerate() {
                let (row, column) = (at / columns, at % columns);
                let exact: f32 =
                    (0..depth).map(|k| left[row * depth + k] * right[k * columns + column]).sum();
                assert_eq!(*found, exact, "{rows} {depth} {columns} at {at}");
            }
        }
        assert!(product(&[], &[], 0, 4).is_empty());
    }
}
