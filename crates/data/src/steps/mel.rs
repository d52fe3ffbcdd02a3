//! Sound as spectrograms on the mel scale, with librosa's and Whisper's conventions.

use rustfft::FftPlanner;
use rustfft::num_complex::Complex;
use serde::Deserialize;

use super::MAX_ELEMENTS;
use super::state::{State, Value};

/// Options of the step `mel`; the defaults are those of `librosa.feature.melspectrogram`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Mel {
    /// Samples of each transform.
    pub n_fft: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    /// Samples of the Hann window, at most `n-fft`, which it is when left out.
    pub window: Option<usize>,
    /// Number of bands.
    pub n_mels: usize,
    /// Lowest frequency, in hertz.
    pub f_min: f64,
    /// Highest frequency; half the rate when left out.
    pub f_max: Option<f64>,
    /// The scale of the bands.
    pub scale: MelScale,
    /// How bands are weighed.
    pub norm: MelNorm,
    /// 2 for power, 1 for magnitude.
    pub power: f64,
    /// Whether frames are centered: the sound is filled up by half a transform on both sides.
    pub center: bool,
    /// What it is filled up with.
    pub pad: MelPad,
    /// Leave out the last frame, as Whisper does.
    pub drop_last: bool,
    /// The logarithm.
    pub log: MelLog,
    /// Samples a second, where the data do not tell.
    pub rate: Option<u32>,
}

impl Default for Mel {
    fn default() -> Mel {
        Mel {
            n_fft: 2048,
            hop: 512,
            window: None,
            n_mels: 128,
            f_min: 0.0,
            f_max: None,
            scale: MelScale::Slaney,
            norm: MelNorm::Slaney,
            power: 2.0,
            center: true,
            pad: MelPad::Constant,
            drop_last: false,
            log: MelLog::None,
            rate: None,
        }
    }
}

/// A mel scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MelScale {
    /// Linear up to 1000 Hz, then logarithmic: librosa's default.
    Slaney,
    /// 2595 log10(1 + f / 700), as in HTK and torchaudio.
    Htk,
}

/// How bands are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MelNorm {
    /// Each by 2 over its width in hertz.
    Slaney,
    /// The peak of each is 1.
    None,
}

/// What lies beyond the ends of the sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MelPad {
    /// Silence.
    Constant,
    /// The sound mirrored.
    Reflect,
}

/// The logarithm of a spectrogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MelLog {
    /// None.
    None,
    /// Decibels, at least 1e-10 and at most 80 below the greatest: librosa's `power_to_db`.
    Db,
    /// The natural logarithm of at least 1e-10.
    Ln,
    /// Base 10 of at least 1e-10, at most 8 below the greatest, then (x + 4) / 4: Whisper's.
    Whisper,
}

/// Longest transform.
const MAX_FFT: usize = 1 << 16;

impl Mel {
    /// Whether the options make sense.
    pub(super) fn check(&self) -> Result<(), String> {
        let window = self.window.unwrap_or(self.n_fft);
        let frequencies = [Some(self.f_min), self.f_max, Some(self.power)];
        if !(2..=MAX_FFT).contains(&self.n_fft) || !self.n_fft.is_multiple_of(2) {
            Err(format!("`n-fft = {}`: it is even and 2 to {MAX_FFT}", self.n_fft))
        } else if window == 0 || window > self.n_fft {
            Err(format!("`window = {window}`: it is 1 to `n-fft`, {}", self.n_fft))
        } else if self.hop == 0 || self.n_mels == 0 || self.n_mels > 4096 {
            Err("`hop` is at least 1 and `n-mels` is 1 to 4096".to_owned())
        } else if frequencies.iter().flatten().any(|value| !value.is_finite() || *value < 0.0)
            || self.f_max.is_some_and(|f_max| f_max <= self.f_min)
        {
            Err("`f-min`, `f-max` and `power` are finite and not negative, and `f-max` is above `f-min`"
                .to_owned())
        } else {
            Ok(())
        }
    }
}

