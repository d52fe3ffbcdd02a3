//! `optix recipes`: the recipes that come with the program.

use anyhow::bail;
use optix_pipeline::did_you_mean;

use crate::screen;

/// Name and text of every built-in recipe.
pub const RECIPES: &[(&str, &str)] = &[
    ("clean", include_str!("../../recipes/clean.toml")),
    ("int8-cpu", include_str!("../../recipes/int8-cpu.toml")),
    ("int8-accurate", include_str!("../../recipes/int8-accurate.toml")),
    ("dynamic-transformer", include_str!("../../recipes/dynamic-transformer.toml")),
    ("int8-weights", include_str!("../../recipes/int8-weights.toml")),
    ("2-4-sparse", include_str!("../../recipes/2-4-sparse.toml")),
    ("low-rank", include_str!("../../recipes/low-rank.toml")),
    ("qat-4bit", include_str!("../../recipes/qat-4bit.toml")),
    ("prune-then-distill", include_str!("../../recipes/prune-then-distill.toml")),
    ("f16", include_str!("../../recipes/f16.toml")),
    ("bf16-weights", include_str!("../../recipes/bf16-weights.toml")),
    ("weight-only-int4", include_str!("../../recipes/weight-only-int4.toml")),
    ("weight-only-int8", include_str!("../../recipes/weight-only-int8.toml")),
];

/// The text of a built-in recipe.
pub fn find(name: &str) -> Option<&'static str> {
    RECIPES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Lists the recipes, or prints one.
pub fn recipes(name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else {
        let width = RECIPES.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines = RECIPES.iter().map(|(name, text)| {
            let about = text.lines().next().unwrap_or_default().trim_start_matches('#').trim();
            format!("{name:width$}  {about}\n")
        });
        return screen::result(&lines.collect::<String>());
    };
    match find(name) {
        Some(text) => screen::result(text),
        None => {
            let hint = did_you_mean(name, RECIPES.iter().map(|(known, _)| *known));
            bail!("there is no built-in recipe `{name}`{hint} (`optix recipes` lists them)")
        }
    }
}
