//! Timed runs in Chrome's trace event format, for chrome://tracing and ui.perfetto.dev
//! ("Trace Event Format", complete events: phase X, times in microseconds).

use optix_runtime::Times;
use serde_json::{Value, json};

/// Runs that are written: enough to see what changes from one to the next.
const RUNS: usize = 5;

/// The last timed runs of each model, one process a model.
pub fn trace(models: &[(&str, &Times)]) -> Value {
    let mut events = Vec::new();
    for (process, (name, times)) in models.iter().enumerate() {
        events.push(json!({
            "ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": { "name": name },
        }));
        let mut start = 0.0;
        let count = times.runs.len();
        for run in count.saturating_sub(RUNS)..count {
            let length = times.runs[run];
            events.push(json!({
                "ph": "X", "name": format!("run {}", run + 1), "cat": "run", "pid": process, "tid": 0,
                "ts": start * 1e6, "dur": length * 1e6,
            }));
            for step in &times.steps {
                let (Some(at), Some(seconds)) = (step.at.get(run), step.seconds.get(run)) else { continue };
                let facts = &step.facts;
                let nodes: Vec<&str> = facts.nodes.iter().map(|node| node.name.as_str()).collect();
                events.push(json!({
                    "ph": "X", "name": nodes.join(" + "), "cat": facts.op_type, "pid": process, "tid": 0,
                    "ts": (start + at) * 1e6, "dur": seconds * 1e6,
                    "args": {
                        "op": facts.op_type, "ran": facts.ran.name(), "inputs": facts.inputs,
                        "outputs": facts.outputs, "flops": facts.flops,
                        "bytes": facts.bytes_read + facts.bytes_written,
                    },
                }));
            }
            start += length * 1.05;
        }
    }
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}
