//! Removing what nothing uses.

use std::collections::BTreeSet;

use optix_ir::{Model, NodeId, ValueId};
use optix_pipeline::{Cx, Family, Named, Pass, PassError, Promises};
use schemars::JsonSchema;
use serde::Deserialize;

/// Removes nodes whose outputs nothing uses, constants nothing reads, declarations of values that do not
/// exist, and functions nobody calls.
///
/// Inputs and outputs of the model stay, used or not.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N] x, float[N] unused) => (float[N] y)
/// <float a = {1}, float b = {2}>
/// {
///     c = Mul (x, b)
///     d = Exp (c)
///     y = Add (x, a)
/// }
/// ---
/// <ir_version: 8, opset_import: ["" : 18]>
/// model (float[N] x, float[N] unused) => (float[N] y)
/// <float a = {1}>
/// {
///     y = Add (x, a)
/// }
/// ```
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct EliminateDead {}

impl Named for EliminateDead {
    const NAME: &'static str = "eliminate-dead";
    const FAMILY: Family = Family::Clean;
}

impl Pass for EliminateDead {
    fn promises(&self) -> Promises {
        Promises::CLEAN
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        // Consumers come after producers, so one walk backwards finds whole dead chains. Nodes inside
        // subgraphs come behind their holder and are gone with it.
        let order: Vec<NodeId> = model.walk().collect();
        for id in order.into_iter().rev() {
            let Some(node) = model.get_node(id) else { continue };
            let used = node.outputs().iter().flatten().any(|&output| !model.value(output).uses().is_empty());
            if !used && cx.may_edit("remove-node") {
                model.remove_node(id)?;
                cx.count("nodes removed", 1);
            }
        }
        let values: Vec<ValueId> = model.values().collect();
        for id in values {
            let value = model.value(id);
            let dead = value.uses().is_empty() && value.producer().is_none();
            if !dead {
                continue;
            }
            let is_constant = value.initializer().is_some();
            if value.is_input() || !cx.may_edit("remove-value") {
                continue;
            }
            if model.remove_value(id) {
                cx.count(if is_constant { "constants removed" } else { "declarations removed" }, 1);
            }
        }
        remove_functions(model, cx);
        Ok(())
    }
}

fn remove_functions(model: &mut Model, cx: &mut Cx<'_>) {
    loop {
        let called: BTreeSet<(String, String, String)> = model
            .graphs()
            .flat_map(|graph| model.node_list(graph))
            .map(|id| model.node(id))
            .map(|node| (node.domain.clone(), node.op_type.clone(), node.overload.clone()))
            .collect();
        let unused = model.functions.iter().position(|function| {
            !called.contains(&(function.domain.clone(), function.name.clone(), function.overload.clone()))
        });
        let Some(index) = unused else { return };
        if !cx.may_edit("remove-function") {
            return;
        }
        let function = model.functions.remove(index);
        model.remove_graph(function.graph);
        cx.count("functions removed", 1);
    }
}
