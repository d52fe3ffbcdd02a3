//! Blocks of weights on a grid: real = scale * (integer - zero point), with 4, 16 or 256 integers.
//!
//! A block is a run of weights that share scale and zero point. Rounding to nearest between least and
//! greatest weight ([`Algorithm::Rtn`]) wastes integers on the few outermost weights; the search
//! ([`Algorithm::Mse`]) looks for the scale and zero point of least squared error: from a grid of starts it
//! alternates between rounding for given parameters and the least-squares parameters for given integers,
//! which never makes the error greater (Lloyd's algorithm, restricted to evenly spaced points).
//!
//! All loops run over lanes of [`LANES`] numbers, so that they become vector instructions; the order of
//! every sum depends on the length of the block alone.

/// Sums are kept in so many lanes.
const LANES: usize = 16;

/// Adding and subtracting it rounds a float below 2^22 to an integer, half to even: 1.5 * 2^23.
const ROUNDER: f32 = 12_582_912.0;

/// What may stand for zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ZeroPoint {
    /// The middle integer; the scale may be negative only if `signed`, which makes use of the one integer
    /// that is below the middle and has no counterpart above it.
    Middle {
        /// Whether a negative scale can be written.
        signed: bool,
    },
    /// An integer of the grid.
    Integer,
    /// Any real number.
    Real,
}

/// The numbers that a block may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    /// Bits an integer takes: 2, 4 or 8. Integers run from 0 to 2^bits - 1.
    pub bits: u32,
    /// What may stand for zero.
    pub zero_point: ZeroPoint,
}

impl Grid {
    /// The greatest integer.
    pub fn top(self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// The middle integer, which is the zero point of symmetric weights.
    pub fn middle(self) -> f32 {
        (1u32 << (self.bits - 1)) as f32
    }

    /// Scales to start from, as parts of the one that spans all weights.
    fn starts(self) -> (f32, f32, u32) {
        match self.bits {
            2 => (0.30, 1.10, 17),
            4 => (0.55, 1.07, 14),
            _ => (0.94, 1.01, 8),
        }
    }
}

/// How scale and zero point are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// From the least and the greatest weight.
    Rtn,
    /// Of least squared error.
    Mse,
    /// Half-quadratic quantization (Badri and Shaji, 2023): real zero point of least p-norm error, p = 0.7.
    Hqq,
}

/// Scale and zero point of a block.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Parameters {
    /// Real distance of neighbouring integers; never zero, negative only where the grid says so.
    pub scale: f32,
    /// The number that stands for zero; an integer unless the grid has real zero points.
    pub zero: f32,
}

/// Sums over a block that was rounded with some parameters; `c` is integer minus zero point.
#[derive(Clone, Copy)]
struct Sums {
    /// Of squared errors.
    error: f64,
    c: f64,
    cc: f64,
    xc: f64,
}

/// Sum over lanes, always in the same order.
fn total(lanes: &[f32; LANES]) -> f64 {
    lanes.iter().map(|&lane| f64::from(lane)).sum()
}

/// The nearest integer of the grid.
#[inline(always)]
fn round(weight: f32, inverse: f32, zero: f32, top: f32) -> f32 {
    ((weight * inverse + zero).max(0.0).min(top) + ROUNDER) - ROUNDER
}

