//! Valid files cut short at every place and damaged at thousands: nothing panics, and what is still
//! accepted is written back as it was read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use optix_base::Limits;
use optix_data::{Dataset, InputSpec, OpenOptions};
use optix_ir::{DType, Dim, Model};
use optix_passes::PASSES;
use optix_pipeline::runner::{self, RunOptions};
use optix_pipeline::{Recipe, Resources};

use super::archive::{Member, array, gzip, idx, zip};
use super::harness::{fixture, fixture_path};
use super::pb::{floats, ints};

/// Random numbers, the same ones every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// A copy that is damaged in one to three places: a bit, a byte, a byte of a telling value, a piece gone or
/// doubled.
fn mutant(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(8)).min(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes[at..end].fill([0, 0xff][random.below(2)]),
            4 => drop(bytes.drain(at..end)),
            _ => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// Runs one case; a panic becomes a complaint.
fn guarded<R>(what: &dyn Fn() -> String, wrong: &mut Vec<String>, case: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(case)) {
        Ok(result) => Some(result),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            wrong.push(format!("{}: panicked: {said}", what()));
            None
        }
    }
}

#[allow(clippy::print_stdout, reason = "says how much was tried")]
fn none_wrong(cases: usize, accepted: usize, wrong: &[String]) {
    println!("{cases} cases, {accepted} of them accepted");
    let shown = wrong.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {cases} are wrong:\n{shown}", wrong.len());
}

fn read(bytes: &Bytes) -> Result<Model, optix_io::IoError> {
    // The limit of time is the only one that a busy machine would reach.
    optix_io::read_onnx(bytes, "model.onnx", Limits::default())
}

/// The fields of a message in the order of their numbers: what a writer may change.
fn sorted(message: &[u8]) -> Option<Vec<(u64, Vec<u8>)>> {
    let mut fields = Vec::new();
    let mut rest = message;
    let number = |rest: &mut &[u8]| {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, tail) = rest.split_first()?;
            *rest = tail;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    };
    while !rest.is_empty() {
        let start = rest;
        let tag = number(&mut rest)?;
        let length = match tag & 7 {
            0 => number(&mut rest).map(|_| 0)?,
            1 => 8,
            2 => number(&mut rest)? as usize,
            5 => 4,
            _ => return None,
        };
        rest = rest.get(length..)?;
        fields.push((tag >> 3, start[..start.len() - rest.len()].to_vec()));
    }
    fields.sort_by_key(|(number, _)| *number);
    Some(fields)
}

/// The law for a prefix of a file in canonical encoding: it comes out with the same fields.
fn cut(name: &str, places: impl Iterator<Item = usize>, wrong: &mut Vec<String>) -> (usize, usize) {
    let whole = Bytes::from(fixture(name));
    let (mut cases, mut accepted) = (0, 0);
    for place in places.filter(|&place| place <= whole.len()) {
        let prefix = whole.slice(..place);
        let what = || format!("{name} cut at {place}");
        cases += 1;
        let written = guarded(&what, wrong, || {
            let model = read(&prefix).ok()?;
            Some(optix_io::onnx_bytes(&model).expect("it was read from less than 2 GiB"))
        });
        if let Some(Some(written)) = written {
            accepted += 1;
            if sorted(&written) != sorted(&prefix) {
                wrong.push(format!("{}: does not come out as it went in", what()));
            }
        }
    }
    (cases, accepted)
}

#[test]
fn models_cut_short() {
    let mut wrong = Vec::new();
    let (mut cases, mut accepted) = (0, 0);
    let mut random = Random(1);
    for name in ["models/fmnist_mobilenet.onnx", "models/fmnist_resnet.onnx"] {
        let length = fixture(name).len();
        let further: Vec<usize> = (0..256).map(|_| 4096 + random.below(length - 4096)).collect();
        let near_the_end = length - 64..=length;
        let found = cut(name, (0..4096).chain(further).chain(near_the_end), &mut wrong);
        cases += found.0;
        accepted += found.1;
    }
    for entry in std::fs::read_dir(fixture_path("graphs")).expect("fixtures") {
        let name = entry.expect("fixtures").file_name().into_string().expect("UTF-8");
        // Those are kept by another file, or not in canonical encoding.
        if name.ends_with(".onnx")
            && !name.starts_with("external_data")
            && !name.starts_with("unknown_fields")
        {
            let found = cut(&format!("graphs/{name}"), 0..usize::from(u16::MAX), &mut wrong);
            cases += found.0;
            accepted += found.1;
        }
    }
    assert!(accepted > 20, "whole files are among the prefixes");
    none_wrong(cases, accepted, &wrong);
}

