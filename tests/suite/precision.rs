//! convert-precision on small models with everything that is in its way, on the standard's operator cases,
//! and through the command line. Every result is verified, its types are inferred again, and it is run.

#![allow(clippy::print_stderr, reason = "says what was counted")]

use optix_ir::{DType, Model, Tensor, Type, ValueId, text};
use optix_ops::Datum;
use optix_passes::PASSES;
use optix_pipeline::check::{OpsEvaluator, random_feeds};
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{Batch, Calibration, Changes, DataError, Oracle, Recipe, Resources};
use optix_runtime::{Cpu, Engine, EngineOracle, LoadOptions, RuntimeError};

use crate::program::Place;
use crate::{cases, models};

/// Samples of a test, one batch each.
struct Samples(Vec<Vec<(String, Tensor)>>);

impl Calibration for Samples {
    fn describe(&self) -> String {
        "a test's samples".to_owned()
    }

    fn batches<'a>(
        &'a self,
        _: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError> {
        let batch =
            |feeds: &Vec<(String, Tensor)>| Ok(Batch { feeds: feeds.clone(), count: 1, ..Batch::default() });
        Ok(Box::new(self.0.iter().map(batch)))
    }
}

fn oracle() -> EngineOracle {
    EngineOracle::new(Box::new(Cpu), LoadOptions::default())
}

/// Runs the pass with these options.
fn run(model: &mut Model, options: &str, samples: Option<&Samples>) -> Result<Changes, String> {
    let recipe = format!("version = 1\n[[step]]\npass = \"convert-precision\"\n{options}\n");
    let recipe = Recipe::parse(&recipe, "test", PASSES, &[]).map_err(|error| error.to_string())?;
    let mut resources = Resources {
        oracle: &mut oracle(),
        calibration: samples.map(|samples| samples as &dyn Calibration),
        ..Resources::default()
    };
    let steps = runner::run(&recipe, model, &mut resources, &RunOptions::default(), &mut |_, _| {});
    steps.map(|mut steps| steps.remove(0).changes).map_err(|error| error.to_string())
}

/// Converts a model and checks what must hold of every result; returns it with what was done.
fn converted(source: &str, options: &str) -> (Model, Changes) {
    let before = text::parse(source).unwrap_or_else(|error| panic!("{error}\n{source}"));
    let mut after = before.clone();
    let changes = run(&mut after, options, None).unwrap_or_else(|error| panic!("{error}\n{source}"));
    check(&before, &after);
    (after, changes)
}

/// Types agree, and the outputs are those of the float model but for rounding.
fn check(before: &Model, after: &Model) {
    let problems = optix_ir::infer::contradictions(after, &OpsEvaluator);
    assert_eq!(problems, [], "{}", text::print(after));
    let feeds = random_feeds(before, 3).expect("inputs");
    let expected = oracle().outputs(before, &feeds).expect("the model runs");
    let types: Vec<DType> = after
        .graph(after.main())
        .inputs()
        .iter()
        .filter_map(|info| info.ty.as_ref().and_then(Type::dtype))
        .collect();
    let feeds: Vec<(String, Tensor)> =
        feeds.into_iter().zip(types).map(|((name, tensor), dtype)| (name, as_type(&tensor, dtype))).collect();
    let found =
        oracle().outputs(after, &feeds).unwrap_or_else(|error| panic!("{error}\n{}", text::print(after)));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(expected.shape(), found.shape());
        close(expected, found, 0.01).unwrap_or_else(|what| panic!("{what}\n{}", text::print(after)));
    }
}

fn as_type(tensor: &Tensor, dtype: DType) -> Tensor {
    let shape = tensor.shape().to_vec();
    let numbers = || tensor.to_f64s().expect("numbers").into_iter();
    match (tensor.dtype(), dtype) {
        (DType::F32, DType::F16) => {
            Tensor::from_vec(shape, numbers().map(half::f16::from_f64).collect::<Vec<_>>())
        }
        _ => tensor.clone(),
    }
}

