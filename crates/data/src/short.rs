//! Data named in one word: `kind:path?key=value&...`.

use std::path::{Path, PathBuf};

use optix_base::escape_for_terminal;

use crate::error::SpecError;
use crate::source::{Classes, Columns, Kind, words};
use crate::spec::{DataSpec, TAKE_AND_SAMPLE, did_you_mean, kind_named};
use crate::steps::TypeName;

/// The keys.
const KEYS: [&str; 18] = [
    "labels",
    "skip",
    "take",
    "sample",
    "seed",
    "split",
    "classes",
    "files",
    "root",
    "columns",
    "separator",
    "dtype",
    "shape",
    "follow-links",
    "count",
    "below",
    "header",
    "dims.NAME",
];

/// Parses it.
pub(crate) fn parse(given: &str) -> Result<DataSpec, SpecError> {
    let origin = escape_for_terminal(given).into_owned();
    let fail = |message: String| SpecError {
        origin: origin.clone(),
        line_column: None,
        message: crate::error::escape_lines(&message),
        excerpt: String::new(),
    };
    // Everything behind `cmd:` is the command.
    if let Some(line) = given.strip_prefix("cmd:").or_else(|| given.strip_prefix("command:")) {
        let mut spec = DataSpec { kind: Some(Kind::Command), ..DataSpec::of_path(Path::new(given)) };
        spec.options.command = words(line).map_err(fail)?;
        return Ok(spec);
    }
    let (place, options) = given.split_once('?').unwrap_or((given, ""));
    let mut spec = match place.split_once(':') {
        Some((kind, path)) if !kind.contains(['/', '.']) => {
            DataSpec { kind: Some(kind_named(kind).map_err(fail)?), ..DataSpec::of_path(Path::new(path)) }
        }
        _ => DataSpec::of_path(Path::new(place)),
    };
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        set(&mut spec, key, value).map_err(fail)?;
    }
    if spec.take.is_some() && spec.sample.is_some() {
        return Err(fail(TAKE_AND_SAMPLE.to_owned()));
    }
    if spec.split.is_some() && spec.sample.is_some() {
        return Err(fail("`sample` needs the number of samples ahead, which `split` leaves open".to_owned()));
    }
    Ok(spec)
}

fn set(spec: &mut DataSpec, key: &str, value: &str) -> Result<(), String> {
    let number = || value.parse::<u64>().map_err(|_| format!("`{key}` needs a whole number, not `{value}`"));
    let options = &mut spec.options;
    match key {
        "labels" => spec.labels = Some(value.to_owned()),
        "skip" => spec.skip = number()?,
        "take" => spec.take = Some(number()?),
        "sample" => spec.sample = Some(number()?),
        "seed" => spec.seed = number()?,
        "split" => {
            let parts = value.split_once('-').and_then(|(from, to)| {
                let range: (f64, f64) = (from.parse().ok()?, to.parse().ok()?);
                (0.0 <= range.0 && range.0 < range.1 && range.1 <= 1.0).then_some(range)
            });
            spec.split = Some(parts.ok_or("`split` is a part of 0 to 1, such as split=0.0-0.8")?);
        }
        "classes" => options.classes = Some(Classes::File(value.into())),
        "files" => options.files = Some(value.to_owned()),
        "root" => options.root = Some(PathBuf::from(value)),
        "columns" => {
            let list: Vec<String> = value.split(',').map(str::to_owned).collect();
            options.columns = Some(match list.as_slice() {
                [one] => Columns::One(one.clone()),
                _ => Columns::Several(list),
            });
        }
        "separator" => {
            let mut characters = value.chars();
            options.separator = Some(match (characters.next(), characters.next()) {
                (Some(one), None) => one,
                _ => return Err("`separator` needs one character".to_owned()),
            });
        }
        "dtype" => options.dtype = Some(TypeName::try_from(value.to_owned())?),
        "shape" => {
            let sizes: Option<Vec<usize>> = value.split(['x', ',']).map(|size| size.parse().ok()).collect();
            options.shape = Some(sizes.ok_or("`shape` needs sizes, such as shape=3x224x224")?);
        }
        "count" | "n" => options.count = Some(number()?),
        "below" => options.below = Some(i64::try_from(number()?).unwrap_or(i64::MAX)),
        "header" => options.header = Some(value != "false"),
        _ if key.starts_with("dims.") => {
            let size = usize::try_from(number()?).unwrap_or(usize::MAX);
            options.dims.insert(key.trim_start_matches("dims.").to_owned(), size);
        }
        "follow-links" => options.follow_links = value.is_empty() || value == "true",
        _ => {
            let hint = did_you_mean(key, KEYS);
            return Err(format!("there is no option `{key}`{hint} (the options: {})", KEYS.join(", ")));
        }
    }
    Ok(())
}
