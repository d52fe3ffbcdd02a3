//! `optix distill`: a recipe made from flags.

use super::flags::{listed, overrides, word};
use super::recipes;
use super::run::{self, Origin};
use super::setup;
use optix::cli::{Distill, Global};

/// The recipe whose steps around pruning are those that training needs.
const RECIPE: &str = "prune-then-distill";

/// What pruning is called in it.
const PRUNING: &str = "[[step]]\npass = \"prune-channels\"\nflops = 0.5\n\n";

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
        ("features", listed(&options.features)),
        ("blocks", options.blocks.then(|| "true".to_owned())),
        ("label-weight", number(options.label_weight)),
        ("freeze-unsupported", options.freeze_unsupported.then(|| "true".to_owned())),
        ("exclude", listed(&options.exclude)),
    ];
    let overrides = overrides(step, given);
    let text = recipes::find(RECIPE).unwrap_or_default().replace(PRUNING, "");
    let text = text.replace("\npass = \"distill\"\n", &format!("\npass = \"{step}\"\n"));
    // The first line is about the built-in recipe.
    let text = text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned());
    let origin = Origin::text(text, "recipe of `distill`".to_owned());
    let Distill { model, set, output, data, debugging, .. } = options;
    run::run_recipe(global, origin, overrides, model, set, output, data, debugging)
}
