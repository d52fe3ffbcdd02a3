//! Counts of values on a grid that does not depend on what came first.
//!
//! The width of a bin is a power of two and bin edges are its multiples, so that a wider grid is made from a
//! finer one by adding neighbours and nothing is lost or moved. The width follows from the greatest magnitude
//! alone: parts observed apart and merged give the same counts as all of it observed at once, bit for bit.

/// Bins on either side of zero. The greatest magnitude lies in the upper half of them, so that an 8-bit
/// quantizer's step spans 8 bins or more.
pub const BINS: usize = 4096;

/// log2 of [`BINS`].
const BITS: i32 = 12;

/// Least exponent of a bin's width: finer ones would need factors that f32 does not have. Values below
/// `2^LEAST` fall into the bin beside zero.
const LEAST: i32 = -120;

/// Elements from which on several tables are filled in turn: equal neighbours would wait for each other.
const MANY: usize = 1 << 14;

/// Tables filled in turn.
const WAYS: usize = 4;

/// Elements whose bins are computed at a time.
const BLOCK: usize = 64;

/// How often values of each magnitude occurred; zeros are left to the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    /// The width of a bin is `2^exponent`; of no meaning while there are no bins.
    exponent: i32,
    /// Bin `k` counts values in `-(k + 1) * width ..= -k * width`; empty while there are none.
    negative: Vec<u64>,
    /// Bin `k` counts values in `k * width .. (k + 1) * width`; empty while there are none.
    positive: Vec<u64>,
}

/// The exponent of the bins' width for a greatest magnitude, which is positive and finite.
fn exponent_for(magnitude: f32) -> i32 {
    let floor = ((magnitude.to_bits() >> 23) as i32 - 127).max(-127);
    (floor + 1 - BITS).max(LEAST)
}

/// `2^exponent` for exponents of normal numbers.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Makes bins `2^shift` times as wide.
fn widen(bins: &mut [u64], shift: u32) {
    for bin in 0..bins.len() {
        let count = std::mem::take(&mut bins[bin]);
        let target = bin.checked_shr(shift).unwrap_or(0);
        bins[target] += count;
    }
}

impl Histogram {
    /// Takes in finite elements with the least and greatest one of them; returns how many were zero.
    pub(super) fn add(&mut self, elements: &[f32], min: f32, max: f32) -> u64 {
        let magnitude = max.max(-min);
        if elements.is_empty() || magnitude <= 0.0 {
            return elements.len() as u64;
        }
        self.cover(exponent_for(magnitude), min < 0.0, max > 0.0);
        let inverse = power_of_two(-self.exponent);
        // Zeros are counted into the positive side's first bin and taken out again.
        let spare = self.positive.is_empty();
        if spare {
            self.positive.resize(BINS, 0);
        }
        let zeros = match (min < 0.0, elements.len() >= MANY) {
            (false, false) => {
                let positive = &mut self.positive[..BINS];
                fill(elements, |x| (x.abs() * inverse) as i32, |_, bin| positive[bin & (BINS - 1)] += 1)
            }
            (true, false) => {
                let (negative, positive) = (&mut self.negative[..BINS], &mut self.positive[..BINS]);
                fill(
                    elements,
                    |x| signed_bin(x, inverse),
                    |_, bin| {
                        let bins = if bin & BINS == 0 { &mut *positive } else { &mut *negative };
                        bins[bin & (BINS - 1)] += 1;
                    },
                )
            }
            (false, true) => {
                let mut zeros = 0;
                for part in elements.chunks(1 << 30) {
                    let mut tables = vec![[0u32; BINS]; WAYS];
                    zeros += fill(
                        part,
                        |x| (x.abs() * inverse) as i32,
                        |way, bin| {
                            let count = &mut tables[way & (WAYS - 1)][bin & (BINS - 1)];
                            *count = count.wrapping_add(1);
                        },
                    );
                    for (bin, count) in self.positive.iter_mut().enumerate() {
                        *count += tables.iter().map(|table| u64::from(table[bin])).sum::<u64>();
                    }
                }
                zeros
            }
            (true, true) => {
                let mut zeros = 0;
                for part in elements.chunks(1 << 30) {
                    let mut tables = vec![[0u32; 2 * BINS]; WAYS];
                    zeros += fill(
                        part,
                        |x| signed_bin(x, inverse),
                        |way, bin| {
                            let count = &mut tables[way & (WAYS - 1)][bin & (2 * BINS - 1)];
                            *count = count.wrapping_add(1);
                        },
                    );
                    for (bin, count) in self.positive.iter_mut().chain(&mut self.negative).enumerate() {
                        *count += tables.iter().map(|table| u64::from(table[bin])).sum::<u64>();
                    }
                }
                zeros
            }
        };
        self.positive[0] -= zeros;
        if spare && max <= 0.0 {
            self.positive = Vec::new();
        }
        zeros
    }

