//! The tests that take more than one crate, as one binary.
#![allow(missing_docs, unreachable_pub)]

mod cases;
mod clean;
mod cli;
mod conformance;
mod contrib;
mod decisions;
mod documents;
mod examples;
mod generated;
mod hostile;
mod models;
mod mutations;
mod numbers;
mod numerics;
mod precision;
mod program;
mod quantize;
mod random;
mod recipes;
mod recovery;
mod reproducer;
mod roundtrip;
mod schema;
mod tidy;
