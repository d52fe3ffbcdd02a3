//! The memory that a run will take, worked out before it.

use std::collections::HashMap;

use crate::fuse::{Item, Route};
use crate::kernels::views::VIEWS;
use crate::plan::Slot;
use crate::step::Step;

/// Most bytes that the feeds and computed values of a run on the host take at once. `size` gives the bytes
/// of the value in a slot. `None` where a size is not known, and with control flow, whose turns are not
/// known before the run.
pub(crate) fn peak(
    steps: &[Step],
    route: &Route,
    feeds: &[Slot],
    size: &dyn Fn(Slot) -> Option<u64>,
) -> Option<u64> {
    // By slot, the one whose memory its value lies in; by that one, its bytes and how many values share it.
    let mut owners: HashMap<Slot, Slot> = HashMap::new();
    let mut memory: HashMap<Slot, (u64, usize)> = HashMap::new();
    let mut alive = 0;
    for &slot in feeds {
        let bytes = size(slot)?;
        owners.insert(slot, slot);
        memory.insert(slot, (bytes, 1));
        alive += bytes;
    }
    let mut most = 0;
    for (item, frees) in route.items.iter().zip(&route.frees) {
        let outputs: Vec<Slot> = match item {
            Item::Step(number) => steps[*number].outputs.iter().flatten().map(|(slot, _)| *slot).collect(),
            Item::Group(group) => vec![group.output],
        };
        let first = &steps[item.members()[0]];
        if first.control.is_some() {
            return None;
        }
        let is_view = item.members().len() == 1
            && first.node.domain().is_empty()
            && VIEWS.contains(&first.node.op_type.as_str());
        let viewed = first.inputs.first().copied().flatten().filter(|_| is_view);
        for slot in outputs {
            let owner = viewed.and_then(|viewed| owners.get(&viewed).copied()).unwrap_or(slot);
            owners.insert(slot, owner);
            if let Some((_, holders)) = memory.get_mut(&owner) {
                *holders += 1;
            } else if viewed.is_none() {
                let bytes = size(slot)?;
                memory.insert(slot, (bytes, 1));
                alive += bytes;
            }
        }
        most = most.max(alive);
        for slot in frees {
            let Some(owner) = owners.remove(slot) else { continue };
            if let Some((bytes, holders)) = memory.get_mut(&owner) {
                *holders -= 1;
                if *holders == 0 {
                    alive -= *bytes;
                    memory.remove(&owner);
                }
            }
        }
    }
    Some(most)
}
