//! Writes numpy's `.npz`: outputs of a model, stacked over all samples.
//!
//! Values arrive batch by batch while an archive wants its members one after the other, each with a header
//! that has the number of samples. So every array is first collected in an unnamed temporary file beside the
//! target; memory does not grow with the data.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use optix_base::{OutFile, OutputError, escape_for_terminal};
use optix_ir::{DType, Tensor};

use crate::error::DataError;

/// Whether members are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Packing {
    /// As they are, as `np.savez` does.
    #[default]
    Stored,
    /// Deflated, as `np.savez_compressed` does.
    Deflated,
}

/// What axis 0 of a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// It counts samples.
    Samples,
    /// The value is one sample, which gets an axis 0 of its own.
    One,
}

/// An archive being written. Nothing appears at the target before [`NpzWriter::finish`].
#[derive(Debug)]
pub struct NpzWriter {
    out: OutFile,
    target: PathBuf,
    packing: Packing,
    members: Vec<Member>,
    notes: Vec<String>,
}

/// One array.
#[derive(Debug)]
struct Member {
    name: String,
    /// As the values arrive.
    dtype: DType,
    sample_shape: Vec<usize>,
    samples: u64,
    spool: BufWriter<File>,
    bytes: u64,
    /// Longest string, in code points.
    width: usize,
}

impl NpzWriter {
    /// Starts an archive.
    ///
    /// # Errors
    /// When no file can appear at `target`.
    pub fn create(target: &Path, packing: Packing) -> Result<NpzWriter, DataError> {
        let out = OutFile::create(target)?;
        Ok(NpzWriter { out, target: target.to_owned(), packing, members: Vec::new(), notes: Vec::new() })
    }

    /// Appends values to the array `name`. Element types that numpy lacks are written as float32, which holds
    /// them exactly, and noted.
    ///
    /// # Errors
    /// When type or shape differ from those of the values before, or the disk is full.
    pub fn add(&mut self, name: &str, value: &Tensor, rows: Rows) -> Result<(), DataError> {
        let shown = escape_for_terminal(name).into_owned();
        let complain = |what: String| DataError::Metric(format!("output `{shown}`: {what}"));
        let (samples, sample_shape) = match (rows, value.shape()) {
            (Rows::One, shape) => (1, shape),
            (Rows::Samples, [samples, shape @ ..]) => (*samples as u64, shape),
            (Rows::Samples, []) => {
                return Err(complain(
                    "it is a single number for a whole batch; run with a batch size of 1".to_owned(),
                ));
            }
        };
        let (value, note) = for_numpy(value).map_err(complain)?;
        let index = match self.members.iter().position(|member| member.name == name) {
            Some(index) => index,
            None => {
                if let Some(note) = note {
                    self.notes.push(format!("`{shown}`: {note}"));
                }
                self.start(name, value.dtype(), sample_shape)?;
                self.members.len().saturating_sub(1)
            }
        };
        let Some(member) = self.members.get_mut(index) else { return Ok(()) };
        if member.dtype != value.dtype() || member.sample_shape != sample_shape {
            return Err(complain(format!(
                "a sample of {}{sample_shape:?} cannot be stacked with the {}{:?} before it: write such samples to \
                 files of their own (`take` and `skip` choose them)",
                value.dtype(),
                member.dtype,
                member.sample_shape
            )));
        }
        if let Ok(strings) = value.strings() {
            let widths = strings.iter().map(|text| String::from_utf8_lossy(text).chars().count());
            member.width = widths.max().unwrap_or(0).max(member.width);
        }
        member.samples = member.samples.saturating_add(samples);
        member.bytes = member.bytes.saturating_add(value.bytes().len() as u64);
        member.spool.write_all(value.bytes()).map_err(|error| OutputError::io(&self.target, error).into())
    }

    fn start(&mut self, name: &str, dtype: DType, sample_shape: &[usize]) -> Result<(), DataError> {
        let directory = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let spool = tempfile::tempfile_in(directory.unwrap_or(Path::new(".")));
        let spool = spool.map_err(|error| OutputError::io(&self.target, error))?;
        self.members.push(Member {
            name: name.to_owned(),
            dtype,
            sample_shape: sample_shape.to_vec(),
            samples: 0,
            spool: BufWriter::with_capacity(64 << 10, spool),
            bytes: 0,
            width: 0,
        });
        Ok(())
    }

