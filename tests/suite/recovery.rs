//! The passes that prepare a float model for int8, `smooth-activations` and `equalize-layers`: they change
//! what they say, and the float model computes what it did, on graphs of every form they know.

use std::fmt::Write as _;

use optix_ir::{DType, Model, Tensor, text};
use optix_passes::PASSES;
use optix_pipeline::check::relative_difference;
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{Batch, Calibration, DataError, Oracle, Recipe, Resources};
use optix_runtime::{Cpu, EngineOracle, LoadOptions};

/// How far results may move: some roundings.
const WITHIN: f64 = 1e-5;

/// Numbers between -1 and 1 that look random and are the same everywhere.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }
}

/// Random samples for the inputs of any model; symbolic dimensions are 4.
pub struct Drawn {
    /// Samples differ from seed to seed.
    pub seed: u64,
    /// Batches.
    pub batches: usize,
}

impl Drawn {
    fn feeds(&self, model: &Model, batch: usize) -> Vec<(String, Tensor)> {
        let mut draw = Draw(self.seed.wrapping_mul(977).wrapping_add(batch as u64 + 1));
        let inputs = model.graph(model.main()).inputs().iter();
        inputs
            .map(|info| {
                let ty = info.ty.as_ref().and_then(|ty| ty.as_tensor()).expect("a tensor");
                assert_eq!(ty.dtype, Some(DType::F32));
                let shape = ty.shape.iter().flatten().map(|dim| dim.fixed().unwrap_or(4)).collect::<Vec<_>>();
                let count = shape.iter().product();
                let elements: Vec<f32> = (0..count).map(|_| draw.next()).collect();
                (model.value(info.value).name().to_owned(), Tensor::from_vec(shape, elements))
            })
            .collect()
    }
}

impl Calibration for Drawn {
    fn describe(&self) -> String {
        "drawn".to_owned()
    }

    fn batches<'a>(
        &'a self,
        model: &Model,
    ) -> Result<Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>, DataError> {
        let batches: Vec<_> = (0..self.batches)
            .map(|batch| Ok(Batch { feeds: self.feeds(model, batch), count: 1, ..Batch::default() }))
            .collect();
        Ok(Box::new(batches.into_iter()))
    }
}

fn oracle() -> EngineOracle {
    EngineOracle::new(Box::new(Cpu), LoadOptions { threads: 1, ..LoadOptions::default() })
}

/// What a pass made of a model.
struct Made {
    model: Model,
    changes: optix_pipeline::Changes,
}

impl Made {
    fn count(&self, what: &str) -> u64 {
        self.changes.counters.get(what).copied().unwrap_or(0)
    }

    fn reasons(&self) -> String {
        self.changes.skips.iter().map(|skip| skip.reason.as_str()).collect::<Vec<_>>().join("\n")
    }

    fn has(&self, op: &str) -> bool {
        self.model.walk().any(|id| self.model.node(id).is(op))
    }
}

/// Runs one pass and checks that outputs stay, on other data than it saw.
fn run(source: &str, step: &str) -> Made {
    let before = text::parse(source).unwrap_or_else(|error| panic!("{error}\n{source}"));
    let recipe = format!("version = 1\n[[step]]\n{step}\n");
    let recipe = Recipe::parse(&recipe, "test", PASSES, &[]).unwrap_or_else(|error| panic!("{error}"));
    let mut after = before.clone();
    let mut resources = Resources {
        oracle: &mut oracle(),
        calibration: Some(&Drawn { seed: 1, batches: 8 }),
        ..Resources::default()
    };
    let mut steps = runner::run(&recipe, &mut after, &mut resources, &RunOptions::default(), &mut |_, _| {})
        .unwrap_or_else(|error| panic!("{error}\n{source}"));
    for seed in [1, 2] {
        let feeds = Drawn { seed, batches: 1 }.feeds(&before, 0);
        let expected = oracle().outputs(&before, &feeds).expect("it runs");
        let found = oracle().outputs(&after, &feeds).unwrap_or_else(|error| panic!("{error}\n{source}"));
        for (expected, found) in expected.iter().zip(&found) {
            assert!(
                expected.to_f64s().expect("floats").iter().any(|x| *x != 0.0),
                "a dead model proves nothing"
            );
            let moved = relative_difference(expected, found);
            assert!(moved <= WITHIN, "moved by {moved:e}\n{source}\n{}", text::print(&after));
        }
    }
    Made { model: after, changes: steps.remove(0).changes }
}

