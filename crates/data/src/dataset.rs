//! A data set: a source, the selection of its samples, and the steps for each input.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use optix_base::Limits;
use optix_ir::{DType, Dim};

use crate::bind::Bound;
use crate::error::{DataError, SpecError};
use crate::source::{self, Kind, Opened, Sample, Settings, Source};
use crate::spec::DataSpec;

/// How a data set is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// What hostile files may make us do.
    pub limits: Limits,
    /// Use at most so many samples, whatever the specification says. With `sample` in it: so many are drawn.
    pub take: Option<u64>,
    /// Whether a `data.toml` may run the command in it. `cmd:` given by the user needs no leave.
    pub allow_commands: bool,
    /// Whether samples that cannot be read are passed over where the first one is looked for. A check of
    /// the data wants to find all of them.
    pub keep_going: bool,
}

/// An input of a model, as far as data are concerned.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its dimensions, the batch axis included.
    pub shape: Vec<Dim>,
}

/// One array of a source, as its first sample has it.
#[derive(Clone, Debug, PartialEq)]
pub struct ArrayInfo {
    /// Its name in the source; empty for the only array of a source without names.
    pub name: String,
    /// Its element type, before any step.
    pub dtype: DType,
    /// The shape of one sample, before any step.
    pub shape: Vec<usize>,
}

/// A data set, opened and looked at. Cheap to clone; every stream of samples starts anew.
#[derive(Clone, Debug)]
pub struct Dataset {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    spec: Arc<DataSpec>,
    kind: Kind,
    limits: Limits,
    opened: Arc<dyn Opened>,
    /// Samples of the source, before any selection.
    source_count: u64,
    arrays: Vec<ArrayInfo>,
    is_ordered: bool,
    has_labels: bool,
    keep_going: bool,
}

/// Names of arrays that are taken for the text when none is named.
const TEXT_NAMES: [&str; 6] = ["text", "sentence", "sentence1", "question", "input", "content"];

/// Samples that may be damaged before the first good one, where they are passed over.
const MOST_BROKEN: u64 = 10_000;

/// Of these, the ones that are named.
const NAMED: usize = 20;

/// The first sample; with `keep_going` the first that can be read.
fn first_of(path: &Path, source: &mut dyn Source, keep_going: bool) -> Result<Sample, DataError> {
    let tries = if keep_going && source.is_resumable() { source.count().min(MOST_BROKEN) } else { 1 };
    let mut errors = Vec::new();
    for _ in 0..tries {
        match source.next() {
            Ok(sample) => return Ok(sample),
            Err(error) if tries == 1 => return Err(error),
            Err(error) => errors.push(error),
        }
    }
    let mut what = format!("none of its first {tries} samples can be used");
    for error in errors.iter().take(NAMED) {
        what.push_str(&format!("\n  {error}"));
    }
    if errors.len() > NAMED {
        what.push_str(&format!("\n  and {} more", errors.len().saturating_sub(NAMED)));
    }
    Err(DataError::Mismatch { path: crate::error::shown(path), what })
}

impl Dataset {
    /// Opens what a user named: a `data.toml`, a data file or directory, or `kind:path?key=value`; see
    /// [`DataSpec::read`].
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or selects no samples.
    pub fn open(given: &str, options: &OpenOptions) -> Result<Dataset, DataError> {
        Self::from_spec(DataSpec::read(given)?, options)
    }

