//! The least set of nodes that must stay float32, by measuring outputs.
//!
//! First the model as planned is measured. When that is not good enough, the weights alone are: if rounding
//! them is too much already, nodes must keep their weights too. Then nodes are ranked by how much signal
//! they lose, the shortest beginning of that list that mends the outputs is found by bisection, and of it
//! everything is given back, half by half, that is not needed (Zeller and Hildebrandt 2002).

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId, Tensor, ValueId};
use optix_pipeline::{Batch, Cx, Distance, OracleError, PassError};

use super::plan::{Kept, Level, Plan, Problem};
use super::rewrite::{emulate, widen};
use super::weights::Rounded;

/// Outputs of the float model on the samples of the search.
struct Reference {
    batches: Vec<Batch>,
    /// For each batch, for each output.
    outputs: Vec<Vec<Tensor>>,
}

/// How good a choice is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Score {
    /// Least signal-to-noise ratio of an output in dB; infinite when all are equal, minus infinity when one
    /// has elements that are not finite where the float model's are.
    pub sqnr_db: f64,
}

/// Signal and noise of one value over all samples.
#[derive(Clone, Copy, Default)]
struct Noise {
    distance: Distance,
    broken: bool,
}

impl Noise {
    fn add(&mut self, expected: &Tensor, found: &Tensor) {
        self.broken |= expected.shape() != found.shape();
        // Integers and truth values too: an output of a classifier may be one. What is no number is equal.
        if !self.broken {
            let _ = self.distance.add(expected, found);
        }
    }

    fn sqnr_db(&self) -> f64 {
        match self.distance.sqnr_db() {
            _ if self.broken => f64::NEG_INFINITY,
            Some(sqnr) => sqnr,
            // Nothing but noise, or nothing at all.
            None if self.distance.elements() > 0 => f64::NEG_INFINITY,
            None => f64::INFINITY,
        }
    }
}

fn outputs(model: &Model) -> Vec<ValueId> {
    model.graph(model.main()).outputs().iter().map(|info| info.value).collect()
}

/// Runs a model over batches: for each, its outputs in order.
fn run(
    model: &Model,
    batches: &[Batch],
    cx: &mut Cx<'_>,
    visit: &mut dyn FnMut(usize, usize, &Tensor),
) -> Result<(), PassError> {
    let wanted = outputs(model);
    let mut distinct = wanted.clone();
    distinct.sort_unstable();
    distinct.dedup();
    // A batch ends when all its wanted values were shown.
    let (mut batch, mut shown) = (0, 0);
    cx.oracle().observe(model, &distinct, &mut batches.iter().cloned().map(Ok), &mut |value, tensor| {
        for (index, _) in wanted.iter().enumerate().filter(|(_, wanted)| **wanted == value) {
            visit(batch, index, tensor);
        }
        shown += 1;
        if shown == distinct.len() {
            (batch, shown) = (batch + 1, 0);
        }
        Ok(())
    })?;
    Ok(())
}

fn reference(problem: &Problem<'_>, cx: &mut Cx<'_>) -> Result<Reference, PassError> {
    let most = problem.options.search_samples.max(1) as usize;
    let (_, data) = cx.calibration()?;
    let mut batches = Vec::new();
    let mut samples = 0;
    for batch in data.batches(problem.model).map_err(OracleError::from)? {
        let batch = batch.map_err(OracleError::from)?;
        let batch = if samples + batch.count > most { batch.truncated(most - samples) } else { batch };
        samples += batch.count;
        batches.push(batch);
        if samples >= most {
            break;
        }
    }
    let count = outputs(problem.model).len();
    let mut found: Vec<Vec<Option<Tensor>>> = vec![vec![None; count]; batches.len()];
    run(problem.model, &batches, cx, &mut |batch, index, tensor| {
        if let Some(slot) = found.get_mut(batch).and_then(|outputs| outputs.get_mut(index)) {
            *slot = Some(tensor.clone());
        }
    })?;
    let outputs = found.into_iter().map(|outputs| outputs.into_iter().flatten().collect()).collect();
    Ok(Reference { batches, outputs })
}

