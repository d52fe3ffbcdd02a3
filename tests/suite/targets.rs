//! Target profiles: what they decide about graphs, and the types that they allow.

use optix_ir::{DType, Model, ModelBuilder, NodeId, Tensor, ValueId};
use optix_passes::PASSES;
use optix_passes::quantize::ActivationType;
use optix_passes::quantize::placement::{Placement, place};
use optix_passes::quantize::target::{Runs, TARGETS, Target};
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{Recipe, Resources};
use optix_runtime::{Cpu, Engine, EngineOracle, LoadOptions};

use crate::recovery::Drawn;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(shape.to_vec(), numbers(shape.iter().product(), seed))
}

/// Convolutions with a residual, a resize, a transposed convolution, a gate, and attention behind them.
fn model() -> Model {
    ModelBuilder::new(21)
        .input("x", "float[N, 4, 6, 6]")
        .constant("w1", tensor(&[4, 4, 3, 3], 1))
        .constant("b1", tensor(&[4], 2))
        .node("Conv", ["x", "w1", "b1"], ["c1"])
        .attr("pads", vec![1i64; 4])
        .node("Relu", ["c1"], ["r1"])
        .constant("w2", tensor(&[4, 4, 3, 3], 3))
        .node("Conv", ["r1", "w2"], ["c2"])
        .attr("pads", vec![1i64; 4])
        .node("Add", ["r1", "c2"], ["sum"])
        .constant("scales", Tensor::from_vec(vec![4], vec![1f32, 1.0, 2.0, 2.0]))
        .node("Resize", ["sum", "", "scales"], ["large"])
        .attr("mode", "nearest")
        .constant("w3", tensor(&[4, 4, 2, 2], 4))
        .constant("b3", tensor(&[4], 5))
        .node("ConvTranspose", ["large", "w3", "b3"], ["up"])
        .constant("w4", tensor(&[4, 4, 1, 1], 6))
        .node("Conv", ["up", "w4"], ["c4"])
        .constant("w5", tensor(&[4, 4, 1, 1], 7))
        .node("Conv", ["up", "w5"], ["c5"])
        .node("Mul", ["c4", "c5"], ["gated"])
        .constant("w6", tensor(&[4, 4, 1, 1], 8))
        .node("Conv", ["gated", "w6"], ["c6"])
        .node("Transpose", ["c6"], ["turned"])
        .attr("perm", vec![0i64, 1, 3, 2])
        .node("MatMul", ["c6", "turned"], ["scores"])
        .node("Softmax", ["scores"], ["weights"])
        .attr("axis", -1)
        .node("MatMul", ["weights", "c6"], ["mixed"])
        .constant("w7", tensor(&[13, 5], 9))
        .node("MatMul", ["mixed", "w7"], ["y"])
        .output("y", "float[N, 4, 13, 5]")
        .build()
}

fn inferred() -> Model {
    let mut model = model();
    optix_ir::infer::infer(&mut model, &optix_pipeline::check::OpsEvaluator);
    model
}

/// Operators of nodes, with what they give.
fn named(model: &Model, nodes: impl IntoIterator<Item = NodeId>) -> Vec<String> {
    let name = |id: NodeId| {
        let node = model.node(id);
        let output = node.output(0).map_or("", |value| model.value(value).name());
        format!("{} {output}", node.op_type)
    };
    nodes.into_iter().map(name).collect()
}

fn decided(model: &Model, target: &str) -> Placement {
    let target = Target::built_in(target).expect("it is built in");
    place(model, &target, &|_| Ok(()))
}

#[test]
fn each_target_places_what_it_runs() {
    let model = inferred();
    let weighted = |placement: &Placement| named(&model, placement.weighted.iter().map(|one| one.node));
    let quantized = |placement: &Placement| -> Vec<&str> {
        placement.quantized.iter().map(|(value, _)| model.value(*value).name()).collect()
    };
    let resident = |placement: &Placement| -> Vec<&str> {
        placement.resident.iter().map(|&value| model.value(value).name()).collect()
    };

    let ort = decided(&model, "ort-cpu");
    let convs = ["Conv c1", "Conv c2", "Conv c4", "Conv c5", "Conv c6", "MatMul y"];
    assert_eq!(weighted(&ort), convs);
    let why: Vec<&str> = ort.skipped.iter().map(|(_, why)| why.as_str()).collect();
    assert!(why.contains(&"onnxruntime has no integer kernel for it"), "{why:?}");
    // Behind convolutions, Relu folded in; before the product with constant weights.
    for value in ["x", "r1", "c2", "up", "c4", "c5", "c6", "mixed"] {
        assert!(quantized(&ort).contains(&value), "{value}: {:?}", quantized(&ort));
    }
    assert!(!quantized(&ort).contains(&"c1"), "Relu is folded");
    for value in ["r1", "c2", "c4", "c5", "c6"] {
        assert!(resident(&ort).contains(&value), "{value}");
    }

    let openvino = decided(&model, "openvino");
    let mut all = convs.map(str::to_owned).to_vec();
    all.insert(2, "ConvTranspose up".to_owned());
    assert_eq!(weighted(&openvino), all);
    assert_eq!(named(&model, openvino.products.iter().copied()), ["MatMul scores", "MatMul mixed"]);
    assert_eq!(named(&model, openvino.bridges.iter().copied()), ["Add sum", "Mul gated"]);
    // Nothing behind layers unless somebody needs it; the resize has its input's quantizer.
    assert!(!quantized(&openvino).contains(&"y") && !quantized(&openvino).contains(&"scores"));
    let root = |placement: &Placement, name: &str| {
        let found = placement.quantized.iter().find(|(value, _)| model.value(*value).name() == name);
        found.map(|(_, root)| model.value(*root).name().to_owned())
    };
    assert_eq!(root(&openvino, "large").as_deref(), Some("sum"));
    assert_eq!(root(&openvino, "turned").as_deref(), Some("c6"));
    assert_eq!(root(&openvino, "weights").as_deref(), Some("weights"));

    let tensorrt = decided(&model, "tensorrt");
    assert_eq!(named(&model, tensorrt.bridges.iter().copied()), ["Add sum"]);

    let generic = decided(&model, "generic");
    assert!(generic.products.is_empty() && generic.bridges.is_empty());
    assert_eq!(weighted(&generic), all);
    assert!(resident(&generic).iter().all(|name| *name == "turned"), "{:?}", resident(&generic));
}

