//! Steps on sound: one channel, another rate, frames.

use super::MAX_ELEMENTS;
use super::state::{State, Value};

/// Rates that a step may make, in samples a second.
const MAX_RATE: u32 = 1_000_000;

impl State<'_> {
    /// The mean of the channels.
    pub(super) fn mono(&mut self) -> Result<(), String> {
        match *self.value.shape() {
            [_] => Ok(()),
            [frames, channels @ 1..=64] => {
                let values = std::mem::take(self.floats()?);
                let mean = |frame: &[f32]| {
                    (frame.iter().map(|&value| f64::from(value)).sum::<f64>() / channels as f64) as f32
                };
                let values = values.chunks_exact(channels).map(mean).collect();
                self.value = Value::Floats(vec![frames], values);
                Ok(())
            }
            ref shape => {
                Err(format!("it needs sound, samples or samples x channels; this sample has shape {shape:?}"))
            }
        }
    }

    /// The sound as one channel, and its rate where it is known.
    pub(super) fn sound(&mut self) -> Result<Vec<f32>, String> {
        if self.value.shape().len() != 1 {
            return Err(format!(
                "it needs one channel of sound, this sample has shape {:?}: put `{{ mono = {{}} }}` before it",
                self.value.shape()
            ));
        }
        Ok(std::mem::take(self.floats()?))
    }

    /// The rate of the sound: the file's, or what the step says.
    pub(super) fn rate_of(&self, given: Option<u32>) -> Result<u32, String> {
        self.rate.or(given).ok_or_else(|| {
            "the data do not tell the sample rate: add it to the step in samples a second".to_owned()
        })
    }

    /// Another rate.
    pub(super) fn resample(&mut self, rate: u32, from: Option<u32>) -> Result<(), String> {
        let from = self.rate_of(from)?;
        if from == 0 || rate == 0 || rate.max(from) > MAX_RATE {
            return Err(format!("from {from} to {rate} samples a second: rates are 1 to {MAX_RATE}"));
        }
        let sound = self.sound()?;
        let wanted =
            (sound.len() as u64).saturating_mul(u64::from(rate)).checked_div(u64::from(from)).unwrap_or(0);
        if wanted > MAX_ELEMENTS as u64 {
            return Err(format!("{wanted} samples are more than a sample may have"));
        }
        let values = if rate == from { sound } else { polyphase(&sound, from, rate) };
        self.value = Value::Floats(vec![values.len()], values);
        self.rate = Some(rate);
        Ok(())
    }

    /// Frames that overlap: frames x length.
    pub(super) fn frame(&mut self, length: usize, hop: usize) -> Result<(), String> {
        let sound = self.sound()?;
        let found = sound.len();
        let Some(rest) = found.checked_sub(length) else {
            return Err(format!(
                "{found} samples are fewer than one frame of {length}: `pad-or-trim` fills them up"
            ));
        };
        let count = rest.checked_div(hop).unwrap_or(0).saturating_add(1);
        if count.saturating_mul(length) > MAX_ELEMENTS {
            return Err(format!("{count} frames of {length} are more than a sample may have"));
        }
        let values: Vec<f32> = sound.windows(length).step_by(hop.max(1)).flatten().copied().collect();
        self.value = Value::Floats(vec![count, length], values);
        Ok(())
    }
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a.checked_rem(b).unwrap_or(0));
    }
    a.max(1)
}

/// The modified Bessel function of the first kind and order 0, by its series.
fn bessel_0(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let (mut sum, mut term, mut k) = (1.0, 1.0, 1.0);
    while term > sum * 1e-17 {
        term *= quarter / (k * k);
        sum += term;
        k += 1.0;
    }
    sum
}

/// Polyphase filtering with a Kaiser window of beta 5 over ten zero crossings on each side: what
/// `scipy.signal.resample_poly` computes, and librosa with `res_type="polyphase"`.
fn polyphase(sound: &[f32], from: u32, to: u32) -> Vec<f32> {
    let divisor = greatest_common_divisor(from, to);
    let whole = |rate: u32| usize::try_from(rate.checked_div(divisor).unwrap_or(1)).unwrap_or(1).max(1);
    let (up, down) = (whole(to), whole(from));
    let longest = up.max(down);
    let half = longest.saturating_mul(10);
    let cutoff = 1.0 / longest as f64;
    let beta = 5.0;
    let tap = |index: usize| {
        let x = index as f64 - half as f64;
        let angle = std::f64::consts::PI * cutoff * x;
        let sinc = if x == 0.0 { 1.0 } else { angle.sin() / angle };
        let across = x / half as f64;
        sinc * bessel_0(beta * (1.0 - across * across).max(0.0).sqrt())
    };
    let mut taps: Vec<f64> = (0..=half.saturating_mul(2)).map(tap).collect();
    let gain = up as f64 / taps.iter().sum::<f64>();
    taps.iter_mut().for_each(|tap| *tap *= gain);
    // Each output lies under one of `up` phases of the filter: its taps, in the order of the inputs.
    let phases: Vec<Vec<f64>> =
        (0..up).map(|phase| taps.iter().skip(phase).step_by(up).rev().copied().collect()).collect();
    let length = sound.len().saturating_mul(up).div_ceil(down);
    let at = |index: usize| {
        // Tap number `place - k * up` meets input k.
        let place = half.saturating_add(index.saturating_mul(down));
        let phase = place.checked_rem(up).unwrap_or(0);
        let taps = phases.get(phase).map(Vec::as_slice).unwrap_or_default();
        // The last tap of the reversed phase is number `phase`: it meets input `place / up`.
        let last = place.checked_div(up).unwrap_or(0);
        let first = last.saturating_add(1).checked_sub(taps.len());
        let (skipped, start) = match first {
            Some(first) => (0, first),
            None => (taps.len().saturating_sub(last).saturating_sub(1), 0),
        };
        let inputs = sound.get(start..).unwrap_or_default();
        let sum: f64 =
            taps.iter().skip(skipped).zip(inputs).map(|(tap, &input)| tap * f64::from(input)).sum();
        sum as f32
    };
    (0..length).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resampling_keeps_a_slow_wave() {
        let wave = |rate: f64, length: usize| -> Vec<f32> {
            (0..length).map(|at| (at as f64 * 440.0 / rate * std::f64::consts::TAU).sin() as f32).collect()
        };
        for (from, to) in [(44_100, 16_000), (8_000, 16_000), (16_000, 8_000), (22_050, 44_100)] {
            let sound = wave(f64::from(from), from as usize / 2);
            let result = polyphase(&sound, from, to);
            assert_eq!(result.len(), to as usize / 2);
            // Away from the ends, where there is silence on one side.
            let expected = wave(f64::from(to), result.len());
            let middle = 400..result.len() - 400;
            let error = middle.map(|at| (result[at] - expected[at]).abs()).fold(0f32, f32::max);
            assert!(error < 2e-3, "{from} to {to}: {error}");
        }
    }
}
