//! Reads and writes model files.
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

mod error;
#[cfg(test)]
mod law;
mod load;
mod onnx;
mod proto;
mod residue;
mod safetensors;
mod sample;
mod save;
mod sniff;
mod source;

pub use error::IoError;
pub use load::{Format, LoadOptions, Loaded, load, read_onnx};
pub use sample::{read_tensor_file, read_tensor_pb, write_tensor_pb};
pub use save::{
    ExternalData, FileHash, Prepared, SaveOptions, SaveStats, check_target, onnx_bytes, onnx_segments,
    output_format, prepare, save, spread,
};
pub use source::{SourceFile, non_finite};