/// A constant for a model's text; `outlier` is a row or column (by axis) that is far greater.
fn constant(name: &str, shape: &[usize], outlier: Option<(usize, usize, f32)>) -> String {
    let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut draw = Draw(seed);
    let count: usize = shape.iter().product();
    let mut numbers = String::new();
    for index in 0..count {
        let mut value = draw.next() + 0.01;
        if let Some((axis, entry, factor)) = outlier {
            let inner: usize = shape[axis + 1..].iter().product();
            if index / inner % shape[axis] == entry {
                value *= factor;
            }
        }
        write!(numbers, "{}{value:?}", if index > 0 { ", " } else { "" }).expect("text");
    }
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("float[{}] {name} = {{{numbers}}}", sizes.join(", "))
}

fn model(inputs: &str, outputs: &str, constants: &[String], body: &str) -> String {
    let constants = constants.join(",\n");
    format!(
        "<ir_version: 8, opset_import: [\"\" : 18]>\ng ({inputs}) => ({outputs})\n<{constants}>\n{{\n{body}\n}}"
    )
}

const SMOOTH: &str = "pass = \"smooth-activations\"\nleast-columns-mul = 1";
const FOLD_ONLY: &str = "pass = \"smooth-activations\"\ninsert-mul = false";

#[test]
fn products_behind_a_layer_normalization() {
    for bias in [true, false] {
        for residual in [true, false] {
            let mut constants = vec![
                constant("scale", &[8], Some((0, 3, 60.0))),
                constant("q", &[8, 6], None),
                constant("k", &[8, 4], None),
            ];
            let mut body = "n = LayerNormalization (x, scale)".to_owned();
            if bias {
                constants.push(constant("bias", &[8], None));
                body = "n = LayerNormalization (x, scale, bias)".to_owned();
            }
            body += "\na = MatMul (n, q)\nb = MatMul (n, k)\nshape = Shape (n)\nc = Cast <to = 1> (shape)";
            body += if residual { "\nd = Add (x, n)" } else { "\nd = Identity (x)" };
            let outputs = "float[2, N, 6] a, float[2, N, 4] b, float[3] c, float[2, N, 8] d";
            let source = model("float[2, N, 8] x", outputs, &constants, &body);
            let made = run(&source, SMOOTH);
            assert_eq!(made.count("activations smoothed"), 1, "{}", made.reasons());
            assert_eq!(made.has("Mul"), residual);
            let folded = run(&source, FOLD_ONLY);
            assert_eq!(folded.count("activations smoothed"), u64::from(!residual));
            assert_eq!(folded.reasons().contains("reads it too"), residual, "{}", folded.reasons());
            assert_eq!(made.changes.layers.len(), 2, "both products are in the ledger");
        }
    }
}

