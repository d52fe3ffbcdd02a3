//! What an operator computes: exact reference kernels on host tensors.
//!
//! This crate is the truth the fast kernels are checked against: plain code, every element type the
//! standard allows, no speed tricks. It folds constants, evaluates what shape inference needs to know,
//! answers the conformance cases, and runs on the host whatever a fast engine has no kernel for.
//!
//! One file an operator family; each lists its kernels in a `KERNELS` table, and [`KERNELS`] lists the
//! families. Adding an operator is a function and a line.

mod binary;
mod call;
mod cast;
mod conv;
mod deform;
mod detection;
mod einsum;
mod ensemble;
mod fourier;
mod indexing;
mod layout;
mod matmul;
mod movement;
mod normalization;
mod numbers;
mod pad;
mod pooling;
mod quantize;
mod random;
mod reduce;
mod resize;
mod sampling;
mod shape;
mod sorting;
mod strings;
mod training;
mod unary;
mod vectorize;

pub use call::{Call, Kernel, KernelSpec, OpError};

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
