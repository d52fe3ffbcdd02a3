//! `optix distill`: a recipe made from flags.

use clap::ValueEnum;
use optix_pipeline::Override;

use super::quantize::{list, quoted};
use super::recipes;
use super::run::{self, Origin};
use super::setup;
use optix::cli::{Distill, Global};

/// The recipe whose steps around pruning are those that training needs.
const RECIPE: &str = "prune-then-distill";

/// What pruning is called in it.
const PRUNING: &str = "[[step]]\npass = \"prune-channels\"\nflops = 0.5\n\n";

/// The word that a flag's value is known by.
fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| quoted(value.get_name())).unwrap_or_default()
}

/// Trains a model to give what its teacher gives.
pub fn distill(global: &Global, options: &Distill) -> anyhow::Result<()> {
    if options.data.teacher.is_none() {
        anyhow::bail!(
            "`distill` learns from another model: give `--teacher MODEL` (a pruned or quantized model's original, or any \
             model with the same inputs and outputs)"
        );
    }
    // Integers behind dequantizers are trained with their rounding.
    let loaded = setup::load(global, &options.model)?.model;
    let step = if optix_passes::distill::is_quantized(&loaded) { "distill-quantized" } else { "distill" };
    let number = |value: Option<f64>| value.map(|value| format!("{value:?}"));
    let changes: Vec<String> = options.augment.iter().map(|&change| word(change)).collect();
    let given = [
        ("steps", options.steps.map(|value| value.to_string())),
        ("batch-size", options.batch_size.map(|value| value.to_string())),
        ("learning-rate", number(options.learning_rate)),
        ("loss", options.loss.map(word)),
        ("temperature", number(options.temperature)),
        ("augment", (!changes.is_empty()).then(|| format!("[{}]", changes.join(", ")))),
        ("features", (!options.features.is_empty()).then(|| format!("[{}]", list(&options.features)))),
        ("label-weight", number(options.label_weight)),
        ("freeze-unsupported", options.freeze_unsupported.then(|| "true".to_owned())),
        ("exclude", (!options.exclude.is_empty()).then(|| format!("[{}]", list(&options.exclude)))),
    ];
    let overrides: Vec<Override> = given
        .into_iter()
        .filter_map(|(option, value)| {
            Some(Override { step: step.into(), option: option.into(), value: value? })
        })
        .collect();
    let text = recipes::find(RECIPE).unwrap_or_default().replace(PRUNING, "");
    let text = text.replace("\npass = \"distill\"\n", &format!("\npass = \"{step}\"\n"));
    // The first line is about the built-in recipe.
    let text = text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned());
    let origin = Origin::text(text, "recipe of `distill`".to_owned());
    let Distill { model, set, output, data, debugging, .. } = options;
    run::run_recipe(global, origin, overrides, model, set, output, data, debugging)
}
