//! Images, sounds, tables, texts, tokenizers and commands that are damaged or lie.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::archive::crc;
use super::harness::{MODEL, OUT, Row, fixture, run_all};
use super::pb::{info, product};

/// Samples of four floats, an open batch axis.
fn batched() -> Vec<u8> {
    let mut graph = product();
    graph.inputs = vec![info("x", 1, &[-1, 4])];
    graph.outputs = vec![info("y", 1, &[-1, 3])];
    graph.model().into()
}

/// Data that every command refuses.
fn row(name: &str, data: &str, files: &[(&str, &[u8])], says: &[&str]) -> Row {
    let row = files
        .iter()
        .fold(Row::new(name).file(MODEL, batched()), |row, (path, content)| row.file(path, *content));
    row.run(&["data", "check", data])
        .run(&["data", "check", data, "--model", MODEL])
        .run(&["eval", MODEL, "--data", data])
        .run(&["infer", MODEL, "--data", data, "-o", OUT])
        .says(says)
}

/// The same, told apart only where it meets a model.
fn fed(name: &str, data: &str, files: &[(&str, &[u8])], says: &[&str]) -> Row {
    let row = files
        .iter()
        .fold(Row::new(name).file(MODEL, batched()), |row, (path, content)| row.file(path, *content));
    row.run(&["data", "check", data, "--model", MODEL])
        .run(&["infer", MODEL, "--data", data, "-o", OUT])
        .says(says)
}

fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let body = [&kind[..], content].concat();
    let length = u32::try_from(content.len()).expect("small");
    [&length.to_be_bytes()[..], &body, &crc(&body).to_be_bytes()].concat()
}

/// A PNG whose header tells of these sizes.
fn png(width: u32, height: u32) -> Vec<u8> {
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let data = super::archive::deflate(&[0; 64]);
    // A zlib header before the deflated bytes; what follows them is never reached.
    let data = [&[0x78, 0x9c][..], &data].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), chunk(b"IDAT", &data), chunk(b"IEND", &[])]
        .concat()
}

fn wav(rate: u32, channels: u16, bits: u16, declared: u32, data: &[u8]) -> Vec<u8> {
    let block = channels.wrapping_mul(bits / 8);
    [
        &b"RIFF"[..],
        &(36u32.wrapping_add(declared)).to_le_bytes(),
        b"WAVEfmt \x10\0\0\0\x01\0",
        &channels.to_le_bytes(),
        &rate.to_le_bytes(),
        &rate.wrapping_mul(u32::from(block)).to_le_bytes(),
        &block.to_le_bytes(),
        &bits.to_le_bytes(),
        b"data",
        &declared.to_le_bytes(),
        data,
    ]
    .concat()
}

