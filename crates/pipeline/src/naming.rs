//! How reports call nodes.

use optix_ir::{Model, NodeId};

/// A node's name (its first output's when it has none) and its operator, with the domain in front where
/// it is not the standard one.
pub fn node_and_op(model: &Model, id: NodeId) -> (String, String) {
    let node = model.node(id);
    let name = if node.name.is_empty() {
        let output = node.outputs().iter().flatten().next();
        output.map_or_else(String::new, |&output| model.value(output).name().to_owned())
    } else {
        node.name.clone()
    };
    let op = match node.domain() {
        "" => node.op_type.clone(),
        domain => format!("{domain}.{}", node.op_type),
    };
    (name, op)
}
