//! The lock of a run: what it takes to make the same file again without data or search.
//!
//! It is written beside the output. Two runs that make the same file from the same model, recipe and data make
//! the same lock: it holds no times, no paths of models and no command line.

use std::collections::BTreeMap;

use optix_base::{Limits, escape_for_terminal};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::changes::{Layer, Skip};
use crate::decisions::Decisions;
use crate::recipe::Recipe;
use crate::report::StepReport;

/// Version of the form of locks, raised when an older program would make another file from one.
pub const SCHEMA: &str = "optix-lock/1";

/// Locks larger than this are refused unread. One rounding bit for each weight of a model of a billion makes
/// a lock of 170 MB.
pub const MAX_BYTES: u64 = 256 << 20;

/// What it takes to make a file again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of optix that made the output.
    pub version: String,
    /// Engine, version and device that the decisions come from. Applying the lock needs none.
    pub engine: String,
    /// The recipe.
    pub recipe: LockedRecipe,
    /// The files of the model it was made from, the main one first.
    pub input: Vec<LockedFile>,
    /// The files of the output, in the order in which they appear: the one to load comes last, in a directory
    /// behind its weights.
    pub output: Vec<LockedFile>,
    /// Whether tensors of 1 KiB and more were put into a file beside the model (`--external-data`).
    pub external_data: bool,
    /// Limits that were not the usual ones (`--limits`): some decide what is computed ahead.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub limits: String,
    /// Rewrites after which the run was stopped (`--stop-after-patch`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_after_patch: Option<u64>,
    /// The data that decisions come from.
    pub data: Vec<LockedData>,
    /// The steps of the recipe.
    pub steps: Vec<LockedStep>,
}

/// A recipe and its hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LockedRecipe {
    /// The recipe in full, as TOML. Its paths are relative to the directory the command ran in.
    pub toml: String,
    /// BLAKE3 of that text.
    pub blake3: String,
}

/// A file and its hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LockedFile {
    /// Its name, without directories.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its content.
    pub blake3: String,
}

/// Data and their hash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LockedData {
    /// `calibration`, or `statistics` for a file of calibration statistics that was used instead.
    pub role: String,
    /// Path as given.
    pub path: String,
    /// Samples read.
    pub samples: u64,
    /// BLAKE3 of the hashes of these samples, one behind the other, in the order they were read. A sample's hash
    /// is that of its content before any preprocessing. Of statistics, that of the file.
    pub blake3: String,
}

impl LockedData {
    /// A file of calibration statistics.
    pub fn of_statistics(path: &str, samples: u64, content: &[u8]) -> LockedData {
        let blake3 = blake3::hash(content).to_hex().to_string();
        LockedData { role: "statistics".to_owned(), path: path.to_owned(), samples, blake3 }
    }
}

/// What one step decided and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LockedStep {
    /// Id of the step.
    pub id: String,
    /// Its pass.
    pub pass: String,
    /// What it learned from data or by search, by key: all that applying the lock needs.
    pub decisions: Decisions,
    /// The layer ledger, for people.
    pub layers: Vec<Layer>,
    /// Nodes left alone, for people.
    pub skips: Vec<Skip>,
}

/// A lock that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// It is no lock.
    #[error("it is not a lock, or damaged: {0}")]
    Damaged(String),
    /// It is a lock of another form.
    #[error(
        "it is a lock of the form `{0}`; this program reads {SCHEMA}: use the version of optix that wrote it"
    )]
    Schema(String),
    /// Its recipe is not the one it was written with.
    #[error(
        "its recipe was changed after it was written (OX-L001): run the changed recipe and take the lock of that run"
    )]
    Recipe,
    /// Its steps are not those of its recipe.
    #[error("its steps are not those of its recipe: it was changed after it was written")]
    Steps,
    /// The limits are others.
    #[error("it was made with {}: give the same limits", limits(.0))]
    Limits(String),
    /// The model is another one.
    #[error(
        "it was made from another model (OX-L001): {name} has BLAKE3 {found}, and the lock says {expected} of {locked}"
    )]
    Input {
        /// The file given.
        name: String,
        /// Its hash.
        found: String,
        /// The hash wanted.
        expected: String,
        /// The file's name in the lock.
        locked: String,
    },
    /// The model has more or fewer files.
    #[error(
        "it was made from another model (OX-L001): one of {expected} files, and the one given has {found}"
    )]
    InputFiles {
        /// Files of the model that was locked.
        expected: usize,
        /// Files of the model given.
        found: usize,
    },
    /// What came out is not what was locked.
    #[error(
        "the result is not the file that was locked (OX-L001): {name} has BLAKE3 {found}, and the lock says {expected}; {why}"
    )]
    Output {
        /// The file.
        name: String,
        /// Its hash.
        found: String,
        /// The hash wanted.
        expected: String,
        /// What the reason may be.
        why: String,
    },
    /// What came out has another number of files.
    #[error("the result has {found} files, and the lock says {expected} (OX-L001); {why}")]
    OutputFiles {
        /// Files locked.
        expected: usize,
        /// Files made.
        found: usize,
        /// What the reason may be.
        why: String,
    },
}

