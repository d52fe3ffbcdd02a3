//! Panics of kernels and libraries as values.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; a panic becomes its message.
///
/// What `body` borrows is dropped or overwritten by callers after a panic, so broken invariants cannot be
/// seen.
pub(crate) fn guarded<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(message)
}

fn message(payload: Box<dyn Any + Send>) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}

/// What a device says when it has no memory left, in few words; `None` for other faults. Libraries say it in
/// panics and in errors, each in its own way.
pub(crate) fn out_of_memory(what: &str) -> Option<String> {
    const SIGNS: [&str; 5] =
        ["out of memory", "out-of-memory", "out_of_memory", "can't allocate buffer", "buffertoobig"];
    // The rest is a backtrace.
    let line = what.lines().find(|line| {
        let line = line.to_lowercase();
        SIGNS.iter().any(|sign| line.contains(sign))
    })?;
    Some(line.trim().chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_is_told_from_other_faults() {
        let said =
            "An error happened during execution\nCaused by:\n  can't allocate buffer of size: 99\n 0: f";
        assert_eq!(out_of_memory(said).unwrap(), "can't allocate buffer of size: 99");
        assert!(out_of_memory("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")").is_some());
        assert!(out_of_memory("index out of bounds").is_none());
        assert_eq!(guarded(|| panic!("so {}", 1)).unwrap_err(), "so 1");
    }
}
