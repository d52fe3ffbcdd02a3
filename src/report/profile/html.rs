//! The profile as one self-contained HTML page with plots.

use askama::Template;
use optix_base::escape_for_terminal;
use optix_pipeline::profile::{ModelProfile, NodeProfile, ProfileReport};

use super::super::format;
use super::super::plot::{Bar, Dot, Roof, bars, roofline};

/// Nodes in the plot of nodes.
const PLOTTED: usize = 25;

#[derive(Template)]
#[template(path = "profile.html")]
struct Page<'a> {
    report: &'a ProfileReport,
    title: String,
    ratio: Option<String>,
    machine: String,
    requirements: Vec<(bool, String)>,
    models: Vec<ModelPage>,
    scenarios: Vec<String>,
    warnings: Vec<String>,
}

struct ModelPage {
    title: String,
    facts: Vec<(&'static str, String)>,
    /// Drawn by `plot`, which escapes every label.
    plots: Vec<String>,
    operators: Vec<[String; 8]>,
    nodes: Vec<[String; 10]>,
    folded: Vec<String>,
}

/// The profile as HTML.
pub fn html(report: &ProfileReport) -> anyhow::Result<String> {
    let models = report.models.iter().map(|model| ModelPage {
        title: plain(&format!("{} ({})", model.path, format::bytes(model.bytes))),
        facts: super::facts(model).into_iter().map(|(title, fact)| (title, plain(&fact))).collect(),
        plots: plots(report, model),
        operators: model
            .operators
            .iter()
            .map(|one| super::operator_row(one).map(|cell| plain(&cell)))
            .collect(),
        nodes: model.nodes.iter().map(|one| super::node_row(one).map(|cell| plain(&cell))).collect(),
        folded: model.folded.iter().map(|node| plain(&format!("{} {}", node.op, node.node))).collect(),
    });
    let page = Page {
        report,
        title: report.models.first().map(|model| plain(&model.path)).unwrap_or_default(),
        ratio: super::ratio(report).map(|text| plain(&text)),
        machine: super::machine(&report.machine),
        requirements: report.requirements.iter().map(|one| (one.met, format::requirement(one))).collect(),
        models: models.collect(),
        scenarios: report.scenarios.iter().map(|one| plain(&super::scenario(one))).collect(),
        warnings: report.warnings.iter().map(|warning| plain(warning)).collect(),
    };
    Ok(page.render()?)
}

/// Text without characters that do harm in a terminal: pages are looked at there too. Markup is escaped by
/// the template.
fn plain(text: &str) -> String {
    escape_for_terminal(text).into_owned()
}

fn plots(report: &ProfileReport, model: &ModelProfile) -> Vec<String> {
    let mut plots = Vec::new();
    let operators: Vec<Bar> = model
        .operators
        .iter()
        .map(|operator| Bar {
            label: format!("{} x {}", operator.count, operator.op),
            value: Some(operator.seconds),
            note: format!("{} ({:.1}%)", format::duration(operator.seconds), operator.share * 100.0),
            bad: operator.on_reference > 0,
        })
        .collect();
    plots.push(bars("Time by operator (red: some on reference kernels)", &operators));
    let mut nodes: Vec<&NodeProfile> = model.nodes.iter().collect();
    nodes.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let rows: Vec<Bar> = nodes
        .iter()
        .take(PLOTTED)
        .map(|node| Bar {
            label: format!("{} ({})", node.nodes.join(" + "), node.op),
            value: Some(node.seconds),
            note: format::duration(node.seconds),
            bad: node.ran == "reference",
        })
        .collect();
    let title = match model.nodes.len() > PLOTTED {
        true => format!("The {PLOTTED} most expensive nodes"),
        false => "Time by node".to_owned(),
    };
    plots.push(bars(&title, &rows));
    let dots: Vec<Dot> = nodes
        .iter()
        .filter_map(|node| {
            let flops = node.flops.filter(|&flops| flops > 0 && node.seconds > 0.0)?;
            Some(Dot {
                label: format!("{} ({})", node.nodes.join(" + "), node.op),
                x: node.intensity?,
                y: flops as f64 / node.seconds,
                weight: node.share,
            })
        })
        .collect();
    if !dots.is_empty() {
        let roof = Roof {
            slope: report.machine.copy_bytes_per_second,
            height: report.machine.gemm_flops_per_second,
        };
        plots.push(roofline("Nodes under the machine's limits", roof, &dots));
    }
    plots
}
