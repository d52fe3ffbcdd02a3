//! `optix passes`: what can be done to a model.

use anyhow::bail;
use optix_passes::PASSES;
use optix_pipeline::{PassSpec, did_you_mean};

use crate::screen;

/// Lists the passes, or shows one's manual.
pub fn passes(name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else {
        let width = PASSES.iter().map(|spec| spec.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        let mut family = None;
        for spec in PASSES {
            if family != Some(spec.family) {
                text.push_str(&format!("{}\n", spec.family.name()));
                family = Some(spec.family);
            }
            let summary = spec.summary();
            let sentence = summary.split_inclusive(". ").next().unwrap_or_default().trim_end();
            text.push_str(&format!("  {:width$}  {sentence}\n", spec.name));
        }
        return screen::result(&text);
    };
    match PASSES.iter().find(|spec| spec.name == name) {
        Some(spec) => screen::result(&manual(spec)),
        None => {
            let hint = did_you_mean(name, PASSES.iter().map(|spec| spec.name));
            bail!("there is no pass `{name}`{hint} (`optix passes` lists them)")
        }
    }
}

/// A pass's manual as text.
pub fn manual(spec: &PassSpec) -> String {
    let promises = (spec.default)().promises();
    let mut text = format!("{} ({})\n\n{}\n\n", spec.name, spec.family.name(), spec.manual());
    text.push_str(&format!("Promises: {promises}.\n"));
    let requires = (spec.default)().requires();
    if requires.calibration {
        text.push_str("Needs calibration data.\n");
    }
    if requires.opset > 0 {
        text.push_str(&format!("Needs operator set {} or newer.\n", requires.opset));
    }
    let options = spec.options();
    if options.is_empty() {
        text.push_str("\nIt has no options.\n");
    } else {
        text.push_str("\nOptions:\n");
        for option in options {
            let default = if option.default.is_empty() {
                String::new()
            } else {
                format!(" [default: {}]", option.default)
            };
            text.push_str(&format!(
                "  {} = {}{default}\n      {}\n",
                option.name,
                option.kind,
                option.help.replace('\n', "\n      ")
            ));
        }
    }
    text
}
