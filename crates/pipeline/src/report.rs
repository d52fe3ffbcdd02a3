//! The report of a run: data only. `src/report/` of the command line turns it into text.
//!
//! A number here was measured in this run, with its n and interval where it is statistical; predicted
//! ones say so in their name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::changes::Changes;
use crate::decisions::Decisions;

/// Version of the report's schema, raised when a field changes its meaning.
pub const SCHEMA: &str = "optix-report/1";

/// All that is known after a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of optix.
    pub version: String,
    /// The command line.
    pub command: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Engine, version and device that executed the model.
    pub engine: String,
    /// The recipe in full, as TOML: running it again gives the same file. Its paths are relative to the
    /// directory the command ran in.
    pub recipe: String,
    /// The model as it came.
    pub input: ModelFacts,
    /// The model as written.
    pub output: ModelFacts,
    /// What every step did.
    pub steps: Vec<StepReport>,
    /// The data used.
    pub data: Vec<DataFacts>,
    /// Samples that calibration and evaluation data share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    /// What the evaluation data say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// The two models' time on the engine the model is meant for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyFacts>,
    /// Memory of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryFacts>,
    /// Thresholds and whether they were met.
    pub requirements: Vec<Requirement>,
    /// What else the user should know.
    pub warnings: Vec<String>,
    /// Wall-clock seconds of the whole run.
    pub seconds: f64,
}

/// A model file in figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelFacts {
    /// Path as given.
    pub path: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Nodes, those of subgraphs included.
    pub nodes: u64,
    /// Bytes of all tensors in it.
    pub tensor_bytes: u64,
    /// BLAKE3 of the model file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// One step of the recipe, after it ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepReport {
    /// Id of the step.
    pub id: String,
    /// Its pass.
    pub pass: String,
    /// What it did.
    pub changes: Changes,
    /// Nodes before and after.
    pub nodes: [u64; 2],
    /// Bytes of all tensors before and after.
    pub tensor_bytes: [u64; 2],
    /// Wall-clock seconds.
    pub seconds: f64,
    /// With `--check`: max|difference| / max|reference| over all outputs on random inputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_difference: Option<f64>,
    /// What it decided: part of the lock, not of the report.
    #[serde(skip)]
    pub decisions: Decisions,
}

/// A data set that was read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DataFacts {
    /// `calibration` or `evaluation`; `statistics` for kept calibration statistics that were used instead of
    /// data, `statistics made` for those that were kept.
    pub role: String,
    /// Path as given.
    pub path: String,
    /// Samples read.
    pub samples: u64,
}

/// Memory of the process in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryFacts {
    /// Most that was resident at a time, pages of mapped files included.
    pub peak: u64,
    /// The limit that was given (`--max-memory`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// What the peak was predicted to be, with a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<u64>,
    /// Samples calibrated on at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibrated_together: Option<u64>,
}

/// Samples two data sets share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Overlap {
    /// Evaluation samples that were calibrated on.
    pub samples: u64,
    /// Of so many evaluation samples.
    pub of: u64,
}

/// A figure with its 95% interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The two models on the evaluation data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Evaluation {
    /// Samples.
    pub samples: u64,
    /// Accuracy, when there are labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// Share of samples with the same top-1 answer, when the first output is a row of scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Interval>,
    /// Each output against the original's.
    pub outputs: Vec<OutputFidelity>,
}

/// Time of a run before and after, measured in turn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyFacts {
    /// Engine, version and threads.
    pub engine: String,
    /// What was fed: `one sample of PATH`, or `random numbers`.
    pub input: String,
    /// Median seconds of a run before.
    pub before_seconds: f64,
    /// Median seconds of a run after.
    pub after_seconds: f64,
    /// After over before: below 1 is faster. 95% interval from pairs.
    pub ratio: Interval,
    /// Pairs of figures.
    pub pairs: u64,
    /// What the engine made of the written model, where it tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<KernelFacts>,
}

/// What an engine executes of a model: its own graph, after fusing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelFacts {
    /// Convolutions and products in integers.
    pub integer: u64,
    /// Convolutions and products in floats.
    pub float: u64,
    /// Quantizers and dequantizers that are left between kernels.
    pub quantizers: u64,
    /// Their share of the time of all kernels, 0 to 1.
    pub quantizer_share: f64,
}

/// Accuracy before and after on the same samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accuracy {
    /// The metric, such as `top1`.
    pub metric: String,
    /// Before, 0 to 1.
    pub before: f64,
    /// After, 0 to 1.
    pub after: f64,
    /// Change in percentage points; negative is worse. Paired 95% interval.
    pub change_points: Interval,
    /// Samples right before and wrong after.
    pub lost: u64,
    /// Samples wrong before and right after.
    pub gained: u64,
}

/// One output against the original model's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutputFidelity {
    /// Name of the output.
    pub name: String,
    /// Whether every element of every sample is the same.
    pub equal: bool,
    /// Signal-to-noise ratio in dB over all samples; none when the outputs are equal or not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
    /// Cosine of the two outputs, all samples as one vector; none when one is zero or not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// Greatest absolute difference; none when it is not finite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_abs_error: Option<f64>,
}

/// A threshold of the recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Requirement {
    /// Its name in `[require]`.
    pub name: String,
    /// The threshold.
    pub threshold: f64,
    /// The figure compared with it: the unfavourable end of the interval where there is one. None when
    /// there is no such figure; the note says why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Whether it holds.
    pub met: bool,
    /// What to know about a miss, such as how many samples would decide.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub note: String,
}

impl Report {
    /// Whether all thresholds were met.
    pub fn passed(&self) -> bool {
        self.requirements.iter().all(|requirement| requirement.met)
    }

    /// JSON schema of reports.
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Report).to_value()
    }
}
