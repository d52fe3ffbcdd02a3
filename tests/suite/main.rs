//! The tests that take more than one crate, as one binary.
#![allow(missing_docs, unreachable_pub)]

mod cases;
mod clean;
mod conformance;
mod generated;
mod models;
mod random;
mod roundtrip;
