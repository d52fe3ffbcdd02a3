//! Tables of comma-separated values: columns of numbers, of texts, and of paths to files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csv::StringRecord;
use optix_base::escape_for_terminal;
use optix_ir::Tensor;

use super::folder::within;
use super::labels::{LabelTexts, named_twice};
use super::options::Columns;
use super::{Facts, LABEL_NAMES, Opened, Sample, Settings, Source, media};
use crate::error::DataError;
use crate::input::{Meter, Metered, Stream};
use crate::spec::did_you_mean;

/// Names of columns that are taken for paths when the user names none.
pub(crate) const FILE_NAMES: [&str; 5] = ["path", "file", "filename", "image", "audio"];

/// The array that several columns make.
const FEATURES: &str = "features";

/// Most columns; more are no table.
const MAX_COLUMNS: usize = 65_536;

type Reader = csv::Reader<Metered>;

/// An array of the samples, and the columns it comes from.
#[derive(Clone, Debug, PartialEq)]
enum Array {
    /// The file that the column names.
    File(usize),
    /// One number a column.
    Numbers(Vec<usize>),
    Text(usize),
}

#[derive(Debug)]
struct Table {
    settings: Settings,
    /// The table itself: a labels file beside a folder is not the data set's path.
    path: PathBuf,
    /// Links resolved; what paths are relative to.
    root: PathBuf,
    names: Vec<String>,
    arrays: Vec<Array>,
    columns: Vec<String>,
    label: Option<usize>,
    labels: LabelTexts,
    count: u64,
    separator: u8,
    has_header: bool,
}

/// Opens a table; `path` is the data set's, or the labels file of a folder, whose files it then names.
pub(crate) fn open(path: &Path, root: &Path, settings: Settings) -> Result<Arc<dyn Opened>, DataError> {
    let options = &settings.spec.options;
    let is_tsv = path.extension().is_some_and(|extension| extension == "tsv");
    let separator = match options.separator {
        Some(separator) => u8::try_from(separator).map_err(|_| {
            DataError::invalid(path, "", format!("separator `{separator}`: one ASCII character is needed"))
        })?,
        None if is_tsv => b'\t',
        None => b',',
    };
    let has_header = options.header.unwrap_or(true);
    let root = root.canonicalize().map_err(|error| DataError::read(root, error))?;
    let (mut reader, meter) = reader(path, separator, &settings)?;
    let mut record = StringRecord::new();
    let mut rows = Rows { path, meter };
    if !rows.read(&mut reader, &mut record)? {
        return Err(DataError::invalid(path, "", "the file is empty"));
    }
    if record.len() > MAX_COLUMNS {
        let what = format!("{} columns are more than any model takes", record.len());
        return Err(DataError::invalid(path, "line 1", what));
    }
    let columns: Vec<String> = if has_header {
        if record.iter().all(|cell| cell.trim().parse::<f64>().is_ok()) {
            let what = "the first line has only numbers: it should name the columns. Set `header = false` in [source] \
                        if there are no names; the columns are then called 0, 1, ...";
            return Err(DataError::invalid(path, "line 1", what));
        }
        record.iter().map(|name| name.trim().trim_start_matches('\u{feff}').to_owned()).collect()
    } else {
        (0..record.len()).map(|index| index.to_string()).collect()
    };
    if let Some(twice) = named_twice(&columns) {
        let what = format!("column `{}` is there twice", escape_for_terminal(twice));
        return Err(DataError::invalid(path, "line 1", what));
    }
    let mut first = record.clone();
    if has_header && !rows.read(&mut reader, &mut first)? {
        return Err(DataError::invalid(path, "", "it has a header and no samples"));
    }
    let label = pick(path, &columns, settings.spec.labels.as_deref(), "labels", &LABEL_NAMES)?;
    let is_number = |index: usize| first.get(index).is_some_and(|cell| cell.trim().parse::<f64>().is_ok());
    let file = match &options.files {
        Some(name) => pick(path, &columns, Some(name), "files", &[])?,
        None => pick(path, &columns, None, "files", &FILE_NAMES)?
            .filter(|&index| !is_number(index) && Some(index) != label),
    };
    let (names, arrays) = arrays(path, &columns, (label, file), options.columns.as_ref(), &is_number)?;
    let mut labels = LabelTexts::new(options.classes.as_ref(), &settings.spec.base, &settings.limits)?;
    let mut count = 0u64;
    let mut record = first;
    loop {
        count = count.saturating_add(1);
        if let Some(text) = label.and_then(|label| record.get(label)) {
            labels.see(text).map_err(|what| DataError::invalid(path, &line(&record), what))?;
        }
        if !rows.read(&mut reader, &mut record)? {
            break;
        }
    }
    labels.finish();
    let path = path.to_owned();
    let table =
        Table { settings, path, root, names, arrays, columns, label, labels, count, separator, has_header };
    Ok(Arc::new(Shared(Arc::new(table))))
}

