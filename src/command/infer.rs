//! `optix infer`: a model's outputs, or any values of it, into a .npz.

use std::path::{Path, PathBuf};

use anyhow::bail;
use optix_data::{NpzWriter, Packing, Rows};
use optix_ir::ValueId;
use optix_pipeline::{Oracle, Progress};
use optix_runtime::{Proof, batching, stream};

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
    batch: Option<usize>,
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
    let oracle = setup::engine(global)?;
    let cancel = setup::cancel_on_interrupt();
    let mut lanes = [setup::lane(global, &oracle, model, wanted.clone())?];
    let batching = batching(&mut lanes, &dataset, &setup::inputs(model)?, batch, Proof::Wanted)?;
    setup::note_batch(global, &batching.alone, batching.size());
    let rows = if batching.bound.is_batched() { Rows::Samples } else { Rows::One };
    let bars = screen::Bars::new(global);
    let total = batching.bound.len().unwrap_or(0);
    let mut writer = NpzWriter::create(output, Packing::Stored)?;
    let mut done = 0;
    let seen = stream(&mut lanes, &batching.bound, batching.first, &cancel, &mut |batch, results| {
        for (&value, tensor) in wanted.iter().zip(&results[0]) {
            writer.add(model.value(value).name(), tensor, rows)?;
        }
        done += batch.count as u64;
        bars.tick("running", done, total);
        Ok(())
    });
    bars.finish();
    let seen = seen?;
    setup::lane_remarks(global, &lanes);
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