/// Rounds a block and sums up.
fn sums(weights: &[f32], p: Parameters, top: f32) -> Sums {
    let (mut error, mut c, mut cc, mut xc) = ([0f32; LANES], [0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let inverse = 1.0 / p.scale;
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut add = |lane: usize, weight: f32| {
        let integer = round(weight, inverse, p.zero, top) - p.zero;
        let wrong = weight - integer * p.scale;
        error[lane] += wrong * wrong;
        c[lane] += integer;
        cc[lane] += integer * integer;
        xc[lane] += weight * integer;
    };
    for chunk in chunks {
        for (lane, &weight) in chunk.iter().enumerate() {
            add(lane, weight);
        }
    }
    for (lane, &weight) in rest.iter().enumerate() {
        add(lane, weight);
    }
    Sums { error: total(&error), c: total(&c), cc: total(&cc), xc: total(&xc) }
}

/// Least, greatest, and sum of a block's weights.
fn extremes(weights: &[f32]) -> (f32, f32, f64) {
    let (mut least, mut greatest, mut sum) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let first = weights.first().copied().unwrap_or(0.0);
    least.fill(first);
    greatest.fill(first);
    for chunk in chunks {
        for lane in 0..LANES {
            least[lane] = least[lane].min(chunk[lane]);
            greatest[lane] = greatest[lane].max(chunk[lane]);
            sum[lane] += chunk[lane];
        }
    }
    for (lane, &weight) in rest.iter().enumerate() {
        least[lane] = least[lane].min(weight);
        greatest[lane] = greatest[lane].max(weight);
        sum[lane] += weight;
    }
    (least.into_iter().fold(first, f32::min), greatest.into_iter().fold(first, f32::max), total(&sum))
}

/// The best parameters so far.
struct Best {
    parameters: Parameters,
    error: f64,
}

impl Best {
    fn offer(&mut self, parameters: Parameters, error: f64) -> bool {
        let better = error < self.error;
        if better {
            *self = Best { parameters, error };
        }
        better
    }
}

/// A block, and what is asked of it.
struct Search<'a> {
    weights: &'a [f32],
    grid: Grid,
    least: f32,
    greatest: f32,
    sum: f64,
}

/// How many starts are followed to their end.
const FOLLOWED: usize = 3;

/// Steps after which a descent ends.
const STEPS: usize = 8;

impl Search<'_> {
    /// From the least and the greatest weight, between which lies zero.
    fn nearest(&self) -> Parameters {
        let (top, middle) = (self.grid.top(), self.grid.middle());
        let (least, greatest) = (self.least.min(0.0), self.greatest.max(0.0));
        let (scale, zero) = match self.grid.zero_point {
            // The outermost weight becomes the outermost integer.
            ZeroPoint::Middle { signed: true } if greatest > -least => (-greatest / middle, middle),
            ZeroPoint::Middle { signed: true } => (-least / middle, middle),
            ZeroPoint::Middle { signed: false } => ((greatest / (top - middle)).max(-least / middle), middle),
            ZeroPoint::Integer => {
                let scale = ((f64::from(greatest) - f64::from(least)) / f64::from(top)) as f32;
                (scale, (-least / scale).round_ties_even().clamp(0.0, top))
            }
            ZeroPoint::Real => {
                let scale = ((f64::from(greatest) - f64::from(least)) / f64::from(top)) as f32;
                (scale, -least / scale)
            }
        };
        if scale.is_normal() && (1.0 / scale).is_normal() && zero.is_finite() {
            Parameters { scale, zero }
        } else {
            // Nothing but zeros, or numbers too small for a scale.
            Parameters { scale: 1.0, zero: middle }
        }
    }

    /// Parameters of least squared error for the integers that `p` gives.
    fn refit(&self, p: Parameters, sums: &Sums) -> Option<Parameters> {
        let refit = if self.grid.zero_point == ZeroPoint::Real {
            let count = self.weights.len() as f64;
            let spread = count * sums.cc - sums.c * sums.c;
            let scale = (count * sums.xc - self.sum * sums.c) / spread;
            let offset = (self.sum - scale * sums.c) / count;
            Parameters { scale: scale as f32, zero: (f64::from(p.zero) - offset / scale) as f32 }
        } else {
            Parameters { scale: (sums.xc / sums.cc) as f32, zero: p.zero }
        };
        let usable = refit.scale.is_normal()
            && (1.0 / refit.scale).is_normal()
            && refit.zero.is_finite()
            && (refit.scale > 0.0) == (p.scale > 0.0);
        usable.then_some(refit)
    }

    /// Follows the alternation from `p` on to its end.
    fn descend(&self, mut p: Parameters, best: &mut Best) {
        let mut last = f64::INFINITY;
        for _ in 0..STEPS {
            let sums = sums(self.weights, p, self.grid.top());
            best.offer(p, sums.error);
            if sums.error.partial_cmp(&last) != Some(std::cmp::Ordering::Less) {
                return;
            }
            last = sums.error;
            match self.refit(p, &sums) {
                Some(refit) if refit != p => p = refit,
                _ => return,
            }
        }
    }

    /// Zero points to try with a scale.
    fn zeros(&self, scale: f32) -> impl Iterator<Item = f32> + use<> {
        let (top, middle) = (self.grid.top(), self.grid.middle());
        // The zero point that puts the middle of the grid in the middle of the weights.
        let centred = top / 2.0 - (self.least + self.greatest) / 2.0 / scale;
        let tried: &[f32] = match self.grid.zero_point {
            ZeroPoint::Middle { .. } => &[0.0],
            ZeroPoint::Integer if self.grid.bits == 8 => &[0.0],
            ZeroPoint::Integer => &[0.0, -1.0, 1.0],
            ZeroPoint::Real if self.grid.bits == 8 => &[0.0],
            ZeroPoint::Real => &[0.0, -0.5, 0.5, 0.25],
        };
        let grid = self.grid;
        tried.iter().map(move |step| match grid.zero_point {
            ZeroPoint::Middle { .. } => middle,
            ZeroPoint::Integer => (centred.round_ties_even() + step).clamp(0.0, top),
            ZeroPoint::Real => centred + step,
        })
    }

    /// The search for the least squared error, which starts from `best`.
    fn search(&self, best: &mut Best) {
        let (low, high, count) = self.grid.starts();
        let (least, greatest) = (self.least.min(0.0), self.greatest.max(0.0));
        let (span, signs): (f32, &[f32]) = match self.grid.zero_point {
            ZeroPoint::Middle { signed } => {
                let span = greatest.max(-least) / (self.grid.top() / 2.0);
                (span, if signed { &[1.0, -1.0] } else { &[1.0] })
            }
            _ => (((f64::from(greatest) - f64::from(least)) / f64::from(self.grid.top())) as f32, &[1.0]),
        };
        let mut starts: [Option<Best>; FOLLOWED] = [const { None }; FOLLOWED];
        for index in 0..count {
            let part = low + (high - low) * index as f32 / (count - 1) as f32;
            for sign in signs {
                let scale = span * part * sign;
                if !(scale.is_normal() && (1.0 / scale).is_normal()) {
                    continue;
                }
                for zero in self.zeros(scale) {
                    let p = Parameters { scale, zero };
                    let sums = sums(self.weights, p, self.grid.top());
                    best.offer(p, sums.error);
                    let Some(refit) = self.refit(p, &sums) else { continue };
                    // What the refit will leave, at least. With a real zero point it is not worth working
                    // out: the start's own error ranks as well.
                    let moved = f64::from(refit.scale) - f64::from(scale);
                    let expected = match self.grid.zero_point {
                        ZeroPoint::Real => sums.error,
                        _ => sums.error - sums.cc * moved * moved,
                    };
                    let mut candidate = Some(Best { parameters: refit, error: expected });
                    for place in &mut starts {
                        let better = match (&candidate, &place) {
                            (Some(new), Some(old)) => new.error < old.error,
                            (new, None) => new.is_some(),
                            (None, _) => false,
                        };
                        if better {
                            std::mem::swap(place, &mut candidate);
                        }
                    }
                }
            }
        }
        for start in starts.into_iter().flatten() {
            self.descend(start.parameters, best);
        }
        if self.grid.zero_point == ZeroPoint::Integer {
            // The neighbours of the best zero point, from the best scale.
            let found = best.parameters;
            for step in [-1.0, 1.0] {
                let zero = found.zero + step;
                if (0.0..=self.grid.top()).contains(&zero) {
                    self.descend(Parameters { zero, ..found }, best);
                }
            }
        }
    }

    /// Half-quadratic quantization: the scale stays, the zero point moves.
    fn half_quadratic(&self, best: &mut Best) {
        const NORM: f32 = 0.7;
        let top = self.grid.top();
        let range = f64::from(self.greatest) - f64::from(self.least);
        // The inverse scale is limited, as the authors do.
        let inverse = (f64::from(top) / range).min(2e4) as f32;
        if !inverse.is_normal() || range <= 0.0 {
            return;
        }
        let scale = 1.0 / inverse;
        let mut zero = -self.least * inverse;
        let mut beta = 10.0f32;
        let mut last = f64::INFINITY;
        let count = self.weights.len() as f64;
        for _ in 0..20 {
            let (mut wrong, mut moved) = (0f64, 0f64);
            for &weight in self.weights {
                let integer = round(weight, inverse, zero, top);
                let error = weight - (integer - zero) * scale;
                let size = error.abs();
                let kept = (size - size.powf(NORM - 1.0) / beta).max(0.0).copysign(error);
                wrong += f64::from(size);
                moved += f64::from(integer - (weight - if size > 0.0 { kept } else { 0.0 }) * inverse);
            }
            if wrong.partial_cmp(&last) != Some(std::cmp::Ordering::Less) {
                break;
            }
            last = wrong;
            let written = match self.grid.zero_point {
                ZeroPoint::Real => zero,
                ZeroPoint::Integer => zero.round_ties_even().clamp(0.0, top),
                ZeroPoint::Middle { .. } => self.grid.middle(),
            };
            let p = Parameters { scale, zero: written };
            best.offer(p, sums(self.weights, p, top).error);
            zero = (moved / count) as f32;
            beta *= 1.01;
        }
    }
}

