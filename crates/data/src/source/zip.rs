//! The directory of a zip archive: stored and deflated members, zip64, nothing else.
//!
//! Follows the central directory (PKWARE APPNOTE 4.3); every offset and size is checked against the file,
//! members may not overlap, names may not repeat, and checksums are compared.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use optix_base::{ByteRange, Limits};

use crate::error::DataError;
use crate::input::{Stream, open_plain, read_at_most};

/// What archives start with; an empty one starts with its end.
pub(crate) const MAGIC: &[u8] = b"PK\x03\x04";

const END: &[u8; 4] = b"PK\x05\x06";
const END64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR64: &[u8; 4] = b"PK\x06\x07";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";

/// Greatest central directory: that of the most entries allowed by default with long names stays below.
const MAX_DIRECTORY: u64 = 64 << 20;

/// One member.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    deflated: bool,
    crc: u32,
    compressed: u64,
    /// Size after decompression.
    pub(crate) size: u64,
    header: u64,
}

/// An archive whose directory has been read and checked.
#[derive(Clone, Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    length: u64,
    pub(crate) entries: Vec<Entry>,
}

/// Little-endian fields out of a slice.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(field)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }
}

impl Archive {
    /// Reads the directory.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Archive, DataError> {
        let (mut file, length) = open_plain(path)?;
        let (offset, size, count) = find_directory(path, &mut file, length)?;
        if count > limits.archive_entries {
            return Err(DataError::limit(path, "the archive", "archive-entries", limits.archive_entries));
        }
        let damaged = |what: &str| DataError::invalid(path, "directory of the archive", what);
        if size > MAX_DIRECTORY {
            return Err(damaged("it is larger than any honest one"));
        }
        ByteRange::new(offset, size, length).map_err(|error| damaged(&error.to_string()))?;
        let directory = read_at(&mut file, offset, size).map_err(|error| DataError::read(path, error))?;
        let mut fields = Fields(&directory);
        let mut entries = Vec::new();
        for _ in 0..count {
            let entry = read_entry(&mut fields).ok_or_else(|| damaged("it ends too early"))?;
            entries.push(
                entry.map_err(|(name, what)| DataError::invalid(path, &format!("entry `{name}`"), what))?,
            );
        }
        let archive = Archive { path: path.to_owned(), length, entries };
        archive.check(offset)?;
        Ok(archive)
    }

    fn check(&self, directory: u64) -> Result<(), DataError> {
        let complain = |entry: &Entry, what: &str| {
            Err(DataError::invalid(&self.path, &format!("entry `{}`", entry.name), what))
        };
        let mut by_name: Vec<&Entry> = self.entries.iter().collect();
        by_name.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in by_name.windows(2) {
            if let [first, second] = pair
                && first.name == second.name
            {
                return complain(first, "the archive has two entries of this name");
            }
        }
        let mut by_place: Vec<&Entry> = self.entries.iter().collect();
        by_place.sort_by_key(|entry| entry.header);
        let ends = by_place.iter().skip(1).map(|next| next.header).chain([directory]);
        for (entry, end) in by_place.iter().zip(ends) {
            // The local header takes at least 30 bytes and the name.
            let least = entry.compressed.saturating_add(30).saturating_add(entry.name.len() as u64);
            if ByteRange::new(entry.header, least, end).is_err() {
                return complain(entry, "its data overlap other data of the archive or lie outside of it");
            }
        }
        Ok(())
    }

    /// The decompressed bytes of a member; its checksum is compared when they have been read to the end.
    pub(crate) fn read(&self, entry: &Entry, limits: &Limits) -> Result<Stream, DataError> {
        let place = format!("entry `{}`", entry.name);
        let damaged = |what: &str| DataError::invalid(&self.path, &place, what);
        let fail = |error| DataError::read(&self.path, error);
        let (mut file, length) = open_plain(&self.path)?;
        if length != self.length {
            return Err(damaged("the file changed while it was read; run again when nothing writes to it"));
        }
        let header = read_at(&mut file, entry.header, 30).map_err(fail)?;
        let mut fields = Fields(&header);
        let lengths = (|| {
            let magic = fields.bytes(4)?;
            fields.bytes(22)?;
            Some((magic, fields.u16()?, fields.u16()?))
        })();
        let Some((MAGIC, name_length, extra_length)) = lengths else {
            return Err(damaged("there is no entry where the archive's directory says"));
        };
        let name = read_at_most(&mut file, u64::from(name_length)).map_err(fail)?;
        if name != entry.name.as_bytes() {
            return Err(damaged("the archive's directory and the entry itself have different names"));
        }
        let start = entry
            .header
            .saturating_add(30)
            .saturating_add(u64::from(name_length))
            .saturating_add(u64::from(extra_length));
        ByteRange::new(start, entry.compressed, length).map_err(|error| damaged(&error.to_string()))?;
        file.seek(SeekFrom::Start(start)).map_err(fail)?;
        let bounded = BufReader::with_capacity(64 << 10, file).take(entry.compressed);
        let checked = |reader: Box<dyn Read + Send>| Checked {
            reader,
            left: entry.size,
            crc: Crc::new(),
            expected: entry.crc,
        };
        Ok(if entry.deflated {
            // `take` keeps the buffer, so the decoder reads from it directly.
            let reader = checked(Box::new(DeflateDecoder::new(bounded)));
            Stream::new(&self.path, &entry.name, reader, Some(entry.compressed), limits)
        } else {
            Stream::new(&self.path, &entry.name, checked(Box::new(bounded)), None, limits)
        })
    }
}

