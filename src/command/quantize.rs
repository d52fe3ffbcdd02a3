//! `optix quantize`: a recipe made from flags.

use anyhow::bail;
use optix_passes::quantize::target::TargetChoice;
use optix_passes::quantize::{ActivationType, WeightType};
use optix_pipeline::Override;

use super::flags::{listed, overrides, quoted};
use super::recipes;
use super::run::{self, Origin};
use super::targets;
use optix::cli::{Global, Method, Quantize};

/// Quantizes a model.
pub fn quantize(global: &Global, options: &Quantize) -> anyhow::Result<()> {
    let Quantize { model, set, output, data, debugging, .. } = options;
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
    let is_static = method == Method::Static;
    let small = small_weights(options, method)?;
    let target = options.target.as_deref().map(targets::value).transpose()?;
    let given = [
        ("target", target.as_ref().map(|(_, value)| value.clone())),
        ("per-channel", options.per_channel.map(|value| value.to_string())),
        ("observer", options.observer.as_deref().map(quoted)),
        ("activation-type", options.activation_type.as_deref().map(quoted)),
        ("bits", options.bits.filter(|_| !is_static).map(|value| value.to_string())),
        ("weight-type", small.then(|| quoted("int4"))),
        ("block-size", options.block_size.map(|value| value.to_string())),
        ("exclude", listed(&options.exclude)),
    ];
    let mut overrides = overrides(step, given);
    if options.distill_steps.is_some() {
        overrides.extend(self::overrides("distill-quantized", [("exclude", listed(&options.exclude))]));
    }
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
        let asked = options.activation_type.as_deref().and_then(ActivationType::named);
        let asked = asked.unwrap_or(target.default_activations());
        let least = target.runs(asked).map_or(0, |runs| asked.least_operator_set(runs));
        let least = if small { least.max(WeightType::LEAST_OF_INT4) } else { least };
        if least > 13 {
            let (step, option) = ("convert-opset".to_owned(), "version".to_owned());
            overrides.push(Override { step, option, value: least.to_string() });
        }
    }
    let text = recipes::find(recipe).unwrap_or_default();
    let text = options.distill_steps.map_or_else(|| text.to_owned(), |steps| learning(text, steps));
    let origin = Origin::text(text, format!("recipe {recipe}"));
    run::run_recipe(global, origin, overrides, model, set, output, data, debugging)
}

/// Whether weights get four bits beside integer activations.
fn small_weights(options: &Quantize, method: Method) -> anyhow::Result<bool> {
    if options.distill_steps.is_some() && method != Method::Static {
        bail!(
            "--distill-steps trains activations in integers too: it goes with `--method static` and `--calib`"
        );
    }
    match (method, options.bits) {
        (Method::Static, Some(4)) => Ok(true),
        (Method::Static, Some(bits)) if bits != 8 => {
            bail!(
                "--bits {bits}: weights beside integer activations have 8 or 4; `--method weight-only` has 2 too"
            )
        }
        _ => Ok(false),
    }
}

/// A recipe whose quantized model is trained against the model that came in before its constants are merged.
fn learning(text: &str, steps: u64) -> String {
    let last = "[[step]]\npass = \"merge-initializers\"\n";
    text.replace(last, &format!("[[step]]\npass = \"distill-quantized\"\nsteps = {steps}\n\n{last}"))
}
