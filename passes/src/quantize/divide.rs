//! Dividing a value by one positive number a channel, by changing constants alone.
//!
//! [`trace`] follows a value back through operators that commute with a positive factor a channel, until
//! constants take the factor in: weights and bias of the layer before, scale and bias of a normalization,
//! a constant that is multiplied. Nothing is changed until [`Division::apply`].

use optix_ir::{Model, NodeId, Tensor, Use, ValueId};

use super::rewrite::drop_unused;

/// Nodes that are followed back at most.
const DEEPEST: usize = 32;

/// Where the channels of a value lie: along one axis, or spread over several, the last one running
/// fastest (heads and the elements of a head).
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Layout {
    /// Axes, in the order of the channel's number.
    pub(super) axes: Vec<usize>,
    /// Sizes of those axes.
    pub(super) sizes: Vec<usize>,
}

impl Layout {
    /// Channels along one axis.
    pub(super) fn along(axis: usize, size: usize) -> Layout {
        Layout { axes: vec![axis], sizes: vec![size] }
    }

    /// Number of channels; `None` when it is beyond all bounds.
    pub(super) fn channels(&self) -> Option<usize> {
        optix_ir::element_count(&self.sizes)
    }
}

/// A constant operand that takes the factors in.
#[derive(Clone, PartialEq, Debug)]
struct Edit {
    node: NodeId,
    slot: usize,
    /// Rank that the operand is broadcast to.
    rank: usize,
    layout: Layout,
    /// Multiplied by the divisors instead of divided: the operand is a divisor itself.
    inverse: bool,
}

/// How a value is divided channel by channel.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Division {
    edits: Vec<Edit>,
    /// Values that come out divided, the traced one included.
    values: Vec<ValueId>,
}

/// Sizes of a value's axes as far as they are fixed; `None` when not even their number is known.
pub(super) fn shape_of(model: &Model, value: ValueId) -> Option<Vec<Option<usize>>> {
    if let Some(tensor) = model.constant(value) {
        return Some(tensor.shape().iter().copied().map(Some).collect());
    }
    let shape = model.value(value).ty.as_ref()?.shape()?;
    Some(shape.iter().map(|dim| dim.fixed()).collect())
}

/// Whether a use only looks at the shape.
pub(super) fn reads_shape_only(model: &Model, used: Use) -> bool {
    matches!(used, Use::Node(node, 0) if model.node(node).is("Shape") || model.node(node).is("Size"))
}

/// The nodes that read a value's elements, or `None` when it is an output of a graph.
pub(super) fn readers(model: &Model, value: ValueId) -> Option<Vec<(NodeId, usize)>> {
    let mut readers = Vec::new();
    for &used in model.value(value).uses() {
        match used {
            _ if reads_shape_only(model, used) => {}
            Use::Node(node, slot) => readers.push((node, slot as usize)),
            Use::Output(..) => return None,
        }
    }
    readers.sort_unstable();
    Some(readers)
}

fn constant_of(model: &Model, value: ValueId) -> Option<&Tensor> {
    model.constant(value).filter(|tensor| tensor.to_slice::<f32>().is_ok())
}

/// What following a value one node back finds.
enum Step {
    /// The division ends here: these constants take it in.
    End(Vec<Edit>),
    /// These constants take it in, and this input must be divided too.
    Back(Vec<Edit>, ValueId, Layout),
    /// One of these inputs must be divided.
    Either(Vec<(ValueId, Layout)>),
}

/// How `value`, whose channels lie as `layout` says, can be divided channel by channel. Who reads
/// `value` itself is the caller's business; everything on the way must have one reader.
///
/// # Errors
/// Why it cannot, in words for people.
pub(super) fn trace(model: &Model, value: ValueId, layout: &Layout) -> Result<Division, String> {
    let mut division = Division::default();
    let mut budget = DEEPEST;
    follow(model, value, layout.clone(), &mut division, &mut budget)?;
    Ok(division)
}

