//! optix makes trained models smaller and faster, and proves what that cost.
//!
//! This crate is the facade for programs: the crates it is made of, under one name. The command line is
//! built from the same parts; what may be typed is in [`cli`], which docs/cli.md is made from.

pub mod cli;

pub use optix_base as base;
pub use optix_data as data;
pub use optix_io as io;
pub use optix_ir as ir;
pub use optix_ops as ops;
pub use optix_passes as passes;
pub use optix_pipeline as pipeline;
pub use optix_runtime as runtime;