fn close(expected: &Tensor, found: &Tensor, within: f64) -> Result<(), String> {
    let (a, b) = (expected.to_f64s().expect("numbers"), found.to_f64s().expect("numbers"));
    let greatest = a.iter().filter(|x| x.is_finite()).fold(1e-3, |most: f64, x| most.max(x.abs()));
    for (a, b) in a.iter().zip(&b) {
        let same = a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= within * greatest;
        if !same {
            return Err(format!("{a} became {b}"));
        }
    }
    Ok(())
}

fn count(changes: &Changes, what: &str) -> u64 {
    changes.counters.get(what).copied().unwrap_or(0)
}

fn dtype_of(model: &Model, name: &str) -> DType {
    let value = model.find_value(model.main(), name).unwrap_or_else(|| panic!("no `{name}`"));
    model.value(value).ty.as_ref().and_then(Type::dtype).expect("a tensor")
}

fn reason<'a>(changes: &'a Changes, node: &str) -> &'a str {
    &changes
        .skips
        .iter()
        .find(|skip| skip.node == node)
        .unwrap_or_else(|| panic!("{node} was not skipped"))
        .reason
}

/// A matrix that is not symmetric, as text.
const W: &str =
    "float[4, 4] w = {0.5, -1, 0.25, 2, 1, 0.1, -0.3, 0.7, -0.2, 0.9, 0.4, 0.6, 1.5, 0.8, -0.75, 0.35}";

fn one(body: &str, inputs: &str, outputs: &str, constants: &str) -> String {
    format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\nm ({inputs}) => ({outputs})\n<{constants}>\n{{\n{body}\n}}\n"
    )
}

#[test]
fn every_value_has_one_cast_however_many_read_it() {
    let source = one(
        "a = MatMul (x, w)\nb = MatMul (x, w)\nc = MatMul (a, w)\ny = Add (b, c)\nz = Relu (c)",
        "float[N, 4] x",
        "float[N, 4] y, float[N, 4] z, float[N, 4] a",
        W,
    );
    let (model, changes) = converted(&source, "");
    // x down, and each of the three outputs up.
    assert_eq!(count(&changes, "casts added"), 4, "{}", text::print(&model));
    assert_eq!(count(&changes, "constants in float16"), 1);
    assert_eq!(
        (dtype_of(&model, "x"), dtype_of(&model, "y"), dtype_of(&model, "w")),
        (DType::F32, DType::F32, DType::F16)
    );
    let (model, changes) = converted(&source, "keep-io = false");
    assert_eq!(count(&changes, "casts added"), 0, "{}", text::print(&model));
    assert_eq!((dtype_of(&model, "x"), dtype_of(&model, "a")), (DType::F16, DType::F16));
    let declared = model.graph(model.main()).outputs()[0].ty.as_ref().and_then(Type::dtype);
    assert_eq!(declared, Some(DType::F16));
}

#[test]
fn an_output_that_is_an_input_keeps_its_name() {
    let source = one("a = MatMul (x, w)\ny = Relu (a)", "float[N, 4] x", "float[N, 4] y, float[N, 4] x", W);
    for options in ["", "keep-io = false"] {
        let (model, _) = converted(&source, options);
        let outputs = model.graph(model.main()).outputs();
        let names: Vec<&str> = outputs.iter().map(|info| model.value(info.value).name()).collect();
        assert_eq!(names, ["y", "x"]);
    }
}

