//! The messages of the ONNX format; see `proto/onnx.proto`.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
include!(concat!(env!("OUT_DIR"), "/schema.rs"));
