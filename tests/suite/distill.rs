//! Training against a teacher: what it gains, what it keeps, and what it refuses.

use serde_json::Value;

use crate::program::Place;

const MODEL: &str = "fixtures/models/fmnist_resnet.onnx";
const CALIB: &str = "--calib fixtures/data/fmnist-calib.toml";
const EVAL: &str = "--eval fixtures/data/fmnist-eval.toml --eval-samples 1000";

fn lost(report: &Value) -> f64 {
    report["evaluation"]["accuracy"]["change_points"]["value"].as_f64().map_or(f64::NAN, |change| -change)
}

#[test]
fn what_pruning_cost_is_learned_back() {
    let place = Place::new();
    let pruned = |name: &str, more: &str| {
        let line =
            format!("prune {MODEL} -o {name}.onnx --flops 0.5 --recover=false {CALIB} {EVAL} --json {more}");
        place.json(&line)
    };
    let plain = pruned("plain", "");
    let learned = pruned("learned", "--distill-steps 60");
    assert!(
        lost(&learned) < 8.0 && lost(&learned) < lost(&plain) - 10.0,
        "{} {}",
        lost(&plain),
        lost(&learned)
    );
    // The same on any number of threads, and again from the lock without data.
    pruned("one", "--distill-steps 60 --threads 1");
    assert!(place.read("one.onnx") == place.read("learned.onnx"), "on one thread");
    place.ok(&format!("apply learned.onnx.lock.json {MODEL} -o again.onnx"));
    assert!(place.read("again.onnx") == place.read("learned.onnx"), "from the lock");
    // In two commands, with the original as the teacher: another start of the same kind.
    let line = format!("distill plain.onnx --teacher {MODEL} -o two.onnx --steps 60 {CALIB} {EVAL} --json");
    let two = place.json(&line);
    let before = two["evaluation"]["accuracy"]["before"]["value"].as_f64();
    assert!(lost(&two) < 0.0, "{before:?} {}", lost(&two));
}

#[test]
fn zeros_of_a_pruned_model_stay() {
    let place = Place::new();
    place.ok(&format!("run 2-4-sparse {MODEL} -o sparse.onnx {CALIB} --calib-samples 64 -q"));
    place.ok(&format!("distill sparse.onnx --teacher {MODEL} -o learned.onnx --steps 20 {CALIB} -q"));
    let weights = |name: &str| -> Vec<Vec<f32>> {
        let model =
            optix_io::load(&place.path(name), &optix_io::LoadOptions::default()).expect("it loads").model;
        let convolutions = model.walk().filter(|&id| model.node(id).is("Conv"));
        let of = |id| model.constant(model.node(id).input(1)?)?.to_slice::<f32>().ok().map(Vec::from);
        convolutions.filter_map(of).collect()
    };
    let (before, after) = (weights("sparse.onnx"), weights("learned.onnx"));
    assert_eq!(before.len(), after.len());
    let mut moved = 0;
    for (before, after) in before.iter().zip(&after) {
        let pruned = before.iter().filter(|x| **x == 0.0).count() * 10 >= before.len();
        for (a, b) in before.iter().zip(after) {
            assert!(!pruned || (*a == 0.0) == (*b == 0.0), "{a} {b}");
            moved += usize::from(a != b);
        }
    }
    assert!(moved > 10_000, "{moved}");
}

#[test]
fn who_is_the_teacher_already_has_nothing_to_learn() {
    let place = Place::new();
    let run = place
        .ok(&format!("distill {MODEL} --teacher {MODEL} -o same.onnx --steps 5 {CALIB} --calib-samples 100"));
    assert!(run.stdout.contains("the model stays as it was"), "{}", run.stdout);
    place.ok(&format!("distill {MODEL} --teacher {MODEL} -o none.onnx --steps 0 {CALIB} -q"));
    assert!(place.read("same.onnx") == place.read("none.onnx"));
}

