//! Calibration statistics in files, and what is said about calibration data.

use crate::program::Place;

const MODEL: &str = "fixtures/models/fmnist_mobilenet.onnx";
const CALIB: &str = "--calib fixtures/data/fmnist-calib.toml";

/// Calibration data that skip some samples and take some.
fn part(place: &Place, name: &str, skip: u64, take: u64) {
    let text = place.text("fixtures/data/fmnist-calib.toml");
    let text = text
        .replace("path = \"", "path = \"fixtures/data/")
        .replace("labels = \"", "labels = \"fixtures/data/");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("take"));
    let text: Vec<String> = lines
        .map(|line| {
            if line.trim() == "[source]" {
                format!("[source]\nskip = {skip}\ntake = {take}")
            } else {
                line.to_owned()
            }
        })
        .collect();
    place.write(name, text.join("\n"));
}

#[test]
fn statistics_are_made_and_used_again() {
    let place = Place::new();
    place.ok(&format!("quantize {MODEL} -o plain.onnx {CALIB} --calib-samples 64 -q"));
    place.ok(&format!("quantize {MODEL} -o made.onnx {CALIB} --calib-samples 64 --stats s.stats -q"));
    assert!(place.read("plain.onnx") == place.read("made.onnx"), "gathering statistics changes nothing");
    let made = place.read("s.stats");
    // Biases are corrected and weights rounded by data, not by statistics.
    let plain = "--observer mse --set quantize-static.bias-correction=false --set learn-rounding.samples=0";
    place.ok(&format!("quantize {MODEL} -o used.onnx {plain} --stats s.stats -q"));
    place.ok(&format!("quantize {MODEL} -o mse.onnx {CALIB} --calib-samples 64 {plain} -q"));
    assert!(place.read("used.onnx") == place.read("mse.onnx"), "without data the same ranges come out");
    assert!(place.read("s.stats") == made, "what is used is left as it is");
    // The same statistics from any number of threads.
    place.ok(&format!(
        "quantize {MODEL} -o three.onnx {CALIB} --calib-samples 64 --stats t.stats --threads 3 -q"
    ));
    assert!(place.read("t.stats") == made);
    assert!(place.read("three.onnx") == place.read("made.onnx"));
}

#[test]
fn statistics_survive_what_fails_later_and_are_named() {
    let place = Place::new();
    // The second step refuses what the first one has made.
    let step = "[[step]]\nid = \"ID\"\npass = \"quantize-static\"\n";
    let recipe = format!("version = 1\n{}{}", step.replace("ID", "a"), step.replace("ID", "b"));
    place.write("twice.toml", recipe);
    let calib = "--calib-samples 32";
    let line = format!("run ./twice.toml {MODEL} -o x.onnx {CALIB} {calib} --stats s.stats");
    assert!(place.ends(&line, 2).stderr.contains("quantized already"));
    assert!(place.exists("s.stats") && !place.exists("x.onnx"));
    // What statistics alone cannot do is said, and they are named where data would be.
    place.write("once.toml", format!("version = 1\n{}", step.replace("ID", "a")));
    place.ok(&format!("run ./once.toml {MODEL} -o y.onnx --stats s.stats -q --report y.json"));
    let report: serde_json::Value = serde_json::from_str(&place.text("y.json")).expect("JSON");
    let data = &report["data"][0];
    assert_eq!(
        (&data["role"], &data["path"], &data["samples"]),
        (&"statistics".into(), &"s.stats".into(), &32.into())
    );
    let steps = report["steps"].as_array().expect("a list");
    let step = steps.iter().find(|step| step["pass"] == "quantize-static").expect("it ran");
    let warnings = step["changes"]["warnings"].as_array().expect("a list");
    let warning =
        warnings.iter().filter_map(|warning| warning.as_str()).find(|text| text.contains("statistics alone"));
    let warning = warning.expect("a warning");
    assert!(
        warning.contains("min-sqnr") && warning.contains("only-faster") && warning.contains("auto"),
        "{warning}"
    );
    let lock: serde_json::Value = serde_json::from_str(&place.text("y.onnx.lock.json")).expect("JSON");
    assert_eq!(lock["data"][0]["role"], "statistics");
    place.ok(&format!("apply y.onnx.lock.json {MODEL} -o z.onnx -q"));
    assert!(place.read("y.onnx") == place.read("z.onnx"));
    // Passes that look at the data themselves are not content with statistics.
    let recipe = "version = 1\n[[step]]\npass = \"equalize-layers\"\n[[step]]\npass = \"quantize-static\"\n";
    place.write("accurate.toml", recipe);
    let error = place.ends(&format!("run ./accurate.toml {MODEL} -o w.onnx --stats s.stats"), 2).stderr;
    assert!(error.contains("equalize-layers") && error.contains("--calib"), "{error}");
}