fn images() -> Vec<Row> {
    let good = fixture("media/pictures/rgb.png");
    let jpeg = fixture("media/pictures/rgb.jpg");
    let folder = |name: &str, file: &str, content: &[u8], says: &[&str]| {
        row(name, "in/set", &[(&format!("in/set/a/{file}"), content)], &[&["in/set/a/"][..], says].concat())
    };
    vec![
        folder("image: no bytes", "x.png", b"", &["the file is empty"]),
        folder("image: text", "x.png", b"hello, world", &["no image format", "png, jpeg"]),
        folder("image: png cut", "x.png", &good[..good.len() / 2], &["x.png", "damaged or incomplete"]),
        folder("image: png cut in its header", "x.png", &good[..20], &["x.png", "damaged or incomplete"]),
        folder("image: jpeg cut", "x.jpg", &jpeg[..jpeg.len() / 2], &["x.jpg", "incomplete"]),
        folder("image: jpeg of a header", "x.jpg", &jpeg[..4], &["x.jpg", "incomplete"]),
        folder(
            "image: 60,000 x 60,000",
            "x.png",
            &png(60_000, 60_000),
            &["60000 x 60000", "--limits image-pixels=N"],
        ),
        folder("image: largest sizes", "x.png", &png(0x7fff_ffff, 0x7fff_ffff), &["x.png"]),
        folder("image: no rows", "x.png", &png(0, 10), &["x.png"]),
        folder("image: tiff", "x.tif", b"II*\0\x08\0\0\0\0\0", &["Tiff", "convert it"]),
        row(
            "image folder: nothing in it",
            "images:in/set",
            &[("in/set/readme.txt", b"hello")],
            &["in/set", "no files of kind images"],
        ),
        row(
            "image folder: files beside folders",
            "in/set",
            &[("in/set/x.png", &good), ("in/set/a/y.png", &good)],
            &["in/set", "1 files stand in it and 1 in its folders"],
        ),
        row(
            "image folder: class that is not listed",
            "in/set",
            &[("in/set/classes.txt", b"cat\ndog\n"), ("in/set/doog/y.png", &good)],
            &["`doog`", "did you mean `dog`?"],
        ),
        row(
            "image folder: class twice",
            "in/set",
            &[("in/set/classes.txt", b"cat\ncat\n"), ("in/set/cat/y.png", &good)],
            &["`cat` is named twice"],
        ),
        row("image folder: links in a circle", "in/set", &[("in/set/a/x.png", &good)], &["in/set", "circle"])
            .prepare(|root| symlink("../a", root.join("in/set/a/again")).expect("a link")),
        row("image folder: a link to itself", "in/set", &[], &["x.png"]).prepare(|root| {
            std::fs::create_dir_all(root.join("in/set/a")).expect("a directory");
            symlink("x.png", root.join("in/set/a/x.png")).expect("a link");
        }),
        row(
            "image folder: link that leads out",
            "in/set",
            &[("in/other/x.png", &good)],
            &["leads out", "follow-links"],
        )
        .prepare(|root| {
            std::fs::create_dir_all(root.join("in/set/a")).expect("a directory");
            symlink("../../other/x.png", root.join("in/set/a/x.png")).expect("a link");
        }),
        row("image folder: pipe", "in/set", &[], &["x.png", "pipe"]).prepare(|root| {
            std::fs::create_dir_all(root.join("in/set/a")).expect("a directory");
            let made = std::process::Command::new("mkfifo").arg(root.join("in/set/a/x.png")).status();
            assert!(made.expect("mkfifo").success());
        }),
    ]
}

/// What a `data check` says of several damaged files: all of them.
fn several() -> Vec<Row> {
    let good = fixture("media/pictures/rgb.png");
    let row = Row::new("image folder: two of four damaged")
        .file("in/set/a/1.png", &good[..100])
        .file("in/set/a/2.png", good.clone())
        .file("in/set/b/3.png", good)
        .file("in/set/b/4.png", "hello")
        .run(&["data", "check", "in/set"])
        .says(&["2 of 4 samples cannot be used", "a/1.png", "b/4.png"]);
    let lines = "{\"x\": [1, 2, 3, 4.5]}\n{\"x\": [1, 2\n{\"x\": [1, 2, 3, 4.5]}\n{\"y\": 1}\n";
    let jsonl = Row::new("jsonl: two of four lines damaged")
        .file("in/x.jsonl", lines)
        .run(&["data", "check", "in/x.jsonl"])
        .says(&["2 of 4 samples cannot be used", "line 2", "line 4"]);
    vec![row, jsonl]
}

fn sounds() -> Vec<Row> {
    let one = |name: &str, content: &[u8], says: &[&str]| {
        row(name, "in/x.wav", &[("in/x.wav", content)], &[&["in/x.wav"][..], says].concat())
    };
    let samples = [0u8; 64];
    vec![
        one("wav: cut in its header", &wav(8000, 1, 16, 64, &samples)[..30], &["damaged or incomplete"]),
        one("wav: cut in its samples", &wav(8000, 1, 16, 6400, &samples), &["more than the file's"]),
        one("wav: length of 4 GiB", &wav(8000, 1, 16, 0xffff_fff0, &samples), &["in/x.wav"]),
        one("wav: 0 Hz", &wav(0, 1, 16, 64, &samples), &["0 Hz"]),
        one("wav: no channels", &wav(8000, 0, 16, 64, &samples), &["in/x.wav"]),
        one("wav: 64 channels", &wav(8000, 64, 8, 64, &samples), &["64 channels"]),
        one("wav: 12 bits", &wav(8000, 1, 12, 64, &samples), &["in/x.wav"]),
        one("wav: no samples", &wav(8000, 1, 16, 0, &[]), &["no samples"]),
        fed(
            "wav: another rate than the model's length",
            "in/x.wav",
            &[("in/x.wav", &wav(8000, 1, 16, 64, &samples))],
            &["do not fit the model", "float[32]"],
        ),
    ]
}

