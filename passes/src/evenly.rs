//! A few of many, evenly apart.

/// The distance at which to take places so that at most `most` of `count` are taken: odd, so that it does not fall
/// on the same column of every row.
pub(crate) fn step(count: usize, most: usize) -> usize {
    if count <= most { 1 } else { count.div_ceil(most.max(1)) | 1 }
}
