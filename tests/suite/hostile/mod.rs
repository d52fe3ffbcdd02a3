//! Bad input: whatever is handed to the program, it answers with exit code 2 (3 where the environment is at
//! fault), one message with the place and the cure, and every file as it was.
//!
//! The tables of `onnx`, `tensors`, `external`, `safetensors`, `data`, `sources`, `recipes`, `locks`, `engines` and `environment` run the
//! program itself on files made on the spot; `sweep` cuts and damages valid files at thousands of places and
//! reads them in this process. Rows that end well say what is odd but legal.

mod archive;
mod data;
mod engines;
mod environment;
mod external;
mod harness;
mod locks;
mod onnx;
mod pb;
mod recipes;
mod safetensors;
mod semantics;
mod sources;
mod sweep;
mod tensors;