fn tables() -> Vec<Row> {
    let csv = |name: &str, text: &str, says: &[&str]| {
        row(name, "in/x.csv", &[("in/x.csv", text.as_bytes())], &[&["in/"][..], says].concat())
    };
    let with = |name: &str, options: &str, text: &str, says: &[&str]| {
        row(name, &format!("in/x.csv?{options}"), &[("in/x.csv", text.as_bytes())], says)
    };
    let header = "a,b,c,d,label\n";
    vec![
        csv("csv: no bytes", "", &["empty"]),
        csv("csv: only a header", header, &["a header and no samples"]),
        csv("csv: no header", "1,2,3,4,0\n1,2,3,4,1\n", &["line 1", "header = false"]),
        csv("csv: column twice", "a,a,b,c\n1,2,3,4\n", &["`a` is there twice"]),
        csv(
            "csv: a column is missing",
            &format!("{header}1,2,3,4,0\n1,2,3,4\n"),
            &["line 3", "4 columns, but line 1 has 5"],
        ),
        csv(
            "csv: a cell is no number",
            &format!("{header}1,2,3,4,0\n1,two,3,4,1\n"),
            &["line 3", "column `b`", "`two`"],
        ),
        csv(
            "csv: a cell is empty",
            &format!("{header}1,2,3,4,0\n1,,3,4,1\n"),
            &["line 3", "column `b`", "empty"],
        ),
        csv(
            "csv: decimal comma",
            &format!("{header}1,2,3,4,0\n1,\"2,5\",3,4,1\n"),
            &["line 3", "decimal point"],
        ),
        csv(
            "csv: label is missing",
            &format!("{header}1,2,3,4,0\n1,2,3,4,\n"),
            &["line 3", "label is missing"],
        ),
        row(
            "csv: bytes that are no text",
            "in/x.csv",
            &[("in/x.csv", b"a,b,c,d,label\n1,2,3,4,\xff\n")],
            &["line 2", "UTF-8"],
        ),
        with(
            "csv: no such column",
            "columns=a,e",
            &format!("{header}1,2,3,4,0\n"),
            &["line 1", "no column `e`", "the columns: a, b"],
        ),
        with(
            "csv: no such label",
            "labels=lable",
            &format!("{header}1,2,3,4,0\n"),
            &["no column `lable`", "did you mean `label`?"],
        ),
        with("csv: no such files", "files=path", &format!("{header}1,2,3,4,0\n"), &["no column `path`"]),
        with("csv: separator of two characters", "separator=ab", header, &["separator"]),
        with(
            "csv: option of another kind",
            "dtype=float32",
            &format!("{header}1,2,3,4,0\n"),
            &["`dtype` has no meaning", "raw"],
        ),
        csv(
            "csv: path leads out",
            "path,label\n../../secret.png,0\n",
            &["line 2", "leads out of the folder"],
        ),
        csv("csv: path is absolute", "path,label\n/etc/passwd,0\n", &["line 2", "leads out of the folder"]),
        csv("csv: file is missing", "path,label\nnowhere.png,0\n", &["line 2", "nowhere.png"]),
        row(
            "csv: link leads out",
            "in/x.csv",
            &[("in/x.csv", b"path,label\nlink.png,0\n")],
            &["line 2", "leads out"],
        )
        .prepare(|root| symlink("/etc/passwd", root.join("in/link.png")).expect("a link")),
        Row::new("csv: a line of 9 MB")
            .file("in/x.csv", format!("a,b\n1,{}\n", "2".repeat(9 << 20)))
            .run(&["data", "check", "in/x.csv"])
            .says(&["in/x.csv", "--limits record-bytes=N"]),
        Row::new("csv: NaN is said")
            .file(MODEL, batched())
            .file("in/x.csv", format!("{header}1,nan,3,4,0\n1,2,inf,4,1\n"))
            .run(&["data", "check", "in/x.csv", "--model", MODEL])
            .done(0)
            .says(&["1 NaN and 1 infinite values"]),
        Row::new("csv: quotes, line ends of Windows, a byte order mark")
            .file(MODEL, batched())
            .file("in/x.csv", "\u{feff}a,b,c,d,label\r\n1,\"2\",3,4,\"0\"\r\n")
            .run(&["data", "check", "in/x.csv", "--model", MODEL])
            .run(&["eval", MODEL, "--data", "in/x.csv"])
            .done(0),
    ]
}

