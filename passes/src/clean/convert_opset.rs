//! Raising the version of the standard operator set.

use optix_ir::{GraphId, Model, NodeId};
use optix_pipeline::{Cx, Family, Interface, Named, Numerics, Pass, PassError, Promises, Requires, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use super::opset_changes::{self, NEWEST, OLDEST};

/// Raises the version of the standard operator set, by default to 13, which quantization with a scale a
/// channel needs; 4-bit weights need 21 and 2-bit weights 25.
///
/// Reads versions from 11 on and leaves models alone that are new enough. Operators whose form changed on
/// the way are rewritten: those that take their axes, or the sizes of their parts, as inputs now (Squeeze,
/// Unsqueeze, Split, all reductions, DFT), Softmax, LogSoftmax and Hardmax, which work along one axis,
/// Dropout, RoiAlign and GridSample. A model that has a node in a form that cannot be rewritten is refused,
/// and all such nodes are named: batch normalizations that train, group normalizations before 21, and pools
/// whose output is rounded up. The IR version becomes the least one that allows the new operator set.
///
/// ```text
/// <ir_version: 6, opset_import: ["" : 11]>
/// model (float[N, 3, 1, 1] x) => (float[N, 3] y)
/// {
///     a = Squeeze <axes = [2, 3]> (x)
///     y = Softmax <axis = 1> (a)
/// }
/// ---
/// <ir_version: 7, opset_import: ["" : 13]>
/// model (float[N, 3, 1, 1] x) => (float[N, 3] y)
/// <int64[2] axes = {2, 3}>
/// {
///     a = Squeeze (x, axes)
///     y = Softmax <axis = 1> (a)
/// }
/// ```
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ConvertOpset {
    /// The version to raise to, 13 to 25.
    pub version: i64,
}

impl Default for ConvertOpset {
    fn default() -> Self {
        ConvertOpset { version: 13 }
    }
}

impl Named for ConvertOpset {
    const NAME: &'static str = "convert-opset";
    const FAMILY: Family = Family::Clean;
}

/// The least IR version that a version of the operator set, 13 or newer, came with.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=14 => 7,
        15..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

impl Pass for ConvertOpset {
    fn requires(&self) -> Requires {
        Requires { inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Exact, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let target = self.version;
        if !(13..=NEWEST).contains(&target) {
            return Err(PassError::Options(format!("`version` is {target}, outside 13 to {NEWEST}")));
        }
        // The main graph and the functions that are written in an older version.
        let bodies = std::iter::once(model.main()).chain(model.functions.iter().map(|f| f.graph));
        let graphs: Vec<(GraphId, i64)> = bodies
            .filter_map(|graph| {
                let version = model.opset_version(graph, "");
                let version = if graph == model.main() { version.unwrap_or(0) } else { version? };
                (version < target).then_some((graph, version))
            })
            .collect();
        if let Some((_, version)) = graphs.iter().find(|(_, version)| *version < OLDEST) {
            return Err(PassError::Options(format!(
                "operator set {version} cannot be raised to {target}, only {OLDEST} and newer can: \
                 export the model with a newer one"
            )));
        }
        let mut work = Vec::new();
        let mut refused = Vec::new();
        for &(graph, version) in &graphs {
            for id in model.walk_from(graph) {
                for change in opset_changes::between(model.node(id), version, target) {
                    match change.check(model, id) {
                        Ok(()) => work.push((id, change)),
                        Err(why) => refused.push((id, why)),
                    }
                }
            }
        }
        if let [(first, why), rest @ ..] = &refused[..] {
            let others: Vec<String> =
                rest.iter().map(|(id, why)| format!("node {}: {why}", model.describe(*id))).collect();
            let more = if others.is_empty() { String::new() } else { format!("; {}", others.join("; ")) };
            return Err(PassError::Model {
                place: format!("node {}", model.describe(*first)),
                what: format!("cannot be raised to operator set {target}: {why}{more}"),
            });
        }
        let mut rewritten: Vec<NodeId> = Vec::new();
        for (id, change) in work {
            let place = model.describe(id);
            let changed = change
                .apply(model, id)
                .map_err(|what| PassError::Model { place: format!("node {place}"), what })?;
            if changed && rewritten.last() != Some(&id) {
                rewritten.push(id);
                cx.count("nodes rewritten", 1);
            }
        }
        let functions = model.functions.iter_mut().flat_map(|function| &mut function.opset_imports);
        let mut raised = 0;
        for import in model.opset_imports.iter_mut().chain(functions) {
            if (import.domain.is_empty() || import.domain == "ai.onnx") && import.version < target {
                import.version = target;
                raised += 1;
            }
        }
        if raised > 0 {
            model.ir_version = model.ir_version.max(ir_version(target));
            cx.count("operator sets raised", raised);
        }
        Ok(())
    }
}
