//! Files that models are read from: mapped, so that a weight costs nothing until somebody looks at it.
//!
//! A mapped file can be changed by another process under our eyes. It is opened read-only, what it says
//! of structure is read once, and its identity (device, inode, size, time) is compared before anything
//! made from it is committed.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use memmap2::Mmap;
use optix_ir::{DType, Tensor};

use crate::error::IoError;

/// Files smaller than this are read: a map costs more than a copy.
const SMALL: u64 = 64 << 10;
/// Pieces longer than this go from file to file without being looked at.
const COPY_IN_KERNEL: usize = 64 << 10;
/// Bytes moved at a time where the kernel cannot copy.
const CHUNK: usize = 256 << 10;

/// What tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Identity {
    fn of(metadata: &Metadata) -> Identity {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }
}

#[derive(Debug)]
enum Content {
    Mapped(Mmap),
    Read(Vec<u8>),
}

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
    identity: Identity,
    hard_links: u64,
    content: Content,
}

impl AsRef<[u8]> for Opened {
    fn as_ref(&self) -> &[u8] {
        match &self.content {
            Content::Mapped(map) => map,
            Content::Read(bytes) => bytes,
        }
    }
}

/// Lends the content of a file to `Bytes`.
struct Owner(Arc<Opened>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().as_ref()
    }
}

/// A file a model was read from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SourceFile(Arc<Opened>);

/// A map in memory and the file behind it.
struct Registered {
    start: usize,
    end: usize,
    file: Weak<Opened>,
}

/// The maps there are, so that the writer can tell which file a payload lies in.
static MAPS: Mutex<Vec<Registered>> = Mutex::new(Vec::new());

impl SourceFile {
    /// Opens a file: mapped, or read when it is small or `map` is false.
    ///
    /// # Errors
    /// When it is missing, unreadable, or not a plain file.
    pub fn open(path: &Path, map: bool) -> Result<SourceFile, IoError> {
        let failed = |source| IoError::Read { path: path.to_owned(), source };
        // Looked at before it is opened: opening a pipe would wait for somebody to write.
        check_is_plain(path, &std::fs::metadata(path).map_err(failed)?)?;
        let file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        check_is_plain(path, &metadata)?;
        let identity = Identity::of(&metadata);
        let content = if map && identity.size >= SMALL {
            Content::Mapped(map_file(&file).map_err(failed)?)
        } else {
            Content::Read(read_file(&file, identity.size).map_err(failed)?)
        };
        let opened = Opened { path: path.to_owned(), file, identity, hard_links: metadata.nlink(), content };
        if opened.as_ref().len() as u64 != identity.size {
            return Err(IoError::Changed { path: path.to_owned() });
        }
        let opened = Arc::new(opened);
        register(&opened);
        Ok(SourceFile(opened))
    }

    /// The whole content; slices of it are free.
    pub fn bytes(&self) -> Bytes {
        Bytes::from_owner(Owner(Arc::clone(&self.0)))
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Its size in bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.0.identity.size
    }

    /// Whether the file has other names.
    pub(crate) fn is_hard_linked(&self) -> bool {
        self.0.hard_links > 1
    }

    /// Whether both are the same file, under whatever names.
    pub(crate) fn is_same(&self, other: &SourceFile) -> bool {
        let (a, b) = (self.0.identity, other.0.identity);
        (a.device, a.inode) == (b.device, b.inode)
    }

    /// The BLAKE3 hash of the content, in hexadecimal. Reads the file through, without keeping it.
    ///
    /// # Errors
    /// When reading fails.
    pub fn blake3(&self) -> Result<String, IoError> {
        let hashed = hash(&self.0.file).map_err(|source| IoError::Read { path: self.0.path.clone(), source });
        Ok(hashed?.1)
    }

    /// Checks that the file is still the one that was opened, of the same size and time.
    ///
    /// # Errors
    /// [`IoError::Changed`] when it is not.
    pub fn check_unchanged(&self) -> Result<(), IoError> {
        // What the open file itself says: a file replaced under its name (as we do ourselves) is no harm.
        match self.0.file.metadata() {
            Ok(metadata) if Identity::of(&metadata) == self.0.identity => Ok(()),
            _ => Err(IoError::Changed { path: self.0.path.clone() }),
        }
    }

    /// The file that a payload is a slice of, and where in it.
    pub(crate) fn behind(bytes: &[u8]) -> Option<(SourceFile, u64)> {
        let start = bytes.as_ptr().addr();
        let end = start.checked_add(bytes.len())?;
        let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
        let found = maps.iter().find(|map| map.start <= start && end <= map.end)?;
        let file = found.file.upgrade()?;
        let offset = start.checked_sub(found.start)?;
        Some((SourceFile(file), offset as u64))
    }

    /// Copies `length` bytes at `offset` to the end of another file, in the kernel where it can.
    fn copy_to(&self, mut offset: u64, length: usize, out: &mut File) -> io::Result<()> {
        let mut left = length;
        let mut in_kernel = true;
        let mut buffer = Vec::new();
        while left > 0 {
            let moved = if in_kernel {
                match rustix::fs::copy_file_range(&self.0.file, Some(&mut offset), &*out, None, left) {
                    // Nothing moved though bytes are left: the file shrank, or the file system lies.
                    Ok(0) | Err(_) => {
                        in_kernel = false;
                        continue;
                    }
                    Ok(moved) => moved,
                }
            } else {
                buffer.resize(CHUNK.min(left), 0);
                let count = read_at(&self.0.file, &mut buffer, offset)?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                out.write_all(buffer.get(..count).unwrap_or_default())?;
                offset = offset.saturating_add(count as u64);
                count
            };
            left = left.saturating_sub(moved);
        }
        Ok(())
    }
}

