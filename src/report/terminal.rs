//! The report on a terminal.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use optix_base::escape_for_terminal;
use optix_pipeline::Layer;
use optix_pipeline::report::Report;

use super::format;

/// Columns of text when stdout is no terminal.
const WIDTH: u16 = 120;

/// Rows of the ledger shown unless the user asks for all.
const SHOWN: usize = 12;

/// The report as text. `all` shows every layer.
pub fn terminal(report: &Report, all: bool) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    let shown = |path: &str| escape_for_terminal(path).into_owned();
    line(&format!("{} -> {}", shown(&report.input.path), shown(&report.output.path)));
    line(&format!(
        "size      {} -> {} ({})",
        format::bytes(report.input.bytes),
        format::bytes(report.output.bytes),
        format::ratio(report.output.bytes, report.input.bytes)
    ));
    line(&format!("nodes     {} -> {}", report.input.nodes, report.output.nodes));
    if let Some(evaluation) = &report.evaluation {
        if let Some(accuracy) = &evaluation.accuracy {
            line(&format!("accuracy  {}", format::accuracy(accuracy, evaluation.samples)));
        }
        if let Some(agreement) = &evaluation.agreement {
            line(&format!("agreement {}", format::agreement(agreement)));
        }
        for output in format::outputs(&evaluation.outputs) {
            line(&format!("fidelity  {output}"));
        }
    }
    if let Some(latency) = &report.latency {
        line(&format!("latency   {}", format::latency(latency)));
        if let Some(kernels) = &latency.kernels {
            line(&format!("kernels   {}", format::kernels(kernels)));
        }
    }
    if let Some(overlap) = &report.overlap {
        line(&format!(
            "overlap   {} of {} evaluation samples were calibrated on",
            overlap.samples, overlap.of
        ));
    }
    for data in &report.data {
        line(&format!("data      {}: {} samples of {}", data.role, data.samples, shown(&data.path)));
    }
    if let Some(memory) = report.memory.as_ref().filter(|memory| all || memory.limit.is_some()) {
        line(&format!("memory    {}", format::memory(memory)));
    }
    line(&format!("engine    {}; {} in all", report.engine, format::seconds(report.seconds)));
    for requirement in &report.requirements {
        line(&format!("require   {}", format::requirement(requirement)));
    }
    line("");
    line(&steps(report));
    for step in report.steps.iter().filter(|step| !step.changes.layers.is_empty()) {
        let (table, hidden) = layers(&step.changes.layers, all);
        line("");
        line(&format!("layers of step {}", step.id));
        line(&table);
        if hidden > 0 {
            line(&format!("... and {hidden} more layers (-v shows all, --report FILE.html plots them)"));
        }
    }
    if all {
        for step in report.steps.iter().filter(|step| !step.changes.skips.is_empty()) {
            line("");
            line(&format!("left alone by step {}", step.id));
            for skip in &step.changes.skips {
                line(&format!("  {} {}: {}", skip.op, shown(&skip.node), shown(&skip.reason)));
            }
        }
    }
    for note in format::notes(report) {
        line(&format!("note: {note}"));
    }
    for warning in format::warnings(report) {
        line(&format!("warning: {warning}"));
    }
    text
}

/// A table without lines.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    // Into a pipe, as wide as a terminal usually is.
    if table.width().is_none() {
        table.set_width(WIDTH);
    }
    table
}

/// The table's lines; its cells are padded, which nobody wants at the end of a line.
pub fn text_of(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn steps(report: &Report) -> String {
    let mut table = table(&["step", "what it did", "nodes", "weights", "time"]);
    for step in &report.steps {
        table.add_row([
            step.id.clone(),
            format::step_summary(step),
            format!("{} -> {}", step.nodes[0], step.nodes[1]),
            format!("{} -> {}", format::bytes(step.tensor_bytes[0]), format::bytes(step.tensor_bytes[1])),
            format::seconds(step.seconds),
        ]);
    }
    text_of(&table)
}

/// The worst layers first when not all are shown; in order of execution otherwise.
fn layers(layers: &[Layer], all: bool) -> (String, usize) {
    let mut rows: Vec<&Layer> = layers.iter().collect();
    let hidden = if all { 0 } else { rows.len().saturating_sub(SHOWN) };
    if hidden > 0 {
        let badness = format::badness(&rows);
        rows.sort_by(|a, b| badness(b).total_cmp(&badness(a)));
        rows.truncate(SHOWN);
    }
    let has_shares = rows.iter().any(|layer| layer.error_share.is_some() || layer.error.is_some());
    let mut header = vec!["node", "op", "now", "bytes", "weights dB", "output dB"];
    if has_shares {
        header.extend(["KL", "share", "error from"]);
    }
    header.extend(["kernel", "why"]);
    let mut table = table(&header);
    for layer in rows {
        let bytes = if layer.bytes_before == 0 {
            "-".to_owned()
        } else {
            format!("{} -> {}", format::bytes(layer.bytes_before), format::bytes(layer.bytes_after))
        };
        let mut row = vec![
            escape_for_terminal(&layer.node).into_owned(),
            escape_for_terminal(&layer.op).into_owned(),
            layer.action.clone(),
            bytes,
            format::decibels(layer.weight_sqnr_db),
            format::decibels(layer.output_sqnr_db),
        ];
        if has_shares {
            row.extend([
                format::divergence(layer.output_kl),
                format::share(layer),
                format::error_from(layer),
            ]);
        }
        row.push(format::kernel_time(layer));
        let reason = layer.reason.as_deref().map(|reason| escape_for_terminal(reason).into_owned());
        row.push(reason.unwrap_or_default());
        table.add_row(row);
    }
    for column in if has_shares { 4..8 } else { 4..6 } {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    (text_of(&table), hidden)
}