#[test]
fn what_was_killed_goes_on_as_if_it_had_not_been() {
    let place = Place::new();
    place.ok(&format!(
        "prune {MODEL} -o small.onnx --flops 0.5 --recover=false {CALIB} --calib-samples 64 -q"
    ));
    let line = |out: &str, more: &str| {
        format!("distill small.onnx --teacher {MODEL} -o {out} --steps 60 --augment shift {CALIB} -q {more}")
    };
    place.ok(&line("whole.onnx", ""));
    let mut killed = place.command(&line("killed.onnx", "--checkpoint state")).spawn().expect("it starts");
    while !place.exists("state") && killed.try_wait().expect("it runs").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    killed.kill().expect("it ends");
    killed.wait().expect("it ends");
    let again = place.ok(&line("killed.onnx", "--checkpoint state").replace(" -q", ""));
    assert!(again.stdout.contains("training went on from step"), "{}", again.stdout);
    assert!(place.read("killed.onnx") == place.read("whole.onnx"));
    // Of another training, and no checkpoint at all: refused, and left as they are.
    let state = place.read("state");
    let refused =
        |more: &str| place.ends(&line("other.onnx", &format!("--checkpoint state {more}")), 2).stderr;
    assert!(refused("--learning-rate 0.01").contains("another model, seed, recipe or options"));
    assert!(refused("--calib-samples 256").contains("another model, teacher, data, seed or options"));
    assert!(place.read("state") == state && !place.exists("other.onnx"));
    place.write("state", b"something else");
    assert!(refused("").contains("it is no checkpoint"), "{}", refused(""));
    let run = place.ends(&format!("prune {MODEL} -o x.onnx --checkpoint state"), 2).stderr;
    assert!(run.contains("no step of this recipe trains"), "{run}");
}

/// Batches of four samples.
struct Fours(crate::recovery::Drawn);

impl optix_pipeline::Calibration for Fours {
    fn describe(&self) -> String {
        "drawn by fours".to_owned()
    }

    fn batches<'a>(
        &'a self,
        model: &optix_ir::Model,
    ) -> Result<
        Box<dyn Iterator<Item = Result<optix_pipeline::Batch, optix_pipeline::DataError>> + 'a>,
        optix_pipeline::DataError,
    > {
        let batches = self.0.batches(model)?;
        let of_four = |batch| optix_pipeline::Batch { count: 4, ..batch };
        Ok(Box::new(batches.map(move |batch| batch.map(of_four))))
    }
}

#[test]
fn what_was_measured_before_the_interruption_is_not_measured_again() {
    use optix_pipeline::runner::{self, RunOptions};
    /// A checkpoint in memory.
    #[derive(Default)]
    struct Shelf(Option<Vec<u8>>);
    impl optix_pipeline::CheckpointStore for Shelf {
        fn load(&mut self) -> Result<Option<Vec<u8>>, String> {
            Ok(self.0.clone())
        }
        fn save(&mut self, bytes: &[u8]) -> Result<(), String> {
            self.0 = Some(bytes.to_vec());
            Ok(())
        }
    }
    let load = optix_io::LoadOptions::default();
    let loaded = optix_io::load(&crate::program::root().join(MODEL), &load).expect("it loads");
    let text = "version = 1\n[[step]]\npass = \"fold-constants\"\n[[step]]\npass = \"prune-channels\"\nlatency = 0.6\n\
                [[step]]\npass = \"distill\"\nsteps = 4\nbatch-size = 8\n[[step]]\nid = \"again\"\n\
                pass = \"distill\"\nsteps = 4\nbatch-size = 8\n";
    let recipe = optix_pipeline::Recipe::parse(text, "test", optix_passes::PASSES, &[]).expect("a recipe");
    let run = |shelf: &mut Shelf, clock: Option<&mut crate::prune::Clock>| {
        let mut model = loaded.model.clone();
        let mut resources = optix_pipeline::Resources {
            oracle: &mut optix_runtime::EngineOracle::new(
                Box::new(optix_runtime::Cpu),
                optix_runtime::LoadOptions::default(),
            ),
            calibration: Some(&Fours(crate::recovery::Drawn { seed: 3, batches: 12 })),
            checkpoint: Some(shelf),
            deployment: clock.map(|clock| clock as &mut dyn optix_pipeline::Deployment),
            ..optix_pipeline::Resources::default()
        };
        let done = runner::run(&recipe, &mut model, &mut resources, &RunOptions::default(), &mut |_, _| {});
        let fingerprint = optix_pipeline::fingerprint(&model).expect("it can be written");
        done.map(|steps| (fingerprint, steps)).map_err(|error| error.to_string())
    };
    let mut shelf = Shelf::default();
    let (whole, steps) = run(&mut shelf, Some(&mut crate::prune::Clock)).expect("it runs");
    // The clock is gone: what it said is in the checkpoint, and so is what the first training came to.
    let (again, resumed) = run(&mut shelf, None).expect("it goes on");
    assert_eq!(again, whole);
    for (step, was) in resumed.iter().zip(&steps) {
        assert_eq!(step.decisions, was.decisions, "{}", step.id);
    }
    let taken = |step: &optix_pipeline::report::StepReport| {
        step.changes.notes.join(" ").contains("taken from the checkpoint")
    };
    assert_eq!(resumed.iter().map(taken).collect::<Vec<_>>(), [false, true, true, false]);
    assert!(resumed[3].changes.notes.join(" ").contains("training went on from step 4"));
    let without = run(&mut Shelf::default(), None).expect_err("there is no clock");
    assert!(without.contains("measured on the engine"), "{without}");
}

