//! What an operator computes: exact reference kernels on host tensors.
//!
//! This crate is the truth the fast kernels are checked against: plain code, every element type the
//! standard allows, no speed tricks. It folds constants, evaluates what shape inference needs to know,
//! answers the conformance cases, and runs on the host whatever a fast engine has no kernel for.
//!
//! One file an operator family; each lists its kernels in a `KERNELS` table, and [`KERNELS`] lists the
//! families. Adding an operator is a function and a line.

mod attention;
mod binary;
mod call;
mod cast;
mod contrib_attention;
mod contrib_matmul;
mod contrib_norm;
mod contrib_quantized;
mod control;
mod conv;
mod datum;
mod decoder;
mod deform;
mod detection;
mod einsum;
mod ensemble;
mod fourier;
mod gradients;
mod indexing;
mod interpret;
mod layout;
mod losses;
mod matmul;
mod movement;
mod normalization;
mod numbers;
mod pad;
mod pooling;
mod quantize;
mod random;
mod recurrent;
mod reduce;
mod resize;
mod sampling;
mod sequence;
mod shape;
mod sorting;
mod strings;
mod training;
mod unary;
mod vectorize;

pub use call::{Call, Kernel, KernelSpec, OpError};
pub use control::{Body, run_loop, run_map, run_scan};
pub use datum::{Datum, DatumCall, DatumKernel};
pub use interpret::{InterpretError, interpret, output_types, with_bindings};

use optix_ir::{Model, NodeId, Tensor};

/// The kernels, by family.
pub static FAMILIES: &[&[KernelSpec]] = &[
    shape::KERNELS,
    layout::KERNELS,
    pad::KERNELS,
    indexing::KERNELS,
    sorting::KERNELS,
    cast::KERNELS,
    binary::KERNELS,
    unary::KERNELS,
    quantize::KERNELS,
    reduce::KERNELS,
    normalization::KERNELS,
    matmul::KERNELS,
    conv::KERNELS,
    resize::KERNELS,
    attention::KERNELS,
    decoder::KERNELS,
    recurrent::KERNELS,
    losses::KERNELS,
    contrib_matmul::KERNELS,
    contrib_norm::KERNELS,
    contrib_quantized::KERNELS,
    contrib_attention::KERNELS,
    sampling::KERNELS,
    detection::KERNELS,
    pooling::KERNELS,
    deform::KERNELS,
    einsum::KERNELS,
    fourier::KERNELS,
    random::KERNELS,
    strings::KERNELS,
    vectorize::KERNELS,
    ensemble::KERNELS,
    training::KERNELS,
    gradients::KERNELS,
];

/// The kernel of an operator, if there is one.
pub fn find(domain: &str, op_type: &str) -> Option<&'static KernelSpec> {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    FAMILIES.iter().copied().flatten().find(|spec| spec.op_type == op_type && spec.domain == domain)
}

/// Evaluates a node with a limit on the bytes of each output.
///
/// # Errors
/// As [`evaluate`], and when an output would be larger than the limit.
pub fn evaluate_limited(
    node: &optix_ir::Node,
    opset: i64,
    inputs: &[Option<&Tensor>],
    limit: u64,
) -> Result<Vec<Tensor>, OpError> {
    let spec = find(node.domain(), &node.op_type).ok_or_else(|| OpError::NoKernel(node.op_type.clone()))?;
    (spec.run)(&Call { limit, ..Call::new(node, opset, inputs) })
}

/// Evaluates one node of a model on given inputs (one entry an input slot, `None` where omitted).
///
/// # Errors
/// When there is no kernel for it, or the kernel refuses; the error names neither model nor node, which
/// the caller knows.
pub fn evaluate(model: &Model, node: NodeId, inputs: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let opset = model.opset_of(node).unwrap_or(i64::MAX);
    let node = model.node(node);
    let spec = find(node.domain(), &node.op_type).ok_or_else(|| OpError::NoKernel(node.op_type.clone()))?;
    (spec.run)(&Call::new(node, opset, inputs))
}

/// Every operator computed here, with its domain and the version since which: kernels on tensors, on other
/// values, and control flow.
pub fn operators() -> impl Iterator<Item = (&'static str, &'static str, i64)> {
    let tensors = FAMILIES.iter().copied().flatten().map(|spec| (spec.domain, spec.op_type, spec.since));
    let others = sequence::KERNELS.iter().map(|(op_type, since, _)| ("", *op_type, *since));
    // `Identity` is in both tables.
    let others = others.filter(|(domain, op_type, _)| find(domain, op_type).is_none());
    tensors.chain(others).chain(control::OPERATORS.iter().map(|(op_type, since)| ("", *op_type, *since)))
}

/// The kernel of an operator on values that are not all tensors, if there is one for this version.
pub fn find_datum(domain: &str, op_type: &str, opset: i64) -> Option<DatumKernel> {
    if !matches!(domain, "" | "ai.onnx") {
        return None;
    }
    let mut all = sequence::KERNELS.iter();
    all.find(|(name, since, _)| *name == op_type && *since <= opset).map(|(_, _, run)| *run)
}

/// Evaluates one node on values of any type.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_datum(
    node: &optix_ir::Node,
    opset: i64,
    inputs: &[Option<&Datum>],
) -> Result<Vec<Datum>, OpError> {
    let spec = find(node.domain(), &node.op_type);
    let tensors: Option<Vec<Option<&Tensor>>> =
        inputs.iter().map(|input| input.map_or(Some(None), |datum| datum.as_tensor().map(Some))).collect();
    if let (Some(spec), Some(tensors)) = (spec, tensors) {
        let outputs = (spec.run)(&Call::new(node, opset, &tensors))?;
        return Ok(outputs.into_iter().map(Datum::Tensor).collect());
    }
    match (find_datum(node.domain(), &node.op_type, opset), spec) {
        (Some(run), _) => run(&DatumCall { node, opset, inputs }),
        (None, Some(_)) => Err(OpError::Unsupported {
            op: node.op_type.clone(),
            what: "a sequence or optional value as input".into(),
        }),
        (None, None) => Err(OpError::NoKernel(node.op_type.clone())),
    }
}
