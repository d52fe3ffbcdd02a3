//! Every kind of data, end to end: checked, fed to models, taken in parts.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::MODEL;
use crate::program::Place;

const CLOTHES: &str = "fixtures/media/clothes.toml";

/// Where the fixtures are seen from a test's own directory.
const MEDIA: &str = "fixtures/media";

/// A model of floats that answers with its input.
fn identity(place: &Place, name: &str, shape: &str) {
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 15]>\ng (float[{shape}] x) => (float[{shape}] y) {{ y = Identity (x) }}"
    );
    save(place, name, &text);
}

fn save(place: &Place, name: &str, text: &str) {
    let model = optix_ir::text::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    place.write(name, optix_io::onnx_bytes(&model).expect("it is small"));
}

/// Tokens and mask as floats: what they are shows in the outputs.
fn tokens(place: &Place) {
    save(
        place,
        "tokens.onnx",
        "<ir_version: 8, opset_import: [\"\" : 15]>
         g (int64[N,S] input_ids, int64[N,S] attention_mask, int64[N,S] token_type_ids) => (float[N] sums) {
            masked = Mul (input_ids, attention_mask)
            typed = Mul (masked, token_type_ids)
            both = Add (masked, typed)
            floats = Cast <to: int = 1> (both)
            axes = Constant <value_ints: ints = [1]> ()
            sums = ReduceSum <keepdims: int = 0> (floats, axes)
         }",
    );
}

/// What `data check --json` says.
fn check(place: &Place, arguments: &str) -> Value {
    let document = place.json(&format!("data check {arguments} --json"));
    assert_eq!(document["schema"], "optix-data-check/1");
    assert_eq!(document["broken"], 0, "{document}");
    document
}

fn infer(place: &Place, model: &str, data: &str, out: &str) -> Vec<u8> {
    place.ok(&format!("infer {model} --data {data} -o {out}"));
    place.read(out)
}

