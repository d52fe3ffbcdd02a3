//! Engines that cannot be used: libraries that are none, or of another machine; adapters that are missing;
//! engines that are not built in. The environment is at fault (exit code 3), and every message says what to
//! do.

use super::archive::{array, npz};
use super::harness::{MODEL, Row, run_all};
use super::pb::{floats, product};

fn row(name: &str) -> Row {
    Row::new(name)
        .file(MODEL, product().model())
        .file("in/x.npz", npz(&[("x.npy", array("<f4", "(2, 4)", &floats(&[1.0; 8])))]))
        .refused(3)
}

/// Runs a model on an engine in each of the ways there are.
fn on(row: Row, engine: &str) -> Row {
    row.run(&["infer", MODEL, "--data", "in/x.npz", "-o", "out/y.npz", "--engine", engine])
        .run(&["compare", MODEL, MODEL, "--data", "in/x.npz", "--engine", engine])
        .run(&["quantize", MODEL, "-o", "out/q.onnx", "--calib", "in/x.npz", "--engine", engine])
}

/// The beginning of a shared library for a machine.
fn elf(machine: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend(3u16.to_le_bytes());
    header.extend(machine.to_le_bytes());
    header.resize(4096, 0);
    header
}

fn libraries() -> Vec<Row> {
    let library = |name: &str, content: Vec<u8>, says: &[&str]| {
        let row = row(name).file("in/lib.so", content);
        let infer = ["infer", MODEL, "--data", "in/x.npz", "-o", "out/y.npz", "--engine", "onnxruntime"];
        let infer = [&infer[..], &["--ort-lib", "in/lib.so"]].concat();
        row.run(&infer).says(&[&["engine `onnxruntime` cannot be used", "lib.so"], says].concat())
    };
    let (own, other) = match std::env::consts::ARCH {
        "aarch64" => ("aarch64", (62, "x86_64")),
        own => (own, (183, "aarch64")),
    };
    let mut rows = vec![
        library("library is text", b"no library at all, but long enough".to_vec(), &["no shared library"]),
        library("library is empty", Vec::new(), &["no shared library"]),
        library("library is cut", elf(62)[..12].to_vec(), &["no shared library"]),
        library("library of another machine", elf(other.0), &[&format!("built for {}", other.1), own]),
        library("library of no known machine", elf(0xbeef), &["built for another machine", own]),
        row("library is missing")
            .run(&[
                "infer",
                MODEL,
                "--data",
                "in/x.npz",
                "-o",
                "out/y.npz",
                "--engine",
                "onnxruntime",
                "--ort-lib",
                "in/none.so",
            ])
            .says(&["none.so", "there is no such file"]),
        row("library in the environment is missing")
            .run(&["infer", MODEL, "--data", "in/x.npz", "-o", "out/y.npz", "--engine", "onnxruntime"])
            .limits("export ORT_DYLIB_PATH=in/none.so")
            .says(&["none.so", "there is no such file"]),
    ];
    if own == "x86_64" {
        rows.push(library("library with nothing in it", elf(62), &["cannot be loaded"]));
    }
    // Some library of this machine that is another one.
    if let Some(path) = ["/lib/x86_64-linux-gnu/libm.so.6", "/usr/lib/libm.so.6"]
        .iter()
        .find(|path| std::path::Path::new(path).exists())
    {
        let content = std::fs::read(path).expect("it can be read");
        rows.push(library("library of something else", content, &["no onnxruntime", "OrtGetApiBase"]));
    }
    rows
}

fn backends() -> Vec<Row> {
    let mut rows = Vec::new();
    for (engine, built_in) in [
        ("ndarray", cfg!(feature = "ndarray")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("cuda", cfg!(feature = "cuda")),
    ] {
        if !built_in {
            let cure = format!("build optix with `--features {engine}`");
            let row = row(&format!("{engine} is not built in"));
            rows.push(on(row, engine).says(&[&format!("engine `{engine}` cannot be used"), &cure]));
        }
    }
    if cfg!(feature = "wgpu") && cfg!(target_os = "linux") {
        let none = "export VK_DRIVER_FILES=/none VK_ICD_FILENAMES=/none";
        rows.push(
            on(row("no adapter"), "wgpu").limits(none).says(&["there is no adapter", "VK_DRIVER_FILES"]),
        );
    }
    rows.push(on(row("no such engine"), "wgup").says(&["there is no engine `wgup`", "did you mean `wgpu`?"]));
    rows
}

#[test]
fn bad_libraries() {
    run_all(libraries());
}

#[test]
fn missing_backends() {
    run_all(backends());
}
