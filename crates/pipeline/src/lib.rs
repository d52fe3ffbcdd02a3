//! What a pass, a recipe and a report are, and the runner that puts passes to work.
//!
//! The runner verifies, times, counts, dumps and names; passes only transform. A pass reaches
//! activations only through [`Oracle`], so this crate and every pass build and test without an engine.

pub mod auto;
mod changes;
pub mod check;
mod checkpoint;
mod context;
mod decisions;
mod deployment;
mod fingerprint;
pub mod lock;
pub mod naming;
mod oracle;
mod packed;
mod pass;
pub mod profile;
mod recipe;
pub mod report;
pub mod runner;
mod schema;

pub use optix_data::{
    Augmentation, Batch, Bound, DataError, Dataset, Difference, Distance, InputSpec, Labels, Ratio,
    SignalNoise, check_labels, decibels, noise_at,
};

pub use changes::{Changes, Curve, ErrorSplit, Layer, Skip};
pub use context::{
    Calibration, CheckpointStore, Cx, NoProgress, Progress, Resources, Scratch, StatisticsStore,
};
pub use decisions::{DecisionError, Decisions};
pub use deployment::{Deployment, KernelTime};
pub use fingerprint::{digest, fingerprint};
pub use oracle::{Batches, Case, NoOracle, Oracle, OracleError, PairVisitor, Prepared, Visitor};
pub use packed::{PackedBits, PackedFloats};
pub use pass::{
    Family, Interface, Named, Numerics, OptionHelp, Pass, PassError, PassSpec, Promises, Requires, Topology,
};
pub use recipe::MAX_BYTES as MAX_RECIPE_BYTES;
pub use recipe::{DataOptions, Override, Recipe, RecipeError, Requirements, Step, did_you_mean};
pub use schema::recipe_schema;
