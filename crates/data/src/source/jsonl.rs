//! JSON lines: one object a line, whose fields are the arrays of a sample.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use optix_base::escape_for_terminal;
use optix_ir::{DType, Tensor};
use serde_json::{Map, Value};

use super::csv::{FILE_NAMES, file};
use super::labels::LabelTexts;
use super::{Facts, Kind, LABEL_NAMES, Label, Opened, Sample, Settings, Source};
use crate::error::DataError;
use crate::input::Lines;
use crate::spec::did_you_mean;

/// Most fields of an object.
const MAX_FIELDS: usize = 4096;

/// Arrays within arrays; no tensor of a model has more axes.
const MAX_AXES: usize = 16;

/// What the fields of the lines are: shared by files and by what commands print.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    pub(crate) names: Vec<String>,
    /// The field that names a file.
    file: Option<String>,
    label: Option<String>,
    labels: LabelTexts,
    root: PathBuf,
    settings: Settings,
}

fn object(line: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(map)) if map.len() <= MAX_FIELDS => Ok(map),
        Ok(Value::Object(map)) => Err(format!("{} fields are more than any model takes", map.len())),
        Ok(_) => {
            Err("it is no JSON object: each line is one, such as {\"text\": \"...\", \"label\": 1}"
                .to_owned())
        }
        Err(error) => {
            let text = error.to_string();
            // Its line is always 1 here.
            let text = text.replace(" at line 1 column", ", at column");
            Err(format!("it is not JSON ({text})"))
        }
    }
}

impl Fields {
    /// Finds out the fields from the first line.
    pub(crate) fn new(path: &Path, first: &[u8], settings: &Settings) -> Result<Fields, DataError> {
        let fail = |what: String| DataError::invalid(path, "line 1", what);
        let map = object(first).map_err(fail)?;
        let options = &settings.spec.options;
        let missing = |key: &str, name: &str| {
            let hint = did_you_mean(name, map.keys().map(String::as_str));
            let list: Vec<&str> = map.keys().map(String::as_str).take(20).collect();
            let list = list.join(", ");
            fail(format!("there is no field `{name}` (`{key}` names it){hint}; the fields: {list}"))
        };
        let label = match settings.spec.labels.as_deref() {
            Some(name) if map.contains_key(name) => Some(name.to_owned()),
            Some(name) => return Err(missing("labels", name)),
            None => LABEL_NAMES.iter().find(|name| map.contains_key(**name)).map(|name| (*name).to_owned()),
        };
        let is_text = |name: &str| map.get(name).is_some_and(Value::is_string);
        let file = match options.files.as_deref() {
            Some(name) if is_text(name) => Some(name.to_owned()),
            Some(name) => return Err(missing("files", name)),
            None => FILE_NAMES.iter().find(|name| is_text(name)).map(|name| (*name).to_owned()),
        };
        let is_data = |name: &&String| Some(*name) != label.as_ref();
        let names: Vec<String> = map.keys().filter(is_data).cloned().collect();
        if names.is_empty() {
            return Err(fail("there is no field to feed beside the label".to_owned()));
        }
        // What a command prints is relative to where it runs.
        let beside = match settings.spec.kind {
            Some(Kind::Command) => Some(settings.spec.base.clone()),
            _ => path.parent().map(Path::to_owned),
        };
        let base = options.root.clone().or(beside).unwrap_or_default();
        let base = if base.as_os_str().is_empty() { PathBuf::from(".") } else { base };
        let root = base.canonicalize().map_err(|error| DataError::read(&base, error))?;
        let labels = LabelTexts::new(options.classes.as_ref(), &settings.spec.base, &settings.limits)?;
        Ok(Fields { names, file, label, labels, root, settings: settings.clone() })
    }

    /// Looks at the label of a line; what else is wrong with it is found when its sample is wanted.
    pub(crate) fn see(&mut self, line: &[u8]) -> Result<(), String> {
        let Some(name) = &self.label else { return Ok(()) };
        let Ok(map) = object(line) else { return Ok(()) };
        match map.get(name) {
            Some(Value::String(text)) => self.labels.see(text),
            _ => Ok(()),
        }
    }

