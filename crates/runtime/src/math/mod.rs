//! Numeric loops on plain slices, free of operators and tensors.

pub(crate) mod conv;
pub(crate) mod gemm;
pub(crate) mod matmul;
pub(crate) mod simd;
pub(crate) mod threads;
pub(crate) mod unary;
