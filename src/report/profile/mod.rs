//! The report of a profile as text.

mod html;
mod markdown;
mod terminal;

use optix_pipeline::profile::{
    InputFacts, LatencyRatio, Machine, ModelProfile, NodeProfile, OperatorProfile, PercentileFacts,
    ProfileReport, Scenario,
};

use super::{Kind, format};

pub use terminal::terminal;

/// The report in the form that a file's extension names.
pub fn text(report: &ProfileReport, kind: Kind) -> anyhow::Result<String> {
    Ok(match kind {
        Kind::Json => crate::screen::json_text(report),
        Kind::Markdown => markdown::markdown(report),
        Kind::Html => html::html(report)?,
    })
}

/// `image float[1, 1, 28, 28] random`.
fn input(facts: &InputFacts) -> String {
    format!("{} {}{:?} {}", facts.name, facts.dtype, facts.shape, facts.values)
}

/// A percentile with its bounds.
fn percentile(facts: &PercentileFacts) -> String {
    let bound = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), format::duration);
    format!(
        "p{:.0} {} ({} to {})",
        facts.percent,
        format::duration(facts.value),
        bound(facts.low),
        bound(facts.high)
    )
}

/// The sentences on a model, without its tables: a title and a text each.
fn facts(model: &ModelProfile) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    lines.push(("engine", model.engine.clone()));
    let inputs: Vec<String> = model.inputs.iter().map(input).collect();
    lines.push(("inputs", inputs.join(", ")));
    let emulated = if model.emulated { "EMULATED, no measure of the quantized model: " } else { "" };
    let latency = &model.latency;
    lines.push((
        "latency",
        format!(
            "{emulated}median {}, {} runs, spread {:.1}%, {} CPU; loaded in {}",
            format::duration(latency.median),
            latency.runs,
            latency.spread * 100.0,
            format::duration(model.cpu_seconds),
            format::duration(model.load_seconds)
        ),
    ));
    let percentiles: Vec<String> = latency.percentiles.iter().map(percentile).collect();
    lines.push(("", percentiles.join(", ")));
    if let Some(batch) = model.batch.filter(|&batch| batch > 1) {
        let per_second = batch as f64 / latency.median.max(1e-12);
        lines.push(("", format!("{} samples a run: {} samples/s", batch, format::figures(per_second))));
    }
    let clock = match model.clock_seconds > 0.0 {
        true => {
            format!("; profiling adds {} to each, which is taken off", format::duration(model.clock_seconds))
        }
        false => String::new(),
    };
    lines.push((
        "nodes",
        format!(
            "{} take {} together, {:.0}% of the latency ({} with a clock around each{clock}); {} computed at load time",
            model.nodes.len(),
            format::duration(model.nodes_seconds),
            100.0 * model.nodes_seconds / model.latency.median.max(1e-12),
            format::duration(model.timed_seconds),
            model.folded.len()
        ),
    ));
    let memory = &model.memory;
    let sizes = [
        ("weights", memory.weights),
        ("activations at most", memory.activations),
        ("workspace about", memory.workspace),
        ("loading", memory.load_growth),
        ("process at most", memory.process_peak),
    ];
    let sizes: Vec<String> = sizes
        .into_iter()
        .filter_map(|(name, size)| Some(format!("{name} {}", format::bytes(size?))))
        .chain(
            memory.activations_predicted.map(|size| format!("activations predicted {}", format::bytes(size))),
        )
        .collect();
    lines.push(("memory", sizes.join(", ")));
    let slow: Vec<String> = model
        .operators
        .iter()
        .filter(|operator| operator.on_reference > 0)
        .map(|operator| format!("{} {}", operator.on_reference, operator.op))
        .collect();
    if !slow.is_empty() {
        lines.push(("reference", format!("on plain kernels on the host: {}", slow.join(", "))));
    }
    lines
}