/// Offset, size and number of entries of the central directory.
fn find_directory(path: &Path, file: &mut File, length: u64) -> Result<(u64, u64, u64), DataError> {
    let fail = |error| DataError::read(path, error);
    let not_zip = || {
        DataError::invalid(path, "", "the end of a zip archive is missing: the file is incomplete or no npz")
    };
    // The end record is 22 bytes and a comment of at most 65,535.
    let tail_start = length.saturating_sub(22 + 65_535);
    let tail = read_at(file, tail_start, length.saturating_sub(tail_start)).map_err(fail)?;
    let at = tail.windows(4).rposition(|window| window == END).ok_or_else(not_zip)?;
    let mut fields = Fields(tail.get(at..).unwrap_or_default());
    let end = (|| {
        fields.bytes(4)?;
        let disks = (fields.u16()?, fields.u16()?);
        let (_, count) = (fields.u16()?, fields.u16()?);
        Some((disks, count, fields.u32()?, fields.u32()?))
    })();
    let (disks, count, size, offset) = end.ok_or_else(not_zip)?;
    let several = || DataError::invalid(path, "", "archives in several parts are not read");
    let end_offset = tail_start.saturating_add(at as u64);
    // numpy's own archives need zip64 only beyond 4 GiB or 65,535 entries.
    let needs_64 = count == u16::MAX || size == u32::MAX || offset == u32::MAX;
    let locator = end_offset.checked_sub(20);
    if let Some(locator) = locator.filter(|_| needs_64) {
        let bytes = read_at(file, locator, 20).map_err(fail)?;
        let mut fields = Fields(&bytes);
        if fields.bytes(4) == Some(LOCATOR64.as_slice()) {
            fields.u32();
            let place = fields.u64().unwrap_or(u64::MAX);
            let damaged =
                || DataError::invalid(path, "", "the zip64 end record is not where the archive says");
            ByteRange::new(place, 56, length).map_err(|_| damaged())?;
            let bytes = read_at(file, place, 56).map_err(fail)?;
            let mut fields = Fields(&bytes);
            let end = (|| {
                (fields.bytes(4)? == END64).then_some(())?;
                fields.bytes(12)?;
                let disks = (fields.u32()?, fields.u32()?);
                let (_, count) = (fields.u64()?, fields.u64()?);
                Some((disks, count, fields.u64()?, fields.u64()?))
            })();
            let (disks, count, size, offset) = end.ok_or_else(damaged)?;
            if disks != (0, 0) {
                return Err(several());
            }
            return Ok((offset, size, count));
        }
    }
    if disks != (0, 0) {
        return Err(several());
    }
    Ok((u64::from(offset), u64::from(size), u64::from(count)))
}

/// An entry of the directory; `None` when the directory ends, otherwise the entry or what is wrong with it.
fn read_entry(fields: &mut Fields<'_>) -> Option<Result<Entry, (String, String)>> {
    if fields.bytes(4)? != CENTRAL {
        return None;
    }
    fields.bytes(4)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.bytes(4)?;
    let (crc, compressed, size) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (name_length, extra_length, comment_length) = (fields.u16()?, fields.u16()?, fields.u16()?);
    fields.bytes(8)?;
    let header = fields.u32()?;
    let name = fields.bytes(usize::from(name_length))?;
    let extra = fields.bytes(usize::from(extra_length))?;
    fields.bytes(usize::from(comment_length))?;
    let shown = String::from_utf8_lossy(name).into_owned();
    let fail = |what: &str| Some(Err((shown.clone(), what.to_owned())));
    let Ok(name) = String::from_utf8(name.to_vec()) else { return fail("its name is not UTF-8") };
    if name.split(['/', '\\']).any(|part| part == "..") {
        return fail("its name leads out of the archive (`..`); such an archive is not trusted");
    }
    if flags & 1 != 0 {
        return fail("it is encrypted; encrypted archives are not read");
    }
    let deflated = match method {
        0 => false,
        8 => true,
        other => {
            let what = format!(
                "compression method {other} is not read: save the arrays with np.savez or np.savez_compressed"
            );
            return fail(&what);
        }
    };
    let Some((size, compressed, header)) = zip64(extra, size, compressed, header) else {
        return fail("its zip64 sizes are missing");
    };
    if !deflated && size != compressed {
        return fail("it is stored without compression, but its two sizes differ");
    }
    Some(Ok(Entry { name, deflated, crc, compressed, size, header }))
}

/// Resolves fields of all ones through the zip64 extra field (APPNOTE 4.5.3).
fn zip64(extra: &[u8], size: u32, compressed: u32, header: u32) -> Option<(u64, u64, u64)> {
    let wide = [size, compressed, header].contains(&u32::MAX);
    let mut all = Fields(extra);
    let mut values = Fields(&[]);
    while wide && !all.0.is_empty() {
        let (tag, length) = (all.u16()?, all.u16()?);
        let value = all.bytes(usize::from(length))?;
        if tag == 1 {
            values = Fields(value);
        }
    }
    let mut resolve = |narrow: u32| if narrow == u32::MAX { values.u64() } else { Some(u64::from(narrow)) };
    Some((resolve(size)?, resolve(compressed)?, resolve(header)?))
}

fn read_at(file: &mut File, offset: u64, count: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    read_at_most(file, count)
}

/// Compares length and checksum of what is read with what the directory says.
struct Checked {
    reader: Box<dyn Read + Send>,
    left: u64,
    crc: Crc,
    expected: u32,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wrong = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()));
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.reader.read(buffer)?;
        let Some(left) = self.left.checked_sub(count as u64) else {
            return wrong("more data than the archive's directory says");
        };
        self.left = left;
        if count > 0 {
            self.crc.update(buffer.get(..count).unwrap_or_default());
        } else if left > 0 {
            return wrong("fewer data than the archive's directory says");
        } else if self.crc.sum() != self.expected {
            return wrong("the checksum is wrong");
        }
        Ok(count)
    }
}