    /// Opens what a specification describes.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn from_spec(mut spec: DataSpec, options: &OpenOptions) -> Result<Dataset, DataError> {
        if let Some(take) = options.take {
            let limit = if spec.sample.is_some() { &mut spec.sample } else { &mut spec.take };
            *limit = Some(limit.map_or(take, |known| known.min(take)));
        }
        let kind = match spec.kind {
            Some(kind) if !kind.has_path() => kind,
            Some(kind) => {
                std::fs::metadata(&spec.path).map_err(|error| DataError::read(&spec.path, error))?;
                kind
            }
            None => source::sniff(&spec.path)?,
        };
        for (key, kinds) in spec.options.given() {
            if !kinds.contains(&kind) {
                let takers: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
                let origin = crate::error::shown(spec.file.as_deref().unwrap_or(&spec.path));
                let message = format!(
                    "`{key}` has no meaning for data of kind {}: it is for {}",
                    kind.name(),
                    takers.join(", ")
                );
                return Err(SpecError { origin, line_column: None, message, excerpt: String::new() }.into());
            }
        }
        if let (Kind::Command, Some(file), false) = (kind, &spec.file, options.allow_commands) {
            let what = format!(
                "it would run `{}`: `--allow-commands` lets a data.toml do so, if you trust it",
                spec.options.command.join(" ")
            );
            return Err(DataError::invalid(file, "", what));
        }
        let limits = options.limits;
        let spec = Arc::new(spec);
        let opened = source::open(kind, Settings { spec: Arc::clone(&spec), limits })?;
        Self::looked_at(spec, kind, limits, opened, options.keep_going)
    }

    /// Looks at the first sample.
    fn looked_at(
        spec: Arc<DataSpec>,
        kind: Kind,
        limits: Limits,
        opened: Arc<dyn Opened>,
        keep_going: bool,
    ) -> Result<Dataset, DataError> {
        let mut source = opened.stream()?;
        let source_count = source.count();
        if source_count == 0 {
            return Err(DataError::invalid(&spec.path, "", "it has no samples"));
        }
        if selected(&spec, source_count) == Some(0) {
            let what =
                format!("no samples are left: it has {source_count}, and `skip` and `take` select none");
            return Err(DataError::invalid(&spec.path, "", what));
        }
        let first = first_of(&spec.path, &mut *source, keep_going)?;
        let infos = source.arrays().iter().zip(&first.tensors).map(|(name, tensor)| ArrayInfo {
            name: name.clone(),
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
        });
        let arrays = infos.collect();
        let (is_ordered, has_labels) = (source.is_ordered(), first.label.is_some());
        let inner =
            Inner { spec, kind, limits, opened, source_count, arrays, is_ordered, has_labels, keep_going };
        Ok(Dataset { inner: Arc::new(inner) })
    }

    /// What it was opened from.
    pub fn spec(&self) -> &DataSpec {
        &self.inner.spec
    }

    /// The kind of its source.
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// The data file or directory.
    pub fn path(&self) -> &Path {
        &self.inner.spec.path
    }

    /// Arrays of a sample, before any step; labels are not among them.
    pub fn arrays(&self) -> &[ArrayInfo] {
        &self.inner.arrays
    }

    /// The files and directories it is read from: what no output may replace.
    pub fn files(&self) -> Vec<PathBuf> {
        let spec = &self.inner.spec;
        let mut files = if self.inner.kind.has_path() { vec![spec.path.clone()] } else { Vec::new() };
        files.extend(spec.file.clone());
        files.extend(source::labels_file(self.inner.kind, &spec.path, spec.labels.as_deref(), &spec.base));
        files
    }

    /// Whether samples have labels.
    pub fn has_labels(&self) -> bool {
        self.inner.has_labels
    }

    /// Names of the classes, in the order of their numbers; empty where labels are numbers or none.
    pub fn classes(&self) -> &[String] {
        self.inner.opened.classes()
    }

    /// The name of a class, where classes have names.
    pub fn class_name(&self, class: i64) -> Option<&str> {
        self.classes().get(usize::try_from(class).ok()?).map(String::as_str)
    }

    /// What the user should know of the source.
    pub fn notes(&self) -> Vec<String> {
        self.inner.opened.notes()
    }

    /// The limits it was opened with.
    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Whether arrays go to inputs by position where their names say nothing.
    pub(crate) fn is_ordered(&self) -> bool {
        self.inner.is_ordered
    }

    /// Number of samples it yields; `None` when only a pass over the data tells (`split`).
    pub fn len(&self) -> Option<u64> {
        selected(&self.inner.spec, self.inner.source_count)
    }

    /// Never: a data set without samples does not open.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Path, kind and size, for reports.
    pub fn describe(&self) -> String {
        let count = self.len().unwrap_or(self.inner.source_count);
        let text = source::describe(self.path(), self.kind(), count);
        if self.len().is_none() { text.replacen(", ", ", a split of ", 1) } else { text }
    }

    /// The first sample; see [`OpenOptions::keep_going`].
    pub(crate) fn first(&self) -> Result<Sample, DataError> {
        let mut samples = self.samples()?;
        loop {
            match samples.next() {
                Some(Ok((sample, _))) => return Ok(sample),
                Some(Err(error)) if !self.inner.keep_going || !samples.resume() => return Err(error),
                Some(Err(_)) => {}
                None => return Err(self.complain("it has no samples")),
            }
        }
    }

    /// The array that holds the text, when there is one that plainly does.
    pub(crate) fn text_array(&self) -> Option<usize> {
        let is_text = |info: &&ArrayInfo| info.dtype == DType::String;
        let texts = self.inner.arrays.iter().filter(is_text);
        let named = |name: &&str| self.inner.arrays.iter().position(|info| info.name == *name);
        let lone = || self.inner.arrays.iter().position(|info| info.dtype == DType::String);
        TEXT_NAMES.iter().find_map(named).or_else(|| if texts.count() == 1 { lone() } else { None })
    }

    /// Whether it is drawn at random: good for latency, and for nothing that is said about accuracy.
    pub fn is_synthetic(&self) -> bool {
        self.inner.kind == Kind::Random
    }

    /// The data set with random samples in the shapes of these inputs; any other one as it is.
    fn drawn_for(&self, inputs: &[InputSpec]) -> Result<Dataset, DataError> {
        if !self.is_synthetic() {
            return Ok(self.clone());
        }
        let Inner { spec, limits, .. } = &*self.inner;
        let opened = source::open_random(Settings { spec: Arc::clone(spec), limits: *limits }, Some(inputs))?;
        Self::looked_at(Arc::clone(spec), self.inner.kind, *limits, opened, false)
    }

    /// Matches the data with a model's inputs; `batch` is the greatest number of samples fed together (at
    /// least 1).
    ///
    /// # Errors
    /// When names, types, ranks or sizes do not fit: with a table of both sides and what to do.
    pub fn bind(&self, inputs: &[InputSpec], batch: usize) -> Result<Bound, DataError> {
        Bound::new(&self.drawn_for(inputs)?, inputs, batch)
    }

    /// Content hashes of all samples, in order; see [`crate::Batch::hashes`].
    ///
    /// # Errors
    /// When the source cannot be opened again.
    pub fn hashes(&self) -> Result<impl Iterator<Item = Result<[u8; 32], DataError>> + use<>, DataError> {
        let mut samples = self.samples()?;
        Ok(std::iter::from_fn(move || samples.next().map(|sample| sample.map(|(_, hash)| hash))))
    }

    /// A fresh stream of the selected samples.
    pub(crate) fn samples(&self) -> Result<Samples, DataError> {
        let Inner { spec, opened, .. } = &*self.inner;
        let mut source = opened.stream()?;
        if source.count() != self.inner.source_count {
            let what = "the file changed while it was in use; run again when nothing writes to it";
            return Err(DataError::invalid(&spec.path, "", what));
        }
        let mut at = 0;
        // With a split, the samples passed over are counted among those of the split.
        if spec.split.is_none() && spec.skip > 0 {
            at = spec.skip.min(source.count());
            source.skip(at)?;
        }
        let random = blake3::Hasher::new_derive_key("optix: samples drawn from a data set")
            .update(&spec.seed.to_le_bytes())
            .finalize_xof();
        Ok(Samples {
            dataset: self.clone(),
            skip: if spec.split.is_some() { spec.skip } else { 0 },
            wanted: self.len().or(spec.take),
            source,
            at,
            taken: 0,
            random,
            done: false,
        })
    }

    /// A complaint about the specification as a whole.
    pub(crate) fn complain(&self, what: impl AsRef<str>) -> DataError {
        DataError::Mismatch {
            path: crate::error::shown(self.path()),
            what: crate::error::escape_lines(what.as_ref()),
        }
    }

    /// A complaint about a step, with the line it stands in.
    pub(crate) fn step_error(&self, line: Option<usize>, message: String) -> DataError {
        match self.spec_error(message) {
            DataError::Spec(mut error) => {
                if let Some(line) = line {
                    error.origin = format!("{}:{line}", error.origin);
                }
                error.into()
            }
            other => other,
        }
    }

    pub(crate) fn spec_error(&self, message: String) -> DataError {
        let origin = crate::error::shown(self.spec().file.as_deref().unwrap_or(self.path()));
        let message = crate::error::escape_lines(&message);
        SpecError { origin, line_column: None, message, excerpt: String::new() }.into()
    }
}

