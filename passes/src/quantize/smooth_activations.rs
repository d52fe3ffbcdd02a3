//! Outliers of activations moved into the weights behind them.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, Node, NodeId, Position, Tensor, ValueId};
use optix_pipeline::{
    Cx, DecisionError, Family, Interface, Layer, Named, Numerics, OracleError, PackedFloats, Pass, PassError,
    Promises, Requires, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::divide::{self, Division, Layout};
use super::placement::float_weights;
use super::quantized::{constant_bytes, refuse_quantized};
use super::reservoir::{Channels, Reservoir};
use super::rewrite::drop_unused;
use super::smoothed::{Decision, Smoothing, Treatment};
use super::smoothing::{Found, Problem, Search, middle};
use super::split;
use super::types::ActivationType;
use crate::names::{check_patterns, not_excluded};
use crate::{numbered, samples};

/// Moves outlier channels of activations into the weights behind them, so that int8 loses less. The float
/// model computes the same as before (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438).
///
/// All MatMul and Gemm that read one activation are a group. Its channels are divided by
/// s = max|X|^alpha / max|W|^(1 - alpha), rows of the weights are multiplied by the same. The division goes
/// into the constants of what computes the activation: scale and bias of a normalization, weights and bias
/// of a layer, also behind Relu, Reshape, Transpose and a product with attention weights. Where others read the
/// activation too, or nothing before takes factors in, a Mul is inserted for the group, if it gains
/// enough.
///
/// A channel far beyond the others, such as those that GELU leaves for one token of a text, would only
/// spoil the weights instead. Where every operator between a layer and the group treats elements alone, such
/// channels get copies, each with its part of the weights (outlier channel splitting, Zhao et al. 2019,
/// arXiv 1901.09504).
///
/// alpha is searched for each group, by the error that int8 weights and activations would make at the
/// group's outputs on a sample of rows; leaving the group alone is always a candidate. Run it before
/// quantize-static, behind the clean-up passes.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// layers (float[N, 1] x) => (float[N, 2] y)
/// <float[3] c = {1, 1, 64}, float[3, 2] w = {1, 0.5, -0.25, 1, 0.015625, 0.0078125}>
/// {
///     h = Mul (x, c)
///     y = MatMul (h, w)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// layers (float[N, 1] x) => (float[N, 2] y)
/// <float[3] c_divided = {1, 1, 1}, float[3, 2] w_smoothed = {1, 0.5, -0.25, 1, 1, 0.5}>
/// {
///     h_divided = Mul (x, c_divided)
///     y = MatMul (h_divided, w_smoothed)
/// }
/// ```
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SmoothActivations {
    /// Values of alpha that are tried first, 0 to 1; values between them follow.
    pub alphas: Vec<f64>,
    /// Least gain in dB of the expected signal-to-noise ratio at the outputs of a group.
    pub least_gain: f64,
    /// Insert a Mul where nothing before the group takes the division in.
    pub insert_mul: bool,
    /// Least gain in dB that pays for a Mul.
    pub least_gain_mul: f64,
    /// Outputs that the products of a group must have together for a Mul to be cheap beside them.
    pub least_columns_mul: usize,
    /// Copies of outlier channels at most, as a share of the channels; 0 for none.
    pub most_copies: f64,
    /// Rows of each activation that the error is measured on.
    pub rows: usize,
    /// Whether weights will have one scale an output channel, as quantize-static is told.
    pub per_channel: bool,
    /// Integer type that activations will have, as quantize-static is told.
    pub activation_type: ActivationType,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for SmoothActivations {
    fn default() -> Self {
        SmoothActivations {
            // Near 1 every channel fills the range, and greater values than calibration had are cut in all.
            alphas: vec![0.4, 0.55, 0.7, 0.85],
            least_gain: 0.2,
            insert_mul: true,
            least_gain_mul: 1.0,
            least_columns_mul: 64,
            most_copies: 0.02,
            rows: 256,
            per_channel: true,
            activation_type: ActivationType::Uint8,
            exclude: Vec::new(),
        }
    }
}

/// Samples that channels are looked at on, at least and at most.
const SAMPLES: (usize, usize) = (32, 64);

/// Columns of each product that errors are measured on, about.
const COLUMNS: usize = 128;

impl Named for SmoothActivations {
    const NAME: &'static str = "smooth-activations";
    const FAMILY: Family = Family::Quantize;
}

/// A MatMul or Gemm of a group.
#[derive(Clone, Copy, Debug)]
struct Member {
    node: NodeId,
    /// Axis of the weights along which the activation's channels lie.
    depth_axis: usize,
}

/// Products with constant weights that read one activation.
#[derive(Clone, Debug)]
struct Group {
    value: ValueId,
    /// Axis of the channels, and their number.
    axis: usize,
    channels: usize,
    members: Vec<Member>,
}

/// A node as a member of the group of the value it reads, with the number of its channels.
fn member(model: &Model, id: NodeId) -> Result<(ValueId, usize, Member), String> {
    let node = model.node(id);
    let input = node.input(0).ok_or("its input is missing")?;
    if model.constant(input).is_some() {
        return Err("its first operand is constant".to_owned());
    }
    if model.value(input).ty.as_ref().and_then(|ty| ty.dtype()).is_some_and(|dtype| dtype != DType::F32) {
        return Err("its input is not float".to_owned());
    }
    if node.is("MatMul") && node.input(1).is_some_and(|right| model.constant(right).is_none()) {
        return Err("both operands are activations".to_owned());
    }
    let weights = float_weights(model, node.input(1))?;
    if weights.rank() != 2 {
        return Err("its weights are not a matrix".to_owned());
    }
    if node.int("transA").unwrap_or(0) != 0 {
        return Err("its activation is transposed (transA)".to_owned());
    }
    let depth_axis = usize::from(node.is("Gemm") && node.int("transB").unwrap_or(0) != 0);
    Ok((input, weights.shape()[depth_axis], Member { node: id, depth_axis }))
}

impl SmoothActivations {
    fn check(&self, model: &Model) -> Result<(), PassError> {
        if self.alphas.is_empty() || self.alphas.iter().any(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(PassError::Options("`alphas`: numbers from 0 to 1 are needed".to_owned()));
        }
        if !(1..=65_536).contains(&self.rows) {
            return Err(PassError::Options("`rows`: 1 to 65536".to_owned()));
        }
        if !(0.0..=1.0).contains(&self.most_copies) {
            return Err(PassError::Options("`most-copies`: a share from 0 to 1".to_owned()));
        }
        for (name, gain) in [("least-gain", self.least_gain), ("least-gain-mul", self.least_gain_mul)] {
            if !(gain >= 0.0 && gain.is_finite()) {
                return Err(PassError::Options(format!("`{name}`: a number of dB, 0 or more")));
            }
        }
        check_patterns(model, &self.exclude)
    }

    /// The groups of the main graph, in order of their first product.
    fn groups(&self, model: &Model, cx: &mut Cx<'_>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for id in model.walk() {
            let node = model.node(id);
            if !node.is("MatMul") && !node.is("Gemm") {
                continue;
            }
            let found = match not_excluded(model, id, &self.exclude) {
                Ok(()) if node.graph() != model.main() => Err("it is inside a subgraph".to_owned()),
                Ok(()) => member(model, id),
                Err(reason) => Err(reason),
            };
            let (value, channels, member) = match found {
                Ok(found) => found,
                Err(reason) => {
                    cx.skip(model, id, reason);
                    continue;
                }
            };
            let shape = divide::shape_of(model, value);
            let Some(axis) = shape.as_ref().and_then(|shape| shape.len().checked_sub(1)) else {
                cx.skip(model, id, "the rank of its input is not known");
                continue;
            };
            if shape.is_some_and(|shape| shape[axis].is_some_and(|size| size != channels)) {
                cx.skip(model, id, "its weights do not fit its input");
                continue;
            }
            match groups.iter_mut().find(|group| group.value == value) {
                Some(group) if group.channels == channels => group.members.push(member),
                Some(_) => cx.skip(model, id, "its weights do not fit its input"),
                None => groups.push(Group { value, axis, channels, members: vec![member] }),
            }
        }
        groups
    }

    /// One pass over a part of the calibration data: every group's channels and a sample of its rows.
    fn calibrate(
        &self,
        model: &Model,
        groups: &[Group],
        cx: &mut Cx<'_>,
    ) -> Result<Vec<(Channels, Reservoir)>, PassError> {
        let mut seen: Vec<(Channels, Reservoir)> = groups
            .iter()
            .map(|group| {
                let random = cx.rng(model.value(group.value).name());
                (Channels::new(group.channels), Reservoir::new(group.channels, self.rows, random))
            })
            .collect();
        let index: BTreeMap<ValueId, usize> =
            groups.iter().enumerate().map(|(at, group)| (group.value, at)).collect();
        let wanted: Vec<ValueId> = groups.iter().map(|group| group.value).collect();
        let batches = samples::quarter(model, SAMPLES, cx)?;
        let count: usize = batches.iter().map(|batch| batch.count).sum();
        let what = ("looking at channels", count);
        numbered::observe(what, model, &wanted, &mut batches.into_iter(), cx, &mut |_, value, tensor| {
            let elements = tensor.to_slice::<f32>().map_err(|error| {
                OracleError::Feeds(format!("value `{}`: {error}", model.value(value).name()))
            })?;
            if let Some((channels, reservoir)) = index.get(&value).and_then(|&at| seen.get_mut(at)) {
                channels.observe(&elements, 1);
                reservoir.observe(&elements);
            }
            Ok(())
        })?;
        cx.count("calibration samples", count as u64);
        Ok(seen)
    }

    /// The search of a group, on what calibration saw.
    fn prepare<'a>(
        &self,
        model: &Model,
        group: &Group,
        channels: &'a Channels,
        rows: &'a Reservoir,
    ) -> Result<Search<'a>, String> {
        if channels.non_finite() > 0 {
            return Err(format!("{} values of its input were NaN or infinite", channels.non_finite()));
        }
        if rows.kept() == 0 {
            return Err("its input was empty during calibration".to_owned());
        }
        let mut matrices = Vec::new();
        for member in &group.members {
            let tensor = float_weights(model, model.node(member.node).input(1))?;
            let floats = tensor.to_slice::<f32>().map_err(|error| error.to_string())?;
            let columns = tensor.shape()[1 - member.depth_axis];
            matrices.push((floats, columns, member.depth_axis));
        }
        // Errors of columns are alike: some tell what all would.
        let taken = |columns: usize| (0..columns).step_by(columns.div_ceil(COLUMNS).max(1));
        let (mut weights, mut peaks, mut norms) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..group.channels {
            let (mut peak, mut square) = (0f32, 0f64);
            for (floats, columns, depth_axis) in &matrices {
                let weight = |column: usize| match depth_axis {
                    0 => floats[row * columns + column],
                    _ => floats[column * group.channels + row],
                };
                for column in 0..*columns {
                    peak = peak.max(weight(column).abs());
                    square += f64::from(weight(column)).powi(2);
                }
                weights.extend(taken(*columns).map(weight));
            }
            peaks.push(peak);
            norms.push(square.sqrt() as f32);
        }
        let problem = Problem {
            rows: rows.rows(),
            low: &channels.low,
            high: &channels.high,
            weights,
            peaks,
            norms,
            widths: matrices.iter().map(|(_, columns, _)| taken(*columns).count()).collect(),
            dtype: self.activation_type.dtype(),
            per_channel: self.per_channel,
        };
        Ok(Search::new(problem))
    }

    /// Copies of a group's channels, where they gain enough over `plain`.
    fn copies(&self, model: &Model, group: &Group, search: &Search<'_>, plain: &Found) -> Option<Found> {
        let most = (group.channels as f64 * self.most_copies) as usize;
        let copies = search.copies(most)?;
        let readers = group.members.iter().map(|member| member.node).collect();
        split::trace(model, group.value, group.channels, &readers).ok()?;
        let around = plain.alpha.unwrap_or(0.75);
        let found = search.best(&[(around - 0.15).max(0.0), around], &copies)?;
        (found.decibels() - plain.decibels() >= self.least_gain_mul).then_some(found)
    }
}

