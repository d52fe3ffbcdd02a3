//! Hugging Face directories: config, tokenizer, and weights in one file or in shards with an index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use optix_base::{Budget, OutFile, OutputError};
use optix_ir::{Initializer, Model, StoredTensor, ValueId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::header::Strings;
use super::{FILE, LAYOUT, ONLY, add_file, metadata_of, property, weights, write};
use crate::error::{IoError, quoted};
use crate::load::{Format, LoadOptions, Loaded};
use crate::save::{Prepared, SaveOptions, SaveStats};
use crate::source::SourceFile;

/// The index of a directory with shards.
const INDEX: &str = "model.safetensors.index.json";
/// The model's property that holds `metadata` of the index, without the size.
const INDEX_METADATA: &str = "safetensors.index";
/// Largest index that is read: a million names.
const MOST_INDEX_BYTES: u64 = 256 << 20;
/// Kinds of files beside the weights that belong to a model: copied along.
const BESIDE: &[&str] = &["json", "jinja", "txt", "model", "tiktoken", "md"];

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    metadata: Map<String, Value>,
    weight_map: Strings,
}

/// Loads a directory.
pub(crate) fn load_directory(path: &Path, options: &LoadOptions) -> Result<Loaded, IoError> {
    let index = path.join(INDEX);
    let mut model = Model::new();
    model.metadata.push(property(LAYOUT, "directory"));
    let mut loaded =
        Loaded { model, format: Format::SafetensorsDirectory, sources: Vec::new(), warnings: Vec::new() };
    let mut budget = Budget::new(options.limits);
    if index.exists() {
        load_shards(path, &index, options, &mut budget, &mut loaded)?;
    } else if path.join(ONLY).exists() {
        let source = SourceFile::open(&path.join(ONLY), options.map)?;
        add_file(&mut loaded.model, &source, Some(ONLY), &mut budget)?;
        loaded.sources.push(source);
    } else {
        let what = format!("it is a directory without `{ONLY}` or `{INDEX}`; name a model file in it");
        return Err(IoError::NotAModel { path: path.to_owned(), what });
    }
    loaded.sources.iter().try_for_each(SourceFile::check_unchanged)?;
    Ok(loaded)
}

fn load_shards(
    path: &Path,
    index: &Path,
    options: &LoadOptions,
    budget: &mut Budget,
    loaded: &mut Loaded,
) -> Result<(), IoError> {
    let wrong = |place: String, what: String| IoError::Content { path: index.to_owned(), place, what };
    let source = SourceFile::open(index, options.map)?;
    if source.size() > MOST_INDEX_BYTES {
        return Err(wrong("index".into(), format!("{} bytes are too many for an index", source.size())));
    }
    let parsed: Index = serde_json::from_slice(&source.bytes())
        .map_err(|error| wrong("index".into(), format!("it cannot be read: {error}")))?;
    let mut shards: BTreeSet<&str> = BTreeSet::new();
    let mut home: HashMap<&str, &str> = HashMap::new();
    for (tensor, shard) in &parsed.weight_map.0 {
        let plain = Path::new(shard).file_name() == Some(OsStr::new(shard.as_str()));
        if !plain || !shard.ends_with(".safetensors") {
            let what = format!("shard {} is not the name of a safetensors file beside it", quoted(shard));
            return Err(wrong(format!("tensor {}", quoted(tensor)), what));
        }
        shards.insert(shard);
        home.insert(tensor, shard);
    }
    loaded.sources.push(source.clone());
    for shard in shards {
        let file = path.join(shard);
        if !file.exists() {
            return Err(wrong("index".into(), format!("shard {} is not there", quoted(shard))));
        }
        let shard_source = SourceFile::open(&file, options.map)?;
        add_file(&mut loaded.model, &shard_source, Some(shard), budget)?;
        loaded.sources.push(shard_source);
    }
    let mut found: HashMap<&str, &str> = HashMap::new();
    for &value in loaded.model.graph(loaded.model.main()).initializers() {
        let Some(Initializer::Dense(stored)) = loaded.model.value(value).initializer() else { continue };
        let (name, shard) = (loaded.model.value(value).name(), shard_of(stored));
        if let Some(other) = found.insert(name, shard) {
            let what = format!("it is in shard {} and in shard {}", quoted(other), quoted(shard));
            return Err(wrong(format!("tensor {}", quoted(name)), what));
        }
        if home.get(name) != Some(&shard) {
            let told = home.get(name).map_or("not there".to_owned(), |told| format!("in {}", quoted(told)));
            let what = format!("it is in shard {}, and by the index {told}", quoted(shard));
            return Err(wrong(format!("tensor {}", quoted(name)), what));
        }
    }
    if let Some((name, shard)) =
        parsed.weight_map.0.iter().find(|(name, _)| !found.contains_key(name.as_str()))
    {
        return Err(wrong(
            format!("tensor {}", quoted(name)),
            format!("it is not in shard {}", quoted(shard)),
        ));
    }
    let mut metadata = parsed.metadata;
    let bytes = loaded.model.tensor_bytes();
    if let Some(told) = metadata.remove("total_size")
        && told.as_f64() != Some(bytes as f64)
    {
        let warning = format!("the index gives {told} as its total size, the tensors have {bytes} bytes");
        loaded.warnings.push(warning);
    }
    loaded.model.metadata.push(property(INDEX_METADATA, Value::Object(metadata).to_string()));
    Ok(())
}

/// The shard a tensor came from.
fn shard_of(stored: &StoredTensor) -> &str {
    stored.metadata.iter().find(|property| property.key == FILE).map_or(ONLY, |property| &property.value)
}