#[test]
fn branches_give_one_type_and_captured_values_are_cast_outside() {
    let source = one(
        "c = Constant <value = bool {1}> ()
         a = MatMul (x, w)
         b = If (c) <
            then_branch = t () => (float[N, 4] p) { u = Constant <value = float[4] {1, 2, 3, 4}> () p = Mul (a, u) },
            else_branch = e () => (float[N, 4] q) { [norm] v = Exp (x) q = Add (v, a) }
         >
         y = MatMul (b, w)",
        "float[N, 4] x",
        "float[N, 4] y",
        W,
    );
    let (model, changes) = converted(&source, "");
    assert_eq!(dtype_of(&model, "b"), DType::F16, "{}", text::print(&model));
    assert!(reason(&changes, "norm").contains("its exponential may pass float16's 65504"));
    converted(&source, "keep-io = false\nkeep-fragile = false");
    converted(&source, "weights-only = true");
}

#[test]
fn loops_and_scans_carry_one_type() {
    let source = one(
        "n = Constant <value = int64 {3}> ()
         c = Constant <value = bool {1}> ()
         s, all = Loop (n, c, x) <
            body = l (int64 i, bool k, float[N, 4] before) => (bool go, float[N, 4] after, float[N, 4] each) {
                go = Identity (k) each = MatMul (before, w) after = Mul (each, h)
            }
         >
         t, parts = Scan (s, all) <
            num_scan_inputs = 1,
            body = b (float[N, 4] state, float[N, 4] part) => (float[N, 4] next, float[N, 4] out) {
                next = Add (state, part) out = MatMul (next, w)
            }
         >
         y = Relu (t)",
        "float[2, 4] x",
        "float[2, 4] y, float[3, 2, 4] parts",
        &format!("{W}, float h = {{0.5}}"),
    );
    let source = source.replace("[N, 4]", "[2, 4]");
    let (model, changes) = converted(&source, "");
    assert_eq!(
        (dtype_of(&model, "s"), dtype_of(&model, "all")),
        (DType::F16, DType::F16),
        "{}",
        text::print(&model)
    );
    assert_eq!(count(&changes, "casts added"), 3);
    converted(&source, "keep-io = false");
    converted(&source, "exclude-operators = [\"Mul\"]");
}

#[test]
fn constants_that_do_not_fit_are_named_and_what_they_reach_stays_float32() {
    let source = one(
        "a = MatMul (x, w)
         [mask] k = Mul (m, low)
         [add] b = Add (a, k)
         [soft] s = Softmax <axis = -1> (b)
         [guard] e = Add (s, tiny)
         y = MatMul (e, w)",
        "float[2, 4] x, float[4] m",
        "float[2, 4] y",
        &format!("{W}, float low = {{-3.4e38}}, float tiny = {{1e-12}}"),
    );
    let mut before = text::parse(&source).expect("a model");
    let changes = run(&mut before, "", None).expect("it converts");
    assert_eq!(reason(&changes, "mask"), "1 element of `low` is beyond float16's 65504: up to -3.4e38");
    assert_eq!(reason(&changes, "add"), "`k` is made with a constant beyond float16's 65504");
    assert_eq!(
        reason(&changes, "guard"),
        "1 element of `tiny` is below 5.9604645e-8: rounding leaves 0 dB of it"
    );
    assert_eq!(dtype_of(&before, "w"), DType::F16);
    let mut clamped = text::parse(&source).expect("a model");
    let changes = run(&mut clamped, "clamp-weights = true", None).expect("it converts");
    let constant =
        |skip: &optix_pipeline::Skip| skip.node == "mask" && skip.reason.contains("of `low` is beyond");
    assert!(!changes.skips.iter().any(constant), "{:?}", changes.skips);
}

