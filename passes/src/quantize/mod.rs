//! Fewer bits: passes that write models in integers.

pub mod affine;
mod calibrate;
pub mod certificate;
mod chains;
mod compress_weights;
mod cut;
mod data_linter;
mod decided;
mod divide;
mod embedding;
mod equalize_layers;
mod faster;
mod measure;
pub mod observer;
mod output_error;
mod pairs;
pub mod placement;
mod quantize_dynamic;
mod quantize_static;
mod reservoir;
mod rewrite;
mod sensitivity;
mod smooth_activations;
mod smoothing;
mod split;
mod statistics;
mod weights;

pub use calibrate::RangeObserver;
pub use certificate::CertifyOverflow;
pub use compress_weights::CompressWeights;
pub use equalize_layers::{EqualizeLayers, EqualizeMode};
pub use quantize_dynamic::QuantizeDynamic;
pub use quantize_static::{ActivationType, QuantizeStatic, Saturation};
pub(crate) use rewrite::drop_unused;
pub use smooth_activations::SmoothActivations;
