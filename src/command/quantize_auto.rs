//! `optix quantize-auto`: recipes in order of price until accuracy holds.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;
use optix_base::{CancelToken, OutFile, escape_for_terminal};
use optix_data::{Dataset, Digest};
use optix_io::{Loaded, SaveOptions};
use optix_passes::PASSES;
use optix_pipeline::auto::{self, Search, Trial};
use optix_pipeline::report::{Interval, Requirement};
use optix_pipeline::runner::{self, RunError, RunOptions};
use optix_pipeline::{Deployment, Override, PassError, Recipe, Resources};

use super::ceiling::Ceiling;
use super::flags::{self, listed};
use super::run::{self, Done, Origin};
use super::setup::{self, CalibrationData};
use super::{evaluation, recipes};
use crate::exit::Missed;
use crate::screen;
use optix::cli::{Data, Debugging, Global, Output};

/// Flags of the command.
pub struct Options<'a> {
    /// Points that may be lost.
    pub max_drop: f64,
    /// What candidates are judged on; the calibration data without it.
    pub tune: Option<&'a Path>,
    pub tune_samples: Option<u64>,
    pub exclude: &'a [String],
}

/// What is tried, in order of price: a name, a built-in recipe and what is set in it. The first ones need
/// calibration data.
const LADDER: &[(&str, &str, &[&str])] = &[
    (
        "int8",
        "int8-cpu",
        &["quantize-static.min-sqnr=0", "quantize-static.bias-correction=false", "learn-rounding.samples=0"],
    ),
    ("int8, biases corrected, weights rounded for their layers", "int8-cpu", &["quantize-static.min-sqnr=0"]),
    ("int8, layers equalized", "int8-accurate", &["quantize-static.min-sqnr=0"]),
    ("int8, 25 dB kept", "int8-accurate", &["quantize-static.min-sqnr=25"]),
    ("int8, 35 dB kept", "int8-accurate", &["quantize-static.min-sqnr=35"]),
    ("int8 products, ranges at run time", "dynamic-transformer", &[]),
    ("int8 weights", "int8-weights", &[]),
    ("float16", "f16", &[]),
];

/// A recipe to try.
struct Candidate {
    name: &'static str,
    recipe: Recipe,
}

fn candidates(options: &Options<'_>, is_calibrated: bool) -> anyhow::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for (name, recipe, set) in LADDER {
        let text = recipes::find(recipe).unwrap_or_default();
        let is_static = text.contains("\"quantize-static\"");
        if is_static && !is_calibrated {
            continue;
        }
        let mut overrides: Vec<Override> = Vec::new();
        for option in *set {
            overrides.push(option.parse().map_err(|what: String| anyhow::anyhow!("{what}"))?);
        }
        if let Some(names) = listed(options.exclude) {
            let parsed = Recipe::parse(text, recipe, PASSES, &[])?;
            let takes = ["equalize-layers", "smooth-activations", "quantize-static", "quantize-dynamic"];
            let takes = takes.iter().chain(&["compress-weights", "convert-precision"]);
            let steps = takes.filter(|id| parsed.steps.iter().any(|step| step.id == ***id));
            let of_step = |id: &&str| flags::overrides(id, [("exclude", Some(names.clone()))]);
            overrides.extend(steps.flat_map(of_step));
        }
        found.push(Candidate { name, recipe: Recipe::parse(text, recipe, PASSES, &overrides)? });
    }
    Ok(found)
}

/// What trying candidates needs.
struct Bench<'a> {
    global: &'a Global,
    loaded: &'a Loaded,
    target: &'a Path,
    save: &'a SaveOptions,
    calibration: Option<&'a CalibrationData>,
    tune: &'a Dataset,
    deploy: Option<&'a str>,
    ceiling: Option<Ceiling>,
    verify_each: bool,
    /// Of the original.
    bytes: u64,
    cancel: &'a CancelToken,
}

/// The recipe file beside an output: OUTPUT.recipe.toml.
fn recipe_path(target: &Path) -> PathBuf {
    let mut name = target.file_name().map(std::ffi::OsStr::to_os_string).unwrap_or_default();
    name.push(".recipe.toml");
    target.with_file_name(name)
}

/// Whether another candidate may still do: the model does not suit this one.
fn does_not_suit(error: &RunError) -> bool {
    use optix_pipeline::runner::StepFault;
    matches!(
        &*error.fault,
        StepFault::Requires(_) | StepFault::Pass(PassError::Model { .. } | PassError::Options(_))
    )
}

/// What a candidate made.
struct Made {
    prepared: optix_io::Prepared,
    done: Done,
    /// What it calibrated on.
    digest: Option<Digest>,
}

