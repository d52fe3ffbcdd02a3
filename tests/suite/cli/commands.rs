//! Commands that look at things.

use std::io::pipe;
use std::process::Stdio;

use optix_passes::PASSES;

use super::MODEL;
use crate::program::{Place, finish, root};

#[test]
fn inspect_says_what_is_in_a_model() {
    let place = Place::new();
    let text = place.ok(&format!("inspect {MODEL}")).stdout;
    for part in ["image  float[", "logits  float[", "Conv 17", "weights float:"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let facts = place.json(&format!("inspect {MODEL} --json"));
    assert_eq!(facts["schema"], "optix-inspect/1");
    assert_eq!(facts["bytes"], std::fs::metadata(root().join(MODEL)).expect("it is there").len());
    assert_eq!(facts["inputs"][0]["name"], "image");
    assert_eq!(facts["operators"]["Conv"], 17);
    let total: u64 =
        facts["operators"].as_object().expect("a table").values().filter_map(|n| n.as_u64()).sum();
    assert_eq!(facts["nodes"], total);
    assert_eq!(facts["opsets"][0]["version"], 15);
    assert_eq!(facts["warnings"].as_array().map(Vec::len), Some(0));
}

#[test]
fn inspect_prints_text_that_can_be_read_again() {
    let place = Place::new();
    let text = place.ok("inspect --text fixtures/graphs/if_captured.onnx").stdout;
    let model = optix_ir::text::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(optix_ir::text::print(&model).trim_end(), text.trim_end());
    place.ends("inspect --text --json fixtures/graphs/if_captured.onnx", 2);
}

#[test]
fn inspect_reads_every_fixture() {
    let place = Place::new();
    let mut count = 0;
    for directory in ["models", "graphs"] {
        for entry in std::fs::read_dir(root().join("fixtures").join(directory)).expect("fixtures") {
            let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
            if name.ends_with(".onnx") {
                let facts = place.json(&format!("inspect fixtures/{directory}/{name} --json"));
                assert_eq!(facts["schema"], "optix-inspect/1", "{name}");
                count += 1;
            }
        }
    }
    assert!(count >= 20, "{count} models");
    for weights in ["fixtures/safetensors/single.safetensors", "fixtures/safetensors/sharded"] {
        let facts = place.json(&format!("inspect {weights} --json"));
        assert_eq!(
            (&facts["nodes"], facts["weights"].as_array().map(Vec::is_empty)),
            (&0.into(), Some(false))
        );
        assert!(place.ok(&format!("inspect {weights}")).stdout.contains("weights without a graph"));
        let error = place.ends(&format!("run clean {weights} -o out"), 2).stderr;
        assert!(error.contains("weights without a graph"), "{error}");
        place.write("nothing.toml", "version = 1\n");
        place.ok(&format!("run ./nothing.toml {weights} -o {}", weights.replace('/', "-")));
        let copy = place.json(&format!("inspect {} --json", weights.replace('/', "-")));
        assert_eq!(copy["weights"], facts["weights"]);
    }
    let error = place.ends(&format!("run clean {MODEL} -o out.safetensors"), 2).stderr;
    assert!(error.contains("has a graph"), "{error}");
}

#[test]
fn names_from_a_model_do_not_reach_the_terminal_raw() {
    let place = Place::new();
    let hostile = "in\u{1b}[31m\u{202e}put";
    let model = optix_ir::text::parse(&format!(
        "<ir_version: 8, opset_import: [\"\" : 18]>\ng (float[2] \"{hostile}\") => (float[2] y) {{ y = Relu (\"{hostile}\") }}"
    ))
    .expect("it is a model");
    place.write("hostile.onnx", optix_io::onnx_bytes(&model).expect("it is small"));
    let commands = [
        "inspect hostile.onnx",
        "inspect hostile.onnx --text",
        "inspect hostile.onnx --json",
        "run clean hostile.onnx -o out.onnx --print-after all -v --report out.html --report out.md",
        "compare hostile.onnx hostile.onnx --data fixtures/data/fmnist-eval.toml",
        "profile hostile.onnx --engine cpu --runs 6 -v --report p.html --report p.md --trace p.json",
        "profile hostile.onnx --engine cpu --runs 6 --json",
    ];
    for line in commands {
        let run = place.run(line);
        for text in [run.stdout, run.stderr] {
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{line}\n{text:?}");
        }
    }
    for report in ["out.html", "out.md", "p.html", "p.md", "p.json"] {
        assert!(!place.text(report).contains(['\u{1b}', '\u{202e}']), "{report}");
    }
}

#[test]
fn passes_are_listed_and_explained() {
    let place = Place::new();
    let list = place.ok("passes").stdout;
    for spec in PASSES {
        assert!(list.contains(spec.name), "{list}");
        let manual = place.ok(&format!("passes {}", spec.name)).stdout;
        assert!(manual.starts_with(&format!("{} ({})\n", spec.name, spec.family.name())), "{manual}");
        assert!(manual.contains(&spec.manual()) && manual.contains("Promises: "), "{manual}");
        for option in spec.options() {
            assert!(manual.contains(&format!("  {} = ", option.name)), "{manual}");
        }
    }
    let error = place.ends("passes fold-constant", 2).stderr;
    assert!(error.contains("did you mean `fold-constants`?"), "{error}");
}

#[test]
fn recipes_are_listed_and_printed() {
    let place = Place::new();
    let list = place.ok("recipes").stdout;
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("recipes")).expect("recipes") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8").to_owned();
        assert!(list.lines().any(|line| line.starts_with(&name)), "{name}\n{list}");
        let printed = place.ok(&format!("recipes {name}")).stdout;
        assert_eq!(printed, std::fs::read_to_string(&path).expect("text"), "{name}");
        count += 1;
    }
    assert_eq!(list.lines().count(), count, "recipes/ and the list are the same");
    let error = place.ends("recipes dynamic-transformr", 2).stderr;
    assert!(error.contains("did you mean `dynamic-transformer`?"), "{error}");
}