fn limits(changed: &str) -> String {
    if changed.is_empty() { "the usual limits".to_owned() } else { format!("`--limits {}`", shown(changed)) }
}

/// Limits that are not the usual ones, as `--limits` takes them.
pub fn changed_limits(limits: &Limits) -> String {
    let usual = Limits::default().entries();
    let changed = limits.entries().into_iter().filter(|entry| !usual.contains(entry));
    changed.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

fn shown(text: &str) -> String {
    let start: String = text.chars().take(200).collect();
    escape_for_terminal(&start).into_owned()
}

impl Lock {
    /// Reads a lock.
    ///
    /// # Errors
    /// When it is damaged, of another form, or its recipe was changed.
    pub fn parse(bytes: &[u8]) -> Result<Lock, LockError> {
        /// What all forms have in common.
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let damaged = |error: serde_json::Error| LockError::Damaged(shown(&error.to_string()));
        let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
        if head.schema != SCHEMA {
            return Err(LockError::Schema(shown(&head.schema)));
        }
        let lock: Lock = serde_json::from_slice(bytes).map_err(damaged)?;
        if lock.recipe != LockedRecipe::of(lock.recipe.toml.clone()) {
            return Err(LockError::Recipe);
        }
        Ok(lock)
    }

    /// Its decisions by step, once it is sure that its steps are those of its recipe.
    ///
    /// # Errors
    /// When they are not.
    pub fn decisions(&self, recipe: &Recipe) -> Result<BTreeMap<String, Decisions>, LockError> {
        let same = self.steps.len() == recipe.steps.len()
            && self
                .steps
                .iter()
                .zip(&recipe.steps)
                .all(|(locked, step)| locked.id == step.id && locked.pass == step.spec.name);
        if !same {
            return Err(LockError::Steps);
        }
        Ok(self.steps.iter().map(|step| (step.id.clone(), step.decisions.clone())).collect())
    }

    /// Checks that the limits are those it was made with.
    ///
    /// # Errors
    /// When they are not.
    pub fn check_limits(&self, limits: &Limits) -> Result<(), LockError> {
        if changed_limits(limits) == self.limits {
            Ok(())
        } else {
            Err(LockError::Limits(self.limits.clone()))
        }
    }

    /// Checks that a model is the one it was made from.
    ///
    /// # Errors
    /// Names the first file that is not.
    pub fn check_input(&self, files: &[LockedFile]) -> Result<(), LockError> {
        if files.len() != self.input.len() {
            return Err(LockError::InputFiles { expected: self.input.len(), found: files.len() });
        }
        match differing(files, &self.input) {
            None => Ok(()),
            Some((found, locked)) => Err(LockError::Input {
                name: shown(&found.name),
                found: found.blake3.clone(),
                expected: shown(&locked.blake3),
                locked: shown(&locked.name),
            }),
        }
    }

    /// Checks that what `version` of optix made is what was locked.
    ///
    /// # Errors
    /// Names the first file that is not, and what the reason may be.
    pub fn check_output(&self, files: &[LockedFile], version: &str) -> Result<(), LockError> {
        let why = || {
            if self.version == version {
                "the lock was changed after it was written, or the machines compute differently".to_owned()
            } else {
                format!(
                    "it was made by optix {} and this is {version}: use that version",
                    shown(&self.version)
                )
            }
        };
        if files.len() != self.output.len() {
            let (expected, found) = (self.output.len(), files.len());
            return Err(LockError::OutputFiles { expected, found, why: why() });
        }
        match differing(files, &self.output) {
            None => Ok(()),
            Some((found, locked)) => Err(LockError::Output {
                name: shown(&found.name),
                found: found.blake3.clone(),
                expected: shown(&locked.blake3),
                why: why(),
            }),
        }
    }

    /// JSON schema of locks.
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Lock).to_value()
    }
}