fn follow(
    model: &Model,
    mut value: ValueId,
    mut layout: Layout,
    division: &mut Division,
    budget: &mut usize,
) -> Result<(), String> {
    loop {
        *budget = budget.checked_sub(1).ok_or("what computes it is too far away")?;
        let (node, slot) = model.value(value).producer().ok_or_else(|| {
            let what = if model.value(value).is_input() { "is an input of the model" } else { "is constant" };
            format!("`{}` {what}", model.value(value).name())
        })?;
        if model.node(node).graph() != model.main() || slot != 0 || !model.node(node).domain().is_empty() {
            return Err(format!("{} computes it, which does not take factors in", model.describe(node)));
        }
        division.values.push(value);
        match step(model, node, &layout)? {
            Step::End(edits) => {
                division.edits.extend(edits);
                return Ok(());
            }
            Step::Back(edits, input, at) => {
                division.edits.extend(edits);
                read_once(model, input)?;
                (value, layout) = (input, at);
            }
            Step::Either(inputs) => {
                let mut reason = "it has no inputs".to_owned();
                for (input, at) in inputs {
                    let mut tried = division.clone();
                    let found =
                        read_once(model, input).and_then(|()| follow(model, input, at, &mut tried, budget));
                    match found {
                        Ok(()) => {
                            *division = tried;
                            return Ok(());
                        }
                        Err(why) => reason = why,
                    }
                }
                return Err(reason);
            }
        }
    }
}

/// Checks that exactly one node reads a value, once.
fn read_once(model: &Model, value: ValueId) -> Result<(), String> {
    let name = model.value(value).name();
    match readers(model, value) {
        None => Err(format!("`{name}` is an output of the model")),
        Some(readers) if readers.len() == 1 => Ok(()),
        Some(readers) => Err(format!("`{name}` is read {} times", readers.len())),
    }
}

