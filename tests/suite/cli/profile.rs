//! `optix profile`: every node is in the tables, figures fit together, and what cannot be measured is said.
//! How long things take is nobody's business here: the machine that tests run on is busy.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{CALIB, MODEL};
use crate::program::Place;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_else(|| panic!("{value} is no list"))
}

fn check_schema(report: &Value) {
    let schema = optix_pipeline::profile::ProfileReport::json_schema();
    assert_eq!(crate::schema::violations(&schema, report), [""; 0]);
}

/// Writes a model from its text form.
fn model(place: &Place, name: &str, text: &str) {
    let model = optix_ir::text::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    place.write(name, optix_io::onnx_bytes(&model).expect("it is small"));
}

#[test]
fn every_node_is_accounted_for() {
    let place = Place::new();
    let inspected = place.json(&format!("inspect {MODEL} --json"));
    for engine in ["cpu", "flex"] {
        let report = place.json(&format!("profile {MODEL} --engine {engine} --batch 4 --runs 6 --json"));
        check_schema(&report);
        assert_eq!(report["schema"], "optix-profile/1");
        let facts = &report["models"][0];
        assert!(facts["engine"].as_str().is_some_and(|text| text.starts_with(engine)), "{facts}");
        assert_eq!((&facts["batch"], &facts["emulated"]), (&4.into(), &false.into()));
        assert_eq!(facts["inputs"][0]["shape"], serde_json::json!([4, 1, 28, 28]));

        // As many nodes of each operator as the model has, fused and folded ones included.
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        let nodes = list(&facts["nodes"]);
        for node in nodes {
            match node["fused"].as_array() {
                Some(fused) => {
                    fused.iter().for_each(|op| *counts.entry(op.as_str().expect("text")).or_default() += 1)
                }
                None => *counts.entry(node["op"].as_str().expect("text")).or_default() += 1,
            }
        }
        for node in list(&facts["folded"]) {
            *counts.entry(node["op"].as_str().expect("text")).or_default() += 1;
        }
        for (op, count) in inspected["operators"].as_object().expect("a table") {
            assert_eq!(counts.get(op.as_str()).copied(), count.as_u64(), "{engine}: {op} of {counts:?}");
        }
        assert_eq!((counts["Conv"], counts["Gemm"]), (17, 1));

        // Shares and sums fit together.
        let sum = |key: &str, of: &[Value]| of.iter().map(|one| number(&one[key])).sum::<f64>();
        let operators = list(&facts["operators"]);
        for of in [nodes, operators] {
            assert!((sum("share", of) - 1.0).abs() < 1e-9, "{engine}");
            assert!((sum("seconds", of) - number(&facts["nodes_seconds"])).abs() < 1e-9, "{engine}");
        }
        assert!(number(&facts["latency"]["median"]) > 0.0 && number(&facts["latency"]["runs"]) >= 6.0);
        let weights = number(&facts["memory"]["weights"]);
        assert!(
            weights > 100_000.0 && number(&facts["memory"]["activations"]) > 4.0 * 784.0 * 4.0,
            "{facts}"
        );
        if engine == "cpu" {
            assert_eq!(
                facts["memory"]["activations_predicted"], facts["memory"]["activations"],
                "known ahead"
            );
        }
    }
}

#[test]
fn operations_and_bytes_follow_from_the_shapes() {
    let place = Place::new();
    model(
        &place,
        "m.onnx",
        "<ir_version: 8, opset_import: [\"\" : 17]>
         g (float[n, 8] x) => (float[n, 4] y) <float[8, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32}> {
            [multiply] p = MatMul(x, w)
            [limit] y = Relu(p)
         }",
    );
    let report = place.json("profile m.onnx --engine flex --dim n=16 --runs 6 --json");
    let nodes = list(&report["models"][0]["nodes"]);
    let multiply = nodes.iter().find(|node| node["nodes"][0] == "multiply").expect("the product");
    assert_eq!(multiply["flops"], 2 * 16 * 8 * 4);
    assert_eq!(multiply["bytes_read"], 4 * (16 * 8 + 8 * 4));
    assert_eq!(multiply["bytes_written"], 4 * 16 * 4);
    assert_eq!(multiply["outputs"][0], "float[16, 4]");
    let intensity = number(&multiply["intensity"]);
    assert!((intensity - 1024.0 / 896.0).abs() < 1e-9, "{intensity}");
}

