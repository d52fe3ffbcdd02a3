//! `--max-memory`: how many samples are run together so that the process stays below a limit.
//!
//! What the process will have at its peak is worked out before anything is run: what it has now, the model's
//! files (which are mapped, and count once they were read), the engine's copies of the weights, and the
//! activations of so many samples by the shapes of all values, as the `cpu` engine frees them.

use optix_base::ErrorClass;
use optix_data::{Bound, Dataset};
use optix_ir::{DType, Model, ValueId};
use optix_pipeline::{Batch, OracleError};
use optix_runtime::{Cpu, Engine, LoadOptions, value_bytes};

use super::{memory, setup};
use crate::exit::Classed;
use crate::report::format_bytes;

/// What the process may have besides: stacks, buffers of kernels, data being prepared.
const BESIDE: u64 = 24 << 20;

/// The limit.
#[derive(Clone, Copy, Debug)]
pub struct Ceiling {
    pub bytes: u64,
}

/// A model and the values of it that are looked at.
pub struct Task<'a> {
    pub model: &'a Model,
    pub wanted: Vec<ValueId>,
}

impl<'a> Task<'a> {
    /// A model of which outputs are looked at.
    pub fn outputs(model: &'a Model) -> Task<'a> {
        let outputs = model.graph(model.main()).outputs().iter();
        Task { model, wanted: outputs.map(|info| info.value).collect() }
    }

    /// A model of which every float that a node computes may be looked at: nothing is fused then.
    pub fn everything(model: &'a Model) -> Task<'a> {
        let nodes = model.nodes_of(model.main());
        let computed = nodes.flat_map(|id| model.node(id).outputs().iter().flatten().copied());
        let is_float = |value: &ValueId| {
            let ty = model.value(*value).ty.as_ref();
            ty.is_none_or(|ty| ty.dtype() == Some(DType::F32))
        };
        Task { model, wanted: computed.filter(is_float).collect() }
    }
}

/// What was found to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Samples run together.
    pub samples: usize,
    /// Bytes of the process at its peak.
    pub predicted: u64,
}

/// Bytes that an engine takes for the constants of a model, and how many of them are weights of products: those
/// are packed for the kernels.
fn constants(model: &Model) -> (u64, u64) {
    let products = model.walk().filter(|&id| {
        matches!(model.node(id).op_type.as_str(), "Conv" | "ConvTranspose" | "Gemm" | "MatMul")
    });
    let weights = products.filter_map(|id| model.constant(model.node(id).input(1)?));
    (model.tensor_bytes(), weights.map(|tensor| tensor.bytes().len() as u64).sum())
}

/// Copies of the weights that the search of a pass has at once, beside those of the model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// The models are run and nothing else.
    None,
    /// Passes run models with other weights beside the float ones.
    Quantized,
}

impl Ceiling {
    /// The most samples up to `most` that fit, `at_once` batches of them at a time. `files` is the size of the
    /// models' files.
    ///
    /// # Errors
    /// When not even one sample fits: says what it would take.
    pub fn fit(
        self,
        tasks: &[Task<'_>],
        files: u64,
        data: &Dataset,
        most: usize,
        at_once: u64,
        copies: Copies,
    ) -> anyhow::Result<Fit> {
        let [first, ..] = tasks else { return Ok(Fit { samples: most, predicted: 0 }) };
        let mut base = memory::usage().map_or(0, |usage| usage.resident) + files + BESIDE;
        for task in tasks {
            let (all, products) = constants(task.model);
            base += all + products * if copies == Copies::Quantized { 3 } else { 1 };
        }
        let inputs = setup::inputs(first.model)?;
        let batch =
            |bound: Bound| -> anyhow::Result<Option<Batch>> { Ok(bound.batches()?.next().transpose()?) };
        let Some(whole) = batch(data.bind(&inputs, most.max(1))?)? else {
            return Ok(Fit { samples: 1, predicted: base });
        };
        // Loading takes what is to be predicted: not where the weights alone are too much.
        if base > self.bytes {
            return Err(self.refusal(base, "the weights alone"));
        }
        let mut sessions = Vec::new();
        for task in tasks {
            let options = LoadOptions { threads: 1, ..LoadOptions::default() };
            sessions.push(Cpu.load(task.model, &options).map_err(OracleError::from)?);
        }
        let mut samples = whole.count.max(1);
        loop {
            let part = whole.clone().truncated(samples);
            let mut activations = 0u64;
            for (task, session) in tasks.iter().zip(&mut sessions) {
                let sizes = value_bytes(task.model, &part.feeds);
                let peak = session.predicted_peak(&sizes, &task.wanted).map_err(OracleError::from)?;
                // Without a prediction (control flow, unknown sizes): as if nothing were ever freed.
                activations = activations.saturating_add(peak.unwrap_or_else(|| sizes.values().sum()));
            }
            let predicted = base.saturating_add(activations.saturating_mul(at_once.max(1)));
            if predicted <= self.bytes {
                return Ok(Fit { samples, predicted });
            }
            // What cannot be taken apart stays as it is.
            if samples == 1 || part.count != samples {
                return Err(self.refusal(predicted, "one sample"));
            }
            samples /= 2;
        }
    }

    fn refusal(self, needed: u64, what: &str) -> anyhow::Error {
        let text = format!(
            "--max-memory {}: {what} would take the process to about {}; give it `--max-memory {}` or more",
            format_bytes(self.bytes),
            format_bytes(needed),
            needed.div_ceil(1 << 20) << 20
        );
        Classed(ErrorClass::Environment, text).into()
    }
}
