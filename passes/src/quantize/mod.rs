//! Fewer bits: passes that write models in integers.

pub mod affine;
mod calibrate;
pub mod certificate;
mod compress_weights;
mod cut;
mod decided;
mod embedding;
mod faster;
mod measure;
pub mod observer;
mod pairs;
pub mod placement;
mod quantize_dynamic;
mod quantize_static;
mod rewrite;
mod sensitivity;
mod weights;

pub use calibrate::RangeObserver;
pub use certificate::CertifyOverflow;
pub use compress_weights::CompressWeights;
pub use quantize_dynamic::QuantizeDynamic;
pub use quantize_static::{ActivationType, QuantizeStatic, Saturation};
pub(crate) use rewrite::drop_unused;
