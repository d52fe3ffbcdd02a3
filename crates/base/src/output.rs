//! Files that appear whole or not at all.
//!
//! A new file is written beside its target under a temporary name, synced, renamed over the target, and
//! the directory synced: a killed run leaves the old file or the new one. What a killed run leaves under a
//! temporary name is removed by the next run that writes to the same place.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{ErrorClass, escape_for_terminal};

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The target is not a place where a file can appear.
    #[error("cannot write {path}: {what}")]
    Target {
        /// The target.
        path: String,
        /// What is the matter and what helps.
        what: String,
        /// Whose fault it is.
        class: ErrorClass,
    },
    /// The system refused.
    #[error("cannot write {path}: {source}{hint}")]
    Io {
        /// The target.
        path: String,
        /// What the system said.
        source: io::Error,
        /// What helps.
        hint: String,
    },
}

impl OutputError {
    /// Whose fault it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            OutputError::Target { class, .. } => *class,
            OutputError::Io { .. } => ErrorClass::Environment,
        }
    }

    /// An error of the system while writing to `path`.
    pub fn io(path: &Path, source: io::Error) -> OutputError {
        let hint = match source.raw_os_error() {
            // No permission (EACCES, EPERM); a directory that takes no files, as in /proc (ENOENT).
            Some(1 | 2 | 13) => "; no file can be made there: choose another directory".to_owned(),
            Some(28) => "; make room on that disk or choose another directory".to_owned(),
            Some(30) => "; that file system is read-only: choose another directory".to_owned(),
            Some(27) => "; the file would be larger than this process may write (ulimit -f)".to_owned(),
            _ => String::new(),
        };
        OutputError::Io { path: shown(path), source, hint }
    }
}

fn shown(path: &Path) -> String {
    escape_for_terminal(&path.to_string_lossy()).into_owned()
}

