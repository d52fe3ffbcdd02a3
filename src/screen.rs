//! Everything that reaches the terminal goes through here. Never `println!`: it panics when a pipe closes.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use optix_base::escape_for_terminal;
use optix_pipeline::{OracleError, Progress};

use optix::cli::{Global, When};

/// Writes a result to stdout.
pub fn result(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(newline.as_bytes()))
        .and_then(|()| out.flush())
        .context("cannot write to stdout")
}

/// A text of several lines with names from a model in it, made harmless line by line.
pub fn foreign(text: &str) -> String {
    text.lines().map(escape_for_terminal).collect::<Vec<_>>().join("\n")
}

/// A JSON document that does no harm on a terminal either: what could is written as `\\u....`, which means
/// the same.
pub fn json_text(document: &impl serde::Serialize) -> String {
    let text = serde_json::to_string_pretty(document).unwrap_or_default();
    let mut units = [0u16; 2];
    text.lines()
        .map(|line| match escape_for_terminal(line) {
            Cow::Borrowed(line) => line.to_owned(),
            Cow::Owned(_) => line
                .chars()
                .map(|character| match escape_for_terminal(character.encode_utf8(&mut [0; 4])) {
                    Cow::Borrowed(_) => character.to_string(),
                    Cow::Owned(_) => {
                        let units = character.encode_utf16(&mut units).iter();
                        units.map(|unit| format!("\\u{unit:04x}")).collect()
                    }
                })
                .collect(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Says something beside the result; unheard when stderr is closed.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Whether an error is only that the reader of stdout went away.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Prints an error: what, where and what to do, one line each cause and one for what helps.
pub fn error(error: &anyhow::Error) {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain() {
        let line = cause.to_string();
        // Transparent wrappers say the same twice.
        if !last.contains(&line) {
            text.push_str(if text.is_empty() { "error: " } else { "\n  caused by: " });
            text.push_str(&line);
        }
        last = line;
    }
    let cure = error.chain().find_map(|cause| match cause.downcast_ref::<crate::exit::Helped>() {
        Some(helped) => Some(helped.help.as_str()),
        None => cause.downcast_ref::<optix_io::IoError>()?.cure(),
    });
    if let Some(cure) = cure {
        text.push_str("\n  help: ");
        text.push_str(cure);
    }
    note(&text);
}

static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps what a panic says, instead of printing it bare.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let text = info
            .payload()
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| info.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        if let Ok(mut kept) = PANIC.lock() {
            kept.get_or_insert(format!("{text} (at {place})"));
        }
    }));
}

/// What a report of an internal error says.
fn facts(what: &str) -> String {
    let command: Vec<String> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    format!(
        "optix {}\nplatform: {} {}\ncommand: {}\npanic: {what}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        command.join(" ")
    )
}

/// Keeps what it takes to see a failure of a node again: a folder with the facts and, where the node could be
/// cut out, a model of it alone and its inputs, as `optix infer MODEL --data FOLDER` takes them.
pub fn keep_case(error: &anyhow::Error, directory: &Path) {
    let found = error.chain().find_map(|cause| match cause.downcast_ref::<OracleError>()? {
        OracleError::Internal { node, what, case } => Some((node, what, case)),
        _ => None,
    });
    let Some((node, what, case)) = found else { return };
    // With the place in the source, which only the panic itself knew.
    let panic = PANIC.lock().ok().and_then(|mut kept| kept.take()).unwrap_or_else(|| what.clone());
    let folder = directory.join(format!("optix-internal-error-{}", std::process::id()));
    let write = || -> anyhow::Result<()> {
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("report.txt"), format!("{}node: {node}\n", facts(&panic)))?;
        if let Some(case) = case {
            std::fs::write(folder.join("model.onnx"), &case.model)?;
            let inputs = folder.join("test_data_set_0");
            std::fs::create_dir(&inputs)?;
            for (index, (name, tensor)) in case.feeds.iter().enumerate() {
                let bytes = optix_io::write_tensor_pb(name, tensor);
                std::fs::write(inputs.join(format!("input_{index}.pb")), bytes)?;
            }
        }
        Ok(())
    };
    match write() {
        Ok(()) => note(&format!("  details are in {}: please report them", folder.display())),
        Err(_) => note(&format!("  panic: {}", escape_for_terminal(&panic))),
    }
}

