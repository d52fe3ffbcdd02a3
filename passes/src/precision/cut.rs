//! Where casts go: the fewest of them, by a minimum cut.
//!
//! Some units must be float32, some must be 16 bits wide, the others may be either. Every value that some
//! reader wants in the other type costs one cast, however many readers share it. That cost is submodular, so
//! the best choice is a minimum cut of a flow network (Picard and Queyranne 1980).

use crate::cut::{Cut, FIRST as FLOAT, NEVER, SECOND as LOW};

/// Cost of a cast.
pub(super) const CAST: u64 = 1000;
/// Cost of a unit that is left in float32 though it may be 16 bits wide: decides among equals.
const PREFERENCE: u64 = 1;

/// The units of a model and the values between them: float32 is the first label, 16 bits the second.
#[derive(Debug)]
pub(super) struct Network {
    cut: Cut,
    /// By unit, its node.
    units: Vec<usize>,
}

/// What a unit must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Must {
    /// 32 bits.
    Float,
    /// 16 bits.
    Low,
    /// As it comes cheaper.
    Either,
}

impl Network {
    /// A network of units numbered from 0.
    pub(super) fn new(musts: &[Must]) -> Network {
        let mut cut = Cut::default();
        let units: Vec<usize> = musts.iter().map(|_| cut.node()).collect();
        for (&unit, must) in units.iter().zip(musts) {
            match must {
                Must::Float => cut.cost(FLOAT, unit, NEVER),
                Must::Low => cut.cost(unit, LOW, NEVER),
                Must::Either => cut.cost(unit, LOW, PREFERENCE),
            }
        }
        Network { cut, units }
    }

    /// A value made by a unit (or by something that is float32 for good: `None`) and read by others (`None`
    /// again for float32 for good).
    pub(super) fn value(&mut self, producer: Option<usize>, readers: &[Option<usize>]) {
        let mut units: Vec<usize> = readers.iter().flatten().map(|&unit| self.units[unit]).collect();
        units.sort_unstable();
        units.dedup();
        let fixed = readers.iter().any(Option::is_none);
        let producer = producer.map_or(FLOAT, |unit| self.units[unit]);
        units.retain(|&unit| unit != producer);
        if !units.is_empty() {
            // float32, and a reader wants 16 bits.
            let narrow = self.cut.node();
            self.cut.cost(producer, narrow, CAST);
            units.iter().for_each(|&unit| self.cut.cost(narrow, unit, NEVER));
        }
        if producer == FLOAT {
            return;
        }
        if fixed {
            self.cut.cost(FLOAT, producer, CAST);
        } else if !units.is_empty() {
            // 16 bits, and a reader wants float32.
            let wide = self.cut.node();
            self.cut.cost(wide, producer, CAST);
            units.iter().for_each(|&unit| self.cut.cost(unit, wide, NEVER));
        }
    }

    /// Which units are 16 bits wide in the cheapest choice.
    pub(super) fn solve(self) -> Vec<bool> {
        let float = self.cut.solve();
        self.units.iter().map(|&unit| !float[unit]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cost of a choice, counted as the module says.
    fn casts(low: &[bool], values: &[(Option<usize>, Vec<Option<usize>>)]) -> u64 {
        let is_low = |unit: Option<usize>| unit.is_some_and(|unit| low[unit]);
        let differs = |(producer, readers): &&(Option<usize>, Vec<Option<usize>>)| {
            readers.iter().any(|&reader| is_low(reader) != is_low(*producer))
        };
        values.iter().filter(differs).count() as u64
    }

    #[test]
    fn no_choice_is_cheaper() {
        let mut state = 7u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let count = 2 + draw(8) as usize;
            let musts: Vec<Must> = (0..count)
                .map(|_| [Must::Float, Must::Low, Must::Either, Must::Either][draw(4) as usize])
                .collect();
            let any = |draw: &mut dyn FnMut(u64) -> u64| (draw(6) > 0).then(|| draw(count as u64) as usize);
            let values: Vec<(Option<usize>, Vec<Option<usize>>)> = (0..draw(10))
                .map(|_| (any(&mut draw), (0..1 + draw(4)).map(|_| any(&mut draw)).collect()))
                .collect();
            let mut network = Network::new(&musts);
            values.iter().for_each(|(producer, readers)| network.value(*producer, readers));
            let low = network.solve();
            let fits = |low: &[bool]| {
                low.iter().zip(&musts).all(|(&low, must)| match must {
                    Must::Float => !low,
                    Must::Low => low,
                    Must::Either => true,
                })
            };
            assert!(fits(&low), "{musts:?} {low:?}");
            let best = (0..1u32 << count)
                .map(|bits| (0..count).map(|unit| bits >> unit & 1 == 1).collect::<Vec<bool>>())
                .filter(|low| fits(low))
                .map(|low| casts(&low, &values))
                .min();
            assert_eq!(Some(casts(&low, &values)), best, "{musts:?} {values:?} {low:?}");
        }
    }
}
