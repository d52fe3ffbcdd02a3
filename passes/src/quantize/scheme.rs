//! How the integers of a node stand for reals, read off the written model.

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_pipeline::Layer;

/// What one input of a node is made of.
struct Kind {
    bits: u32,
    text: String,
    is_constant: bool,
}

/// Describes a quantized input; `None` for one that is none.
fn kind(model: &Model, value: ValueId) -> Option<Kind> {
    let (id, _) = model.value(value).producer()?;
    let node = model.node(id);
    if !node.is("DequantizeLinear") {
        return None;
    }
    let integers = node.input(0)?;
    let is_constant = model.constant(integers).is_some();
    let zero = node.input(2).and_then(|zero| model.constant(zero));
    let made_by_quantizer = || {
        let (id, _) = model.value(integers).producer()?;
        let quantizer = model.node(id);
        let zero = quantizer.input(2).and_then(|zero| model.constant(zero));
        quantizer.is("QuantizeLinear").then(|| zero.map_or(DType::U8, |zero| zero.dtype()))
    };
    let dtype = match model.constant(integers) {
        Some(tensor) => tensor.dtype(),
        None => made_by_quantizer()?,
    };
    let is_symmetric = zero.is_none_or(|zero| zero.to_f64s().is_ok_and(|all| all.iter().all(|x| *x == 0.0)));
    let scales = node.input(1).and_then(|scale| model.constant(scale)).map_or(1, |scale| scale.len());
    let block = node.int("block_size").unwrap_or(0);
    let each = match (block, scales) {
        (1.., _) => format!("a block of {block}"),
        (_, 0 | 1) => "all".to_owned(),
        _ => "a channel".to_owned(),
    };
    let symmetry = match (dtype.is_integer(), is_symmetric) {
        (false, _) => "",
        (_, true) => " symmetric",
        _ => " asymmetric",
    };
    Some(Kind {
        bits: dtype.bits() as u32,
        text: format!("{dtype}{symmetry}, a scale for {each}"),
        is_constant,
    })
}

/// Writes bits and scheme of a node of the quantized model into its row. A bias counts with the weights, and
/// is not told.
pub(super) fn describe(model: &Model, id: NodeId, layer: &mut Layer) {
    let Some(node) = model.get_node(id) else { return };
    let kinds: Vec<Kind> = node.inputs().iter().take(2).flatten().filter_map(|&v| kind(model, v)).collect();
    let weights = kinds.iter().find(|kind| kind.is_constant);
    let activation = kinds.iter().find(|kind| !kind.is_constant);
    layer.weight_bits = weights.map(|kind| kind.bits);
    layer.activation_bits = activation.map(|kind| kind.bits);
    let texts: Vec<String> = [("weights", weights), ("activations", activation)]
        .into_iter()
        .filter_map(|(what, kind)| kind.map(|kind| format!("{what} {}", kind.text)))
        .collect();
    layer.scheme = (!texts.is_empty()).then(|| texts.join("; "));
}