/// Chooses scale and zero point of a block and writes its integers. Returns them and the sums of squares
/// of weights and errors. The weights are finite; the result is never worse than rounding between the
/// least and the greatest weight.
///
/// # Panics
/// When there are fewer places for integers than weights.
pub fn quantize(
    weights: &[f32],
    grid: Grid,
    algorithm: Algorithm,
    integers: &mut [u8],
) -> (Parameters, f64, f64) {
    let (least, greatest, sum) = extremes(weights);
    let search = Search { weights, grid, least, greatest, sum };
    let nearest = search.nearest();
    let mut best = Best { parameters: nearest, error: sums(weights, nearest, grid.top()).error };
    match algorithm {
        _ if least == 0.0 && greatest == 0.0 => {}
        Algorithm::Rtn => {}
        Algorithm::Mse => search.search(&mut best),
        Algorithm::Hqq => search.half_quadratic(&mut best),
    }
    let Parameters { scale, zero } = best.parameters;
    let inverse = 1.0 / scale;
    for (integer, &weight) in integers[..weights.len()].iter_mut().zip(weights) {
        *integer = round(weight, inverse, zero, grid.top()) as u8;
    }
    let mut signal = [0f32; LANES];
    for chunk in weights.chunks(LANES) {
        for (lane, weight) in signal.iter_mut().zip(chunk) {
            *lane += weight * weight;
        }
    }
    (best.parameters, total(&signal), best.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7 + seed).sin() * (1.0 + (i as f32 * 1.3 + seed).cos())).collect()
    }

    const ZERO_POINTS: [ZeroPoint; 4] = [
        ZeroPoint::Middle { signed: false },
        ZeroPoint::Middle { signed: true },
        ZeroPoint::Integer,
        ZeroPoint::Real,
    ];

    /// The error that integers and parameters really make.
    fn error(weights: &[f32], integers: &[u8], p: Parameters) -> f64 {
        weights
            .iter()
            .zip(integers)
            .map(|(&w, &q)| (f64::from(w) - f64::from((f32::from(q) - p.zero) * p.scale)).powi(2))
            .sum()
    }

    #[test]
    fn no_algorithm_is_worse_than_nearest_and_the_error_told_is_the_error_made() {
        for count in [1, 5, 16, 32, 100, 128] {
            for bits in [2, 4, 8] {
                for zero_point in ZERO_POINTS {
                    let grid = Grid { bits, zero_point };
                    for seed in 0..4 {
                        let weights = wave(count, seed as f32);
                        let mut integers = vec![0; count];
                        let mut least = f64::INFINITY;
                        for algorithm in [Algorithm::Rtn, Algorithm::Hqq, Algorithm::Mse] {
                            let (p, _, told) = quantize(&weights, grid, algorithm, &mut integers);
                            let made = error(&weights, &integers, p);
                            assert!((made - told).abs() <= 1e-4 * made + 1e-9, "{grid:?} {made} {told}");
                            if algorithm == Algorithm::Rtn {
                                least = told;
                            }
                            assert!(told <= least, "{algorithm:?} {grid:?}");
                            assert!(integers.iter().all(|&q| f32::from(q) <= grid.top()));
                            if zero_point != ZeroPoint::Real {
                                assert_eq!(p.zero, p.zero.round());
                                assert!((0.0..=grid.top()).contains(&p.zero));
                            }
                            assert!(p.scale > 0.0 || zero_point == ZeroPoint::Middle { signed: true });
                        }
                    }
                }
            }
        }
    }

    /// Every zero point and very many scales, each refined: what the search should come close to.
    fn exhaustive(weights: &[f32], bits: u32) -> f64 {
        let top = ((1u32 << bits) - 1) as f32;
        let span = weights.iter().fold(0f32, |max, w| max.max(w.abs())) * 2.0 / top;
        let mut least = f64::INFINITY;
        for step in 20..260 {
            for zero in 0..=top as u32 {
                let mut p = Parameters { scale: span * step as f32 / 200.0, zero: zero as f32 };
                for _ in 0..3 {
                    let sums = sums(weights, p, top);
                    least = least.min(sums.error);
                    let scale = (sums.xc / sums.cc) as f32;
                    if scale <= 0.0 || scale.is_nan() {
                        break;
                    }
                    p.scale = scale;
                }
            }
        }
        least
    }

    #[test]
    fn the_search_comes_close_to_the_best_there_is() {
        let grid = Grid { bits: 4, zero_point: ZeroPoint::Integer };
        let (mut found, mut best) = (0.0, 0.0);
        for seed in 0..24 {
            let weights = wave(32, seed as f32 * 0.37);
            found += quantize(&weights, grid, Algorithm::Mse, &mut [0; 32]).2;
            best += exhaustive(&weights, 4);
        }
        assert!(found <= 1.02 * best, "{found} against {best}");
    }

    #[test]
    fn errors_stay_within_half_a_step_where_nothing_is_cut() {
        for algorithm in [Algorithm::Rtn, Algorithm::Hqq, Algorithm::Mse] {
            for zero_point in ZERO_POINTS {
                for bits in [2, 4, 8] {
                    let grid = Grid { bits, zero_point };
                    let weights = wave(64, 0.4);
                    let mut integers = [0; 64];
                    let (p, ..) = quantize(&weights, grid, algorithm, &mut integers);
                    for (&weight, &integer) in weights.iter().zip(&integers) {
                        let cut = integer == 0 || f32::from(integer) == grid.top();
                        let error = (weight - (f32::from(integer) - p.zero) * p.scale).abs();
                        assert!(cut || error <= 0.501 * p.scale.abs(), "{algorithm:?} {grid:?} {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn odd_blocks_do_not_break_it() {
        for weights in [
            vec![0.0; 20],
            vec![1e-44; 20],
            vec![f32::MAX; 20],
            vec![f32::MAX, f32::MIN],
            vec![3.0; 17],
            vec![-3.0; 17],
            vec![f32::MIN_POSITIVE; 3],
        ] {
            for zero_point in ZERO_POINTS {
                for algorithm in [Algorithm::Rtn, Algorithm::Mse, Algorithm::Hqq] {
                    let grid = Grid { bits: 4, zero_point };
                    let (p, ..) = quantize(&weights, grid, algorithm, &mut [0; 20]);
                    assert!(p.scale.is_normal() && p.zero.is_finite(), "{weights:?} {p:?}");
                }
            }
        }
    }

    #[test]
    fn a_block_on_the_grid_loses_nothing() {
        let weights: Vec<f32> = (0..16).map(|i| (i as f32 - 5.0) * 0.25).collect();
        let grid = Grid { bits: 4, zero_point: ZeroPoint::Integer };
        let mut integers = [0; 16];
        let (p, _, error) = quantize(&weights, grid, Algorithm::Mse, &mut integers);
        assert_eq!((p.scale, p.zero, error), (0.25, 5.0, 0.0));
        assert_eq!(integers, std::array::from_fn(|i| i as u8));
    }
}