/// Checks that a directory can appear there.
pub(crate) fn check_directory(path: &Path, options: &SaveOptions) -> Result<(), IoError> {
    let unwritable = |what: &str| IoError::Unwritable { path: path.to_owned(), what: what.to_owned() };
    if options.in_place {
        return Err(unwritable("a directory is not replaced in place; write a new one and swap them"));
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(OutputError::io(path, error).into()),
        Ok(found)
            if found.is_dir() && std::fs::read_dir(path).is_ok_and(|mut held| held.next().is_none()) => {}
        Ok(_) => return Err(unwritable("something is there already; name a new directory")),
    }
    // Whether anything can be made there at all is what a file of that name shows.
    if path.exists() { Ok(()) } else { Ok(OutFile::check(path, &[])?) }
}

/// A directory being written beside its target. Dropped, nothing is left of it.
struct OutDirectory {
    temporary: PathBuf,
    done: bool,
}

impl OutDirectory {
    fn create(target: &Path) -> Result<OutDirectory, IoError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".optix-tmp-{}", std::process::id()));
        let temporary = target.with_file_name(name);
        std::fs::create_dir(&temporary).map_err(|error| OutputError::io(target, error))?;
        Ok(OutDirectory { temporary, done: false })
    }

    fn commit(mut self, target: &Path) -> Result<(), IoError> {
        let failed = |error| OutputError::io(target, error);
        File::open(&self.temporary).and_then(|directory| directory.sync_all()).map_err(failed)?;
        // An empty directory there gives way.
        std::fs::rename(&self.temporary, target).map_err(failed)?;
        self.done = true;
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Ok(directory) = File::open(parent.unwrap_or(Path::new("."))) {
            let _ = directory.sync_all();
        }
        Ok(())
    }
}

impl Drop for OutDirectory {
    fn drop(&mut self) {
        if !self.done {
            let _ = std::fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Writes a model as a directory: its weights in the shards they came from, the files beside them copied.
pub(crate) fn prepare_directory(
    model: &Model,
    path: &Path,
    options: &SaveOptions,
) -> Result<Prepared, IoError> {
    check_directory(path, options)?;
    let weights = weights(model, path)?;
    let mut shards: BTreeMap<&str, Vec<&(ValueId, StoredTensor)>> = BTreeMap::new();
    for weight in &weights {
        shards.entry(shard_of(&weight.1)).or_default().push(weight);
    }
    if shards.is_empty() {
        shards.insert(ONLY, Vec::new());
    }
    let out = OutDirectory::create(path)?;
    let (mut used, mut stats) = (Vec::new(), SaveStats::default());
    let mut weight_map = Map::new();
    for (shard, tensors) in &shards {
        let mut metadata = metadata_of(model, shard);
        if !metadata.iter().any(|(key, _)| key == "format") && super::format_of(model).is_none() {
            metadata.push(("format".into(), "pt".into()));
        }
        let mut file = OutFile::create(&out.temporary.join(shard))?;
        let bytes = write(model, tensors, &metadata, &mut file, &mut used)?;
        file.commit()?;
        stats.bytes = stats.bytes.saturating_add(bytes);
        stats.files.push(path.join(shard));
        for (value, _) in tensors {
            weight_map.insert(model.value(*value).name().to_owned(), json!(shard));
        }
    }
    let index = model.metadata.iter().find(|property| property.key == INDEX_METADATA);
    if index.is_some() || shards.len() > 1 {
        let mut metadata: Map<String, Value> =
            index.and_then(|held| serde_json::from_str(&held.value).ok()).unwrap_or_default();
        metadata.insert("total_size".into(), json!(model.tensor_bytes()));
        let text = serde_json::to_string_pretty(&json!({ "metadata": metadata, "weight_map": weight_map }))
            .map_err(|error| IoError::Unwritable { path: path.to_owned(), what: error.to_string() })?;
        copy(text.as_bytes(), &out.temporary.join(INDEX), &path.join(INDEX), &mut stats)?;
    }
    let home = options.inputs.first().and_then(|source| source.path().parent());
    if let Some(home) = home.filter(|_| super::format_of(model) == Some(Format::SafetensorsDirectory)) {
        copy_beside(home, &out, path, &mut stats)?;
    }
    let target = path.to_owned();
    let names = stats.files.iter().filter_map(|file| file.file_name());
    let temporary = names.map(|name| out.temporary.join(name)).collect();
    Ok(Prepared::new(stats, temporary, used, options, move || out.commit(&target)))
}

fn copy(bytes: &[u8], temporary: &Path, shown: &Path, stats: &mut SaveStats) -> Result<(), IoError> {
    let mut file = OutFile::create(temporary)?;
    std::io::Write::write_all(&mut file, bytes).map_err(|error| file.error(error))?;
    file.commit()?;
    stats.bytes = stats.bytes.saturating_add(bytes.len() as u64);
    stats.files.push(shown.to_owned());
    Ok(())
}

/// Copies what belongs to the model beside its weights, byte for byte.
fn copy_beside(home: &Path, out: &OutDirectory, path: &Path, stats: &mut SaveStats) -> Result<(), IoError> {
    let failed = |source| IoError::Read { path: home.to_owned(), source };
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(home).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = PathBuf::from(entry.file_name());
        let kind = name.extension().and_then(OsStr::to_str).unwrap_or_default();
        if entry.path().is_file() && BESIDE.contains(&kind) && name != Path::new(INDEX) {
            names.push(name);
        }
    }
    names.sort();
    for name in names {
        let source = SourceFile::open(&home.join(&name), false)?;
        // Not counted: only weights and their index are the model's size.
        let mut copied = SaveStats::default();
        copy(&source.bytes(), &out.temporary.join(&name), &path.join(&name), &mut copied)?;
        stats.files.append(&mut copied.files);
    }
    Ok(())
}
