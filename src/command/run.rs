//! `optix run`: a recipe over a model, and the report of what it cost.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;
use optix_base::{OutFile, escape_for_terminal};
use optix_data::Dataset;
use optix_io::{Format, Loaded};
use optix_ir::Model;
use optix_passes::PASSES;
use optix_pipeline::check::OpsEvaluator;
use optix_pipeline::report::{DataFacts, MemoryFacts, ModelFacts, Overlap, Report, SCHEMA, StepReport};
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{
    CheckpointStore, Deployment, Layer, Override, Recipe, Requirements, Resources, StatisticsStore,
};

use super::ceiling::{Ceiling, Copies, Task};
use super::checkpoint::CheckpointFile;
use super::setup::{self, CalibrationData};
use super::statistics::StatisticsFiles;
use super::{evaluation, latency, lock, recipes, targets};
use crate::exit::Missed;
use crate::{report, screen};
use optix::cli::{Data, Debugging, Global, Output};

/// Where a recipe's text comes from.
pub struct Origin {
    /// The text.
    pub text: String,
    /// What errors call it.
    pub name: String,
    /// Directory its paths are relative to; none for built-in ones.
    pub directory: Option<PathBuf>,
    /// The file itself; none for built-in ones.
    pub file: Option<PathBuf>,
    /// What its steps came to, where they have been run already.
    pub done: Option<Done>,
}

impl Origin {
    /// Text that is no file.
    pub fn text(text: String, name: String) -> Origin {
        Origin { text, name, directory: None, file: None, done: None }
    }
}

/// Steps that have been run.
pub struct Done {
    pub model: Model,
    pub steps: Vec<StepReport>,
    /// What they ran on.
    pub engine: String,
    /// What they calibrated on.
    pub calibration: Option<CalibrationData>,
}

fn origin(recipe: &str) -> anyhow::Result<Origin> {
    let path = Path::new(recipe);
    let is_path = recipe.contains('/') || path.extension().is_some();
    if !is_path {
        if let Some(text) = recipes::find(recipe) {
            let name = format!("recipe {recipe}");
            return Ok(Origin::text(text.to_owned(), name));
        }
        if !path.exists() {
            let hint = optix_pipeline::did_you_mean(recipe, recipes::RECIPES.iter().map(|(name, _)| *name));
            bail!(
                "there is no built-in recipe `{recipe}`{hint}; a file is given with its directory or extension"
            );
        }
    }
    let name = escape_for_terminal(&path.to_string_lossy()).into_owned();
    let bytes = setup::read_whole(path, "recipe", optix_pipeline::MAX_RECIPE_BYTES as u64)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| anyhow::anyhow!("recipe {name}: it is not UTF-8 text; save it as UTF-8"))?;
    let directory = path.parent().map(Path::to_owned);
    Ok(Origin { directory, file: Some(path.to_owned()), ..Origin::text(text, name) })
}

/// Runs a recipe by name or path.
pub fn run(
    global: &Global,
    recipe: &str,
    model: &Path,
    set: &[String],
    output: &Output,
    data: &Data,
    debugging: &Debugging,
) -> anyhow::Result<()> {
    run_recipe(global, origin(recipe)?, Vec::new(), model, set, output, data, debugging)
}

/// Adds `--require NAME=VALUE` to a recipe's thresholds.
fn requirements(require: &mut Requirements, given: &[String]) -> anyhow::Result<()> {
    for text in given {
        let parsed = text
            .split_once('=')
            .and_then(|(name, value)| Some((name.trim(), value.trim().parse::<f64>().ok()?)));
        let Some((name, value)) = parsed.filter(|(_, value)| value.is_finite()) else {
            bail!("--require {text}: the form is name=number");
        };
        let slot = match name {
            "accuracy-drop" => &mut require.accuracy_drop,
            "agreement" => &mut require.agreement,
            "sqnr-db" => &mut require.sqnr_db,
            "size-ratio" => &mut require.size_ratio,
            "latency-ratio" => &mut require.latency_ratio,
            _ => {
                let names = ["accuracy-drop", "agreement", "sqnr-db", "size-ratio", "latency-ratio"];
                let hint = optix_pipeline::did_you_mean(name, names);
                bail!(
                    "--require {text}: there is no requirement `{name}`{hint} (there are: {})",
                    names.join(", ")
                );
            }
        };
        *slot = Some(value);
    }
    Ok(())
}

