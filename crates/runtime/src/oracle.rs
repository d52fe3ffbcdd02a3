//! What passes may ask of an engine, answered by [`Engine`]s.

use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::{Batches, Oracle, OracleError, PairVisitor, Prepared, Visitor};

use crate::device::Placement;
use crate::engine::{Engine, LoadOptions, Session};
use crate::error::{RuntimeError, Unsupported};
use crate::parts::AtOnce;
use crate::stream::Lane;

/// An engine as passes see it.
pub struct EngineOracle {
    engine: Box<dyn Engine>,
    options: LoadOptions,
    at_once: AtOnce,
    placement: Option<Placement>,
}

impl EngineOracle {
    /// An oracle over an engine; models are loaded with `options`.
    pub fn new(engine: Box<dyn Engine>, options: LoadOptions) -> EngineOracle {
        EngineOracle { engine, options, at_once: AtOnce::default(), placement: None }
    }

    /// What a user should know of the runs so far: nodes that ran beside the device, batches that did not
    /// fit.
    pub fn remarks(&self) -> Vec<String> {
        let placement = self.placement.as_ref().map(|placement| {
            let device = self.engine.device();
            format!("engine {} ({device}): {placement}", self.engine.name())
        });
        placement.into_iter().chain(self.at_once.remark()).collect()
    }

    fn note(&mut self, session: &dyn Session) {
        if let Some(ran) = session.placement() {
            self.placement.get_or_insert_default().add(&ran);
        }
    }

    /// A model loaded for [`stream`](crate::stream).
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn lane<'m>(&self, model: &'m Model, wanted: Vec<ValueId>) -> Result<Lane<'m>, OracleError> {
        Lane::new(&*self.engine, &self.options, model, wanted)
    }

    /// A session of a model, and the ids of its outputs.
    fn load(&self, model: &Model) -> Result<(Box<dyn Session>, Vec<ValueId>), OracleError> {
        let session = self.engine.load(model, &self.options)?;
        let outputs = model.graph(model.main()).outputs().iter().map(|output| output.value).collect();
        Ok((session, outputs))
    }
}

impl From<RuntimeError> for OracleError {
    fn from(error: RuntimeError) -> OracleError {
        match error {
            RuntimeError::Unsupported { engine, nodes } => {
                OracleError::Unsupported { engine, count: nodes.len(), reasons: by_reason(&nodes) }
            }
            RuntimeError::Node { node, source } => OracleError::Node { node, what: source.to_string() },
            RuntimeError::Internal { node, what, case } => OracleError::Internal { node, what, case },
            RuntimeError::Environment(what) => OracleError::Environment(what),
            error @ RuntimeError::OutOfMemory { .. } => OracleError::Environment(error.to_string()),
            error @ (RuntimeError::Feed { .. }
            | RuntimeError::UnknownValue(_)
            | RuntimeError::Refused { .. }
            | RuntimeError::NotATensor { .. }
            | RuntimeError::Stopped(_)) => OracleError::Feeds(error.to_string()),
        }
    }
}

/// Every reason once, with all nodes it is about: an operator that is missing is mostly used many times.
fn by_reason(nodes: &[Unsupported]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for Unsupported { node, reason } in nodes {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, nodes)) => nodes.push(node),
            None => reasons.push((reason, vec![node])),
        }
    }
    reasons.into_iter().map(|(reason, nodes)| format!("{reason}: {}", nodes.join(", "))).collect()
}

/// The inputs of a model: name, value, and type for people.
pub(crate) struct Inputs(Vec<(String, ValueId, String)>);

impl Inputs {
    pub(crate) fn of(model: &Model) -> Inputs {
        let inputs = model.graph(model.main()).inputs().iter();
        Inputs(
            inputs
                .map(|input| {
                    let ty = input.ty.as_ref().map_or_else(String::new, |ty| format!(" {ty}"));
                    (model.value(input.value).name().to_owned(), input.value, ty)
                })
                .collect(),
        )
    }

