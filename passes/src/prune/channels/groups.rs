//! Channels that can be taken away, in groups that lie along the same axes.

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId};

use super::places::{Held, Lock, Places};

/// An axis of a tensor.
pub(in crate::prune) type Along = (Held, usize);

/// What goes together: the places of one channel in all tensors that it lies in.
#[derive(Debug)]
pub(in crate::prune) struct Channel {
    /// Which place along which axis, in order.
    pub(in crate::prune) members: Vec<(Along, usize)>,
}

/// Channels along the same axes.
#[derive(Debug)]
pub(in crate::prune) struct Group {
    /// The layer that computes them, by name: the first whose weights have a row for each.
    pub(in crate::prune) name: String,
    pub(in crate::prune) node: Option<NodeId>,
    pub(in crate::prune) channels: Vec<Channel>,
}

/// Layers whose outputs stay, and why.
pub(in crate::prune) struct Kept {
    pub(in crate::prune) node: NodeId,
    pub(in crate::prune) lock: Lock,
}

/// The groups of a graph, in the order of its layers, and the layers whose channels all stay.
pub(in crate::prune) fn find(model: &Model, places: &Places) -> (Vec<Group>, Vec<Kept>) {
    let mut members: BTreeMap<usize, Vec<(Along, usize)>> = BTreeMap::new();
    let mut is_whole: BTreeMap<usize, bool> = BTreeMap::new();
    for (held, axes) in places.tensors() {
        for (number, axis) in axes.iter().enumerate() {
            let Some(axis) = axis else { continue };
            let roots: Vec<usize> = axis.places().map(|place| places.root(place)).collect();
            // What fills an axis cannot go: nothing would be left.
            let fills = roots.iter().all(|&root| root == roots[0]);
            for (index, &root) in roots.iter().enumerate() {
                if places.lock_of(root).is_none() {
                    members.entry(root).or_default().push(((held, number), index));
                    *is_whole.entry(root).or_default() |= fills;
                }
            }
        }
    }
    members.retain(|root, _| !is_whole[root]);
    let mut by_axes: BTreeMap<Vec<Along>, Vec<Channel>> = BTreeMap::new();
    for members in members.into_values() {
        let mut axes: Vec<Along> = members.iter().map(|(along, _)| *along).collect();
        axes.dedup();
        by_axes.entry(axes).or_default().push(Channel { members });
    }
    let rows = rows(model);
    let row_of = |axes: &[Along]| rows.iter().position(|(_, along)| axes.contains(along));
    let mut groups: Vec<(usize, Group)> = by_axes
        .into_iter()
        .map(|(axes, channels)| {
            let place = row_of(&axes);
            let node = place.map(|place| rows[place].0);
            let name = match node {
                Some(node) => optix_pipeline::naming::node_and_op(model, node).0,
                None => {
                    axes.first().map_or(String::new(), |(held, _)| model.value(held.value).name().to_owned())
                }
            };
            (place.unwrap_or(usize::MAX), Group { name, node, channels })
        })
        .collect();
    groups.sort_by_key(|(place, _)| *place);
    let kept = rows.iter().filter_map(|(node, along)| {
        let axis = places.known(along.0)?.get(along.1).copied().flatten()?;
        let lock = axis.places().find_map(|place| places.lock_of(place))?;
        Some(Kept { node: *node, lock: lock.clone() })
    });
    let kept = kept.collect();
    (groups.into_iter().map(|(_, group)| group).collect(), kept)
}

/// Layers with weights, and the axis of those that has a row for each of their channels.
fn rows(model: &Model) -> Vec<(NodeId, Along)> {
    model.nodes_of(model.main()).filter_map(|node| Some((node, row_axis(model, node)?))).collect()
}

/// The axis of a layer's weights that has a place for each of its channels.
pub(in crate::prune) fn row_axis(model: &Model, node: NodeId) -> Option<Along> {
    let read = model.node(node);
    if !read.domain().is_empty() {
        return None;
    }
    let value = read.input(1)?;
    let rank = model.constant(value)?.rank();
    let axis = match read.op_type.as_str() {
        "Conv" => 0,
        "ConvTranspose" => 1,
        "Gemm" if read.int("transB").unwrap_or(0) != 0 => 0,
        "Gemm" => 1,
        "MatMul" => rank.checked_sub(1)?,
        "LSTM" | "GRU" | "RNN" => 1,
        _ => return None,
    };
    Some((Held { value, reader: None }, axis))
}

/// All channels of a layer with weights.
pub(in crate::prune) fn all_channels(model: &Model, node: NodeId) -> Option<Vec<usize>> {
    let (held, axis) = row_axis(model, node)?;
    Some((0..*model.constant(held.value)?.shape().get(axis)?).collect())
}