#[test]
fn a_folder_of_images_is_evaluated_like_the_arrays_they_came_from() {
    let place = Place::new();
    let facts = check(&place, &format!("{CLOTHES} --model {MODEL}"));
    assert_eq!((&facts["samples"], &facts["kind"]), (&40.into(), &"images".into()));
    let classes = facts["labels"]["classes"].as_array().expect("classes");
    assert_eq!(classes.len(), 10);
    assert!(classes.iter().all(|class| class["samples"] == 4), "{facts}");
    assert_eq!((&classes[0]["name"], &classes[9]["name"]), (&"t-shirt".into(), &"boot".into()));
    assert_eq!(facts["fit"]["batched"], true);
    assert_eq!(facts["inputs"][0]["shapes"][0]["shape"], serde_json::json!([1, 28, 28]));
    let text = place.ok(&format!("data check {CLOTHES} --model {MODEL}")).stdout;
    for part in [
        "input     image  float[",
        "channel, to-float, scale, normalize, layout",
        "0 t-shirt: 4",
        "t-shirt/0019.png",
        "all 40 samples can be read and fit the model",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    let accuracy = place.json(&format!("eval {MODEL} --data {CLOTHES} --json"));
    let (folder, samples) = (&accuracy["metrics"], &accuracy["samples"]);
    assert_eq!(samples, 40, "{accuracy}");
    assert!(folder.as_array().is_some_and(|metrics| !metrics.is_empty()), "{accuracy}");
    // The same files named by a table, in the same order, give the same bytes.
    let steps = place.text("fixtures/media/clothes.toml");
    let steps = &steps[steps.find("[input.image]").expect("a table")..];
    place.write("table.toml", format!("[source]\npath = \"{MEDIA}/clothes.csv\"\n{steps}"));
    let table = place.json(&format!("eval {MODEL} --data table.toml --json"));
    // The names of a table are sorted, those of the folder have an order of their own.
    assert_ne!(folder, &table["metrics"]);
    place.write(
        "table.toml",
        format!(
            "[source]\npath = \"{MEDIA}/clothes.csv\"\nclasses = \"{MEDIA}/clothes/classes.txt\"\n{steps}"
        ),
    );
    let table = place.json(&format!("eval {MODEL} --data table.toml --json"));
    assert_eq!(folder, &table["metrics"], "{accuracy}\n{table}");
    assert_eq!(infer(&place, MODEL, CLOTHES, "a.npz"), infer(&place, MODEL, "table.toml", "b.npz"));
    // Bytes into floats stay an error.
    let error = place.ends(&format!("infer {MODEL} --data {MEDIA}/clothes -o c.npz"), 2).stderr;
    assert!(error.contains("OX-D001"), "{error}");
}

#[test]
fn images_of_every_format_become_one_shape() {
    let place = Place::new();
    identity(&place, "image.onnx", "N,3,24,24");
    place.write(
        "pictures.toml",
        format!(
            "[source]\npath = \"{MEDIA}/pictures\"\n[input]\nsteps = [ {{ exif-orientation = {{}} }}, \
             {{ channel = \"rgb\" }}, {{ to-float = {{}} }}, {{ resize = {{ size = 24, mode = \"bicubic\" }} }}, \
             {{ center-crop = 24 }}, {{ scale = 0.00392 }}, {{ layout = \"nchw\" }} ]\n"
        ),
    );
    let facts = check(&place, "pictures.toml --model image.onnx");
    assert_eq!((&facts["samples"], &facts["inputs"][0]["shapes"][0]["samples"]), (&10.into(), &10.into()));
    infer(&place, "image.onnx", "pictures.toml", "out.npz");
    // One file, and a preset.
    identity(&place, "clip.onnx", "N,3,224,224");
    place.write(
        "one.toml",
        format!(
            "[source]\npath = \"{MEDIA}/pictures/rgb.jpg\"\n[input]\nsteps = [ {{ preset = \"clip\" }} ]\n"
        ),
    );
    let facts = check(&place, "one.toml --model clip.onnx");
    assert_eq!(facts["samples"], 1);
}

#[test]
fn tables_feed_numbers_and_labels() {
    let place = Place::new();
    identity(&place, "pair.onnx", "N,2");
    let table = format!("{MEDIA}/table.csv?labels=kind&columns=width,height");
    let facts = check(&place, &format!("{table} --model pair.onnx"));
    let classes = facts["labels"]["classes"].as_array().expect("classes");
    assert_eq!((&classes[0]["name"], &classes[0]["samples"]), (&"flat".into(), &6.into()));
    let result = place.json(&format!("eval pair.onnx --data {table} --json"));
    // Widths are above heights but for one row: class 0 wins, which half of the rows are.
    assert_eq!(result["samples"], 12, "{result}");
    // Without `columns`, all numbers are fed, and texts are arrays of their own.
    let facts = check(&place, &format!("{MEDIA}/table.csv"));
    let names: Vec<&str> = facts["arrays"]
        .as_array()
        .expect("arrays")
        .iter()
        .filter_map(|array| array["name"].as_str())
        .collect();
    assert_eq!(names, ["features", "name", "kind"]);
    let each = check(&place, &format!("{MEDIA}/table.csv?columns=each"));
    assert_eq!(each["arrays"].as_array().map(Vec::len), Some(4));
}

#[test]
fn texts_become_tokens_for_all_inputs() {
    let place = Place::new();
    tokens(&place);
    let tokenize = |source: &str, options: &str| {
        format!(
            "[source]\npath = \"{MEDIA}/{source}\"\n[input]\nsteps = [ {{ tokenize = {{ file = \
             \"{MEDIA}/tokenizer.json\"{options} }} }} ]\n"
        )
    };
    place.write("longest.toml", tokenize("sentences.txt", ""));
    place.write("none.toml", tokenize("sentences.txt", ", padding = \"none\""));
    place.write("max.toml", tokenize("sentences.txt", ", padding = \"max-length\", max-length = 32"));
    let facts = check(&place, "longest.toml --model tokens.onnx");
    assert_eq!(facts["samples"], 6);
    let inputs: Vec<&str> = facts["inputs"]
        .as_array()
        .expect("inputs")
        .iter()
        .filter_map(|input| input["name"].as_str())
        .collect();
    assert_eq!(inputs, ["input_ids", "attention_mask", "token_type_ids"]);
    // However they are filled up, the mask takes it out again.
    let longest = infer(&place, "tokens.onnx", "longest.toml", "a.npz");
    assert_eq!(longest, infer(&place, "tokens.onnx", "none.toml", "b.npz"));
    assert_eq!(longest, infer(&place, "tokens.onnx", "max.toml", "c.npz"));
    // Two texts a sample: the second counts twice.
    place.write("pair.toml", tokenize("sentences.jsonl", ", pair = \"second\""));
    let facts = check(&place, "pair.toml --model tokens.onnx");
    assert_eq!(facts["labels"]["classes"][0]["name"], "bad");
    assert_ne!(longest, infer(&place, "tokens.onnx", "pair.toml", "d.npz"));
    // JSON lines and text lines are the same texts.
    place.write("lines.toml", tokenize("sentences.jsonl", ""));
    assert_eq!(longest, infer(&place, "tokens.onnx", "lines.toml", "e.npz"));
}

#[test]
fn sounds_become_spectrograms() {
    let place = Place::new();
    identity(&place, "mel.onnx", "N,40,T");
    place.write(
        "sounds.toml",
        format!(
            "[source]\nkind = \"wav\"\npath = \"{MEDIA}/sounds\"\n[input]\nsteps = [ {{ mono = {{}} }}, \
             {{ resample = {{ rate = 16000 }} }}, {{ pad-or-trim = {{ length = 4000 }} }}, \
             {{ mel = {{ n-fft = 400, hop = 160, n-mels = 40, log = \"db\" }} }} ]\n"
        ),
    );
    let facts = check(&place, "sounds.toml --model mel.onnx");
    assert_eq!(facts["samples"], 4);
    assert_eq!(facts["inputs"][0]["shapes"][0]["shape"], serde_json::json!([40, 26]));
    assert_eq!(facts["labels"]["classes"][0]["name"], "high");
    infer(&place, "mel.onnx", "sounds.toml", "out.npz");
}

#[test]
fn commands_print_samples() {
    let place = Place::new();
    identity(&place, "pair.onnx", "N,2");
    place.write("lines.jsonl", "{\"x\": [1.5, 2], \"label\": 1}\n\n{\"x\": [3.25, 4], \"label\": 1}");
    let printed = infer(&place, "pair.onnx", "lines.jsonl", "a.npz");
    let run = |arguments: &[&str]| {
        let mut command = place.command("");
        crate::program::finish(command.args(arguments))
    };
    let done = run(&["infer", "pair.onnx", "--data", "cmd:cat lines.jsonl", "-o", "b.npz"]);
    assert_eq!((done.code, &printed), (0, &place.read("b.npz")), "{}", done.stderr);
    // Arrays one after the other, two a sample.
    let frame = |values: [f32; 2]| {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n";
        let mut bytes = b"\x93NUMPY\x01\0".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        bytes
    };
    place.write("1.npy", frame([1.5, 2.0]));
    place.write("2.npy", frame([3.25, 4.0]));
    let done = run(&["infer", "pair.onnx", "--data", "cmd:cat 1.npy 2.npy", "-o", "c.npz"]);
    assert_eq!((done.code, &printed), (0, &place.read("c.npz")), "{}", done.stderr);
    // An endless one, of which a part is enough.
    place.write("endless.sh", "#!/bin/sh\nwhile true; do cat lines.jsonl; echo; done\n");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path("endless.sh"), executable).expect("a file of ours");
    let done = run(&["infer", "pair.onnx", "--data", "cmd:./endless.sh", "--samples", "2", "-o", "d.npz"]);
    assert_eq!((done.code, &printed), (0, &place.read("d.npz")), "{}", done.stderr);
    // From a data.toml only with leave.
    place.write("command.toml", "[source]\nkind = \"command\"\ncommand = [\"cat\", \"lines.jsonl\"]\n");
    let error = place.ends("data check command.toml", 2).stderr;
    assert!(error.contains("--allow-commands"), "{error}");
    check(&place, "command.toml --allow-commands");
}