/// Runs the clean-up and quantizing passes over a model, with the verifier after each.
fn treat(model: &Model) -> Result<(), String> {
    for recipe in [
        include_str!("../../../recipes/clean.toml"),
        include_str!("../../../recipes/dynamic-transformer.toml"),
    ] {
        let recipe = Recipe::parse(recipe, "recipe", PASSES, &[]).expect("a built-in recipe");
        let engine = optix_runtime::engines().into_iter().next().expect("an engine");
        let mut oracle = optix_runtime::EngineOracle::new(engine, optix_runtime::LoadOptions::default());
        let mut resources = Resources { oracle: &mut oracle, ..Resources::default() };
        let mut model = model.clone();
        let options = RunOptions::default();
        match runner::run(&recipe, &mut model, &mut resources, &options, &mut |_, _| {}) {
            Err(error) if error.is_internal() => return Err(error.to_string()),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn models_damaged() {
    let mut wrong = Vec::new();
    let (mut cases, mut accepted) = (0, 0);
    let mut random = Random(2);
    for entry in [
        "mlp_residual",
        "if_captured",
        "quantized_conv",
        "local_function",
        "loop_scan_output",
        "sparse_initializer",
        "typed_fields",
        "int4_weights",
        "conv_batch_norm",
        "symbolic_dims",
        "annotations",
        "sequences",
        "element_types",
        "nested_if",
        "unknown_operator",
        "identities",
    ] {
        let seed = fixture(&format!("graphs/{entry}.onnx"));
        for number in 0..400 {
            let bytes = Bytes::from(mutant(&seed, &mut random));
            let what = || format!("{entry}, mutant {number}");
            cases += 1;
            let Some(Ok(model)) = guarded(&what, &mut wrong, || read(&bytes)) else { continue };
            accepted += 1;
            let again = guarded(&what, &mut wrong, || {
                let written = optix_io::onnx_bytes(&model).expect("it was read from less than 2 GiB");
                let model = read(&written).map_err(|error| format!("is not read back: {error}"))?;
                let again = optix_io::onnx_bytes(&model).expect("it was read from less than 2 GiB");
                if again == written { Ok(()) } else { Err("is written otherwise when read again".to_owned()) }
            });
            if let Some(Err(complaint)) = again {
                wrong.push(format!("{}: {complaint}", what()));
            }
            if let Some(Err(complaint)) = guarded(&what, &mut wrong, || treat(&model)) {
                wrong.push(format!("{}: {complaint}", what()));
            }
        }
    }
    none_wrong(cases, accepted, &wrong);
}

/// Reads data to the end, as a model of four floats sees them; the number of samples.
fn read_data(path: &Path) -> Result<u64, optix_data::DataError> {
    let dataset = Dataset::open(path.to_str().expect("UTF-8"), &OpenOptions::default())?;
    let input =
        InputSpec { name: "x".to_owned(), dtype: DType::F32, shape: vec![Dim::Unknown, Dim::Fixed(4)] };
    dataset.bind(&[input], 2)?.batches()?.try_fold(0, |count, batch| Ok(count + batch?.count as u64))
}

#[test]
fn data_cut_short_and_damaged() {
    let elements = floats(&[0.5, 1.0, -1.0, 2.0, 0.25, 0.0, 3.0, -2.0]);
    let npy = array("<f4", "(2, 4)", &elements);
    let labels = array("<i8", "(2,)", &ints(&[0, 1]));
    let npz = zip(&[Member::deflated("x.npy", &npy), Member::stored("label.npy", &labels)]);
    let plain = idx(0x0d, &[2, 4], &elements);
    let spec = b"[source]\nkind = \"npy\"\npath = \"other.npy\"\ntake = 2\nskip = 0\n[input.x]\nsteps = [ { scale = 0.5 }, \
        { normalize = { mean = [0.5], std = [0.25] } } ]\n"
        .to_vec();
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("other.npy"), &npy).expect("a file");
    let mut wrong = Vec::new();
    let (mut cases, mut accepted) = (0, 0);
    let mut random = Random(3);
    for (name, seed) in [
        ("a.npy", npy),
        ("a.npz", npz),
        ("a-idx2", plain.clone()),
        ("a-idx2.gz", gzip(&plain)),
        ("data.toml", spec),
    ] {
        let path = directory.path().join(name);
        let mut check = |case: String, bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("a file");
            cases += 1;
            if let Some(Ok(_)) = guarded(&|| format!("{name}, {case}"), &mut wrong, || read_data(&path)) {
                accepted += 1;
            }
        };
        check("whole".to_owned(), &seed);
        for place in 0..seed.len() {
            check(format!("cut at {place}"), &seed[..place]);
        }
        for number in 0..500 {
            check(format!("mutant {number}"), &mutant(&seed, &mut random));
        }
    }
    assert!(accepted >= 5, "whole files are among the cases");
    none_wrong(cases, accepted, &wrong);
}

/// Reads every sample that can be read; the number of them.
fn survey_data(path: &Path) -> Result<u64, optix_data::DataError> {
    let options = OpenOptions { keep_going: true, ..OpenOptions::default() };
    let dataset = Dataset::open(path.to_str().expect("UTF-8"), &options)?;
    Ok(dataset.survey(None, &mut |_| ())?.good)
}

#[test]
fn media_cut_short_and_damaged() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(directory.path().join("a.txt"), "the lazy dog\n").expect("a file");
    let spec =
        b"[source]\npath = \"a.txt\"\n[input.input_ids]\nsteps = [ { tokenize = { max-length = 8 } } ]\n";
    std::fs::write(directory.path().join("data.toml"), spec).expect("a file");
    let mut wrong = Vec::new();
    let (mut cases, mut accepted) = (0, 0);
    let mut random = Random(6);
    for (name, file, places) in [
        ("a.png", "media/pictures/palette.png", 200),
        ("a.png", "media/clothes/bag/0018.png", 200),
        ("a.jpg", "media/pictures/turned.jpg", 100),
        ("a.bmp", "media/pictures/small.bmp", 50),
        ("a.gif", "media/pictures/small.gif", 100),
        ("a.webp", "media/pictures/small.webp", 100),
        ("a.wav", "media/sounds/low/0.wav", 100),
        ("a.csv", "media/table.csv", 200),
        ("a.jsonl", "media/sentences.jsonl", 200),
        // What is read is the data.toml beside it.
        ("tokenizer.json", "media/tokenizer.json", 100),
    ] {
        let seed = fixture(file);
        let path = directory.path().join(name);
        let read = if name == "tokenizer.json" { directory.path().join("data.toml") } else { path.clone() };
        let mut check = |case: String, bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("a file");
            cases += 1;
            if let Some(Ok(1..)) = guarded(&|| format!("{file}, {case}"), &mut wrong, || survey_data(&read)) {
                accepted += 1;
            }
        };
        check("whole".to_owned(), &seed);
        // Where headers are, every place; behind them, some.
        for place in (0..seed.len().min(64)).chain((0..places).map(|number| number * seed.len() / places)) {
            check(format!("cut at {place}"), &seed[..place]);
        }
        for number in 0..200 {
            check(format!("mutant {number}"), &mutant(&seed, &mut random));
        }
    }
    assert!(accepted >= 10, "whole files are among the cases");
    none_wrong(cases, accepted, &wrong);
}

