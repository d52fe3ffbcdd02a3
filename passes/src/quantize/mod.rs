//! Fewer bits: passes that write models in integers.

pub mod affine;
mod calibrate;
pub mod certificate;
mod decided;
mod embedding;
mod measure;
pub mod observer;
pub mod placement;
mod quantize_dynamic;
mod quantize_static;
mod rewrite;
mod weights;

pub use calibrate::RangeObserver;
pub use certificate::CertifyOverflow;
pub use quantize_dynamic::QuantizeDynamic;
pub use quantize_static::{ActivationType, QuantizeStatic};
pub(crate) use rewrite::drop_unused;
