//! Data that are damaged, that do not fit the model, or that lie about their size.

use super::archive::*;
use super::harness::{MODEL, OUT, Row, run_all};
use super::pb::{floats, info, ints, product};

/// The table's model takes 1x4 floats; a batch axis that is open makes it a model of samples.
fn batched() -> Vec<u8> {
    let mut graph = product();
    graph.inputs = vec![info("x", 1, &[-1, 4])];
    graph.outputs = vec![info("y", 1, &[-1, 3])];
    graph.model().into()
}

/// Two samples of four floats.
fn samples() -> Vec<u8> {
    floats(&[0.5, 1.0, -1.0, 2.0, 0.25, 0.0, 3.0, -2.0])
}

/// Data that `data check`, `eval`, `infer` and `quantize` refuse.
fn row(name: &str, path: &str, content: impl Into<Vec<u8>>, says: &[&str]) -> Row {
    let row = Row::new(name).file(MODEL, batched()).file(path, content);
    row.run(&["data", "check", path, "--model", MODEL])
        .run(&["quantize", MODEL, "-o", OUT, "--calib", path])
        .run(&["infer", MODEL, "--data", path, "-o", OUT])
        .says(&["in/"])
        .says(says)
}

/// A `data.toml` that everybody refuses.
fn spec(name: &str, text: &str, says: &[&str]) -> Row {
    row(name, "in/data.toml", text, says).file("in/x.npy", array("<f4", "(2, 4)", &samples()))
}

fn arrays() -> Vec<Row> {
    let npy_row =
        |name: &str, header: &str, says: &[&str]| row(name, "in/x.npy", npy(header, &samples()), says);
    let sized =
        |name: &str, shape: &str, says: &[&str]| row(name, "in/x.npy", array("<f4", shape, &samples()), says);
    let wrong_magic = b"\x93NUMPX\x01\0".to_vec();
    vec![
        row("data: empty file", "in/x.npy", "", &["the file is empty"]),
        row("data: text", "in/x.npy", "1,2,3,4\n", &["idx", "npz", "data.toml"]),
        row("npy: wrong magic", "in/x.npy", wrong_magic, &["no data set"]),
        row("npy: cut in the header", "in/x.npy", &array("<f4", "(2, 4)", &[])[..30], &["header"]),
        row("npy: cut in the samples", "in/x.npy", array("<f4", "(2, 4)", &samples()[..20]), &["32", "20"]),
        row("npy: too long", "in/x.npy", array("<f4", "(1, 4)", &samples()), &["16", "32"]),
        row("npy: version 9", "in/x.npy", b"\x93NUMPY\x09\0v\0{}".to_vec(), &["version", "1.0, 2.0 and 3.0"]),
        row(
            "npy: header of 4 GiB",
            "in/x.npy",
            b"\x93NUMPY\x02\0\xff\xff\xff\xff{}".to_vec(),
            &["header of 4294967295"],
        ),
        npy_row("npy: code in the header", "__import__('os').system('touch out/old.onnx')", &["header"]),
        npy_row("npy: empty header", "", &["header"]),
        npy_row("npy: no shape", "{'descr': '<f4', 'fortran_order': False}", &["header", "shape"]),
        npy_row("npy: deeply nested header", &format!("{{'descr': {}", "[".repeat(30_000)), &["header"]),
        row("npy: objects", "in/x.npy", array("|O", "(2,)", b"\x80\x04."), &["pickle"]),
        npy_row(
            "npy: records",
            "{'descr': [('a', '<f4'), ('b', '<i4')], 'fortran_order': False, 'shape': (2,)}",
            &["header"],
        ),
        row("npy: unknown type", "in/x.npy", array("<f3", "(2, 4)", &samples()), &["<f3"]),
        sized("npy: shape beyond memory", "(4611686018427387904, 4)", &["beyond any memory"]),
        sized("npy: shape beyond 64 bits", "(99999999999999999999, 4)", &["header"]),
        sized("npy: negative size", "(-2, 4)", &["header"]),
        sized("npy: shape of terabytes", "(1000000000, 4)", &["16000000000", "32"]),
        row("npy: samples without elements", "in/x.npy", array("<f4", "(5, 0)", &[]), &["no elements"]),
        row("npy: one number", "in/x.npy", array("<f4", "()", &[0; 4]), &["first axis"]),
        row("npy: no samples", "in/x.npy", array("<f4", "(0, 4)", &[]), &["no samples"]),
        row("npy: bytes for a float input", "in/x.npy", array("|u1", "(2, 4)", &[1; 8]), &["data.toml"]),
        row(
            "npy: integers for a float input",
            "in/x.npy",
            array("<i8", "(2, 4)", &ints(&[1; 8])),
            &["do not fit the model", "x", "int64"],
        ),
        row(
            "npy: five columns for four",
            "in/x.npy",
            array("<f4", "(2, 5)", &floats(&[0.0; 10])),
            &["do not fit the model", "5", "4"],
        ),
        row(
            "npy: samples of rank 3",
            "in/x.npy",
            array("<f4", "(2, 1, 2, 4)", &floats(&[0.0; 16])),
            &["do not fit the model"],
        ),
        row(
            "npy: 33 dimensions of one",
            "in/x.npy",
            array("<f4", &format!("({})", "1, ".repeat(33)), &[0; 4]),
            &["do not fit the model"],
        ),
    ]
}

