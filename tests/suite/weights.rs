//! Weight-only quantization: every form means the same, loses what it may, and nothing is stored twice.

use optix_ir::{DType, Model, ModelBuilder, Tensor};

use crate::lab::{Draw, apply, count, engines, outputs, relative, sqnr};
use crate::program::Place;

/// A product of depth 50 (no multiple of a block), a Gemm with a bias, and a product by a turned matrix.
fn three_products() -> Model {
    let mut draw = Draw(7);
    ModelBuilder::new(15)
        .input("x", "float[N, 50]")
        .constant("w", draw.floats(&[50, 24]))
        .constant("v", draw.floats(&[40, 24]))
        .constant("b", draw.floats(&[40]))
        .constant("u", draw.floats(&[8, 40]))
        .node("MatMul", ["x", "w"], ["a"])
        .named("first")
        .node("Gemm", ["a", "v", "b"], ["c"])
        .attr("transB", 1i64)
        .named("second")
        .node("Transpose", ["u"], ["t"])
        .node("MatMul", ["c", "t"], ["y"])
        .named("third")
        .output("y", "float[N, 8]")
        .build()
}

fn step(options: &str) -> String {
    format!(
        "[[step]]\npass = \"convert-opset\"\nversion = 25\n[[step]]\npass = \"quantize-weights\"\n{options}"
    )
}

#[test]
fn forms_agree_with_each_other_on_every_engine() {
    let model = three_products();
    let x = Draw(1).floats(&[6, 50]);
    for engine in engines() {
        let float = outputs(engine.as_ref(), &model, std::slice::from_ref(&x));
        for (bits, least) in [(8, 35.0), (4, 11.0), (2, 1.0)] {
            for block in [16, 32, 64] {
                let mut forms = Vec::new();
                // Activations are not rounded: what is compared are the weights.
                for format in ["qdq", "matmul-n-bits"] {
                    let options = format!(
                        "format = \"{format}\"\naccuracy-level = 1\nbits = {bits}\nblock-size = {block}\n"
                    );
                    let (quantized, changes) = apply(&step(&options), &model).expect("it applies");
                    assert_eq!(changes[1].counters["nodes quantized"], 3, "{options}");
                    assert_eq!(count(&quantized, "MatMulNBits"), if format == "qdq" { 0 } else { 3 });
                    // onnxruntime makes MatMulNBits of QDQ with int8 activations: not the same then.
                    if engine.name() == "cpu" || format != "qdq" {
                        forms.push(outputs(engine.as_ref(), &quantized, std::slice::from_ref(&x)).remove(0));
                    } else {
                        let found = outputs(engine.as_ref(), &quantized, std::slice::from_ref(&x)).remove(0);
                        assert!(sqnr(&float[0], &found) > least - 1.0);
                    }
                }
                for form in &forms {
                    assert!(sqnr(&float[0], form) > least, "{bits} {block}: {}", sqnr(&float[0], form));
                    let apart = relative(&forms[0], form);
                    assert!(apart < 1e-4, "{} {bits} {block}: {apart}", engine.name());
                }
            }
        }
    }
}

#[test]
fn the_search_is_never_worse_than_rounding() {
    let model = three_products();
    for format in ["qdq", "matmul-n-bits"] {
        for symmetric in [true, false] {
            for bits in [8, 4, 2] {
                let noise = |algorithm: &str| {
                    let options = format!(
                        "format = \"{format}\"\nbits = {bits}\nsymmetric = {symmetric}\nalgorithm = \"{algorithm}\"\n"
                    );
                    let (_, changes) = apply(&step(&options), &model).expect("it applies");
                    let rows = changes[1].layers.iter();
                    rows.map(|row| row.weight_sqnr_db.expect("something is lost")).collect::<Vec<f64>>()
                };
                let (nearest, searched, hqq) = (noise("rtn"), noise("mse"), noise("hqq"));
                for ((nearest, searched), hqq) in nearest.iter().zip(searched).zip(hqq) {
                    assert!(searched >= *nearest && hqq >= *nearest, "{format} {symmetric} {bits}");
                }
            }
        }
    }
}

