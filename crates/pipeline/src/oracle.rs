//! What a pass may ask of an engine.
//!
//! `optix-runtime` implements [`Oracle`] over its engines; tests of passes implement it over the
//! reference kernels. Every question names the model it is about.

use bytes::Bytes;
use optix_data::{Batch, DataError};
use optix_ir::{Model, Tensor, ValueId};

/// Batches of samples, as a data set yields them.
pub type Batches<'a> = &'a mut dyn Iterator<Item = Result<Batch, DataError>>;

/// A node that failed, on its own: what it takes to see a failure again.
#[derive(Clone, Debug)]
pub struct Case {
    /// An ONNX file of that node alone.
    pub model: Bytes,
    /// What it was fed.
    pub feeds: Vec<(String, Tensor)>,
}

/// Why an engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// Operators of the model that the engine cannot run, all of them.
    #[error(
        "{engine} cannot run this model (OX-M003): {} unsupported: {}",
        if *count == 1 { "one node is".to_owned() } else { format!("{count} nodes are") },
        reasons.join("; ")
    )]
    Unsupported {
        /// The engine.
        engine: String,
        /// Number of such nodes.
        count: usize,
        /// Every reason with the nodes it keeps from running.
        reasons: Vec<String>,
    },
    /// A node failed on given data.
    #[error("node {node}: {what}")]
    Node {
        /// The node, described.
        node: String,
        /// What went wrong.
        what: String,
    },
    /// The feeds do not fit the model.
    #[error("{0}")]
    Feeds(String),
    /// The data set gave an error.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The machine is at fault (memory, device, library).
    #[error("{0}")]
    Environment(String),
    /// A panic inside a kernel or library.
    #[error("internal error in {node}: {what}")]
    Internal {
        /// The node, described.
        node: String,
        /// What the panic said.
        what: String,
        /// The node on its own, where it can be cut out.
        case: Option<Box<Case>>,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
    /// Data or an engine were asked for while a lock is applied: a bug of the pass, which is to ask for them
    /// within [`Cx::decide`](crate::Cx::decide).
    #[error(
        "internal error: the pass wants data or an engine outside of its decisions, so no lock can repeat it"
    )]
    Replaying,
}

/// Looks at values of one batch; see [`Oracle::observe`].
pub type Visitor<'a> = &'a mut dyn FnMut(ValueId, &Tensor) -> Result<(), OracleError>;

/// Looks at one batch and the outputs of two models; see [`Oracle::compare`].
pub type PairVisitor<'a> = &'a mut dyn FnMut(&Batch, &[Tensor], &[Tensor]) -> Result<(), OracleError>;

/// A model that is loaded once and run many times.
pub trait Prepared {
    /// Values of the main graph for given feeds, in the order asked for; only what they need is computed.
    ///
    /// # Errors
    /// When feeds do not fit or a node fails.
    fn run(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<Vec<Tensor>, OracleError>;

    /// Bytes that values take together at the peak of a run, of the same model with all its sizes fixed; none where the
    /// engine cannot tell.
    fn predicted_peak(&mut self, model: &Model, wanted: &[ValueId]) -> Option<u64> {
        let _ = (model, wanted);
        None
    }
}

/// An engine, as passes see it.
pub trait Oracle {
    /// Engine, version and device, for reports.
    fn describe(&self) -> String;

    /// Runs a model over batches and shows `visit` every wanted value as it is computed; it is freed as
    /// soon as nothing needs it, so memory stays that of one batch. Graph inputs and constants may be
    /// wanted too. Returns the number of samples seen.
    ///
    /// # Errors
    /// When the engine cannot run the model, data are bad, or `visit` fails.
    fn observe(
        &mut self,
        model: &Model,
        wanted: &[ValueId],
        batches: Batches<'_>,
        visit: Visitor<'_>,
    ) -> Result<u64, OracleError>;

    /// Outputs of a model for given feeds (input name, tensor), in the order of its outputs.
    ///
    /// # Errors
    /// As [`Oracle::observe`].
    fn outputs(&mut self, model: &Model, feeds: &[(String, Tensor)]) -> Result<Vec<Tensor>, OracleError>;

    /// Loads a model to run it many times, as training does.
    ///
    /// # Errors
    /// When the engine cannot run it.
    fn prepare(&mut self, model: &Model) -> Result<Box<dyn Prepared>, OracleError> {
        let _ = model;
        Err(OracleError::Environment(format!("{} cannot keep a model loaded", self.describe())))
    }

    /// Runs two models side by side on the same batches and shows their outputs: reference and candidate.
    ///
    /// # Errors
    /// As [`Oracle::observe`].
    fn compare(
        &mut self,
        reference: &Model,
        candidate: &Model,
        batches: Batches<'_>,
        visit: PairVisitor<'_>,
    ) -> Result<u64, OracleError> {
        let mut samples = 0;
        for batch in batches {
            let batch = batch?;
            let expected = self.outputs(reference, &batch.feeds)?;
            let found = self.outputs(candidate, &batch.feeds)?;
            visit(&batch, &expected, &found)?;
            samples += batch.count as u64;
        }
        Ok(samples)
    }
}

/// The engine of runs that need none: every question is an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOracle;

impl Oracle for NoOracle {
    fn describe(&self) -> String {
        "none".to_owned()
    }

    fn observe(
        &mut self,
        _: &Model,
        _: &[ValueId],
        _: Batches<'_>,
        _: Visitor<'_>,
    ) -> Result<u64, OracleError> {
        Err(OracleError::Replaying)
    }

    fn outputs(&mut self, _: &Model, _: &[(String, Tensor)]) -> Result<Vec<Tensor>, OracleError> {
        Err(OracleError::Replaying)
    }

    fn prepare(&mut self, _: &Model) -> Result<Box<dyn Prepared>, OracleError> {
        Err(OracleError::Replaying)
    }
}
