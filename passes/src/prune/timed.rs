//! Which channels go until a measured time is reached, and not a count of operations.
//!
//! The kernels of an engine are timed once for each width that each group of channels may have, the others as they are: a table
//! of how the time of every node falls with every width. Between groups times multiply, as the operations of a product of
//! two widths do. The table says which width to give up next; how far to go is measured on whole models.

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId, Tensor};
use optix_pipeline::{Cx, KernelTime, PassError, Ratio};

use super::channels::Choice;
use crate::samples;

/// Widths of a group that are timed at most.
const WIDTHS: usize = 6;

/// Seconds that comparing whole models takes.
const SECONDS: f64 = 1.5;

/// Builds the model in which these channels of each group are gone.
pub(super) type Build<'a> = &'a dyn Fn(&[Vec<usize>]) -> Result<Model, PassError>;

/// Widths that are timed: evenly, of all that a group may have.
pub(super) fn timed_counts(counts: &[usize]) -> Vec<usize> {
    let (all, most) = (counts.len(), counts.len().min(WIDTHS));
    (1..=most).map(|number| counts[number * all / most - 1]).collect()
}

/// Seconds of every node, and by which factor they change with the width of a group.
struct Table {
    seconds: Vec<f64>,
    /// By group and number of the width, all channels first; none where a node does not depend on the group.
    factors: Vec<Vec<Vec<f64>>>,
}

impl Table {
    /// Seconds of all nodes at these widths, by their numbers.
    fn total(&self, at: &[usize]) -> f64 {
        let of = |(node, seconds): (usize, &f64)| {
            let factors = self.factors.iter().zip(at).map(|(of_group, &width)| of_group[width][node]);
            seconds * factors.product::<f64>()
        };
        self.seconds.iter().enumerate().map(of).sum()
    }
}

