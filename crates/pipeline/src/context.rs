//! A pass's only way out: data, engine, randomness, and the record of what it did.

use optix_base::Limits;
use optix_data::{Augmentation, Batch, DataError};
use optix_ir::patch::{Applied, Patch};
use optix_ir::{Model, NodeId, ValueId};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::changes::{Changes, Curve, Layer, Skip};
use crate::decisions::{DecisionError, Decisions};
use crate::deployment::Deployment;
use crate::oracle::{Batches, NoOracle, Oracle, OracleError, Visitor};
use crate::pass::PassError;

/// Opens the calibration data from the start, bound to a model's inputs.
pub trait Calibration {
    /// What it is, for reports: the path as given.
    fn describe(&self) -> String;

    /// How many samples there are, where that is known without reading them.
    fn samples(&self) -> Option<u64> {
        None
    }

    /// Changes of pictures for whoever learns from them: by input, or for the only one.
    fn augment(&self) -> Vec<(Option<String>, Vec<Augmentation>)> {
        Vec::new()
    }

    /// A place for samples that are more than memory is to hold; none where there is no such place.
    ///
    /// # Errors
    /// When it cannot be made.
    fn scratch(&self) -> Result<Option<Box<dyn Scratch>>, String> {
        Ok(None)
    }

    /// A fresh stream of batches for the inputs of `model`.
    ///
    /// # Errors
    /// When the data cannot be read or do not fit the model.
    fn batches<'a>(
        &'a self,
        model: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError>;
}

/// Bytes that are put aside while a run lasts because memory is to hold less.
pub trait Scratch {
    /// Puts bytes aside and says where.
    ///
    /// # Errors
    /// When there is no room.
    fn put(&mut self, bytes: &[u8]) -> Result<u64, String>;

    /// Reads what was put there.
    ///
    /// # Errors
    /// When it cannot be read.
    fn get(&mut self, place: u64, bytes: &mut [u8]) -> Result<(), String>;
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
pub trait StatisticsStore {
    /// Files of earlier runs, each with its name, to be used instead of the data.
    fn given(&self) -> &[(String, Vec<u8>)];

    /// The same, for a step that uses them.
    fn take(&mut self) -> &[(String, Vec<u8>)] {
        self.given()
    }

    /// Keeps what this run gathered, at once: whatever fails later, it is not lost.
    ///
    /// # Errors
    /// When it cannot be written.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), String>;
}

/// State of long work, kept on the way so that it can go on after an interruption.
pub trait CheckpointStore {
    /// What was kept last; none where nothing was.
    ///
    /// # Errors
    /// When it cannot be read.
    fn load(&mut self) -> Result<Option<Vec<u8>>, String>;

    /// Keeps a state in place of the last one, at once and whole.
    ///
    /// # Errors
    /// When it cannot be written.
    fn save(&mut self, bytes: &[u8]) -> Result<(), String>;
}

/// What a run lends to its passes.
pub struct Resources<'a> {
    /// The engine.
    pub oracle: &'a mut dyn Oracle,
    /// Calibration data, when the user gave some.
    pub calibration: Option<&'a dyn Calibration>,
    /// Calibration statistics, when the user wants them kept or used again.
    pub statistics: Option<&'a mut dyn StatisticsStore>,
    /// The model to learn from, when the user gave one.
    pub teacher: Option<&'a Model>,
    /// Where training keeps its state, when the user wants it kept.
    pub checkpoint: Option<&'a mut dyn CheckpointStore>,
    /// Seed of everything random.
    pub seed: u64,
    /// Where progress goes.
    pub progress: &'a dyn Progress,
    /// The engine that the model is meant for, when it can be measured.
    pub deployment: Option<&'a mut dyn Deployment>,
    /// Set when the user interrupts.
    pub cancel: optix_base::CancelToken,
}

impl Default for Resources<'_> {
    /// Nothing: no engine, no data, seed 0.
    fn default() -> Self {
        Resources {
            // It has no size: nothing is allocated.
            oracle: Box::leak(Box::new(NoOracle)),
            calibration: None,
            statistics: None,
            teacher: None,
            checkpoint: None,
            seed: 0,
            progress: &NoProgress,
            deployment: None,
            cancel: optix_base::CancelToken::new(),
        }
    }
}

