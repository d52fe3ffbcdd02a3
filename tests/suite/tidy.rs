//! What keeps the repository as docs/ARCHITECTURE.md says it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::program::root;

/// Files longer than this are to be cut along their topics.
const MOST_LINES: usize = 600;

/// Files that may be longer, each with the reason.
const LONG: &[(&str, &str)] = &[];

/// All files below a directory, as paths relative to the repository. Build outputs are no part of it.
fn files(below: &str) -> Vec<String> {
    let (mut found, mut open) = (Vec::new(), vec![root().join(below)]);
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory:?}: {error}")) {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            if path.is_dir() {
                if !matches!(name, "target" | "__pycache__") {
                    open.push(path);
                }
            } else {
                let relative = path.strip_prefix(root()).expect("below the root");
                found.push(relative.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Source files of all crates.
fn sources() -> Vec<String> {
    let all = ["src", "passes", "crates", "tests"].into_iter().flat_map(files);
    all.filter(|path| path.ends_with(".rs")).collect()
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    for path in sources() {
        let lines = text(&path).lines().count();
        match LONG.iter().find(|(long, _)| *long == path) {
            None if lines > MOST_LINES => wrong.push(format!("{path} has {lines} lines: cut it by topic")),
            Some(_) if lines <= MOST_LINES => wrong.push(format!("{path} is short: take it off the list")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn fixtures_are_what_their_sums_say() {
    let mut listed = BTreeMap::new();
    for line in text("fixtures/SHA256SUMS").lines() {
        let (sum, path) = line.split_once("  ").expect("SUM  PATH");
        assert!(listed.insert(format!("fixtures/{path}"), sum.to_owned()).is_none(), "{path} twice");
    }
    let mut total = 0;
    for path in files("fixtures") {
        let bytes = std::fs::read(root().join(&path)).expect("a file");
        assert!(bytes.len() < 10_000_000, "{path}: {} bytes", bytes.len());
        total += bytes.len();
        let name = path.rsplit('/').next().unwrap_or_default();
        let made_by_hand = name.ends_with(".md")
            || name.ends_with(".py")
            || matches!(name, "requirements.txt" | "SHA256SUMS" | "problems.txt");
        let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        match listed.remove(&path) {
            Some(expected) => assert_eq!(sum, expected, "{path}"),
            None => assert!(made_by_hand, "{path} is not in fixtures/SHA256SUMS"),
        }
    }
    assert!(listed.is_empty(), "listed and not there: {:?}", listed.keys());
    assert!(total < 30_000_000, "{total} bytes");
}

/// What lies at the top of the repository.
#[rustfmt::skip]
const TOP: &[&str] = &[
    ".ci", ".gitignore", "CHANGELOG.md", "Cargo.lock", "Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md",
    "benches", "crates", "deny.toml", "docs", "fixtures", "fuzz", "passes", "recipes", "rustfmt.toml", "src",
    "targets", "templates", "tests",
];

#[test]
fn nothing_is_committed_by_accident() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
        // An unpacked archive, or a machine without git: there is nothing to look at.
        return;
    };
    let listed = String::from_utf8(listed.stdout).expect("UTF-8");
    for path in listed.split_terminator('\0') {
        let top = path.split('/').next().unwrap_or_default();
        assert!(TOP.contains(&top), "{path}: does it belong here? Then name it in tests/suite/tidy.rs");
        let bytes = std::fs::metadata(root().join(path)).map_or(0, |metadata| metadata.len());
        assert!(bytes < 10_000_000, "{path}: {bytes} bytes");
    }
}

/// Each crate, and the ones of ours it may stand on: the picture in docs/ARCHITECTURE.md.
const ARROWS: &[(&str, &str, &[&str])] = &[
    ("optix-base", "crates/base", &[]),
    ("optix-ir", "crates/ir", &["base"]),
    ("optix-linalg", "crates/linalg", &[]),
    ("optix-training", "crates/training", &["ir"]),
    ("optix-ops", "crates/ops", &["base", "ir"]),
    ("optix-io", "crates/io", &["base", "ir"]),
    ("optix-data", "crates/data", &["base", "ir", "io"]),
    ("optix-pipeline", "crates/pipeline", &["base", "ir", "ops", "io", "data"]),
    ("optix-runtime", "crates/runtime", &["base", "ir", "ops", "io", "pipeline"]),
    ("optix-passes", "passes", &["base", "ir", "linalg", "training", "ops", "pipeline"]),
];

/// Crates that compute: whoever depends on one runs models.
const ENGINES: &[&str] = &["burn", "burn-flex", "burn-ndarray", "ort", "candle", "tract", "rten", "pulp"];

#[test]
fn arrows_point_downward() {
    let mut manifests: Vec<String> = ["passes", "crates"].into_iter().flat_map(files).collect();
    manifests.retain(|path| path.ends_with("/Cargo.toml"));
    assert_eq!(manifests.len(), ARROWS.len(), "every crate is in the picture: {manifests:?}");
    for (name, directory, allowed) in ARROWS {
        let manifest: toml::Table = text(&format!("{directory}/Cargo.toml")).parse().expect("TOML");
        assert_eq!(manifest["package"]["name"].as_str(), Some(*name));
        let empty = toml::Table::new();
        let table = |key: &str| manifest.get(key).and_then(|table| table.as_table()).unwrap_or(&empty);
        for dependency in table("dependencies").keys().chain(table("build-dependencies").keys()) {
            if let Some(ours) = dependency.strip_prefix("optix-") {
                assert!(allowed.contains(&ours), "{name} must not depend on {dependency}");
            }
            let is_engine = ENGINES.contains(&dependency.as_str());
            assert!(!is_engine || *name == "optix-runtime", "{name} depends on {dependency}");
            assert!(dependency != "anyhow", "{name}: errors of libraries are enums");
        }
    }
    let root: toml::Table = text("Cargo.toml").parse().expect("TOML");
    let dependencies = root["dependencies"].as_table().expect("a table");
    assert!(!dependencies.keys().any(|name| ENGINES.contains(&name.as_str())));
}

#[test]
fn only_the_program_prints_exits_and_reads_arguments() {
    let forbidden = ["println!(", "eprintln!(", "print!(", "dbg!(", "process::exit", "env::args"];
    let mut wrong = Vec::new();
    for path in sources().iter().filter(|path| path.starts_with("crates/") || path.starts_with("passes/")) {
        // Tests, examples and build scripts are programs of their own; law.rs is a test.
        let own = ["/tests/", "/examples/", "/benches/", "build.rs", "crates/io/src/law.rs"];
        let own = own.iter().any(|part| path.contains(part));
        for (number, line) in text(path).lines().enumerate().filter(|_| !own) {
            let code = line.split("//").next().unwrap_or_default();
            let hit = forbidden.iter().find(|word| code.contains(*word));
            wrong.extend(hit.map(|word| format!("{path}:{}: {word}", number + 1)));
        }
    }
    // Within the program, only one file knows stdout; `println!` panics when a pipe closes.
    for path in sources().iter().filter(|path| path.starts_with("src/") && *path != "src/screen.rs") {
        let hit = ["println!(", "print!(", "stdout()"].iter().find(|word| text(path).contains(*word));
        wrong.extend(hit.map(|word| format!("{path}: {word}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where the documents are.
fn documents() -> Vec<String> {
    let mut all: Vec<String> = ["docs", "fixtures"].into_iter().flat_map(files).collect();
    all.extend(["README.md".to_owned(), "CHANGELOG.md".to_owned()]);
    all.retain(|path| path.ends_with(".md"));
    all
}

/// The anchors that headings of a document make.
fn anchors(document: &str) -> Vec<String> {
    let headings = document.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let kept = |character: char| match character {
        ' ' => Some('-'),
        '-' | '_' => Some(character),
        other => other.is_alphanumeric().then_some(other),
    };
    let slug = |heading: &str| heading.to_lowercase().chars().filter_map(kept).collect();
    headings.map(slug).collect()
}

#[test]
fn links_and_paths_in_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for path in documents() {
        let document = text(&path);
        let directory = Path::new(&path).parent().unwrap_or(Path::new(""));
        for rest in document.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default();
            if target.starts_with("https://") || target.starts_with("http://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file: PathBuf = if file.is_empty() { path.clone().into() } else { directory.join(file) };
            if !root().join(&file).exists() {
                wrong.push(format!("{path}: {target} does not exist"));
            } else if !anchor.is_empty()
                && !anchors(&text(file.to_str().expect("UTF-8"))).contains(&anchor.to_owned())
            {
                wrong.push(format!("{path}: {target} has no such heading"));
            }
        }
        // Paths written without a link.
        let tops = ["docs/", "crates/", "src/", "passes/", "tests/", "fixtures/", "recipes/"];
        let is_path = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
        for word in document.split(|character: char| !is_path(character)) {
            let word = word.trim_end_matches(['.', '-']);
            let is_placeholder = word
                .split('/')
                .any(|part| !part.is_empty() && part.chars().all(|character| character.is_ascii_uppercase()));
            if tops.iter().any(|top| word.starts_with(top)) && !is_placeholder {
                let near = [root().join(word), root().join(directory).join(word)];
                if !near.iter().any(|path| path.exists()) {
                    wrong.push(format!("{path}: {word} does not exist"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
