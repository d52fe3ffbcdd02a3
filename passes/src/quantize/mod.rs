//! Fewer bits: passes that write models in integers.

pub mod affine;
mod chains;
mod divide;
mod embedding;
mod equalize_layers;
pub mod observer;
pub mod placement;
mod quantize_dynamic;
mod quantize_static;
mod reservoir;
mod rewrite;
mod smooth_activations;
mod smoothing;
mod split;

pub use equalize_layers::{EqualizeLayers, EqualizeMode};
pub use quantize_dynamic::QuantizeDynamic;
pub use quantize_static::{ActivationType, QuantizeStatic, RangeObserver};
pub(crate) use rewrite::drop_unused;
pub use smooth_activations::SmoothActivations;