/// Data paths of a recipe are relative to it, those of the command line to the working directory.
fn merge_data(recipe: &mut Recipe, origin: &Origin, data: &Data) {
    let rebase = |path: &mut Option<PathBuf>| {
        if let (Some(directory), Some(relative)) = (&origin.directory, path.as_ref()) {
            // Never the bare words of the recipe: what it says is a path, not `cmd:PROGRAM`.
            let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            *path = Some(directory.join(relative));
        }
    };
    rebase(&mut recipe.data.calib);
    rebase(&mut recipe.data.eval);
    let target = &mut recipe.data;
    target.calib = data.calib.clone().or(target.calib.take());
    target.eval = data.eval.clone().or(target.eval.take());
    target.calib_samples = data.calib_samples.or(target.calib_samples);
    target.eval_samples = data.eval_samples.or(target.eval_samples);
}

/// Runs a recipe whose text is known.
#[expect(clippy::too_many_arguments, reason = "one for each group of flags")]
pub fn run_recipe(
    global: &Global,
    mut origin: Origin,
    mut overrides: Vec<Override>,
    model_path: &Path,
    set: &[String],
    output: &Output,
    data: &Data,
    debugging: &Debugging,
) -> anyhow::Result<()> {
    let started = Instant::now();
    for text in set {
        overrides.push(text.parse().map_err(|what: String| anyhow::anyhow!("--set: {what}"))?);
    }
    let mut recipe = Recipe::parse(&origin.text, &origin.name, PASSES, &overrides)?;
    merge_data(&mut recipe, &origin, data);
    requirements(&mut recipe.require, &data.require)?;
    recipe.seed = global.seed.unwrap_or(recipe.seed);
    if debugging.print_recipe {
        // Where it will be put is not known, and relative paths would be relative to that.
        recipe.data = recipe.data.absolute();
        return screen::result(&recipe.to_toml());
    }
    if recipe.require.need_evaluation() && recipe.data.eval.is_none() {
        bail!("the requirements need evaluation data: give `--eval PATH` or `[data] eval` in the recipe");
    }
    // Everything that can be wrong with inputs and outputs is found before the work starts.
    let loaded = setup::load(global, model_path)?;
    let target =
        if output.in_place { model_path.to_owned() } else { output.output.clone().unwrap_or_default() };
    let save = setup::save_options(&loaded, &target, output.in_place, output.external_data)?;
    check_has_graph(&loaded, &recipe, model_path)?;
    optix_io::check_target(&target, &save)?;
    let mut done = origin.done.take();
    let known = done.as_mut().and_then(|done| done.calibration.take());
    let mut calibration = match &recipe.data.calib {
        _ if known.is_some() => known,
        None => None,
        Some(path) => {
            let dataset = setup::real_dataset(global, path, recipe.data.calib_samples)?;
            Some(CalibrationData::new(dataset, path.display().to_string()))
        }
    };
    let teacher = data.teacher.as_deref().map(|path| setup::load(global, path)).transpose()?;
    if teacher.is_some() && !recipe.steps.iter().any(|step| step.pass.wants_teacher()) {
        bail!("--teacher: no step of this recipe learns from another model");
    }
    let mut checkpoint = data.checkpoint.clone().map(CheckpointFile::new).transpose()?;
    if checkpoint.is_some() && !recipe.steps.iter().any(|step| step.pass.wants_teacher()) {
        bail!("--checkpoint: no step of this recipe trains");
    }
    let mut statistics = StatisticsFiles::open(&data.stats)?;
    let evaluation_data = match &recipe.data.eval {
        None => None,
        Some(path) => Some((path, setup::real_dataset(global, path, recipe.data.eval_samples)?)),
    };
    let datasets = calibration.iter().map(|data| &data.dataset);
    let datasets: Vec<_> = datasets.chain(evaluation_data.iter().map(|(_, dataset)| dataset)).collect();
    for dataset in &datasets {
        dataset.bind(&setup::inputs(&loaded.model)?, setup::BATCH)?;
    }
    // What is only read must survive, even where the model itself is replaced.
    let made = statistics.as_ref().and_then(|statistics| statistics.make.clone());
    let used = data.stats.iter().filter(|_| made.is_none()).cloned();
    let files: Vec<PathBuf> =
        datasets.iter().flat_map(|dataset| dataset.files()).chain(origin.file.clone()).chain(used).collect();
    let mut inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    OutFile::check(&target, &inputs)?;
    let sources = loaded.sources.iter().chain(teacher.iter().flat_map(|teacher| &teacher.sources));
    inputs.extend(sources.map(|source| source.path()));
    output.report.iter().try_for_each(|path| report::check(path, &inputs))?;
    made.iter().chain(&data.checkpoint).try_for_each(|path| OutFile::check(path, &inputs))?;
    let lock_path = lock::path(&target, output.lock);
    if let Some(path) = &lock_path {
        lock::check_target(path, &inputs)?;
    }
    let kept = made.iter().chain(&data.checkpoint);
    let outputs = output.report.iter().chain([&target]).chain(&lock_path).chain(kept);
    OutFile::check_distinct(&outputs.map(PathBuf::as_path).collect::<Vec<_>>())?;
    let mut oracle = setup::engine(global)?;
    // Not looked for where nothing would be measured: loading its library takes time and memory.
    let mut deployment =
        match output.deploy.is_some() || (latency::is_worth_it(&recipe) && targets::is_timed(&recipe)) {
            true => setup::deployment(global, output.deploy.as_deref())?,
            false => None,
        };
    let ceiling = data.memory.max_memory.map(|size| Ceiling { bytes: size.0 });
    let files: u64 = loaded.sources.iter().map(|source| source.size()).sum();
    let mut memory = MemoryFacts { limit: ceiling.map(|ceiling| ceiling.bytes), ..MemoryFacts::default() };
    if let Some(calibration) = &mut calibration {
        memory.predicted = fit_calibration(calibration, &loaded, ceiling)?;
        memory.calibrated_together = Some(calibration.batch as u64);
    }
    let bars = screen::Bars::new(global);
    let mut model = loaded.model.clone();
    let cancel = setup::cancel_on_interrupt();
    let (steps, engine) = if let Some(done) = done {
        model = done.model;
        (done.steps, done.engine)
    } else {
        let mut resources = Resources {
            oracle: &mut oracle,
            calibration: calibration.as_ref().map(|data| data as &dyn optix_pipeline::Calibration),
            statistics: statistics.as_mut().map(|files| files as &mut dyn StatisticsStore),
            teacher: teacher.as_ref().map(|teacher| &teacher.model),
            checkpoint: checkpoint.as_mut().map(|file| file as &mut dyn CheckpointStore),
            seed: recipe.seed,
            progress: &bars,
            deployment: deployment.as_mut().map(|deployment| deployment as &mut dyn Deployment),
            cancel: cancel.clone(),
        };
        let command = command_line();
        let options = RunOptions {
            verify_each: debugging.verify_each,
            check: debugging.check,
            print_after: debugging.print_after.clone(),
            dump_dir: debugging.dump_dir.clone(),
            stop_after_patch: debugging.stop_after_patch,
            reproducer_dir: Some(
                target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned(),
            ),
            command,
            limits: setup::limits(global)?,
            replay: None,
        };
        check_print_after(&recipe, debugging)?;
        let mut printed =
            |step: &str, text: String| screen::note(&format!("# after {step}\n{}", screen::foreign(&text)));
        let steps = runner::run(&recipe, &mut model, &mut resources, &options, &mut printed);
        bars.finish();
        (steps?, resources.oracle.describe())
    };
    if debugging.timing {
        for step in &steps {
            screen::note(&format!("{:>9.3} ms  {}", step.seconds * 1e3, step.id));
        }
    }
    // Evaluated before anything is written: labels may turn out to be wrong as late as here.
    let evaluation = match &evaluation_data {
        None => None,
        Some((_, dataset)) => {
            let evaluated = evaluation::evaluate(
                global,
                &oracle,
                [&loaded.model, &model],
                dataset,
                (ceiling, files),
                &cancel,
                &bars,
            );
            bars.finish();
            let (evaluation, outcome) = evaluated?;
            setup::note_batch(global, &outcome.alone, outcome.batch);
            memory.predicted = memory.predicted.max(outcome.predicted);
            Some(evaluation)
        }
    };
    setup::remarks(global, &oracle);
    let overlap = match (&calibration, &evaluation_data) {
        (Some(calibration), Some((_, dataset))) => {
            let shared = optix_data::overlap(calibration.dataset.hashes()?, dataset.hashes()?)?;
            Some(Overlap { samples: shared.count, of: shared.second_set })
        }
        _ => None,
    };
    let prepared = optix_io::prepare(&model, &target, &save)?;
    let locked = match &lock_path {
        None => None,
        Some(path) => {
            let made = lock::Made {
                recipe: &recipe,
                engine: &engine,
                steps: &steps,
                input: &loaded,
                output: &prepared,
                external_data: output.external_data,
                stop_after_patch: debugging.stop_after_patch,
                calibration: calibration.as_ref(),
                statistics: statistics.as_ref(),
            };
            let lock = lock::make(global, &made)?;
            Some((lock::prepare(&lock, path)?, lock))
        }
    };
    let mut facts = Report {
        schema: SCHEMA.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: command_line(),
        seed: recipe.seed,
        engine,
        recipe: recipe.to_toml(),
        input: ModelFacts {
            blake3: locked.as_ref().and_then(|(_, lock)| lock.input.first()).map(|file| file.blake3.clone()),
            ..input_facts(&loaded, model_path)
        },
        output: ModelFacts {
            path: target.display().to_string(),
            bytes: prepared.stats().bytes,
            nodes: model.walk().count() as u64,
            tensor_bytes: model.tensor_bytes(),
            blake3: locked.as_ref().and_then(|(_, lock)| lock.output.last()).map(|file| file.blake3.clone()),
        },
        steps,
        warnings: loaded.warnings.iter().cloned().chain(setup::non_finite(&loaded.model)).collect(),
        ..Report::default()
    };
    if let Some(calibration) = &calibration {
        let samples =
            facts.steps.iter().filter_map(|step| step.changes.counters.get("calibration samples")).max();
        facts.data.push(DataFacts {
            role: "calibration".to_owned(),
            path: calibration.path.clone(),
            // Steps that calibrate count; others have read them all the same.
            samples: samples
                .copied()
                .unwrap_or_else(|| calibration.digest().map_or(0, |read| read.samples())),
        });
    }
    if let Some(statistics) = &statistics {
        facts.data.extend(statistics.used().map(|(path, samples, _)| DataFacts {
            role: "statistics".to_owned(),
            path: path.to_owned(),
            samples,
        }));
        if let Some(path) = statistics.made() {
            let samples = facts.data.first().map_or(0, |data| data.samples);
            let (role, path) = ("statistics made".to_owned(), path.display().to_string());
            facts.data.push(DataFacts { role, path, samples });
        }
        statistics.note_unmade();
    }
    if let (Some((path, _)), Some(evaluation)) = (&evaluation_data, &evaluation) {
        facts.data.push(DataFacts {
            role: "evaluation".to_owned(),
            path: path.display().to_string(),
            samples: evaluation.samples,
        });
    }
    if let Some(overlap) = overlap.as_ref().filter(|overlap| overlap.samples > 0) {
        facts.warnings.push(format!(
            "{} of {} evaluation samples were calibrated on: the figures flatter the result",
            overlap.samples, overlap.of
        ));
    }
    facts.overlap = overlap;
    facts.evaluation = evaluation;
    facts.latency = match &mut deployment {
        Some(deployment) if latency::is_worth_it(&recipe) => {
            let datasets: Vec<&Dataset> = calibration
                .iter()
                .map(|data| &data.dataset)
                .chain(evaluation_data.iter().map(|(_, dataset)| dataset))
                .collect();
            let mut layers: Vec<&mut Layer> =
                facts.steps.iter_mut().flat_map(|step| &mut step.changes.layers).collect();
            let measured = latency::measure(deployment, &loaded.model, &model, &datasets, &mut layers);
            measured.unwrap_or_else(|why| {
                facts.warnings.push(format!("the latency was not measured: {why:#}"));
                None
            })
        }
        _ => None,
    };
    if let Some(peak) = super::memory::peak() {
        memory.peak = peak;
        if let Some(limit) = memory.limit.filter(|limit| peak > *limit) {
            facts.warnings.push(format!(
                "the process took {} at its peak, more than --max-memory {}",
                report::format_bytes(peak),
                report::format_bytes(limit)
            ));
        }
        facts.memory = Some(memory);
    }
    facts.requirements = evaluation::check(&recipe.require, &facts);
    facts.requirements.extend(latency::not_slower(&facts, output.allow_slower));
    // Not kept is never written: whatever stood there stays.
    if output.keep_failed || facts.requirements.iter().all(|requirement| requirement.met) {
        prepared.commit()?;
        locked.map_or(Ok(()), |(file, _)| file.commit())?;
    }
    facts.seconds = started.elapsed().as_secs_f64();
    finish(global, output, &facts)
}

