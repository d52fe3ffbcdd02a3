//! `optix engines`: what can run models here.

use crate::screen;

/// Lists the engines.
pub fn engines() -> anyhow::Result<()> {
    let engines = optix_runtime::engines();
    let width = engines.iter().map(|engine| engine.name().len()).max().unwrap_or(0);
    let lines = engines
        .iter()
        .map(|engine| format!("{:width$}  {}  {}\n", engine.name(), engine.version(), engine.device()));
    screen::result(&lines.collect::<String>())
}
