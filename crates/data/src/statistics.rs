//! How sure a figure is: intervals for shares and for paired changes, and verdicts on thresholds.
//!
//! All intervals are two-sided at 95%. Accuracy changes are paired: both models see the same samples, and
//! only those that one of them gets right and the other wrong tell anything about the change.

/// The 97.5% point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The 80% point of the normal distribution: the power with which a number of samples is to decide.
const Z_POWER: f64 = 0.841_621_233_572_914;

/// An interval at 95%.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Wilson's score interval for a share: `successes` of `total` (E. B. Wilson, JASA 22, 1927). The whole of
/// 0 to 1 when `total` is 0.
pub fn wilson(successes: u64, total: u64) -> Interval {
    if total == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, p) = (total as f64, successes as f64 / total as f64);
    let z2 = Z * Z;
    let center = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    // Exact at the ends, where rounding would leave the share outside its own interval.
    let low = if successes == 0 { 0.0 } else { (center - half).max(0.0) };
    let high = if successes == total { 1.0 } else { (center + half).min(1.0) };
    Interval { low, high }
}

/// Samples by which of two models gets them right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairedCounts {
    /// Both.
    pub both: u64,
    /// Only the reference.
    pub only_reference: u64,
    /// Only the candidate.
    pub only_candidate: u64,
    /// Neither.
    pub neither: u64,
}

impl PairedCounts {
    /// Adds samples: whether the reference and the candidate are right, in the same order.
    pub fn add(&mut self, reference: &[bool], candidate: &[bool]) {
        for pair in reference.iter().zip(candidate) {
            let count = match pair {
                (true, true) => &mut self.both,
                (true, false) => &mut self.only_reference,
                (false, true) => &mut self.only_candidate,
                (false, false) => &mut self.neither,
            };
            *count = count.saturating_add(1);
        }
    }

    /// All samples.
    pub fn total(&self) -> u64 {
        self.both
            .saturating_add(self.only_reference)
            .saturating_add(self.only_candidate)
            .saturating_add(self.neither)
    }

    /// The change of accuracy from reference to candidate; `None` without samples.
    pub fn change(&self) -> Option<AccuracyChange> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let n = total as f64;
        let reference = self.both.saturating_add(self.only_reference);
        let candidate = self.both.saturating_add(self.only_candidate);
        let difference = (self.only_candidate as f64 - self.only_reference as f64) / n;
        let discordant = self.only_reference.saturating_add(self.only_candidate);
        let interval = if discordant == 0 {
            // Rule of three: an event not seen in n samples has, at 95%, a share of at most 3/n.
            let bound = (3.0 / n).min(1.0);
            Interval { low: -bound, high: bound }
        } else {
            self.newcombe(n, reference, candidate)
        };
        Some(AccuracyChange {
            samples: total,
            reference: reference as f64 / n,
            candidate: candidate as f64 / n,
            difference,
            interval,
            discordant,
            p_value: binomial_two_sided(self.only_reference.min(self.only_candidate), discordant),
            // Variance of one sample's difference, which is -1, 0 or 1.
            variance: (discordant as f64 / n - difference * difference).max(0.0),
        })
    }

    /// Newcombe's interval for paired shares, his method 10 (R. G. Newcombe, Statistics in Medicine 17,
    /// 1998): Wilson's intervals of the two shares, joined with their correlation.
    fn newcombe(&self, n: f64, reference: u64, candidate: u64) -> Interval {
        let total = self.total();
        let (p1, p2) = (candidate as f64 / n, reference as f64 / n);
        let (first, second) = (wilson(candidate, total), wilson(reference, total));
        let (a, b) = (self.both as f64, self.only_candidate as f64);
        let (c, d) = (self.only_reference as f64, self.neither as f64);
        let margins = ((a + b) * (c + d) * (a + c) * (b + d)).sqrt();
        let cross = a * d - b * c;
        let cross = if cross > 0.0 { (cross - n / 2.0).max(0.0) } else { cross };
        let phi = if margins > 0.0 { cross / margins } else { 0.0 };
        let join = |x: f64, y: f64| (x * x - 2.0 * phi * x * y + y * y).max(0.0).sqrt();
        let difference = p1 - p2;
        Interval {
            low: (difference - join(p1 - first.low, second.high - p2)).max(-1.0),
            high: (difference + join(first.high - p1, p2 - second.low)).min(1.0),
        }
    }
}

