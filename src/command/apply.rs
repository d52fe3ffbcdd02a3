//! `optix apply`: the output of a run, made again from its lock.

use std::path::Path;

use anyhow::{Context, bail};
use optix_base::{OutFile, escape_for_terminal};
use optix_io::Format;
use optix_passes::PASSES;
use optix_pipeline::lock::Lock;
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{NoOracle, Recipe, Resources};

use super::{lock, run, setup};
use crate::{report, screen};
use optix::cli::Global;

/// Applies a lock to the model it was made from.
pub fn apply(
    global: &Global,
    lock_path: &Path,
    model_path: &Path,
    output: Option<&Path>,
    in_place: bool,
) -> anyhow::Result<()> {
    let locked = lock::read(lock_path)?;
    let about = || lock::in_lock(lock_path);
    let recipe = Recipe::parse(&locked.recipe.toml, &format!("{}: its recipe", about()), PASSES, &[])?;
    let decisions = locked.decisions(&recipe).with_context(about)?;
    let limits = setup::limits(global)?;
    locked.check_limits(&limits).with_context(about)?;
    let loaded = setup::load(global, model_path)?;
    locked.check_input(&lock::input_files(&loaded)?).with_context(about)?;
    let target = if in_place { model_path } else { output.unwrap_or(Path::new("")) };
    let save = setup::save_options(&loaded, target, in_place, locked.external_data)?;
    run::check_has_graph(&loaded, &recipe, model_path)?;
    optix_io::check_target(target, &save)?;
    if !target.is_dir() {
        OutFile::check(target, &[lock_path])?;
    }
    check_name(&locked, target, save.format).with_context(about)?;

    let bars = screen::Bars::new(global);
    let mut model = loaded.model.clone();
    let mut resources = Resources {
        oracle: &mut NoOracle,
        seed: recipe.seed,
        progress: &bars,
        cancel: setup::cancel_on_interrupt(),
        ..Resources::default()
    };
    let options = RunOptions {
        stop_after_patch: locked.stop_after_patch,
        limits,
        replay: Some(decisions),
        ..RunOptions::default()
    };
    let steps = runner::run(&recipe, &mut model, &mut resources, &options, &mut |_, _| {});
    bars.finish();
    let steps = steps.with_context(about)?;
    let prepared = optix_io::prepare(&model, target, &save)?;
    let files = lock::output_files(&prepared)?;
    locked.check_output(&files, env!("CARGO_PKG_VERSION")).with_context(about)?;
    let written = prepared.commit()?;
    if global.quiet {
        return Ok(());
    }
    let made: usize = steps.iter().map(|step| step.decisions.len()).sum();
    let shown = |path: &Path| escape_for_terminal(&path.to_string_lossy()).into_owned();
    let mut text = format!(
        "{} -> {}\nsize      {}\nlock      {} steps with {made} decisions of optix {}\n",
        shown(model_path),
        shown(target),
        report::format_bytes(written.bytes),
        steps.len(),
        escape_for_terminal(&locked.version)
    );
    for file in &files {
        text.push_str(&format!("as locked {} BLAKE3 {}\n", escape_for_terminal(&file.name), file.blake3));
    }
    screen::result(&text)
}

/// A model with a data file holds that file's name, which is made from its own: under another name it would be
/// another file.
fn check_name(locked: &Lock, target: &Path, format: Option<Format>) -> anyhow::Result<()> {
    let (Some(Format::Onnx), [_, .., model]) = (format, locked.output.as_slice()) else { return Ok(()) };
    let name = target.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    if name != model.name.as_str() {
        let wanted = escape_for_terminal(&model.name);
        bail!("the model names its data file after itself, so the output must be called {wanted}");
    }
    Ok(())
}
