//! Other floating-point types: float16 and bfloat16 in the place of float32.

mod bounds;
mod convert_precision;
mod cut;
mod graph;
mod ledger;
mod operators;
mod plan;
mod rewrite;
mod search;
mod weights;

pub use convert_precision::{ConvertPrecision, FloatType};
