//! Locks that are damaged, changed, or of another model.

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use super::archive::{array, npz};
use super::harness::{MODEL, OUT, Row, run_all};
use super::pb::{floats, info, product};

/// The table's model with an open batch axis.
fn model() -> Vec<u8> {
    let mut graph = product();
    graph.inputs = vec![info("x", 1, &[-1, 4])];
    graph.outputs = vec![info("y", 1, &[-1, 3])];
    graph.model().into()
}

/// The lock of its static quantization.
static LOCK: LazyLock<String> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, content: Vec<u8>| {
        std::fs::write(directory.path().join(name), content).expect("a file");
    };
    write("model.onnx", model());
    write(
        "x.npz",
        npz(&[("x.npy", array("<f4", "(2, 4)", &floats(&[0.5, 1.0, -1.0, 2.0, 0.25, 0.0, 3.0, -2.0])))]),
    );
    let done = Command::new(env!("CARGO_BIN_EXE_optix"))
        .args(["quantize", "model.onnx", "-o", "int8.onnx", "--calib", "x.npz", "-q"])
        .current_dir(directory.path())
        .status();
    assert!(done.is_ok_and(|status| status.success()), "the lock cannot be made");
    std::fs::read_to_string(directory.path().join("int8.onnx.lock.json")).expect("a lock")
});

const FILE: &str = "in/a.lock.json";

fn row(name: &str, lock: impl Into<Vec<u8>>, says: &[&str]) -> Row {
    let row = Row::new(name).file(MODEL, model()).file(FILE, lock);
    row.run(&["apply", FILE, MODEL, "-o", OUT]).run(&["apply", FILE, MODEL, "--in-place"]).says(says)
}

/// The lock with something in it changed.
fn changed(name: &str, from: &str, to: &str, says: &[&str]) -> Row {
    assert!(LOCK.contains(from), "{from}\n{}", *LOCK);
    row(name, LOCK.replacen(from, to, 1), says).says(&["lock in/a.lock.json"])
}

/// What stands between two texts in the lock.
fn between(before: &str, after: &str) -> &'static str {
    let rest = LOCK.split_once(before).expect("it is there").1;
    rest.split_once(after).expect("it is there").0
}

