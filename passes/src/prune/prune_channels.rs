//! Channels are taken out of the graph, with everything that depends on them.

use std::collections::BTreeMap;

use optix_ir::infer::contradictions;
use optix_ir::{Model, NodeId};
use optix_linalg::Moments;
use optix_pipeline::{
    Batch, Cx, Family, Interface, Layer, Named, Numerics, Pass, PassError, Promises, Requires, Topology,
    naming,
};
use optix_training::gradient;
use schemars::JsonSchema;
use serde::Deserialize;

use super::channels::{
    self, Choice, Costs, Curve, Group, Held, MadeUp, Measure, Norm, Places, Reader, Sizes, by_readers,
    by_weights, counts,
};
use super::fitting::{fit, unusable};
use super::timed;
use crate::judge::Judge;
use crate::moments::{self, Read};
use crate::names::{check_patterns, not_excluded};
use crate::samples;
use crate::unroll::Unrolled;

/// What a channel is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Importance {
    /// `readers` with calibration data, `l2` without.
    #[default]
    Auto,
    /// The sum of its weights without their signs. Needs no data.
    L1,
    /// The sum of the squares of its weights. Needs no data.
    L2,
    /// What the layers that read it lose when their other inputs make up for it. Needs calibration data.
    Readers,
    /// What the model's outputs lose with it by their gradients (Fisher information): nothing makes up for it. Needs
    /// calibration data and operator set 13 (`convert-opset` raises it).
    Taylor,
}

/// Takes channels of layers out of the graph, and everything that depends on them: weights of the layers behind,
/// biases, normalizations, what is added or joined with them, heads of attention, hidden units. The file is really
/// smaller, and any engine runs it faster.
///
/// Which places along which axes stand or fall together is found by following every operator (a dependency graph; Fang
/// et al. 2023, DepGraph); where that cannot be proved, channels stay and the reason is listed. With calibration data a
/// channel is worth what the layers that read it lose when their other inputs make up for it as well as they can
/// (Kurtic et al. 2023, ZipLM); without, the norm of its weights; `importance` takes something else. At every turn the
/// group becomes smaller that loses the least for what it saves. Then layers are fitted, by least squares, to what they
/// gave before.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PruneChannels {
    /// Share of the multiplications and additions of layers that stays. 0.5 when no budget is given.
    pub flops: Option<f64>,
    /// Share of the numbers in weights that stays.
    pub parameters: Option<f64>,
    /// Share of the bytes of all constants that stays.
    pub bytes: Option<f64>,
    /// Share of the time of a sample that stays, measured on the engine that the model is meant for: every group is timed
    /// at up to six widths. Needs calibration data.
    pub latency: Option<f64>,
    /// Samples that are timed together for `latency`.
    pub latency_batch: usize,
    /// What a channel is worth.
    pub importance: Importance,
    /// As many elements as channels are left in multiples of: engines run vectors of 8 or 16 at a time.
    pub multiple: usize,
    /// Whether layers are fitted to what they gave before. Needs calibration data.
    pub recover: bool,
    /// Calibration samples that are looked at, taken evenly from the data.
    pub samples: usize,
    /// Leave the channels of these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for PruneChannels {
    fn default() -> Self {
        PruneChannels {
            flops: None,
            parameters: None,
            bytes: None,
            latency: None,
            latency_batch: 1,
            importance: Importance::Auto,
            multiple: 8,
            recover: true,
            samples: 256,
            exclude: Vec::new(),
        }
    }
}

impl Named for PruneChannels {
    const NAME: &'static str = "prune-channels";
    const FAMILY: Family = Family::Prune;
}

/// Samples that say what channels are worth; they do not need as many as fitting does.
const WORTH_SAMPLES: usize = 64;

/// Samples on which it is measured what outputs lose with a group.
const MEASURED: usize = 16;

