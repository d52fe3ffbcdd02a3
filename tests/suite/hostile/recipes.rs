//! Recipes and command lines that are wrong.

use super::harness::{MODEL, OUT, Row, run_all};
use super::pb::product;

/// A recipe that is refused before the model is looked at.
fn row(name: &str, text: impl Into<Vec<u8>>, says: &[&str]) -> Row {
    let row = Row::new(name).file(MODEL, product().model()).file("in/r.toml", text);
    row.run(&["run", "in/r.toml", MODEL, "-o", OUT]).says(&["in/r.toml"]).says(says)
}

/// Steps of a recipe that starts as it should.
fn step(name: &str, step: &str, says: &[&str]) -> Row {
    row(name, format!("version = 1\n\n[[step]]\n{step}\n"), says)
}

fn recipes() -> Vec<Row> {
    let long = format!("version = 1\n{}", "# nothing\n".repeat(2_000_000));
    let nested = |open: &str| format!("version = 1\na = {}", open.repeat(100_000));
    let missing = |name: &str, recipe: &str, says: &[&str]| {
        Row::new(name).file(MODEL, product().model()).run(&["run", recipe, MODEL, "-o", OUT]).says(says)
    };
    vec![
        row("recipe: not TOML", "version = \n", &["in/r.toml:1"]),
        row("recipe: empty", "", &["version"]),
        row("recipe: version 2", "version = 2\n", &["in/r.toml:1:11", "version 2", "reads version 1"]),
        row("recipe: version is text", "version = \"1\"\n", &["in/r.toml:1", "string"]),
        row("recipe: unknown key", "version = 1\nsede = 3\n", &["in/r.toml:2:1", "did you mean `seed`?"]),
        row(
            "recipe: unknown table",
            "version = 1\n[requires]\n",
            &["in/r.toml:2", "did you mean `require`?"],
        ),
        row("recipe: steps", "version = 1\n[[steps]]\npass = \"x\"\n", &["in/r.toml:2", "[[step]]"]),
        row("recipe: step is a number", "version = 1\nstep = 3\n", &["in/r.toml:2", "[[step]]"]),
        row("recipe: steps are numbers", "version = 1\nstep = [3]\n", &["in/r.toml:2", "[[step]]"]),
        row("recipe: negative seed", "version = 1\nseed = -1\n", &["in/r.toml:2:8", "-1"]),
        row("recipe: seed beyond 64 bits", "version = 1\nseed = 99999999999999999999\n", &["in/r.toml:2:8"]),
        row("recipe: key twice", "version = 1\nversion = 1\n", &["in/r.toml:2", "duplicate"]),
        row("recipe: agreement of 2", "version = 1\n[require]\nagreement = 2\n", &["in/r.toml:3", "0 to 1"]),
        row(
            "recipe: drop that is no number",
            "version = 1\n[require]\naccuracy-drop = nan\n",
            &["in/r.toml:3", "NaN"],
        ),
        row(
            "recipe: ratio without end",
            "version = 1\n[require]\nsize-ratio = inf\n",
            &["in/r.toml:3", "inf"],
        ),
        row(
            "recipe: unknown requirement",
            "version = 1\n[require]\nagrement = 1\n",
            &["did you mean `agreement`?"],
        ),
        missing("recipe: data that are not there", "in/r.toml", &["in/no.npz", "check the path"])
            .file("in/r.toml", "version = 1\n[data]\neval = \"no.npz\"\n"),
        row("recipe: unknown data key", "version = 1\n[data]\ncalibs = \"a\"\n", &["did you mean `calib`?"]),
        row("recipe: 20 MB", long, &["too many for a recipe"]),
        row("recipe: 100,000 arrays in each other", nested("["), &["in/r.toml:2"]),
        row("recipe: 100,000 tables in each other", nested("{a="), &["in/r.toml:2"]),
        row("recipe: not UTF-8", b"version = 1 # \xff\n".to_vec(), &["UTF-8"]),
        row("recipe: NUL", b"version = 1\n\0\n".to_vec(), &["in/r.toml:2"]),
        row("recipe: terminal codes", b"version = 1\n\"\x1b[31m\" = 2\n".to_vec(), &["in/r.toml:2"]),
        step("step: no pass", "id = \"a\"", &["in/r.toml:3", "no `pass`"]),
        step("step: pass is a number", "pass = 3", &["in/r.toml:4:8", "must be a string"]),
        step(
            "step: unknown pass",
            "pass = \"quantize-statik\"",
            &["in/r.toml:4:8", "did you mean `quantize-static`?", "optix passes"],
        ),
        step(
            "step: unknown option",
            "pass = \"quantize-dynamic\"\nper-chanel = true",
            &["in/r.toml:5:1", "did you mean `per-channel`?"],
        ),
        step(
            "step: option of a wrong type",
            "pass = \"quantize-dynamic\"\nper-channel = \"yes\"",
            &["in/r.toml:5", "bool"],
        ),
        step(
            "step: option that does not exist anywhere",
            "pass = \"eliminate-dead\"\nlevel = 3",
            &["in/r.toml:5:1", "`level`"],
        ),
        step(
            "step: value that is none of them",
            "pass = \"quantize-static\"\nobserver = \"mxe\"",
            &["in/r.toml:5", "mxe", "expected one of `auto`, `min-max`"],
        ),
        missing("step: needs calibration", "in/r.toml", &["quantize-static", "--calib PATH"])
            .file("in/r.toml", "version = 1\n[[step]]\npass = \"quantize-static\"\n"),
        missing("recipe: no such file", "in/no.toml", &["in/no.toml", "No such file"]),
        missing("recipe: no such name", "int8-cpi", &["did you mean `int8-cpu`?"]),
        missing("recipe: directory", "in/", &["in/", "directory"]),
        missing("recipe: endless device", "/dev/zero", &["/dev/zero", "not a file"]),
        missing("recipe: pipe", "in/pipe.toml", &["in/pipe.toml", "not a file"]).prepare(|root| {
            let made = std::process::Command::new("mkfifo").arg(root.join("in/pipe.toml")).status();
            assert!(made.is_ok_and(|status| status.success()), "mkfifo");
        }),
    ]
}