/// The context of one step; see the module's documentation.
pub struct Cx<'a> {
    oracle: &'a mut dyn Oracle,
    calibration: Option<&'a dyn Calibration>,
    statistics: Option<&'a mut dyn StatisticsStore>,
    teacher: Option<&'a Model>,
    checkpoint: Option<&'a mut dyn CheckpointStore>,
    /// What stands before every state that is kept, and the state that was kept before the run.
    behind: (Vec<u8>, Option<Vec<u8>>),
    seed: u64,
    progress: &'a dyn Progress,
    deployment: Option<&'a mut dyn Deployment>,
    cancel: &'a optix_base::CancelToken,
    limits: Limits,
    changes: Changes,
    patches_left: &'a mut u64,
    /// What was decided so far.
    decided: Decisions,
    /// What a lock says and nobody has asked for yet, when one is applied.
    recorded: Option<Decisions>,
    /// Whether a decision is being made.
    is_deciding: bool,
    /// The model before its numbers were made coarser, where a later step wants it.
    float: Option<Model>,
    keeps_float: bool,
    no_oracle: NoOracle,
}

impl<'a> Cx<'a> {
    /// A context for one step; `patches_left` counts down over the steps of a run.
    pub fn new(resources: &'a mut Resources<'_>, limits: Limits, patches_left: &'a mut u64) -> Cx<'a> {
        Cx {
            oracle: &mut *resources.oracle,
            calibration: resources.calibration,
            statistics: resources
                .statistics
                .as_deref_mut()
                .map(|statistics| statistics as &mut dyn StatisticsStore),
            teacher: resources.teacher,
            checkpoint: resources
                .checkpoint
                .as_deref_mut()
                .map(|checkpoint| checkpoint as &mut dyn CheckpointStore),
            behind: (Vec::new(), None),
            seed: resources.seed,
            progress: resources.progress,
            deployment: resources
                .deployment
                .as_deref_mut()
                .map(|deployment| deployment as &mut dyn Deployment),
            cancel: &resources.cancel,
            limits,
            changes: Changes::default(),
            patches_left,
            decided: Decisions::default(),
            recorded: None,
            is_deciding: false,
            float: None,
            keeps_float: false,
            no_oracle: NoOracle,
        }
    }

    /// Lets decisions come from a record instead of being made.
    pub fn replay(&mut self, recorded: Decisions) {
        self.recorded = Some(recorded);
    }

    /// What the pass did and decided, and the float model if one was kept.
    ///
    /// # Errors
    /// When decisions of the record were never asked for.
    pub(crate) fn finish(self) -> Result<(Changes, Decisions, Option<Model>), DecisionError> {
        if let Some(left) = &self.recorded {
            left.check_used()?;
        }
        Ok((self.changes, self.decided, self.float))
    }

    /// The float model that an earlier step kept, and whether one that comes now is to be kept.
    pub(crate) fn lend_float(&mut self, kept: Option<Model>, is_wanted: bool) {
        self.keeps_float = is_wanted && kept.is_none();
        self.float = kept;
    }

    /// The model that came into the run, to learn from where the user gave no other.
    pub(crate) fn lend_teacher(&mut self, original: Option<&'a Model>) {
        self.teacher = self.teacher.or(original);
    }

    /// Keeps the model as it is, before a pass makes its numbers coarser, for later steps that compare with it.
    /// The first one counts; does nothing where no later step wants it.
    pub fn keep_float(&mut self, model: &Model) {
        if self.keeps_float && self.float.is_none() {
            self.float = Some(model.clone());
        }
    }

    /// The model before its numbers were made coarser, as an earlier step kept it: nodes and values that are
    /// still there have the ids that they have in it. None when a lock is applied: see [`Cx::is_replaying`].
    pub fn float(&self) -> Option<&Model> {
        self.float.as_ref().filter(|_| !self.is_replaying())
    }

    /// The model to learn from: the one that the user gave, or else the one that came into the run, for steps that
    /// [want one](crate::Pass::wants_teacher). None when a lock is applied.
    pub fn teacher(&self) -> Option<&'a Model> {
        self.teacher.filter(|_| !self.is_replaying())
    }

    /// What to put before every state that is kept, and the state that an interrupted run left.
    pub(crate) fn lend_checkpoint(&mut self, behind: (Vec<u8>, Option<Vec<u8>>)) {
        self.behind = behind;
    }

