//! `optix profile`: how fast a model is, and where its time and memory go.

mod inputs;
mod measure;
mod report;
mod scenario;
mod trace;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use optix_base::{OutFile, escape_for_terminal};
use optix_data::Ratio;
use optix_io::Loaded;
use optix_ir::Model;
use optix_pipeline::OracleError;
use optix_pipeline::profile::{Machine, ProfileReport, SCHEMA};
use optix_runtime::{Engine, LoadOptions, Roofline, Times};

use self::inputs::{Feeds, Wanted};
use self::measure::{Effort, Measured, Subject};
use super::setup;
use crate::exit::Missed;
use crate::report::profile as render;
use crate::screen;
use optix::cli::{Global, Load, Profile};

/// Samples in a run of the offline scenario, where the model's first axis is free and the user says nothing.
const OFFLINE_BATCH: usize = 32;

/// Whether an engine computes a quantized model in floats: its time then says nothing about the model.
pub fn is_emulated(engine: &dyn Engine, model: &Model) -> bool {
    let quantizes = |op: &str| matches!(op, "QuantizeLinear" | "DequantizeLinear");
    !engine.has_integer_kernels() && model.walk().any(|node| quantizes(&model.node(node).op_type))
}

/// The engine that was asked for, else onnxruntime when it is found: most models are deployed on it.
fn engine(global: &Global, name: Option<&str>) -> anyhow::Result<Box<dyn Engine>> {
    if let Some(name) = name.or(global.engine.as_deref()) {
        return setup::engine_named(global, name);
    }
    match setup::engine_named(global, "onnxruntime") {
        Ok(engine) => Ok(engine),
        // Asked for by its library: then it must be it.
        Err(error) if global.ort_lib.is_some() => Err(error),
        Err(_) => setup::engine_named(global, "cpu"),
    }
}

/// A model file and what is needed to measure it.
struct Side {
    path: PathBuf,
    loaded: Loaded,
    engine: Box<dyn Engine>,
    feeds: Feeds,
    offline: Feeds,
}

impl Side {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn bytes(&self) -> u64 {
        self.loaded.sources.iter().map(|source| source.size()).sum()
    }
}

/// Everything that can be wrong with the command is found before anything is measured.
struct Prepared {
    sides: Vec<Side>,
    thresholds: Vec<f64>,
    effort: Effort,
}

fn prepare(global: &Global, options: &Profile) -> anyhow::Result<Prepared> {
    let thresholds = thresholds(options)?;
    if !(options.seconds > 0.0 && options.seconds.is_finite() && options.seconds <= 86_400.0) {
        bail!("--seconds {}: it must be more than 0 and no more than a day", options.seconds);
    }
    if options.arrivals.is_some_and(|rate| !(rate > 0.0 && rate <= 1e6)) {
        bail!("--arrivals: it must be more than 0 and at most 1000000 a second");
    }
    if options.runs == Some(0) || options.streams == Some(0) {
        bail!("--runs and --streams must be 1 at least");
    }
    if options.streams.is_some_and(|streams| streams > 1024) {
        bail!("--streams: more than 1024 are too many");
    }
    let both = options.vs.is_some() || options.vs_engine.is_some();
    if !thresholds.is_empty() && !both {
        bail!("--require latency-ratio needs something to compare with: give --vs or --vs-engine");
    }
    let mut wanted = Wanted::new(options)?;
    let mut sides = vec![side(global, options, &mut wanted, &options.model, None)?];
    if both {
        let path = options.vs.as_ref().unwrap_or(&options.model);
        sides.push(side(global, options, &mut wanted, path, options.vs_engine.as_deref())?);
    }
    wanted.check_all_used()?;
    let data = match &options.data {
        Some(path) => setup::dataset(global, path, None)?.files(),
        None => Vec::new(),
    };
    let models = sides.iter().flat_map(|side| side.loaded.sources.iter().map(|source| source.path()));
    let files: Vec<&Path> = models.chain(data.iter().map(PathBuf::as_path)).collect();
    for path in &options.report {
        crate::report::check(path, &files)?;
    }
    if let Some(path) = &options.trace {
        OutFile::check(path, &files)?;
    }
    let outputs: Vec<&Path> = options.report.iter().chain(&options.trace).map(PathBuf::as_path).collect();
    OutFile::check_distinct(&outputs)?;
    let effort = options.runs.map_or(Effort::Seconds(options.seconds), Effort::Runs);
    Ok(Prepared { sides, thresholds, effort })
}

fn side(
    global: &Global,
    options: &Profile,
    wanted: &mut Wanted,
    path: &Path,
    engine_name: Option<&str>,
) -> anyhow::Result<Side> {
    let loaded = setup::load(global, path)?;
    if loaded.model.walk().next().is_none() {
        bail!("{}: it has no nodes to run", escape_for_terminal(&path.to_string_lossy()));
    }
    let of_file = || escape_for_terminal(&path.to_string_lossy()).into_owned();
    let feeds = wanted.feeds(global, options, &loaded.model, options.batch).with_context(of_file)?;
    let offline = match options.batch {
        None if options.scenario.contains(&Load::Offline) => {
            // A model whose first axis is fixed is fed as it is.
            wanted
                .feeds(global, options, &loaded.model, Some(OFFLINE_BATCH))
                .unwrap_or_else(|_| feeds.clone())
        }
        _ => feeds.clone(),
    };
    Ok(Side { path: path.to_owned(), loaded, engine: engine(global, engine_name)?, feeds, offline })
}

