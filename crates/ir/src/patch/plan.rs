//! The checks of a patch, and what follows from them.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

use super::{NewValue, Operand, Patch, PatchError};
use crate::edit::Position;
use crate::ids::{GraphId, NodeId, ValueId};
use crate::model::Model;
use crate::node::Use;
use crate::types::Type;

/// A patch found good, and how to make it.
pub(super) struct Plan {
    /// Where new nodes and constants go.
    pub(super) graph: GraphId,
    pub(super) placement: Placement,
    /// The replacements, each with whether its graph outputs need an `Identity`.
    pub(super) replacements: Vec<(ValueId, Operand, bool)>,
    /// Nodes to remove, users before what they use.
    pub(super) dead: Vec<NodeId>,
}

/// Where the new nodes go in the order of their graph.
pub(super) enum Placement {
    /// All together.
    At(Position),
    /// The graph has to be sorted anew, into this order.
    Sorted(Vec<Item>),
}

/// A node of the order to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Item {
    Old(NodeId),
    /// Number of a new node in the patch.
    New(usize),
}

pub(super) fn plan(patch: &Patch, model: &Model) -> Result<Plan, PatchError> {
    let mut planner = Planner::new(patch, model)?;
    planner.check_connections()?;
    planner.find_dead()?;
    let replacements = planner.check_interface()?;
    let placement = planner.place()?;
    Ok(Plan { graph: planner.graph, placement, replacements, dead: planner.removal_order() })
}

struct Planner<'a> {
    patch: &'a Patch,
    model: &'a Model,
    graph: GraphId,
    replaced: HashMap<ValueId, Operand>,
    /// Inputs the patch connects itself.
    overridden: HashMap<(NodeId, usize), Operand>,
    dead: BTreeSet<NodeId>,
    /// The new node that computes a new value; constants have none.
    maker: HashMap<NewValue, usize>,
    used_by_new: HashSet<ValueId>,
}

impl<'a> Planner<'a> {
    fn new(patch: &'a Patch, model: &'a Model) -> Result<Self, PatchError> {
        let stale = |what: String| PatchError::Stale { label: patch.label.clone(), what };
        let value_is_there = |value: ValueId| match model.get_value(value) {
            Some(_) => Ok(()),
            None => Err(stale(format!("value {value:?}"))),
        };
        let operand_is_there = |operand: Operand| match operand {
            Operand::Existing(value) => value_is_there(value),
            Operand::New(made) if made.index() >= patch.values.len() => {
                Err(stale("a value made by another patch".into()))
            }
            _ => Ok(()),
        };
        for node in &patch.nodes {
            node.inputs.iter().copied().try_for_each(operand_is_there)?;
        }
        for &(old, new) in &patch.replacements {
            value_is_there(old)?;
            operand_is_there(new)?;
        }
        for &(_, _, new) in &patch.inputs {
            operand_is_there(new)?;
        }
        let nodes = patch.inputs.iter().map(|entry| entry.0);
        let nodes = nodes.chain(patch.attributes.iter().map(|entry| entry.0));
        for node in nodes.chain(patch.removals.iter().map(|entry| entry.0)) {
            if model.get_node(node).is_none() {
                return Err(stale(format!("node {node:?}")));
            }
        }
        let graph = patch
            .graph
            .or_else(|| patch.replacements.first().map(|&(old, _)| model.value(old).graph()))
            .or_else(|| patch.inputs.first().map(|&(node, _, _)| model.node(node).graph()))
            .unwrap_or(model.main());
        if model.graphs.get(graph).is_none() {
            return Err(stale(format!("graph {graph:?}")));
        }
        let made = patch.nodes.iter().enumerate();
        let maker =
            made.flat_map(|(index, node)| node.outputs.iter().flatten().map(move |&value| (value, index)));
        let used = patch.nodes.iter().flat_map(|node| &node.inputs).filter_map(|operand| match operand {
            Operand::Existing(value) => Some(*value),
            _ => None,
        });
        Ok(Planner {
            patch,
            model,
            graph,
            replaced: HashMap::new(),
            overridden: patch.inputs.iter().map(|&(node, slot, new)| ((node, slot), new)).collect(),
            dead: BTreeSet::new(),
            maker: maker.collect(),
            used_by_new: used.collect(),
        })
    }

