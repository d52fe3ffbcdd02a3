//! What `optix prune` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Data, Debugging, Output};

/// Which weights become zero, or what is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PruneMethod {
    /// The least ones. Needs no data.
    Magnitude,
    /// Those whose products with what layers read are least.
    Wanda,
    /// Those that outputs miss least, with the others changed to make up for them.
    Sparsegpt,
    /// Whole channels are taken out of the graph, with everything that depends on them.
    Channels,
    /// Whole blocks beside residual connections are taken out.
    Layers,
    /// Layers become two smaller ones, one behind the other.
    LowRank,
}

/// What a channel is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PruneImportance {
    /// Readers with --calib, l2 without.
    Auto,
    /// Its weights without their signs. Needs no data.
    L1,
    /// Squares of its weights. Needs no data.
    L2,
    /// What the layers that read it lose when their other inputs make up for it.
    Readers,
    /// What outputs lose with it by their gradients.
    Taylor,
}

#[derive(Debug, Args)]
pub struct Prune {
    /// ONNX file.
    pub model: PathBuf,
    /// Which weights become zero, or what is taken out. [default: layers with --blocks, channels with --flops,
    /// --parameters, --bytes or --latency, otherwise sparsegpt with --calib and magnitude without]
    #[arg(long, value_enum)]
    pub method: Option<PruneMethod>,
    /// Share of the weights that become zero, from 0 to below 1. [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    pub sparsity: Option<f64>,
    /// Where zeros may stand: unstructured, N:M (N of every M neighbouring inputs are kept) or RxC (blocks of R
    /// output channels by C inputs, not with sparsegpt). [default: unstructured]
    #[arg(long, value_name = "PATTERN")]
    pub pattern: Option<String>,
    /// Take channels out (with --method layers blocks, with low-rank lower ranks) until this share of the layers'
    /// multiplications and additions is left, above 0 and up to 1. [default with --method channels: 0.5, low-rank: 0.7]
    #[arg(long, value_name = "SHARE")]
    pub flops: Option<f64>,
    /// Take channels out until this share of the numbers in weights is left, above 0 and up to 1.
    #[arg(long, value_name = "SHARE", conflicts_with = "flops")]
    pub parameters: Option<f64>,
    /// Take channels out until this share of the bytes of all constants is left, above 0 and up to 1.
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["flops", "parameters"])]
    pub bytes: Option<f64>,
    /// Take channels out until this share of the time of a sample is left, as measured in onnxruntime; above 0 and up to 1.
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["flops", "parameters", "bytes"])]
    pub latency: Option<f64>,
    /// Take so many blocks out that lie beside residual connections. [default with --method layers: 1]
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["flops", "parameters", "bytes"])]
    pub blocks: Option<usize>,
    /// What a channel is worth, where channels are taken out. [default: auto]
    #[arg(long, value_enum)]
    pub importance: Option<PruneImportance>,
    /// Leave multiples of so many elements where channels are taken out, or ranks lowered. [default: 8]
    #[arg(long, value_name = "COUNT")]
    pub multiple: Option<usize>,
    /// Whether layers behind what was taken out are fitted to what they gave before, on the calibration data, and channels of
    /// layers with zeros scaled and moved to that.
    /// [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub recover: Option<bool>,
    /// Afterwards train what is left, for so many steps, to give what the model gave before (`optix distill` has more
    /// options).
    #[arg(long, value_name = "N")]
    pub distill_steps: Option<u64>,
    /// Leave nodes of this name alone, `*` for any run of characters; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub exclude: Vec<String>,
    /// Set an option of a step; may be repeated.
    #[arg(long, value_name = "STEP.OPTION=VALUE")]
    pub set: Vec<String>,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub data: Data,
    #[command(flatten)]
    pub debugging: Debugging,
}