/// One step back over a node whose output 0 is to be divided.
fn step(model: &Model, id: NodeId, layout: &Layout) -> Result<Step, String> {
    let node = model.node(id);
    let refuse = |why: &str| format!("{}: {why}", model.describe(id));
    let output = node.output(0).ok_or_else(|| refuse("it has no output"))?;
    let rank = || shape_of(model, output).map(|s| s.len()).ok_or_else(|| refuse("its shape is not known"));
    let input = |slot: usize| node.input(slot).ok_or_else(|| refuse("an input is missing"));
    let channels = layout.channels().ok_or_else(|| refuse("it has too many channels"))?;
    let edit = |slot: usize, rank: usize, axis: usize| Edit {
        node: id,
        slot,
        rank,
        layout: Layout::along(axis, channels),
        inverse: false,
    };
    // A layer's constant: its size along the axis of channels must be that of the channels.
    let layer = |slot: usize, axis: usize, what: &str| {
        let tensor =
            constant_of(model, input(slot)?).ok_or_else(|| refuse(&format!("its {what} is not constant")))?;
        if tensor.shape().get(axis) != Some(&channels) {
            return Err(refuse(&format!("its {what} has another number of channels")));
        }
        Ok(edit(slot, tensor.rank(), axis))
    };
    let optional = |slot: usize, what: &str| match node.input(slot) {
        None => Ok(None),
        Some(_) => layer(slot, 0, what).map(Some),
    };
    let single_axis = |axis: usize| {
        if layout.axes == [axis] { Ok(()) } else { Err(refuse("channels lie along another axis there")) }
    };
    match node.op_type.as_str() {
        "MatMul" => {
            let rank = rank()?;
            let right = input(1)?;
            if model.constant(right).is_some() {
                single_axis(rank.wrapping_sub(1))?;
                let weights = shape_of(model, right).map_or(0, |shape| shape.len());
                if weights < 2 {
                    return Err(refuse("its weights are no matrix"));
                }
                return Ok(Step::End(vec![layer(1, weights - 1, "right operand")?]));
            }
            // Columns of the right operand are columns of the product, in every matrix of the batch.
            if !layout.axes.contains(&rank.wrapping_sub(1)) || layout.axes.contains(&rank.wrapping_sub(2)) {
                return Err(refuse("channels are not columns of its right operand"));
            }
            full(model, right, rank, layout).map_err(|why| refuse(&why))?;
            Ok(Step::Back(Vec::new(), right, layout.clone()))
        }
        "Gemm" => {
            single_axis(1)?;
            let transposed = node.int("transB").unwrap_or(0) != 0;
            let mut edits = vec![layer(1, usize::from(!transposed), "right operand")?];
            if node.input(2).is_some() {
                constant_of(model, input(2)?).ok_or_else(|| refuse("its bias is not constant"))?;
                edits.push(edit(2, 2, 1));
            }
            Ok(Step::End(edits))
        }
        "Conv" => {
            single_axis(1)?;
            let weights = layer(1, 0, "weight")?;
            Ok(Step::End(std::iter::once(weights).chain(optional(2, "bias")?).collect()))
        }
        "ConvTranspose" => {
            single_axis(1)?;
            if node.int("group").unwrap_or(1) != 1 {
                return Err(refuse("it is a transposed convolution in groups"));
            }
            let weights = layer(1, 1, "weight")?;
            Ok(Step::End(std::iter::once(weights).chain(optional(2, "bias")?).collect()))
        }
        "LayerNormalization" => {
            single_axis(rank()?.wrapping_sub(1))?;
            let scale = layer(1, 0, "scale")?;
            if scale.rank != 1 {
                return Err(refuse("it normalizes more than one axis"));
            }
            Ok(Step::End(std::iter::once(scale).chain(optional(2, "bias")?).collect()))
        }
        "BatchNormalization" | "InstanceNormalization" => {
            single_axis(1)?;
            Ok(Step::End(std::iter::once(layer(1, 0, "scale")?).chain(optional(2, "bias")?).collect()))
        }
        "Add" | "Sub" | "Mul" | "Div" => {
            let (rank, left, right) = (rank()?, input(0)?, input(1)?);
            let constant = match (constant_of(model, left), constant_of(model, right)) {
                (None, Some(_)) => Some((1, left)),
                (Some(_), None) if node.op_type != "Div" => Some((0, right)),
                _ => None,
            };
            let operand =
                |slot: usize, inverse: bool| Edit { node: id, slot, rank, layout: layout.clone(), inverse };
            match (node.op_type.as_str(), constant) {
                ("Add" | "Sub", Some((slot, other))) => {
                    full(model, other, rank, layout).map_err(|why| refuse(&why))?;
                    Ok(Step::Back(vec![operand(slot, false)], other, layout.clone()))
                }
                ("Mul" | "Div", Some((slot, _))) => {
                    if is_gelu_tail(model, id) {
                        return Err(refuse("it is the end of a GELU that engines run as one operator"));
                    }
                    Ok(Step::End(vec![operand(slot, node.op_type == "Div")]))
                }
                ("Mul", None) => {
                    let both =
                        [left, right].into_iter().filter(|&value| full(model, value, rank, layout).is_ok());
                    Ok(Step::Either(both.map(|value| (value, layout.clone())).collect()))
                }
                ("Add" | "Sub", _) => Err(refuse("it adds two activations")),
                _ => Err(refuse("it divides by an activation")),
            }
        }
        // A positive factor passes through.
        "Relu" | "LeakyRelu" | "PRelu" | "Identity" | "Neg" | "Abs" => {
            let (rank, input) = (rank()?, input(0)?);
            full(model, input, rank, layout).map_err(|why| refuse(&why))?;
            Ok(Step::Back(Vec::new(), input, layout.clone()))
        }
        "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" => {
            single_axis(1)?;
            if node.outputs().len() != 1 {
                return Err(refuse("it returns indices too"));
            }
            Ok(Step::Back(Vec::new(), input(0)?, layout.clone()))
        }
        "Transpose" => {
            let rank = rank()?;
            let order: Vec<usize> = match node.ints("perm") {
                None => (0..rank).rev().collect(),
                Some(order) => {
                    order.iter().map(|&axis| usize::try_from(axis).unwrap_or(usize::MAX)).collect()
                }
            };
            let axes: Option<Vec<usize>> = layout
                .axes
                .iter()
                .map(|&axis| order.get(axis).copied().filter(|&axis| axis < rank))
                .collect();
            let axes = axes.ok_or_else(|| refuse("its order of axes is not valid"))?;
            Ok(Step::Back(Vec::new(), input(0)?, Layout { axes, sizes: layout.sizes.clone() }))
        }
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
            // Row-major order stays, so channels that lie in the last axes lie in the last axes before too.
            let (rank, input) = (rank()?, input(0)?);
            let last: Vec<usize> = (rank.saturating_sub(layout.axes.len())..rank).collect();
            let shape =
                shape_of(model, input).ok_or_else(|| refuse("the shape of its input is not known"))?;
            if layout.axes != last {
                return Err(refuse("channels do not lie in its last axes"));
            }
            let (mut sizes, mut product) = (Vec::new(), 1usize);
            for &size in shape.iter().rev() {
                if product == channels && !sizes.is_empty() {
                    break;
                }
                let size = size.ok_or_else(|| refuse("the sizes of its input's last axes are not known"))?;
                product = product.checked_mul(size).ok_or_else(|| refuse("it is too large"))?;
                sizes.insert(0, size);
            }
            if product != channels {
                return Err(refuse("it mixes channels with other axes"));
            }
            let axes = (shape.len() - sizes.len()..shape.len()).collect();
            Ok(Step::Back(Vec::new(), input, Layout { axes, sizes }))
        }
        _ => Err(refuse("it does not take factors in")),
    }
}

/// Checks that a value has all channels of a layout in their places: it is not broadcast along them.
fn full(model: &Model, value: ValueId, rank: usize, layout: &Layout) -> Result<(), String> {
    let shape = shape_of(model, value).ok_or("the shape of its input is not known")?;
    let all =
        layout.axes.iter().zip(&layout.sizes).all(|(&axis, &size)| shape.get(axis) == Some(&Some(size)));
    if shape.len() == rank && all {
        Ok(())
    } else {
        Err("its input is broadcast along the channels".to_owned())
    }
}