#[test]
fn engines_codes_and_completions() {
    let place = Place::new();
    assert!(place.ok("engines").stdout.lines().any(|line| line.starts_with("cpu ")));
    let error =
        place.ends(&format!("eval {MODEL} --data fixtures/data/fmnist-eval.toml --engine cpus"), 3).stderr;
    assert!(error.contains("did you mean `cpu`?"), "{error}");
    let codes = place.ok("explain").stdout;
    for line in codes.lines() {
        let code = line.split_whitespace().next().expect("a code");
        assert!(place.ok(&format!("explain {}", code.to_lowercase())).stdout.starts_with(code));
    }
    place.ends("explain OX-Z999", 2);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(place.ok(&format!("completions {shell}")).stdout.contains("quantize"), "{shell}");
    }
    place.ends("completions tcsh", 2);
}

#[test]
fn infer_keeps_outputs_and_inner_values() {
    let place = Place::new();
    let data = "--data fixtures/data/fmnist-eval.toml --samples 20";
    let said = place.ok(&format!("infer {MODEL} {data} -o out.npz")).stdout;
    assert!(said.starts_with("out.npz: logits of 20 samples"), "{said}");
    let seen = place.ok("data check out.npz").stdout;
    assert!(seen.contains("array     logits  float[10]") && seen.contains("20 samples"), "{seen}");
    let said = place.ok(&format!("infer {MODEL} {data} -o both.npz --want logits --want image")).stdout;
    assert!(said.starts_with("both.npz: logits, image of 20 samples"), "{said}");
    assert!(place.ok("data check both.npz").stdout.contains("array     image  float[1, 28, 28]"));
    let error = place.ends(&format!("infer {MODEL} {data} -o x.npz --want logit"), 2).stderr;
    assert!(error.contains("did you mean `logits`?"), "{error}");
    assert_eq!(place.ok(&format!("infer {MODEL} {data} -o out.npz -q")).stdout, "");
    place.ends(&format!("infer {MODEL} {data} -o missing/out.npz"), 2);
    assert_eq!(place.list(), ["both.npz", "out.npz"]);
}

