//! Files that a test generates and that are kept in the repository.

use std::path::Path;

/// Compares a generated text with the file that holds it; with `UPDATE=1` in the environment, writes it.
///
/// # Panics
/// When the file is stale.
pub fn check(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        std::fs::write(&file, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
        return;
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    if found != text {
        let line = found.lines().zip(text.lines()).position(|(found, text)| found != text);
        let line = line.unwrap_or_else(|| found.lines().count().min(text.lines().count())) + 1;
        panic!("{path} is stale from line {line} on; run `UPDATE=1 cargo test --test suite`");
    }
}