    pub(crate) fn finish(&mut self) {
        self.labels.finish();
    }

    pub(crate) fn classes(&self) -> &[String] {
        self.labels.names()
    }

    /// The sample of a line.
    pub(crate) fn sample(&self, path: &Path, number: u64, line: &[u8]) -> Result<Sample, DataError> {
        let place = format!("line {number}");
        let fail = |what: String| DataError::invalid(path, &place, what);
        let mut map = object(line).map_err(fail)?;
        let mut facts = Facts::default();
        let mut tensors = Vec::with_capacity(self.names.len());
        let mut take = |name: &str| {
            map.remove(name).ok_or_else(|| {
                let shown = escape_for_terminal(name);
                fail(format!("there is no field `{shown}`, which the first line has"))
            })
        };
        for name in &self.names {
            let value = take(name)?;
            if Some(name) == self.file.as_ref() {
                let Value::String(relative) = value else {
                    return Err(fail(format!("field `{name}` must be the path of a file")));
                };
                let (tensor, found) = file(&self.root, Path::new(&relative), &self.settings, &fail)?;
                facts = found;
                tensors.push(tensor);
            } else {
                let named = |what: String| fail(format!("field `{}`: {what}", escape_for_terminal(name)));
                tensors.push(tensor(&value).map_err(named)?);
            }
        }
        let label = match &self.label {
            None => None,
            Some(name) => Some(match take(name)? {
                Value::String(text) => self.labels.label(&text).map_err(fail)?,
                Value::Number(number) => self.labels.label(&number.to_string()).map_err(fail)?,
                Value::Null => return Err(fail(format!("the label `{name}` is null"))),
                other => Label::of(tensor(&other).map_err(fail)?),
            }),
        };
        facts.line = Some(number);
        Ok(Sample { tensors, label, facts })
    }
}

/// A JSON value as a tensor: texts, truth values, whole numbers (int64) and others (float32), also nested.
pub(crate) fn tensor(value: &Value) -> Result<Tensor, String> {
    let mut flat = Flat::default();
    // The first element of each level gives the shape; every other one must agree.
    let mut shape = Vec::new();
    let mut at = value;
    while let Value::Array(list) = at {
        if shape.len() >= MAX_AXES {
            return Err(format!("more than {MAX_AXES} arrays within each other are no tensor"));
        }
        shape.push(list.len());
        match list.first() {
            Some(first) => at = first,
            None => break,
        }
    }
    flat.add(value, &shape)?;
    flat.into_tensor(shape)
}

#[derive(Default)]
struct Flat {
    numbers: Vec<f64>,
    integers: Vec<i64>,
    texts: Vec<String>,
    bools: Vec<bool>,
}

impl Flat {
    /// Depth is bounded by the shape's length.
    fn add(&mut self, value: &Value, shape: &[usize]) -> Result<(), String> {
        match (value, shape.split_first()) {
            (Value::Array(list), Some((&length, inner))) if list.len() == length => {
                list.iter().try_for_each(|value| self.add(value, inner))
            }
            (Value::Array(_), _) | (_, Some(_)) => {
                Err("its arrays have different lengths, or numbers stand beside arrays".to_owned())
            }
            (Value::Number(number), None) => {
                self.integers.extend(number.as_i64());
                let value = number.as_f64().ok_or_else(|| format!("the number {number} is too large"))?;
                self.numbers.push(value);
                Ok(())
            }
            (Value::String(text), None) => {
                self.texts.push(text.clone());
                Ok(())
            }
            (Value::Bool(bit), None) => {
                self.bools.push(*bit);
                Ok(())
            }
            (Value::Null, None) => Err("it is null: a value is needed".to_owned()),
            (Value::Object(_), None) => {
                Err("it is an object: numbers, texts and arrays of them are read".to_owned())
            }
        }
    }