/// Writes a payload: from the file it lies in when it is a slice of one, so that its pages are never
/// touched. Returns the file.
pub(crate) fn write_payload(bytes: &[u8], out: &mut File) -> io::Result<Option<SourceFile>> {
    if bytes.len() >= COPY_IN_KERNEL
        && let Some((source, offset)) = SourceFile::behind(bytes)
    {
        source.copy_to(offset, bytes.len(), out)?;
        return Ok(Some(source));
    }
    out.write_all(bytes)?;
    Ok(None)
}

/// How many elements of a tensor are NaN and how many infinite, as [`Tensor::non_finite`] counts them. A
/// payload that lies in a mapped file is read from the file piece by piece: pages that are looked at through
/// the map would count as this process's memory.
pub fn non_finite(tensor: &Tensor) -> (usize, usize) {
    let bytes = tensor.bytes();
    let has_such_values = matches!(tensor.dtype(), DType::F32 | DType::F64 | DType::F16 | DType::BF16);
    let behind = SourceFile::behind(bytes).filter(|_| has_such_values && bytes.len() >= COPY_IN_KERNEL);
    let Some((source, start)) = behind else { return tensor.non_finite() };
    let width = tensor.dtype().bits() / 8;
    let (mut nan, mut infinite) = (0usize, 0usize);
    let mut done = 0usize;
    while done < bytes.len() {
        let left = bytes.len().saturating_sub(done);
        let mut buffer = vec![0; CHUNK.min(left)];
        let read = read_at(&source.0.file, &mut buffer, start.saturating_add(done as u64)).unwrap_or(0);
        // Whole elements only.
        let count = read.checked_div(width).unwrap_or(0);
        buffer.truncate(count.saturating_mul(width));
        let Ok(piece) = Tensor::new(tensor.dtype(), vec![count], buffer.into()) else { break };
        if count == 0 {
            break;
        }
        let found = piece.non_finite();
        (nan, infinite) = (nan.saturating_add(found.0), infinite.saturating_add(found.1));
        done = done.saturating_add(piece.bytes().len());
    }
    // A file that cannot be read any more is found out about where it matters.
    (nan, infinite)
}

fn register(opened: &Arc<Opened>) {
    let Content::Mapped(map) = &opened.content else { return };
    let start = map.as_ptr().addr();
    let Some(end) = start.checked_add(map.len()) else { return };
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|map| map.file.strong_count() > 0);
    maps.push(Registered { start, end, file: Arc::downgrade(opened) });
}

fn check_is_plain(path: &Path, metadata: &Metadata) -> Result<(), IoError> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "this is a directory; name a file in it"
    } else if kind.is_fifo() || kind.is_socket() {
        "this is a pipe or socket; save what it gives to a file first"
    } else {
        "this is a device, not a file"
    };
    Err(IoError::NotAModel { path: path.to_owned(), what: what.to_owned() })
}

/// Size and BLAKE3 hash, in hexadecimal, of a file's content, read piece by piece.
pub(crate) fn hash(file: &File) -> io::Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; CHUNK];
    let mut offset = 0u64;
    loop {
        let count = read_at(file, &mut buffer, offset)?;
        if count == 0 {
            return Ok((offset, hasher.finalize().to_hex().to_string()));
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        offset = offset.saturating_add(count as u64);
    }
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match std::os::unix::fs::FileExt::read_at(file, buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn read_file(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // The size is the file system's word, not the file's; still, a failure to allocate is no panic.
    let size = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.try_reserve_exact(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
    // Not a byte more than it said it has: it may be growing.
    file.take(size as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[allow(unsafe_code)]
fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only and private to this process. What remains is that another process may
    // write to the file or cut it short while we read: a changed byte can make us read nonsense, which
    // every parser here must survive anyway since contents are never trusted, nor relied on to read the
    // same twice for memory safety; a cut file stops the process by a signal. Both are documented, checked
    // for before a commit (`check_unchanged`), and avoided by opening without a map.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_found_in_their_file_and_copied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("big");
        let content: Vec<u8> = (0..1_000_000u32).map(|i| (i * 7) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let source = SourceFile::open(&path, true).unwrap();
        let slice = source.bytes().slice(12_345..912_345);
        let (file, offset) = SourceFile::behind(&slice).unwrap();
        assert!(file.is_same(&source));
        assert_eq!(offset, 12_345);
        assert!(SourceFile::behind(&content).is_none());
        let mut out = File::create(directory.path().join("out")).unwrap();
        out.write_all(b"head").unwrap();
        assert!(write_payload(&slice, &mut out).unwrap().is_some());
        assert!(write_payload(b"tail", &mut out).unwrap().is_none());
        let written = std::fs::read(directory.path().join("out")).unwrap();
        assert_eq!(written, [b"head", &content[12_345..912_345], b"tail"].concat());
        assert_eq!(source.blake3().unwrap(), blake3::hash(&content).to_hex().to_string());
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, vec![1; 100_000]).unwrap();
        for map in [true, false] {
            let source = SourceFile::open(&path, map).unwrap();
            source.check_unchanged().unwrap();
            File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap();
            let error = source.check_unchanged().unwrap_err();
            assert_eq!(error.class(), optix_base::ErrorClass::Environment);
        }
    }

    #[test]
    fn what_is_not_a_file_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for (path, expected) in [
            (fifo.as_path(), "pipe"),
            (directory.path(), "directory"),
            (Path::new("/dev/zero"), "device"),
            (Path::new("/no/such"), "No such file"),
        ] {
            let error = SourceFile::open(path, true).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.class(), optix_base::ErrorClass::Input);
        }
    }
}