fn reader(path: &Path, separator: u8, settings: &Settings) -> Result<(Reader, Meter), DataError> {
    let (stream, _) = Stream::open(path, &settings.limits)?;
    let (metered, meter) = Metered::new(stream, &settings.limits);
    // The header is read like any record; rows of another length are found when their sample is wanted.
    let reader =
        csv::ReaderBuilder::new().delimiter(separator).has_headers(false).flexible(true).from_reader(metered);
    Ok((reader, meter))
}

fn line(record: &StringRecord) -> String {
    record.position().map_or_else(String::new, |position| format!("line {}", position.line()))
}

/// Reads records, with the errors of this crate.
struct Rows<'a> {
    path: &'a Path,
    meter: Meter,
}

impl Rows<'_> {
    fn read(&mut self, reader: &mut Reader, record: &mut StringRecord) -> Result<bool, DataError> {
        self.meter.reset();
        reader.read_record(record).map_err(|error| match self.meter.error() {
            Some(own) => own,
            None => {
                let place =
                    error.position().map_or_else(String::new, |position| format!("line {}", position.line()));
                let what = match error.kind() {
                    csv::ErrorKind::Utf8 { .. } => "it is not UTF-8 text: save the table as UTF-8".to_owned(),
                    _ => error.to_string(),
                };
                DataError::invalid(self.path, &place, what)
            }
        })
    }
}

/// Index of the column the user named, or else of the first of `usual` that is there.
fn pick(
    path: &Path,
    columns: &[String],
    named: Option<&str>,
    key: &str,
    usual: &[&str],
) -> Result<Option<usize>, DataError> {
    let find = |name: &str| columns.iter().position(|column| column == name);
    match named {
        None => Ok(usual.iter().find_map(|name| find(name))),
        Some(name) => find(name).map(Some).ok_or_else(|| {
            DataError::invalid(path, "line 1", no_column(columns, name, &format!("`{key}` names it")))
        }),
    }
}

fn no_column(columns: &[String], name: &str, why: &str) -> String {
    let hint = did_you_mean(name, columns.iter().map(String::as_str));
    let list: Vec<&str> = columns.iter().take(20).map(String::as_str).collect();
    let more = if columns.len() > list.len() { ", ..." } else { "" };
    format!("there is no column `{name}` ({why}){hint}; the columns: {}{more}", list.join(", "))
}

/// The arrays of a sample and their names.
fn arrays(
    path: &Path,
    columns: &[String],
    (label, file): (Option<usize>, Option<usize>),
    wanted: Option<&Columns>,
    is_number: &dyn Fn(usize) -> bool,
) -> Result<(Vec<String>, Vec<Array>), DataError> {
    let mut named: Vec<(String, Array)> = Vec::new();
    let others = || (0..columns.len()).filter(|index| Some(*index) != label && Some(*index) != file);
    let name = |index: usize| columns.get(index).cloned().unwrap_or_default();
    if let Some(file) = file {
        named.push((name(file), Array::File(file)));
    }
    match wanted {
        Some(Columns::One(each)) if each == "each" => {
            for index in others() {
                let array = if is_number(index) { Array::Numbers(vec![index]) } else { Array::Text(index) };
                named.push((name(index), array));
            }
        }
        Some(given) => {
            let list = match given {
                Columns::One(one) => std::slice::from_ref(one),
                Columns::Several(list) => list.as_slice(),
            };
            let find = |wanted: &String| match columns.iter().position(|column| column == wanted) {
                Some(index) => Ok(index),
                None => {
                    let what = no_column(columns, wanted, "`columns` names it");
                    Err(DataError::invalid(path, "line 1", what))
                }
            };
            let indices = list.iter().map(find).collect::<Result<Vec<usize>, DataError>>()?;
            if indices.is_empty() {
                return Err(DataError::invalid(path, "", "`columns` names none"));
            }
            named.push((FEATURES.to_owned(), Array::Numbers(indices)));
        }
        // With files, numbers beside them are hardly ever meant for the model.
        None if file.is_some() => {}
        None => {
            let numbers: Vec<usize> = others().filter(|&index| is_number(index)).collect();
            if !numbers.is_empty() {
                named.push((FEATURES.to_owned(), Array::Numbers(numbers)));
            }
            for index in others().filter(|&index| !is_number(index)) {
                named.push((name(index), Array::Text(index)));
            }
        }
    }
    if named.is_empty() {
        return Err(DataError::invalid(path, "line 1", "no column is left to feed beside the label"));
    }
    Ok(named.into_iter().unzip())
}

