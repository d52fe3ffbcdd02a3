//! Weights that become zero: how many, where, and that they stay so.

use serde_json::Value;

use crate::program::{Place, root};

const MODEL: &str = "fixtures/models/fmnist_resnet.onnx";
const CALIB: &str = "--calib fixtures/data/fmnist-calib.toml --calib-samples 256";
const EVAL: &str = "--eval fixtures/data/fmnist-eval.toml --eval-samples 500";

/// Weights of every layer with the name of its node, from a file.
fn weights(path: &std::path::Path) -> Vec<(String, Vec<usize>, Vec<f64>)> {
    let loaded = optix_io::load(path, &optix_io::LoadOptions::default()).expect("it loads");
    let model = loaded.model;
    let found = model.walk().filter_map(|id| {
        let node = model.node(id);
        let layer = matches!(node.op_type.as_str(), "Conv" | "Gemm" | "MatMul");
        let value = node.input(1).filter(|_| layer)?;
        // Behind a DequantizeLinear they are integers.
        let value = match model.value(value).producer() {
            Some((producer, _)) => model.node(producer).input(0)?,
            None => value,
        };
        let tensor = model.constant(value)?;
        let name = model.value(node.output(0)?).name().to_owned();
        Some((
            name,
            tensor.shape().to_vec(),
            tensor
                .to_f64s()
                .or_else(|_| tensor.to_i64s().map(|all| all.into_iter().map(|x| x as f64).collect()))
                .expect("numbers"),
        ))
    });
    found.collect()
}

fn zeros(weights: &[(String, Vec<usize>, Vec<f64>)]) -> (usize, usize) {
    let all = weights.iter().map(|(_, _, weights)| weights.len()).sum();
    (weights.iter().flat_map(|(_, _, weights)| weights).filter(|x| **x == 0.0).count(), all)
}

fn lost(report: &Value) -> f64 {
    report["evaluation"]["accuracy"]["change_points"]["value"].as_f64().map_or(f64::NAN, |change| -change)
}

#[test]
fn half_of_the_weights_become_zero_and_the_rest_makes_up_for_them() {
    let place = Place::new();
    // Half of its depthwise weights would ruin it.
    let model = "fixtures/models/fmnist_mobilenet.onnx";
    let own = |method: &str, more: &str| {
        let line = format!("prune {model} -o {method}.onnx --method {method} {CALIB} {EVAL} --json {more}");
        let report = place.json(&line);
        let (zeros, all) = zeros(&weights(&place.path(&format!("{method}.onnx"))));
        // A few weights are zero by themselves, shares are whole numbers of each block.
        let share = zeros as f64 / all as f64;
        assert!((share - 0.5).abs() < 0.02, "{method}: {share}");
        lost(&report)
    };
    let layer = own("magnitude", "--set prune-magnitude.scope=layer");
    let wanda = own("wanda", "");
    let sparsegpt = own("sparsegpt", "");
    assert!(sparsegpt < wanda - 10.0 && wanda < layer - 10.0, "{layer} {wanda} {sparsegpt}");
    assert!(sparsegpt < 10.0, "{sparsegpt}");
    // What was found with data comes back without.
    place.ok(&format!("apply sparsegpt.onnx.lock.json {model} -o again.onnx"));
    assert!(place.read("again.onnx") == place.read("sparsegpt.onnx"));
    place.ok(&format!("prune {model} -o one.onnx {CALIB} --threads 1 -q"));
    assert!(place.read("one.onnx") == place.read("sparsegpt.onnx"), "on any number of threads");
}

#[test]
fn patterns_are_kept_and_zeros_survive_quantization() {
    let place = Place::new();
    place.ok(&format!("run 2-4-sparse {MODEL} -o sparse.onnx {CALIB} -q"));
    let float = weights(&place.path("sparse.onnx"));
    for (name, shape, weights) in &float {
        let (outputs, inputs) = (shape[0], shape[1]);
        let places: usize = shape[2..].iter().product();
        if inputs < 4 {
            continue;
        }
        for at in 0..outputs * places {
            let (output, at) = (at / places, at % places);
            let lane: Vec<f64> =
                (0..inputs).map(|input| weights[(output * inputs + input) * places + at]).collect();
            let runs = lane.chunks_exact(4);
            assert!(runs.clone().all(|run| run.iter().filter(|x| **x == 0.0).count() >= 2), "{name}");
        }
    }
    // Rounded weights are zero too, however they are rounded.
    let line = "quantize sparse.onnx -o int8.onnx --deploy none --set quantize-static.min-sqnr=0 -q";
    place.ok(&format!("{line} {CALIB}"));
    let integers = weights(&place.path("int8.onnx"));
    assert_eq!(integers.len(), float.len());
    for ((name, _, float), (_, _, integers)) in float.iter().zip(&integers) {
        assert!(float.iter().zip(integers).all(|(a, b)| *a != 0.0 || *b == 0.0), "{name}");
    }
}

