//! Passes that quantize, with what only a whole program has: an engine that is faster at some things.

use optix_data::{Batch, DataError};
use optix_ir::{DType, Model, ModelBuilder, NodeId, Tensor, ValueId};
use optix_passes::PASSES;
use optix_passes::quantize::certificate::{WeightLayout, pairs_can_saturate};
use optix_pipeline::check::relative_difference;
use optix_pipeline::report::StepReport;
use optix_pipeline::runner::{self, RunError, RunOptions};
use optix_pipeline::{Calibration, Deployment, KernelTime, OracleError, Recipe, Resources};
use optix_runtime::{Cpu, Engine, EngineOracle, LoadOptions};

/// Numbers between -1 and 1 that look random.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(shape.to_vec(), numbers(shape.iter().product(), seed))
}

/// Calibration data from memory.
struct Samples(Vec<(String, Tensor)>);

impl Calibration for Samples {
    fn describe(&self) -> String {
        "samples".to_owned()
    }

    fn batches<'a>(
        &'a self,
        _: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError> {
        let count = self.0[0].1.shape()[0];
        let batch = Batch { feeds: self.0.clone(), labels: None, hashes: Vec::new(), count };
        Ok(Box::new(std::iter::once(Ok(batch))))
    }
}

fn run(
    recipe: &str,
    model: &mut Model,
    calibration: Option<&dyn Calibration>,
    deployment: Option<&mut Table>,
) -> Vec<StepReport> {
    run_with(recipe, model, calibration, deployment, (2, RunOptions::default()))
}

fn run_with(
    recipe: &str,
    model: &mut Model,
    calibration: Option<&dyn Calibration>,
    deployment: Option<&mut Table>,
    how: (usize, RunOptions),
) -> Vec<StepReport> {
    attempt(recipe, model, calibration, deployment, how).unwrap_or_else(|error| panic!("{error}"))
}

fn attempt(
    recipe: &str,
    model: &mut Model,
    calibration: Option<&dyn Calibration>,
    deployment: Option<&mut Table>,
    (threads, options): (usize, RunOptions),
) -> Result<Vec<StepReport>, RunError> {
    let recipe = Recipe::parse(&format!("version = 1\n{recipe}"), "test", PASSES, &[]).expect("it parses");
    let mut oracle = EngineOracle::new(Box::new(Cpu), LoadOptions { threads, ..LoadOptions::default() });
    let mut resources = Resources {
        oracle: &mut oracle,
        calibration,
        deployment: deployment.map(|table| table as &mut dyn Deployment),
        ..Resources::default()
    };
    runner::run(&recipe, model, &mut resources, &options, &mut |_, _| {})
}

fn outputs(model: &Model, feeds: &[Tensor]) -> Vec<Tensor> {
    let graph = model.graph(model.main());
    let feeds: Vec<(ValueId, Tensor)> =
        graph.inputs().iter().map(|info| info.value).zip(feeds.iter().cloned()).collect();
    let wanted: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
    Cpu.load(model, &LoadOptions::default()).unwrap().run(&feeds, &wanted).unwrap()
}