impl PruneChannels {
    /// What must hold, and the share that may stay.
    fn budget(&self) -> Result<(Measure, f64), PassError> {
        let given = [
            (Measure::Operations, "flops", self.flops),
            (Measure::Parameters, "parameters", self.parameters),
            (Measure::Bytes, "bytes", self.bytes),
            (Measure::Operations, "latency", self.latency),
        ];
        let mut shares = given.into_iter().filter_map(|(measure, name, share)| Some((measure, name, share?)));
        let (measure, name, share) = shares.next().unwrap_or((Measure::Operations, "flops", 0.5));
        if shares.next().is_some() {
            let what = "give one of `flops`, `parameters`, `bytes` and `latency`, not several";
            return Err(PassError::Options(what.to_owned()));
        }
        if !(share > 0.0 && share <= 1.0) {
            let what = format!("`{name}` {share}: the share that stays, above 0 and up to 1");
            return Err(PassError::Options(what));
        }
        if self.multiple == 0 {
            return Err(PassError::Options("`multiple` 0: at least 1".to_owned()));
        }
        Ok((measure, share))
    }

    /// Groups that may become smaller, each with the numbers of channels that may stay.
    fn choices(&self, model: &Model, groups: &[Group]) -> Vec<Vec<usize>> {
        let of = |group: &Group| {
            let is_excluded = |node: NodeId| not_excluded(model, node, &self.exclude).is_err();
            if nodes(model, group).into_iter().any(is_excluded) {
                return Vec::new();
            }
            counts(group.channels.len(), each(model, group), self.multiple)
        };
        groups.iter().map(of).collect()
    }
}

/// Layers whose channels a group is.
fn nodes(model: &Model, group: &Group) -> Vec<NodeId> {
    let members = group.channels.first().map_or(&[][..], |channel| &channel.members);
    let is_own = |node: &NodeId| {
        channels::row_axis(model, *node).is_some_and(|axis| members.iter().any(|(along, _)| *along == axis))
    };
    model.nodes_of(model.main()).filter(is_own).collect()
}

/// Elements that a channel has along the layer that computes it.
fn each(model: &Model, group: &Group) -> usize {
    let axis = group.node.and_then(|node| channels::row_axis(model, node));
    let members = group.channels.first().map_or(&[][..], |channel| &channel.members);
    members.iter().filter(|(along, _)| Some(*along) == axis).count().max(1)
}

