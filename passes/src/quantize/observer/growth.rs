//! When ranges were reached.

/// Samples at which the range of a tensor grew, in steps of at most 1/128: bounded memory, and the same for
/// parts observed apart and merged in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    /// For values below and above zero: levels of magnitude with the sample (from 1) that first reached each;
    /// both ascend. A level is a magnitude's sign, exponent and first 7 bits.
    sides: [Vec<(u16, u64)>; 2],
}

/// Bits of f32 that a level leaves out.
const DROPPED: u32 = 16;

/// Least magnitude of a level.
fn magnitude(level: u16) -> f32 {
    f32::from_bits(u32::from(level) << DROPPED)
}

impl Growth {
    /// Takes in the extremes of sample `number`, counted from 1.
    pub(super) fn add(&mut self, number: u64, min: f32, max: f32) {
        for (side, reached) in self.sides.iter_mut().zip([(-min).max(0.0), max.max(0.0)]) {
            let level = (reached.to_bits() >> DROPPED) as u16;
            if level > side.last().map_or(0, |(level, _)| *level) {
                side.push((level, number));
            }
        }
    }

    /// Puts what was observed after this, whose samples were `before` ones.
    pub(super) fn merge(&mut self, other: &Growth, before: u64) {
        for (side, later) in self.sides.iter_mut().zip(&other.sides) {
            for &(level, number) in later {
                if level > side.last().map_or(0, |(level, _)| *level) {
                    side.push((level, number.saturating_add(before)));
                }
            }
        }
    }

    /// The sample after which the range was within 1% of its final ends.
    pub(super) fn settled(&self, min: f32, max: f32) -> u64 {
        let ends = [(-min).max(0.0), max.max(0.0)];
        let of_side = |(side, end): (&Vec<(u16, u64)>, f32)| {
            let reached = side.iter().find(|(level, _)| magnitude(*level) >= 0.99 * end);
            // Magnitudes too small to have a level of their own count as the last.
            reached.or(side.last()).map_or(0, |(_, number)| *number)
        };
        self.sides.iter().zip(ends).map(of_side).max().unwrap_or(0)
    }

    /// About how wide the range was after so many samples, 0 included.
    pub(super) fn width_after(&self, samples: u64) -> f64 {
        let of_side = |side: &Vec<(u16, u64)>| {
            let reached = side.iter().rev().find(|(_, number)| *number <= samples);
            reached.map_or(0.0, |(level, _)| f64::from(magnitude(*level)))
        };
        self.sides.iter().map(of_side).sum()
    }

    pub(super) fn sides(&self) -> &[Vec<(u16, u64)>; 2] {
        &self.sides
    }

    /// `None` where levels or samples do not ascend, or a sample is beyond `samples`.
    pub(super) fn from_sides(sides: [Vec<(u16, u64)>; 2], samples: u64) -> Option<Growth> {
        let good = sides.iter().all(|side| {
            side.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1)
                && side
                    .iter()
                    .all(|(level, number)| magnitude(*level).is_finite() && (1..=samples).contains(number))
                && side.first().is_none_or(|(level, _)| *level > 0)
        });
        good.then_some(Growth { sides })
    }
}