/// Lets calibration run as many samples together as the memory allows. Returns the bytes it is predicted to
/// take.
pub fn fit_calibration(
    calibration: &mut CalibrationData,
    loaded: &Loaded,
    ceiling: Option<Ceiling>,
) -> anyhow::Result<Option<u64>> {
    let Some(ceiling) = ceiling else { return Ok(None) };
    let mut typed = loaded.model.clone();
    optix_ir::infer::infer(&mut typed, &OpsEvaluator);
    let files: u64 = loaded.sources.iter().map(|source| source.size()).sum();
    let tasks = [Task::everything(&typed)];
    let fit = ceiling.fit(&tasks, files, &calibration.dataset, setup::BATCH, 1, Copies::Quantized)?;
    calibration.batch = fit.samples;
    Ok(Some(fit.predicted))
}

/// Passes work on graphs; from weights alone, eliminate-dead would leave nothing.
pub fn check_has_graph(loaded: &Loaded, recipe: &Recipe, path: &Path) -> anyhow::Result<()> {
    if loaded.format == Format::Onnx || recipe.steps.is_empty() {
        return Ok(());
    }
    bail!(
        "{}: these are weights without a graph, and `{}` works on a graph; export the model to ONNX",
        escape_for_terminal(&path.to_string_lossy()),
        recipe.steps[0].id
    );
}

