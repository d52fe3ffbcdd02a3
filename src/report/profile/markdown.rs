//! The profile as Markdown, for pull requests.

use optix_pipeline::profile::ProfileReport;

use super::super::format;
use super::super::markdown::cell;

/// The profile as Markdown.
pub fn markdown(report: &ProfileReport) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    if let Some(ratio) = super::ratio(report) {
        line(format!("**{}**\n", cell(&ratio)));
    }
    for requirement in &report.requirements {
        line(format!("- require {}", cell(&format::requirement(requirement))));
    }
    for warning in &report.warnings {
        line(format!("- **warning**: {}", cell(warning)));
    }
    for model in &report.models {
        line(format!("\n# Profile of {} ({})\n", cell(&model.path), format::bytes(model.bytes)));
        for (title, fact) in super::facts(model) {
            let title = if title.is_empty() { String::new() } else { format!("{title}: ") };
            line(format!("- {title}{}", cell(&fact)));
        }
        line(String::new());
        rows(&mut line, &super::OPERATOR_HEADER, model.operators.iter().map(super::operator_row));
        line(format!("\n<details><summary>{} nodes</summary>\n", model.nodes.len()));
        rows(&mut line, &super::NODE_HEADER, model.nodes.iter().map(super::node_row));
        line("\n</details>".to_owned());
        if !model.folded.is_empty() {
            let names: Vec<String> =
                model.folded.iter().map(|node| format!("{} {}", node.op, cell(&node.node))).collect();
            line(format!("\nComputed at load time: {}", names.join(", ")));
        }
    }
    if !report.scenarios.is_empty() {
        line("\n## Scenarios\n".to_owned());
        report.scenarios.iter().for_each(|one| line(format!("- {}", cell(&super::scenario(one)))));
    }
    line(format!("\nMachine: {}\n", super::machine(&report.machine)));
    line(format!("optix {}, seed {}:\n\n    {}", report.version, report.seed, cell(&report.command)));
    text
}

fn rows<const N: usize>(
    line: &mut impl FnMut(String),
    header: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    line(format!("| {} |", header.join(" | ")));
    line(format!("|{}", "---|".repeat(N)));
    for row in rows {
        line(format!("| {} |", row.map(|text| cell(&text)).join(" | ")));
    }
}
