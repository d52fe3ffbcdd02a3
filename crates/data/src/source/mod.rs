//! Where samples come from: one file a format, all behind [`Source`].

mod array;
mod idx;
mod npy;
mod npy_directory;
mod npz;
mod onnx_tests;
mod zip;

use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use optix_base::Limits;
use optix_ir::{DType, Tensor};

use self::array::ArrayStream;
use crate::error::{DataError, shown};
use crate::input::{GZIP_MAGIC, first_bytes, open_plain, read_at_most};

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
}

impl Kind {
    /// All kinds with their names in `data.toml`.
    pub const ALL: &'static [(&'static str, Kind)] =
        &[("idx", Kind::Idx), ("npz", Kind::Npz), ("npy", Kind::Npy), ("onnx-tests", Kind::OnnxTests)];

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
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// One tensor for each of [`Source::arrays`].
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) label: Option<Label>,
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
    fn finish(&mut self) -> Result<(), DataError>;
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

/// Finds out what lies at a path.
pub(crate) fn sniff(path: &Path) -> Result<Kind, DataError> {
    let metadata = std::fs::metadata(path).map_err(|error| DataError::read(path, error))?;
    if metadata.is_dir() {
        return sniff_directory(path);
    }
    let start = first_bytes(path, 8)?;
    if start.is_empty() {
        return Err(DataError::invalid(path, "", "the file is empty"));
    }
    let kind = if start.starts_with(zip::MAGIC) || start.starts_with(b"PK\x05\x06") {
        Some(Kind::Npz)
    } else if start.starts_with(npy::MAGIC) {
        Some(Kind::Npy)
    } else if idx::is_idx(&start) {
        Some(Kind::Idx)
    } else if start.starts_with(&GZIP_MAGIC) {
        let (file, _) = open_plain(path)?;
        let inner = read_at_most(MultiGzDecoder::new(file), 4).unwrap_or_default();
        idx::is_idx(&inner).then_some(Kind::Idx)
    } else {
        None
    };
    kind.ok_or_else(|| {
        let what = "its contents are no data set that is read here: idx (plain or .gz), npz, npy, a directory of \
                    npy files or of test_data_set_N, or a data.toml that describes one of these";
        DataError::invalid(path, "", what)
    })
}

fn sniff_directory(path: &Path) -> Result<Kind, DataError> {
    let entries = names_in(path)?;
    let has = |test: &dyn Fn(&str) -> bool| entries.iter().any(|name| test(name));
    if has(&|name| name == "input_0.pb" || onnx_tests::set_number(name).is_some()) {
        return Ok(Kind::OnnxTests);
    }
    if has(&|name| name.ends_with(".npy")) {
        return Ok(Kind::Npy);
    }
    // One directory an input, as `npy_directory` reads them.
    for name in &entries {
        let inner = path.join(name);
        if inner.is_dir() && names_in(&inner)?.iter().any(|name| name.ends_with(".npy")) {
            return Ok(Kind::Npy);
        }
    }
    let images: Vec<&str> =
        entries.iter().map(String::as_str).filter(|name| name.contains("images-idx")).collect();
    let what = if images.is_empty() {
        "no data set is found in this directory: npy files or test_data_set_N are read from directories"
            .to_owned()
    } else {
        format!("name one of the files in it: {}", images.join(", "))
    };
    Err(DataError::invalid(path, "", what))
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
        _ => None,
    }
}

/// Opens a source.
pub(crate) fn open(
    kind: Kind,
    path: &Path,
    labels: Option<&str>,
    base: &Path,
    limits: &Limits,
) -> Result<Box<dyn Source>, DataError> {
    let labels_file = labels_file(kind, path, labels, base);
    match kind {
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
        Kind::OnnxTests => {
            if labels.is_some() {
                let what = "`labels` has no meaning for onnx-tests: output_N.pb are taken";
                return Err(DataError::invalid(path, "", what));
            }
            onnx_tests::open(path, limits)
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
        Ok(Sample { tensors, label })
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
        Ok(Sample { tensors, label })
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
    format!("{} ({}, {count} samples)", shown(path), kind.name())
}

/// Whether a type has eight bits and so may be an image that still needs preprocessing.
pub(crate) fn is_8_bit(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}
