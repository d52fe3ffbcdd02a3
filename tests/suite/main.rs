//! The tests that take more than one crate, as one binary.
#![allow(missing_docs, unreachable_pub)]

mod cases;
mod cli;
mod conformance;
mod documents;
mod generated;
mod models;
mod program;
mod schema;
