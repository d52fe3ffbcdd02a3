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
    let layer = own("magnitude", "--set prune-magnitude.scope=layer --recover=false");
    let wanda = own("wanda", "--recover=false");
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
fn locks_of_runs_without_data_can_be_applied() {
    let place = Place::new();
    for (name, more) in [("zeros", "--method magnitude"), ("smaller", "--flops 0.5")] {
        place.ok(&format!("prune {MODEL} -o {name}.onnx {more} -q"));
        place.ok(&format!("apply {name}.onnx.lock.json {MODEL} -o again.onnx"));
        assert!(place.read("again.onnx") == place.read(&format!("{name}.onnx")), "{name}");
    }
}

#[test]
fn channels_of_layers_with_zeros_are_scaled_to_what_they_gave() {
    let place = Place::new();
    let model = "fixtures/models/fmnist_mobilenet.onnx";
    let run = |name: &str, more: &str| {
        place.json(&format!("prune {model} -o {name}.onnx --method magnitude {CALIB} {EVAL} --json {more}"))
    };
    let (plain, scaled) = (run("plain", "--recover=false"), run("scaled", ""));
    assert!(lost(&scaled) < lost(&plain) - 10.0, "{} {}", lost(&plain), lost(&scaled));
    assert!(scaled["steps"].to_string().contains("were scaled and moved to what they gave before"));
    // The same zeros.
    let all = |name: &str| weights(&place.path(&format!("{name}.onnx")));
    for ((name, _, before), (_, _, after)) in all("plain").iter().zip(&all("scaled")) {
        assert!(before.iter().zip(after).all(|(a, b)| (*a == 0.0) == (*b == 0.0)), "{name}");
    }
    place.ok(&format!("apply scaled.onnx.lock.json {model} -o again.onnx"));
    assert!(place.read("again.onnx") == place.read("scaled.onnx"));
    run("one", "--threads 1");
    assert!(place.read("one.onnx") == place.read("scaled.onnx"), "on one thread");
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
    assert!(error("--bytes 0.5 --latency 0.5").contains("cannot be used with"));
    assert!(error("--bytes 0").contains("`bytes` 0"));
    let taylor = "--flops 0.5 --importance taylor";
    assert!(error(taylor).contains("needs calibration data"), "{}", error(taylor));
    assert!(error("--flops 0.01").contains("cannot be reached"), "{}", error("--flops 0.01"));
    assert!(error("--flops 0.5 --multiple 0").contains("at least 1"));
    assert!(error("--method channels --sparsity 0.3").contains("sparsity"));
    assert!(error("--blocks 1").contains("needs calibration data"));
    assert!(error(&format!("--blocks 99 {CALIB}")).contains("the budget cannot be reached"));
    assert!(error("--blocks 1 --flops 0.5").contains("cannot be used with"));
    assert!(error("--flops 0.5 --exclude nothing-like-it").contains("no node is called `nothing-like-it`"));
    assert!(!place.exists("x.onnx"));
}

/// An engine whose kernels take as long as layers have operations, and a little for themselves.
pub struct Clock;

impl Clock {
    fn seconds(
        model: &optix_ir::Model,
        feeds: &[(String, optix_ir::Tensor)],
    ) -> Vec<optix_pipeline::KernelTime> {
        let sizes = optix_runtime::value_bytes(model, feeds);
        let of = |node: optix_ir::NodeId| {
            let read = model.node(node);
            let output = read.output(0).and_then(|output| sizes.get(&output)).copied().unwrap_or(0);
            let depth = read.input(1).and_then(|weights| model.constant(weights));
            let depth =
                depth.map_or(1, |held| held.len() / held.shape().first().copied().unwrap_or(1).max(1));
            let seconds = 1e-6 + 1e-9 * output as f64 * depth as f64;
            optix_pipeline::KernelTime { nodes: vec![node], op_type: read.op_type.to_string(), seconds }
        };
        model.walk().map(of).collect()
    }
}

impl optix_pipeline::Deployment for Clock {
    fn describe(&self) -> String {
        "a clock".to_owned()
    }

    fn latencies(
        &mut self,
        models: &[&optix_ir::Model],
        feeds: &[(String, optix_ir::Tensor)],
        _: f64,
    ) -> Result<Vec<Vec<f64>>, optix_pipeline::OracleError> {
        let of = |model: &&optix_ir::Model| {
            let whole: f64 = Clock::seconds(model, feeds).iter().map(|kernel| kernel.seconds).sum();
            // As noisy as a ratio's interval needs it.
            (0..20).map(|run| whole * (1.0 + 1e-3 * f64::from(run % 3))).collect()
        };
        Ok(models.iter().map(of).collect())
    }

    fn kernels(
        &mut self,
        model: &optix_ir::Model,
        feeds: &[(String, optix_ir::Tensor)],
    ) -> Result<Vec<optix_pipeline::KernelTime>, optix_pipeline::OracleError> {
        Ok(Clock::seconds(model, feeds))
    }
}