/// How a group's activation can be divided by changing constants, or why it cannot.
fn fold(model: &Model, group: &Group) -> Result<Division, String> {
    let readers = divide::readers(model, group.value)
        .ok_or_else(|| format!("`{}` is an output of the model", model.value(group.value).name()))?;
    let of_group =
        |node: NodeId, slot: usize| slot == 0 && group.members.iter().any(|member| member.node == node);
    if let Some(&(other, _)) = readers.iter().find(|&&(node, slot)| !of_group(node, slot)) {
        return Err(format!("{} reads it too", model.describe(other)));
    }
    divide::trace(model, group.value, &Layout::along(group.axis, group.channels))
}

/// Puts a multiplication by the reciprocals between a value and a group.
fn insert(model: &mut Model, group: &Group, divisors: &[f32]) -> NodeId {
    let name = model.value(group.value).name().to_owned();
    let main = model.main();
    let reciprocals = divisors.iter().map(|divisor| 1.0 / divisor).collect();
    let reciprocals = Tensor::from_vec(vec![group.channels], reciprocals);
    let reciprocals = model.add_constant(main, &format!("{name}_smoothing"), reciprocals);
    let position = match model.value(group.value).producer() {
        Some((producer, _)) => Position::After(producer),
        None => Position::Start,
    };
    let node = Node::new("Mul", [group.value, reciprocals]).named(&format!("{name}_smooth"));
    let (node, smoothed) = model.add_node(main, position, node, &format!("{name}_smoothed"));
    model.value_mut(smoothed).ty = model.value(group.value).ty.clone();
    for member in &group.members {
        model.set_input(member.node, 0, Some(smoothed));
    }
    node
}