fn command_lines() -> Vec<Row> {
    let row = |name: &str, arguments: &[&str], says: &[&str]| {
        Row::new(name).file(MODEL, product().model()).run(arguments).says(says)
    };
    let quantize = |name: &str, arguments: &[&str], says: &[&str]| {
        let all = [&["quantize", MODEL, "-o", OUT], arguments].concat();
        row(name, &all, says)
    };
    vec![
        row("no command", &["quantise", MODEL], &["quantise", "quantize", "--help"]),
        row("no model", &["quantize"], &["MODEL", "--help"]),
        row("no output", &["quantize", MODEL], &["--output", "--help"]),
        row("output twice", &["quantize", MODEL, "-o", OUT, "-o", OUT], &["--output", "--help"]),
        row("output and in place", &["quantize", MODEL, "-o", OUT, "--in-place"], &["--in-place", "--help"]),
        row("unknown flag", &["inspect", MODEL, "--jsno"], &["--jsno", "--json"]),
        row("both forms at once", &["inspect", MODEL, "--json", "--text"], &["--json", "--text"]),
        row(
            "model that is not there",
            &["inspect", "in/no.onnx"],
            &["in/no.onnx", "No such file", "check the path"],
        ),
        row("model beneath a file", &["inspect", "in/model.onnx/x"], &["in/model.onnx/x"]),
        row("model is a device", &["inspect", "/dev/zero"], &["/dev/zero", "device"]),
        row("model without a name", &["inspect", ""], &["<MODEL>", "--help"]),
        row("model of a name too long", &["inspect", &"n".repeat(5000)], &["nnn...nnn", "too long"]),
        row("name with terminal codes", &["inspect", "in/\u{1b}[31m"], &["in/\\u{1b}[31m", "check the path"]),
        quantize("threads that are no number", &["--threads", "two"], &["--threads", "two"]),
        quantize("threads negative", &["--threads=-1"], &["--threads"]),
        quantize("limit that is none", &["--limits", "nods=3"], &["nods=3", "name=value", "nodes"]),
        quantize("limit that is no number", &["--limits", "nodes=many"], &["nodes=many", "name=value"]),
        quantize(
            "limit of nodes passed",
            &["--limits", "nodes=0"],
            &["more than 0 nodes", "--limits nodes=N"],
        ),
        quantize(
            "limit of tensors passed",
            &["--limits", "tensors=0"],
            &["more than 0 tensors", "--limits tensors=N"],
        ),
        quantize("limit of names passed", &["--limits", "names-bytes=3"], &["--limits names-bytes=N"]),
        quantize("engine that is none", &["--engine", "cpuu"], &["did you mean `cpu`?"]).refused(3),
        quantize("static without calibration", &["--method", "static"], &["--calib PATH"]),
        quantize("method that is none", &["--method", "magic"], &["magic", "static, dynamic"]),
        quantize("observer that is none", &["--method", "static", "--observer", "mxe"], &["mxe", "mse"]),
        quantize(
            "activation type that is none",
            &["--method", "static", "--activation-type", "int3"],
            &["int3"],
        ),
        quantize(
            "target that is none",
            &["--method", "static", "--target", "ort-cp"],
            &["did you mean `ort-cpu`?"],
        ),
        quantize(
            "target that is no file",
            &["--method", "static", "--target", "a/b"],
            &["cannot read target a/b"],
        ),
        quantize(
            "step that is none",
            &["--set", "quantize-dynamik.per-channel=true"],
            &["did you mean `quantize-dynamic`?"],
        ),
        quantize(
            "option that is none",
            &["--set", "quantize-dynamic.per-chanel=true"],
            &["did you mean `per-channel`?"],
        ),
        quantize(
            "value of another type",
            &["--set", "quantize-dynamic.per-channel=3"],
            &["per-channel=3", "bool"],
        ),
        quantize("set without a form", &["--set", "per-channel"], &["--set", "step.option=value"]),
        quantize("requirement that is none", &["--require", "agrement=1"], &["did you mean `agreement`?"]),
        quantize("requirement without number", &["--require", "agreement=much"], &["name=number"]),
        quantize("requirement that is NaN", &["--require", "agreement=nan"], &["name=number"]),
        quantize("requirement without data", &["--require", "agreement=0.9"], &["--eval PATH"]),
        quantize(
            "print after no step",
            &["--print-after", "quantize"],
            &["quantize", "it has: fold-constants"],
        ),
        quantize(
            "report of no kind",
            &["--report", "out/report.pdf"],
            &["out/report.pdf", ".json, .md or .html"],
        ),
        quantize(
            "report without a directory",
            &["--report", "no/report.md"],
            &["no/report.md", "create it first"],
        ),
        row(
            "pass that is none",
            &["passes", "quantize-statik"],
            &["quantize-statik", "did you mean `quantize-static`?"],
        ),
        row("recipe that is none", &["recipes", "cleen"], &["cleen", "did you mean `clean`?"]),
        row("code that is none", &["explain", "OX-M999"], &["OX-M999"]),
        row("shell that is none", &["completions", "tcsh"], &["tcsh", "bash"]),
        row(
            "value that is none",
            &["infer", MODEL, "--data", MODEL, "-o", OUT, "--want", "yy"],
            &["--want yy", "no such value"],
        ),
        row(
            "two models of different inputs",
            &["compare", MODEL, MODEL, "--data", "in/no.npz"],
            &["in/no.npz", "check the path"],
        ),
    ]
}

