//! Reports as text: a [`Report`] goes in, a terminal screen, Markdown, JSON or an HTML page comes out.

mod eval;
mod format;
mod html;
mod markdown;
mod plot;
pub mod profile;
mod terminal;

use std::path::Path;

use anyhow::{Context, bail};
use optix_base::OutFile;
use optix_pipeline::report::Report;

pub use eval::{measured, requirement_line, write_evaluation};
pub use format::{bytes as format_bytes, outputs as fidelity_lines};
pub use terminal::terminal;

/// Kinds of report files, told by extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Json,
    Markdown,
    Html,
}

fn kind(path: &Path) -> anyhow::Result<Kind> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok(Kind::Json),
        Some("md") => Ok(Kind::Markdown),
        Some("html" | "htm") => Ok(Kind::Html),
        _ => bail!("{}: a report file ends in .json, .md or .html", path.display()),
    }
}

/// Checks that a report can be written and is none of the inputs, before the work it reports on.
pub fn check(path: &Path, inputs: &[&Path]) -> anyhow::Result<()> {
    kind(path)?;
    Ok(OutFile::check(path, inputs)?)
}

/// The report as JSON text.
pub fn json(report: &Report) -> String {
    crate::screen::json_text(report)
}

/// Writes a report in the form its extension names; appears whole or not at all.
pub fn write(report: &Report, path: &Path) -> anyhow::Result<()> {
    write_text(path, |kind| {
        Ok(match kind {
            Kind::Json => json(report),
            Kind::Markdown => markdown::markdown(report),
            Kind::Html => html::html(report)?,
        })
    })
}

/// Writes the text that `render` makes for the kind of file that the extension names.
pub fn write_text(path: &Path, render: impl FnOnce(Kind) -> anyhow::Result<String>) -> anyhow::Result<()> {
    write_file(path, &render(kind(path)?)?)
}

/// Writes a file; it appears whole or not at all.
pub fn write_file(path: &Path, bytes: impl AsRef<[u8]>) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = OutFile::create(path)?;
    file.write_all(bytes.as_ref()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file.commit()?)
}
