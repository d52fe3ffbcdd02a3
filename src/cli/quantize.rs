//! What `optix quantize` takes.

use std::path::PathBuf;

use clap::Args;

use super::{Data, Debugging, Method, Output};

#[derive(Debug, Args)]
pub struct Quantize {
    /// ONNX file.
    pub model: PathBuf,
    /// Static needs calibration data (`--calib`); dynamic works out ranges while the model runs; weight-only
    /// leaves activations float. [default: weight-only with --bits or --block-size, else static with --calib
    /// or --stats, dynamic without]
    #[arg(long, value_enum)]
    pub method: Option<Method>,
    /// One scale for each output channel of the weights.
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub per_channel: Option<bool>,
    /// How ranges of activations are chosen: auto, min-max, moving-average, mean-extremes, percentile,
    /// entropy or mse (docs/quantization.md). [default: auto]
    #[arg(long, value_name = "NAME")]
    pub observer: Option<String>,
    /// The engine that the model is meant for: a name that `optix targets` lists, or the file of a profile
    /// (docs/targets.md). [default: ort-cpu]
    #[arg(long, value_name = "NAME|FILE.toml")]
    pub target: Option<String>,
    /// Type of activations: uint8, int8, uint16, int16, float8e4m3fn or float8e5m2. [default: the target's]
    #[arg(long, value_name = "TYPE")]
    pub activation_type: Option<String>,
    /// Bits of a weight: 8, 4 or 2 for weight-only, 8 or 4 for static. [default: 4 for weight-only, 8 for static]
    #[arg(long, value_name = "8|4|2")]
    pub bits: Option<u32>,
    /// Weights that share a scale, for weight-only: a power of two from 16 on, 0 for all of an output.
    #[arg(long, value_name = "N")]
    pub block_size: Option<usize>,
    /// Afterwards train the model in integers, for so many steps, to give what it gave before: for static
    /// (docs/distillation.md).
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
