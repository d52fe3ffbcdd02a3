//! Where casts go: the fewest of them, by a minimum cut.
//!
//! Some units must be float32, some must be 16 bits wide, the others may be either. Every value that some
//! reader wants in the other type costs one cast, however many readers share it. That cost is submodular, so
//! the best choice is a minimum cut of a flow network (Picard and Queyranne 1980; the flow is Dinic's 1970).

/// Capacity of an edge that is never cut.
const NEVER: u64 = u64::MAX / 4;
/// Cost of a cast.
pub(super) const CAST: u64 = 1000;
/// Cost of a unit that is left in float32 though it may be 16 bits wide: decides among equals.
const PREFERENCE: u64 = 1;

/// A flow network; node 0 is the source (float32), node 1 the sink (16 bits).
#[derive(Debug)]
pub(super) struct Network {
    /// First edge of each node in `next`'s chains; `usize::MAX` ends one.
    first: Vec<usize>,
    next: Vec<usize>,
    to: Vec<usize>,
    left: Vec<u64>,
}

const FLOAT: usize = 0;
const LOW: usize = 1;
const NONE: usize = usize::MAX;

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
    pub(super) fn new(units: &[Must]) -> Network {
        let mut network = Network {
            first: vec![NONE; units.len() + 2],
            next: Vec::new(),
            to: Vec::new(),
            left: Vec::new(),
        };
        for (unit, must) in units.iter().enumerate() {
            match must {
                Must::Float => network.edge(FLOAT, unit + 2, NEVER),
                Must::Low => network.edge(unit + 2, LOW, NEVER),
                Must::Either => network.edge(unit + 2, LOW, PREFERENCE),
            }
        }
        network
    }

    fn edge(&mut self, from: usize, to: usize, capacity: u64) {
        for (from, to, capacity) in [(from, to, capacity), (to, from, 0)] {
            self.next.push(self.first[from]);
            self.first[from] = self.to.len();
            self.to.push(to);
            self.left.push(capacity);
        }
    }

    fn auxiliary(&mut self) -> usize {
        self.first.push(NONE);
        self.first.len() - 1
    }

    /// A value made by a unit (or by something that is float32 for good: `None`) and read by others (`None`
    /// again for float32 for good).
    pub(super) fn value(&mut self, producer: Option<usize>, readers: &[Option<usize>]) {
        let mut units: Vec<usize> = readers.iter().flatten().map(|unit| unit + 2).collect();
        units.sort_unstable();
        units.dedup();
        let fixed = readers.iter().any(Option::is_none);
        let producer = producer.map_or(FLOAT, |unit| unit + 2);
        units.retain(|&unit| unit != producer);
        if !units.is_empty() {
            // float32, and a reader wants 16 bits.
            let narrow = self.auxiliary();
            self.edge(producer, narrow, CAST);
            units.iter().for_each(|&unit| self.edge(narrow, unit, NEVER));
        }
        if producer == FLOAT {
            return;
        }
        if fixed {
            self.edge(FLOAT, producer, CAST);
        } else if !units.is_empty() {
            // 16 bits, and a reader wants float32.
            let wide = self.auxiliary();
            self.edge(wide, producer, CAST);
            units.iter().for_each(|&unit| self.edge(unit, wide, NEVER));
        }
    }

    /// Which units are 16 bits wide in the cheapest choice; and the cost of its casts.
    pub(super) fn solve(mut self, units: usize) -> (Vec<bool>, u64) {
        let mut cost = 0u64;
        loop {
            let level = self.levels();
            if level[LOW] == NONE {
                let low = (0..units).map(|unit| level[unit + 2] == NONE).collect();
                return (low, cost);
            }
            let mut at = self.first.clone();
            loop {
                let pushed = self.push(&level, &mut at);
                if pushed == 0 {
                    break;
                }
                cost = cost.saturating_add(pushed);
            }
        }
    }

    /// Distance of every node from the source over edges with capacity left.
    fn levels(&self) -> Vec<usize> {
        let mut level = vec![NONE; self.first.len()];
        let mut queue = std::collections::VecDeque::from([FLOAT]);
        level[FLOAT] = 0;
        while let Some(node) = queue.pop_front() {
            let mut edge = self.first[node];
            while edge != NONE {
                let to = self.to[edge];
                if self.left[edge] > 0 && level[to] == NONE {
                    level[to] = level[node] + 1;
                    queue.push_back(to);
                }
                edge = self.next[edge];
            }
        }
        level
    }

    /// Finds one more path down the levels and fills it; 0 when there is none.
    fn push(&mut self, level: &[usize], at: &mut [usize]) -> u64 {
        let mut path: Vec<usize> = Vec::new();
        let mut node = FLOAT;
        loop {
            if node == LOW {
                let flow = path.iter().map(|&edge| self.left[edge]).min().unwrap_or(0);
                for &edge in &path {
                    self.left[edge] -= flow;
                    self.left[edge ^ 1] = self.left[edge ^ 1].saturating_add(flow);
                }
                return flow;
            }
            let edge = at[node];
            if edge == NONE {
                // A dead end: back, and never here again.
                let Some(last) = path.pop() else { return 0 };
                node = self.to[last ^ 1];
                at[node] = self.next[at[node]];
            } else if self.left[edge] > 0 && level[self.to[edge]] == level[node].saturating_add(1) {
                path.push(edge);
                node = self.to[edge];
            } else {
                at[node] = self.next[edge];
            }
        }
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
            let (low, _) = network.solve(count);
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