/// Weights in every place where they may stand: initializers, Constant nodes, bodies; read by every
/// operator that has weights, one by two.
fn model_full_of_weights() -> Model {
    ModelBuilder::new(15)
        .input("x", "float[N, 8, 6, 6]")
        .input("ids", "int64[N, 4]")
        .input("flag", "bool")
        .constant("conv_weight", tensor(&[16, 8, 3, 3], 1))
        .node("Conv", ["x", "conv_weight"], ["c"])
        .constant("transposed_weight", tensor(&[16, 4, 3, 3], 2))
        .node("ConvTranspose", ["c", "transposed_weight"], ["t"])
        .node("GlobalAveragePool", ["t"], ["g"])
        .node("Flatten", ["g"], ["f"])
        .constant("dense_weight", tensor(&[64, 4], 3))
        .node("Gemm", ["f", "dense_weight"], ["d"])
        .attr("transB", 1)
        .constant("product_weight", tensor(&[64, 64], 4))
        .node("MatMul", ["d", "product_weight"], ["p"])
        .node("MatMul", ["p", "product_weight"], ["q"])
        .constant("table", tensor(&[50, 64], 5))
        .node("Gather", ["table", "ids"], ["rows"])
        .constant("lstm_w", tensor(&[1, 32, 64], 6))
        .constant("lstm_r", tensor(&[1, 32, 8], 7))
        .node("LSTM", ["rows", "lstm_w", "lstm_r"], ["hidden", "", ""])
        .attr("hidden_size", 8)
        .constant("small", tensor(&[64], 8))
        .node("Add", ["q", "small"], ["r"])
        .node("If", ["flag"], ["y"])
        .subgraph("then_branch", |body| {
            let body = body.constant("then_weight", tensor(&[64, 64], 10));
            body.node("MatMul", ["r", "then_weight"], ["then_y"]).output("then_y", "float[N, 64]")
        })
        .subgraph("else_branch", |body| {
            let body = body.node("Constant", [], ["else_weight"]).attr("value", tensor(&[64, 64], 11));
            body.node("MatMul", ["r", "else_weight"], ["else_y"]).output("else_y", "float[N, 64]")
        })
        .output("y", "float[N, 64]")
        .output("hidden", "float[?, ?, ?, 8]")
        .build()
}

#[test]
fn compressed_weights_change_little_but_the_size() {
    let model = model_full_of_weights();
    let ids = Tensor::from_vec(vec![3, 4], vec![0i64, 7, 49, 3, 1, 2, 3, 4, 30, 31, 32, 33]);
    let flag = |flag: bool| Tensor::from_bools(vec![], &[flag]);
    let feeds = [true, false].map(|on| [tensor(&[3, 8, 6, 6], 9), ids.clone(), flag(on)]);
    let before: Vec<Tensor> = feeds.iter().flat_map(|feeds| outputs(&model, feeds)).collect();
    let mut compressed = model.clone();
    let steps = run("[[step]]\npass = \"compress-weights\"", &mut compressed, None, None);
    assert_eq!(steps[0].changes.counters["weights stored as int8"], 9, "{:?}", steps[0].changes.skips);
    let share = compressed.tensor_bytes() as f64 / model.tensor_bytes() as f64;
    assert!(share < 0.31, "{share}");
    let after = feeds.iter().flat_map(|feeds| outputs(&compressed, feeds));
    for (before, after) in before.iter().zip(after) {
        let moved = relative_difference(before, &after);
        assert!(moved > 0.0 && moved < 0.02, "{moved}");
    }
    // Nothing is left to do, and cleaning up does not blow the weights up again.
    let again = run("[[step]]\npass = \"compress-weights\"", &mut compressed, None, None);
    assert!(again[0].changes.is_empty());
    let bytes = compressed.tensor_bytes();
    let clean = include_str!("../../recipes/clean.toml");
    run(clean.split_once("version = 1").unwrap().1, &mut compressed, None, None);
    assert!(compressed.tensor_bytes() <= bytes);
    let integers = compressed.values().filter_map(|value| compressed.value(value).tensor());
    assert_eq!(integers.filter(|tensor| tensor.dtype() == DType::I8).count(), 9);
}

#[test]
fn weights_with_a_wide_range_stay_float_with_the_reason() {
    let mut weights = vec![1e-6f32; 64 * 64];
    for column in 0..64 {
        weights[column] = 1.0;
        weights[64 + column] = 0.0039;
    }
    let build = || {
        ModelBuilder::new(15)
            .input("x", "float[N, 64]")
            .constant("w", Tensor::from_vec(vec![64, 64], weights.clone()))
            .node("MatMul", ["x", "w"], ["y"])
            .named("dense")
            .output("y", "float[N, 64]")
            .build()
    };
    let mut model = build();
    let steps = run("[[step]]\npass = \"compress-weights\"\nmin-sqnr = 60.0", &mut model, None, None);
    assert!(steps[0].changes.skips[0].reason.contains("min-sqnr"), "{:?}", steps[0].changes.skips);
    let mut model = build();
    let steps = run("[[step]]\npass = \"compress-weights\"\nexclude = [\"den*\"]", &mut model, None, None);
    assert_eq!(steps[0].changes.skips[0].reason, "excluded by `den*`");
}

