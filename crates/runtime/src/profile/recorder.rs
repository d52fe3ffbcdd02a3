//! The clock around the steps of a plan.
//!
//! The first recorded run keeps account of what the steps are and of the memory that their results take;
//! only the later ones are timed, so that the accounts cost no time. Nodes of bodies count inside the node
//! that owns them: only steps of the main graph have figures of their own.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Instant;

use optix_ir::Tensor;

use super::cost::{Shapes, flops};
use super::{Ran, StepFacts, StepTimes};
use crate::control::Values;
use crate::device::{Device, RtValue, synchronize};
use crate::fuse::Item;
use crate::plan::Slot;
use crate::step::Step;

/// What is recorded of a session's runs.
#[derive(Default)]
pub(crate) struct Recorder(RefCell<State>);

#[derive(Default)]
struct State {
    /// By item of the main graph's route.
    steps: Vec<StepTimes>,
    /// Whether the run in progress is the one that keeps the accounts.
    accounting: bool,
    started: Option<Instant>,
    entered: Option<Instant>,
    /// Steps that are being run, bodies within bodies.
    depth: usize,
    /// Operations of the nodes inside the step in progress.
    inner: Option<u64>,
    /// Most bytes alive at once.
    peak: u64,
}

impl Recorder {
    /// A run begins. The first one keeps the accounts.
    pub(crate) fn start(&self) {
        let mut state = self.0.borrow_mut();
        state.accounting = state.steps.is_empty();
        state.depth = 0;
        state.started = Some(Instant::now());
    }

    /// A step begins.
    pub(crate) fn enter(&self) {
        let mut state = self.0.borrow_mut();
        if state.depth == 0 {
            state.inner = Some(0);
            state.entered = Some(Instant::now());
        }
        state.depth += 1;
    }

    /// Item `number` of a route has computed its outputs. What a device still has to do is waited for: it
    /// is the item's.
    pub(crate) fn leave(
        &self,
        number: usize,
        item: &Item,
        steps: &[Step],
        values: &Values,
        outputs: &[(Slot, RtValue)],
        device: Option<&Device>,
    ) -> Result<(), String> {
        let mut state = self.0.borrow_mut();
        let state = &mut *state;
        state.depth = state.depth.saturating_sub(1);
        if state.accounting {
            let facts = facts(item, steps, values, outputs);
            let is_body = facts.ran == Ran::Body;
            if state.depth > 0 {
                // What bodies hold themselves is known by their own nodes.
                if !is_body {
                    state.inner = state.inner.zip(facts.flops).map(|(sum, own)| sum.saturating_add(own));
                }
                return Ok(());
            }
            let flops = if is_body { state.inner } else { facts.flops };
            let facts = StepFacts { flops, ..facts };
            state.steps.push(StepTimes { facts, seconds: Vec::new(), at: Vec::new() });
            return Ok(());
        }
        if state.depth > 0 {
            return Ok(());
        }
        if let Some(device) = device {
            synchronize(device)?;
        }
        let (Some(started), Some(entered)) = (state.started, state.entered) else { return Ok(()) };
        let seconds = entered.elapsed().as_secs_f64();
        if let Some(times) = state.steps.get_mut(number) {
            times.seconds.push(seconds);
            times.at.push(entered.duration_since(started).as_secs_f64());
        }
        Ok(())
    }

    /// The outputs of a step have joined the values of the run; nothing has been freed yet.
    pub(crate) fn account(&self, values: &Values) {
        let mut state = self.0.borrow_mut();
        if !state.accounting {
            return;
        }
        let mut seen = HashSet::new();
        let mut alive = 0u64;
        for value in values.iter().flatten() {
            // Views share memory with what they are views of.
            match value {
                RtValue::Host(tensor) if seen.insert(tensor.bytes().as_ptr() as usize) => {
                    alive += tensor.bytes().len() as u64;
                }
                RtValue::Device(_) => alive += bytes(value),
                _ => {}
            }
        }
        state.peak = state.peak.max(alive);
    }

    /// Whether the accounts are kept, and the next run is timed.
    pub(crate) fn has_accounts(&self) -> bool {
        !self.0.borrow().steps.is_empty()
    }

    /// What was recorded: the steps, and most bytes alive at once.
    pub(crate) fn into_times(self) -> (Vec<StepTimes>, u64) {
        let state = self.0.into_inner();
        (state.steps, state.peak)
    }
}

