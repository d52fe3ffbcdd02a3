//! Sound files in WAVE format.

use std::io::Cursor;
use std::path::Path;

use optix_base::Limits;
use optix_ir::Tensor;

use super::Facts;
use crate::error::DataError;

/// Rates that any recording has, in samples a second.
const RATES: std::ops::RangeInclusive<u32> = 100..=1_000_000;

/// Most channels.
const MAX_CHANNELS: u16 = 32;

/// Whether the bytes start as such a file does.
pub(crate) fn is_wav(bytes: &[u8]) -> bool {
    bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WAVE")
}

/// Decodes a file into floats from -1 to 1: one number a sample, or samples x channels. Integers of n bits
/// are divided by 2^(n-1), as soundfile and librosa do.
pub(crate) fn decode(path: &Path, bytes: &[u8], limits: &Limits) -> Result<(Tensor, Facts), DataError> {
    let fail = |what: String| DataError::invalid(path, "", what);
    let damaged = |error: hound::Error| {
        match error {
        hound::Error::Unsupported => fail(
            "the sound is coded in a way that is not read: PCM of 8 to 32 bits and 32-bit floats are; convert it"
                .to_owned(),
        ),
        other => fail(format!("the sound file is damaged or incomplete ({other})")),
    }
    };
    let mut reader = hound::WavReader::new(Cursor::new(bytes)).map_err(damaged)?;
    let spec = reader.spec();
    if !RATES.contains(&spec.sample_rate) {
        return Err(fail(format!("a sample rate of {} Hz is none", spec.sample_rate)));
    }
    if spec.channels == 0 || spec.channels > MAX_CHANNELS {
        return Err(fail(format!("{} channels: 1 to {MAX_CHANNELS} are read", spec.channels)));
    }
    let channels = usize::from(spec.channels);
    let count = usize::try_from(reader.len()).unwrap_or(usize::MAX);
    // What the header says must be there before anything of that size is asked for.
    let held = usize::from(spec.bits_per_sample).div_ceil(8).saturating_mul(count);
    if held > bytes.len() {
        return Err(fail(format!(
            "the header tells of {count} values, more than the file's {} bytes hold; the file is incomplete",
            bytes.len()
        )));
    }
    if (count as u64).saturating_mul(4) > limits.sample_bytes {
        return Err(DataError::limit(path, "one sound", "sample-bytes", limits.sample_bytes));
    }
    if count == 0 {
        return Err(fail("it has no samples".to_owned()));
    }
    let values: Vec<f32> = match spec.sample_format {
        hound::SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>().map_err(damaged)?,
        hound::SampleFormat::Int => {
            let scale = 1.0 / f64::from(spec.bits_per_sample.saturating_sub(1).min(31)).exp2();
            let float = |value: i32| (f64::from(value) * scale) as f32;
            reader
                .samples::<i32>()
                .map(|value| value.map(float))
                .collect::<Result<_, _>>()
                .map_err(damaged)?
        }
    };
    let frames = values.len().checked_div(channels).unwrap_or(0);
    let shape = if channels == 1 { vec![frames] } else { vec![frames, channels] };
    if frames.saturating_mul(channels) != values.len() {
        return Err(fail(format!("{} values are no whole number for {channels} channels", values.len())));
    }
    Ok((Tensor::from_vec(shape, values), Facts { rate: Some(spec.sample_rate), ..Facts::default() }))
}