/// A file being written; see the module's documentation. Dropped without [`OutFile::commit`], nothing is
/// left of it.
#[derive(Debug)]
pub struct OutFile {
    file: Option<File>,
    temporary: PathBuf,
    target: PathBuf,
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl OutFile {
    /// Checks that a file can appear at `target`: its directory exists, and what stands there now, if
    /// anything, is a plain file that is none of `inputs` (the same file under any name) and in none of the
    /// directories among them.
    ///
    /// # Errors
    /// With what is wrong and what helps. Called before long work, so that it does not end in vain.
    pub fn check(target: &Path, inputs: &[&Path]) -> Result<(), OutputError> {
        let refuse = |what: &str, class| {
            Err(OutputError::Target { path: shown(target), what: what.to_owned(), class })
        };
        let input = ErrorClass::Input;
        if target.as_os_str().is_empty() || target.file_name().is_none() {
            return refuse("it is not the name of a file", input);
        }
        match std::fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() => return refuse("it is a directory; name a file in it", input),
            Ok(found) if found.is_symlink() => {
                return refuse("it is a symbolic link; name the file it points to", input);
            }
            Ok(found) if !found.is_file() => return refuse("it is a device, pipe or socket", input),
            Ok(found) => {
                let real = target.canonicalize().unwrap_or_default();
                let same = |path: &&Path| match std::fs::metadata(path) {
                    Ok(m) if m.is_dir() => path.canonicalize().is_ok_and(|path| real.starts_with(path)),
                    Ok(m) => (m.dev(), m.ino()) == (found.dev(), found.ino()),
                    Err(_) => false,
                };
                if inputs.iter().any(same) {
                    return refuse(
                        "it is one of the input files; choose another name or pass `--in-place`",
                        input,
                    );
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return refuse(&error.to_string(), ErrorClass::of_io(&error)),
        }
        let directory = directory_of(target);
        match std::fs::metadata(&directory) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return refuse(&format!("{} is not a directory", shown(&directory)), input),
            Err(error) => {
                let what =
                    format!("its directory {} cannot be used ({error}); create it first", shown(&directory));
                return refuse(&what, ErrorClass::of_io(&error));
            }
        }
        // Permission bits do not tell the truth for root or read-only mounts: try.
        let (file, path) = open_temporary(&directory, target)?;
        drop(file);
        std::fs::remove_file(&path).map_err(|error| OutputError::io(target, error))
    }

    /// Checks that no two of several files that are to appear would be one.
    ///
    /// # Errors
    /// Names the second of them.
    pub fn check_distinct(targets: &[&Path]) -> Result<(), OutputError> {
        let place = |target: &Path| {
            let directory = directory_of(target);
            (directory.canonicalize().unwrap_or(directory), target.file_name().map(ToOwned::to_owned))
        };
        let mut places: Vec<_> = Vec::new();
        for target in targets {
            let place = place(target);
            if places.contains(&place) {
                return Err(OutputError::Target {
                    path: shown(target),
                    what: "another output of this run goes there too; choose another name".to_owned(),
                    class: ErrorClass::Input,
                });
            }
            places.push(place);
        }
        Ok(())
    }

    /// Starts a file that will appear at `target`.
    ///
    /// # Errors
    /// As [`OutFile::check`], without looking at inputs.
    pub fn create(target: &Path) -> Result<OutFile, OutputError> {
        OutFile::check(target, &[])?;
        let directory = directory_of(target);
        remove_stale(&directory, target);
        let (file, temporary) = open_temporary(&directory, target)?;
        Ok(OutFile { file: Some(file), temporary, target: target.to_owned() })
    }

    /// Checks that the disk has room for `bytes` more.
    ///
    /// # Errors
    /// With the bytes needed and free.
    pub fn reserve(&self, bytes: u64) -> Result<(), OutputError> {
        let Ok(stat) = rustix::fs::statvfs(directory_of(&self.target)) else { return Ok(()) };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < bytes {
            return Err(OutputError::Target {
                path: shown(&self.target),
                what: format!(
                    "{bytes} bytes are needed and {free} are free; make room or choose another disk"
                ),
                class: ErrorClass::Environment,
            });
        }
        Ok(())
    }

    /// The open file, for writing and copying into.
    pub fn file(&mut self) -> &mut File {
        self.file.as_mut().expect("open until committed")
    }

    /// Where it will appear.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where it lies until it appears.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Turns an error of the system into one that names the target.
    pub fn error(&self, source: io::Error) -> OutputError {
        OutputError::io(&self.target, source)
    }

    /// Syncs the contents without letting the file appear: for files that must be complete before another
    /// one that refers to them appears.
    ///
    /// # Errors
    /// When the system fails.
    pub fn sync(&mut self) -> Result<(), OutputError> {
        let result = self.file().sync_all();
        result.map_err(|error| self.error(error))
    }

    /// Syncs the file and lets it appear, replacing what was there.
    ///
    /// # Errors
    /// When the system fails; nothing has changed then.
    pub fn commit(mut self) -> Result<(), OutputError> {
        self.sync()?;
        self.file = None;
        std::fs::rename(&self.temporary, &self.target)
            .map_err(|error| OutputError::io(&self.target, error))?;
        // The rename itself must reach the disk too. Some file systems cannot sync directories: no harm.
        if let Ok(directory) = File::open(directory_of(&self.target)) {
            let _ = directory.sync_all();
        }
        self.temporary = PathBuf::new();
        Ok(())
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        self.file = None;
        if !self.temporary.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn directory_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// What temporary names of a target start with: short, so that long names stay within the limit.
fn prefix(target: &Path) -> std::ffi::OsString {
    let name = target.file_name().unwrap_or_default().as_bytes();
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(std::ffi::OsStr::from_bytes(name.get(..name.len().min(180)).unwrap_or_default()));
    prefix.push(".optix-tmp-");
    prefix
}

fn open_temporary(directory: &Path, target: &Path) -> Result<(File, PathBuf), OutputError> {
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut name = prefix(target);
        name.push(format!("{}-{number}", std::process::id()));
        let path = directory.join(name);
        match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => {
                if error.kind() == io::ErrorKind::InvalidFilename {
                    return Err(OutputError::Target {
                        path: shown(target),
                        what: "the name is too long".to_owned(),
                        class: ErrorClass::Input,
                    });
                }
                return Err(OutputError::io(target, error));
            }
        }
    }
}

/// Removes what killed runs left behind: temporary files of this target whose process is gone.
fn remove_stale(directory: &Path, target: &Path) {
    let prefix = prefix(target);
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.as_bytes().strip_prefix(prefix.as_bytes()) else { continue };
        let process =
            std::str::from_utf8(rest).ok().and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if process.is_some_and(|id| id != std::process::id() && !Path::new(&format!("/proc/{id}")).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("model.onnx");
        std::fs::write(&target, "old").unwrap();
        let mut file = OutFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        drop(file);
        assert_eq!(names(directory.path()), ["model.onnx"]);
        let mut file = OutFile::create(&target).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["model.onnx"]);
    }

    #[test]
    fn bad_targets_are_refused_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join("plain"), "x").unwrap();
        std::os::unix::fs::symlink(path.join("plain"), path.join("link")).unwrap();
        std::fs::hard_link(path.join("plain"), path.join("hard")).unwrap();
        let cases: &[(PathBuf, &str)] = &[
            (path.to_owned(), "directory"),
            (path.join("link"), "symbolic link"),
            (path.join("missing/out"), "create it first"),
            (path.join("plain/out"), ""),
            (PathBuf::from("/dev/null"), "device"),
            (PathBuf::new(), "not the name"),
            (path.join("x".repeat(4000)), ""),
        ];
        for (target, expected) in cases {
            let error = OutFile::create(target).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = OutFile::check(&path.join("hard"), &[&path.join("plain")]).unwrap_err();
        assert!(error.to_string().contains("--in-place"), "{error}");
        assert_eq!(error.class(), ErrorClass::Input);
        assert_eq!(names(path), ["hard", "link", "plain"]);
    }

    #[test]
    fn leftovers_of_dead_processes_go_and_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // No process has the greatest number the kernel allows plus one.
        std::fs::write(path.join(".out.optix-tmp-4194305-0"), "").unwrap();
        std::fs::write(path.join(".out.optix-tmp-1-0"), "").unwrap();
        std::fs::write(path.join(".other.optix-tmp-4194305-0"), "").unwrap();
        OutFile::create(&path.join("out")).unwrap().commit().unwrap();
        assert_eq!(names(path), [".other.optix-tmp-4194305-0", ".out.optix-tmp-1-0", "out"]);
    }
}
