//! Changing a model: the only code that touches producers, use lists and order.
//!
//! Readers of files build a model through the same methods. Methods that could break an invariant check
//! first and change nothing when they refuse.

mod nodes;
mod order;
mod uses;
mod values;

use crate::ids::NodeId;

/// Why an edit was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// A node was to be removed whose output is still used.
    #[error("node {node} cannot be removed: its output `{value}` is still used")]
    StillUsed {
        /// The node, described.
        node: String,
        /// The output.
        value: String,
    },
    /// A value that is part of a graph's interface was to be replaced by one that has its own name there.
    #[error("`{old}` is an output of the graph and `{new}` must keep its own name")]
    InterfaceName {
        /// The graph output.
        old: String,
        /// What was to stand in its place.
        new: String,
    },
    /// A second node was to compute a value.
    #[error("`{0}` is already produced by a node, an input or an initializer")]
    AlreadyProduced(String),
    /// The name is taken by another value of the graph.
    #[error("the name `{0}` is taken")]
    NameTaken(String),
}

/// Where to put a node in its graph's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// Behind all nodes.
    End,
    /// Directly before that node.
    Before(NodeId),
    /// Directly behind that node.
    After(NodeId),
    /// Before all nodes.
    Start,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ValueId;
    use crate::model::Model;
    use crate::node::{Node, ValueInfo};

    fn chain(length: usize) -> (Model, Vec<NodeId>, ValueId) {
        let mut model = Model::new();
        let graph = model.main();
        let input = model.add_value(graph, "x");
        model.add_input(ValueInfo::new(input, None));
        let (mut value, mut nodes) = (input, Vec::new());
        for _ in 0..length {
            let (node, output) = model.add_node(graph, Position::End, Node::new("Relu", [value]), "y");
            nodes.push(node);
            value = output;
        }
        model.add_output(graph, ValueInfo::new(value, None));
        (model, nodes, value)
    }

    #[test]
    fn replacing_a_graph_output_keeps_the_interface_name() {
        let (mut model, nodes, output) = chain(3);
        let name = model.value(output).name().to_owned();
        let inner = model.node(nodes[1]).output(0).unwrap();
        model.replace_value(output, inner).unwrap();
        assert_eq!(model.graph(model.main()).outputs()[0].value, inner);
        assert_eq!(model.value(inner).name(), name);
        model.remove_node(nodes[2]).unwrap();
        assert_eq!(model.node_list(model.main()), nodes[..2]);
    }

    #[test]
    fn an_input_cannot_become_an_output_under_another_name() {
        let (mut model, nodes, output) = chain(1);
        let input = model.node(nodes[0]).input(0).unwrap();
        assert!(model.check_replacement(output, input).is_err());
        assert!(matches!(model.replace_value(output, input), Err(EditError::InterfaceName { .. })));
        assert_eq!(model.graph(model.main()).outputs()[0].value, output);
    }

    #[test]
    fn a_used_node_stays() {
        let (mut model, nodes, _) = chain(2);
        assert!(matches!(model.remove_node(nodes[0]), Err(EditError::StillUsed { .. })));
        assert!(matches!(model.remove_node(nodes[1]), Err(EditError::StillUsed { .. })));
    }

    #[test]
    fn order_survives_many_insertions_at_one_place() {
        let (mut model, nodes, _) = chain(2);
        let input = model.node(nodes[0]).input(0).unwrap();
        let mut newest = nodes[1];
        for _ in 0..200 {
            let node = Node::new("Neg", [input]);
            newest = model.add_node(model.main(), Position::Before(newest), node, "t").0;
        }
        let order = model.node_list(model.main());
        assert_eq!(order.len(), 202);
        assert!(order.windows(2).all(|pair| model.is_before(pair[0], pair[1])));
        assert_eq!((order[0], order[201]), (nodes[0], nodes[1]));
    }

    #[test]
    fn removing_a_node_removes_its_subgraphs_and_their_captures() {
        let (mut model, nodes, _) = chain(1);
        let captured = model.node(nodes[0]).output(0).unwrap();
        let body = model.add_graph(None);
        let (_, inner) = model.add_node(body, Position::End, Node::new("Neg", [captured]), "inner");
        model.add_output(body, ValueInfo::new(inner, None));
        let main = model.main();
        let (holder, _) =
            model.add_node(main, Position::End, Node::new("If", [captured]).with("then_branch", body), "z");
        assert_eq!(model.graph(body).owner(), Some(holder));
        assert_eq!(model.walk().count(), 3);
        assert_eq!(model.value(captured).uses().len(), 3);
        model.remove_node(holder).unwrap();
        assert_eq!(model.value(captured).uses().len(), 1);
        assert_eq!(model.graphs().count(), 1);
    }
}