/// Makes the weights of a group anew, given the axis of its channels. Shared weights stay shared. `None`
/// when `make` gives none, and then nothing is changed.
fn rows_of(
    model: &mut Model,
    group: &Group,
    make: impl Fn(&Tensor, usize) -> Option<Tensor>,
    suffix: &str,
) -> Option<()> {
    let mut made: BTreeMap<(ValueId, usize), Tensor> = BTreeMap::new();
    for member in &group.members {
        let old = model.node(member.node).input(1)?;
        made.insert((old, member.depth_axis), make(model.constant(old)?, member.depth_axis)?);
    }
    let mut values: BTreeMap<(ValueId, usize), ValueId> = BTreeMap::new();
    for (key, tensor) in made {
        let hint = format!("{}_{suffix}", model.value(key.0).name());
        values.insert(key, model.add_constant(model.main(), &hint, tensor));
    }
    for member in &group.members {
        let old = model.node(member.node).input(1);
        if let Some(&new) = old.and_then(|old| values.get(&(old, member.depth_axis))) {
            model.set_input(member.node, 1, Some(new));
        }
    }
    drop_unused(model, values.into_keys().map(|(old, _)| old));
    Some(())
}

/// Greatest channel by the middle one.
fn spread(maxima: &[f32]) -> f32 {
    maxima.iter().copied().fold(0.0, f32::max) / middle(maxima).unwrap_or(f32::INFINITY)
}

