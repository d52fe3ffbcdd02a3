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
    place.ok(&format!("quantize {MODEL} -o used.onnx --observer mse --stats s.stats -q"));
    place.ok(&format!("quantize {MODEL} -o mse.onnx {CALIB} --calib-samples 64 --observer mse -q"));
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
fn parts_put_together_are_the_whole() {
    let place = Place::new();
    part(&place, "first.toml", 0, 50);
    part(&place, "second.toml", 50, 30);
    for name in ["first", "second"] {
        place.ok(&format!("quantize {MODEL} -o x.onnx --calib {name}.toml --stats {name}.stats -q"));
    }
    place.ok(&format!("quantize {MODEL} -o whole.onnx {CALIB} --calib-samples 80 --observer mse -q"));
    place.ok(&format!(
        "quantize {MODEL} -o parts.onnx --observer mse --stats first.stats --stats second.stats -q"
    ));
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
