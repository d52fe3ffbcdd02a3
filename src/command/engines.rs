//! `optix engines`: what can run models here.

use crate::cli::Global;
use crate::screen;

/// Lists the engines; of those that cannot be used, why.
pub fn engines(global: &Global) -> anyhow::Result<()> {
    let found = optix_runtime::all_engines(global.ort_lib.as_deref());
    let width = found.iter().map(|found| found.name.len()).max().unwrap_or(0);
    let lines = found.iter().map(|found| match &found.engine {
        Ok(engine) => format!("{:width$}  {}  {}\n", found.name, engine.version(), engine.device()),
        Err(why) => format!("{:width$}  cannot be used: {why}\n", found.name),
    });
    screen::result(&lines.collect::<String>())
}
