//! Training: gradients as a graph, what is made small, and the steps that make it so.
//!
//! Nothing here runs a model or reads a file: [`Student`] is a model that computes its own gradients, whoever trains
//! runs it and hands what comes out to [`optimizer`].

pub mod gradient;
pub mod loss;
pub mod optimizer;
mod student;

pub use student::{Aim, Parameter, Student, StudentError, parameters, shaped};
