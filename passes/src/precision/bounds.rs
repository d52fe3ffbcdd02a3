//! How large values get: what follows from constants and operators alone, and what calibration data show.
//!
//! Interval arithmetic from the constants on (Moore 1966) bounds what is behind saturating operators, and the
//! absolute sums of weights bound products. Where nothing is known the interval is everything, which is
//! taken to be harmless; a value that was made with a constant beyond the 16-bit range (the -3.4e38 that masks
//! are made of) is not, and neither is what is computed from it until an operator saturates.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, Node, NodeId, Tensor, ValueId};
use optix_pipeline::{Cx, PassError};

use super::graph::{Flow, Source, is_float};
use super::operators::{self, Kind, Risk};
use super::weights::{Weights, constant, end, limits};

/// Greatest angle that a 16-bit float holds to about 0.004.
const GREATEST_ANGLE: f64 = 8.0;
/// Integers up to here are exact in float16; bfloat16 holds them up to 256.
const EXACT_INTEGER: [f64; 2] = [2048.0, 256.0];
/// Products of larger weights than this are not looked into: their sums bound too little to be worth it.
const LARGEST_SUMMED: usize = 1 << 24;

/// What is known of a value without data.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Interval {
    low: f64,
    high: f64,
    /// Made with a constant beyond the range.
    huge: bool,
}

impl Interval {
    const ALL: Interval = Interval { low: f64::NEG_INFINITY, high: f64::INFINITY, huge: false };

    fn new(low: f64, high: f64) -> Interval {
        if low.is_nan() || high.is_nan() { Interval::ALL } else { Interval { low, high, huge: false } }
    }

    fn magnitude(self) -> f64 {
        self.low.abs().max(self.high.abs())
    }

    fn union(self, other: Interval) -> Interval {
        Interval {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            huge: self.huge || other.huge,
        }
    }

    /// All results of an operation that is monotone in each operand; what is not a number is no bound.
    fn corners(self, other: Interval, apply: impl Fn(f64, f64) -> f64) -> Interval {
        let all =
            [(self.low, other.low), (self.low, other.high), (self.high, other.low), (self.high, other.high)];
        let results = all.map(|(a, b)| apply(a, b));
        if results.iter().any(|result| result.is_nan()) {
            return Interval::ALL;
        }
        let low = results.iter().copied().fold(f64::INFINITY, f64::min);
        Interval::new(low, results.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    }
}

/// What the calibration data showed of a value.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Greatest absolute value of a finite element.
    pub greatest: f64,
    /// Least and greatest element.
    pub range: Option<[f64; 2]>,
    /// Elements that were NaN or infinite.
    pub non_finite: u64,
    /// Greatest size of each dimension.
    shape: Vec<usize>,
}

/// What is known of all values.
pub(super) struct Bounds {
    intervals: Vec<Interval>,
    /// Nodes that compute angles.
    angles: Vec<bool>,
    seen: BTreeMap<ValueId, Seen>,
    low: DType,
    /// What values may exceed the observed ones by.
    headroom: f64,
    /// Reductions of more elements stay float32.
    max_depth: f64,
}

impl Bounds {
    /// Bounds from constants and operators.
    pub(super) fn of(model: &Model, flow: &Flow, weights: &Weights, headroom: f64, max_depth: f64) -> Bounds {
        let mut bounds = Bounds {
            intervals: vec![Interval::ALL; model.value_capacity()],
            angles: angles(model),
            seen: BTreeMap::new(),
            low: weights.low,
            headroom,
            max_depth,
        };
        for value in flow.constants() {
            if let Some(rounded) = weights.get(value) {
                let interval = Interval::new(rounded.range.0.into(), rounded.range.1.into());
                bounds.intervals[value.index()] =
                    Interval { huge: rounded.over > 0 && !rounded.clamped, ..interval };
            }
        }
        for id in model.walk() {
            for output in model.node(id).outputs().iter().flatten().copied() {
                if is_float(model, output) && flow.sources.get(&output) != Some(&Source::Constant) {
                    bounds.intervals[output.index()] = bounds.output(model, id);
                }
            }
        }
        bounds
    }

