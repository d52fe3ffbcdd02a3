//! The embedded engine over every operator case, before and after the clean passes; and the clean passes
//! with `--check` over the fixtures and, with `OPTIX_MODELS=DIR`, over the real models below that folder.

use std::path::{Path, PathBuf};
use std::time::Instant;

use optix_base::CancelToken;
use optix_io::LoadOptions;
use optix_ir::{Model, Tensor};
use optix_passes::PASSES;
use optix_pipeline::check::relative_difference;
use optix_pipeline::runner::{self, RunError, RunOptions, StepFault};
use optix_pipeline::{NoProgress, Oracle, OracleError, Recipe, Resources};
use optix_runtime::{Cpu, EngineOracle};

use crate::cases::{self, Case};
use crate::conformance::tensors;
use crate::random::differences;

/// What the tolerance of fold-batch-norm, the only clean pass that is not exact, allows.
const WITHIN: f64 = 1e-4;

fn oracle() -> EngineOracle {
    EngineOracle::new(Box::new(Cpu), optix_runtime::LoadOptions { threads: 2, ..Default::default() })
}

/// Runs the built-in recipe `clean`.
fn clean(model: &mut Model, oracle: &mut EngineOracle, check: bool) -> Result<(), RunError> {
    let recipe =
        Recipe::parse(include_str!("../../recipes/clean.toml"), "clean", PASSES, &[]).expect("it parses");
    let mut resources = Resources {
        oracle,
        calibration: None,
        seed: recipe.seed,
        progress: &NoProgress,
        cancel: CancelToken::new(),
    };
    let options = RunOptions { check, ..RunOptions::default() };
    runner::run(&recipe, model, &mut resources, &options, &mut |_, _| {}).map(|_| ())
}

/// What the engine makes of one data set; `None` where it does not run the model.
fn run(case: &Case, model: &Model, inputs: &[Tensor]) -> Result<Option<Vec<Tensor>>, String> {
    let names =
        model.graph(model.main()).inputs().iter().map(|info| model.value(info.value).name().to_owned());
    let feeds: Vec<(String, Tensor)> = names.zip(inputs.iter().cloned()).collect();
    match oracle().outputs(model, &feeds) {
        Ok(outputs) => Ok(Some(outputs)),
        Err(OracleError::Unsupported { .. }) => Ok(None),
        // A form of an operator that only its inputs tell.
        Err(OracleError::Node { what, .. }) if what.contains("not supported") => Ok(None),
        Err(error) => Err(format!("{}: {error}", case.name)),
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
            let (Ok(inputs), Ok(expected)) = (tensors(&set.inputs), tensors(&set.outputs)) else {
                within_reach = false;
                continue;
            };
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
                let moved = relative_difference(before, after);
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
    let document = include_str!("../../docs/operators.md");
    assert!(
        document.contains(&format!("{passed} of {} cases pass", cases.len())),
        "{passed} pass on the engine"
    );
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

fn collect(folder: &Path, models: &mut Vec<PathBuf>) {
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
