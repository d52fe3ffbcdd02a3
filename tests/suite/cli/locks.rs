//! Locks: what a run writes beside its output, and the same file made again from it.

use serde_json::Value;

use super::{CALIB, EVAL, MODEL};
use crate::program::{Place, root};

/// Takes away all data: what is left are files in the working directory.
fn without_fixtures(place: &Place) {
    std::fs::remove_file(place.path("fixtures")).expect("a link");
}

fn copy(place: &Place, fixture: &str, name: &str) {
    place.write(name, std::fs::read(root().join(fixture)).expect("a fixture"));
}

#[test]
fn a_lock_makes_the_same_file_again_without_data() {
    let resnet = "fixtures/models/fmnist_resnet.onnx";
    let graph = "fixtures/graphs/mlp_residual.onnx";
    let place = Place::new();
    let runs = [
        ("static", MODEL, format!("quantize model.onnx {CALIB} {EVAL}")),
        ("signed", MODEL, format!("quantize model.onnx {CALIB} --activation-type int8 --observer min-max")),
        ("resnet", resnet, format!("quantize model.onnx {CALIB} --per-channel false --seed 3")),
        // Some nodes stay float32 by what data show, others because outputs were measured.
        ("half", MODEL, format!("precision model.onnx {CALIB} --min-sqnr-db 75")),
        ("dynamic", graph, "quantize model.onnx".to_owned()),
        ("clean", graph, "run clean model.onnx".to_owned()),
    ];
    for (name, model, line) in &runs {
        copy(&place, model, "model.onnx");
        place.ok(&format!("{line} -o {name}.onnx -q --threads 1"));
        let lock = place.read(&format!("{name}.onnx.lock.json"));
        place.ok(&format!("{line} -o {name}.onnx -q --threads 2 --no-mmap"));
        assert!(place.read(&format!("{name}.onnx.lock.json")) == lock, "{name}: another lock");
    }
    without_fixtures(&place);
    for (name, model, _) in &runs {
        copy(&place, model, "renamed.onnx");
        for threads in [1, 2] {
            let line = format!("apply {name}.onnx.lock.json renamed.onnx -o again.onnx --threads {threads}");
            let said = place.ok(&line).stdout;
            assert!(said.contains("as locked again.onnx BLAKE3 "), "{said}");
            assert!(place.read("again.onnx") == place.read(&format!("{name}.onnx")), "{name}: another file");
        }
        assert!(!place.exists("again.onnx.lock.json"), "a lock applied makes no other");
        let lock: Value = serde_json::from_str(&place.text(&format!("{name}.onnx.lock.json"))).expect("JSON");
        let decisions = lock["steps"].as_array().expect("steps").iter();
        let decisions: usize =
            decisions.map(|step| step["decisions"].as_object().expect("an object").len()).sum();
        let has_data = matches!(*name, "static" | "signed" | "resnet" | "half");
        assert_eq!(decisions > 0, has_data, "{name}");
        assert_eq!(lock["data"].as_array().map(Vec::len), Some(usize::from(has_data)), "{name}");
    }
}

#[test]
fn what_a_lock_says() {
    let place = Place::new();
    place.ok(&format!("quantize {MODEL} -o int8.onnx {CALIB} -q --report r.json"));
    let lock: Value = serde_json::from_str(&place.text("int8.onnx.lock.json")).expect("JSON");
    let schema = std::fs::read_to_string(root().join("docs/lock.schema.json")).expect("the schema");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    assert_eq!(crate::schema::violations(&schema, &lock), [""; 0]);
    let report: Value = serde_json::from_str(&place.text("r.json")).expect("JSON");
    assert_eq!(lock["recipe"]["toml"], report["recipe"]);
    assert_eq!(lock["engine"], report["engine"]);
    assert_eq!(lock["input"][0]["blake3"], report["input"]["blake3"]);
    assert_eq!(lock["output"][0]["blake3"], report["output"]["blake3"]);
    assert_eq!(lock["output"][0]["bytes"], place.read("int8.onnx").len());
    assert_eq!(lock["data"][0]["samples"], 32);
    let step = |document: &Value| -> Value {
        let steps = document["steps"].as_array().expect("steps");
        steps.iter().find(|step| step["pass"] == "quantize-static").expect("the step").clone()
    };
    assert_eq!(step(&lock)["layers"], step(&report)["changes"]["layers"]);
    assert!(step(&lock)["decisions"]["range/image"]["scale"].as_f64() > Some(0.0));
    assert!(!report.to_string().contains("decisions"), "they are no part of reports");
    // The same content from another file is the same data.
    place.ok(&format!("run clean {MODEL} -o clean.onnx -q {CALIB}"));
    let clean: Value = serde_json::from_str(&place.text("clean.onnx.lock.json")).expect("JSON");
    assert_eq!(clean["data"], serde_json::json!([]), "nothing looked at the data");
    // A lock is written with its output or not at all.
    place.ok(&format!("run clean {MODEL} -o none.onnx -q --lock never"));
    assert!(!place.exists("none.onnx.lock.json"));
    place.ends(&format!("run clean {MODEL} -o no.onnx -q --require size-ratio=0.1 --keep-failed false"), 1);
    assert!(!place.exists("no.onnx") && !place.exists("no.onnx.lock.json"));
    place.ends(&format!("run clean {MODEL} -o no.onnx --report no.onnx.lock.json"), 2);
    assert!(!place.exists("no.onnx.lock.json"));
}

