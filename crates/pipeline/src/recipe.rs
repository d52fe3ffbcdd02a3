//! Recipes: what a run does, as TOML.
//!
//! ```toml
//! version = 1
//! seed = 0
//!
//! [data]
//! calib = "calib.toml"        # relative to the recipe
//! calib-samples = 256
//! eval = "eval.toml"
//!
//! [require]                   # exit code 1 when missed
//! accuracy-drop = 0.5         # points, upper bound of the 95% interval
//!
//! [[step]]
//! pass = "quantize-static"
//! id = "int8"                 # default: the pass's name
//! per-channel = true          # the pass's own options
//! ```
//!
//! `pass` and `id` are the pipeline's keys; the rest of a step is handed to the options struct of the
//! pass as it is, so errors point to line and column.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::pass::{Pass, PassSpec};

/// Recipes larger than this are refused unread: no honest one comes near.
pub const MAX_BYTES: usize = 1 << 20;

/// A recipe that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}{}: {message}{}", place(.line_column), snippet(.excerpt))]
pub struct RecipeError {
    /// The file, or what stands for it.
    pub origin: String,
    /// Line and column, from 1.
    pub line_column: Option<(usize, usize)>,
    /// What is wrong and what to do.
    pub message: String,
    /// The line, with a caret under the place.
    pub excerpt: String,
}

fn place(line_column: &Option<(usize, usize)>) -> String {
    line_column.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"))
}

fn snippet(excerpt: &str) -> String {
    if excerpt.is_empty() { String::new() } else { format!("\n{excerpt}") }
}

/// Where the data of a run come from. Paths are relative to the recipe's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DataOptions {
    /// Calibration data: a data file, a directory or a data.toml.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calib: Option<PathBuf>,
    /// Use at most so many calibration samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calib_samples: Option<u64>,
    /// Evaluation data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<PathBuf>,
    /// Use at most so many evaluation samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_samples: Option<u64>,
}

impl DataOptions {
    /// The same with absolute paths, for a recipe that may be put anywhere. Relative ones are taken to be
    /// relative to the working directory.
    pub fn absolute(&self) -> DataOptions {
        let absolute = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
        };
        DataOptions { calib: absolute(&self.calib), eval: absolute(&self.eval), ..self.clone() }
    }
}

/// Thresholds a result must meet; a missed one makes the exit code 1. Statistical ones compare the
/// unfavourable end of the 95% interval: an inconclusive result is a miss.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Requirements {
    /// Accuracy may drop by at most so many percentage points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_drop: Option<f64>,
    /// At least this share of samples gets the same top-1 answer as before (0 to 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// At least this signal-to-noise ratio, in dB, at every output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
    /// Output file size over input file size, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_ratio: Option<f64>,
    /// Latency over the original model's on the engine the model is meant for, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ratio: Option<f64>,
}

impl Requirements {
    /// Whether nothing is required.
    pub fn is_empty(&self) -> bool {
        *self == Requirements::default()
    }

    /// Whether some threshold needs evaluation data.
    pub fn need_evaluation(&self) -> bool {
        self.accuracy_drop.is_some() || self.agreement.is_some() || self.sqnr_db.is_some()
    }
}

/// What a run does: where data come from, what the result must meet, and the steps.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Head {
    /// Version of the recipe format.
    #[schemars(with = "i64", extend("const" = 1))]
    version: Spanned<i64>,
    /// Seed of everything random.
    #[serde(default)]
    seed: u64,
    /// Where the data of the run come from.
    #[serde(default)]
    data: DataOptions,
    /// Thresholds the result must meet.
    #[serde(default)]
    require: Requirements,
}

/// One step of a recipe.
#[derive(Debug)]
pub struct Step {
    /// Its name in reports and in `--set`.
    pub id: String,
    /// The registry's entry of its pass.
    pub spec: &'static PassSpec,
    /// The pass with its options.
    pub pass: Box<dyn Pass>,
    /// The options as given, to print the recipe again.
    pub options: toml::Table,
}