#[test]
fn memory_is_kept_below_a_limit_or_it_is_said_what_it_takes() {
    let place = Place::new();
    let line = format!("quantize {MODEL} {CALIB} --calib-samples 64 -q");
    let error = place.ends(&format!("{line} -o x.onnx --max-memory 3MB"), 3).stderr;
    assert!(error.contains("--max-memory") && error.contains("or more"), "{error}");
    let needed: u64 = error
        .split("`--max-memory ")
        .nth(1)
        .and_then(|rest| rest.split('`').next())
        .expect("a number")
        .parse()
        .expect("bytes");
    // What it asks for is enough, and fewer samples than usual are run together.
    place.ok(&format!("{line} -o few.onnx --max-memory {} --report few.json", needed + (6 << 20)));
    place.ok(&format!("{line} -o many.onnx --max-memory 8GiB --report many.json"));
    assert!(place.read("few.onnx") == place.read("many.onnx"), "the same model");
    let memory = |name: &str| {
        let report: serde_json::Value = serde_json::from_str(&place.text(name)).expect("JSON");
        report["memory"].clone()
    };
    let (few, many) = (memory("few.json"), memory("many.json"));
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    assert_eq!(number(&many["calibrated_together"]), 16, "{many}");
    assert!(number(&few["predicted"]) <= needed + (6 << 20), "{few}");
    assert!(number(&many["predicted"]) > 1 << 20 && number(&many["peak"]) > 1 << 20, "{many}");
    let eval = format!("eval {MODEL} --data fixtures/data/fmnist-eval.toml --samples 32 --json");
    let facts = place.json(&format!("{eval} --max-memory 4GB"));
    assert!(number(&facts["memory"]["predicted"]) > 1 << 20, "{facts}");
    assert!(place.ends(&format!("{eval} --max-memory 2MB"), 3).stderr.contains("--max-memory"));
    assert!(place.ends(&format!("{eval} --max-memory plenty"), 2).stderr.contains("500MB"));
    // Samples of a megabyte: their number is what makes the difference.
    let text = "<ir_version: 8, opset_import: [\"\" : 18]>\ng (float[N,262144] x) => (float[N,262144] y) { y = Mul (x, x) }";
    let model = optix_ir::text::parse(text).expect("a model");
    place.write("big.onnx", optix_io::onnx_bytes(&model).expect("small"));
    let mut npy =
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (16, 262144), }"
            .to_vec();
    npy.resize(127, b' ');
    npy.push(b'\n');
    npy.resize(128 + 16 * 262_144 * 4, 0x3f);
    place.write("x.npy", npy);
    let eval = "eval big.onnx --vs big.onnx --data x.npy --threads 1 --json --max-memory";
    let plenty = place.json(&format!("{eval} 8GB"));
    let predicted = number(&plenty["memory"]["predicted"]);
    let tight = place.json(&format!("{eval} {}", predicted - (44 << 20)));
    assert_eq!((number(&plenty["batch"]), number(&tight["batch"])), (8, 4));
    assert!(number(&tight["memory"]["predicted"]) < predicted - (40 << 20), "{tight}");
}

