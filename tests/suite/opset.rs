//! Raising the operator set: every change there is, with the same results before and after.

use optix_ir::text::parse;
use optix_ir::{Tensor, Type};

use crate::lab::{Draw, apply, engines, outputs, try_outputs};

/// Opset, and a graph that has something that changed since.
const MODELS: &[(i64, &str)] = &[
    (
        11,
        "g (float[2, 3, 4] x) => (float[2, 3, 4] y, float[2, 3, 4] z) { y = Softmax (x) z = LogSoftmax <axis = 2> (x) }",
    ),
    (
        11,
        "g (float[2, 1, 4] x) => (float[2, 4] y) { a = Dropout <ratio = 0.3> (x) y = Squeeze <axes = [1]> (a) }",
    ),
    (12, "g (float[2, 6] x) => (float[2, 2] y) { a, b = Split <axis = 1, split = [2, 4]> (x) y = Relu (a) }"),
    (12, "g (float[2, 6] x) => (float[2, 3] y, float[2, 3] z) { y, z = Split <axis = 1> (x) }"),
    (
        13,
        "g (float[2, 3] x) => (float[2] y, float z) { y = ReduceMean <axes = [1], keepdims = 0> (x) z = ReduceL2 <keepdims = 0> (x) }",
    ),
    (
        13,
        "g (float[2, 3] x) => (float[2, 1] y, float[1, 3] z) { y = ReduceMax <axes = [-1]> (x) z = ReduceLogSumExp <axes = [0]> (x) }",
    ),
    (14, "g (float[2, 3] x) => (float[2, 3] y) { y = Add (x, x) }"),
    (
        13,
        "g (float[1, 2, 5, 5] x) => (float[1, 2, 3, 3] y) { y = MaxPool <kernel_shape = [3, 3], ceil_mode = 1> (x) }",
    ),
    (
        13,
        "g (float[1, 2, 5, 5] x) => (float[1, 2, 3, 3] y) { y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1> (x) }",
    ),
    (
        13,
        "g (float[1, 2, 4, 4] x) => (float[3, 2, 2, 2] y) <float[3, 4] rois = {0, 0, 3, 3, 1, 1, 2, 2, 0, 1, 2, 3}, int64[3] batch = {0, 0, 0}> { y = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2> (x, rois, batch) }",
    ),
    (
        16,
        "g (float[1, 1, 4, 4] x) => (float[1, 1, 1, 3] y) <float[1, 1, 3, 2] at = {0, 0, 0.5, -0.5, 0.9, 0.1}> { y = GridSample <mode = \"bicubic\"> (x, at) }",
    ),
    (
        16,
        "g (float[1, 1, 4, 4] x) => (float[1, 1, 1, 3] y) <float[1, 1, 3, 2] at = {0, 0, 0.5, -0.5, 0.9, 0.1}> { y = GridSample (x, at) }",
    ),
    (17, "g (float[2, 8, 1] x) => (float[2, 8, 2] y) { y = DFT (x) }"),
    (17, "g (float[2, 4, 6, 1] x) => (float[2, 4, 6, 2] y) { y = DFT <axis = 2> (x) }"),
];

#[test]
fn results_stay_the_same() {
    let engines = engines();
    for (opset, graph) in MODELS {
        let model = parse(&format!("<ir_version: 6, opset_import: [\"\" : {opset}]>\n{graph}"));
        let model = model.unwrap_or_else(|error| panic!("{graph}: {error}"));
        let mut draw = Draw(*opset as u64);
        let inputs: Vec<Tensor> = model
            .graph(model.main())
            .inputs()
            .iter()
            .map(|info| draw.floats(&info.ty.as_ref().and_then(Type::fixed_shape).expect("a shape")))
            .collect();
        for target in 13..=25 {
            let steps = format!("[[step]]\npass = \"convert-opset\"\nversion = {target}\n");
            let (raised, _) = apply(&steps, &model).unwrap_or_else(|error| panic!("{graph}: {error}"));
            let version = raised.opset_version(raised.main(), "").expect("it is there");
            assert_eq!(version, target.max(*opset));
            for engine in &engines {
                let expected = outputs(engine.as_ref(), &model, &inputs);
                let found = match try_outputs(engine.as_ref(), &raised, &inputs) {
                    Ok(found) => found,
                    // onnxruntime lacks kernels of some newer versions.
                    Err(error) if engine.name() != "cpu" && error.contains("no kernel") => continue,
                    Err(error) => panic!("{} to {target}: {error}\n{graph}", engine.name()),
                };
                for (expected, found) in expected.iter().zip(&found) {
                    let apart = crate::lab::relative(expected, found);
                    // onnxruntime has kernels of its own for some versions.
                    let within = if engine.name() == "cpu" { 0.0 } else { 2e-6 };
                    assert!(apart <= within, "{} to {target}: {apart}\n{graph}", engine.name());
                }
            }
        }
    }
}

