//! Copies of channels: what a product computes from one outlier, it computes as well from n copies of it
//! whose weights are a part each (outlier channel splitting, Zhao et al. 2019, arXiv 1901.09504).
//!
//! Between the layer that makes the channels and the product that reads them only operators may stand that
//! treat every element alone. The copies are then further output channels of that layer, at the price of
//! their share of its work.

use std::collections::BTreeSet;

use optix_ir::{Dim, Model, NodeId, Tensor, Type, Use, ValueId};

use super::divide::shape_of;
use super::rewrite::drop_unused;

/// Values between the layer and the product at most.
const MOST: usize = 64;

/// Operators that treat every element of their one input alone.
const UNARY: &[&str] = &[
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Erf",
    "Gelu",
    "Softplus",
    "Softsign",
    "Mish",
    "Neg",
    "Abs",
    "Exp",
    "Sqrt",
    "Identity",
];

/// Operators that join elements of several inputs, with broadcasting.
const JOINING: &[&str] = &["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "PRelu", "Clip"];

/// Where channels get their copies.
#[derive(Clone, Debug, Default)]
pub(super) struct Widening {
    /// Constants with one entry a channel: node, slot, axis.
    edits: Vec<(NodeId, usize, usize)>,
    /// Values that get more channels, along their last axis.
    values: Vec<ValueId>,
}

/// How the last axis of `value` can get more channels, when only `readers` read it.
///
/// # Errors
/// Why it cannot, in words for people.
pub(super) fn trace(
    model: &Model,
    value: ValueId,
    channels: usize,
    readers: &BTreeSet<NodeId>,
) -> Result<Widening, String> {
    let mut widening = Widening::default();
    let (mut region, mut open, mut seen) = (BTreeSet::new(), vec![value], BTreeSet::from([value]));
    while let Some(value) = open.pop() {
        if seen.len() > MOST {
            return Err("what computes it is too far away".to_owned());
        }
        widening.values.push(value);
        let made = model.value(value).producer().filter(|&(id, _)| {
            let node = model.node(id);
            node.graph() == model.main() && node.domain().is_empty() && node.outputs().len() == 1
        });
        let (id, _) = made.ok_or_else(|| format!("`{}` is not a layer's", model.value(value).name()))?;
        if !region.insert(id) {
            continue;
        }
        let node = model.node(id);
        let refuse = |why: &str| format!("{}: {why}", model.describe(id));
        let sizes = |slot: usize| {
            let input = node.input(slot).ok_or_else(|| refuse("an input is missing"))?;
            let constant = model.constant(input).is_some();
            Ok::<_, String>((
                input,
                constant,
                shape_of(model, input).ok_or_else(|| refuse("a shape is not known"))?,
            ))
        };
        // The constants of a layer: one entry a channel along `axis`.
        let layer = |slot: usize, axis: usize| {
            let (_, constant, shape) = sizes(slot)?;
            match shape.get(axis) {
                Some(&Some(size)) if constant && size == channels => Ok((id, slot, axis)),
                _ => Err(refuse("its weights or bias are not constant, or of another size")),
            }
        };
        match node.op_type.as_str() {
            "MatMul" if sizes(1)?.2.len() == 2 => widening.edits.push(layer(1, 1)?),
            "Gemm" => {
                widening.edits.push(layer(1, usize::from(node.int("transB").unwrap_or(0) == 0))?);
                if node.input(2).is_some() {
                    let (_, constant, shape) = sizes(2)?;
                    match shape.last() {
                        _ if !constant => return Err(refuse("its bias is not constant")),
                        Some(&Some(size)) if size == channels => {
                            widening.edits.push((id, 2, shape.len() - 1))
                        }
                        None | Some(Some(1)) => {}
                        _ => return Err(refuse("its bias has another size")),
                    }
                }
            }
            op if UNARY.contains(&op) || JOINING.contains(&op) => {
                for slot in (0..node.inputs().len()).filter(|&slot| node.input(slot).is_some()) {
                    let (input, constant, shape) = sizes(slot)?;
                    match shape.last() {
                        // Broadcast along the channels: the copies get the same.
                        None | Some(Some(1)) => {}
                        Some(&Some(size)) if size == channels => {
                            if constant {
                                widening.edits.push((id, slot, shape.len() - 1));
                            } else if seen.insert(input) {
                                open.push(input);
                            }
                        }
                        _ => return Err(refuse("the number of its channels is not known")),
                    }
                }
            }
            _ => return Err(refuse("it does not treat every element alone")),
        }
    }
    for &inner in &widening.values {
        let foreign = model.value(inner).uses().iter().any(|used| match *used {
            Use::Node(node, 0) if inner == value && readers.contains(&node) => false,
            Use::Node(node, _) => !region.contains(&node),
            Use::Output(..) => true,
        });
        if foreign {
            return Err(format!("`{}` is read elsewhere too", model.value(inner).name()));
        }
    }
    Ok(widening)
}

/// The entries `index` of a tensor along an axis; `None` when one is not there.
pub(super) fn gather(tensor: &Tensor, axis: usize, index: &[usize]) -> Option<Tensor> {
    let floats = tensor.to_slice::<f32>().ok()?;
    let &size = tensor.shape().get(axis)?;
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    let mut shape = tensor.shape().to_vec();
    shape[axis] = index.len();
    let mut result = Vec::with_capacity(optix_ir::element_count(&shape)?);
    for block in floats.chunks_exact((size * inner).max(1)) {
        for &entry in index {
            result.extend_from_slice(block.get(entry * inner..(entry + 1) * inner)?);
        }
    }
    Some(Tensor::from_vec(shape, result))
}

fn widened(ty: &Type, channels: usize) -> Option<Type> {
    let mut shape: Vec<Dim> = ty.shape()?.to_vec();
    *shape.last_mut()? = Dim::Fixed(channels);
    Some(Type::tensor(ty.dtype()?, shape))
}

impl Widening {
    /// Gives the values the channels that `index` names. `None` when a constant is not float, and then
    /// nothing is changed.
    pub(super) fn apply(&self, model: &mut Model, index: &[usize]) -> Option<()> {
        let mut made = Vec::new();
        for &(node, slot, axis) in &self.edits {
            let old = model.node(node).input(slot)?;
            made.push((node, slot, old, gather(model.constant(old)?, axis, index)?));
        }
        let mut replaced = Vec::new();
        for (node, slot, old, tensor) in made {
            let hint = format!("{}_split", model.value(old).name());
            let new = model.add_constant(model.main(), &hint, tensor);
            model.set_input(node, slot, Some(new));
            replaced.push(old);
        }
        drop_unused(model, replaced);
        let main = model.main();
        for &value in &self.values {
            let ty = model.value(value).ty.as_ref().and_then(|ty| widened(ty, index.len()));
            model.value_mut(value).ty = ty.clone();
            for info in model.graph_mut(main).value_infos.iter_mut().filter(|info| info.value == value) {
                info.ty = ty.clone();
            }
        }
        Some(())
    }
}