    fn into_tensor(self, shape: Vec<usize>) -> Result<Tensor, String> {
        let kinds = [!self.numbers.is_empty(), !self.texts.is_empty(), !self.bools.is_empty()];
        match kinds {
            [true, false, false] if self.integers.len() == self.numbers.len() => {
                Ok(Tensor::from_vec(shape, self.integers))
            }
            [true, false, false] => Ok(Tensor::from_vec(
                shape,
                self.numbers.into_iter().map(|value| value as f32).collect::<Vec<_>>(),
            )),
            [false, true, false] => Ok(Tensor::from_strings(shape, &self.texts)),
            [false, false, true] => Ok(Tensor::from_bools(shape, &self.bools)),
            [false, false, false] => Tensor::zeros(DType::F32, shape).map_err(|error| error.to_string()),
            _ => Err("numbers, texts and truth values stand side by side".to_owned()),
        }
    }
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    fields: Arc<Fields>,
    count: u64,
    settings: Settings,
}

/// Opens a file: a first pass counts its lines and collects its labels.
pub(crate) fn open(settings: Settings) -> Result<Arc<dyn Opened>, DataError> {
    let path = settings.spec.path.clone();
    let mut lines = Lines::open(&path, &settings.limits)?;
    let (mut fields, mut count) = (None::<Fields>, 0u64);
    while let Some((number, line)) = lines.next()? {
        if line.trim_ascii().is_empty() {
            continue;
        }
        count = count.saturating_add(1);
        let fields = match &mut fields {
            Some(fields) => fields,
            None => fields.insert(Fields::new(&path, &line, &settings)?),
        };
        fields.see(&line).map_err(|what| DataError::invalid(&path, &format!("line {number}"), what))?;
    }
    let Some(mut fields) = fields else { return Err(DataError::invalid(&path, "", "it has no lines")) };
    fields.finish();
    Ok(Arc::new(File { path, fields: Arc::new(fields), count, settings }))
}

impl Opened for File {
    fn stream(&self) -> Result<Box<dyn Source>, DataError> {
        let lines = Lines::open(&self.path, &self.settings.limits)?;
        Ok(Box::new(Objects { lines, fields: Arc::clone(&self.fields), count: self.count }))
    }

    fn classes(&self) -> &[String] {
        self.fields.classes()
    }
}

/// Samples from lines, of a file or of a command's output.
pub(crate) struct Objects {
    pub(crate) lines: Lines,
    pub(crate) fields: Arc<Fields>,
    pub(crate) count: u64,
}

impl Objects {
    fn line(&mut self) -> Result<(u64, Vec<u8>), DataError> {
        while let Some((number, line)) = self.lines.next()? {
            if !line.trim_ascii().is_empty() {
                return Ok((number, line));
            }
        }
        let what = "the file changed while it was in use; run again when nothing writes to it";
        Err(DataError::invalid(self.lines.path(), "", what))
    }
}

impl Source for Objects {
    fn arrays(&self) -> &[String] {
        &self.fields.names
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let (number, line) = self.line()?;
        self.fields.sample(self.lines.path(), number, &line)
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        (0..count).try_for_each(|_| self.line().map(drop))
    }

    fn is_resumable(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Tensor, String> {
        tensor(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn values_become_tensors() {
        assert_eq!(
            of("[[1, 2, 3], [4, 5, 6]]").unwrap(),
            Tensor::from_vec(vec![2, 3], vec![1i64, 2, 3, 4, 5, 6])
        );
        assert_eq!(of("[1, 2.5]").unwrap(), Tensor::from_vec(vec![2], vec![1f32, 2.5]));
        assert_eq!(of("\"cat\"").unwrap(), Tensor::from_strings(vec![], &["cat"]));
        assert_eq!(of("[true, false]").unwrap(), Tensor::from_bools(vec![2], &[true, false]));
        for bad in
            ["[[1], [2, 3]]", "[1, [2]]", "[1, \"a\"]", "null", "{}", "[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]"]
        {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
