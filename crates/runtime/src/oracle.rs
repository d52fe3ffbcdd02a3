//! What passes may ask of an engine, answered by [`Engine`]s.

use optix_ir::{Model, Tensor, ValueId};
use optix_ops::OpError;
use optix_pipeline::{Batches, Oracle, OracleError, PairVisitor, Visitor};

use crate::engine::{Engine, LoadOptions, Session};
use crate::error::{RuntimeError, Unsupported};
use crate::stream::Lane;

/// An engine as passes see it.
pub struct EngineOracle {
    engine: Box<dyn Engine>,
    options: LoadOptions,
}

impl EngineOracle {
    /// An oracle over an engine; models are loaded with `options`.
    pub fn new(engine: Box<dyn Engine>, options: LoadOptions) -> EngineOracle {
        EngineOracle { engine, options }
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
            RuntimeError::Node { node, source: source @ OpError::NoMemory { .. } } => {
                OracleError::Environment(format!("node {node}: {source}"))
            }
            RuntimeError::Node { node, source } => OracleError::Node { node, what: source.to_string() },
            RuntimeError::Internal { node, what, case } => OracleError::Internal { node, what, case },
            RuntimeError::Environment(what) => OracleError::Environment(what),
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

fn by_value(model: &Model, feeds: &[(String, Tensor)]) -> Result<Vec<(ValueId, Tensor)>, OracleError> {
    Inputs::of(model).by_value(feeds)
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
        let mut samples = 0;
        for batch in batches {
            let batch = batch?;
            let feeds = by_value(model, &batch.feeds)?;
            // The visitor's own error is kept aside and handed back unchanged.
            let mut refused = None;
            let result = session.run_with(&feeds, wanted, &mut |value, tensor| {
                visit(value, tensor).map_err(|error| {
                    let text = error.to_string();
                    refused = Some(error);
                    RuntimeError::Stopped(text)
                })
            });
            match refused {
                Some(error) => return Err(error),
                None => result?,
            }
            samples += batch.count as u64;
        }
        Ok(samples)
    }

    fn outputs(&mut self, model: &Model, feeds: &[(String, Tensor)]) -> Result<Vec<Tensor>, OracleError> {
        let (mut session, outputs) = self.load(model)?;
        Ok(session.run(&by_value(model, feeds)?, &outputs)?)
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
        let mut samples = 0;
        for batch in batches {
            let batch = batch?;
            let left = expected.run(&by_value(reference, &batch.feeds)?, &expected_outputs)?;
            let right = found.run(&by_value(candidate, &batch.feeds)?, &found_outputs)?;
            visit(&batch, &left, &right)?;
            samples += batch.count as u64;
        }
        Ok(samples)
    }
}
