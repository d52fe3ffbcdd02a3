//! What every crate that touches hostile bytes or files shares: checked ranges, budgets, output files
//! that appear whole or not at all, cancellation, and escaping of foreign text.

mod budget;
mod cancel;
mod escape;
mod output;
mod range;

pub use budget::{Budget, BudgetError, Limits};
pub use cancel::CancelToken;
pub use escape::escape_for_terminal;
pub use output::{OutFile, OutputError};
pub use range::{ByteRange, RangeError};

/// Whose fault an error is; it decides the exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorClass {
    /// Bad input or usage: exit code 2.
    Input,
    /// Disk, memory, device, missing engine: exit code 3.
    Environment,
    /// A fault of this program: exit code 4.
    Internal,
    /// The user stopped it: exit code 130.
    Interrupted,
}

impl ErrorClass {
    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorClass::Input => 2,
            ErrorClass::Environment => 3,
            ErrorClass::Internal => 4,
            ErrorClass::Interrupted => 130,
        }
    }

    /// The class of an I/O error on a file somebody named: a missing or unreadable one is bad input, the
    /// rest the environment's fault.
    pub fn of_io(error: &std::io::Error) -> ErrorClass {
        use std::io::ErrorKind::*;
        match error.kind() {
            NotFound | NotADirectory | IsADirectory | InvalidInput | InvalidFilename | AlreadyExists
            | InvalidData | UnexpectedEof => ErrorClass::Input,
            // Links in a circle (ELOOP), which the standard library gives no stable name.
            _ if error.raw_os_error() == Some(40) => ErrorClass::Input,
            _ => ErrorClass::Environment,
        }
    }
}
