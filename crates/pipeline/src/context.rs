//! A pass's only way out: data, engine, randomness, and the record of what it did.

use bytes::Bytes;
use optix_base::Limits;
use optix_data::{Batch, DataError};
use optix_ir::patch::{Applied, Patch};
use optix_ir::{Model, NodeId};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::changes::{Changes, Layer, Skip};
use crate::oracle::Oracle;
use crate::pass::PassError;

/// Opens the calibration data from the start, bound to a model's inputs.
pub trait Calibration {
    /// What it is, for reports: the path as given.
    fn describe(&self) -> String;

    /// A fresh stream of batches for the inputs of `model`.
    ///
    /// # Errors
    /// When the data cannot be read or do not fit the model.
    fn batches<'a>(
        &'a self,
        model: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError>;
}

/// Told how far a pass is.
pub trait Progress {
    /// `done` of `total` units of `what`; a `total` of 0 is unknown.
    fn tick(&self, what: &str, done: u64, total: u64);
}

/// Progress that goes nowhere.
#[derive(Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn tick(&self, _: &str, _: u64, _: u64) {}
}

/// Calibration statistics kept from one run to the next, as the passes that make them write them.
#[derive(Clone, Debug, Default)]
pub struct KeptStatistics {
    /// Files of earlier runs, each with its name, to be used instead of the data.
    pub given: Vec<(String, Bytes)>,
    /// What this run gathered, to be kept.
    pub made: Option<Vec<u8>>,
}

/// What a run lends to its passes.
pub struct Resources<'a> {
    /// The engine.
    pub oracle: &'a mut dyn Oracle,
    /// Calibration data, when the user gave some.
    pub calibration: Option<&'a dyn Calibration>,
    /// Calibration statistics, when the user wants them kept or used again.
    pub statistics: Option<&'a mut KeptStatistics>,
    /// Seed of everything random.
    pub seed: u64,
    /// Where progress goes.
    pub progress: &'a dyn Progress,
    /// Set when the user interrupts.
    pub cancel: optix_base::CancelToken,
}

/// The context of one step; see the module's documentation.
pub struct Cx<'a> {
    oracle: &'a mut dyn Oracle,
    calibration: Option<&'a dyn Calibration>,
    statistics: Option<&'a mut KeptStatistics>,
    seed: u64,
    progress: &'a dyn Progress,
    cancel: &'a optix_base::CancelToken,
    limits: Limits,
    pub(crate) changes: Changes,
    pub(crate) patches_left: &'a mut u64,
}

impl<'a> Cx<'a> {
    /// A context for one step; `patches_left` counts down over the steps of a run.
    pub fn new(resources: &'a mut Resources<'_>, limits: Limits, patches_left: &'a mut u64) -> Cx<'a> {
        Cx {
            oracle: &mut *resources.oracle,
            calibration: resources.calibration,
            statistics: resources.statistics.as_deref_mut(),
            seed: resources.seed,
            progress: resources.progress,
            cancel: &resources.cancel,
            limits,
            changes: Changes::default(),
            patches_left,
        }
    }

    /// The engine and, beside it, the calibration data: both at once, since a pass needs the two together.
    ///
    /// # Errors
    /// When the run has no calibration data. Passes that say so in `requires` never see this error.
    pub fn calibration(&mut self) -> Result<(&mut dyn Oracle, &'a dyn Calibration), PassError> {
        let calibration = self.calibration.ok_or_else(|| {
            PassError::Options("calibration data are needed: name them with `--calib`".to_owned())
        })?;
        Ok((&mut *self.oracle, calibration))
    }

    /// Whether there are calibration data.
    pub fn has_calibration(&self) -> bool {
        self.calibration.is_some()
    }

    /// Calibration statistics of earlier runs and of this one, when the user wants them kept or used again.
    pub fn statistics(&mut self) -> Option<&mut KeptStatistics> {
        self.statistics.as_deref_mut()
    }

    /// The limits of the run, for a budget.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The engine.
    pub fn oracle(&mut self) -> &mut dyn Oracle {
        &mut *self.oracle
    }

    /// A random stream that depends on the recipe's seed and `name` alone: the same whatever order tensors
    /// are treated in, and on however many threads.
    pub fn rng(&self, name: &str) -> ChaCha8Rng {
        let mut key = [0u8; 32];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(name.as_bytes());
        key.copy_from_slice(hasher.finalize().as_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// Counts `number` more of `what`.
    pub fn count(&mut self, what: &str, number: u64) {
        *self.changes.counters.entry(what.to_owned()).or_default() += number;
    }

    /// Records that a node was left alone, and why.
    pub fn skip(&mut self, model: &Model, node: NodeId, why: impl Into<String>) {
        let (node, op) = crate::naming::node_and_op(model, node);
        self.changes.skips.push(Skip { node, op, reason: why.into() });
    }

    /// Adds a row to the layer ledger.
    pub fn layer(&mut self, layer: Layer) {
        self.changes.layers.push(layer);
    }

    /// The rows of the ledger so far, to complete them with what is measured later.
    pub fn layers_mut(&mut self) -> &mut Vec<Layer> {
        &mut self.changes.layers
    }

    /// Tells the user something.
    pub fn warn(&mut self, what: impl Into<String>) {
        self.changes.warnings.push(what.into());
    }

    /// Applies a rewrite and counts it under its label. With `--stop-after-patch` in force and used up,
    /// nothing is done and `None` comes back.
    ///
    /// # Errors
    /// When the patch does not fit the model: a bug of the pass.
    pub fn apply(&mut self, model: &mut Model, patch: Patch) -> Result<Option<Applied>, PassError> {
        if *self.patches_left == 0 {
            return Ok(None);
        }
        let label = patch.label().to_owned();
        let applied = patch.apply(model)?;
        *self.patches_left -= 1;
        *self.changes.patches.entry(label).or_default() += 1;
        Ok(Some(applied))
    }

    /// For passes that edit without a patch: whether one more edit called `label` may be made. Counts it.
    pub fn may_edit(&mut self, label: &str) -> bool {
        if *self.patches_left == 0 {
            return false;
        }
        *self.patches_left -= 1;
        *self.changes.patches.entry(label.to_owned()).or_default() += 1;
        true
    }

    /// Says how far it is; a good place to be interrupted.
    ///
    /// # Errors
    /// When the user has interrupted the run.
    pub fn progress(&mut self, what: &str, done: u64, total: u64) -> Result<(), PassError> {
        self.progress.tick(what, done, total);
        if self.cancel.is_cancelled() { Err(PassError::Interrupted) } else { Ok(()) }
    }
}
