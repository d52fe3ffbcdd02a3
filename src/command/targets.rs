//! `optix targets`: the engines that models can be quantized for, and a probe of the one that is here.

use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use optix_base::{OutFile, escape_for_terminal};
use optix_passes::quantize::probe::{self, Facts};
use optix_passes::quantize::target::{MAX_TARGET_BYTES, Runs, TARGETS, Target, TargetChoice};
use optix_passes::quantize::{ActivationType, QuantizeStatic, Saturation};
use optix_pipeline::{Named, OracleError, Progress, Recipe};
use optix_runtime::{EngineDeployment, LoadOptions, Machine};

use super::setup;
use crate::screen;
use optix::cli::{Global, TargetsCommand};

/// Lists targets, prints one or makes one.
pub fn targets(global: &Global, command: Option<&TargetsCommand>) -> anyhow::Result<()> {
    match command {
        None => list(),
        Some(TargetsCommand::Show { name }) => {
            TargetChoice::named(name).map_err(|what| anyhow!(what))?;
            let text = TARGETS.iter().find(|(known, _)| known == name).map_or("", |(_, text)| text);
            screen::result(text)
        }
        Some(TargetsCommand::Probe { output, name }) => make(global, output, name.as_deref()),
    }
}

fn list() -> anyhow::Result<()> {
    let width = TARGETS.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, _) in TARGETS {
        let target = Target::built_in(name).with_context(|| format!("target {name} cannot be read"))?;
        let types =
            |types: &[ActivationType]| types.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(" ");
        text.push_str(&format!("{name:width$}  {}\n", target.about));
        let mut activations = types(&target.activations.native);
        if !target.activations.emulated.is_empty() {
            activations.push_str(&format!("; in float: {}", types(&target.activations.emulated)));
        }
        text.push_str(&format!("{:width$}    {activations}\n", ""));
    }
    screen::result(&text)
}

/// What `--target` says: a name, or a file whose profile goes into the recipe as a whole. As a TOML value.
pub fn value(given: &str) -> anyhow::Result<(Target, String)> {
    let path = Path::new(given);
    let is_path = given.contains('/') || path.extension().is_some_and(|extension| extension == "toml");
    if !is_path {
        let choice = TargetChoice::named(given).map_err(|what| anyhow!("--target: {what}"))?;
        let target = choice.resolve().map_err(|what| anyhow!("--target: {what}"))?;
        return Ok((target, super::flags::quoted(given)));
    }
    let name = escape_for_terminal(given).into_owned();
    let bytes = setup::read_whole(path, "target", MAX_TARGET_BYTES as u64)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| anyhow!("target {name}: it is not UTF-8 text; save it as UTF-8"))?;
    let target = Target::parse(&text).map_err(|what| anyhow!("target {name}: {what}"))?;
    // A recipe is to mean the same wherever it goes: it holds the profile and not the path.
    let table = toml::Value::try_from(target.decided()).with_context(|| format!("target {name}"))?;
    Ok((target, table.to_string()))
}

/// Whether what a recipe makes may be timed here: neither models for another engine, nor types that the engine
/// computes in float, whose speed nobody asks for.
pub fn is_timed(recipe: &Recipe) -> bool {
    recipe.steps.iter().filter(|step| step.spec.name == QuantizeStatic::NAME).all(|step| {
        let choice = step.options.get("target").map(|target| target.clone().try_into::<TargetChoice>());
        let choice = choice.and_then(Result::ok).unwrap_or_default();
        let Ok(target) = choice.resolve() else { return true };
        let asked = step.options.get("activation-type").and_then(toml::Value::as_str);
        let activations = asked.and_then(ActivationType::named).unwrap_or(target.default_activations());
        let is_small = step.options.get("weight-type").and_then(toml::Value::as_str) == Some("int4");
        target.engine == ENGINE && target.runs(activations) != Some(Runs::Emulated) && !is_small
    })
}

/// The engine that is probed.
const ENGINE: &str = "onnxruntime";

/// Probes onnxruntime and writes the profile.
fn make(global: &Global, output: &Path, name: Option<&str>) -> anyhow::Result<()> {
    OutFile::check(output, &[])?;
    let stem = output.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name = name.map_or(stem, str::to_owned);
    let options = LoadOptions { threads: global.threads, ..Default::default() };
    let mut deployment = EngineDeployment::new(setup::engine_named(global, ENGINE)?, options);
    let mut oracle = setup::oracle_named(global, ENGINE)?;
    let machine = Machine::detect();
    let facts = Facts {
        name,
        engine: ENGINE.to_owned(),
        processor: format!("{}: {}", machine.processor, machine.instruction_sets.join(" ")),
        date: today(),
    };
    let bars = screen::Bars::new(global);
    let cancel = setup::cancel_on_interrupt();
    let target = probe::probe(&facts, &mut deployment, &mut oracle, &mut |done, total| {
        bars.tick("probing operators", done, total);
        if cancel.is_cancelled() { Err(OracleError::Interrupted) } else { Ok(()) }
    });
    bars.finish();
    let target = target?;
    // What is written must be readable: a name from a file's may not be.
    let text = target.to_toml();
    if let Err(what) = Target::parse(&text) {
        bail!("the profile cannot be written: {what} (--name gives it another name)");
    }
    let mut file = OutFile::create(output)?;
    file.file().write_all(text.as_bytes()).map_err(|error| file.error(error))?;
    file.sync()?;
    file.commit()?;
    if global.quiet {
        return Ok(());
    }
    screen::result(&summary(&target))
}

/// The profile in a few lines.
fn summary(target: &Target) -> String {
    let of = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(" ") };
    let types = |types: &[ActivationType]| of(types.iter().map(|dtype| dtype.name()).collect());
    let operators = &target.operators;
    let clips = match target.weights.saturation {
        Saturation::Avoid => "pairs of uint8 and int8 products are clipped to int16 on this processor",
        Saturation::Allow => "pairs of uint8 and int8 products are not clipped on this processor",
    };
    let lines = [
        ("engine", target.source.engine.clone()),
        ("operator sets", format!("up to {}", target.operator_sets.greatest)),
        ("activations", types(&target.activations.native)),
        ("in float", types(&target.activations.emulated)),
        ("weights", types(&target.weights.native)),
        ("with weights", of(operators.weighted.iter().map(|op| op.name()).collect())),
        ("needs Q behind", of(operators.quantized_output.iter().map(|op| op.name()).collect())),
        ("two activations", of(operators.products.iter().map(|op| op.name()).collect())),
        ("between", of(operators.bridges.iter().map(|op| op.name()).collect())),
        ("passed through", of(operators.movers.iter().map(|op| op.name()).collect())),
        ("folded", of(operators.folded.iter().map(|op| op.name()).collect())),
        ("left float", of(target.left_float.iter().map(|left| left.operator.as_str()).collect())),
        ("saturation", clips.to_owned()),
    ];
    let mut text = String::new();
    for (title, line) in lines {
        text.push_str(&format!("{title:15}  {}\n", escape_for_terminal(&line)));
    }
    text
}

/// Today's date, year first, in universal time.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // Days since 1 March of year 0 in eras of 400 years, whose last day is a leap day's (Howard Hinnant's
    // "chrono-compatible low-level date algorithms").
    let days = (seconds / 86_400) as i64 + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + next)
}
