//! Choices of nodes as decisions: what a lock holds of them.

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId};
use optix_pipeline::naming::node_and_op;
use optix_pipeline::{Cx, DecisionError, PassError};
use serde::{Deserialize, Serialize};

/// A chosen node as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    /// Its name, for people.
    node: String,
    /// Its place in the order of execution, subgraphs included.
    place: usize,
    reason: String,
}

/// The node at a place in the order of execution, if it has the recorded name.
pub(crate) fn named_at(model: &Model, order: &[NodeId], place: usize, name: &str) -> Option<NodeId> {
    let id = *order.get(place)?;
    (node_and_op(model, id).0 == name).then_some(id)
}

/// Nodes, each with the reason why it was chosen: what `choose` finds out, recorded under `key`; or what a lock
/// says.
pub(crate) fn chosen_nodes(
    model: &Model,
    key: &str,
    cx: &mut Cx<'_>,
    choose: impl FnOnce(&mut Cx<'_>) -> Result<BTreeMap<NodeId, String>, PassError>,
) -> Result<BTreeMap<NodeId, String>, PassError> {
    let order: Vec<NodeId> = model.walk().collect();
    let recorded = cx.decide(key, |cx| {
        let chosen = choose(cx)?;
        let nodes = order.iter().enumerate().filter_map(|(place, id)| {
            let reason = chosen.get(id)?.clone();
            Some(Chosen { node: node_and_op(model, *id).0, place, reason })
        });
        Ok(nodes.collect::<Vec<Chosen>>())
    })?;
    let mut nodes = BTreeMap::new();
    for Chosen { node, place, reason } in recorded {
        let Some(id) = named_at(model, &order, place, &node) else {
            let what = format!("node {place} of the model is not `{node}`");
            return Err(DecisionError::Unusable { key: key.to_owned(), what }.into());
        };
        nodes.insert(id, reason);
    }
    Ok(nodes)
}
