//! What changed between versions of the standard operator set, 11 to 25, and how a node is rewritten.
//!
//! Read out of the schemas of onnx 1.23: an operator that is not in [`CHANGES`] got at most further
//! element types, further optional inputs and attributes whose default is what it did before.

use optix_ir::{AttributeValue, Dim, Model, Node, NodeId, Position, Tensor, Type, ValueId};

/// The oldest version that is read.
pub(super) const OLDEST: i64 = 11;

/// The newest version that is written.
pub(super) const NEWEST: i64 = 25;

/// One change of one operator.
pub(super) struct Change {
    op_type: &'static str,
    /// The version that brought it.
    version: i64,
    kind: Kind,
}

/// What to do about it.
#[derive(Clone, Copy)]
enum Kind {
    /// A list of integers is no longer an attribute but the second input.
    ListToInput(&'static str),
    /// The axis is no longer an attribute (with this default) but the third input.
    AxisToInput(i64),
    /// An attribute without meaning when a model is not trained is gone.
    Drop(&'static str),
    /// Softmax and its kin work along one axis, no longer on everything from it on.
    OneAxis,
    /// The number of equal parts has to be said.
    CountParts,
    /// Outputs beyond the first, which only training made, mean something else.
    OneOutput,
    /// An attribute whose default is new: the old one has to be said.
    Say(&'static str, &'static str),
    /// Values of a string attribute have other names.
    Rename(&'static str, &'static [(&'static str, &'static str)]),
    /// The last window of an output that is rounded up (`ceil_mode`) is counted in another way.
    RoundedUp,
    /// No rewrite is known.
    Other(&'static str),
}

const fn change(op_type: &'static str, version: i64, kind: Kind) -> Change {
    Change { op_type, version, kind }
}

const GRID_MODES: &[(&str, &str)] = &[("bilinear", "linear"), ("bicubic", "cubic")];

/// In order of versions.
pub(super) static CHANGES: &[Change] = &[
    change("Dropout", 12, Kind::Drop("ratio")),
    change("Squeeze", 13, Kind::ListToInput("axes")),
    change("Unsqueeze", 13, Kind::ListToInput("axes")),
    change("ReduceSum", 13, Kind::ListToInput("axes")),
    change("Split", 13, Kind::ListToInput("split")),
    change("Softmax", 13, Kind::OneAxis),
    change("LogSoftmax", 13, Kind::OneAxis),
    change("Hardmax", 13, Kind::OneAxis),
    change("BatchNormalization", 14, Kind::OneOutput),
    change("RoiAlign", 16, Kind::Say("coordinate_transformation_mode", "output_half_pixel")),
    change("ReduceL1", 18, Kind::ListToInput("axes")),
    change("ReduceL2", 18, Kind::ListToInput("axes")),
    change("ReduceLogSum", 18, Kind::ListToInput("axes")),
    change("ReduceLogSumExp", 18, Kind::ListToInput("axes")),
    change("ReduceMax", 18, Kind::ListToInput("axes")),
    change("ReduceMean", 18, Kind::ListToInput("axes")),
    change("ReduceMin", 18, Kind::ListToInput("axes")),
    change("ReduceProd", 18, Kind::ListToInput("axes")),
    change("ReduceSumSquare", 18, Kind::ListToInput("axes")),
    change("Split", 18, Kind::CountParts),
    change("AveragePool", 19, Kind::RoundedUp),
    change("DFT", 20, Kind::AxisToInput(1)),
    change("GridSample", 20, Kind::Rename("mode", GRID_MODES)),
    change(
        "GroupNormalization",
        21,
        Kind::Other("its scale and bias hold one number a group, later versions want one a channel"),
    ),
    change("AveragePool", 22, Kind::RoundedUp),
    change("LpPool", 22, Kind::RoundedUp),
    change("MaxPool", 22, Kind::RoundedUp),
];

/// The changes that meet a node on the way from one version to another.
pub(super) fn between(node: &Node, from: i64, to: i64) -> impl Iterator<Item = &'static Change> + use<> {
    let (op_type, standard) = (node.op_type.clone(), node.domain().is_empty());
    CHANGES.iter().filter(move |c| standard && c.op_type == op_type && (from + 1..=to).contains(&c.version))
}

impl Change {
    /// Whether [`Change::apply`] can rewrite the node.
    ///
    /// # Errors
    /// The reason why not.
    pub(super) fn check(&self, model: &Model, id: NodeId) -> Result<(), String> {
        let node = model.node(id);
        let is_a = |name: &str, wanted: fn(&AttributeValue) -> bool| match node.attribute(name) {
            Some(value) if !wanted(value) => {
                Err(format!("its `{name}` depends on the call of the function it is in"))
            }
            _ => Ok(()),
        };
        match self.kind {
            Kind::ListToInput(name) => is_a(name, |value| matches!(value, AttributeValue::Ints(_))),
            Kind::AxisToInput(_) => is_a("axis", |value| matches!(value, AttributeValue::Int(_))),
            Kind::OneAxis => softmax_axis(model, id).map(|_| ()),
            Kind::OneOutput if node.outputs().iter().skip(1).any(Option::is_some) => {
                Err("it has outputs that only training makes".to_owned())
            }
            Kind::Rename(name, _) => is_a(name, |value| matches!(value, AttributeValue::String(_))),
            Kind::RoundedUp if !rounding_is_idle(model, id) => Err(format!(
                "it rounds the size of its output up (ceil_mode), and version {} counts the last window \
                 differently",
                self.version
            )),
            Kind::Other(reason) => Err(reason.to_owned()),
            _ => Ok(()),
        }
    }

    /// Rewrites the node, which `check` has found fit. Whether anything had to be done.
    pub(super) fn apply(&self, model: &mut Model, id: NodeId) -> Result<bool, String> {
        match self.kind {
            Kind::ListToInput(name) => Ok(list_to_input(model, id, name)),
            Kind::AxisToInput(default) => {
                let axis = model.node(id).int("axis").unwrap_or(default);
                let constant = constant(model, id, "axis", Tensor::scalar(axis));
                model.node_mut(id).remove_attribute("axis");
                model.set_input(id, 2, Some(constant));
                Ok(true)
            }
            Kind::Drop(name) => {
                let there = model.node(id).attribute(name).is_some();
                model.node_mut(id).remove_attribute(name);
                Ok(there)
            }
            Kind::OneAxis => softmax(model, id),
            Kind::CountParts => {
                let node = model.node(id);
                if node.input(1).is_some() {
                    return Ok(false);
                }
                let parts = node.outputs().len() as i64;
                model.node_mut(id).set_attribute("num_outputs", parts);
                Ok(true)
            }
            Kind::Say(name, value) => {
                let missing = model.node(id).attribute(name).is_none();
                if missing {
                    model.node_mut(id).set_attribute(name, value);
                }
                Ok(missing)
            }
            Kind::Rename(name, names) => {
                let value = model.node(id).string(name).unwrap_or_default();
                let new = names.iter().find(|(old, _)| *old == value).map(|(_, new)| *new);
                if let Some(new) = new {
                    model.node_mut(id).set_attribute(name, new);
                }
                Ok(new.is_some())
            }
            Kind::OneOutput | Kind::RoundedUp | Kind::Other(_) => Ok(false),
        }
    }
}

/// A constant for an input of a node. Bodies of functions have no initializers.
fn constant(model: &mut Model, id: NodeId, name: &str, tensor: Tensor) -> ValueId {
    let graph = model.node(id).graph();
    if model.functions.iter().any(|function| model.is_within(graph, function.graph)) {
        let value = AttributeValue::Tensor(Box::new(tensor.into()));
        return model
            .add_node(graph, Position::Before(id), Node::new("Constant", []).with("value", value), name)
            .1;
    }
    model.add_constant(graph, name, tensor)
}

/// Moves a list of integers from an attribute to input 1.
fn list_to_input(model: &mut Model, id: NodeId, name: &str) -> bool {
    let Some(AttributeValue::Ints(values)) = model.node(id).attribute(name).cloned() else { return false };
    let constant = constant(model, id, name, Tensor::from_i64s(&values));
    model.node_mut(id).remove_attribute(name);
    model.set_input(id, 1, Some(constant));
    true
}

/// Whether a pool's output has the same size rounded up and rounded down: then how the last window is
/// counted makes no difference. `false` where the sizes are not known.
fn rounding_is_idle(model: &Model, id: NodeId) -> bool {
    let node = model.node(id);
    if node.int("ceil_mode").unwrap_or(0) == 0 {
        return true;
    }
    if !matches!(node.string("auto_pad"), None | Some("NOTSET")) {
        return false;
    }
    let shape = node.input(0).and_then(|input| model.value(input).ty.as_ref()?.shape().cloned());
    let (Some(shape), Some(kernel)) = (shape, node.ints("kernel_shape")) else { return false };
    let axes = kernel.len();
    let of = |name: &str, at: usize, default: i64| match node.ints(name) {
        None => Some(default),
        Some(list) => list.get(at).copied(),
    };
    shape.len() == axes + 2
        && (0..axes).all(|axis| {
            let idle = || {
                let size = i64::try_from(shape.get(axis + 2).and_then(Dim::fixed)?).ok()?;
                let reach = kernel[axis].checked_sub(1)?.checked_mul(of("dilations", axis, 1)?)?;
                let padded =
                    size.checked_add(of("pads", axis, 0)?)?.checked_add(of("pads", axis + axes, 0)?)?;
                padded.checked_sub(reach)?.checked_sub(1)?.checked_rem(of("strides", axis, 1)?)
            };
            idle() == Some(0)
        })
}

/// The input of a Softmax, its type and axis, and whether it works along that axis alone already: the
/// axis is the last one, or all behind it have size 1.
fn softmax_axis(model: &Model, id: NodeId) -> Result<(ValueId, i64, bool), String> {
    let node = model.node(id);
    let axis = node.int("axis").unwrap_or(1);
    let input = node.input(0).ok_or("its input is missing")?;
    let shape = model.value(input).ty.as_ref().and_then(Type::shape);
    let shape = shape.ok_or("the rank of its input is not known, so its axis cannot be converted")?;
    let rank = shape.len() as i64;
    let positive = if axis < 0 { axis + rank } else { axis };
    let tail = usize::try_from(positive).ok().and_then(|axis| shape.get(axis + 1..));
    let tail = tail.ok_or_else(|| format!("its axis {axis} is outside rank {rank}"))?;
    Ok((input, positive, tail.iter().all(|dim| dim.fixed() == Some(1))))
}

/// Before version 13 these operators worked on everything from `axis` (default 1) on, flattened.
fn softmax(model: &mut Model, id: NodeId) -> Result<bool, String> {
    let (input, axis, alone) = softmax_axis(model, id)?;
    if alone {
        model.node_mut(id).set_attribute("axis", axis);
    } else {
        flatten_around(model, id, input, axis);
    }
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