/// Whether a multiplication by one number ends a written-out GELU, x (1 + erf(x / sqrt 2)) / 2: engines
/// run it as one operator only while the factor is a single number.
fn is_gelu_tail(model: &Model, id: NodeId) -> bool {
    let producers = |id: NodeId| {
        let inputs: Vec<ValueId> = model.node(id).inputs().iter().flatten().copied().collect();
        inputs.into_iter().filter_map(|value| model.value(value).producer().map(|(node, _)| node))
    };
    let single = model
        .node(id)
        .inputs()
        .iter()
        .flatten()
        .any(|&value| model.constant(value).is_some_and(|constant| constant.single().is_some()));
    // Mul <- Mul <- Add <- Erf (or Tanh, where it is approximated).
    single
        && producers(id).filter(|&node| model.node(node).is("Mul")).any(|product| {
            producers(product).filter(|&node| model.node(node).is("Add")).any(|sum| {
                producers(sum).any(|node| model.node(node).is("Erf") || model.node(node).is("Tanh"))
            })
        })
}

impl Division {
    /// The node whose constants take the factors in.
    pub(super) fn end(&self) -> Option<NodeId> {
        self.edits.last().map(|edit| edit.node)
    }

    /// Divides by `divisors`, one a channel. Values that come out divided get a name of their own, so that
    /// nobody takes them for what they were. Returns whether it was done: not when a constant would stop
    /// being finite, and then nothing is changed.
    pub(super) fn apply(&self, model: &mut Model, divisors: &[f32]) -> bool {
        let mut made = Vec::new();
        for edit in &self.edits {
            let Some(old) = model.node(edit.node).input(edit.slot) else { return false };
            let Some(tensor) = constant_of(model, old) else { return false };
            let Some(new) = scaled(tensor, edit.rank, &edit.layout, divisors, edit.inverse) else {
                return false;
            };
            made.push((edit, old, new));
        }
        let mut replaced = Vec::new();
        for (edit, old, new) in made {
            let hint = format!("{}_divided", model.value(old).name());
            let graph = model.node(edit.node).graph();
            let new = model.add_constant(graph, &hint, new);
            model.set_input(edit.node, edit.slot, Some(new));
            replaced.push(old);
        }
        drop_unused(model, replaced);
        for &value in &self.values {
            let name = model.fresh_name(&format!("{}_divided", model.value(value).name()));
            // A value of a name that cannot change (an output of a graph) is never on the way.
            let _ = model.rename_value(value, &name);
        }
        true
    }
}

/// A constant, broadcast to `rank` axes with channels as `layout` says, divided (or, `inverse`,
/// multiplied) by one number a channel. `None` when sizes do not fit or a result is not finite.
pub(super) fn scaled(
    tensor: &Tensor,
    rank: usize,
    layout: &Layout,
    divisors: &[f32],
    inverse: bool,
) -> Option<Tensor> {
    let floats = tensor.to_slice::<f32>().ok()?;
    let first = *layout.axes.iter().min()?;
    let missing = rank.checked_sub(tensor.rank())?;
    // Axes in front that are needed to tell channels apart are added, of size 1.
    let added = missing.saturating_sub(first);
    let mut shape = vec![1; added];
    shape.extend(tensor.shape());
    let offset = rank - shape.len();
    let old = shape.clone();
    for (&axis, &size) in layout.axes.iter().zip(&layout.sizes) {
        let held = shape.get_mut(axis.checked_sub(offset)?)?;
        if *held != size && *held != 1 {
            return None;
        }
        *held = size;
    }
    let count = optix_ir::element_count(&shape)?;
    if layout.channels()? != divisors.len() {
        return None;
    }
    let mut result = Vec::with_capacity(count);
    let mut index = vec![0usize; shape.len()];
    for _ in 0..count {
        let at = index.iter().zip(&old).fold(0, |at, (&i, &size)| at * size + if size == 1 { 0 } else { i });
        let channel = layout
            .axes
            .iter()
            .zip(&layout.sizes)
            .fold(0, |at, (&axis, &size)| at * size + index[axis - offset]);
        let (value, divisor) = (f64::from(*floats.get(at)?), f64::from(*divisors.get(channel)?));
        let value = if inverse { value * divisor } else { value / divisor } as f32;
        if !value.is_finite() {
            return None;
        }
        result.push(value);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Some(Tensor::from_vec(shape, result))
}