    fn inconsistent(&self, what: String) -> PatchError {
        PatchError::Inconsistent { label: self.patch.label.clone(), what }
    }

    fn name(&self, operand: Operand) -> String {
        match operand {
            Operand::Existing(value) => self.model.value(value).name().to_owned(),
            Operand::New(made) => self.patch.values[made.index()].hint.clone(),
            Operand::Omitted => "nothing".into(),
        }
    }

    fn ty(&self, operand: Operand) -> Option<&'a Type> {
        match operand {
            Operand::Existing(value) => self.model.value(value).ty.as_ref(),
            Operand::New(made) => self.patch.values[made.index()].ty.as_ref(),
            Operand::Omitted => None,
        }
    }

    // ---- connections --------------------------------------------------------------------------------

    fn check_connections(&mut self) -> Result<(), PatchError> {
        let (patch, model) = (self.patch, self.model);
        for node in &patch.nodes {
            if node.node.subgraphs().next().is_some() {
                let what = format!("the new node {} holds a subgraph", node.node.op_type);
                return Err(self.inconsistent(what));
            }
            for &input in &node.inputs {
                self.check_visible(input, self.graph)?;
            }
        }
        for &(node, _, new) in &patch.inputs {
            self.check_visible(new, model.node(node).graph())?;
        }
        for &(old, new) in &patch.replacements {
            if new == Operand::Existing(old) {
                continue;
            }
            if new == Operand::Omitted {
                let what = format!("`{}` is replaced by nothing", self.name(old.into()));
                return Err(self.inconsistent(what));
            }
            self.check_visible(new, model.value(old).graph())?;
            if let (Some(old_type), Some(new_type)) = (self.ty(old.into()), self.ty(new))
                && !are_compatible(old_type, new_type)
            {
                return Err(PatchError::Type {
                    label: patch.label.clone(),
                    old: self.name(old.into()),
                    old_type: old_type.to_string(),
                    new: self.name(new),
                    new_type: new_type.to_string(),
                });
            }
            if self.replaced.insert(old, new).is_some() {
                return Err(self.inconsistent(format!("`{}` is replaced twice", self.name(old.into()))));
            }
        }
        for new in self.replaced.values() {
            if let Operand::Existing(value) = new
                && self.replaced.contains_key(value)
            {
                let name = self.name(*new);
                return Err(self.inconsistent(format!("`{name}` is a replacement and is itself replaced")));
            }
        }
        Ok(())
    }

    /// Whether a graph sees a value: it is its own, or computed in a graph around it before it.
    fn check_visible(&self, operand: Operand, graph: GraphId) -> Result<(), PatchError> {
        let home = match operand {
            Operand::Omitted => return Ok(()),
            Operand::New(_) => self.graph,
            Operand::Existing(value) => self.model.value(value).graph(),
        };
        let mut visible = self.model.is_within(graph, home);
        if visible
            && home != graph
            && let Operand::Existing(value) = operand
            && let Some((producer, _)) = self.model.value(value).producer()
            && let Some(holder) = self.holder(graph, home)
        {
            visible = self.model.is_before(producer, holder);
        }
        if visible {
            return Ok(());
        }
        Err(PatchError::NotVisible {
            label: self.patch.label.clone(),
            value: self.name(operand),
            graph: self.model.graph(graph).name.clone(),
        })
    }

    /// The node of `around` that holds `graph`, at any depth.
    fn holder(&self, mut graph: GraphId, around: GraphId) -> Option<NodeId> {
        loop {
            let owner = self.model.graph(graph).owner()?;
            graph = self.model.node(owner).graph();
            if graph == around {
                return Some(owner);
            }
        }
    }

    // ---- removals -----------------------------------------------------------------------------------

    fn find_dead(&mut self) -> Result<(), PatchError> {
        self.dead = self.patch.removals.iter().map(|&(node, _)| node).collect();
        // Whatever is found alive keeps alive what it uses: look until nothing more comes alive.
        loop {
            let alive: Vec<NodeId> =
                self.dead.iter().copied().filter(|&node| self.live_output(node).is_some()).collect();
            if alive.is_empty() {
                return Ok(());
            }
            for node in alive {
                if self.patch.removals.contains(&(node, true)) {
                    let output = self.live_output(node).map(|value| self.name(value.into()));
                    return Err(PatchError::StillUsed {
                        label: self.patch.label.clone(),
                        node: self.model.describe(node),
                        value: output.unwrap_or_default(),
                    });
                }
                self.dead.remove(&node);
            }
        }
    }

    fn live_output(&self, node: NodeId) -> Option<ValueId> {
        let outputs = self.model.node(node).outputs();
        outputs.iter().flatten().copied().find(|&output| self.is_live(output))
    }

    fn is_live(&self, value: ValueId) -> bool {
        let keeps_uses = match self.replaced.contains_key(&value) {
            // An input that is also an output stays the output.
            true => self.model.value(value).is_input() && self.has_output_use(value),
            false => self.surviving_uses(value).next().is_some(),
        };
        keeps_uses
            || self.used_by_new.contains(&value)
            || self.overridden.iter().any(|(&(node, _), &new)| {
                new == Operand::Existing(value) && !self.is_dead(self.model.node(node).graph(), Some(node))
            })
            || self.replaced.iter().any(|(&old, &new)| {
                new == Operand::Existing(value) && self.surviving_uses(old).next().is_some()
            })
    }

    fn has_output_use(&self, value: ValueId) -> bool {
        self.surviving_uses(value).any(|used| matches!(used, Use::Output(..)))
    }

    /// Uses of a value as the model has them, less those of nodes that go and of inputs connected anew.
    fn surviving_uses(&self, value: ValueId) -> impl Iterator<Item = Use> + '_ {
        self.model.value(value).uses().iter().copied().filter(|used| match *used {
            Use::Node(node, slot) => {
                !self.overridden.contains_key(&(node, slot as usize))
                    && !self.is_dead(self.model.node(node).graph(), Some(node))
            }
            Use::Output(graph, _) => !self.is_dead(graph, None),
        })
    }

    /// Whether a node, or a graph, goes, itself or with a node around it.
    fn is_dead(&self, mut graph: GraphId, node: Option<NodeId>) -> bool {
        if node.is_some_and(|node| self.dead.contains(&node)) {
            return true;
        }
        while let Some(owner) = self.model.graph(graph).owner() {
            if self.dead.contains(&owner) {
                return true;
            }
            graph = self.model.node(owner).graph();
        }
        false
    }

    fn removal_order(&self) -> Vec<NodeId> {
        let depth = |node: NodeId| {
            let parent = |&node: &NodeId| self.model.graph(self.model.node(node).graph()).owner();
            std::iter::successors(Some(node), parent).count()
        };
        let mut dead: Vec<NodeId> = self.dead.iter().copied().collect();
        // Inner before outer, later before earlier: users before what they use.
        dead.sort_by_cached_key(|&node| Reverse((depth(node), self.model.node(node).label)));
        dead
    }

    // ---- names of graph outputs ---------------------------------------------------------------------

    fn check_interface(&self) -> Result<Vec<(ValueId, Operand, bool)>, PatchError> {
        let mut renamed = HashSet::new();
        let mut checked = Vec::new();
        for &(old, new) in &self.patch.replacements {
            if new == Operand::Existing(old) {
                continue;
            }
            let held = self.model.value(old);
            let is_output = held.uses().iter().any(|used| matches!(used, Use::Output(..)));
            let mut needs_identity = false;
            if is_output && !held.is_input() {
                let keeps_name = match new {
                    Operand::Existing(value) => {
                        let new = self.model.value(value);
                        new.is_input()
                            || new.graph() != held.graph()
                            || new.uses().iter().any(|used| matches!(used, Use::Output(..)))
                    }
                    _ => self.graph != held.graph(),
                };
                needs_identity = keeps_name || !renamed.insert(new);
                if needs_identity && !self.patch.may_insert_identity {
                    return Err(PatchError::InterfaceName {
                        label: self.patch.label.clone(),
                        old: self.name(old.into()),
                        new: self.name(new),
                    });
                }
            }
            checked.push((old, new, needs_identity));
        }
        Ok(checked)
    }

    // ---- order --------------------------------------------------------------------------------------

    /// The node of the patch's graph that computes a value, if it is one of those.
    fn producer_here(&self, value: ValueId) -> Option<NodeId> {
        let value = self.model.value(value);
        if value.graph() == self.graph { value.producer().map(|(node, _)| node) } else { None }
    }

    /// The node of the patch's graph that a use is in, at any depth; `None` for uses that come after all
    /// nodes or are elsewhere.
    fn user_here(&self, used: Use) -> Option<NodeId> {
        let (graph, node) = match used {
            Use::Node(node, _) => (self.model.node(node).graph(), Some(node)),
            Use::Output(graph, _) => (graph, None),
        };
        if graph == self.graph { node } else { self.holder(graph, self.graph) }
    }

    fn label(&self, node: NodeId) -> u64 {
        self.model.node(node).label
    }

    fn place(&self) -> Result<Placement, PatchError> {
        // The last node that new nodes need, and the first that needs them.
        let needed = self.used_by_new.iter().filter_map(|&value| self.producer_here(value));
        let low = needed.max_by_key(|&node| self.label(node));
        let mut users: Vec<NodeId> = Vec::new();
        let mut in_order = true;
        let mut connect = |new: Operand, user: Option<NodeId>| match (new, user) {
            (Operand::New(_), Some(user)) => users.push(user),
            (Operand::Existing(value), Some(user)) => {
                let producer = self.producer_here(value);
                in_order &= producer.is_none_or(|producer| self.label(producer) < self.label(user));
            }
            _ => {}
        };
        for (&old, &new) in &self.replaced {
            self.surviving_uses(old).for_each(|used| connect(new, self.user_here(used)));
        }
        for (&(node, slot), &new) in &self.overridden {
            if !self.is_dead(self.model.node(node).graph(), Some(node)) {
                connect(new, self.user_here(Use::Node(node, slot as u32)));
            }
        }
        let high = users.into_iter().min_by_key(|&node| self.label(node));
        let fits = |at: NodeId| {
            low.is_none_or(|low| self.label(low) < self.label(at))
                && high.is_none_or(|high| self.label(at) <= self.label(high))
        };
        // Where the value was computed that is replaced first.
        let anchor = self.patch.replacements.iter().find_map(|&(old, _)| self.producer_here(old));
        let position = match (anchor, low, high) {
            (Some(anchor), _, _) if fits(anchor) => Some(Position::Before(anchor)),
            (_, _, Some(high)) if fits(high) => Some(Position::Before(high)),
            (_, _, Some(_)) => None,
            (_, Some(low), None) => Some(Position::After(low)),
            (_, None, None) => Some(Position::Start),
        };
        match position {
            Some(position) if in_order => Ok(Placement::At(position)),
            _ => self.sort(anchor).map(Placement::Sorted),
        }
    }

    /// The order that is closest to the one there is and has everything computed before it is used.
    fn sort(&self, anchor: Option<NodeId>) -> Result<Vec<Item>, PatchError> {
        let mut items = Vec::new();
        let new = || (0..self.patch.nodes.len()).map(Item::New);
        for node in self.model.nodes_of(self.graph) {
            if Some(node) == anchor {
                items.extend(new());
            }
            if !self.dead.contains(&node) {
                items.push(Item::Old(node));
            }
        }
        if anchor.is_none() {
            items.extend(new());
        }
        let mut index_of_old = HashMap::new();
        let mut index_of_new = vec![0; self.patch.nodes.len()];
        for (index, &item) in items.iter().enumerate() {
            match item {
                Item::Old(node) => drop(index_of_old.insert(node, index)),
                Item::New(number) => index_of_new[number] = index,
            }
        }
        let source = |operand: Operand| match operand {
            Operand::Existing(value) => {
                self.producer_here(value).and_then(|node| index_of_old.get(&node)).copied()
            }
            Operand::New(made) => self.maker.get(&made).map(|&number| index_of_new[number]),
            Operand::Omitted => None,
        };
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); items.len()];
        let mut waiting = vec![0usize; items.len()];
        for (index, &item) in items.iter().enumerate() {
            let sources: HashSet<usize> = match item {
                Item::New(number) => {
                    self.patch.nodes[number].inputs.iter().copied().filter_map(source).collect()
                }
                Item::Old(node) => self.inputs_after(node).into_iter().filter_map(source).collect(),
            };
            waiting[index] = sources.len();
            for source in sources {
                users[source].push(index);
            }
        }
        let mut ready: BinaryHeap<Reverse<usize>> =
            (0..items.len()).filter(|&index| waiting[index] == 0).map(Reverse).collect();
        let mut order = Vec::new();
        while let Some(Reverse(index)) = ready.pop() {
            order.push(items[index]);
            for &user in &users[index] {
                waiting[user] -= 1;
                if waiting[user] == 0 {
                    ready.push(Reverse(user));
                }
            }
        }
        if order.len() == items.len() {
            return Ok(order);
        }
        let stuck = (0..items.len()).filter(|&index| waiting[index] > 0).take(4);
        let names: Vec<String> = stuck
            .map(|index| match items[index] {
                Item::Old(node) => self.model.describe(node),
                Item::New(number) => format!("the new {}", self.patch.nodes[number].node.op_type),
            })
            .collect();
        Err(PatchError::Cycle { label: self.patch.label.clone(), nodes: names.join(", ") })
    }

    /// What a node, with its subgraphs, uses once the patch is made.
    fn inputs_after(&self, node: NodeId) -> Vec<Operand> {
        let model = self.model;
        let inside = model.node(node).subgraphs().flat_map(|graph| model.walk_from(graph));
        let mut operands = Vec::new();
        for user in std::iter::once(node).chain(inside) {
            let overridden = self.overridden.iter().filter(|((at, _), _)| *at == user);
            operands.extend(overridden.map(|(_, &new)| new));
            for (slot, &input) in model.node(user).inputs().iter().enumerate() {
                if let Some(input) = input
                    && !self.overridden.contains_key(&(user, slot))
                {
                    operands.push(self.after(input));
                }
            }
            for graph in model.node(user).subgraphs() {
                operands.extend(model.graph(graph).outputs().iter().map(|info| self.after(info.value)));
            }
        }
        operands
    }

    fn after(&self, value: ValueId) -> Operand {
        self.replaced.get(&value).copied().unwrap_or(Operand::Existing(value))
    }
}

/// Whether a value of one type may stand for one of the other, as far as both are known.
fn are_compatible(a: &Type, b: &Type) -> bool {
    let (mut a, mut b) = (a, b);
    loop {
        (a, b) = match (a, b) {
            (Type::Tensor(a), Type::Tensor(b)) | (Type::SparseTensor(a), Type::SparseTensor(b)) => {
                let same_type = a.dtype.is_none() || b.dtype.is_none() || a.dtype == b.dtype;
                let same_shape = match (&a.shape, &b.shape) {
                    (Some(a), Some(b)) => {
                        let fits = |(a, b): (&crate::Dim, &crate::Dim)| match (a.fixed(), b.fixed()) {
                            (Some(a), Some(b)) => a == b,
                            _ => true,
                        };
                        a.len() == b.len() && a.iter().zip(b).all(fits)
                    }
                    _ => true,
                };
                return same_type && same_shape;
            }
            (Type::Sequence(a), Type::Sequence(b)) | (Type::Optional(a), Type::Optional(b)) => (a, b),
            (Type::Map(key_a, a), Type::Map(key_b, b)) if key_a == key_b => (a, b),
            _ => return a == b,
        }
    }
}