#[test]
fn everything_that_shapes_the_bytes_is_locked() {
    let place = Place::new();
    copy(&place, MODEL, "model.onnx");
    // In place: the lock stands beside what the model became.
    place.ok(&format!("quantize model.onnx {CALIB} --in-place -q"));
    copy(&place, MODEL, "original.onnx");
    place.ok("apply model.onnx.lock.json original.onnx -o again.onnx -q");
    assert!(place.read("again.onnx") == place.read("model.onnx"));
    place.ok("apply model.onnx.lock.json original.onnx --in-place -q");
    assert!(place.read("original.onnx") == place.read("model.onnx"));
    // A data file beside the model is named after it.
    copy(&place, MODEL, "original.onnx");
    place.ok(&format!("quantize original.onnx -o big.onnx {CALIB} --external-data -q"));
    let error = place.ends("apply big.onnx.lock.json original.onnx -o small.onnx", 2).stderr;
    assert!(error.contains("must be called big.onnx"), "{error}");
    assert!(!place.exists("small.onnx") && !place.exists("small.onnx.data"));
    std::fs::create_dir(place.path("d")).expect("a directory");
    place.ok("apply big.onnx.lock.json original.onnx -o d/big.onnx -q");
    for file in ["big.onnx", "big.onnx.data"] {
        assert!(place.read(file) == place.read(&format!("d/{file}")), "{file}");
    }
    // ... and what came with a data file has two files.
    place.ok("run clean big.onnx -o twice.onnx -q");
    place.ok("apply twice.onnx.lock.json big.onnx -o d/twice.onnx -q");
    assert!(place.read("d/twice.onnx") == place.read("twice.onnx"));
    let error = place.ends("apply twice.onnx.lock.json original.onnx -o x.onnx", 2).stderr;
    assert!(error.contains("one of 2 files, and the one given has 1"), "{error}");
    // Rewrites that were left out, and limits.
    place.ok(&format!("quantize original.onnx -o part.onnx {CALIB} -q --stop-after-patch 30"));
    place.ok("apply part.onnx.lock.json original.onnx -o again.onnx -q");
    assert!(place.read("again.onnx") == place.read("part.onnx"));
    place.ok("run clean original.onnx -o limited.onnx -q --limits folded-bytes=1000");
    let error = place.ends("apply limited.onnx.lock.json original.onnx -o x.onnx", 2).stderr;
    assert!(error.contains("`--limits folded-bytes=1000`"), "{error}");
    place.ok("apply limited.onnx.lock.json original.onnx -o again.onnx -q --limits folded-bytes=1000");
    assert!(place.read("again.onnx") == place.read("limited.onnx"));
}

#[test]
fn directories_of_weights_have_locks_too() {
    let place = Place::new();
    let model = "fixtures/safetensors/sharded";
    place.write("copy.toml", "version = 1\n");
    place.ok(&format!("run ./copy.toml {model} -o out -q"));
    let lock: Value = serde_json::from_str(&place.text("out.lock.json")).expect("JSON");
    assert!(lock["output"].as_array().map(Vec::len) > Some(1), "{lock}");
    place.ok(&format!("apply out.lock.json {model} -o again -q"));
    for file in lock["output"].as_array().expect("files") {
        let name = file["name"].as_str().expect("text");
        assert!(place.read(&format!("out/{name}")) == place.read(&format!("again/{name}")), "{name}");
    }
}