/// The thresholds of `--require`.
fn thresholds(options: &Profile) -> anyhow::Result<Vec<f64>> {
    let parse = |text: &String| {
        let shown = escape_for_terminal(text);
        let Some((name, value)) = text.split_once('=') else {
            bail!("--require {shown}: the form is name=number");
        };
        if name.trim() != "latency-ratio" {
            bail!("--require {shown}: there is no such requirement of a profile (there is: latency-ratio)");
        }
        match value.trim().parse::<f64>() {
            Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
            _ => bail!("--require {shown}: the ratio must be a number above 0"),
        }
    };
    options.require.iter().map(parse).collect()
}

/// Measures a model, alone or against another.
pub fn profile(global: &Global, options: &Profile) -> anyhow::Result<()> {
    let started = Instant::now();
    let Prepared { sides, thresholds, effort } = prepare(global, options)?;
    let cancel = setup::cancel_on_interrupt();
    let bars = screen::Bars::new(global);
    let roof = optix_runtime::roofline(global.threads).map_err(OracleError::from)?;
    let load_options = LoadOptions { threads: global.threads, ..LoadOptions::default() };
    let mut facts = ProfileReport {
        schema: SCHEMA.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: super::run::command_line(),
        seed: global.seed.unwrap_or(0),
        machine: Machine {
            threads: roof.threads as u64,
            copy_bytes_per_second: roof.bytes_per_second,
            gemm_flops_per_second: roof.flops_per_second,
        },
        ..ProfileReport::default()
    };
    let mut subjects = Vec::new();
    let mut traces: Vec<(String, Times)> = Vec::new();
    let mut offline = Vec::new();
    for side in sides {
        let (name, bytes) = (side.name(), side.bytes());
        let mut subject = Subject::load(side.engine, &load_options, side.loaded.model, side.feeds)?;
        let measured = measure::measure(&mut subject, effort, &bars, &cancel)?;
        add(&mut facts, &subject, &measured, &name, bytes, roof);
        facts.warnings.extend(side.loaded.warnings.iter().cloned());
        traces.push((name, measured.times));
        offline.push(side.offline);
        subjects.push(subject);
    }
    if let [first, second] = &mut subjects[..] {
        if facts.models.iter().any(|model| model.emulated) {
            facts.no_ratio = Some(
                "int8 is emulated in floats on this engine: its time is no measure of the quantized model; compare with --engine onnxruntime"
                    .to_owned(),
            );
        } else {
            let (a, b) = measure::compare(first, second, effort, &bars, &cancel)?;
            match Ratio::of_pairs(&a, &b) {
                Some(found) => facts.ratio = Some(report::ratio(&found)),
                None => facts.no_ratio = Some("there are too few pairs for an interval".to_owned()),
            }
        }
    }
    for (index, subject) in subjects.iter().enumerate() {
        let setting = scenario::Setting {
            subject,
            name: &traces[index].0,
            threads: roof.threads,
            streams: options.streams,
            arrivals: options.arrivals,
            seconds: options.seconds,
            seed: facts.seed,
            offline: &offline[index],
            cancel: &cancel,
        };
        for &load in &options.scenario {
            facts.scenarios.push(setting.run(load)?);
        }
    }
    bars.finish();
    facts.requirements = report::requirements(&thresholds, facts.ratio.as_ref(), facts.no_ratio.as_deref());
    facts.seconds = started.elapsed().as_secs_f64();
    finish(global, options, &facts, &traces)
}

fn add(
    facts: &mut ProfileReport,
    subject: &Subject,
    measured: &Measured,
    name: &str,
    bytes: u64,
    roof: Roofline,
) {
    let model = report::model(subject, measured, name, bytes, roof);
    facts.warnings.extend(report::noise(name, &model.latency));
    if model.emulated {
        facts.warnings.push(format!(
            "{name}: emulated: {} computes quantized operators in floats; these times say nothing about the speed of the quantized model",
            subject.engine.name()
        ));
    }
    if model.data == "random" {
        let text = "the inputs are random: times are real, outputs mean nothing; where work depends on the data, use --data";
        if !facts.warnings.iter().any(|warning| warning == text) {
            facts.warnings.push(text.to_owned());
        }
    }
    facts.models.push(model);
}

/// Prints and writes; a missed requirement becomes the exit code.
fn finish(
    global: &Global,
    options: &Profile,
    facts: &ProfileReport,
    traces: &[(String, Times)],
) -> anyhow::Result<()> {
    for path in &options.report {
        crate::report::write_text(path, |kind| render::text(facts, kind))?;
    }
    if let Some(path) = &options.trace {
        let models: Vec<(&str, &Times)> = traces.iter().map(|(name, times)| (name.as_str(), times)).collect();
        let text = screen::json_text(&trace::trace(&models));
        crate::report::write_file(path, &text)?;
    }
    if options.json {
        screen::result(&screen::json_text(facts))?;
    } else if !global.quiet {
        screen::result(&render::terminal(facts, global.verbose))?;
    }
    Ok(Missed::among(&facts.requirements)?)
}