fn archives() -> Vec<Row> {
    let good = || array("<f4", "(2, 4)", &samples());
    let with = |member: Member<'_>| zip(&[member]);
    let bomb = || {
        // 180 MB of zeros in 180 KB.
        let zeros = vec![0u8; 180_000_000];
        let content = array("<f4", "(11250000, 4)", &zeros);
        with(Member::deflated("x.npy", &content))
    };
    let valid = npz(&[("x.npy", good())]);
    let mut moved = valid.clone();
    // The place of the central directory, in the end record.
    let at = moved.len() - 6;
    moved[at..at + 4].copy_from_slice(&u32::to_le_bytes(0x7fff_ffff));
    let mut many = valid.clone();
    let at = many.len() - 12;
    many[at..at + 4].copy_from_slice(&[0xff, 0xfe, 0xff, 0xfe]);
    let mut directory = valid.clone();
    let at = directory.windows(4).rposition(|window| window == b"PK\x01\x02").expect("a directory");
    directory[at + 42] = 0x70;
    let row = |name: &str, content: Vec<u8>, says: &[&str]| row(name, "in/x.npz", content, says);
    vec![
        row("npz: cut", valid[..valid.len() - 30].to_vec(), &["incomplete"]),
        row("npz: only a local header", valid[..60].to_vec(), &["incomplete"]),
        row("npz: empty archive", zip(&[]), &["no"]),
        row("npz: directory elsewhere", moved, &["directory of the archive"]),
        row("npz: more entries than there are", many, &["directory of the archive"]),
        row("npz: data elsewhere", directory, &["x.npy", "overlap"]),
        row("npz: name leads out", npz(&[("../x.npy", good())]), &["../x.npy", "not trusted"]),
        row("npz: entry twice", npz(&[("x.npy", good()), ("x.npy", good())]), &["`x.npy`", "two entries"]),
        row("npz: encrypted", with(Member { flags: 1, ..Member::stored("x.npy", &good()) }), &["encrypted"]),
        row(
            "npz: other compression",
            with(Member { method: 12, ..Member::stored("x.npy", &good()) }),
            &["savez"],
        ),
        row(
            "npz: wrong checksum",
            with(Member { crc: 1, ..Member::stored("x.npy", &good()) }),
            &["checksum"],
        ),
        row("npz: wrong size", with(Member { size: 7, ..Member::deflated("x.npy", &good()) }), &["x.npy"]),
        row(
            "npz: damaged compression",
            with(Member { packed: vec![0xff; 40], ..Member::deflated("x.npy", &good()) }),
            &["x.npy"],
        ),
        row("npz: no arrays in it", npz(&[("readme.txt", b"hello".to_vec())]), &["npy"]),
        row("npz: array that is none", npz(&[("x.npy", b"hello, world".to_vec())]), &["x.npy"]),
        Row::new("npz: bomb")
            .file(MODEL, batched())
            .file("in/x.npz", bomb())
            .run(&["data", "check", "in/x.npz", "--model", MODEL])
            .says(&["in/x.npz", "--limits expansion=N"]),
        row(
            "npz: no array of the input's name",
            npz(&[("p.npy", good()), ("q.npy", good())]),
            &["do not fit the model", "`p`", "`q`"],
        ),
        row(
            "npz: arrays of different lengths",
            npz(&[("x.npy", good()), ("label.npy", array("<i8", "(3,)", &ints(&[0, 1, 2])))]),
            &["different numbers of samples", "`x` 2", "`label` 3"],
        ),
    ]
}