    /// Watches the values of the main graph over the calibration data.
    pub(super) fn observe(&mut self, model: &Model, flow: &Flow, cx: &mut Cx<'_>) -> Result<u64, PassError> {
        let wanted: Vec<ValueId> = flow
            .sources
            .iter()
            .filter(|(value, source)| {
                **source != Source::Constant && model.value(**value).graph() == model.main()
            })
            .map(|(&value, _)| value)
            .collect();
        let mut seen: BTreeMap<ValueId, Seen> = BTreeMap::new();
        let samples = cx.observe(model, &wanted, &mut |value, tensor| {
            seen.entry(value).or_default().take(tensor);
            Ok(())
        })?;
        for (value, seen) in &seen {
            if seen.non_finite > 0 {
                let name = model.value(*value).name();
                cx.warn(format!(
                    "`{name}`: {} values were NaN or infinite before anything was converted",
                    seen.non_finite
                ));
            }
        }
        self.seen = seen;
        Ok(samples)
    }

    /// What the data showed of a value.
    pub(super) fn seen(&self, value: ValueId) -> Option<&Seen> {
        self.seen.get(&value)
    }

    /// An upper bound of a value's magnitude; infinite where nothing is known.
    fn magnitude(&self, value: ValueId) -> f64 {
        let known = self.intervals[value.index()].magnitude();
        self.seen.get(&value).map_or(known, |seen| known.min(seen.greatest * self.headroom))
    }

    /// Sizes of a value, as far as known.
    fn shape(&self, model: &Model, value: ValueId) -> Option<Vec<Option<usize>>> {
        if let Some(seen) = self.seen.get(&value) {
            return Some(seen.shape.iter().copied().map(Some).collect());
        }
        let shape = model.value(value).ty.as_ref()?.shape()?;
        Some(shape.iter().map(optix_ir::Dim::fixed).collect())
    }

    /// Why a node had better stay float32, if so.
    pub(super) fn danger(&self, model: &Model, id: NodeId) -> Option<String> {
        let (most, least) = limits(self.low);
        let (ends, low) = (end(most), self.low);
        let (most, least) = (f64::from(most), f64::from(least));
        let node = model.node(id);
        let floats = |values: &[Option<ValueId>]| -> Vec<ValueId> {
            values.iter().flatten().copied().filter(|&value| is_float(model, value)).collect()
        };
        let inputs = floats(node.inputs());
        for &value in inputs.iter().chain(&floats(node.outputs())) {
            let name = model.value(value).name();
            let interval = self.intervals[value.index()];
            match self.seen.get(&value) {
                Some(seen) if seen.greatest * self.headroom > most => {
                    return Some(format!("`{name}` reaches {:.4e} and {low} ends at {ends}", seen.greatest));
                }
                Some(seen) if seen.greatest > 0.0 && seen.greatest < least * 1024.0 => {
                    return Some(format!(
                        "`{name}` is at most {:.1e}, beneath the precision of {low}",
                        seen.greatest
                    ));
                }
                Some(_) => {}
                None if interval.huge => {
                    return Some(format!("`{name}` is made with a constant beyond {low}'s {ends}"));
                }
                None if interval.low > most || interval.high < -most => {
                    return Some(format!("`{name}` is always beyond {low}'s {ends}"));
                }
                None => {}
            }
        }
        // What turns a zero into an infinity, or a small number into a large one.
        let steep = match node.op_type.as_str() {
            "Div" => node.input(1),
            "Reciprocal" | "Log" | "Sqrt" | "Pow" => node.input(0),
            _ => None,
        };
        if let Some(value) = steep.filter(|&value| constant(model, value).is_none()) {
            let interval = self.intervals[value.index()];
            if interval.low > 0.0 && interval.low < least {
                let name = model.value(value).name();
                return Some(format!(
                    "`{name}` may be as small as {:.1e}, which is zero in {low}",
                    interval.low
                ));
            }
        }
        if self.angles[id.index()] {
            let turns = floats(node.outputs()).iter().any(|&value| self.magnitude(value) > GREATEST_ANGLE);
            if turns {
                return Some(format!("a sine or cosine of it: {low} loses angles beyond {GREATEST_ANGLE}"));
            }
        }
        if node.is("Cast") {
            return self.cast_danger(model, node);
        }
        let risk = operators::risk(model, node)?;
        let input = *inputs.first()?;
        self.risk_danger(model, node, risk, input)
    }

