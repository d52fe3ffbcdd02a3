//! Places where nothing can be written, outputs that are inputs, limits of the system, and results that are
//! not good enough.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::archive::{array, npz};
use super::harness::{MODEL, OUT, Out, Row, fixture, fixture_path, run_all};
use super::pb::{floats, product};

fn model() -> Vec<u8> {
    product().model().into()
}

/// Writing a model to `target`.
fn to(name: &str, target: &str, says: &[&str]) -> Row {
    let row = Row::new(name).file(MODEL, model());
    row.run(&["quantize", MODEL, "-o", target]).run(&["run", "clean", MODEL, "-o", target]).says(says)
}

fn targets() -> Vec<Row> {
    let link = |target: &'static str, name: &'static str| {
        move |root: &Path| symlink(target, root.join(name)).expect("a link")
    };
    let with_data = |name: &str| {
        Row::new(name)
            .file(MODEL, model())
            .file("in/x.npz", npz(&[("x.npy", array("<f4", "(2, 4)", &floats(&[1.0; 8])))]))
    };
    vec![
        to("output directory is missing", "no/such/model.onnx", &["no/such", "create it first"]),
        to("output is a directory", "out", &["out", "directory", "name a file in it"]),
        to("output is a directory, with a slash", "out/", &["out", "directory", "name a file in it"]),
        to("output is where we are", ".", &["cannot write ."]),
        to("output has no name", "", &["--output <FILE>", "--help"]),
        to("output is beneath a file", "out/old.onnx/model.onnx", &["out/old.onnx"]),
        to("output is a device", "/dev/full", &["/dev/full", "device"]),
        to("output is a pipe", "out/pipe", &["out/pipe", "pipe"]).prepare(|root| {
            let made = std::process::Command::new("mkfifo").arg(root.join("out/pipe")).status();
            assert!(made.is_ok_and(|status| status.success()), "mkfifo");
        }),
        to("output has a name too long", &format!("out/{}.onnx", "n".repeat(300)), &["too long"]),
        to(
            "output where no files can be",
            "/proc/model.onnx",
            &["/proc/model.onnx", "choose another directory"],
        )
        .refused(3),
        to(
            "output in a read-only place",
            "/sys/kernel/model.onnx",
            &["/sys/kernel/model.onnx", "choose another directory"],
        )
        .refused(3),
        to("output is the model", MODEL, &[MODEL, "one of the input files", "--in-place"]),
        to(
            "output is the model, by a detour",
            "in/../in/model.onnx",
            &["one of the input files", "--in-place"],
        ),
        to(
            "output is a link to the model",
            "out/link.onnx",
            &["symbolic link", "name the file it points to"],
        )
        .prepare(link("../in/model.onnx", "out/link.onnx")),
        to("output is a link to nowhere", "out/link.onnx", &["symbolic link", "name the file it points to"])
            .prepare(link("nowhere", "out/link.onnx")),
        to(
            "output directory is a link to the input's",
            "out/link/model.onnx",
            &["one of the input files", "--in-place"],
        )
        .prepare(link("../in", "out/link")),
        to("output is a hard link to the model", "out/hard.onnx", &["one of the input files", "--in-place"])
            .prepare(|root| {
                std::fs::hard_link(root.join(MODEL), root.join("out/hard.onnx")).expect("a link")
            }),
        with_data("output is the calibration data")
            .run(&["quantize", MODEL, "-o", "in/x.npz", "--calib", "in/x.npz"])
            .run(&["quantize", MODEL, "-o", "in/x.npz", "--eval", "in/x.npz"])
            .run(&["infer", MODEL, "--data", "in/x.npz", "-o", "in/x.npz"])
            .says(&["in/x.npz", "one of the input files", "choose another name"]),
        with_data("output is a data.toml or what it names")
            .file("in/data.toml", "[source]\npath = \"x.npz\"\n")
            .run(&["quantize", MODEL, "-o", "in/x.npz", "--calib", "in/data.toml"])
            .run(&["quantize", MODEL, "-o", "in/data.toml", "--calib", "in/data.toml"])
            .run(&["infer", MODEL, "--data", "in/data.toml", "-o", "in/x.npz"])
            .run(&["infer", MODEL, "--data", "in/data.toml", "-o", "in/data.toml"])
            .says(&["one of the input files", "choose another name"]),
        with_data("output of infer is the model")
            .run(&["infer", MODEL, "--data", "in/x.npz", "-o", MODEL])
            .says(&[MODEL, "one of the input files", "choose another name"]),
        Row::new("output is the recipe")
            .file(MODEL, model())
            .file("in/r.toml", "version = 1\n")
            .run(&["run", "in/r.toml", MODEL, "-o", "in/r.toml"])
            .says(&["in/r.toml", "one of the input files", "choose another name"]),
        Row::new("report is the model")
            .file("in/model.json", model())
            .run(&["quantize", "in/model.json", "-o", OUT, "--report", "in/model.json"])
            .says(&["in/model.json", "one of the input files", "choose another name"]),
        Row::new("report is the output")
            .file(MODEL, model())
            .run(&["quantize", MODEL, "-o", "out/new.json", "--report", "out/new.json"])
            .says(&["out/new.json", "choose another name"]),
        Row::new("report is the report")
            .file(MODEL, model())
            .run(&["quantize", MODEL, "-o", OUT, "--report", "out/a.md", "--report", "out/../out/a.md"])
            .says(&["a.md", "choose another name"]),
        Row::new("dump directory is a file")
            .file(MODEL, model())
            .run(&["quantize", MODEL, "-o", "out/new.onnx", "--dump-dir", OUT])
            .says(&[OUT, "directory"]),
    ]
}

