//! Engines and sessions, as callers see them.

use optix_ir::{Model, ModelBuilder, Tensor, ValueId};
use optix_runtime::{Burn, Cpu, Engine, LoadOptions, RuntimeError, engines};

fn value(model: &Model, name: &str) -> ValueId {
    model.find_value(model.main(), name).unwrap_or_else(|| panic!("no value {name}"))
}

fn ramp(shape: &[usize], step: f32) -> Tensor {
    let count: usize = shape.iter().product();
    Tensor::from_vec(shape, (0..count).map(|i| ((i * 7 % 23) as f32 - 11.0) * step).collect::<Vec<f32>>())
}

/// A small network with a residual connection, a depthwise layer, pooling and a classifier.
fn network() -> Model {
    ModelBuilder::new(15)
        .input("x", "float[batch, 1, 12, 12]")
        .constant("w1", ramp(&[8, 1, 3, 3], 0.02))
        .constant("b1", ramp(&[8], 0.1))
        .constant("w2", ramp(&[8, 1, 3, 3], 0.05))
        .constant("w3", ramp(&[8, 8, 1, 1], 0.03))
        .constant("w4", ramp(&[8, 10], 0.1))
        .constant("b4", ramp(&[10], 0.1))
        .node("Conv", ["x", "w1", "b1"], ["a"])
        .attr("pads", vec![1i64, 1, 1, 1])
        .node("Relu", ["a"], ["b"])
        .node("Conv", ["b", "w2"], ["c"])
        .attr("pads", vec![1i64, 1, 1, 1])
        .attr("group", 8)
        .node("Conv", ["c", "w3"], ["d"])
        .node("Add", ["d", "b"], ["e"])
        .node("MaxPool", ["e"], ["f"])
        .attr("kernel_shape", vec![2i64, 2])
        .attr("strides", vec![2i64, 2])
        .node("GlobalAveragePool", ["f"], ["g"])
        .node("Flatten", ["g"], ["h"])
        .node("Gemm", ["h", "w4", "b4"], ["y"])
        .output("y", "float[batch, 10]")
        .build()
}

#[test]
fn engines_agree_and_threads_do_not_matter() {
    let model = network();
    let wanted: Vec<ValueId> = ["a", "c", "e", "g", "y"].iter().map(|name| value(&model, name)).collect();
    let feeds = [(value(&model, "x"), ramp(&[64, 1, 12, 12], 0.1))];
    let mut results = Vec::new();
    for threads in [1, 2, 5] {
        let mut session = Cpu.load(&model, &LoadOptions { threads, ..Default::default() }).unwrap();
        results.push(session.run(&feeds, &wanted).unwrap());
    }
    assert!(results.iter().all(|result| *result == results[0]), "bytes are the same for any thread count");
    for engine in engines() {
        let mut session = engine.load(&model, &LoadOptions::default()).unwrap();
        let found = session.run(&feeds, &wanted).unwrap();
        for (found, want) in found.iter().zip(&results[0]) {
            assert_eq!(found.shape(), want.shape());
            let (found, want) = (found.to_slice::<f32>().unwrap(), want.to_slice::<f32>().unwrap());
            let largest = want.iter().fold(0f32, |a, b| a.max(b.abs()));
            let worst = found.iter().zip(want.iter()).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
            assert!(worst <= 1e-5 * largest, "{}: {worst} of {largest}", engine.name());
        }
    }
}

#[test]
fn values_are_shown_once_in_execution_order() {
    let model = network();
    let names = ["y", "b", "x", "w3", "f"];
    let wanted: Vec<ValueId> = names.iter().map(|name| value(&model, name)).collect();
    let mut session = Cpu.load(&model, &LoadOptions::default()).unwrap();
    let feeds = [(value(&model, "x"), ramp(&[2, 1, 12, 12], 0.1))];
    let mut seen = Vec::new();
    session
        .run_with(&feeds, &wanted, &mut |id, tensor| {
            seen.push((model.value(id).name().to_owned(), tensor.shape().to_vec()));
            Ok(())
        })
        .unwrap();
    let order: Vec<&str> = seen.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(order, ["x", "w3", "b", "f", "y"], "inputs and constants first");
    assert_eq!(seen[3].1, [2, 8, 6, 6]);
    let stop = session.run_with(&feeds, &wanted, &mut |_, _| Err(RuntimeError::Stopped("enough".into())));
    assert!(matches!(stop, Err(RuntimeError::Stopped(why)) if why == "enough"));
}

