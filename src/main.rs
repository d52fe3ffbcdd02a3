//! The command line of optix: parse, dispatch, exit code.

#![allow(unreachable_pub, reason = "in a program nothing is reachable from outside")]

mod command;
mod exit;
mod report;
mod screen;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use optix::cli;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to complain about help.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked { 0 } else { 2 });
        }
    };
    screen::catch_panics();
    // A file that grows beyond `ulimit -f` is an error like any other, not the end of the process: with a
    // handler in place, whatever it does, the write fails instead.
    let _ = signal_hook::flag::register(signal_hook::consts::signal::SIGXFSZ, std::sync::Arc::default());
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| command::dispatch(&cli)));
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            if screen::is_closed_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            screen::error(&error);
            let code = exit::code(&error);
            if code == optix_base::ErrorClass::Internal.exit_code() {
                screen::keep_case(&error, std::path::Path::new(""));
            }
            ExitCode::from(code)
        }
        Err(_) => {
            screen::internal_error();
            ExitCode::from(optix_base::ErrorClass::Internal.exit_code())
        }
    }
}
