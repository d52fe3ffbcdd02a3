//! The embedded engine over every operator case, before and after the clean passes; and the clean passes
//! with `--check` over the fixtures and, with `OPTIX_MODELS=DIR`, over the real models below that folder.

#![allow(clippy::print_stderr, reason = "says what was skipped and what was counted")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use optix_io::LoadOptions;
use optix_ir::{Model, ValueId};
use optix_ops::{Datum, OpError};
use optix_passes::PASSES;
use optix_pipeline::check::relative_difference;
use optix_pipeline::runner::{self, RunError, RunOptions, StepFault};
use optix_pipeline::{OracleError, Recipe, Resources};
use optix_runtime::{Cpu, Engine, EngineOracle, RuntimeError};

use crate::cases::{self, Case};
use crate::models;
use crate::random::differences;

/// What the tolerance of fold-batch-norm and fold-bias, the only clean passes that are not exact, allows.
const WITHIN: f64 = 1e-4;

fn oracle() -> EngineOracle {
    EngineOracle::new(Box::new(Cpu), optix_runtime::LoadOptions { threads: 2, ..Default::default() })
}

/// Runs the built-in recipe `clean`.
fn clean(model: &mut Model, oracle: &mut EngineOracle, check: bool) -> Result<(), RunError> {
    let recipe =
        Recipe::parse(include_str!("../../recipes/clean.toml"), "clean", PASSES, &[]).expect("it parses");
    let mut resources = Resources { oracle, seed: recipe.seed, ..Resources::default() };
    let options = RunOptions { check, ..RunOptions::default() };
    runner::run(&recipe, model, &mut resources, &options, &mut |_, _| {}).map(|_| ())
}

/// What the engine makes of one data set; `None` where it does not run the model.
fn run(case: &Case, model: &Model, inputs: &[Datum]) -> Result<Option<Vec<Datum>>, String> {
    let graph = model.graph(model.main());
    let feeds: Vec<(ValueId, Datum)> =
        graph.inputs().iter().map(|info| info.value).zip(inputs.iter().cloned()).collect();
    let outputs: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
    let session = Cpu.load(model, &optix_runtime::LoadOptions { threads: 2, ..Default::default() });
    match session.and_then(|mut session| session.run_data(&feeds, &outputs)) {
        Ok(outputs) => Ok(Some(outputs)),
        Err(RuntimeError::Unsupported { .. }) => Ok(None),
        // A form of an operator that only its inputs tell.
        Err(RuntimeError::Node { source: OpError::Unsupported { .. }, .. }) => Ok(None),
        Err(error) => Err(format!("{}: {error}", case.name)),
    }
}

/// How far two results of the same model part; infinite for different kinds and shapes.
fn moved(before: &Datum, after: &Datum) -> f64 {
    match (before, after) {
        (Datum::Tensor(before), Datum::Tensor(after)) => relative_difference(before, after),
        (Datum::Sequence(before), Datum::Sequence(after)) if before.len() == after.len() => {
            before.iter().zip(after).map(|(before, after)| moved(before, after)).fold(0.0, f64::max)
        }
        (Datum::Optional(Some(before)), Datum::Optional(Some(after))) => moved(before, after),
        (Datum::Optional(None), Datum::Optional(None)) => 0.0,
        _ => f64::INFINITY,
    }
}

