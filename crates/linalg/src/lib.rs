//! Linear algebra that passes need, on slices of f32 laid out row by row.
//!
//! The one crate that knows the library behind it: its generic code is compiled here, once. Work is cut into
//! blocks whose size does not depend on the number of threads, and each block is computed by one: results are
//! the same to the bit on however many.

mod factor;
mod moments;

pub use factor::{damped_inverse, eigen, inverse, inverse_factor, product, subtract_from_columns};
pub use moments::{Gram, Moments, add_products, subtract_product};