/// Treats a group of a copy of the model: the new model, and the words for the ledger.
fn treated(model: &Model, group: &Group, treatment: &Treatment) -> Option<(Model, String)> {
    let (mut model, mut group, mut said) = (model.clone(), group.clone(), String::new());
    let Treatment { divisors: by, copies: numbers, widening } = treatment;
    let (mut divisors, mut factors) = (by.clone(), by.clone());
    if let Some(widening) = widening {
        // The copies stand behind the channels there are.
        let copies = numbers.iter().enumerate();
        let extra: Vec<usize> =
            copies.flat_map(|(channel, &copies)| std::iter::repeat_n(channel, copies as usize - 1)).collect();
        let split = numbers.iter().filter(|&&copies| copies > 1).count();
        said = format!("{split} channels in {} copies more; ", extra.len());
        let index: Vec<usize> = (0..group.channels).chain(extra).collect();
        widening.apply(&mut model, &index)?;
        divisors = index.iter().map(|&channel| by[channel]).collect();
        factors = index.iter().map(|&at| by[at] / numbers[at] as f32).collect();
        rows_of(&mut model, &group, |tensor, axis| split::gather(tensor, axis, &index), "split")?;
        group.channels = index.len();
    }
    // Of the graph as it is now: copies are channels like others.
    let place = match fold(&model, &group) {
        Ok(division) => {
            let end = division.end().map_or_else(String::new, |node| model.describe(node));
            division.apply(&mut model, &divisors).then(|| format!("folded into {end}"))?
        }
        Err(reason) => {
            insert(&mut model, &group, &divisors);
            format!("by a Mul, since {reason}")
        }
    };
    let layout = |axis: usize| Layout::along(axis, factors.len());
    rows_of(
        &mut model,
        &group,
        |tensor, axis| divide::scaled(tensor, 2, &layout(axis), &factors, true),
        "smoothed",
    )?;
    Some((model, format!("{said}{place}")))
}

