//! Recipes: the built-in ones work, and what is wrong with others is said with its place.

use std::path::PathBuf;

use optix_passes::PASSES;
use optix_pipeline::{Override, Recipe, recipe_schema};

use crate::program::{Place, root};

/// Name and text of every file in recipes/.
fn built_in() -> Vec<(String, String)> {
    let entries = std::fs::read_dir(root().join("recipes")).expect("recipes");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8").to_owned();
        (name, std::fs::read_to_string(&path).expect("text"))
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn built_in_recipes_are_right_and_say_what_they_are_for() {
    let schema = recipe_schema(PASSES);
    for (name, text) in built_in() {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("# ") && first.ends_with('.'), "{name}: {first}");
        let recipe = Recipe::parse(&text, &name, PASSES, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert!(!recipe.steps.is_empty(), "{name}");
        let table: toml::Table = text.parse().expect("TOML");
        let value = serde_json::to_value(table).expect("plain values");
        assert_eq!(crate::schema::violations(&schema, &value), [""; 0], "{name}");
        // Printed and read again, it is the same.
        let printed = recipe.to_toml();
        let again = Recipe::parse(&printed, "printed", PASSES, &[]).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again.to_toml(), printed, "{name}");
        let value =
            serde_json::to_value(printed.parse::<toml::Table>().expect("TOML")).expect("plain values");
        assert_eq!(crate::schema::violations(&schema, &value), [""; 0], "{name}");
    }
}

#[test]
fn built_in_recipes_run() {
    let place = Place::new();
    for (name, text) in built_in() {
        let model = "fixtures/models/fmnist_mobilenet.onnx";
        let data = if text.contains("quantize-static") || text.contains("prune-") || text.contains("distill")
        {
            "--calib fixtures/data/fmnist-calib.toml --calib-samples 16"
        } else {
            ""
        };
        let report = place.json(&format!("run {name} {model} -o {name}.onnx --check --json {data}"));
        let steps = report["steps"].as_array().expect("steps");
        assert!(steps.iter().any(|step| step["changes"]["patches"] != serde_json::json!({})), "{name}");
        let facts = place.json(&format!("inspect {name}.onnx --json"));
        assert_eq!(facts["warnings"], serde_json::json!([]), "{name}");
    }
}

