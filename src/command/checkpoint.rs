//! `--checkpoint`: the state of training, kept on the way.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail};
use optix_base::escape_for_terminal;
use optix_pipeline::CheckpointStore;

use crate::report;

/// Bytes that a checkpoint may have: that of a model of 10 GiB has four times as many.
const MOST: u64 = 1 << 36;

/// The file of `--checkpoint`.
pub struct CheckpointFile {
    path: PathBuf,
}

impl CheckpointFile {
    /// A file that is there or is to be made.
    ///
    /// # Errors
    /// When what is there is no plain file.
    pub fn new(path: PathBuf) -> anyhow::Result<CheckpointFile> {
        let name = escape_for_terminal(&path.to_string_lossy()).into_owned();
        match std::fs::metadata(&path) {
            // Before it is opened: a pipe would wait for somebody to write, a device may never end.
            Ok(metadata) if !metadata.is_file() => bail!("--checkpoint {name}: it is no plain file"),
            Ok(metadata) if metadata.len() > MOST => {
                bail!("--checkpoint {name}: {} bytes are too many", metadata.len());
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("--checkpoint {name}: it cannot be read"));
            }
        }
        Ok(CheckpointFile { path })
    }
}

impl CheckpointStore for CheckpointFile {
    fn load(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut bytes = Vec::new();
        match std::fs::File::open(&self.path) {
            Ok(file) => match file.take(MOST).read_to_end(&mut bytes) {
                Ok(_) => Ok(Some(bytes)),
                Err(error) => Err(format!("{}: {error}", self.path.display())),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", self.path.display())),
        }
    }

    fn save(&mut self, bytes: &[u8]) -> Result<(), String> {
        report::write_file(&self.path, bytes).map_err(|error| format!("{error:#}"))
    }
}