    fn cast_danger(&self, model: &Model, node: &Node) -> Option<String> {
        let (input, output) = (node.input(0)?, node.output(0)?);
        let from = model.value(input).ty.as_ref()?.dtype()?;
        let to = model.value(output).ty.as_ref()?.dtype()?;
        if to.is_integer() {
            return Some(format!("it makes integers, which rounding to {} before would change", self.low));
        }
        let exact = EXACT_INTEGER[usize::from(self.low == DType::BF16)];
        let is_wide = from.is_integer() && from.bits() > 8;
        if is_wide && self.magnitude(output) > exact {
            return Some(format!("it reads integers, which are exact in {} up to {exact} only", self.low));
        }
        (from == DType::F64).then(|| "it reads double precision".to_owned())
    }

    fn risk_danger(&self, model: &Model, node: &Node, risk: Risk, input: ValueId) -> Option<String> {
        let (most, _) = limits(self.low);
        let (ends, low) = (end(most), self.low);
        let most = f64::from(most);
        let (magnitude, name) = (self.magnitude(input), model.value(input).name());
        let unknown = magnitude.is_infinite();
        let depth = self.shape(model, input).and_then(|shape| operators::depth(model, node, &shape));
        let deep = |counted: &str| match depth {
            None => Some(format!("how many {counted} it adds up is not known")),
            Some(depth) if depth > self.max_depth => {
                Some(format!("it adds up {depth} {counted}, more than {}", self.max_depth))
            }
            Some(_) => None,
        };
        let overflow = |sum: f64, what: &str| {
            if unknown {
                Some(format!("{what} may pass {low}'s {ends}: how large `{name}` gets is not known"))
            } else {
                (sum > most).then(|| format!("{what} may reach {sum:.1e}, beyond {low}'s {ends}"))
            }
        };
        let depth_or_one = depth.unwrap_or(1.0);
        match risk {
            Risk::Sum => deep("elements").or_else(|| overflow(depth_or_one * magnitude, "its sum")),
            Risk::SquareSum => deep("elements")
                .or_else(|| overflow(depth_or_one * magnitude * magnitude, "its sum of squares")),
            Risk::Square => overflow(magnitude * magnitude, "its square"),
            Risk::Exponential => overflow(magnitude.exp(), "its exponential"),
            Risk::Softmax => deep("elements"),
            Risk::Steep => Some(format!("{} makes large errors of small ones", node.op_type)),
            Risk::Angle => {
                (magnitude > GREATEST_ANGLE).then(|| format!("{low} loses angles beyond {GREATEST_ANGLE}"))
            }
            Risk::Order => {
                Some(format!("{} may choose otherwise among numbers that rounding makes equal", node.op_type))
            }
        }
    }

