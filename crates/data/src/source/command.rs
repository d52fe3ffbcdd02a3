//! What a program prints: JSON lines, or npy arrays one after the other. It runs once; what it prints is
//! kept in a file without a name, so that every pass over the data sees the same and all of them are there
//! before work starts.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use optix_ir::Tensor;

use super::framer::Framer;
use super::jsonl::{Fields, Objects};
use super::{LABEL_NAMES, Label, Opened, Sample, Settings, Source, npy};
use crate::error::DataError;
use crate::input::{Lines, Stream};

/// Seconds a program may stay silent, when the user says nothing.
const SILENCE: f64 = 60.0;

/// What is kept of its error messages.
const ERRORS_KEPT: usize = 4096;

/// Most arrays a sample.
const MAX_ARRAYS: usize = 256;

/// Kills a program and what it started.
struct Running {
    child: Child,
    /// It has ended by itself and left nothing behind that we wait for.
    is_over: bool,
}

impl Running {
    fn kill(&mut self) {
        let id = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            // Its group: a shell's children would live on. Until it is waited for, the number stays its own.
            let _ = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.is_over = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.kill();
        }
    }
}

/// Runs the program and looks at what it prints.
pub(crate) fn open(settings: Settings) -> Result<Arc<dyn Opened>, DataError> {
    let spec = Arc::clone(&settings.spec);
    let (path, options) = (spec.path.as_path(), &spec.options);
    let fail = |what: String| DataError::invalid(path, "", what);
    if options.arrays.len() > MAX_ARRAYS {
        return Err(fail(format!(
            "`arrays` has more than {MAX_ARRAYS} names, more than any model has inputs"
        )));
    }
    let arrays = options.arrays.len().max(1) as u64;
    // Enough for the samples that are used, where that can be told ahead.
    let wanted = match (spec.take, spec.sample, spec.split) {
        (Some(take), None, None) => Some(spec.skip.saturating_add(take)),
        _ => None,
    };
    let silence = options.timeout.unwrap_or(SILENCE);
    if !(silence > 0.0 && silence <= 86_400.0) {
        return Err(fail(format!("`timeout = {silence}`: it is seconds, more than 0 and at most 86400")));
    }
    let mut spool = tempfile::tempfile().map_err(|error| no_room(&error))?;
    let mut framer = Framer::Start(Vec::new());
    let mut running = start(path, &options.command, &spec.base)?;
    let errors = running.child.stderr.take().map(keep_end);
    let printed = running.child.stdout.take().map(chunks);
    let mut total = 0u64;
    let mut is_enough = false;
    if let Some(printed) = printed {
        loop {
            match printed.recv_timeout(Duration::from_secs_f64(silence)) {
                Ok(Ok(bytes)) => {
                    total = total.saturating_add(bytes.len() as u64);
                    if total > settings.limits.command_bytes {
                        let (name, limit) = ("command-bytes", settings.limits.command_bytes);
                        return Err(DataError::limit(path, "what it prints", name, limit));
                    }
                    framer.feed(&bytes).map_err(fail)?;
                    spool.write_all(&bytes).map_err(|error| no_room(&error))?;
                    is_enough = wanted.is_some_and(|wanted| framer.samples(arrays) >= wanted);
                    if is_enough {
                        break;
                    }
                }
                Ok(Err(error)) => return Err(DataError::read(path, error)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(fail(format!(
                        "it printed nothing for {silence} seconds and was ended; `timeout` in [source] allows more"
                    )));
                }
            }
        }
    }
    if is_enough {
        running.kill();
    } else {
        let status = end(&mut running, silence).map_err(fail)?;
        if !status.success() {
            let said = errors
                .and_then(|errors| errors.recv_timeout(Duration::from_secs(1)).ok())
                .unwrap_or_default();
            return Err(fail(format!("{}{}", ending(status), said_at_last(&said))));
        }
    }
    drop(running);
    finish(settings, framer, Arc::new(spool), total, wanted)
}

