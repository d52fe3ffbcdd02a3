//! Learning from a teacher.

mod augment;
#[expect(clippy::module_inception, reason = "one pass, one file, named like the pass")]
mod distill;
mod pool;
mod school;
mod state;

pub use augment::Augmentation;
pub use distill::{Distill, Loss};