/// The error of a recipe that is none.
fn error(text: &str) -> String {
    match Recipe::parse(text, "my.toml", PASSES, &[]) {
        Ok(recipe) => panic!("it is a recipe: {recipe:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn errors_point_to_the_place() {
    let cases = [
        (
            "version = 1\nsed = 3\n",
            "my.toml:2:1: unknown field `sed`, expected one of `version`, `seed`, `data`, `require`; did you mean `seed`?\n  |\n2 | sed = 3\n  | ^",
        ),
        (
            "version = 1\n[[stepp]]\npass = \"fold-constants\"\n",
            "my.toml:2:3: unknown field `stepp`, expected one of `version`, `seed`, `data`, `require`; did you mean `step`?\n  |\n2 | [[stepp]]\n  |   ^",
        ),
        (
            "version = 1\n[data]\ncalb = \"x\"\n",
            "my.toml:3:1: unknown field `calb`, expected one of `calib`, `calib-samples`, `eval`, `eval-samples`; did you mean `calib`?\n  |\n3 | calb = \"x\"\n  | ^",
        ),
        (
            "version = 1\n[require]\naccuracy-drop = \"half\"\n",
            "my.toml:3:17: invalid type: string \"half\", expected f64\n  |\n3 | accuracy-drop = \"half\"\n  |                 ^",
        ),
        (
            "version = 1\n\n[[step]]\npass = \"fold-constant\"\n",
            "my.toml:4:8: there is no pass `fold-constant`; did you mean `fold-constants`? (`optix passes` lists them)\n  |\n4 | pass = \"fold-constant\"\n  |        ^",
        ),
        (
            "version = 1\n[[step]]\npass = \"quantize-static\"\nper-chanel = true\n",
            "my.toml:4:1: pass `quantize-static` has no option `per-chanel`; did you mean `per-channel`? (it has: activation-type, bias-correction, clip-weights, embeddings, exclude, ledger, min-sqnr, observer, only-faster, per-channel, percentile, saturation, target, weight-type)\n  |\n4 | per-chanel = true\n  | ^",
        ),
        (
            "version = 1\n[[step]]\npass = \"quantize-static\"\nper-channel = \"yes\"\n",
            "my.toml:4:15: invalid type: string \"yes\", expected a boolean\n  |\n4 | per-channel = \"yes\"\n  |               ^",
        ),
        (
            "version = 1\n[[step]]\npass = \"quantize-static\"\nobserver = \"min-mac\"\n",
            "my.toml:4:12: unknown variant `min-mac`, expected one of `auto`, `min-max`, `moving-average`, `mean-extremes`, `percentile`, `entropy`, `mse`; did you mean `min-max`?\n  |\n4 | observer = \"min-mac\"\n  |            ^",
        ),
        (
            "version = 1\n[[step]]\npass = \"eliminate-dead\"\nlimit = 1\n",
            "my.toml:4:1: pass `eliminate-dead` has no option `limit` (it has none)\n  |\n4 | limit = 1\n  | ^",
        ),
        (
            "version = 2\n",
            "my.toml:1:11: recipe version 2 is not known; this program reads version 1\n  |\n1 | version = 2\n  |           ^",
        ),
        (
            "version = 1\n[[step]]\nid = \"x\"\n",
            "my.toml:2:1: the step has no `pass`\n  |\n2 | [[step]]\n  | ^",
        ),
        (
            "version = 1\n[[step]]\npass = 3\n",
            "my.toml:3:8: `pass` must be a string\n  |\n3 | pass = 3\n  |        ^",
        ),
        (
            "version = 1\nsteps = []\n",
            "my.toml:2:1: unknown key `steps`: each step is a table `[[step]]`\n  |\n2 | steps = []\n  | ^",
        ),
        (
            "version = 1\n[require]\nagreement = 99\n",
            "my.toml:3:1: `require.agreement` is 99, outside 0 to 1\n  |\n3 | agreement = 99\n  | ^",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(error(text), expected);
    }
    assert!(error("version = 1\n[[step]\n").starts_with("my.toml:2:"));
    assert!(error("").contains("missing field `version`"));
}

#[test]
fn overrides_are_checked_like_the_recipe() {
    let text = "version = 1\n[[step]]\npass = \"quantize-static\"\nid = \"int8\"\n";
    let parse = |change: &str| {
        let change: Override = change.parse().expect("step.option=value");
        Recipe::parse(text, "my.toml", PASSES, &[change])
    };
    let recipe = parse("int8.observer=min-max").expect("a bare word is a string");
    assert!(recipe.to_toml().contains("observer = \"min-max\""), "{}", recipe.to_toml());
    let recipe = parse("int8.exclude=[\"a\", \"b*\"]").expect("a list");
    assert!(recipe.to_toml().contains("exclude = [\"a\", \"b*\"]"), "{}", recipe.to_toml());
    for (change, expected) in [
        ("int9.observer=mse", "did you mean `int8`?"),
        ("int8.observr=mse", "did you mean `observer`?"),
        ("int8.observer=ms", "unknown variant `ms`"),
        ("int8.per-channel=3", "expected a boolean"),
    ] {
        let error = parse(change).expect_err(change).to_string();
        assert!(error.starts_with(&format!("--set {change}: ")) && error.contains(expected), "{error}");
    }
    // A pass used twice has two names.
    let twice = "version = 1\n[[step]]\npass = \"eliminate-dead\"\n[[step]]\npass = \"eliminate-dead\"\n";
    let recipe = Recipe::parse(twice, "my.toml", PASSES, &[]).expect("a recipe");
    let ids: Vec<&str> = recipe.steps.iter().map(|step| step.id.as_str()).collect();
    assert_eq!(ids, ["eliminate-dead", "eliminate-dead-2"]);
}
