//! Where samples come from: one file a format, all behind [`Source`].

mod array;
mod command;
mod csv;
mod folder;
mod framer;
mod idx;
mod jsonl;
mod labels;
mod media;
mod npy;
mod npy_directory;
mod npz;
mod onnx_tests;
mod options;
mod random;
mod raw;
mod sniff;
mod text;
mod wav;
mod zip;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use optix_base::Limits;
use optix_ir::{DType, Tensor};

use self::array::ArrayStream;
pub(crate) use self::framer::words;
pub use self::options::{Classes, Columns, SourceOptions};
pub(crate) use self::random::open as open_random;
pub(crate) use self::sniff::sniff;
use crate::error::{DataError, shown};
use crate::spec::DataSpec;

/// What a data set is stored as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// MNIST's format: images in one file, labels in another.
    Idx,
    /// A zip archive of numpy arrays, one for each input.
    Npz,
    /// One numpy array, or a directory of them.
    Npy,
    /// Directories `test_data_set_N` with `input_K.pb` and `output_K.pb`.
    OnnxTests,
    /// A folder of images, with a folder a class or without labels; or one image.
    Images,
    /// A table: columns of numbers, of texts, of paths.
    Csv,
    /// Lines of text.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// A folder of sounds, as one of images; or one sound.
    Wav,
    /// Numbers without a header.
    Raw,
    /// Numbers drawn at random, for latency alone.
    Random,
    /// What a program prints.
    Command,
}

impl Kind {
    /// All kinds with their names in `data.toml`.
    pub const ALL: &'static [(&'static str, Kind)] = &[
        ("idx", Kind::Idx),
        ("npz", Kind::Npz),
        ("npy", Kind::Npy),
        ("onnx-tests", Kind::OnnxTests),
        ("images", Kind::Images),
        ("csv", Kind::Csv),
        ("text", Kind::Text),
        ("jsonl", Kind::Jsonl),
        ("wav", Kind::Wav),
        ("raw", Kind::Raw),
        ("random", Kind::Random),
        ("command", Kind::Command),
    ];

    /// Whether its path is that of a file or directory.
    pub(crate) fn has_path(self) -> bool {
        !matches!(self, Kind::Random | Kind::Command)
    }

    /// Its name in `data.toml`.
    pub fn name(self) -> &'static str {
        Kind::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }
}

/// A sample as its source has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// One tensor for each of [`Source::arrays`].
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) label: Option<Label>,
    pub(crate) facts: Facts,
}

/// What is known of a sample beside its numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// Sounds: samples a second.
    pub(crate) rate: Option<u32>,
    /// Images: how the camera was held, as EXIF counts it; 0 and 1 are upright.
    pub(crate) orientation: u8,
    /// The file it was read from, relative to the data set.
    pub(crate) place: Option<PathBuf>,
    /// The line it stands in, from 1.
    pub(crate) line: Option<u64>,
}

impl Facts {
    /// Where the sample stands, as the end of a sentence; empty where its number is all there is.
    pub(crate) fn place(&self) -> String {
        match (&self.place, self.line) {
            (Some(path), _) => format!(", {}", shown(path)),
            (None, Some(line)) => format!(", line {line}"),
            (None, None) => String::new(),
        }
    }
}

/// What a source is opened with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) spec: Arc<DataSpec>,
    pub(crate) limits: Limits,
}

/// A source that has been looked at: what a listing or a first pass found out is kept, and streams of
/// samples start from it.
pub(crate) trait Opened: Debug + Send + Sync {
    /// A fresh stream, from the first sample.
    fn stream(&self) -> Result<Box<dyn Source>, DataError>;
    /// Names of the classes, in the order of their numbers; empty where labels are numbers.
    fn classes(&self) -> &[String] {
        &[]
    }
    /// What the user should know.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A sample's label.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Label {
    Class(i64),
    Tensor(Tensor),
    Outputs(Vec<(String, Tensor)>),
}

impl Label {
    /// One integer is a class, the rest stays what it is.
    fn of(tensor: Tensor) -> Label {
        let class = match tensor.to_i64s() {
            Ok(values) if tensor.len() == 1 => values.first().copied(),
            _ => None,
        };
        class.map_or(Label::Tensor(tensor), Label::Class)
    }
}

/// A stream of samples.
pub(crate) trait Source: Send {
    /// Names of the tensors of each sample; empty for the only tensor of a source without names.
    fn arrays(&self) -> &[String];
    /// Whether the order of the tensors is that of the model's inputs, so that names need not agree.
    fn is_ordered(&self) -> bool {
        false
    }
    /// Number of samples.
    fn count(&self) -> u64;
    /// The next sample; called at most [`Source::count`] times.
    fn next(&mut self) -> Result<Sample, DataError>;
    /// Passes over samples.
    fn skip(&mut self, count: u64) -> Result<(), DataError>;
    /// Called behind the last sample: checks that the files end there.
    fn finish(&mut self) -> Result<(), DataError> {
        Ok(())
    }
    /// Whether the next sample can be had after one that could not.
    fn is_resumable(&self) -> bool {
        false
    }
}

