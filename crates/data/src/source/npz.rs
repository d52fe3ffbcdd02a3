//! numpy's `.npz`: a zip archive of `.npy` members, one for each array.

use std::path::Path;

use optix_base::Limits;

use super::zip::Archive;
use super::{Several, Source, label_index, npy};
use crate::error::DataError;

/// Opens an archive. Each array gets a stream of its own, so the arrays advance together.
pub(crate) fn open(path: &Path, labels: Option<&str>, limits: &Limits) -> Result<Box<dyn Source>, DataError> {
    let archive = Archive::open(path, limits)?;
    let mut named = Vec::new();
    for entry in &archive.entries {
        // Other members (a readme) are allowed and passed over.
        let Some(name) = entry.name.strip_suffix(".npy") else { continue };
        let stream = archive.read(entry, limits)?;
        named.push((name.to_owned(), npy::open(stream, Some(entry.size), npy::Axis::Samples, limits)?));
        // Every stream holds a file open.
        if named.len() > MAX_ARRAYS {
            let what = format!("it has more than {MAX_ARRAYS} arrays, more than any model has inputs");
            return Err(DataError::invalid(path, "", what));
        }
    }
    let names: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
    if names.is_empty() {
        return Err(DataError::invalid(path, "", "it is a zip archive without .npy members, so no npz"));
    }
    let label = label_index(path, &names, labels)?;
    Several::boxed(path, named, label)
}

/// Greatest number of arrays.
const MAX_ARRAYS: usize = 256;