#[test]
fn layers_before_take_the_division_in() {
    let (wide, deep) = (constant("v", &[8, 5], None), Some((1, 2, 50.0)));
    let weights = || constant("w", &[6, 8], deep);
    let bodies: &[(&str, Vec<String>, &str)] = &[
        ("MatMul", vec![weights()], "h = MatMul (x, w)"),
        ("bias behind", vec![weights(), constant("b", &[8], None)], "m = MatMul (x, w)\nh = Add (m, b)"),
        ("bias before", vec![weights(), constant("b", &[1, 8], None)], "m = MatMul (x, w)\nh = Add (b, m)"),
        ("one bias", vec![weights(), constant("b", &[1], None)], "m = MatMul (x, w)\nh = Sub (m, b)"),
        ("Gemm", vec![weights(), constant("b", &[8], None)], "h = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)"),
        ("Gemm, one bias", vec![weights(), constant("b", &[1, 1], None)], "h = Gemm (x, w, b)"),
        ("transB", vec![constant("w", &[8, 6], Some((0, 2, 50.0)))], "h = Gemm <transB = 1> (x, w)"),
        ("Relu", vec![weights()], "m = MatMul (x, w)\nr = Relu (m)\nh = LeakyRelu <alpha = 0.2> (r)"),
        ("Mul", vec![constant("c", &[6], Some((0, 1, 50.0)))], "h = Mul (x, c)"),
        ("Div", vec![constant("c", &[1, 6], Some((1, 1, 0.02)))], "h = Div (x, c)"),
        ("one factor", vec![weights(), constant("c", &[1], None)], "m = MatMul (x, w)\nh = Mul (c, m)"),
        (
            "written-out normalization",
            vec![constant("c", &[6], Some((0, 1, 50.0))), constant("d", &[6], None)],
            "m = ReduceMean (x)\ns = Sub (x, m)\np = Mul (s, c)\nh = Add (p, d)",
        ),
        (
            "gate",
            vec![weights(), constant("u", &[6, 8], None)],
            "m = MatMul (x, w)\nt = MatMul (x, u)\ng = Sigmoid (t)\nh = Mul (g, m)",
        ),
    ];
    for (name, constants, body) in bodies {
        let mut constants = constants.clone();
        let depth = if constants.iter().any(|constant| constant.contains(" w =")) { 8 } else { 6 };
        constants.push(if depth == 8 { wide.clone() } else { constant("v", &[6, 5], None) });
        let body = format!("{body}\ny = MatMul (h, v)");
        let made = run(&model("float[4, 6] x", "float[4, 5] y", &constants, &body), FOLD_ONLY);
        assert_eq!(made.count("activations smoothed"), 1, "{name}: {}", made.reasons());
    }
}

#[test]
fn through_heads_of_an_attention() {
    let constants = [
        constant("w", &[6, 8], Some((1, 5, 40.0))),
        constant("b", &[8], None),
        constant("o", &[8, 6], None),
        "int64[4] heads = {2, 3, 2, 4}".to_owned(),
        "int64[3] flat = {2, 3, 8}".to_owned(),
    ];
    let body =
        "m = MatMul (x, w)\nv = Add (m, b)\nr = Reshape (v, heads)\nt = Transpose <perm = [0, 2, 1, 3]> (r)
        a = Softmax (s)\np = MatMul (a, t)\nu = Transpose <perm = [0, 2, 1, 3]> (p)\nh = Reshape (u, flat)
        y = MatMul (h, o)";
    let inputs = "float[2, 3, 6] x, float[2, 2, 3, 3] s";
    let made = run(&model(inputs, "float[2, 3, 6] y", &constants, body), FOLD_ONLY);
    assert_eq!(made.count("activations smoothed"), 1, "{}", made.reasons());
    let said = made.changes.layers.iter().filter_map(|layer| layer.reason.as_deref()).collect::<String>();
    assert!(said.contains("folded into MatMul -> `m`"), "{said}");
    // Rows of the attention weights are no columns of what they weigh.
    let wrong = body.replace("perm = [0, 2, 1, 3]> (p)", "perm = [0, 1, 3, 2]> (p)");
    let made = run(&model(inputs, "float[2, 3, 6] y", &constants, &wrong), FOLD_ONLY);
    assert_eq!(made.count("activations smoothed"), 0);
}

