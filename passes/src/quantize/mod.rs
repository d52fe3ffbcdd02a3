//! Fewer bits: passes that write models in integers.

pub mod affine;
mod calibrate;
mod data_linter;
mod embedding;
mod measure;
pub mod observer;
mod output_error;
pub mod placement;
mod quantize_dynamic;
mod quantize_static;
mod rewrite;
mod statistics;
mod weights;

pub use calibrate::RangeObserver;
pub use quantize_dynamic::QuantizeDynamic;
pub use quantize_static::{ActivationType, QuantizeStatic};
pub(crate) use rewrite::drop_unused;
