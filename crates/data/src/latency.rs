//! What a list of latencies says: median, spread, percentiles with bounds, and the ratio of two systems
//! that were measured in turn. All intervals are two-sided at 95%.

use crate::statistics::Interval;

/// Probability left out at either end.
const TAIL: f64 = 0.025;

/// Runs of pairs that are taken together for the interval of a ratio.
const BATCHES: usize = 10;

/// Fewest pairs that give an interval.
const FEWEST: usize = 6;

/// Measured latencies of one system, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Latencies {
    sorted: Vec<f64>,
}

/// A percentile and where the true one lies at 95%.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentile {
    /// The figure of the sample.
    pub value: f64,
    /// Lower bound; none when there are too few figures for one.
    pub low: Option<f64>,
    /// Upper bound; none when there are too few figures for one.
    pub high: Option<f64>,
}

impl Latencies {
    /// Of figures in any order; what is not a finite number is left out.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Latencies {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Latencies { sorted }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The figure that a share `q` of all are not above, between neighbours in proportion; 0 without
    /// figures.
    pub fn quantile(&self, q: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        let place = q.clamp(0.0, 1.0) * last as f64;
        let below = place.floor();
        let at = |index: f64| self.sorted.get(index as usize).copied().unwrap_or(0.0);
        let (low, high) = (at(below), at((below + 1.0).min(last as f64)));
        low + (high - low) * (place - below)
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The mean; 0 without figures.
    pub fn mean(&self) -> f64 {
        if self.is_empty() { 0.0 } else { self.sorted.iter().sum::<f64>() / self.sorted.len() as f64 }
    }

    /// The least.
    pub fn least(&self) -> f64 {
        self.sorted.first().copied().unwrap_or(0.0)
    }

    /// The greatest.
    pub fn greatest(&self) -> f64 {
        self.sorted.last().copied().unwrap_or(0.0)
    }

    /// Distance of the quartiles as a share of the median: how noisy the figures are.
    pub fn spread(&self) -> f64 {
        let median = self.median();
        if median > 0.0 { (self.quantile(0.75) - self.quantile(0.25)) / median } else { 0.0 }
    }

    /// A percentile, `q` from 0 to 1, with bounds that hold for any distribution: two of the figures
    /// themselves, chosen by how many of so many fall below the true percentile (W. J. Conover, Practical
    /// Nonparametric Statistics, 3.2). They suppose that one run does not depend on another.
    pub fn percentile(&self, q: f64) -> Percentile {
        let (low, high) = bounds(self.sorted.len(), q);
        let at = |index: Option<usize>| index.and_then(|index| self.sorted.get(index).copied());
        Percentile { value: self.quantile(q), low: at(low), high: at(high) }
    }
}

/// Which of `n` sorted figures, from 0, bound the quantile `q`: the greatest that is above it with at most
/// [`TAIL`], the least that is below it with at most [`TAIL`].
fn bounds(n: usize, q: f64) -> (Option<usize>, Option<usize>) {
    if n == 0 || q <= 0.0 || q >= 1.0 {
        return (None, None);
    }
    // Logarithm of the probability that k figures lie below the quantile.
    let mut ln = n as f64 * (1.0 - q).ln();
    let (mut at_most, mut low, mut high) = (0.0f64, None, None);
    for k in 0..n {
        // The probability that at most k do: figure k, counted from 0, then lies above the quantile.
        at_most += ln.exp();
        if at_most <= TAIL {
            low = Some(k);
        }
        if at_most >= 1.0 - TAIL {
            high = Some(k);
            break;
        }
        let left = n.saturating_sub(k) as f64;
        ln += (left / (k as f64 + 1.0)).ln() + (q / (1.0 - q)).ln();
    }
    (low, high)
}

/// The time of one system over another's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The estimate: below 1, the first one is faster.
    pub ratio: f64,
    /// Its interval.
    pub interval: Interval,
    /// Pairs of figures.
    pub pairs: usize,
}

/// What a ratio shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The first one is faster: the whole interval is below 1.
    Faster,
    /// The first one is slower: the whole interval is above 1.
    Slower,
    /// The interval contains 1.
    NoneShown,
}

impl Ratio {
    /// The ratio of figures that were taken in pairs, one right after the other; `None` for fewer than six
    /// pairs.
    ///
    /// What disturbs a machine lasts longer than a pair, so neighbouring pairs are not independent. They
    /// are therefore put into ten batches; the interval is Student's of the batches' medians of the
    /// logarithm of the ratio (the method of batch means).
    pub fn of_pairs(first: &[f64], second: &[f64]) -> Option<Ratio> {
        let logarithms: Vec<f64> = first
            .iter()
            .zip(second)
            .filter(|(a, b)| **a > 0.0 && **b > 0.0)
            .map(|(a, b)| (a / b).ln())
            .collect();
        if logarithms.len() < FEWEST {
            return None;
        }
        let count = BATCHES.min(logarithms.len());
        let medians: Vec<f64> = (0..count)
            .filter_map(|batch| {
                let edge = |batch: usize| logarithms.len().checked_mul(batch)?.checked_div(count);
                let part = logarithms.get(edge(batch)?..edge(batch.checked_add(1)?)?)?;
                Some(Latencies::new(part.iter().copied()).median())
            })
            .collect();
        let n = medians.len() as f64;
        let mean = medians.iter().sum::<f64>() / n;
        let variance = medians.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let half = student(medians.len().saturating_sub(1)) * (variance / n).sqrt();
        let interval = Interval { low: (mean - half).exp(), high: (mean + half).exp() };
        Some(Ratio { ratio: mean.exp(), interval, pairs: logarithms.len() })
    }

