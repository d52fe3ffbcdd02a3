//! Statistics of every channel of a tensor.

use super::exact_sum::ExactSum;

/// Channels that are told apart; a tensor with more of them has statistics as a whole only.
pub(super) const MOST: usize = 1 << 16;

/// Count, mean and extremes of one channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Channel {
    pub(super) count: u64,
    pub(super) min: f32,
    pub(super) max: f32,
    pub(super) sum: ExactSum,
}

impl Default for Channel {
    fn default() -> Self {
        Channel { count: 0, min: f32::INFINITY, max: f32::NEG_INFINITY, sum: ExactSum::default() }
    }
}

impl Channel {
    /// Elements seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean of the elements; 0 before the first.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum.value() / self.count as f64 }
    }

    /// Least and greatest element; `None` before the first.
    pub fn range(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    fn merge(&mut self, other: &Channel) {
        self.count = self.count.saturating_add(other.count);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.sum.merge(&other.sum);
    }
}

/// The channels of a tensor along one axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Channels {
    /// Nobody asked for them.
    None,
    /// They lie along this axis (from 0, or from the end when negative); empty before the first tensor.
    Along(i64, Vec<Channel>),
    /// Their number is not always the same, or is too great.
    Varying,
}

/// One channel's part of a sample.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) min: f32,
    pub(super) max: f32,
    pub(super) sum: f64,
}

impl Channels {
    /// What a sample, elements of a tensor of that shape, is made of; `None` where channels are not told apart.
    pub(super) fn parts(&mut self, elements: &[f32], shape: &[usize]) -> Option<Vec<Part>> {
        let Channels::Along(axis, channels) = self else { return None };
        let from_start = if *axis < 0 { *axis + shape.len() as i64 } else { *axis };
        let place = usize::try_from(from_start).ok().filter(|place| *place < shape.len());
        let Some(place) = place else {
            *self = Channels::Varying;
            return None;
        };
        let (number, inner) = (shape[place], shape[place + 1..].iter().product::<usize>());
        if elements.is_empty() {
            return None;
        }
        if number > MOST || (!channels.is_empty() && channels.len() != number) {
            *self = Channels::Varying;
            return None;
        }
        let nothing = Part { min: f32::INFINITY, max: f32::NEG_INFINITY, sum: 0.0 };
        let mut parts = vec![nothing; number];
        if inner == 1 {
            let (mut least, mut most) = (vec![f32::INFINITY; number], vec![f32::NEG_INFINITY; number]);
            let mut sums = vec![0f64; number];
            for row in elements.chunks_exact(number) {
                for (((least, most), sum), &x) in least.iter_mut().zip(&mut most).zip(&mut sums).zip(row) {
                    *least = if x < *least { x } else { *least };
                    *most = if x > *most { x } else { *most };
                    *sum += f64::from(x);
                }
            }
            for (index, part) in parts.iter_mut().enumerate() {
                *part = Part { min: least[index], max: most[index], sum: sums[index] };
            }
        } else {
            for (row, elements) in elements.chunks_exact(inner).enumerate() {
                let (min, max, sum) = super::scan(elements);
                let part = &mut parts[row % number];
                *part = Part { min: part.min.min(min), max: part.max.max(max), sum: part.sum + sum };
            }
        }
        Some(parts)
    }

    /// Takes in a sample of finite elements, `each` of a channel.
    pub(super) fn add(&mut self, parts: &[Part], each: u64) {
        let Channels::Along(_, channels) = self else { return };
        channels.resize_with(parts.len(), Channel::default);
        for (channel, part) in channels.iter_mut().zip(parts) {
            channel.count += each;
            channel.min = channel.min.min(part.min);
            channel.max = channel.max.max(part.max);
            channel.sum.add(part.sum);
        }
    }

    pub(super) fn merge(&mut self, other: &Channels) {
        match (&mut *self, other) {
            (Channels::Along(axis, mine), Channels::Along(their_axis, theirs)) if axis == their_axis => {
                if mine.is_empty() {
                    mine.clone_from(theirs);
                } else if mine.len() == theirs.len() {
                    mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| mine.merge(theirs));
                } else if !theirs.is_empty() {
                    *self = Channels::Varying;
                }
            }
            (Channels::None, Channels::None) => {}
            _ => *self = Channels::Varying,
        }
    }
}