fn lines() -> Vec<Row> {
    let jsonl = |name: &str, text: &str, says: &[&str]| {
        row(name, "in/x.jsonl", &[("in/x.jsonl", text.as_bytes())], &[&["in/x.jsonl"][..], says].concat())
    };
    let good = "{\"x\": [1, 2, 3, 4.5], \"label\": 1}\n";
    vec![
        jsonl("jsonl: no bytes", "", &["empty"]),
        jsonl("jsonl: blank lines", "\n\n  \n", &["no lines"]),
        jsonl("jsonl: not JSON", "hello\n", &["line 1", "not JSON"]),
        jsonl("jsonl: second line cut", &format!("{good}{}", &good[..20]), &["line 2", "not JSON"]),
        jsonl("jsonl: an array", "[1, 2]\n", &["line 1", "no JSON object"]),
        jsonl("jsonl: a field is missing", &format!("{good}{{\"label\": 1}}\n"), &["line 2", "no field `x`"]),
        jsonl(
            "jsonl: ragged",
            &format!("{good}{{\"x\": [[1], [2, 3]], \"label\": 0}}\n"),
            &["line 2", "different lengths"],
        ),
        jsonl("jsonl: null", &format!("{good}{{\"x\": null, \"label\": 0}}\n"), &["line 2", "null"]),
        jsonl("jsonl: lone surrogate", &format!("{good}{{\"x\": \"\\ud800\", \"label\": 0}}\n"), &["line 2"]),
        jsonl("jsonl: 100,000 brackets", &"[".repeat(100_000), &["line 1"]),
        jsonl("jsonl: path leads out", "{\"path\": \"../x.png\", \"label\": 0}\n", &["line 1", "leads out"]),
        jsonl("jsonl: escapes", "{\"x\u{1b}[31m\": null}\n", &["line 1"]),
        Row::new("jsonl: a line of 9 MB")
            .file("in/x.jsonl", format!("{{\"x\": \"{}\"}}", "a".repeat(9 << 20)))
            .run(&["data", "check", "in/x.jsonl"])
            .says(&["in/x.jsonl", "--limits record-bytes=N"]),
        row("text: not UTF-8", "in/x.txt", &[("in/x.txt", b"good\nb\xffd\n")], &["in/x.txt"]),
        row(
            "text: fewer labels than lines",
            "in/x.txt?labels=in/y.txt",
            &[("in/x.txt", b"a\nb\n"), ("in/y.txt", b"1\n")],
            &["1 labels for the 2 samples"],
        ),
        row(
            "raw: nothing says what it is",
            "raw:in/x.bin",
            &[("in/x.bin", &[0; 16])],
            &["`dtype` and `shape`"],
        ),
        row(
            "raw: no whole number of samples",
            "raw:in/x.bin?dtype=float32&shape=4",
            &[("in/x.bin", &[0; 17])],
            &["17 bytes", "1 are left"],
        ),
        row(
            "raw: shape beyond memory",
            "raw:in/x.bin?dtype=float32&shape=4000000000,4000000000,4000000000",
            &[("in/x.bin", &[0; 16])],
            &["in/x.bin"],
        ),
        fed(
            "text: for a model of floats",
            "in/x.txt",
            &[("in/x.txt", b"hello\n")],
            &["do not fit the model", "string"],
        ),
    ]
}

/// A tokenizer with something replaced.
fn tokenizer(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(fixture("media/tokenizer.json")).expect("UTF-8");
    assert!(text.contains(from), "{from}");
    text.replace(from, to).into_bytes()
}

