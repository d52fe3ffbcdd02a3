//! Which nodes are 16 bits wide: what must, what may, and where the casts between come cheapest.

use std::collections::{BTreeMap, BTreeSet};

use optix_ir::{Model, NodeId, Use, ValueId};
use optix_pipeline::naming::node_and_op;

use super::ConvertPrecision;
use super::bounds::Bounds;
use super::cut::{Must, Network};
use super::graph::{Flow, Source, Unit};
use super::operators::{self, Kind};
use super::weights::Weights;
use crate::names::{matches_glob, not_excluded};

/// Bytes that storing a constant in 16 bits must save before it is worth a cast of its own.
pub(super) const WORTH_A_CAST: usize = 256;

/// How far a node that stays float32 stays so.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Level {
    /// It computes in float32; its weights are stored in 16 bits where they can be.
    Computes,
    /// Its weights stay float32 too.
    Whole,
}

/// Nodes that stay float32 whatever else holds, with how far and why.
pub(super) type Kept = BTreeMap<NodeId, (Level, String)>;

/// What reads a value asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Want {
    /// The 16-bit type.
    Low,
    /// float32; constants may have been rounded.
    Float,
    /// float32 as it was.
    Exact,
}

/// A complete choice.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Which units are 16 bits wide.
    pub low: Vec<bool>,
    /// Which units want their constants untouched.
    whole: Vec<bool>,
    /// Why units stay float32.
    pub reasons: Vec<Option<String>>,
}

/// What a choice is made of.
pub(super) struct Problem<'a> {
    pub model: &'a Model,
    pub flow: &'a Flow,
    pub weights: &'a Weights,
    pub bounds: &'a Bounds,
    /// Nodes that had better compute in float32, and why.
    pub fragile: &'a BTreeMap<NodeId, String>,
    pub options: &'a ConvertPrecision,
}