#[test]
fn a_quantizer_is_not_looked_for_before_a_constant() {
    // The constant cannot be folded: the shape is only known when the model runs.
    let mut model = ModelBuilder::new(21)
        .input("x", "float[N, 4]")
        .constant("c", tensor(&[1, 4], 3))
        .node("Shape", ["x"], ["shape"])
        .node("Expand", ["c", "shape"], ["rows"])
        .constant("w", tensor(&[4, 4], 1))
        .node("MatMul", ["rows", "w"], ["p"])
        .node("Add", ["p", "x"], ["y"])
        .output("y", "float[N, 4]")
        .build();
    let steps = quantized(&mut model, "");
    assert!(steps.is_ok(), "{steps:?}");
}

/// Quantizes with options as lines of TOML; the notes, or the error.
fn quantized(model: &mut Model, options: &str) -> Result<optix_pipeline::Changes, String> {
    let options = format!(
        "version = 1\n[[step]]\npass = \"quantize-static\"\nmin-sqnr = 0\nonly-faster = false\nobserver = \"min-max\"\n{options}"
    );
    let recipe = Recipe::parse(&options, "test", PASSES, &[]).map_err(|error| error.to_string())?;
    let mut oracle = EngineOracle::new(Box::new(Cpu), LoadOptions { threads: 1, ..LoadOptions::default() });
    let data = Drawn { seed: 3, batches: 4 };
    let mut resources = Resources { oracle: &mut oracle, calibration: Some(&data), ..Resources::default() };
    let mut steps = runner::run(&recipe, model, &mut resources, &RunOptions::default(), &mut |_, _| {})
        .map_err(|error| error.to_string())?;
    let step = steps.remove(0);
    assert!(step.decisions.get("target").is_some_and(|target| target.contains("\"weighted\"")));
    Ok(step.changes)
}

fn outputs(model: &Model) -> Vec<f64> {
    let graph = model.graph(model.main());
    let feeds: Vec<(ValueId, Tensor)> = vec![(graph.inputs()[0].value, tensor(&[2, 4, 6, 6], 77))];
    let wanted: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
    let ran = Cpu.load(model, &LoadOptions::default()).unwrap().run(&feeds, &wanted).unwrap();
    ran[0].to_f64s().unwrap()
}

fn sqnr(expected: &[f64], found: &[f64]) -> f64 {
    let signal: f64 = expected.iter().map(|x| x * x).sum();
    let noise: f64 = expected.iter().zip(found).map(|(a, b)| (a - b).powi(2)).sum();
    10.0 * (signal / noise).log10()
}

/// Types of quantized activations and of quantized weights, with all their zero points.
fn types(model: &Model) -> (Vec<DType>, Vec<i64>) {
    let (mut found, mut zeros) = (Vec::new(), Vec::new());
    for id in model.walk().filter(|&id| model.node(id).is("QuantizeLinear")) {
        let node = model.node(id);
        if let Some(zero) = node.input(2).and_then(|zero| model.constant(zero)) {
            found.push(zero.dtype());
            zeros.extend(zero.to_f64s().unwrap().iter().map(|zero| *zero as i64));
        } else {
            let code = node.int("output_dtype").and_then(|code| i32::try_from(code).ok());
            found.push(code.and_then(DType::from_onnx).expect("a type"));
        }
    }
    found.sort();
    found.dedup();
    (found, zeros)
}

