//! Uses of values: letting one value stand in the place of another.

use super::EditError;
use crate::ids::ValueId;
use crate::model::Model;
use crate::node::{Use, Value};

/// Whether a value is an output of a graph.
fn is_output(value: &Value) -> bool {
    value.uses.iter().any(|used| matches!(used, Use::Output(..)))
}

impl Model {
    /// Lets every node that uses `old` use `new` instead, captures included; graph outputs are left.
    pub fn replace_node_uses(&mut self, old: ValueId, new: ValueId) {
        self.replace_uses_where(old, new, |_, used| matches!(used, Use::Node(..)));
    }

    /// Lets the chosen uses of `old` be uses of `new`. A graph output that changes its value changes its
    /// name with it: see [`Model::replace_value`] for the usual case.
    pub fn replace_uses_where(&mut self, old: ValueId, new: ValueId, chosen: impl Fn(&Model, Use) -> bool) {
        if old == new {
            return;
        }
        let uses = std::mem::take(&mut self.value_mut(old).uses);
        let (moved, kept): (Vec<Use>, Vec<Use>) = uses.into_iter().partition(|&used| chosen(self, used));
        self.value_mut(old).uses = kept;
        for &used in &moved {
            match used {
                Use::Node(node, slot) => self.node_mut(node).inputs[slot as usize] = Some(new),
                Use::Output(graph, index) => self.graph_mut(graph).outputs[index as usize].value = new,
            }
        }
        self.value_mut(new).uses.extend(moved);
    }

    /// Puts `new` in the place of `old` everywhere. Where `old` is an output of its graph, the two swap
    /// names, so that the interface keeps its names.
    ///
    /// # Errors
    /// When `old` is a graph output and `new` cannot give up its name, because it is itself a graph input
    /// or output, or belongs to another graph. Nothing is changed then; an `Identity` helps.
    pub fn replace_value(&mut self, old: ValueId, new: ValueId) -> Result<(), EditError> {
        if old == new {
            return Ok(());
        }
        self.check_replacement(old, new)?;
        let swap = is_output(self.value(old));
        self.replace_uses_where(old, new, |_, _| true);
        if swap {
            let name = std::mem::take(&mut self.value_mut(old).name);
            let name = std::mem::replace(&mut self.value_mut(new).name, name);
            self.value_mut(old).name = name;
        }
        Ok(())
    }

    /// Whether [`Model::replace_value`] would do its work, for whoever must know before anything is done.
    ///
    /// # Errors
    /// As `replace_value`.
    pub fn check_replacement(&self, old: ValueId, new: ValueId) -> Result<(), EditError> {
        let (held_old, held_new) = (self.value(old), self.value(new));
        let has_name = held_new.is_input || is_output(held_new) || held_new.graph != held_old.graph;
        if old != new && is_output(held_old) && has_name {
            return Err(EditError::InterfaceName { old: held_old.name.clone(), new: held_new.name.clone() });
        }
        Ok(())
    }

    pub(super) fn forget_use(&mut self, value: ValueId, used: Use) {
        if let Some(value) = self.values.get_mut(value)
            && let Some(at) = value.uses.iter().position(|&other| other == used)
        {
            value.uses.swap_remove(at);
        }
    }
}