fn idx_files() -> Vec<Row> {
    let row =
        |name: &str, content: Vec<u8>, says: &[&str]| row(name, "in/a-images-idx2-ubyte", content, says);
    let floats_of = |sizes: &[u32], elements: &[u8]| idx(0x0d, sizes, elements);
    let images =
        |labels: Vec<u8>| row("", floats_of(&[2, 4], &[0; 32]), &[]).file("in/a-labels-idx2-ubyte", labels);
    let renamed = |name: &str, row: Row| row.named(name);
    vec![
        row("idx: unknown type", idx(0x0a, &[2, 4], &[0; 8]), &["no data set"]),
        row("idx: nine dimensions", idx(0x0d, &[1; 9], &[0; 4]), &["no data set"]),
        row("idx: cut in the header", vec![0, 0, 0x0d, 4, 0, 0], &["header"]),
        row("idx: cut in the samples", floats_of(&[2, 4], &[0; 20]), &["32", "20"]),
        row("idx: sizes beyond memory", idx(0x0e, &[u32::MAX; 8], &[0; 8]), &["beyond any memory"]),
        row("idx: no samples", floats_of(&[0, 4], &[]), &["no samples"]),
        row("idx: gzip cut", gzip(&floats_of(&[2, 4], &[7; 32]))[..30].to_vec(), &["a-images"]),
        row("idx: gzip of something else", gzip(b"hello, world"), &["no data set"]),
        Row::new("idx: gzip bomb")
            .file(MODEL, batched())
            .file("in/a-idx2-ubyte.gz", gzip(&floats_of(&[11_250_000, 4], &vec![0; 180_000_000])))
            .run(&["data", "check", "in/a-idx2-ubyte.gz", "--model", MODEL])
            .says(&["in/a-idx2-ubyte.gz", "--limits expansion=N"]),
        renamed(
            "idx: three labels for two samples",
            images(idx(8, &[3], &[0, 1, 2])).says(&["3 labels", "2 samples", "do not belong together"]),
        ),
        renamed(
            "idx: labels that are none",
            images(b"hello".to_vec()).says(&["a-labels", "not an idx file"]),
        ),
    ]
}

