//! `optix precision`: a recipe made from flags.

use std::path::Path;

use super::flags::{listed, overrides, quoted};
use super::recipes;
use super::run::{self, Origin};
use optix::cli::{Data, Debugging, Global, Output};

/// Flags of the command that become options of its step.
pub struct Options<'a> {
    pub float_type: Option<&'a str>,
    pub weights_only: bool,
    pub keep_io: Option<bool>,
    pub include: &'a [String],
    pub include_operators: &'a [String],
    pub exclude: &'a [String],
    pub exclude_operators: &'a [String],
    pub min_sqnr_db: Option<f64>,
}

/// Converts a model to 16-bit floats.
pub fn precision(
    global: &Global,
    model: &Path,
    options: &Options<'_>,
    set: &[String],
    output: &Output,
    data: &Data,
    debugging: &Debugging,
) -> anyhow::Result<()> {
    let given = [
        ("type", options.float_type.map(quoted)),
        ("weights-only", options.weights_only.then(|| "true".to_owned())),
        ("keep-io", options.keep_io.map(|value| value.to_string())),
        ("include", listed(options.include)),
        ("include-operators", listed(options.include_operators)),
        ("exclude", listed(options.exclude)),
        ("exclude-operators", listed(options.exclude_operators)),
        ("min-sqnr-db", options.min_sqnr_db.map(|value| format!("{value:?}"))),
    ];
    let step = "convert-precision";
    let overrides = overrides(step, given);
    let text = recipes::find("f16").unwrap_or_default();
    let origin = Origin::text(text.to_owned(), "recipe f16".to_owned());
    run::run_recipe(global, origin, overrides, model, set, output, data, debugging)
}
