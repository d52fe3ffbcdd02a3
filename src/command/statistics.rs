//! `--stats`: calibration statistics that outlive a run.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use optix_base::escape_for_terminal;
use optix_pipeline::StatisticsStore;

use crate::{report, screen};

/// Bytes that a file of statistics may have: those of the largest models have some ten million.
const MOST: u64 = 1 << 28;

/// The files of `--stats`: all of them are there and are used, or the only one is not and is made.
pub struct StatisticsFiles {
    /// What is there: names and contents.
    given: Vec<(String, Vec<u8>)>,
    /// The file to make.
    pub make: Option<PathBuf>,
    is_made: bool,
    /// Whether a step has taken what is given.
    is_taken: bool,
}

impl StatisticsFiles {
    /// Reads the files that are there; `None` when none are named.
    pub fn open(paths: &[PathBuf]) -> anyhow::Result<Option<StatisticsFiles>> {
        let mut given = Vec::new();
        for path in paths {
            let name = escape_for_terminal(&path.to_string_lossy()).into_owned();
            let metadata = match std::fs::metadata(path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    if paths.len() > 1 {
                        bail!(
                            "--stats {name}: there is no such file; one alone is made, several are put together"
                        );
                    }
                    return Ok(Some(StatisticsFiles {
                        given,
                        make: Some(path.clone()),
                        is_made: false,
                        is_taken: false,
                    }));
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("--stats {name}: it cannot be read"));
                }
            };
            // Before it is opened: a pipe would wait for somebody to write, a device may never end.
            if !metadata.is_file() {
                bail!("--stats {name}: it is no plain file");
            }
            if metadata.len() > MOST {
                bail!("--stats {name}: {} bytes are too many for calibration statistics", metadata.len());
            }
            let mut bytes = Vec::new();
            std::fs::File::open(path)
                .and_then(|file| file.take(MOST).read_to_end(&mut bytes))
                .with_context(|| format!("--stats {name}: it cannot be read"))?;
            given.push((name, bytes));
        }
        Ok((!paths.is_empty()).then_some(StatisticsFiles {
            given,
            make: None,
            is_made: false,
            is_taken: false,
        }))
    }

    /// The files that took the place of data: name, samples and content.
    pub fn used(&self) -> impl Iterator<Item = (&str, u64, &[u8])> {
        self.given.iter().filter(|_| self.is_taken).map(|(name, bytes)| {
            let samples = optix_passes::quantize::samples_in_statistics(bytes).unwrap_or(0);
            (name.as_str(), samples, bytes.as_slice())
        })
    }

    /// The file that was made.
    pub fn made(&self) -> Option<&Path> {
        self.make.as_deref().filter(|_| self.is_made)
    }

    /// Says so where a file was to be made and no step had something to keep.
    pub fn note_unmade(&self) {
        if let Some(path) = self.make.as_ref().filter(|_| !self.is_made) {
            let name = escape_for_terminal(&path.to_string_lossy()).into_owned();
            screen::note(&format!("note: no step gathered statistics, so {name} is not made"));
        }
    }
}

impl StatisticsStore for StatisticsFiles {
    fn given(&self) -> &[(String, Vec<u8>)] {
        &self.given
    }

    fn take(&mut self) -> &[(String, Vec<u8>)] {
        self.is_taken = true;
        &self.given
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), String> {
        if let Some(path) = &self.make {
            report::write_file(path, bytes).map_err(|error| format!("{error:#}"))?;
            self.is_made = true;
        }
        Ok(())
    }
}
