//! The examples in the manuals of the passes: a fence of model text, `before`, a line `---`, `after`.

use optix_ir::Model;
use optix_ir::text::{PrintOptions, parse, print_with};
use optix_passes::PASSES;
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{PassSpec, Recipe, Resources};
use optix_runtime::{EngineOracle, LoadOptions};

use crate::recovery::Drawn;

/// The examples of a manual: what stands before and after the line `---` of each fence.
fn examples(manual: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut lines = manual.lines();
    while lines.by_ref().any(|line| line.trim() == "```text") {
        let fence: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
        if let Some(at) = fence.iter().position(|line| line.trim() == "---") {
            found.push((fence[..at].join("\n"), fence[at + 1..].join("\n")));
        }
    }
    found
}

fn read(spec: &PassSpec, text: &str) -> Model {
    parse(text).unwrap_or_else(|error| panic!("example of {}: {error}\n{text}", spec.name))
}

#[test]
fn examples_in_manuals_are_true() {
    let (mut without, mut wrong) = (Vec::new(), Vec::new());
    for spec in PASSES {
        let examples = examples(&spec.manual());
        if examples.is_empty() {
            without.push(spec.name);
        }
        for (before, after) in examples {
            let mut model = read(spec, &before);
            run(spec, &mut model);
            let print = |model: &Model| print_with(model, &PrintOptions::full());
            let (found, expected) = (print(&model), print(&read(spec, &after)));
            if found != expected {
                wrong.push(format!("{}: the pass makes\n{found}\nnot\n{expected}", spec.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let why =
        "what they find out from data fills pages, or another step comes first; the others have an example";
    let known = [
        "prune-wanda",
        "prune-sparsegpt",
        "prune-channels",
        "prune-layers",
        "factorize",
        "distill",
        "distill-quantized",
        "quantize-static",
        "learn-rounding",
    ];
    assert_eq!(without, known, "{why}");
}

/// Runs one pass as a recipe does: types inferred, verified, promises kept, results compared.
fn run(spec: &PassSpec, model: &mut Model) {
    let text = format!("version = 1\n[[step]]\npass = \"{}\"\n", spec.name);
    let recipe = Recipe::parse(&text, "example", PASSES, &[]).unwrap_or_else(|error| panic!("{error}"));
    let engines = optix_runtime::engines();
    let engine = engines.into_iter().find(|engine| engine.name() == "cpu").expect("there always is");
    let mut resources = Resources {
        oracle: &mut EngineOracle::new(engine, LoadOptions::default()),
        // Passes that need data see random ones.
        calibration: Some(&Drawn { seed: 0, batches: 4 }),
        ..Resources::default()
    };
    let options = RunOptions { check: true, ..RunOptions::default() };
    runner::run(&recipe, model, &mut resources, &options, &mut |_, _| {})
        .unwrap_or_else(|error| panic!("example of {}: {error}", spec.name));
}
