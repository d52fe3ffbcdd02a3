//! The engine that a model is meant for, as passes that care for speed see it.

use optix_ir::{Model, NodeId, Tensor};

use crate::oracle::OracleError;

/// What the engine's clock shows of one of its kernels.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// Nodes of the model that it computes; none for what the engine has added, such as changes of layout.
    pub nodes: Vec<NodeId>,
    /// The operator that was executed.
    pub op_type: String,
    /// Median seconds of a run.
    pub seconds: f64,
}

/// An engine with kernels of its own for integers, on which time is worth measuring.
///
/// What comes from here depends on the machine and its mood: a pass that decides by it decides in
/// [`Cx::decide`](crate::Cx).
pub trait Deployment {
    /// Engine, version and threads, for reports.
    fn describe(&self) -> String;

    /// Seconds of a run of each model, measured in turn for about `seconds` in all: the figures of one
    /// index were taken one right after the other. Outer index: the model.
    ///
    /// # Errors
    /// When a model cannot be run.
    fn latencies(
        &mut self,
        models: &[&Model],
        feeds: &[(String, Tensor)],
        seconds: f64,
    ) -> Result<Vec<Vec<f64>>, OracleError>;

    /// What each kernel takes, in order of execution.
    ///
    /// # Errors
    /// When the model cannot be run or the engine tells nothing about its kernels.
    fn kernels(&mut self, model: &Model, feeds: &[(String, Tensor)]) -> Result<Vec<KernelTime>, OracleError>;
}
