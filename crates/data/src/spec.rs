//! `data.toml`: what a data set is and what is done to each sample before it is fed.
//!
//! ```toml
//! [source]                      # kind: see [`Kind`]; paths relative to this file
//! kind = "idx"                  # found out from the contents when left out
//! path = "train-images-idx3-ubyte.gz"
//! labels = "train-labels-idx1-ubyte.gz"   # a file; for npz and npy directories the name of an array
//! skip = 100                    # passes over the first samples
//! take = 512                    # and uses so many of the rest
//! # sample = 512                # instead of take: so many drawn at random, in their order,
//! # seed = 0                    # always the same ones for the same seed
//! # split = [0.0, 0.8]          # only samples whose content hash falls there, as a share of 1: data sets
//!                               # with [0.0, 0.8] and [0.8, 1.0] never share a sample
//! [input.image]                 # one table per model input; a single-input model may use [input] alone
//! steps = [ { to-float = {} }, { scale = 0.003921569 }, { layout = "nchw" } ]
//! # augment = ["flip"]          # changes of pictures for whoever trains on them: see [`Augmentation`]
//! # from = "x"                  # the source's name of the array, where it is another than the input's
//! ```
//!
//! The steps are those of [`Step`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use optix_base::escape_for_terminal;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::augment::Augmentation;
use crate::error::{DataError, SpecError, shown};
use crate::input::{open_plain, read_at_most};
use crate::source::{Classes, Columns, Kind, SourceOptions};
use crate::steps::{Step, TypeName};

/// Specifications larger than this are refused unread: no honest one comes near.
pub const MAX_SPEC_BYTES: u64 = 1 << 20;

/// What a data set is: a parsed `data.toml`, or what stands for it when only a path is given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataSpec {
    /// The `data.toml`; `None` when there is only a path.
    pub file: Option<PathBuf>,
    /// The kind; `None` to find it out from the contents.
    pub kind: Option<Kind>,
    /// The data file or directory.
    pub path: PathBuf,
    /// Labels: a file relative to `base`, or the name of an array.
    pub labels: Option<String>,
    /// What relative label files are relative to.
    pub base: PathBuf,
    /// Samples passed over first.
    pub skip: u64,
    /// At most so many samples.
    pub take: Option<u64>,
    /// So many samples drawn at random.
    pub sample: Option<u64>,
    /// Seed of that draw.
    pub seed: u64,
    /// Share of the hash space, from and to, within 0 to 1.
    pub split: Option<(f64, f64)>,
    /// What only some kinds take.
    pub options: SourceOptions,
    /// What is done to each input; a table without a name is for the only input.
    pub inputs: Vec<InputSteps>,
}

/// What is done to one input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputSteps {
    /// The model's input; `None` for the only one.
    pub name: Option<String>,
    /// The source's name of the array, when it is another.
    pub from: Option<String>,
    /// Changes of pictures, for whoever learns from them.
    pub augment: Vec<Augmentation>,
    /// The steps, in order; presets stand as what they are short for.
    pub steps: Vec<Step>,
    /// The line of each step in the `data.toml`, from 1.
    pub lines: Vec<usize>,
}

/// The best of `candidates` for a misspelt `name`, as the end of a sentence; empty when none is near.
pub(crate) fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let near = candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    near.map_or_else(String::new, |(_, candidate)| format!("; did you mean `{candidate}`?"))
}

/// A text being parsed, for errors that point into it.
struct Text<'a> {
    text: &'a str,
    origin: &'a str,
}