fn tokenizers() -> Vec<Row> {
    let spec = |options: &str| {
        format!("[source]\npath = \"x.txt\"\n[input]\nsteps = [\n    {{ tokenize = {{ {options} }} }},\n]\n")
    };
    let row = |name: &str, tokenizer: Vec<u8>, options: &str, says: &[&str]| {
        Row::new(name)
            .file("in/x.txt", "the quick brown fox\n")
            .file("in/tokenizer.json", tokenizer)
            .file("in/data.toml", spec(options))
            .run(&["data", "check", "in/data.toml"])
            .says(says)
    };
    let good = || fixture("media/tokenizer.json");
    let damaged = |name: &str, tokenizer: Vec<u8>, says: &[&str]| {
        row(name, tokenizer, "output = \"ids\"", &[&["in/tokenizer.json"][..], says].concat())
    };
    vec![
        damaged("tokenizer: no bytes", Vec::new(), &["no tokenizer.json"]),
        damaged("tokenizer: text", b"hello".to_vec(), &["no tokenizer.json"]),
        damaged("tokenizer: cut", good()[..900].to_vec(), &["no tokenizer.json"]),
        damaged("tokenizer: no model", b"{\"version\": \"1.0\"}".to_vec(), &["no tokenizer.json"]),
        damaged("tokenizer: 100,000 brackets", format!("{{\"model\": {}", "[".repeat(100_000)).into_bytes(), &["no tokenizer.json"]),
        damaged("tokenizer: another model", tokenizer("\"WordPiece\",\n  \"unk_token\"", "\"Magic\",\n  \"unk_token\""), &["no tokenizer that can be used"]),
        damaged("tokenizer: special token is not declared", tokenizer("\"id\": \"[SEP]\",\n     \"type_id\": 0", "\"id\": \"[OOPS]\",\n     \"type_id\": 0"), &["`[OOPS]`", "does not declare"]),
        row("tokenizer: padding to 4e9", tokenizer("\"padding\": null", "\"padding\": {\"strategy\": {\"Fixed\": 4000000000}, \"direction\": \"Right\", \"pad_to_multiple_of\": 0, \"pad_id\": 0, \"pad_type_id\": 0, \"pad_token\": \"[PAD]\"}"), "output = \"ids\"", &["all 1 samples can be read"]).done(0),
        row("tokenizer: missing file", good(), "file = \"nowhere.json\", output = \"ids\"", &["nowhere.json", "check the path"]),
        row("tokenizer: unknown option", good(), "max_len = 4", &["data.toml:5", "did you mean `max-length`?"]),
        row("tokenizer: padding without a length", good(), "padding = \"max-length\"", &["data.toml:5", "needs `max-length`"]),
        row("tokenizer: no room", good(), "max-length = 2, output = \"ids\"", &["leaves no room"]),
        row("tokenizer: too long and not to be cut", good(), "max-length = 3, truncation = false, output = \"ids\"", &["more than 3", "truncation = true"]),
        row("tokenizer: no such second text", good(), "pair = \"second\", output = \"ids\"", &["no array `second`"]),
        row("tokenizer: longest length", good(), "max-length = 99999999999", &["data.toml:5", "max-length"]),
    ]
}

fn steps() -> Vec<Row> {
    let good = fixture("media/pictures/rgb.png");
    let row = |name: &str, steps: &str, says: &[&str]| {
        Row::new(name)
            .file("in/x.png", good.clone())
            .file("in/data.toml", format!("[source]\npath = \"x.png\"\n[input]\nsteps = [\n    {steps}\n]\n"))
            .run(&["data", "check", "in/data.toml"])
            .says(says)
    };
    vec![
        row("steps: unknown", "{ resise = 3 },", &["did you mean `resize`?"]),
        row("steps: unknown preset", "{ preset = \"imagenet\" },", &["imagenet-torch"]),
        row("steps: unknown mode", "{ resize = { size = 3, mode = \"cubic\" } },", &["`cubic`", "`bicubic`"]),
        row("steps: size of 0", "{ resize = { size = 0 } },", &["1 to 65536"]),
        row("steps: size beyond memory", "{ pad = { size = [65536, 65536] } },", &["67 million"]),
        row("steps: negative size", "{ center-crop = -3 },", &["size"]),
        row(
            "steps: crop behind layout",
            "{ layout = \"nchw\" }, { center-crop = 3 },",
            &["step 2 (`center-crop`)", "before `layout`"],
        ),
        row(
            "steps: orientation comes late",
            "{ to-float = {} }, { exif-orientation = {} },",
            &["step 2 (`exif-orientation`)", "first step"],
        ),
        row(
            "steps: crop outside",
            "{ crop = { top = 50, left = 0, height = 30, width = 3 } },",
            &["not within the image of 61 x 83"],
        ),
        row(
            "steps: tokenize comes late",
            "{ to-float = {} }, { tokenize = { output = \"ids\" } },",
            &["step 2 (`tokenize`)", "first step"],
        ),
        row("steps: spectrogram of an image", "{ mel = {} },", &["step 1 (`mel`)", "sample rate"]),
        row(
            "steps: spectrogram with a rate",
            "{ mel = { rate = 8000 } },",
            &["step 1 (`mel`)", "one channel of sound"],
        ),
        row("steps: mono of an image", "{ mono = {} },", &["step 1 (`mono`)", "needs sound"]),
        row(
            "steps: normalize before floats",
            "{ normalize = { mean = [1], std = [1] } },",
            &["step 1 (`normalize`)", "to-float"],
        ),
        row("steps: odd transform", "{ mel = { n-fft = 401 } },", &["n-fft = 401"]),
        row("steps: bands that are none", "{ mel = { f-min = 5, f-max = 2 } },", &["f-max"]),
        row("steps: length beyond memory", "{ pad-or-trim = { length = 999999999999 } },", &["pad-or-trim"]),
    ]
    .into_iter()
    .map(|row| row.says(&["in/data.toml:5"]))
    .collect()
}