/// A parsed recipe: every pass exists and every option is right.
#[derive(Debug)]
pub struct Recipe {
    /// Seed of everything random.
    pub seed: u64,
    /// Where the data come from.
    pub data: DataOptions,
    /// What the result must meet.
    pub require: Requirements,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// `--set step.option=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Id of the step.
    pub step: String,
    /// Name of the option.
    pub option: String,
    /// A TOML value; a bare word counts as a string.
    pub value: String,
}

impl std::str::FromStr for Override {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(path, value)| Some((path.rsplit_once('.')?, value)));
        let ((step, option), value) =
            parts.ok_or_else(|| format!("`{text}` is not of the form step.option=value"))?;
        Ok(Override { step: step.trim().into(), option: option.trim().into(), value: value.trim().into() })
    }
}

/// The best of `candidates` for a misspelt `name`, as the end of a sentence; empty when none is near.
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let near = candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    near.map_or_else(String::new, |(_, candidate)| format!("; did you mean `{candidate}`?"))
}

/// A text being parsed, for errors that point into it.
struct Source<'a> {
    text: &'a str,
    origin: &'a str,
}

impl Source<'_> {
    fn error(&self, span: Option<Range<usize>>, message: impl Into<String>) -> RecipeError {
        let at =
            span.map(|span| span.start.min(self.text.len())).filter(|&at| self.text.is_char_boundary(at));
        let (line_column, excerpt) = match at {
            None => (None, String::new()),
            Some(at) => {
                let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
                let line = self.text[..at].matches('\n').count() + 1;
                let column = self.text[start..at].chars().count() + 1;
                let shown: String =
                    self.text[start..].lines().next().unwrap_or_default().chars().take(160).collect();
                let shown = optix_base::escape_for_terminal(&shown).into_owned();
                let gutter = " ".repeat(line.to_string().len());
                let caret = " ".repeat(column.min(160) - 1);
                (Some((line, column)), format!("{gutter} |\n{line} | {shown}\n{gutter} | {caret}^"))
            }
        };
        RecipeError { origin: self.origin.to_owned(), line_column, message: message.into(), excerpt }
    }

    fn toml_error(&self, error: &toml::de::Error, known: &[&str]) -> RecipeError {
        let message = error.message().trim().to_owned();
        let hint = message
            .strip_prefix("unknown field `")
            .or_else(|| message.strip_prefix("unknown variant `"))
            .and_then(|rest| rest.split_once('`'))
            .map(|(name, rest)| {
                // The names serde expects stand between backticks behind the unknown one.
                let expected = rest.split('`').skip(1).step_by(2);
                did_you_mean(name, expected.chain(known.iter().copied()))
            })
            .unwrap_or_default();
        self.error(error.span(), format!("{message}{hint}"))
    }
}