/// The first file that is not what was locked. Names are for people: a file may be called differently.
fn differing<'a>(
    files: &'a [LockedFile],
    locked: &'a [LockedFile],
) -> Option<(&'a LockedFile, &'a LockedFile)> {
    files
        .iter()
        .zip(locked)
        .find(|(file, locked)| (file.bytes, &file.blake3) != (locked.bytes, &locked.blake3))
}

impl LockedRecipe {
    /// A recipe with its hash.
    pub fn of(toml: String) -> LockedRecipe {
        let blake3 = blake3::hash(toml.as_bytes()).to_hex().to_string();
        LockedRecipe { toml, blake3 }
    }
}

impl From<&StepReport> for LockedStep {
    fn from(step: &StepReport) -> LockedStep {
        LockedStep {
            id: step.id.clone(),
            pass: step.pass.clone(),
            decisions: step.decisions.clone(),
            layers: step.changes.layers.clone(),
            skips: step.changes.skips.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, blake3: &str) -> LockedFile {
        LockedFile { name: name.into(), bytes: 3, blake3: blake3.into() }
    }

    fn lock() -> Lock {
        Lock {
            schema: SCHEMA.into(),
            version: "1.2.3".into(),
            recipe: LockedRecipe::of("version = 1\n".into()),
            input: vec![file("a.onnx", "aa")],
            output: vec![file("b.onnx", "bb")],
            ..Lock::default()
        }
    }

    #[test]
    fn a_lock_reads_back() {
        let text = serde_json::to_string_pretty(&lock()).unwrap();
        assert_eq!(Lock::parse(text.as_bytes()).unwrap(), lock());
        for length in 0..text.len() {
            let error = Lock::parse(&text.as_bytes()[..length]).unwrap_err();
            assert!(matches!(error, LockError::Damaged(_)), "{length}: {error}");
        }
        let changed = text.replace("version = 1", "version = 2");
        assert_eq!(Lock::parse(changed.as_bytes()), Err(LockError::Recipe));
        let other = text.replace(SCHEMA, "optix-lock/99").replace("\"engine\"", "\"device\"");
        assert_eq!(Lock::parse(other.as_bytes()), Err(LockError::Schema("optix-lock/99".into())));
        let unknown = text.replace("\"engine\"", "\"motor\"");
        assert!(matches!(Lock::parse(unknown.as_bytes()), Err(LockError::Damaged(_))));
    }

    #[test]
    fn other_files_are_told_apart() {
        let lock = lock();
        lock.check_input(&[file("renamed.onnx", "aa")]).unwrap();
        let error = lock.check_input(&[file("a.onnx", "cc")]).unwrap_err().to_string();
        assert!(error.contains("another model") && error.contains("aa") && error.contains("cc"), "{error}");
        assert!(lock.check_input(&[file("a.onnx", "aa"), file("a.data", "dd")]).is_err());
        let longer = LockedFile { bytes: 4, ..file("a.onnx", "aa") };
        assert!(lock.check_input(&[longer]).is_err());
        let other = Limits { folded_bytes: 7, ..Limits::default() };
        lock.check_limits(&Limits::default()).unwrap();
        assert!(lock.check_limits(&other).unwrap_err().to_string().contains("the usual limits"));
        let lock = Lock { limits: changed_limits(&other), ..lock };
        lock.check_limits(&other).unwrap();
        let error = lock.check_limits(&Limits::default()).unwrap_err().to_string();
        assert!(error.contains("`--limits folded-bytes=7`"), "{error}");
        lock.check_output(&[file("x", "bb")], "1.2.3").unwrap();
        lock.check_output(&[file("x", "bb")], "9.9.9").unwrap();
        let error = lock.check_output(&[file("x", "xx")], "1.2.3").unwrap_err().to_string();
        assert!(error.contains("was changed"), "{error}");
        let error = lock.check_output(&[], "9.9.9").unwrap_err().to_string();
        assert!(error.contains("1.2.3") && error.contains("9.9.9"), "{error}");
    }
}
