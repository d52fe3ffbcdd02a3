//! What a pass that is at fault leaves behind.

use optix_ir::{Model, ModelBuilder};
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{Cx, Family, Named, Pass, PassError, PassSpec, Promises, Recipe, Requires, Resources};
use optix_runtime::{Cpu, EngineOracle};
use schemars::JsonSchema;
use serde::Deserialize;

/// Says that it changes nothing, and renames an output.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Liar {
    /// The new name.
    name: String,
}

impl Named for Liar {
    const NAME: &'static str = "liar";
    const FAMILY: Family = Family::Clean;
}

impl Pass for Liar {
    fn requires(&self) -> Requires {
        Requires::default()
    }

    fn promises(&self) -> Promises {
        Promises::CLEAN
    }

    fn run(&self, model: &mut Model, _: &mut Cx<'_>) -> Result<(), PassError> {
        let output = model.graph(model.main()).outputs()[0].value;
        model.rename_value(output, &self.name).map_err(PassError::from)
    }
}

#[test]
fn a_pass_at_fault_leaves_what_it_takes_to_see_it_again() {
    static PASSES: &[PassSpec] = &[PassSpec::of::<Liar>()];
    let text = "version = 1\nseed = 5\n[[step]]\npass = \"liar\"\nid = \"first\"\nname = \"changed\"\n";
    let recipe = Recipe::parse(text, "recipe.toml", PASSES, &[]).expect("it parses");
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut model = ModelBuilder::new(15)
        .input("x", "float[2]")
        .node("Relu", ["x"], ["y"])
        .output("y", "float[2]")
        .build();
    let mut fail = |directory: &std::path::Path| {
        let mut oracle = EngineOracle::new(Box::new(Cpu), optix_runtime::LoadOptions::default());
        let mut resources = Resources { oracle: &mut oracle, seed: recipe.seed, ..Resources::default() };
        let options = RunOptions {
            reproducer_dir: Some(directory.to_owned()),
            command: "optix run recipe.toml".into(),
            ..RunOptions::default()
        };
        runner::run(&recipe, &mut model, &mut resources, &options, &mut |_, _| {}).expect_err("it lies")
    };
    let error = fail(out.path());
    let left = out.path().join("optix-reproducer-first-1");
    assert_eq!(error.reproducer.as_deref(), Some(left.as_path()), "{error}");
    assert!(error.is_internal() && error.to_string().contains("broke its promise"), "{error}");
    assert!(std::fs::read_to_string(left.join("command.txt")).expect("it is there").contains("optix run"));
    // Model and recipe are all it takes.
    let kept = optix_io::load(&left.join("model.onnx"), &optix_io::LoadOptions::default()).expect("it loads");
    assert_eq!(kept.model.walk().count(), 1);
    let recipe = std::fs::read_to_string(left.join("recipe.toml")).expect("it is there");
    let recipe = Recipe::parse(&recipe, "reproducer", PASSES, &[]).expect("it parses");
    assert_eq!((recipe.steps.len(), recipe.seed), (1, 5));
    assert!(fail(out.path()).reproducer.expect("another").ends_with("optix-reproducer-first-2"));
}
