//! Commands that write models.

use super::{CALIB, EVAL, MODEL};
use crate::program::{Place, root};

#[test]
fn quantize_writes_a_smaller_model() {
    let place = Place::new();
    let run = place.ok(&format!("quantize {MODEL} -o int8.onnx {CALIB}"));
    assert!(run.stdout.starts_with(&format!("{MODEL} -> int8.onnx\n")), "{}", run.stdout);
    assert!(run.stdout.lines().all(|line| line == line.trim_end()), "no blanks at the ends of lines");
    assert_eq!(run.stderr, "");
    let (before, after) =
        (place.json(&format!("inspect {MODEL} --json")), place.json("inspect int8.onnx --json"));
    assert_eq!(before["inputs"], after["inputs"]);
    assert_eq!(before["outputs"], after["outputs"]);
    assert!(after["operators"]["QuantizeLinear"].as_u64() > Some(0));
    assert!(after["bytes"].as_u64() < before["bytes"].as_u64());
    // Without data, ranges are worked out at run time, and a network of convolutions stays as it is.
    place.ok(&format!("quantize {MODEL} -o dynamic.onnx -q"));
    assert!(place.json("inspect dynamic.onnx --json")["operators"]["QuantizeLinear"].is_null());
    place.ok("quantize fixtures/graphs/mlp_residual.onnx -o mlp.onnx -q");
    assert!(place.json("inspect mlp.onnx --json")["operators"]["MatMulInteger"].as_u64() > Some(0));
}

#[test]
fn flags_of_quantize_become_options_of_its_step() {
    let place = Place::new();
    let flags = "--per-channel false --observer min-max --activation-type int8 --exclude */head* --exclude a";
    let recipe = place.ok(&format!("quantize {MODEL} -o x.onnx {CALIB} {flags} --print-recipe")).stdout;
    let recipe: toml::Table = recipe.parse().expect("TOML");
    let steps = recipe["step"].as_array().expect("steps");
    let step = steps.iter().find(|step| step["pass"].as_str() == Some("quantize-static")).expect("the step");
    assert_eq!(step["per-channel"].as_bool(), Some(false));
    assert_eq!(step["observer"].as_str(), Some("min-max"));
    assert_eq!(step["activation-type"].as_str(), Some("int8"));
    assert_eq!(step["exclude"].as_array().map(Vec::len), Some(2));
    assert_eq!(place.list(), [""; 0], "printing a recipe writes nothing");
    let error = place.ends(&format!("quantize {MODEL} -o x.onnx {CALIB} --observer mea"), 2).stderr;
    assert!(error.contains("min-max"), "{error}");
    place.ends(&format!("quantize {MODEL} -o x.onnx {CALIB} --set quantize-static.observr=mse"), 2);
    place.ends(&format!("quantize {MODEL} -o x.onnx {CALIB} --set nonsense"), 2);
    // Static quantization cannot do without data.
    let error = place.ends(&format!("quantize {MODEL} -o x.onnx --method static"), 2).stderr;
    assert!(error.contains("--calib"), "{error}");
    assert!(!place.exists("x.onnx"));
}

#[test]
fn a_printed_recipe_makes_the_same_file() {
    let place = Place::new();
    std::fs::create_dir(place.path("elsewhere")).expect("a directory");
    let flags = format!("{CALIB} --exclude /8/Conv --seed 7");
    place.ok(&format!("quantize {MODEL} -o one.onnx {flags} -q --report one.json"));
    let recipe = place.ok(&format!("quantize {MODEL} -o unused.onnx {flags} --print-recipe")).stdout;
    // Where the recipe lies does not matter.
    place.write("elsewhere/recipe.toml", &recipe);
    place.ok(&format!("run elsewhere/recipe.toml {MODEL} -o two.onnx -q"));
    assert!(place.read("one.onnx") == place.read("two.onnx"), "two.onnx differs");
    let again = place.ok(&format!("run elsewhere/recipe.toml {MODEL} -o unused.onnx --print-recipe")).stdout;
    assert_eq!(again, recipe, "printing is a fixed point");
    // The recipe in a report works where the command ran.
    let report: serde_json::Value = serde_json::from_str(&place.text("one.json")).expect("JSON");
    place.write("reported.toml", report["recipe"].as_str().expect("text"));
    place.ok(&format!("run ./reported.toml {MODEL} -o three.onnx -q"));
    assert!(place.read("one.onnx") == place.read("three.onnx"), "three.onnx differs");
}

