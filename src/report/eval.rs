//! What `eval` measured, in words and as a file.

use std::path::Path;

use optix_data::{Interval, Measured, Metric};
use optix_pipeline::report::Requirement;
use serde_json::Value;

use super::{Kind, format, write_text};

/// A value of a metric: shares in percent, ratios in dB.
fn figure(metric: &Metric, value: f64) -> String {
    match metric {
        metric if metric.is_share() => format::percent(value),
        Metric::SqnrDb if value == f64::INFINITY => "equal".to_owned(),
        Metric::SqnrDb => format!("{value:.1} dB"),
        Metric::Cosine => format!("{value:.6}"),
        Metric::MaxAbsError | Metric::MeanAbsError | Metric::Kl => format!("{value:.3e}"),
        _ => format!("{value:.4}"),
    }
}

fn range(metric: &Metric, interval: Interval) -> String {
    format!("95% interval {} to {}", figure(metric, interval.low), figure(metric, interval.high))
}

/// A measured metric: its value, and how it changed.
pub fn measured(measured: &Measured) -> String {
    let metric = &measured.metric;
    let value = figure(metric, measured.value);
    let Some((change, reference)) = measured.change.zip(measured.reference) else {
        let interval = measured.interval.map(|interval| format!(" ({})", range(metric, interval)));
        return format!("{value}{}", interval.unwrap_or_default());
    };
    let (scale, unit) = if metric.is_share() { (100.0, " points") } else { (1.0, "") };
    let mut known = Vec::new();
    if let Some(interval) = change.interval {
        known.push(format!("95% interval {:+.2} to {:+.2}", interval.low * scale, interval.high * scale));
    }
    if let Some(counts) = change.counts {
        known.push(format!("{} lost, {} gained", counts.only_reference, counts.only_candidate));
    }
    let known = if known.is_empty() { String::new() } else { format!(" ({})", known.join("; ")) };
    format!("{} -> {value}, change {:+.2}{unit}{known}", figure(metric, reference), change.difference * scale)
}

/// A threshold and its verdict.
pub fn requirement_line(requirement: &Requirement) -> String {
    optix_base::escape_for_terminal(&format::requirement(requirement)).into_owned()
}

/// Writes an evaluation in the form that the file's extension names; it appears whole or not at all.
pub fn write_evaluation(path: &Path, document: &Value, text: &str) -> anyhow::Result<()> {
    write_text(path, |kind| {
        Ok(match kind {
            Kind::Json => crate::screen::json_text(document),
            Kind::Markdown => format!("# Evaluation\n\n~~~text\n{text}\n~~~\n"),
            Kind::Html => {
                let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                format!(
                    "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>optix eval</title>\n\
                     <style>body {{ font: 15px/1.5 sans-serif; margin: 2em }} pre {{ overflow-x: auto }}</style></head>\n\
                     <body><h1>Evaluation</h1><pre>{text}</pre></body></html>\n"
                )
            }
        })
    })
}
