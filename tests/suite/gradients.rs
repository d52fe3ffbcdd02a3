//! Gradients of every operator that has one, against differences of the model's own results in 64 bits.

use optix_ir::infer::infer;
use optix_ir::{Model, Node, Position, Tensor, Type, ValueId, ValueInfo, text};
use optix_ops::{Datum, interpret};
use optix_pipeline::check::OpsEvaluator;
use optix_runtime::{Cpu, Engine, LoadOptions};
use optix_training::gradient::{self, GradientError, differentiate};

/// Numbers between -1 and 1 that are never near 0 or each other's.
fn numbers(count: usize, seed: usize) -> Vec<f64> {
    let of = |i: usize| {
        let x = ((i * 37 + seed * 101 + 11) % 997) as f64 / 997.0 * 1.8 - 0.9;
        if x < 0.0 { x - 0.1 } else { x + 0.1 }
    };
    (0..count).map(of).collect()
}

/// The model with the loss `sum of y * r` over its first output, `r` fixed numbers, as its only output.
fn with_loss(text: &str, is_double: bool) -> (Model, ValueId) {
    let text = if is_double { text.replace("float[", "double[") } else { text.to_owned() };
    let mut model = text::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    infer(&mut model, &OpsEvaluator);
    let main = model.main();
    let y = model.graph(main).outputs()[0].value;
    let shape =
        model.value(y).ty.as_ref().and_then(Type::fixed_shape).unwrap_or_else(|| panic!("{text}: no shape"));
    let weights = numbers(shape.iter().product(), 7);
    let weights = match is_double {
        true => Tensor::from_vec(shape.clone(), weights),
        false => Tensor::from_vec(shape.clone(), weights.iter().map(|&x| x as f32).collect()),
    };
    let weights = model.add_constant(main, "r", weights);
    let axes: Vec<i64> = (0..shape.len() as i64).collect();
    let axes = model.add_constant(main, "axes", Tensor::from_i64s(&axes));
    let (_, product) = model.add_node(main, Position::End, Node::new("Mul", [y, weights]), "product");
    let sum = Node::new("ReduceSum", [product, axes]).with("keepdims", 0);
    let (_, loss) = model.add_node(main, Position::End, sum, "loss");
    model.add_output(main, ValueInfo::new(loss, None));
    infer(&mut model, &OpsEvaluator);
    (model, loss)
}

/// Inputs of a graph in order: value, shape, whether they are floats.
fn inputs(model: &Model) -> Vec<(ValueId, Vec<usize>, bool)> {
    let of = |input: &ValueInfo| {
        let ty = input.ty.as_ref().expect("inputs are declared");
        let dtype = ty.dtype().expect("a type");
        (input.value, ty.fixed_shape().expect("a fixed shape"), dtype.is_float())
    };
    model.graph(model.main()).inputs().iter().map(of).collect()
}

