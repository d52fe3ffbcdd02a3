//! `optix inspect`: what is in a model.

use std::collections::BTreeMap;
use std::path::Path;

use optix_base::escape_for_terminal;
use optix_io::Format;
use optix_ir::{Model, Type, ValueInfo};
use serde_json::json;

use super::setup;
use crate::report::format_bytes;
use crate::screen;
use optix::cli::Global;

fn type_of(ty: Option<&Type>) -> String {
    ty.map_or_else(|| "?".to_owned(), Type::to_string)
}

/// Shows a model.
pub fn inspect(global: &Global, path: &Path, as_json: bool, as_text: bool) -> anyhow::Result<()> {
    let loaded = setup::load(global, path)?;
    let model = &loaded.model;
    if as_text {
        return screen::result(&screen::foreign(&optix_ir::text::print(model)));
    }
    let graph = model.graph(model.main());
    let mut operators: BTreeMap<String, u64> = BTreeMap::new();
    for node in model.walk() {
        let (_, op) = optix_pipeline::naming::node_and_op(model, node);
        *operators.entry(op).or_default() += 1;
    }
    let mut types: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for tensor in model.values().filter_map(|value| model.value(value).tensor()) {
        let entry = types.entry(tensor.dtype().name()).or_default();
        entry.0 += 1;
        entry.1 += tensor.len() as u64;
        entry.2 += tensor.bytes().len() as u64;
    }
    let bytes: u64 = loaded.sources.iter().map(|source| source.size()).sum();
    if as_json {
        let infos = |infos: &[ValueInfo]| -> Vec<serde_json::Value> {
            infos
                .iter()
                .map(|info| json!({ "name": model.value(info.value).name(), "type": type_of(info.ty.as_ref()) }))
                .collect()
        };
        let document = json!({
            "schema": "optix-inspect/1",
            "path": path.display().to_string(),
            "bytes": bytes,
            "ir_version": model.ir_version,
            "producer": { "name": model.producer_name, "version": model.producer_version },
            "opsets": model.opset_imports.iter().map(|import| json!({ "domain": import.domain, "version": import.version })).collect::<Vec<_>>(),
            "inputs": infos(graph.inputs()),
            "outputs": infos(graph.outputs()),
            "nodes": model.walk().count(),
            "operators": operators,
            "functions": model.functions.iter().map(|function| &function.name).collect::<Vec<_>>(),
            "weights": types.iter().map(|(dtype, (tensors, elements, bytes))| json!({ "dtype": dtype, "tensors": tensors, "elements": elements, "bytes": bytes })).collect::<Vec<_>>(),
            "warnings": loaded.warnings,
        });
        return screen::result(&screen::json_text(&document));
    }
    screen::result(&describe(path, loaded.format, bytes, model, &operators, &types))?;
    loaded
        .warnings
        .iter()
        .for_each(|warning| screen::note(&format!("warning: {}", escape_for_terminal(warning))));
    Ok(())
}

fn describe(
    path: &Path,
    format: Format,
    bytes: u64,
    model: &Model,
    operators: &BTreeMap<String, u64>,
    types: &BTreeMap<&str, (u64, u64, u64)>,
) -> String {
    let graph = model.graph(model.main());
    let mut text = format!("{}: {}", escape_for_terminal(&path.to_string_lossy()), format_bytes(bytes));
    let opsets: Vec<String> = model
        .opset_imports
        .iter()
        .map(|import| {
            format!(
                "{} {}",
                if import.domain.is_empty() { "ai.onnx" } else { &import.domain },
                import.version
            )
        })
        .collect();
    match format {
        Format::Onnx => {
            text.push_str(&format!(
                "\nIR version {}, operator sets: {}\n",
                model.ir_version,
                opsets.join(", ")
            ));
        }
        Format::Safetensors => text.push_str("\nsafetensors: weights without a graph\n"),
        Format::SafetensorsDirectory => {
            text.push_str("\nHugging Face directory: safetensors, weights without a graph\n");
        }
    }
    if !model.producer_name.is_empty() {
        let producer = format!("{} {}", model.producer_name, model.producer_version);
        text.push_str(&format!("made by {}\n", escape_for_terminal(producer.trim())));
    }
    for (what, infos) in [("input ", graph.inputs()), ("output", graph.outputs())] {
        for info in infos {
            let value = model.value(info.value);
            let default = if value.initializer().is_some() { " (has a default)" } else { "" };
            text.push_str(&format!(
                "{what}  {}  {}{default}\n",
                escape_for_terminal(value.name()),
                escape_for_terminal(&type_of(info.ty.as_ref()))
            ));
        }
    }
    let mut counted: Vec<(&String, &u64)> = operators.iter().collect();
    counted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let listed: Vec<String> =
        counted.iter().map(|(op, count)| format!("{} {count}", escape_for_terminal(op))).collect();
    if format == Format::Onnx {
        text.push_str(&format!("nodes   {}: {}\n", model.walk().count(), listed.join(", ")));
    }
    if !model.functions.is_empty() {
        text.push_str(&format!("functions {}\n", model.functions.len()));
    }
    for (dtype, (tensors, elements, bytes)) in types {
        text.push_str(&format!(
            "weights {dtype}: {tensors} tensors, {elements} elements, {}\n",
            format_bytes(*bytes)
        ));
    }
    text
}