fn commands() -> Vec<Row> {
    let script = |root: &Path, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(root.join("in/load"), format!("#!/bin/sh\n{text}\n")).expect("a file");
        std::fs::set_permissions(root.join("in/load"), std::fs::Permissions::from_mode(0o755))
            .expect("a file");
    };
    let row = |name: &str, text: &'static str, says: &[&str]| {
        Row::new(name)
            .file(MODEL, batched())
            .prepare(move |root| script(root, text))
            .run(&["data", "check", "cmd:in/load"])
            .run(&["infer", MODEL, "--data", "cmd:in/load", "-o", OUT])
            .says(&["cmd:in/load"])
            .says(says)
    };
    let silent = "[source]\nkind = \"command\"\ncommand = [\"./load\"]\ntimeout = 0.3\n";
    vec![
        row("command: prints something else", "echo reading; exit 3", &["`reading", "neither JSON lines nor npy"]),
        row("command: exit code", "echo '{\"x\": [1, 2, 3, 4.5]}'; echo 'no such table' >&2; exit 3", &["exit code 3", "no such table"]),
        row("command: dies", "kill -9 $$", &["signal 9"]),
        row("command: prints nothing", "exit 0", &["printed nothing"]),
        row("command: prints a bad line", "echo '{\"x\": [1, 2, 3, 4.5]}'; echo '{\"x\": [1,'", &["line 2", "not JSON"]),
        row("command: array that is cut", "printf '\\223NUMPY\\001\\000'", &["middle of an array"]),
        row("command: escapes on stderr", "printf '\\033[31mred\\n' >&2; exit 1", &["exit code 1", "red"]),
        Row::new("command: hangs")
            .file("in/data.toml", silent)
            .prepare(move |root| script(root, "echo '{\"x\": 1}'; sleep 100 & wait"))
            .run(&["data", "check", "in/data.toml", "--allow-commands"])
            .says(&["printed nothing for 0.3 seconds", "timeout"]),
        Row::new("command: prints without end")
            .prepare(move |root| script(root, "while true; do echo '{\"x\": 1}'; done"))
            .run(&["data", "check", "cmd:in/load", "--limits", "command-bytes=100000"])
            .says(&["what it prints", "--limits command-bytes=N"]),
        Row::new("command: is not there").run(&["data", "check", "cmd:in/nowhere --x"]).says(&["cannot be started"]),
        Row::new("command: empty").run(&["data", "check", "cmd:"]).says(&["the command is empty"]),
        Row::new("command: quote is open").run(&["data", "check", "cmd:cat 'x"]).says(&["not closed"]),
        Row::new("command: from a data.toml without leave")
            .file("in/data.toml", silent)
            .prepare(move |root| script(root, "touch out/old.onnx in/touched"))
            .run(&["data", "check", "in/data.toml"])
            .run(&["data", "check", "in"])
            .says(&["in/data.toml", "--allow-commands"]),
        Row::new("command: from a recipe")
            .file(MODEL, batched())
            .file("recipe.toml", "version = 1\n[data]\ncalib = \"cmd:touch in/touched\"\n[[step]]\npass = \"quantize-static\"\n")
            .run(&["run", "./recipe.toml", MODEL, "-o", OUT])
            .says(&["cmd:touch"]),
    ]
}

#[test]
fn damaged_images() {
    run_all(images());
}

#[test]
fn all_damaged_samples_are_named() {
    run_all(several());
}

#[test]
fn damaged_sounds() {
    run_all(sounds());
}

#[test]
fn damaged_tables() {
    run_all(tables());
}

#[test]
fn damaged_lines() {
    run_all(lines());
}

#[test]
fn damaged_tokenizers() {
    run_all(tokenizers());
}

#[test]
fn steps_that_do_not_fit() {
    run_all(steps());
}

#[test]
fn commands_that_fail() {
    run_all(commands());
}
