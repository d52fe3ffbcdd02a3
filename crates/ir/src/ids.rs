//! Identifiers of things in a [`Model`](crate::Model)'s tables.
//!
//! Every id is a `NonZeroU32`, so `Option<Id>` is four bytes. An id stays the same for as long as the
//! thing lives; a removed thing's id is never handed out again within one model.

use std::fmt;
use std::num::NonZeroU32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(NonZeroU32);

        impl Id for $name {
            fn from_index(index: usize) -> Self {
                let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
                $name(number.expect("a table holds fewer than 2^32 entries"))
            }
            fn index(self) -> usize {
                self.0.get() as usize - 1
            }
        }

        impl $name {
            /// The position in its table, from 0: good as a dense array index.
            pub fn index(self) -> usize {
                Id::index(self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.index())
            }
        }
    };
}

id!(/** A node of any graph of the model. */ NodeId, "n");
id!(/** A value (SSA name) of any graph of the model. */ ValueId, "v");
id!(/** A graph: the main one, a subgraph held by an attribute, or a function's body. */ GraphId, "g");

/// What all ids share; only the arena needs it.
pub(crate) trait Id: Copy {
    fn from_index(index: usize) -> Self;
    fn index(self) -> usize;
}

/// A table whose entries keep their id until removed, and whose ids are never reused.
#[derive(Clone, Debug)]
pub(crate) struct Arena<I, T> {
    slots: Vec<Option<T>>,
    id: std::marker::PhantomData<I>,
}

impl<I: Id, T> Arena<I, T> {
    pub(crate) fn new() -> Self {
        Arena { slots: Vec::new(), id: std::marker::PhantomData }
    }

    pub(crate) fn push(&mut self, entry: T) -> I {
        let id = I::from_index(self.slots.len());
        self.slots.push(Some(entry));
        id
    }

    pub(crate) fn remove(&mut self, id: I) -> Option<T> {
        self.slots.get_mut(id.index())?.take()
    }

    pub(crate) fn get(&self, id: I) -> Option<&T> {
        self.slots.get(id.index())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: I) -> Option<&mut T> {
        self.slots.get_mut(id.index())?.as_mut()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = I> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.is_some())
            .map(|(index, _)| I::from_index(index))
    }

    /// One more than the greatest index ever used: the length of a dense side table.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }
}
