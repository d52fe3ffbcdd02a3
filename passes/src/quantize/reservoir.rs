//! What the recovery passes remember of an activation: ranges and moments of every channel, and a few
//! rows. One streaming pass, memory of the number of channels and rows kept, never of samples.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// Statistics of the channels of one activation.
#[derive(Clone, Debug)]
pub(super) struct Channels {
    /// Least element of each channel.
    pub(super) low: Vec<f32>,
    /// Greatest element of each channel.
    pub(super) high: Vec<f32>,
    sum: Vec<f64>,
    square: Vec<f64>,
    count: u64,
    non_finite: u64,
}

impl Channels {
    pub(super) fn new(channels: usize) -> Channels {
        Channels {
            low: vec![f32::INFINITY; channels],
            high: vec![f32::NEG_INFINITY; channels],
            sum: vec![0.0; channels],
            square: vec![0.0; channels],
            count: 0,
            non_finite: 0,
        }
    }

    /// Takes in a tensor whose channels lie along an axis with `inner` elements behind each of its
    /// entries. Elements must be a whole number of channels times `inner`; others are not taken in.
    pub(super) fn observe(&mut self, elements: &[f32], inner: usize) {
        let channels = self.low.len();
        if channels == 0 || inner == 0 || !elements.len().is_multiple_of(channels * inner) {
            return;
        }
        self.count += (elements.len() / channels) as u64;
        if inner == 1 {
            // Channels lie side by side: one sweep a row.
            for row in elements.chunks_exact(channels) {
                for (channel, &x) in row.iter().enumerate() {
                    self.low[channel] = self.low[channel].min(x);
                    self.high[channel] = self.high[channel].max(x);
                    self.sum[channel] += f64::from(x);
                    self.square[channel] += f64::from(x) * f64::from(x);
                    self.non_finite += u64::from(!x.is_finite());
                }
            }
            return;
        }
        for (index, run) in elements.chunks_exact(inner).enumerate() {
            let channel = index % channels;
            let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
            let (mut sum, mut square, mut bad) = (0f64, 0f64, 0);
            for &x in run {
                low = low.min(x);
                high = high.max(x);
                sum += f64::from(x);
                square += f64::from(x) * f64::from(x);
                bad += u64::from(!x.is_finite());
            }
            self.low[channel] = self.low[channel].min(low);
            self.high[channel] = self.high[channel].max(high);
            self.sum[channel] += sum;
            self.square[channel] += square;
            self.non_finite += bad;
        }
    }

    /// Elements seen of each channel.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// NaN and infinite elements seen.
    pub(super) fn non_finite(&self) -> u64 {
        self.non_finite
    }

    /// Greatest magnitude of every channel.
    pub(super) fn maxima(&self) -> Vec<f32> {
        self.low.iter().zip(&self.high).map(|(low, high)| low.abs().max(high.abs())).collect()
    }

    /// Mean of every channel.
    pub(super) fn means(&self) -> Vec<f64> {
        self.sum.iter().map(|sum| sum / self.count.max(1) as f64).collect()
    }

    /// Standard deviation of every channel.
    pub(super) fn deviations(&self) -> Vec<f64> {
        let count = self.count.max(1) as f64;
        let moments = self.sum.iter().zip(&self.square);
        moments.map(|(sum, square)| (square / count - (sum / count).powi(2)).max(0.0).sqrt()).collect()
    }

    /// Mean square of every channel.
    pub(super) fn mean_squares(&self) -> Vec<f64> {
        self.square.iter().map(|square| square / self.count.max(1) as f64).collect()
    }
}

/// A uniform sample of the rows of a stream (Vitter 1985, algorithm R).
#[derive(Clone, Debug)]
pub(super) struct Reservoir {
    rows: Vec<f32>,
    width: usize,
    most: usize,
    seen: u64,
    random: ChaCha8Rng,
}

impl Reservoir {
    /// Keeps at most `most` rows of `width` elements. What is kept depends on the stream of rows and
    /// `random` alone, not on how the stream is cut.
    pub(super) fn new(width: usize, most: usize, random: ChaCha8Rng) -> Reservoir {
        Reservoir { rows: Vec::new(), width, most, seen: 0, random }
    }