#[test]
fn every_target_and_type_gives_a_model_that_runs() {
    let expected = outputs(&model());
    for (name, _) in TARGETS {
        let target = Target::built_in(name).expect("it is built in");
        for &dtype in ActivationType::ALL {
            let options = format!("target = \"{name}\"\nactivation-type = \"{}\"", dtype.name());
            let mut made = model();
            let result = quantized(&mut made, &options);
            let Some(runs) = target.runs(dtype) else {
                let error = result.unwrap_err();
                assert!(error.contains("these targets can: "), "{error}");
                continue;
            };
            let changes = result.unwrap_or_else(|error| panic!("{name} {}: {error}", dtype.name()));
            let said = changes.notes.iter().any(|note| note.contains("in float"));
            assert_eq!(said, runs == Runs::Emulated, "{name} {}: {:?}", dtype.name(), changes.notes);
            let (found, zeros) = types(&made);
            assert_eq!(found, [dtype.dtype()], "{name}");
            if target.activations.symmetric || dtype.is_float() {
                assert!(zeros.iter().all(|&zero| zero == 0), "{name} {}", dtype.name());
            }
            let constants = || made.values().filter_map(|value| made.value(value).tensor());
            let has = |wanted: DType| constants().any(|tensor| tensor.dtype() == wanted);
            assert!(has(dtype.weights().dtype()), "{name} {}", dtype.name());
            let bias =
                target.weights.bias == optix_passes::quantize::target::Bias::Int32 && !dtype.is_float();
            assert_eq!(has(DType::I32), bias, "{name} {}", dtype.name());
            let kept = sqnr(&expected, &outputs(&made));
            let least = match dtype {
                ActivationType::Uint16 | ActivationType::Int16 => 22.0,
                // Half of a symmetric range is lost on what is never negative: a bit, 6 dB.
                ActivationType::Uint8 | ActivationType::Int8 if target.activations.symmetric => 9.0,
                ActivationType::Uint8 | ActivationType::Int8 => 15.0,
                ActivationType::Float8e4m3fn => 10.0,
                ActivationType::Float8e5m2 => 5.0,
            };
            assert!(kept > least, "{name} {}: {kept} dB", dtype.name());
            // The report says what it is.
            let action = &changes.layers.iter().find(|layer| layer.op == "Conv").expect("a row").action;
            let wanted = match dtype {
                ActivationType::Uint16 => "int8, uint16 activations",
                ActivationType::Int16 => "int8, int16 activations",
                ActivationType::Float8e4m3fn => "float8e4m3fn",
                ActivationType::Float8e5m2 => "float8e5m2",
                _ => "int8",
            };
            assert_eq!(action, wanted);
        }
    }
}

#[test]
fn options_go_before_the_profile_and_old_operator_sets_are_refused() {
    let weights = |options: &str| {
        let mut made = model();
        quantized(&mut made, options).expect("it is quantized");
        let constants = made.values().filter_map(|value| made.value(value).tensor());
        let integers = constants.filter(|tensor| tensor.dtype() == DType::I8 && tensor.rank() > 1);
        integers.map(|tensor| tensor.to_i64s().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(weights("target = \"ort-cpu\"\nsaturation = \"allow\""), weights("target = \"ort-cpu-vnni\""));
    assert_eq!(weights("target = \"ort-cpu-vnni\"\nsaturation = \"avoid\""), weights("target = \"ort-cpu\""));
    assert_eq!(weights("target = \"ort-cpu-avx2\""), weights(""));
    assert_ne!(weights("target = \"ort-cpu-vnni\""), weights(""));

    let text = "<ir_version: 7, opset_import: [\"\" : 13]>\ng (float[N, 4] x) => (float[N, 3] y) \
                <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = MatMul (x, w) }";
    for (dtype, least) in [("uint16", 21), ("float8e4m3fn", 21)] {
        let mut made = optix_ir::text::parse(text).expect("a model");
        let error = quantized(&mut made, &format!("activation-type = \"{dtype}\"")).unwrap_err();
        assert!(
            error.contains(&format!("operator set {least}")) && error.contains("convert-opset"),
            "{error}"
        );
    }
}

#[test]
fn a_profile_may_stand_in_the_recipe() {
    let text = TARGETS[0].1.replacen("name = \"ort-cpu\"", "name = \"mine\"", 1);
    let mut mine = Target::parse(&text).expect("a profile").decided();
    mine.operators.weighted.retain(|operator| operator.name() != "MatMul");
    let table = toml::Value::try_from(&mine).expect("plain values").to_string();
    let mut made = model();
    let changes = quantized(&mut made, &format!("target = {table}")).expect("it is quantized");
    assert!(changes.skips.iter().any(|skip| skip.reason == "onnxruntime has no integer kernel for it"));
    assert!(changes.layers.iter().any(|layer| layer.op == "MatMul" && layer.action == "float"));
    let error =
        quantized(&mut model(), &format!("target = {}", table.replace("\"Gemm\"", "\"Gem\""))).unwrap_err();
    assert!(error.contains("test:7:") && error.contains("did you mean `Gemm`?"), "{error}");
    let error = quantized(&mut model(), "target = \"ort-gpu\"").unwrap_err();
    assert!(error.contains("test:7:") && error.contains("did you mean `ort-cpu`?"), "{error}");
    let error = quantized(&mut model(), "target = 3").unwrap_err();
    assert!(error.contains("the name of a target or the table of a profile"), "{error}");
}
