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
    /// How figures went on while it worked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<Curve>,
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

/// How a figure went on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Curve {
    /// What it is.
    pub name: String,
    /// Steps, and the figure behind each.
    pub points: Vec<[f64; 2]>,
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

/// Error at a layer's output when it alone is quantized and reads what it reads in the float model.
///
/// Energies of errors over the energy of the float output: 0.01 is 20 dB. With the error
/// `e = quantized - float`, its mean in channel `c` over samples and positions `m(c)`, and the number of
/// elements of a channel `n(c)`:
///
/// - `bias_shift` is the energy of the means, `sum of n(c) m(c)^2`, less what means of so few elements have by
///   chance;
/// - the other parts are energies of the errors that single sources make alone, each with its own channel
///   means taken off: quantized weights and bias; inputs that lie within the quantizer's range, rounded;
///   inputs beyond that range, clipped to its ends. Output quantizers that no other layer reads through
///   count as the layer's own.
///
/// A mean and what is left of an error are orthogonal, and energies of independent errors add up: so the four
/// parts sum to `whole` but for what the sources have in common and products of two errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorSplit {
    /// All sources together.
    pub whole: f64,
    /// Weights and bias as integers, activations float.
    pub weight_rounding: f64,
    /// Activations within the range, rounded, weights float.
    pub activation_rounding: f64,
    /// Activations beyond the range, cut off, weights float.
    pub clipping: f64,
    /// The mean error of each channel.
    pub bias_shift: f64,
}

impl ErrorSplit {
    /// The four parts with their names, in the order of the fields.
    pub fn parts(&self) -> [(&'static str, f64); 4] {
        [
            ("weights", self.weight_rounding),
            ("rounding", self.activation_rounding),
            ("clipping", self.clipping),
            ("shift", self.bias_shift),
        ]
    }
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
    /// Bits of a weight, where they were made fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_bits: Option<u32>,
    /// Bits of an element of its activations, where they were made fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation_bits: Option<u32>,
    /// How numbers stand for reals: types, symmetric or not, and what has a scale of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
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
    /// Kullback-Leibler divergence in nats between histograms of the output in the float and in the new model,
    /// on the same data: 0 when values are distributed alike, whichever of them they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_kl: Option<f64>,
    /// Its share of the error at the model's outputs, 0 to 1; those of a step's layers sum to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_share: Option<f64>,
    /// Where the error at its output comes from when it alone is quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorSplit>,
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
