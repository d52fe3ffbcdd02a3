//! Embedding tables: constants that Gather reads rows of.
//!
//! Rounding a table costs no calibration and, since only the rows read are turned back into float, no
//! time. The table becomes int8. With one scale for the whole table a `DequantizeLinear` goes behind the
//! Gather; with a scale a row these are gathered too and multiplied.

use optix_ir::{DType, Model, Node, NodeId, Position, Tensor, Use, ValueId};
use optix_pipeline::{Cx, Layer, PassError};

use super::affine::{Affine, channel_maxima, quantize_weights};
use super::rewrite::drop_unused;

/// A table that would come out noisier than this, in dB, stays float: everything behind it would suffer.
const LEAST_SQNR: f64 = 20.0;

/// Tables below this many elements are not worth a node.
const SMALLEST: usize = 4096;

/// Quantizes the tables that only Gather reads, along their first axis, with one scale each.
pub(super) fn quantize_tables(
    model: &mut Model,
    cx: &mut Cx<'_>,
    wanted: &dyn Fn(&Model, NodeId) -> Result<(), String>,
) -> Result<(), PassError> {
    quantize(model, cx, wanted, false)
}

/// The same with a scale a row: rows of very different size keep their precision.
pub(super) fn quantize_tables_by_row(
    model: &mut Model,
    cx: &mut Cx<'_>,
    wanted: &dyn Fn(&Model, NodeId) -> Result<(), String>,
) -> Result<(), PassError> {
    quantize(model, cx, wanted, true)
}

fn quantize(
    model: &mut Model,
    cx: &mut Cx<'_>,
    wanted: &dyn Fn(&Model, NodeId) -> Result<(), String>,
    by_row: bool,
) -> Result<(), PassError> {
    let main = model.main();
    let tables: Vec<ValueId> = model.graph(main).initializers().to_vec();
    for table in tables {
        let Some(tensor) = model.value(table).constant().cloned() else { continue };
        if tensor.dtype() != DType::F32 || tensor.rank() != 2 || tensor.len() < SMALLEST {
            continue;
        }
        let users: Vec<NodeId> = model
            .value(table)
            .uses()
            .iter()
            .filter_map(|used| match used {
                Use::Node(node, 0) if is_row_gather(model, *node, main) => Some(*node),
                _ => None,
            })
            .collect();
        if users.is_empty() || users.len() != model.value(table).uses().len() {
            continue;
        }
        if let Some(reason) = users.iter().find_map(|&user| wanted(model, user).err()) {
            cx.skip(model, users[0], reason);
            continue;
        }
        let floats = tensor.to_slice::<f32>().map_err(|error| PassError::Options(error.to_string()))?;
        if floats.iter().any(|weight| !weight.is_finite()) {
            cx.skip(model, users[0], "its table holds NaN or infinite values");
            continue;
        }
        let axis = by_row.then_some(0);
        let maxima = channel_maxima(&floats, tensor.shape(), axis);
        let scales = maxima.into_iter().map(|max| Affine::symmetric_int8(max).scale).collect();
        let quantized = quantize_weights(&floats, tensor.shape(), axis, scales);
        let sqnr = quantized.sqnr_db();
        if let Some(sqnr) = sqnr.filter(|sqnr| *sqnr < LEAST_SQNR) {
            let reason = format!(
                "{} for its table would leave {sqnr:.1} dB: {} are far larger than the rest",
                if by_row { "int8" } else { "one scale" },
                if by_row { "a few numbers" } else { "a few rows" }
            );
            cx.layer(super::quantized::float_layer(model, users[0], &reason));
            cx.skip(model, users[0], reason);
            continue;
        }
        if !cx.may_edit("quantize-table") {
            return Ok(());
        }
        let name = model.value(table).name().to_owned();
        let integers = model.add_constant(main, &format!("{name}_quantized"), quantized.integers);
        let shape = if by_row { vec![tensor.shape()[0], 1] } else { vec![] };
        let parameter_bytes = quantized.scales.len() as u64 * 4 + u64::from(!by_row);
        let scale = Tensor::from_vec(shape, quantized.scales);
        let scale = model.add_constant(main, &format!("{name}_scale"), scale);
        let zero_point =
            (!by_row).then(|| model.add_constant(main, &format!("{name}_zero_point"), Tensor::scalar(0i8)));
        for user in users {
            let Some(rows) = model.node(user).output(0) else { continue };
            let (node, op) = optix_pipeline::naming::node_and_op(model, user);
            let rows_name = model.value(rows).name().to_owned();
            let ty = model.value_mut(rows).ty.take();
            // What the node that reads the gathered integers is, and what everybody else reads.
            let (reader, floats) = match zero_point {
                Some(zero_point) => {
                    let dequantize = Node::new("DequantizeLinear", [rows, scale, zero_point])
                        .named(&format!("{rows_name}_DequantizeLinear"));
                    let hint = format!("{rows_name}_dequantized");
                    model.add_node(main, Position::After(user), dequantize, &hint)
                }
                None => {
                    let cast = Node::new("Cast", [rows]).with("to", i64::from(DType::F32.onnx()));
                    let (cast, numbers) =
                        model.add_node(main, Position::After(user), cast, &format!("{rows_name}_integers"));
                    let ids = model.node(user).input(1);
                    let gather =
                        Node::with_optional_inputs("Gather", vec![Some(scale), ids]).with("axis", 0i64);
                    let (gather, scales) =
                        model.add_node(main, Position::After(cast), gather, &format!("{rows_name}_scales"));
                    let multiply = Node::new("Mul", [numbers, scales]);
                    let hint = format!("{rows_name}_dequantized");
                    let (_, floats) = model.add_node(main, Position::After(gather), multiply, &hint);
                    (cast, floats)
                }
            };
            model.value_mut(floats).ty = ty;
            model.replace_value(rows, floats)?;
            model.set_input(reader, 0, Some(rows));
            model.set_input(user, 0, Some(integers));
            cx.layer(Layer {
                node,
                op,
                action: "int8 table".to_owned(),
                bytes_before: tensor.bytes().len() as u64,
                bytes_after: tensor.len() as u64 + parameter_bytes,
                weight_sqnr_db: sqnr,
                weight_bits: Some(8),
                scheme: Some(format!(
                    "table int8 symmetric, a scale for {}",
                    if by_row { "a row" } else { "all" }
                )),
                ..Layer::default()
            });
            cx.count("tables quantized", 1);
        }
        drop_unused(model, [table]);
    }
    Ok(())
}

fn is_row_gather(model: &Model, id: NodeId, graph: optix_ir::GraphId) -> bool {
    let node = model.node(id);
    node.is("Gather") && node.graph() == graph && node.int("axis").unwrap_or(0) == 0
}
