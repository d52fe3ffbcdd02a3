//! The command line: what may be typed, and its help. docs/cli.md is generated from it.

#![allow(missing_docs, reason = "doc comments here are help; what has none is a group of what has")]

mod distill;
mod profile;
mod prune;
mod quantize;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use distill::{Distill, DistillChange, DistillLoss};
pub use profile::{Load, Profile};
pub use prune::{Prune, PruneImportance, PruneMethod};
pub use quantize::Quantize;

/// Makes trained models smaller and faster, and proves what that cost.
#[derive(Debug, Parser)]
#[command(
    name = "optix",
    version,
    disable_help_subcommand = true,
    max_term_width = 110,
    after_help = "Results go to stdout; progress, notes and errors to stderr. Exit codes: 0 done; 1 a requirement \
                  was missed; 2 bad input or usage; 3 the environment (disk, memory, device, missing engine); \
                  4 internal error; 130 interrupted."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub global: Global,
}

/// When to use colour or show progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// On a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Engine that runs models (`optix engines` lists them).
    /// [default: cpu; for `profile` onnxruntime when it is found]
    #[arg(long, global = true, value_name = "NAME")]
    pub engine: Option<String>,
    /// Shared library of the `onnxruntime` engine.
    /// [default: ORT_DYLIB_PATH, the system's libraries, the wheel of an installed Python]
    #[arg(long, global = true, value_name = "FILE")]
    pub ort_lib: Option<PathBuf>,
    /// Threads the engine may use; 0 for as many as there are. Results do not depend on it.
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Seed of everything random; a recipe's own seed counts unless this is given.
    #[arg(long, global = true, value_name = "N")]
    pub seed: Option<u64>,
    /// Raise limits on what a file may make us do: name=value,...
    #[arg(long, global = true, value_name = "LIMITS", default_value = "")]
    pub limits: String,
    /// Let a data.toml run the command in it. `cmd:PROGRAM ...` on the command line needs no leave.
    #[arg(long, global = true)]
    pub allow_commands: bool,
    /// Read files instead of mapping them.
    #[arg(long, global = true)]
    pub no_mmap: bool,
    /// Only errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More: every layer, every node left alone.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Progress bars on stderr for what takes longer than a second.
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub progress: When,
}

/// Whether a lock is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Locking {
    /// Beside the output.
    #[default]
    Auto,
    /// Not at all.
    Never,
}

