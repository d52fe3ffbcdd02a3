//! One numeric suite for every engine there is: problems as data (`fixtures/numerics/problems.txt`), the
//! standard's operator cases and onnxruntime's (`fixtures/node`, `fixtures/contrib`), and the fixture
//! models. Each runs as it is, behind every pass that promises the same results to the bit and changes it,
//! and written and read again. What is expected is what the reference kernels compute.
//!
//! Engines that are not present are said in one line. `OPTIX_ENGINES=wgpu,cuda` narrows the suite down,
//! `OPTIX_SUITE_ROOT` says where the fixtures are when the test has moved to another machine, and
//! `OPTIX_SUITE_NAMES=1` names each problem and case before it runs: a driver can end the process.

#![allow(clippy::print_stderr, reason = "says what was skipped and what was counted")]

use std::collections::BTreeMap;
use std::time::Instant;

use optix_base::Limits;
use optix_ir::{DType, Model, Tensor, Type, ValueId, text};
use optix_ops::{Datum, OpError};
use optix_passes::PASSES;
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{Numerics, Recipe, Resources};
use optix_runtime::{Cpu, Engine, EngineOracle, LoadOptions, RuntimeError};

use crate::cases::{self, Case};
use crate::models;
use crate::program::root;
use crate::random::differences;

/// An engine of this machine, and how far its floats may be off: in parts of the greatest expected number
/// of an output, beside what a problem itself allows.
struct Present {
    name: &'static str,
    engine: Box<dyn Engine>,
    within: f64,
}

/// How far each engine's floats may be off; docs/engines.md says the same.
fn within(name: &str) -> f64 {
    match name {
        // Sums in other orders: some roundings.
        "cpu" | "flex" | "ndarray" | "onnxruntime" => 2e-6,
        // Drivers may compute division and transcendental functions more coarsely.
        _ => 1e-5,
    }
}

/// The engines that are present, and a line for each that is not.
fn present() -> Vec<Present> {
    let only = std::env::var("OPTIX_ENGINES").ok();
    let asked = |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|asked| asked == name));
    let mut engines = Vec::new();
    for found in optix_runtime::all_engines(None) {
        match found.engine {
            _ if !asked(found.name) => {}
            Ok(engine) => engines.push(Present { name: found.name, engine, within: within(found.name) }),
            Err(why) => eprintln!("not present: {}: {why}", found.name),
        }
    }
    assert!(!engines.is_empty(), "no engine to test: OPTIX_ENGINES is {only:?}");
    engines
}

/// What an engine makes of a model.
enum Outcome {
    Outputs(Vec<Datum>),
    /// It says that it does not run this.
    Refused(String),
    /// It should, and failed.
    Failed(String),
}

/// Names what is about to run, where that is asked for.
fn name_aloud(engine: &Present, name: &str, how: &str) {
    if std::env::var_os("OPTIX_SUITE_NAMES").is_some() {
        eprintln!("{}: {name}, {how}", engine.name);
    }
}

fn load(engine: &dyn Engine, model: &Model) -> Result<Box<dyn optix_runtime::Session>, RuntimeError> {
    engine.load(model, &LoadOptions { threads: 2, ..LoadOptions::default() })
}