impl Recipe {
    /// Reads a recipe. `origin` names it in errors; `passes` is the registry.
    ///
    /// # Errors
    /// On anything that is not a recipe with known passes and options of the right type, with the place.
    pub fn parse(
        text: &str,
        origin: &str,
        passes: &'static [PassSpec],
        overrides: &[Override],
    ) -> Result<Recipe, RecipeError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let source = Source { text, origin };
        if text.len() > MAX_BYTES {
            return Err(source.error(None, format!("{} bytes are too many for a recipe", text.len())));
        }
        let root = DeTable::parse(text).map_err(|error| source.toml_error(&error, &[]))?;
        let span = root.span();
        let mut root = root.into_inner();
        let steps = root.remove("step");
        if let Some((key, _)) = root.get_key_value("steps") {
            return Err(
                source.error(Some(key.span()), "unknown key `steps`: each step is a table `[[step]]`")
            );
        }
        let head = Spanned::new(span, DeValue::Table(root));
        let head = Head::deserialize(ValueDeserializer::from(head))
            .map_err(|error| source.toml_error(&error, &["step"]))?;
        if *head.version.get_ref() != 1 {
            let message = format!(
                "recipe version {} is not known; this program reads version 1",
                head.version.get_ref()
            );
            return Err(source.error(Some(head.version.span()), message));
        }
        let mut parsed = Vec::new();
        if let Some(steps) = steps {
            let span = steps.span();
            let DeValue::Array(steps) = steps.into_inner() else {
                return Err(source.error(Some(span), "`step` must be a list of tables: write `[[step]]`"));
            };
            for step in steps {
                parsed.push(parse_step(&source, step, passes)?);
            }
        }
        number_duplicates(&mut parsed);
        let mut recipe = Recipe { seed: head.seed, data: head.data, require: head.require, steps: parsed };
        for change in overrides {
            recipe.apply_override(change)?;
        }
        recipe.check_thresholds(&source)?;
        Ok(recipe)
    }

    fn check_thresholds(&self, source: &Source<'_>) -> Result<(), RecipeError> {
        let require = &self.require;
        let bad = [
            ("accuracy-drop", require.accuracy_drop, -100.0..=100.0),
            ("agreement", require.agreement, 0.0..=1.0),
            ("sqnr-db", require.sqnr_db, -1e3..=1e3),
            ("size-ratio", require.size_ratio, 0.0..=1e6),
            ("latency-ratio", require.latency_ratio, 0.0..=1e6),
        ]
        .into_iter()
        .find(|(_, value, range)| value.is_some_and(|value| !range.contains(&value)));
        match bad {
            Some((name, value, range)) => {
                let message = format!(
                    "`require.{name}` is {}, outside {} to {}",
                    value.unwrap_or_default(),
                    range.start(),
                    range.end()
                );
                Err(source.error(source.text.find(name).map(|at| at..at), message))
            }
            None => Ok(()),
        }
    }

    fn apply_override(&mut self, change: &Override) -> Result<(), RecipeError> {
        let origin = format!("--set {}.{}={}", change.step, change.option, change.value);
        let fail = |message: String| RecipeError {
            origin: origin.clone(),
            line_column: None,
            message,
            excerpt: String::new(),
        };
        let ids: Vec<String> = self.steps.iter().map(|step| step.id.clone()).collect();
        let Some(step) = self.steps.iter_mut().find(|step| step.id == change.step) else {
            let hint = did_you_mean(&change.step, ids.iter().map(String::as_str));
            return Err(fail(format!(
                "the recipe has no step `{}` (it has: {}){hint}",
                change.step,
                ids.join(", ")
            )));
        };
        let known = step.spec.options();
        if !known.iter().any(|option| option.name == change.option) {
            let hint = did_you_mean(&change.option, known.iter().map(|option| option.name.as_str()));
            return Err(fail(format!("pass `{}` has no option `{}`{hint}", step.spec.name, change.option)));
        }
        let quoted = toml::Value::String(change.value.clone());
        let value = toml::from_str::<toml::Table>(&format!("v = {}", change.value))
            .ok()
            .and_then(|mut table| table.remove("v"))
            .unwrap_or(quoted);
        let mut options = step.options.clone();
        options.insert(change.option.clone(), value);
        let text = options.to_string();
        let parse = |text: &str| -> Result<Box<dyn Pass>, toml::de::Error> {
            let table = DeTable::parse(text)?;
            let span = table.span();
            (step.spec.parse)(Spanned::new(span, DeValue::Table(table.into_inner())).into())
        };
        step.pass = parse(&text).map_err(|error| fail(error.message().to_owned()))?;
        step.options = options;
        Ok(())
    }

    /// The recipe as text that parses to the same again.
    pub fn to_toml(&self) -> String {
        print(self.seed, &self.data, &self.require, &self.steps.iter().collect::<Vec<_>>())
    }

    /// All steps with their options, and the seed.
    pub(crate) fn steps_toml(&self) -> String {
        let steps: Vec<&Step> = self.steps.iter().collect();
        print(self.seed, &DataOptions::default(), &Requirements::default(), &steps)
    }

    /// One step as a recipe of its own, with the data it may need and no thresholds.
    pub(crate) fn step_toml(&self, step: &Step) -> String {
        let data = DataOptions { eval: None, eval_samples: None, ..self.data.absolute() };
        print(self.seed, &data, &Requirements::default(), &[step])
    }
}