    /// Writes the archive and lets it appear. Returns what the user should know about it.
    ///
    /// # Errors
    /// When the disk is full or fails; nothing appears then.
    pub fn finish(mut self) -> Result<Vec<String>, DataError> {
        let bytes = self.members.iter().fold(0u64, |sum, member| sum.saturating_add(member.bytes));
        if self.packing == Packing::Stored {
            self.out.reserve(bytes)?;
        }
        let members = std::mem::take(&mut self.members);
        let mut names = Vec::new();
        for member in &members {
            let name = entry_name(&member.name, &names);
            if name != format!("{}.npy", member.name) {
                let shown = escape_for_terminal(&member.name);
                self.notes.push(format!("`{shown}` is written as `{}`", escape_for_terminal(&name)));
            }
            names.push(name);
        }
        let result = write_archive(self.out.file(), members, &names, self.packing);
        result.map_err(|error| self.out.error(error))?;
        self.out.commit()?;
        Ok(self.notes)
    }
}

/// A name that no reader takes for a way out of the archive; `/` stays.
fn entry_name(name: &str, taken: &[String]) -> String {
    let parts: Vec<&str> = name.split('/').map(|part| if part == ".." { "__" } else { part }).collect();
    let mut name = parts.join("/");
    // A zip name has two bytes for its length.
    while name.len() > 60_000 {
        name.pop();
    }
    let mut entry = format!("{name}.npy");
    while taken.contains(&entry) {
        name.push('_');
        entry = format!("{name}.npy");
    }
    entry
}

/// The value in a type that numpy has, and a note when that is another.
fn for_numpy(value: &Tensor) -> Result<(Tensor, Option<String>), String> {
    if value.dtype() == DType::String || description(value.dtype(), 0).is_some() {
        return Ok((value.clone(), None));
    }
    let numbers = value.to_f64s().map_err(|error| error.to_string())?;
    let floats: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
    let note = format!("numpy has no {}: written as float32, which holds the same numbers", value.dtype());
    Ok((Tensor::from_vec(value.shape().to_vec(), floats), Some(note)))
}

/// numpy's name of a type; strings have a fixed width there.
fn description(dtype: DType, width: usize) -> Option<String> {
    use DType::*;
    let name = match dtype {
        F32 => "<f4",
        F64 => "<f8",
        F16 => "<f2",
        I8 => "|i1",
        I16 => "<i2",
        I32 => "<i4",
        I64 => "<i8",
        U8 => "|u1",
        U16 => "<u2",
        U32 => "<u4",
        U64 => "<u8",
        Bool => "|b1",
        Complex64 => "<c8",
        Complex128 => "<c16",
        String => return Some(format!("<U{}", width.max(1))),
        _ => return None,
    };
    Some(name.to_owned())
}

/// Counts and sums what passes to a writer.
struct Measured<W> {
    inner: W,
    bytes: u64,
    crc: Crc,
}

impl<W: Write> Measured<W> {
    fn new(inner: W) -> Measured<W> {
        Measured { inner, bytes: 0, crc: Crc::new() }
    }
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.bytes = self.bytes.saturating_add(count as u64);
        self.crc.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Member {
    /// The npy header (NEP 1), filled up so that the elements start at a multiple of 64.
    fn header(&self) -> Vec<u8> {
        let shape: Vec<String> = std::iter::once(self.samples.to_string())
            .chain(self.sample_shape.iter().map(usize::to_string))
            .collect();
        let comma = if shape.len() == 1 { "," } else { "" };
        let descr = description(self.dtype, self.width).unwrap_or_default();
        let mut text = format!(
            "{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}",
            shape.join(", ")
        );
        while text.len().saturating_add(11).checked_rem(64) != Some(0) {
            text.push(' ');
        }
        text.push('\n');
        let mut header = b"\x93NUMPY\x01\x00".to_vec();
        // Ranks are bounded, so the header is far below the two bytes' range.
        header.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        header.extend_from_slice(text.as_bytes());
        header
    }

    /// Writes header and elements.
    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.header())?;
        self.spool.flush()?;
        let (dtype, width) = (self.dtype, self.width);
        let mut file = self.spool.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(64 << 10, file);
        if dtype != DType::String {
            return io::copy(&mut reader, out).map(|_| ());
        }
        let mut length = [0; 4];
        while reader.read(&mut length[..1])? == 1 {
            reader.read_exact(&mut length[1..])?;
            let mut text = vec![0; u32::from_le_bytes(length) as usize];
            reader.read_exact(&mut text)?;
            let text = String::from_utf8_lossy(&text);
            let codes = text.chars().map(u32::from).chain(std::iter::repeat(0)).take(width.max(1));
            for code in codes {
                out.write_all(&code.to_le_bytes())?;
            }
        }
        Ok(())
    }
}

/// A member as the directory lists it.
struct Written {
    crc: u32,
    size: u64,
    compressed: u64,
    header: u64,
}

const UTF8_NAME: u16 = 1 << 11;
/// Version 4.5 knows zip64.
const VERSION: u16 = 45;
/// 1 January 1980: the same bytes whenever written.
const DATE: u16 = 0x21;

fn method(packing: Packing) -> u16 {
    match packing {
        Packing::Stored => 0,
        Packing::Deflated => 8,
    }
}