#[derive(Debug)]
struct Shared(Arc<Table>);

impl Opened for Shared {
    fn stream(&self) -> Result<Box<dyn Source>, DataError> {
        let table = Arc::clone(&self.0);
        let (mut reader, meter) = reader(&table.path, table.separator, &table.settings)?;
        let mut record = StringRecord::new();
        if table.has_header {
            Rows { path: &table.path, meter: meter.clone() }.read(&mut reader, &mut record)?;
        }
        Ok(Box::new(Records { table, reader, meter, record }))
    }

    fn classes(&self) -> &[String] {
        self.0.labels.names()
    }
}

struct Records {
    table: Arc<Table>,
    reader: Reader,
    meter: Meter,
    record: StringRecord,
}

impl Records {
    fn read(&mut self) -> Result<(), DataError> {
        let mut rows = Rows { path: &self.table.path, meter: self.meter.clone() };
        if rows.read(&mut self.reader, &mut self.record)? {
            return Ok(());
        }
        let what = "the file changed while it was in use; run again when nothing writes to it";
        Err(DataError::invalid(&self.table.path, "", what))
    }

    fn number(&self, index: usize) -> Result<f32, String> {
        let name = self.table.columns.get(index).map_or("", String::as_str);
        let cell = self.record.get(index).unwrap_or_default().trim();
        cell.parse::<f64>().map(|value| value as f32).map_err(|_| {
            let shown: String = cell.chars().take(40).collect();
            let cure = if cell.is_empty() {
                "the cell is empty: fill it or take the row out"
            } else if cell.contains(',') && cell.replace(',', ".").parse::<f64>().is_ok() {
                "numbers need a decimal point, not a comma"
            } else {
                "a number is needed; `columns` in [source] says which columns are fed"
            };
            format!("column `{}` has `{}`: {cure}", escape_for_terminal(name), escape_for_terminal(&shown))
        })
    }

    fn sample(&self) -> Result<Sample, DataError> {
        let table = &self.table;
        let place = line(&self.record);
        let fail = |what: String| DataError::invalid(&table.path, &place, what);
        if self.record.len() != table.columns.len() {
            return Err(fail(format!(
                "{} columns, but line 1 has {}: a quote or a separator is missing or too many",
                self.record.len(),
                table.columns.len()
            )));
        }
        let mut facts = Facts::default();
        let mut tensors = Vec::with_capacity(table.arrays.len());
        for array in &table.arrays {
            tensors.push(match array {
                Array::Text(index) => {
                    Tensor::from_strings(vec![], &[self.record.get(*index).unwrap_or_default()])
                }
                Array::Numbers(indices) => {
                    let values: Result<Vec<f32>, String> =
                        indices.iter().map(|&index| self.number(index)).collect();
                    Tensor::from_vec(vec![indices.len()], values.map_err(fail)?)
                }
                Array::File(index) => {
                    let relative = Path::new(self.record.get(*index).unwrap_or_default().trim());
                    let (tensor, found) = file(&table.root, relative, &table.settings, &fail)?;
                    facts = found;
                    tensor
                }
            });
        }
        let label = match table.label {
            Some(label) => {
                let text = self.record.get(label).unwrap_or_default();
                Some(table.labels.label(text).map_err(fail)?)
            }
            None => None,
        };
        facts.line = self.record.position().map(csv::Position::line);
        Ok(Sample { tensors, label, facts })
    }
}

/// Reads a file that a table names; complaints about its path go to `fail`.
pub(crate) fn file(
    root: &Path,
    relative: &Path,
    settings: &Settings,
    fail: &dyn Fn(String) -> DataError,
) -> Result<(Tensor, Facts), DataError> {
    if relative.as_os_str().is_empty() {
        return Err(fail("the path of the file is missing".to_owned()));
    }
    within(root, relative, settings.spec.options.follow_links).map_err(fail)?;
    let (tensor, facts) = media::read(&root.join(relative), &settings.limits)?;
    Ok((tensor, Facts { place: Some(relative.to_owned()), ..facts }))
}

impl Source for Records {
    fn arrays(&self) -> &[String] {
        &self.table.names
    }

    fn count(&self) -> u64 {
        self.table.count
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        self.read()?;
        self.sample()
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        (0..count).try_for_each(|_| self.read())
    }

    fn is_resumable(&self) -> bool {
        true
    }
}
