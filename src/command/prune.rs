//! `optix prune`: a recipe made from flags.

use optix_pipeline::Override;

use super::quantize::{list, quoted};
use super::recipes;
use super::run::{self, Origin};
use optix::cli::{Global, Prune, PruneMethod};

/// The recipe whose last step prunes, and what that step is called in it.
const RECIPE: (&str, &str) = ("2-4-sparse", "\npass = \"prune-sparsegpt\"\npattern = \"2:4\"\n");

/// Sets weights of a model to zero, or takes channels or blocks out of it.
pub fn prune(global: &Global, options: &Prune) -> anyhow::Result<()> {
    let is_smaller = options.flops.or(options.parameters).or(options.latency).is_some();
    let method = options.method.unwrap_or(match options.data.calib {
        _ if options.blocks.is_some() => PruneMethod::Layers,
        _ if is_smaller => PruneMethod::Channels,
        Some(_) => PruneMethod::Sparsegpt,
        None => PruneMethod::Magnitude,
    });
    let step = match method {
        PruneMethod::Magnitude => "prune-magnitude",
        PruneMethod::Wanda => "prune-wanda",
        PruneMethod::Sparsegpt => "prune-sparsegpt",
        PruneMethod::Channels => "prune-channels",
        PruneMethod::Layers => "prune-layers",
        PruneMethod::LowRank => "factorize",
    };
    let number = |share: Option<f64>| share.map(|value| format!("{value:?}"));
    let given = [
        ("sparsity", number(options.sparsity)),
        ("pattern", options.pattern.as_deref().map(quoted)),
        ("flops", number(options.flops)),
        ("parameters", number(options.parameters)),
        ("latency", number(options.latency)),
        ("blocks", options.blocks.map(|value| value.to_string())),
        ("multiple", options.multiple.map(|value| value.to_string())),
        ("recover", options.recover.map(|value| value.to_string())),
        ("exclude", (!options.exclude.is_empty()).then(|| format!("[{}]", list(&options.exclude)))),
    ];
    let mut overrides: Vec<Override> = given
        .into_iter()
        .filter_map(|(option, value)| {
            Some(Override { step: step.into(), option: option.into(), value: value? })
        })
        .collect();
    if options.distill_steps.is_some() && !options.exclude.is_empty() {
        let (step, option) = ("distill".to_owned(), "exclude".to_owned());
        overrides.push(Override { step, option, value: format!("[{}]", list(&options.exclude)) });
    }
    let (recipe, last) = RECIPE;
    let text = recipes::find(recipe).unwrap_or_default().replace(last, &format!("\npass = \"{step}\"\n"));
    let text = match options.distill_steps {
        Some(steps) => learning(&text, steps),
        None => text,
    };
    // The first line is about the built-in recipe.
    let text = text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned());
    let origin = Origin::text(text, format!("recipe of `prune` ({step})"));
    let Prune { model, set, output, data, debugging, .. } = options;
    run::run_recipe(global, origin, overrides, model, set, output, data, debugging)
}

/// A recipe whose last step is followed by training against the model that came in.
fn learning(text: &str, steps: u64) -> String {
    let raised = text.replace(
        "[[step]]\npass = \"eliminate-dead\"\n",
        "[[step]]\npass = \"convert-opset\"\n\n[[step]]\npass = \"eliminate-dead\"\n",
    );
    format!("{raised}\n[[step]]\npass = \"distill\"\nsteps = {steps}\n")
}