fn run(engine: &dyn Engine, model: &Model, inputs: &[Datum]) -> Outcome {
    let graph = model.graph(model.main());
    let feeds: Vec<(ValueId, Datum)> =
        graph.inputs().iter().map(|info| info.value).zip(inputs.iter().cloned()).collect();
    let outputs: Vec<ValueId> = graph.outputs().iter().map(|info| info.value).collect();
    match load(engine, model).and_then(|mut session| session.run_data(&feeds, &outputs)) {
        Ok(outputs) => Outcome::Outputs(outputs),
        Err(
            error @ (RuntimeError::Unsupported { .. }
            | RuntimeError::Node { source: OpError::Unsupported { .. }, .. }),
        ) => Outcome::Refused(error.to_string()),
        // A library of its own says in its own words what it does not run.
        Err(error @ (RuntimeError::Refused { .. } | RuntimeError::NotATensor { .. }))
            if engine.name() == "onnxruntime" =>
        {
            Outcome::Refused(error.to_string())
        }
        Err(error @ RuntimeError::Feed { .. }) if engine.name() == "onnxruntime" => {
            Outcome::Refused(error.to_string())
        }
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// A model and how it came about.
struct Variant {
    how: String,
    model: Model,
}

/// The model behind each pass that promises the same bits and changes it, and written and read again.
fn variants(model: &Model) -> Vec<Variant> {
    let mut variants = vec![Variant { how: "as it is".into(), model: model.clone() }];
    let mut oracle = EngineOracle::new(Box::new(Cpu), LoadOptions { threads: 1, ..LoadOptions::default() });
    for spec in PASSES {
        let text = format!("version = 1\n[[step]]\npass = \"{}\"\n", spec.name);
        let Ok(recipe) = Recipe::parse(&text, "numerics", PASSES, &[]) else { continue };
        let exact = recipe.steps.iter().all(|step| step.pass.promises().numerics == Numerics::Exact);
        let calibrated = recipe.steps.iter().any(|step| step.pass.requires().calibration);
        if !exact || calibrated {
            continue;
        }
        let mut resources = Resources { oracle: &mut oracle, seed: recipe.seed, ..Resources::default() };
        let mut passed = model.clone();
        // A pass may refuse a model (an operator set it does not know, say).
        if runner::run(&recipe, &mut passed, &mut resources, &RunOptions::default(), &mut |_, _| {}).is_ok()
            && text::print(&passed) != text::print(model)
        {
            variants.push(Variant { how: format!("behind {}", spec.name), model: passed });
        }
    }
    let bytes = optix_io::onnx_bytes(model).expect("what was read can be written");
    let reloaded = optix_io::read_onnx(&bytes, "written again", Limits::default());
    variants.push(Variant { how: "written and read".into(), model: reloaded.expect("it can be read") });
    variants
}

/// Counts of one engine.
#[derive(Default)]
struct Tally {
    passed: usize,
    refused: BTreeMap<String, String>,
    wrong: Vec<String>,
}

impl Tally {
    /// Judges one run of one variant.
    fn judge(
        &mut self,
        name: &str,
        how: &str,
        outcome: Outcome,
        judge: impl FnOnce(&[Datum]) -> Vec<String>,
    ) {
        match outcome {
            Outcome::Outputs(outputs) => match judge(&outputs).first() {
                None => self.passed += 1,
                Some(what) => self.wrong.push(format!("{name}, {how}: {what}")),
            },
            Outcome::Refused(why) => drop(self.refused.insert(name.to_owned(), why)),
            Outcome::Failed(what) => self.wrong.push(format!("{name}, {how}: {what}")),
        }
    }

    fn say(&self, what: &str, engine: &Present, started: Instant) {
        eprintln!(
            "{what} on {} ({}): {} passed, {} not run, {} wrong, {:.1} s",
            engine.name,
            engine.engine.device(),
            self.passed,
            self.refused.len(),
            self.wrong.len(),
            started.elapsed().as_secs_f64()
        );
        for (name, why) in self.refused.iter().take(40) {
            let why: String = why.chars().take(160).collect();
            eprintln!("  not run: {name}: {why}");
        }
        self.wrong.iter().take(40).for_each(|wrong| eprintln!("  WRONG: {wrong}"));
    }
}

/// Numbers that look random and are the same everywhere.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Between two numbers, in steps of 1/64.
    fn float(&mut self, low: f32, high: f32) -> f32 {
        let steps = ((high - low) * 64.0) as u64;
        low + (self.next() % (steps + 1)) as f32 / 64.0
    }

    fn tensor(&mut self, name: &str, ty: &Type) -> Tensor {
        let shape: Vec<usize> = ty.fixed_shape().expect("inputs of problems have fixed shapes");
        let ty = ty.as_tensor().expect("problems are about tensors");
        let count: usize = shape.iter().product();
        let numbers = 0..count;
        match ty.dtype.expect("it has a type") {
            DType::F32 => {
                let low = if name.starts_with('p') { 0.125 } else { -2.0 };
                Tensor::from_vec(shape, numbers.map(|_| self.float(low, 2.0)).collect::<Vec<f32>>())
            }
            DType::I64 => {
                Tensor::from_vec(shape, numbers.map(|_| (self.next() % 3) as i64).collect::<Vec<i64>>())
            }
            DType::Bool => Tensor::from_bools(
                shape,
                &numbers.map(|_| self.next().is_multiple_of(2)).collect::<Vec<bool>>(),
            ),
            other => panic!("{name}: nothing is drawn of type {other}"),
        }
    }
}

/// A problem: a model, what to feed, and what must come out.
struct Problem {
    name: String,
    model: Model,
    inputs: Vec<Datum>,
    expected: Vec<Datum>,
}

/// The inputs and the rest of a problem's text; inputs are `type name`.
fn signature(body: &str) -> (Vec<&str>, &str) {
    let (inputs, rest) = body.split_once(") =>").expect("a problem has inputs and outputs");
    let inputs = inputs.split_once('(').expect("a problem has inputs").1;
    let mut depth = 0;
    let parts = inputs.split(|letter: char| {
        depth += i32::from(letter == '[') - i32::from(letter == ']');
        letter == ',' && depth == 0
    });
    (parts.map(str::trim).collect(), rest)
}

/// The problems of `fixtures/numerics/problems.txt`.
fn problems() -> Vec<Problem> {
    let path = root().join("fixtures/numerics/problems.txt");
    let all = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let read = |problem: &str| {
        let (head, body) = problem.split_once('\n').expect("a problem has a graph");
        let (name, opset) = head.split_once(" | ").unwrap_or((head, "18"));
        let mut draw = Draw(name.bytes().map(u64::from).sum());
        let (declared, rest) = signature(body);
        let (mut inputs, mut fed, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for input in declared {
            let (ty, label) = input.rsplit_once(' ').expect("an input has a type and a name");
            let tensor = draw.tensor(label, &text::parse_type(ty).expect("the type is one"));
            if label.starts_with('w') {
                weights.push(format!("{input} = {}", elements(&tensor)));
            } else {
                inputs.push(input);
                fed.push(Datum::Tensor(tensor));
            }
        }
        let (outputs, rest) = rest.split_once('\n').expect("nodes follow the outputs");
        let rest = match (rest.strip_prefix('<'), weights.is_empty()) {
            (_, true) => rest.to_owned(),
            (Some(rest), _) => format!("<{}, {rest}", weights.join(", ")),
            (None, _) => format!("<{}>\n{rest}", weights.join(", ")),
        };
        let head = format!("<ir_version: 8, opset_import: [\"\" : {opset}]>");
        let source = format!("{head}\ng ({}) => {outputs}\n{rest}", inputs.join(", "));
        let model = text::parse(&source).unwrap_or_else(|error| panic!("{name}: {error}\n{source}"));
        let fed_to = fed.iter().cloned().map(Some).collect();
        let expected = optix_ops::interpret(&model, fed_to).unwrap_or_else(|error| panic!("{name}: {error}"));
        Problem { name: name.to_owned(), model, inputs: fed, expected }
    };
    let problems: Vec<Problem> = all.split("\n== ").skip(1).map(read).collect();
    assert!(problems.len() > 40, "{} problems", problems.len());
    problems
}

/// Elements as the text form has them.
fn elements(tensor: &Tensor) -> String {
    let numbers = tensor.to_f64s().expect("weights are numbers");
    format!("{{{}}}", numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(", "))
}

/// A case that allows what an engine needs: a part of the greatest expected number beside its own.
fn allowing(case: &Case, within: f64, expected: &[Datum]) -> Case {
    fn greatest(datum: &Datum) -> f64 {
        match datum {
            Datum::Tensor(tensor) if tensor.dtype().is_float() => {
                let numbers = tensor.to_f64s().unwrap_or_default();
                numbers.iter().filter(|x| x.is_finite()).fold(0.0, |greatest, x| x.abs().max(greatest))
            }
            Datum::Sequence(elements) => elements.iter().map(greatest).fold(0.0, f64::max),
            Datum::Optional(Some(element)) => greatest(element),
            _ => 0.0,
        }
    }
    let greatest = expected.iter().map(greatest).fold(0.0, f64::max);
    Case {
        name: case.name.clone(),
        relative: case.relative.max(within),
        absolute: case.absolute.max(within * greatest),
        model: case.model.clone(),
        sets: Vec::new(),
    }
}

#[test]
fn problems_agree_on_every_engine() {
    let problems = problems();
    let engines = present();
    let mut wrong = Vec::new();
    for present in &engines {
        let (started, mut tally) = (Instant::now(), Tally::default());
        for problem in &problems {
            let case = Case {
                name: problem.name.clone(),
                relative: 0.0,
                absolute: 0.0,
                model: Default::default(),
                sets: Vec::new(),
            };
            let case = allowing(&case, present.within, &problem.expected);
            for variant in variants(&problem.model) {
                name_aloud(present, &problem.name, &variant.how);
                let outcome = run(&*present.engine, &variant.model, &problem.inputs);
                tally.judge(&problem.name, &variant.how, outcome, |outputs| {
                    differences(&case, &problem.inputs, outputs, &problem.expected)
                });
            }
        }
        tally.say("problems", present, started);
        wrong.extend(tally.wrong.into_iter().map(|what| format!("{}: {what}", present.name)));
        wrong.extend(tally.refused.into_iter().map(|(name, why)| format!("{}: {name}: {why}", present.name)));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Operator cases that onnxruntime passes at least. It is a second opinion, with departures of its own from
/// the standard, so its cases are counted and shown but not each demanded.
const ONNXRUNTIME_PASSES: usize = 1500;

#[test]
fn operator_cases_agree_on_every_engine() {
    let mut cases = cases::load();
    cases.extend(cases::load_from("fixtures/contrib/cases.bin.gz"));
    let engines = present();
    let started = Instant::now();
    let mut tallies: Vec<Tally> = engines.iter().map(|_| Tally::default()).collect();
    for case in &cases {
        let forms = variants(&models::read_model(&case.model));
        for set in &case.sets {
            let inputs: Vec<Datum> = set.inputs.iter().map(models::read_sample).collect();
            let expected: Vec<Datum> = set.outputs.iter().map(models::read_sample).collect();
            for (present, tally) in engines.iter().zip(&mut tallies) {
                let allowed = allowing(case, present.within, &expected);
                // On the processor it costs little to run every form of a model.
                let most = if matches!(present.name, "cpu" | "flex" | "ndarray") { forms.len() } else { 1 };
                for form in forms.iter().take(most) {
                    name_aloud(present, &case.name, &form.how);
                    let outcome = run(&*present.engine, &form.model, &inputs);
                    tally.judge(&case.name, &form.how, outcome, |outputs| {
                        let of_standard = case.name.starts_with("test_");
                        if of_standard {
                            let found = differences(&allowed, &inputs, outputs, &expected);
                            if found.is_empty() || present.name != "wgpu" {
                                return found;
                            }
                        }
                        // Roundings to integers may be one step away: Vulkan allows a division to be 2.5 units in
                        // the last place off.
                        let off = crate::contrib::compare(&allowed, outputs, &expected, &mut 0);
                        off.err().into_iter().collect()
                    });
                }
            }
        }
    }
    let mut wrong = Vec::new();
    for (present, tally) in engines.iter().zip(tallies) {
        tally.say("operator cases", present, started);
        if present.name == "onnxruntime" {
            let passed = tally.passed;
            assert!(passed >= ONNXRUNTIME_PASSES, "only {passed} operator cases pass on onnxruntime");
            continue;
        }
        wrong.extend(tally.wrong.into_iter().map(|what| format!("{}: {what}", present.name)));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Models of the fixtures, and with `OPTIX_MODELS=DIR` the real ones below that folder, on random inputs:
/// every engine against the default one.
#[test]
fn models_agree_on_every_engine() {
    let mut paths = Vec::new();
    crate::clean::collect(&root().join("fixtures/models"), &mut paths);
    if let Some(folder) = std::env::var_os("OPTIX_MODELS") {
        crate::clean::collect(folder.as_ref(), &mut paths);
    }
    paths.sort();
    let mut wrong = Vec::new();
    let engines = present();
    for path in &paths {
        let loaded = optix_io::load(path, &optix_io::LoadOptions::default());
        let model = loaded.unwrap_or_else(|error| panic!("{}: {error}", path.display())).model;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let feeds = match optix_pipeline::check::random_feeds(&model, 7) {
            Ok(feeds) => feeds,
            Err(error) => {
                eprintln!("{name}: no random inputs: {error}");
                continue;
            }
        };
        let run = |engine: &dyn Engine| -> Result<(Vec<Tensor>, Option<optix_runtime::Placement>), String> {
            let main = model.main();
            let feeds: Vec<(ValueId, Tensor)> = feeds
                .iter()
                .filter_map(|(name, tensor)| Some((model.find_value(main, name)?, tensor.clone())))
                .collect();
            let outputs: Vec<ValueId> = model.graph(main).outputs().iter().map(|info| info.value).collect();
            let mut session = load(engine, &model).map_err(|error| error.to_string())?;
            let outputs = session.run(&feeds, &outputs).map_err(|error| error.to_string())?;
            Ok((outputs, session.placement()))
        };
        let expected = match run(&Cpu) {
            Ok((expected, _)) => expected,
            Err(why) => {
                eprintln!("{name}: the default engine does not run random inputs: {why}");
                continue;
            }
        };
        for present in engines.iter().filter(|present| present.name != "cpu") {
            let started = Instant::now();
            match run(&*present.engine) {
                Ok((found, placement)) => {
                    let off = expected.iter().zip(&found);
                    let off = off.map(|(a, b)| optix_pipeline::check::relative_difference(a, b));
                    let off = off.fold(0.0, f64::max);
                    let placement = placement.map(|placement| format!("; {placement}")).unwrap_or_default();
                    eprintln!(
                        "{name} on {}: {off:.1e} of the greatest output, {:.1} s{placement}",
                        present.name,
                        started.elapsed().as_secs_f64()
                    );
                    // Deep networks amplify roundings: the same bound as for a pass that moves them.
                    let amplifies = present.name == "onnxruntime" && path.ends_with(AMPLIFIES);
                    let bound = if amplifies { 1e-2 } else { (100.0 * present.within).min(1e-2) };
                    if off > bound && !ROUNDS.contains(&name.as_str()) {
                        wrong.push(format!("{name} on {}: {off:.1e}", present.name));
                    }
                }
                Err(why) => wrong.push(format!("{name} on {}: {why}", present.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The model that computes a variance as the difference of two squares: where another library sums in another
/// order, that amplifies a thousandfold.
const AMPLIFIES: &str = "magika/model.onnx";

/// Models that round to integers inside: one step there changes everything behind it.
const ROUNDS: &[&str] = &["encoder.onnx", "decoder.onnx"];

/// Gradients of a network for a batch of pictures, by the names of its parameters.
fn gradients(engine: &dyn Engine, model: &Model) -> Result<Vec<(String, Tensor)>, String> {
    const COUNT: usize = 64;
    let main = model.main();
    let input = model.graph(main).inputs()[0].value;
    let output = model.graph(main).outputs()[0].value;
    let aim = optix_training::Aim {
        value: output,
        distance: optix_training::loss::Distance::Logits { temperature: 2.0 },
        weight: 1.0,
        is_border: false,
    };
    let parameters = optix_training::parameters(model);
    let student = optix_training::Student::new(
        model,
        &[(input, vec![COUNT, 1, 28, 28])],
        &parameters,
        &[(aim, vec![COUNT, 10])],
        false,
        &optix_pipeline::check::OpsEvaluator,
    )
    .map_err(|error| error.to_string())?;
    let mut draw = Draw(11);
    let mut drawn = |shape: [usize; 4]| {
        let elements = (0..shape.iter().product()).map(|_| draw.float(-1.0, 1.0)).collect::<Vec<f32>>();
        Tensor::from_vec(shape.to_vec(), elements)
    };
    let pictures = drawn([COUNT, 1, 28, 28]);
    let answers = drawn([COUNT, 10, 1, 1]).to_slice::<f32>().expect("floats").to_vec();
    let mut feeds = vec![(input, pictures), (student.targets[0], Tensor::from_vec(vec![COUNT, 10], answers))];
    let (mut wanted, mut names) = (Vec::new(), Vec::new());
    for ((parameter, own), gradient) in parameters.iter().zip(&student.inputs).zip(&student.gradients) {
        feeds.push((*own, model.constant(parameter.value).expect("it is constant").clone()));
        wanted.extend(*gradient);
        names.extend(gradient.map(|_| model.value(parameter.value).name().to_owned()));
    }
    let mut session = load(engine, &student.model).map_err(|error| error.to_string())?;
    let found = session.run(&feeds, &wanted).map_err(|error| error.to_string())?;
    Ok(names.into_iter().zip(found).collect())
}

#[test]
fn gradients_agree_on_every_engine() {
    let mut wrong = Vec::new();
    for name in ["fmnist_resnet", "fmnist_mobilenet"] {
        let path = root().join(format!("fixtures/models/{name}.onnx"));
        let model = optix_io::load(&path, &optix_io::LoadOptions::default()).expect("it loads").model;
        let expected = gradients(&Cpu, &model).expect("the default engine trains");
        for present in present().iter().filter(|present| present.name != "cpu") {
            let found = match gradients(&*present.engine, &model) {
                Ok(found) => found,
                Err(why) => {
                    eprintln!("{name} on {}: not run: {why}", present.name);
                    continue;
                }
            };
            let mut greatest = 0.0f64;
            for ((of, expected), (_, found)) in expected.iter().zip(&found) {
                let off = optix_pipeline::check::relative_difference(expected, found);
                greatest = greatest.max(off);
                // A number within its last digits of where a Relu or Clip begins may fall on either side, and with it the
                // gradient of one element in a million; what is computed wrongly is off by far more.
                if off > 1e-2 {
                    wrong.push(format!("{name} on {}: gradient of `{of}` is {off:.1e} off", present.name));
                }
            }
            eprintln!("gradients of {name} on {}: {greatest:.1e} of the greatest of each", present.name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