/// The machine in one sentence.
fn machine(machine: &Machine) -> String {
    format!(
        "{} threads: copies {} GB/s, matrix product {} GFLOP/s; arithmetic limits from {} operations a byte on",
        machine.threads,
        format::figures(machine.copy_bytes_per_second / 1e9),
        format::figures(machine.gemm_flops_per_second / 1e9),
        format::figures(machine.gemm_flops_per_second / machine.copy_bytes_per_second.max(1.0))
    )
}

/// The comparison in one sentence.
fn ratio(report: &ProfileReport) -> Option<String> {
    let [first, second] = &report.models[..] else { return None };
    let name = |model: &ModelProfile| match first.path == second.path {
        true => model.engine.split(' ').next().unwrap_or_default().to_owned(),
        false => model.path.clone(),
    };
    let (first, second) = (name(first), name(second));
    match (&report.ratio, &report.no_ratio) {
        (Some(LatencyRatio { ratio, pairs, verdict }), _) => Some(format!(
            "time of {first} over {second}: {:.3} (95% interval {:.3} to {:.3}, {pairs} pairs): {verdict}",
            ratio.value, ratio.low, ratio.high
        )),
        (None, Some(why)) => Some(format!("time of {first} over {second}: not given: {why}")),
        (None, None) => None,
    }
}

/// A scenario in one sentence.
fn scenario(scenario: &Scenario) -> String {
    let arrivals = scenario
        .arrivals_per_second
        .map_or_else(String::new, |rate| format!(", {} queries/s arrive", format::figures(rate)));
    let percentiles: Vec<String> = scenario.latency.percentiles.iter().map(percentile).collect();
    let notes: String = scenario.notes.iter().map(|note| format!("; {note}")).collect();
    format!(
        "{} ({} streams of {} threads, batch {}{arrivals}): {} samples/s, {} of {} queries{notes}",
        scenario.name,
        scenario.streams,
        scenario.threads,
        scenario.batch,
        format::figures(scenario.samples_per_second),
        percentiles.join(", "),
        scenario.latency.runs
    )
}

const OPERATOR_HEADER: [&str; 8] = ["operator", "nodes", "time", "share", "FLOP", "FLOP/s", "bytes", "host"];

fn rate(flops: Option<u64>, seconds: f64) -> String {
    match flops.filter(|&flops| flops > 0 && seconds > 0.0) {
        Some(flops) => format::count(flops as f64 / seconds),
        None => "-".to_owned(),
    }
}

fn flops(value: Option<u64>) -> String {
    value.map_or_else(|| "?".to_owned(), |flops| format::count(flops as f64))
}

fn operator_row(operator: &OperatorProfile) -> [String; 8] {
    [
        operator.op.clone(),
        operator.count.to_string(),
        format::duration(operator.seconds),
        format!("{:.1}%", operator.share * 100.0),
        flops(operator.flops),
        rate(operator.flops, operator.seconds),
        format::bytes(operator.bytes),
        match operator.on_reference {
            0 => String::new(),
            count => format!("{count} reference"),
        },
    ]
}

const NODE_HEADER: [&str; 10] =
    ["node", "operator", "ran", "time", "share", "FLOP", "FLOP/s", "FLOP/B", "of limit", "output"];

fn node_row(node: &NodeProfile) -> [String; 10] {
    let of_limit = node.bound_seconds.filter(|_| node.seconds > 0.0).map(|bound| {
        let by = node.bound_by.as_deref().unwrap_or_default();
        format!("{:.0}% {by}", 100.0 * bound / node.seconds)
    });
    [
        node.nodes.join(" + "),
        match node.fused.is_empty() {
            true => node.op.clone(),
            false => node.fused.join(" + "),
        },
        node.ran.clone(),
        format::duration(node.seconds),
        format!("{:.1}%", node.share * 100.0),
        flops(node.flops),
        rate(node.flops, node.seconds),
        node.intensity.map_or_else(|| "-".to_owned(), format::figures),
        of_limit.unwrap_or_else(|| "-".to_owned()),
        node.outputs.join(", "),
    ]
}
