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
    assert!(refused("--learning-rate 0.01").contains("another model, teacher, data, seed or options"));
    assert!(place.read("state") == state && !place.exists("other.onnx"));
    place.write("state", b"something else");
    assert!(refused("").contains("it is no checkpoint"), "{}", refused(""));
    let run = place.ends(&format!("prune {MODEL} -o x.onnx --checkpoint state"), 2).stderr;
    assert!(run.contains("no step of this recipe trains"), "{run}");
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
