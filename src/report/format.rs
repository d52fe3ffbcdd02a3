//! Numbers for people, and what all forms of a report say in the same words.

use optix_pipeline::Layer;
use optix_pipeline::report::{
    Accuracy, Interval, KernelFacts, LatencyFacts, MemoryFacts, OutputFidelity, Report, Requirement,
};

/// Bytes with three figures: `166 KB`, `1.25 GB`. Powers of 1,000.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match value {
        value if unit == 0 || value >= 99.95 => format!("{value:.0} {}", units[unit]),
        value if value >= 9.995 => format!("{value:.1} {}", units[unit]),
        value => format!("{value:.2} {}", units[unit]),
    }
}

/// A ratio as `0.53x`.
pub fn ratio(after: u64, before: u64) -> String {
    if before == 0 { "-".to_owned() } else { format!("{:.2}x", after as f64 / before as f64) }
}

/// Decibels, or a dash.
pub fn decibels(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// Seconds.
pub fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.0} ms", value * 1e3) } else { format!("{value:.1} s") }
}

/// A time with three figures: `12.3 us`, `1.25 ms`.
pub fn duration(seconds: f64) -> String {
    let units = [(1.0, "s"), (1e-3, "ms"), (1e-6, "us")];
    let (unit, name) = units.into_iter().find(|(unit, _)| seconds >= 0.9995 * unit).unwrap_or((1e-6, "us"));
    format!("{} {name}", figures(seconds / unit))
}

/// A number with three figures.
pub fn figures(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A count in thousands, millions and so on: `1.23 G`.
pub fn count(value: f64) -> String {
    let units = [(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, "")];
    let (unit, name) = units.into_iter().find(|(unit, _)| value >= 0.9995 * unit).unwrap_or((1.0, ""));
    if unit == 1.0 { format!("{value:.0}") } else { format!("{}{name}", figures(value / unit)) }
}

/// A share as a percentage.
pub fn percent(value: f64) -> String {
    format!("{:.2}%", value * 100.0)
}

fn interval(value: &Interval, unit: &str, scale: f64) -> String {
    format!(
        "{:+.2}{unit} (95% interval {:+.2} to {:+.2})",
        value.value * scale,
        value.low * scale,
        value.high * scale
    )
}

/// The accuracy sentence.
pub fn accuracy(accuracy: &Accuracy, samples: u64) -> String {
    format!(
        "{} {} -> {}, change {} on {} samples ({} lost, {} gained)",
        accuracy.metric,
        percent(accuracy.before),
        percent(accuracy.after),
        interval(&accuracy.change_points, " points", 1.0),
        samples,
        accuracy.lost,
        accuracy.gained
    )
}

/// The agreement sentence.
pub fn agreement(agreement: &Interval) -> String {
    format!(
        "same top-1 answer as the original on {} (95% interval {} to {})",
        percent(agreement.value),
        percent(agreement.low),
        percent(agreement.high)
    )
}

/// The latency sentence.
pub fn latency(latency: &LatencyFacts) -> String {
    format!(
        "{} -> {}, ratio {:.2} (95% interval {:.2} to {:.2}) in {} pairs, {} ({})",
        duration(latency.before_seconds),
        duration(latency.after_seconds),
        latency.ratio.value,
        latency.ratio.low,
        latency.ratio.high,
        latency.pairs,
        optix_base::escape_for_terminal(&latency.input),
        latency.engine
    )
}

/// Memory of the process.
pub fn memory(memory: &MemoryFacts) -> String {
    let mut text = format!("{} at the peak", bytes(memory.peak));
    if let Some(predicted) = memory.predicted {
        text.push_str(&format!(", predicted {}", bytes(predicted)));
    }
    if let Some(limit) = memory.limit {
        text.push_str(&format!(", at most {} allowed", bytes(limit)));
    }
    if let Some(together) = memory.calibrated_together {
        text.push_str(&format!("; {together} samples calibrated on at a time"));
    }
    text
}

/// What the engine made of the written model.
pub fn kernels(kernels: &KernelFacts) -> String {
    format!(
        "{} convolutions and products in integers, {} in floats; {} quantizers left between kernels, {} of the time",
        kernels.integer,
        kernels.float,
        kernels.quantizers,
        percent(kernels.quantizer_share)
    )
}

/// Time of a kernel before and after.
pub fn kernel_time(layer: &Layer) -> String {
    let one = |micros: Option<f64>| micros.map_or_else(|| "-".to_owned(), |micros| duration(micros * 1e-6));
    match (layer.micros_before, layer.micros_after) {
        (None, None) => "-".to_owned(),
        (before, after) => format!("{} -> {}", one(before), one(after)),
    }
}

/// A layer's share of the error at the model's outputs, or a dash.
pub fn share(layer: &Layer) -> String {
    layer.error_share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

/// Signal-to-noise ratio at a layer's output when it alone is quantized.
pub fn alone_decibels(layer: &Layer) -> Option<f64> {
    layer.error.filter(|error| error.whole > 0.0).map(|error| optix_data::decibels(error.whole))
}

/// A divergence in nats, or a dash.
pub fn divergence(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) if value < 1e-3 => format!("{value:.0e}"),
        Some(value) => figures_small(value),
    }
}

fn figures_small(value: f64) -> String {
    if value < 0.1 { format!("{value:.4}") } else { format!("{value:.2}") }
}