#[test]
fn data_are_checked_against_a_model() {
    let place = Place::new();
    let text = place.ok(&format!("data check fixtures/data/fmnist-calib.toml --model {MODEL}")).stdout;
    for part in [
        "labels    512 in 10 classes",
        "image  float[1, 28, 28] least -0.8102",
        "all 512 samples can be read",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    // The same images without a data.toml: nobody said how bytes become floats.
    let raw = "fixtures/data/fmnist-train512-images-idx3-ubyte.gz";
    let error = place.ends(&format!("data check {raw} --model {MODEL}"), 2).stderr;
    assert!(error.contains("OX-D001"), "{error}");
    assert!(place.ok(&format!("data check {raw}")).stdout.contains("uint8[28, 28]"));
    place.ends("data check nowhere.npz", 2);
}

#[test]
fn usage_errors_end_with_2_and_help_with_0() {
    let place = Place::new();
    for line in ["", "no-such-command", "inspect", "inspect --no-such-flag x", "quantize x.onnx", "data"] {
        assert_eq!(place.run(line).code, 2, "{line}");
    }
    for line in ["--help", "--version", "quantize --help", "data check --help"] {
        let run = place.ok(line);
        assert!(!run.stdout.is_empty() && run.stderr.is_empty(), "{line}");
    }
    for line in ["inspect nowhere.onnx", "inspect fixtures/README.md", "inspect fixtures"] {
        assert_eq!(place.ends(line, 2).stdout, "", "{line}");
    }
    place.ends(&format!("inspect {MODEL} --limits nodes=10"), 2);
    place.ends(&format!("inspect {MODEL} --limits nods=10"), 2);
}

/// A pipe whose reader is gone before anything is written.
fn closed() -> Stdio {
    pipe().expect("a pipe").1.into()
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new();
    let lines = [
        "--help".to_owned(),
        "passes".to_owned(),
        "completions bash".to_owned(),
        format!("inspect {MODEL} --text"),
        format!("quantize {MODEL} -o int8.onnx --json"),
    ];
    for line in &lines {
        let run = finish(place.command(line).stdout(closed()));
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{line}");
    }
    assert!(place.exists("int8.onnx"), "the work is done all the same");
    let run = finish(place.command("inspect nowhere.onnx").stderr(closed()));
    assert_eq!(run.code, 2);
}

#[test]
fn every_code_is_named_by_the_error_it_explains() {
    let place = Place::new();
    let listed = place.ok("explain").stdout;
    std::fs::create_dir(place.path("inside")).expect("a directory");
    std::fs::copy(root().join("fixtures/graphs/external_data.onnx"), place.path("inside/model.onnx"))
        .expect("a copy");
    let outside = root().join("fixtures/graphs/external_data.bin");
    std::os::unix::fs::symlink(outside, place.path("inside/external_data.bin")).expect("a link");
    let raw = "fixtures/data/fmnist-train512-images-idx3-ubyte.gz";
    place.ok(&format!("run clean {MODEL} -o clean.onnx -q"));
    let errors = [
        ("OX-M001", "inspect inside/model.onnx".to_owned()),
        ("OX-M002", "quantize fixtures/graphs/quantized_conv.onnx -o x.onnx".to_owned()),
        ("OX-M003", "run clean fixtures/graphs/unknown_operator.onnx -o x.onnx --check".to_owned()),
        ("OX-L001", "apply clean.onnx.lock.json clean.onnx -o x.onnx".to_owned()),
        ("OX-D001", format!("eval {MODEL} --data {raw} --vs {MODEL}")),
        ("OX-R001", format!("run clean {MODEL} -o x.onnx --require size-ratio=0.1 -q")),
    ];
    assert_eq!(listed.lines().count(), errors.len(), "{listed}");
    for (code, line) in errors {
        let run = place.run(&line);
        assert!(run.stderr.contains(&format!("({code})")), "{line}\n{}", run.stderr);
        assert!(listed.contains(code), "{listed}");
    }
}
