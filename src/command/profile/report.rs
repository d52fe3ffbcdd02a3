//! From what was measured to the report.

use std::collections::HashMap;

use optix_data::{Difference, Latencies, Ratio};
use optix_pipeline::profile::{
    FoldedNode, Latency, LatencyRatio, Memory, ModelProfile, NodeProfile, OperatorProfile, PercentileFacts,
};
use optix_pipeline::report::{Interval, Requirement};
use optix_runtime::{Ran, Roofline, StepTimes, Times};

use super::measure::{Measured, Subject};
use crate::command::memory;

/// Spread above which a measurement is called noisy.
const NOISY: f64 = 0.1;

/// Latencies as a report has them.
pub fn latency(latencies: &Latencies) -> Latency {
    let percentile = |percent: f64| {
        let found = latencies.percentile(percent / 100.0);
        PercentileFacts { percent, value: found.value, low: found.low, high: found.high }
    };
    Latency {
        runs: latencies.len() as u64,
        median: latencies.median(),
        mean: latencies.mean(),
        least: latencies.least(),
        greatest: latencies.greatest(),
        spread: latencies.spread(),
        percentiles: [50.0, 90.0, 99.0].into_iter().map(percentile).collect(),
    }
}

/// The sentence on noise, when there is any to speak of.
pub fn noise(path: &str, latency: &Latency) -> Option<String> {
    (latency.spread > NOISY).then(|| {
        format!(
            "{path}: the runs are noisy (half of them lie within {:.0}% of the median): close other programs, or measure longer with --seconds",
            latency.spread * 100.0
        )
    })
}

/// What was measured of one model.
pub fn model(subject: &Subject, measured: &Measured, path: &str, bytes: u64, roof: Roofline) -> ModelProfile {
    let times = &measured.times;
    let nodes = nodes(times, roof);
    let engine = &subject.engine;
    ModelProfile {
        path: path.to_owned(),
        bytes,
        engine: format!("{} {} ({})", engine.name(), engine.version(), engine.device()),
        inputs: subject.feeds.facts.clone(),
        data: subject.feeds.data.clone(),
        batch: subject.feeds.batch,
        emulated: super::is_emulated(&**engine, &subject.model),
        load_seconds: subject.load_seconds,
        latency: latency(&measured.plain),
        cpu_seconds: measured.cpu,
        memory: Memory {
            weights: times.constants,
            activations: times.activations,
            activations_predicted: subject.predicted,
            // Only where it is known that activations are all that a run makes beside.
            workspace: subject
                .run_growth
                .zip(times.activations)
                .map(|(growth, activations)| growth.saturating_sub(activations)),
            load_growth: subject.load_growth,
            run_growth: subject.run_growth,
            process_peak: memory::peak(),
        },
        timed_seconds: Latencies::new(times.runs.iter().copied()).median(),
        clock_seconds: times.clock,
        nodes_seconds: nodes.iter().map(|node| node.seconds).sum(),
        operators: operators(&nodes),
        folded: times
            .folded
            .iter()
            .map(|node| FoldedNode { node: node.name.clone(), op: full_name(&node.domain, &node.op_type) })
            .collect(),
        nodes,
    }
}

/// An operator with its domain, where that is not the standard's.
fn full_name(domain: &str, op: &str) -> String {
    if domain.is_empty() { op.to_owned() } else { format!("{domain}.{op}") }
}