/// Number of samples a selection leaves of `count`.
fn selected(spec: &DataSpec, count: u64) -> Option<u64> {
    let left = count.saturating_sub(spec.skip);
    match (spec.split, spec.take.or(spec.sample)) {
        (Some(_), _) => None,
        (None, Some(limit)) => Some(left.min(limit)),
        (None, None) => Some(left),
    }
}

/// Whether a hash falls into a part of the hash space.
fn in_split(hash: &[u8; 32], (from, to): (f64, f64)) -> bool {
    let [a, b, c, d, e, f, ..] = *hash;
    // 48 bits: exact in a double.
    let place = u64::from_be_bytes([0, 0, a, b, c, d, e, f]) as f64 / (1u64 << 48) as f64;
    from <= place && place < to
}

/// The selected samples of a data set, with their hashes.
pub(crate) struct Samples {
    dataset: Dataset,
    source: Box<dyn Source>,
    /// Samples of a split still to pass over.
    skip: u64,
    /// Samples to yield; `None` for all.
    wanted: Option<u64>,
    /// Index in the source.
    at: u64,
    taken: u64,
    random: blake3::OutputReader,
    done: bool,
}

impl Samples {
    /// Index of the next sample among those yielded.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether nothing more comes, if only because of an error.
    pub(crate) fn is_over(&self) -> bool {
        self.done
    }

