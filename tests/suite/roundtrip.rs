//! A model that is read and written loses nothing: every operator case and every fixture. Real models are
//! held to the same by `crates/io` when `OPTIX_MODELS=DIR` is set.

use std::path::Path;

use bytes::Bytes;
use optix_io::{LoadOptions, SaveOptions};

/// The encoder that wrote the cases writes fields in the order of their numbers, as ours does: a model
/// that keeps everything comes out as the same bytes.
#[test]
fn operator_cases_come_out_as_they_went_in() {
    let mut changed = Vec::new();
    let cases = crate::cases::load();
    for case in &cases {
        let model = crate::models::read_model(&case.model);
        match optix_io::onnx_bytes(&model) {
            Ok(bytes) if bytes == case.model => {}
            Ok(bytes) => {
                changed.push(format!("{}: {} bytes became {}", case.name, case.model.len(), bytes.len()))
            }
            Err(error) => changed.push(format!("{}: {error}", case.name)),
        }
    }
    assert!(changed.is_empty(), "{} of {}:\n{}", changed.len(), cases.len(), changed.join("\n"));
}

/// Byte for byte, but for the place of external data, which the writer chooses; and what it wrote is stable.
#[test]
fn fixtures_come_out_as_they_went_in() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let (mut equal, mut others) = (0, Vec::new());
    for folder in ["models", "graphs"] {
        for entry in std::fs::read_dir(fixtures.join(folder)).expect("the fixtures are there") {
            let path = entry.expect("it can be listed").path();
            if path.extension().is_none_or(|extension| extension != "onnx") {
                continue;
            }
            let written = rewrite(&path, &out.path().join("a"));
            if written == std::fs::read(&path).expect("the fixture can be read") {
                equal += 1;
                continue;
            }
            let again = rewrite(&out.path().join("a/model.onnx"), &out.path().join("b"));
            assert_eq!(written, again, "{}: not stable", path.display());
            others.push(path.file_name().expect("it has one").to_string_lossy().into_owned());
        }
    }
    others.sort();
    assert_eq!(others, ["external_data.onnx"], "{equal} equal");
}

fn rewrite(path: &Path, folder: &Path) -> Bytes {
    let loaded = optix_io::load(path, &LoadOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    std::fs::create_dir_all(folder).expect("a folder can be made");
    let target = folder.join("model.onnx");
    let options = SaveOptions { inputs: loaded.sources.clone(), ..SaveOptions::default() };
    optix_io::save(&loaded.model, &target, &options).unwrap_or_else(|error| panic!("{error}"));
    std::fs::read(&target).expect("it was just written").into()
}
