//! Offsets and lengths from files, which may be anything.

use std::ops::Range;

/// A range that has been checked against the length of what it points into.
///
/// All arithmetic on offsets and lengths that a file states goes through this type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteRange {
    start: usize,
    end: usize,
}

/// A range that does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{length} bytes at offset {offset} do not lie within {available} bytes")]
pub struct RangeError {
    /// The stated offset.
    pub offset: u64,
    /// The stated length.
    pub length: u64,
    /// Bytes there are.
    pub available: u64,
}

impl ByteRange {
    /// The range of `length` bytes at `offset` in something of `available` bytes.
    ///
    /// # Errors
    /// When any part of it lies outside, or the arithmetic would overflow.
    pub fn new(offset: u64, length: u64, available: u64) -> Result<ByteRange, RangeError> {
        let error = RangeError { offset, length, available };
        let end = offset.checked_add(length).filter(|&end| end <= available).ok_or(error)?;
        let start = usize::try_from(offset).map_err(|_| error)?;
        let end = usize::try_from(end).map_err(|_| error)?;
        Ok(ByteRange { start, end })
    }

    /// As a standard range.
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }

    /// Bytes in it.
    pub fn length(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Where it ends, as an offset.
    pub fn end(self) -> u64 {
        self.end as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_that_fit_exist() {
        assert_eq!(ByteRange::new(2, 3, 5).unwrap().range(), 2..5);
        assert_eq!(ByteRange::new(5, 0, 5).unwrap().length(), 0);
        for (offset, length) in [(6, 0), (0, 6), (5, 1), (u64::MAX, 1), (1, u64::MAX), (1 << 63, 1 << 63)] {
            assert!(ByteRange::new(offset, length, 5).is_err(), "{offset} {length}");
        }
    }
}