#[test]
fn blocks_learn_each_for_itself() {
    let place = Place::new();
    place.ok(&format!(
        "prune {MODEL} -o sparse.onnx --sparsity 0.8 --recover=false {CALIB} --calib-samples 128 -q"
    ));
    let line = |out: &str, more: &str| {
        format!("distill sparse.onnx --teacher {MODEL} -o {out}.onnx --steps 60 {CALIB} {EVAL} --json {more}")
    };
    let learned = place.json(&line("learned", "--blocks"));
    assert!(lost(&learned) < -1.0, "{}", lost(&learned));
    let steps = learned["steps"].as_array().expect("steps");
    let step = steps.iter().find(|step| step["pass"] == "distill").expect("it learned");
    assert_eq!(step["changes"]["counters"]["blocks that learn beside each other"], 7, "{step}");
    place.json(&line("one", "--blocks --threads 1"));
    assert!(place.read("one.onnx") == place.read("learned.onnx"), "on one thread");
    place.json(&line("named", "--blocks --features /5/Add_output_0"));
    assert!(place.read("named.onnx") != place.read("learned.onnx"));
    // Widths differ.
    place.ok(&format!("prune {MODEL} -o small.onnx --flops 0.3 {CALIB} --calib-samples 64 -q"));
    let line =
        format!("distill small.onnx --teacher {MODEL} -o x.onnx --steps 2 --blocks --features * {CALIB}");
    let refused = place.ends(&line, 2).stderr;
    assert!(refused.contains("can be no end of a block"), "{refused}");
}

#[test]
fn changes_of_pictures_stand_in_the_data_or_in_the_step() {
    let place = Place::new();
    let plain = std::fs::read_to_string(crate::program::root().join("fixtures/data/fmnist-calib.toml"));
    let plain = plain.expect("it is there").replace("path = \"", "path = \"fixtures/data/");
    place.write("plain.toml", plain.replace("labels = \"", "labels = \"fixtures/data/"));
    let own =
        place.text("plain.toml").replace("\nsteps = [", "\naugment = [\"shift\", \"light\"]\nsteps = [");
    assert!(own.contains("augment"));
    place.write("changed.toml", &own);
    place.ok(&format!(
        "prune {MODEL} -o sparse.onnx --sparsity 0.8 --recover=false {CALIB} --calib-samples 128 -q"
    ));
    let run = |out: &str, more: &str| {
        place.ok(&format!("distill sparse.onnx --teacher {MODEL} -o {out}.onnx --steps 4 -q {more}"));
        place.read(&format!("{out}.onnx"))
    };
    let of_data = run("data", "--calib changed.toml");
    assert!(of_data == run("step", "--calib plain.toml --augment shift --augment light"));
    let none = run("none", "--calib changed.toml --set distill.augment=[]");
    assert!(none == run("plain", "--calib plain.toml") && none != of_data);
    place.write("wrong.toml", own.replace("\"light\"", "\"ligth\""));
    let line = format!("distill sparse.onnx --teacher {MODEL} -o x.onnx --calib wrong.toml");
    let refused = place.ends(&line, 2).stderr;
    assert!(refused.contains("wrong.toml:") && refused.contains("did you mean `light`?"), "{refused}");
    // Rows are no pictures.
    let model = "fixtures/graphs/mlp_residual.onnx";
    place.write("rows.bin", vec![63u8; 4 * 32 * 16]);
    let run = |more: &str| {
        let line = format!("distill {model} --teacher {model} -o x.onnx --steps 1 --calib {more}");
        place.ends(&line, 2).stderr
    };
    let refused = run("raw:rows.bin?dtype=float32&shape=16 --augment flip");
    assert!(refused.contains("pictures are [N, C, H, W]"), "{refused}");
}

