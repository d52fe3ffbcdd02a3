//! safetensors: weights without a graph.
use crate::error::IoError;
use crate::load::{Format, LoadOptions, Loaded};
use crate::save::{SaveOptions, SaveStats};
use crate::source::SourceFile;
use optix_ir::Model;
use std::path::Path;

/// What stands here until there is a reader and a writer.
const NOT_YET: &str =
    "safetensors (weights without a graph) are not supported yet; export the model to an ONNX file";

pub(crate) fn load_file(source: SourceFile, _options: &LoadOptions) -> Result<Loaded, IoError> {
    Err(IoError::NotAModel { path: source.path().to_owned(), what: NOT_YET.into() })
}
pub(crate) fn load_directory(path: &Path, _options: &LoadOptions) -> Result<Loaded, IoError> {
    Err(IoError::NotAModel { path: path.to_owned(), what: NOT_YET.into() })
}
pub(crate) fn save_file(_model: &Model, path: &Path, _options: &SaveOptions) -> Result<SaveStats, IoError> {
    Err(IoError::NotAModel { path: path.to_owned(), what: NOT_YET.into() })
}
pub(crate) fn save_directory(
    _model: &Model,
    path: &Path,
    _options: &SaveOptions,
) -> Result<SaveStats, IoError> {
    Err(IoError::NotAModel { path: path.to_owned(), what: NOT_YET.into() })
}
pub(crate) fn check_directory(_path: &Path, _options: &SaveOptions) -> Result<(), IoError> {
    Ok(())
}
pub(crate) fn format_of(_model: &Model) -> Option<Format> {
    None
}
