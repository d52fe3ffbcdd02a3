//! Runs models: engines, sessions, and the kernels under them.
//!
//! [`Engine`] loads a model into a [`Session`], which runs it on feeds and shows any values a caller wants
//! to see. The embedded engine, [`Cpu`], plans a model once (kernels chosen for every node, constants
//! folded and packed) and then walks a flat list of steps, of which `fuse` makes groups that run as one. Its kernels for 32-bit floats and 8-bit integers
//! are in `kernels`, one file an operator family, over the numeric loops in `math`; everything else runs on
//! the reference kernels of `optix_ops`.
//!
//! Results do not depend on the number of threads: every sum has a fixed order.

mod batching;
mod case;
mod control;
mod deployment;
mod device;
mod engine;
mod engines;
mod error;
mod fuse;
mod guard;
mod kernels;
mod machine;
mod math;
mod onnxruntime;
mod oracle;
mod ort_errors;
mod ort_tensors;
mod parts;
mod plan;
mod predict;
mod profile;
mod session;
mod step;
mod stream;

pub use batching::{Asked, Batching, Proof, batching, value_bytes};
pub use deployment::{EngineDeployment, cpu_seconds, settle};
pub use device::Placement;
pub use engine::{Engine, LoadOptions, Session, Visit};
pub use engines::{Burn, Cpu, Found, all_engines, engine, engine_names, engines};
pub use error::{RuntimeError, Unsupported};
pub use machine::{DeviceInfo, Machine};
pub use onnxruntime::OnnxRuntime;
pub use oracle::EngineOracle;
pub use profile::{NodeFacts, Ran, Roofline, StepFacts, StepTimes, Times, roofline};
pub use stream::{Lane, Look, Outcome, stream};
