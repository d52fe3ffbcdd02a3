//! `optix quantize`: a recipe made from flags.

use std::path::Path;

use optix_passes::quantize::ActivationType;
use optix_passes::quantize::target::TargetChoice;
use optix_pipeline::Override;

use super::recipes;
use super::run::{self, Origin};
use super::targets;
use optix::cli::{Data, Debugging, Global, Method, Output};

/// Flags of the command that become options of its quantizing step.
pub struct Options<'a> {
    pub method: Option<Method>,
    pub per_channel: Option<bool>,
    pub observer: Option<&'a str>,
    pub target: Option<&'a str>,
    pub activation_type: Option<&'a str>,
    pub bits: Option<u32>,
    pub block_size: Option<usize>,
    pub exclude: &'a [String],
}

/// Quantizes a model.
pub fn quantize(
    global: &Global,
    model: &Path,
    options: &Options<'_>,
    set: &[String],
    output: &Output,
    data: &Data,
    debugging: &Debugging,
) -> anyhow::Result<()> {
    let is_calibrated = data.calib.is_some() || !data.stats.is_empty();
    let method = options.method.unwrap_or(match (options.bits, options.block_size) {
        (None, None) if is_calibrated => Method::Static,
        (None, None) => Method::Dynamic,
        _ => Method::WeightOnly,
    });
    let (recipe, step) = match method {
        Method::Static => ("int8-cpu", "quantize-static"),
        Method::Dynamic => ("dynamic-transformer", "quantize-dynamic"),
        Method::WeightOnly if options.bits == Some(8) => ("weight-only-int8", "quantize-weights"),
        Method::WeightOnly => ("weight-only-int4", "quantize-weights"),
    };
    let target = options.target.map(targets::value).transpose()?;
    let given = [
        ("target", target.as_ref().map(|(_, value)| value.clone())),
        ("per-channel", options.per_channel.map(|value| value.to_string())),
        ("observer", options.observer.map(quoted)),
        ("activation-type", options.activation_type.map(quoted)),
        ("bits", options.bits.map(|value| value.to_string())),
        ("block-size", options.block_size.map(|value| value.to_string())),
        ("exclude", (!options.exclude.is_empty()).then(|| format!("[{}]", list(options.exclude)))),
    ];
    let mut overrides: Vec<Override> = given
        .into_iter()
        .filter_map(|(option, value)| {
            Some(Override { step: step.into(), option: option.into(), value: value? })
        })
        .collect();
    if method == Method::WeightOnly && options.bits == Some(2) {
        // Types of 2 bits came with operator set 25.
        let (step, option) = ("convert-opset".to_owned(), "version".to_owned());
        overrides.push(Override { step, option, value: "25".to_owned() });
    }
    if method == Method::Static {
        let target = match target {
            Some((target, _)) => target,
            None => TargetChoice::default().resolve().map_err(anyhow::Error::msg)?,
        };
        let asked = options.activation_type.and_then(ActivationType::named);
        let asked = asked.unwrap_or(target.default_activations());
        let least = target.runs(asked).map_or(0, |runs| asked.least_operator_set(runs));
        if least > 13 {
            let (step, option) = ("convert-opset".to_owned(), "version".to_owned());
            overrides.push(Override { step, option, value: least.to_string() });
        }
    }
    let text = recipes::find(recipe).unwrap_or_default();
    let origin =
        Origin { text: text.to_owned(), name: format!("recipe {recipe}"), directory: None, file: None };
    run::run_recipe(global, origin, overrides, model, set, output, data, debugging)
}

/// A string as a TOML value.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Strings as what stands between the brackets of a TOML list.
pub(super) fn list(texts: &[String]) -> String {
    texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ")
}