/// Whether what a node reads comes from a convolution in integers.
fn integer_maker(model: &Model, id: NodeId) -> bool {
    let above =
        |id: NodeId, slot: usize| model.value(model.node(id).input(slot)?).producer().map(|(node, _)| node);
    above(id, 0)
        .and_then(|maker| above(maker, 0))
        .is_some_and(|node| model.node(node).op_type == "DequantizeLinear")
}

/// An engine in which each node takes the microseconds that its name says in floats and in integers, and
/// each quantizer of an activation 10.
struct Table;

impl Table {
    fn micros(model: &Model, id: NodeId) -> f64 {
        let node = model.node(id);
        let behind = |op: &str| {
            node.input(0)
                .and_then(|value| model.value(value).producer())
                .is_some_and(|(producer, _)| model.node(producer).op_type == op)
        };
        match node.op_type.as_str() {
            // The kernel before it gives integers right away.
            "QuantizeLinear" if behind("Conv") && integer_maker(model, id) => 0.0,
            "QuantizeLinear" => 10.0,
            // A weight's is part of the kernel, and one between two kernels in integers as well.
            "DequantizeLinear" if !behind("QuantizeLinear") => 0.0,
            "DequantizeLinear" => {
                let readers = model.value(node.output(0).unwrap()).uses();
                let integer = readers.iter().all(|used| match used {
                    optix_ir::Use::Node(reader, 0) => model.node(*reader).op_type == "Conv",
                    _ => false,
                });
                if integer { 0.0 } else { 10.0 }
            }
            "Conv" => {
                let mut parts = node.name.split('_').skip(1).map(|part| part.parse::<f64>().unwrap());
                let float = parts.next().unwrap();
                if behind("DequantizeLinear") { parts.next().unwrap() } else { float }
            }
            _ => 5.0,
        }
    }
}

impl Deployment for Table {
    fn describe(&self) -> String {
        "table".to_owned()
    }

    fn latencies(
        &mut self,
        models: &[&Model],
        feeds: &[(String, Tensor)],
        _: f64,
    ) -> Result<Vec<Vec<f64>>, OracleError> {
        let total = |model: &&Model| -> Result<f64, OracleError> {
            Ok(self.kernels(model, feeds)?.iter().map(|kernel| kernel.seconds).sum())
        };
        let totals = models.iter().map(total).collect::<Result<Vec<f64>, _>>()?;
        Ok(totals.into_iter().map(|total| vec![total; 12]).collect())
    }

    fn kernels(&mut self, model: &Model, _: &[(String, Tensor)]) -> Result<Vec<KernelTime>, OracleError> {
        let kernel = |id: NodeId| KernelTime {
            nodes: vec![id],
            op_type: model.node(id).op_type.clone(),
            seconds: Table::micros(model, id) * 1e-6,
        };
        // What is part of another kernel does not show.
        Ok(model.walk().map(kernel).filter(|kernel| kernel.seconds > 0.0).collect())
    }
}

/// Convolutions in a row, each with its times; between the third and the fourth is an operator that only
/// floats have.
fn convolutions(names: [&str; 4]) -> Model {
    let mut builder = ModelBuilder::new(15).input("x", "float[N, 4, 5, 5]");
    let mut value = "x".to_owned();
    for (index, name) in names.into_iter().enumerate() {
        let (weight, next) = (format!("w{index}"), format!("v{index}"));
        builder = builder
            .constant(&weight, tensor(&[4, 4, 3, 3], index as u64 + 1))
            .node("Conv", [value.as_str(), weight.as_str()], [next.as_str()])
            .attr("pads", vec![1i64, 1, 1, 1])
            .named(name);
        value = next;
        if index == 2 {
            builder = builder.node("Sin", [value.as_str()], ["s"]);
            value = "s".to_owned();
        }
    }
    builder.output(&value, "float[N, 4, 5, 5]").build()
}

