//! Opening and reading files that may be anything.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::bufread::MultiGzDecoder;
use optix_base::Limits;

use crate::error::DataError;

/// What the first bytes of a gzip file are.
pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Decompressed data may be any number of times larger than compressed data up to this size: small
/// constant arrays are legal and compress without end.
const FREE_BYTES: u64 = 64 << 20;

/// Opens a plain file; never blocks on a pipe or device.
pub(crate) fn open_plain(path: &Path) -> Result<(File, u64), DataError> {
    let metadata = std::fs::metadata(path).map_err(|error| DataError::read(path, error))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() {
            "it is a directory, a file is needed"
        } else {
            "it is a pipe or device; save its data to a file first"
        };
        return Err(DataError::invalid(path, "", what));
    }
    let file = File::open(path).map_err(|error| DataError::read(path, error))?;
    Ok((file, metadata.len()))
}

/// The first bytes of a file, at most `count`.
pub(crate) fn first_bytes(path: &Path, count: u64) -> Result<Vec<u8>, DataError> {
    let (file, _) = open_plain(path)?;
    read_at_most(file, count).map_err(|error| DataError::read(path, error))
}

/// Reads to the end or up to `count` bytes; memory grows with what is there, not with `count`.
pub(crate) fn read_at_most(reader: impl Read, count: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(count).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes of a file or archive member, decompressed, with the bounds that hostile files make necessary.
pub(crate) struct Stream {
    path: PathBuf,
    /// The entry of an archive; empty for a file.
    place: String,
    reader: Box<dyn Read + Send>,
    /// For compressed data: the compressed size, as an upper bound of what has been consumed.
    compressed: Option<u64>,
    produced: u64,
    expansion: u64,
}

impl Stream {
    /// A stream over something already bounded. `compressed` is the size before decompression, if any.
    pub(crate) fn new(
        path: &Path,
        place: &str,
        reader: impl Read + Send + 'static,
        compressed: Option<u64>,
        limits: &Limits,
    ) -> Stream {
        Stream {
            path: path.to_owned(),
            place: place.to_owned(),
            reader: Box::new(reader),
            compressed,
            produced: 0,
            expansion: limits.expansion,
        }
    }

    /// Opens a file, plain or gzip by its content. Also tells the size when it is plain.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<(Stream, Option<u64>), DataError> {
        let fail = |error| DataError::read(path, error);
        let (mut file, length) = open_plain(path)?;
        let magic = read_at_most(&mut file, 2).map_err(fail)?;
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        let buffered = BufReader::with_capacity(64 << 10, file);
        if magic == GZIP_MAGIC {
            let decoder = MultiGzDecoder::new(buffered);
            Ok((Stream::new(path, "", decoder, Some(length), limits), None))
        } else {
            Ok((Stream::new(path, "", buffered, None, limits), Some(length)))
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A complaint about what the stream holds; `where_` is added to the entry's name.
    pub(crate) fn invalid(&self, where_: &str, what: impl AsRef<str>) -> DataError {
        let place = match (self.place.is_empty(), where_.is_empty()) {
            (true, _) => where_.to_owned(),
            (false, true) => format!("entry `{}`", self.place),
            (false, false) => format!("entry `{}`: {where_}", self.place),
        };
        DataError::invalid(&self.path, &place, what)
    }

    fn fail(&self, error: io::Error) -> DataError {
        // What decoders say about damaged data, as opposed to what the system says about the disk.
        match error.kind() {
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                self.invalid("", format!("the compressed data are damaged ({error})"))
            }
            io::ErrorKind::UnexpectedEof => self.invalid("", "the compressed data end too early"),
            _ => DataError::read(&self.path, error),
        }
    }

    fn produce(&mut self, bytes: u64) -> Result<(), DataError> {
        self.produced = self.produced.saturating_add(bytes);
        if let Some(compressed) = self.compressed
            && self.produced > FREE_BYTES
            && self.produced > compressed.saturating_mul(self.expansion)
        {
            let what = match self.place.as_str() {
                "" => "its decompressed size over its compressed size".to_owned(),
                place => format!("entry `{place}`: its decompressed size over its compressed size"),
            };
            return Err(DataError::limit(&self.path, &what, "expansion", self.expansion));
        }
        Ok(())
    }

    /// Reads up to `count` bytes: fewer only at the end.
    pub(crate) fn read_up_to(&mut self, count: u64) -> Result<Vec<u8>, DataError> {
        // A first guess that no declared length can make large.
        let mut bytes = Vec::with_capacity(usize::try_from(count.min(1 << 20)).unwrap_or(0));
        while (bytes.len() as u64) < count {
            let left = count.saturating_sub(bytes.len() as u64).min(16 << 20);
            let got = (&mut self.reader).take(left).read_to_end(&mut bytes);
            let got = got.map_err(|error| self.fail(error))?;
            self.produce(got as u64)?;
            if got == 0 {
                break;
            }
        }
        Ok(bytes)
    }

    /// Reads exactly `count` bytes of `what`.
    pub(crate) fn read_exactly(&mut self, count: u64, what: &str) -> Result<Vec<u8>, DataError> {
        let bytes = self.read_up_to(count)?;
        if bytes.len() as u64 == count {
            return Ok(bytes);
        }
        let message = format!("the data end after {} of {count} bytes; the file is incomplete", bytes.len());
        Err(self.invalid(what, message))
    }

    /// Reads over `count` bytes of `what`.
    pub(crate) fn discard(&mut self, count: u64, what: &str) -> Result<(), DataError> {
        let mut left = count;
        while left > 0 {
            let step = left.min(1 << 20);
            let got = io::copy(&mut (&mut self.reader).take(step), &mut io::sink());
            let got = got.map_err(|error| self.fail(error))?;
            self.produce(got)?;
            if got == 0 {
                return Err(self.invalid(what, "the data end too early; the file is incomplete"));
            }
            left = left.saturating_sub(got);
        }
        Ok(())
    }

    /// Checks that nothing is left; this also lets decoders compare their checksums.
    pub(crate) fn expect_end(&mut self) -> Result<(), DataError> {
        if self.read_up_to(1)?.is_empty() {
            return Ok(());
        }
        Err(self.invalid("", "there are more data than its header declares"))
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("path", &self.path).field("place", &self.place).finish_non_exhaustive()
    }
}

/// Lines of a stream, each at most so long.
pub(crate) struct Lines {
    stream: Stream,
    limits: Limits,
    buffer: Vec<u8>,
    at: usize,
    number: u64,
    is_done: bool,
}

impl Lines {
    /// Opens a text file, plain or gzip.
    pub(crate) fn open(path: &Path, limits: &Limits) -> Result<Lines, DataError> {
        let (stream, _) = Stream::open(path, limits)?;
        Ok(Lines::new(stream, limits))
    }

    /// Lines of what a stream holds.
    pub(crate) fn new(stream: Stream, limits: &Limits) -> Lines {
        Lines { stream, limits: *limits, buffer: Vec::new(), at: 0, number: 0, is_done: false }
    }

    /// The next line with its number, from 1, without its end; a byte order mark before the first one is
    /// left out. `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, DataError> {
        loop {
            let rest = self.buffer.get(self.at..).unwrap_or_default();
            if let Some(length) = rest.iter().position(|&byte| byte == b'\n') {
                let line = rest.get(..length).unwrap_or_default().to_vec();
                self.at = self.at.saturating_add(length).saturating_add(1);
                return Ok(Some(self.finished(line)));
            }
            if rest.len() as u64 > self.limits.record_bytes {
                let what = format!("line {}", self.number.saturating_add(1));
                let (name, limit) = ("record-bytes", self.limits.record_bytes);
                return Err(DataError::limit(self.stream.path(), &what, name, limit));
            }
            if self.is_done {
                let line = rest.to_vec();
                self.at = self.buffer.len();
                return Ok(if line.is_empty() { None } else { Some(self.finished(line)) });
            }
            let rest = rest.to_vec();
            // Long lines are read in ever larger pieces: searching them again costs no more than reading.
            let more = self.stream.read_up_to((rest.len() as u64).max(64 << 10))?;
            self.is_done = more.is_empty();
            self.buffer = rest;
            self.buffer.extend_from_slice(&more);
            self.at = 0;
        }
    }

    fn finished(&mut self, mut line: Vec<u8>) -> (u64, Vec<u8>) {
        self.number = self.number.saturating_add(1);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if self.number == 1 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        (self.number, line)
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        self.stream.path()
    }
}

