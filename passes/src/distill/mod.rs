//! Learning from a teacher.

mod augment;
mod course;
#[expect(clippy::module_inception, reason = "one pass, one file, named like the pass")]
mod distill;
mod distill_quantized;
mod features;
mod folded;
mod lesson;
mod pool;
mod school;
mod state;
mod unfolded;

pub use distill::{Distill, Loss};
pub use distill_quantized::DistillQuantized;
pub use unfolded::is_quantized;