/// A GELU written out over the layer `f1`, and its product `f2`. Channel 2 is seldom active, and then far
/// greater than the others, with weights to match.
fn gelu(extra: &str) -> String {
    let biases: Vec<&str> = (0..64).map(|channel| if channel == 2 { "-30" } else { "0.1" }).collect();
    let constants = [
        constant("f1", &[6, 64], Some((1, 2, 30.0))),
        format!("float[64] b1 = {{{}}}", biases.join(", ")),
        constant("f2", &[64, 6], Some((0, 2, 20.0))),
        "float root = {1.4142135}".to_owned(),
        "float one = {1}".to_owned(),
        "float half = {0.5}".to_owned(),
    ];
    let body = format!(
        "m = MatMul (x, f1)\nz = Add (m, b1)\nd = Div (z, root)\ne = Erf (d)\nf = Add (e, one)\np = Mul (z, f)
        h = Mul (p, half)\ny = MatMul (h, f2)\n{extra}"
    );
    model(
        "float[N, 6] x",
        if extra.is_empty() { "float[N, 6] y" } else { "float[N, 6] y, float[N, 64] w" },
        &constants,
        &body,
    )
}

#[test]
fn outliers_behind_a_gelu_get_copies_and_the_gelu_stays_one() {
    let step =
        |copies: &str| format!("{SMOOTH}\nleast-gain-mul = 0.1\nexclude = [\"m\"]\nmost-copies = {copies}");
    let made = run(&gelu(""), &step("0.2"));
    assert_eq!(made.count("of them with copies of channels"), 1, "{}", text::print(&made.model));
    let graph = made.model.graph(made.model.main());
    let half = graph.initializers().iter().find(|&&value| made.model.value(value).name() == "half");
    let half = half.and_then(|&value| made.model.constant(value)).and_then(Tensor::single);
    assert_eq!(half, Some(0.5), "a factor a channel would break the GELU up");
    // Not where anybody else reads what would get more channels.
    let shared = run(&gelu("w = Neg (z)"), &step("0.2"));
    assert_eq!(shared.count("of them with copies of channels"), 0);
    assert_eq!(run(&gelu(""), &step("0.0")).count("of them with copies of channels"), 0);
}

#[test]
fn shared_weights_stay_shared_and_what_cannot_be_treated_is_named() {
    let constants = [constant("scale", &[8], Some((0, 3, 60.0))), constant("w", &[8, 5], None)];
    let body = "n = LayerNormalization (x, scale)\na = MatMul (n, w)\nb = MatMul (n, w)";
    let made = run(&model("float[N, 8] x", "float[N, 5] a, float[N, 5] b", &constants, body), SMOOTH);
    assert_eq!(made.count("activations smoothed"), 1);
    assert_eq!(made.model.graph(made.model.main()).initializers().len(), 2, "{}", text::print(&made.model));
    let body = "a = MatMul (x, x)\nb = MatMul (x, w)";
    let source =
        model("float[5, 5] x", "float[5, 5] a, float[5, 5] b", &[constant("w", &[5, 5], None)], body);
    let made = run(&source, FOLD_ONLY);
    assert_eq!(made.count("activations smoothed"), 0);
    assert!(made.reasons().contains("both operands are activations"), "{}", made.reasons());
}

const ALWAYS: &str = "pass = \"equalize-layers\"\nmode = \"always\"";