    /// Whether samples are left that have not been read.
    pub(crate) fn has_more(&self) -> bool {
        self.at < self.source.count()
    }

    /// Goes on behind an error, where the source can.
    pub(crate) fn resume(&mut self) -> bool {
        self.done = !self.source.is_resumable();
        !self.done
    }

    fn advance(&mut self) -> Result<Option<(Sample, [u8; 32])>, DataError> {
        let count = self.source.count();
        while self.at < count && self.wanted.is_none_or(|wanted| self.taken < wanted) {
            if self.dataset.spec().sample.is_some() && !self.draw(count) {
                self.source.skip(1)?;
                self.at = self.at.saturating_add(1);
                continue;
            }
            self.at = self.at.saturating_add(1);
            let sample = self.source.next()?;
            let hash = source::hash(self.source.arrays(), &sample);
            if self.dataset.spec().split.is_some_and(|split| !in_split(&hash, split)) {
                continue;
            }
            if self.skip > 0 {
                self.skip = self.skip.saturating_sub(1);
                continue;
            }
            self.taken = self.taken.saturating_add(1);
            return Ok(Some((sample, hash)));
        }
        if self.at == count {
            self.source.finish()?;
        }
        if self.taken == 0 {
            let what = "no samples are left: none falls into `split` behind `skip`";
            return Err(DataError::invalid(self.dataset.path(), "", what));
        }
        Ok(None)
    }

    /// Selection sampling (Knuth, The Art of Computer Programming 3.4.2, algorithm S): takes each sample
    /// with the probability that those still wanted have among those still to come.
    fn draw(&mut self, count: u64) -> bool {
        let left = u128::from(count.saturating_sub(self.at));
        let wanted = u128::from(self.wanted.unwrap_or(u64::MAX).saturating_sub(self.taken));
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes);
        u128::from(u64::from_le_bytes(bytes)).saturating_mul(left) >> 64 < wanted
    }
}

impl Iterator for Samples {
    type Item = Result<(Sample, [u8; 32]), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}