fn legal() -> Vec<Row> {
    let legal = |name: &str, text: &str| {
        Row::new(name)
            .file(MODEL, product().model())
            .file("in/r.toml", text)
            .run(&["run", "in/r.toml", MODEL, "-o", OUT])
            .done(0)
    };
    vec![
        legal("recipe with a byte order mark", "\u{feff}version = 1\n"),
        legal("recipe with CRLF", "version = 1\r\n[[step]]\r\npass = \"eliminate-dead\"\r\n"),
        legal("recipe without steps", "version = 1\n"),
        legal(
            "pass twice",
            "version = 1\n[[step]]\npass = \"eliminate-dead\"\n[[step]]\npass = \"eliminate-dead\"\n",
        ),
        Row::new("paths with blanks, quotes and accents")
            .file("in/a b/m'ö\".onnx", product().model())
            .run(&["quantize", "in/a b/m'ö\".onnx", "-o", "out/new; rm -rf $HOME.onnx"])
            .done(0),
        Row::new("path that looks like a flag")
            .file("-q.onnx", product().model())
            .run(&["inspect", "--", "-q.onnx"])
            .done(0),
    ]
}

#[test]
fn wrong_recipes() {
    run_all(recipes());
}

#[test]
fn wrong_command_lines() {
    run_all(command_lines());
}

#[test]
fn odd_but_legal_command_lines() {
    run_all(legal());
}
