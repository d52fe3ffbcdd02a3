//! Finding chains in a list of steps.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use optix_ir::Tensor;

use super::compile::{compile, piece};
use super::norm::{self, Norm};
use super::program::Program;
use crate::plan::Slot;
use crate::step::Step;

/// The constant in a slot, if there is one and nothing can replace it.
pub(crate) type Constants<'a> = &'a dyn Fn(Slot) -> Option<&'a Tensor>;

/// What a list of steps becomes: what to run in which order, and what to free when.
#[derive(Debug, Default)]
pub(crate) struct Route {
    pub items: Vec<Item>,
    /// By item: slots that nothing reads any more behind it.
    pub frees: Vec<Vec<Slot>>,
}

/// One thing to run.
#[derive(Debug)]
pub(crate) enum Item {
    /// A step, by number.
    Step(usize),
    /// A step and a chain that follows it.
    Group(Box<Group>),
}

impl Item {
    /// Numbers of its steps, ascending.
    pub(crate) fn members(&self) -> &[usize] {
        match self {
            Item::Step(number) => std::slice::from_ref(number),
            Item::Group(group) => &group.members,
        }
    }
}

/// A *root* with a chain of elementwise operators that is applied to its result.
#[derive(Debug)]
pub(crate) struct Group {
    /// Numbers of the steps, ascending; those of the root come first.
    pub members: Vec<usize>,
    pub root: Root,
    /// How many of the members are the chain.
    pub chain: usize,
    pub program: Program,
    /// Where the result goes.
    pub output: Slot,
    /// The step at which the chain has to be cut: an operand of it did not fit in some run.
    pub misfit: OnceLock<usize>,
}

/// What a chain follows.
#[derive(Debug)]
pub(crate) enum Root {
    /// The first member.
    Step,
    /// A normalization in place of several members.
    Norm(Norm),
}

/// Operators whose kernels apply a chain to their result.
const ROOTS: &[&str] = &[
    "Conv",
    "ConvTranspose",
    "MatMul",
    "Gemm",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "PRelu",
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Erf",
    "Gelu",
    "Exp",
    "Elu",
    "Sqrt",
    "Reciprocal",
    "Neg",
    "Abs",
    "Pow",
    "BatchNormalization",
    "LayerNormalization",
    "InstanceNormalization",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Softmax",
    "ReduceMean",
    "ReduceSum",
    "Resize",
    "DequantizeLinear",
    "Where",
];

/// Most operators of a chain: longer ones gain nothing more.
const LONGEST: usize = 24;

/// A list of steps to arrange.
pub(crate) struct Terrain<'a> {
    pub steps: &'a [Step],
    /// Which steps are needed; all when missing.
    pub active: Option<&'a [bool]>,
    /// Slots whose values are looked at from outside.
    pub kept: &'a dyn Fn(Slot) -> bool,
    /// Slots that may be freed at all.
    pub own: &'a dyn Fn(Slot) -> bool,
    pub constants: Constants<'a>,
    /// Steps that may not continue a chain: their operands made the result larger in an earlier run.
    pub cuts: &'a BTreeSet<usize>,
    pub slot_count: usize,
    /// Whether to fuse at all.
    pub fuse: bool,
}