    /// Whether the user wants the state of training kept.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoint.is_some() && !self.is_replaying()
    }

    /// The state that this step left when it was interrupted.
    pub fn kept_state(&mut self) -> Option<Vec<u8>> {
        self.behind.1.take()
    }

    /// Keeps a state to go on from, in place of the last one, where the user wants that.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_state(&mut self, state: &[u8]) -> Result<(), PassError> {
        let Some(store) = self.checkpoint.as_mut().filter(|_| self.recorded.is_none()) else { return Ok(()) };
        let kept = store.save(&[&self.behind.0, state].concat());
        Ok(kept.map_err(|what| OracleError::Environment(format!("--checkpoint: {what}")))?)
    }

    /// The seed of everything random.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether decisions come from a lock. There are no data then and no engine; work that only measures, and
    /// changes nothing about the model, is to be left out.
    pub fn is_replaying(&self) -> bool {
        self.recorded.is_some()
    }

    /// What `compute` finds out from data, by asking the engine or by searching; recorded under `key`. When a
    /// lock is applied, `compute` is not called and the recorded decision comes back.
    ///
    /// All that shapes the model and does not follow from model, options and seed alone goes through here,
    /// and nothing else needs to. The rules:
    ///
    /// - Keys are unique within the step and readable, `kind/name`: `range/conv1_output`.
    /// - The decision comes back as it reads back from JSON, numbers to the bit: go on with what this method
    ///   returns, not with something `compute` put aside. NaN and infinite numbers cannot be recorded, other
    ///   than in [`PackedFloats`](crate::PackedFloats). Use no `HashMap` in a decision: equal runs make equal
    ///   locks. Large decisions are [`PackedFloats`](crate::PackedFloats) or [`PackedBits`](crate::PackedBits).
    /// - `compute` changes no model but its own copies, makes no other decision, and adds no rows to the ledger:
    ///   they would be missing when a lock is applied. It may count, warn and show progress.
    /// - What a lock says is foreign text: check that a decision lies within its bounds before anything rests
    ///   on it.
    ///
    /// # Errors
    /// Those of `compute`; a key that is used twice or a decision that cannot be recorded, which are bugs of the
    /// pass; when a lock is applied, a decision that it lacks or that is of another kind.
    pub fn decide<T: Serialize + DeserializeOwned>(
        &mut self,
        key: &str,
        compute: impl FnOnce(&mut Self) -> Result<T, PassError>,
    ) -> Result<T, PassError> {
        if let Some(recorded) = &mut self.recorded {
            let decision = recorded.take(key)?;
            // Kept in the record of this run too: a lock applied is locked alike.
            return Ok(self.decided.record(key, &decision)?);
        }
        let decision = self.computed(key, compute)?;
        Ok(self.decided.record(key, &decision)?)
    }

    /// Several decisions that are found out together, such as the ranges of all activations in one pass over
    /// the data: one for each of `names`, in their order, recorded as `kind/name`. Otherwise as
    /// [`Cx::decide`].
    ///
    /// # Errors
    /// As [`Cx::decide`].
    pub fn decide_each<T: Serialize + DeserializeOwned>(
        &mut self,
        kind: &str,
        names: &[String],
        compute: impl FnOnce(&mut Self) -> Result<Vec<T>, PassError>,
    ) -> Result<Vec<T>, PassError> {
        let made = match &mut self.recorded {
            Some(recorded) => {
                let taken = names.iter().map(|name| recorded.take(&format!("{kind}/{name}")));
                taken.collect::<Result<Vec<T>, _>>()?
            }
            None => self.computed(kind, compute)?,
        };
        if made.len() != names.len() {
            let what = format!("{} decisions about {} things", made.len(), names.len());
            return Err(DecisionError::misused(kind, what).into());
        }
        let pairs = names.iter().zip(&made);
        let read = pairs.map(|(name, made)| self.decided.record(&format!("{kind}/{name}"), made));
        Ok(read.collect::<Result<_, _>>()?)
    }

    /// Runs `compute`, and holds it to the rules.
    fn computed<T>(
        &mut self,
        key: &str,
        compute: impl FnOnce(&mut Self) -> Result<T, PassError>,
    ) -> Result<T, PassError> {
        if self.is_deciding {
            return Err(DecisionError::misused(key, "it is made within another decision").into());
        }
        let state = |cx: &Cx<'_>| (*cx.patches_left, cx.changes.layers.len(), cx.changes.skips.len());
        let before = state(self);
        self.is_deciding = true;
        let decision = compute(self);
        self.is_deciding = false;
        let decision = decision?;
        if state(self) != before {
            let what = "making it edits the model, or adds to the ledger or to the nodes left alone";
            return Err(DecisionError::misused(key, what).into());
        }
        Ok(decision)
    }

    /// The engine and, beside it, the calibration data: both at once, since a pass needs the two together.
    ///
    /// # Errors
    /// When the run has no calibration data; passes that say so in `requires` never see this error. And when
    /// a lock is applied: a pass may then ask for data only within [`Cx::decide`].
    pub fn calibration(&mut self) -> Result<(&mut dyn Oracle, &'a dyn Calibration), PassError> {
        if self.is_replaying() {
            return Err(OracleError::Replaying.into());
        }
        let calibration = self.calibration.ok_or_else(|| {
            PassError::Options("calibration data are needed: name them with `--calib`".to_owned())
        })?;
        Ok((&mut *self.oracle, calibration))
    }

    /// Runs a model over the calibration data once and shows `visit` every wanted value; see
    /// [`Oracle::observe`]. Returns the number of samples, at least 1.
    ///
    /// # Errors
    /// As [`Cx::calibration`] and [`Oracle::observe`]; when the data hold no samples.
    pub fn observe(
        &mut self,
        model: &Model,
        wanted: &[ValueId],
        visit: Visitor<'_>,
    ) -> Result<u64, PassError> {
        let (_, data) = self.calibration()?;
        let mut batches = data.batches(model).map_err(OracleError::from)?;
        match self.observe_batches(
            "running over the calibration data",
            data.samples().unwrap_or(0),
            model,
            wanted,
            &mut *batches,
            visit,
        )? {
            0 => Err(PassError::Options("the calibration data hold no samples".to_owned())),
            samples => Ok(samples),
        }
    }

    /// Runs a model over some batches and shows `visit` every wanted value; says how far it is with `what`, of
    /// `total` samples (0: unknown), and ends between two batches when the user interrupts. Returns the number
    /// of samples.
    ///
    /// # Errors
    /// As [`Oracle::observe`]; [`PassError::Interrupted`]; when a lock is applied.
    pub fn observe_batches(
        &mut self,
        what: &str,
        total: u64,
        model: &Model,
        wanted: &[ValueId],
        batches: Batches<'_>,
        visit: Visitor<'_>,
    ) -> Result<u64, PassError> {
        if self.is_replaying() {
            return Err(OracleError::Replaying.into());
        }
        let (progress, cancel) = (self.progress, self.cancel);
        let mut done = 0u64;
        let mut watched = batches.take_while(|_| !cancel.is_cancelled()).inspect(|batch| {
            progress.tick(what, done, total);
            done = done.saturating_add(batch.as_ref().map_or(0, |batch| batch.count as u64));
        });
        let samples = self.oracle.observe(model, wanted, &mut watched, visit);
        match samples {
            _ if cancel.is_cancelled() => Err(PassError::Interrupted),
            samples => Ok(samples?),
        }
    }

    /// Whether the run has calibration data, for passes that can do without. None when a lock is applied.
    pub fn has_calibration(&self) -> bool {
        self.calibration.is_some() && !self.is_replaying()
    }

    /// Calibration statistics of earlier runs and of this one, when the user wants them kept or used again.
    pub fn statistics(&mut self) -> Option<&mut dyn StatisticsStore> {
        match &mut self.statistics {
            Some(statistics) if self.recorded.is_none() => Some(&mut **statistics),
            _ => None,
        }
    }

    /// The limits of the run, for a budget.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The engine. When a lock is applied there is none, and every question to it is an error.
    pub fn oracle(&mut self) -> &mut dyn Oracle {
        if self.recorded.is_some() { &mut self.no_oracle } else { &mut *self.oracle }
    }

    /// The engine that the model is meant for, to measure time on; `None` where there is none that can be
    /// measured, and when a lock is applied.
    pub fn deployment(&mut self) -> Option<&mut dyn Deployment> {
        match &mut self.deployment {
            Some(deployment) if self.recorded.is_none() => Some(&mut **deployment),
            _ => None,
        }
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

    /// Tells the user what was found out, such as a measurement a decision rests on.
    pub fn note(&mut self, what: impl Into<String>) {
        self.changes.notes.push(what.into());
    }

    /// Records how a figure went on, from step to step.
    pub fn curve(&mut self, name: &str, points: &[[f64; 2]]) {
        self.changes.curves.push(Curve { name: name.to_owned(), points: points.to_vec() });
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