/// What the channels of every group that can become smaller are worth.
fn curves(
    pass: &PruneChannels,
    model: &Model,
    groups: &[Group],
    counts: &[Vec<usize>],
    cx: &mut Cx<'_>,
) -> Result<Vec<Curve>, PassError> {
    let norm = if pass.importance == Importance::L1 { Norm::L1 } else { Norm::L2 };
    let by_weights = |group: &Group| by_weights(model, group, norm);
    let is_of_weights = match pass.importance {
        Importance::Auto => !cx.has_calibration(),
        Importance::L1 | Importance::L2 => true,
        Importance::Readers | Importance::Taylor => false,
    };
    if is_of_weights {
        return Ok(groups.iter().map(by_weights).collect());
    }
    let readers = channels::readers(model, groups);
    if pass.importance == Importance::Taylor {
        let batches = samples::spread(model, pass.samples, cx)?;
        let samples = samples::single_few(&batches, pass.samples);
        let found = channels::by_gradients(model, groups, &readers, &samples, cx)?;
        // Weights tell which channels of a group matter, and not how much the group does: as much as the typical one.
        let mean = |curve: &Curve| curve.lost.last().map_or(0.0, |all| all / curve.order.len().max(1) as f64);
        let mut means: Vec<f64> = found.iter().flatten().map(mean).collect();
        means.sort_by(f64::total_cmp);
        let typical = means.get(means.len() / 2).copied().unwrap_or(1.0);
        let scaled = |group: &Group| {
            let mut curve = by_weights(group);
            let by = typical / mean(&curve).max(f64::MIN_POSITIVE);
            curve.lost.iter_mut().for_each(|lost| *lost *= by);
            curve
        };
        let pairs = groups.iter().zip(found);
        return Ok(pairs.map(|(group, own)| own.unwrap_or_else(|| scaled(group))).collect());
    }
    let batches = samples::spread(model, WORTH_SAMPLES.min(pass.samples), cx)?;
    let mut found: Vec<Option<(Curve, Vec<MadeUp>)>> = groups.iter().map(|_| None).collect();
    let wanted: Vec<usize> = (0..groups.len()).filter(|&place| !counts[place].is_empty()).collect();
    let bytes = |place: &usize| readers[*place].iter().map(|reader| moments::bytes(&reader.unrolled)).sum();
    for part in moments::in_parts(&wanted, moments::ROOM, usize::MAX, &bytes) {
        let all: Vec<&Reader> = part.iter().flat_map(|&place| &readers[place]).collect();
        let unrolled: Vec<&Unrolled> = all.iter().map(|reader| &reader.unrolled).collect();
        let mut known: BTreeMap<usize, usize> = BTreeMap::new();
        let read = moments::read(model, &unrolled, &batches, "measuring what channels are worth", cx)?;
        for (number, Read { layers, .. }) in read.iter().enumerate() {
            known.extend(layers.iter().map(|&place| (place, number)));
        }
        let mut start = 0;
        for &place in part {
            let own = &readers[place];
            let moments =
                |at: usize| known.get(&(start + at)).and_then(|&number| read[number].moments.as_deref());
            let pairs: Vec<(&Reader, Option<&[Moments]>)> =
                own.iter().enumerate().map(|(at, reader)| (reader, moments(at))).collect();
            let step = channels::step(each(model, &groups[place]), pass.multiple);
            found[place] = by_readers(&groups[place], &pairs, step, &counts[place]);
            start += own.len();
        }
    }
    let lost = at_outputs(model, &found, &readers, &batches, cx)?;
    let scaled = |(place, curve): (usize, Option<(Curve, Vec<MadeUp>)>)| {
        let Some((mut curve, _)) = curve else { return by_weights(&groups[place]) };
        let middle = curve.lost[groups[place].channels.len() - channels::middle(&counts[place])];
        if let Some(lost) = lost[place]
            && middle > 0.0
        {
            curve.lost.iter_mut().for_each(|own| *own *= lost / middle);
        }
        curve
    };
    Ok(found.into_iter().enumerate().map(scaled).collect())
}