    /// Takes in consecutive rows; a part of a row at the end is ignored.
    pub(super) fn observe(&mut self, elements: &[f32]) {
        if self.width == 0 {
            return;
        }
        for row in elements.chunks_exact(self.width) {
            if self.kept() < self.most {
                self.rows.extend_from_slice(row);
            } else {
                // Uniform in 0..=seen; the bias of the multiplication is below 2^-32.
                let drawn = u128::from(self.random.next_u64()) * (u128::from(self.seen) + 1);
                let at = (drawn >> 64) as u64;
                if at < self.most as u64 {
                    let start = at as usize * self.width;
                    self.rows[start..start + self.width].copy_from_slice(row);
                }
            }
            self.seen += 1;
        }
    }

    /// Number of rows kept.
    pub(super) fn kept(&self) -> usize {
        self.rows.len().checked_div(self.width).unwrap_or(0)
    }

    /// The rows kept, one after the other.
    pub(super) fn rows(&self) -> &[f32] {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn stream(rows: usize, width: usize) -> Vec<f32> {
        (0..rows * width).map(|index| (index / width) as f32).collect()
    }

    #[test]
    fn cutting_the_stream_changes_nothing() {
        let all = stream(1000, 3);
        let keep = |pieces: usize| {
            let mut reservoir = Reservoir::new(3, 64, ChaCha8Rng::seed_from_u64(7));
            all.chunks(pieces * 3).for_each(|piece| reservoir.observe(piece));
            assert_eq!(reservoir.kept(), 64);
            reservoir.rows().to_vec()
        };
        assert_eq!(keep(1), keep(1000));
        assert_eq!(keep(7), keep(256));
    }

    #[test]
    fn every_part_of_the_stream_is_in_the_sample() {
        let mut reservoir = Reservoir::new(1, 200, ChaCha8Rng::seed_from_u64(1));
        reservoir.observe(&stream(10_000, 1));
        let mean = reservoir.rows().iter().map(|x| f64::from(*x)).sum::<f64>() / 200.0;
        // Four standard deviations of the mean of 200 of 0..10,000.
        assert!((mean - 5000.0).abs() < 4.0 * 2887.0 / 200f64.sqrt(), "{mean}");
    }

    #[test]
    fn channels_along_either_axis() {
        // Two channels, [1, -2, 3] and [4, 0, -6].
        let mut last = Channels::new(2);
        last.observe(&[1.0, 4.0, -2.0, 0.0], 1);
        last.observe(&[3.0, -6.0], 1);
        let mut first = Channels::new(2);
        first.observe(&[1.0, -2.0, 3.0, 4.0, 0.0, -6.0], 3);
        for channels in [last, first] {
            assert_eq!(
                (channels.low.as_slice(), channels.high.as_slice()),
                ([-2.0, -6.0].as_slice(), [3.0, 4.0].as_slice())
            );
            assert_eq!(channels.maxima(), [3.0, 6.0]);
            assert_eq!((channels.count(), channels.non_finite()), (3, 0));
            assert!((channels.means()[0] - 2.0 / 3.0).abs() < 1e-12);
            assert!((channels.mean_squares()[1] - 52.0 / 3.0).abs() < 1e-12);
            assert!((channels.deviations()[0] - (14.0 / 3.0 - 4.0 / 9.0f64).sqrt()).abs() < 1e-12);
        }
    }

    #[test]
    fn odd_input_is_survived() {
        let mut channels = Channels::new(3);
        channels.observe(&[1.0, 2.0], 1);
        channels.observe(&[], 1);
        assert_eq!(channels.count(), 0);
        channels.observe(&[f32::NAN, f32::INFINITY, 1.0], 1);
        assert_eq!(channels.non_finite(), 2);
        let mut reservoir = Reservoir::new(0, 4, ChaCha8Rng::seed_from_u64(0));
        reservoir.observe(&[1.0]);
        assert_eq!(reservoir.kept(), 0);
    }
}
