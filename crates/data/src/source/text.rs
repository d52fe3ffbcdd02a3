//! Text files: each line that is not empty is a sample.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use optix_ir::Tensor;

use super::labels::LabelTexts;
use super::{Facts, Opened, Sample, Settings, Source};
use crate::error::DataError;
use crate::input::Lines;

/// The only array.
const NAME: &str = "text";

#[derive(Debug)]
struct Texts {
    settings: Settings,
    labels: Option<(PathBuf, LabelTexts)>,
    count: u64,
}

/// Opens a file, and the labels, one a line, where the user names a file of them.
pub(crate) fn open(settings: Settings) -> Result<Arc<dyn Opened>, DataError> {
    let path = &settings.spec.path;
    let count = for_each(path, &settings, &mut |_| Ok(()))?;
    let mut labels = None;
    if let Some(file) = &settings.spec.labels {
        let file = settings.spec.base.join(file);
        let options = &settings.spec.options;
        let mut texts = LabelTexts::new(options.classes.as_ref(), &settings.spec.base, &settings.limits)?;
        let found = for_each(&file, &settings, &mut |text| texts.see(text))?;
        super::idx::check_counts((path, count), (&file, found))?;
        texts.finish();
        labels = Some((file, texts));
    }
    Ok(Arc::new(Texts { settings, labels, count }))
}

fn for_each(
    path: &Path,
    settings: &Settings,
    visit: &mut dyn FnMut(&str) -> Result<(), String>,
) -> Result<u64, DataError> {
    let mut lines = Lines::open(path, &settings.limits)?;
    let mut count = 0u64;
    while let Some((number, line)) = lines.next()? {
        if !line.trim_ascii().is_empty() {
            count = count.saturating_add(1);
            let text = String::from_utf8_lossy(&line);
            visit(&text).map_err(|what| DataError::invalid(path, &format!("line {number}"), what))?;
        }
    }
    Ok(count)
}

/// The next line that is not empty.
fn text_line(lines: &mut Lines) -> Result<(u64, Vec<u8>), DataError> {
    while let Some((number, line)) = lines.next()? {
        if !line.trim_ascii().is_empty() {
            return Ok((number, line));
        }
    }
    let what = "the file changed while it was in use; run again when nothing writes to it";
    Err(DataError::invalid(lines.path(), "", what))
}

impl Opened for Texts {
    fn stream(&self) -> Result<Box<dyn Source>, DataError> {
        let lines = Lines::open(&self.settings.spec.path, &self.settings.limits)?;
        let labels = match &self.labels {
            Some((path, texts)) => Some((Lines::open(path, &self.settings.limits)?, texts.clone())),
            None => None,
        };
        Ok(Box::new(TextLines { names: [NAME.to_owned()], lines, labels, count: self.count }))
    }

    fn classes(&self) -> &[String] {
        self.labels.as_ref().map_or(&[], |(_, texts)| texts.names())
    }
}

struct TextLines {
    names: [String; 1],
    lines: Lines,
    labels: Option<(Lines, LabelTexts)>,
    count: u64,
}

impl Source for TextLines {
    fn arrays(&self) -> &[String] {
        &self.names
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let (number, line) = text_line(&mut self.lines)?;
        let label = match &mut self.labels {
            None => None,
            Some((lines, texts)) => {
                let (number, line) = text_line(lines)?;
                let fail = |what: String| DataError::invalid(lines.path(), &format!("line {number}"), what);
                Some(texts.label(&String::from_utf8_lossy(&line)).map_err(fail)?)
            }
        };
        if std::str::from_utf8(&line).is_err() {
            let what = "it is not UTF-8 text: save the file as UTF-8";
            return Err(DataError::invalid(self.lines.path(), &format!("line {number}"), what));
        }
        let facts = Facts { line: Some(number), ..Facts::default() };
        Ok(Sample { tensors: vec![Tensor::from_strings(vec![], &[line])], label, facts })
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        (0..count).try_for_each(|_| {
            text_line(&mut self.lines)?;
            self.labels.as_mut().map_or(Ok(()), |(lines, _)| text_line(lines).map(drop))
        })
    }

    fn is_resumable(&self) -> bool {
        true
    }
}