/// The sources of a layer's error with their parts of the sum of all, 0 to 1; nothing where there is none.
pub fn error_parts(layer: &Layer) -> Vec<(&'static str, f64)> {
    let parts = layer.error.map(|error| error.parts().to_vec()).unwrap_or_default();
    let sum: f64 = parts.iter().map(|(_, part)| part).sum();
    if sum > 0.0 { parts.into_iter().map(|(name, part)| (name, part / sum)).collect() } else { Vec::new() }
}

/// Where the error of a layer comes from: the sources that matter, the greatest first.
pub fn error_from(layer: &Layer) -> String {
    let mut parts = error_parts(layer);
    parts.retain(|(_, part)| *part >= 0.1);
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let texts = parts.iter().map(|(name, part)| format!("{name} {:.0}%", part * 100.0));
    if parts.is_empty() { "-".to_owned() } else { texts.collect::<Vec<_>>().join(", ") }
}

/// How bad a layer is, the greater the worse: its share of the error where any layer has one, else by the
/// signal-to-noise ratio at its output or of its weights.
pub fn badness(layers: &[&Layer]) -> impl Fn(&Layer) -> f64 + use<> {
    let has_shares = layers.iter().any(|layer| layer.error_share.is_some());
    move |layer| match has_shares {
        true => layer.error_share.unwrap_or(-1.0),
        false => -layer.output_sqnr_db.or(layer.weight_sqnr_db).unwrap_or(f64::INFINITY),
    }
}

/// What the steps found out.
pub fn notes(report: &Report) -> Vec<String> {
    let notes = report
        .steps
        .iter()
        .flat_map(|step| step.changes.notes.iter().map(move |note| format!("{}: {note}", step.id)));
    let curves =
        report.steps.iter().flat_map(|step| step.changes.curves.iter().map(move |curve| (step, curve)));
    let curves = curves.map(|(step, curve)| format!("{}: {} {}", step.id, curve.name, spark(&curve.points)));
    notes.chain(curves).map(|note| optix_base::escape_for_terminal(&note).into_owned()).collect()
}

/// A curve in a line of text: as many bars as it has points, the least and the greatest figure as the ends of their
/// logarithms, and the first and the last one in numbers.
pub fn spark(points: &[[f64; 2]]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let log = |y: f64| y.max(f64::MIN_POSITIVE).ln();
    let known: Vec<f64> = points.iter().map(|point| point[1]).filter(|y| y.is_finite()).collect();
    let (low, high) = known
        .iter()
        .copied()
        .map(log)
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), y| (low.min(y), high.max(y)));
    let bar = |y: f64| {
        let share = if high > low { (log(y) - low) / (high - low) } else { 0.0 };
        BARS[((share * 8.0) as usize).min(7)]
    };
    let bars: String = known.iter().copied().map(bar).collect();
    match (known.first(), known.last()) {
        (Some(first), Some(last)) => format!("{bars} {first:.3e} -> {last:.3e}"),
        _ => bars,
    }
}

/// One sentence an output.
pub fn outputs(outputs: &[OutputFidelity]) -> Vec<String> {
    outputs
        .iter()
        .map(|output| {
            let name = optix_base::escape_for_terminal(&output.name);
            if output.equal {
                return format!("output `{name}`: equal");
            }
            let figure = |value: Option<f64>, shown: fn(f64) -> String| {
                value.map_or_else(|| "not a finite number".to_owned(), shown)
            };
            format!(
                "output `{name}`: SQNR {}, cosine {}, greatest error {}",
                figure(output.sqnr_db, |sqnr| format!("{sqnr:.1} dB")),
                figure(output.cosine, |cosine| format!("{cosine:.6}")),
                figure(output.max_abs_error, |error| format!("{error:.3e}"))
            )
        })
        .collect()
}

/// A threshold and its verdict.
pub fn requirement(requirement: &Requirement) -> String {
    let verdict = if requirement.met { "met" } else { "MISSED" };
    let note = if requirement.note.is_empty() { String::new() } else { format!("; {}", requirement.note) };
    let value = requirement.value.map_or_else(|| "no figure".to_owned(), |value| format!("{value:.4}"));
    format!("{} {verdict}: {value} against {}{note}", requirement.name, requirement.threshold)
}

/// What a step did, in one line.
pub fn step_summary(step: &optix_pipeline::report::StepReport) -> String {
    let counters: Vec<String> =
        step.changes.counters.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let mut text = if counters.is_empty() { "nothing to do".to_owned() } else { counters.join(", ") };
    if let Some(difference) = step.checked_difference {
        text.push_str(&format!("; checked on random inputs: difference {difference:.1e}"));
    }
    text
}

/// The warnings of a run and of all its steps.
pub fn warnings(report: &Report) -> Vec<String> {
    let steps = report
        .steps
        .iter()
        .flat_map(|step| step.changes.warnings.iter().map(move |warning| format!("{}: {warning}", step.id)));
    report
        .warnings
        .iter()
        .cloned()
        .chain(steps)
        .map(|w| optix_base::escape_for_terminal(&w).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_counts_have_three_figures() {
        let times = [(1.234, "1.23 s"), (0.012_34, "12.3 ms"), (0.000_999_6, "1.00 ms"), (3e-8, "0.03 us")];
        for (seconds, expected) in times {
            assert_eq!(duration(seconds), expected);
        }
        for (value, expected) in [(0.0, "0"), (999.0, "999"), (12_345.0, "12.3 k"), (4.2e9, "4.20 G")] {
            assert_eq!(count(value), expected);
        }
    }

    #[test]
    fn sizes_have_three_figures() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 KB"),
            (88_412, "88.4 KB"),
            (169_534, "170 KB"),
            (999_600, "1.00 MB"),
            (1_250_000_000, "1.25 GB"),
        ];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
    }
}