impl Pass for SmoothActivations {
    fn requires(&self) -> Requires {
        // Data are asked for once it is known that there is something to smooth.
        Requires { calibration: false, inferred_types: true, opset: 7 }
    }

    fn promises(&self) -> Promises {
        // A deep network adds up the rounding of every layer.
        Promises { numerics: Numerics::Within(1e-3), interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        refuse_quantized(model)?;
        self.check(model)?;
        let mut groups = Vec::new();
        for group in self.groups(model, cx) {
            match self.hopeless(model, &group) {
                Some(reason) => leave(model, &group, &reason, cx),
                None => groups.push(group),
            }
        }
        // Statistics of activations do not do: they say nothing of rows. Without groups nothing is needed.
        if !groups.is_empty() && !cx.is_replaying() {
            cx.calibration()?;
        }
        let alphas: Vec<f32> = self.alphas.iter().map(|&alpha| alpha as f32).collect();
        // Filled when the first decision is made, and never when a lock is applied.
        let mut seen: Vec<(Channels, Reservoir)> = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            cx.progress("smoothing activations", index as u64, groups.len() as u64)?;
            let key = format!("smooth/{}", model.value(group.value).name());
            let decision = cx.decide(&key, |cx| {
                if seen.is_empty() {
                    seen = self.calibrate(model, &groups, cx)?;
                }
                let (channels, rows) = &seen[index];
                Ok(self.decided(model, group, (channels, rows), &alphas))
            })?;
            let smoothing = match decision {
                Decision::Left(reason) => {
                    leave(model, group, &reason, cx);
                    continue;
                }
                Decision::Smoothed(smoothing) => smoothing,
            };
            if !cx.may_edit("smooth-activation") {
                return Ok(());
            }
            let unusable = |what| DecisionError::Unusable { key, what };
            let readers = group.members.iter().map(|member| member.node).collect();
            let treatment = smoothing.treatment(model, group.value, group.channels, &readers);
            let treatment = treatment.map_err(unusable)?;
            let by_mul = fold(model, group).is_err();
            let Some((changed, place)) = treated(model, group, &treatment) else {
                leave(model, group, "a weight would not be finite any more", cx);
                continue;
            };
            cx.count("activations smoothed", 1);
            cx.count("of them by a Mul", u64::from(by_mul));
            cx.count("of them with copies of channels", u64::from(treatment.widening.is_some()));
            let [before, behind] = &smoothing.said;
            let reason = format!("{before}, {place}; {behind}");
            for member in &group.members {
                row((model, &changed), member.node, "smoothed", &reason, cx);
            }
            *model = changed;
        }
        Ok(())
    }
}