#[test]
fn channels_go_until_a_measured_time_is_reached() {
    use optix_pipeline::runner::{self, RunOptions};
    let loaded = optix_io::load(&root().join(MODEL), &optix_io::LoadOptions::default()).expect("it loads");
    let run = |share: f64, with_clock: bool| {
        let text = format!(
            "version = 1\n[[step]]\npass = \"fold-constants\"\n[[step]]\npass = \"prune-channels\"\nlatency = {share}\n"
        );
        let recipe =
            optix_pipeline::Recipe::parse(&text, "test", optix_passes::PASSES, &[]).expect("a recipe");
        let mut model = loaded.model.clone();
        let mut clock = Clock;
        let mut resources = optix_pipeline::Resources {
            oracle: &mut optix_runtime::EngineOracle::new(
                Box::new(optix_runtime::Cpu),
                optix_runtime::LoadOptions::default(),
            ),
            calibration: Some(&crate::recovery::Drawn { seed: 3, batches: 4 }),
            deployment: with_clock.then_some(&mut clock as &mut dyn optix_pipeline::Deployment),
            ..optix_pipeline::Resources::default()
        };
        let done = runner::run(&recipe, &mut model, &mut resources, &RunOptions::default(), &mut |_, _| {});
        done.map(|steps| (model, steps)).map_err(|error| error.to_string())
    };
    let (smaller, steps) = run(0.6, true).expect("it is reached");
    let feeds = vec![("image".to_owned(), optix_ir::Tensor::from_vec(vec![1, 1, 28, 28], vec![0f32; 784]))];
    let whole = |model: &optix_ir::Model| -> f64 {
        Clock::seconds(model, &feeds).iter().map(|kernel| kernel.seconds).sum()
    };
    let share = whole(&smaller) / whole(&loaded.model);
    assert!(share <= 0.61 && share > 0.4, "{share}");
    let widths = smaller.walk().filter(|&id| smaller.node(id).is("Conv"));
    let widths: Vec<usize> =
        widths.filter_map(|id| Some(smaller.constant(smaller.node(id).input(1)?)?.shape()[0])).collect();
    assert!(widths.iter().all(|width| width % 8 == 0), "{widths:?}");
    let notes = steps[1].changes.notes.join("\n");
    assert!(notes.contains("of the time on a clock"), "{notes}");
    let least = run(0.01, true).expect_err("too little");
    assert!(least.contains("a latency of 0.01 cannot be reached"), "{least}");
    let none = run(0.6, false).expect_err("no engine");
    assert!(none.contains("measured on the engine"), "{none}");
}

#[test]
fn bytes_are_a_budget() {
    let place = Place::new();
    let report = place.json(&format!("prune {MODEL} -o small.onnx --bytes 0.4 {CALIB} --json"));
    let bytes = |name: &std::path::Path| {
        let model = optix_io::load(name, &optix_io::LoadOptions::default()).expect("it loads").model;
        model.tensor_bytes() as f64
    };
    let share = bytes(&place.path("small.onnx")) / bytes(&root().join(MODEL));
    assert!(share <= 0.4 && share > 0.3, "{share}");
    assert!(report["steps"].to_string().contains("bytes of constants"), "{report}");
}

#[test]
fn gradients_tell_what_channels_are_worth() {
    use optix_pipeline::runner::{self, RunOptions};
    use std::fmt::Write as _;
    // Hidden channels 4 to 7 have great weights and are never above 0; of the others each is worth four times the next.
    let list = |of: &dyn Fn(usize) -> f32, count: usize| {
        (0..count).map(|at| format!("{}", of(at))).collect::<Vec<_>>().join(", ")
    };
    let mut constants = String::new();
    let first = |at: usize| if at % 8 < 4 { [0.5, -0.4, 0.3, 0.6][(at / 8 + at % 8) % 4] } else { 3.0 };
    let _ = write!(constants, "float[4, 8] a = {{{}}}, ", list(&first, 32));
    let _ = write!(constants, "float[8] c = {{{}}}, ", list(&|at| if at < 4 { 2.0 } else { -50.0 }, 8));
    let second = |at: usize| [1.0, 0.5, 0.25, 0.125, 4.0, 4.0, 4.0, 4.0][at / 3] * [1.0, -1.0, 0.5][at % 3];
    let _ = write!(constants, "float[8, 3] b = {{{}}}", list(&second, 24));
    for (output, name) in [("y", "squares"), ("logits", "classes")] {
        let source = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]> net (float[1, 4] x) => (float[1, 3] {output}) <{constants}> {{
                h = MatMul (x, a) s = Add (h, c) r = Relu (s) {output} = MatMul (r, b) }}"
        );
        let kept = |importance: &str, flops: f64| -> Vec<f32> {
            let mut model = optix_ir::text::parse(&source).expect("it is a model");
            let recipe = format!(
                "version = 1\n[[step]]\npass = \"prune-channels\"\nimportance = \"{importance}\"\nflops = {flops}\nmultiple = 1\n\
                 recover = false\n"
            );
            let recipe = optix_pipeline::Recipe::parse(&recipe, "test", optix_passes::PASSES, &[]);
            let mut resources = optix_pipeline::Resources {
                oracle: &mut optix_runtime::EngineOracle::new(
                    Box::new(optix_runtime::Cpu),
                    optix_runtime::LoadOptions::default(),
                ),
                calibration: Some(&crate::recovery::Drawn { seed: 3, batches: 256 }),
                ..optix_pipeline::Resources::default()
            };
            let options = RunOptions::default();
            runner::run(&recipe.expect("a recipe"), &mut model, &mut resources, &options, &mut |_, _| {})
                .expect("it runs");
            // The rows that are left, by their first weight.
            let second =
                model.walk().filter(|&id| model.node(id).is("MatMul")).last().expect("the last layer");
            let weights = model.constant(model.node(second).input(1).expect("weights")).expect("constant");
            weights.to_slice::<f32>().expect("floats").chunks(3).map(|row| row[0]).collect()
        };
        // Half of the channels are dead, and only gradients see it.
        assert_eq!(kept("taylor", 0.5), [1.0, 0.5, 0.25, 0.125], "{name}");
        assert_eq!(kept("taylor", 0.25), [1.0, 0.5], "{name}");
        assert_eq!(kept("l2", 0.5), [4.0; 4], "{name}");
        assert_eq!(kept("l1", 0.5), [4.0; 4], "{name}");
    }
}