fn quantized(names: [&str; 4]) -> (Vec<String>, StepReport) {
    let mut model = convolutions(names);
    let samples = Samples(vec![("x".to_owned(), tensor(&[4, 4, 5, 5], 77))]);
    let steps = run(
        "[[step]]\npass = \"quantize-static\"\nmin-sqnr = 0.0",
        &mut model,
        Some(&samples),
        Some(&mut Table),
    );
    let integer = |id: &NodeId| {
        let node = model.node(*id);
        let above = node.input(1).and_then(|weight| model.value(weight).producer());
        node.op_type == "Conv" && above.is_some()
    };
    let names = model.walk().filter(integer).map(|id| model.node(id).name.clone()).collect();
    (names, steps.into_iter().next().unwrap())
}

#[test]
fn what_is_faster_in_integers_is_quantized_borders_counted_in() {
    // The second one alone is slower, but cheaper than dequantizing and quantizing around it would be.
    let all = ["a_100_20", "b_100_101", "c_100_20", "d_100_20"];
    let (integers, step) = quantized(all);
    assert_eq!(integers, all);
    assert!(step.changes.notes[0].starts_with("all of it in integers takes 0."), "{:?}", step.changes.notes);
    // The first three win less than their quantizers take; the last one wins more.
    let (integers, step) = quantized(["a_100_95", "b_100_95", "c_100_95", "d_100_60"]);
    assert_eq!(integers, ["d_100_60"]);
    let reason = |name: &str| {
        step.changes.skips.iter().find(|skip| skip.node == name).map(|skip| skip.reason.as_str())
    };
    assert_eq!(
        reason("a_100_95"),
        Some(
            "faster in float with the quantizers around it: 100 us, in integers 95 us and the quantizers (table)"
        )
    );
    assert!(step.changes.notes[0].starts_with("3 nodes stay float"), "{:?}", step.changes.notes);
    // The last one is slower by itself.
    let (integers, step) = quantized(["a_100_20", "b_100_20", "c_100_20", "d_100_900"]);
    assert_eq!(integers, ["a_100_20", "b_100_20", "c_100_20"]);
    let skip = step.changes.skips.iter().find(|skip| skip.node == "d_100_900").unwrap();
    assert_eq!(skip.reason, "faster in float: 100 us, in integers 900 us (table)");
}

#[test]
fn a_model_that_is_slower_in_integers_stays_float() {
    let (integers, step) = quantized(["a_10_20", "b_10_20", "c_10_20", "d_10_20"]);
    assert!(integers.is_empty());
    assert!(step.changes.notes[0].starts_with("no part of the model is faster"), "{:?}", step.changes.notes);
    assert_eq!(step.changes.skips.len(), 4);
    let mut model = convolutions(["a_10_20", "b_10_20", "c_10_20", "d_10_20"]);
    let samples = Samples(vec![("x".to_owned(), tensor(&[4, 4, 5, 5], 77))]);
    let recipe = "[[step]]\npass = \"quantize-static\"\nmin-sqnr = 0.0\nonly-faster = false";
    let steps = run(recipe, &mut model, Some(&samples), Some(&mut Table));
    assert_eq!(steps[0].changes.counters["nodes quantized"], 4);
}

/// A net whose small weights all round to nothing, so that every channel loses a part of its mean.
fn drifting() -> Model {
    let weights = |rows: usize, columns: usize| -> Tensor {
        let value = |at: usize| if at.is_multiple_of(columns) { 1.0 } else { 0.49 / 127.0 };
        Tensor::from_vec(vec![rows, columns, 1, 1], (0..rows * columns).map(value).collect::<Vec<f32>>())
    };
    ModelBuilder::new(15)
        .input("x", "float[N, 32, 4, 4]")
        .constant("w0", weights(8, 32))
        .node("Conv", ["x", "w0"], ["a"])
        .named("first")
        .node("Relu", ["a"], ["r"])
        .constant("w1", weights(4, 8))
        .node("Conv", ["r", "w1"], ["b"])
        .named("second")
        .node("Flatten", ["b"], ["f"])
        .constant("w2", tensor(&[64, 6], 21))
        .node("MatMul", ["f", "w2"], ["m"])
        .named("third")
        .constant("shift", tensor(&[6], 22))
        .node("Add", ["m", "shift"], ["y"])
        .output("y", "float[N, 6]")
        .build()
}

