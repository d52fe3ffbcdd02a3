//! Choosing nodes by name: patterns in which `*` stands for any run of characters.

use optix_ir::{Model, NodeId};
use optix_pipeline::PassError;

/// Whether `name` matches `pattern`, in which `*` stands for any run of characters. Linear in practice:
/// backtracks to the last star only.
pub(crate) fn matches_glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && pattern[p] == name[n] {
            p += 1;
            n += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            n = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// Whether the patterns of the option `exclude` let a node be treated; if not, the reason.
pub(crate) fn not_excluded(model: &Model, id: NodeId, patterns: &[String]) -> Result<(), String> {
    let (name, _) = optix_pipeline::naming::node_and_op(model, id);
    match patterns.iter().find(|pattern| matches_glob(pattern, &name)) {
        Some(pattern) => Err(format!("excluded by `{pattern}`")),
        None => Ok(()),
    }
}

/// Checks that every pattern of the option `exclude` names at least one node.
pub(crate) fn check_patterns(model: &Model, patterns: &[String]) -> Result<(), PassError> {
    check_patterns_of(model, "exclude", patterns)
}

/// Checks that every pattern of an option names at least one node.
pub(crate) fn check_patterns_of(model: &Model, option: &str, patterns: &[String]) -> Result<(), PassError> {
    if patterns.is_empty() {
        return Ok(());
    }
    let names: Vec<String> =
        model.walk().map(|id| optix_pipeline::naming::node_and_op(model, id).0).collect();
    for pattern in patterns {
        if !names.iter().any(|name| matches_glob(pattern, name)) {
            let hint = optix_pipeline::did_you_mean(pattern, names.iter().map(String::as_str));
            return Err(PassError::Options(format!("`{option}`: no node is called `{pattern}`{hint}")));
        }
    }
    Ok(())
}

/// Checks that every operator that an option names is used in the model.
pub(crate) fn check_operators(model: &Model, option: &str, operators: &[String]) -> Result<(), PassError> {
    for wanted in operators {
        if !model.walk().any(|id| model.node(id).op_type == *wanted) {
            let known: std::collections::BTreeSet<&str> =
                model.walk().map(|id| model.node(id).op_type.as_str()).collect();
            let hint = optix_pipeline::did_you_mean(wanted, known);
            return Err(PassError::Options(format!("`{option}`: no node has the operator `{wanted}`{hint}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("conv1", "conv1", true),
            ("conv1", "conv10", false),
            ("conv*", "conv10", true),
            ("*/attention/*", "/layer.0/attention/query", true),
            ("*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches_glob(pattern, name), expected, "{pattern} {name}");
        }
    }
}
