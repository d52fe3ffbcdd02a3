//! Takes places away: in constants, in what nodes say about sizes, and in declared shapes.

use optix_ir::view::{self, Parameter};
use optix_ir::{Dim, Model, NodeId, Tensor, TensorType, Type, ValueId};

use super::places::{Axes, Axis, Held, Places};
use super::relations::axis_of;
use super::shapes::entry;

/// Takes places away from a model; `is_gone` is asked of places that stand for others.
///
/// # Errors
/// What does not fit, when a shape cannot be changed.
pub(in crate::prune) fn cut(
    model: &mut Model,
    places: &Places,
    is_gone: &dyn Fn(usize) -> bool,
) -> Result<(), String> {
    let cut = Cut { places, is_gone };
    // Nodes say sizes of what they read as it is before anything changes.
    for node in model.node_list(model.main()) {
        cut.node(model, node)?;
    }
    for (held, axes) in places.tensors() {
        let kept: Vec<Option<Vec<usize>>> = axes.iter().map(|axis| axis.map(|axis| cut.kept(axis))).collect();
        let is_whole = |(axis, kept): (&Option<Axis>, &Option<Vec<usize>>)| {
            axis.map(|axis| axis.size) == kept.as_ref().map(Vec::len)
        };
        if axes.iter().zip(&kept).all(is_whole) {
            continue;
        }
        match model.constant(held.value).cloned() {
            Some(tensor) => {
                let all: Vec<Vec<usize>> = kept.into_iter().flatten().collect();
                let smaller = take(&tensor, &all).ok_or_else(|| {
                    format!("`{}` cannot be cut: it is {}", model.value(held.value).name(), tensor.dtype())
                })?;
                put(model, held, smaller);
            }
            None => retype(model, held.value, &kept),
        }
    }
    Ok(())
}

/// Gives a reader another constant, the value itself where nobody else reads it.
fn put(model: &mut Model, held: Held, tensor: Tensor) {
    match held.reader {
        Some((node, slot)) if model.value(held.value).uses().len() > 1 => {
            let hint = model.value(held.value).name().to_owned();
            let own = model.add_constant(model.main(), &hint, tensor);
            model.set_input(node, slot, Some(own));
        }
        _ => model.set_tensor(held.value, tensor),
    }
    redeclare(model, held.value);
}

/// Elements at some places along each axis.
fn take(tensor: &Tensor, kept: &[Vec<usize>]) -> Option<Tensor> {
    let width = tensor.bytes().len() / tensor.len().max(1);
    if tensor.len() * width != tensor.bytes().len() || kept.len() != tensor.rank() || width == 0 {
        return None;
    }
    let mut starts = vec![0usize];
    for (&size, kept) in tensor.shape().iter().zip(kept) {
        starts = starts.iter().flat_map(|start| kept.iter().map(move |place| start * size + place)).collect();
    }
    let bytes: Vec<u8> = starts
        .iter()
        .flat_map(|start| tensor.bytes()[start * width..(start + 1) * width].iter().copied())
        .collect();
    Tensor::new(tensor.dtype(), kept.iter().map(Vec::len).collect::<Vec<usize>>(), bytes.into()).ok()
}

fn retype(model: &mut Model, value: ValueId, kept: &[Option<Vec<usize>>]) {
    let Some(Type::Tensor(TensorType { dtype, shape: Some(shape), .. })) = model.value(value).ty.clone()
    else {
        return;
    };
    let dims: Vec<Dim> = shape
        .into_iter()
        .zip(kept)
        .map(|(dim, kept)| kept.as_ref().map_or(dim, |kept| Dim::Fixed(kept.len())))
        .collect();
    if let Some(dtype) = dtype {
        model.value_mut(value).ty = Some(Type::tensor(dtype, dims));
    }
    redeclare(model, value);
}

/// What the graph declares of a value follows what is known of it.
fn redeclare(model: &mut Model, value: ValueId) {
    let (main, ty) = (model.main(), model.value(value).ty.clone());
    for info in &mut model.graph_mut(main).value_infos {
        if info.value == value {
            info.ty.clone_from(&ty);
        }
    }
}

struct Cut<'a> {
    places: &'a Places,
    is_gone: &'a dyn Fn(usize) -> bool,
}