#[test]
fn all_unsupported_nodes_are_reported_at_once() {
    let model = ModelBuilder::new(18)
        .input("x", "float[4]")
        .node("Frobnicate", ["x"], ["a"])
        .named("first")
        .node("Relu", ["a"], ["b"])
        .node("com.acme::Twist", ["b"], ["c"])
        .output("c", "float[4]")
        .import("com.acme", 1)
        .build();
    for engine in [&Cpu as &dyn Engine, &Burn::flex()] {
        let Err(RuntimeError::Unsupported { nodes, .. }) = engine.load(&model, &LoadOptions::default())
        else {
            panic!("both operators are unknown");
        };
        let text: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        assert_eq!(text.len(), 2, "{text:?}");
        assert!(text[0].contains("`first`") && text[0].contains("Frobnicate"), "{}", text[0]);
        assert!(text[1].contains("com.acme.Twist"), "{}", text[1]);
    }
}

#[test]
fn feeds_are_checked() {
    let model = network();
    let x = value(&model, "x");
    let y = value(&model, "y");
    let mut session = Cpu.load(&model, &LoadOptions::default()).unwrap();
    let cases = [
        (vec![], "is not fed"),
        (vec![(x, ramp(&[2, 1, 12, 13], 1.0))], "shape [2, 1, 12, 13]"),
        (vec![(x, ramp(&[2, 12, 12], 1.0))], "shape [2, 12, 12]"),
        (vec![(x, Tensor::from_vec(vec![1, 1, 12, 12], vec![0u8; 144]))], "uint8"),
        (vec![(y, ramp(&[1], 1.0))], "not an input"),
    ];
    for (feeds, what) in cases {
        let error = session.run(&feeds, &[y]).unwrap_err().to_string();
        assert!(error.contains(what), "{error:?} says {what:?}");
    }
    assert_eq!(session.required_inputs(), [(x, "x".to_owned())]);
}

#[test]
fn only_what_is_wanted_is_computed() {
    // The second branch cannot be computed on this feed; it is not asked for.
    let model = ModelBuilder::new(15)
        .input("x", "float[n]")
        .constant("w", ramp(&[3, 2], 1.0))
        .node("Relu", ["x"], ["a"])
        .node("Neg", ["a"], ["c"])
        .node("MatMul", ["a", "w"], ["b"])
        .named("product")
        .output("b", "")
        .output("c", "float[n]")
        .build();
    let mut session = Cpu.load(&model, &LoadOptions::default()).unwrap();
    let feeds = [(value(&model, "x"), ramp(&[5], 1.0))];
    assert_eq!(session.run(&feeds, &[value(&model, "c")]).unwrap()[0].shape(), [5]);
    let error = session.run(&feeds, &[value(&model, "b")]).unwrap_err();
    assert!(error.to_string().contains("`product`"), "{error}");
}

#[test]
fn constants_are_folded_and_defaults_are_not() {
    let two = Tensor::from_vec(vec![2], vec![2f32, 3.0]);
    let model = ModelBuilder::new(15)
        .input("x", "float[2]")
        .input_with_default("d", two.clone())
        .constant("k", two.clone())
        .node("Mul", ["k", "k"], ["kk"])
        .node("Mul", ["d", "d"], ["dd"])
        .node("Add", ["kk", "x"], ["s"])
        .node("Add", ["s", "dd"], ["y"])
        .output("y", "float[2]")
        .build();
    let mut session = Cpu.load(&model, &LoadOptions::default()).unwrap();
    let x = (value(&model, "x"), Tensor::from_vec(vec![2], vec![1f32, 1.0]));
    let run = |session: &mut dyn optix_runtime::Session, feeds: &[_]| {
        session.run(feeds, &[value(&model, "y"), value(&model, "kk")]).unwrap()
    };
    let result = run(&mut *session, std::slice::from_ref(&x));
    assert_eq!(result[0].to_slice::<f32>().unwrap().as_ref(), [9.0, 19.0]);
    assert_eq!(result[1].to_slice::<f32>().unwrap().as_ref(), [4.0, 9.0], "a folded value may be wanted");
    let override_default = (value(&model, "d"), Tensor::from_vec(vec![2], vec![0f32, 1.0]));
    let result = run(&mut *session, &[x, override_default]);
    assert_eq!(result[0].to_slice::<f32>().unwrap().as_ref(), [5.0, 11.0]);
}
