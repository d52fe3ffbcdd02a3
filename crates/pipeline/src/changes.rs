//! The record of what a pass did: made once, by the pass's context, and read by every report.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What one step of a recipe did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Changes {
    /// Things counted, by name.
    pub counters: BTreeMap<String, u64>,
    /// Rewrites applied, by label.
    pub patches: BTreeMap<String, u64>,
    /// Nodes left alone, each with the reason.
    pub skips: Vec<Skip>,
    /// What became of every node the pass is about.
    pub layers: Vec<Layer>,
    /// What was found out on the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Things the user should know.
    pub warnings: Vec<String>,
}

impl Changes {
    /// Whether anything at all was changed.
    pub fn is_empty(&self) -> bool {
        self.patches.is_empty() && self.counters.values().all(|&count| count == 0)
    }
}

/// A node left alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Skip {
    /// The node's name, or its first output's.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why.
    pub reason: String,
}

/// What became of one node: a row of the layer ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Layer {
    /// The node's name, or its first output's.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// What was done: `int8`, `int8 (dynamic)`, `float`, ...
    pub action: String,
    /// Why, where it was left alone or treated in a special way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes of its weights before.
    pub bytes_before: u64,
    /// Bytes of its weights afterwards, scales and zero points included.
    pub bytes_after: u64,
    /// Signal-to-quantization-noise ratio of its weights in dB; none when nothing was rounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_sqnr_db: Option<f64>,
    /// Expected signal-to-quantization-noise ratio of its output's quantizer in dB, from the calibration
    /// histogram.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_sqnr_db: Option<f64>,
    /// Measured signal-to-noise ratio of the output in dB against the float model on the calibration
    /// data, errors of all layers before included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_sqnr_db: Option<f64>,
    /// Median microseconds of its kernel in the original model, on the engine the model is meant for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micros_before: Option<f64>,
    /// The same in the written model, without the quantizers beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micros_after: Option<f64>,
    /// Least and greatest value seen at the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
}
