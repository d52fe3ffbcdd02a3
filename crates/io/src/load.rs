//! Loading a model from a file or directory.

use std::path::Path;

use bytes::Bytes;
use optix_base::Limits;
use optix_ir::Model;

use crate::error::IoError;
use crate::source::SourceFile;
use crate::{onnx, safetensors, sniff};

/// A format of model files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// An ONNX file, with or without a data file beside it.
    Onnx,
    /// One safetensors file: weights without a graph.
    Safetensors,
    /// A Hugging Face directory: config.json, safetensors files, tokenizer.
    SafetensorsDirectory,
}

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Whether files are mapped into memory (else they are read).
    pub map: bool,
    /// Limits on what a file may make us do.
    pub limits: Limits,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { map: true, limits: Limits::default() }
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Loaded {
    /// The model. From safetensors: a main graph with initializers and nothing else.
    pub model: Model,
    /// The format it came in.
    pub format: Format,
    /// The files it was read from, the main one first. Saving wants them as
    /// [`SaveOptions::inputs`](crate::SaveOptions::inputs).
    pub sources: Vec<SourceFile>,
    /// What was odd but not wrong, one line each.
    pub warnings: Vec<String>,
}

/// Loads a model: an ONNX file, a safetensors file, or a Hugging Face directory. Payloads of weights stay
/// in the file until somebody looks at them.
///
/// # Errors
/// When the file is missing, in another format, damaged, or beyond the limits.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Loaded, IoError> {
    let metadata = std::fs::metadata(path);
    if metadata.is_ok_and(|metadata| metadata.is_dir()) {
        return safetensors::load_directory(path, options);
    }
    let source = SourceFile::open(path, options.map)?;
    match sniff::sniff(&source.bytes(), path)? {
        Format::Onnx => load_onnx(source, options),
        _ => safetensors::load_file(source, options),
    }
}

fn load_onnx(source: SourceFile, options: &LoadOptions) -> Result<Loaded, IoError> {
    let path = source.path().to_owned();
    let read = onnx::read(&source.bytes(), &path, Some(source.clone()), options.map, options.limits)?;
    verify(&read.model, &path)?;
    let mut sources = vec![source];
    sources.extend(read.external);
    for source in &sources {
        source.check_unchanged()?;
    }
    Ok(Loaded { model: read.model, format: Format::Onnx, sources, warnings: read.warnings })
}

/// Reads an ONNX model from memory; external data is not looked for. `name` stands for the file in messages.
///
/// # Errors
/// As [`load`].
pub fn read_onnx(bytes: &Bytes, name: &str, limits: Limits) -> Result<Model, IoError> {
    let path = Path::new(name);
    let read = onnx::read(bytes, path, None, false, limits)?;
    verify(&read.model, path)?;
    Ok(read.model)
}

/// Violations shown in one message.
const SHOWN: usize = 5;

fn verify(model: &Model, path: &Path) -> Result<(), IoError> {
    let violations = optix_ir::verify::verify(model);
    if violations.is_empty() {
        return Ok(());
    }
    let mut what: Vec<String> = violations.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more) = violations.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        what.push(format!("and {more} more"));
    }
    let what = what.join("; ");
    Err(IoError::Content { path: path.to_owned(), place: "not a valid model".into(), what })
}