/// Positive numbers, so that what rounding loses does not cancel out.
fn positive(samples: usize, seed: u64) -> Tensor {
    let count = samples * 32 * 16;
    Tensor::from_vec(
        vec![samples, 32, 4, 4],
        numbers(count, seed).iter().map(|x| x.abs()).collect::<Vec<f32>>(),
    )
}

fn step(options: &str) -> String {
    format!("[[step]]\npass = \"quantize-static\"\nonly-faster = false\n{options}")
}

#[test]
fn corrected_biases_bring_means_back_on_other_samples() {
    let float = drifting();
    let data = Samples(vec![("x".to_owned(), positive(96, 1))]);
    let fresh = [positive(64, 2)];
    let expected = &outputs(&float, &fresh)[0];
    // Energies of the means of the differences, and of the differences.
    let lost = |options: &str| {
        let mut model = float.clone();
        let steps = run(&step(options), &mut model, Some(&data), None);
        let found = &outputs(&model, &fresh)[0];
        let (a, b) = (expected.to_f64s().unwrap(), found.to_f64s().unwrap());
        let rows = a.chunks(6).zip(b.chunks(6));
        let mut means = [0f64; 6];
        rows.for_each(|(a, b)| (0..6).for_each(|at| means[at] += (b[at] - a[at]) / 64.0));
        let whole: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum();
        (means.iter().map(|mean| mean * mean).sum::<f64>(), whole, steps)
    };
    let (mean, whole, _) = lost("min-sqnr = 0.0\nbias-correction = false");
    let (corrected_mean, corrected, steps) = lost("min-sqnr = 0.0\nbias-correction = true");
    assert_eq!(steps[0].changes.counters["biases corrected"], 3, "{:?}", steps[0].changes.notes);
    assert!(corrected_mean < mean * 0.02, "{mean} -> {corrected_mean}");
    assert!(corrected < whole * 0.5, "{whole} -> {corrected}");
}

#[test]
fn what_stays_float_keeps_its_bias() {
    // Biases are corrected before layers are judged: no shift may stay with a layer that is left float.
    let float = drifting();
    let data = Samples(vec![("x".to_owned(), positive(96, 1))]);
    let mut model = float.clone();
    let steps = run(&step("min-sqnr = 200.0\nbias-correction = true"), &mut model, Some(&data), None);
    assert_eq!(steps[0].changes.counters["nodes quantized"], 0, "{:?}", steps[0].changes.notes);
    let fresh = [positive(4, 3)];
    assert_eq!(outputs(&model, &fresh)[0].bytes(), outputs(&float, &fresh)[0].bytes());
}

/// A net whose inputs go together, so that what one weight loses another can give back.
fn correlated() -> Model {
    ModelBuilder::new(15)
        .input("x", "float[N, 8, 6, 6]")
        .constant("w0", tensor(&[12, 8, 3, 3], 31))
        .constant("b0", tensor(&[12], 32))
        .node("Conv", ["x", "w0", "b0"], ["a"])
        .named("first")
        .attr("pads", vec![1i64, 1, 1, 1])
        .node("Relu", ["a"], ["r"])
        .constant("w1", tensor(&[12, 1, 3, 3], 33))
        .node("Conv", ["r", "w1"], ["d"])
        .named("depthwise")
        .attr("group", 12)
        .node("Flatten", ["d"], ["f"])
        .constant("w2", tensor(&[192, 6], 34))
        .node("MatMul", ["f", "w2"], ["y"])
        .named("product")
        .output("y", "float[N, 6]")
        .build()
}

/// Samples of which every channel is about the same picture.
fn pictures(samples: usize, seed: u64) -> Tensor {
    let (noise, shared) = (numbers(samples * 8 * 36, seed), numbers(samples * 36, seed + 100));
    let pixel = |at: usize| 2.0 + shared[at / 288 * 36 + at % 36] + 0.2 * noise[at];
    Tensor::from_vec(vec![samples, 8, 6, 6], (0..samples * 288).map(pixel).collect::<Vec<f32>>())
}