impl Cut<'_> {
    /// The places of an axis that stay, from 0.
    fn kept(&self, axis: Axis) -> Vec<usize> {
        let is_kept = |index: &usize| !(self.is_gone)(self.places.root(axis.at(*index)));
        (0..axis.size).filter(is_kept).collect()
    }

    fn input(&self, model: &Model, node: NodeId, slot: usize) -> Option<&Axes> {
        self.places.known(Held { value: model.node(node).input(slot)?, reader: None })
    }

    fn output(&self, model: &Model, node: NodeId, slot: usize) -> Option<&Axes> {
        self.places.known(Held { value: model.node(node).output(slot)?, reader: None })
    }

    /// How many places of an axis stay.
    fn left(&self, axes: Option<&Axes>, number: usize) -> Option<usize> {
        Some(self.kept(axes?.get(number).copied().flatten()?).len())
    }

    fn node(&self, model: &mut Model, node: NodeId) -> Result<(), String> {
        if !model.node(node).domain().is_empty() {
            return Ok(());
        }
        match model.node(node).op_type.as_str() {
            "Conv" => self.groups(model, node, self.left(self.input(model, node, 0), 1)),
            "ConvTranspose" => self.groups(model, node, self.left(self.output(model, node, 0), 1)),
            "LSTM" | "GRU" | "RNN" => {
                if let Some(units) = self.left(self.input(model, node, 2), 2) {
                    model.node_mut(node).set_attribute("hidden_size", units as i64);
                }
            }
            "Split" => self.split(model, node),
            "Slice" => self.slice(model, node),
            "Reshape" => self.reshape(model, node),
            _ => {}
        }
        Ok(())
    }

    /// As many groups as there are now channels for.
    fn groups(&self, model: &mut Model, node: NodeId, channels: Option<usize>) {
        let within = self.left(self.input(model, node, 1), 1);
        if model.node(node).int("group").unwrap_or(1) != 1
            && let (Some(channels), Some(within)) = (channels, within)
            && within > 0
        {
            model.node_mut(node).set_attribute("group", (channels / within) as i64);
        }
    }

    fn split(&self, model: &mut Model, node: NodeId) {
        let Some(split) = view::Split::view(model, node) else { return };
        let Some(axes) = self.input(model, node, 0) else { return };
        let Ok(axis) = axis_of(split.axis, axes.len()) else { return };
        let is_changed =
            axes[axis].is_some_and(|whole| self.left(Some(axes), axis).is_some_and(|left| left < whole.size));
        let parts: Option<Vec<i64>> = (0..split.outputs.len())
            .map(|slot| Some(self.left(self.output(model, node, slot), axis)? as i64))
            .collect();
        let (true, Some(parts)) = (is_changed, parts) else { return };
        model.node_mut(node).remove_attribute("num_outputs");
        if model.opset_of(node).unwrap_or(13) < 13 {
            model.node_mut(node).set_attribute("split", parts);
        } else {
            self.give(model, node, 1, "split", &parts);
        }
    }

    /// Gives a node integers as an input.
    fn give(&self, model: &mut Model, node: NodeId, slot: usize, hint: &str, integers: &[i64]) {
        let own = model.add_constant(model.main(), hint, Tensor::from_i64s(integers));
        model.set_input(node, slot, Some(own));
    }

    fn slice(&self, model: &mut Model, node: NodeId) {
        let Some(slice) = view::Slice::view(model, node) else { return };
        let (Parameter::Known(mut starts), Parameter::Known(mut ends)) = (slice.starts, slice.ends) else {
            return;
        };
        let Some(axes) = slice.axes.known_or((0..starts.len() as i64).collect()) else { return };
        let (Some(x), Some(y)) = (self.input(model, node, 0), self.output(model, node, 0)) else { return };
        let mut is_changed = false;
        for (at, &axis) in axes.iter().enumerate() {
            let Ok(axis) = axis_of(axis, x.len()) else { return };
            let (Some(from), Some(to)) = (x[axis], y[axis]) else { continue };
            let (kept, left) = (self.kept(from), self.kept(to).len());
            if kept.len() == from.size {
                continue;
            }
            let start = if starts[at] < 0 { starts[at] + from.size as i64 } else { starts[at] };
            let start = usize::try_from(start.max(0)).unwrap_or(0);
            let before = kept.iter().filter(|place| **place < start).count();
            (starts[at], ends[at]) = (before as i64, (before + left) as i64);
            is_changed = true;
        }
        if !is_changed {
            return;
        }
        if model.opset_of(node).unwrap_or(13) < 10 {
            model.node_mut(node).set_attribute("starts", starts);
            model.node_mut(node).set_attribute("ends", ends);
        } else {
            self.give(model, node, 1, "starts", &starts);
            self.give(model, node, 2, "ends", &ends);
        }
    }

    /// The shape that it makes, where that says sizes which change.
    fn reshape(&self, model: &mut Model, node: NodeId) {
        let Some(axes) = self.output(model, node, 0) else { return };
        for (number, axis) in axes.iter().enumerate() {
            let Some(axis) = axis else { continue };
            let left = self.kept(*axis).len();
            if left == axis.size {
                continue;
            }
            let Some(entry) = entry(model, node, number) else { continue };
            let Some(mut integers) = model.constant(entry.value).and_then(|held| held.to_i64s().ok()) else {
                continue;
            };
            // -1 is what is left over, 0 what the input has there.
            if integers[entry.at] > 0 {
                integers[entry.at] = left as i64;
                put(
                    model,
                    Held { value: entry.value, reader: Some(entry.reader) },
                    Tensor::from_i64s(&integers),
                );
            }
        }
    }
}
