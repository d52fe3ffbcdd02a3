//! How a row of the tables is run and what every row has to keep.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A run that takes longer has hung.
const LONGEST: Duration = Duration::from_secs(20);

/// Address space of a run in KiB: an allocation of a size that a file declared ends it.
const ADDRESS_SPACE: u64 = 3 << 20;

/// What stands at `-o` before a run that must not touch it.
const OLD: &[u8] = b"the result of an earlier run\n";

/// Where that is.
pub const OUT: &str = "out/old.onnx";

/// Where a row's model is.
pub const MODEL: &str = "in/model.onnx";

/// How a row ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// An error with this exit code; no file is created, changed or removed.
    Refused(i32),
    /// With this exit code, and the files that come of it.
    Done(i32),
}

/// Where stdout leads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Out {
    /// To the test.
    Kept,
    /// To a device that is always full.
    Full,
    /// To a pipe nobody reads.
    Closed,
}

/// Gets the row's directory.
type Preparation = Box<dyn Fn(&Path) + Send + Sync>;

/// One row: files, command lines, and how all of them must end.
pub struct Row {
    name: String,
    files: Vec<(String, Vec<u8>)>,
    prepare: Vec<Preparation>,
    runs: Vec<Vec<String>>,
    end: End,
    says: Vec<String>,
    limits: String,
    stdout: Out,
    /// Whether all runs must say the very same.
    is_same: bool,
    /// Kept free of temporary files, beside the row's own directory.
    watched: Option<PathBuf>,
}

impl Row {
    /// A row without files or command lines yet, refused with exit code 2.
    pub fn new(name: &str) -> Row {
        Row {
            name: name.to_owned(),
            files: Vec::new(),
            prepare: Vec::new(),
            runs: Vec::new(),
            end: End::Refused(2),
            says: Vec::new(),
            limits: format!("ulimit -v {ADDRESS_SPACE}"),
            stdout: Out::Kept,
            is_same: false,
            watched: None,
        }
    }

    /// A model that `inspect` and `quantize` refuse with the same words, which name the file.
    pub fn model(name: &str, model: impl Into<Vec<u8>>, says: &[&str]) -> Row {
        let row = Row::new(name).file(MODEL, model).run(&["inspect", MODEL]);
        let mut row = row.run(&["quantize", MODEL, "-o", OUT]).says(&[MODEL]).says(says);
        if !says.iter().any(|text| text.contains("--limits")) {
            row = row.says(&["\n  help: "]);
        }
        row.is_same = true;
        row
    }

    /// A model that `inspect` and `quantize` take.
    pub fn legal(name: &str, model: impl Into<Vec<u8>>, says: &[&str]) -> Row {
        let row = Row::new(name).file(MODEL, model).run(&["inspect", MODEL]);
        row.run(&["quantize", MODEL, "-v", "-o", OUT]).done(0).says(says)
    }

    /// Another name.
    pub fn named(mut self, name: &str) -> Row {
        self.name = name.to_owned();
        self
    }

    /// Adds a file.
    pub fn file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Row {
        self.files.push((path.to_owned(), content.into()));
        self
    }

    /// Adds what takes more than writing a file; gets the row's directory.
    pub fn prepare(mut self, prepare: impl Fn(&Path) + Send + Sync + 'static) -> Row {
        self.prepare.push(Box::new(prepare));
        self
    }

    /// Adds a command line, run in the row's directory.
    pub fn run(mut self, arguments: &[&str]) -> Row {
        self.runs.push(arguments.iter().map(|&argument| argument.to_owned()).collect());
        self
    }

    /// Refused with this exit code.
    pub fn refused(mut self, code: i32) -> Row {
        self.end = End::Refused(code);
        self
    }

    /// Whether it is to be refused.
    pub fn is_refused(&self) -> bool {
        matches!(self.end, End::Refused(_))
    }

    /// Without all command lines but the last.
    pub fn only_last(mut self) -> Row {
        self.runs.drain(..self.runs.len().saturating_sub(1));
        self
    }

    /// Carried out, with this exit code.
    pub fn done(mut self, code: i32) -> Row {
        self.end = End::Done(code);
        self
    }

    /// Adds what every run says: on stderr when it is refused, else anywhere.
    pub fn says(mut self, says: &[&str]) -> Row {
        self.says.extend(says.iter().map(|&text| text.to_owned()));
        self
    }

    /// Shell commands that set other limits than the usual ones.
    pub fn limits(mut self, limits: &str) -> Row {
        self.limits = limits.to_owned();
        self
    }

    /// Leads stdout elsewhere.
    pub fn stdout(mut self, stdout: Out) -> Row {
        self.stdout = stdout;
        self
    }

    /// Also watches this directory outside of the row's own.
    pub fn watch(mut self, directory: &Path) -> Row {
        self.watched = Some(directory.to_owned());
        self
    }

    /// Sets the row up and runs it; what is wrong, empty when nothing is.
    fn check(&self) -> String {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        for part in ["in", "out"] {
            std::fs::create_dir(root.join(part)).expect("a directory");
        }
        write(root, OUT, OLD);
        for (path, content) in &self.files {
            write(root, path, content);
        }
        self.prepare.iter().for_each(|prepare| prepare(root));
        let mut wrong = String::new();
        let mut first: Option<String> = None;
        for arguments in &self.runs {
            let before = self.snapshot(root);
            let said = run(root, arguments, &self.limits, self.stdout);
            let mut complaints = self.judge(&said);
            if matches!(self.end, End::Refused(_)) {
                complaints.extend(changes(&before, &self.snapshot(root)));
            }
            if self.is_same && first.get_or_insert_with(|| said.stderr.clone()) != &said.stderr {
                complaints.push("another verdict than that of the first command".to_owned());
            }
            if !complaints.is_empty() {
                let head: String = said.stderr.chars().take(1500).collect();
                let out: String = said.stdout.chars().take(600).collect();
                let complaints = complaints.join("; ");
                writeln!(
                    wrong,
                    "## {}\n$ optix {}\n{complaints}\n{head}\n-- stdout: {out}",
                    self.name,
                    arguments.join(" ")
                )
                .expect("writing to a string");
            }
        }
        wrong
    }