/// Reports an internal error: a file with the facts, and one line that names it.
pub fn internal_error() {
    let what = PANIC.lock().ok().and_then(|mut kept| kept.take()).unwrap_or_else(|| "unknown".to_owned());
    let facts = facts(&what);
    let path = format!("optix-internal-error-{}.txt", std::process::id());
    let kept = match std::fs::write(&path, facts) {
        Ok(()) => format!("; details are in {path}: please report them"),
        Err(_) => String::new(),
    };
    note(&format!("error: internal error: {what}{kept}"));
}

/// Progress bars on stderr, for what takes longer than a second.
pub struct Bars {
    bar: Mutex<Option<(String, ProgressBar, Instant)>>,
    target: fn() -> ProgressDrawTarget,
}

impl Bars {
    /// As the flags ask for.
    pub fn new(global: &Global) -> Bars {
        let shown = match global.progress {
            When::Never => false,
            When::Always => true,
            When::Auto => std::io::stderr().is_terminal(),
        };
        let target =
            if shown && !global.quiet { ProgressDrawTarget::stderr } else { ProgressDrawTarget::hidden };
        Bars { bar: Mutex::new(None), target }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some((_, bar, _)) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Bars {
    fn tick(&self, what: &str, done: u64, total: u64) {
        let Ok(mut slot) = self.bar.lock() else { return };
        if slot.as_ref().is_none_or(|(name, ..)| name != what) {
            if let Some((_, bar, _)) = slot.take() {
                bar.finish_and_clear();
            }
            let bar = ProgressBar::with_draw_target(Some(total.max(1)), ProgressDrawTarget::hidden());
            let template = "{msg} {bar:30} {pos}/{len} {eta} left";
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.set_message(what.to_owned());
            *slot = Some((what.to_owned(), bar, Instant::now()));
        }
        if let Some((_, bar, since)) = slot.as_ref() {
            if bar.is_hidden() && since.elapsed() > Duration::from_secs(1) {
                bar.set_draw_target((self.target)());
            }
            if total > 0 {
                bar.set_length(total);
            }
            bar.set_position(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_node_is_kept_so_that_it_can_be_run_again() {
        let model = optix_ir::text::parse(
            "<ir_version: 8, opset_import: [\"\" : 18]>\ng (float[3] input_0) => (float[3] output_0) { output_0 = Relu (input_0) }",
        )
        .expect("a model");
        let model = optix_io::onnx_bytes(&model).expect("it is small");
        let tensor = optix_ir::Tensor::from_vec(vec![3], vec![1f32, -1.0, f32::NAN]);
        let case = optix_pipeline::Case { model, feeds: vec![("input_0".to_owned(), tensor.clone())] };
        let error = OracleError::Internal {
            node: "`a` (Relu)".to_owned(),
            what: "index out of range".to_owned(),
            case: Some(Box::new(case)),
        };
        let place = tempfile::tempdir().expect("a directory");
        let error = anyhow::Error::from(error).context("while evaluating");
        assert_eq!(crate::exit::code(&error), 4);
        keep_case(&error, place.path());
        let folder = place.path().join(format!("optix-internal-error-{}", std::process::id()));
        let report = std::fs::read_to_string(folder.join("report.txt")).expect("a report");
        for part in ["optix ", "command: ", "panic: index out of range", "node: `a` (Relu)"] {
            assert!(report.contains(part), "{report}");
        }
        let (name, kept) =
            optix_io::read_tensor_file(&folder.join("test_data_set_0/input_0.pb")).expect("an input");
        assert_eq!((name.as_str(), kept.bytes()), ("input_0", tensor.bytes()));
        let loaded = optix_io::load(&folder.join("model.onnx"), &Default::default()).expect("a model");
        assert_eq!(loaded.model.walk().count(), 1);
        let data =
            optix_data::Dataset::open(folder.to_str().expect("UTF-8"), &Default::default()).expect("data");
        assert_eq!(data.len(), Some(1));
    }
}
