//! Which range loses least, measured where it counts: at the outputs of the layers that read the tensor.

use optix_ir::{DType, Dim, Model, Node, Position, Tensor, Type, Use, ValueInfo};
use optix_pipeline::{Cx, PassError};

use super::affine::Affine;
use super::excerpts::{Cut, Excerpts};
use super::placement::WeightedNode;

/// How the input of a layer is cut into excerpts; `None` when no part of it gives a part of the output.
pub(super) fn cut_of(model: &Model, weighted: &WeightedNode) -> Option<Cut> {
    let node = model.node(weighted.node);
    let weights = model.constant(node.input(weighted.weight_slot)?)?;
    match node.op_type.as_str() {
        "Conv" => {
            let kernel = weights.shape().get(2..)?;
            let dilations = node.ints("dilations").unwrap_or_default();
            let extent = |(axis, &size): (usize, &usize)| {
                let dilation = dilations.get(axis).map_or(1, |dilation| (*dilation).max(1) as usize);
                size.saturating_sub(1).saturating_mul(dilation).saturating_add(1)
            };
            Some(Cut::Window(kernel.iter().enumerate().map(extent).collect()))
        }
        "Gemm" => Some(Cut::Rows),
        "MatMul" if weights.rank() == 2 => Some(Cut::Rows),
        _ => None,
    }
}

/// The layer alone, with its weights and bias.
fn alone(model: &Model, weighted: &WeightedNode, rank: usize) -> Option<Model> {
    let node = model.node(weighted.node);
    let mut part = Model::new();
    part.ir_version = model.ir_version;
    part.opset_imports = model.opset_imports.clone();
    let main = part.main();
    let dims = || std::iter::repeat_n(Dim::Unknown, rank);
    let ty = || Some(Type::tensor(DType::F32, dims()));
    let x = part.add_value(main, "x");
    part.add_input(ValueInfo::new(x, ty()));
    let weights = model.constant(node.input(weighted.weight_slot)?)?.clone();
    let mut inputs = vec![x, part.add_constant(main, "w", weights)];
    if let Some(bias) = weighted.bias_slot.and_then(|slot| model.constant(node.input(slot)?)) {
        inputs.push(part.add_constant(main, "b", bias.clone()));
    }
    let mut own = Node::new(&node.op_type, inputs);
    own.attributes = node.attributes.clone();
    let (_, y) = part.add_node(main, Position::End, own, "y");
    part.add_output(main, ValueInfo::new(y, ty()));
    Some(part)
}

/// Whether a `Relu` is folded into the layer's output.
fn has_relu(model: &Model, weighted: &WeightedNode) -> bool {
    let output = model.node(weighted.node).output(0);
    output != Some(weighted.output)
        && output.is_some_and(|output| {
            let uses = model.value(output).uses();
            uses.iter().any(|used| matches!(used, Use::Node(user, 0) if model.node(*user).is("Relu")))
        })
}

/// Squared error of a layer's output over its squared sum, for each quantizer of its input alone: weights and
/// everything before stay float. Zeros where there is nothing to measure on.
pub(super) fn relative_errors(
    model: &Model,
    weighted: &WeightedNode,
    excerpts: &Excerpts,
    quantizers: &[Affine],
    cx: &mut Cx<'_>,
) -> Result<Vec<f64>, PassError> {
    let nothing = vec![0.0; quantizers.len()];
    let Some(input) = excerpts.tensor() else { return Ok(nothing) };
    let Some(part) = alone(model, weighted, input.rank()) else { return Ok(nothing) };
    let floats = input.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
    // One run: the float input and behind it, along axis 0, every quantized one.
    let mut fed = floats.to_vec();
    for quantizer in quantizers {
        fed.extend(floats.iter().map(|&x| quantizer.round_trip(x)));
    }
    let mut shape = input.shape().to_vec();
    shape[0] *= quantizers.len() + 1;
    let feeds = [("x".to_owned(), Tensor::from_vec(shape, fed))];
    let found = cx.oracle().outputs(&part, &feeds)?;
    let Some(found) = found.first().and_then(|found| found.to_slice::<f32>().ok()) else {
        return Ok(nothing);
    };
    let size = found.len() / (quantizers.len() + 1);
    let relu = has_relu(model, weighted);
    let value = |x: f32| f64::from(if relu { x.max(0.0) } else { x });
    let (expected, others) = found.split_at(size);
    let signal: f64 = expected.iter().map(|&x| value(x) * value(x)).sum();
    if size == 0 || signal.is_nan() || signal <= 0.0 {
        return Ok(nothing);
    }
    let noise = |other: &[f32]| -> f64 {
        expected.iter().zip(other).map(|(&a, &b)| (value(a) - value(b)).powi(2)).sum()
    };
    Ok(others.chunks_exact(size).map(|other| noise(other) / signal).collect())
}