    fn snapshot(&self, root: &Path) -> BTreeMap<PathBuf, State> {
        let mut found = BTreeMap::new();
        for directory in [Some(root), self.watched.as_deref()].into_iter().flatten() {
            snapshot(directory, &mut found);
        }
        found
    }

    fn judge(&self, said: &Said) -> Vec<String> {
        let mut wrong = Vec::new();
        let (End::Refused(code) | End::Done(code)) = self.end;
        match said.ending {
            Ending::Code(found) if found == code => {}
            Ending::Code(found) => wrong.push(format!("exit code {found}, not {code}")),
            Ending::Signal(signal) => wrong.push(format!("ended by signal {signal}")),
            Ending::Hung => wrong.push(format!("not done after {LONGEST:?}")),
        }
        for bad in ["panicked", "internal error", "RUST_BACKTRACE", "memory allocation of"] {
            if said.stderr.contains(bad) || said.stdout.contains(bad) {
                wrong.push(format!("it says `{bad}`"));
            }
        }
        let errors = said.stderr.lines().filter(|line| line.starts_with("error")).count();
        let both = format!("{}{}", said.stdout, said.stderr);
        let heard = match self.end {
            End::Refused(_) => {
                if !said.stderr.starts_with("error: ") {
                    wrong.push("stderr does not begin with `error: `".to_owned());
                }
                if errors != 1 {
                    wrong.push(format!("{errors} error messages"));
                }
                if said.stderr.contains('\u{1b}') || said.stderr.contains('\0') {
                    wrong.push("control characters reach the terminal".to_owned());
                }
                &said.stderr
            }
            End::Done(_) => &both,
        };
        wrong.extend(
            self.says
                .iter()
                .filter(|text| !heard.contains(text.as_str()))
                .map(|text| format!("it does not say `{text}`")),
        );
        wrong
    }
}

/// Runs all rows, on every core, and fails with all that is wrong.
pub fn run_all(rows: Vec<Row>) {
    let mut names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two rows have one name");
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(rows.len()) {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = row.check();
                    if !found.is_empty() {
                        wrong.lock().unwrap_or_else(PoisonError::into_inner).push(found);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(wrong.is_empty(), "{} of {} rows are wrong:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// A file of `fixtures/`.
pub fn fixture(path: &str) -> Vec<u8> {
    let path = fixture_path(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Its path.
pub fn fixture_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn write(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("a file in a directory")).expect("a directory");
    std::fs::write(path, content).expect("a file");
}

/// What tells one state of a file from another.
#[derive(PartialEq, Eq)]
enum State {
    File(u64, i64, i64, Vec<u8>),
    Other(u32),
}

/// Contents longer than this are told apart by size and time alone.
const COMPARED: u64 = 1 << 20;

fn snapshot(directory: &Path, found: &mut BTreeMap<PathBuf, State>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        let state = if metadata.is_file() {
            let content = if metadata.len() > COMPARED { Vec::new() } else { std::fs::read(&path).unwrap() };
            State::File(metadata.len(), metadata.mtime(), metadata.mtime_nsec(), content)
        } else {
            State::Other(metadata.mode())
        };
        if metadata.is_dir() {
            snapshot(&path, found);
        }
        found.insert(path, state);
    }
}

fn changes(before: &BTreeMap<PathBuf, State>, after: &BTreeMap<PathBuf, State>) -> Vec<String> {
    let created = after.keys().filter(|path| !before.contains_key(*path));
    let mut changes: Vec<String> = created.map(|path| format!("created {}", path.display())).collect();
    for (path, state) in before {
        match after.get(path) {
            None => changes.push(format!("removed {}", path.display())),
            Some(now) if now != state => changes.push(format!("changed {}", path.display())),
            Some(_) => {}
        }
    }
    changes
}

enum Ending {
    Code(i32),
    Signal(i32),
    Hung,
}

struct Said {
    ending: Ending,
    stdout: String,
    stderr: String,
}

fn run(root: &Path, arguments: &[String], limits: &str, stdout: Out) -> Said {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{limits}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_optix")])
        .args(arguments)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(match stdout {
            Out::Full => Stdio::from(std::fs::File::create("/dev/full").expect("/dev/full")),
            Out::Kept | Out::Closed => Stdio::piped(),
        })
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let read = |stream: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stream.map(|mut stream| stream.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = child.stdout.take().filter(|_| stdout == Out::Kept);
    let out = read(out.map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let err = read(child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>));
    let started = Instant::now();
    let ending = loop {
        if let Some(status) = child.try_wait().expect("a child to wait for") {
            use std::os::unix::process::ExitStatusExt;
            break match (status.code(), status.signal()) {
                (Some(code), _) => Ending::Code(code),
                (None, signal) => Ending::Signal(signal.unwrap_or_default()),
            };
        }
        if started.elapsed() > LONGEST {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
            break Ending::Hung;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Said { ending, stdout: out.join().expect("a reader"), stderr: err.join().expect("a reader") }
}