#[test]
fn a_constant_read_in_both_types_is_stored_once() {
    let large: Vec<String> = (0..1024).map(|i| format!("{}", f64::from(i % 31) * 0.0625 - 0.5)).collect();
    let source = |constant: &str| {
        one(
            "[keep] a = MatMul (x, w)\nb = MatMul (a, w)\ny = Relu (b)",
            "float[2, 32] x",
            "float[2, 32] y",
            &format!("float[32, 32] w = {{{constant}}}"),
        )
    };
    // Exact in float16: the float32 reader loses nothing by a cast.
    let (model, _) = converted(&source(&large.join(", ")), "exclude = [\"keep\"]");
    assert_eq!((dtype_of(&model, "w"), model.tensor_bytes()), (DType::F16, 2048));
    // Not exact: who is excluded keeps his numbers.
    let odd = large.join(", ").replacen("-0.5", "0.1", 1);
    let (model, _) = converted(&source(&odd), "exclude = [\"keep\"]");
    assert_eq!((dtype_of(&model, "w"), model.tensor_bytes()), (DType::F32, 4096));
    // Left alone for another reason, he gets the rounded ones.
    let (model, changes) = converted(&source(&odd), "weights-only = true");
    assert_eq!((dtype_of(&model, "w"), model.tensor_bytes()), (DType::F16, 2048));
    assert_eq!((count(&changes, "casts added"), count(&changes, "nodes in float16")), (1, 0));
}

#[test]
fn attributes_casts_and_listed_constants_follow() {
    let source = "<ir_version: 3, opset_import: [\"\" : 9]>
        m (float[2, 4] x, float[4, 4] w) => (float[2, 4] y)
        <float[4, 4] w = {0.5, -1, 0.25, 2, 1, 0.1, -0.3, 0.7, -0.2, 0.9, 0.4, 0.6, 1.5, 0.8, -0.75, 0.35}>
        {
            a = MatMul (x, w)
            s = Shape (a)
            o = ConstantOfShape <value = float[1] {0.5}> (s)
            z = ConstantOfShape (s)
            b = Add (a, o)
            d = Add (b, z)
            g = Greater (d, o)
            f = Cast <to = 1> (g)
            h = Cast <to = 10> (d)
            i = Cast <to = 1> (h)
            k = Add (i, f)
            y = MatMul (k, w)
        }";
    let (model, changes) = converted(source, "");
    assert_eq!(dtype_of(&model, "o"), DType::F16, "{}", text::print(&model));
    assert_eq!(dtype_of(&model, "f"), DType::F16);
    // The model's own way to float16 and back has nothing left to do.
    assert_eq!(count(&changes, "casts removed"), 2);
    assert_eq!(dtype_of(&model, "w"), DType::F16);
    assert_eq!(model.graph(model.main()).inputs()[1].ty.as_ref().and_then(Type::dtype), Some(DType::F16));
}

#[test]
fn what_cannot_be_converted_says_why() {
    let source = "<ir_version: 8, opset_import: [\"\" : 17, \"local\" : 1, \"other\" : 1]>
        m (float[2, 4] x) => (float[2, 4] y)
        <float[4, 4] w = {0.5, -1, 0.25, 2, 1, 0.1, -0.3, 0.7, -0.2, 0.9, 0.4, 0.6, 1.5, 0.8, -0.75, 0.35}>
        {
            a = MatMul (x, w)
            [call] b = local.twice (a)
            [range] r = Range (zero, four, one)
            c = Add (b, r)
            y = MatMul (c, w)
        }
        <domain: \"local\", opset_import: [\"\" : 17]>
        twice (p) => (q) { q = Add (p, p) }";
    let source =
        source.replace("float[4, 4] w", "float zero = {0}, float four = {4}, float one = {1}, float[4, 4] w");
    let (_, changes) = converted(&source, "");
    assert_eq!(reason(&changes, "call"), "it calls a function of the model, whose body stays float32");
    assert_eq!(
        reason(&changes, "range"),
        "Range takes float16 from operator set 27 on, the model is written in 17"
    );
    let (_, changes) = converted(&source, "type = \"bfloat16\"");
    assert!(reason(&changes, "range").starts_with("Range takes bfloat16"));
}

