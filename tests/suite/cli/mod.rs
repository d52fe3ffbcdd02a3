//! The contract of the command line, through the program itself: what goes where, and exit codes.

mod auto;
mod commands;
mod data;
mod evaluation;
mod locks;
mod profile;
mod reports;
mod runs;
mod statistics;
mod targets;

/// A model with convolutions, and data to calibrate and judge it with: enough to work, few to be fast.
const MODEL: &str = "fixtures/models/fmnist_mobilenet.onnx";
const CALIB: &str = "--calib fixtures/data/fmnist-calib.toml --calib-samples 32";
const EVAL: &str = "--eval fixtures/data/fmnist-eval.toml --eval-samples 200";
