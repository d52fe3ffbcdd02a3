//! Raising the version of the standard operator set.

use optix_ir::{AttributeValue, Model, Node, NodeId, Position, Tensor, ValueId};
use optix_pipeline::{Cx, Family, Interface, Named, Numerics, Pass, PassError, Promises, Requires, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

/// Raises the version of the standard operator set to 13, which quantization with a scale a channel needs.
///
/// Reads versions 11 and 12 and leaves newer models alone. Operators whose form changed are rewritten:
/// Squeeze, Unsqueeze, Split and ReduceSum take their axes as inputs, Softmax, LogSoftmax and Hardmax
/// work along one axis. A model that has one of these in a form that cannot be rewritten is refused.
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
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ConvertOpset {}

impl Named for ConvertOpset {
    const NAME: &'static str = "convert-opset";
    const FAMILY: Family = Family::Clean;
}

const TARGET: i64 = 13;

impl Pass for ConvertOpset {
    fn requires(&self) -> Requires {
        Requires { inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Exact, interface: Interface::Kept, topology: Topology::Changed }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let version = model.opset_version(model.main(), "").unwrap_or(0);
        if version >= TARGET {
            return Ok(());
        }
        if version < 11 {
            return Err(PassError::Options(format!(
                "operator set {version} cannot be raised to {TARGET} yet, only 11 and 12 can: export the model with a newer one"
            )));
        }
        let order: Vec<NodeId> = model.walk().collect();
        for id in order {
            let node = model.node(id);
            if !node.domain().is_empty() {
                continue;
            }
            let changed = match node.op_type.as_str() {
                "Squeeze" | "Unsqueeze" | "ReduceSum" => attribute_to_input(model, id, "axes"),
                "Split" => attribute_to_input(model, id, "split"),
                "Softmax" | "LogSoftmax" | "Hardmax" => softmax(model, id).map_err(|what| {
                    PassError::Model { place: format!("node {}", model.describe(id)), what }
                })?,
                _ => false,
            };
            if changed {
                cx.count("nodes rewritten", 1);
            }
        }
        for import in &mut model.opset_imports {
            if import.domain.is_empty() || import.domain == "ai.onnx" {
                import.version = TARGET;
            }
        }
        // Operator set 13 came with IR version 7.
        model.ir_version = model.ir_version.max(7);
        cx.count("operator sets raised", 1);
        Ok(())
    }
}

/// Moves a list of integers from an attribute to input 1.
fn attribute_to_input(model: &mut Model, id: NodeId, name: &str) -> bool {
    let Some(AttributeValue::Ints(values)) = model.node(id).attribute(name).cloned() else { return false };
    let graph = model.node(id).graph();
    let constant = model.add_constant(graph, name, Tensor::from_i64s(&values));
    model.node_mut(id).remove_attribute(name);
    model.set_input(id, 1, Some(constant));
    true
}

/// Before version 13 these operators worked on everything from `axis` (default 1) on, flattened. The same
/// as along one axis when that is the last one, or when all behind it have size 1.
fn softmax(model: &mut Model, id: NodeId) -> Result<bool, String> {
    let node = model.node(id);
    let axis = node.int("axis").unwrap_or(1);
    let input = node.input(0).ok_or("its input is missing")?;
    let shape = model.value(input).ty.as_ref().and_then(|ty| ty.shape()).cloned();
    let shape = shape.ok_or("the rank of its input is not known, so its axis cannot be converted")?;
    let rank = shape.len() as i64;
    let positive = if axis < 0 { axis + rank } else { axis };
    let tail = usize::try_from(positive).ok().and_then(|axis| shape.get(axis + 1..));
    let tail = tail.ok_or_else(|| format!("its axis {axis} is outside rank {rank}"))?;
    if tail.iter().all(|dim| dim.fixed() == Some(1)) {
        model.node_mut(id).set_attribute("axis", positive);
        return Ok(true);
    }
    flatten_around(model, id, input, positive);
    Ok(true)
}

/// Flatten to two dimensions, apply along the last, and restore the shape.
fn flatten_around(model: &mut Model, id: NodeId, input: ValueId, axis: i64) {
    let graph = model.node(id).graph();
    let ty = model.value(input).ty.clone();
    let Some(output) = model.node(id).output(0) else { return };
    let name = model.value(output).name().to_owned();
    let before = Position::Before(id);
    let (_, shape) = model.add_node(graph, before, Node::new("Shape", [input]), &format!("{name}_shape"));
    let flatten = Node::new("Flatten", [input]).with("axis", axis);
    let (_, flat) = model.add_node(graph, before, flatten, &format!("{name}_flat"));
    model.set_input(id, 0, Some(flat));
    model.node_mut(id).set_attribute("axis", -1i64);
    let reshape = Node::new("Reshape", [output, shape]);
    let (restore, restored) =
        model.add_node(graph, Position::After(id), reshape, &format!("{name}_restored"));
    model.value_mut(restored).ty = ty;
    // Everybody but the new node reads the restored one; a graph output keeps its name.
    if model.replace_value(output, restored).is_ok() {
        model.set_input(restore, 0, Some(output));
    }
}