fn check_print_after(recipe: &Recipe, debugging: &Debugging) -> anyhow::Result<()> {
    let Some(wanted) = &debugging.print_after else { return Ok(()) };
    if wanted != "all" && !recipe.steps.iter().any(|step| step.id == *wanted) {
        let ids: Vec<&str> = recipe.steps.iter().map(|step| step.id.as_str()).collect();
        let hint = optix_pipeline::did_you_mean(wanted, ids.iter().copied());
        bail!("--print-after {wanted}: the recipe has no such step{hint} (it has: {})", ids.join(", "));
    }
    Ok(())
}

fn input_facts(loaded: &Loaded, path: &Path) -> ModelFacts {
    ModelFacts {
        path: path.display().to_string(),
        bytes: loaded.sources.iter().map(|source| source.size()).sum(),
        nodes: loaded.model.walk().count() as u64,
        tensor_bytes: loaded.model.tensor_bytes(),
        blake3: None,
    }
}

/// Prints and writes the report; a missed requirement becomes the exit code.
fn finish(global: &Global, output: &Output, facts: &Report) -> anyhow::Result<()> {
    for path in &output.report {
        report::write(facts, path)?;
    }
    if output.json {
        screen::result(&report::json(facts))?;
    } else if !global.quiet {
        screen::result(&report::terminal(facts, global.verbose))?;
    }
    Ok(Missed::among(&facts.requirements)?)
}

/// The command line as it was typed, for reports.
pub fn command_line() -> String {
    let arguments = std::env::args_os().enumerate().map(|(index, argument)| {
        let text = argument.to_string_lossy().into_owned();
        if index == 0 {
            return "optix".to_owned();
        }
        let plain = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./=:,+@%".contains(c));
        if plain { text } else { format!("'{}'", escape_for_terminal(&text).replace('\'', "'\\''")) }
    });
    arguments.collect::<Vec<_>>().join(" ")
}
