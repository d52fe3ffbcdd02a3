//! Finding out what lies at a path.

use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::folder::is_media;
use super::{Kind, idx, names_in, npy, onnx_tests, wav, zip};
use crate::error::DataError;
use crate::input::{GZIP_MAGIC, first_bytes, open_plain, read_at_most};

/// What the image files that are read begin with.
const IMAGE_MAGICS: [&[u8]; 4] = [b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM"];

/// Directories within a directory that are looked into.
const LOOKED_INTO: usize = 256;

/// Text has no magic: its name tells.
fn by_name(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "csv" | "tsv" => Some(Kind::Csv),
        "txt" | "text" => Some(Kind::Text),
        "jsonl" | "ndjson" => Some(Kind::Jsonl),
        "webp" => Some(Kind::Images),
        _ => None,
    }
}

fn media_kind(names: &[String]) -> Option<Kind> {
    let count = |kind| names.iter().filter(|name| is_media(name, kind)).count();
    match (count(Kind::Images), count(Kind::Wav)) {
        (0, 0) => None,
        (images, sounds) if images >= sounds => Some(Kind::Images),
        _ => Some(Kind::Wav),
    }
}

/// Finds out what lies at a path.
pub(crate) fn sniff(path: &Path) -> Result<Kind, DataError> {
    let metadata = std::fs::metadata(path).map_err(|error| DataError::read(path, error))?;
    if metadata.is_dir() {
        return sniff_directory(path);
    }
    let start = first_bytes(path, 16)?;
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
        idx::is_idx(&inner).then_some(Kind::Idx).or_else(|| by_name(path))
    } else if wav::is_wav(&start) {
        Some(Kind::Wav)
    } else if IMAGE_MAGICS.iter().any(|magic| start.starts_with(magic)) {
        Some(Kind::Images)
    } else {
        by_name(path)
    };
    kind.ok_or_else(|| {
        let what = "its contents are no data set that is read here: idx (plain or .gz), npz, npy, a folder of \
                    images, of wav files, of npy files or of test_data_set_N, a .csv, .jsonl or .txt file, or a \
                    data.toml that describes one of these";
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
    // One directory an input, as `npy_directory` reads them; no model has more inputs.
    for name in entries.iter().take(LOOKED_INTO) {
        let inner = path.join(name);
        if inner.is_dir() && names_in(&inner)?.iter().any(|name| name.ends_with(".npy")) {
            return Ok(Kind::Npy);
        }
    }
    if let Some(kind) = media_kind(&entries) {
        return Ok(kind);
    }
    // One directory a class; those that come first tell.
    for name in entries.iter().filter(|name| path.join(name).is_dir()).take(LOOKED_INTO) {
        if let Some(kind) = media_kind(&names_in(&path.join(name))?) {
            return Ok(kind);
        }
    }
    let images: Vec<&str> =
        entries.iter().map(String::as_str).filter(|name| name.contains("images-idx")).collect();
    let what = if images.is_empty() {
        "no data set is found in this directory: images, wav files, npy files or test_data_set_N are read from \
         directories"
            .to_owned()
    } else {
        format!("name one of the files in it: {}", images.join(", "))
    };
    Err(DataError::invalid(path, "", what))
}