/// What the output turns out to be.
fn finish(
    settings: Settings,
    mut framer: Framer,
    spool: Arc<File>,
    total: u64,
    wanted: Option<u64>,
) -> Result<Arc<dyn Opened>, DataError> {
    let path = settings.spec.path.clone();
    let fail = |what: &str| DataError::invalid(&path, "", what);
    let names = settings.spec.options.arrays.clone();
    let arrays = names.len().max(1);
    if let Framer::Lines { is_blank: false, .. } = &framer {
        // The last line may lack its end.
        framer.feed(b"\n").map_err(|what| fail(&what))?;
    }
    let mut count = framer.samples(arrays as u64);
    if let Some(wanted) = wanted {
        count = count.min(wanted);
    }
    match framer {
        Framer::Start(_) => {
            Err(fail("it printed nothing: JSON lines or npy arrays are read from its output"))
        }
        Framer::Lines { .. } => {
            let output = Output { path: path.clone(), spool, total, settings: settings.clone() };
            let mut lines = output.lines();
            let mut fields = None::<Fields>;
            let mut seen = 0u64;
            while seen < count {
                let Some((number, line)) = lines.next()? else { break };
                if line.trim_ascii().is_empty() {
                    continue;
                }
                seen = seen.saturating_add(1);
                let fields = match &mut fields {
                    Some(fields) => fields,
                    None => fields.insert(Fields::new(&path, &line, &settings)?),
                };
                fields
                    .see(&line)
                    .map_err(|what| DataError::invalid(&path, &format!("line {number}"), what))?;
            }
            let Some(mut fields) = fields else { return Err(fail("it printed no samples")) };
            fields.finish();
            Ok(Arc::new(Printed { output, fields: Arc::new(fields), count }))
        }
        Framer::Arrays { left, head, frames, .. } => {
            let is_open = left > 0 || !head.is_empty();
            if wanted.is_none_or(|wanted| count < wanted) && is_open {
                return Err(fail("its output ends in the middle of an array"));
            }
            let rest = frames.len().checked_rem(arrays).unwrap_or(0);
            if wanted.is_none_or(|wanted| count < wanted) && rest != 0 {
                let what = format!(
                    "it printed {} arrays, no whole number of samples of {arrays} ({})",
                    frames.len(),
                    names.join(", ")
                );
                return Err(fail(&what));
            }
            let label = names.iter().position(|name| match settings.spec.labels.as_deref() {
                Some(wanted) => wanted == name,
                None => arrays > 1 && LABEL_NAMES.contains(&name.as_str()),
            });
            let names = if names.is_empty() { vec![String::new()] } else { names };
            let output = Output { path, spool, total, settings };
            Ok(Arc::new(PrintedArrays { output, names, label, frames: frames.into(), count }))
        }
    }
}

fn no_room(error: &std::io::Error) -> DataError {
    let directory = std::env::temp_dir();
    DataError::read(
        &directory,
        std::io::Error::new(error.kind(), format!("the command's output is kept there: {error}")),
    )
}

fn start(path: &Path, command: &[String], base: &Path) -> Result<Running, DataError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(DataError::invalid(
            path,
            "",
            "`command` is empty: it is a list, the program and its arguments",
        ));
    };
    // A program given by a path lies relative to the data.toml, where it also runs.
    let program = if program.contains('/') { base.join(program) } else { PathBuf::from(program) };
    let program = if program.is_relative() && program.components().count() > 1 {
        std::env::current_dir().map_err(|error| DataError::read(&program, error))?.join(program)
    } else {
        program
    };
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if !base.as_os_str().is_empty() {
        command.current_dir(base);
    }
    match command.spawn() {
        Ok(child) => Ok(Running { child, is_over: false }),
        Err(error) => {
            let what =
                format!("it cannot be started ({error}): check that the program is there and executable");
            Err(DataError::invalid(path, "", what))
        }
    }
}

/// Reads on a thread of its own, so that waiting can end.
fn chunks(mut stream: impl Read + Send + 'static) -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = sync_channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(buffer.get(..length).unwrap_or_default().to_vec()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_last = read.is_err();
            if sender.send(read).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// Reads everything and keeps the end.
fn keep_end(mut stream: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let (mut kept, mut buffer) = (Vec::new(), vec![0; 4096]);
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            kept.extend_from_slice(buffer.get(..length).unwrap_or_default());
            let extra = kept.len().saturating_sub(ERRORS_KEPT);
            kept.drain(..extra);
        }
        let _ = sender.send(kept);
    });
    receiver
}

