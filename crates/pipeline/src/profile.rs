//! The report of a profile: data only, as [`crate::report`] is for a run.
//!
//! All times are seconds of wall clock unless they say otherwise, sizes are bytes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::report::{Interval, Requirement};

/// Version of the schema, raised when a field changes its meaning.
pub const SCHEMA: &str = "optix-profile/1";

/// All that a profile found out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileReport {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of optix.
    pub version: String,
    /// The command line.
    pub command: String,
    /// Seed of random inputs and arrivals.
    pub seed: u64,
    /// What the machine can do.
    pub machine: Machine,
    /// The models measured: the one profiled, then the one it is compared with.
    pub models: Vec<ModelProfile>,
    /// The first model's time over the second one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<LatencyRatio>,
    /// Why there is no ratio although two models were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_ratio: Option<String>,
    /// Load scenarios.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub scenarios: Vec<Scenario>,
    /// Thresholds and whether they were met.
    pub requirements: Vec<Requirement>,
    /// What else the user should know.
    pub warnings: Vec<String>,
    /// Wall-clock seconds of the whole run.
    pub seconds: f64,
}

/// What the machine can do with the threads in use, measured before the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Threads that engines and this measurement used.
    pub threads: u64,
    /// Bytes read and written a second when a large block is copied.
    pub copy_bytes_per_second: f64,
    /// Operations a second of a large matrix product on 32-bit floats; a multiply-add is two.
    pub gemm_flops_per_second: f64,
}

/// One model on one engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelProfile {
    /// Path as given.
    pub path: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Engine, version and device.
    pub engine: String,
    /// What was fed.
    pub inputs: Vec<InputFacts>,
    /// Where the inputs come from: `random`, or the path of the data.
    pub data: String,
    /// Samples in a run; none when the model has no batch axis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Whether quantized operators are computed in floats: then times say nothing about the quantized
    /// model.
    pub emulated: bool,
    /// Seconds until the engine had loaded the model.
    pub load_seconds: f64,
    /// From feeds to results, without a clock around nodes.
    pub latency: Latency,
    /// CPU seconds of the whole process for a run, all threads.
    pub cpu_seconds: f64,
    /// Memory.
    pub memory: Memory,
    /// Seconds of a timed run: with a clock around every node.
    pub timed_seconds: f64,
    /// Seconds that the clock adds to every node and that were taken off its time.
    pub clock_seconds: f64,
    /// Sum of the nodes' times.
    pub nodes_seconds: f64,
    /// What runs, operator by operator, the most expensive first.
    pub operators: Vec<OperatorProfile>,
    /// What runs, in order of execution.
    pub nodes: Vec<NodeProfile>,
    /// Nodes computed once, when the model was loaded.
    pub folded: Vec<FoldedNode>,
}

/// An input that was fed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InputFacts {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// What its elements are: `random`, `filled with 1`, or `data`.
    pub values: String,
}

/// Latencies of many runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// Runs.
    pub runs: u64,
    /// Median.
    pub median: f64,
    /// Mean.
    pub mean: f64,
    /// Least.
    pub least: f64,
    /// Greatest.
    pub greatest: f64,
    /// Distance of the quartiles as a share of the median: above 0.1 the machine was noisy.
    pub spread: f64,
    /// 50th, 90th and 99th percentile.
    pub percentiles: Vec<PercentileFacts>,
}

/// A percentile with bounds at 95%.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PercentileFacts {
    /// Which one, 0 to 100.
    pub percent: f64,
    /// The figure of the sample.
    pub value: f64,
    /// Lower bound; none when there are too few runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Upper bound; none when there are too few runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
}

/// Memory in bytes. What could not be found out is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Constants that runs use: weights, and what was computed from them at load time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<u64>,
    /// Most bytes that computed values took at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations: Option<u64>,
    /// The same as worked out before the first run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activations_predicted: Option<u64>,
    /// Growth of the process at the peak of its first run beyond the activations: packed operands and
    /// other scratch memory of kernels, allocator and all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<u64>,
    /// Growth of the process while the model was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_growth: Option<u64>,
    /// Growth of the process at the peak of the first run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_growth: Option<u64>,
    /// Most memory that the process has had so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_peak: Option<u64>,
}

/// All nodes of one operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OperatorProfile {
    /// The operator.
    pub op: String,
    /// Nodes.
    pub count: u64,
    /// Sum of the nodes' times.
    pub seconds: f64,
    /// Share of the sum over all nodes.
    pub share: f64,
    /// Operations; none when no formula is known for any of the nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops: Option<u64>,
    /// Bytes of tensors read and written.
    pub bytes: u64,
    /// How many of the nodes ran on reference kernels on the host.
    pub on_reference: u64,
}

/// A step of a run: mostly one node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeProfile {
    /// Names of the nodes it computes: several where the engine has fused them.
    pub nodes: Vec<String>,
    /// The operator executed.
    pub op: String,
    /// Operators of the nodes, where several were fused.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub fused: Vec<String>,
    /// What computed it: `fast`, `reference` (on the host), `device`, `body` or `library`.
    pub ran: String,
    /// Median over the timed runs.
    pub seconds: f64,
    /// Median of the deviation from that median.
    pub deviation: f64,
    /// Share of the sum over all nodes.
    pub share: f64,
    /// Operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops: Option<u64>,
    /// Bytes of tensors read.
    pub bytes_read: u64,
    /// Bytes of tensors written.
    pub bytes_written: u64,
    /// Operations for every byte moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intensity: Option<f64>,
    /// Seconds that it would take at the machine's limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_seconds: Option<f64>,
    /// What limits it there: `memory` or `arithmetic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound_by: Option<String>,
    /// Types and shapes of its inputs; empty for inputs left out.
    pub inputs: Vec<String>,
    /// Types and shapes of its outputs.
    pub outputs: Vec<String>,
}

/// A node computed at load time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FoldedNode {
    /// Its name.
    pub node: String,
    /// Its operator.
    pub op: String,
}

/// The first model's time over the second one's, from runs in turn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyRatio {
    /// With its 95% interval; below 1, the first model is faster.
    pub ratio: Interval,
    /// Pairs of measurements.
    pub pairs: u64,
    /// `faster`, `slower` or `no difference shown`.
    pub verdict: String,
}

/// How a model behaves under a kind of load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scenario {
    /// `single-stream`, `multi-stream`, `server` or `offline`.
    pub name: String,
    /// Path of the model.
    pub model: String,
    /// Runs that were under way at the same time at most.
    pub streams: u64,
    /// Threads of each.
    pub threads: u64,
    /// Samples in a run.
    pub batch: u64,
    /// Queries a second that arrived, of the server scenario.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrivals_per_second: Option<f64>,
    /// Samples a second that were answered.
    pub samples_per_second: f64,
    /// Latency of a query: from when it was due, in the server scenario, else from when it was started.
    pub latency: Latency,
    /// What to know about the figures.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
}

impl ProfileReport {
    /// JSON schema of profiles.
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(ProfileReport).to_value()
    }
}
