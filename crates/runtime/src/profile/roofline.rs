//! What this machine can do at best, measured: the two lines under which every kernel lies
//! (S. Williams, A. Waterman, D. Patterson, "Roofline", CACM 52(4), 2009).

use std::time::Instant;

use rayon::prelude::*;

use crate::engines::{own_threads, thread_count};
use crate::error::RuntimeError;
use crate::math::matmul::{Matrix, pack_columns, packed_size, product};
use crate::math::threads;

/// Bytes of the block that is copied: more than the caches hold.
const COPIED: usize = 48 << 20;

/// Parts in which it is copied.
const PARTS: usize = 8;

/// Rows, depth and columns of the product: a millisecond of work, which fits between two interruptions.
const SIDE: usize = 384;

/// How often each is measured at least; the best counts.
const TRIES: usize = 7;

/// Seconds for which each is measured at least: on a busy machine one try in many is undisturbed.
const LEAST: f64 = 0.2;

/// What the machine can do with a number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    /// Threads it was measured with.
    pub threads: usize,
    /// Bytes read and written a second when a large block is copied.
    pub bytes_per_second: f64,
    /// Operations a second of the best matrix product of this program on 32-bit floats, a multiply-add
    /// counted as two.
    pub flops_per_second: f64,
}

impl Roofline {
    /// Operations a second that a kernel can reach at best when it does `intensity` operations for every
    /// byte it moves.
    pub fn bound(&self, intensity: f64) -> f64 {
        (intensity * self.bytes_per_second).min(self.flops_per_second)
    }

    /// The intensity from which on arithmetic is the limit, not memory.
    pub fn ridge(&self) -> f64 {
        self.flops_per_second / self.bytes_per_second
    }
}

/// Measures the machine with `threads` threads (0: as many as it has). Takes some tenths of a second and
/// 96 MiB.
///
/// # Errors
/// When threads cannot be started.
pub fn roofline(threads: usize) -> Result<Roofline, RuntimeError> {
    let threads = thread_count(threads);
    let pool = own_threads(threads)?;
    let bytes_per_second = pool.install(copy);
    let flops_per_second = match threads {
        1 => threads::serially(multiply),
        _ => pool.install(multiply),
    };
    Ok(Roofline { threads, bytes_per_second, flops_per_second })
}

fn best(work: f64, mut once: impl FnMut()) -> f64 {
    // What is touched first is slower: pages are made then.
    (0..PARTS).for_each(|_| once());
    let start = Instant::now();
    let (mut least, mut tries) = (f64::INFINITY, 0);
    while tries < TRIES || start.elapsed().as_secs_f64() < LEAST {
        let start = Instant::now();
        once();
        least = least.min(start.elapsed().as_secs_f64());
        tries += 1;
    }
    work / least.max(1e-9)
}

fn copy() -> f64 {
    let source = vec![1u8; COPIED];
    let mut target = vec![0u8; COPIED];
    // A part at a time, so that a try is short; by its next turn it has left the caches.
    let part = COPIED / PARTS;
    let piece = part.div_ceil(rayon::current_num_threads());
    let mut turn = 0;
    best(2.0 * part as f64, || {
        let range = turn * part..(turn + 1) * part;
        turn = (turn + 1) % PARTS;
        let target = &mut target[range.clone()];
        target.par_chunks_mut(piece).zip(source[range].par_chunks(piece)).for_each(|(to, from)| {
            to.copy_from_slice(from);
        });
        std::hint::black_box(target);
    })
}

fn multiply() -> f64 {
    let rows = SIDE * threads::count().clamp(1, 4);
    let numbers: Vec<f32> = (0..rows * SIDE).map(|i| (i % 17) as f32 - 8.0).collect();
    let matrix = Matrix { data: &numbers, strides: [SIDE, 1] };
    let mut packed = vec![0.0f32; packed_size(SIDE, SIDE)];
    pack_columns(matrix, SIDE, SIDE, &mut packed);
    let mut output = vec![0.0f32; rows * SIDE];
    best(2.0 * (rows * SIDE * SIDE) as f64, || {
        product([rows, SIDE, SIDE], matrix, &packed, &mut output, true, None);
        std::hint::black_box(&mut output);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_follow_the_two_lines() {
        let roof = Roofline { threads: 1, bytes_per_second: 10.0, flops_per_second: 100.0 };
        assert_eq!(roof.ridge(), 10.0);
        assert_eq!((roof.bound(1.0), roof.bound(10.0), roof.bound(1000.0)), (10.0, 100.0, 100.0));
    }

    #[test]
    fn a_machine_has_both() {
        let roof = roofline(1).expect("one thread");
        assert!(roof.bytes_per_second > 1e8 && roof.flops_per_second > 1e8, "{roof:?}");
    }
}