#[test]
fn wrong_options_are_errors() {
    let source = one("[one] y = MatMul (x, w)", "float[N, 4] x", "float[N, 4] y", W);
    for (options, expected) in [
        ("exclude = [\"two*\"]", "`exclude`: no node is called `two*`"),
        ("include = [\"on\"]", "`include`: no node is called `on`; did you mean `one`?"),
        ("exclude-operators = [\"Matmul\"]", "no node has the operator `Matmul`; did you mean `MatMul`?"),
        ("headroom = 0.5", "`headroom` is 0.5: it must be at least 1"),
    ] {
        let mut model = text::parse(&source).expect("a model");
        let error = run(&mut model, options, None).expect_err(options);
        assert!(error.contains(expected), "{error}");
    }
    let older = source.replace("17", "12");
    let mut model = text::parse(&older).expect("a model");
    let error = run(&mut model, "type = \"bfloat16\"", None).expect_err("operator set 12");
    assert!(error.contains("bfloat16 needs operator set 13"), "{error}");
}

/// A model whose middle leaves the range of float16 on some inputs.
fn overflowing() -> String {
    one(
        "a = MatMul (x, w)
         [up] b = Mul (a, c)
         [down] d = Div (b, c)
         e = MatMul (d, w)
         [up2] f = Mul (e, c)
         [down2] g = Div (f, c)
         y = MatMul (g, w)",
        "float[2, 4] x",
        "float[2, 4] y",
        &format!("{W}, float c = {{60000}}"),
    )
}

#[test]
fn ranges_that_data_show_keep_nodes_in_float32() {
    let before = text::parse(&overflowing()).expect("a model");
    let samples = Samples((0..4).map(|seed| random_feeds(&before, seed).expect("inputs")).collect());
    let mut after = before.clone();
    let changes = run(&mut after, "", Some(&samples)).expect("it converts");
    for node in ["up", "down", "up2", "down2"] {
        assert!(reason(&changes, node).contains("reaches"), "{node}: {}", reason(&changes, node));
    }
    assert_eq!(count(&changes, "calibration samples"), 4);
    check(&before, &after);
}

#[test]
fn the_least_set_that_mends_the_outputs_is_found() {
    let before = text::parse(&overflowing()).expect("a model");
    let samples = Samples((0..4).map(|seed| random_feeds(&before, seed).expect("inputs")).collect());
    let mut after = before.clone();
    let changes = run(&mut after, "keep-fragile = false", Some(&samples)).expect("it converts");
    let measured = |node: &str| {
        changes.skips.iter().any(|skip| skip.node == node && skip.reason.starts_with("measured"))
    };
    let kept: Vec<&str> = ["up", "down", "up2", "down2"].into_iter().filter(|node| measured(node)).collect();
    // All four overflow or read what did, and nothing else does.
    assert_eq!(
        kept.len() as u64,
        count(&changes, "nodes kept in float32 by measurement"),
        "{:?}",
        changes.skips
    );
    assert!((2..=4).contains(&kept.len()), "{kept:?}");
    check(&before, &after);
    // What no 16 bits reach is reached by leaving nodes alone.
    let mut after = before.clone();
    let changes = run(&mut after, "min-sqnr-db = 200.0", Some(&samples)).expect("it converts");
    assert!(
        changes.warnings.iter().any(|warning| warning.contains("below 200 dB was mended")),
        "{:?}",
        changes.warnings
    );
    let expected = oracle().outputs(&before, &samples.0[0]).expect("runs");
    assert_eq!(oracle().outputs(&after, &samples.0[0]).expect("runs"), expected);
}

#[test]
fn stopping_after_patches_stops_between_nodes() {
    let place = Place::new();
    for (stop, expected) in [(0, 0), (1, 1), (3, 3)] {
        let line = format!(
            "precision fixtures/models/fmnist_mobilenet.onnx -o {stop}.onnx --json --stop-after-patch {stop}"
        );
        let report = place.json(&line);
        assert_eq!(report["steps"][0]["changes"]["counters"]["nodes in float16"], expected);
    }
}

