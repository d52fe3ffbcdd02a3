//! `optix infer`: a model's outputs, or any values of it, into a .npz.

use std::path::{Path, PathBuf};

use anyhow::bail;
use optix_data::{NpzWriter, Packing, Rows};
use optix_ir::ValueId;
use optix_pipeline::{Oracle, OracleError, Progress};

use super::setup;
use crate::screen;
use optix::cli::Global;

/// Runs a model over data.
pub fn infer(
    global: &Global,
    model_path: &Path,
    data: &Path,
    output: &Path,
    want: &[String],
    samples: Option<u64>,
) -> anyhow::Result<()> {
    let loaded = setup::load(global, model_path)?;
    let model = &loaded.model;
    let main = model.main();
    let mut wanted: Vec<ValueId> = Vec::new();
    for name in want {
        match model.find_value(main, name) {
            Some(value) => wanted.push(value),
            None => {
                let names: Vec<&str> = model.values().map(|value| model.value(value).name()).collect();
                let hint = optix_pipeline::did_you_mean(name, names);
                bail!("--want {name}: the model has no such value{hint}");
            }
        }
    }
    if want.is_empty() {
        wanted = model.graph(main).outputs().iter().map(|info| info.value).collect();
    }
    wanted.dedup();
    let dataset = setup::dataset(global, data, samples)?;
    let files = dataset.files();
    let mut inputs: Vec<&Path> = loaded.sources.iter().map(|source| source.path()).collect();
    inputs.extend(files.iter().map(PathBuf::as_path));
    optix_base::OutFile::check(output, &inputs)?;
    let bound = dataset.bind(&setup::inputs(model)?, setup::BATCH)?;
    let rows = if bound.is_batched() { Rows::Samples } else { Rows::One };
    let mut oracle = setup::engine(global)?;
    let bars = screen::Bars::new(global);
    let total = bound.len().unwrap_or(0);
    let mut writer = NpzWriter::create(output, Packing::Stored)?;
    let mut done = 0;
    let seen = oracle.observe(model, &wanted, &mut bound.batches()?, &mut |value, tensor| {
        writer.add(model.value(value).name(), tensor, rows).map_err(OracleError::from)?;
        if Some(&value) == wanted.first() {
            done += bound.batch_size() as u64;
            bars.tick("running", done.min(total), total);
        }
        Ok(())
    })?;
    bars.finish();
    setup::remarks(global, &oracle);
    let notes = writer.finish()?;
    notes.iter().for_each(|text| screen::note(&format!("note: {text}")));
    if global.quiet {
        return Ok(());
    }
    let names: Vec<String> = wanted
        .iter()
        .map(|&value| optix_base::escape_for_terminal(model.value(value).name()).into_owned())
        .collect();
    screen::result(&format!(
        "{}: {} of {seen} samples ({})\n",
        output.display(),
        names.join(", "),
        oracle.describe()
    ))
}