#[test]
fn bytes_do_not_depend_on_threads_or_mapping() {
    let place = Place::new();
    let mut models = Vec::new();
    for (index, flags) in ["--threads 1", "--threads 2", "--threads 3", "", "--no-mmap"].iter().enumerate() {
        place.ok(&format!("quantize {MODEL} -o {index}.onnx {CALIB} -q {flags}"));
        models.push(place.read(&format!("{index}.onnx")));
    }
    assert!(models.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(place.list().len(), 2 * models.len(), "each has a lock, and nothing temporary is left");
}

#[test]
fn requirements_decide_the_exit_code() {
    let place = Place::new();
    let line = format!("quantize {MODEL} -o int8.onnx {CALIB} {EVAL}");
    let met =
        "--require size-ratio=0.6 --require sqnr-db=10 --require accuracy-drop=50 --require agreement=0.5";
    let run = place.ok(&format!("{line} {met}"));
    assert_eq!(run.stdout.matches(" met: ").count(), 4, "{}", run.stdout);
    let run = place.ends(&format!("{line} --require size-ratio=0.6 --require sqnr-db=200"), 1);
    assert!(
        run.stdout.contains("sqnr-db MISSED: ") && run.stdout.contains("size-ratio met: "),
        "{}",
        run.stdout
    );
    assert!(run.stderr.contains("1 of the requirements missed"), "{}", run.stderr);
    assert!(place.exists("int8.onnx"), "the output is kept");
    let kept = place.read("int8.onnx");
    let missed = format!("{line} --require size-ratio=0.01 --keep-failed false --report r.json -q");
    place.ends(&missed, 1);
    assert!(place.read("int8.onnx") == kept, "what was there before stays");
    place.ends(&missed.replace("-o int8.onnx", "-o other.onnx"), 1);
    assert!(!place.exists("other.onnx"), "the output is not kept");
    let report: serde_json::Value = serde_json::from_str(&place.text("r.json")).expect("JSON");
    assert_eq!(report["requirements"][0]["met"], false);
    assert_eq!(report["requirements"][0]["name"], "size-ratio");
    // Too few samples to tell is a miss that says how many would do.
    let run = place.ends(&format!("{line} --require accuracy-drop=1.0"), 1);
    assert!(run.stdout.contains("samples would decide"), "{}", run.stdout);
    for wrong in ["--require sqnr=20", "--require sqnr-db", "--require sqnr-db=much"] {
        place.ends(&format!("{line} {wrong}"), 2);
    }
    let error = place.ends(&format!("quantize {MODEL} -o int8.onnx {CALIB} --require sqnr-db=1"), 2).stderr;
    assert!(error.contains("--eval"), "{error}");
}

#[test]
fn equal_outputs_meet_every_threshold_and_broken_ones_none() {
    let place = Place::new();
    let eval = "--eval fixtures/data/fmnist-eval.toml --eval-samples 50";
    let run = place.ok(&format!("run clean {MODEL} -o clean.onnx {eval} --require sqnr-db=500"));
    assert!(run.stdout.contains("output `logits`: equal"), "{}", run.stdout);
    assert!(
        run.stdout.contains("sqnr-db met: no figure against 500; all outputs are equal"),
        "{}",
        run.stdout
    );
    // A model whose output is not a number is not equal to one whose output is.
    let parse = |body: &str| {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 18]> g (float[N, 1, 28, 28] image) => (float[N, 1, 28, 28] y) {body}"
        );
        optix_io::onnx_bytes(&optix_ir::text::parse(&text).expect("a model")).expect("small")
    };
    place.write("right.onnx", parse("{ y = Mul (image, image) }"));
    place.write("wrong.onnx", parse("{ z = Sub (image, image) y = Div (z, z) }"));
    let data = "--data fixtures/data/fmnist-eval.toml --samples 3";
    let facts = place.json(&format!("eval wrong.onnx --vs right.onnx {data} --json"));
    assert_eq!(facts["outputs"][0]["equal"], false);
    let text = place.ok(&format!("eval wrong.onnx --vs right.onnx {data}")).stdout;
    assert!(text.contains("not a finite number"), "{text}");
    let text = place.ok(&format!("compare right.onnx wrong.onnx {data}")).stdout;
    assert!(text.lines().any(|line| line.trim_start_matches([' ', '>', '*']).starts_with("none ")), "{text}");
}

#[test]
fn an_input_is_replaced_only_in_place() {
    let place = Place::new();
    let original = std::fs::read(root().join(MODEL)).expect("the model");
    place.write("model.onnx", &original);
    std::fs::hard_link(place.path("model.onnx"), place.path("alias.onnx")).expect("a link");
    for output in ["model.onnx", "./model.onnx", "alias.onnx"] {
        let error = place.ends(&format!("run clean model.onnx -o {output}"), 2).stderr;
        assert!(error.contains("--in-place"), "{error}");
        assert!(place.read("model.onnx") == original);
    }
    place.ends("run clean model.onnx", 2);
    place.ends("run clean model.onnx -o x.onnx --in-place", 2);
    place.ok("run clean model.onnx --in-place -q");
    place.ok(&format!("run clean {MODEL} -o apart.onnx -q"));
    assert!(place.read("model.onnx") == place.read("apart.onnx"));
    // What cannot be undone is kept, whatever was asked for.
    place.ends("run clean model.onnx --in-place --require size-ratio=0.1 --keep-failed false -q", 1);
    assert!(place.exists("model.onnx"));
}

#[test]
fn external_data_are_written_beside_the_model() {
    let place = Place::new();
    place.ok(&format!("run clean {MODEL} -o out.onnx --external-data -q"));
    assert_eq!(place.list(), ["out.onnx", "out.onnx.data", "out.onnx.lock.json"]);
    let data = "--data fixtures/data/fmnist-eval.toml --samples 8";
    let facts = place.json(&format!("eval out.onnx --vs {MODEL} {data} --json"));
    assert_eq!(facts["outputs"][0]["equal"], true);
}

