//! What passes that quantize have in common: models that are quantized already, and layers that stay float.

use optix_ir::{Model, NodeId, ValueId};
use optix_pipeline::{Layer, PassError};

/// Operators whose presence means that a model is quantized already.
pub(super) const QUANTIZED: &[&str] = &[
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "MatMulNBits",
    "QGemm",
    "QLinearAdd",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulBnb4",
    "GatherBlockQuantized",
    "QAttention",
];

/// Refuses a model that is quantized already.
pub(super) fn refuse_quantized(model: &Model) -> Result<(), PassError> {
    match model.walk().find(|&id| QUANTIZED.contains(&model.node(id).op_type.as_str())) {
        None => Ok(()),
        Some(node) => Err(PassError::Model {
            place: format!("node {}", model.describe(node)),
            what: "the model is quantized already; start from the float model (OX-M002)".to_owned(),
        }),
    }
}

/// A node as a row of the ledger, left as it is.
pub(super) fn float_layer(model: &Model, id: NodeId, reason: &str) -> Layer {
    let (node, op) = optix_pipeline::naming::node_and_op(model, id);
    let bytes: u64 = model.node(id).inputs().iter().flatten().map(|&v| constant_bytes(model, v)).sum();
    Layer {
        node,
        op,
        action: "float".to_owned(),
        reason: Some(reason.to_owned()),
        bytes_before: bytes,
        bytes_after: bytes,
        ..Layer::default()
    }
}

pub(super) fn constant_bytes(model: &Model, value: ValueId) -> u64 {
    model.constant(value).map_or(0, |tensor| tensor.bytes().len() as u64)
}
