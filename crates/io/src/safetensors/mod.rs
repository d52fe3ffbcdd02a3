//! safetensors: weights without a graph. Told apart from other files, and not read yet.

use std::path::Path;

use optix_ir::Model;

use crate::error::IoError;
use crate::load::{Format, LoadOptions, Loaded};
use crate::save::{SaveOptions, SaveStats};
use crate::source::SourceFile;

const NOT_READ: &str =
    "weights without a graph (safetensors), which are not read yet; export the model to ONNX";

pub(crate) fn load_file(source: SourceFile, _options: &LoadOptions) -> Result<Loaded, IoError> {
    Err(IoError::NotAModel { path: source.path().to_owned(), what: NOT_READ.into() })
}

pub(crate) fn load_directory(path: &Path, _options: &LoadOptions) -> Result<Loaded, IoError> {
    let has_weights =
        ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| path.join(name).exists());
    let what = if has_weights { NOT_READ } else { "it is a directory; name a model file in it" };
    Err(IoError::NotAModel { path: path.to_owned(), what: what.into() })
}

pub(crate) fn save_file(_model: &Model, path: &Path, _options: &SaveOptions) -> Result<SaveStats, IoError> {
    Err(not_written(path))
}

pub(crate) fn save_directory(
    _model: &Model,
    path: &Path,
    _options: &SaveOptions,
) -> Result<SaveStats, IoError> {
    Err(not_written(path))
}

pub(crate) fn check_target(path: &Path) -> Result<(), IoError> {
    Err(not_written(path))
}

pub(crate) fn format_of(_model: &Model) -> Option<Format> {
    None
}

fn not_written(path: &Path) -> IoError {
    let what = "safetensors are not written yet; choose a name that ends in .onnx".to_owned();
    IoError::Unwritable { path: path.to_owned(), what }
}