#[test]
fn what_cannot_be_pruned_is_said() {
    let place = Place::new();
    let error = |more: &str| place.ends(&format!("prune {MODEL} -o x.onnx {more}"), 2).stderr;
    assert!(error("--sparsity 1.5").contains("a share of all weights, from 0 to below 1"));
    assert!(error("--pattern 4:2").contains("`4:2` is no pattern"), "{}", error("--pattern 4:2"));
    assert!(error("--exclude nothing-like-it").contains("no node is called `nothing-like-it`"));
    assert!(error("--method sparsegpt").contains("needs calibration data"));
    assert!(error("--exclude *").contains("no layer of this model can be pruned"));
    assert!(!place.exists("x.onnx"));
    assert!(root().join(MODEL).exists());
}

#[test]
fn channels_are_taken_out_and_layers_make_up_for_them() {
    let place = Place::new();
    let pruned = |name: &str, more: &str| {
        let line = format!("prune {MODEL} -o {name}.onnx --flops 0.5 {CALIB} {EVAL} --json {more}");
        lost(&place.json(&line))
    };
    let (fitted, plain) = (pruned("fitted", ""), pruned("plain", "--recover=false"));
    assert!(fitted < 8.0 && plain > fitted + 5.0, "{fitted} {plain}");
    let size = |path: &std::path::Path| std::fs::metadata(path).expect("it is there").len();
    assert!(size(&place.path("fitted.onnx")) < size(&root().join(MODEL)) * 7 / 10);
    // Widths are those that fill vectors, but for the classes.
    let layers = weights(&place.path("fitted.onnx"));
    let convolutions: Vec<_> = layers.iter().filter(|(_, shape, _)| shape.len() == 4).collect();
    assert!(convolutions.iter().all(|(_, shape, _)| shape[0] % 8 == 0), "{convolutions:?}");
    let operations = |path: &std::path::Path| {
        let report = place.json(&format!("profile {} --engine cpu --seconds 0.1 --json", path.display()));
        let nodes = report["models"][0]["nodes"].as_array().expect("nodes").clone();
        let of = |node: &Value| node["flops"].as_f64().unwrap_or(0.0);
        nodes.iter().filter(|node| matches!(node["op"].as_str(), Some("Conv" | "Gemm"))).map(of).sum::<f64>()
    };
    let share = operations(&place.path("fitted.onnx")) / operations(&root().join(MODEL));
    assert!(share < 0.51 && share > 0.4, "{share}");
    // What was found with data comes back without.
    place.ok(&format!("apply fitted.onnx.lock.json {MODEL} -o again.onnx"));
    assert!(place.read("again.onnx") == place.read("fitted.onnx"));
    place.ok(&format!("prune {MODEL} -o one.onnx --flops 0.5 {CALIB} --threads 1 -q"));
    assert!(place.read("one.onnx") == place.read("fitted.onnx"), "on any number of threads");
}

#[test]
fn blocks_that_are_missed_least_are_taken_out() {
    let place = Place::new();
    let report = place.json(&format!("prune {MODEL} -o fewer.onnx --blocks 1 {CALIB} {EVAL} --json"));
    assert!(lost(&report) < 5.0, "{}", lost(&report));
    let (whole, fewer) = (weights(&root().join(MODEL)), weights(&place.path("fewer.onnx")));
    // A block of two convolutions, and nothing else.
    assert_eq!(whole.len(), fewer.len() + 2);
    assert!(fewer.iter().all(|(name, shape, _)| whole.iter().any(|(n, s, _)| n == name && s == shape)));
    place.ok(&format!("apply fewer.onnx.lock.json {MODEL} -o again.onnx"));
    assert!(place.read("again.onnx") == place.read("fewer.onnx"));
    place.ok(&format!("prune {MODEL} -o flops.onnx --method layers --flops 0.8 {CALIB} -q"));
    assert!(weights(&place.path("flops.onnx")).len() < whole.len());
}

#[test]
fn what_cannot_become_smaller_is_said() {
    let place = Place::new();
    let error = |more: &str| place.ends(&format!("prune {MODEL} -o x.onnx {more}"), 2).stderr;
    assert!(error("--flops 1.5").contains("the share that stays, above 0 and up to 1"));
    assert!(error("--flops 0.5 --parameters 0.5").contains("cannot be used with"));
    assert!(error("--flops 0.01").contains("cannot be reached"), "{}", error("--flops 0.01"));
    assert!(error("--flops 0.5 --multiple 0").contains("at least 1"));
    assert!(error("--method channels --sparsity 0.3").contains("sparsity"));
    assert!(error("--blocks 1").contains("needs calibration data"));
    assert!(error(&format!("--blocks 99 {CALIB}")).contains("the budget cannot be reached"));
    assert!(error("--blocks 1 --flops 0.5").contains("cannot be used with"));
    assert!(error("--flops 0.5 --exclude nothing-like-it").contains("no node is called `nothing-like-it`"));
    assert!(!place.exists("x.onnx"));
}