impl MelScale {
    fn mel_of(self, hertz: f64) -> f64 {
        match self {
            MelScale::Htk => 2595.0 * (1.0 + hertz / 700.0).log10(),
            MelScale::Slaney if hertz >= 1000.0 => 15.0 + (hertz / 1000.0).ln() / (6.4f64.ln() / 27.0),
            MelScale::Slaney => hertz / (200.0 / 3.0),
        }
    }

    fn hertz_of(self, mel: f64) -> f64 {
        match self {
            MelScale::Htk => 700.0 * (10f64.powf(mel / 2595.0) - 1.0),
            MelScale::Slaney if mel >= 15.0 => 1000.0 * ((mel - 15.0) * (6.4f64.ln() / 27.0)).exp(),
            MelScale::Slaney => mel * (200.0 / 3.0),
        }
    }
}

/// Triangles over the bins of a transform: for each band the first bin and the weights.
fn bands(options: &Mel, rate: u32) -> Vec<(usize, Vec<f64>)> {
    let rate = f64::from(rate);
    let (low, high) = (options.f_min, options.f_max.unwrap_or(rate / 2.0));
    let (from, to) = (options.scale.mel_of(low), options.scale.mel_of(high));
    let edge = |index: usize| {
        let last = options.n_mels.saturating_add(1) as f64;
        options.scale.hertz_of(from + (to - from) * index as f64 / last)
    };
    let bins = options.n_fft / 2;
    let band = |index: usize| {
        let (left, middle, right) =
            (edge(index), edge(index.saturating_add(1)), edge(index.saturating_add(2)));
        let norm = match options.norm {
            MelNorm::Slaney => 2.0 / (right - left),
            MelNorm::None => 1.0,
        };
        let weight = |bin: usize| {
            let hertz = bin as f64 * rate / options.n_fft as f64;
            let (rise, fall) = ((hertz - left) / (middle - left), (right - hertz) / (right - middle));
            rise.min(fall).max(0.0) * norm
        };
        let weights: Vec<f64> = (0..=bins).map(weight).collect();
        let start = weights.iter().position(|&weight| weight > 0.0).unwrap_or(0);
        let end = weights.iter().rposition(|&weight| weight > 0.0).map_or(start, |end| end.saturating_add(1));
        (start, weights.get(start..end).unwrap_or_default().to_vec())
    };
    (0..options.n_mels).map(band).collect()
}

/// The sound with what lies beyond its ends.
fn padded(sound: &[f32], rim: usize, pad: MelPad) -> Result<Vec<f64>, String> {
    let wide = |value: &f32| f64::from(*value);
    if pad == MelPad::Reflect && sound.len() <= rim {
        return Err(format!(
            "{} samples are too few to be mirrored over {rim}: `pad-or-trim` fills them up",
            sound.len()
        ));
    }
    let mut result = Vec::with_capacity(sound.len().saturating_add(rim.saturating_mul(2)));
    match pad {
        MelPad::Constant => {
            result.resize(rim, 0.0);
            result.extend(sound.iter().map(wide));
            result.resize(result.len().saturating_add(rim), 0.0);
        }
        MelPad::Reflect => {
            result.extend(sound.iter().skip(1).take(rim).rev().map(wide));
            result.extend(sound.iter().map(wide));
            result.extend(sound.iter().rev().skip(1).take(rim).map(wide));
        }
    }
    Ok(result)
}

