//! Makes Rust code of `proto/onnx.proto`, without `protoc`.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    let descriptors =
        PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("onnx.bin");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.open_file("onnx.proto")?;
    std::fs::write(&descriptors, compiler.encode_file_descriptor_set())?;
    // buffa has cargo watch this file too. As new as it is, cargo would take it for changed and build
    // everything again each time: it gets the age of what it was made from.
    let source = std::fs::metadata("proto/onnx.proto")?.modified()?;
    std::fs::File::options().write(true).open(&descriptors)?.set_modified(source)?;
    buffa_build::Config::new()
        .files(&["onnx.proto"])
        .descriptor_set(descriptors)
        .generate_views(false)
        .use_bytes_type()
        // Most nodes have none of the large sub-messages: keep them out of line.
        .box_type(buffa_build::PointerRepr::Box)
        .compile()
}