    /// The interval of a node's first output.
    fn output(&self, model: &Model, id: NodeId) -> Interval {
        let node = model.node(id);
        if !node.domain().is_empty() || node.subgraphs().next().is_some() {
            return Interval::ALL;
        }
        let at = |slot: usize| node.input(slot).map_or(Interval::ALL, |value| self.intervals[value.index()]);
        let floats: Vec<Interval> = node
            .inputs()
            .iter()
            .flatten()
            .filter(|&&value| is_float(model, value))
            .map(|value| self.intervals[value.index()])
            .collect();
        let all = || floats.iter().copied().reduce(Interval::union).unwrap_or(Interval::ALL);
        let shape = |slot: usize| node.input(slot).and_then(|value| self.shape(model, value));
        let found = match node.op_type.as_str() {
            "Sigmoid" | "HardSigmoid" | "Softmax" | "Hardmax" => Interval::new(0.0, 1.0),
            "Tanh" | "Erf" | "Softsign" | "Sin" | "Cos" | "Sign" => Interval::new(-1.0, 1.0),
            "Relu" => Interval::new(at(0).low.max(0.0), at(0).high.max(0.0)),
            "Sqrt" => Interval::new(at(0).low.max(0.0).sqrt(), at(0).high.max(0.0).sqrt()),
            "Exp" => Interval::new(at(0).low.exp(), at(0).high.exp()),
            "Neg" => Interval::new(-at(0).high, -at(0).low),
            "Abs" => {
                let least = if at(0).low <= 0.0 && at(0).high >= 0.0 {
                    0.0
                } else {
                    at(0).low.abs().min(at(0).high.abs())
                };
                Interval::new(least, at(0).magnitude())
            }
            "Clip" => {
                let limit = |name: &str, slot: usize, none: f64| match (node.float(name), node.input(slot)) {
                    (Some(limit), _) => f64::from(limit),
                    (None, Some(limit)) => {
                        constant(model, limit).and_then(|limit| limit.single()).unwrap_or(none)
                    }
                    (None, None) => none,
                };
                let (low, high) = (limit("min", 1, f64::NEG_INFINITY), limit("max", 2, f64::INFINITY));
                Interval::new(at(0).low.max(low).min(high), at(0).high.min(high).max(low))
            }
            "Add" | "Sum" if floats.len() == 2 => floats[0].corners(floats[1], |a, b| a + b),
            "Sub" => at(0).corners(at(1), |a, b| a - b),
            "Mul" if node.input(0) == node.input(1) => square(at(0)),
            "Mul" => at(0).corners(at(1), |a, b| if a == 0.0 || b == 0.0 { 0.0 } else { a * b }),
            "Div" if at(1).low > 0.0 || at(1).high < 0.0 => at(0).corners(at(1), |a, b| a / b),
            "Reciprocal" if at(0).low > 0.0 => Interval::new(1.0 / at(0).high, 1.0 / at(0).low),
            "Pow" if node.input(1).and_then(|e| model.constant(e)?.single()) == Some(2.0) => square(at(0)),
            "Max" => Interval::new(
                floats.iter().map(|one| one.low).fold(f64::NEG_INFINITY, f64::max),
                floats.iter().map(|one| one.high).fold(f64::NEG_INFINITY, f64::max),
            ),
            "Min" => Interval::new(
                floats.iter().map(|one| one.low).fold(f64::INFINITY, f64::min),
                floats.iter().map(|one| one.high).fold(f64::INFINITY, f64::min),
            ),
            "Mean" => all(),
            "ReduceMean" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" => at(0),
            "ReduceSum" | "ReduceL1" | "ReduceSumSquare" | "ReduceL2" => {
                let depth = shape(0).and_then(|shape| operators::depth(model, node, &shape));
                let one = match node.op_type.as_str() {
                    "ReduceSum" => at(0),
                    "ReduceL1" => Interval::new(0.0, at(0).magnitude()),
                    _ => square(at(0)),
                };
                let times =
                    |bound: f64| if bound == 0.0 { 0.0 } else { bound * depth.unwrap_or(f64::INFINITY) };
                let sum = Interval::new(times(one.low).min(one.low), times(one.high).max(one.high));
                match node.op_type.as_str() {
                    "ReduceL2" => Interval::new(sum.low.max(0.0).sqrt(), sum.high.sqrt()),
                    _ => sum,
                }
            }
            "MatMul" | "Gemm" | "Conv" => product(model, node, at(0)),
            "Cast" => match node.input(0).and_then(|input| model.value(input).ty.as_ref()?.dtype()) {
                Some(DType::Bool) => Interval::new(0.0, 1.0),
                Some(DType::F32) => at(0),
                Some(dtype) => match dtype.integer_range() {
                    Some((low, high)) if dtype.bits() <= 16 => Interval::new(low as f64, high as f64),
                    _ => Interval::ALL,
                },
                None => Interval::ALL,
            },
            "ConstantOfShape" => {
                let value = node.tensor("value").and_then(Tensor::single).unwrap_or(0.0);
                Interval::new(value, value)
            }
            "Pad" => all().union(Interval::new(0.0, 0.0)),
            "Gather" | "GatherElements" | "GatherND" | "Expand" | "Tile" | "Slice" | "Reshape"
            | "Compress" => at(0),
            _ if operators::kind(&node.op_type) == Kind::Moves && !floats.is_empty() => all(),
            _ => Interval::ALL,
        };
        Interval { huge: self.is_huge(node, &floats, found), ..found }
    }

    /// Whether what a node gives is made with something beyond the range.
    fn is_huge(&self, node: &Node, inputs: &[Interval], found: Interval) -> bool {
        let most = f64::from(limits(self.low).0);
        if found.magnitude() <= most {
            return false;
        }
        let spreads = match node.op_type.as_str() {
            // A divisor beyond the range makes small numbers.
            "Div" | "Pow" => inputs.first().is_some_and(|input| input.huge),
            "Reciprocal" | "Log" | "LogSoftmax" => false,
            "LayerNormalization"
            | "RMSNormalization"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "MeanVarianceNormalization"
            | "LpNormalization" => false,
            "ConstantOfShape" => true,
            _ => inputs.iter().any(|input| input.huge),
        };
        spreads && (found.magnitude().is_infinite() || found.magnitude() > most)
    }
}