#[test]
fn weights_rounded_for_their_layers_lose_less_on_other_samples() {
    let float = correlated();
    let data = Samples(vec![("x".to_owned(), pictures(64, 1))]);
    let fresh = [pictures(64, 2)];
    let expected = outputs(&float, &fresh)[0].to_f64s().unwrap();
    let learn = "[[step]]\npass = \"learn-rounding\"\n";
    let made = |recipe: &str, threads: usize, replay: Option<&[StepReport]>| {
        let mut model = float.clone();
        let replay =
            replay.map(|steps| steps.iter().map(|step| (step.id.clone(), step.decisions.clone())).collect());
        let data = replay.is_none().then_some(&data as &dyn Calibration);
        let options = RunOptions { replay, ..RunOptions::default() };
        let steps = run_with(recipe, &mut model, data, None, (threads, options));
        let found = outputs(&model, &fresh)[0].to_f64s().unwrap();
        let error: f64 = expected.iter().zip(&found).map(|(a, b)| (a - b).powi(2)).sum();
        (error, optix_io::onnx_bytes(&model).expect("it can be written"), steps, model)
    };
    let stored = "[[step]]\npass = \"compress-weights\"\n".to_owned();
    // Activations that are rounded too leave less to gain.
    for (quantize, most) in [(step("min-sqnr = 0.0\n"), 0.95), (stored, 0.5)] {
        let (nearest, ..) = made(&quantize, 2, None);
        let recipe = format!("{quantize}\n{learn}");
        let (learned, bytes, steps, model) = made(&recipe, 2, None);
        let counters = &steps[1].changes.counters;
        assert_eq!(counters.get("layers rounded again"), Some(&3), "{:?}", steps[1].changes);
        assert!(learned < nearest * most, "{nearest} -> {learned}");
        // The same without data, as a lock has it, and on any number of threads.
        assert!(made(&recipe, 1, Some(&steps)).1 == bytes);
        assert!(made(&recipe, 1, None).1 == bytes);
        // And no pair of weights that kernels could clip.
        let integers = |id: NodeId| {
            let (producer, _) = model.value(model.node(id).input(1)?).producer()?;
            model.constant(model.node(producer).input(0)?)
        };
        for id in model.walk().filter(|&id| quantize.contains("static") && model.node(id).is("MatMul")) {
            assert!(!pairs_can_saturate(integers(id).expect("stored"), WeightLayout::InOut));
        }
    }
}

#[test]
fn rounding_is_learned_from_the_float_model_alone() {
    let mut model = correlated();
    let data = Samples(vec![("x".to_owned(), pictures(16, 1))]);
    run(&step("min-sqnr = 0.0\n"), &mut model, Some(&data), None);
    let recipe = "[[step]]\npass = \"learn-rounding\"\n";
    let failed = attempt(recipe, &mut model, Some(&data), None, (2, RunOptions::default()));
    let error = failed.expect_err("there is no float model to compare with").to_string();
    assert!(error.contains("put it behind the step that quantizes"), "{error}");
}

#[test]
fn weights_in_bodies_are_left_as_they_are() {
    let net = ModelBuilder::new(15)
        .input("x", "float[N, 64]")
        .constant("outer", tensor(&[64, 64], 41))
        .node("MatMul", ["x", "outer"], ["h"])
        .constant("flag", Tensor::from_bools(vec![], &[true]))
        .node("If", ["flag"], ["y"])
        .subgraph("then_branch", |body| {
            let body = body.constant("inner", tensor(&[64, 64], 42));
            body.node("MatMul", ["h", "inner"], ["then_y"]).output("then_y", "float[N, 64]")
        })
        .subgraph("else_branch", |body| body.node("Neg", ["h"], ["else_y"]).output("else_y", "float[N, 64]"));
    let float = net.output("y", "float[N, 64]").build();
    let data = Samples(vec![("x".to_owned(), tensor(&[64, 64], 43))]);
    let learn = "[[step]]\npass = \"compress-weights\"\n[[step]]\npass = \"learn-rounding\"\n";
    for recipe in [learn, "[[step]]\npass = \"prune-sparsegpt\"\n", "[[step]]\npass = \"prune-wanda\"\n"] {
        let mut model = float.clone();
        let steps = run(recipe, &mut model, Some(&data), None);
        let skips = &steps[steps.len() - 1].changes.skips;
        assert!(skips.iter().any(|skip| skip.reason.contains("body of control flow")), "{recipe} {skips:?}");
    }
}