#[test]
fn what_cannot_be_learned_is_said() {
    let place = Place::new();
    let error = |more: &str| place.ends(&format!("distill {MODEL} -o x.onnx {more}"), 2).stderr;
    let teacher = format!("--teacher {MODEL}");
    assert!(error(CALIB).contains("give `--teacher MODEL`"));
    assert!(error(&teacher).contains("needs calibration data"));
    let with = |more: &str| error(&format!("{teacher} {CALIB} {more}"));
    assert!(with("--learning-rate 0").contains("`learning-rate` must be above 0"));
    assert!(with("--batch-size 0").contains("a step needs samples"));
    assert!(with("--exclude *").contains("no layer has weights of 32-bit floats to train"));
    assert!(with("--calib-samples 4").contains("too few to learn from"), "{}", with("--calib-samples 4"));
    let other = "--teacher fixtures/graphs/mlp_residual.onnx";
    let refused = error(&format!("{other} {CALIB}"));
    assert!(refused.contains("teacher"), "{refused}");
    // Rates that explode end it, and what was best is kept.
    let run =
        place.ok(&format!("distill {MODEL} {teacher} -o big.onnx --steps 40 --learning-rate 1e30 {CALIB}"));
    let said = format!("{}{}", run.stdout, run.stderr);
    assert!(said.contains("not finite at step") && said.contains("the model stays as it was"), "{said}");
    assert!(!place.exists("x.onnx"));
    let run = place.ends(&format!("prune {MODEL} -o x.onnx {teacher}"), 2).stderr;
    assert!(run.contains("no step of this recipe learns from another model"), "{run}");
}

/// Integers of the weights of all layers, and for each layer its bias's scales over those of input times weights.
fn integers(place: &Place, name: &str) -> (Vec<Vec<i64>>, Vec<f64>) {
    let load = optix_io::LoadOptions::default();
    let model = optix_io::load(&place.path(name), &load).expect("it loads").model;
    let held = |node: optix_ir::NodeId, slot: usize, of: usize| {
        let (producer, _) = model.value(model.node(node).input(slot)?).producer()?;
        model.constant(model.node(producer).input(of)?)
    };
    let floats = |node, slot| held(node, slot, 1).and_then(|held| held.to_f64s().ok()).unwrap_or_default();
    let (mut weights, mut ratios) = (Vec::new(), Vec::new());
    for node in model.walk().filter(|&id| model.node(id).is("Conv") || model.node(id).is("Gemm")) {
        weights.extend(held(node, 1, 0).and_then(|held| held.to_i64s().ok()));
        let (input, of_weights, of_bias) = (floats(node, 0), floats(node, 1), floats(node, 2));
        ratios.extend(of_bias.iter().zip(of_weights).map(|(bias, weight)| bias / (input[0] * weight)));
    }
    (weights, ratios)
}

#[test]
fn weights_of_four_bits_learn_with_their_rounding() {
    let place = Place::new();
    let model = "fixtures/models/fmnist_mobilenet.onnx";
    let line = |out: &str, more: &str| {
        format!(
            "quantize {model} -o {out}.onnx --method static --bits 4 {CALIB} {EVAL} --deploy none --json {more}"
        )
    };
    // No layer is to stay float, which would be the other cure.
    let all = "--set quantize-static.min-sqnr=0";
    let plain = place.json(&line("plain", all));
    let learned = place.json(&line("learned", &format!("{all} --distill-steps 60")));
    let sqnr = |report: &Value| {
        report["evaluation"]["outputs"][0]["sqnr_db"].as_f64().expect("outputs are compared")
    };
    assert!(sqnr(&learned) > sqnr(&plain) + 1.0, "{} {}", sqnr(&plain), sqnr(&learned));
    let (before, _) = integers(&place, "plain.onnx");
    let (after, ratios) = integers(&place, "learned.onnx");
    assert!(before.len() == 18 && before != after);
    assert!(after.iter().flatten().all(|integer| (-8..=7).contains(integer)));
    assert!(ratios.len() > 500 && ratios.iter().all(|ratio| (ratio - 1.0).abs() < 1e-6));
    let bytes = |name: &str| place.read(name).len();
    assert!(bytes("learned.onnx") < bytes("plain.onnx") + 4096, "nothing is held twice");
    // The same on one thread, from the lock, and in another command from the file; refused where it does not fit.
    place.json(&line("one", &format!("{all} --distill-steps 60 --threads 1")));
    assert!(place.read("one.onnx") == place.read("learned.onnx"), "on one thread");
    place.ok(&format!("apply learned.onnx.lock.json {model} -o again.onnx"));
    assert!(place.read("again.onnx") == place.read("learned.onnx"), "from the lock");
    let line = format!("distill plain.onnx --teacher {model} -o two.onnx --steps 60 {CALIB} {EVAL} --json");
    let two = place.json(&line);
    let kept = two["steps"].to_string();
    assert!(kept.contains("held out fell from"), "{kept}");
    let refused = |line: &str| place.ends(line, 2).stderr;
    let none =
        refused(&format!("run qat-4bit {model} -o x.onnx {CALIB} --set quantize-static.exclude=['*']"));
    assert!(none.contains("`distill` trains floats"), "{none}");
    let weights = refused(&format!("quantize {model} -o x.onnx --method static --bits 2 {CALIB}"));
    assert!(weights.contains("8 or 4"), "{weights}");
    let dynamic = refused(&format!("quantize {model} -o x.onnx --distill-steps 5"));
    assert!(dynamic.contains("--method static"), "{dynamic}");
    let old = refused(&format!("run qat-4bit {model} -o x.onnx {CALIB} --set convert-opset.version=17"));
    assert!(old.contains("operator set 21"), "{old}");
}