fn square(x: Interval) -> Interval {
    let least = if x.low <= 0.0 && x.high >= 0.0 { 0.0 } else { x.low.abs().min(x.high.abs()) };
    Interval::new(least * least, x.magnitude() * x.magnitude())
}

/// A product with constant weights: no output is larger than the greatest input times the greatest sum of
/// the absolute weights of an output channel.
fn product(model: &Model, node: &Node, input: Interval) -> Interval {
    let bound = || -> Option<f64> {
        let magnitude = input.magnitude();
        if !magnitude.is_finite() {
            return None;
        }
        let tensor = constant(model, node.input(1)?)?;
        if tensor.len() > LARGEST_SUMMED || tensor.rank() < 2 {
            return None;
        }
        let floats = tensor.to_slice::<f32>().ok()?;
        let by_rows = node.is("Conv") || node.is("Gemm") && node.int("transB").unwrap_or(0) != 0;
        let rows = *tensor.shape().first()?;
        let columns = *tensor.shape().last()?;
        let greatest = if by_rows {
            let row = floats.len().checked_div(rows)?.max(1);
            floats
                .chunks(row)
                .map(|row| row.iter().map(|w| f64::from(w.abs())).sum::<f64>())
                .fold(0.0, f64::max)
        } else {
            if tensor.rank() > 2 {
                return None;
            }
            let mut sums = vec![0f64; columns];
            for row in floats.chunks(columns.max(1)) {
                sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(w.abs()));
            }
            sums.into_iter().fold(0.0, f64::max)
        };
        let bias = match node.input(2) {
            Some(bias) => {
                constant(model, bias)?.to_f64s().ok()?.into_iter().map(f64::abs).fold(0.0, f64::max)
            }
            None => 0.0,
        };
        let scale = |name: &str| f64::from(node.float(name).unwrap_or(1.0)).abs();
        Some(scale("alpha") * greatest * magnitude + scale("beta") * bias)
    };
    bound().map_or(Interval::ALL, |bound| Interval::new(-bound, bound))
}

/// The nodes on the way to the angle of a sine or cosine: what only moves, adds and multiplies.
fn angles(model: &Model) -> Vec<bool> {
    let mut angles = vec![false; model.node_capacity()];
    let mut pending: Vec<ValueId> = model
        .walk()
        .filter(|&id| model.node(id).is("Sin") || model.node(id).is("Cos"))
        .filter_map(|id| model.node(id).input(0))
        .collect();
    while let Some(value) = pending.pop() {
        let Some((id, _)) = model.value(value).producer() else { continue };
        let node = model.node(id);
        let passes = operators::kind(&node.op_type) == Kind::Moves
            || matches!(node.op_type.as_str(), "Mul" | "Add" | "Sub" | "Div" | "MatMul" | "Einsum");
        let saturates = matches!(node.op_type.as_str(), "Sin" | "Cos");
        if !passes
            || saturates
            || node.subgraphs().next().is_some()
            || std::mem::replace(&mut angles[id.index()], true)
        {
            continue;
        }
        pending.extend(node.inputs().iter().flatten().copied().filter(|&input| is_float(model, input)));
    }
    angles
}

impl Seen {
    fn take(&mut self, tensor: &Tensor) {
        self.shape.resize(tensor.rank().max(self.shape.len()), 0);
        for (most, &size) in self.shape.iter_mut().zip(tensor.shape()) {
            *most = (*most).max(size);
        }
        let Ok(elements) = tensor.to_slice::<f32>() else { return };
        let (mut min, mut max, mut finite) = (f32::INFINITY, f32::NEG_INFINITY, true);
        for &x in elements.iter() {
            finite &= x.is_finite();
            min = if x < min { x } else { min };
            max = if x > max { x } else { max };
        }
        if !finite {
            (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
            for &x in elements.iter() {
                if x.is_finite() {
                    (min, max) = (min.min(x), max.max(x));
                } else {
                    self.non_finite += 1;
                }
            }
        }
        if min <= max {
            let [low, high] = self.range.unwrap_or([f64::INFINITY, f64::NEG_INFINITY]);
            let range = [low.min(min.into()), high.max(max.into())];
            self.range = Some(range);
            self.greatest = range[0].abs().max(range[1].abs());
        }
    }
}
