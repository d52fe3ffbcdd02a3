//! A directory of `.npy` files: `<input>.npy` with all samples of an input, or `<input>/` with one file a
//! sample, taken in the order of their names. `labels.npy` holds labels.

use std::path::{Path, PathBuf};

use optix_base::Limits;
use optix_ir::Tensor;

use super::array::ArrayStream;
use super::{Label, Sample, Several, Source, label_index, names_in, npy};
use crate::error::DataError;
use crate::input::Stream;

/// Greatest number of arrays.
const MAX_ARRAYS: usize = 256;

/// Opens a directory.
pub(crate) fn open(path: &Path, labels: Option<&str>, limits: &Limits) -> Result<Box<dyn Source>, DataError> {
    let (mut named, mut per_sample) = (Vec::new(), Vec::new());
    for entry in names_in(path)? {
        let inner = path.join(&entry);
        if let Some(name) = entry.strip_suffix(".npy") {
            named.push((name.to_owned(), super::npy_file(&inner, limits)?));
        } else if inner.is_dir() {
            let mut files: Vec<PathBuf> = names_in(&inner)?
                .into_iter()
                .filter(|name| name.ends_with(".npy"))
                .map(|name| inner.join(name))
                .collect();
            if !files.is_empty() {
                files.shrink_to_fit();
                per_sample.push((entry, files));
            }
        }
        if named.len().saturating_add(per_sample.len()) > MAX_ARRAYS {
            let what = format!("it has more than {MAX_ARRAYS} arrays, more than any model has inputs");
            return Err(DataError::invalid(path, "", what));
        }
    }
    let wanted = labels.map(|labels| labels.strip_suffix(".npy").unwrap_or(labels));
    if per_sample.is_empty() {
        let names: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
        let label = label_index(path, &names, wanted)?;
        return Several::boxed(path, named, label);
    }
    let mut labels = None;
    for (name, array) in named {
        if wanted.map_or(super::LABEL_NAMES.contains(&name.as_str()), |wanted| wanted == name) {
            labels = Some(array);
        } else {
            let what = format!(
                "`{name}.npy` beside directories with one file a sample: use one form for all inputs"
            );
            return Err(DataError::invalid(path, "", what));
        }
    }
    let counts =
        per_sample.iter().map(|(_, files)| files.len() as u64).chain(labels.iter().map(ArrayStream::count));
    let counts: Vec<u64> = counts.collect();
    let count = counts.first().copied().unwrap_or(0);
    if counts.iter().any(|&other| other != count) {
        let what = format!("its inputs and labels have different numbers of samples: {counts:?}");
        return Err(DataError::invalid(path, "", what));
    }
    let (names, files) = per_sample.into_iter().unzip();
    Ok(Box::new(Files { names, files, labels, count, at: 0, limits: *limits }))
}

/// One file a sample.
struct Files {
    names: Vec<String>,
    files: Vec<Vec<PathBuf>>,
    labels: Option<ArrayStream>,
    count: u64,
    at: usize,
    limits: Limits,
}

impl Files {
    fn read(&self, path: &Path) -> Result<Tensor, DataError> {
        let (stream, size) = Stream::open(path, &self.limits)?;
        let mut array = npy::open(stream, size, npy::Axis::None, &self.limits)?;
        let tensor = array.next()?;
        array.finish()?;
        Ok(tensor)
    }
}

impl Source for Files {
    fn arrays(&self) -> &[String] {
        &self.names
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let files = self.files.iter().filter_map(|files| files.get(self.at));
        let tensors = files.map(|path| self.read(path)).collect::<Result<_, _>>()?;
        self.at = self.at.saturating_add(1);
        let label = self.labels.as_mut().map(ArrayStream::next).transpose()?.map(Label::of);
        Ok(Sample { tensors, label, ..Sample::default() })
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        self.at = self.at.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
        self.labels.as_mut().map_or(Ok(()), |labels| labels.skip(count))
    }

    fn finish(&mut self) -> Result<(), DataError> {
        self.labels.as_mut().map_or(Ok(()), ArrayStream::finish)
    }
}