#[test]
fn what_is_printed() {
    let place = Place::new();
    let line = format!("quantize {MODEL} -o int8.onnx {CALIB}");
    let quiet = place.ok(&format!("{line} -q"));
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    let (plain, all) = (place.ok(&line).stdout, place.ok(&format!("{line} -v")).stdout);
    assert!(plain.contains("more layers (-v shows all"), "{plain}");
    assert!(!all.contains("more layers") && all.lines().count() > plain.lines().count(), "{all}");
    place.ends(&format!("{line} -q -v"), 2);
    // Errors are said even when quiet.
    place.ends("run clean nowhere.onnx -o x.onnx -q", 2);
    // Progress is drawn on terminals alone.
    assert_eq!(place.ok(&line).stderr, "");
    let report = place.json(&format!("{line} --json"));
    assert_eq!(report["schema"], "optix-report/1");
}

#[test]
fn looking_at_the_passes_at_work() {
    let place = Place::new();
    let line = "run clean fixtures/graphs/common_subexpressions.onnx -o out.onnx";
    let run = place.ok(&format!("{line} --timing"));
    assert_eq!(run.stderr.lines().filter(|line| line.contains(" ms  ")).count(), 7, "{}", run.stderr);

    let run = place.ok(&format!("{line} --print-after eliminate-dead -q"));
    let text = run.stderr.strip_prefix("# after eliminate-dead\n").expect("a heading");
    optix_ir::text::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(run.stdout, "", "stdout is for the result");
    let all = place.ok(&format!("{line} --print-after all -q")).stderr;
    assert_eq!(all.matches("# after ").count(), 7, "{all}");
    let error = place.ends(&format!("{line} --print-after eliminate-ded"), 2).stderr;
    assert!(error.contains("did you mean `eliminate-dead`?"), "{error}");

    place.ok(&format!("{line} --dump-dir dumps -q"));
    let mut dumps: Vec<_> =
        std::fs::read_dir(place.path("dumps")).expect("dumps").flatten().map(|entry| entry.path()).collect();
    dumps.sort();
    assert_eq!(dumps.len(), 7);
    assert!(dumps[0].ends_with("00-fold-constants.onnx"));
    assert!(std::fs::read(&dumps[6]).expect("a dump") == place.read("out.onnx"), "the last is the result");

    let checked = place.json("run clean fixtures/graphs/identities.onnx -o out.onnx --check --json");
    for step in checked["steps"].as_array().expect("steps") {
        assert_eq!(step["checked_difference"], 0.0, "{step}");
    }
    place.ok(&format!("{line} --verify-each false -q"));
}

#[test]
fn rewrites_can_be_stopped_one_by_one() {
    let place = Place::new();
    let line = "run clean fixtures/graphs/identities.onnx -o out.onnx --json --stop-after-patch";
    let count = |report: &serde_json::Value| -> u64 {
        let steps = report["steps"].as_array().expect("steps");
        let patches = steps.iter().flat_map(|step| step["changes"]["patches"].as_object().expect("patches"));
        patches.filter_map(|(_, count)| count.as_u64()).sum()
    };
    let all = count(&place.json(&format!("{line} 1000")));
    assert!(all >= 3, "{all}");
    let mut last = Vec::new();
    for number in 0..=all {
        let report = place.json(&format!("{line} {number}"));
        assert_eq!(count(&report), number);
        let model = place.read("out.onnx");
        assert!(model != last, "each rewrite changes something");
        last = model;
    }
}

#[test]
fn bad_input_leaves_nothing_behind() {
    let place = Place::new();
    std::fs::create_dir(place.path("out")).expect("a directory");
    place.ends("quantize fixtures/graphs/quantized_conv.onnx -o out/x.onnx", 2);
    assert_eq!(std::fs::read_dir(place.path("out")).expect("it is there").count(), 0);
}

#[test]
fn exit_codes_tell_whose_fault_it_is() {
    let place = Place::new();
    place.ok(&format!("run clean {MODEL} -o a.onnx -q"));
    place.ends(&format!("run clean {MODEL} -o a.onnx -q --require size-ratio=0.1"), 1);
    for line in [
        format!("run claen {MODEL} -o b.onnx"),
        format!("run ./nowhere.toml {MODEL} -o b.onnx"),
        format!("run clean {MODEL} -o nowhere/b.onnx"),
        format!("run clean {MODEL} -o b.onnx --report r.txt"),
        format!("quantize {MODEL} -o b.onnx --calib nowhere.npz"),
        "run clean fixtures/README.md -o b.onnx".to_owned(),
    ] {
        place.ends(&line, 2);
    }
    place.ends(&format!("run clean {MODEL} -o b.onnx --engine none"), 3);
    place.write("full.toml", "version = 1");
    // A device that is always full stands for a full disk; models are files, reports too.
    place.ends(&format!("run clean {MODEL} -o /dev/full"), 2);
    assert!(!place.exists("b.onnx"));
}
