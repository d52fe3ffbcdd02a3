//! Energies of a signal and of the noise in it, and their ratio in decibels.

use std::ops::AddAssign;

/// Sum of squares of reference values, and of the differences from them.
///
/// Energies of independent errors add up, which their ratios in decibels do not: sums are kept here, and
/// turned into decibels at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SignalNoise {
    /// Sum of squares of the reference.
    pub signal: f64,
    /// Sum of squared differences.
    pub noise: f64,
}

impl SignalNoise {
    /// Of sums that are known.
    pub fn new(signal: f64, noise: f64) -> SignalNoise {
        SignalNoise { signal, noise }
    }

    /// Of values and what became of them, pair by pair as far as both go.
    pub fn of(reference: &[f32], found: &[f32]) -> SignalNoise {
        let mut sums = SignalNoise::default();
        for (&reference, &found) in reference.iter().zip(found) {
            sums.add(f64::from(reference), f64::from(found));
        }
        sums
    }

    /// Adds a value and what became of it.
    #[inline]
    pub fn add(&mut self, reference: f64, found: f64) {
        self.signal += reference * reference;
        self.noise += (reference - found) * (reference - found);
    }

    /// Noise over signal, 0 or more: 0 where there is no noise, infinite where there is no signal and where
    /// something is not finite.
    pub fn ratio(&self) -> f64 {
        let ratio = if self.noise == 0.0 { 0.0 } else { self.noise / self.signal };
        if ratio.is_nan() || self.signal.is_infinite() { f64::INFINITY } else { ratio }
    }

    /// Signal-to-quantization-noise ratio in dB: ten times the logarithm of the signal's energy over the
    /// noise's. `None` where nothing was lost, and where no finite figure can be given: without a signal, or
    /// with numbers that are not finite.
    pub fn sqnr_db(&self) -> Option<f64> {
        let ratio = self.ratio();
        (ratio > 0.0 && ratio.is_finite()).then(|| decibels(ratio))
    }
}

impl AddAssign for SignalNoise {
    fn add_assign(&mut self, other: SignalNoise) {
        self.signal += other.signal;
        self.noise += other.noise;
    }
}

/// A ratio of noise to signal as decibels of signal over noise: infinite for no noise, minus infinity for
/// nothing but noise.
pub fn decibels(noise_by_signal: f64) -> f64 {
    // Not the negative: as much noise as signal is 0 dB, not -0.
    0.0 - 10.0 * noise_by_signal.log10()
}

/// The ratio of noise to signal at so many decibels of signal over noise.
pub fn noise_at(decibels: f64) -> f64 {
    10f64.powf(-decibels / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_the_sums() {
        let mut sums = SignalNoise::of(&[3.0, 4.0], &[3.0, 4.5]);
        assert_eq!(sums, SignalNoise::new(25.0, 0.25));
        assert!((sums.sqnr_db().unwrap() - 20.0).abs() < 1e-12);
        sums += SignalNoise::new(0.0, 2.25);
        assert!((sums.ratio() - 0.1).abs() < 1e-12 && (sums.sqnr_db().unwrap() - 10.0).abs() < 1e-12);
        assert!((noise_at(decibels(0.02)) - 0.02).abs() < 1e-15);
    }

    #[test]
    fn what_has_no_figure_gives_none() {
        for (signal, noise, ratio) in [
            (1.0, 0.0, 0.0),
            (0.0, 0.0, 0.0),
            (0.0, 1.0, f64::INFINITY),
            (1.0, f64::INFINITY, f64::INFINITY),
            (1.0, f64::NAN, f64::INFINITY),
            (f64::INFINITY, 1.0, f64::INFINITY),
        ] {
            let sums = SignalNoise::new(signal, noise);
            assert_eq!((sums.ratio(), sums.sqnr_db()), (ratio, None), "{sums:?}");
        }
        assert_eq!((decibels(0.0), decibels(f64::INFINITY)), (f64::INFINITY, f64::NEG_INFINITY));
    }
}