impl State<'_> {
    /// A spectrogram, bands x frames.
    pub(super) fn mel(&mut self, options: &Mel) -> Result<(), String> {
        let rate = self.rate_of(options.rate)?;
        let highest = f64::from(rate) / 2.0;
        if options.f_max.unwrap_or(highest) > highest || options.f_min >= highest {
            return Err(format!("frequencies end at {highest} Hz, half the rate of {rate}"));
        }
        let sound = self.sound()?;
        let rim = if options.center { options.n_fft / 2 } else { 0 };
        let sound = padded(&sound, rim, options.pad)?;
        let Some(rest) = sound.len().checked_sub(options.n_fft) else {
            return Err(format!(
                "{} samples are fewer than one frame of {}: `pad-or-trim` fills them up",
                sound.len(),
                options.n_fft
            ));
        };
        let frames = rest
            .checked_div(options.hop)
            .unwrap_or(0)
            .saturating_add(1)
            .saturating_sub(usize::from(options.drop_last));
        if frames == 0 || frames.saturating_mul(options.n_mels) > MAX_ELEMENTS {
            return Err(format!("{frames} frames of {} bands are no sample", options.n_mels));
        }
        // A periodic Hann window in the middle of the transform.
        let window = options.window.unwrap_or(options.n_fft);
        let before = options.n_fft.saturating_sub(window) / 2;
        let hann = |at: usize| 0.5 - 0.5 * (std::f64::consts::TAU * at as f64 / window as f64).cos();
        let weights: Vec<f64> = (0..window).map(hann).collect();
        let transform = FftPlanner::<f64>::new().plan_fft_forward(options.n_fft);
        let bands = bands(options, rate);
        let mut rows = vec![Vec::with_capacity(frames); bands.len()];
        let mut buffer = vec![Complex::default(); options.n_fft];
        let mut scratch = vec![Complex::default(); transform.get_inplace_scratch_len()];
        for frame in sound.windows(options.n_fft).step_by(options.hop.max(1)).take(frames) {
            buffer.fill(Complex::default());
            for ((slot, &value), &weight) in
                buffer.iter_mut().skip(before).zip(frame.iter().skip(before)).zip(&weights)
            {
                slot.re = value * weight;
            }
            transform.process_with_scratch(&mut buffer, &mut scratch);
            let spectrum: Vec<f64> = buffer
                .iter()
                .take((options.n_fft / 2).saturating_add(1))
                .map(|bin| if options.power == 2.0 { bin.norm_sqr() } else { bin.norm().powf(options.power) })
                .collect();
            for (row, (start, weights)) in rows.iter_mut().zip(&bands) {
                let covered = spectrum.iter().skip(*start).zip(weights);
                row.push(covered.map(|(value, weight)| value * weight).sum::<f64>());
            }
        }
        let mut values = rows.concat();
        logarithm(&mut values, options.log);
        self.value =
            Value::Floats(vec![bands.len(), frames], values.into_iter().map(|value| value as f32).collect());
        Ok(())
    }

    /// The discrete cosine transform, type 2 and orthonormal, over the bands of a spectrogram: its first
    /// `count` rows.
    pub(super) fn mfcc(&mut self, count: usize) -> Result<(), String> {
        let [bands, frames] = *self.value.shape() else {
            return Err(format!(
                "it needs a spectrogram, bands x frames; this sample has shape {:?}: put `mel` before it",
                self.value.shape()
            ));
        };
        if count == 0 || count > bands {
            return Err(format!("{count} coefficients of {bands} bands: there are 1 to {bands}"));
        }
        let values = std::mem::take(self.floats()?);
        let mut result = vec![0f64; count.saturating_mul(frames)];
        for (k, row) in result.chunks_mut(frames.max(1)).enumerate() {
            let norm = if k == 0 { (1.0 / bands as f64).sqrt() } else { (2.0 / bands as f64).sqrt() };
            for (band, values) in values.chunks(frames.max(1)).enumerate() {
                let angle = std::f64::consts::PI * k as f64 * (band as f64 + 0.5) / bands as f64;
                let weight = angle.cos() * norm;
                row.iter_mut().zip(values).for_each(|(sum, &value)| *sum += weight * f64::from(value));
            }
        }
        self.value =
            Value::Floats(vec![count, frames], result.into_iter().map(|value| value as f32).collect());
        Ok(())
    }
}

fn logarithm(values: &mut [f64], log: MelLog) {
    let floor = 1e-10;
    match log {
        MelLog::None => return,
        MelLog::Ln => values.iter_mut().for_each(|value| *value = value.max(floor).ln()),
        MelLog::Db => values.iter_mut().for_each(|value| *value = 10.0 * value.max(floor).log10()),
        MelLog::Whisper => values.iter_mut().for_each(|value| *value = value.max(floor).log10()),
    }
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match log {
        MelLog::Db => values.iter_mut().for_each(|value| *value = value.max(greatest - 80.0)),
        MelLog::Whisper => {
            values.iter_mut().for_each(|value| *value = (value.max(greatest - 8.0) + 4.0) / 4.0)
        }
        _ => {}
    }
}
