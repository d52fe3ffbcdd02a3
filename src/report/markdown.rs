//! The report as Markdown, for pull requests.

use optix_pipeline::report::Report;

use super::format;

/// Text inside a table cell or paragraph: nothing in it is markup.
pub fn cell(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in optix_base::escape_for_terminal(text).chars() {
        if matches!(character, '|' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// The report as Markdown.
pub fn markdown(report: &Report) -> String {
    let mut text = format!("# {} -> {}\n\n", cell(&report.input.path), cell(&report.output.path));
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line("| | before | after | |".to_owned());
    line("|---|---|---|---|".to_owned());
    line(format!(
        "| size | {} | {} | {} |",
        format::bytes(report.input.bytes),
        format::bytes(report.output.bytes),
        format::ratio(report.output.bytes, report.input.bytes)
    ));
    line(format!("| nodes | {} | {} | |", report.input.nodes, report.output.nodes));
    if let Some(accuracy) = report.evaluation.as_ref().and_then(|evaluation| evaluation.accuracy.as_ref()) {
        line(format!(
            "| {} | {} | {} | {:+.2} points |",
            accuracy.metric,
            format::percent(accuracy.before),
            format::percent(accuracy.after),
            accuracy.change_points.value
        ));
    }
    if let Some(latency) = &report.latency {
        line(format!(
            "| latency | {} | {} | {:.2}x |",
            format::duration(latency.before_seconds),
            format::duration(latency.after_seconds),
            latency.ratio.value
        ));
    }
    line(String::new());
    if let Some(evaluation) = &report.evaluation {
        if let Some(accuracy) = &evaluation.accuracy {
            line(format!("- {}", cell(&format::accuracy(accuracy, evaluation.samples))));
        }
        if let Some(agreement) = &evaluation.agreement {
            line(format!("- {}", cell(&format::agreement(agreement))));
        }
        format::outputs(&evaluation.outputs).iter().for_each(|output| line(format!("- {}", cell(output))));
    }
    if let Some(latency) = &report.latency {
        line(format!("- latency {}", cell(&format::latency(latency))));
        if let Some(kernels) = &latency.kernels {
            line(format!("- kernels: {}", format::kernels(kernels)));
        }
    }
    if let Some(overlap) = &report.overlap {
        line(format!("- {} of {} evaluation samples were calibrated on", overlap.samples, overlap.of));
    }
    for data in &report.data {
        line(format!("- {}: {} samples of {}", data.role, data.samples, cell(&data.path)));
    }
    if let Some(memory) = &report.memory {
        line(format!("- memory: {}", format::memory(memory)));
    }
    line(format!("- engine: {}; optix {}; seed {}", cell(&report.engine), report.version, report.seed));
    for requirement in &report.requirements {
        line(format!("- require {}", cell(&format::requirement(requirement))));
    }
    for note in format::notes(report) {
        line(format!("- {}", cell(&note)));
    }
    for warning in format::warnings(report) {
        line(format!("- **warning**: {}", cell(&warning)));
    }
    line("\n## Steps\n\n| step | what it did | nodes | weights | time |\n|---|---|---|---|---|".to_owned());
    for step in &report.steps {
        line(format!(
            "| {} | {} | {} -> {} | {} -> {} | {} |",
            cell(&step.id),
            cell(&format::step_summary(step)),
            step.nodes[0],
            step.nodes[1],
            format::bytes(step.tensor_bytes[0]),
            format::bytes(step.tensor_bytes[1]),
            format::seconds(step.seconds)
        ));
    }
    for step in report.steps.iter().filter(|step| !step.changes.layers.is_empty()) {
        line(format!("\n## Layers of {}\n", cell(&step.id)));
        line("| node | op | now | scheme | before | after | weights dB | output dB | KL | share | alone dB | error from | kernel | why |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|".to_owned());
        for layer in &step.changes.layers {
            line(format!(
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                cell(&layer.node),
                cell(&layer.op),
                cell(&layer.action),
                cell(layer.scheme.as_deref().unwrap_or("-")),
                format::bytes(layer.bytes_before),
                format::bytes(layer.bytes_after),
                format::decibels(layer.weight_sqnr_db),
                format::decibels(layer.output_sqnr_db),
                format::divergence(layer.output_kl),
                format::share(layer),
                format::decibels(format::alone_decibels(layer)),
                format::error_from(layer),
                format::kernel_time(layer),
                cell(layer.reason.as_deref().unwrap_or_default())
            ));
        }
    }
    for step in report.steps.iter().filter(|step| !step.changes.skips.is_empty()) {
        line(format!("\n## Left alone by {}\n\n| node | op | why |\n|---|---|---|", cell(&step.id)));
        for skip in &step.changes.skips {
            line(format!("| {} | {} | {} |", cell(&skip.node), cell(&skip.op), cell(&skip.reason)));
        }
    }
    line(format!("\n## To do it again\n\n    {}\n\n```toml\n{}```", cell(&report.command), report.recipe));
    text
}
