//! Weights in a file beside the model (`external_data`).
//!
//! What the model says of that file is not believed: the path must lead to a plain file beneath the
//! model's directory after links are followed (or, when the model itself is a link, beneath the directory
//! of the file it leads to, as in the Hugging Face cache), and the range must lie within it.

use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use optix_base::ByteRange;

use crate::error::{IoError, quoted};
use crate::proto::StringStringEntryProto;
use crate::source::SourceFile;

/// Why a payload could not be found.
pub(super) enum Refusal {
    /// The model is at fault, or the file is missing.
    Content(String),
    /// The file could not be read.
    File(IoError),
}

impl From<String> for Refusal {
    fn from(what: String) -> Refusal {
        Refusal::Content(what)
    }
}

/// The files a model's weights are in, opened when they are first needed.
#[derive(Debug)]
pub(super) struct ExternalFiles {
    /// The model's own file, when it has one.
    model: Option<SourceFile>,
    map: bool,
    opened: Vec<(String, SourceFile)>,
    pub(super) warnings: Vec<String>,
}

/// What `external_data` says.
struct Place<'a> {
    location: &'a str,
    offset: u64,
    length: Option<u64>,
}

impl ExternalFiles {
    pub(super) fn new(model: Option<SourceFile>, map: bool) -> ExternalFiles {
        ExternalFiles { model, map, opened: Vec::new(), warnings: Vec::new() }
    }

    /// The data files opened.
    pub(super) fn sources(&self) -> impl Iterator<Item = &SourceFile> {
        self.opened.iter().map(|(_, source)| source)
    }

    /// The payload of `size` bytes that a tensor's entries point to.
    pub(super) fn payload(
        &mut self,
        entries: &[StringStringEntryProto],
        size: usize,
    ) -> Result<Bytes, Refusal> {
        let place = parse(entries)?;
        if place.length.is_some_and(|length| length != size as u64) {
            let length = place.length.unwrap_or_default();
            return Err(format!(
                "its shape takes {size} bytes, but `length` of its external data is {length}"
            )
            .into());
        }
        let source = self.open(place.location)?;
        let file = quoted(&source.path().to_string_lossy());
        let range = ByteRange::new(place.offset, size as u64, source.size())
            .map_err(|error| format!("its data file {file} is too short: {error}"))?;
        Ok(source.bytes().slice(range.range()))
    }

    fn open(&mut self, location: &str) -> Result<SourceFile, Refusal> {
        if let Some((_, source)) = self.opened.iter().find(|(name, _)| name == location) {
            return Ok(source.clone());
        }
        let Some(model) = self.model.clone() else {
            return Err("its data is in another file, which needs a model file to be beside"
                .to_owned()
                .into());
        };
        let path = resolve(model.path(), location)?;
        let source = SourceFile::open(&path, self.map).map_err(Refusal::File)?;
        if source.is_same(&model) {
            return Err(format!("its data file {} is the model itself", quoted(location)).into());
        }
        if source.is_hard_linked() {
            self.warnings.push(format!("the data file {} has other names (hard links)", quoted(location)));
        }
        self.opened.push((location.to_owned(), source.clone()));
        Ok(source)
    }
}

fn parse(entries: &[StringStringEntryProto]) -> Result<Place<'_>, String> {
    let value = |wanted: &str| {
        let mut found = entries.iter().filter(|entry| entry.key.as_deref() == Some(wanted));
        let first = found.next().map(|entry| entry.value.as_deref().unwrap_or_default());
        if found.next().is_some() {
            Err(format!("its external data has `{wanted}` twice"))
        } else {
            Ok(first)
        }
    };
    let number = |wanted: &str| {
        let Some(text) = value(wanted)? else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u64>() {
            Ok(number) if digits && i64::try_from(number).is_ok() => Ok(Some(number)),
            _ => Err(format!("`{wanted}` of its external data is {}, not a number of bytes", quoted(text))),
        }
    };
    let location = value("location")?.filter(|location| !location.is_empty());
    let location = location.ok_or("its external data has no `location`")?;
    Ok(Place { location, offset: number("offset")?.unwrap_or(0), length: number("length")? })
}

/// Where a location leads, when it is allowed to lead there.
fn resolve(model: &Path, location: &str) -> Result<PathBuf, Refusal> {
    let refused = |why: &str| Refusal::Content(format!("its data file {} {why}", quoted(location)));
    let windows = location.contains('\\') || location.get(1..2) == Some(":");
    let plain =
        Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if windows || !plain || location.contains('\0') {
        return Err(refused(
            "is not a plain path beside the model: the model is not to be trusted (OX-M001)",
        ));
    }
    let directory = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let failed =
        |path: &Path, source: io::Error| Refusal::File(IoError::Read { path: path.to_owned(), source });
    let beside = directory(model);
    let real_model = model.canonicalize().map_err(|error| failed(model, error))?;
    // Beside the name the model was given by; when that is a link, else beside the file it leads to.
    let homes = [beside, directory(&real_model)];
    let mut missing = None;
    for home in &homes {
        let path = home.join(location);
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing.get_or_insert(path);
                continue;
            }
            Err(error) => return Err(failed(&path, error)),
        };
        let allowed = |home: &PathBuf| home.canonicalize().is_ok_and(|home| real.starts_with(home));
        if !homes.iter().any(allowed) {
            return Err(refused(
                "leads out of the model's directory: the model is not to be trusted (OX-M001)",
            ));
        }
        return Ok(real);
    }
    let path = missing.unwrap_or_default();
    Err(Refusal::Content(format!(
        "its data file {} is missing; put it beside the model",
        quoted(&path.to_string_lossy())
    )))
}