/// What the model's outputs lose with the middle one of the widths that each group may have, the group's readers
/// making up for it: measured, since the same error weighs differently in different places.
fn at_outputs(
    model: &Model,
    found: &[Option<(Curve, Vec<MadeUp>)>],
    readers: &[Vec<Reader>],
    batches: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<f64>>, PassError> {
    let samples = samples::single_few(batches, MEASURED);
    if samples.is_empty() {
        return Ok(found.iter().map(|_| None).collect());
    }
    let judge = Judge::new(model, Vec::new(), &samples, cx)?;
    let layers = channels::layers(model, &|node| channels::all_channels(model, node));
    let mut lost = Vec::new();
    for (found, readers) in found.iter().zip(readers) {
        let Some((_, made_up)) = found.as_ref().filter(|(_, made_up)| !made_up.is_empty()) else {
            lost.push(None);
            continue;
        };
        let mut changed = model.clone();
        for MadeUp { reader, found } in made_up {
            if let Some(layer) = layers.iter().find(|layer| layer.node == readers[*reader].node) {
                channels::put(&mut changed, layer, &layer.with_place_for_shift(found));
            }
        }
        lost.push(Some(judge.errors(&changed, cx)?.typical()).filter(|lost| lost.is_finite()));
    }
    Ok(lost)
}

/// What became of each layer.
fn list_layers(before: &Model, after: &Model, cx: &mut Cx<'_>) {
    for id in before.nodes_of(before.main()) {
        let Some((Held { value, .. }, axis)) = channels::row_axis(before, id) else { continue };
        let shapes =
            (before.constant(value), after.node(id).input(1).and_then(|value| after.constant(value)));
        let (Some(was), Some(is)) = shapes else { continue };
        if was.shape() == is.shape() {
            continue;
        }
        let (node, op) = naming::node_and_op(before, id);
        let (rows, left) = (was.shape()[axis], is.shape()[axis]);
        let read = |tensor: &optix_ir::Tensor| tensor.len() / tensor.shape()[axis].max(1);
        let action = match (rows == left, read(was) == read(is)) {
            (false, _) => format!("{left} of {rows} channels"),
            (true, _) => format!("reads {:.0}%", 100.0 * read(is) as f64 / read(was).max(1) as f64),
        };
        let bytes = |tensor: &optix_ir::Tensor| tensor.bytes().len() as u64;
        cx.layer(Layer {
            node,
            op,
            action,
            bytes_before: bytes(was),
            bytes_after: bytes(is),
            ..Layer::default()
        });
    }
}

impl Pass for PruneChannels {
    fn requires(&self) -> Requires {
        let of_gradients = self.importance == Importance::Taylor;
        Requires {
            calibration: of_gradients || self.importance == Importance::Readers,
            inferred_types: true,
            opset: if of_gradients { gradient::OPERATOR_SET } else { 0 },
        }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let (measure, share) = self.budget()?;
        check_patterns(model, &self.exclude)?;
        let places = channels::relate(model);
        let (groups, kept) = channels::find(model, &places);
        for channels::Kept { node, lock } in kept {
            let at = match lock.node {
                Some(at) => format!("{}: {}", model.describe(at), lock.why),
                None => lock.why.to_owned(),
            };
            cx.skip(model, node, format!("its channels stay: {at}"));
        }
        if groups.is_empty() {
            return Err(PassError::NothingToDo(
                "no layer of this model has channels that can be taken out".to_owned(),
            ));
        }
        let mut counts = self.choices(model, &groups);
        if self.latency.is_some() {
            if !cx.is_replaying() && cx.deployment().is_none() {
                return Err(timed::missing());
            }
            if !cx.is_replaying() && !cx.has_calibration() {
                return Err(PassError::Options("`latency` needs calibration data to time with".to_owned()));
            }
            counts.iter_mut().for_each(|counts| *counts = timed::timed_counts(counts));
        }
        let sizes = channels::sizes(&groups, &places);
        let shaped = channels::fed(model, cx)?;
        if !cx.is_replaying() && shaped.graph(shaped.main()).inputs().iter().any(channels::has_unknown_sizes)
        {
            cx.note("sizes of inputs that are not known count as 1 in operations: calibration data would tell them");
        }
        let costs = Costs::of(model, &shaped, &places, &sizes);
        let gone: Vec<Vec<usize>> = cx.decide("channels", |cx| {
            let curves = curves(self, model, &groups, &counts, cx)?;
            let choices: Vec<Choice<'_>> = (groups.iter().zip(&curves).zip(&counts))
                .map(|((group, curve), counts)| Choice { group, curve, counts })
                .collect();
            if let Some(share) = self.latency {
                let build = |gone: &[Vec<usize>]| {
                    let mut smaller = model.clone();
                    take_out(&mut smaller, &places, &is_gone(&places, &groups, gone))?;
                    Ok(smaller)
                };
                return timed::select(model, &choices, (share, self.latency_batch.max(1)), &build, cx);
            }
            let all = costs.total(measure, &sizes);
            let left = channels::select(&choices, &costs, &sizes, measure, share * all).map_err(|least| {
                let least = least / all;
                let helps = if self.multiple > 1 { ", or lower `multiple`" } else { "" };
                PassError::Options(format!(
                    "the budget of {share} cannot be reached: with all channels gone that can go, {least:.3} is left. Give \
                     a larger one{helps}"
                ))
            })?;
            let of = |(choice, left): (&Choice<'_>, usize)| {
                let mut gone = choice.curve.order[..choice.group.channels.len() - left].to_vec();
                gone.sort_unstable();
                gone
            };
            Ok(choices.iter().zip(left).map(of).collect())
        })?;
        check(&gone, &groups)?;
        if !cx.may_edit("prune-channels") {
            return Ok(());
        }
        let original = model.clone();
        let is_gone = is_gone(&places, &groups, &gone);
        take_out(model, &places, &is_gone)?;
        say(&costs, &sizes, &groups, &gone, cx);
        let left = |node: NodeId| {
            let (held, axis) = channels::row_axis(&original, node)?;
            let axis = places.known(held)?.get(axis).copied().flatten()?;
            Some((0..axis.size).filter(|&index| !is_gone(places.root(axis.at(index)))).collect())
        };
        let layers = channels::layers(model, &left);
        if self.recover {
            fit(&original, model, &layers, self.samples, cx)?;
        }
        list_layers(&original, model, cx);
        Ok(())
    }
}

/// Whether decisions fit the groups.
fn check(gone: &[Vec<usize>], groups: &[Group]) -> Result<(), PassError> {
    let fits = |(gone, group): (&Vec<usize>, &Group)| {
        gone.len() < group.channels.len().max(1) && gone.iter().all(|&channel| channel < group.channels.len())
    };
    match gone.len() == groups.len() && gone.iter().zip(groups).all(fits) {
        true => Ok(()),
        false => Err(unusable("channels", "they are not those of this model".to_owned()).into()),
    }
}

/// Whether a place that stands for others goes.
fn is_gone(places: &Places, groups: &[Group], gone: &[Vec<usize>]) -> impl Fn(usize) -> bool + use<> {
    let mut is_gone = vec![false; places.len()];
    for (group, gone) in groups.iter().zip(gone) {
        for &channel in gone {
            if let Some(((held, axis), index)) = group.channels[channel].members.first()
                && let Some(axis) = places.known(*held).and_then(|axes| axes[*axis])
            {
                is_gone[places.root(axis.at(*index))] = true;
            }
        }
    }
    move |root| is_gone[root]
}

/// Takes places out.
fn take_out(model: &mut Model, places: &Places, is_gone: &dyn Fn(usize) -> bool) -> Result<(), PassError> {
    let known = contradictions(model, &optix_ir::infer::NoEvaluator).len();
    let internal = |what: String| PassError::Model { place: "the smaller graph".to_owned(), what };
    channels::cut(model, places, is_gone).map_err(internal)?;
    // Every shape was changed by what was found out beforehand: inference must come to the same.
    let found = contradictions(model, &optix_ir::infer::NoEvaluator);
    if found.len() > known
        && let Some(problem) = found.last()
    {
        return Err(internal(format!(
            "its shapes do not fit each other ({}): this is an error in optix, please report it; `exclude` may get you \
             past it",
            problem.describe(model)
        )));
    }
    Ok(())
}

/// Says what became smaller by how much.
fn say(costs: &Costs, before: &Sizes, groups: &[Group], gone: &[Vec<usize>], cx: &mut Cx<'_>) {
    let mut after = before.clone();
    for (group, gone) in groups.iter().zip(gone) {
        for (along, _) in gone.iter().flat_map(|&channel| &group.channels[channel].members) {
            if let Some(size) = after.get_mut(along) {
                *size -= 1;
            }
        }
    }
    let part = |measure: Measure| {
        let (was, is) = (costs.total(measure, before), costs.total(measure, &after));
        format!("{} of {} ({:.1}%)", channels::count(is), channels::count(was), 100.0 * is / was.max(1.0))
    };
    cx.note(format!(
        "left are {} operations of layers, {} numbers in weights and {} bytes of constants",
        part(Measure::Operations),
        part(Measure::Parameters),
        part(Measure::Bytes)
    ));
    let smaller = gone.iter().filter(|gone| !gone.is_empty()).count();
    cx.count("groups of channels", groups.len() as u64);
    cx.count("groups that became smaller", smaller as u64);
    cx.count("channels taken out", gone.iter().map(|gone| gone.len() as u64).sum());
    for (group, gone) in groups.iter().zip(gone).filter(|(_, gone)| !gone.is_empty()) {
        let all = group.channels.len();
        cx.note(format!(
            "`{}` and what goes with it: {} of {all} channels left",
            group.name,
            all - gone.len()
        ));
    }
}