#[test]
fn parts_put_together_are_the_whole() {
    let place = Place::new();
    part(&place, "first.toml", 0, 50);
    part(&place, "second.toml", 50, 30);
    for name in ["first", "second"] {
        place.ok(&format!("quantize {MODEL} -o x.onnx --calib {name}.toml --stats {name}.stats -q"));
    }
    let plain = "--observer mse --set quantize-static.bias-correction=false --set learn-rounding.samples=0";
    place.ok(&format!("quantize {MODEL} -o whole.onnx {CALIB} --calib-samples 80 {plain} -q"));
    place.ok(&format!("quantize {MODEL} -o parts.onnx {plain} --stats first.stats --stats second.stats -q"));
    assert!(place.read("whole.onnx") == place.read("parts.onnx"));
}

#[test]
fn statistics_that_do_not_fit_are_refused() {
    let place = Place::new();
    place.ok(&format!("quantize {MODEL} -o x.onnx {CALIB} --calib-samples 32 --stats s.stats -q"));
    let ends = |line: &str, expected: &str| {
        let error = place.ends(line, 2).stderr;
        assert!(error.contains(expected), "{line}: {error}");
        assert!(!place.exists("y.onnx"), "{line}");
    };
    let other = "fixtures/models/fmnist_resnet.onnx";
    ends(&format!("quantize {other} -o y.onnx --stats s.stats"), "another model");
    ends(&format!("quantize {MODEL} -o y.onnx {CALIB} --stats s.stats --stats none.stats"), "no such file");
    ends(&format!("quantize {MODEL} -o y.onnx --stats fixtures"), "no plain file");
    ends(&format!("quantize {MODEL} -o s.stats --stats s.stats"), "s.stats");
    ends(&format!("quantize {MODEL} -o y.onnx {CALIB} --stats y.onnx"), "y.onnx");
    ends(&format!("quantize {MODEL} -o y.onnx --method static --stats none.stats"), "--calib");
    ends(&format!("quantize {MODEL} -o y.onnx {CALIB} --set quantize-static.percentile=10"), "above 50");
    place.write("cut.stats", &place.read("s.stats")[..200]);
    ends(&format!("quantize {MODEL} -o y.onnx --stats cut.stats"), "cut off or damaged");
    place.write("else.stats", "[statistics]\n");
    ends(&format!("quantize {MODEL} -o y.onnx --stats else.stats"), "no file of calibration statistics");
}

#[test]
fn all_observers_make_a_model() {
    let place = Place::new();
    for observer in ["auto", "min-max", "moving-average", "mean-extremes", "percentile", "entropy", "mse"] {
        let flags = format!("{CALIB} --calib-samples 64 --observer {observer}");
        let line = format!(
            "quantize {MODEL} -o x.onnx {flags} --eval fixtures/data/fmnist-eval.toml --eval-samples 200"
        );
        place.ok(&format!("{line} --require sqnr-db=22 -q"));
    }
}

#[test]
fn doubtful_calibration_data_are_told() {
    let place = Place::new();
    let run = place.ok(&format!("quantize {MODEL} -o x.onnx {CALIB} --calib-samples 4"));
    assert!(run.stdout.contains("4 samples of calibration data: too few"), "{}", run.stdout);
    let run = place.ok(&format!("quantize {MODEL} -o x.onnx {CALIB} --calib-samples 64 --json"));
    let report: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    let steps = report["steps"].as_array().expect("steps");
    let counters = steps
        .iter()
        .map(|step| &step["changes"]["counters"])
        .find(|counters| counters["calibration samples"] == 64);
    let counters = counters.expect("the quantizing step");
    let settled = counters["samples until all ranges settled"].as_u64().expect("a number");
    assert!((1..=64).contains(&settled), "{settled}");
    // Forty equal images of bytes, as they are.
    let header = format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (40, 1, 28, 28), }");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    let image: Vec<u8> = (0..784u32).flat_map(|i| ((i % 256) as f32).to_le_bytes()).collect();
    (0..40).for_each(|_| file.extend(&image));
    place.write("bytes.npy", file);
    let run = place.ok(&format!("quantize {MODEL} -o x.onnx --calib bytes.npy"));
    for expected in ["39 of 40 calibration samples equal an earlier one", "whole numbers up to 255"] {
        assert!(run.stdout.contains(expected), "{}", run.stdout);
    }
}
