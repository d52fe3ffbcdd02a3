//! A histogram as a density: how much lies below a value, and sums of it and its square, in constant time.

use super::Observer;
use crate::quantize::affine::Affine;
use crate::quantize::float8;

/// Number, sum and sum of squares of values, these in widths of a bin.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) count: f64,
    pub(super) first: f64,
    pub(super) second: f64,
}

/// Non-zero values seen, taken as spread evenly over each bin; the outermost bins end at the extremes.
///
/// All places are in widths of a bin, so that neither the greatest nor the least floats overflow anything.
#[derive(Clone, Debug)]
pub(super) struct Density {
    /// Width of a bin.
    pub(super) width: f64,
    /// Place of the first bin's left edge.
    pub(super) first: i64,
    /// Values in each bin.
    pub(super) counts: Vec<u64>,
    /// Least and greatest value.
    pub(super) ends: (f64, f64),
    /// What lies below each bin's left edge; one more than there are bins.
    below: Vec<Sums>,
}

impl Density {
    pub(super) fn new(observer: &Observer) -> Density {
        let (_, negative, positive) = observer.histogram.parts();
        let width = if observer.histogram.is_empty() { 1.0 } else { observer.histogram.width() };
        let (min, max) = observer.range().unwrap_or((0.0, 0.0));
        let ends = (f64::from(min) / width, f64::from(max) / width);
        let last = |side: &[u64]| side.iter().rposition(|count| *count > 0).map_or(0, |bin| bin + 1);
        let (down, up) = (last(negative), last(positive));
        let counts: Vec<u64> = negative[..down].iter().rev().chain(&positive[..up]).copied().collect();
        let mut density = Density { width, first: -(down as i64), counts, ends, below: Vec::new() };
        let mut sum = Sums::default();
        density.below.push(sum);
        for (bin, &count) in density.counts.iter().enumerate() {
            if count > 0 {
                let (left, right) = density.edges(bin);
                let count = count as f64;
                sum.count += count;
                sum.first += count * (left + right) / 2.0;
                sum.second += count * (left * left + left * right + right * right) / 3.0;
            }
            density.below.push(sum);
        }
        density
    }

    /// Ends of a bin, cut at the extremes.
    fn edges(&self, bin: usize) -> (f64, f64) {
        let left = (self.first + bin as i64) as f64;
        // Values of the bins beside zero may lie on the far side of an extreme that is zero.
        let (least, most) = (self.ends.0.min(left + 1.0), self.ends.1.max(left));
        (left.max(least), (left + 1.0).min(most))
    }

    /// Everything but the zeros.
    pub(super) fn all(&self) -> Sums {
        self.below.last().copied().unwrap_or_default()
    }

    /// What lies below a place.
    pub(super) fn below(&self, place: f64) -> Sums {
        let from_first = place - self.first as f64;
        if from_first <= 0.0 {
            return Sums::default();
        }
        let bin = from_first as usize;
        let Some(&count) = self.counts.get(bin) else { return self.all() };
        let before = self.below[bin];
        if count == 0 {
            return before;
        }
        let (left, right) = self.edges(bin);
        if place <= left {
            return before;
        }
        if place >= right {
            return self.below[bin + 1];
        }
        let part = count as f64 * (place - left) / (right - left);
        Sums {
            count: before.count + part,
            first: before.first + part * (left + place) / 2.0,
            second: before.second + part * (left * left + left * place + place * place) / 3.0,
        }
    }

    /// Sum of squares.
    pub(super) fn signal(&self) -> f64 {
        self.all().second * self.width * self.width
    }

    /// Sum of squared errors of a quantizer: over each of its cells, with the density's moments, so that its
    /// cost is that of the cells and not of the bins. Zeros have none, since zero has an integer of its own.
    pub(super) fn noise(&self, quantizer: &Affine) -> f64 {
        let step = f64::from(quantizer.scale) / self.width;
        let place = |integer: f64| (integer - f64::from(quantizer.zero_point)) * step;
        let error = |from: Sums, to: Sums, center: f64| {
            let second = to.second - from.second - 2.0 * center * (to.first - from.first)
                + center * center * (to.count - from.count);
            second.max(0.0)
        };
        if let Some(dtype) = quantizer.float_type() {
            let numbers = float8::numbers(dtype);
            let (mut noise, mut from) = (0.0, Sums::default());
            for (index, &number) in numbers.iter().enumerate() {
                let to = match numbers.get(index + 1) {
                    Some(next) => self.below((number + next) / 2.0 * step),
                    None => self.all(),
                };
                noise += error(from, to, number * step);
                from = to;
            }
            return noise * self.width * self.width;
        }
        let bounds = (f64::from(quantizer.low), f64::from(quantizer.high));
        let integer_of = |end: f64| {
            let integer = (end / step).round() + f64::from(quantizer.zero_point);
            integer.clamp(bounds.0, bounds.1)
        };
        let (low, high) = (integer_of(self.ends.0), integer_of(self.ends.1));
        let mut noise = 0.0;
        let mut from = Sums::default();
        if high - low > 2.0 * self.counts.len() as f64 {
            // Cells finer than bins: evenly spread values are off by step^2 / 12 in the mean.
            let below = self.below(place(low + 0.5));
            let above = self.below(place(high - 0.5));
            noise += error(from, below, place(low));
            noise += (above.count - below.count) * step * step / 12.0;
            noise += error(above, self.all(), place(high));
        } else {
            for integer in low as i64..=high as i64 {
                let integer = integer as f64;
                let to = if integer >= high { self.all() } else { self.below(place(integer + 0.5)) };
                noise += error(from, to, place(integer));
                from = to;
            }
        }
        noise * self.width * self.width
    }
}