/// Finds the chains and orders what is to be run. A group stands where its last member stood: all that it
/// reads is computed by then, and nothing before needs its result.
pub(crate) fn arrange(terrain: &Terrain<'_>) -> Route {
    let steps = terrain.steps;
    let is_active = |step: usize| terrain.active.is_none_or(|active| active[step]);
    let mut groups: Vec<Option<Group>> = (0..steps.len()).map(|_| None).collect();
    let mut taken = vec![false; steps.len()];
    if terrain.fuse {
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); terrain.slot_count];
        for (number, step) in steps.iter().enumerate().filter(|(number, _)| is_active(*number)) {
            for slot in step.reads() {
                if readers[slot].last() != Some(&number) {
                    readers[slot].push(number);
                }
            }
        }
        for root in (0..steps.len()).filter(|&root| is_active(root)) {
            if taken[root] {
                continue;
            }
            if let Some(group) = grow(root, terrain, &readers, &taken) {
                group.members.iter().for_each(|&member| taken[member] = true);
                let last = group.members[group.members.len() - 1];
                groups[last] = Some(group);
            }
        }
    }
    let mut items = Vec::new();
    for (number, group) in groups.into_iter().enumerate() {
        match group {
            Some(group) => items.push(Item::Group(Box::new(group))),
            None if is_active(number) && !taken[number] => items.push(Item::Step(number)),
            None => {}
        }
    }
    let frees = last_uses(&items, terrain);
    Route { items, frees }
}

/// For each item, the slots that no later one reads and that may be freed: its own unread results too.
fn last_uses(items: &[Item], terrain: &Terrain<'_>) -> Vec<Vec<Slot>> {
    let mut seen = vec![false; terrain.slot_count];
    let mut frees: Vec<Vec<Slot>> = vec![Vec::new(); items.len()];
    for (index, item) in items.iter().enumerate().rev() {
        let mut see = |slot: Slot| {
            if !std::mem::replace(&mut seen[slot], true) && (terrain.own)(slot) {
                frees[index].push(slot);
            }
        };
        for step in item.members().iter().map(|&number| &terrain.steps[number]) {
            let outputs = step.outputs.iter().flatten().map(|(slot, _)| *slot);
            step.reads().chain(outputs).for_each(&mut see);
        }
    }
    frees
}

pub(super) fn output(step: &Step) -> Option<Slot> {
    match step.outputs[..] {
        [Some((slot, _))] => Some(slot),
        _ => None,
    }
}

/// The longest chain behind a step, if there is one.
fn grow(root: usize, terrain: &Terrain<'_>, readers: &[Vec<usize>], taken: &[bool]) -> Option<Group> {
    let steps = terrain.steps;
    let first = &steps[root];
    let fits = first.node.domain().is_empty()
        && first.control.is_none()
        && first.has_fast_kernel()
        && ROOTS.contains(&first.node.op_type.as_str());
    if !fits {
        return None;
    }
    // Lengths at which the chain has one result that is all that others read.
    let mut ends = Vec::new();
    let norm = norm::find(root, terrain, readers);
    let (root, mut members) = match norm.filter(|(_, members)| members.iter().all(|&member| !taken[member])) {
        Some((norm, members)) => {
            ends.push(members.len());
            (Root::Norm(norm), members)
        }
        None => (Root::Step, vec![root]),
    };
    let before = members.len() - 1;
    let mut inside = vec![output(&steps[members[before]])?];
    let mut next: BTreeSet<usize> = readers[inside[0]].iter().copied().collect();
    while let Some(number) = next.pop_first() {
        let step = &steps[number];
        let fits =
            !taken[number] && !terrain.cuts.contains(&number) && piece(step, terrain.constants).is_some();
        let Some(result) = output(step).filter(|_| fits) else { continue };
        members.push(number);
        inside.push(result);
        next.extend(&readers[result]);
        let is_open =
            |slot: Slot| (terrain.kept)(slot) || readers[slot].iter().any(|reader| !members.contains(reader));
        if inside[..inside.len() - 1].iter().all(|&slot| !is_open(slot)) {
            ends.push(members.len());
        }
        if members.len() > LONGEST {
            break;
        }
    }
    let found = ends.into_iter().rev().find_map(|length| {
        let members = members[..length].to_vec();
        let program = compile(steps, &members[before..], terrain.constants)?;
        Some((length, members, program))
    });
    let (length, members, program) = found?;
    let (output, chain) = (inside[length - 1 - before], length - 1 - before);
    Some(Group { members, root, chain, program, output, misfit: OnceLock::new() })
}
