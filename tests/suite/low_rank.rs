//! Layers that become two: the same results where a layer's rank allows it, in every form that layers have.

use optix_ir::{Model, text};
use optix_passes::PASSES;
use optix_pipeline::check::relative_difference;
use optix_pipeline::report::StepReport;
use optix_pipeline::runner::{self, RunError, RunOptions};
use optix_pipeline::{Batch, Calibration, Oracle, Recipe, Resources};
use optix_runtime::{Cpu, EngineOracle, LoadOptions};
use proptest::prelude::*;

use crate::program::Place;
use crate::recovery::Drawn;

/// Numbers between -1 and 1 that look random.
fn drawn(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(977).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    };
    (0..count).map(next).collect()
}

/// A matrix of a rank, row by row.
fn of_rank(rank: usize, rows: usize, columns: usize, seed: u64) -> Vec<f64> {
    let (left, right) = (drawn(rows * rank, seed), drawn(rank * columns, seed + 7));
    let of = |row: usize, column: usize| -> f64 {
        (0..rank).map(|k| left[row * rank + k] * right[k * columns + column]).sum()
    };
    (0..rows * columns).map(|at| of(at / columns, at % columns)).collect()
}

fn listed(numbers: &[f64]) -> String {
    numbers.iter().map(|x| format!("{x:.6}")).collect::<Vec<_>>().join(", ")
}

/// A net with one layer.
fn net(input: &str, output: &str, constants: &str, node: &str) -> String {
    format!(
        r#"<ir_version: 8, opset_import: ["" : 17]> net (float{input} x) => (float{output} y) <{constants}> {{ {node} }}"#
    )
}

fn run(model: &mut Model, flops: f64, multiple: usize) -> Result<Vec<StepReport>, RunError> {
    let recipe =
        format!("version = 1\n[[step]]\npass = \"factorize\"\nflops = {flops}\nmultiple = {multiple}\n");
    let recipe = Recipe::parse(&recipe, "test", PASSES, &[]).unwrap_or_else(|error| panic!("{error}"));
    let mut resources = Resources {
        oracle: &mut EngineOracle::new(Box::new(Cpu), LoadOptions::default()),
        calibration: Some(&Drawn { seed: 0, batches: 8 }),
        ..Resources::default()
    };
    runner::run(&recipe, model, &mut resources, &RunOptions::default(), &mut |_, _| {})
}

/// By how much the output of two models differs on samples that were not looked at.
fn difference(before: &Model, after: &Model) -> f64 {
    let data = Drawn { seed: 99, batches: 1 };
    let batch: Batch =
        data.batches(before).ok().and_then(|mut all| all.next()).and_then(Result::ok).expect("a batch");
    let given = |model: &Model| {
        let mut oracle = EngineOracle::new(Box::new(Cpu), LoadOptions::default());
        oracle.outputs(model, &batch.feeds).expect("it runs").swap_remove(0)
    };
    relative_difference(&given(before), &given(after))
}