/// Checks the gradients by all floats that go in.
fn check(text: &str, scale: f64) {
    let (exact, _) = with_loss(text, true);
    let given: Vec<(Vec<usize>, Vec<f64>, bool)> = inputs(&exact)
        .into_iter()
        .enumerate()
        .map(|(place, (_, shape, is_float))| {
            let count = shape.iter().product();
            let values = match is_float {
                true => numbers(count, place).into_iter().map(|x| x * scale).collect(),
                false => (0..count).map(|i| ((i * 5 + place) % 3) as f64).collect(),
            };
            (shape, values, is_float)
        })
        .collect();
    let loss_of = |given: &[(Vec<usize>, Vec<f64>, bool)]| -> f64 {
        let feed = |(shape, values, is_float): &(Vec<usize>, Vec<f64>, bool)| {
            Some(Datum::Tensor(match is_float {
                true => Tensor::from_vec(shape.clone(), values.clone()),
                false => Tensor::from_vec(shape.clone(), values.iter().map(|&x| x as i64).collect()),
            }))
        };
        let found = interpret(&exact, given.iter().map(feed).collect())
            .unwrap_or_else(|error| panic!("{text}: {error}"));
        match found.last().expect("the loss") {
            Datum::Tensor(tensor) => tensor.single().expect("one number"),
            other => panic!("{text}: {other:?}"),
        }
    };
    let (mut trained, loss) = with_loss(text, false);
    let by: Vec<ValueId> =
        inputs(&trained).into_iter().filter(|(.., is_float)| *is_float).map(|(value, ..)| value).collect();
    let found =
        differentiate(&mut trained, loss, &by, false).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(optix_ir::verify::verify(&trained), [], "{text}");
    let wanted: Vec<ValueId> =
        found.of.iter().map(|found| found.unwrap_or_else(|| panic!("{text}: no gradient"))).collect();
    let feeds: Vec<(ValueId, Tensor)> = inputs(&trained)
        .into_iter()
        .zip(&given)
        .map(|((value, ..), (shape, values, is_float))| {
            let tensor = match is_float {
                true => Tensor::from_vec(shape.clone(), values.iter().map(|&x| x as f32).collect()),
                false => Tensor::from_vec(shape.clone(), values.iter().map(|&x| x as i64).collect()),
            };
            (value, tensor)
        })
        .collect();
    let mut session =
        Cpu.load(&trained, &LoadOptions::default()).unwrap_or_else(|error| panic!("{text}: {error}"));
    let gradients = session.run(&feeds, &wanted).unwrap_or_else(|error| panic!("{text}: {error}"));
    let floats = given.iter().enumerate().filter(|(_, (.., is_float))| *is_float).map(|(place, _)| place);
    for (place, gradient) in floats.zip(&gradients) {
        let elements = gradient.to_f64s().expect("floats");
        assert_eq!(gradient.shape(), given[place].0, "{text}: input {place}");
        let by = 1e-5;
        let expected: Vec<f64> = (0..elements.len())
            .map(|element| {
                let mut moved = given.clone();
                let mut at = |x: f64| {
                    moved[place].1[element] = given[place].1[element] + x;
                    loss_of(&moved)
                };
                (at(by) - at(-by)) / (2.0 * by)
            })
            .collect();
        let most = expected.iter().fold(1e-2, |most: f64, x| most.max(x.abs()));
        for (element, (found, expected)) in elements.iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() <= 2e-5 * most,
                "{text}: input {place}, element {element}: {found} instead of {expected}"
            );
        }
    }
}