/// Where results go.
#[derive(Clone, Debug, Args)]
pub struct Output {
    /// The file to write.
    #[arg(short, long, value_name = "FILE", required_unless_present = "in_place")]
    pub output: Option<PathBuf>,
    /// Replace the input.
    #[arg(long, conflicts_with = "output")]
    pub in_place: bool,
    /// Put tensors of 1 KiB and more into a file beside the model.
    #[arg(long)]
    pub external_data: bool,
    /// Write the output even when a requirement is missed; otherwise what stood there stays.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub keep_failed: bool,
    /// Engine that the written model is meant for. Layers that are slower in integers there stay float, and
    /// the report tells the latency before and after; `none` measures nothing.
    /// [default: onnxruntime when it is found]
    #[arg(long, value_name = "NAME")]
    pub deploy: Option<String>,
    /// Accept a quantized model that is slower than the original; otherwise that exits with 1.
    #[arg(long)]
    pub allow_slower: bool,
    /// Write OUTPUT.lock.json, from which `optix apply` makes the same file again without data.
    #[arg(long, value_enum, default_value_t = Locking::Auto, value_name = "WHEN")]
    pub lock: Locking,
    /// Write a report: .json, .md or .html; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
    /// Print the report as JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Data and thresholds of a run.
#[derive(Clone, Debug, Args)]
pub struct Data {
    /// Calibration data: a data file, a directory or a data.toml.
    #[arg(long, value_name = "DATA", alias = "data")]
    pub calib: Option<PathBuf>,
    /// Use at most so many calibration samples.
    #[arg(long, value_name = "N")]
    pub calib_samples: Option<u64>,
    /// Calibration statistics: made from the calibration data where the file is not there, used instead of
    /// them where it is; may be repeated, then all must be there and are put together in order.
    #[arg(long, value_name = "FILE")]
    pub stats: Vec<PathBuf>,
    /// Evaluation data: the report compares the model before and after on them.
    #[arg(long, value_name = "DATA")]
    pub eval: Option<PathBuf>,
    /// Use at most so many evaluation samples.
    #[arg(long, value_name = "N")]
    pub eval_samples: Option<u64>,
    /// ONNX file of the model to learn from, for steps that learn. [default: the model that comes in]
    #[arg(long, value_name = "MODEL")]
    pub teacher: Option<PathBuf>,
    /// File for the state of training, written on the way: where it is there, training goes on from it and ends with
    /// the same bytes as without the interruption.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    #[command(flatten)]
    pub memory: Memory,
    /// Exit with 1 when a threshold is missed: accuracy-drop=POINTS, agreement=SHARE, sqnr-db=DB,
    /// size-ratio=RATIO or latency-ratio=RATIO; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub require: Vec<String>,
}

/// How samples are run.
#[derive(Clone, Copy, Debug, Args)]
pub struct Together {
    /// Samples run together, or `auto`. Where that would change a result, they are run one at a time.
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub batch: BatchSize,
}

/// How much memory the process may take.
#[derive(Clone, Copy, Debug, Args)]
pub struct Memory {
    /// Keep the memory of the process below this by running fewer samples together: bytes, or with a unit
    /// such as 800MB or 2GiB. What is predicted and what it came to is reported.
    #[arg(long, value_name = "BYTES")]
    pub max_memory: Option<ByteSize>,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        const UNITS: [(&str, f64); 9] = [
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
            ("KB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("K", 1e3),
            ("M", 1e6),
            ("G", 1e9),
        ];
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .unwrap_or((text.strip_suffix('B').unwrap_or(text), 1.0));
        let bytes = number.trim().parse::<f64>().ok().map(|number| number * unit);
        match bytes {
            Some(bytes) if (1.0..1e18).contains(&bytes) => Ok(ByteSize(bytes as u64)),
            _ => Err("a number of bytes, or with a unit: 500MB, 2GiB".to_owned()),
        }
    }
}

/// A number of samples; none for `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSize(pub Option<usize>);

impl std::str::FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<BatchSize, String> {
        match text {
            "auto" => Ok(BatchSize(None)),
            number => match number.parse::<usize>() {
                Ok(size) if size > 0 => Ok(BatchSize(Some(size))),
                _ => Err("a number from 1, or `auto`".to_owned()),
            },
        }
    }
}