impl Text<'_> {
    fn error(&self, span: Option<Range<usize>>, message: impl AsRef<str>) -> SpecError {
        let at = span.map(|span| span.start.min(self.text.len()));
        let split = at.and_then(|at| self.text.split_at_checked(at));
        let (line_column, excerpt) = match split {
            None => (None, String::new()),
            Some((before, after)) => {
                let line = before.matches('\n').count().saturating_add(1);
                let start = before.rsplit('\n').next().unwrap_or_default();
                let column = start.chars().count().saturating_add(1);
                let rest = after.split(['\n', '\r']).next().unwrap_or_default();
                let shown: String = start.chars().chain(rest.chars()).take(160).collect();
                let gutter = " ".repeat(line.to_string().len());
                let caret = " ".repeat(column.min(160).saturating_sub(1));
                let shown = shown.replace('\t', " ");
                let excerpt =
                    format!("{gutter} |\n{line} | {}\n{gutter} | {caret}^", escape_for_terminal(&shown));
                (Some((line, column)), excerpt)
            }
        };
        let message = crate::error::escape_lines(message.as_ref());
        SpecError { origin: self.origin.to_owned(), line_column, message, excerpt }
    }

    fn toml_error(&self, error: &toml::de::Error) -> SpecError {
        let message = error.message().trim().to_owned();
        let hint = message
            .strip_prefix("unknown field `")
            .or_else(|| message.strip_prefix("unknown variant `"))
            .and_then(|rest| rest.split_once('`'))
            // The names serde expects stand between backticks behind the unknown one.
            .map(|(name, rest)| did_you_mean(name, rest.split('`').skip(1).step_by(2)))
            .unwrap_or_default();
        self.error(error.span(), format!("{message}{hint}"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Root {
    source: SourceTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SourceTable {
    kind: Option<Spanned<String>>,
    path: Option<Spanned<PathBuf>>,
    labels: Option<Spanned<String>>,
    #[serde(default)]
    skip: u64,
    take: Option<Spanned<u64>>,
    sample: Option<Spanned<u64>>,
    seed: Option<Spanned<u64>>,
    split: Option<Spanned<[f64; 2]>>,
    classes: Option<Classes>,
    files: Option<String>,
    root: Option<PathBuf>,
    columns: Option<Columns>,
    #[serde(default)]
    follow_links: bool,
    separator: Option<char>,
    header: Option<bool>,
    dtype: Option<TypeName>,
    shape: Option<Vec<usize>>,
    count: Option<Spanned<u64>>,
    #[serde(default)]
    dims: BTreeMap<String, usize>,
    below: Option<Spanned<i64>>,
    command: Option<Spanned<Vec<String>>>,
    timeout: Option<Spanned<f64>>,
    #[serde(default)]
    arrays: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct InputTable {
    from: Option<String>,
    #[serde(default)]
    augment: Vec<Augmentation>,
    #[serde(default)]
    steps: Vec<Spanned<Step>>,
}

pub(crate) fn kind_named(name: &str) -> Result<Kind, String> {
    Kind::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = Kind::ALL.iter().map(|(name, _)| *name).collect();
        let list = known.join(", ");
        format!("there is no kind `{name}`{} (the kinds: {list})", did_you_mean(name, known.iter().copied()))
    })
}

impl DataSpec {
    /// A data file or directory as it is, without preprocessing.
    pub fn of_path(path: &Path) -> DataSpec {
        DataSpec { path: path.to_owned(), ..DataSpec::default() }
    }

    /// Reads what a user gives for `--calib`, `--eval` or `--data`: a `data.toml`, a data file or directory,
    /// or `kind:path?key=value&...` with the keys `labels`, `skip`, `take`, `sample` and `seed`.
    ///
    /// # Errors
    /// When a `data.toml` cannot be read or is wrong, with the place in it.
    pub fn read(given: &str) -> Result<DataSpec, DataError> {
        let path = Path::new(given);
        // A path that exists is a path, whatever characters it has.
        if !path.exists() {
            return crate::short::parse(given).map_err(DataError::from);
        }
        let inner = path.join("data.toml");
        if path.is_dir() && inner.is_file() {
            return Self::read_file(&inner);
        }
        if path.extension().is_some_and(|extension| extension == "toml") {
            return Self::read_file(path);
        }
        Ok(Self::of_path(path))
    }

    fn read_file(path: &Path) -> Result<DataSpec, DataError> {
        let (file, length) = open_plain(path)?;
        if length > MAX_SPEC_BYTES {
            return Err(DataError::invalid(path, "", format!("{length} bytes are too many for a data.toml")));
        }
        let bytes = read_at_most(file, MAX_SPEC_BYTES).map_err(|error| DataError::read(path, error))?;
        let text =
            String::from_utf8(bytes).map_err(|_| DataError::invalid(path, "", "it is not UTF-8 text"))?;
        let base = path.parent().unwrap_or(Path::new(""));
        Ok(DataSpec { file: Some(path.to_owned()), ..Self::parse(&text, &shown(path), base)? })
    }

    /// Parses the text of a `data.toml`; `origin` names it in errors, relative paths start at `base`.
    ///
    /// # Errors
    /// On anything that is not such a text, with line and column.
    pub fn parse(text: &str, origin: &str, base: &Path) -> Result<DataSpec, SpecError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let source = Text { text, origin };
        let fail = |error: toml::de::Error| source.toml_error(&error);
        let root = DeTable::parse(text).map_err(fail)?;
        let span = root.span();
        let mut root = root.into_inner();
        let input = root.remove("input");
        if let Some((key, _)) = root.iter().find(|(key, _)| key.get_ref() != "source") {
            let hint = did_you_mean(key.get_ref(), ["source", "input"]);
            let message =
                format!("unknown key `{}`{hint} (the tables are [source] and [input])", key.get_ref());
            return Err(source.error(Some(key.span()), message));
        }
        if root.is_empty() {
            return Err(source.error(None, "there is no [source] table, which says where the data are"));
        }
        let root = Root::deserialize(ValueDeserializer::from(Spanned::new(span, DeValue::Table(root))));
        let table = root.map_err(fail)?.source;
        let mut spec = check_source(&source, table, base)?;
        if let Some(input) = input {
            spec.inputs = read_inputs(&source, input, base)?;
        }
        Ok(spec)
    }
}

pub(crate) const TAKE_AND_SAMPLE: &str =
    "`take` and `sample` both say how many samples are used: leave one out";

fn check_source(source: &Text<'_>, table: SourceTable, base: &Path) -> Result<DataSpec, SpecError> {
    let kind = match &table.kind {
        Some(kind) => Some(kind_named(kind.get_ref()).map_err(|what| source.error(Some(kind.span()), what))?),
        None => None,
    };
    let command = table.command.as_ref().map(|command| command.get_ref().clone()).unwrap_or_default();
    let path = match &table.path {
        // What errors and reports call it.
        None if kind == Some(Kind::Command) => PathBuf::from(format!("cmd:{}", command.join(" "))),
        None if kind == Some(Kind::Random) => PathBuf::from("normal"),
        Some(path) if path.get_ref().as_os_str().is_empty() => {
            return Err(source.error(Some(path.span()), "`path` is empty"));
        }
        Some(path) => path.get_ref().clone(),
        None if kind.is_none() && !command.is_empty() => {
            return Err(source.error(None, "`command` needs `kind = \"command\"` beside it"));
        }
        None => {
            let message = "[source] has no `path`, which says where the data are";
            return Err(source.error(None, message));
        }
    };
    for (key, value) in [("take", &table.take), ("sample", &table.sample)] {
        if let Some(value) = value.as_ref().filter(|value| *value.get_ref() == 0) {
            return Err(source.error(Some(value.span()), format!("`{key} = 0` leaves no samples")));
        }
    }
    if let (Some(_), Some(sample)) = (&table.take, &table.sample) {
        return Err(source.error(Some(sample.span()), TAKE_AND_SAMPLE));
    }
    if let (None, Some(seed), false) = (&table.sample, &table.seed, kind == Some(Kind::Random)) {
        return Err(source.error(Some(seed.span()), "`seed` is for `sample`, which is not given"));
    }
    if let Some(split) = &table.split {
        let [from, to] = *split.get_ref();
        if !(0.0 <= from && from < to && to <= 1.0) {
            let message = "`split` is a part of 0 to 1, such as [0.0, 0.8]";
            return Err(source.error(Some(split.span()), message));
        }
        if let Some(sample) = &table.sample {
            let message = "`sample` needs the number of samples ahead, which `split` leaves open: use `take`";
            return Err(source.error(Some(sample.span()), message));
        }
    }
    Ok(DataSpec {
        file: None,
        kind,
        path: if kind.is_none_or(Kind::has_path) { base.join(path) } else { path },
        labels: table.labels.map(Spanned::into_inner),
        base: base.to_owned(),
        skip: table.skip,
        take: table.take.map(Spanned::into_inner),
        sample: table.sample.map(Spanned::into_inner),
        seed: table.seed.map_or(0, Spanned::into_inner),
        split: table.split.map(|split| split.into_inner().into()),
        options: SourceOptions {
            classes: table.classes,
            files: table.files,
            root: table.root.map(|root| base.join(root)),
            columns: table.columns,
            follow_links: table.follow_links,
            separator: table.separator,
            header: table.header,
            dtype: table.dtype,
            shape: table.shape,
            count: table.count.map(Spanned::into_inner),
            dims: table.dims,
            below: table.below.map(Spanned::into_inner),
            command,
            timeout: table.timeout.map(Spanned::into_inner),
            arrays: table.arrays,
        },
        inputs: Vec::new(),
    })
}

fn read_inputs(
    source: &Text<'_>,
    input: Spanned<DeValue<'_>>,
    base: &Path,
) -> Result<Vec<InputSteps>, SpecError> {
    let span = input.span();
    let DeValue::Table(table) = input.into_inner() else {
        return Err(source.error(Some(span), "`input` must be a table: write `[input]` or `[input.NAME]`"));
    };
    // `[input]` alone has the keys of a table of steps; an input may have the name of such a key only when
    // its value is a table.
    let is_own = |value: &Spanned<DeValue<'_>>| !matches!(value.get_ref(), DeValue::Table(_));
    if table.iter().any(|(_, value)| is_own(value)) {
        return Ok(vec![read_input(source, None, Spanned::new(span, DeValue::Table(table)), base)?]);
    }
    let mut inputs = Vec::new();
    for (name, value) in table {
        inputs.push((name.span().start, read_input(source, Some(name.get_ref().to_string()), value, base)?));
    }
    // In the order of the text.
    inputs.sort_by_key(|(start, _)| *start);
    Ok(inputs.into_iter().map(|(_, input)| input).collect())
}

fn read_input(
    source: &Text<'_>,
    name: Option<String>,
    value: Spanned<DeValue<'_>>,
    base: &Path,
) -> Result<InputSteps, SpecError> {
    let table = InputTable::deserialize(ValueDeserializer::from(value));
    let table = table.map_err(|error| source.toml_error(&error))?;
    let (mut steps, mut lines) = (Vec::new(), Vec::new());
    for step in table.steps {
        let span = step.span();
        let before = source.text.get(..span.start).unwrap_or_default();
        let line = before.matches('\n').count().saturating_add(1);
        for step in step.into_inner().expanded() {
            step.check().map_err(|what| source.error(Some(span.clone()), what))?;
            lines.push(line);
            steps.push(step.relative_to(base));
        }
    }
    Ok(InputSteps { name, from: table.from, augment: table.augment, steps, lines })
}
