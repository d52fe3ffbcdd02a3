//! What onnxruntime says, as errors of ours that name the node.

use optix_ir::{Model, NodeId};
use optix_ops::OpError;

use crate::error::{RuntimeError, Unsupported};

/// What the library says about a model or a run, with the node it is about where it names one.
pub(crate) fn explained(engine: &str, model: &Model, says: &str) -> RuntimeError {
    if let Some(nodes) = unsupported(model, says) {
        return RuntimeError::Unsupported { engine: engine.to_owned(), nodes };
    }
    let refused = || RuntimeError::Refused { engine: engine.to_owned(), what: first_lines(says) };
    let Some((op_type, name, what)) = running(says).or_else(|| loading(says)) else { return refused() };
    // A node that the library made of several has a name of its own.
    let node = match find(model, name, op_type) {
        Some(id) => model.describe(id),
        None if name.is_empty() => format!("of {op_type}"),
        None => format!("`{name}` ({op_type})"),
    };
    RuntimeError::Node { node, source: OpError::Invalid { op: op_type.to_owned(), what: first_lines(what) } }
}

/// The text between two marks.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

/// A failed run: operator, node, and what is wrong.
fn running(says: &str) -> Option<(&str, &str, &str)> {
    let op_type = between(says, "while running ", " node.")?;
    let name = between(says, "Name:'", "'")?;
    let (_, what) = says.split_once("Status Message: ")?;
    Some((op_type, name, what))
}

/// A refused model: `In Node, ("name", Operator, "", -1) : (...) -> (...) , Error what`.
fn loading(says: &str) -> Option<(&str, &str, &str)> {
    let (_, rest) = says.split_once("In Node, (\"")?;
    let (name, rest) = rest.split_once("\", ")?;
    let (op_type, rest) = rest.split_once(',')?;
    let what = rest.rsplit_once("Error ").map_or(rest, |(_, what)| what);
    Some((op_type, name, what))
}

fn find(model: &Model, name: &str, op_type: &str) -> Option<NodeId> {
    let named = |id: &NodeId| model.node(*id).name == name && !name.is_empty();
    let same = |id: &NodeId| model.node(*id).op_type == op_type;
    model.walk().find(|id| named(id) && same(id)).or_else(|| model.walk().find(named))
}

/// All nodes of an operator that the library does not have. It speaks of the first one only.
fn unsupported(model: &Model, says: &str) -> Option<Vec<Unsupported>> {
    let (domain, op_type, reason) =
        if let Some(which) = between(says, "Fatal error: ", " is not a registered") {
            let which = which.split_once('(').map_or(which, |(which, _)| which);
            let (domain, op_type) = which.rsplit_once(':').unwrap_or(("", which));
            (Some(domain), op_type, "it has no such operator".to_owned())
        } else if let Some(which) = between(says, "find an implementation for ", " node") {
            let op_type = which.split_once('(').map_or(which, |(which, _)| which);
            (None, op_type, "it has no kernel for these element types or this version".to_owned())
        } else {
            return None;
        };
    let is_one = |id: &NodeId| {
        let node = model.node(*id);
        let known = domain
            .is_none_or(|domain| domain == node.domain() || domain == "ai.onnx" && node.domain().is_empty());
        node.op_type == op_type && known
    };
    let nodes: Vec<Unsupported> = model
        .walk()
        .filter(is_one)
        .map(|id| Unsupported { node: model.describe(id), reason: format!("{op_type}: {reason}") })
        .collect();
    (!nodes.is_empty()).then_some(nodes)
}

/// What is said, without the places in the library's source.
fn first_lines(text: &str) -> String {
    let mut said = text.trim();
    // `/path/to/gather.cc:57 bool Gather::... what it says`: the place tells users nothing.
    if said.starts_with('/') {
        said = said.split_once(' ').map_or(said, |(_, rest)| rest);
    }
    said.lines().take(4).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> Model {
        optix_ir::text::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    const TWO: &str = "<ir_version: 8, opset_import: [\"\" : 18, \"my\" : 1]>\n\
        g (float[3] x, int64[1] i) => (float[1] y) { z = my.Odd (x)\n w = my.Odd (z)\n y = Gather (w, i) }";

    #[test]
    fn the_node_of_a_failed_run_is_named() {
        let says = "Non-zero status code returned while running Gather node. Name:'' Status Message: indices element \
                    out of data bounds, idx=9 must be within the inclusive range [-3,2]";
        let error = explained("onnxruntime", &model(TWO), says).to_string();
        assert_eq!(
            error,
            "node of Gather: Gather: indices element out of data bounds, idx=9 must be within the inclusive range [-3,2]"
        );
        let mut named = model(TWO);
        let gather = named.walk().last().expect("three nodes");
        named.node_mut(gather).name = "pick".to_owned();
        let error = explained("onnxruntime", &named, &says.replace("Name:''", "Name:'pick'")).to_string();
        assert!(error.starts_with(&format!("node {}: Gather: indices", named.describe(gather))), "{error}");
    }

    #[test]
    fn all_nodes_of_an_unknown_operator_are_named() {
        let says = "Load model failed:Fatal error: my:Odd(-1) is not a registered function/op";
        let RuntimeError::Unsupported { nodes, .. } = explained("onnxruntime", &model(TWO), says) else {
            panic!("not that kind")
        };
        assert_eq!(nodes.len(), 2);
    }

    #[test]
    fn what_names_no_node_is_handed_on() {
        let error = explained("onnxruntime", &model(TWO), "out of luck").to_string();
        assert_eq!(error, "onnxruntime refuses: out of luck");
    }
}
