//! The report as one self-contained HTML page with plots.

use askama::Template;
use optix_pipeline::report::Report;
use optix_pipeline::{Curve, Layer};

use super::format;
use super::plot::{Bar, Stack, bars, curve, stacked};

/// Rows of a plot at most: the worst.
const PLOTTED: usize = 60;

/// A cell of the ledger.
struct Cell {
    text: String,
    /// What the column is sorted by, where it is a number.
    key: Option<f64>,
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell { text, key: None }
    }
}

fn number(text: String, key: Option<f64>) -> Cell {
    Cell { text, key: Some(key.unwrap_or(-1e9)) }
}

/// The columns of the ledger.
const COLUMNS: [&str; 16] = [
    "node",
    "op",
    "now",
    "scheme",
    "before",
    "after",
    "weights dB",
    "output dB",
    "KL",
    "share",
    "alone dB",
    "error from",
    "μs before",
    "μs after",
    "range seen",
    "why",
];

fn row(layer: &Layer) -> Vec<Cell> {
    let micros = |value: Option<f64>| number(value.map_or_else(|| "-".to_owned(), format::figures), value);
    let range =
        layer.range.map(|[low, high]| format!("{} to {}", format::figures(low), format::figures(high)));
    vec![
        layer.node.clone().into(),
        layer.op.clone().into(),
        layer.action.clone().into(),
        layer.scheme.clone().unwrap_or_default().into(),
        number(format::bytes(layer.bytes_before), Some(layer.bytes_before as f64)),
        number(format::bytes(layer.bytes_after), Some(layer.bytes_after as f64)),
        number(format::decibels(layer.weight_sqnr_db), layer.weight_sqnr_db),
        number(format::decibels(layer.output_sqnr_db), layer.output_sqnr_db),
        number(format::divergence(layer.output_kl), layer.output_kl),
        number(format::share(layer), layer.error_share),
        number(format::decibels(format::alone_decibels(layer)), format::alone_decibels(layer)),
        format::error_from(layer).into(),
        micros(layer.micros_before),
        micros(layer.micros_after),
        range.unwrap_or_default().into(),
        layer.reason.clone().unwrap_or_default().into(),
    ]
}

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
    columns: &'static [&'static str],
    layers: Vec<Vec<Cell>>,
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
    facts.extend(report.memory.as_ref().map(|memory| format!("memory {}", format::memory(memory))));
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
    let layers = all_layers.iter().map(|layer| row(layer));
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
        columns: &COLUMNS,
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
        let mut layers: Vec<&Layer> = step.changes.layers.iter().collect();
        let badness = format::badness(&layers);
        layers.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        plots.extend(of_shares(&step.id, &layers));
        plots.extend(of_ratios(&step.id, &layers));
        plots.extend(of_times(&step.id, &layers));
        let titled = |one: &Curve| curve(&format!("{}: {}", step.id, one.name), &one.points);
        plots.extend(step.changes.curves.iter().filter(|one| one.points.len() > 1).map(titled));
    }
    plots
}

/// The first rows of a plot, and what its title says of the others.
fn first<T>(mut rows: Vec<T>) -> (Vec<T>, String) {
    let all = rows.len();
    rows.truncate(PLOTTED);
    let note = if all > PLOTTED { format!(", the {PLOTTED} worst of {all}") } else { String::new() };
    (rows, note)
}

/// Shares of the error at the outputs, each divided by where the error comes from.
fn of_shares(step: &str, layers: &[&Layer]) -> Option<String> {
    let rows: Vec<Stack> = layers
        .iter()
        .filter_map(|layer| {
            let share = layer.error_share?;
            let mut parts: Vec<f64> =
                format::error_parts(layer).iter().map(|(_, part)| part * share).collect();
            if parts.is_empty() {
                parts.push(share);
            }
            Some(Stack { label: layer.node.clone(), parts, note: format::share(layer) })
        })
        .collect();
    let (rows, worst) = first(rows);
    let title = format!("Share of the error at the outputs by layer{worst} ({step})");
    (!rows.is_empty()).then(|| stacked(&title, &["weights", "rounding", "clipping", "shift"], &rows))
}

/// Signal-to-noise ratios.
fn of_ratios(step: &str, layers: &[&Layer]) -> Option<String> {
    let is_measured = layers.iter().any(|layer| layer.output_sqnr_db.is_some());
    let of = |layer: &Layer| if is_measured { layer.output_sqnr_db } else { layer.weight_sqnr_db };
    let mut rows: Vec<Bar> = layers
        .iter()
        .filter_map(|layer| {
            let value = of(layer)?;
            let note = format!("{} dB", format::decibels(Some(value)));
            Some(Bar { label: layer.node.clone(), value: Some(value), note, bad: value < 20.0 })
        })
        .collect();
    rows.sort_by(|a, b| a.value.unwrap_or(0.0).total_cmp(&b.value.unwrap_or(0.0)));
    let (rows, worst) = first(rows);
    let what = if is_measured { "output against the float model" } else { "weights" };
    let title = format!("Signal-to-noise ratio by layer, {what}{worst} ({step})");
    (!rows.is_empty()).then(|| bars(&title, &rows))
}

/// Times of kernels before and after, the slowest first.
fn of_times(step: &str, layers: &[&Layer]) -> Option<String> {
    let mut timed: Vec<(&Layer, f64, f64)> =
        layers.iter().filter_map(|layer| Some((*layer, layer.micros_before?, layer.micros_after?))).collect();
    timed.sort_by(|a, b| b.1.max(b.2).total_cmp(&a.1.max(a.2)));
    let all = timed.len();
    timed.truncate(PLOTTED / 2);
    let slowest =
        if all > timed.len() { format!(", the {} slowest of {all}", timed.len()) } else { String::new() };
    let rows: Vec<Bar> = timed
        .iter()
        .flat_map(|(layer, before, after)| {
            let bar = |label: String, value: f64, bad: bool| Bar {
                label,
                value: Some(value),
                note: format::duration(value * 1e-6),
                bad,
            };
            [bar(layer.node.clone(), *before, false), bar("after".to_owned(), *after, after > before)]
        })
        .collect();
    let title = format!("Time of kernels before and after{slowest} ({step})");
    (!rows.is_empty()).then(|| bars(&title, &rows))
}