fn rows() -> Vec<Row> {
    let damaged =
        |name: &str, lock: &[u8]| row(name, lock, &["lock in/a.lock.json", "not a lock, or damaged"]);
    let file = |name: &str, prepare: fn(&Path), says: &[&str]| {
        let row = Row::new(name).file(MODEL, model()).prepare(prepare);
        row.run(&["apply", FILE, MODEL, "-o", OUT]).says(&[FILE]).says(says)
    };
    let scale = format!("\"scale\":{}", between("\"scale\":", ","));
    let zero = format!("\"zero_point\":{}", between("\"zero_point\":", ","));
    let output = between("\"output\": [", "]").to_owned();
    let input = between("\"input\": [", "]").to_owned();
    let nested = format!("\"range/x\": {}{}, \"range/was\"", "[".repeat(100_000), "]".repeat(100_000));
    vec![
        Row::new("lock: as it was written")
            .file(MODEL, model())
            .file(FILE, LOCK.clone())
            .run(&["apply", FILE, MODEL, "-o", OUT])
            .done(0)
            .says(&["model.onnx -> out/old.onnx", "as locked"]),
        damaged("lock: empty", b""),
        damaged("lock: not JSON", b"version = 1\n"),
        damaged("lock: a number", b"3"),
        damaged("lock: a list", b"[]"),
        damaged("lock: another document", b"{\"version\": \"0.1.0\"}"),
        damaged("lock: not UTF-8", b"{\"schema\": \"\xff\"}"),
        damaged("lock: NUL", b"\0\0\0\0"),
        damaged("lock: cut in the middle", &LOCK.as_bytes()[..LOCK.len() / 2]),
        damaged("lock: 100,000 lists in each other", "[".repeat(100_000).as_bytes()),
        changed(
            "lock: another form",
            "optix-lock/1",
            "optix-lock/2",
            &["`optix-lock/2`", "reads optix-lock/1"],
        ),
        changed("lock: terminal codes", "optix-lock/1", "\\u001b[31m", &["reads optix-lock/1"]),
        changed("lock: unknown key", "\"external_data\"", "\"external\"", &["damaged", "external"]),
        changed(
            "lock: key twice",
            "\"external_data\": false",
            "\"engine\": \"x\", \"external_data\": false",
            &["duplicate"],
        ),
        changed("lock: recipe changed", "seed = 0", "seed = 1", &["recipe was changed", "OX-L001"]),
        changed(
            "lock: steps are missing",
            "\"id\": \"fold-constants\"",
            "\"id\": \"fold\"",
            &["steps are not those"],
        ),
        changed("lock: no decision", "\"range/x\"", "\"range/z\"", &["no decision `range/x`"]),
        changed(
            "lock: one decision more",
            "\"range/x\"",
            "\"a\\u001b\": 1, \"range/x\"",
            &["nothing asks for"],
        ),
        changed(
            "lock: decision of another kind",
            &scale,
            "\"scale\":\"1\"",
            &["`range/x`", "cannot be used"],
        ),
        changed("lock: decision 100,000 lists deep", "\"range/x\"", &nested, &["cannot be used"]),
        changed("lock: scale 0", &scale, "\"scale\":0.0", &["`range/x`", "not positive"]),
        changed("lock: scale below 0", &scale, "\"scale\":-1", &["`range/x`", "not positive"]),
        changed("lock: scale beyond f32", &scale, "\"scale\":1e300", &["`range/x`"]),
        changed("lock: scale beyond f64", &scale, "\"scale\":1e999", &["`range/x`"]),
        changed(
            "lock: zero point out of range",
            &zero,
            "\"zero_point\":70000",
            &["`range/x`", "no quantizer"],
        ),
        changed("lock: integers upside down", "\"low\":0", "\"low\":300", &["`range/x`", "no quantizer"]),
        changed("lock: another scale", &scale, "\"scale\":0.5", &["not the file that was locked", "OX-L001"]),
        changed("lock: another output", &output, "", &["the lock says 0"]),
        changed("lock: another input", &input, "", &["another model", "one of 0 files"]),
        changed(
            "lock: of fewer rewrites",
            "\"external_data\": false",
            "\"external_data\": false, \"stop_after_patch\": 0",
            &["not the file that was locked"],
        ),
        Row::new("lock: of another model")
            .file(MODEL, product().model())
            .file(FILE, LOCK.clone())
            .run(&["apply", FILE, MODEL, "-o", OUT])
            .says(&["made from another model", "BLAKE3", "OX-L001"]),
        Row::new("lock: the model is none")
            .file(MODEL, "no model")
            .file(FILE, LOCK.clone())
            .run(&["apply", FILE, MODEL, "-o", OUT])
            .says(&[MODEL]),
        Row::new("lock: the output is the lock or the model")
            .file(MODEL, model())
            .file(FILE, LOCK.clone())
            .run(&["apply", FILE, MODEL, "-o", FILE])
            .run(&["apply", FILE, MODEL, "-o", MODEL])
            .run(&["apply", FILE, MODEL, "-o", "out/../in/model.onnx"])
            .says(&["one of the input files"]),
        Row::new("lock: the output is no file")
            .file(MODEL, model())
            .file(FILE, LOCK.clone())
            .run(&["apply", FILE, MODEL, "-o", "out"])
            .run(&["apply", FILE, MODEL, "-o", "out/old.onnx/x.onnx"])
            .says(&["cannot write out"]),
        file("lock: missing", |_| {}, &["check the path"]),
        file(
            "lock: a directory",
            |root| std::fs::create_dir(root.join(FILE)).expect("a directory"),
            &["directory"],
        ),
        file(
            "lock: too large",
            |root| {
                let file = std::fs::File::create(root.join(FILE)).expect("a file");
                file.set_len((256 << 20) + 1).expect("a long file");
            },
            &["too many for a lock"],
        ),
        file(
            "lock: a pipe",
            |root| {
                let made = Command::new("mkfifo").arg(root.join(FILE)).status();
                assert!(made.is_ok_and(|status| status.success()), "mkfifo");
            },
            &["pipe"],
        ),
    ]
}

#[test]
fn locks_that_cannot_be_applied() {
    run_all(rows());
}

#[test]
fn a_lock_that_cannot_be_written_is_found_out_before() {
    let row = |name: &str| Row::new(name).file(MODEL, model()).says(&["lock.json"]);
    run_all(vec![
        row("lock beside the output is a directory")
            .prepare(|root| std::fs::create_dir(root.join("out/new.onnx.lock.json")).expect("a directory"))
            .run(&["quantize", MODEL, "-o", "out/new.onnx"])
            .says(&["--lock never"]),
        row("lock beside the output is the recipe")
            .file("in/r.onnx.lock.json", "version = 1\n")
            .run(&["run", "in/r.onnx.lock.json", MODEL, "-o", "in/r.onnx"])
            .says(&["one of the input files"]),
        row("lock beside the output is a report")
            .run(&["quantize", MODEL, "-o", "out/new.onnx", "--report", "out/new.onnx.lock.json"])
            .says(&["choose another name"]),
    ]);
}