    /// Makes the bins at least so wide, and makes the sides that are needed.
    fn cover(&mut self, exponent: i32, negative: bool, positive: bool) {
        if self.is_empty() {
            self.exponent = exponent;
        }
        if exponent > self.exponent {
            let shift = (exponent - self.exponent) as u32;
            widen(&mut self.negative, shift);
            widen(&mut self.positive, shift);
            self.exponent = exponent;
        }
        if negative && self.negative.is_empty() {
            self.negative.resize(BINS, 0);
        }
        if positive && self.positive.is_empty() {
            self.positive.resize(BINS, 0);
        }
    }

    /// Adds the counts of another one.
    pub(super) fn merge(&mut self, other: &Histogram) {
        if other.is_empty() {
            return;
        }
        let mut other = other.clone();
        self.cover(other.exponent, !other.negative.is_empty(), !other.positive.is_empty());
        other.cover(self.exponent, false, false);
        for (mine, theirs) in [(&mut self.negative, &other.negative), (&mut self.positive, &other.positive)] {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine = mine.saturating_add(*theirs);
            }
        }
    }

    /// Whether it has counted nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.negative.is_empty() && self.positive.is_empty()
    }

    /// Width of a bin.
    pub(super) fn width(&self) -> f64 {
        f64::from(power_of_two(self.exponent))
    }

    /// Exponent of the width, bins below zero outwards, bins above zero outwards; the two may be empty.
    pub(super) fn parts(&self) -> (i32, &[u64], &[u64]) {
        (self.exponent, &self.negative, &self.positive)
    }

    /// The opposite of [`Histogram::parts`]; `None` where they fit no histogram of values up to `magnitude`.
    pub(super) fn from_parts(
        exponent: i32,
        negative: Vec<u64>,
        positive: Vec<u64>,
        magnitude: f32,
    ) -> Option<Histogram> {
        let sides = [&negative, &positive];
        if !sides.iter().all(|side| side.is_empty() || side.len() == BINS) {
            return None;
        }
        if sides.iter().all(|side| side.is_empty()) {
            return (magnitude == 0.0).then(Histogram::default);
        }
        let fits = magnitude > 0.0 && magnitude.is_finite() && exponent == exponent_for(magnitude);
        fits.then_some(Histogram { exponent, negative, positive })
    }

    /// Values counted; `None` when there are more than a number holds.
    pub(super) fn total(&self) -> Option<u64> {
        self.negative.iter().chain(&self.positive).try_fold(0u64, |sum, count| sum.checked_add(*count))
    }
}

/// The bin of a value, with [`BINS`] added below zero.
fn signed_bin(x: f32, inverse: f32) -> i32 {
    (x.abs() * inverse) as i32 | (i32::from(x < 0.0) << BITS)
}

/// Computes bins a block at a time, which compilers turn into vector instructions, and hands them on one by
/// one with their place in the block; returns how many elements are zero.
#[inline(always)]
fn fill(elements: &[f32], bin_of: impl Fn(f32) -> i32, mut count: impl FnMut(usize, usize)) -> u64 {
    let mut zeros = 0;
    for block in elements.chunks(BLOCK) {
        let mut bins = [0i32; BLOCK];
        let mut zeros_here = 0u32;
        for (bin, &x) in bins.iter_mut().zip(block) {
            *bin = bin_of(x);
            zeros_here += u32::from(x == 0.0);
        }
        for (place, &bin) in bins[..block.len()].iter().enumerate() {
            count(place, bin as usize);
        }
        zeros += u64::from(zeros_here);
    }
    zeros
}