fn limits() -> Vec<Row> {
    let big = || {
        let images = fixture_path("data/fmnist-train512-images-idx3-ubyte.gz");
        let spec = format!(
            "[source]\nkind = \"idx\"\npath = \"{}\"\ntake = 64\n[input]\nsteps = [ {{ to-float = {{}} }}, {{ layout = \"nchw\" }} ]\n",
            images.display()
        );
        Row::new("").file(MODEL, fixture("models/fmnist_mobilenet.onnx")).file("in/data.toml", spec)
    };
    // In blocks of 512 bytes.
    let full = |row: Row, name: &str, blocks: u32| {
        row.named(name).limits(&format!("ulimit -f {blocks}")).refused(3).says(&["cannot write", "ulimit -f"])
    };
    vec![
        full(big().run(&["quantize", MODEL, "-o", OUT]), "no room for the model", 8),
        full(big().run(&["quantize", MODEL, "--in-place"]), "no room for the model, in place", 8),
        full(big().run(&["quantize", MODEL, "-o", OUT, "--external-data"]), "no room for the data file", 8),
        full(
            big().run(&["infer", MODEL, "--data", "in/data.toml", "-o", "out/y.npz"]),
            "no room for outputs",
            1,
        ),
        big()
            .named("no room on stdout")
            .run(&["inspect", MODEL])
            .run(&["inspect", MODEL, "--json"])
            .run(&["inspect", MODEL, "--text"])
            .run(&["recipes"])
            .run(&["passes"])
            .run(&["engines"])
            .run(&["explain"])
            .run(&["data", "check", "in/data.toml"])
            .stdout(Out::Full)
            .refused(3)
            .says(&["cannot write to stdout", "No space left"]),
        big()
            .named("nobody reads stdout")
            .run(&["inspect", MODEL, "--text"])
            .run(&["passes"])
            .run(&["--help"])
            .stdout(Out::Closed)
            .done(0),
        big()
            .named("no more files may be opened")
            .run(&["quantize", MODEL, "-o", OUT])
            .limits("ulimit -n 4")
            .refused(3)
            .says(&["Too many open files"]),
    ]
}

fn verdicts() -> Vec<Row> {
    let row = |name: &str| Row::new(name).file(MODEL, model());
    vec![
        row("requirement missed")
            .run(&["quantize", MODEL, "-o", OUT, "--require", "size-ratio=0.001"])
            .done(1)
            .says(&["size-ratio", "missed"]),
        row("requirement missed, output not kept")
            .run(&["quantize", MODEL, "-o", OUT, "--require", "size-ratio=0.001", "--keep-failed", "false"])
            .run(&[
                "quantize",
                MODEL,
                "--in-place",
                "--require",
                "size-ratio=0.001",
                "--keep-failed",
                "false",
            ])
            .refused(1)
            .says(&["missed"]),
        row("requirement met")
            .run(&["quantize", MODEL, "-o", OUT, "--require", "size-ratio=100"])
            .done(0)
            .says(&["size-ratio"]),
        row("in place").run(&["quantize", MODEL, "--in-place"]).done(0),
    ]
}

#[test]
fn bad_targets() {
    run_all(targets());
}

#[test]
fn limits_of_the_system() {
    run_all(limits());
}

/// A file system of 64 KiB, where one may be mounted.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(directory: &Path) -> Option<Small> {
        let done = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(directory)
            .stderr(std::process::Stdio::null())
            .status();
        done.is_ok_and(|status| status.success()).then(|| Small(directory.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[allow(clippy::print_stdout, reason = "says what was skipped")]
fn full_disk() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let Some(small) = Small::mount(directory.path()) else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    let old = small.0.join("old.onnx");
    std::fs::write(&old, "old").expect("a file");
    let (old, data) = (old.to_str().expect("UTF-8"), small.0.join("y.npz"));
    let data = data.to_str().expect("UTF-8");
    let images = fixture("data/fmnist-train512-images-idx3-ubyte.gz");
    let spec =
        "[source]\npath = \"images.gz\"\n[input]\nsteps = [ { to-float = {} }, { layout = \"nchw\" } ]\n";
    let resnet = || Row::new("").file(MODEL, fixture("models/fmnist_resnet.onnx")).watch(&small.0).refused(3);
    // One after the other: both watch the same directory.
    for row in [
        resnet()
            .named("disk too small for the model")
            .run(&["quantize", MODEL, "-o", old])
            .run(&["quantize", MODEL, "-o", old, "--external-data"])
            .says(&["bytes are needed", "are free", "make room"]),
        resnet()
            .named("disk too small for outputs")
            .file("in/images.gz", images)
            .file("in/data.toml", spec)
            .run(&[
                "infer",
                MODEL,
                "--data",
                "in/data.toml",
                "-o",
                data,
                "--want",
                "logits",
                "--want",
                "image",
            ])
            .says(&["cannot write", "y.npz", "make room"]),
    ] {
        run_all(vec![row]);
    }
}

#[test]
fn verdicts_on_results() {
    run_all(verdicts());
}