fn shape(value: &RtValue) -> Option<Vec<usize>> {
    if matches!(value, RtValue::Datum(_)) { None } else { Some(value.shape()) }
}

/// Type and shape, as `float[1, 8, 14, 14]`.
fn describe(value: &RtValue) -> String {
    match (value, value.host()) {
        (RtValue::Datum(datum), _) => datum.kind().to_owned(),
        (_, Some(tensor)) => format!("{}{:?}", tensor.dtype(), tensor.shape()),
        (_, None) => format!("float{:?}", value.shape()),
    }
}

fn bytes(value: &RtValue) -> u64 {
    match (value, value.host()) {
        (RtValue::Datum(_), _) => 0,
        (_, Some(tensor)) => tensor.bytes().len() as u64,
        (_, None) => 4 * value.shape().iter().product::<usize>() as u64,
    }
}

/// Whether a tensor is a piece of another one's memory.
fn is_view(output: &Tensor, input: &Tensor) -> bool {
    let (inner, outer) = (output.bytes().as_ptr_range(), input.bytes().as_ptr_range());
    !output.is_empty() && outer.start <= inner.start && inner.end <= outer.end
}

fn facts(item: &Item, steps: &[Step], values: &Values, outputs: &[(Slot, RtValue)]) -> StepFacts {
    let members: Vec<&Step> = item.members().iter().map(|&number| &steps[number]).collect();
    let root = members[0];
    let value = |slot: &Option<Slot>| slot.and_then(|slot| values[slot].as_ref());
    // Each value from outside once, those of the first node by their slots.
    let made: Vec<Slot> =
        members.iter().flat_map(|step| step.outputs.iter().flatten().map(|(slot, _)| *slot)).collect();
    let mut inputs: Vec<Option<Slot>> = root.inputs.clone();
    for slot in members.iter().skip(1).flat_map(|step| step.inputs.iter().flatten()) {
        if !made.contains(slot) && !inputs.contains(&Some(*slot)) {
            inputs.push(Some(*slot));
        }
    }
    let inputs: Vec<Option<&RtValue>> = inputs.iter().map(value).collect();
    let shapes_in: Vec<Option<Vec<usize>>> =
        root.inputs.iter().map(|slot| value(slot).and_then(shape)).collect();
    let shapes_out: Vec<Option<Vec<usize>>> = outputs.iter().map(|(_, value)| shape(value)).collect();
    // A chain does not change shapes: what goes into its members and comes out has that of the result.
    let of_member = |step: &&Step| {
        let is_root = std::ptr::eq(*step, root);
        let inputs = if is_root { &shapes_in[..] } else { &shapes_out[..] };
        let known = matches!(step.node.domain(), "" | "com.microsoft") && step.control.is_none();
        let shapes = Shapes { inputs, outputs: &shapes_out };
        flops(&step.node.op_type, Some(&step.node), &shapes).filter(|_| known)
    };
    let flops = members.iter().map(of_member).try_fold(0u64, |sum, own| Some(sum.saturating_add(own?)));
    let mut bytes_written: u64 = outputs.iter().map(|(_, value)| bytes(value)).sum();
    let views = outputs.iter().all(|(_, output)| {
        let of = |input: &&RtValue| input.host().zip(output.host()).is_some_and(|(i, o)| is_view(o, i));
        inputs.iter().flatten().any(of)
    });
    let mut bytes_read: u64 = inputs.iter().flatten().map(|value| bytes(value)).sum();
    let op = &root.node.op_type;
    if views {
        // Only looked at in another way.
        (bytes_read, bytes_written) = (0, 0);
    } else if matches!(op.as_str(), "Gather" | "GatherND" | "GatherElements" | "Slice") {
        // Of the table only what is taken.
        let rest: u64 = inputs.iter().skip(1).flatten().map(|value| bytes(value)).sum();
        bytes_read = rest.saturating_add(bytes_written);
    }
    let (ran, op_type) = match item {
        Item::Group(group) if group.is_norm() => (group.last(steps).ran(), "Normalization".to_owned()),
        _ => (root.ran(), op.clone()),
    };
    StepFacts {
        nodes: members.iter().map(|step| step.facts()).collect(),
        op_type,
        ran,
        inputs: inputs.iter().map(|value| value.map(describe)).collect(),
        outputs: outputs.iter().map(|(_, value)| describe(value)).collect(),
        flops,
        bytes_read,
        bytes_written,
    }
}