fn print(seed: u64, data: &DataOptions, require: &Requirements, steps: &[&Step]) -> String {
    #[derive(Serialize)]
    struct Printed<'a> {
        version: i64,
        seed: u64,
        #[serde(skip_serializing_if = "is_default")]
        data: &'a DataOptions,
        #[serde(skip_serializing_if = "is_default")]
        require: &'a Requirements,
        step: Vec<toml::Table>,
    }
    fn is_default<T: Default + PartialEq>(value: &&T) -> bool {
        **value == T::default()
    }
    let step = steps.iter().map(|step| {
        let mut table = toml::Table::new();
        table.insert("pass".into(), step.spec.name.into());
        if step.id != step.spec.name {
            table.insert("id".into(), step.id.clone().into());
        }
        table.extend(step.options.clone());
        table
    });
    let printed = Printed { version: 1, seed, data, require, step: step.collect() };
    toml::to_string(&printed).expect("tables of plain values always print")
}

/// Ids must be unique for `--set` and reports: a pass used twice is `name`, `name-2`, ...
fn number_duplicates(steps: &mut [Step]) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for step in steps {
        let count = seen.entry(step.id.clone()).or_default();
        *count += 1;
        if *count > 1 {
            step.id = format!("{}-{count}", step.id);
        }
    }
}

fn parse_step(
    source: &Source<'_>,
    step: Spanned<DeValue<'_>>,
    passes: &'static [PassSpec],
) -> Result<Step, RecipeError> {
    let span = step.span();
    let DeValue::Table(mut table) = step.into_inner() else {
        return Err(source.error(Some(span), "a step is a table: write `[[step]]`"));
    };
    let text_of = |value: Option<Spanned<DeValue<'_>>>, key: &str| match value {
        None => Ok(None),
        Some(value) => match value.get_ref().as_str() {
            Some(text) => Ok(Some((text.to_owned(), value.span()))),
            None => Err(source.error(Some(value.span()), format!("`{key}` must be a string"))),
        },
    };
    let Some((name, name_span)) = text_of(table.remove("pass"), "pass")? else {
        return Err(source.error(Some(span), "the step has no `pass`"));
    };
    let id = text_of(table.remove("id"), "id")?.map(|(id, _)| id);
    let Some(spec) = passes.iter().find(|spec| spec.name == name) else {
        let hint = did_you_mean(&name, passes.iter().map(|spec| spec.name));
        let message = format!("there is no pass `{name}`{hint} (`optix passes` lists them)");
        return Err(source.error(Some(name_span), message));
    };
    let known = spec.options();
    let names = || known.iter().map(|option| option.name.as_str());
    if let Some(key) = table.keys().find(|key| !names().any(|name| name == key.get_ref())) {
        let options: Vec<&str> = names().collect();
        let options = if options.is_empty() {
            "it has none".to_owned()
        } else {
            format!("it has: {}", options.join(", "))
        };
        let hint = did_you_mean(key.get_ref(), names());
        let message = format!("pass `{name}` has no option `{}`{hint} ({options})", key.get_ref());
        return Err(source.error(Some(key.span()), message));
    }
    let options = toml::Table::deserialize(ValueDeserializer::from(Spanned::new(
        span.clone(),
        DeValue::Table(table.clone()),
    )))
    .map_err(|error| source.toml_error(&error, &[]))?;
    let value = Spanned::new(span, DeValue::Table(table));
    let pass = (spec.parse)(value.into()).map_err(|error| source.toml_error(&error, &[]))?;
    Ok(Step { id: id.unwrap_or_else(|| name.clone()), spec, pass, options })
}
