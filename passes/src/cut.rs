//! The cheapest way to give every node of a graph one of two labels.
//!
//! A node costs something under either label, and a pair of nodes where the labels differ. With costs that
//! are not negative this is a minimum cut, found through a maximum flow (Dinic's algorithm; Boykov and
//! Kolmogorov 2004 tell how energies of this kind become cuts).

/// The end that stands for the first label.
pub(crate) const FIRST: usize = 0;
/// The end that stands for the second label.
pub(crate) const SECOND: usize = 1;

/// What must not be cut.
pub(crate) const NEVER: u64 = u64::MAX / 4;

#[derive(Debug)]
struct Edge {
    to: usize,
    left: u64,
}

/// Nodes and costs. [`FIRST`] and [`SECOND`] are there from the start.
#[derive(Debug)]
pub(crate) struct Cut {
    edges: Vec<Edge>,
    /// By node, its edges; edge `e ^ 1` is the reverse of `e`.
    out: Vec<Vec<usize>>,
}

impl Default for Cut {
    fn default() -> Self {
        Cut { edges: Vec::new(), out: vec![Vec::new(), Vec::new()] }
    }
}

impl Cut {
    /// One more node.
    pub(crate) fn node(&mut self) -> usize {
        self.out.push(Vec::new());
        self.out.len() - 1
    }

    /// `cost` is due when `a` has the first label and `b` the second.
    pub(crate) fn cost(&mut self, a: usize, b: usize, cost: u64) {
        if a == b || cost == 0 {
            return;
        }
        self.out[a].push(self.edges.len());
        self.edges.push(Edge { to: b, left: cost });
        self.out[b].push(self.edges.len());
        self.edges.push(Edge { to: a, left: 0 });
    }

    /// Distance of every node from the first end along edges with something left.
    fn levels(&self) -> Vec<usize> {
        let mut levels = vec![usize::MAX; self.out.len()];
        levels[FIRST] = 0;
        let mut queue = std::collections::VecDeque::from([FIRST]);
        while let Some(node) = queue.pop_front() {
            for &edge in &self.out[node] {
                let Edge { to, left } = self.edges[edge];
                if left > 0 && levels[to] == usize::MAX {
                    levels[to] = levels[node] + 1;
                    queue.push_back(to);
                }
            }
        }
        levels
    }

    /// Whether each node has the first label in the cheapest labelling.
    pub(crate) fn solve(mut self) -> Vec<bool> {
        loop {
            let levels = self.levels();
            if levels[SECOND] == usize::MAX {
                return levels.into_iter().map(|level| level != usize::MAX).collect();
            }
            let mut next = vec![0; self.out.len()];
            while self.push(&levels, &mut next) {}
        }
    }

    /// Sends as much as fits along one more path of the layers; false when there is no more.
    fn push(&mut self, levels: &[usize], next: &mut [usize]) -> bool {
        let mut path: Vec<usize> = Vec::new();
        let mut node = FIRST;
        while node != SECOND {
            let step = self.out[node][next[node]..].iter().position(|&edge| {
                let Edge { to, left } = self.edges[edge];
                left > 0 && levels[to] == levels[node].saturating_add(1)
            });
            match step {
                Some(skipped) => {
                    next[node] += skipped;
                    let edge = self.out[node][next[node]];
                    path.push(edge);
                    node = self.edges[edge].to;
                }
                None => {
                    // A dead end: back, and not here again.
                    next[node] = self.out[node].len();
                    let Some(edge) = path.pop() else { return false };
                    node = self.edges[edge ^ 1].to;
                    next[node] += 1;
                }
            }
        }
        let least = path.iter().map(|&edge| self.edges[edge].left).min().unwrap_or(0);
        for edge in path {
            self.edges[edge].left -= least;
            let back = &mut self.edges[edge ^ 1].left;
            *back = back.saturating_add(least);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Costs of a labelling, by definition.
    fn price(costs: &[(usize, usize, u64)], first: &[bool]) -> u64 {
        costs.iter().filter(|(a, b, _)| first[*a] && !first[*b]).map(|(_, _, cost)| cost).sum()
    }

    #[test]
    fn no_labelling_is_cheaper() {
        let mut state = 12345u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let nodes = 2 + random(7) as usize;
            let mut costs = Vec::new();
            for node in 2..nodes {
                costs.push((FIRST, node, random(20)));
                costs.push((node, SECOND, random(20)));
            }
            for _ in 0..random(12) {
                costs.push((random(nodes as u64) as usize, random(nodes as u64) as usize, random(9)));
            }
            let mut cut = Cut::default();
            (2..nodes).for_each(|_| {
                cut.node();
            });
            costs.iter().for_each(|&(a, b, cost)| cut.cost(a, b, cost));
            let found = price(&costs, &cut.solve());
            let best = (0..1 << (nodes - 2))
                .map(|bits: usize| {
                    let first: Vec<bool> = (0..nodes)
                        .map(|node| node == FIRST || (node >= 2 && bits >> (node - 2) & 1 == 1))
                        .collect();
                    price(&costs, &first)
                })
                .min();
            assert_eq!(Some(found), best, "{costs:?}");
        }
    }
}