impl Bench<'_> {
    /// Runs a candidate and measures what it loses; nothing where it does not suit the model.
    fn attempt(&self, candidate: &Candidate) -> anyhow::Result<Option<(Trial, Made)>> {
        self.calibration.into_iter().for_each(CalibrationData::forget);
        let started = Instant::now();
        let mut oracle = setup::engine(self.global)?;
        let is_static = candidate.recipe.steps.iter().any(|step| step.spec.name == "quantize-static");
        let mut deployment = if is_static { setup::deployment(self.global, self.deploy)? } else { None };
        let bars = screen::Bars::new(self.global);
        let mut model = self.loaded.model.clone();
        let mut resources = Resources {
            oracle: &mut oracle,
            calibration: self.calibration.map(|data| data as &dyn optix_pipeline::Calibration),
            seed: self.global.seed.unwrap_or(candidate.recipe.seed),
            progress: &bars,
            deployment: deployment.as_mut().map(|deployment| deployment as &mut dyn Deployment),
            cancel: self.cancel.clone(),
            ..Resources::default()
        };
        let limits = setup::limits(self.global)?;
        let (verify_each, command) = (self.verify_each, run::command_line());
        let options = RunOptions { verify_each, limits, command, ..RunOptions::default() };
        let done = runner::run(&candidate.recipe, &mut model, &mut resources, &options, &mut |_, _| {});
        bars.finish();
        let engine = resources.oracle.describe();
        let digest = self.calibration.and_then(CalibrationData::digest);
        let steps = match done {
            Ok(steps) => steps,
            Err(error) if does_not_suit(&error) => {
                self.say(&format!("{}: does not suit the model: {error}", candidate.name));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let evaluated = evaluation::evaluate(
            self.global,
            &oracle,
            [&self.loaded.model, &model],
            self.tune,
            (self.ceiling, self.bytes),
            self.cancel,
            &bars,
        );
        bars.finish();
        let (evaluation, _) = evaluated?;
        // Of what is lost, the upper end counts; a change is a gain.
        let drop = match (&evaluation.accuracy, &evaluation.agreement) {
            (Some(accuracy), _) => {
                let change = accuracy.change_points;
                Interval { value: -change.value, low: -change.high, high: -change.low }
            }
            (None, Some(same)) => {
                let lost = |share: f64| (1.0 - share) * 100.0;
                Interval { value: lost(same.value), low: lost(same.high), high: lost(same.low) }
            }
            (None, None) => bail!(
                "the model gives no rows of scores, so neither accuracy nor agreement can be measured; choose a \
                 recipe and say what it must keep: `optix quantize --require sqnr-db=30`"
            ),
        };
        let prepared = optix_io::prepare(&model, self.target, self.save)?;
        let bytes = prepared.stats().bytes;
        let seconds = started.elapsed().as_secs_f64();
        let done = Done { model, steps, engine, calibration: None };
        let trial = Trial { name: candidate.name.to_owned(), drop, bytes, seconds };
        Ok(Some((trial, Made { prepared, done, digest })))
    }

    fn say(&self, text: &str) {
        if !self.global.quiet {
            screen::note(&screen::foreign(text));
        }
    }
}

/// Searches, then runs the recipe that was found as `optix run` does, with report and lock.
pub fn quantize_auto(
    global: &Global,
    model_path: &Path,
    options: &Options<'_>,
    output: &Output,
    data: &Data,
    debugging: &Debugging,
) -> anyhow::Result<()> {
    if !(options.max_drop >= 0.0 && options.max_drop <= 100.0) {
        bail!("--max-drop {}: points of accuracy, from 0 to 100", options.max_drop);
    }
    if output.in_place {
        bail!(
            "every candidate starts from the original, which must stay until the search ends: give `-o FILE`"
        );
    }
    let Some(judged_on) = options.tune.or(data.calib.as_deref()) else {
        bail!(
            "candidates are judged on data: give `--calib DATA`, or `--tune DATA` where there is nothing to calibrate on"
        );
    };
    if options.tune.is_some_and(|tune| data.eval.as_deref() == Some(tune)) {
        bail!(
            "--tune and --eval are the same data: what a recipe is chosen by says nothing about it afterwards"
        );
    }
    let candidates = candidates(options, data.calib.is_some())?;
    let loaded = setup::load(global, model_path)?;
    let target = output.output.clone().unwrap_or_default();
    let save = setup::save_options(&loaded, &target, false, output.external_data)?;
    for candidate in &candidates {
        run::check_has_graph(&loaded, &candidate.recipe, model_path)?;
    }
    optix_io::check_target(&target, &save)?;
    let ceiling = data.memory.max_memory.map(|size| Ceiling { bytes: size.0 });
    let mut calibration = match &data.calib {
        None => None,
        Some(path) => {
            let dataset = setup::real_dataset(global, path, data.calib_samples)?;
            Some(CalibrationData::new(dataset, path.display().to_string()))
        }
    };
    if let Some(calibration) = &mut calibration {
        run::fit_calibration(calibration, &loaded, ceiling)?;
    }
    let tune = setup::real_dataset(global, judged_on, options.tune_samples)?;
    tune.bind(&setup::inputs(&loaded.model)?, setup::BATCH)?;
    let recipe_file = recipe_path(&target);
    let files: Vec<PathBuf> =
        tune.files().into_iter().chain(calibration.iter().flat_map(|data| data.dataset.files())).collect();
    let inputs: Vec<&Path> =
        files.iter().map(PathBuf::as_path).chain(loaded.sources.iter().map(|source| source.path())).collect();
    OutFile::check(&target, &inputs)?;
    OutFile::check(&recipe_file, &inputs)?;
    let cancel = setup::cancel_on_interrupt();
    let bytes: u64 = loaded.sources.iter().map(|source| source.size()).sum();
    let bench = Bench {
        global,
        loaded: &loaded,
        target: &target,
        save: &save,
        calibration: calibration.as_ref(),
        tune: &tune,
        deploy: output.deploy.as_deref(),
        ceiling,
        verify_each: debugging.verify_each,
        bytes,
        cancel: &cancel,
    };
    let mut best = None;
    let found = auto::search(
        &candidates,
        options.max_drop,
        bytes,
        &mut |candidate: &Candidate| {
            let tried = bench.attempt(candidate)?;
            if let Some((trial, _)) = &tried {
                bench.say(&described(trial, bytes, options.max_drop));
            }
            Ok::<_, anyhow::Error>(tried)
        },
        // The best is on disk from here on, whatever becomes of the search.
        &mut |candidate, _, Made { prepared, done, digest }| {
            prepared.commit()?;
            best = Some((done, digest));
            write_recipe(&candidate.recipe, &recipe_file)
        },
    )?;
    let Some(chosen) = found.kept.map(|kept| &found.trials[kept]) else {
        bail!("no recipe makes this model smaller at a loss that can be measured; nothing was written");
    };
    let chosen = candidates.iter().find(|candidate| candidate.name == chosen.name);
    let text = chosen.map(|candidate| candidate.recipe.to_toml()).unwrap_or_default();
    let name = escape_for_terminal(&recipe_file.to_string_lossy()).into_owned();
    // Its steps need not run again, unless something of them is to be seen or kept.
    let is_watched = !data.stats.is_empty()
        || debugging.check
        || debugging.print_after.is_some()
        || debugging.dump_dir.is_some()
        || debugging.stop_after_patch.is_some();
    let best = best.filter(|_| !is_watched);
    let done = best.map(|(done, digest)| Done {
        calibration: calibration.map(|calibration| calibration.having_read(digest)),
        ..done
    });
    let origin = Origin { done, ..Origin::text(text, name) };
    run::run_recipe(global, origin, Vec::new(), model_path, &[], output, data, debugging)?;
    conclude(global, &found, options.max_drop, &recipe_file)
}

/// A trial as a line.
fn described(trial: &Trial, bytes: u64, most: f64) -> String {
    let Trial { name, drop, .. } = trial;
    format!(
        "{name}: {:.2} points lost (95% interval {:.2} to {:.2}), {:.2} of the bytes, {:.1} s: {}",
        drop.value,
        drop.low,
        drop.high,
        trial.bytes as f64 / bytes.max(1) as f64,
        trial.seconds,
        if trial.holds(most) {
            format!("surely within {most}")
        } else if drop.low > most {
            format!("more than {most}")
        } else {
            format!("not surely within {most}")
        }
    )
}

fn write_recipe(recipe: &Recipe, path: &Path) -> anyhow::Result<()> {
    let mut file = OutFile::create(path)?;
    file.file().write_all(recipe.to_toml().as_bytes()).map_err(|error| file.error(error))?;
    file.sync()?;
    Ok(file.commit()?)
}

/// Whether what was found is good enough.
fn conclude(global: &Global, found: &Search, most: f64, recipe: &Path) -> anyhow::Result<()> {
    let kept = found.kept.map(|kept| &found.trials[kept]);
    let requirement = Requirement {
        name: "max-drop".to_owned(),
        threshold: most,
        value: kept.map(|trial| trial.drop.high),
        met: found.holds,
        note: String::new(),
    };
    if !global.quiet {
        let kept = kept.map_or("", |trial| &trial.name);
        let said = match found.holds {
            true => format!("chosen: {kept}; the recipe is {}", recipe.display()),
            false => format!(
                "no recipe surely loses at most {most} points; kept is the best of {}: {kept} ({}). More data to judge \
                 on (--tune) narrow the intervals",
                found.trials.len(),
                recipe.display()
            ),
        };
        screen::note(&screen::foreign(&said));
    }
    Ok(Missed::among(&[requirement])?)
}