impl Problem<'_> {
    /// What each unit must be, with reasons, before the casts are counted. `kept` stay float32 anyway.
    fn musts(&self, kept: &Kept) -> (Vec<Must>, Vec<bool>, Vec<Option<String>>) {
        let count = self.flow.units.len();
        let (mut musts, mut whole, mut reasons) =
            (vec![Must::Either; count], vec![false; count], vec![None; count]);
        for (unit, what) in self.flow.units.iter().enumerate() {
            match *what {
                Unit::Interface => musts[unit] = Must::Low,
                Unit::Tie(id) => {
                    let opset = self.model.opset_of(id).unwrap_or(i64::MAX);
                    let op = &self.model.node(id).op_type;
                    if operators::admits(op, opset, self.weights.low).is_err() || self.options.weights_only {
                        musts[unit] = Must::Float;
                    }
                }
                Unit::Node(id) => match self.node(id, kept) {
                    Err((level, reason)) => {
                        musts[unit] = Must::Float;
                        whole[unit] = level == Level::Whole;
                        reasons[unit] = Some(reason);
                    }
                    Ok(()) if self.is_wanted(id) => musts[unit] = Must::Low,
                    Ok(()) => {}
                },
            }
        }
        // A branch or body that hands out a constant as it is.
        for value in self.flow.constants() {
            let fits =
                self.weights.get(value).is_some_and(|it| it.unfit("", self.weights.low, false).is_none());
            for &used in self.model.value(value).uses() {
                if let Some(unit) = self.flow.reader(self.model, used).filter(|_| !fits)
                    && matches!(self.flow.units[unit], Unit::Tie(_))
                {
                    musts[unit] = Must::Float;
                }
            }
        }
        (musts, whole, reasons)
    }

    /// Whether a node may be 16 bits wide; if not, why.
    fn node(&self, id: NodeId, kept: &Kept) -> Result<(), (Level, String)> {
        let node = self.model.node(id);
        let (name, _) = node_and_op(self.model, id);
        let options = self.options;
        not_excluded(self.model, id, &options.exclude).map_err(|reason| (Level::Whole, reason))?;
        if options.exclude_operators.contains(&node.op_type) {
            return Err((Level::Whole, format!("{} is excluded", node.op_type)));
        }
        if !options.include.is_empty() && !options.include.iter().any(|pattern| matches_glob(pattern, &name))
        {
            return Err((Level::Whole, "not in `include`".to_owned()));
        }
        if !options.include_operators.is_empty() && !options.include_operators.contains(&node.op_type) {
            return Err((Level::Whole, format!("{} is not in `include-operators`", node.op_type)));
        }
        if self.is_quantized(id) {
            let reason = "a quantizer beside it makes it an integer node in the engine";
            return Err((Level::Whole, reason.to_owned()));
        }
        if let Some((level, reason)) = kept.get(&id) {
            return Err((*level, reason.clone()));
        }
        if let Some(reason) = self.unfit(id) {
            // Its other constants may still be stored in 16 bits.
            return Err((Level::Computes, reason));
        }
        if options.weights_only {
            return Err((Level::Computes, "only weights are converted".to_owned()));
        }
        let opset = self.model.opset_of(id).unwrap_or(i64::MAX);
        operators::admits(&node.op_type, opset, self.weights.low)
            .map_err(|reason| (Level::Computes, reason))?;
        match self.fragile.get(&id) {
            Some(reason) => Err((Level::Computes, reason.clone())),
            None => Ok(()),
        }
    }

    /// Whether a node stands between quantizers: engines fuse the three.
    fn is_quantized(&self, id: NodeId) -> bool {
        let node = self.model.node(id);
        let is = |node: NodeId, op: &str| self.model.node(node).op_type == op;
        let mut read = node.inputs().iter().flatten().filter_map(|&value| self.model.value(value).producer());
        let mut made = node.outputs().iter().flatten().flat_map(|&value| self.model.value(value).uses());
        read.any(|(node, _)| is(node, "DequantizeLinear"))
            || made.any(|used| matches!(used, Use::Node(node, _) if is(*node, "QuantizeLinear")))
    }

    /// Why a constant that a node reads cannot be a 16-bit one.
    fn unfit(&self, id: NodeId) -> Option<String> {
        let node = self.model.node(id);
        let constants = node.inputs().iter().enumerate().find_map(|(slot, input)| {
            let value = (*input)?;
            self.weights.get(value)?.unfit(
                self.model.value(value).name(),
                self.weights.low,
                divides(node, slot),
            )
        });
        constants.or_else(|| {
            let value = node.tensor("value").filter(|_| node.is("ConstantOfShape"))?;
            let clamp = self.options.clamp_weights;
            super::weights::Rounded::of(value, self.weights.low, clamp)?.unfit(
                "value",
                self.weights.low,
                false,
            )
        })
    }

    /// Whether 16 bits are for this node: it computes, or has large constants of its own.
    fn is_wanted(&self, id: NodeId) -> bool {
        let node = self.model.node(id);
        operators::kind(&node.op_type) == Kind::Computes
            || node.inputs().iter().flatten().any(|value| {
                self.flow.sources.get(value) == Some(&Source::Constant)
                    && self
                        .weights
                        .get(*value)
                        .is_some_and(|constant| constant.tensor.bytes().len() > WORTH_A_CAST)
            })
    }

    /// The choice with the fewest casts.
    pub(super) fn solve(&self, kept: &Kept) -> Plan {
        self.choose(kept, &[])
    }

    /// The choice in which every unit that `low` names is 16 bits wide unless it must not be: what is to be
    /// measured is what `kept` does, not what the casts would draw along.
    pub(super) fn solve_frozen(&self, kept: &Kept, low: &[bool]) -> Plan {
        self.choose(kept, low)
    }

    fn choose(&self, kept: &Kept, frozen: &[bool]) -> Plan {
        let (mut musts, whole, mut reasons) = self.musts(kept);
        for (must, _) in musts.iter_mut().zip(frozen).filter(|(must, low)| **must == Must::Either && **low) {
            *must = Must::Low;
        }
        let mut network = Network::new(&musts);
        for (&value, &source) in &self.flow.sources {
            let producer = match source {
                Source::Constant => continue,
                Source::Fixed => None,
                Source::Unit(unit) => Some(unit),
            };
            let uses = self.model.value(value).uses();
            let readers: Vec<Option<usize>> =
                uses.iter().map(|&used| self.flow.reader(self.model, used)).collect();
            network.value(producer, &readers);
        }
        let low = network.solve();
        for (unit, reason) in reasons.iter_mut().enumerate() {
            if !low[unit] && reason.is_none() {
                *reason = Some("between float32 nodes: converting it would only add casts".to_owned());
            }
        }
        Plan { low, whole, reasons }
    }
}