/// A change of accuracy, with what it is known to. All shares are 0 to 1, not percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccuracyChange {
    /// Samples.
    pub samples: u64,
    /// Accuracy of the reference.
    pub reference: f64,
    /// Accuracy of the candidate.
    pub candidate: f64,
    /// Candidate minus reference: negative is a loss.
    pub difference: f64,
    /// The 95% interval of the difference. Without discordant samples: 3/n to both sides.
    pub interval: Interval,
    /// Samples that exactly one of the two gets right.
    pub discordant: u64,
    /// McNemar's exact test: how probable so uneven a split of the discordant samples is if there is no
    /// difference.
    pub p_value: f64,
    variance: f64,
}

impl AccuracyChange {
    /// Most that accuracy may have dropped, at 95%; negative when it surely rose.
    pub fn drop_upper_bound(&self) -> f64 {
        -self.interval.low
    }

    /// Least that accuracy may have dropped, at 95%.
    pub fn drop_lower_bound(&self) -> f64 {
        -self.interval.high
    }

    /// Whether accuracy dropped by at most `margin` (a share: half a point is 0.005), judged by the
    /// unfavourable end of the interval.
    pub fn judge_drop(&self, margin: f64) -> Verdict {
        if self.drop_upper_bound() <= margin {
            return Verdict::Met;
        }
        if self.drop_lower_bound() > margin {
            return Verdict::Missed;
        }
        // Where nothing discordant was seen yet, the rule of three says how much there may be.
        let variance = if self.discordant == 0 { 3.0 / self.samples.max(1) as f64 } else { self.variance };
        Verdict::Inconclusive {
            samples_needed: samples_needed(variance, margin + self.difference, self.samples),
        }
    }
}

/// A mean of figures that each sample has one of, or several of as a sum with its weight (the tokens of a
/// text, say): the sum of all totals over the sum of all weights. Samples are independent, what is within
/// one need not be; the interval is that of a ratio estimator (W. G. Cochran, Sampling Techniques, 1977,
/// section 6.4).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    samples: u64,
    totals: f64,
    weights: f64,
    total_squares: f64,
    products: f64,
    weight_squares: f64,
}

impl Mean {
    /// Adds a sample: the total of its figures, and their number.
    pub fn add(&mut self, total: f64, weight: f64) {
        self.samples = self.samples.saturating_add(1);
        self.totals += total;
        self.weights += weight;
        self.total_squares += total * total;
        self.products += total * weight;
        self.weight_squares += weight * weight;
    }

    /// Samples.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The mean; `None` before anything with a weight was added.
    pub fn value(&self) -> Option<f64> {
        (self.weights > 0.0).then(|| self.totals / self.weights)
    }

    /// Variance of what one sample adds to the mean.
    fn variance(&self) -> Option<f64> {
        let mean = self.value().filter(|_| self.samples >= 2)?;
        let n = self.samples as f64;
        let squares = self.total_squares - 2.0 * mean * self.products + mean * mean * self.weight_squares;
        let per_sample = self.weights / n;
        Some(squares.max(0.0) / (n - 1.0) / (per_sample * per_sample))
    }

    /// The 95% interval of the mean, from Student's distribution; `None` with fewer than two samples.
    pub fn interval(&self) -> Option<Interval> {
        let (mean, variance) = (self.value()?, self.variance()?);
        let half = student(self.samples.saturating_sub(1) as f64) * (variance / self.samples as f64).sqrt();
        Some(Interval { low: mean - half, high: mean + half })
    }

