//! Compiles the ONNX schema to Rust, in pure Rust: no protoc is needed.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=proto/onnx.proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    let compiled = protox::Compiler::new(["proto"])
        .and_then(|mut compiler| {
            compiler.open_file("onnx.proto")?;
            Ok(compiler.encode_file_descriptor_set())
        })
        .expect("the schema is valid");
    let descriptor = out.join("onnx.binpb");
    std::fs::write(&descriptor, compiled).expect("the build directory is writable");
    buffa_build::Config::new()
        .descriptor_set(&descriptor)
        .files(&["onnx.proto"])
        .out_dir(&out)
        .use_bytes_type()
        .generate_views(false)
        .preserve_unknown_fields(true)
        .include_file("schema.rs")
        .compile()
        .expect("the schema compiles");
}
