//! `--stats`: calibration statistics that outlive a run.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use optix_base::{OutFile, escape_for_terminal};
use optix_pipeline::KeptStatistics;

use crate::screen;

/// Bytes that a file of statistics may have: those of the largest models have some ten million.
const MOST: u64 = 1 << 28;

/// The files of `--stats`: all of them are there and are used, or the only one is not and is made.
pub struct StatisticsFiles {
    /// What passes get.
    pub kept: KeptStatistics,
    /// The file to make.
    pub make: Option<PathBuf>,
}

impl StatisticsFiles {
    /// Reads the files that are there; `None` when none are named.
    pub fn open(paths: &[PathBuf]) -> anyhow::Result<Option<StatisticsFiles>> {
        let mut kept = KeptStatistics::default();
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
                    return Ok(Some(StatisticsFiles { kept, make: Some(path.clone()) }));
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
            kept.given.push((name, bytes.into()));
        }
        Ok((!paths.is_empty()).then_some(StatisticsFiles { kept, make: None }))
    }

    /// Writes what the run gathered, where that was asked for.
    pub fn save(self) -> anyhow::Result<()> {
        let Some(path) = self.make else { return Ok(()) };
        match self.kept.made {
            Some(bytes) => write(&path, &bytes),
            None => {
                let name = escape_for_terminal(&path.to_string_lossy()).into_owned();
                screen::note(&format!("note: no step gathered statistics, so {name} is not made"));
                Ok(())
            }
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = OutFile::create(path)?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.commit()?)
}
