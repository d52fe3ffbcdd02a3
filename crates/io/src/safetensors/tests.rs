//! Reading, writing and refusing safetensors.

use std::path::{Path, PathBuf};

use optix_base::{Budget, Limits};

use super::header::{Wrong, parse};
use crate::{Format, LoadOptions, Loaded, SaveOptions, load, save};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/safetensors").join(name)
}

fn read(path: &Path) -> Loaded {
    load(path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn write(loaded: &Loaded, path: &Path) {
    let options = SaveOptions { inputs: loaded.sources.clone(), ..SaveOptions::default() };
    save(&loaded.model, path, &options).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_file_comes_out_as_it_went_in() {
    let path = fixture("single.safetensors");
    let loaded = read(&path);
    assert_eq!(loaded.format, Format::Safetensors);
    assert_eq!(loaded.model.graph(loaded.model.main()).initializers().len(), 11);
    let out = tempfile::tempdir().unwrap();
    let copy = out.path().join("copy.safetensors");
    write(&loaded, &copy);
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&path).unwrap(), "the bytes changed");
}

#[test]
fn a_directory_comes_out_as_it_went_in() {
    let path = fixture("sharded");
    let loaded = read(&path);
    assert_eq!(loaded.format, Format::SafetensorsDirectory);
    let out = tempfile::tempdir().unwrap();
    let copy = out.path().join("copy");
    write(&loaded, &copy);
    let mut names: Vec<_> =
        std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let mut copied: Vec<_> =
        std::fs::read_dir(&copy).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    copied.sort();
    assert_eq!(names, copied);
    for name in &names {
        let (before, after) =
            (std::fs::read(path.join(name)).unwrap(), std::fs::read(copy.join(name)).unwrap());
        if name.to_string_lossy().contains("index") {
            let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
            assert_eq!(json(&before), json(&after));
        } else {
            assert!(before == after, "{name:?} changed");
        }
    }
    // What is there is not overwritten.
    let options = SaveOptions { inputs: loaded.sources.clone(), ..SaveOptions::default() };
    assert!(save(&loaded.model, &copy, &options).is_err());
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn weights_and_graphs_are_not_confused() {
    let weights = read(&fixture("single.safetensors"));
    let out = tempfile::tempdir().unwrap();
    let error = save(&weights.model, &out.path().join("x.onnx"), &SaveOptions::default()).unwrap_err();
    assert!(error.to_string().contains("weights without a graph"), "{error}");
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/fmnist_mobilenet.onnx");
    let error =
        save(&read(&graph).model, &out.path().join("x.safetensors"), &SaveOptions::default()).unwrap_err();
    assert!(error.to_string().contains("has a graph"), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

/// A file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

fn told(bytes: &[u8]) -> String {
    match parse(bytes, &mut Budget::new(Limits::default())) {
        Ok(header) => format!("{} tensors", header.entries.len()),
        Err(Wrong::Content(place, what)) => format!("{place}: {what}"),
        Err(Wrong::Budget(error)) => error.to_string(),
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let tensor = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let one = tensor("F32", "[2]", 0, 8);
    for (header, data, expected) in [
        (format!("{{\"a\":{one}}}"), 8, "1 tensors"),
        (format!("{{\"a\":{one}}}   "), 8, "1 tensors"),
        ("{}".to_owned(), 0, "0 tensors"),
        (format!("{{\"a\":{},\"b\":{}}}", tensor("F32", "[0,9]", 0, 0), one), 8, "2 tensors"),
        (format!("{{\"a\":{one},\"a\":{one}}}"), 8, "there twice"),
        (format!("{{\"a\":{one}}} x"), 8, "trailing"),
        (format!(" {{\"a\":{one}}}"), 8, "no JSON object"),
        (format!("{{\"a\":{one}}}"), 9, "belong to none"),
        (format!("{{\"a\":{one}}}"), 7, "do not lie in"),
        (format!("{{\"a\":{}}}", tensor("F32", "[2]", 4, 12)), 12, "leaves a hole"),
        (format!("{{\"a\":{one},\"b\":{}}}", tensor("U8", "[8]", 4, 12)), 12, "overlaps"),
        (format!("{{\"a\":{}}}", tensor("F32", "[3]", 0, 8)), 8, "takes 12 bytes"),
        (format!("{{\"a\":{}}}", tensor("F32", "[2]", 8, 0)), 8, "do not lie in"),
        (format!("{{\"a\":{}}}", tensor("F4", "[3]", 0, 2)), 2, "takes 2 bytes"),
        (format!("{{\"a\":{}}}", tensor("F4", "[4]", 0, 2)), 2, "1 tensors"),
        (format!("{{\"a\":{}}}", tensor("F31", "[2]", 0, 8)), 8, "not one of"),
        (format!("{{\"a\":{}}}", tensor("F32", "[9223372036854775807,4]", 0, 8)), 8, "larger than memory"),
        (format!("{{\"a\":{}}}", tensor("F32", "[-2]", 0, 8)), 8, "invalid value"),
        (format!("{{\"__metadata__\":{{\"a\":1}},\"a\":{one}}}"), 8, "expected a string"),
        (format!("{{\"__metadata__\":{{\"a\":\"1\",\"a\":\"2\"}},\"a\":{one}}}"), 8, "there twice"),
    ] {
        let told = told(&file(&header, data));
        assert!(told.contains(expected), "{header}: {told}");
    }
    assert!(told(&[1, 2, 3]).contains("fewer than the 8"));
    assert!(told(&[0xff; 64]).contains("the format allows"));
    assert!(told(&file("{}", 0)[..9]).contains("cut off"));
    let deep = "[".repeat(100_000);
    assert!(told(&file(&format!("{{\"a\":{deep}"), 0)).contains("header"));
}

#[test]
fn what_the_formats_own_library_reads_is_what_we_read() {
    for name in ["single.safetensors", "sharded/model-00001-of-00002.safetensors"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ours = read(&fixture(name));
        assert_eq!(theirs.len(), ours.model.graph(ours.model.main()).initializers().len());
        for (tensor, view) in theirs.tensors() {
            let value = ours.model.find_value(ours.model.main(), &tensor).unwrap();
            let held = ours.model.value(value).tensor().unwrap();
            assert_eq!((held.shape(), held.bytes().as_ref()), (view.shape(), view.data()), "{tensor}");
        }
    }
}

#[test]
fn non_finite_weights_are_counted_from_the_file() {
    let mut values: Vec<f32> = (0..400_000).map(|i| i as f32).collect();
    for (place, odd) in [(0, f32::NAN), (3, f32::INFINITY), (262_143, f32::NAN), (399_999, f32::NEG_INFINITY)]
    {
        values[place] = odd;
    }
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let header =
        format!("{{\"w\":{{\"dtype\":\"F32\",\"shape\":[400000],\"data_offsets\":[0,{}]}}}}", bytes.len());
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("w.safetensors");
    std::fs::write(&path, [file(&header, 0), bytes].concat()).unwrap();
    for map in [true, false] {
        let loaded = load(&path, &LoadOptions { map, ..LoadOptions::default() }).unwrap();
        let value = loaded.model.find_value(loaded.model.main(), "w").unwrap();
        assert_eq!(crate::non_finite(loaded.model.value(value).tensor().unwrap()), (2, 2), "map: {map}");
    }
}