#[test]
fn the_command_converts_evaluates_and_prints_its_recipe() {
    let place = Place::new();
    let report = place.json(
        "precision fixtures/models/fmnist_resnet.onnx -o half.onnx --calib fixtures/data/fmnist-calib.toml --calib-samples 32 \
         --eval fixtures/data/fmnist-eval.toml --eval-samples 64 --require sqnr-db=55 --require size-ratio=0.51 --json",
    );
    assert_eq!(report["requirements"][0]["met"], true, "{}", report["requirements"]);
    assert_eq!(report["steps"][0]["changes"]["warnings"], serde_json::json!([]));
    let printed = place.ok(
        "precision m.onnx -o n.onnx --type bfloat16 --weights-only --exclude a* --exclude-operator Gemm --min-sqnr-db 30 \
         --keep-io false --print-recipe",
    );
    for part in [
        "type = \"bfloat16\"",
        "weights-only = true",
        "exclude = [\"a*\"]",
        "exclude-operators = [\"Gemm\"]",
        "min-sqnr-db = 30.0",
    ] {
        assert!(printed.stdout.contains(part), "{part}\n{}", printed.stdout);
    }
    assert!(
        place
            .ends("precision fixtures/models/fmnist_resnet.onnx -o x.onnx --exclude nothing", 2)
            .stderr
            .contains("`exclude`")
    );
}

/// Runs a model of a case; `None` where the engine does not.
fn run_case(model: &Model, inputs: &[Datum]) -> Result<Option<Vec<Datum>>, String> {
    let graph = model.graph(model.main());
    let feeds: Vec<(ValueId, Datum)> =
        graph.inputs().iter().map(|info| info.value).zip(inputs.iter().cloned()).collect();
    let outputs: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
    let session = Cpu.load(model, &LoadOptions::default());
    match session.and_then(|mut session| session.run_data(&feeds, &outputs)) {
        Ok(outputs) => Ok(Some(outputs)),
        Err(RuntimeError::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn operator_cases_survive_the_conversion() {
    let (mut runs, mut near, mut wrong, mut far) = (0, 0, Vec::new(), Vec::new());
    for case in cases::load() {
        let before = models::read_model(&case.model);
        let mut after = before.clone();
        // As many nodes as types allow: large constants or not, fragile or not.
        let Ok(changes) = run(&mut after, "keep-fragile = false", None) else { continue };
        if count(&changes, "nodes in float16") == 0 {
            continue;
        }
        let old = optix_ir::infer::contradictions(&before, &OpsEvaluator).len();
        let problems = optix_ir::infer::contradictions(&after, &OpsEvaluator);
        if problems.len() > old {
            wrong.push(format!("{}: {}", case.name, problems[0].describe(&after)));
        }
        for set in &case.sets {
            let inputs: Vec<Datum> = set.inputs.iter().map(models::read_sample).collect();
            let (Ok(Some(expected)), found) = (run_case(&before, &inputs), run_case(&after, &inputs)) else {
                continue;
            };
            let found = match found {
                Ok(Some(found)) => found,
                Ok(None) => {
                    wrong.push(format!("{}: the engine does not run it any more", case.name));
                    continue;
                }
                Err(error) => {
                    wrong.push(format!("{}: {error}", case.name));
                    continue;
                }
            };
            runs += 1;
            let mut is_near = true;
            for (expected, found) in expected.iter().zip(&found) {
                let (Datum::Tensor(expected), Datum::Tensor(found)) = (expected, found) else { continue };
                if (expected.dtype(), expected.shape()) != (found.dtype(), found.shape()) {
                    wrong.push(format!("{}: {:?} became {:?}", case.name, expected.shape(), found.shape()));
                } else if expected.dtype().is_float() {
                    is_near &= close(expected, found, 0.02).is_ok();
                }
            }
            near += u32::from(is_near);
            if !is_near {
                far.push(case.name.clone());
            }
        }
    }
    eprintln!("{runs} cases ran in float16, {near} within 2%; others: {}", far.join(" "));
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(runs > 500 && f64::from(near) > 0.95 * f64::from(runs), "{near} of {runs}: {far:?}");
}