#[test]
fn layers_in_a_row_are_balanced() {
    let conv = |name: &str, shape: &[usize], outlier| constant(name, shape, outlier);
    let chains: &[(&str, u64, Vec<String>, &str)] = &[
        (
            "two convolutions",
            2,
            vec![
                conv("a", &[4, 3, 3, 3], Some((0, 1, 40.0))),
                constant("b", &[4], None),
                conv("c", &[5, 4, 1, 1], None),
            ],
            "p = Conv <pads = [1, 1, 1, 1]> (x, a, b)\nq = Relu (p)\ny = Conv (q, c)",
        ),
        (
            "a depthwise one between",
            3,
            vec![
                conv("a", &[4, 3, 1, 1], Some((0, 1, 40.0))),
                conv("c", &[4, 1, 3, 3], Some((0, 2, 9.0))),
                conv("d", &[5, 4, 1, 1], None),
            ],
            "p = Conv (x, a)\nq = Relu (p)\nr = Conv <group = 4, pads = [1, 1, 1, 1]> (q, c)\ns = Relu (r)\ny = Conv (s, d)",
        ),
        (
            "groups",
            2,
            vec![conv("a", &[4, 3, 1, 1], Some((0, 1, 40.0))), conv("c", &[6, 2, 1, 1], None)],
            "p = Conv (x, a)\nq = Identity (p)\ny = Conv <group = 2> (q, c)",
        ),
        (
            "transposed ones",
            3,
            vec![
                conv("a", &[4, 3, 1, 1], Some((0, 1, 40.0))),
                conv("c", &[4, 3, 2, 2], None),
                constant("s", &[4, 1, 1], None),
                conv("d", &[6, 2, 1, 1], None),
            ],
            "p = Conv (x, a)\nq = PRelu (p, s)\nr = ConvTranspose <group = 2> (q, c)\nt = LeakyRelu (r)\ny = ConvTranspose <group = 2> (t, d)",
        ),
    ];
    for (name, layers, constants, body) in chains {
        let made = run(&model("float[2, 3, 5, 5] x", "float[2, C, H, W] y", constants, body), ALWAYS);
        assert_eq!(made.count("layers equalized"), *layers, "{name}: {}", made.reasons());
    }
    for (transposed, shape) in [(0, [8, 5]), (1, [5, 8])] {
        let constants = [
            constant("a", &[6, 8], Some((1, 2, 50.0))),
            constant("b", &[8], None),
            constant("c", &shape, None),
        ];
        let body = format!("p = Gemm (x, a, b)\nq = Relu (p)\ny = Gemm <transB = {transposed}> (q, c)");
        let source = model("float[N, 6] x", "float[N, 5] y", &constants, &body);
        let made = run(&source, "pass = \"equalize-layers\"");
        assert_eq!(made.count("layers equalized"), 2, "{}", made.reasons());
        // A second time there is nothing left to do.
        let again = run(&text::print_with(&made.model, &text::PrintOptions::full()), ALWAYS);
        assert_eq!(again.count("layers equalized"), 0);
        assert!(again.reasons().contains("balanced already"), "{}", again.reasons());
    }
}

#[test]
fn layers_that_cannot_be_balanced_are_left_with_the_reason() {
    let constants = [
        constant("a", &[4, 3, 1, 1], Some((0, 1, 40.0))),
        constant("c", &[5, 4, 1, 1], None),
        "float low = {0}".to_owned(),
        "float high = {6}".to_owned(),
    ];
    for (body, reason) in [
        ("p = Conv (x, a)\nq = Clip (p, low, high)\ny = Conv (q, c)\nz = Neg (y)", "Clip"),
        ("p = Conv (x, a)\ny = Conv (p, c)\nz = Neg (p)", "`p` is read 2 times"),
        ("z = Conv (x, a)\ny = Conv (z, c)", "`z` is an output of the model"),
    ] {
        let outputs = "float[2, C, H, W] y, float[2, D, H, W] z";
        let made = run(&model("float[2, 3, 5, 5] x", outputs, &constants, body), ALWAYS);
        assert_eq!(made.count("layers equalized"), 0);
        assert!(made.reasons().contains(reason), "{}", made.reasons());
    }
}

#[test]
fn high_biases_are_absorbed_where_nothing_is_cut() {
    let constants = [
        constant("a", &[6, 8], Some((1, 2, 0.02))),
        "float[8] b = {0, 0, 9, 0, 0, 0, 0, 0}".to_owned(),
        constant("c", &[8, 5], None),
    ];
    let body = "p = Gemm (x, a, b)\nq = Relu (p)\ny = Gemm (q, c)";
    let source = model("float[N, 6] x", "float[N, 5] y", &constants, body);
    let made = run(&source, "pass = \"equalize-layers\"\nmode = \"always\"\nabsorb-bias = true");
    assert_eq!(made.count("biases absorbed"), 1, "{}", text::print(&made.model));
}
