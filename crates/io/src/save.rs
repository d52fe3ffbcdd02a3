//! Saving a model: streamed, and whole or not at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use optix_base::{OutFile, OutputError};
use optix_ir::Model;

use crate::error::IoError;
use crate::load::Format;
use crate::source::{self, SourceFile, write_payload};
use crate::{onnx, proto, safetensors};

/// Whether weights go to a data file beside an ONNX model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ExternalData {
    /// Those that came from one; all over 1 KiB when the model would be over 2 GiB.
    #[default]
    Auto,
    /// All over 1 KiB.
    Always,
    /// None.
    Never,
}

/// How to save.
#[derive(Clone, Debug, Default)]
pub struct SaveOptions {
    /// The files that the model was loaded from. They must be unchanged, and the output may be none of
    /// them, unless `in_place`.
    pub inputs: Vec<SourceFile>,
    /// Allows the output to replace an input.
    pub in_place: bool,
    /// Whether weights go to a data file.
    pub external_data: ExternalData,
    /// The format; by default what the path's name says, else what the model came in.
    pub format: Option<Format>,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveStats {
    /// Files in the order they appeared, the one to load last.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Saves a model. Weights that nobody changed go from file to file without being loaded.
///
/// # Errors
/// When the target is no place for a file, the disk is full, an input was changed meanwhile, or the format
/// cannot hold the model. Nothing has changed then.
pub fn save(model: &Model, path: &Path, options: &SaveOptions) -> Result<SaveStats, IoError> {
    prepare(model, path, options)?.commit()
}

/// Files that are written and synced but have not appeared. Dropped, nothing is left of them and what stood
/// in their place stays.
pub struct Prepared {
    stats: SaveStats,
    /// Where the files lie until they appear, in the order of `stats.files`.
    temporary: Vec<PathBuf>,
    commit: Box<dyn FnOnce() -> Result<(), IoError>>,
}

/// A file and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHash {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its content, in hexadecimal.
    pub blake3: String,
}

impl Prepared {
    /// Files that `commit` lets appear. Right before it does, what they were made from is looked at once
    /// more.
    pub(crate) fn new(
        stats: SaveStats,
        temporary: Vec<PathBuf>,
        mut used: Vec<SourceFile>,
        options: &SaveOptions,
        commit: impl FnOnce() -> Result<(), IoError> + 'static,
    ) -> Prepared {
        used.extend(options.inputs.iter().cloned());
        let commit = move || {
            used.iter().try_for_each(SourceFile::check_unchanged)?;
            commit()
        };
        Prepared { stats, temporary, commit: Box::new(commit) }
    }

    /// What was written.
    pub fn stats(&self) -> &SaveStats {
        &self.stats
    }

    /// The files that will appear, with their hashes, in the order in which they do.
    ///
    /// # Errors
    /// When one of them cannot be read back.
    pub fn hashes(&self) -> Result<Vec<FileHash>, IoError> {
        let files = self.stats.files.iter().zip(&self.temporary);
        let hash = |(path, temporary): (&PathBuf, &PathBuf)| {
            let hashed = File::open(temporary).and_then(|file| source::hash(&file));
            let (bytes, blake3) = hashed.map_err(|error| OutputError::io(path, error))?;
            Ok(FileHash { path: path.clone(), bytes, blake3 })
        };
        files.map(hash).collect()
    }

