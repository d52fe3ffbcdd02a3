//! Making a patch that was found good.

use super::plan::{Item, Placement, Plan};
use super::{Applied, NewNode, Operand, Patch};
use crate::edit::Position;
use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::{Node, Use};

pub(super) fn apply(patch: Patch, plan: Plan, model: &mut Model) -> Applied {
    let graph = plan.graph;
    let mut applied = Applied { label: patch.label.clone(), ..Applied::default() };
    // Function bodies have no initializers.
    let in_function = model.functions.iter().any(|function| model.is_within(graph, function.graph));
    for made in patch.values {
        let value = match made.constant {
            Some(tensor) if in_function => {
                let node = Node::new("Constant", []).with("value", tensor);
                model.add_node(graph, Position::Start, node, &made.hint).1
            }
            Some(tensor) => model.add_constant(graph, &made.hint, tensor),
            None => model.add_fresh_value(graph, &made.hint),
        };
        if made.ty.is_some() {
            model.value_mut(value).ty = made.ty;
        }
        applied.values.push(value);
    }
    let values = applied.values.clone();
    let resolve = |operand: Operand| match operand {
        Operand::Existing(value) => Some(value),
        Operand::New(made) => Some(values[made.index()]),
        Operand::Omitted => None,
    };

    // Existing uses first: the inputs of new nodes mean values as they were.
    let mut disconnected = Vec::new();
    let mut identities = Vec::new();
    for &(old, new, needs_identity) in &plan.replacements {
        let new = resolve(new).expect("a replacement is a value");
        disconnected.push(old);
        if model.value(new).ty.is_none() {
            model.value_mut(new).ty = model.value(old).ty.clone();
        }
        if model.value(old).is_input() {
            model.replace_node_uses(old, new);
        } else if needs_identity {
            model.replace_node_uses(old, new);
            let home = model.value(old).graph();
            let output = model.add_fresh_value(home, "identity");
            model.value_mut(output).ty = model.value(old).ty.clone();
            model.replace_value(old, output).expect("the value is new");
            identities.push((home, new, output));
        } else {
            model.replace_value(old, new).expect("checked when planned");
        }
    }
    for &(node, slot, new) in &patch.inputs {
        disconnected.extend(model.node(node).input(slot));
        model.set_input(node, slot, resolve(new));
    }
    for (node, name, value) in patch.attributes {
        match value {
            Some(value) => model.node_mut(node).set_attribute(&name, value),
            None => model.node_mut(node).remove_attribute(&name),
        }
    }

    let (mut position, order) = match plan.placement {
        Placement::At(position) => (position, None),
        Placement::Sorted(order) => (Position::End, Some(order)),
    };
    for new in patch.nodes {
        let id = insert(model, graph, position, new, &resolve);
        applied.nodes.push(id);
        position = Position::After(id);
    }
    for (home, new, output) in identities {
        let node = Node::new("Identity", [new]);
        let id = model.insert_node(home, Position::End, node, vec![Some(output)]);
        applied.nodes.push(id.expect("the output is new"));
    }

    for node in plan.dead {
        // Inner nodes are gone with the node that held them.
        let Some(held) = model.get_node(node) else { continue };
        let inputs: Vec<ValueId> = held.inputs().iter().copied().flatten().collect();
        model.remove_node(node).expect("found dead when planned");
        applied.removed.push(node);
        disconnected.extend(inputs);
    }
    for value in disconnected {
        remove_unused_constant(model, value, &mut applied.removed);
    }
    if let Some(order) = order {
        for item in order {
            let node = match item {
                Item::Old(node) => node,
                Item::New(number) => applied.nodes[number],
            };
            if model.get_node(node).is_some() {
                model.move_node(node, Position::End);
            }
        }
        // What the plan did not know of stays in front, where it was: new constants; or belongs behind.
        let identities = applied.nodes.iter().filter(|&&id| model.node(id).is("Identity"));
        for id in identities.copied().collect::<Vec<_>>() {
            if model.node(id).graph() == graph && !feeds_a_node(model, id) {
                model.move_node(id, Position::End);
            }
        }
    }
    applied
}

fn feeds_a_node(model: &Model, node: NodeId) -> bool {
    let uses = model.node(node).outputs().iter().flatten().flat_map(|&output| model.value(output).uses());
    uses.into_iter().any(|used| matches!(used, Use::Node(..)))
}

fn insert(
    model: &mut Model,
    graph: GraphId,
    position: Position,
    new: NewNode,
    resolve: &impl Fn(Operand) -> Option<ValueId>,
) -> NodeId {
    let mut node = new.node;
    node.inputs = new.inputs.into_iter().map(resolve).collect();
    let outputs = new.outputs.into_iter().map(|made| made.and_then(|made| resolve(made.into()))).collect();
    model.insert_node(graph, position, node, outputs).expect("the outputs are new")
}

/// Removes an initializer, or a `Constant` node, that nothing uses any more.
fn remove_unused_constant(model: &mut Model, value: ValueId, removed: &mut Vec<NodeId>) {
    let Some(held) = model.get_value(value) else { return };
    if !held.uses().is_empty() {
        return;
    }
    match held.producer() {
        Some((node, _)) if model.node(node).is("Constant") => {
            model.remove_node(node).expect("its only output is unused");
            removed.push(node);
        }
        None if held.initializer().is_some() => {
            model.remove_value(value);
        }
        _ => {}
    }
}
