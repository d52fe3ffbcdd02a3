//! `eval` and `compare`: metrics, batches, thresholds, and where models part.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use optix_ir::{DType, Tensor};
use serde_json::Value;

use super::MODEL;
use crate::program::Place;

const RESNET: &str = "fixtures/models/fmnist_resnet.onnx";
const DATA: &str = "--data fixtures/data/fmnist-eval.toml --samples 500";

/// A metric of an evaluation's JSON.
fn metric<'v>(facts: &'v Value, name: &str) -> &'v Value {
    let all = facts["metrics"].as_array().expect("a list");
    all.iter().find(|metric| metric["name"] == name).unwrap_or_else(|| panic!("no {name} in {facts}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Writes a model from its text.
fn write_model(place: &Place, name: &str, text: &str) {
    let model = optix_ir::text::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    place.write(name, optix_io::onnx_bytes(&model).expect("it is small"));
}

/// Writes an array as numpy does.
fn write_npy(place: &Place, name: &str, tensor: &Tensor) {
    let kind = match tensor.dtype() {
        DType::F32 => "<f4",
        DType::I64 => "<i8",
        other => panic!("no {other} here"),
    };
    let shape: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
    let mut header =
        format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({},), }}", shape.join(", "));
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend_from_slice(tensor.bytes());
    place.write(name, bytes);
}

