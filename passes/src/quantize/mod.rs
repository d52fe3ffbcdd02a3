//! Fewer bits: passes that write models in integers.

pub mod affine;
mod divide;
mod embedding;
pub mod observer;
pub mod placement;
mod quantize_dynamic;
mod quantize_static;
mod reservoir;
mod rewrite;
mod smooth_activations;
mod smoothing;

pub use quantize_dynamic::QuantizeDynamic;
pub use quantize_static::{ActivationType, QuantizeStatic, RangeObserver};
pub(crate) use rewrite::drop_unused;
pub use smooth_activations::SmoothActivations;
