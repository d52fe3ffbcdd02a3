//! Places along the axes of tensors, and which of them belong together: taking one away takes all away.

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId, ValueId};

/// A tensor. Constants of at most one axis count for each reader by itself: several layers may share one that
/// only happens to hold the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::prune) struct Held {
    pub(in crate::prune) value: ValueId,
    pub(in crate::prune) reader: Option<(NodeId, usize)>,
}

/// An axis of known size: its places are numbered on from `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::prune) struct Axis {
    pub(in crate::prune) start: usize,
    pub(in crate::prune) size: usize,
}

impl Axis {
    pub(in crate::prune) fn at(self, index: usize) -> usize {
        self.start + index
    }

    pub(in crate::prune) fn places(self) -> std::ops::Range<usize> {
        self.start..self.start + self.size
    }
}

/// The axes of a tensor; none where the size is not known.
pub(in crate::prune) type Axes = Vec<Option<Axis>>;

/// Why places stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::prune) struct Lock {
    /// The node at which they must; none for the model's own inputs and outputs.
    pub(in crate::prune) node: Option<NodeId>,
    pub(in crate::prune) why: &'static str,
}

/// All places of a graph.
#[derive(Default)]
pub(in crate::prune) struct Places {
    tensors: BTreeMap<Held, Option<Axes>>,
    /// Each place's way to the one that stands for all that belong together.
    parents: Vec<u32>,
    /// By the place that stands for them.
    locks: BTreeMap<usize, Lock>,
}

impl Places {
    /// The axes of a value as a node reads it, or as it is computed; none where its rank is not known.
    pub(in crate::prune) fn axes(
        &mut self,
        model: &Model,
        value: ValueId,
        reader: Option<(NodeId, usize)>,
    ) -> Option<Axes> {
        let constant = model.constant(value);
        let reader = reader.filter(|_| constant.is_some_and(|tensor| tensor.rank() < 2));
        let held = Held { value, reader };
        if let Some(known) = self.tensors.get(&held) {
            return known.clone();
        }
        let sizes: Option<Vec<Option<usize>>> = match constant {
            Some(tensor) => Some(tensor.shape().iter().map(|&size| Some(size)).collect()),
            None => {
                let shape = model.value(value).ty.as_ref().and_then(|ty| ty.shape());
                shape.map(|shape| shape.iter().map(|dim| dim.fixed()).collect())
            }
        };
        let axes = sizes.map(|sizes| sizes.into_iter().map(|size| Some(self.axis(size?))).collect::<Axes>());
        self.tensors.insert(held, axes.clone());
        axes
    }

    fn axis(&mut self, size: usize) -> Axis {
        let start = self.parents.len();
        self.parents.extend((start..start + size).map(|place| place as u32));
        Axis { start, size }
    }

    /// How many places there are.
    pub(in crate::prune) fn len(&self) -> usize {
        self.parents.len()
    }

    /// The place that stands for all that belong with this one.
    pub(in crate::prune) fn root(&self, place: usize) -> usize {
        let mut at = place;
        while self.parents[at] as usize != at {
            at = self.parents[at] as usize;
        }
        at
    }

    /// These two belong together.
    pub(in crate::prune) fn unite(&mut self, a: usize, b: usize) {
        let (one, other) = (self.root(a), self.root(b));
        // The earlier one stands for both: what stands for what does not depend on the order of calls.
        let (first, second) = (one.min(other), one.max(other));
        // The next way from here is short.
        [a, b, second].into_iter().for_each(|place| self.parents[place] = first as u32);
        if first == second {
            return;
        }
        if let Some(lock) = self.locks.remove(&second) {
            self.locks.entry(first).or_insert(lock);
        }
    }

    /// All places of two axes belong together, one by one. Sizes that differ, or are not known, lock what is known.
    pub(in crate::prune) fn same(&mut self, a: Option<Axis>, b: Option<Axis>, lock: &Lock) {
        match (a, b) {
            (Some(a), Some(b)) if a.size == b.size => {
                a.places().zip(b.places()).for_each(|(a, b)| self.unite(a, b));
            }
            (a, b) => [a, b].into_iter().for_each(|axis| self.lock(axis, lock)),
        }
    }

    /// All places of an axis stay.
    pub(in crate::prune) fn lock(&mut self, axis: Option<Axis>, lock: &Lock) {
        for place in axis.into_iter().flat_map(Axis::places) {
            let root = self.root(place);
            self.locks.entry(root).or_insert_with(|| lock.clone());
        }
    }

    /// Why a place stays.
    pub(in crate::prune) fn lock_of(&self, place: usize) -> Option<&Lock> {
        self.locks.get(&self.root(place))
    }

    /// All tensors that were met, with their axes.
    pub(in crate::prune) fn tensors(&self) -> impl Iterator<Item = (Held, &Axes)> {
        self.tensors.iter().filter_map(|(held, axes)| Some((*held, axes.as_ref()?)))
    }

    /// The axes of a tensor that was met.
    pub(in crate::prune) fn known(&self, held: Held) -> Option<&Axes> {
        self.tensors.get(&held)?.as_ref()
    }
}