/// Trials so far and what they found.
struct Trials<'a, 'b> {
    problem: &'a Problem<'b>,
    reference: Reference,
    /// Units that the plan without anything kept makes 16 bits wide.
    low: Vec<bool>,
    made: u64,
}

impl Trials<'_, '_> {
    fn left(&self) -> bool {
        self.made < self.problem.options.search_trials
    }

    fn score(&mut self, plan: &Plan, cx: &mut Cx<'_>) -> Result<Score, PassError> {
        cx.progress("trying choices", self.made, self.problem.options.search_trials)?;
        self.made += 1;
        let model = emulate(self.problem, plan)?;
        let mut noises: Vec<Noise> = Vec::new();
        let reference = &self.reference;
        run(&model, &reference.batches, cx, &mut |batch, index, tensor| {
            noises.resize(noises.len().max(index + 1), Noise::default());
            if let Some(expected) = reference.outputs.get(batch).and_then(|outputs| outputs.get(index)) {
                noises[index].add(expected, tensor);
            }
        })?;
        Ok(Score { sqnr_db: noises.iter().map(Noise::sqnr_db).fold(f64::INFINITY, f64::min) })
    }

    fn keeps(&mut self, kept: &Kept, cx: &mut Cx<'_>) -> Result<bool, PassError> {
        let score = self.score(&self.problem.solve_frozen(kept, &self.low), cx)?;
        Ok(score.sqnr_db >= self.problem.options.min_sqnr_db)
    }
}

/// Converted nodes, those first that lose most: the difference of the signal-to-noise ratios of a node's
/// worst input and its output, on one sample.
fn ranked(
    problem: &Problem<'_>,
    plan: &Plan,
    reference: &Reference,
    cx: &mut Cx<'_>,
) -> Result<Vec<NodeId>, PassError> {
    let nodes = plan.converted(problem.flow);
    let Some(batch) = reference.batches.first() else { return Ok(nodes) };
    let batch = batch.clone().truncated(1);
    let model = problem.model;
    let is_main = |value: ValueId| model.value(value).graph() == model.main();
    let mut wanted: Vec<ValueId> = nodes
        .iter()
        .flat_map(|&id| model.node(id).inputs().iter().chain(model.node(id).outputs()).flatten().copied())
        .filter(|&value| {
            is_main(value)
                && problem.flow.sources.contains_key(&value)
                && problem.weights.get(value).is_none()
        })
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    let mut expected: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    cx.oracle().observe(model, &wanted, &mut std::iter::once(Ok(batch.clone())), &mut |value, tensor| {
        expected.insert(value, tensor.clone());
        Ok(())
    })?;
    let emulated = emulate(problem, plan)?;
    let mut noise: BTreeMap<ValueId, f64> = BTreeMap::new();
    cx.oracle().observe(&emulated, &wanted, &mut std::iter::once(Ok(batch)), &mut |value, tensor| {
        if let Some(expected) = expected.get(&value) {
            let source = problem.flow.sources.get(&value).copied();
            let rounded = source.filter(|&source| plan.is_low(source)).and_then(|_| {
                // The emulation rounds behind the value: what overflows there is this node's loss.
                Some(widen(&Rounded::of(tensor, problem.weights.low, false)?.tensor))
            });
            let mut found = Noise::default();
            found.add(expected, rounded.as_ref().unwrap_or(tensor));
            noise.insert(value, found.sqnr_db());
        }
        Ok(())
    })?;
    let at = |values: &[Option<ValueId>]| {
        let known = values.iter().flatten().filter_map(|value| noise.get(value));
        known.copied().fold(f64::INFINITY, f64::min).clamp(-400.0, 400.0)
    };
    let mut lost: Vec<(f64, NodeId)> =
        nodes.iter().map(|&id| (at(model.node(id).inputs()) - at(model.node(id).outputs()), id)).collect();
    // Equal ones in execution order, which the list is in.
    lost.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(lost.into_iter().map(|(_, id)| id).collect())
}