impl Plan {
    /// Whether a value that is no constant is made in 16 bits.
    pub(super) fn is_low(&self, source: Source) -> bool {
        matches!(source, Source::Unit(unit) if self.low[unit])
    }

    /// What a use of a value asks for.
    pub(super) fn want(&self, model: &Model, flow: &Flow, used: Use) -> Want {
        match flow.reader(model, used) {
            None => Want::Exact,
            Some(unit) if self.low[unit] => Want::Low,
            Some(unit) if self.whole[unit] => Want::Exact,
            Some(_) => Want::Float,
        }
    }

    /// What becomes of a constant.
    pub(super) fn constant(&self, problem: &Problem<'_>, value: ValueId) -> Fate {
        let Some(rounded) = problem.weights.get(value) else { return Fate::Kept };
        let uses = problem.model.value(value).uses();
        let wants: BTreeSet<Want> =
            uses.iter().map(|&used| self.want(problem.model, problem.flow, used)).collect();
        let wants = |want| wants.contains(&want);
        let saves = rounded.tensor.bytes().len();
        let is_divisor = uses.iter().any(|used| match used {
            Use::Node(id, slot) => divides(problem.model.node(*id), *slot as usize),
            Use::Output(..) => false,
        });
        let fits = rounded.unfit("", problem.weights.low, is_divisor).is_none();
        let stored = saves > WORTH_A_CAST && fits && (!wants(Want::Exact) || rounded.exact);
        match (wants(Want::Low), wants(Want::Float) || wants(Want::Exact)) {
            (true, false) => Fate::Low,
            (_, true) if stored => Fate::Stored,
            // A cast at run time would not clamp.
            (true, true) if saves > WORTH_A_CAST && !rounded.clamped => Fate::Cast,
            (true, true) => Fate::Copied,
            (false, _) => Fate::Kept,
        }
    }

    /// Nodes that are 16 bits wide, in execution order.
    pub(super) fn converted(&self, flow: &Flow) -> Vec<NodeId> {
        let units = flow.units.iter().zip(&self.low);
        units
            .filter_map(|(unit, low)| if let (Unit::Node(id), true) = (unit, low) { Some(*id) } else { None })
            .collect()
    }
}

impl Plan {
    /// Nodes that stay float32 and get constants through casts, in execution order.
    pub(super) fn stored(&self, problem: &Problem<'_>) -> Vec<NodeId> {
        let is_stored = |value: &ValueId| {
            problem.flow.sources.get(value) == Some(&Source::Constant)
                && self.constant(problem, *value) == Fate::Stored
        };
        let units = problem.flow.units.iter().zip(&self.low);
        units
            .filter_map(|(unit, low)| match unit {
                Unit::Node(id) if !low => Some(*id),
                _ => None,
            })
            .filter(|&id| problem.model.node(id).inputs().iter().flatten().any(is_stored))
            .collect()
    }
}

/// What becomes of a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It stays as it is.
    Kept,
    /// It becomes a 16-bit one.
    Low,
    /// It becomes a 16-bit one; float32 readers get it through a cast.
    Stored,
    /// It stays; 16-bit readers get it through a cast.
    Cast,
    /// It stays; 16-bit readers get a copy.
    Copied,
}

/// Whether a node divides by what it reads there, or takes its logarithm: rounding to zero is no small error.
fn divides(node: &optix_ir::Node, slot: usize) -> bool {
    match node.op_type.as_str() {
        "Div" | "Mod" => slot == 1,
        "Reciprocal" | "Log" => slot == 0,
        _ => false,
    }
}