    /// Whether the mean is at least (or at most) `threshold`, judged by the unfavourable end of its
    /// interval.
    pub(crate) fn judge(&self, threshold: f64, better: crate::measure::Better) -> Verdict {
        let (Some(mean), Some(interval)) = (self.value(), self.interval()) else {
            return Verdict::Inconclusive { samples_needed: None };
        };
        // How far each end is on the good side.
        let (worst, best, middle) = match better {
            crate::measure::Better::Higher => {
                (interval.low - threshold, interval.high - threshold, mean - threshold)
            }
            crate::measure::Better::Lower => {
                (threshold - interval.high, threshold - interval.low, threshold - mean)
            }
        };
        if worst >= 0.0 {
            return Verdict::Met;
        }
        // NaN meets nothing.
        if best < 0.0 || worst.is_nan() {
            return Verdict::Missed;
        }
        let variance = self.variance().unwrap_or(f64::NAN);
        Verdict::Inconclusive { samples_needed: samples_needed(variance, middle, self.samples) }
    }
}

/// The 97.5% point of Student's distribution (Fisher and Cornish's expansion), a hundredth too small at 3
/// degrees of freedom and exact to 0.1% from 8 on.
fn student(degrees: f64) -> f64 {
    let z = Z;
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / degrees + second / degrees.powi(2) + third / degrees.powi(3)
}

/// Whether a threshold is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval meets it.
    Met,
    /// No part of the interval meets it.
    Missed,
    /// The threshold lies within the interval. A miss, as far as exit codes go.
    Inconclusive {
        /// About how many samples in all would decide (at 95%, with a power of 80%, if what was seen is
        /// how things are); `None` when no number would, because the figure sits on the threshold.
        samples_needed: Option<u64>,
    },
}

/// `n = variance * ((z + z_power) / distance)^2`, at least more than there are.
fn samples_needed(variance: f64, distance: f64, samples: u64) -> Option<u64> {
    let needed = variance * ((Z + Z_POWER) / distance).powi(2);
    // Beyond any data set, and where the distance is zero.
    if !needed.is_finite() || needed > 1e12 {
        return None;
    }
    Some((needed.ceil() as u64).max(samples.saturating_add(1)))
}

/// Whether a share, such as agreement, is at least `least` (0 to 1), judged by the lower end of Wilson's
/// interval.
pub fn judge_share(successes: u64, total: u64, least: f64) -> Verdict {
    let interval = wilson(successes, total);
    if interval.low >= least {
        return Verdict::Met;
    }
    if interval.high < least || least > 1.0 {
        return Verdict::Missed;
    }
    if total == 0 {
        return Verdict::Inconclusive { samples_needed: None };
    }
    let share = successes as f64 / total as f64;
    let samples_needed = if successes == total {
        // All succeeded: the interval's lower end is 1 / (1 + z^2 / n).
        let needed = Z * Z * least / (1.0 - least);
        needed.is_finite().then(|| (needed.ceil() as u64).max(total.saturating_add(1)))
    } else {
        samples_needed(share * (1.0 - share), share - least, total)
    };
    Verdict::Inconclusive { samples_needed }
}

