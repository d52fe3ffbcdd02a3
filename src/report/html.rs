//! The report as one self-contained HTML page with plots.

use askama::Template;
use optix_pipeline::report::Report;

use super::format;
use super::plot::{Bar, bars};

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    report: &'a Report,
    facts: Vec<String>,
    requirements: Vec<(bool, String)>,
    warnings: Vec<String>,
    steps: Vec<[String; 5]>,
    /// Drawn by `plot`, which escapes every label.
    plots: Vec<String>,
    layers: Vec<[String; 9]>,
    skips: Vec<[String; 4]>,
    verdict: &'static str,
}

/// The report as HTML.
pub fn html(report: &Report) -> anyhow::Result<String> {
    let mut facts = vec![format!(
        "size {} → {} ({})",
        format::bytes(report.input.bytes),
        format::bytes(report.output.bytes),
        format::ratio(report.output.bytes, report.input.bytes)
    )];
    facts.push(format!("nodes {} → {}", report.input.nodes, report.output.nodes));
    if let Some(evaluation) = &report.evaluation {
        facts.extend(evaluation.accuracy.as_ref().map(|a| format::accuracy(a, evaluation.samples)));
        facts.extend(evaluation.agreement.as_ref().map(format::agreement));
        facts.extend(format::outputs(&evaluation.outputs));
    }
    if let Some(latency) = &report.latency {
        facts.push(format!("latency {}", format::latency(latency)));
        facts.extend(latency.kernels.as_ref().map(format::kernels));
    }
    if let Some(overlap) = &report.overlap {
        facts.push(format!("{} of {} evaluation samples were calibrated on", overlap.samples, overlap.of));
    }
    facts.extend(
        report.data.iter().map(|data| format!("{}: {} samples of {}", data.role, data.samples, data.path)),
    );
    facts.push(format!("engine {}; {} in all", report.engine, format::seconds(report.seconds)));
    facts.extend(format::notes(report));
    let steps = report.steps.iter().map(|step| {
        [
            step.id.clone(),
            format::step_summary(step),
            format!("{} → {}", step.nodes[0], step.nodes[1]),
            format!("{} → {}", format::bytes(step.tensor_bytes[0]), format::bytes(step.tensor_bytes[1])),
            format::seconds(step.seconds),
        ]
    });
    let all_layers: Vec<_> = report.steps.iter().flat_map(|step| &step.changes.layers).collect();
    let layers = all_layers.iter().map(|layer| {
        [
            layer.node.clone(),
            layer.op.clone(),
            layer.action.clone(),
            format::bytes(layer.bytes_before),
            format::bytes(layer.bytes_after),
            format::decibels(layer.weight_sqnr_db),
            format::decibels(layer.output_sqnr_db),
            format::kernel_time(layer),
            layer.reason.clone().unwrap_or_default(),
        ]
    });
    let skips = report.steps.iter().flat_map(|step| {
        step.changes
            .skips
            .iter()
            .map(|skip| [step.id.clone(), skip.node.clone(), skip.op.clone(), skip.reason.clone()])
    });
    let requirements: Vec<(bool, String)> =
        report.requirements.iter().map(|one| (one.met, format::requirement(one))).collect();
    let verdict = match requirements.iter().all(|(met, _)| *met) {
        _ if requirements.is_empty() => "",
        true => "all requirements met",
        false => "a requirement was missed",
    };
    let page = Page {
        report,
        facts,
        requirements,
        warnings: format::warnings(report),
        steps: steps.collect(),
        plots: plots(report),
        layers: layers.collect(),
        skips: skips.collect(),
        verdict,
    };
    Ok(page.render()?)
}

fn plots(report: &Report) -> Vec<String> {
    let mut plots = Vec::new();
    let size = |label: &str, bytes: u64| Bar {
        label: label.to_owned(),
        value: Some(bytes as f64),
        note: format::bytes(bytes),
        bad: false,
    };
    plots.push(bars(
        "Size of the model's files",
        &[size("before", report.input.bytes), size("after", report.output.bytes)],
    ));
    if let Some(accuracy) = report.evaluation.as_ref().and_then(|evaluation| evaluation.accuracy.as_ref()) {
        let row = |label: &str, value: f64| Bar {
            label: label.to_owned(),
            value: Some(value),
            note: format::percent(value),
            bad: false,
        };
        let title = format!("Accuracy ({})", accuracy.metric);
        plots.push(bars(&title, &[row("before", accuracy.before), row("after", accuracy.after)]));
    }
    for step in &report.steps {
        let rows: Vec<Bar> = step
            .changes
            .layers
            .iter()
            .filter(|layer| layer.output_sqnr_db.or(layer.weight_sqnr_db).is_some())
            .map(|layer| {
                let value = layer.output_sqnr_db.or(layer.weight_sqnr_db);
                Bar {
                    label: layer.node.clone(),
                    value,
                    note: format!("{} dB", format::decibels(value)),
                    bad: value.is_some_and(|value| value < 20.0),
                }
            })
            .collect();
        if !rows.is_empty() {
            let measured = step.changes.layers.iter().any(|layer| layer.output_sqnr_db.is_some());
            let what = if measured { "output against the float model" } else { "weights" };
            plots.push(bars(&format!("Signal-to-noise ratio by layer, {what} ({})", step.id), &rows));
        }
    }
    plots
}
