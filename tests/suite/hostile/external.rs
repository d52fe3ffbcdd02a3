//! Weights in another file: where a model may point, and where not.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::harness::{MODEL, OUT, Row, run_all};
use super::pb::*;

/// A model whose weights are at `location`.
fn at(location: &str) -> Pb {
    place(&[("location", location)])
}

fn place(entries: &[(&str, &str)]) -> Pb {
    with_weights(external("w", &[4, 3], entries))
}

/// At an offset and of a length in `w.bin`, which has 64 bytes.
fn range(offset: &str, length: &str) -> Pb {
    place(&[("location", "w.bin"), ("offset", offset), ("length", length)])
}

fn payload() -> Vec<u8> {
    floats(&[0.5; 16])
}

fn mkfifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
}

fn bad() -> Vec<Row> {
    let refused = "not to be trusted";
    let row = |name: &str, model: Pb, says: &[&str]| {
        Row::model(name, model, says).file("in/w.bin", payload()).file("secret.bin", payload())
    };
    let path = |name: &str, location: &str| row(name, at(location), &["initializer `w`", refused]);
    let number = |name: &str, offset: &str, length: &str| {
        row(name, range(offset, length), &["initializer `w`", "external data"])
    };
    vec![
        path("data file above", "../secret.bin"),
        path("data file above, by a detour", "sub/../../secret.bin"),
        path("data file above, after a dot", "./../secret.bin"),
        path("data file by an absolute path", "/etc/hostname"),
        path("data file by two slashes", "//etc/hostname"),
        path("data file on a drive", "C:\\w.bin"),
        path("data file on a share", "\\\\server\\w.bin"),
        path("data file with backslashes", "..\\secret.bin"),
        path("data file with a NUL", "w.bin\0"),
        path("data file is the parent", ".."),
        row("data file is a link out", at("link.bin"), &["`w`", "leads out", refused])
            .prepare(|root| symlink("../secret.bin", root.join("in/link.bin")).expect("a link")),
        row("data file is an absolute link out", at("link.bin"), &["`w`", "leads out", refused])
            .prepare(|root| symlink("/etc/hostname", root.join("in/link.bin")).expect("a link")),
        row("data directory is a link out", at("sub/secret.bin"), &["`w`", "leads out", refused])
            .prepare(|root| symlink("..", root.join("in/sub")).expect("a link")),
        row("data file links to itself", at("link.bin"), &["link.bin"])
            .prepare(|root| symlink("link.bin", root.join("in/link.bin")).expect("a link")),
        row("data file is missing", at("nowhere.bin"), &["`w`", "nowhere.bin", "put it beside the model"]),
        row("data directory is missing", at("sub/nowhere.bin"), &["`w`", "sub/nowhere.bin", "put it beside"]),
        row("data file has no name", at(""), &["`w`", "no `location`"]),
        row("data file is not named", place(&[("offset", "0")]), &["`w`", "no `location`"]),
        row(
            "data file named twice",
            place(&[("location", "w.bin"), ("location", "w.bin")]),
            &["`w`", "twice"],
        ),
        row("data file is a directory", at("sub"), &["sub", "directory"])
            .prepare(|root| std::fs::create_dir(root.join("in/sub")).expect("a directory")),
        row("data file is a pipe", at("pipe"), &["pipe"]).prepare(|root| mkfifo(&root.join("in/pipe"))),
        row("data file is the model", at("model.onnx"), &["`w`", "the model itself"]),
        row("data file is the model by a link", at("link.bin"), &["`w`"])
            .prepare(|root| symlink("model.onnx", root.join("in/link.bin")).expect("a link")),
        row("data file beneath a file", at("w.bin/more"), &["w.bin/more"]),
        row("data file of a name too long", at(&"n".repeat(5000)), &["nnn"]),
        number("offset negative", "-1", "48"),
        number("offset in hexadecimal", "0x10", "48"),
        number("offset as a power of ten", "1e1", "48"),
        number("offset empty", "", "48"),
        number("offset with a plus", "+0", "48"),
        number("offset with a space", " 0", "48"),
        number("offset 2^64", "18446744073709551616", "48"),
        number("offset 2^63", "9223372036854775808", "48"),
        number("length negative", "0", "-48"),
        number("length of another shape", "0", "64"),
        row("offset 2^63 - 1", range("9223372036854775807", "48"), &["`w`", "too short"]),
        row("offset at the end", range("64", "48"), &["`w`", "too short"]),
        row("range past the end", range("17", "48"), &["`w`", "too short"]),
        row(
            "shape of terabytes",
            with_weights(external("w", &[1 << 20, 1 << 20], &[("location", "w.bin")])),
            &["`w`", "too short"],
        ),
        row(
            "shape beyond any memory",
            with_weights(external("w", &[1 << 40, 1 << 40], &[("location", "w.bin")])),
            &["`w`", "cannot be in external data"],
        ),
        row(
            "strings in a data file",
            with_constants(
                vec![],
                vec![
                    header("s", STRING, &[1])
                        .message(13, &Pb::new().put(1, "location").put(2, "w.bin"))
                        .int(14, 1),
                ],
            ),
            &["`s`", "cannot be in external data"],
        ),
        row(
            "data here and in a file",
            with_weights(external("w", &[4, 3], &[("location", "w.bin")]).put(9, &payload()[..48])),
            &["`w`", "`raw_data` and in another file"],
        ),
        Row::new("output is the data file")
            .file(MODEL, at("w.bin"))
            .file("in/w.bin", payload())
            .run(&["quantize", MODEL, "-o", "in/w.bin"])
            .says(&["in/w.bin", "one of the input files", "choose another name"]),
        Row::new("output's data file is the input's")
            .file(MODEL, at("model2.onnx.data"))
            .file("in/model2.onnx.data", payload())
            .run(&["run", "clean", MODEL, "-o", "in/model2.onnx", "--external-data"])
            .says(&["in/model2.onnx.data", "one of the input files", "choose another name"]),
    ]
}

fn legal() -> Vec<Row> {
    let legal =
        |name: &str, model: Pb, says: &[&str]| Row::legal(name, model, says).file("in/w.bin", payload());
    vec![
        legal("data file beside", at("w.bin"), &[]),
        legal("data file by a dot", at("./w.bin"), &[]),
        legal("data at an offset", range("16", "48"), &[]),
        legal("data file beneath", at("sub/w.bin"), &[]).file("in/sub/w.bin", payload()),
        Row::legal("data file with other names", at("w.bin"), &["hard links"])
            .file("in/w.bin", payload())
            .prepare(|root| std::fs::hard_link(root.join("in/w.bin"), root.join("other")).expect("a link")),
        // The Hugging Face cache: names are links into `blobs`, which is beside neither.
        Row::new("model and data are links into a cache")
            .file("hub/blobs/one", at("w.bin"))
            .file("hub/blobs/two", payload())
            .prepare(|root| {
                std::fs::create_dir_all(root.join("hub/snapshots/main")).expect("a directory");
                symlink("../../blobs/one", root.join("hub/snapshots/main/model.onnx")).expect("a link");
                symlink("../../blobs/two", root.join("hub/snapshots/main/w.bin")).expect("a link");
            })
            .run(&["inspect", "hub/snapshots/main/model.onnx"])
            .run(&["quantize", "hub/snapshots/main/model.onnx", "-o", OUT])
            .done(0),
    ]
}

#[test]
fn damaged_external_data() {
    run_all(bad());
}

#[test]
fn odd_but_legal_external_data() {
    run_all(legal());
}
