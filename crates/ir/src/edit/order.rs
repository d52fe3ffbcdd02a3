//! The order of nodes: linked lists, with labels that tell in one comparison which node is first.

use super::Position;
use crate::ids::{GraphId, NodeId};
use crate::model::Model;

/// Distance between the order labels of neighbours when there is room.
const LABEL_STEP: u64 = 1 << 20;

impl Model {
    /// Moves a node to another place of its graph's order.
    pub fn move_node(&mut self, id: NodeId, position: Position) {
        if matches!(position, Position::Before(at) | Position::After(at) if at == id) {
            return;
        }
        let graph = self.node(id).graph();
        self.unlink(id);
        self.link(graph, position, id);
    }

    pub(super) fn link(&mut self, graph: GraphId, position: Position, id: NodeId) {
        let (previous, next) = match position {
            Position::End => (self.graph(graph).last, None),
            Position::Start => (None, self.graph(graph).first),
            Position::Before(node) => (self.node(node).previous, Some(node)),
            Position::After(node) => (Some(node), self.node(node).next),
        };
        {
            let node = self.node_mut(id);
            node.previous = previous;
            node.next = next;
        }
        match previous {
            Some(previous) => self.node_mut(previous).next = Some(id),
            None => self.graph_mut(graph).first = Some(id),
        }
        match next {
            Some(next) => self.node_mut(next).previous = Some(id),
            None => self.graph_mut(graph).last = Some(id),
        }
        self.graph_mut(graph).node_count += 1;
        let low = previous.map_or(0, |node| self.node(node).label);
        let label = match next {
            None => low.checked_add(LABEL_STEP),
            Some(next) => Some(low + (self.node(next).label - low) / 2).filter(|&middle| middle > low),
        };
        match label {
            Some(label) => self.node_mut(id).label = label,
            // No room between the neighbours: spread the whole graph out again.
            None => {
                let mut label = 0u64;
                let mut at = self.graph(graph).first;
                while let Some(node) = at {
                    label += LABEL_STEP;
                    self.node_mut(node).label = label;
                    at = self.node(node).next;
                }
            }
        }
    }

    pub(super) fn unlink(&mut self, id: NodeId) {
        let (graph, previous, next) = {
            let node = self.node(id);
            (node.graph(), node.previous, node.next)
        };
        match previous {
            Some(previous) => self.node_mut(previous).next = next,
            None => self.graph_mut(graph).first = next,
        }
        match next {
            Some(next) => self.node_mut(next).previous = previous,
            None => self.graph_mut(graph).last = previous,
        }
        self.graph_mut(graph).node_count -= 1;
    }
}
