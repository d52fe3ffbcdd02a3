//! Layers become two smaller ones.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{Model, Node, NodeId, Position, Tensor, ValueId};
use optix_pipeline::{
    Batch, Cx, Family, Interface, Layer as Row, Named, Numerics, OracleError, PackedFloats, Pass, PassError,
    Promises, Requires, Topology, naming,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::channels::{count, fed};
use super::fitting::unusable;
use super::low_rank::{self, Layer, Parts, Scheme, Way, Ways};
use crate::decided::named_at;
use crate::judge::Judge;
use crate::moments::{self, Read};
use crate::names::{check_patterns, not_excluded};
use crate::samples;
use crate::unroll::{Unrolled, Window};

/// Replaces layers by two smaller ones, one behind the other, where that loses least for what it saves: a MatMul, Gemm
/// or Conv by the same with fewer outputs and a product behind it, a Conv with a kernel of two axes also by columns
/// of the kernel and rows behind them.
///
/// The first layer's outputs are the principal axes of what the layer gives on calibration data, which no other layer of
/// that rank comes nearer to; rows of kernels are fitted by least squares. What the model's outputs lose is measured for
/// each layer, and ranks are given out by what they save for it. Where an engine that the model is meant for is at hand, a
/// layer that is not faster as two there stays whole.
///
/// Training afterwards (`distill`) brings back what is lost: the recipe `low-rank` has both.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Factorize {
    /// Share of the multiplications and additions of layers with weights that stays.
    pub flops: f64,
    /// Ranks are multiples of it: engines run vectors of 8 or 16 at a time.
    pub multiple: usize,
    /// Leave layers whole that are not faster as two on the engine that the model is meant for. Without such an engine
    /// operations alone count.
    pub only_faster: bool,
    /// Calibration samples that are looked at, taken evenly from the data.
    pub samples: usize,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for Factorize {
    fn default() -> Self {
        Factorize { flops: 0.7, multiple: 8, only_faster: true, samples: 64, exclude: Vec::new() }
    }
}

impl Named for Factorize {
    const NAME: &'static str = "factorize";
    const FAMILY: Family = Family::Prune;
}

/// Samples on which it is measured what outputs lose.
const MEASURED: usize = 16;

/// Choices that are measured on an engine at most, each without the layers that were not faster before.
const ROUNDS: usize = 4;

/// A layer as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    /// Its name, for people.
    node: String,
    /// Its place in the order of execution.
    place: usize,
    /// Whether its kernel is taken apart into columns and rows.
    is_spatial: bool,
    rank: usize,
    first: PackedFloats,
    second: PackedFloats,
    shift: PackedFloats,
    /// What its output loses, as a share of its energy.
    lost: f64,
}

/// A layer with its ways, and what outputs lose for what it loses.
struct Candidate<'a> {
    layer: &'a Layer,
    ways: Ways,
    weight: f64,
}

impl Factorize {
    fn check(&self, model: &Model) -> Result<(), PassError> {
        if !(self.flops > 0.0 && self.flops <= 1.0) {
            let what = format!("`flops` {}: the share that stays, above 0 and up to 1", self.flops);
            return Err(PassError::Options(what));
        }
        if self.multiple == 0 {
            return Err(PassError::Options("`multiple` 0: at least 1".to_owned()));
        }
        check_patterns(model, &self.exclude)
    }

