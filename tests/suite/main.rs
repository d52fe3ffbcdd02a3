//! The tests that take more than one crate, as one binary.
#![allow(missing_docs, unreachable_pub)]

mod cases;
mod clean;
mod conformance;
mod contrib;
mod generated;
mod hostile;
mod models;
mod roundtrip;
