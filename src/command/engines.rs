//! `optix engines`: what can run models here.

use optix_base::escape_for_terminal;
use optix_runtime::{DeviceInfo, Found, Machine};
use serde_json::{Value, json};

use crate::screen;
use optix::cli::Global;

/// Lists the engines and what they compute on; of those that cannot be used, why.
pub fn engines(global: &Global, as_json: bool) -> anyhow::Result<()> {
    let machine = Machine::detect();
    let found = optix_runtime::all_engines(global.ort_lib.as_deref());
    if as_json {
        return screen::result(&screen::json_text(&document(&machine, &found)));
    }
    let mut text = format!("processor: {}, {} threads", machine.processor, machine.threads);
    if let Some(memory) = machine.memory {
        text.push_str(&format!(", {} of memory", bytes(memory)));
    }
    text.push_str(&format!("\n  instruction sets: {}\n\n", machine.instruction_sets.join(" ")));
    let width = found.iter().map(|found| found.name.len()).max().unwrap_or(0);
    for found in &found {
        match &found.engine {
            Ok(engine) => {
                text.push_str(&format!("{:width$}  {}\n", found.name, engine.version()));
                if let Some(library) = &found.library {
                    text.push_str(&format!("{:width$}    {}\n", "", library.display()));
                }
                for (index, device) in found.devices.iter().enumerate() {
                    let unused = if index > 0 { " (not used: the first one is)" } else { "" };
                    text.push_str(&format!("{:width$}    on {}{unused}\n", "", describe(device)));
                }
            }
            Err(why) => text.push_str(&format!("{:width$}  cannot be used: {why}\n", found.name)),
        }
    }
    let lines: Vec<_> = text.lines().map(escape_for_terminal).collect();
    screen::result(&lines.join("\n"))
}

/// A size in the unit that leaves few digits.
fn bytes(count: u64) -> String {
    let gibibytes = count as f64 / (1u64 << 30) as f64;
    if gibibytes >= 1.0 { format!("{gibibytes:.1} GiB") } else { format!("{:.0} MiB", gibibytes * 1024.0) }
}

fn describe(device: &DeviceInfo) -> String {
    if device.kind == "processor" {
        return "the processor".into();
    }
    let mut text = format!("{}: {}, {}", device.name, device.kind, device.api);
    if !device.driver.is_empty() {
        text.push_str(&format!(", driver {}", device.driver));
    }
    if let Some(memory) = device.memory {
        text.push_str(&format!(", {} of memory", bytes(memory)));
    }
    if let Some(largest) = device.largest_tensor {
        text.push_str(&format!(", tensors of up to {}", bytes(largest)));
    }
    text
}

fn document(machine: &Machine, found: &[Found]) -> Value {
    let devices = |devices: &[DeviceInfo]| -> Vec<Value> {
        let device = |device: &DeviceInfo| {
            json!({
                "name": device.name, "kind": device.kind, "api": device.api, "driver": device.driver,
                "memory_bytes": device.memory, "largest_tensor_bytes": device.largest_tensor,
            })
        };
        devices.iter().map(device).collect()
    };
    let engine = |found: &Found| {
        json!({
            "name": found.name,
            "usable": found.engine.is_ok(),
            "built_in": found.built_in,
            "feature": found.feature,
            "version": found.engine.as_ref().ok().map(|engine| engine.version()),
            "computes_on": found.engine.as_ref().ok().map(|engine| engine.device()),
            "why_not": found.engine.as_ref().err(),
            "devices": devices(&found.devices),
            "library": found.library,
            "looked_in": found.looked_in,
        })
    };
    json!({
        "schema": "optix-engines/1",
        "machine": {
            "processor": machine.processor,
            "threads": machine.threads,
            "memory_bytes": machine.memory,
            "instruction_sets": machine.instruction_sets,
        },
        "engines": found.iter().map(engine).collect::<Vec<Value>>(),
    })
}