/// Looking at the passes at work.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Debugging")]
pub struct Debugging {
    /// Verify the model after every pass.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub verify_each: bool,
    /// After every pass that promises numerics, compare results on random inputs.
    #[arg(long)]
    pub check: bool,
    /// Print the model's text after this step, or after `all`.
    #[arg(long, value_name = "STEP")]
    pub print_after: Option<String>,
    /// Write the model after every step into this directory.
    #[arg(long, value_name = "DIR")]
    pub dump_dir: Option<PathBuf>,
    /// Print how long every step took.
    #[arg(long)]
    pub timing: bool,
    /// Apply only the first N rewrites, to find the one that hurts.
    #[arg(long, value_name = "N")]
    pub stop_after_patch: Option<u64>,
    /// Print the recipe and do nothing.
    #[arg(long)]
    pub print_recipe: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what is in a model.
    Inspect {
        /// ONNX file.
        model: PathBuf,
        /// One JSON document.
        #[arg(long, conflicts_with = "text")]
        json: bool,
        /// ONNX's text form; large tensors are summed up.
        #[arg(long)]
        text: bool,
    },
    /// Run a recipe over a model.
    Run {
        /// A recipe file, or the name of a built-in one (`optix recipes`).
        recipe: String,
        /// ONNX file.
        model: PathBuf,
        /// Set an option of a step; may be repeated.
        #[arg(long, value_name = "STEP.OPTION=VALUE")]
        set: Vec<String>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        debugging: Debugging,
    },
    /// Quantize a model to 8 bits, or its weights alone to 8, 4 or 2.
    Quantize(Quantize),
    /// Quantize a model with as much done against the loss as it takes: recipes in order of price until accuracy
    /// holds.
    QuantizeAuto {
        /// ONNX file.
        model: PathBuf,
        /// Points of accuracy that may be lost, or of agreement with the original where the data have no labels:
        /// the upper end of the 95% interval counts.
        #[arg(long, value_name = "POINTS")]
        max_drop: f64,
        /// Data that recipes are chosen by. Not those of --eval: what is chosen by them looks better on them.
        /// [default: the calibration data]
        #[arg(long, value_name = "DATA")]
        tune: Option<PathBuf>,
        /// Choose by at most so many samples.
        #[arg(long, value_name = "N")]
        tune_samples: Option<u64>,
        /// Leave nodes of this name alone, `*` for any run of characters; may be repeated.
        #[arg(long, value_name = "NAME")]
        exclude: Vec<String>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        debugging: Debugging,
    },
    /// Make the output of a run again from its lock, byte for byte, without data or search.
    Apply {
        /// The lock that the run wrote beside its output: OUTPUT.lock.json.
        lock: PathBuf,
        /// The model that the run started from.
        model: PathBuf,
        /// The file to write.
        #[arg(short, long, value_name = "FILE", required_unless_present = "in_place")]
        output: Option<PathBuf>,
        /// Replace the input.
        #[arg(long, conflicts_with = "output")]
        in_place: bool,
    },
    /// Set weights of a model to zero.
    Prune(Box<Prune>),
    /// Train a model to give what another one gives.
    Distill(Box<Distill>),
    /// Convert a model to 16-bit floats.
    Precision {
        /// ONNX file.
        model: PathBuf,
        /// The 16-bit type. [default: float16]
        #[arg(long = "type", value_name = "float16|bfloat16")]
        float_type: Option<String>,
        /// Convert what is stored and nothing that is computed. [default: false]
        #[arg(long)]
        weights_only: bool,
        /// Let inputs and outputs stay float32. [default: true]
        #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set)]
        keep_io: Option<bool>,
        /// Convert only nodes of this name, `*` for any run of characters; may be repeated.
        #[arg(long, value_name = "NAME")]
        include: Vec<String>,
        /// Convert only nodes with this operator; may be repeated.
        #[arg(long, value_name = "OPERATOR")]
        include_operator: Vec<String>,
        /// Leave nodes of this name alone, `*` for any run of characters; may be repeated.
        #[arg(long, value_name = "NAME")]
        exclude: Vec<String>,
        /// Leave nodes with this operator alone; may be repeated.
        #[arg(long, value_name = "OPERATOR")]
        exclude_operator: Vec<String>,
        /// With --calib: least signal-to-noise ratio of every output against the float model. [default: 40]
        #[arg(long, value_name = "DB")]
        min_sqnr_db: Option<f64>,
        /// Set an option of a step; may be repeated.
        #[arg(long, value_name = "STEP.OPTION=VALUE")]
        set: Vec<String>,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        data: Data,
        #[command(flatten)]
        debugging: Debugging,
    },
    /// Run a model over data and keep its outputs.
    Infer {
        /// ONNX file.
        model: PathBuf,
        /// Data file, directory or data.toml.
        #[arg(long, value_name = "DATA")]
        data: PathBuf,
        /// The .npz to write.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Keep this value, of any node, instead of the outputs; may be repeated.
        #[arg(long, value_name = "VALUE")]
        want: Vec<String>,
        /// Use at most so many samples.
        #[arg(long, value_name = "N")]
        samples: Option<u64>,
        #[command(flatten)]
        together: Together,
    },
    /// Measure a model on data, alone or against another one.
    Eval {
        /// ONNX file.
        model: PathBuf,
        /// Data file, directory or data.toml.
        #[arg(long, value_name = "DATA")]
        data: PathBuf,
        /// What to measure; may be repeated: topN (such as top1, which `accuracy` also means), binary-accuracy,
        /// f1, f1-micro, probe, perplexity; against --vs or recorded outputs: agreement, kl, cosine, sqnr-db,
        /// max-abs-error, mean-abs-error; cmd:COMMAND for one of your own (docs/evaluation.md).
        /// [default: what data and models allow]
        #[arg(long, value_name = "METRIC")]
        metric: Vec<String>,
        /// The output that metrics look at.
        /// [default: with --metric the first that is rows of numbers, else the first]
        #[arg(long, value_name = "NAME")]
        output: Option<String>,
        /// Compare with this model on the same samples.
        #[arg(long, value_name = "MODEL")]
        vs: Option<PathBuf>,
        /// Labelled data that the classifier of the metric `probe` is fitted on.
        #[arg(long, value_name = "DATA")]
        train: Option<PathBuf>,
        /// Use at most so many samples.
        #[arg(long, value_name = "N")]
        samples: Option<u64>,
        #[command(flatten)]
        together: Together,
        #[command(flatten)]
        memory: Memory,
        /// Exit with 1 when a threshold is missed: a metric's name with the least (for errors: the most) it may
        /// be, or topN-drop=POINTS with --vs; judged by the unfavourable end of the interval; may be repeated.
        #[arg(long, value_name = "METRIC=VALUE")]
        require: Vec<String>,
        /// Write the result to a file: .json, .md or .html; may be repeated.
        #[arg(long, value_name = "FILE")]
        report: Vec<PathBuf>,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Measure how fast a model is and where its time and memory go.
    Profile(Box<Profile>),
    /// Show where two models part, value by value; or one model on two engines.
    Compare {
        /// The reference.
        a: PathBuf,
        /// The other one; may be left out with --vs-engine.
        #[arg(required_unless_present = "vs_engine")]
        b: Option<PathBuf>,
        /// Data file, directory or data.toml.
        #[arg(long, value_name = "DATA")]
        data: PathBuf,
        /// Engine that runs the other one.
        #[arg(long, value_name = "NAME")]
        vs_engine: Option<String>,
        /// Use at most so many samples.
        #[arg(long, value_name = "N", default_value_t = 64)]
        samples: u64,
        #[command(flatten)]
        together: Together,
        /// Greatest difference, relative to the greatest value, up to which two values count as the same.
        #[arg(long, value_name = "SHARE", default_value_t = 1e-3)]
        tolerance: f64,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Look at data as a model would see them.
    Data {
        #[command(subcommand)]
        command: DataCommand,
    },
    /// List the passes, or show the manual of one.
    Passes {
        /// Its name.
        name: Option<String>,
    },
    /// List the built-in recipes, or print one.
    Recipes {
        /// Its name.
        name: Option<String>,
    },
    /// List the targets that `quantize` knows: engines, with what they run in integers.
    Targets {
        #[command(subcommand)]
        command: Option<TargetsCommand>,
    },
    /// List the engines and whether they can be used here.
    Engines {
        /// Print one JSON document, with every folder where a library was looked for.
        #[arg(long)]
        json: bool,
    },
    /// Explain an error code.
    Explain {
        /// Such as OX-M001; without one, all are listed.
        code: Option<String>,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Read all samples and say what they are, what is wrong with them, and how they fit a model.
    Check {
        /// Data file, directory, data.toml, kind:path?key=value or cmd:PROGRAM (docs/data.md).
        data: PathBuf,
        /// The model they are for.
        #[arg(long)]
        model: Option<PathBuf>,
        /// Use at most so many samples.
        #[arg(long, value_name = "N")]
        samples: Option<u64>,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum TargetsCommand {
    /// Print the profile of a target.
    Show {
        /// Its name.
        name: String,
    },
    /// Ask the onnxruntime that is here what it runs in integers, and write a profile of it.
    Probe {
        /// The file to write.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Name of the profile. [default: the file's]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
}

/// How `quantize` quantizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Ranges of activations from calibration data.
    Static,
    /// Ranges computed while the model runs.
    Dynamic,
    /// Integers for weights, activations stay float.
    WeightOnly,
}
