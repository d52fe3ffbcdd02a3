//! What `optix profile` takes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What `profile` measures.
#[derive(Debug, Args)]
pub struct Profile {
    /// ONNX file.
    pub model: PathBuf,
    /// Compare with this model, run in turn with the first one.
    #[arg(long, value_name = "MODEL")]
    pub vs: Option<PathBuf>,
    /// Compare with this engine: it runs the model of `--vs`, or the same model.
    #[arg(long, value_name = "NAME")]
    pub vs_engine: Option<String>,
    /// Samples in a run, where the model's first axis is free. [default: 1]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Size of a free dimension, by its name, or by the input's name and the axis where it has none
    /// (`input:1=128`); may be repeated.
    #[arg(long, value_name = "NAME=SIZE")]
    pub dim: Vec<String>,
    /// Fill an input with this number instead of random ones; may be repeated.
    #[arg(long, value_name = "INPUT=NUMBER")]
    pub fill: Vec<String>,
    /// Feed the first samples of these data instead of random numbers.
    #[arg(long, value_name = "DATA", conflicts_with_all = ["dim", "fill"])]
    pub data: Option<PathBuf>,
    /// Measure for about so long; with `--vs` and for each scenario as long again.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub seconds: f64,
    /// Measure so many runs instead.
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    pub runs: Option<u64>,
    /// Measure this kind of load too; may be repeated.
    #[arg(long, value_enum)]
    pub scenario: Vec<Load>,
    /// Runs at the same time in the scenarios multi-stream and server. [default: one a thread]
    #[arg(long, value_name = "N")]
    pub streams: Option<usize>,
    /// Queries a second in the scenario server. [default: 60% of what multi-stream answers]
    #[arg(long, value_name = "RATE")]
    pub arrivals: Option<f64>,
    /// Write the last timed runs as a trace for chrome://tracing or ui.perfetto.dev.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write a report: .json, .md or .html; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// Exit with 1 when a threshold is missed: latency-ratio=RATIO, the time of the model over that of
    /// `--vs`; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub require: Vec<String>,
    /// Print the report as JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Load {
    /// One run after the other.
    SingleStream,
    /// Several at a time, each starting its next run at once.
    MultiStream,
    /// Queries arrive at random times; latency counts from when they arrive.
    Server,
    /// As many samples a second as possible, in batches.
    Offline,
}
