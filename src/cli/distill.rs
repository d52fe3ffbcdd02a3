//! What `optix distill` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Data, Debugging, Output};

/// How outputs are compared with the teacher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DistillLoss {
    /// Chosen by output.
    Auto,
    /// Divergence of their softmax.
    Logits,
    /// Divergence of outputs that are probabilities.
    Probabilities,
    /// Squared differences.
    Squares,
}

/// A change of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DistillChange {
    /// Left and right exchanged, half of the time.
    Flip,
    /// Moved by some pixels.
    Shift,
    /// A part of it, stretched to the whole.
    Crop,
    /// Contrast and brightness a little different.
    Light,
}

#[derive(Debug, Args)]
pub struct Distill {
    /// ONNX file of the model that learns.
    pub model: PathBuf,
    /// Steps. [default: 500]
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// Samples of a step. [default: 64]
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Greatest learning rate. [default: 0.001; of a quantized model 0.00005, with fewer than 8 bits 0.0005]
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// How outputs are compared with the teacher's. [default: auto]
    #[arg(long, value_enum)]
    pub loss: Option<DistillLoss>,
    /// What logits are divided by before they are compared. [default: 2]
    #[arg(long, value_name = "NUMBER")]
    pub temperature: Option<f64>,
    /// Show pictures changed a little; may be repeated. [default: what the data.toml says]
    #[arg(long, value_enum, value_name = "CHANGE")]
    pub augment: Vec<DistillChange>,
    /// Learn values on the way too: a name that both models have, `*` for any run of characters, or `auto`; may be
    /// repeated.
    #[arg(long, value_name = "NAME")]
    pub features: Vec<String>,
    /// Learn block by block, each fed what the teacher gives before it: needs less memory.
    #[arg(long)]
    pub blocks: bool,
    /// What classes that samples are labelled with count, where the teacher counts 1. [default: 0]
    #[arg(long, value_name = "NUMBER")]
    pub label_weight: Option<f64>,
    /// Take what is read by operators without a gradient as constant, instead of refusing.
    #[arg(long)]
    pub freeze_unsupported: bool,
    /// Leave the weights of nodes of this name alone, `*` for any run of characters; may be repeated.
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
