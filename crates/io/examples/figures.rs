//! Time and peak memory of loading a model, and of loading and saving it.
//!
//! `figures MODEL` loads; `figures MODEL OUT` loads and saves.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().ok_or("name a model")?;
    let start = Instant::now();
    let loaded = optix_io::load(Path::new(model), &optix_io::LoadOptions::default())?;
    println!("load {:.1} ms, peak {}", start.elapsed().as_secs_f64() * 1e3, peak()?);
    if let Some(out) = arguments.get(1) {
        let start = Instant::now();
        let options = optix_io::SaveOptions { inputs: loaded.sources.clone(), ..Default::default() };
        let stats = optix_io::save(&loaded.model, Path::new(out), &options)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("save {:.1} ms, {} bytes, peak {}", seconds * 1e3, stats.bytes, peak()?);
    }
    Ok(())
}

/// Peak resident memory of this process, as Linux says it.
fn peak() -> Result<String, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
}
