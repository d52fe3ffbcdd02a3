//! The IDX format of MNIST and its kin: a big-endian header of four bytes and one size an axis, then the
//! elements; plain or gzip.

use std::path::{Path, PathBuf};

use optix_base::Limits;
use optix_ir::DType;

use super::array::{ArrayStream, Layout, Stored};
use crate::error::{DataError, shown};
use crate::input::Stream;

/// Whether a file's first bytes are those of an idx file: two zeros, an element type, a rank.
pub(crate) fn is_idx(start: &[u8]) -> bool {
    matches!(start, [0, 0, code, 1..=8, ..] if element(*code).is_some())
}

fn element(code: u8) -> Option<DType> {
    Some(match code {
        0x08 => DType::U8,
        0x09 => DType::I8,
        0x0b => DType::I16,
        0x0c => DType::I32,
        0x0d => DType::F32,
        0x0e => DType::F64,
        _ => return None,
    })
}

/// Opens an idx file.
pub(crate) fn open(path: &Path, limits: &Limits) -> Result<ArrayStream, DataError> {
    let (mut stream, size) = Stream::open(path, limits)?;
    let start = stream.read_up_to(4)?;
    if !is_idx(&start) {
        let what =
            "it is not an idx file: those start with two zero bytes, an element type and a rank of 1 to 8";
        return Err(stream.invalid("", what));
    }
    let (code, rank) = match start.as_slice() {
        [_, _, code, rank] => (*code, *rank),
        _ => (0, 0),
    };
    let dtype = element(code).unwrap_or(DType::U8);
    let sizes = stream.read_exactly(u64::from(rank).saturating_mul(4), "header")?;
    let size_of =
        |bytes: &[u8]| bytes.iter().fold(0usize, |size, &byte| size.wrapping_shl(8) | usize::from(byte));
    let shape: Vec<usize> = sizes.chunks_exact(4).map(size_of).collect();
    let layout = Layout { stored: Stored::Plain(dtype), big_endian: true, fortran: false, shape };
    let Some(bytes) = layout.bytes() else {
        return Err(stream.invalid("header", format!("shape {:?} is beyond any memory", layout.shape)));
    };
    let before = 4u64.saturating_add(sizes.len() as u64);
    if let Some(size) = size
        && size != bytes.saturating_add(before)
    {
        let found = size.saturating_sub(before);
        let what = format!("shape {:?} takes {bytes} bytes, but there are {found}", layout.shape);
        return Err(stream.invalid("", what));
    }
    ArrayStream::samples(stream, layout, limits)
}

/// The labels that lie beside images named as MNIST's are, if they do.
pub(crate) fn labels_beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    if !name.contains("images") {
        return None;
    }
    let name = name.replace("images", "labels").replace("idx3", "idx1");
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    [name.clone(), plain.to_owned(), format!("{plain}.gz")]
        .into_iter()
        .map(|name| path.with_file_name(name))
        .find(|path| path.is_file())
}

/// Refuses labels that do not go with the images.
pub(crate) fn check_counts(images: (&Path, u64), labels: (&Path, u64)) -> Result<(), DataError> {
    if images.1 == labels.1 {
        return Ok(());
    }
    let what = format!(
        "{} labels for the {} samples of {}: these two files do not belong together",
        labels.1,
        images.1,
        shown(images.0)
    );
    Err(DataError::invalid(labels.0, "", what))
}