#[test]
fn the_file_format_is_as_old_as_it_may_be() {
    let model =
        parse("<ir_version: 6, opset_import: [\"\" : 12]>\ng (float[2] x) => (float[2] y) { y = Relu (x) }")
            .expect("a model");
    for (target, expected) in
        [(13, 7), (15, 8), (18, 8), (19, 9), (20, 9), (21, 10), (22, 10), (23, 11), (25, 13)]
    {
        let steps = format!("[[step]]\npass = \"convert-opset\"\nversion = {target}\n");
        let (raised, _) = apply(&steps, &model).expect("it is raised");
        assert_eq!(raised.ir_version, expected, "{target}");
    }
}

#[test]
fn bodies_of_functions_are_raised_too() {
    let model = parse(
        "<ir_version: 8, opset_import: [\"\" : 15, \"own\" : 1]>\n\
         g (float[2, 3] x) => (float[2, 1] y) { y = own.f (x) }\n\
         <opset_import: [\"\" : 15], domain: \"own\">\n\
         f (a) => (b) { b = ReduceMean <axes = [1]> (a) }",
    )
    .expect("a model");
    let (raised, _) =
        apply("[[step]]\npass = \"convert-opset\"\nversion = 18\n", &model).expect("it is raised");
    let x = [Draw(1).floats(&[2, 3])];
    for engine in engines() {
        let (expected, found) = (outputs(engine.as_ref(), &model, &x), outputs(engine.as_ref(), &raised, &x));
        assert!(crate::lab::relative(&expected[0], &found[0]) < 1e-6);
    }
    assert_eq!(raised.functions[0].opset_imports[0].version, 18);
}

#[test]
fn what_cannot_be_raised_is_named() {
    let error = |opset: i64, target: i64, graph: &str| {
        let model =
            parse(&format!("<ir_version: 8, opset_import: [\"\" : {opset}]>\n{graph}")).expect("a model");
        let steps = format!("[[step]]\npass = \"convert-opset\"\nversion = {target}\n");
        apply(&steps, &model).expect_err(graph)
    };
    let pools = "g (float[1, 1, 6, 6] x) => (float[1, 1, a, b] y, float[1, 1, a, b] z) {\n\
                 [one] y = AveragePool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x)\n\
                 [two] z = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (x) }";
    let text = error(13, 22, pools);
    assert!(text.contains("one") && text.contains("two") && text.contains("ceil_mode"), "{text}");
    // To 18 both stay what they were.
    let model = parse(&format!("<ir_version: 8, opset_import: [\"\" : 13]>\n{pools}")).expect("a model");
    apply("[[step]]\npass = \"convert-opset\"\nversion = 18\n", &model).expect("nothing changed");
    let text = error(
        18,
        21,
        "g (float[1, 4, 2] x, float[2] s) => (float[1, 4, 2] y) { [gn] y = GroupNormalization <num_groups = 2> (x, s, s) }",
    );
    assert!(text.contains("gn") && text.contains("one number a group"), "{text}");
    let text = error(9, 13, "g (float[2] x) => (float[2] y) { y = Relu (x) }");
    assert!(text.contains("operator set 9 cannot be raised to 13"), "{text}");
    let text = error(13, 26, "g (float[2] x) => (float[2] y) { y = Relu (x) }");
    assert!(text.contains("outside 13 to 25"), "{text}");
}
