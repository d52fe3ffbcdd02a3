//! What `optix prune` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Data, Debugging, Output};

/// Which weights become zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PruneMethod {
    /// The least ones. Needs no data.
    Magnitude,
    /// Those whose products with what layers read are least.
    Wanda,
    /// Those that outputs miss least, with the others changed to make up for them.
    Sparsegpt,
}

#[derive(Debug, Args)]
pub struct Prune {
    /// ONNX file.
    pub model: PathBuf,
    /// Which weights become zero. [default: sparsegpt with --calib, magnitude without]
    #[arg(long, value_enum)]
    pub method: Option<PruneMethod>,
    /// Share of the weights that become zero, from 0 to below 1. [default: 0.5]
    #[arg(long, value_name = "SHARE")]
    pub sparsity: Option<f64>,
    /// Where zeros may stand: unstructured, N:M (N of every M neighbouring inputs are kept) or RxC (blocks of R
    /// output channels by C inputs, not with sparsegpt). [default: unstructured]
    #[arg(long, value_name = "PATTERN")]
    pub pattern: Option<String>,
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
