//! Writing quantizers into a graph as QDQ: `QuantizeLinear` and `DequantizeLinear` pairs around
//! activations, int8 weights and int32 biases behind a `DequantizeLinear`.

use optix_ir::{DType, EditError, GraphId, Model, Node, NodeId, Position, Tensor, Use, ValueId};

use super::affine::Affine;

/// The zero point as a scalar of the quantized type; that of floats is 0.
fn zero_point_tensor(zero_point: i32, dtype: DType) -> Tensor {
    match dtype {
        DType::I8 => Tensor::scalar(zero_point as i8),
        DType::I16 => Tensor::scalar(zero_point as i16),
        DType::U16 => Tensor::scalar(zero_point as u16),
        _ if dtype.is_float() => Tensor::from_codes(dtype, vec![], &[0]),
        _ => Tensor::scalar(zero_point as u8),
    }
}

/// Puts a pair behind `value`. With `everybody`, all users read the dequantized value, graph outputs
/// included (which keep their name); otherwise nobody does yet. Returns what the `DequantizeLinear` gives.
///
/// # Errors
/// When the value is a graph output that cannot change its name.
pub(super) fn insert_pair(
    model: &mut Model,
    value: ValueId,
    quantizer: &Affine,
    dtype: DType,
    everybody: bool,
) -> Result<ValueId, EditError> {
    let graph = model.value(value).graph();
    let name = model.value(value).name().to_owned();
    let position = match model.value(value).producer() {
        Some((producer, _)) => Position::After(producer),
        None => Position::Start,
    };
    let scale = model.add_constant(graph, &format!("{name}_scale"), Tensor::scalar(quantizer.scale));
    // Without a zero point where the type can be said otherwise: onnxruntime takes a zero point of 0 that is not
    // int8's for the least integer, and drops a Relu before it.
    let is_declared = dtype.is_float() && model.opset_version(model.main(), "") >= Some(21);
    let mut parameters = vec![scale];
    if !is_declared {
        let zero_point = zero_point_tensor(quantizer.zero_point, dtype);
        parameters.push(model.add_constant(graph, &format!("{name}_zero_point"), zero_point));
    }
    let inputs = |first: ValueId| [first].into_iter().chain(parameters.iter().copied()).collect::<Vec<_>>();
    let mut quantize = Node::new("QuantizeLinear", inputs(value)).named(&format!("{name}_QuantizeLinear"));
    if is_declared {
        quantize = quantize.with("output_dtype", i64::from(dtype.onnx()));
    }
    let (quantize, quantized) = model.add_node(graph, position, quantize, &format!("{name}_quantized"));
    let dequantize =
        Node::new("DequantizeLinear", inputs(quantized)).named(&format!("{name}_DequantizeLinear"));
    let (_, dequantized) =
        model.add_node(graph, Position::After(quantize), dequantize, &format!("{name}_dequantized"));
    model.value_mut(dequantized).ty = model.value(value).ty.clone();
    if everybody {
        let is_output = model.value(value).uses().iter().any(|used| matches!(used, Use::Output(..)));
        if is_output {
            // Takes the pair's own input along, so that is put back.
            model.replace_value(value, dequantized)?;
            model.set_input(quantize, 0, Some(value));
        } else {
            let own = Use::Node(quantize, 0);
            model.replace_uses_where(value, dequantized, |_, used| used != own);
        }
    }
    Ok(dequantized)
}

/// A constant behind a `DequantizeLinear`, placed before `user`: int8 weights or int32 bias.
///
/// `scales` holds one scale, or one a channel along `axis`.
pub(super) fn dequantized_constant(
    model: &mut Model,
    graph: GraphId,
    user: NodeId,
    name: &str,
    integers: Tensor,
    scales: &[f32],
    axis: Option<usize>,
) -> ValueId {
    let dtype = integers.dtype();
    let integers = model.add_constant(graph, &format!("{name}_quantized"), integers);
    let shape = if axis.is_some() { vec![scales.len()] } else { vec![] };
    let scale = Tensor::from_vec(shape.clone(), scales.to_vec());
    let scale = model.add_constant(graph, &format!("{name}_scale"), scale);
    let zeros = Tensor::zeros(dtype, shape).expect("as many zeros as there are scales");
    let zeros = model.add_constant(graph, &format!("{name}_zero_point"), zeros);
    let mut node =
        Node::new("DequantizeLinear", [integers, scale, zeros]).named(&format!("{name}_DequantizeLinear"));
    if let Some(axis) = axis {
        node = node.with("axis", axis as i64);
    }
    model.add_node(graph, Position::Before(user), node, &format!("{name}_dequantized")).1
}

/// Removes constants nobody uses any more, `Constant` nodes included.
pub(crate) fn drop_unused(model: &mut Model, values: impl IntoIterator<Item = ValueId>) {
    for value in values {
        let Some(held) = model.get_value(value) else { continue };
        if !held.uses().is_empty() {
            continue;
        }
        match held.producer() {
            Some((node, _)) if model.node(node).is("Constant") => {
                let _ = model.remove_node(node);
            }
            Some(_) => {}
            None => {
                model.remove_value(value);
            }
        }
    }
}
