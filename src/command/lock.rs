//! Locks: written beside the outputs of runs, read by `apply`.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use optix_base::OutFile;
use optix_io::{Loaded, Prepared};
use optix_pipeline::Recipe;
use optix_pipeline::lock::{
    Lock, LockedData, LockedFile, LockedRecipe, LockedStep, MAX_BYTES, SCHEMA, changed_limits,
};
use optix_pipeline::report::StepReport;

use super::setup::{self, CalibrationData};
use super::statistics::StatisticsFiles;
use crate::screen;
use optix::cli::{Global, Locking};

/// Where the lock of an output goes, when it is wanted.
pub fn path(output: &Path, locking: Locking) -> Option<PathBuf> {
    if locking == Locking::Never {
        return None;
    }
    let mut name = output.file_name()?.to_owned();
    name.push(".lock.json");
    Some(output.with_file_name(name))
}

/// Checks that a lock can be written, before the work that it is about.
pub fn check_target(path: &Path, inputs: &[&Path]) -> anyhow::Result<()> {
    OutFile::check(path, inputs)
        .context("the lock cannot be written beside the output: `--lock never` does without")
}

/// A run that was made.
pub struct Made<'a> {
    pub recipe: &'a Recipe,
    pub engine: &'a str,
    pub steps: &'a [StepReport],
    pub input: &'a Loaded,
    pub output: &'a Prepared,
    pub external_data: bool,
    pub stop_after_patch: Option<u64>,
    pub calibration: Option<&'a CalibrationData>,
    pub statistics: Option<&'a StatisticsFiles>,
}

/// The lock of a run.
pub fn make(global: &Global, made: &Made<'_>) -> anyhow::Result<Lock> {
    let data = made.calibration.and_then(|calibration| {
        let digest = calibration.digest()?;
        Some(LockedData {
            role: "calibration".to_owned(),
            path: calibration.path.clone(),
            samples: digest.samples(),
            blake3: digest.blake3(),
        })
    });
    let statistics = made.statistics.into_iter().flat_map(StatisticsFiles::used);
    let statistics =
        statistics.map(|(path, samples, content)| LockedData::of_statistics(path, samples, content));
    Ok(Lock {
        schema: SCHEMA.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        engine: made.engine.to_owned(),
        recipe: LockedRecipe::of(made.recipe.to_toml()),
        input: input_files(made.input)?,
        output: output_files(made.output)?,
        external_data: made.external_data,
        limits: changed_limits(&setup::limits(global)?),
        stop_after_patch: made.stop_after_patch,
        data: data.into_iter().chain(statistics).collect(),
        steps: made.steps.iter().map(LockedStep::from).collect(),
    })
}

/// Writes a lock that has yet to appear.
pub fn prepare(lock: &Lock, path: &Path) -> anyhow::Result<OutFile> {
    let mut file = OutFile::create(path)?;
    let text = screen::json_text(lock) + "\n";
    file.write_all(text.as_bytes()).map_err(|error| file.error(error))?;
    file.sync()?;
    Ok(file)
}

/// Reads a lock.
pub fn read(path: &Path) -> anyhow::Result<Lock> {
    let bytes = setup::read_whole(path, "lock", MAX_BYTES)?;
    Lock::parse(&bytes).with_context(|| in_lock(path))
}

/// What errors about a lock begin with.
pub fn in_lock(path: &Path) -> String {
    format!("lock {}", optix_base::escape_for_terminal(&path.to_string_lossy()))
}

/// The files a model was loaded from.
pub fn input_files(loaded: &Loaded) -> anyhow::Result<Vec<LockedFile>> {
    let files = loaded.sources.iter().map(|source| {
        let name = name_of(source.path());
        Ok(LockedFile { name, bytes: source.size(), blake3: source.blake3()? })
    });
    files.collect()
}

/// The files that are about to appear.
pub fn output_files(prepared: &Prepared) -> anyhow::Result<Vec<LockedFile>> {
    let files = prepared.hashes()?.into_iter().map(|file| {
        let name = name_of(&file.path);
        LockedFile { name, bytes: file.bytes, blake3: file.blake3 }
    });
    Ok(files.collect())
}

fn name_of(path: &Path) -> String {
    path.file_name().map(OsStr::to_string_lossy).unwrap_or_default().into_owned()
}