/// Channels that go with these widths.
fn gone(choices: &[Choice<'_>], at: &[usize]) -> Vec<Vec<usize>> {
    let of = |(choice, &at): (&Choice<'_>, &usize)| {
        let all = choice.group.channels.len();
        let left = if at == 0 { all } else { choice.counts[at - 1] };
        let mut gone = choice.curve.order[..all - left].to_vec();
        gone.sort_unstable();
        gone
    };
    choices.iter().zip(at).map(of).collect()
}

/// Seconds by node.
fn by_node(kernels: &[KernelTime], order: &[NodeId]) -> Vec<f64> {
    let mut seconds: BTreeMap<NodeId, f64> = BTreeMap::new();
    for kernel in kernels {
        // What was fused counts for the first of its nodes.
        if let Some(&node) = kernel.nodes.first() {
            *seconds.entry(node).or_insert(0.0) += kernel.seconds;
        }
    }
    order.iter().map(|node| seconds.get(node).copied().unwrap_or(0.0)).collect()
}

/// Times the widths of all groups.
fn measure(
    model: &Model,
    choices: &[Choice<'_>],
    build: Build<'_>,
    feeds: &[(String, Tensor)],
    cx: &mut Cx<'_>,
) -> Result<Table, PassError> {
    let order: Vec<NodeId> = model.walk().collect();
    let total: u64 = choices.iter().map(|choice| choice.counts.len() as u64).sum();
    let mut done = 0;
    let mut timed = |model: &Model, cx: &mut Cx<'_>| -> Result<Vec<f64>, PassError> {
        cx.progress("timing widths", done, total)?;
        done += 1;
        let deployment = cx.deployment().ok_or_else(missing)?;
        Ok(by_node(&deployment.kernels(model, feeds)?, &order))
    };
    let seconds = timed(model, cx)?;
    let mut factors = Vec::new();
    for place in 0..choices.len() {
        let mut of_group = vec![vec![1.0; seconds.len()]];
        for width in 1..=choices[place].counts.len() {
            let mut at = vec![0; choices.len()];
            at[place] = width;
            let own = timed(&build(&gone(choices, &at))?, cx)?;
            // Noise makes nothing slower by having less to do, except where engines really are.
            let factor =
                |(own, all): (&f64, &f64)| if *all > 0.0 { (own / all).clamp(0.05, 2.0) } else { 1.0 };
            of_group.push(own.iter().zip(&seconds).map(factor).collect());
        }
        // Nodes that have nothing to do with the group: what they differ by is chance.
        for node in 0..seconds.len() {
            let moved = of_group.last().is_some_and(|least| least[node] < 0.9);
            if !moved {
                of_group.iter_mut().for_each(|width| width[node] = 1.0);
            }
        }
        factors.push(of_group);
    }
    Ok(Table { seconds, factors })
}

/// That there is nothing to time on.
pub(super) fn missing() -> PassError {
    PassError::Options(
        "`latency` is measured on the engine that the model is meant for, and none was found: name onnxruntime's library \
         (docs/engines.md), or give `flops`"
            .to_owned(),
    )
}

/// Widths by their numbers, from all channels on, each the step that loses least for the time it saves by the table.
fn path(table: &Table, choices: &[Choice<'_>]) -> Vec<Vec<usize>> {
    let mut at = vec![0usize; choices.len()];
    let mut path = vec![at.clone()];
    loop {
        let now = table.total(&at);
        let mut best: Option<(f64, usize, usize)> = None;
        for (place, choice) in choices.iter().enumerate() {
            let channels = choice.group.channels.len();
            let lost = |width: usize| match width {
                0 => choice.curve.lost[0],
                _ => choice.curve.lost[channels - choice.counts[width - 1]],
            };
            for to in at[place] + 1..=choice.counts.len() {
                let from = std::mem::replace(&mut at[place], to);
                let saved = now - table.total(&at);
                at[place] = from;
                let price = (lost(to) - lost(from)).max(1e-12) / saved;
                if saved > 0.0 && best.is_none_or(|(least, ..)| price < least) {
                    best = Some((price, place, to));
                }
            }
        }
        let Some((_, place, to)) = best else {
            // What saves nothing by the table may still do so in the whole.
            let least: Vec<usize> = choices.iter().map(|choice| choice.counts.len()).collect();
            path.extend(Some(least).filter(|least| *least != at));
            return path;
        };
        at[place] = to;
        path.push(at.clone());
    }
}

/// Channels of each group that go so that so many samples take at most `share` of their time: the first step of the path where the
/// whole does, by bisection.
///
/// # Errors
/// When that cannot be reached, or there is no engine to measure on.
pub(super) fn select(
    model: &Model,
    choices: &[Choice<'_>],
    (share, together): (f64, usize),
    build: Build<'_>,
    cx: &mut Cx<'_>,
) -> Result<Vec<Vec<usize>>, PassError> {
    if share >= 1.0 {
        return Ok(gone(choices, &vec![0; choices.len()]));
    }
    let batch = samples::first(model, together, cx)?.unwrap_or_default();
    let (feeds, timed_together) = (batch.feeds, batch.count);
    if timed_together != together {
        cx.warn(format!(
            "{timed_together} samples are timed together: the calibration data have no {together} of one shape"
        ));
    }
    let table = measure(model, choices, build, &feeds, cx)?;
    let path = path(&table, choices);
    let timed = |at: &[usize], cx: &mut Cx<'_>| -> Result<Ratio, PassError> {
        let smaller = build(&gone(choices, at))?;
        cx.progress("measuring the whole", 0, 0)?;
        let deployment = cx.deployment().ok_or_else(missing)?;
        let seconds = deployment.latencies(&[model, &smaller], &feeds, SECONDS)?;
        Ratio::of_pairs(&seconds[1], &seconds[0])
            .ok_or_else(|| PassError::Options("the engine's runs were too few to tell a latency".to_owned()))
    };
    let (mut slow, mut fast) = (0, path.len() - 1);
    let mut ratio = timed(&path[fast], cx)?;
    if ratio.ratio > share {
        return Err(PassError::Options(format!(
            "a latency of {share} cannot be reached: with all channels gone that can go it is {:.2}. Give a larger \
             `latency`, or a smaller `multiple`",
            ratio.ratio
        )));
    }
    while fast - slow > 1 {
        let middle = slow + (fast - slow) / 2;
        let own = timed(&path[middle], cx)?;
        if own.ratio <= share {
            (fast, ratio) = (middle, own);
        } else {
            slow = middle;
        }
    }
    let engine = cx.deployment().map(|deployment| deployment.describe()).unwrap_or_default();
    cx.note(format!(
        "without them {} takes {:.2} (95% interval {:.2} to {:.2}) of the time on {engine}, {:.2} by the table of widths",
        if timed_together == 1 { "a sample".to_owned() } else { format!("a batch of {timed_together}") },
        ratio.ratio,
        ratio.interval.low,
        ratio.interval.high,
        table.total(&path[fast]) / table.total(&path[0]).max(f64::MIN_POSITIVE)
    ));
    Ok(gone(choices, &path[fast]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_widths_stand_for_many_and_times_multiply() {
        assert_eq!(timed_counts(&[56, 48, 40, 32, 24, 16, 8]), [56, 48, 40, 32, 24, 8]);
        assert_eq!(timed_counts(&[16, 8]), [16, 8]);
        assert!(timed_counts(&[]).is_empty());
        // A node between two groups, and one that has to do with the second alone.
        let table = Table {
            seconds: vec![4.0, 1.0],
            factors: vec![vec![vec![1.0, 1.0], vec![0.5, 1.0]], vec![vec![1.0, 1.0], vec![0.25, 0.5]]],
        };
        assert_eq!(table.total(&[0, 0]), 5.0);
        assert_eq!(table.total(&[1, 1]), 4.0 * 0.125 + 0.5);
    }
}