/// Waits for a program that has closed its output.
fn end(running: &mut Running, silence: f64) -> Result<ExitStatus, String> {
    let started = std::time::Instant::now();
    loop {
        match running.child.try_wait() {
            Ok(Some(status)) => {
                running.is_over = true;
                return Ok(status);
            }
            Ok(None) if started.elapsed().as_secs_f64() > silence => {
                return Err(format!(
                    "it closed its output and did not end for {silence} seconds; it was ended"
                ));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(format!("waiting for it failed ({error})")),
        }
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it failed".to_owned(),
    }
}

/// The last lines of its error messages.
fn said_at_last(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last: Vec<String> = lines
        .iter()
        .skip(lines.len().saturating_sub(5))
        .map(|line| format!("\n  {}", line.chars().take(200).collect::<String>()))
        .collect();
    if last.is_empty() {
        " and said nothing on stderr".to_owned()
    } else {
        format!("; it said at last:{}", last.concat())
    }
}

/// The output, kept.
#[derive(Clone, Debug)]
struct Output {
    path: PathBuf,
    spool: Arc<File>,
    total: u64,
    settings: Settings,
}

/// A part of it. Every reader has a place of its own.
struct Part {
    spool: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = self.spool.read_at(buffer.get_mut(..length).unwrap_or_default(), self.at)?;
        self.at = self.at.saturating_add(read as u64);
        Ok(read)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        if let SeekFrom::Start(at) = to {
            self.at = at;
        }
        Ok(self.at)
    }
}

impl Output {
    fn stream(&self, place: &str, (at, length): (u64, u64)) -> Stream {
        let part = Part { spool: Arc::clone(&self.spool), at, end: at.saturating_add(length) };
        Stream::new(&self.path, place, std::io::BufReader::new(part), None, &self.settings.limits)
    }

    fn lines(&self) -> Lines {
        Lines::new(self.stream("", (0, self.total)), &self.settings.limits)
    }
}

#[derive(Debug)]
struct Printed {
    output: Output,
    fields: Arc<Fields>,
    count: u64,
}

impl Opened for Printed {
    fn stream(&self) -> Result<Box<dyn Source>, DataError> {
        Ok(Box::new(Objects {
            lines: self.output.lines(),
            fields: Arc::clone(&self.fields),
            count: self.count,
        }))
    }

    fn classes(&self) -> &[String] {
        self.fields.classes()
    }
}

#[derive(Debug)]
struct PrintedArrays {
    output: Output,
    names: Vec<String>,
    label: Option<usize>,
    frames: Arc<[(u64, u64)]>,
    count: u64,
}

impl Opened for PrintedArrays {
    fn stream(&self) -> Result<Box<dyn Source>, DataError> {
        let mut names = self.names.clone();
        if let Some(label) = self.label.filter(|&label| label < names.len()) {
            names.remove(label);
        }
        if names.is_empty() {
            return Err(DataError::invalid(&self.output.path, "", "it has no array beside the labels"));
        }
        Ok(Box::new(Frames {
            output: self.output.clone(),
            names,
            arrays: self.names.len(),
            label: self.label,
            frames: Arc::clone(&self.frames),
            count: self.count,
            at: 0,
        }))
    }
}

struct Frames {
    output: Output,
    names: Vec<String>,
    /// Arrays of a sample, the label's included.
    arrays: usize,
    label: Option<usize>,
    frames: Arc<[(u64, u64)]>,
    count: u64,
    at: usize,
}

impl Frames {
    fn read(&self, number: usize) -> Result<Tensor, DataError> {
        let Some(&(at, length)) = self.frames.get(number) else {
            return Err(DataError::invalid(&self.output.path, "", "there is no such array"));
        };
        let stream = self.output.stream(&number.to_string(), (at, length));
        npy::open(stream, Some(length), npy::Axis::None, &self.output.settings.limits)?.next()
    }
}

impl Source for Frames {
    fn arrays(&self) -> &[String] {
        &self.names
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let start = self.at.saturating_mul(self.arrays);
        self.at = self.at.saturating_add(1);
        let numbers = start..start.saturating_add(self.arrays);
        let mut tensors = numbers.map(|number| self.read(number)).collect::<Result<Vec<_>, _>>()?;
        let label =
            self.label.filter(|&label| label < tensors.len()).map(|label| Label::of(tensors.remove(label)));
        Ok(Sample { tensors, label, ..Sample::default() })
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        self.at = self.at.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(())
    }

    fn is_resumable(&self) -> bool {
        true
    }
}
