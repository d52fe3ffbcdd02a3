//! Splitting work among threads, in chunks that do not depend on their number.

use rayon::prelude::*;

use crate::math::threads;

/// Elements a chunk of cheap element-wise work has; less than two of them are not split.
const CHUNK: usize = 64 << 10;

/// Calls `body` with consecutive chunks of `output` and where each starts, `weight` being the rough cost of
/// an element in multiply-adds.
pub(crate) fn chunks<T: Send>(output: &mut [T], weight: usize, body: impl Fn(usize, &mut [T]) + Send + Sync) {
    let chunk = (CHUNK / weight.max(1)).max(1024);
    if output.len() < 2 * chunk || threads::count() == 1 {
        body(0, output);
    } else {
        output.par_chunks_mut(chunk).enumerate().for_each(|(index, part)| body(index * chunk, part));
    }
}

/// Calls `body` with every run of `length` elements of `output` and its number, several runs a thread;
/// `weight` is the rough cost of an element.
pub(crate) fn rows<T: Send>(
    output: &mut [T],
    length: usize,
    weight: usize,
    body: impl Fn(usize, &mut [T]) + Send + Sync,
) {
    if length == 0 || output.is_empty() {
        return;
    }
    let per_chunk = (CHUNK / weight.max(1) / length).max(1);
    let run = |first: usize, part: &mut [T]| {
        part.chunks_mut(length).enumerate().for_each(|(i, row)| body(first + i, row));
    };
    if output.len() <= per_chunk * length || threads::count() == 1 {
        run(0, output);
    } else {
        output
            .par_chunks_mut(per_chunk * length)
            .enumerate()
            .for_each(|(index, part)| run(index * per_chunk, part));
    }
}