fn read(text: &str) -> Model {
    text::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn operators(model: &Model) -> Vec<String> {
    model.walk().map(|id| model.node(id).op_type.to_string()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_of_low_rank_stay_what_they_are(
        rank in 1usize..4, rows in 9usize..20, depth in 9usize..20, seed in 0u64..100, form in 0usize..4,
    ) {
        let weights = of_rank(rank, rows, depth, seed);
        let turned: Vec<f64> = (0..rows * depth).map(|at| weights[at % rows * depth + at / rows]).collect();
        let bias = format!(", float[{rows}] b = {{{}}}", listed(&drawn(rows, seed + 3)));
        let plain = |held: &[f64], shape: String| format!("float{shape} w = {{{}}}", listed(held));
        let text = match form {
            0 => net(&format!("[N, {depth}]"), &format!("[N, {rows}]"),
                &(plain(&weights, format!("[{rows}, {depth}]")) + &bias), "y = Gemm <transB = 1> (x, w, b)"),
            1 => net(&format!("[N, {depth}]"), &format!("[N, {rows}]"),
                &(plain(&turned, format!("[{depth}, {rows}]")) + &bias), "y = Gemm (x, w, b)"),
            2 => net(&format!("[N, 3, {depth}]"), &format!("[N, 3, {rows}]"),
                &plain(&turned, format!("[{depth}, {rows}]")), "y = MatMul (x, w)"),
            _ => net(&format!("[N, {depth}, 4, 5]"), &format!("[N, {rows}, 4, 5]"),
                &plain(&weights, format!("[{rows}, {depth}, 1, 1]")), "y = Conv (x, w)"),
        };
        let before = read(&text);
        let mut after = before.clone();
        // No less than is needed, no more than that: ranks are multiples of the rank.
        let share = (rank * (rows + depth)) as f64 / (rows * depth) as f64;
        prop_assume!(share < 0.9);
        run(&mut after, share + 1e-6, rank).expect("it runs");
        prop_assert_eq!(operators(&after).len(), 2);
        let found = difference(&before, &after);
        prop_assert!(found < 1e-4, "{} {}", found, text);
    }

    #[test]
    fn kernels_of_few_columns_stay_what_they_are(
        rank in 1usize..3, channels in 3usize..6, outputs in 6usize..10, seed in 0u64..100,
        stride in 1usize..3, pad in 0usize..3, dilation in 1usize..3, kernel in prop::sample::select(vec![(3, 3), (2, 3), (3, 2)]),
    ) {
        let (down, across) = kernel;
        // Rows and columns as they stand in [outputs, channels, down, across].
        let lines = of_rank(rank, channels * down, outputs * across, seed);
        let mut weights = vec![0f64; outputs * channels * down * across];
        for (at, weight) in weights.iter_mut().enumerate() {
            let (output, rest) = (at / (channels * down * across), at % (channels * down * across));
            let (line, place) = (rest / across, rest % across);
            *weight = lines[line * outputs * across + output * across + place];
        }
        let text = net(
            &format!("[N, {channels}, 11, 12]"), &format!("[N, {outputs}, H, W]"),
            &format!("float[{outputs}, {channels}, {down}, {across}] w = {{{}}}, float[{outputs}] b = {{{}}}",
                listed(&weights), listed(&drawn(outputs, seed + 3))),
            &format!("y = Conv <strides = [{stride}, 1], pads = [{pad}, 1, 1, {pad}], dilations = [1, {dilation}]> (x, w, b)"),
        );
        let before = read(&text);
        let mut after = before.clone();
        // What columns and rows of that rank need: the columns stand along the whole width of the input.
        let width = 12 + 1 + pad - dilation * (across - 1);
        let of_columns = 12.0 / width as f64 * (channels * down) as f64;
        let all = (outputs * channels * down * across) as f64;
        let share = rank as f64 * (of_columns + (outputs * across) as f64) / all;
        prop_assume!(share < 0.9);
        let found = run(&mut after, share + 1e-6, rank).expect("it runs");
        prop_assert_eq!(operators(&after), ["Conv", "Conv"]);
        let row = &found[0].changes.layers[0];
        let lost = difference(&before, &after);
        prop_assert!(row.action.starts_with("columns and rows") && lost < 1e-4, "{} {} {}", row.action, lost, text);
    }
}

#[test]
fn a_budget_is_kept_and_what_was_found_comes_back() {
    let place = Place::new();
    let model = "fixtures/models/fmnist_resnet.onnx";
    let calib = "--calib fixtures/data/fmnist-calib.toml --calib-samples 128 --deploy none";
    let eval = "--eval fixtures/data/fmnist-eval.toml --eval-samples 1000";
    let line = |out: &str, more: &str| format!("prune {model} -o {out} --method low-rank {calib} {more}");
    let report = place.json(&line("small.onnx", &format!("--flops 0.7 {eval} --json")));
    let change = report["evaluation"]["accuracy"]["change_points"]["value"].as_f64().expect("it is judged");
    assert!(change > -4.0, "{change}");
    let notes = report["steps"].to_string();
    assert!(notes.contains("operations of layers with weights (6"), "{notes}");
    place.ok(&line("one.onnx", "--flops 0.7 --threads 1 -q"));
    assert!(place.read("one.onnx") == place.read("small.onnx"), "on one thread");
    place.ok(&format!("apply small.onnx.lock.json {model} -o again.onnx"));
    assert!(place.read("again.onnx") == place.read("small.onnx"), "from the lock");
    let refused = |more: &str| place.ends(&line("x.onnx", more), 2).stderr;
    assert!(refused("--flops 0.01").contains("cannot be reached"), "{}", refused("--flops 0.01"));
    assert!(refused("--flops 1.5").contains("above 0 and up to 1"));
    assert!(refused("--multiple 0").contains("at least 1"));
    assert!(refused("--exclude *").contains("no layer of this model can become two"));
    assert!(!place.exists("x.onnx"));
}