/// A model of one line of nodes.
fn model(inputs: &str, output: &str, nodes: &str) -> String {
    format!(r#"<ir_version: 10, opset_import: ["" : 20]> net ({inputs}) => ({output}) {{ {nodes} }}"#)
}

#[test]
fn of_functions_of_elements() {
    for op_type in [
        "Neg",
        "Abs",
        "Sqrt",
        "Exp",
        "Log",
        "Reciprocal",
        "Sin",
        "Cos",
        "Erf",
        "Sigmoid",
        "Tanh",
        "Softplus",
        "Softsign",
        "Relu",
        "LeakyRelu",
        "Elu",
        "HardSigmoid",
        "HardSwish",
        "Gelu",
        "Identity",
    ] {
        let is_positive = matches!(op_type, "Sqrt" | "Log");
        let nodes = if is_positive {
            format!("a = Mul (x, x) y = {op_type} (a)")
        } else {
            format!("y = {op_type} (x)")
        };
        for scale in [1.0, 4.0] {
            check(&model("float[3, 5] x", "float[3, 5] y", &nodes), scale);
        }
    }
    check(&model("float[3, 5] x", "float[3, 5] y", r#"y = Gelu <approximate = "tanh"> (x)"#), 2.0);
    let bounds = "<float[1] lo = {-0.5}, float[1] hi = {0.5}>";
    let text =
        model("float[3, 5] x", "float[3, 5] y", "l = Squeeze (lo) h = Squeeze (hi) y = Clip (x, l, h)");
    check(&text.replace("(float[3, 5] y)", &format!("(float[3, 5] y) {bounds}")), 1.0);
    for exponent in ["2", "3", "0.5"] {
        let text = model("float[3, 5] x", "float[3, 5] y", "a = Mul (x, x) y = Pow (a, p)");
        check(
            &text.replace("(float[3, 5] y)", &format!("(float[3, 5] y) <float[1] p = {{{exponent}}}>")),
            1.0,
        );
    }
}

#[test]
fn of_functions_of_two_with_broadcasting() {
    for op_type in ["Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean", "PRelu"] {
        for (a, b) in [("2, 3, 4", "2, 3, 4"), ("2, 3, 4", "3, 1"), ("2, 3, 4", "4"), ("2, 3, 4", "1, 3, 1")]
        {
            check(
                &model(
                    &format!("float[{a}] a, float[{b}] b"),
                    "float[2, 3, 4] y",
                    &format!("y = {op_type} (a, b)"),
                ),
                1.0,
            );
        }
    }
    check(&model("float[4] a, float[2, 3, 1] b", "float[2, 3, 4] y", "y = Div (a, b)"), 1.0);
    let nodes = "c = Greater (a, b) y = Where (c, a, b)";
    check(&model("float[2, 3] a, float[3] b", "float[2, 3] y", nodes), 1.0);
    // What is used several times is summed up.
    check(
        &model("float[2, 3] a", "float[2, 3] y", "b = Mul (a, a) c = Exp (a) d = Add (b, c) y = Mul (d, a)"),
        1.0,
    );
}

#[test]
fn of_reductions() {
    for op_type in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL2"] {
        for (axes, keep, shape) in
            [("{1}", 1, "2, 1, 4"), ("{0, 2}", 0, "3"), ("{-1}", 0, "2, 3"), ("{0, 1, 2}", 1, "1, 1, 1")]
        {
            let count = axes.matches(',').count() + 1;
            let nodes = format!("y = {op_type} <keepdims = {keep}> (x, axes)");
            let text = model("float[2, 3, 4] x", &format!("float[{shape}] y"), &nodes);
            let constant = format!("(float[{shape}] y) <int64[{count}] axes = {axes}>");
            check(&text.replace(&format!("(float[{shape}] y)"), &constant), 1.0);
        }
    }
    for op_type in ["Softmax", "LogSoftmax"] {
        for axis in [-1, 1] {
            let nodes = format!("y = {op_type} <axis = {axis}> (x)");
            check(&model("float[2, 3, 4] x", "float[2, 3, 4] y", &nodes), 2.0);
        }
    }
}

#[test]
fn of_movements() {
    let with = |text: String, constants: &str| {
        let at = text.find(" {").expect("a body");
        format!("{} <{constants}>{}", &text[..at], &text[at..])
    };
    check(
        &with(model("float[2, 3, 4] x", "float[4, 6] y", "y = Reshape (x, s)"), "int64[2] s = {4, -1}"),
        1.0,
    );
    check(&model("float[2, 3, 4] x", "float[2, 12] y", "y = Flatten (x)"), 1.0);
    check(&with(model("float[2, 1, 4] x", "float[2, 4] y", "y = Squeeze (x, a)"), "int64[1] a = {1}"), 1.0);
    check(&with(model("float[2, 4] x", "float[2, 1, 4] y", "y = Unsqueeze (x, a)"), "int64[1] a = {1}"), 1.0);
    check(&model("float[2, 3, 4] x", "float[4, 2, 3] y", "y = Transpose <perm = [2, 0, 1]> (x)"), 1.0);
    check(&model("float[2, 3, 4] x", "float[4, 3, 2] y", "y = Transpose (x)"), 1.0);
    check(&model("float[2, 3] a, float[2, 4] b", "float[2, 7] y", "y = Concat <axis = 1> (a, b)"), 1.0);
    check(
        &with(
            model("float[2, 6] x", "float[2, 2] y", "a, b = Split <axis = 1> (x, s) y = Mul (a, a)"),
            "int64[2] s = {2, 4}",
        ),
        1.0,
    );
    check(
        &with(
            model("float[2, 6] x", "float[2, 3] y", "a, b = Split <axis = 1> (x, s) y = Mul (a, b)"),
            "int64[2] s = {3, 3}",
        ),
        1.0,
    );
    let parts = "int64[2] s = {1, -3}, int64[2] e = {4, 9}, int64[2] a = {0, -1}";
    check(&with(model("float[5, 4] x", "float[3, 3] y", "y = Slice (x, s, e, a)"), parts), 1.0);
    check(&with(model("float[2, 3] x", "float[4, 4] y", "y = Pad (x, p)"), "int64[4] p = {1, 0, 1, 1}"), 1.0);
    check(
        &with(model("float[3, 1] x", "float[2, 3, 4] y", "y = Expand (x, s)"), "int64[3] s = {2, 3, 4}"),
        1.0,
    );
    for (axis, shape) in [(0, "2, 2, 4"), (1, "3, 2, 2")] {
        let nodes = format!("y = Gather <axis = {axis}> (x, i)");
        check(
            &with(
                model("float[3, 4] x", &format!("float[{shape}] y"), &nodes),
                "int64[2, 2] i = {0, 2, -1, 2}",
            ),
            1.0,
        );
    }
    check(&model("float[2, 8, 2, 3] x", "float[2, 2, 4, 6] y", "y = DepthToSpace <blocksize = 2> (x)"), 1.0);
    check(&model("float[2, 2, 4, 6] x", "float[2, 8, 2, 3] y", "y = SpaceToDepth <blocksize = 2> (x)"), 1.0);
}

#[test]
fn of_products() {
    for (a, b, y) in [
        ("2, 3", "3, 4", "2, 4"),
        ("5, 2, 3", "3, 4", "5, 2, 4"),
        ("5, 2, 3", "5, 3, 4", "5, 2, 4"),
        ("2, 3", "5, 3, 4", "5, 2, 4"),
        ("2, 1, 2, 3", "5, 3, 4", "2, 5, 2, 4"),
        ("3", "3, 4", "4"),
        ("5, 2, 3", "3", "5, 2"),
    ] {
        check(
            &model(&format!("float[{a}] a, float[{b}] b"), &format!("float[{y}] y"), "y = MatMul (a, b)"),
            1.0,
        );
    }
    for (of_a, of_b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let (a, b) = (if of_a == 0 { "2, 3" } else { "3, 2" }, if of_b == 0 { "3, 4" } else { "4, 3" });
        let nodes = format!("y = Gemm <transA = {of_a}, transB = {of_b}, alpha = 0.5, beta = 2.0> (a, b, c)");
        check(&model(&format!("float[{a}] a, float[{b}] b, float[4] c"), "float[2, 4] y", &nodes), 1.0);
    }
}

#[test]
fn of_windows() {
    for (x, w, b, y, attributes) in [
        ("2, 3, 6, 7", "4, 3, 3, 3", 4, "2, 4, 6, 7", "pads = [1, 1, 1, 1]"),
        ("2, 3, 6, 7", "4, 3, 3, 2", 4, "2, 4, 3, 3", "strides = [2, 2], pads = [1, 0, 0, 0]"),
        ("2, 4, 5, 5", "6, 2, 3, 3", 6, "2, 6, 5, 5", "group = 2, pads = [1, 1, 1, 1]"),
        ("3, 4, 6, 6", "4, 1, 3, 3", 4, "3, 4, 6, 6", "group = 4, pads = [1, 1, 1, 1]"),
        ("3, 4, 7, 6", "4, 1, 3, 3", 4, "3, 4, 4, 3", "group = 4, strides = [2, 2], pads = [1, 1, 1, 1]"),
        ("2, 3, 5, 4", "5, 3, 1, 1", 5, "2, 5, 3, 2", "strides = [2, 2]"),
        ("2, 2, 9, 8", "3, 2, 3, 3", 3, "2, 3, 5, 8", "dilations = [2, 1], pads = [0, 1, 0, 1]"),
        ("2, 3, 9", "4, 3, 3", 4, "2, 4, 4", "strides = [2]"),
        ("2, 3, 6, 7", "4, 3, 3, 3", 4, "2, 4, 3, 4", r#"strides = [2, 2], auto_pad = "SAME_UPPER""#),
        ("2, 3, 6, 7", "4, 3, 2, 2", 4, "2, 4, 6, 7", r#"auto_pad = "SAME_LOWER""#),
    ] {
        let inputs = format!("float[{x}] x, float[{w}] w, float[{b}] b");
        check(&model(&inputs, &format!("float[{y}] y"), &format!("y = Conv <{attributes}> (x, w, b)")), 1.0);
    }
    for (x, w, b, y, attributes) in [
        ("2, 3, 4, 4", "3, 2, 3, 3", 2, "2, 2, 4, 4", "pads = [1, 1, 1, 1]"),
        (
            "2, 3, 4, 3",
            "3, 2, 3, 3",
            2,
            "2, 2, 8, 6",
            "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
        ),
        ("2, 4, 4, 3", "4, 1, 2, 2", 4, "2, 4, 8, 6", "strides = [2, 2], group = 4"),
        ("2, 4, 4, 3", "4, 1, 3, 3", 2, "2, 2, 6, 5", "group = 2"),
    ] {
        let inputs = format!("float[{x}] x, float[{w}] w, float[{b}] b");
        check(
            &model(&inputs, &format!("float[{y}] y"), &format!("y = ConvTranspose <{attributes}> (x, w, b)")),
            1.0,
        );
    }
    for (op_type, y, attributes) in [
        ("GlobalAveragePool", "2, 3, 1, 1", ""),
        ("GlobalMaxPool", "2, 3, 1, 1", ""),
        ("AveragePool", "2, 3, 3, 3", "<kernel_shape = [2, 2], strides = [2, 2]>"),
        ("AveragePool", "2, 3, 6, 7", "<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>"),
        ("AveragePool", "2, 3, 6, 7", "<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>"),
        ("MaxPool", "2, 3, 3, 3", "<kernel_shape = [2, 2], strides = [2, 2]>"),
        ("MaxPool", "2, 3, 3, 4", "<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>"),
    ] {
        check(
            &model(
                "float[2, 3, 6, 7] x",
                &format!("float[{y}] y"),
                &format!("y = {op_type} {attributes} (x)"),
            ),
            1.0,
        );
    }
}

#[test]
fn of_normalizations() {
    let affine = "float[2, 3, 4, 2] x, float[3] s, float[3] b";
    check(&model(affine, "float[2, 3, 4, 2] y", "y = InstanceNormalization (x, s, b)"), 1.0);
    let text = model(affine, "float[2, 3, 4, 2] y", "y = BatchNormalization (x, s, b, m, v)");
    let constants = "(float[2, 3, 4, 2] y) <float[3] m = {0.1, -0.2, 0.3}, float[3] v = {0.5, 1.0, 2.0}>";
    check(&text.replace("(float[2, 3, 4, 2] y)", constants), 1.0);
    let text = model(
        affine,
        "float[2, 3, 4, 2] y",
        "y, n, k = BatchNormalization <training_mode = 1> (x, s, b, m, v)",
    );
    check(&text.replace("(float[2, 3, 4, 2] y)", constants), 1.0);
    for (axis, shape) in [(-1, "4"), (1, "3, 4")] {
        let inputs = format!("float[2, 3, 4] x, float[{shape}] s, float[{shape}] b");
        check(
            &model(&inputs, "float[2, 3, 4] y", &format!("y = LayerNormalization <axis = {axis}> (x, s, b)")),
            1.0,
        );
    }
}

#[test]
fn rounding_is_passed_as_if_it_were_not_there() {
    // 0.4 and 2.2 are within the range of scale 0.5 (to 63.5), 100 and -70 are not.
    let text = r#"<ir_version: 10, opset_import: ["" : 20]> net (float[4] x) => (float[4] y)
        <float s = {0.5}, int8 z = {0}> { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"#;
    let (mut model, loss) = with_loss(text, false);
    let (x, s) =
        (model.find_value(model.main(), "x").expect("x"), model.find_value(model.main(), "s").expect("s"));
    let found = differentiate(&mut model, loss, &[x, s], false).expect("it has gradients");
    let wanted = [found.of[0].expect("of x"), found.of[1].expect("of s")];
    let mut session = Cpu.load(&model, &LoadOptions::default()).expect("it loads");
    let given = Tensor::from_vec(vec![4], vec![0.4f32, 2.2, 100.0, -70.0]);
    let got = session.run(&[(x, given)], &wanted).expect("it runs");
    let r = numbers(4, 7);
    let of_x = got[0].to_f64s().expect("floats");
    let near = |a: f64, b: f64| (a - b).abs() < 1e-5;
    assert!(near(of_x[0], r[0]) && near(of_x[1], r[1]) && of_x[2] == 0.0 && of_x[3] == 0.0, "{of_x:?}");
    // LSQ: round(x / s) - x / s within, the ends beyond.
    let of_s = got[1].single().expect("one number");
    let wanted = r[0] * (1.0 - 0.8) + r[1] * (4.0 - 4.4) + r[2] * 127.0 - r[3] * 128.0;
    assert!((of_s - wanted).abs() < 1e-3, "{of_s} {wanted}");
}

#[test]
fn what_has_none_is_named() {
    let text = r#"<ir_version: 10, opset_import: ["" : 20]> net (float[2, 3] x) => (float[2, 3] y)
        { a = Mul (x, x) b = CumSum (a, i) y = Add (b, x) }"#;
    let text = text.replace("=> (float[2, 3] y)", "=> (float[2, 3] y) <int64 i = {0}>");
    let (model, loss) = with_loss(&text, false);
    let x = model.find_value(model.main(), "x").expect("x");
    let error = differentiate(&mut model.clone(), loss, &[x], false).expect_err("CumSum has no gradient");
    assert!(matches!(&error, GradientError::Unsupported { nodes } if nodes.len() == 1), "{error}");
    assert!(error.to_string().contains("CumSum"), "{error}");
    let frozen = differentiate(&mut model.clone(), loss, &[x], true).expect("it is passed over");
    assert!(frozen.of[0].is_some() && frozen.frozen.len() == 1);
    assert!(
        gradient::has_gradient("Conv")
            && gradient::has_gradient("Round")
            && !gradient::has_gradient("CumSum")
    );
}