#[test]
fn bodies_count_inside_their_node_and_reference_kernels_are_named() {
    let place = Place::new();
    let report = place
        .json("profile fixtures/graphs/loop_scan_output.onnx --engine cpu --fill trips=3 --runs 6 --json");
    let loops: Vec<&Value> =
        list(&report["models"][0]["nodes"]).iter().filter(|node| node["op"] == "Loop").collect();
    assert!(loops.len() == 1 && loops[0]["ran"] == "body", "{report}");

    model(
        &place,
        "slow.onnx",
        "<ir_version: 8, opset_import: [\"\" : 17]>
         g (float[n, 8] x) => (float[n, 8] y) <int64 axis = {1}> {
            [running] c = CumSum(x, axis)
            y = Relu(c)
         }",
    );
    let facts = &place.json("profile slow.onnx --engine cpu --runs 6 --json")["models"][0];
    let ran: BTreeMap<&str, &str> = list(&facts["nodes"])
        .iter()
        .map(|node| (node["op"].as_str().expect("text"), node["ran"].as_str().expect("text")))
        .collect();
    assert_eq!(ran.get("CumSum"), Some(&"reference"), "{ran:?}");
    assert_eq!(ran.get("Relu"), Some(&"fast"), "{ran:?}");
    let text = place.ok("profile slow.onnx --engine cpu --runs 6").stdout;
    assert!(text.contains("on plain kernels on the host: 1 CumSum"), "{text}");
}

#[test]
fn a_profile_is_written_in_every_form() {
    let place = Place::new();
    let line = format!(
        "profile {MODEL} --engine cpu --runs 6 --report p.json --report p.md --report p.html --trace t.json"
    );
    let printed = place.ok(&line).stdout;
    let report: Value = serde_json::from_str(&place.text("p.json")).expect("JSON");
    check_schema(&report);
    assert_eq!(report["command"], format!("optix {line}"));
    let nodes = list(&report["models"][0]["nodes"]);
    let (markdown, html) = (place.text("p.md"), place.text("p.html"));
    for part in ["latency", "Conv", "matrix product", "the inputs are random"] {
        for text in [&printed, &markdown, &html] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
    for node in nodes {
        let name = node["nodes"][0].as_str().expect("text").replace('_', "\\_");
        assert!(markdown.contains(&name), "{name}");
    }
    assert_eq!(html.matches("<svg ").count(), 3, "operators, nodes, roofline");
    assert!(html.matches("class=\"dot\"").count() >= 18);

    let trace: Value = serde_json::from_str(&place.text("t.json")).expect("JSON");
    let events = list(&trace["traceEvents"]);
    let runs: Vec<&Value> = events.iter().filter(|event| event["cat"] == "run").collect();
    assert!(!runs.is_empty() && runs.len() <= 5);
    let kernels = events.iter().filter(|event| event["ph"] == "X" && event["cat"] != "run");
    assert_eq!(kernels.clone().count(), runs.len() * nodes.len());
    for event in kernels {
        let (start, end) = (number(&event["ts"]), number(&event["ts"]) + number(&event["dur"]));
        let within = |run: &&Value| {
            let from = number(&run["ts"]);
            // A microsecond for rounding.
            from - 1.0 <= start && end <= from + number(&run["dur"]) + 1.0
        };
        assert!(runs.iter().any(within), "{event}");
    }
}

#[test]
fn two_models_are_compared_in_pairs() {
    let place = Place::new();
    let report = place.json(&format!("profile {MODEL} --engine cpu --vs {MODEL} --seconds 0.2 --json"));
    check_schema(&report);
    let ratio = &report["ratio"];
    let figure = |key: &str| number(&ratio["ratio"][key]);
    assert!(figure("low") <= figure("value") && figure("value") <= figure("high"), "{ratio}");
    assert!(number(&ratio["pairs"]) >= 10.0, "{ratio}");
    assert_eq!(list(&report["models"]).len(), 2);
    // A threshold is held against the upper end of the interval.
    let line = format!("profile {MODEL} --engine cpu --vs-engine flex --seconds 0.2");
    let met = place.json(&format!("{line} --require latency-ratio=1000 --json"));
    assert_eq!(met["requirements"][0]["met"], true);
    assert_eq!(met["requirements"][0]["value"], met["ratio"]["ratio"]["high"]);
    let missed = place.ends(&format!("{line} --require latency-ratio=0.00001"), 1);
    assert!(missed.stdout.contains("latency-ratio MISSED"), "{}", missed.stdout);
    assert!(missed.stdout.contains("time of cpu over flex: "), "{}", missed.stdout);
}

#[test]
fn no_speed_is_claimed_of_what_is_emulated() {
    let place = Place::new();
    place.ok(&format!("quantize {MODEL} -o int8.onnx {CALIB} -q"));
    let line = format!("profile int8.onnx --engine cpu --vs {MODEL} --runs 6 --require latency-ratio=1000");
    let run = place.ends(&line, 1);
    assert!(
        run.stdout.contains("EMULATED") && run.stdout.contains("not given: int8 is emulated"),
        "{}",
        run.stdout
    );
    let run = place.run(&format!("{line} --json"));
    let report: Value = serde_json::from_str(&run.stdout).expect("JSON");
    check_schema(&report);
    assert_eq!(run.code, 1);
    assert_eq!(
        (&report["models"][0]["emulated"], &report["models"][1]["emulated"]),
        (&true.into(), &false.into())
    );
    assert_eq!((&report["ratio"], &report["requirements"][0]["met"]), (&Value::Null, &false.into()));
}

#[test]
fn loads_are_measured() {
    let place = Place::new();
    let all = "--scenario single-stream --scenario multi-stream --scenario server --scenario offline";
    let report = place.json(&format!("profile {MODEL} --engine cpu --seconds 0.2 --streams 2 {all} --json"));
    check_schema(&report);
    let scenarios = list(&report["scenarios"]);
    let names: Vec<&str> = scenarios.iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, ["single-stream", "multi-stream", "server", "offline"]);
    for scenario in scenarios {
        let percentiles: Vec<f64> =
            list(&scenario["latency"]["percentiles"]).iter().map(|one| number(&one["value"])).collect();
        assert!(percentiles.len() == 3 && percentiles.is_sorted(), "{scenario}");
        assert!(number(&scenario["samples_per_second"]) > 0.0, "{scenario}");
    }
    assert_eq!((&scenarios[3]["batch"], &scenarios[1]["streams"]), (&32.into(), &2.into()));
    // Far more than can be answered: what waits counts.
    let line =
        format!("profile {MODEL} --engine cpu --seconds 0.3 --scenario server --arrivals 40000 --json");
    let server = &place.json(&line)["scenarios"][0];
    assert!(list(&server["notes"])[0].as_str().is_some_and(|note| note.contains("faster than")), "{server}");
    let p = |index: usize| number(&server["latency"]["percentiles"][index]["value"]);
    assert!(p(0) > 0.05, "queries wait in a queue that grows: {server}");
}