    /// Feeds by name as feeds by value. What the model does not take as input is an error.
    pub(crate) fn by_value(&self, feeds: &[(String, Tensor)]) -> Result<Vec<(ValueId, Tensor)>, OracleError> {
        let find = |(name, tensor): &(String, Tensor)| {
            let input = self.0.iter().find(|(known, ..)| known == name);
            input.map(|(_, value, _)| (*value, tensor.clone())).ok_or_else(|| {
                let known: Vec<String> =
                    self.0.iter().map(|(known, _, ty)| format!("`{known}`{ty}")).collect();
                let known = known.join(", ");
                OracleError::Feeds(format!("the model has no input `{name}`; it has {known}"))
            })
        };
        feeds.iter().map(find).collect()
    }
}

/// A session that is kept.
struct Kept(Box<dyn Session>);

impl Prepared for Kept {
    fn run(&mut self, feeds: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<Vec<Tensor>, OracleError> {
        Ok(self.0.run(feeds, wanted)?)
    }

    fn predicted_peak(&mut self, model: &Model, wanted: &[ValueId]) -> Option<u64> {
        let sizes = crate::batching::value_bytes(model, &[]);
        self.0.predicted_peak(&sizes, wanted).ok().flatten()
    }
}

impl Oracle for EngineOracle {
    fn describe(&self) -> String {
        format!("{} {} ({})", self.engine.name(), self.engine.version(), self.engine.device())
    }

    fn observe(
        &mut self,
        model: &Model,
        wanted: &[ValueId],
        batches: Batches<'_>,
        visit: Visitor<'_>,
    ) -> Result<u64, OracleError> {
        let (mut session, _) = self.load(model)?;
        let inputs = Inputs::of(model);
        let mut samples = 0;
        for batch in batches {
            let batch = batch?;
            let feeds = inputs.by_value(&batch.feeds)?;
            // The visitor's own error is kept aside and handed back unchanged.
            let mut refused = None;
            let run = &mut |value: ValueId, tensor: &Tensor| {
                visit(value, tensor).map_err(|error| {
                    let text = error.to_string();
                    refused = Some(error);
                    RuntimeError::Stopped(text)
                })
            };
            let result = self.at_once.run_with(&mut *session, &feeds, wanted, batch.count, run);
            match refused {
                Some(error) => return Err(error),
                None => result?,
            }
            samples += batch.count as u64;
        }
        self.note(&*session);
        Ok(samples)
    }

    fn outputs(&mut self, model: &Model, feeds: &[(String, Tensor)]) -> Result<Vec<Tensor>, OracleError> {
        let (mut session, outputs) = self.load(model)?;
        let found = session.run(&Inputs::of(model).by_value(feeds)?, &outputs)?;
        self.note(&*session);
        Ok(found)
    }

    fn prepare(&mut self, model: &Model) -> Result<Box<dyn Prepared>, OracleError> {
        Ok(Box::new(Kept(self.load(model)?.0)))
    }

    fn compare(
        &mut self,
        reference: &Model,
        candidate: &Model,
        batches: Batches<'_>,
        visit: PairVisitor<'_>,
    ) -> Result<u64, OracleError> {
        let (mut expected, expected_outputs) = self.load(reference)?;
        let (mut found, found_outputs) = self.load(candidate)?;
        let (expected_inputs, found_inputs) = (Inputs::of(reference), Inputs::of(candidate));
        let mut samples = 0;
        for batch in batches {
            let batch = batch?;
            let left = expected_inputs.by_value(&batch.feeds)?;
            let right = found_inputs.by_value(&batch.feeds)?;
            let left = self.at_once.run(&mut *expected, &left, &expected_outputs, batch.count)?;
            let right = self.at_once.run(&mut *found, &right, &found_outputs, batch.count)?;
            visit(&batch, &left, &right)?;
            samples += batch.count as u64;
        }
        self.note(&*expected);
        self.note(&*found);
        Ok(samples)
    }
}
