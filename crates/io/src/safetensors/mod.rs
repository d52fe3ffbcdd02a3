//! safetensors: weights without a graph, as one file or as a Hugging Face directory.
//!
//! Such a model is a main graph of initializers and nothing else. What the IR has no place for is kept in
//! metadata: the model's properties `safetensors.layout` (`file` or `directory`),
//! `safetensors.metadata/FILE/KEY` (free-form strings of a file) and `safetensors.index` (`metadata` of the
//! index, JSON); each tensor's property `safetensors.file` (the shard it is in).

mod directory;
mod header;
#[cfg(test)]
mod tests;

use std::path::Path;

use bytes::Bytes;
use optix_base::{Budget, OutFile};
use optix_ir::{Initializer, Model, Property, StoredTensor, Tensor, ValueId};

use crate::error::{IoError, quoted};
use crate::load::{Format, LoadOptions, Loaded};
use crate::save::{Prepared, SaveOptions, SaveStats, check_file, note};
use crate::source::{SourceFile, write_payload};
use header::{Planned, Wrong};

pub(crate) use directory::{check_directory, load_directory, prepare_directory};

/// The model's property that says in which form it came.
const LAYOUT: &str = "safetensors.layout";
/// Start of the model's properties that hold free-form strings of files.
const METADATA: &str = "safetensors.metadata/";
/// A tensor's property that says in which shard it is.
const FILE: &str = "safetensors.file";
/// What the one file is called in properties.
const ONLY: &str = "model.safetensors";

fn property(key: impl Into<String>, value: impl Into<String>) -> Property {
    Property { key: key.into(), value: value.into(), ..Property::default() }
}

/// Adds the tensors of a file to a model. `shard` is its name in a directory.
fn add_file(
    model: &mut Model,
    source: &SourceFile,
    shard: Option<&str>,
    budget: &mut Budget,
) -> Result<(), IoError> {
    let content: Bytes = source.bytes();
    let path = source.path().to_owned();
    let header = header::parse(&content, budget).map_err(|wrong| match wrong {
        Wrong::Content(place, what) => IoError::Content { path: path.clone(), place, what },
        Wrong::Budget(source) => IoError::Budget { path: path.clone(), source },
    })?;
    for (key, value) in header.metadata {
        let key = format!("{METADATA}{}/{key}", shard.unwrap_or(ONLY));
        model.metadata.push(property(key, value));
    }
    let main = model.main();
    for entry in header.entries {
        let at_tensor = |what: String| IoError::Content {
            path: path.clone(),
            place: format!("tensor {}", quoted(&entry.name)),
            what,
        };
        let tensor = Tensor::new(entry.dtype, entry.shape.clone(), content.slice(entry.range.clone()))
            .map_err(|error| at_tensor(error.to_string()))?;
        let value = model.add_value(main, entry.name.clone());
        let metadata = shard.map(|shard| property(FILE, shard)).into_iter().collect();
        let stored = StoredTensor { metadata, ..StoredTensor::from(tensor) };
        model.set_initializer(value, Initializer::Dense(Box::new(stored)));
    }
    Ok(())
}

/// Loads one file.
pub(crate) fn load_file(source: SourceFile, options: &LoadOptions) -> Result<Loaded, IoError> {
    let mut model = Model::new();
    model.metadata.push(property(LAYOUT, "file"));
    add_file(&mut model, &source, None, &mut Budget::new(options.limits))?;
    source.check_unchanged()?;
    Ok(Loaded { model, format: Format::Safetensors, sources: vec![source], warnings: Vec::new() })
}

/// The form a model came in, when it came from safetensors.
pub(crate) fn format_of(model: &Model) -> Option<Format> {
    match model.metadata.iter().find(|property| property.key == LAYOUT)?.value.as_str() {
        "directory" => Some(Format::SafetensorsDirectory),
        _ => Some(Format::Safetensors),
    }
}

