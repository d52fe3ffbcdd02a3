//! Labels that stand in texts: numbers of classes, their names, or values.

use std::collections::BTreeSet;
use std::path::Path;

use optix_base::{Limits, escape_for_terminal};
use optix_ir::Tensor;

use super::Label;
use super::options::Classes;
use crate::error::DataError;
use crate::input::Lines;
use crate::spec::did_you_mean;

/// More different names than this are no classes.
const MAX_CLASSES: usize = 65_536;

/// What the labels of a source turn out to be, found out in a first pass over all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct LabelTexts {
    seen: BTreeSet<String>,
    is_given: bool,
    names: Vec<String>,
    has_fractions: bool,
    has_texts: bool,
}

impl LabelTexts {
    /// With the names that the user gave, if any.
    pub(crate) fn new(
        classes: Option<&Classes>,
        base: &Path,
        limits: &Limits,
    ) -> Result<LabelTexts, DataError> {
        let Some(names) = class_names(classes, base, limits)? else { return Ok(LabelTexts::default()) };
        Ok(LabelTexts { names, is_given: true, ..LabelTexts::default() })
    }

    /// Looks at one label. What is wrong is found when it is read again.
    pub(crate) fn see(&mut self, text: &str) -> Result<(), String> {
        let text = text.trim();
        if self.is_given || text.is_empty() || text.parse::<i64>().is_ok() {
            return Ok(());
        }
        if text.parse::<f64>().is_ok() {
            self.has_fractions = true;
            return Ok(());
        }
        self.has_texts = true;
        if !self.seen.contains(text) {
            self.seen.insert(text.to_owned());
        }
        if self.seen.len() > MAX_CLASSES {
            return Err(format!(
                "more than {MAX_CLASSES} different labels are no classes: is `labels` the right column?"
            ));
        }
        Ok(())
    }

    /// All labels have been seen.
    pub(crate) fn finish(&mut self) {
        if !self.is_given && self.has_texts {
            self.names = std::mem::take(&mut self.seen).into_iter().collect();
        }
    }

    /// Names of the classes, where labels are names.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The label that a text stands for.
    pub(crate) fn label(&self, text: &str) -> Result<Label, String> {
        let text = text.trim();
        if let Some(class) = self.names.iter().position(|name| name == text) {
            return Ok(Label::Class(i64::try_from(class).unwrap_or(i64::MAX)));
        }
        if text.is_empty() {
            return Err("the label is missing".to_owned());
        }
        if !self.has_texts
            && let Ok(class) = text.parse::<i64>()
            && !self.has_fractions
        {
            return Ok(Label::Class(class));
        }
        if !self.has_texts
            && let Ok(value) = text.parse::<f64>()
        {
            return Ok(Label::Tensor(Tensor::scalar(value as f32)));
        }
        let hint = did_you_mean(text, self.names.iter().map(String::as_str));
        let shown: String = text.chars().take(60).collect();
        Err(format!(
            "label `{}` is none of the {} classes{hint}",
            escape_for_terminal(&shown),
            self.names.len()
        ))
    }
}

/// The first name that stands there a second time.
pub(crate) fn named_twice(names: &[String]) -> Option<&String> {
    let mut seen = BTreeSet::new();
    names.iter().find(|name| !seen.insert(*name))
}

/// Reads the names that the user gave.
pub(crate) fn class_names(
    classes: Option<&Classes>,
    base: &Path,
    limits: &Limits,
) -> Result<Option<Vec<String>>, DataError> {
    let (names, path) = match classes {
        None => return Ok(None),
        Some(Classes::Names(names)) => (names.clone(), base.to_owned()),
        Some(Classes::File(file)) => {
            let path = base.join(file);
            (read_names(&path, limits)?, path)
        }
    };
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort();
    if let Some([twice, _]) = sorted.windows(2).find(|pair| matches!(pair, [a, b] if a == b)) {
        return Err(DataError::invalid(&path, "", format!("class `{twice}` is named twice")));
    }
    if names.is_empty() {
        return Err(DataError::invalid(&path, "", "it names no classes"));
    }
    Ok(Some(names))
}

/// One name a line; empty lines do not count.
pub(crate) fn read_names(path: &Path, limits: &Limits) -> Result<Vec<String>, DataError> {
    let mut lines = Lines::open(path, limits)?;
    let mut names = Vec::new();
    while let Some((number, line)) = lines.next()? {
        let place = format!("line {number}");
        let line =
            String::from_utf8(line).map_err(|_| DataError::invalid(path, &place, "it is not UTF-8"))?;
        let name = line.trim();
        if !name.is_empty() {
            names.push(name.to_owned());
        }
        if names.len() > MAX_CLASSES {
            let what = format!("more than {MAX_CLASSES} classes");
            return Err(DataError::invalid(path, &place, what));
        }
    }
    Ok(names)
}
