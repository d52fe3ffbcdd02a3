//! The tests that take more than one crate, as one binary.
#![allow(missing_docs, unreachable_pub)]

mod cases;
mod clean;
mod cli;
mod conformance;
mod contrib;
mod documents;
mod examples;
mod generated;
mod hostile;
mod lab;
mod models;
mod mutations;
mod numbers;
mod numerics;
mod opset;
mod program;
mod qoperator;
mod random;
mod recipes;
mod reproducer;
mod roundtrip;
mod schema;
mod tidy;
mod weights;