/// Version, flags, method, time, date, checksum: what both kinds of header share.
fn common(packing: Packing, crc: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [VERSION, UTF8_NAME, method(packing), 0, DATE] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn short(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes()
}

/// A local header always has its sizes in the zip64 field: they are not known when it is written first.
fn local_header(name: &str, packing: Packing, written: &Written) -> Vec<u8> {
    let mut bytes = b"PK\x03\x04".to_vec();
    bytes.extend(common(packing, written.crc));
    bytes.extend_from_slice(&[0xff; 8]);
    bytes.extend_from_slice(&short(name.len()));
    bytes.extend_from_slice(&20u16.to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&[1, 0, 16, 0]);
    bytes.extend_from_slice(&written.size.to_le_bytes());
    bytes.extend_from_slice(&written.compressed.to_le_bytes());
    bytes
}

fn central_header(name: &str, packing: Packing, written: &Written) -> Vec<u8> {
    let (mut narrow, mut wide) = (Vec::new(), Vec::new());
    for value in [written.compressed, written.size, written.header] {
        narrow.push(u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }
    // In the field's order, and only those that do not fit.
    for value in [written.size, written.compressed, written.header] {
        if value >= u64::from(u32::MAX) {
            wide.extend_from_slice(&value.to_le_bytes());
        }
    }
    let mut extra = Vec::new();
    if !wide.is_empty() {
        extra.extend_from_slice(&[1, 0]);
        extra.extend_from_slice(&short(wide.len()));
        extra.extend(wide);
    }
    let mut bytes = b"PK\x01\x02".to_vec();
    // Made by the same version, on no particular system.
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend(common(packing, written.crc));
    let mut narrow = narrow.into_iter();
    bytes.extend(narrow.by_ref().take(2).flatten());
    bytes.extend_from_slice(&short(name.len()));
    bytes.extend_from_slice(&short(extra.len()));
    // No comment, first disk, no attributes.
    bytes.extend_from_slice(&[0; 10]);
    bytes.extend(narrow.flatten());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend(extra);
    bytes
}

fn write_archive(
    file: &mut File,
    members: Vec<Member>,
    names: &[String],
    packing: Packing,
) -> io::Result<()> {
    let mut directory = Vec::new();
    let count = members.len() as u64;
    for (member, name) in members.into_iter().zip(names) {
        let header = file.stream_position()?;
        let empty = Written { crc: 0, size: 0, compressed: 0, header };
        file.write_all(&local_header(name, packing, &empty))?;
        let start = file.stream_position()?;
        let buffered = BufWriter::with_capacity(64 << 10, &mut *file);
        let (size, crc) = match packing {
            Packing::Stored => {
                let mut out = Measured::new(buffered);
                member.write(&mut out)?;
                out.flush()?;
                (out.bytes, out.crc.sum())
            }
            Packing::Deflated => {
                let mut out = Measured::new(DeflateEncoder::new(buffered, Compression::default()));
                member.write(&mut out)?;
                let (size, crc) = (out.bytes, out.crc.sum());
                out.inner.finish()?.flush()?;
                (size, crc)
            }
        };
        let end = file.stream_position()?;
        let written = Written { crc, size, compressed: end.saturating_sub(start), header };
        file.seek(SeekFrom::Start(header))?;
        file.write_all(&local_header(name, packing, &written))?;
        file.seek(SeekFrom::Start(end))?;
        directory.extend(central_header(name, packing, &written));
    }
    let start = file.stream_position()?;
    file.write_all(&directory)?;
    file.write_all(&end_records(start, directory.len() as u64, count))
}

/// The end of the archive, in both forms where the plain one is too narrow.
fn end_records(start: u64, size: u64, count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let narrow_count = u16::try_from(count).unwrap_or(u16::MAX);
    let narrow_size = u32::try_from(size).unwrap_or(u32::MAX);
    let narrow_start = u32::try_from(start).unwrap_or(u32::MAX);
    if narrow_count == u16::MAX || narrow_size == u32::MAX || narrow_start == u32::MAX {
        bytes.extend_from_slice(b"PK\x06\x06");
        bytes.extend_from_slice(&44u64.to_le_bytes());
        bytes.extend_from_slice(&[VERSION.to_le_bytes(), VERSION.to_le_bytes()].concat());
        bytes.extend_from_slice(&[0; 8]);
        for value in [count, count, size, start] {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.extend_from_slice(b"PK\x06\x07");
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&start.saturating_add(size).to_le_bytes());
        bytes.extend_from_slice(&1u32.to_le_bytes());
    }
    bytes.extend_from_slice(b"PK\x05\x06");
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&narrow_count.to_le_bytes());
    bytes.extend_from_slice(&narrow_count.to_le_bytes());
    bytes.extend_from_slice(&narrow_size.to_le_bytes());
    bytes.extend_from_slice(&narrow_start.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes
}