    /// The ways of all layers, and what outputs lose by them.
    fn candidates<'a>(
        &self,
        model: &Model,
        layers: &'a [Layer],
        cx: &mut Cx<'_>,
    ) -> Result<Vec<Candidate<'a>>, PassError> {
        let batches = samples::spread(model, self.samples, cx)?;
        let mut found: Vec<Candidate<'a>> = Vec::new();
        for part in moments::parts(layers, &|layer| &layer.unrolled) {
            let unrolled: Vec<&Unrolled> = part.iter().map(|layer| &layer.unrolled).collect();
            for Read { layers: places, moments } in
                moments::read(model, &unrolled, &batches, "measuring what layers give", cx)?
            {
                let Some([moments]) = moments.as_deref() else { continue };
                for place in places {
                    let layer = &part[place];
                    if let Some(ways) = layer.ways(model, moments, self.multiple) {
                        found.push(Candidate { layer, ways, weight: 1.0 });
                    }
                }
            }
        }
        found.sort_by_key(|candidate| candidate.layer.node);
        let judged = samples::single_few(&batches, MEASURED);
        if judged.is_empty() {
            return Ok(found);
        }
        let judge = Judge::new(model, Vec::new(), &judged, cx)?;
        let total = found.len() as u64;
        for (at, candidate) in found.iter_mut().enumerate() {
            cx.progress("measuring what outputs lose", at as u64, total)?;
            let Some(way) = middle(&candidate.ways.all) else { continue };
            let Some(parts) = candidate.layer.parts(&candidate.ways, way.scheme, way.rank) else { continue };
            let mut changed = model.clone();
            put(&mut changed, candidate.layer, way.scheme, way.rank, &parts);
            let lost = judge.errors(&changed, cx)?.typical();
            if lost.is_finite() && way.lost > 0.0 {
                candidate.weight = lost / way.lost;
            }
        }
        Ok(found)
    }

    /// Which layers become two, and how.
    fn choose(
        &self,
        model: &Model,
        layers: &[Layer],
        total: f64,
        cx: &mut Cx<'_>,
    ) -> Result<Vec<Recorded>, PassError> {
        let candidates = self.candidates(model, layers, cx)?;
        let mut whole: BTreeSet<NodeId> = BTreeSet::new();
        let (mut rounds, mut dearest) = (0, f64::INFINITY);
        let (chosen, missed) = loop {
            let mut missed = None;
            let free: Vec<&Candidate<'_>> =
                candidates.iter().filter(|candidate| !whole.contains(&candidate.layer.node)).collect();
            let (mut chosen, left, steepest) = select(&free, total, self.flops, dearest);
            // What the layers that stay whole would have saved is not taken from the others at any price.
            dearest = dearest.min(steepest);
            if left > self.flops {
                if whole.is_empty() {
                    return Err(PassError::Options(format!(
                        "the budget of {} cannot be reached: with every layer at its least rank {left:.3} is left. Give a \
                         larger `flops`, or a smaller `multiple`",
                        self.flops
                    )));
                }
                missed = Some(left);
            }
            rounds += 1;
            if !self.only_faster || chosen.is_empty() {
                break (chosen, missed);
            }
            let slower = self.slower(model, &chosen, cx)?;
            if slower.is_empty() {
                break (chosen, missed);
            }
            whole.extend(&slower);
            if rounds == ROUNDS {
                chosen.retain(|(candidate, _)| !slower.contains(&candidate.layer.node));
                let saved =
                    |(candidate, way): &(&Candidate<'_>, Way)| candidate.layer.operations() - way.operations;
                let left = 1.0 - chosen.iter().map(saved).sum::<f64>() / total;
                break (chosen, Some(left).filter(|left| *left > self.flops));
            }
        };
        if let Some(least) = missed {
            cx.warn(format!(
                "{:.1}% of the operations are left, {:.1}% were asked for: what else is faster as two loses more for what it \
                 saves than was planned",
                least * 100.0,
                self.flops * 100.0
            ));
        }
        if !whole.is_empty() {
            let names: Vec<String> = whole.iter().map(|&node| naming::node_and_op(model, node).0).collect();
            cx.note(format!("not faster as two, and left whole: {}", names.join(", ")));
        }
        let order: BTreeMap<NodeId, usize> = model.walk().zip(0..).collect();
        let recorded = chosen.into_iter().filter_map(|(candidate, way)| {
            let Way { scheme, rank, lost, .. } = way;
            let Parts { first, second, shift } = candidate.layer.parts(&candidate.ways, scheme, rank)?;
            Some(Recorded {
                node: naming::node_and_op(model, candidate.layer.node).0,
                place: *order.get(&candidate.layer.node)?,
                is_spatial: scheme == Scheme::Spatial,
                rank,
                first: PackedFloats(first),
                second: PackedFloats(second),
                shift: PackedFloats(shift),
                lost,
            })
        });
        Ok(recorded.collect())
    }

    /// Layers that are not faster as two, on the engine that the model is meant for.
    fn slower(
        &self,
        model: &Model,
        chosen: &[(&Candidate<'_>, Way)],
        cx: &mut Cx<'_>,
    ) -> Result<Vec<NodeId>, PassError> {
        if cx.deployment().is_none() {
            return Ok(Vec::new());
        }
        let Some(Batch { feeds, .. }) = samples::first(model, 1, cx)? else { return Ok(Vec::new()) };
        let mut changed = model.clone();
        let mut pairs: Vec<(NodeId, NodeId)> = Vec::new();
        for (candidate, way) in chosen {
            if let Some(parts) = candidate.layer.parts(&candidate.ways, way.scheme, way.rank) {
                let before = put(&mut changed, candidate.layer, way.scheme, way.rank, &parts);
                pairs.push((candidate.layer.node, before));
            }
        }
        cx.progress("measuring layers", 0, 0)?;
        let Some(deployment) = cx.deployment() else { return Ok(Vec::new()) };
        let measured = deployment
            .kernels(model, &feeds)
            .and_then(|before| Ok((before, deployment.kernels(&changed, &feeds)?)));
        let (before, after) = match measured {
            Ok(measured) => measured,
            Err(OracleError::Interrupted) => return Err(PassError::Interrupted),
            Err(error) => {
                cx.warn(format!("nothing was measured on the engine the model is meant for: {error}"));
                return Ok(Vec::new());
            }
        };
        let of = |kernels: &[optix_pipeline::KernelTime], nodes: &[NodeId]| -> f64 {
            let own = kernels.iter().filter(|kernel| kernel.nodes.iter().any(|node| nodes.contains(node)));
            own.map(|kernel| kernel.seconds).sum()
        };
        let is_slower = |&(node, first): &(NodeId, NodeId)| {
            let (whole, two) = (of(&before, &[node]), of(&after, &[first, node]));
            whole > 0.0 && two >= whole
        };
        Ok(pairs.into_iter().filter(is_slower).map(|(node, _)| node).collect())
    }
}

/// The way in the middle of all, by what it loses.
fn middle(ways: &[Way]) -> Option<Way> {
    let mut sorted = ways.to_vec();
    sorted.sort_by(|a, b| a.lost.total_cmp(&b.lost));
    sorted.get(sorted.len() / 2).copied()
}

/// For every layer the way to take, so that no more than a share of the operations is left and as little as can be is
/// lost: along the lower hull of what each layer loses, the cheapest steps first. With them the share that is left, which is
/// more where all layers are at their least or what is left to save costs more than `dearest` an operation; and what the
/// dearest of the steps costs.
fn select<'c, 'l>(
    candidates: &[&'c Candidate<'l>],
    total: f64,
    share: f64,
    dearest: f64,
) -> (Vec<(&'c Candidate<'l>, Way)>, f64, f64) {
    let mut steps: Vec<(f64, usize, Way, f64)> = Vec::new();
    for (place, candidate) in candidates.iter().enumerate() {
        // From the whole layer to the least operations, each step the one that loses least for what it saves.
        let (mut operations, mut lost) = (candidate.layer.operations(), 0.0);
        loop {
            let slope = |way: &Way| (candidate.weight * way.lost - lost) / (operations - way.operations);
            let cheaper = candidate.ways.all.iter().filter(|way| way.operations < operations);
            let Some(next) = cheaper.min_by(|a, b| slope(a).total_cmp(&slope(b))) else { break };
            steps.push((slope(next).max(0.0), place, *next, operations - next.operations));
            (operations, lost) = (next.operations, candidate.weight * next.lost);
        }
    }
    // Steps of one layer have rising slopes, and stay in order.
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut left, mut steepest) = (total, 0.0);
    let mut taken: BTreeMap<usize, Way> = BTreeMap::new();
    for (slope, place, way, saved) in steps {
        if left <= share * total || slope > dearest {
            break;
        }
        (left, steepest) = (left - saved, slope);
        taken.insert(place, way);
    }
    (taken.into_iter().map(|(place, way)| (candidates[place], way)).collect(), left / total, steepest)
}

/// Makes two of a layer: the node stays as the second. Returns the first.
fn put(model: &mut Model, layer: &Layer, scheme: Scheme, rank: usize, parts: &Parts) -> NodeId {
    let node = layer.node;
    let graph = model.node(node).graph();
    let (name, _) = naming::node_and_op(model, node);
    let weights = model.node(node).input(1);
    let named = weights.map_or_else(|| name.clone(), |weights| model.value(weights).name().to_owned());
    let Unrolled { rows, depth, ref window, .. } = layer.unrolled;
    let [of_first, of_second] = layer.sizes(scheme);
    let mut replaced: Vec<ValueId> = weights.into_iter().collect();
    let constant = |model: &mut Model, what: &str, shape: Vec<usize>, elements: Vec<f32>| {
        model.add_constant(graph, &format!("{named}_{what}"), Tensor::from_vec(shape, elements))
    };
    let turned = |elements: &[f32], rows: usize, columns: usize| -> Vec<f32> {
        (0..rows * columns).map(|at| elements[at % rows * columns + at / rows]).collect()
    };
    let input = layer.unrolled.input;
    let (first, second) = match window {
        Window::Row => {
            let held = constant(model, "first", vec![depth, rank], turned(&parts.first, rank, depth));
            let is_turned = model.node(node).int("transB").unwrap_or(0) != 0;
            let second = match is_turned {
                true => constant(model, "second", vec![rows, rank], parts.second.clone()),
                false => constant(model, "second", vec![rank, rows], turned(&parts.second, rows, rank)),
            };
            (Node::new("MatMul", [input, held]), second)
        }
        Window::Kernel { sizes, strides, dilations, pads } => {
            let ints = |list: Vec<usize>| list.into_iter().map(|x| x as i64).collect::<Vec<i64>>();
            // Along which axes the first one reaches: all of them, or all but the last.
            let is_of_first = |axis: usize| scheme == Scheme::Product || axis + 1 < sizes.len();
            let pick = |list: &[usize], wanted: bool, other: usize| -> Vec<i64> {
                let of = |(axis, &x): (usize, &usize)| if is_of_first(axis) == wanted { x } else { other };
                ints(list.iter().enumerate().map(of).collect())
            };
            let begins: Vec<usize> = pads.iter().map(|pad| pad.0).collect();
            let ends: Vec<usize> = pads.iter().map(|pad| pad.1).collect();
            let shaped = |wanted: bool, channels: usize, inputs: usize| -> Vec<usize> {
                let kernel = pick(sizes, wanted, 1).into_iter().map(|x| x as usize);
                [channels, inputs].into_iter().chain(kernel).collect()
            };
            let kernel: usize = sizes.iter().product();
            let held = constant(model, "first", shaped(true, rank, depth / kernel), parts.first.clone());
            let second = constant(model, "second", shaped(false, rows, rank), parts.second.clone());
            let reach = |node: &mut Node, wanted: bool| {
                node.remove_attribute("auto_pad");
                node.set_attribute("kernel_shape", pick(sizes, wanted, 1));
                node.set_attribute("strides", pick(strides, wanted, 1));
                node.set_attribute("dilations", pick(dilations, wanted, 1));
                let pads = [pick(&begins, wanted, 0), pick(&ends, wanted, 0)].concat();
                node.set_attribute("pads", pads);
            };
            let mut first = Node::new("Conv", [input, held]);
            reach(&mut first, true);
            reach(model.node_mut(node), false);
            (first, second)
        }
    };
    let first = first.named(&format!("{name}_first"));
    debug_assert!(parts.first.len() == rank * of_first && parts.second.len() == rows * rank * of_second);
    let (before, between) = model.add_node(graph, Position::Before(node), first, &format!("{name}_between"));
    model.set_input(node, 0, Some(between));
    model.set_input(node, 1, Some(second));
    if !parts.shift.is_empty() {
        let old = model.node(node).input(2);
        let held = old.and_then(|old| model.constant(old));
        let shape = held.map_or_else(|| vec![rows], |held| held.shape().to_vec());
        let bias: Option<Vec<f32>> = held.and_then(|held| held.to_slice::<f32>().ok().map(Vec::from));
        let bias = bias.unwrap_or_else(|| vec![0.0; rows]);
        let sums = bias.iter().zip(&parts.shift).map(|(bias, by)| bias + by).collect();
        let new = constant(model, "bias", shape, sums);
        model.set_input(node, 2, Some(new));
        replaced.extend(old);
    }
    crate::quantize::drop_unused(model, replaced);
    before
}

impl Pass for Factorize {
    fn requires(&self) -> Requires {
        Requires { calibration: true, inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        self.check(model)?;
        let shaped = fed(model, cx)?;
        let order: Vec<NodeId> = model.walk().collect();
        let (mut layers, mut total) = (Vec::new(), 0.0);
        for &node in &order {
            let is_layer = matches!(model.node(node).op_type.as_str(), "Conv" | "Gemm" | "MatMul");
            if !is_layer || !model.node(node).domain().is_empty() {
                continue;
            }
            let made = match model.node(node).graph() == model.main() {
                true => {
                    not_excluded(model, node, &self.exclude).and_then(|()| Layer::of(model, &shaped, node))
                }
                false => Err("it lies in a body of control flow, where nothing is observed".to_owned()),
            };
            total += low_rank::operations(&shaped, node).unwrap_or(0.0);
            match made {
                Ok(layer) => layers.push(layer),
                Err(reason) => cx.skip(model, node, reason),
            }
        }
        if layers.is_empty() {
            return Err(PassError::NothingToDo("no layer of this model can become two".to_owned()));
        }
        let found = cx.decide("ranks", |cx| self.choose(model, &layers, total, cx))?;
        let by_node: BTreeMap<NodeId, &Layer> = layers.iter().map(|layer| (layer.node, layer)).collect();
        let mut saved = 0.0;
        for Recorded { node, place, is_spatial, rank, first, second, shift, lost } in found {
            let known = named_at(model, &order, place, &node).and_then(|id| by_node.get(&id));
            let scheme = if is_spatial { Scheme::Spatial } else { Scheme::Product };
            let parts = Parts { first: first.0, second: second.0, shift: shift.0 };
            let Some(layer) = known.filter(|layer| fits(layer, scheme, rank, &parts)) else {
                let what = format!("node {place} of the model is not `{node}`, or has other weights");
                return Err(unusable("ranks", what).into());
            };
            if !cx.may_edit("factorize-layer") {
                return Ok(());
            }
            let (name, op) = naming::node_and_op(model, layer.node);
            let bytes = 4 * (layer.unrolled.rows * layer.unrolled.depth) as u64;
            put(model, layer, scheme, rank, &parts);
            let how = if is_spatial { "columns and rows" } else { "two products" };
            cx.layer(Row {
                node: name,
                op,
                action: format!("{how}, rank {rank} of {}", layer.unrolled.rows),
                reason: Some(format!("{:.2}% of what it gives is lost", lost * 100.0)),
                bytes_before: bytes,
                bytes_after: 4 * (parts.first.len() + parts.second.len()) as u64,
                ..Row::default()
            });
            cx.count("layers that became two", 1);
            saved += layer.operations() - layer.cost(scheme, rank);
        }
        if total > 0.0 {
            cx.note(format!(
                "left are {} of {} operations of layers with weights ({:.1}%)",
                count(total - saved),
                count(total),
                100.0 * (1.0 - saved / total)
            ));
        }
        Ok(())
    }
}

/// Whether numbers, which may be those of a lock, are those of a layer's two.
fn fits(layer: &Layer, scheme: Scheme, rank: usize, parts: &Parts) -> bool {
    let [first, second] = layer.sizes(scheme);
    let rows = layer.unrolled.rows;
    let shift = if layer.has_bias { rows } else { 0 };
    rank > 0
        && rank <= rows.max(layer.unrolled.depth)
        && layer.allows(scheme)
        && (parts.first.len(), parts.second.len(), parts.shift.len())
            == (rank * first, rows * rank * second, shift)
        && parts.first.iter().chain(&parts.second).chain(&parts.shift).all(|x| x.is_finite())
}