fn specifications() -> Vec<Row> {
    let source = "[source]\npath = \"x.npy\"\n";
    let steps = |steps: &str| format!("{source}[input]\nsteps = [ {steps} ]\n");
    vec![
        spec("data.toml: not TOML", "[source\n", &["data.toml:1"]),
        spec("data.toml: empty", "", &["source"]),
        spec(
            "data.toml: unknown key",
            &format!("{source}tkae = 3\n"),
            &["data.toml:3:1", "did you mean `take`?"],
        ),
        spec(
            "data.toml: unknown table",
            &format!("{source}[inptu]\n"),
            &["data.toml:3", "did you mean `input`?"],
        ),
        spec(
            "data.toml: unknown kind",
            &format!("{source}kind = \"npzz\"\n"),
            &["data.toml:3", "did you mean `npz`?"],
        ),
        spec("data.toml: no path", "[source]\nkind = \"npy\"\n", &["data.toml", "path"]),
        spec(
            "data.toml: path is missing",
            "[source]\npath = \"nowhere.npy\"\n",
            &["nowhere.npy", "check the path"],
        ),
        spec("data.toml: take is negative", &format!("{source}take = -1\n"), &["data.toml:3", "-1"]),
        spec("data.toml: take is 0", &format!("{source}take = 0\n"), &["take"]),
        spec("data.toml: skips everything", &format!("{source}skip = 2\n"), &["no samples are left", "skip"]),
        spec("data.toml: take is text", &format!("{source}take = \"two\"\n"), &["data.toml:3", "string"]),
        spec("data.toml: key twice", &format!("{source}path = \"x.npy\"\n"), &["data.toml:3", "duplicate"]),
        spec("data.toml: unknown step", &steps("{ sclae = 0.5 }"), &["data.toml:4", "did you mean `scale`?"]),
        spec("data.toml: step of a wrong type", &steps("{ scale = \"half\" }"), &["data.toml:4"]),
        spec("data.toml: unknown layout", &steps("{ layout = \"hwcn\" }"), &["data.toml", "hwcn"]),
        spec(
            "data.toml: unknown input",
            &format!("{source}[input.z]\nsteps = []\n"),
            &["in/data.toml", "`z`", "it has: x"],
        ),
        spec(
            "data.toml: split that is none",
            &format!("{source}split = [0.8, 0.2]\n"),
            &["data.toml:3", "split"],
        ),
        spec(
            "data.toml: kind that is not the file's",
            &format!("{source}kind = \"npz\"\n"),
            &["x.npy", "zip"],
        ),
        spec("data.toml: 100,000 brackets", &format!("a = {}", "[".repeat(100_000)), &["data.toml:1"]),
        spec("data.toml: 2 MB", &"# nothing\n".repeat(200_000), &["data.toml"]),
        row("data.toml: not UTF-8", "in/data.toml", b"[source]\npath = \"\xff\"\n".to_vec(), &["UTF-8"]),
        Row::new("data: no such file")
            .file(MODEL, batched())
            .run(&["data", "check", "in/nowhere.npz"])
            .run(&["quantize", MODEL, "-o", OUT, "--calib", "in/nowhere.npz"])
            .run(&["quantize", MODEL, "-o", OUT, "--eval", "in/nowhere.npz"])
            .says(&["in/nowhere.npz", "check the path"]),
        Row::new("data: directory without data")
            .file("in/set/readme.txt", "hello")
            .run(&["data", "check", "in/set"])
            .says(&["in/set", "no data set", "npy files"]),
        Row::new("data: device").run(&["data", "check", "/dev/zero"]).says(&["/dev/zero", "device"]),
    ]
}

/// Directories of samples: ONNX's test sets, numpy arrays.
fn directories() -> Vec<Row> {
    let sample = || super::pb::tensor("x", super::pb::FLOAT, &[1, 4], &floats(&[0.5; 4])).0;
    let row = |name: &str, files: &[(&str, Vec<u8>)], says: &[&str]| {
        let row = files.iter().fold(Row::new(name).file(MODEL, batched()), |row, (path, content)| {
            row.file(&format!("in/set/{path}"), content.clone())
        });
        row.run(&["data", "check", "in/set", "--model", MODEL])
            .run(&["quantize", MODEL, "-o", OUT, "--calib", "in/set"])
            .run(&["infer", MODEL, "--data", "in/set", "-o", OUT])
            .says(&["in/set"])
            .says(says)
    };
    vec![
        row(
            "test set: sample that is none",
            &[("test_data_set_0/input_0.pb", b"hello".to_vec())],
            &["input_0.pb"],
        ),
        row(
            "test set: sample that is cut",
            &[("test_data_set_0/input_0.pb", sample()[..12].to_vec())],
            &["input_0.pb"],
        ),
        row("test set: sample of no bytes", &[("test_data_set_0/input_0.pb", vec![])], &["input_0.pb"]),
        row("test set: no inputs", &[("test_data_set_0/output_0.pb", sample())], &["test_data_set_0"]),
        row(
            "test set: second input is missing",
            &[("test_data_set_0/input_0.pb", sample()), ("test_data_set_0/input_2.pb", sample())],
            &["input_1"],
        ),
        row(
            "test set: too many inputs",
            &[("test_data_set_0/input_0.pb", sample()), ("test_data_set_0/input_1.pb", sample())],
            &["do not fit the model"],
        ),
        row(
            "directory of arrays: one is damaged",
            &[("a.npy", array("<f4", "(4,)", &floats(&[1.0; 4]))), ("b.npy", b"hello".to_vec())],
            &["b.npy"],
        ),
        row(
            "directory of arrays: shapes differ",
            &[
                ("a.npy", array("<f4", "(4,)", &floats(&[1.0; 4]))),
                ("b.npy", array("<f4", "(5,)", &floats(&[1.0; 5]))),
            ],
            &["different numbers of samples", "`a` 4, `b` 5"],
        ),
    ]
}