#[test]
fn data_can_be_fed_instead_of_random_numbers() {
    let place = Place::new();
    let line = format!(
        "profile {MODEL} --engine cpu --data fixtures/data/fmnist-eval.toml --batch 8 --runs 6 --json"
    );
    let facts = &place.json(&line)["models"][0];
    assert_eq!((&facts["batch"], &facts["inputs"][0]["values"]), (&8.into(), &"data".into()));
    assert_eq!(facts["data"], "fixtures/data/fmnist-eval.toml");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let place = Place::new();
    model(
        &place,
        "free.onnx",
        "<ir_version: 8, opset_import: [\"\" : 17]>
         g (float[batch, length, 4] x, int64[batch, length] ids, string[batch] s) => (float[batch, length, 4] y) { y = Relu(x) }",
    );
    model(
        &place,
        "fixed.onnx",
        "<ir_version: 8, opset_import: [\"\" : 17]>
         g (float[1, 4] x, int64 k) => (float[1, 4] y) { y = Relu(x) }",
    );
    let cases = [
        ("free.onnx", "--dim length=SIZE"),
        ("free.onnx --dim lenght=3", "--dim length=SIZE"),
        ("free.onnx --dim length=3", "input `s` has string elements"),
        ("fixed.onnx --batch 2", "the model's first axis is fixed at 1"),
        ("fixed.onnx --batch 0", "a run needs a sample at least"),
        ("fixed.onnx --dim batch=2", "the model has no such free dimension"),
        ("fixed.onnx --dim batch", "the form is NAME=SIZE"),
        ("fixed.onnx --dim batch=-2", "the form is NAME=SIZE"),
        ("fixed.onnx --fill q=1", "the model has no such input"),
        ("fixed.onnx --fill k=0.5", "not a value of int64"),
        ("fixed.onnx --fill k", "the form is INPUT=NUMBER"),
        ("fixed.onnx --require latency-ratio=1", "give --vs or --vs-engine"),
        ("fixed.onnx --vs fixed.onnx --require latency=1", "there is no such requirement"),
        ("fixed.onnx --vs fixed.onnx --require latency-ratio=fast", "a number above 0"),
        ("fixed.onnx --vs nowhere.onnx", "nowhere.onnx"),
        ("fixed.onnx --seconds 0", "more than 0"),
        ("fixed.onnx --runs 0", "must be 1 at least"),
        ("fixed.onnx --arrivals 0", "more than 0"),
        ("fixed.onnx --report p.txt", "ends in .json, .md or .html"),
        ("fixed.onnx --trace fixed.onnx", "fixed.onnx"),
        ("fixed.onnx --trace p.json --report p.json", "p.json"),
        ("fixtures/graphs/unknown_operator.onnx --dim x=1", "no such free dimension"),
    ];
    for (line, part) in cases {
        let run = place.ends(&format!("profile {line} --engine cpu"), 2);
        assert!(run.stderr.contains(part), "{line}: {part}\n{}", run.stderr);
        assert_eq!(run.stdout, "", "{line}");
    }
    place.ends("profile fixed.onnx --engine cpus", 3);
    place.ends("profile fixed.onnx --engine cpu --vs-engine cpus", 3);
    assert_eq!(place.list(), ["fixed.onnx", "free.onnx"], "nothing is written");
}