/// A table that is read row by row and, turned, as the weights of a product.
fn tied() -> Model {
    ModelBuilder::new(21)
        .input("ids", "int64[N]")
        .constant("table", Draw(3).floats(&[100, 64]))
        .node("Gather", ["table", "ids"], ["rows"])
        .node("Relu", ["rows"], ["h"])
        .node("Transpose", ["table"], ["turned"])
        .attr("perm", vec![1i64, 0])
        .node("MatMul", ["h", "turned"], ["y"])
        .named("head")
        .output("y", "float[N, 100]")
        .build()
}

#[test]
fn a_tied_table_stays_one_constant() {
    let model = tied();
    let ids = Tensor::from_i64s(&[3, 99, 0]);
    let (quantized, changes) = apply(&step(""), &model).expect("it applies");
    let stored: Vec<DType> = quantized
        .graph(quantized.main())
        .initializers()
        .iter()
        .map(|&value| quantized.constant(value).expect("a constant").dtype())
        .filter(|dtype| *dtype != DType::F32)
        .collect();
    assert_eq!(stored, [DType::U4, DType::U4], "integers and zero points");
    assert!(quantized.tensor_bytes() * 6 < model.tensor_bytes(), "{}", quantized.tensor_bytes());
    assert_eq!(changes[1].counters["nodes quantized"], 1);
    for engine in engines() {
        let float = outputs(engine.as_ref(), &model, std::slice::from_ref(&ids));
        let found = outputs(engine.as_ref(), &quantized, std::slice::from_ref(&ids));
        assert!(sqnr(&float[0], &found[0]) > 14.0, "{}", sqnr(&float[0], &found[0]));
    }
    // Packed, it could not be read row by row.
    let (left, changes) = apply(&step("format = \"matmul-n-bits\"\n"), &model).expect("it applies");
    assert_eq!((count(&left, "MatMulNBits"), left.tensor_bytes()), (0, model.tensor_bytes()));
    let reason = &changes[1].skips[0].reason;
    assert!(reason.contains("table") && reason.contains("qdq"), "{reason}");
}

#[test]
fn tables_keep_small_rows_precise() {
    let mut numbers = Draw(8).floats(&[100, 64]).to_slice::<f32>().expect("floats").to_vec();
    // One row a thousand times larger than the others.
    numbers[64..128].iter_mut().for_each(|number| *number *= 1000.0);
    let model = ModelBuilder::new(15)
        .input("ids", "int64[2, N]")
        .constant("table", Tensor::from_vec(vec![100, 64], numbers))
        .node("Gather", ["table", "ids"], ["y"])
        .output("y", "float[2, N, 64]")
        .build();
    let options = "[[step]]\npass = \"quantize-weights\"\nformat = \"matmul-n-bits\"\n";
    let (quantized, changes) = apply(options, &model).expect("it applies");
    assert_eq!(changes[0].counters["tables quantized"], 1);
    assert_eq!(changes[0].layers[0].bytes_after, 100 * 64 + 100 * 4);
    let ids = [Tensor::from_vec(vec![2, 3], vec![0i64, 5, -1, 99, 7, 2])];
    for engine in engines() {
        let float = outputs(engine.as_ref(), &model, &ids);
        let found = outputs(engine.as_ref(), &quantized, &ids);
        assert!(sqnr(&float[0], &found[0]) > 38.0, "{}", sqnr(&float[0], &found[0]));
    }
}