#[test]
fn eval_measures_what_the_data_allow() {
    let place = Place::new();
    let facts = place.json(&format!("eval {MODEL} {DATA} --json"));
    assert_eq!((&facts["schema"], &facts["samples"]), (&"optix-eval/1".into(), &500.into()));
    assert_eq!(
        (&facts["batch"], &facts["alone"], &facts["output"]),
        (&32.into(), &Value::Null, &"logits".into())
    );
    let top1 = metric(&facts, "top1");
    assert!((0.85..0.95).contains(&number(&top1["value"])), "{top1}");
    assert!(number(&top1["low"]) < number(&top1["value"]) && number(&top1["value"]) < number(&top1["high"]));
    let facts =
        place.json(&format!("eval {MODEL} {DATA} --metric top5 --metric f1 --metric f1-micro --json"));
    assert_eq!(metric(&facts, "f1-micro")["value"], top1["value"], "one label a sample");
    assert!((number(&metric(&facts, "f1")["value"]) - number(&top1["value"])).abs() < 0.05);
    assert!(number(&metric(&facts, "top5")["value"]) > 0.98);
    let text = place.ok(&format!("eval {MODEL} {DATA} --metric top5")).stdout;
    assert!(text.contains(": 500 samples, 32 at a time, output `logits`\ntop5  "), "{text}");
    for (wrong, says) in [
        ("--metric top0", "there is no metric `top0`"),
        ("--metric kulback", "there are: topN"),
        ("--metric sqnr-db", "are class"),
        ("--metric agreement", "--vs"),
        ("--metric probe", "--train"),
        ("--metric perplexity", "label for every token"),
        ("--output logit", "did you mean `logits`?"),
        ("--require top1-drop=1", "--vs"),
        ("--require top1", "metric=number"),
        ("--vs nowhere.onnx", "nowhere.onnx"),
    ] {
        let error = place.ends(&format!("eval {MODEL} {DATA} {wrong}"), 2).stderr;
        if wrong != "--metric sqnr-db" {
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
    assert_eq!(place.run(&format!("eval {MODEL} {DATA} --batch 0")).code, 2);
}

#[test]
fn eval_against_another_model_is_paired() {
    let place = Place::new();
    let line = format!("eval {MODEL} {DATA} --vs {RESNET}");
    let facts = place.json(&format!("{line} --json"));
    let (top1, agreement) = (metric(&facts, "top1"), metric(&facts, "agreement"));
    let change = number(&top1["value"]) - number(&top1["vs"]);
    assert!((number(&top1["change"]["value"]) - change).abs() < 1e-12, "{top1}");
    let flips = number(&top1["change"]["gained"]) - number(&top1["change"]["lost"]);
    assert!((flips / 500.0 - change).abs() < 1e-12, "{top1}");
    assert!(number(&agreement["value"]) > 0.8, "{agreement}");
    assert!(facts["outputs"][0]["sqnr_db"].is_number());
    let text = place.ok(&line).stdout;
    assert!(text.contains("lost,") && text.contains("agreement  ") && text.contains("SQNR"), "{text}");
    let metrics =
        "--metric kl --metric cosine --metric sqnr-db --metric max-abs-error --metric mean-abs-error";
    let own = place.json(&format!("eval {MODEL} {DATA} --vs {MODEL} {metrics} --json"));
    assert_eq!(own["outputs"][0]["equal"], true);
    for (name, expected) in [("kl", 0.0), ("max-abs-error", 0.0), ("mean-abs-error", 0.0)] {
        assert_eq!(number(&metric(&own, name)["value"]), expected, "{name}");
    }
    assert!((number(&metric(&own, "cosine")["value"]) - 1.0).abs() < 1e-12);
    assert_eq!(metric(&own, "sqnr-db")["value"], Value::Null, "infinite");
}

#[test]
fn thresholds_are_judged_by_the_unfavourable_end() {
    let place = Place::new();
    let facts = place.json(&format!("eval {MODEL} {DATA} --json"));
    let top1 = metric(&facts, "top1");
    let (value, low) = (number(&top1["value"]), number(&top1["low"]));
    // Below the value but above the lower end of its interval: not proved.
    let between = (value + low) / 2.0;
    for (require, code, says) in [
        (format!("--require top1={}", low - 0.01), 0, "top1 met"),
        (format!("--require top1={between}"), 1, "samples would decide"),
        ("--require top1=0.99".to_owned(), 1, "top1 MISSED"),
        (format!("--vs {MODEL} --require top1-drop=0.7"), 0, "top1-drop met"),
        (format!("--vs {MODEL} --require accuracy-drop=0.1"), 1, "samples would decide"),
        (format!("--vs {MODEL} --require max-abs-error=0 --require sqnr-db=90"), 0, "sqnr-db met"),
        (format!("--vs {RESNET} --require agreement=0.999 --require kl=10"), 1, "agreement MISSED"),
    ] {
        let run = place.run(&format!(
            "eval {MODEL} {DATA} {require} --report out.json --report out.md --report out.html"
        ));
        assert_eq!(run.code, code, "{require}\n{}\n{}", run.stdout, run.stderr);
        assert!(run.stdout.contains(says), "{require}\n{}", run.stdout);
        assert_eq!(run.stderr.contains("OX-R001"), code == 1, "{}", run.stderr);
        let report: Value = serde_json::from_str(&place.text("out.json")).expect("JSON");
        assert!(report["requirements"][0]["met"].is_boolean());
        for name in ["out.md", "out.html"] {
            assert!(place.text(name).contains(says), "{name}");
        }
    }
    let error =
        place.ends(&format!("eval {MODEL} {DATA} --report fixtures/data/fmnist-eval.toml.json/x.json"), 2);
    assert_eq!(error.stdout, "", "found before the work");
}

#[test]
fn samples_are_run_together_only_where_that_changes_nothing() {
    let place = Place::new();
    let data = Tensor::from_vec(vec![12, 3], (0..36).map(|x| (x % 7) as f32 - 3.0).collect());
    write_npy(&place, "x.npy", &data);
    let head = "<ir_version: 8, opset_import: [\"\" : 18]>\n";
    // Each sample by itself; one scaled by the greatest value of all; one that puts the samples' axis last; one
    // that takes a single sample whatever its input says.
    let models = [
        ("plain.onnx", "g (float[N,3] x) => (float[N,3] y) { y = Relu (x) }", 8, ""),
        (
            "coupled.onnx",
            "g (float[N,3] x) => (float[N,3] y) { axes = Constant <value = int64[2] {0, 1}> ()\n m = ReduceMax (x, axes)\n y = Div (x, m) }",
            1,
            "`y` of sample 0 differs by",
        ),
        (
            "turned.onnx",
            "g (float[N,3] x) => (float[3,N] y) { y = Transpose <perm = [1, 0]> (x) }",
            1,
            "first axis",
        ),
        (
            "single.onnx",
            "g (float[N,3] x) => (float[1,3] y) { s = Constant <value = int64[2] {1, 3}> ()\n y = Reshape (x, s) }",
            1,
            "8 samples together fail: node",
        ),
    ];
    for (name, text, size, says) in models {
        write_model(&place, name, &format!("{head}{text}"));
        let run = place.ok(&format!("infer {name} --data x.npy -o out.npz --batch 8"));
        assert_eq!(
            run.stderr.contains("note: samples are run 1 at a time: "),
            size == 1,
            "{name}: {}",
            run.stderr
        );
        assert!(run.stderr.contains(says), "{name}: {}", run.stderr);
        let facts = place.json(&format!("eval {name} --data x.npy --vs {name} --batch 8 --json"));
        assert_eq!((&facts["batch"], &facts["samples"]), (&size.into(), &12.into()), "{name}");
        assert_eq!(facts["alone"].is_null(), size == 8, "{name}");
        // The same numbers as one at a time, whatever was asked for.
        place.ok(&format!("infer {name} --data x.npy -o one.npz --batch 1"));
        assert_eq!(place.read("out.npz"), place.read("one.npz"), "{name}");
    }
    let note = place.ok("infer coupled.onnx --data x.npy -o out.npz --batch 8 -q").stderr;
    assert_eq!(note, "");
}

#[test]
fn results_do_not_depend_on_threads() {
    let place = Place::new();
    for threads in [1, 2, 3] {
        place.ok(&format!("infer {RESNET} {DATA} --threads {threads} -o out{threads}.npz"));
        assert_eq!(place.read("out1.npz"), place.read(&format!("out{threads}.npz")), "{threads} threads");
    }
    let value = |threads: u32| {
        let facts = place.json(&format!("eval {MODEL} {DATA} --vs {RESNET} --threads {threads} --json"));
        (facts["metrics"].clone(), facts["outputs"].clone())
    };
    assert_eq!(value(1), value(4));
}

#[test]
fn recorded_outputs_and_commands_are_metrics_too() {
    let place = Place::new();
    write_model(
        &place,
        "relu.onnx",
        "<ir_version: 8, opset_import: [\"\" : 18]>\ng (float[N,2] x) => (float[N,2] y) { y = Relu (x) }",
    );
    let x = Tensor::from_vec(vec![3, 2], vec![1f32, -1.0, 2.0, -2.0, 3.0, 0.0]);
    write_npy(&place, "x.npy", &x);
    let counted =
        place.command("eval relu.onnx --data x.npy --json").args(["--metric", "cmd:wc -l"]).output();
    let counted: Value = serde_json::from_slice(&counted.expect("it runs").stdout).expect("JSON");
    assert_eq!(number(&metric(&counted, "cmd:wc -l")["value"]), 3.0);
    let mut failing = place.command("eval relu.onnx --data x.npy");
    let failed = failing.args(["--metric", "cmd:cat >/dev/null; exit 7"]).output().expect("it runs");
    assert_eq!(failed.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("exit status: 7"));
    let error = place.ends("eval relu.onnx --data x.npy", 2).stderr;
    assert!(error.contains("it has no labels"), "{error}");
}

#[test]
fn an_interrupt_ends_with_130() {
    let place = Place::new();
    // A command that is slow to read holds the evaluation up for long enough.
    let mut command = place.command(&format!("eval {MODEL} --data fixtures/data/fmnist-eval.toml"));
    let slow = "cmd:touch started; head -c 1 >/dev/null; sleep 2; cat >/dev/null; echo 1";
    command.args(["--progress", "always", "--metric", slow]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let waiting = Instant::now();
    while !place.exists("started") && waiting.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    let sent = std::process::Command::new("kill").args(["-INT", &id]).status().expect("kill");
    let started = Instant::now();
    let status = child.wait().expect("it ends");
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert!(sent.success() && started.elapsed() < Duration::from_secs(20));
    assert_eq!(status.code(), Some(130), "{said}");
}

#[test]
fn compare_shows_where_models_part() {
    let place = Place::new();
    place.ok(&format!("quantize {MODEL} -o int8.onnx {} -q", super::CALIB));
    let data = "--data fixtures/data/fmnist-eval.toml --samples 40";
    for model in [MODEL, "int8.onnx"] {
        let same = place.json(&format!("compare {model} {model} {data} --json"));
        let values = same["values"].as_array().expect("a list");
        assert!(values.len() > 30 && values.iter().all(|value| value["equal"] == true), "{model}");
        assert_eq!((&same["first"], &same["without_counterpart"]), (&Value::Null, &0.into()));
    }
    let facts = place.json(&format!("compare {MODEL} int8.onnx {data} --json"));
    assert_eq!((&facts["schema"], &facts["samples"]), (&"optix-compare/1".into(), &40.into()));
    let values = facts["values"].as_array().expect("a list");
    let logits = values.last().expect("a value");
    assert_eq!((&logits["name"], &logits["parts"]), (&"logits".into(), &true.into()));
    assert!(number(&logits["sqnr_db"]) > 15.0 && number(&logits["cosine"]) > 0.95, "{logits}");
    let first = values.iter().find(|value| value["parts"] == true).expect("it parts");
    assert_eq!(facts["first"], first["name"]);
    let text = place.ok(&format!("compare {MODEL} int8.onnx {data}")).stdout;
    for part in ["\nfirst to part (>): ", "\nsteepest: ", "\nworst: ", " logits"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert_eq!(text.lines().filter(|line| line.starts_with("> ")).count(), 1, "{text}");
    // In batches or one by one: the same figures.
    let alone = place.json(&format!("compare {MODEL} int8.onnx {data} --batch 1 --json"));
    let sqnr = |facts: &Value| number(&facts["values"].as_array().unwrap().last().unwrap()["sqnr_db"]);
    assert!((sqnr(&alone) - sqnr(&facts)).abs() < 0.01, "{} {}", sqnr(&alone), sqnr(&facts));
}

#[test]
fn compare_finds_values_behind_other_names_and_on_other_engines() {
    let place = Place::new();
    let text = |a: &str, b: &str, middle: &str, tail: &str| {
        format!(
            "<ir_version: 8, opset_import: [\"\" : 18]>\ng (float[N,3] x) => (float[N,3] {b}) <float[3] w{a} = {{1, 2, 3}}> \
             {{ {a} = Mul (x, w{a})\n {middle} = Tanh ({a})\n {b} = {tail} ({middle}) }}"
        )
    };
    write_model(&place, "a.onnx", &text("a1", "a3", "a2", "Exp"));
    write_model(&place, "b.onnx", &text("b1", "b3", "b2", "Exp"));
    write_model(&place, "c.onnx", &text("c1", "c3", "c2", "Neg"));
    let x = Tensor::from_vec(vec![4, 3], (0..12).map(|x| x as f32 / 10.0).collect());
    write_npy(&place, "x.npy", &x);
    let facts = place.json("compare a.onnx b.onnx --data x.npy --json");
    let names: Vec<&Value> = facts["values"].as_array().unwrap().iter().map(|value| &value["name"]).collect();
    assert_eq!(names, ["a1", "a2", "a3"]);
    assert_eq!((&facts["first"], &facts["without_counterpart"]), (&Value::Null, &0.into()));
    let facts = place.json("compare a.onnx c.onnx --data x.npy --json");
    assert_eq!((facts["values"].as_array().unwrap().len(), &facts["without_counterpart"]), (2, &1.into()));
    let line = format!("compare {MODEL} --data fixtures/data/fmnist-eval.toml --samples 8 --vs-engine flex");
    let facts = place.json(&format!("{line} --json"));
    assert!(facts["vs_engine"].as_str().is_some_and(|engine| engine.starts_with("flex")), "{facts}");
    assert_eq!(facts["first"], Value::Null, "{facts}");
    assert!(place.ok(&line).stdout.contains("nothing parts by more than 1e-3"));
    place.run(&format!("compare {MODEL} --data x.npy")).code.eq(&2).then_some(()).expect("B is missing");
    place.ends(&format!("compare {MODEL} {RESNET} --data fixtures/data/fmnist-eval.toml --tolerance -1"), 2);
}

/// A model whose values all have other names.
fn renamed(place: &Place, from: &str, to: &str) {
    let bytes = place.read(from);
    place.write("copy.onnx", &bytes);
    let options = optix_io::LoadOptions::default();
    let mut model = optix_io::load(&place.path("copy.onnx"), &options).expect("it loads").model;
    let graph = model.graph(model.main());
    let ends: Vec<_> = graph.inputs().iter().chain(graph.outputs()).map(|info| info.value).collect();
    let inner: Vec<_> = model.values().filter(|value| !ends.contains(value)).collect();
    for (number, value) in inner.into_iter().enumerate() {
        model.rename_value(value, &format!("value{number}")).expect("a free name");
    }
    place.write(to, optix_io::onnx_bytes(&model).expect("it is small"));
}

#[test]
fn compare_finds_quantized_values_behind_other_names_and_as_integers() {
    let place = Place::new();
    place.ok(&format!("quantize {MODEL} -o int8.onnx {} -q", super::CALIB));
    place.write("integer.toml", "version = 1\n[[step]]\npass = \"to-qoperator\"\n");
    place.ok("run ./integer.toml int8.onnx -o integer.onnx -q");
    let data = "--data fixtures/data/fmnist-eval.toml --samples 16 --json";
    let named = place.json(&format!("compare {MODEL} int8.onnx {data}"));
    let count = |facts: &Value| facts["values"].as_array().expect("a list").len();
    for other in ["int8.onnx", "integer.onnx"] {
        renamed(&place, other, "renamed.onnx");
        for name in [other, "renamed.onnx"] {
            let facts = place.json(&format!("compare {MODEL} {name} {data}"));
            // Convolutions whose activation went into a quantizer have none in integers.
            assert!(count(&facts) * 2 > count(&named), "{name}: {} of {}", count(&facts), count(&named));
            let values = facts["values"].as_array().expect("a list");
            let poor = values.iter().find(|value| value["sqnr_db"].as_f64().is_some_and(|sqnr| sqnr < 5.0));
            assert!(poor.is_none(), "{name}: {poor:?}");
            let worst = values.iter().find(|value| value["name"] == facts["worst"]).expect("the worst");
            let least =
                values.iter().filter_map(|value| value["sqnr_db"].as_f64()).fold(f64::INFINITY, f64::min);
            assert_eq!(worst["sqnr_db"].as_f64(), Some(least));
            assert!(facts["first"].is_string() && worst["node"].is_string(), "{name}");
        }
    }
}

#[test]
fn errors_of_engines_name_the_node_and_what_helps() {
    let place = Place::new();
    let head = "<ir_version: 8, opset_import: [\"\" : 18, \"my\" : 1]>\n";
    write_npy(&place, "i.npy", &Tensor::from_vec(vec![2, 2], vec![0i64, 1, 2, 9]));
    write_npy(&place, "zero.npy", &Tensor::from_vec(vec![2, 2], vec![3i64, 1, 2, 0]));
    write_npy(&place, "x.npy", &Tensor::from_vec(vec![2, 2], vec![1f32, 2.0, 3.0, 4.0]));
    let cases = [
        (
            "g (int64[N,2] i) => (float[N,2] y) <float[3] table = {1, 2, 3}> { y = Gather (table, i) }",
            "i.npy",
            vec!["Gather", "`y`", "9"],
        ),
        (
            "g (int64[N,2] i) => (int64[N,2] y) <int64[1] one = {7}> { y = Div (one, i) }",
            "zero.npy",
            vec!["Div", "`y`", "divided by zero"],
        ),
        (
            "g (int64[N,2] i) => (int64[N,2] y) <int64[1] one = {7}> { y = Mod (one, i) }",
            "zero.npy",
            vec!["Mod", "`y`", "divided by zero"],
        ),
        (
            "g (float[N,2] x) => (float[N,2] y) { a = my.Odd (x)\n b = Relu (a)\n c = my.Odd (b)\n y = my.Odder (c) }",
            "x.npy",
            vec![
                "OX-M003",
                "3 nodes are unsupported",
                "my.Odd of operator set 1: ",
                "my.Odder",
                "`a`",
                "`c`",
                "help: ",
            ],
        ),
        (
            "g (float[N,2] x) => (float[N,3] y) <float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { y = MatMul (x, w) }",
            "x.npy",
            vec!["MatMul", "`y`"],
        ),
    ];
    for (number, (text, data, says)) in cases.iter().enumerate() {
        let name = format!("model{number}.onnx");
        write_model(&place, &name, &format!("{head}{text}"));
        for engine in ["cpu", "flex"] {
            for line in [
                format!("infer {name} --data {data} -o out.npz --engine {engine}"),
                format!("eval {name} --data {data} --vs {name} --engine {engine}"),
            ] {
                let error = place.ends(&line, 2).stderr;
                for part in says {
                    assert!(error.contains(part), "{line}: {part}\n{error}");
                }
                assert_eq!(error.matches("error: ").count(), 1, "{error}");
            }
        }
    }
    assert!(!place.exists("out.npz"), "nothing appears");
}