/// Twice the probability of at most `few` heads in `tosses` of a fair coin, at most 1.
fn binomial_two_sided(few: u64, tosses: u64) -> f64 {
    if tosses == 0 {
        return 1.0;
    }
    // Terms of the sum as logarithms: C(n, k) / 2^n underflows early.
    let n = tosses as f64;
    let mut term = -n * std::f64::consts::LN_2;
    let mut sum = term.exp();
    let mut k = 0u64;
    while k < few {
        term += ((n - k as f64) / (k as f64 + 1.0)).ln();
        sum += term.exp();
        k = k.saturating_add(1);
    }
    (2.0 * sum).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 5e-5, "{found} is not {expected}");
    }

    fn counts(both: u64, only_reference: u64, only_candidate: u64, neither: u64) -> PairedCounts {
        PairedCounts { both, only_reference, only_candidate, neither }
    }

    #[test]
    fn wilson_at_known_points() {
        // Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3.
        for (successes, total, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let interval = wilson(successes, total);
            close(interval.low, low);
            close(interval.high, high);
        }
        assert_eq!(wilson(20, 20).high, 1.0);
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn paired_interval_at_known_points() {
        // Newcombe 1998 (Statistics in Medicine 17, 2635-2650), table III, method 10: first minus second
        // share, cells (e, f, g, h) with f only the first.
        for ((e, f, g, h), low, high) in [
            ((36, 12, 2, 0), 0.0569, 0.3404),
            ((20, 12, 2, 16), 0.0562, 0.3292),
            ((1, 97, 1, 1), 0.8737, 0.9850),
        ] {
            let change = counts(e, g, f, h).change().unwrap();
            close(change.interval.low, low);
            close(change.interval.high, high);
        }
    }

    #[test]
    fn nothing_discordant_is_the_rule_of_three() {
        let change = counts(900, 0, 0, 100).change().unwrap();
        assert_eq!(change.difference, 0.0);
        assert_eq!(change.drop_upper_bound(), 0.003);
        assert_eq!(change.p_value, 1.0);
        assert_eq!(change.judge_drop(0.003), Verdict::Met);
        let Verdict::Inconclusive { samples_needed: Some(needed) } = change.judge_drop(0.002) else {
            panic!()
        };
        assert!(needed > 1000);
        assert_eq!(counts(0, 0, 0, 0).change(), None);
    }

    #[test]
    fn exact_p_values() {
        close(binomial_two_sided(0, 5), 0.0625);
        close(binomial_two_sided(2, 14), 0.01294);
        assert_eq!(binomial_two_sided(5, 10), 1.0);
        assert!(binomial_two_sided(400, 1000) < 1e-9);
        assert!(binomial_two_sided(100_000, 200_000) > 0.99);
    }

    #[test]
    fn verdicts() {
        // A loss of half a point of 10,000 with 1% flips.
        let change = counts(8900, 75, 25, 1000).change().unwrap();
        close(change.difference, -0.005);
        assert_eq!(change.judge_drop(0.01), Verdict::Met);
        assert_eq!(change.judge_drop(0.002), Verdict::Missed);
        let Verdict::Inconclusive { samples_needed: Some(needed) } = change.judge_drop(0.006) else {
            panic!()
        };
        // 0.01 * (2.8 / 0.001)^2, less the square of the difference.
        assert!((70_000..80_000).contains(&needed), "{needed}");
        assert_eq!(change.judge_drop(0.005), Verdict::Inconclusive { samples_needed: None });
        assert_eq!(judge_share(5000, 5000, 0.995), Verdict::Met);
        assert_eq!(judge_share(4800, 5000, 0.995), Verdict::Missed);
        let Verdict::Inconclusive { samples_needed: Some(needed) } = judge_share(100, 100, 0.995) else {
            panic!()
        };
        assert_eq!(judge_share(needed, needed, 0.995), Verdict::Met);
        assert_ne!(judge_share(needed - 1, needed - 1, 0.995), Verdict::Met);
        assert_eq!(judge_share(10, 10, 1.0), Verdict::Inconclusive { samples_needed: None });
    }

    /// A small generator (SplitMix64), so that the simulation is the same everywhere.
    struct Random(u64);

    impl Random {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    #[test]
    fn paired_intervals_cover_the_truth() {
        let mut random = Random(7);
        // Shares of: both, only the reference, only the candidate (the rest neither); samples.
        for (both, reference, candidate, samples) in [
            (0.90, 0.03, 0.02, 300),
            (0.70, 0.01, 0.01, 500),
            (0.50, 0.10, 0.05, 100),
            (0.93, 0.004, 0.002, 2000),
        ] {
            let truth = candidate - reference;
            let (runs, mut covered) = (1000, 0);
            for _ in 0..runs {
                let mut table = PairedCounts::default();
                for _ in 0..samples {
                    let draw = random.uniform();
                    let (a, b) = if draw < both {
                        (true, true)
                    } else if draw < both + reference {
                        (true, false)
                    } else if draw < both + reference + candidate {
                        (false, true)
                    } else {
                        (false, false)
                    };
                    table.add(&[a], &[b]);
                }
                let interval = table.change().unwrap().interval;
                covered += usize::from(interval.low <= truth && truth <= interval.high);
            }
            let share = covered as f64 / runs as f64;
            assert!((0.93..=0.995).contains(&share), "{share} of the intervals cover {truth}");
        }
    }
}
