//! Why a model could not be read or written.

use std::io;
use std::path::{Path, PathBuf};

use optix_base::{BudgetError, ErrorClass, OutputError, escape_for_terminal};

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The system refused to give a file.
    #[error("cannot read {}: {source}", shown_path(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not a file that can hold a model.
    #[error("{}: {what}", shown_path(path))]
    NotAModel {
        /// The file or directory.
        path: PathBuf,
        /// What it is and what helps.
        what: String,
    },
    /// What the file says makes no sense.
    #[error("{}: {place}: {what}", shown_path(path))]
    Content {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// More than the limits allow.
    #[error("{}: {source}", shown_path(path))]
    Budget {
        /// The file.
        path: PathBuf,
        /// The limit.
        source: BudgetError,
    },
    /// A file was changed by somebody else while it was in use.
    #[error(
        "{} changed while reading it; run again, with `--no-mmap` if it keeps changing",
        shown_path(path)
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The output could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The model cannot be expressed in the format asked for.
    #[error("cannot write {}: {what}", shown_path(path))]
    Unwritable {
        /// The target.
        path: PathBuf,
        /// Why, and what helps.
        what: String,
    },
}

impl IoError {
    /// Whose fault it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            IoError::Read { source, .. } => ErrorClass::of_io(source),
            IoError::Changed { .. } => ErrorClass::Environment,
            IoError::Output(error) => error.class(),
            IoError::NotAModel { .. }
            | IoError::Content { .. }
            | IoError::Budget { .. }
            | IoError::Unwritable { .. } => ErrorClass::Input,
        }
    }

    /// What helps, where the message itself does not say it.
    pub fn cure(&self) -> Option<&'static str> {
        match self {
            IoError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path")
            }
            IoError::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("check the permissions of the file")
            }
            IoError::NotAModel { .. } => {
                Some("give an ONNX file, a safetensors file or a Hugging Face directory")
            }
            IoError::Content { .. } => Some(
                "the file is damaged, or what wrote it has a fault: fetch it again, or export the model again",
            ),
            _ => None,
        }
    }
}

/// A path made fit for a message: a very long one, which only a hostile file names, loses its middle.
pub(crate) fn shown_path(path: &Path) -> String {
    let path = path.to_string_lossy();
    let count = path.chars().count();
    if count <= 10 * SHOWN {
        return escape_for_terminal(&path).into_owned();
    }
    let start: String = path.chars().take(SHOWN).collect();
    let end: String = path.chars().skip(count.saturating_sub(SHOWN)).collect();
    format!("{}...{}", escape_for_terminal(&start), escape_for_terminal(&end))
}

/// Characters of a foreign name that a message shows.
const SHOWN: usize = 100;

/// A foreign name in quotes, escaped, cut when long.
pub(crate) fn quoted(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        None => format!("`{}`", escape_for_terminal(name)),
        Some((end, _)) => format!("`{}...`", escape_for_terminal(name.get(..end).unwrap_or_default())),
    }
}