#[test]
fn recipes_cut_short_and_damaged() {
    let mut wrong = Vec::new();
    let (mut cases, mut accepted) = (0, 0);
    let mut random = Random(4);
    for seed in [
        include_str!("../../../recipes/int8-cpu.toml"),
        include_str!("../../../recipes/dynamic-transformer.toml"),
    ] {
        let mut check = |case: String, bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            cases += 1;
            let parsed = guarded(&|| case.clone(), &mut wrong, || {
                let recipe = Recipe::parse(text, "r.toml", PASSES, &[]).ok()?;
                let printed = recipe.to_toml();
                let again = Recipe::parse(&printed, "printed", PASSES, &[]).expect("what was printed");
                Some(again.to_toml() == printed)
            });
            match parsed {
                Some(Some(true)) => accepted += 1,
                Some(Some(false)) => wrong.push(format!("{case}: is printed otherwise when read again")),
                _ => {}
            }
        };
        for place in 0..=seed.len() {
            check(format!("cut at {place}"), &seed.as_bytes()[..place]);
        }
        for number in 0..1500 {
            check(format!("mutant {number}"), &mutant(seed.as_bytes(), &mut random));
        }
    }
    none_wrong(cases, accepted, &wrong);
}

#[test]
fn tensor_samples_cut_short_and_damaged() {
    let mut wrong = Vec::new();
    let (mut cases, mut accepted) = (0, 0);
    let mut random = Random(5);
    let tensor = optix_ir::Tensor::from_vec(vec![2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let seed = optix_io::write_tensor_pb("x", &tensor);
    let places = (0..=seed.len()).map(|place| seed[..place].to_vec());
    let mutants: Vec<Vec<u8>> = (0..1000).map(|_| mutant(&seed, &mut random)).collect();
    for (number, bytes) in places.chain(mutants).enumerate() {
        cases += 1;
        let read = guarded(&|| format!("case {number}"), &mut wrong, || {
            optix_io::read_tensor_pb(&bytes.into(), "input_0.pb").is_ok()
        });
        accepted += usize::from(read == Some(true));
    }
    none_wrong(cases, accepted, &wrong);
}