/// The weights of a model that is nothing else, in order.
fn weights(model: &Model, path: &Path) -> Result<Vec<(ValueId, StoredTensor)>, IoError> {
    let unwritable = |what: String| IoError::Unwritable { path: path.to_owned(), what };
    if model.walk().next().is_some() {
        let what =
            "safetensors hold weights only, and this model has a graph; choose a name that ends in .onnx";
        return Err(unwritable(what.to_owned()));
    }
    let mut weights = Vec::new();
    for &value in model.graph(model.main()).initializers() {
        let name = quoted(model.value(value).name());
        match model.value(value).initializer() {
            Some(Initializer::Dense(stored)) if header::type_name(stored.tensor.dtype()).is_some() => {
                weights.push((value, (**stored).clone()));
            }
            Some(Initializer::Dense(stored)) => {
                let dtype = stored.tensor.dtype();
                return Err(unwritable(format!("tensor {name} is {dtype}, which safetensors cannot hold")));
            }
            Some(Initializer::Sparse(_)) => {
                return Err(unwritable(format!("tensor {name} is sparse, which safetensors cannot hold")));
            }
            None => {}
        }
    }
    Ok(weights)
}

/// The free-form strings that belong to a file of the model.
fn metadata_of(model: &Model, file: &str) -> Vec<(String, String)> {
    let prefix = format!("{METADATA}{file}/");
    let all = model.metadata.iter();
    all.filter_map(|held| Some((held.key.strip_prefix(&prefix)?.to_owned(), held.value.clone()))).collect()
}

/// Writes tensors to a file that has not appeared yet; gives its size.
fn write(
    model: &Model,
    tensors: &[&(ValueId, StoredTensor)],
    metadata: &[(String, String)],
    out: &mut OutFile,
    used: &mut Vec<SourceFile>,
) -> Result<u64, IoError> {
    let mut tensors = tensors.to_vec();
    let width = |tensor: &Tensor| tensor.dtype().bits().max(8) as u64 / 8;
    let mut at = 0u64;
    let aligned = tensors.iter().all(|(_, stored)| {
        let fits = at.is_multiple_of(width(&stored.tensor).max(1));
        at = at.saturating_add(stored.tensor.bytes().len() as u64);
        fits
    });
    // The format's own writer puts wide elements first, so that none lies across its width. An order that
    // does so already is kept.
    if !aligned {
        tensors.sort_by_key(|(_, stored)| std::cmp::Reverse(width(&stored.tensor)));
    }
    let planned: Vec<Planned<'_>> = tensors
        .iter()
        .map(|(value, stored)| Planned {
            name: model.value(*value).name(),
            dtype: stored.tensor.dtype(),
            shape: stored.tensor.shape(),
            bytes: stored.tensor.bytes().len() as u64,
        })
        .collect();
    let too_large = || IoError::Unwritable {
        path: out.target().to_owned(),
        what: "its names and shapes take more than the 100 MB that a header may have".into(),
    };
    let start = header::print(metadata, &planned).ok_or_else(too_large)?;
    let bytes = planned.iter().fold(start.len() as u64, |sum, tensor| sum.saturating_add(tensor.bytes));
    out.reserve(bytes)?;
    let start = Bytes::from(start);
    for piece in std::iter::once(&start).chain(tensors.iter().map(|(_, stored)| stored.tensor.bytes())) {
        let source = write_payload(piece, out.file()).map_err(|error| out.error(error))?;
        note(used, source);
    }
    out.sync()?;
    Ok(bytes)
}

/// Writes a model as one file.
pub(crate) fn prepare_file(model: &Model, path: &Path, options: &SaveOptions) -> Result<Prepared, IoError> {
    check_file(path, options)?;
    let weights = weights(model, path)?;
    let mut metadata = metadata_of(model, ONLY);
    // Without it, the Python libraries that load such files refuse them.
    if !metadata.iter().any(|(key, _)| key == "format") && format_of(model) != Some(Format::Safetensors) {
        metadata.push(("format".into(), "pt".into()));
    }
    let mut out = OutFile::create(path)?;
    let mut used = Vec::new();
    let all: Vec<&(ValueId, StoredTensor)> = weights.iter().collect();
    let bytes = write(model, &all, &metadata, &mut out, &mut used)?;
    let stats = SaveStats { files: vec![path.to_owned()], bytes };
    let temporary = vec![out.temporary().to_owned()];
    Ok(Prepared::new(stats, temporary, used, options, || Ok(out.commit()?)))
}
