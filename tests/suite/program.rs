//! The program as its users start it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;
use tempfile::TempDir;

/// The repository, or where `OPTIX_SUITE_ROOT` says its fixtures are.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        std::env::var_os("OPTIX_SUITE_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    });
    &ROOT
}

/// A working directory of its own, with the fixtures in it.
pub struct Place(TempDir);

/// What a run ended with.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Place {
        let directory = TempDir::new().expect("a temporary directory");
        std::os::unix::fs::symlink(root().join("fixtures"), directory.path().join("fixtures"))
            .expect("a link to the fixtures");
        Place(directory)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn exists(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).expect("UTF-8")
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), content).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Names of what lies in the working directory, the fixtures aside.
    pub fn list(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("the directory is there");
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name != "fixtures");
        names.sort();
        names
    }

    /// The program with a command line split at blanks.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_optix"));
        command.args(line.split_whitespace()).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, line: &str) -> Run {
        finish(&mut self.command(line))
    }

    /// Runs what must succeed.
    pub fn ok(&self, line: &str) -> Run {
        self.ends(line, 0)
    }

    /// Runs what must end with that exit code; an error is one that says something.
    pub fn ends(&self, line: &str, code: i32) -> Run {
        let run = self.run(line);
        assert_eq!(run.code, code, "optix {line}\n{}\n{}", run.stdout, run.stderr);
        assert_eq!(code != 0, run.stderr.contains("error: "), "optix {line}\n{}", run.stderr);
        run
    }

    /// The one JSON document that a command prints.
    pub fn json(&self, line: &str) -> Value {
        self.ok(line).json()
    }
}

impl Run {
    /// All of stdout as one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}:\n{}", self.stdout))
    }
}

pub fn finish(command: &mut Command) -> Run {
    let output = command.output().expect("the program starts");
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}
