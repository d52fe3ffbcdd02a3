//! Reports: the same facts on the terminal, as JSON, Markdown and HTML.

use serde_json::Value;

use super::{CALIB, EVAL, MODEL};
use crate::program::{Place, root};

#[test]
fn a_run_is_reported_in_every_form() {
    let place = Place::new();
    let line = format!(
        "quantize {MODEL} -o int8.onnx {CALIB} {EVAL} --require size-ratio=0.6 --report r.json --report r.md --report r.html"
    );
    let printed = place.ok(&line).stdout;
    let report: Value = serde_json::from_str(&place.text("r.json")).expect("JSON");

    let schema = std::fs::read_to_string(root().join("docs/report.schema.json")).expect("the schema");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    assert_eq!(crate::schema::violations(&schema, &report), [""; 0]);

    assert_eq!(report["schema"], "optix-report/1");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["command"], format!("optix {line}"));
    assert!(report["engine"].as_str().is_some_and(|engine| engine.starts_with("cpu ")));
    let size = |path| std::fs::metadata(path).expect("a file").len();
    assert_eq!(report["input"]["bytes"], size(root().join(MODEL)));
    assert_eq!(report["output"]["bytes"], size(place.path("int8.onnx")));
    let steps = report["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 12);
    assert!(steps.windows(2).all(|pair| pair[0]["nodes"][1] == pair[1]["nodes"][0]), "no gap between steps");
    let int8 = steps.iter().find(|step| step["id"] == "quantize-static").expect("the step");
    let layers = int8["changes"]["layers"].as_array().expect("layers");
    assert!(layers.iter().filter(|layer| layer["action"] == "int8").count() >= 17);
    // Every layer left alone says why.
    assert!(layers.iter().all(|layer| layer["action"] != "float" || layer["reason"].is_string()));
    assert_eq!(report["data"][0]["role"], "calibration");
    assert_eq!(report["data"][0]["samples"], 32);
    assert_eq!(report["data"][1]["samples"], 200);
    assert_eq!(report["overlap"]["samples"], 0);
    assert_eq!(report["evaluation"]["samples"], 200);
    assert_eq!(report["requirements"][0]["met"], true);

    let markdown = place.text("r.md");
    let html = place.text("r.html");
    for (name, text) in [("terminal", &printed), ("Markdown", &markdown), ("HTML", &html)] {
        let after = report["evaluation"]["accuracy"]["after"].as_f64().expect("a share");
        let accuracy = format!("{:.2}%", after * 100.0);
        for part in
            ["quantize-static", "merge-initializers", "/7/m/m.6/Conv", accuracy.as_str(), "size-ratio met"]
        {
            assert!(text.contains(part), "{part} in {name}");
        }
    }
    assert!(markdown.contains("| step | what it did |") && markdown.contains("```toml\nversion = 1"));
    is_self_contained(&html);
}

/// A page without its only script, which sorts tables: the one that the page's content security policy lets run.
fn without_script(html: &str) -> String {
    use sha2::Digest;
    let (before, rest) = html.split_once("<script>").expect("a script");
    let (script, after) = rest.split_once("</script>").expect("an end");
    let digest = sha2::Sha256::digest(script.as_bytes());
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = digest.chunks(3).map(|chunk| {
        chunk.iter().enumerate().fold(0u32, |all, (place, &byte)| all | u32::from(byte) << (16 - 8 * place))
    });
    let base64: String =
        bits.flat_map(|bits| [18, 12, 6, 0].map(|by| alphabet[(bits >> by) as usize & 63] as char)).collect();
    // 32 bytes end in two of three.
    let policy = format!("script-src 'sha256-{}='", &base64[..43]);
    assert!(before.contains("default-src 'none'") && before.contains(&policy), "{policy}");
    format!("{before}{after}")
}

/// A page that works without network.
fn is_self_contained(html: &str) {
    let html = &without_script(html);
    assert!(html.starts_with("<!doctype html>") && html.trim_end().ends_with("</html>"));
    assert!(html.contains("<svg "), "plots are inline");
    for outside in ["http://", "https://", "<script", "<link", "<img", "<iframe", "@import", "url(", "src="] {
        assert!(!html.contains(outside), "{outside}");
    }
    for tag in ["table", "svg", "ul", "pre", "html", "body", "tr", "td"] {
        let (opened, closed) = (
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count(),
            html.matches(&format!("</{tag}>")).count(),
        );
        assert_eq!(opened, closed, "<{tag}>");
    }
}

#[test]
fn names_from_a_model_are_text_in_a_report() {
    let place = Place::new();
    let name = "w<script>alert(1)</script>|`x`";
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 18]>\ng (float[N, 4] x) => (float[N, 2] y)\n<float[4, 2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}>\n{{ [\"{name}\"] y = MatMul (x, w) }}"
    );
    let model = optix_ir::text::parse(&text).expect("a model");
    place.write("model.onnx", optix_io::onnx_bytes(&model).expect("small"));
    place.ok("quantize model.onnx -o out.onnx -q --report r.html --report r.md --report r.json");
    let (html, markdown) = (without_script(&place.text("r.html")), place.text("r.md"));
    assert!(!html.contains("<script") && html.contains("w&#60;script&#62;"), "{html}");
    let row = markdown.lines().find(|line| line.contains("alert")).expect("a row");
    assert_eq!(row.replace("\\|", "").matches('|').count(), 15, "{row}");
    let report: Value = serde_json::from_str(&place.text("r.json")).expect("JSON");
    let layer = &report["steps"][4]["changes"]["layers"][0];
    assert_eq!(layer["node"], name, "JSON has the name as it is");
}

#[test]
fn a_report_that_cannot_be_written_is_noticed_before_the_work() {
    let place = Place::new();
    for report in ["r.txt", "r", "nowhere/r.json", "fixtures"] {
        place.ends(&format!("run clean {MODEL} -o out.onnx --report {report}"), 2);
        assert_eq!(place.list(), [""; 0], "{report}");
    }
}
