//! Fusing when a schedule is made: chains of elementwise operators run inside the kernel whose result they
//! change, so that a value is written once and read once.
//!
//! Nothing here changes what a model computes, not by a bit: a chain's program does what the operators' own
//! kernels do. What cannot be known before shapes are (that an operand does not make the result larger) is
//! checked in every run; where it fails, the operators run one by one, and the next schedule cuts the chain
//! there.

mod compile;
mod find;
mod norm;
pub(crate) mod program;
mod run;
#[cfg(test)]
mod tests;

pub(crate) use find::{Item, Route, Terrain, arrange};
