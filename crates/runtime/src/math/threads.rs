//! How many threads the loops here may use.
//!
//! A session runs each kernel either inside its own thread pool or, when there is little to do, on the
//! calling thread alone. Loops ask [`count`] before they split, so that nothing ever starts the global
//! pool by accident.

use std::cell::Cell;

thread_local! {
    static SERIAL: Cell<bool> = const { Cell::new(false) };
}

/// Multiply-adds below which splitting among threads does not pay: another thread takes some tens of
/// microseconds to wake up, more in a virtual machine, in which one thread does a million of them.
pub(crate) const WORTH: usize = 1 << 21;

/// Threads to split work among: 1 inside [`serially`], else those of the pool we are in.
pub(crate) fn count() -> usize {
    if SERIAL.get() { 1 } else { rayon::current_num_threads() }
}

/// Runs `body` on this thread alone.
pub(crate) fn serially<R>(body: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            SERIAL.set(self.0);
        }
    }
    let _restore = Restore(SERIAL.replace(true));
    body()
}