    /// Lets the files appear.
    ///
    /// # Errors
    /// As [`save`].
    pub fn commit(self) -> Result<SaveStats, IoError> {
        (self.commit)()?;
        Ok(self.stats)
    }
}

/// Does everything of [`save`] but the last step, for callers who first want to know the sizes.
///
/// # Errors
/// As [`save`].
pub fn prepare(model: &Model, path: &Path, options: &SaveOptions) -> Result<Prepared, IoError> {
    match options.format.unwrap_or_else(|| format_of(model, path)) {
        Format::Onnx => prepare_onnx(model, path, options),
        Format::Safetensors => safetensors::prepare_file(model, path, options),
        Format::SafetensorsDirectory => safetensors::prepare_directory(model, path, options),
    }
}

fn format_of(model: &Model, path: &Path) -> Format {
    let extension = path.extension().unwrap_or_default();
    if extension == "onnx" {
        Format::Onnx
    } else if extension == "safetensors" {
        Format::Safetensors
    } else {
        safetensors::format_of(model).unwrap_or(Format::Onnx)
    }
}

/// The encoding of a model as one ONNX file, all weights inside, as segments in order. Payloads are shared
/// with the model, not copied.
///
/// # Errors
/// When it would be over 2 GiB.
pub fn onnx_segments(model: &Model) -> Result<Vec<Bytes>, IoError> {
    let (message, _) = onnx::write(model, onnx::External::Nothing, "");
    proto::encode(&message)
        .ok_or_else(|| IoError::Unwritable { path: PathBuf::new(), what: TOO_LARGE.to_owned() })
}

/// The encoding of a model as one ONNX file, all weights inside.
///
/// # Errors
/// When it would be over 2 GiB.
pub fn onnx_bytes(model: &Model) -> Result<Bytes, IoError> {
    let segments = onnx_segments(model)?;
    Ok(match segments.as_slice() {
        [only] => only.clone(),
        several => several.concat().into(),
    })
}

/// Writes a model for another program that reads it right away, its weights in a data file beside it, into an
/// empty directory; returns the model's path. Nothing is synced. Weights that nobody changed go from file to
/// file without being loaded.
///
/// # Errors
/// When the disk is full, or the model is over 2 GiB without its weights.
pub fn spread(model: &Model, directory: &Path) -> Result<PathBuf, IoError> {
    let (path, data_name) = (directory.join("model.onnx"), "model.onnx.data");
    let (message, data) = onnx::write(model, onnx::External::Everything, data_name);
    let segments = proto::encode(&message)
        .ok_or_else(|| IoError::Unwritable { path: path.clone(), what: TOO_LARGE.to_owned() })?;
    drop(message);
    let write = || -> io::Result<()> {
        write_data(&data, &mut File::create_new(directory.join(data_name))?, &mut Vec::new())?;
        let mut out = File::create_new(&path)?;
        segments.iter().try_for_each(|segment| write_payload(segment, &mut out).map(|_| ()))
    };
    write().map_err(|error| OutputError::io(&path, error))?;
    Ok(path)
}

const TOO_LARGE: &str =
    "it would be over 2 GiB, more than one ONNX file can hold, even with its weights in a data file";

/// Checks that a model can be saved there, before the work that ends in saving it.
///
/// # Errors
/// As [`save`].
pub fn check_target(path: &Path, options: &SaveOptions) -> Result<(), IoError> {
    match options.format {
        Some(Format::SafetensorsDirectory) => safetensors::check_directory(path, options),
        _ => check_file(path, options),
    }
}

/// The format in which a model that came in `input` is written to that path.
///
/// # Errors
/// When that path asks for a format that cannot hold such a model.
pub fn output_format(path: &Path, input: Format) -> Result<Format, IoError> {
    let wanted = match path.extension().and_then(std::ffi::OsStr::to_str) {
        Some("onnx") => Format::Onnx,
        Some("safetensors") => Format::Safetensors,
        _ => return Ok(input),
    };
    let unwritable = |what: &str| Err(IoError::Unwritable { path: path.to_owned(), what: what.to_owned() });
    match (input, wanted) {
        (Format::Onnx, Format::Safetensors) => unwritable(
            "safetensors hold weights only, and this model has a graph; choose a name that ends in .onnx",
        ),
        (Format::Safetensors | Format::SafetensorsDirectory, Format::Onnx) => unwritable(NO_GRAPH),
        _ => Ok(wanted),
    }
}

/// Why weights are not written as ONNX.
const NO_GRAPH: &str = "an ONNX file holds a graph, and these are weights without a graph; choose a name that ends in .safetensors";

/// Checks that a file can appear there, and is none of the inputs.
pub(crate) fn check_file(path: &Path, options: &SaveOptions) -> Result<(), IoError> {
    let inputs: Vec<&Path> = options.inputs.iter().map(SourceFile::path).collect();
    Ok(OutFile::check(path, if options.in_place { &[] } else { &inputs })?)
}

fn prepare_onnx(model: &Model, path: &Path, options: &SaveOptions) -> Result<Prepared, IoError> {
    if safetensors::format_of(model).is_some() {
        return Err(IoError::Unwritable { path: path.to_owned(), what: NO_GRAPH.to_owned() });
    }
    check_file(path, options)?;
    let unwritable = |what: &str| IoError::Unwritable { path: path.to_owned(), what: what.to_owned() };
    let mut data_name = path.file_name().unwrap_or_default().to_owned();
    data_name.push(".data");
    let location = data_name.to_str().ok_or_else(|| unwritable("its name is not UTF-8"))?;
    let wanted = match options.external_data {
        ExternalData::Auto => onnx::External::AsRead,
        ExternalData::Always => onnx::External::Everything,
        ExternalData::Never => onnx::External::Nothing,
    };
    let (mut message, mut data) = onnx::write(model, wanted, location);
    if proto::encoded_len(&message).is_none() && options.external_data == ExternalData::Auto {
        (message, data) = onnx::write(model, onnx::External::Everything, location);
    }
    let size = proto::encoded_len(&message).ok_or_else(|| {
        unwritable(match options.external_data {
            ExternalData::Never => "it would be over 2 GiB; let its weights go to a data file",
            _ => TOO_LARGE,
        })
    })?;
    let segments = proto::encode(&message).ok_or_else(|| unwritable(TOO_LARGE))?;
    drop(message);

    let mut used = Vec::new();
    let mut stats = SaveStats::default();
    let mut data_file = None;
    if !data.pieces.is_empty() {
        let target = path.with_file_name(&data_name);
        check_file(&target, options)?;
        let mut out = OutFile::create(&target)?;
        out.reserve(data.length.saturating_add(u64::from(size)))?;
        write_data(&data, out.file(), &mut used).map_err(|error| out.error(error))?;
        out.sync()?;
        data_file = Some((target, out));
        stats.bytes = data.length;
    }
    let mut out = OutFile::create(path)?;
    out.reserve(u64::from(size))?;
    for segment in &segments {
        let source = write_payload(segment, out.file()).map_err(|error| out.error(error))?;
        note(&mut used, source);
    }
    out.sync()?;
    // What is referred to appears before what refers to it.
    let mut outs = Vec::new();
    if let Some((target, data)) = data_file {
        stats.files.push(target);
        outs.push(data);
    }
    stats.files.push(path.to_owned());
    outs.push(out);
    stats.bytes = stats.bytes.saturating_add(u64::from(size));
    let temporary = outs.iter().map(|out| out.temporary().to_owned()).collect();
    Ok(Prepared::new(stats, temporary, used, options, || {
        Ok(outs.into_iter().try_for_each(OutFile::commit)?)
    }))
}

fn write_data(data: &onnx::DataFile, out: &mut File, used: &mut Vec<SourceFile>) -> io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut at = 0u64;
    for (offset, payload) in &data.pieces {
        let gap = usize::try_from(offset.saturating_sub(at)).unwrap_or_default();
        out.write_all(ZEROS.get(..gap).ok_or(io::ErrorKind::InvalidInput)?)?;
        note(used, write_payload(payload, out)?);
        at = offset.saturating_add(payload.len() as u64);
    }
    Ok(())
}

/// Remembers a file that was copied from, once.
pub(crate) fn note(used: &mut Vec<SourceFile>, source: Option<SourceFile>) {
    if let Some(source) = source
        && !used.iter().any(|known| known.is_same(&source))
    {
        used.push(source);
    }
}
