//! Whether the nodes of a graph are in an order they can be executed in, and one that is.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::proto::{GraphProto, NodeProto};

/// What was found.
#[derive(Debug, PartialEq)]
pub(super) enum Order {
    /// Every node comes after those it needs.
    Sorted,
    /// It does not; this order of indices does, and keeps as much of the file's order as it can.
    Resorted(Vec<usize>),
    /// No order does; a node on a cycle.
    Cycle(usize),
}

/// Looks at nodes of one graph. Values that none of them computes do not matter here.
pub(super) fn of(nodes: &[NodeProto]) -> Order {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            // Of two producers the first counts; the reader refuses the second.
            producers.entry(output.as_str()).or_insert(index);
        }
    }
    let needs = |index: usize, node: &NodeProto| -> Vec<usize> {
        let mut names: Vec<&str> = node.input.iter().map(String::as_str).collect();
        captures(node, &mut names);
        let mut needs: Vec<usize> = names.iter().filter_map(|name| producers.get(name)).copied().collect();
        needs.sort_unstable();
        needs.dedup();
        debug_assert!(index < nodes.len());
        needs
    };
    let is_sorted = nodes
        .iter()
        .enumerate()
        .all(|(index, node)| needs(index, node).last().is_none_or(|&greatest| greatest < index));
    if is_sorted {
        return Order::Sorted;
    }

    // Smallest index first among those whose needs are met.
    let mut missing: Vec<usize> = Vec::with_capacity(nodes.len());
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        let needs = needs(index, node);
        missing.push(needs.len());
        for need in needs {
            if let Some(users) = users.get_mut(need) {
                users.push(index);
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = missing
        .iter()
        .enumerate()
        .filter(|(_, count)| **count == 0)
        .map(|(index, _)| Reverse(index))
        .collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &user in users.get(index).into_iter().flatten() {
            if let Some(count) = missing.get_mut(user) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    ready.push(Reverse(user));
                }
            }
        }
    }
    if order.len() == nodes.len() {
        return Order::Resorted(order);
    }
    let stuck = missing.iter().position(|&count| count > 0).unwrap_or_default();
    Order::Cycle(stuck)
}

/// Names that the subgraphs of a node take from around it.
fn captures<'a>(node: &'a NodeProto, names: &mut Vec<&'a str>) {
    for attribute in &node.attribute {
        for graph in attribute.g.as_option().into_iter().chain(&attribute.graphs) {
            graph_captures(graph, names);
        }
    }
}

/// Recursion is as deep as decoding let graphs be.
fn graph_captures<'a>(graph: &'a GraphProto, names: &mut Vec<&'a str>) {
    let mut own: HashSet<&str> = HashSet::new();
    own.extend(graph.input.iter().filter_map(|info| info.name.as_deref()));
    own.extend(graph.initializer.iter().filter_map(|tensor| tensor.name.as_deref()));
    own.extend(graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.name.as_deref()));
    own.extend(graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)));
    let mut used: Vec<&str> = graph.output.iter().filter_map(|info| info.name.as_deref()).collect();
    for node in &graph.node {
        used.extend(node.input.iter().map(String::as_str));
        captures(node, &mut used);
    }
    names.extend(used.into_iter().filter(|name| !own.contains(name)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(list: &[(&[&str], &[&str])]) -> Vec<NodeProto> {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        list.iter()
            .map(|(input, output)| NodeProto {
                input: names(input),
                output: names(output),
                ..Default::default()
            })
            .collect()
    }

    #[test]
    fn orders_are_found() {
        assert_eq!(of(&nodes(&[(&["x"], &["a"]), (&["a", ""], &["b"])])), Order::Sorted);
        let shuffled = nodes(&[(&["b"], &["c"]), (&["x"], &["a"]), (&["a"], &["b"])]);
        assert_eq!(of(&shuffled), Order::Resorted(vec![1, 2, 0]));
        assert_eq!(of(&nodes(&[(&["x"], &["y"]), (&["a"], &["a"])])), Order::Cycle(1));
        assert!(matches!(of(&nodes(&[(&["b"], &["a"]), (&["a"], &["b"])])), Order::Cycle(_)));
    }
}
