//! What can go wrong with data.

use std::path::Path;

use optix_base::{BudgetError, ErrorClass, OutputError, escape_for_terminal};

/// A data set that cannot be read, does not fit, or cannot be written. Every message names the file and,
/// inside it, the entry, sample or line.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("{path}: {source}{hint}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
        /// What helps.
        hint: String,
    },
    /// The file is damaged, breaks its format's rules, or is not of a kind that is read here.
    #[error("{path}: {place}{}{what}", if place.is_empty() { "" } else { ": " })]
    Invalid {
        /// The file.
        path: String,
        /// Where in it: an entry, a sample.
        place: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// A limit was passed.
    #[error("{path}: {source}")]
    Limit {
        /// The file.
        path: String,
        /// Which limit.
        source: BudgetError,
    },
    /// A `data.toml` or data specification that cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The data do not fit the model's inputs.
    #[error("{path}: {what}")]
    Mismatch {
        /// The data set.
        path: String,
        /// What does not fit, with a table of both sides, and what to do.
        what: String,
    },
    /// Labels that cannot be used.
    #[error("{0}")]
    Labels(String),
    /// Tensors that a metric cannot compare.
    #[error("{0}")]
    Metric(String),
    /// The reader of model files complained about a sample (`.pb`).
    #[error(transparent)]
    File(#[from] optix_io::IoError),
    /// The output could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl DataError {
    /// Whose fault it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            DataError::Read { source, .. } => ErrorClass::of_io(source),
            DataError::File(error) => error.class(),
            DataError::Output(error) => error.class(),
            _ => ErrorClass::Input,
        }
    }

    /// An error of the system while reading `path`.
    pub(crate) fn read(path: &Path, source: std::io::Error) -> DataError {
        let hint = match source.kind() {
            std::io::ErrorKind::NotFound => "; check the path",
            std::io::ErrorKind::PermissionDenied => "; check its permissions",
            _ => "",
        };
        DataError::Read { path: shown(path), source, hint: hint.to_owned() }
    }

    /// A complaint about a file's contents.
    pub(crate) fn invalid(path: &Path, place: &str, what: impl AsRef<str>) -> DataError {
        DataError::Invalid {
            path: shown(path),
            place: escape_for_terminal(place).into_owned(),
            what: escape_lines(what.as_ref()),
        }
    }

    /// A passed limit: the `name` is that of `--limits`.
    pub(crate) fn limit(path: &Path, what: &str, name: &'static str, limit: u64) -> DataError {
        let what = escape_for_terminal(what).into_owned();
        DataError::Limit { path: shown(path), source: BudgetError::Exceeded { what, name, limit } }
    }
}

/// A specification of data that cannot be used, with the place in its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}{}: {message}{}", place(.line_column), snippet(.excerpt))]
pub struct SpecError {
    /// The file, or the specification given on the command line.
    pub origin: String,
    /// Line and column, from 1.
    pub line_column: Option<(usize, usize)>,
    /// What is wrong and what to do.
    pub message: String,
    /// The line, with a caret under the place.
    pub excerpt: String,
}

fn place(line_column: &Option<(usize, usize)>) -> String {
    line_column.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"))
}

fn snippet(excerpt: &str) -> String {
    if excerpt.is_empty() { String::new() } else { format!("\n{excerpt}") }
}

/// A path for people.
pub(crate) fn shown(path: &Path) -> String {
    escape_for_terminal(&path.to_string_lossy()).into_owned()
}

/// Escapes foreign text but keeps the line breaks of our own tables.
pub(crate) fn escape_lines(text: &str) -> String {
    text.split('\n').map(escape_for_terminal).collect::<Vec<_>>().join("\n")
}
