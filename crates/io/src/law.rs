//! The law that reading and writing keep: the message that comes out is the message that went in.

#![allow(clippy::print_stderr, reason = "says what was skipped and what was counted")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use optix_base::Limits;

use crate::proto::{self, ModelProto};
use crate::{LoadOptions, SaveOptions, SourceFile, load, save};

/// The canonical encoding of a message: fields in order of their numbers, unknown ones behind.
pub(crate) fn canonical(bytes: &Bytes) -> Bytes {
    let mut message: ModelProto = proto::decode(bytes, &Limits::default()).unwrap();
    blank_places(&mut message);
    proto::encode_small(&message)
}

/// Where data files lie and what lies where in them is the writer's choice.
fn blank_places(message: &mut ModelProto) {
    let Some(graph) = message.graph.as_option_mut() else { return };
    for entry in graph.initializer.iter_mut().flat_map(|tensor| &mut tensor.external_data) {
        if matches!(entry.key.as_deref(), Some("location" | "offset" | "length")) {
            entry.value = None;
        }
    }
    for tensor in &mut graph.initializer {
        // Places that the file left to their defaults are written out.
        tensor.external_data.retain(|entry| !matches!(entry.key.as_deref(), Some("offset" | "length")));
    }
}

/// Every model file under a directory.
fn models(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.is_symlink() {
            models(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "onnx") {
            found.push(path);
        }
    }
}

/// Holds the law for all models under the directory that an environment variable names.
fn hold_for(variable: &str) {
    let Some(directory) = std::env::var_os(variable) else {
        eprintln!("skipped: {variable} is not set");
        return;
    };
    let mut paths = Vec::new();
    models(Path::new(&directory), &mut paths);
    assert!(!paths.is_empty(), "no models under {}", Path::new(&directory).display());
    let (mut kept, mut byte_equal, mut resorted) = (0, 0, Vec::new());
    let mut broken = Vec::new();
    let out = tempfile::tempdir().unwrap();
    for path in &paths {
        let loaded = match load(path, &LoadOptions::default()) {
            Ok(loaded) => loaded,
            Err(error) => {
                broken.push(format!("does not load: {error}"));
                continue;
            }
        };
        for warning in &loaded.warnings {
            eprintln!("{}: {warning}", path.display());
        }
        if loaded.warnings.iter().any(|warning| warning.contains("written sorted")) {
            resorted.push(path);
            continue;
        }
        let target = out.path().join("model.onnx");
        let options = SaveOptions { inputs: loaded.sources.clone(), ..SaveOptions::default() };
        save(&loaded.model, &target, &options).unwrap();
        let input = SourceFile::open(path, true).unwrap().bytes();
        let output = SourceFile::open(&target, true).unwrap().bytes();
        byte_equal += usize::from(input == output);
        if canonical(&input) == canonical(&output) {
            kept += 1;
        } else {
            broken.push(format!("differs: {}", path.display()));
        }
    }
    eprintln!(
        "{variable}: {} models, law kept by {kept}, {byte_equal} byte-equal, {} resorted {resorted:?}",
        paths.len(),
        resorted.len()
    );
    assert!(broken.is_empty(), "{}:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn real_models() {
    hold_for("OPTIX_MODELS");
}

#[test]
fn operator_cases() {
    hold_for("OPTIX_NODE_DIR");
}