    /// What it shows.
    pub fn difference(&self) -> Difference {
        if self.interval.high < 1.0 {
            Difference::Faster
        } else if self.interval.low > 1.0 {
            Difference::Slower
        } else {
            Difference::NoneShown
        }
    }
}

/// The 97.5% point of Student's distribution with so many degrees of freedom; of the greatest in the table
/// for more.
fn student(degrees: usize) -> f64 {
    const POINTS: [f64; 12] =
        [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179];
    let index = degrees.saturating_sub(1).min(POINTS.len().saturating_sub(1));
    POINTS.get(index).copied().unwrap_or(2.179)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from 0 to 1, the same every time.
    fn numbers(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let latencies = Latencies::new([4.0, 1.0, f64::NAN, 3.0, 2.0]);
        assert_eq!((latencies.len(), latencies.median(), latencies.mean()), (4, 2.5, 2.5));
        assert_eq!((latencies.quantile(0.0), latencies.quantile(1.0)), (1.0, 4.0));
        assert_eq!((latencies.least(), latencies.greatest()), (1.0, 4.0));
        assert_eq!(latencies.spread(), (3.25 - 1.75) / 2.5);
        let none = Latencies::default();
        assert!(none.is_empty() && none.median() == 0.0 && none.spread() == 0.0 && none.mean() == 0.0);
    }

    #[test]
    fn bounds_are_those_of_the_tables() {
        // Sign test tables: of 20 figures the 6th and the 15th bound the median, of 6 the first and last,
        // of 5 none do.
        assert_eq!(bounds(20, 0.5), (Some(5), Some(14)));
        assert_eq!(bounds(6, 0.5), (Some(0), Some(5)));
        assert_eq!(bounds(5, 0.5), (None, None));
        // A 99th percentile has an upper bound from 368 figures on: 0.99^368 < 0.025.
        assert_eq!(bounds(367, 0.99).1, None);
        assert_eq!(bounds(368, 0.99).1, Some(367));
        assert_eq!(bounds(0, 0.5), (None, None));
    }

    #[test]
    fn bounds_contain_the_truth_as_often_as_they_say() {
        let mut missed = 0;
        for seed in 1..=1000 {
            let mut next = numbers(seed);
            let latencies = Latencies::new((0..200).map(|_| next()));
            let p90 = latencies.percentile(0.9);
            missed += usize::from(p90.low > Some(0.9) || p90.high.is_some_and(|high| high < 0.9));
        }
        assert!((10..=60).contains(&missed), "{missed} of 1000 miss the 90th percentile");
    }

    #[test]
    fn equal_systems_are_told_apart_in_one_of_twenty() {
        let mut shown = 0;
        for seed in 1..=1000 {
            let mut next = numbers(seed);
            let mut drift = 0.0;
            let mut one = || {
                // Noise that lasts, on top of noise that does not, and a rare outlier.
                drift = 0.9 * drift + 0.1 * (next() - 0.5);
                let outlier = if next() < 0.03 { 2.0 } else { 0.0 };
                1.0 + drift + 0.05 * next() + outlier
            };
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for pair in 0..60 {
                let (x, y) = (one(), one());
                // In turn, who goes first changes.
                let (x, y) = if pair % 2 == 0 { (x, y) } else { (y, x) };
                a.push(x);
                b.push(y);
            }
            let ratio = Ratio::of_pairs(&a, &b).expect("enough");
            shown += usize::from(ratio.difference() != Difference::NoneShown);
        }
        assert!((5..=80).contains(&shown), "{shown} of 1000 show a difference that is not there");
    }

    #[test]
    fn differences_that_are_there_are_shown() {
        let mut next = numbers(7);
        let a: Vec<f64> = (0..40).map(|_| 1.0 + 0.1 * next()).collect();
        let b: Vec<f64> = (0..40).map(|_| 1.2 * (1.0 + 0.1 * next())).collect();
        let ratio = Ratio::of_pairs(&a, &b).expect("enough");
        assert_eq!(ratio.difference(), Difference::Faster);
        assert!((ratio.ratio - 1.0 / 1.2).abs() < 0.03, "{ratio:?}");
        assert_eq!(Ratio::of_pairs(&b, &a).expect("enough").difference(), Difference::Slower);
        assert!(Ratio::of_pairs(&a[..5], &b[..5]).is_none());
    }
}
