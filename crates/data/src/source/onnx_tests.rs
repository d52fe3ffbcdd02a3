//! ONNX's own test layout: directories `test_data_set_N`, each one sample with `input_K.pb` and the
//! expected `output_K.pb`, every file a `TensorProto`.

use std::path::{Path, PathBuf};

use optix_base::Limits;
use optix_ir::Tensor;

use super::{Label, Sample, Source, names_in};
use crate::error::DataError;
use crate::input::open_plain;

/// The N of `test_data_set_N`.
pub(crate) fn set_number(name: &str) -> Option<u64> {
    name.strip_prefix("test_data_set_")?.parse().ok()
}

/// Opens a directory that has such directories, or is one itself.
pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Box<dyn Source>, DataError> {
    let names = names_in(path)?;
    let mut numbered: Vec<(u64, &String)> =
        names.iter().filter_map(|name| Some((set_number(name)?, name))).collect();
    numbered.sort();
    let mut sets: Vec<PathBuf> = numbered.into_iter().map(|(_, name)| path.join(name)).collect();
    if sets.is_empty() {
        sets.push(path.to_owned());
    }
    let first = sets.first().map_or(path, PathBuf::as_path);
    let inputs = numbered_files(first, "input_")?;
    if inputs.is_empty() {
        let what = "there is no input_0.pb: a directory test_data_set_N holds input_0.pb, input_1.pb, ...";
        return Err(DataError::invalid(first, "", what));
    }
    // The names are in the files; unnamed tensors go by their position.
    let names =
        inputs.iter().map(|path| Ok(read_tensor(path, limits)?.0)).collect::<Result<_, DataError>>()?;
    Ok(Box::new(Sets { sets, names, at: 0, limits: *limits }))
}

/// `PREFIX0.pb`, `PREFIX1.pb`, ... of a directory, without gaps.
fn numbered_files(directory: &Path, prefix: &str) -> Result<Vec<PathBuf>, DataError> {
    let mut numbers: Vec<usize> = names_in(directory)?
        .iter()
        .filter_map(|name| name.strip_prefix(prefix)?.strip_suffix(".pb")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    if let Some(missing) = (0..numbers.len()).find(|index| numbers.get(*index) != Some(index)) {
        let what = format!("{prefix}{missing}.pb is missing, though files with higher numbers are there");
        return Err(DataError::invalid(directory, "", what));
    }
    Ok(numbers.iter().map(|number| directory.join(format!("{prefix}{number}.pb"))).collect())
}

/// Name and contents of a `TensorProto` file.
fn read_tensor(path: &Path, limits: &Limits) -> Result<(String, Tensor), DataError> {
    let (_, length) = open_plain(path)?;
    if length > limits.sample_bytes {
        return Err(DataError::limit(path, "one tensor", "sample-bytes", limits.sample_bytes));
    }
    Ok(optix_io::read_tensor_file(path)?)
}

struct Sets {
    sets: Vec<PathBuf>,
    names: Vec<String>,
    at: usize,
    limits: Limits,
}

impl Source for Sets {
    fn arrays(&self) -> &[String] {
        &self.names
    }

    fn is_ordered(&self) -> bool {
        true
    }

    fn count(&self) -> u64 {
        self.sets.len() as u64
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let Some(set) = self.sets.get(self.at) else {
            return Ok(Sample::default());
        };
        self.at = self.at.saturating_add(1);
        let inputs = numbered_files(set, "input_")?;
        if inputs.len() != self.names.len() {
            let what = format!("it has {} inputs, the first set has {}", inputs.len(), self.names.len());
            return Err(DataError::invalid(set, "", what));
        }
        let tensors = inputs.iter().map(|path| Ok(read_tensor(path, &self.limits)?.1));
        let tensors = tensors.collect::<Result<_, DataError>>()?;
        let outputs = numbered_files(set, "output_")?;
        let outputs = outputs.iter().map(|path| read_tensor(path, &self.limits));
        let outputs: Vec<(String, Tensor)> = outputs.collect::<Result<_, DataError>>()?;
        let label = if outputs.is_empty() { None } else { Some(Label::Outputs(outputs)) };
        Ok(Sample { tensors, label, ..Sample::default() })
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        self.at = self.at.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(())
    }
}