/// A stream for readers that want [`Read`]: its own error is kept beside the one that they pass on, and
/// no record may grow without end.
pub(crate) struct Metered {
    stream: Stream,
    limit: u64,
    shared: Arc<Mutex<MeteredState>>,
}

#[derive(Default)]
struct MeteredState {
    since: u64,
    error: Option<DataError>,
}

/// The other end of a [`Metered`].
#[derive(Clone)]
pub(crate) struct Meter(Arc<Mutex<MeteredState>>);

impl Meter {
    /// A record is complete.
    pub(crate) fn reset(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).since = 0;
    }

    /// The stream's own error, if that is what ended it.
    pub(crate) fn error(&self) -> Option<DataError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).error.take()
    }
}

impl Metered {
    /// A reader and what resets it after each record.
    pub(crate) fn new(stream: Stream, limits: &Limits) -> (Metered, Meter) {
        let shared = Arc::new(Mutex::new(MeteredState::default()));
        let meter = Meter(Arc::clone(&shared));
        (Metered { stream, limit: limits.record_bytes, shared }, meter)
    }
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let result = if state.since > self.limit {
            Err(DataError::limit(self.stream.path(), "one record", "record-bytes", self.limit))
        } else {
            self.stream.read_up_to(buffer.len() as u64)
        };
        match result {
            Ok(bytes) => {
                state.since = state.since.saturating_add(bytes.len() as u64);
                if let Some(target) = buffer.get_mut(..bytes.len()) {
                    target.copy_from_slice(&bytes);
                }
                Ok(bytes.len())
            }
            Err(error) => {
                state.error = Some(error);
                Err(io::Error::other("kept beside"))
            }
        }
    }
}
