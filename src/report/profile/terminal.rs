//! The profile on a terminal.

use comfy_table::CellAlignment;
use optix_base::escape_for_terminal;
use optix_pipeline::profile::{ModelProfile, NodeProfile, ProfileReport};

use super::super::format;
use super::super::terminal::{table, text_of};

/// Nodes shown unless the user asks for all.
const SHOWN: usize = 12;

/// The profile as text. `all` shows every node.
pub fn terminal(report: &ProfileReport, all: bool) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    for (index, model) in report.models.iter().enumerate() {
        if index > 0 {
            line("");
        }
        line(&format!("{} ({})", escape_for_terminal(&model.path), format::bytes(model.bytes)));
        for (title, fact) in super::facts(model) {
            line(&format!("{title:9} {}", escape_for_terminal(&fact)));
        }
        if index == 0 {
            line(&format!("{:9} {}", "machine", super::machine(&report.machine)));
        }
        line("");
        line(&operators(model));
        line("");
        let (nodes, hidden) = nodes(model, all);
        line(&nodes);
        if hidden > 0 {
            line(&format!("... and {hidden} more nodes (-v shows all, in order of execution)"));
        }
        if all {
            for node in &model.folded {
                line(&format!("computed at load time: {} {}", node.op, escape_for_terminal(&node.node)));
            }
        }
    }
    if let Some(ratio) = super::ratio(report) {
        line("");
        line(&escape_for_terminal(&ratio));
    }
    for scenario in &report.scenarios {
        line(&escape_for_terminal(&super::scenario(scenario)));
    }
    for requirement in &report.requirements {
        line(&format!("require   {}", format::requirement(requirement)));
    }
    for warning in &report.warnings {
        line(&format!("warning: {}", escape_for_terminal(warning)));
    }
    text
}

fn operators(model: &ModelProfile) -> String {
    let mut table = table(&super::OPERATOR_HEADER);
    for operator in &model.operators {
        table.add_row(super::operator_row(operator).map(|cell| escape_for_terminal(&cell).into_owned()));
    }
    for column in 1..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    text_of(&table)
}

/// The most expensive first when not all are shown; in order of execution otherwise.
fn nodes(model: &ModelProfile, all: bool) -> (String, usize) {
    let mut rows: Vec<&NodeProfile> = model.nodes.iter().collect();
    let hidden = if all { 0 } else { rows.len().saturating_sub(SHOWN) };
    if hidden > 0 {
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        rows.truncate(SHOWN);
    }
    let mut table = table(&super::NODE_HEADER);
    for node in rows {
        table.add_row(super::node_row(node).map(|cell| escape_for_terminal(&cell).into_owned()));
    }
    for column in 3..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    (text_of(&table), hidden)
}
