//! Which channels go: those that cost the most for what they are worth, until a budget holds.

use std::collections::{BTreeMap, BTreeSet};

use super::cost::{Costs, Measure, Sizes, Term};
use super::groups::{Along, Group};
use super::worth::Curve;

/// A group that can become smaller.
pub(in crate::prune) struct Choice<'a> {
    pub(in crate::prune) group: &'a Group,
    pub(in crate::prune) curve: &'a Curve,
    /// How many channels may stay, falling; fewer than there are.
    pub(in crate::prune) counts: &'a [usize],
}

/// How many channels of a group may stay so that engines run them at full width: multiples of `multiple` elements
/// along the layer that computes them, which has `each` elements for a channel.
pub(in crate::prune) fn counts(channels: usize, each: usize, multiple: usize) -> Vec<usize> {
    let step = step(each, multiple);
    (1..channels).rev().filter(|count| count % step == 0).collect()
}

/// The fewest channels that make a multiple.
pub(in crate::prune) fn step(each: usize, multiple: usize) -> usize {
    (1..multiple).find(|count| (count * each).is_multiple_of(multiple)).unwrap_or(multiple)
}

/// A sum of products of sizes, with everything numbered.
struct Sum {
    terms: Vec<(f64, Vec<usize>)>,
    /// For each size, the terms that it is part of.
    by_size: Vec<Vec<usize>>,
    sizes: Vec<f64>,
}

impl Sum {
    fn new(terms: &[Term], sizes: &Sizes) -> (Sum, BTreeMap<Along, usize>) {
        let numbers: BTreeMap<Along, usize> =
            sizes.keys().enumerate().map(|(number, along)| (*along, number)).collect();
        let mut by_size = vec![Vec::new(); sizes.len()];
        let mut numbered = Vec::new();
        for (place, term) in terms.iter().enumerate() {
            let own: Vec<usize> = term.axes.iter().filter_map(|along| numbers.get(along).copied()).collect();
            for &number in &own {
                if by_size[number].last() != Some(&place) {
                    by_size[number].push(place);
                }
            }
            numbered.push((term.times, own));
        }
        let sizes = sizes.values().map(|&size| size as f64).collect();
        (Sum { terms: numbered, by_size, sizes }, numbers)
    }

    fn term(&self, place: usize) -> f64 {
        let (times, sizes) = &self.terms[place];
        times * sizes.iter().map(|&number| self.sizes[number]).product::<f64>()
    }

    fn total(&self) -> f64 {
        (0..self.terms.len()).map(|place| self.term(place)).sum()
    }

    /// Of some terms alone.
    fn part(&self, places: &[usize]) -> f64 {
        places.iter().map(|&place| self.term(place)).sum()
    }
}

/// A group that is becoming smaller.
struct Shrinking {
    /// How many channels may stay, falling, all of them first.
    counts: Vec<usize>,
    /// What is lost then.
    lost: Vec<f64>,
    /// How many places are gone then, by size.
    gone: Vec<Vec<f64>>,
    /// The sizes that change.
    sizes: Vec<usize>,
    /// The terms that change.
    terms: Vec<usize>,
    /// Where it is in the list of counts.
    at: usize,
}

impl Shrinking {
    fn new(choice: &Choice<'_>, sum: &Sum, numbers: &BTreeMap<Along, usize>) -> Shrinking {
        let channels = &choice.group.channels;
        let of = |channel: usize| {
            let members = channels[channel].members.iter();
            members.filter_map(|(along, _)| numbers.get(along).copied())
        };
        let sizes: Vec<usize> =
            (0..channels.len()).flat_map(of).collect::<BTreeSet<usize>>().into_iter().collect();
        let terms: BTreeSet<usize> =
            sizes.iter().flat_map(|&size| sum.by_size[size].iter().copied()).collect();
        let mut counts = vec![channels.len()];
        counts.extend_from_slice(choice.counts);
        let mut gone = Vec::new();
        let mut now = vec![0f64; sizes.len()];
        let mut done = 0;
        for &count in &counts {
            for &channel in &choice.curve.order[done..channels.len() - count] {
                for number in of(channel) {
                    let place = sizes.binary_search(&number);
                    now[place.unwrap_or_default()] += 1.0;
                }
            }
            done = channels.len() - count;
            gone.push(now.clone());
        }
        let lost = counts.iter().map(|count| choice.curve.lost[channels.len() - count]).collect();
        Shrinking { counts, lost, gone, sizes, terms: terms.into_iter().collect(), at: 0 }
    }

    /// Goes to another place in the list of counts.
    fn go(&mut self, to: usize, sum: &mut Sum) {
        for (place, &size) in self.sizes.iter().enumerate() {
            sum.sizes[size] += self.gone[self.at][place] - self.gone[to][place];
        }
        self.at = to;
    }
}

/// How many channels of each choice stay so that the cost is at most `budget`: at every turn the step with the least
/// loss for what it saves. `Err` with the least cost that can be reached, when that is more.
pub(in crate::prune) fn select(
    choices: &[Choice<'_>],
    costs: &Costs,
    sizes: &Sizes,
    measure: Measure,
    budget: f64,
) -> Result<Vec<usize>, f64> {
    let (mut sum, numbers) = Sum::new(costs.terms(measure), sizes);
    let mut groups: Vec<Shrinking> =
        choices.iter().map(|choice| Shrinking::new(choice, &sum, &numbers)).collect();
    loop {
        let cost = sum.total();
        if cost <= budget {
            return Ok(groups.iter().map(|group| group.counts[group.at]).collect());
        }
        let mut best: Option<(f64, usize, usize)> = None;
        for (place, group) in groups.iter_mut().enumerate() {
            let (at, before) = (group.at, sum.part(&group.terms));
            for to in at + 1..group.counts.len() {
                group.go(to, &mut sum);
                let saved = before - sum.part(&group.terms);
                group.go(at, &mut sum);
                if saved <= 0.0 {
                    continue;
                }
                // More than is needed is worth nothing.
                let lost = (group.lost[to] - group.lost[at]).max(1e-12) / saved.min(cost - budget);
                if best.is_none_or(|(least, ..)| lost < least) {
                    best = Some((lost, place, to));
                }
            }
        }
        let Some((_, place, to)) = best else { return Err(cost) };
        groups[place].go(to, &mut sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_fill_vectors() {
        assert_eq!(counts(32, 1, 8), [24, 16, 8]);
        assert_eq!(counts(20, 1, 8), [16, 8]);
        assert!(counts(8, 1, 8).is_empty());
        // Heads of 32, and runs of 4.
        assert_eq!(counts(4, 32, 8), [3, 2, 1]);
        assert_eq!(counts(6, 4, 8), [4, 2]);
        assert_eq!(counts(3, 1, 1), [2, 1]);
        assert_eq!(step(12, 8), 2);
    }
}
