//! `optix prune`: a recipe made from flags.

use super::flags::{listed, overrides, quoted, word};
use super::recipes;
use super::run::{self, Origin};
use optix::cli::{Global, Prune, PruneImportance, PruneMethod};

/// The recipe whose last step prunes, and what that step is called in it.
const RECIPE: (&str, &str) = ("2-4-sparse", "\npass = \"prune-sparsegpt\"\npattern = \"2:4\"\n");

/// Sets weights of a model to zero, or takes channels or blocks out of it.
pub fn prune(global: &Global, options: &Prune) -> anyhow::Result<()> {
    let is_smaller = options.flops.or(options.parameters).or(options.bytes).or(options.latency).is_some();
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
        ("bytes", number(options.bytes)),
        ("latency", number(options.latency)),
        ("importance", options.importance.map(word)),
        ("blocks", options.blocks.map(|value| value.to_string())),
        ("multiple", options.multiple.map(|value| value.to_string())),
        ("recover", options.recover.map(|value| value.to_string())),
        ("exclude", listed(&options.exclude)),
    ];
    let mut overrides = overrides(step, given);
    if options.distill_steps.is_some() {
        overrides.extend(self::overrides("distill", [("exclude", listed(&options.exclude))]));
    }
    let (recipe, last) = RECIPE;
    let text = recipes::find(recipe).unwrap_or_default().replace(last, &format!("\npass = \"{step}\"\n"));
    let needs_gradients =
        options.distill_steps.is_some() || options.importance == Some(PruneImportance::Taylor);
    let text = if needs_gradients { raised(&text) } else { text };
    let text = match options.distill_steps {
        Some(steps) => format!("{text}\n[[step]]\npass = \"distill\"\nsteps = {steps}\n"),
        None => text,
    };
    // The first line is about the built-in recipe.
    let text = text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned());
    let origin = Origin::text(text, format!("recipe of `prune` ({step})"));
    let Prune { model, set, output, data, debugging, .. } = options;
    run::run_recipe(global, origin, overrides, model, set, output, data, debugging)
}

/// A recipe that raises the operator set to one that has gradients.
fn raised(text: &str) -> String {
    text.replace(
        "[[step]]\npass = \"eliminate-dead\"\n",
        "[[step]]\npass = \"convert-opset\"\n\n[[step]]\npass = \"eliminate-dead\"\n",
    )
}
