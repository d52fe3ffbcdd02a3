//! What only some kinds of sources take.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::Kind;
use crate::steps::TypeName;

/// Names of classes, in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Classes {
    /// A text file with one name a line, relative to the data.toml.
    File(PathBuf),
    /// The names.
    Names(Vec<String>),
}

/// Which columns of a table are fed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Columns {
    /// `"each"`: every column is an array of its own; anything else names one column.
    One(String),
    /// These columns, in this order, make the array `features`.
    Several(Vec<String>),
}

/// Keys of `[source]` that only some kinds take; the list in [`SourceOptions::given`] says which.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceOptions {
    /// Class names; without them, the sorted names of folders or labels.
    pub classes: Option<Classes>,
    /// The column or field that holds paths of images, audio or npy files.
    pub files: Option<String>,
    /// The folder those paths are relative to and may not leave.
    pub root: Option<PathBuf>,
    /// Columns that are fed.
    pub columns: Option<Columns>,
    /// Whether links may lead out of the folder.
    pub follow_links: bool,
    /// What stands between columns.
    pub separator: Option<char>,
    /// Whether the first line names the columns.
    pub header: Option<bool>,
    /// Element type of raw or random data.
    pub dtype: Option<TypeName>,
    /// Shape of one sample of raw or random data.
    pub shape: Option<Vec<usize>>,
    /// Number of random samples.
    pub count: Option<u64>,
    /// Sizes of the model's symbolic dimensions for random data.
    pub dims: BTreeMap<String, usize>,
    /// Random integers lie below this.
    pub below: Option<i64>,
    /// Program and arguments; no shell sees them.
    pub command: Vec<String>,
    /// Seconds a command may stay silent.
    pub timeout: Option<f64>,
    /// Names of the arrays that follow each other on a command's output.
    pub arrays: Vec<String>,
}

impl SourceOptions {
    /// The keys that are set, each with the kinds that take it.
    pub(crate) fn given(&self) -> Vec<(&'static str, &'static [Kind])> {
        use Kind::{Command, Csv, Images, Jsonl, Random, Raw, Text, Wav};
        let all: [(bool, &'static str, &'static [Kind]); 15] = [
            (self.classes.is_some(), "classes", &[Images, Wav, Csv, Jsonl, Text, Command]),
            (self.files.is_some(), "files", &[Images, Wav, Csv, Jsonl]),
            (self.root.is_some(), "root", &[Csv, Jsonl]),
            (self.columns.is_some(), "columns", &[Csv]),
            (self.follow_links, "follow-links", &[Images, Wav, Csv, Jsonl]),
            (self.separator.is_some(), "separator", &[Csv]),
            (self.header.is_some(), "header", &[Csv]),
            (self.dtype.is_some(), "dtype", &[Raw, Random]),
            (self.shape.is_some(), "shape", &[Raw, Random]),
            (self.count.is_some(), "count", &[Random]),
            (!self.dims.is_empty(), "dims", &[Random]),
            (self.below.is_some(), "below", &[Random]),
            (!self.command.is_empty(), "command", &[Command]),
            (self.timeout.is_some(), "timeout", &[Command]),
            (!self.arrays.is_empty(), "arrays", &[Command]),
        ];
        all.into_iter().filter(|(set, ..)| *set).map(|(_, key, kinds)| (key, kinds)).collect()
    }
}
