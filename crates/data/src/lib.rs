//! Data sets: sources, preprocessing, metrics and statistics.
//!
//! Sources stream: no data set is ever loaded whole. Everything read here may be hostile: sizes are
//! checked against what is there, nothing is allocated from a declared length, and decompression is
//! bounded.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod augment;
mod batch;
mod bind;
mod dataset;
mod digest;
mod error;
mod input;
mod latency;
mod measure;
mod metrics;
mod mismatch;
mod npz;
mod overlap;
mod short;
mod signal_noise;
mod source;
mod spec;
mod statistics;
mod steps;
mod survey;

pub use augment::Augmentation;
pub use batch::{Batch, LabelValues, Labels, check_labels};
pub use bind::{Batches, Binding, Bound};
pub use dataset::{ArrayInfo, Dataset, InputSpec, OpenOptions};
pub use digest::Digest;
pub use error::{DataError, SpecError};
pub use latency::{Difference, Latencies, Percentile, Ratio};
pub use measure::{Better, Change, Measured, Meter, Metric, Needs, Probe, ProbeFit, Seen, meter};
pub use metrics::{Accuracy, Agreement, Distance, correct, top_classes};
pub use npz::{NpzWriter, Packing, Rows};
pub use overlap::{OverlapReport, overlap};
pub use signal_noise::{SignalNoise, decibels, noise_at};
pub use source::{Classes, Columns, Kind, SourceOptions};
pub use spec::{DataSpec, InputSteps, MAX_SPEC_BYTES};
pub use statistics::{AccuracyChange, Interval, Mean, PairedCounts, Verdict, judge_share, wilson};
pub use steps::{
    Channel, Mel, MelLog, MelNorm, MelPad, MelScale, Mode, Order, Padding, Place, Preset, Side, Size, Step,
    TokenOutput, Tokenize, TypeName, apply_steps,
};
pub use survey::{Preview, Survey, Values};