impl SmoothActivations {
    /// Why a group is not worth looking at: only a Mul could divide its activation, and would take about as long
    /// as its products, since it touches each element once, as they do for each of their outputs.
    fn hopeless(&self, model: &Model, group: &Group) -> Option<String> {
        let columns = |member: &Member| {
            let weights = model.node(member.node).input(1).and_then(|weights| model.constant(weights));
            weights.and_then(|weights| weights.shape().get(1 - member.depth_axis).copied()).unwrap_or(0)
        };
        let is_cheap = group.members.iter().map(columns).sum::<usize>() >= self.least_columns_mul;
        match fold(model, group) {
            Err(reason) if !self.insert_mul => Some(format!("insert-mul is off, and {reason}")),
            Err(reason) if !is_cheap => {
                Some(format!("a Mul would take as long as its products, and {reason}"))
            }
            _ => None,
        }
    }

    /// What is best for a group, on what calibration saw of it.
    fn decided(
        &self,
        model: &Model,
        group: &Group,
        (channels, rows): (&Channels, &Reservoir),
        alphas: &[f32],
    ) -> Decision {
        let search = match self.prepare(model, group, channels, rows) {
            Ok(search) => search,
            Err(reason) => return Decision::Left(reason),
        };
        let before = search.untouched();
        let smoothed = search.best(alphas, &before.copies);
        let plain = smoothed.filter(|found| found.decibels() >= before.decibels() + self.least_gain);
        let split = self.copies(model, group, &search, plain.as_ref().unwrap_or(&before));
        let spread = spread(&channels.maxima());
        let found = match (split, plain) {
            (Some(found), _) | (None, Some(found)) => found,
            (None, None) => {
                return Decision::Left(format!(
                    "smoothing gains less than {} dB of {:.1}; greatest channel {spread:.1} times the middle one",
                    self.least_gain,
                    before.decibels()
                ));
            }
        };
        let gain = found.decibels() - before.decibels();
        if gain < self.least_gain_mul
            && let Err(reason) = fold(model, group)
        {
            return Decision::Left(format!("{gain:.1} dB to gain, too little for a Mul, and {reason}"));
        }
        let behind = format!(
            "greatest channel {spread:.1} times the middle one; expected {:.1} -> {:.1} dB",
            before.decibels(),
            found.decibels()
        );
        let copies = found.copies.iter().copied().enumerate().filter(|&(_, copies)| copies > 1).collect();
        Decision::Smoothed(Smoothing {
            said: [format!("alpha {:.2}", found.alpha.unwrap_or(0.0)), behind],
            divisors: PackedFloats(found.divisors),
            copies,
        })
    }
}

/// A row of the ledger: a node before and after.
fn row((before, after): (&Model, &Model), id: NodeId, action: &str, reason: &str, cx: &mut Cx<'_>) {
    let (node, op) = optix_pipeline::naming::node_and_op(before, id);
    let weights = |model: &Model| model.node(id).input(1).map_or(0, |value| constant_bytes(model, value));
    cx.layer(Layer {
        node,
        op,
        action: action.to_owned(),
        reason: Some(reason.to_owned()),
        bytes_before: weights(before),
        bytes_after: weights(after),
        ..Layer::default()
    });
}

/// Records that a group stays as it is.
fn leave(model: &Model, group: &Group, reason: &str, cx: &mut Cx<'_>) {
    for member in &group.members {
        cx.skip(model, member.node, reason);
        row((model, model), member.node, "as it was", reason, cx);
    }
}