fn labels() -> Vec<Row> {
    let labelled = |dtype: &str, labels: Vec<u8>, count: u32| {
        npz(&[
            ("x.npy", array("<f4", "(2, 4)", &samples())),
            ("label.npy", array(dtype, &format!("({count},)"), &labels)),
        ])
    };
    let row = |name: &str, content: Vec<u8>, says: &[&str]| {
        Row::new(name)
            .file(MODEL, batched())
            .file("in/x.npz", content)
            .run(&["eval", MODEL, "--data", "in/x.npz"])
            .run(&["quantize", MODEL, "-o", OUT, "--eval", "in/x.npz"])
            .says(says)
    };
    vec![
        row("label out of range", labelled("<i8", ints(&[0, 3]), 2), &["3", "0 to 2"]),
        row("label negative", labelled("<i8", ints(&[-1, 0]), 2), &["-1", "0 to 2"]),
        row("label of 2^62", labelled("<i8", ints(&[0, 1 << 62]), 2), &["0 to 2"]),
        Row::new("labels that are fractions")
            .file(MODEL, batched())
            .file("in/x.npz", labelled("<f4", floats(&[0.5, 1.0]), 2))
            .run(&["eval", MODEL, "--data", "in/x.npz"])
            .says(&["label"]),
        Row::new("no labels")
            .file(MODEL, batched())
            .file("in/x.npy", array("<f4", "(2, 4)", &samples()))
            .run(&["eval", MODEL, "--data", "in/x.npy"])
            .says(&["in/x.npy", "no labels", "--vs MODEL"]),
        Row::new("metric that is none")
            .file(MODEL, batched())
            .file("in/x.npz", labelled("<i8", ints(&[0, 1]), 2))
            .run(&["eval", MODEL, "--data", "in/x.npz", "--metric", "f2"])
            .run(&["eval", MODEL, "--data", "in/x.npz", "--metric", "top0"])
            .says(&["--metric", "there is no metric", "topN, accuracy"]),
    ]
}

fn legal() -> Vec<Row> {
    let legal = |name: &str, path: &str, content: Vec<u8>| {
        Row::new(name)
            .file(MODEL, batched())
            .file(path, content)
            .run(&["data", "check", path, "--model", MODEL])
            .run(&["quantize", MODEL, "-o", OUT, "--calib", path, "--eval", path])
            .done(0)
    };
    let big: Vec<u8> =
        samples().chunks(4).flat_map(|chunk| chunk.iter().rev().copied().collect::<Vec<u8>>()).collect();
    let fortran = npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 4), }\n", &samples());
    let good = array("<f4", "(2, 4)", &samples());
    vec![
        legal("npy: big-endian", "in/x.npy", array(">f4", "(2, 4)", &big)),
        legal("npy: Fortran order", "in/x.npy", fortran),
        legal("npz: deflated", "in/x.npz", zip(&[Member::deflated("x.npy", &good)])),
        legal(
            "npz: stored and deflated",
            "in/x.npz",
            zip(&[
                Member::deflated("x.npy", &good),
                Member::stored("label.npy", &array("<i8", "(2,)", &ints(&[0, 1]))),
            ]),
        ),
        legal(
            "npz: a readme in it",
            "in/x.npz",
            npz(&[("x.npy", good.clone()), ("readme.txt", b"hello".to_vec())]),
        ),
        legal("idx: gzip", "in/x-idx2.gz", gzip(&idx(0x0d, &[2, 4], &[0; 32]))),
        legal("calibration all NaN", "in/x.npy", array("<f4", "(2, 4)", &floats(&[f32::NAN; 8]))),
        legal("calibration all zero", "in/x.npy", array("<f4", "(2, 4)", &floats(&[0.0; 8]))),
        legal("calibration infinite", "in/x.npy", array("<f4", "(2, 4)", &floats(&[f32::INFINITY; 8]))),
    ]
}

#[test]
fn damaged_arrays() {
    run_all(arrays());
}

#[test]
fn damaged_archives() {
    run_all(archives());
}

#[test]
fn damaged_idx_files() {
    run_all(idx_files());
}

#[test]
fn wrong_specifications() {
    run_all(specifications());
}

#[test]
fn damaged_directories() {
    run_all(directories());
}

#[test]
fn wrong_labels() {
    run_all(labels());
}

#[test]
fn odd_but_legal_data() {
    run_all(legal());
}
