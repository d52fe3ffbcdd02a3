//! Fewer bits: passes that write models in integers.

pub mod affine;
pub mod blocks;
mod embedding;
pub mod observer;
pub mod packing;
mod pairs;
pub mod placement;
mod quantize_dynamic;
mod quantize_static;
mod quantize_weights;
mod rewrite;
mod to_qdq;
mod to_qoperator;
mod weights;

pub use quantize_dynamic::QuantizeDynamic;
pub use quantize_static::{ActivationType, QuantizeStatic, RangeObserver};
pub use quantize_weights::{QuantizeWeights, WeightAlgorithm, WeightFormat, ZeroPoints};
pub(crate) use rewrite::drop_unused;
pub use to_qdq::ToQdq;
pub use to_qoperator::ToQoperator;