#[test]
fn the_engine_agrees_with_the_operator_cases_before_and_after_the_clean_passes() {
    let (mut passed, mut out_of_reach, mut wrong) = (0, 0, Vec::new());
    let cases = cases::load();
    for case in &cases {
        let model = crate::models::read_model(&case.model);
        let mut cleaned = model.clone();
        if let Err(error) = clean(&mut cleaned, &mut oracle(), false) {
            wrong.push(format!("{}: {error}", case.name));
            continue;
        }
        let mut within_reach = true;
        for set in &case.sets {
            let inputs: Vec<Datum> = set.inputs.iter().map(models::read_sample).collect();
            let expected: Vec<Datum> = set.outputs.iter().map(models::read_sample).collect();
            let (before, after) = match (run(case, &model, &inputs), run(case, &cleaned, &inputs)) {
                (Ok(Some(before)), Ok(Some(after))) => (before, after),
                (Ok(None), Ok(_)) => {
                    within_reach = false;
                    continue;
                }
                (Ok(Some(_)), Ok(None)) => {
                    wrong.push(format!("{}: runs, but not behind the clean passes", case.name));
                    continue;
                }
                (Err(what), _) | (_, Err(what)) => {
                    wrong.push(what);
                    continue;
                }
            };
            let found = differences(case, &inputs, &before, &expected);
            wrong.extend(found.into_iter().map(|what| format!("{}: {what}", case.name)));
            if after.len() != before.len() {
                wrong.push(format!("{}: {} outputs, expected {}", case.name, after.len(), before.len()));
            }
            for (index, (before, after)) in before.iter().zip(&after).enumerate() {
                let moved = moved(before, after);
                if moved > WITHIN {
                    wrong.push(format!(
                        "{}: output {index}: the clean passes move it by {moved:.1e}",
                        case.name
                    ));
                }
            }
        }
        if within_reach { passed += 1 } else { out_of_reach += 1 }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("operator cases on the cpu engine: {passed} pass, {out_of_reach} out of reach");
    // docs/operators.md says the same of the reference kernels; the engine must not fall behind them.
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operators.md");
    let document = std::fs::read_to_string(document).expect("it is generated and kept");
    assert!(
        document.contains(&format!("{passed} of {} cases pass", cases.len())),
        "{passed} pass on the engine"
    );
}

#[test]
fn the_engine_agrees_with_onnxruntime_on_its_own_operators() {
    let mut wrong = Vec::new();
    for case in cases::load_from("fixtures/contrib/cases.bin.gz") {
        let model = crate::models::read_model(&case.model);
        for set in &case.sets {
            let inputs: Vec<Datum> = set.inputs.iter().map(models::read_sample).collect();
            let expected: Vec<Datum> = set.outputs.iter().map(models::read_sample).collect();
            match run(&case, &model, &inputs) {
                Ok(Some(outputs)) => {
                    if let Err(what) = crate::contrib::compare(&case, &outputs, &expected, &mut 0) {
                        wrong.push(format!("{}: {what}", case.name));
                    }
                }
                Ok(None) => wrong.push(format!("{}: does not run", case.name)),
                Err(what) => wrong.push(what),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Runs every clean pass with a check on random inputs over all models below a folder.
fn check_below(folder: &Path) {
    let mut models = Vec::new();
    collect(folder, &mut models);
    models.sort();
    let (mut checked, mut skipped) = (0, Vec::new());
    for path in &models {
        let loaded = match optix_io::load(path, &LoadOptions::default()) {
            Ok(loaded) => loaded,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let started = Instant::now();
        let mut model = loaded.model;
        match clean(&mut model, &mut oracle(), true) {
            Ok(()) => checked += 1,
            Err(error) => match &*error.fault {
                StepFault::Check(what @ (OracleError::Unsupported { .. } | OracleError::Feeds(_))) => {
                    skipped.push(format!("{}: {what}", path.display()));
                    // Without a check they must still be legal and go through.
                    let mut model =
                        optix_io::load(path, &LoadOptions::default()).expect("it loaded before").model;
                    clean(&mut model, &mut oracle(), false)
                        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                }
                _ => panic!("{}: {error}", path.display()),
            },
        }
        eprintln!("{}: {:.1} s", path.display(), started.elapsed().as_secs_f64());
    }
    assert!(checked > 0, "no model below {}", folder.display());
    eprintln!("{checked} models checked; not run by the engine: {}\n{}", skipped.len(), skipped.join("\n"));
}

pub fn collect(folder: &Path, models: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("the folder can be listed").path();
        // Links lead to the same files again.
        let kind = path.symlink_metadata().expect("it has just been listed").file_type();
        if kind.is_dir() {
            collect(&path, models);
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "onnx") {
            models.push(path);
        }
    }
}

#[test]
fn clean_passes_keep_their_promises_on_the_fixtures() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    check_below(&fixtures.join("models"));
    check_below(&fixtures.join("graphs"));
}

#[test]
fn clean_passes_keep_their_promises_on_real_models() {
    match std::env::var_os("OPTIX_MODELS") {
        Some(folder) => check_below(Path::new(&folder)),
        None => eprintln!("skipped: OPTIX_MODELS=DIR names the folder of the real models"),
    }
}
