//! Flags of commands as options of steps.

use clap::ValueEnum;
use optix_pipeline::Override;

/// A string as TOML.
pub fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The word that a flag's value is known by.
pub fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| quoted(value.get_name())).unwrap_or_default()
}

/// A flag that may be repeated as a TOML list; none where it was not given.
pub fn listed(texts: &[String]) -> Option<String> {
    let all: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    (!all.is_empty()).then(|| format!("[{}]", all.join(", ")))
}

/// Options of a step, those that were given.
pub fn overrides<'a>(
    step: &str,
    given: impl IntoIterator<Item = (&'a str, Option<String>)>,
) -> Vec<Override> {
    let of = |(option, value): (&str, Option<String>)| {
        Some(Override { step: step.to_owned(), option: option.to_owned(), value: value? })
    };
    given.into_iter().filter_map(of).collect()
}
