//! Fewer bits: passes that write models in integers.

pub mod affine;
pub mod observer;
pub mod placement;
mod quantize_static;
mod rewrite;

pub use quantize_static::QuantizeStatic;
