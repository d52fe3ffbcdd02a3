//! Targets on the command line.

use serde_json::Value;

use super::{CALIB, MODEL};
use crate::program::Place;

#[test]
fn targets_are_listed_and_shown() {
    let place = Place::new();
    let list = place.ok("targets").stdout;
    for (name, text) in optix_passes::quantize::target::TARGETS {
        assert!(list.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}\n{list}");
        assert_eq!(place.ok(&format!("targets show {name}")).stdout.trim_end(), text.trim_end());
    }
    let error = place.ends("targets show ort-cpuu", 2).stderr;
    assert!(error.contains("did you mean `ort-cpu`?") && error.contains("tensorrt"), "{error}");
    let error = place.ends("--ort-lib nowhere.so targets probe -o mine.toml", 3).stderr;
    assert!(error.contains("engine `onnxruntime` cannot be used"), "{error}");
    assert!(!place.exists("mine.toml"));
}

#[test]
fn bad_targets_are_refused_before_any_work() {
    let place = Place::new();
    let quantize = format!("quantize {MODEL} -o x.onnx {CALIB}");
    let error = place.ends(&format!("{quantize} --target tensort"), 2).stderr;
    assert!(error.contains("did you mean `tensorrt`?"), "{error}");
    let error = place.ends(&format!("{quantize} --target nowhere.toml"), 2).stderr;
    assert!(error.contains("cannot read target nowhere.toml"), "{error}");
    let text = place.ok("targets show ort-cpu").stdout;
    let line = 1 + text.lines().position(|line| line.starts_with("engine = ")).expect("it has an engine");
    place.write("damaged.toml", text.replacen("engine = ", "engin = ", 1));
    let error = place.ends(&format!("{quantize} --target damaged.toml"), 2).stderr;
    assert!(error.contains(&format!("target damaged.toml: line {line}, column 1")), "{error}");
    assert!(error.contains("did you mean `engine`?"), "{error}");
    place.write("binary.toml", b"\xff\xfe\x00");
    let error = place.ends(&format!("{quantize} --target ./binary.toml"), 2).stderr;
    assert!(error.contains("UTF-8"), "{error}");
    let error = place.ends(&format!("{quantize} --target tensorrt --activation-type int16"), 2).stderr;
    assert!(error.contains("cannot run int16 activations, only int8, float8e4m3fn"), "{error}");
    assert!(error.contains("ort-cpu (computed in float)"), "{error}");
    assert!(!place.exists("x.onnx"));
}

#[test]
fn a_profile_from_a_file_is_kept_in_recipe_and_lock() {
    let place = Place::new();
    let text = place.ok("targets show ort-cpu").stdout;
    let mine = text.replacen("name = \"ort-cpu\"", "name = \"mine\"", 1);
    place.write("mine.toml", &mine);
    let flags = format!("{CALIB} --deploy none --set quantize-static.min-sqnr=0 -q");
    place.ok(&format!("quantize {MODEL} -o usual.onnx {flags}"));
    place.ok(&format!("quantize {MODEL} -o one.onnx {flags} --target mine.toml"));
    assert!(place.read("one.onnx") == place.read("usual.onnx"), "the same profile by another name");
    let recipe =
        place.ok(&format!("quantize {MODEL} -o x.onnx {flags} --target mine.toml --print-recipe")).stdout;
    assert!(recipe.contains("name = \"mine\""), "{recipe}");
    // Neither the recipe nor the lock needs the file.
    std::fs::remove_file(place.path("mine.toml")).expect("it is there");
    place.write("recipe.toml", &recipe);
    place.ok(&format!("run ./recipe.toml {MODEL} -o two.onnx --deploy none -q"));
    assert!(place.read("one.onnx") == place.read("two.onnx"), "two.onnx differs");
    let lock: Value = serde_json::from_str(&place.text("one.onnx.lock.json")).expect("JSON");
    let steps = lock["steps"].as_array().expect("steps");
    let step = steps.iter().find(|step| step["pass"] == "quantize-static").expect("the step");
    assert_eq!(step["decisions"]["target"]["name"], "mine");
    assert_eq!(step["decisions"]["target"]["operators"]["quantized-output"][0], "Conv");
    place.ok(&format!("apply one.onnx.lock.json {MODEL} -o three.onnx"));
    assert!(place.read("one.onnx") == place.read("three.onnx"), "three.onnx differs");
    let broken = place.text("one.onnx.lock.json").replacen("\"name\":\"mine\"", "\"name\":\"MINE\"", 1);
    let broken = broken.replacen("\"name\": \"mine\"", "\"name\": \"MINE\"", 1);
    place.write("broken.lock.json", broken);
    let error = place.ends(&format!("apply broken.lock.json {MODEL} -o four.onnx"), 2).stderr;
    assert!(error.contains("decision `target` of the lock cannot be used"), "{error}");
}

#[test]
fn types_of_more_bits_and_of_floats_raise_the_operator_set() {
    let place = Place::new();
    for (dtype, code, opset) in
        [("uint16", 4, 21), ("int16", 5, 21), ("float8e4m3fn", 17, 21), ("float8e5m2", 19, 21)]
    {
        let line = format!("quantize {MODEL} -o x.onnx {CALIB} --activation-type {dtype} -q --report r.json");
        place.ok(&line);
        let facts = place.json("inspect x.onnx --json");
        assert_eq!(facts["opsets"][0]["version"], opset, "{dtype}");
        let model =
            optix_io::load(&place.path("x.onnx"), &optix_io::LoadOptions::default()).expect("it loads").model;
        let quantizer = model.walk().find(|&id| model.node(id).is("QuantizeLinear")).expect("a quantizer");
        let quantizer = model.node(quantizer);
        let zero = quantizer.input(2).and_then(|zero| model.constant(zero)).map(|zero| zero.dtype().onnx());
        assert_eq!(zero.map(i64::from).or(quantizer.int("output_dtype")), Some(code), "{dtype}");
        let report: Value = serde_json::from_str(&place.text("r.json")).expect("JSON");
        let text = report.to_string();
        assert!(text.contains("in float: the results are those of the type"), "{dtype}");
        assert!(text.contains(dtype), "{dtype}");
    }
    // TensorRT's default is int8 without zero points, biases in float.
    place.ok(&format!("quantize {MODEL} -o t.onnx {CALIB} --target tensorrt -q"));
    let model =
        optix_io::load(&place.path("t.onnx"), &optix_io::LoadOptions::default()).expect("it loads").model;
    let integers = model.values().filter_map(|value| model.value(value).tensor());
    assert!(integers.into_iter().all(|tensor| tensor.dtype() != optix_ir::DType::I32));
}