#[test]
fn weights_of_two_products_stay_one_constant() {
    let model = ModelBuilder::new(21)
        .input("x", "float[N, 32]")
        .constant("w", Draw(4).floats(&[32, 32]))
        .node("MatMul", ["x", "w"], ["a"])
        .node("MatMul", ["a", "w"], ["y"])
        .output("y", "float[N, 32]")
        .build();
    for format in ["qdq", "matmul-n-bits"] {
        let (quantized, changes) =
            apply(&step(&format!("format = \"{format}\"\n")), &model).expect("it applies");
        assert!(quantized.tensor_bytes() * 6 < model.tensor_bytes(), "{format}");
        let after: Vec<u64> = changes[1].layers.iter().map(|layer| layer.bytes_after).collect();
        assert_eq!((after.len(), after[1]), (2, 0), "bytes are counted once");
    }
    // Another reader would keep the float weights.
    let mut model = model;
    let w = model.find_value(model.main(), "w").expect("it is there");
    let y = model.find_value(model.main(), "y").expect("it is there");
    let add = optix_ir::Node::new("Add", [y, w]);
    model.add_node(model.main(), optix_ir::Position::End, add, "z");
    let (left, changes) = apply(&step(""), &model).expect("it applies");
    assert_eq!(count(&left, "DequantizeLinear"), 0);
    assert!(
        changes[1].skips.iter().all(|skip| skip.reason.contains("also read by")),
        "{:?}",
        changes[1].skips
    );
}

#[test]
fn quantized_models_are_refused_or_extended() {
    let (quantized, _) = apply(&step("exclude = [\"third\"]\n"), &three_products()).expect("it applies");
    let error = apply(&step(""), &quantized).expect_err("it is quantized");
    assert!(error.contains("quantized already") && error.contains("extend"), "{error}");
    let (extended, changes) = apply(&step("extend = true\n"), &quantized).expect("it is extended");
    assert_eq!(count(&extended, "DequantizeLinear"), 3);
    assert_eq!(changes[1].counters["nodes quantized"], 1);
    let reasons: Vec<&str> = changes[1].skips.iter().map(|skip| skip.reason.as_str()).collect();
    assert_eq!(reasons, ["its weights are quantized already"; 2]);
    // Static quantization refuses both forms.
    let packed = apply(&step("format = \"matmul-n-bits\"\n"), &three_products()).expect("it applies").0;
    for model in [quantized, packed] {
        let error = apply("[[step]]\npass = \"quantize-dynamic\"\n", &model).expect_err("it is quantized");
        assert!(error.contains("quantized already"), "{error}");
    }
}

#[test]
fn options_that_make_no_sense_are_said() {
    for (options, expected) in [
        ("bits = 3", "`bits` is 3"),
        ("block-size = 24", "power of two"),
        ("block-size = 8", "power of two"),
        ("block-size = 0\nformat = \"matmul-n-bits\"", "`block-size` 0"),
        ("bits = 8\nformat = \"matmul-n-bits\"\naccuracy-level = 0", "75 times slower"),
        ("accuracy-level = 5", "outside 0 to 4"),
        ("zero-points = \"float\"", "matmul-n-bits"),
        ("zero-points = \"float\"\nformat = \"matmul-n-bits\"\nbits = 8", "refuses 8"),
        ("zero-points = \"float\"\nformat = \"matmul-n-bits\"\nsymmetric = true", "symmetric"),
        ("convolutions = true\nformat = \"matmul-n-bits\"", "convolutions"),
        ("exclude = [\"nothing*\"]", "no node is called"),
    ] {
        let error = apply(&step(options), &three_products()).expect_err(options);
        assert!(error.contains(expected), "{options}: {error}");
    }
}

#[test]
fn the_command_makes_the_recipes() {
    let place = Place::new();
    let model = "fixtures/models/fmnist_mobilenet.onnx";
    let mut sizes = Vec::new();
    for (flags, recipe) in [
        ("--method weight-only", "weight-only-int4"),
        ("--bits 8", "weight-only-int8"),
        ("--bits 2 --block-size 16", "weight-only-int4"),
    ] {
        let report = place.json(&format!(
            "quantize {model} -o out.onnx {flags} --set quantize-weights.convolutions=true --json"
        ));
        let steps = report["steps"].as_array().expect("steps");
        let step = steps.iter().find(|step| step["pass"] == "quantize-weights").expect("the step");
        assert!(step["changes"]["counters"]["nodes quantized"].as_u64() > Some(5), "{recipe}: {step}");
        sizes.push(place.read("out.onnx").len());
        let facts = place.json("inspect out.onnx --json");
        assert_eq!(facts["warnings"], serde_json::json!([]), "{recipe}");
    }
    assert!(sizes[2] < sizes[0] && sizes[0] < sizes[1], "{sizes:?}");
}