/// Content hash of a sample: type, shape and elements of its tensors, in the order of their names. The
/// same arrays have the same hash whichever format holds them. The label does not count.
pub(crate) fn hash(arrays: &[String], sample: &Sample) -> [u8; 32] {
    let mut order: Vec<(&String, &Tensor)> = arrays.iter().zip(&sample.tensors).collect();
    order.sort_by(|a, b| a.0.cmp(b.0));
    let mut hasher = blake3::Hasher::new();
    for (_, tensor) in order {
        hasher.update(&tensor.dtype().onnx().to_le_bytes());
        hasher.update(&(tensor.rank() as u64).to_le_bytes());
        for &dim in tensor.shape() {
            hasher.update(&(dim as u64).to_le_bytes());
        }
        hasher.update(tensor.bytes());
    }
    hasher.finalize().into()
}

/// Names in a directory, sorted; those that are not UTF-8 are left out.
fn names_in(path: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| DataError::read(path, error))? {
        let entry = entry.map_err(|error| DataError::read(path, error))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The file that the labels of a source are in, where they are in one of their own.
pub(crate) fn labels_file(kind: Kind, path: &Path, labels: Option<&str>, base: &Path) -> Option<PathBuf> {
    let given = labels.map(|labels| base.join(labels));
    match kind {
        Kind::Idx => given.or_else(|| idx::labels_beside(path)),
        Kind::Npy if !path.is_dir() => given,
        Kind::Text => given,
        Kind::Images | Kind::Wav => {
            given.or_else(|| Some(path.join(folder::LABEL_FILE)).filter(|path| path.is_file()))
        }
        _ => None,
    }
}

/// Looks at a source.
pub(crate) fn open(kind: Kind, settings: Settings) -> Result<Arc<dyn Opened>, DataError> {
    let spec = &settings.spec;
    if spec.labels.is_some() && matches!(kind, Kind::OnnxTests | Kind::Raw | Kind::Random) {
        let what = format!("`labels` has no meaning for {}", kind.name());
        return Err(DataError::invalid(&spec.path, "", what));
    }
    match kind {
        Kind::Images | Kind::Wav => {
            match labels_file(kind, &spec.path, spec.labels.as_deref(), &spec.base) {
                Some(table) => {
                    // In this table `labels` means the column of the usual name.
                    let inner = DataSpec { labels: None, ..(*settings.spec).clone() };
                    let root = spec.path.clone();
                    csv::open(&table, &root, Settings { spec: Arc::new(inner), ..settings })
                }
                None => folder::open(kind, settings),
            }
        }
        Kind::Csv => {
            let path = spec.path.clone();
            let root = spec.options.root.clone().or_else(|| path.parent().map(Path::to_owned));
            let root = root.filter(|root| !root.as_os_str().is_empty()).unwrap_or_else(|| PathBuf::from("."));
            csv::open(&path, &root, settings)
        }
        Kind::Text => text::open(settings),
        Kind::Jsonl => jsonl::open(settings),
        Kind::Random => random::open(settings, None),
        Kind::Command => command::open(settings),
        Kind::Idx | Kind::Npz | Kind::Npy | Kind::OnnxTests | Kind::Raw => {
            Ok(Arc::new(Arrays { kind, settings }))
        }
    }
}

/// Sources of arrays, whose headers are read again for every stream.
#[derive(Debug)]
struct Arrays {
    kind: Kind,
    settings: Settings,
}

impl Opened for Arrays {
    fn stream(&self) -> Result<Box<dyn Source>, DataError> {
        let Settings { spec, limits } = &self.settings;
        let (path, labels) = (spec.path.as_path(), spec.labels.as_deref());
        let labels_file = labels_file(self.kind, path, labels, &spec.base);
        match self.kind {
            Kind::Idx => {
                let array = idx::open(path, limits)?;
                let labels = match labels_file {
                    Some(path) => Some((idx::open(&path, limits)?, path)),
                    None => None,
                };
                Single::boxed(path, array, labels)
            }
            Kind::Npy if path.is_dir() => npy_directory::open(path, labels, limits),
            Kind::Npy => {
                let array = npy_file(path, limits)?;
                let labels = match labels_file {
                    Some(path) => Some((npy_file(&path, limits)?, path)),
                    None => None,
                };
                Single::boxed(path, array, labels)
            }
            Kind::Npz => npz::open(path, labels, limits),
            Kind::Raw => raw::open(&self.settings),
            _ => onnx_tests::open(path, limits),
        }
    }
}

fn npy_file(path: &Path, limits: &Limits) -> Result<ArrayStream, DataError> {
    let (stream, size) = crate::input::Stream::open(path, limits)?;
    npy::open(stream, size, npy::Axis::Samples, limits)
}

/// One array without a name, and perhaps labels.
struct Single {
    names: [String; 1],
    array: ArrayStream,
    labels: Option<ArrayStream>,
}

impl Single {
    fn boxed(
        path: &Path,
        array: ArrayStream,
        labels: Option<(ArrayStream, PathBuf)>,
    ) -> Result<Box<dyn Source>, DataError> {
        if let Some((labels, labels_path)) = &labels {
            idx::check_counts((path, array.count()), (labels_path, labels.count()))?;
        }
        Ok(Box::new(Single { names: [String::new()], array, labels: labels.map(|(labels, _)| labels) }))
    }
}

impl Source for Single {
    fn arrays(&self) -> &[String] {
        &self.names
    }

    fn count(&self) -> u64 {
        self.array.count()
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let tensors = vec![self.array.next()?];
        let label = self.labels.as_mut().map(ArrayStream::next).transpose()?.map(Label::of);
        Ok(Sample { tensors, label, ..Sample::default() })
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        self.array.skip(count)?;
        self.labels.as_mut().map_or(Ok(()), |labels| labels.skip(count))
    }

    fn finish(&mut self) -> Result<(), DataError> {
        self.array.finish()?;
        self.labels.as_mut().map_or(Ok(()), ArrayStream::finish)
    }
}

/// Several arrays with names that advance together, and perhaps labels.
struct Several {
    names: Vec<String>,
    arrays: Vec<ArrayStream>,
    labels: Option<ArrayStream>,
    count: u64,
}

/// Names under which labels are looked for when the user names none.
const LABEL_NAMES: [&str; 4] = ["label", "labels", "y", "target"];

/// Which of `names` holds the labels; `wanted` is what the user said.
fn label_index(path: &Path, names: &[String], wanted: Option<&str>) -> Result<Option<usize>, DataError> {
    match wanted {
        Some(wanted) => match names.iter().position(|name| name == wanted) {
            Some(index) => Ok(Some(index)),
            None => {
                let hint = crate::spec::did_you_mean(wanted, names.iter().map(String::as_str));
                let what = format!(
                    "there is no array `{wanted}` to take labels from{hint}: it has {}",
                    names.join(", ")
                );
                Err(DataError::invalid(path, "", what))
            }
        },
        // A lone array is the data, whatever its name.
        None if names.len() < 2 => Ok(None),
        None => Ok(LABEL_NAMES.iter().find_map(|known| names.iter().position(|name| name == known))),
    }
}

impl Several {
    fn boxed(
        path: &Path,
        mut named: Vec<(String, ArrayStream)>,
        label: Option<usize>,
    ) -> Result<Box<dyn Source>, DataError> {
        let counts: Vec<(&str, u64)> =
            named.iter().map(|(name, array)| (name.as_str(), array.count())).collect();
        if counts.windows(2).any(|pair| matches!(pair, [a, b] if a.1 != b.1)) {
            let list: Vec<String> = counts.iter().map(|(name, count)| format!("`{name}` {count}")).collect();
            let what = format!("its arrays have different numbers of samples (axis 0): {}", list.join(", "));
            return Err(DataError::invalid(path, "", what));
        }
        let count = counts.first().map_or(0, |(_, count)| *count);
        let labels = label.filter(|&index| index < named.len()).map(|index| named.remove(index).1);
        if named.is_empty() {
            return Err(DataError::invalid(path, "", "it has no array that could be fed to a model"));
        }
        let (names, arrays) = named.into_iter().unzip();
        Ok(Box::new(Several { names, arrays, labels, count }))
    }
}

impl Source for Several {
    fn arrays(&self) -> &[String] {
        &self.names
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let tensors = self.arrays.iter_mut().map(ArrayStream::next).collect::<Result<_, _>>()?;
        let label = self.labels.as_mut().map(ArrayStream::next).transpose()?.map(Label::of);
        Ok(Sample { tensors, label, ..Sample::default() })
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        self.arrays.iter_mut().chain(self.labels.as_mut()).try_for_each(|array| array.skip(count))
    }

    fn finish(&mut self) -> Result<(), DataError> {
        self.arrays.iter_mut().chain(self.labels.as_mut()).try_for_each(ArrayStream::finish)
    }
}

/// What a source holds, for people.
pub(crate) fn describe(path: &Path, kind: Kind, count: u64) -> String {
    let note = if kind == Kind::Random { ", synthetic: ranges are not those of your data" } else { "" };
    format!("{} ({}, {count} samples{note})", shown(path), kind.name())
}

/// Whether a type has eight bits and so may be an image that still needs preprocessing.
pub(crate) fn is_8_bit(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}