/// Finds the nodes to keep; none when the plan is good as it is.
pub(super) fn search(problem: &Problem<'_>, cx: &mut Cx<'_>) -> Result<Kept, PassError> {
    let target = problem.options.min_sqnr_db;
    let reference = reference(problem, cx)?;
    let plan = problem.solve(&Kept::new());
    let mut trials = Trials { problem, reference, low: plan.low.clone(), made: 0 };
    let first = trials.score(&plan, cx)?;
    let mut kept = Kept::new();
    let mut last = first;
    if first.sqnr_db < target {
        let (found, rounds_too_much) = mend(&mut trials, &plan, cx)?;
        kept = found;
        last = trials.score(&problem.solve(&kept), cx)?;
        cx.count("nodes kept in float32 by measurement", kept.len() as u64);
        let what =
            if first.sqnr_db == f64::NEG_INFINITY { "an output that was not finite" } else { "an output" };
        cx.warn(format!(
            "{what} below {target} dB was mended by leaving {} more {} in float32{}: {} dB before, {} dB now",
            kept.len(),
            if kept.len() == 1 { "node" } else { "nodes" },
            if rounds_too_much { ", their weights included" } else { "" },
            decibels(first.sqnr_db),
            decibels(last.sqnr_db)
        ));
    }
    cx.count("models measured", trials.made);
    if last.sqnr_db < target {
        cx.warn(format!(
            "the outputs keep {} dB against the float model, {target} were asked for (`min-sqnr-db`): {}",
            decibels(last.sqnr_db),
            if trials.left() {
                "the rest is lost outside the nodes that can be chosen"
            } else {
                "`search-trials` were used up"
            }
        ));
    }
    Ok(kept)
}

fn decibels(x: f64) -> String {
    if x == f64::NEG_INFINITY { "no".to_owned() } else { format!("{x:.1}") }
}

/// A small set of nodes that brings the outputs to the target, and whether they keep their weights too.
fn mend(trials: &mut Trials<'_, '_>, plan: &Plan, cx: &mut Cx<'_>) -> Result<(Kept, bool), PassError> {
    let order = ranked(trials.problem, plan, &trials.reference, cx)?;
    let reason = "measured: with it in 16 bits an output is not good enough";
    let keep = |nodes: &[NodeId], level: Level| -> Kept {
        nodes.iter().map(|&id| (id, (level, reason.to_owned()))).collect()
    };
    // All of them computing in float32: what is left is the rounding of weights.
    let level =
        if trials.keeps(&keep(&order, Level::Computes), cx)? { Level::Computes } else { Level::Whole };
    // The shortest beginning of the list that is enough.
    let (mut few, mut enough) = (0, order.len());
    while enough - few > 1 && trials.left() {
        let middle = few + (enough - few) / 2;
        if trials.keeps(&keep(&order[..middle], level), cx)? {
            enough = middle;
        } else {
            few = middle;
        }
    }
    // Giving back what is not needed: halves, quarters, ...
    let mut set: Vec<NodeId> = order[..enough].to_vec();
    let mut size = set.len().div_ceil(2);
    while size >= 1 && set.len() > 1 && trials.left() {
        let mut at = 0;
        while at < set.len() && set.len() > 1 && trials.left() {
            let end = (at + size).min(set.len());
            let rest: Vec<NodeId> = set[..at].iter().chain(&set[end..]).copied().collect();
            if trials.keeps(&keep(&rest, level), cx)? {
                set = rest;
            } else {
                at = end;
            }
        }
        if size == 1 {
            break;
        }
        size = size.div_ceil(2);
    }
    set.sort_unstable();
    Ok((keep(&set, level), level == Level::Whole))
}
