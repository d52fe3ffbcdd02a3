//! `optix quantize-auto`.

use super::{CALIB, MODEL};
use crate::program::Place;

const TUNE: &str = "--tune fixtures/data/fmnist-eval.toml --tune-samples 1000";

#[test]
fn the_first_recipe_that_surely_holds_is_chosen_and_written_down() {
    let place = Place::new();
    let run = place.ok(&format!(
        "quantize-auto {MODEL} -o int8.onnx {CALIB} {TUNE} --max-drop 3 --deploy none --report int8.json"
    ));
    // The cheapest one will do.
    let tried: Vec<&str> = run.stderr.lines().filter(|line| line.contains("points lost")).collect();
    assert_eq!(tried.len(), 1, "{}", run.stderr);
    assert!(tried[0].starts_with("int8: ") && tried[0].ends_with("surely within 3"), "{tried:?}");
    assert!(run.stderr.contains("chosen: int8; the recipe is int8.onnx.recipe.toml"), "{}", run.stderr);
    assert_eq!(place.list(), ["int8.json", "int8.onnx", "int8.onnx.lock.json", "int8.onnx.recipe.toml"]);
    // The recipe is a plain one: it makes the same file.
    place.ok(&format!("run ./int8.onnx.recipe.toml {MODEL} -o again.onnx {CALIB} -q --deploy none"));
    assert!(place.read("int8.onnx") == place.read("again.onnx"), "again.onnx differs");
    // Its lock is that of such a run, although the trial was not repeated: only the command differs, which no lock holds.
    let lock =
        |name: &str| String::from_utf8(place.read(name)).expect("text").replace("again.onnx", "int8.onnx");
    assert_eq!(lock("int8.onnx.lock.json"), lock("again.onnx.lock.json"));
    place.ok(&format!("apply int8.onnx.lock.json {MODEL} -o locked.onnx"));
    assert!(place.read("int8.onnx") == place.read("locked.onnx"));
}

#[test]
fn the_best_is_kept_and_the_exit_code_is_1_where_none_holds() {
    let place = Place::new();
    // 40 samples can never show that nothing at all is lost.
    let line = format!(
        "quantize-auto {MODEL} -o best.onnx {CALIB} --tune fixtures/data/fmnist-eval.toml \
         --tune-samples 40 --max-drop 0 --deploy none"
    );
    let run = place.ends(&line, 1);
    assert!(run.stderr.contains("no recipe surely loses at most 0 points"), "{}", run.stderr);
    assert!(run.stderr.lines().filter(|line| line.contains("points lost")).count() > 3, "{}", run.stderr);
    assert!(place.exists("best.onnx") && place.exists("best.onnx.recipe.toml"));
}

#[test]
fn what_cannot_be_judged_is_said_before_anything_is_tried() {
    let place = Place::new();
    let same = "--tune fixtures/data/fmnist-eval.toml --eval fixtures/data/fmnist-eval.toml";
    for (flags, said) in [
        ("--max-drop 1", "--calib"),
        ("--max-drop=-1 --calib fixtures/data/fmnist-calib.toml", "from 0 to 100"),
        (&format!("--max-drop 1 {same}")[..], "same data"),
        ("--max-drop 1 --calib nowhere.toml", "nowhere.toml"),
    ] {
        let error = place.ends(&format!("quantize-auto {MODEL} -o x.onnx {flags}"), 2).stderr;
        assert!(error.contains(said), "{flags}: {error}");
    }
    assert_eq!(place.list(), [""; 0]);
}