#[test]
fn raw_numbers_and_random_ones() {
    let place = Place::new();
    identity(&place, "pair.onnx", "N,2");
    let bytes: Vec<u8> = [1.5f32, 2.0, 3.25, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    place.write("x.bin", bytes);
    place.write("x.jsonl", "{\"x\": [1.5, 2]}\n{\"x\": [3.25, 4]}\n");
    let raw = infer(&place, "pair.onnx", "raw:x.bin?dtype=float32&shape=2", "a.npz");
    assert_eq!(raw, infer(&place, "pair.onnx", "x.jsonl", "b.npz"));
    let drawn = infer(&place, "pair.onnx", "random:normal?seed=1&n=5", "c.npz");
    assert_eq!(drawn, infer(&place, "pair.onnx", "random:normal?seed=1&n=5", "d.npz"));
    assert_ne!(drawn, infer(&place, "pair.onnx", "random:normal?seed=2&n=5", "e.npz"));
    let text = place.ok("data check random:normal?n=5 --model pair.onnx").stdout;
    assert!(text.contains("synthetic: ranges are not those of your data"), "{text}");
    for command in
        ["eval pair.onnx --data random:normal", "quantize pair.onnx -o q.onnx --calib random:normal"]
    {
        let error = place.ends(command, 2).stderr;
        assert!(error.contains("random data say nothing about accuracy"), "{error}");
    }
    tokens(&place);
    let error = place.ends("infer tokens.onnx --data random:normal -o f.npz", 2).stderr;
    assert!(error.contains("dims = { S = 128 }") && error.contains("?dims.S=128"), "{error}");
    infer(&place, "tokens.onnx", "random:normal?dims.S=7&n=3&below=50", "f.npz");
}

#[test]
fn every_kind_is_taken_in_parts() {
    let place = Place::new();
    place.write("x.bin", (0..160u8).collect::<Vec<u8>>());
    let kinds = [
        (format!("{MEDIA}/clothes"), 40),
        (format!("{MEDIA}/table.csv"), 12),
        (format!("{MEDIA}/clothes.csv"), 40),
        (format!("{MEDIA}/sentences.txt"), 6),
        (format!("{MEDIA}/sentences.jsonl"), 6),
        (format!("{MEDIA}/sounds"), 4),
        ("raw:x.bin?dtype=uint8&shape=4".to_owned(), 40),
    ];
    for (given, count) in kinds {
        let with = |option: &str| {
            let separator = if given.contains('?') { '&' } else { '?' };
            let data = format!("{given}{separator}{option}");
            check(&place, &data)
        };
        let first = |facts: &Value| facts["first"].clone();
        let all = check(&place, &given);
        assert_eq!(all["samples"], count, "{given}");
        assert_eq!(with("take=3")["samples"], 3, "{given}");
        assert_eq!(with("skip=1")["samples"], count - 1, "{given}");
        // What is behind `skip` is what stands there without it.
        assert_eq!(first(&with("skip=1"))[0]["inputs"], first(&all)[1]["inputs"], "{given}");
        let drawn = with("sample=2&seed=3");
        assert_eq!(drawn["samples"], 2, "{given}");
        assert_eq!(first(&drawn), first(&with("sample=2&seed=3")), "{given}");
        let parts = ["split=0.0-0.5", "split=0.5-1.0"].map(|part| {
            let run = place.run(&format!(
                "data check {given}{}{part} --json",
                if given.contains('?') { '&' } else { '?' }
            ));
            // A half may be empty where there are few samples.
            if run.code == 0 { run.json()["samples"].as_u64().expect("a number") } else { 0 }
        });
        assert_eq!(parts.iter().sum::<u64>(), count, "{given}: {parts:?}");
    }
    // An array comes with its own rules, and sound.
    assert!(place.ok(&format!("data check {MEDIA}/sounds")).stdout.contains("high/0.wav"));
}