#[test]
fn zeros_and_pairs_of_a_quantized_model_stay() {
    let place = Place::new();
    place.ok(&format!("run 2-4-sparse {MODEL} -o sparse.onnx {CALIB} --calib-samples 64 -q"));
    let quantized = format!("quantize sparse.onnx -o plain.onnx {CALIB} --calib-samples 64 --deploy none -q");
    place.ok(&quantized);
    place.ok(&format!("{} --distill-steps 30", quantized.replace("plain", "learned")));
    place.ok(&format!("distill plain.onnx --teacher {MODEL} -o two.onnx --steps 30 {CALIB} -q"));
    let (before, _) = integers(&place, "plain.onnx");
    let load = optix_io::LoadOptions::default();
    let sparse = optix_io::load(&place.path("sparse.onnx"), &load).expect("it loads").model;
    let layers = sparse.walk().filter(|&id| sparse.node(id).is("Conv") || sparse.node(id).is("Gemm"));
    let floats =
        layers.map(|id| sparse.constant(sparse.node(id).input(1).expect("weights")).expect("constant"));
    let floats: Vec<Vec<f32>> = floats.map(|held| held.to_slice::<f32>().expect("floats").to_vec()).collect();
    assert_eq!(floats.len(), before.len());
    for name in ["learned.onnx", "two.onnx"] {
        let (after, _) = integers(&place, name);
        let mut moved = 0;
        for ((floats, before), after) in floats.iter().zip(&before).zip(&after) {
            let pruned = floats.iter().filter(|x| **x == 0.0).count() * 10 >= 4 * floats.len();
            for ((float, a), b) in floats.iter().zip(before).zip(after) {
                assert!(!pruned || *float != 0.0 || (*a == 0 && *b == 0), "{name}: {float} {a} {b}");
                moved += usize::from(a != b);
            }
        }
        assert!(moved > 100, "{name}: {moved}");
        // What kernels add up in pairs is as safe as it was.
        place.write("certify.toml", b"version = 1\n[[step]]\npass = \"certify-overflow\"\n");
        let verdict = place.ok(&format!("run ./certify.toml {name} -o certified.onnx")).stdout;
        assert!(verdict.contains("layers proven") && !verdict.contains("may saturate"), "{verdict}");
    }
}

#[test]
fn values_on_the_way_and_classes_are_learned_too() {
    let place = Place::new();
    place.ok(&format!(
        "prune {MODEL} -o small.onnx --flops 0.5 --recover=false {CALIB} --calib-samples 64 -q"
    ));
    let line = |out: &str, more: &str| {
        format!("distill small.onnx --teacher {MODEL} -o {out}.onnx --steps 30 {CALIB} {more}")
    };
    place.ok(&line("plain", "-q"));
    place.ok(&line("features", "--features auto -q"));
    place.ok(&line("labels", "--label-weight 0.5 -q"));
    let plain = place.read("plain.onnx");
    assert!(place.read("features.onnx") != plain && place.read("labels.onnx") != plain);
    // Adapters are left behind, and so is everything about them.
    assert_eq!(place.read("features.onnx").len(), plain.len());
    place.ok(&line("one", "--features auto --threads 1 -q"));
    assert!(place.read("one.onnx") == place.read("features.onnx"), "on one thread");
    let report = place.json(&line("again", "--json"));
    let step = report["steps"].as_array().and_then(|steps| steps.last()).expect("a step");
    let points = step["changes"]["curves"][0]["points"].as_array().expect("a curve");
    assert_eq!(points.len(), 16, "the start and every second step: {points:?}");
    let refused = |more: &str| place.ends(&line("x", more), 2).stderr;
    let named = refused("--features nothing-like-it");
    assert!(named.contains("no float value is called `nothing-like-it`"), "{named}");
    assert!(refused("--label-weight=-1").contains("`label-weight` is 0 or more"));
    assert!(!place.exists("x.onnx"));
}