fn nodes(times: &Times, roof: Roofline) -> Vec<NodeProfile> {
    let medians: Vec<(f64, f64)> = times.steps.iter().map(typical).collect();
    let total: f64 = medians.iter().map(|(median, _)| median).sum();
    let steps = times.steps.iter().zip(medians);
    steps
        .map(|(step, (seconds, deviation))| {
            let facts = &step.facts;
            let bytes = facts.bytes_read.saturating_add(facts.bytes_written);
            let intensity = facts.flops.filter(|_| bytes > 0).map(|flops| flops as f64 / bytes as f64);
            // What does not compute is bound by memory alone.
            let by_memory = bytes as f64 / roof.bytes_per_second;
            let by_arithmetic = facts.flops.map(|flops| flops as f64 / roof.flops_per_second);
            let bound =
                by_arithmetic.map(|arithmetic| arithmetic.max(by_memory)).filter(|&bound| bound > 0.0);
            let by = bound.map(|bound| if bound > by_memory { "arithmetic" } else { "memory" });
            let ops: Vec<String> =
                facts.nodes.iter().map(|node| full_name(&node.domain, &node.op_type)).collect();
            let domain = facts.nodes.first().map_or("", |node| node.domain.as_str());
            NodeProfile {
                nodes: facts.nodes.iter().map(|node| node.name.clone()).collect(),
                op: match facts.nodes.len() {
                    1 => full_name(domain, &facts.op_type),
                    _ => facts.op_type.clone(),
                },
                fused: if ops.len() > 1 { ops } else { Vec::new() },
                ran: facts.ran.name().to_owned(),
                seconds,
                deviation,
                share: if total > 0.0 { seconds / total } else { 0.0 },
                flops: facts.flops,
                bytes_read: facts.bytes_read,
                bytes_written: facts.bytes_written,
                intensity,
                bound_seconds: bound,
                bound_by: by.map(str::to_owned),
                inputs: facts.inputs.iter().map(|input| input.clone().unwrap_or_default()).collect(),
                outputs: facts.outputs.clone(),
            }
        })
        .collect()
}

/// Median of a step's times, and the median deviation from it.
fn typical(step: &StepTimes) -> (f64, f64) {
    let median = Latencies::new(step.seconds.iter().copied()).median();
    let deviations = step.seconds.iter().map(|seconds| (seconds - median).abs());
    (median, Latencies::new(deviations).median())
}

fn operators(nodes: &[NodeProfile]) -> Vec<OperatorProfile> {
    let mut found: Vec<OperatorProfile> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for node in nodes {
        let place = *places.entry(&node.op).or_insert_with(|| {
            found.push(OperatorProfile { op: node.op.clone(), ..OperatorProfile::default() });
            found.len() - 1
        });
        let operator = &mut found[place];
        operator.count += 1;
        operator.seconds += node.seconds;
        operator.share += node.share;
        operator.bytes += node.bytes_read.saturating_add(node.bytes_written);
        operator.flops = match (operator.flops, node.flops) {
            (Some(sum), Some(own)) => Some(sum.saturating_add(own)),
            (sum, own) => sum.or(own),
        };
        operator.on_reference += u64::from(node.ran == Ran::Reference.name());
    }
    found.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    found
}

/// The ratio as a report has it.
pub fn ratio(ratio: &Ratio) -> LatencyRatio {
    let verdict = match ratio.difference() {
        Difference::Faster => "faster",
        Difference::Slower => "slower",
        Difference::NoneShown => "no difference shown",
    };
    LatencyRatio {
        ratio: Interval { value: ratio.ratio, low: ratio.interval.low, high: ratio.interval.high },
        pairs: ratio.pairs as u64,
        verdict: verdict.to_owned(),
    }
}

/// Thresholds against the upper end of the interval; without a ratio they are missed, and the note says why.
pub fn requirements(
    thresholds: &[f64],
    ratio: Option<&LatencyRatio>,
    no_ratio: Option<&str>,
) -> Vec<Requirement> {
    thresholds
        .iter()
        .map(|&threshold| {
            let value = ratio.map(|ratio| ratio.ratio.high);
            let met = value.is_some_and(|value| value <= threshold);
            let note = match ratio {
                Some(ratio) if !met && ratio.ratio.low <= threshold => {
                    "inconclusive: the interval contains the threshold; measure longer with --seconds"
                }
                Some(_) => "",
                None => no_ratio.unwrap_or("no ratio was measured"),
            };
            Requirement { name: "latency-ratio".to_owned(), threshold, value, met, note: note.to_owned() }
        })
        .collect()
}
