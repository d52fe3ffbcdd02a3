//! Fewer bits: passes that write models in integers.

pub mod affine;
mod embedding;
pub mod observer;
pub mod placement;
mod quantize_dynamic;
mod quantize_static;
mod rewrite;

pub use quantize_dynamic::QuantizeDynamic;
pub use quantize_static::{ActivationType, QuantizeStatic, RangeObserver};
pub(crate) use rewrite::drop_unused;
