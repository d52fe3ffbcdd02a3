//! A metric that a command computes: one JSON document a sample goes in, a number comes out.

use std::io::{BufWriter, Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::thread::JoinHandle;

use optix_base::escape_for_terminal;
use optix_ir::Tensor;
use serde_json::{Value, json};

use super::{Basis, Change, Measured, Meter, Metric, Seen};
use crate::batch::{LabelValues, Labels};
use crate::error::DataError;

/// Most that a command may print: it is to print a number.
const MOST_OUTPUT: u64 = 1 << 20;

/// A running command, and a second one for the other model.
pub(super) struct Command {
    line: String,
    found: Judge,
    reference: Option<Judge>,
    samples: u64,
}

/// A process that does not outlive its metric: an evaluation that ends early ends it too.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// One process. It is ended before its streams are closed: what is still buffered then goes nowhere.
struct Judge {
    child: Running,
    input: BufWriter<ChildStdin>,
    output: JoinHandle<std::io::Result<Vec<u8>>>,
}

fn fail(line: &str, what: impl std::fmt::Display) -> DataError {
    DataError::Metric(format!("metric command `{}`: {what}", escape_for_terminal(line)))
}

impl Judge {
    fn start(line: &str) -> Result<Judge, DataError> {
        let started = std::process::Command::new("sh")
            .args(["-c", line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = started.map_err(|error| fail(line, format!("it cannot be started: {error}")))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(fail(line, "it has no streams"));
        };
        // Read while it is fed: a command that talks meanwhile would otherwise wait for a reader for ever.
        let output = std::thread::spawn(move || {
            let (mut bytes, mut output) = (Vec::new(), output);
            output.by_ref().take(MOST_OUTPUT).read_to_end(&mut bytes)?;
            std::io::copy(&mut output, &mut std::io::sink())?;
            Ok(bytes)
        });
        Ok(Judge { child: Running(child), input: BufWriter::with_capacity(64 << 10, input), output })
    }

    fn write(&mut self, line: &str, document: &Value) -> Result<(), DataError> {
        let written = serde_json::to_writer(&mut self.input, document).map_err(std::io::Error::from);
        match written.and_then(|()| self.input.write_all(b"\n")) {
            Ok(()) => Ok(()),
            // It has seen enough; whether that was meant shows in how it ends.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(fail(line, error)),
        }
    }

    fn finish(self, line: &str) -> Result<f64, DataError> {
        let Judge { mut child, mut input, output } = self;
        match input.flush() {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(fail(line, error)),
            _ => drop(input),
        }
        let status = child.0.wait().map_err(|error| fail(line, error))?;
        let output = output.join().unwrap_or_else(|_| Ok(Vec::new())).map_err(|error| fail(line, error))?;
        if !status.success() {
            return Err(fail(line, format!("it ended with {status}")));
        }
        let text = String::from_utf8_lossy(&output);
        let last = text.lines().rev().find(|text| !text.trim().is_empty()).unwrap_or_default();
        last.trim().parse::<f64>().ok().filter(|value| value.is_finite()).ok_or_else(|| {
            let shown: String = last.chars().take(80).collect();
            fail(line, format!("its last line must be a number, not `{}`", escape_for_terminal(&shown)))
        })
    }
}

/// The elements of a value as JSON; what JSON has no number for is null.
fn elements(tensor: &Tensor) -> Result<Vec<Value>, DataError> {
    if let Ok(strings) = tensor.strings() {
        return Ok(strings.iter().map(|text| String::from_utf8_lossy(text).into_owned().into()).collect());
    }
    let numbers = tensor.to_f64s().map_err(|error| DataError::Metric(error.to_string()))?;
    let is_float = tensor.dtype().is_float();
    Ok(numbers.into_iter().map(|x| if is_float { json!(x) } else { json!(x as i64) }).collect())
}

fn label(labels: Option<&Labels>, index: usize) -> Result<Value, DataError> {
    Ok(match labels.map(|labels| &labels.values) {
        None => Value::Null,
        Some(LabelValues::Classes(classes)) => classes.get(index).map_or(Value::Null, |class| json!(class)),
        Some(LabelValues::Tensors(tensors)) => match tensors.get(index) {
            Some(tensor) if tensor.rank() == 0 => elements(tensor)?.into_iter().next().unwrap_or_default(),
            Some(tensor) => elements(tensor)?.into(),
            None => Value::Null,
        },
        Some(LabelValues::Outputs(outputs)) => {
            let mut named = serde_json::Map::new();
            for (name, tensor) in outputs.get(index).into_iter().flatten() {
                named.insert(name.clone(), elements(tensor)?.into());
            }
            named.into()
        }
    })
}

impl Command {
    pub(super) fn start(line: &str) -> Result<Command, DataError> {
        Ok(Command { line: line.to_owned(), found: Judge::start(line)?, reference: None, samples: 0 })
    }
}

impl Meter for Command {
    fn add(&mut self, seen: &Seen<'_>) -> Result<(), DataError> {
        if seen.reference.is_some() && self.reference.is_none() {
            self.reference = Some(Judge::start(&self.line)?);
        }
        let documents = |tensor: &Tensor| -> Result<Vec<Value>, DataError> {
            let all = elements(tensor)?;
            let size = all.len().checked_div(seen.batch.count).unwrap_or(0).max(1);
            let shape = tensor.shape().get(1..).unwrap_or_default();
            let rows = all.chunks(size).enumerate();
            rows.map(|(index, row)| {
                Ok(json!({
                    "sample": self.samples.saturating_add(index as u64),
                    "label": label(seen.batch.labels.as_ref(), index)?,
                    "name": seen.output,
                    "shape": shape,
                    "output": row,
                }))
            })
            .collect()
        };
        let found = documents(seen.found)?;
        let reference = seen.reference.map(documents).transpose()?;
        for document in &found {
            self.found.write(&self.line, document)?;
        }
        if let Some(judge) = &mut self.reference {
            for document in reference.iter().flatten() {
                judge.write(&self.line, document)?;
            }
        }
        self.samples = self.samples.saturating_add(seen.batch.count as u64);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Measured, DataError> {
        let value = self.found.finish(&self.line)?;
        let reference = self.reference.map(|judge| judge.finish(&self.line)).transpose()?;
        Ok(Measured {
            metric: Metric::Command(self.line),
            samples: self.samples,
            value,
            interval: None,
            reference,
            change: reference.map(|reference| Change {
                difference: value - reference,
                interval: None,
                counts: None,
            }),
            basis: Basis::Plain,
        })
    }
}
