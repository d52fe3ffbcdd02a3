//! An observer as bytes.
//!
//! Integers are LEB128 (7 bits a byte, lowest first), floats their IEEE 754 bits in little-endian order.
//! Bins are runs: a number of empty bins, then the count of the next one; a run may reach the end.

use super::channels::{Channel, Channels, MOST};
use super::exact_sum::ExactSum;
use super::growth::Growth;
use super::histogram::{BINS, Histogram};
use super::mean_extremes::SampleExtremes;
use super::moving_average::MovingAverage;
use super::{Observer, channels};

/// Bytes being written.
#[derive(Debug, Default)]
pub(in crate::quantize) struct Writer(pub(in crate::quantize) Vec<u8>);

impl Writer {
    pub(in crate::quantize) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    pub(in crate::quantize) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn float(&mut self, float: f32) {
        self.0.extend_from_slice(&float.to_le_bytes());
    }

    fn double(&mut self, double: f64) {
        self.0.extend_from_slice(&double.to_le_bytes());
    }

    fn signed(&mut self, number: i64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bins(&mut self, bins: &[u64]) {
        self.number(u64::from(!bins.is_empty()));
        let mut empty = 0;
        for &count in bins {
            if count == 0 {
                empty += 1;
            } else {
                self.number(empty);
                self.number(count);
                empty = 0;
            }
        }
        if empty > 0 {
            self.number(empty);
        }
    }

    fn sum(&mut self, sum: &ExactSum) {
        sum.digits().iter().for_each(|&digit| self.signed(digit));
    }
}

/// The bytes end early or make no sense; the file has the rest of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::quantize) struct Truncated;

/// Bytes being read. Nothing is allocated from a number that the bytes declare.
#[derive(Debug)]
pub(in crate::quantize) struct Reader<'a>(pub(in crate::quantize) &'a [u8]);

impl<'a> Reader<'a> {
    pub(in crate::quantize) fn take(&mut self, count: usize) -> Result<&'a [u8], Truncated> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        self.take(N)?.try_into().map_err(|_| Truncated)
    }

    pub(in crate::quantize) fn number(&mut self) -> Result<u64, Truncated> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let part = u64::from(byte & 0x7f);
            if (part << shift) >> shift != part {
                return Err(Truncated);
            }
            number |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Truncated)
    }

    pub(in crate::quantize) fn text(&mut self) -> Result<&'a str, Truncated> {
        let length = usize::try_from(self.number()?).map_err(|_| Truncated)?;
        std::str::from_utf8(self.take(length)?).map_err(|_| Truncated)
    }

    fn float(&mut self) -> Result<f32, Truncated> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    fn double(&mut self) -> Result<f64, Truncated> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    fn signed(&mut self) -> Result<i64, Truncated> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn bins(&mut self) -> Result<Vec<u64>, Truncated> {
        match self.number()? {
            0 => return Ok(Vec::new()),
            1 => {}
            _ => return Err(Truncated),
        }
        let mut bins = vec![0; BINS];
        let mut at = 0usize;
        while at < BINS {
            let empty = usize::try_from(self.number()?).map_err(|_| Truncated)?;
            at = at.checked_add(empty).filter(|at| *at <= BINS).ok_or(Truncated)?;
            if let Some(bin) = bins.get_mut(at) {
                *bin = self.number()?;
                at += 1;
            }
        }
        Ok(bins)
    }

    fn sum(&mut self) -> Result<ExactSum, Truncated> {
        let mut digits = *ExactSum::default().digits();
        for digit in &mut digits {
            *digit = self.signed()?;
        }
        ExactSum::from_digits(digits).ok_or(Truncated)
    }
}

impl Observer {
    pub(in crate::quantize) fn write(&self, to: &mut Writer) {
        let (exponent, negative, positive) = self.histogram.parts();
        to.signed(i64::from(exponent));
        to.bins(negative);
        to.bins(positive);
        for float in [self.min, self.max, self.average.first[0], self.average.first[1]] {
            to.float(float);
        }
        let counts = [self.zeros, self.count, self.nan, self.infinite, self.samples, self.average.samples];
        counts.into_iter().for_each(|count| to.number(count));
        self.average.now.into_iter().for_each(|average| to.double(average));
        to.number(self.extremes.samples);
        to.sum(&self.extremes.least);
        to.sum(&self.extremes.most);
        for side in self.growth.sides() {
            to.number(side.len() as u64);
            for &(level, sample) in side {
                to.number(u64::from(level));
                to.number(sample);
            }
        }
        match &self.channels {
            Channels::None => to.number(0),
            Channels::Varying => to.number(1),
            Channels::Along(axis, channels) => {
                to.number(2);
                to.signed(*axis);
                to.number(channels.len() as u64);
                for channel in channels {
                    to.number(channel.count);
                    to.float(channel.min);
                    to.float(channel.max);
                    to.sum(&channel.sum);
                }
            }
        }
    }

    pub(in crate::quantize) fn read(from: &mut Reader<'_>) -> Result<Observer, Truncated> {
        let exponent = i32::try_from(from.signed()?).map_err(|_| Truncated)?;
        let (negative, positive) = (from.bins()?, from.bins()?);
        let (min, max) = (from.float()?, from.float()?);
        let first = [from.float()?, from.float()?];
        let [zeros, count, nan, infinite, samples, averaged] = {
            let mut counts = [0; 6];
            for count in &mut counts {
                *count = from.number()?;
            }
            counts
        };
        let average = MovingAverage { samples: averaged, first, now: [from.double()?, from.double()?] };
        if !average.now.iter().all(|now| now.is_finite()) || !first.iter().all(|first| first.is_finite()) {
            return Err(Truncated);
        }
        let extremes = SampleExtremes { samples: from.number()?, least: from.sum()?, most: from.sum()? };
        let mut sides = [Vec::new(), Vec::new()];
        for side in &mut sides {
            for _ in 0..from.number()? {
                let level = u16::try_from(from.number()?).map_err(|_| Truncated)?;
                side.push((level, from.number()?));
            }
        }
        let growth = Growth::from_sides(sides, samples).ok_or(Truncated)?;
        let channels = match from.number()? {
            0 => Channels::None,
            1 => Channels::Varying,
            2 => Channels::Along(from.signed()?, read_channels(from)?),
            _ => return Err(Truncated),
        };
        let magnitude = if count == 0 { 0.0 } else { max.max(-min) };
        let histogram = Histogram::from_parts(exponent, negative, positive, magnitude).ok_or(Truncated)?;
        let observer = Observer {
            histogram,
            min,
            max,
            zeros,
            count,
            nan,
            infinite,
            samples,
            extremes,
            average,
            growth,
            channels,
        };
        if observer.is_consistent() { Ok(observer) } else { Err(Truncated) }
    }
}

fn read_channels(from: &mut Reader<'_>) -> Result<Vec<Channel>, Truncated> {
    let number = from.number()?;
    if number > MOST as u64 {
        return Err(Truncated);
    }
    let mut channels = Vec::new();
    for _ in 0..number {
        let (count, min, max) = (from.number()?, from.float()?, from.float()?);
        if count > 0 && !(min.is_finite() && max.is_finite() && min <= max) {
            return Err(Truncated);
        }
        channels.push(channels::Channel { count, min, max, sum: from.sum()? });
    }
    Ok(channels)
}
