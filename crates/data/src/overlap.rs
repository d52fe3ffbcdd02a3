//! Samples that two data sets share.

use std::collections::HashMap;

use crate::error::DataError;

/// Pairs of equal samples that a report lists.
const EXAMPLES: usize = 8;

/// What two data sets share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverlapReport {
    /// Samples of the second set that the first one has too.
    pub count: u64,
    /// The first of them: index in the first set, index in the second, both from 0.
    pub first: Vec<(u64, u64)>,
    /// Samples of the first set.
    pub first_set: u64,
    /// Samples of the second set.
    pub second_set: u64,
}

/// Compares two sets of sample hashes. Memory: some 60 bytes for each sample of the first set, so give the
/// smaller one first.
///
/// # Errors
/// The first error of either stream.
pub fn overlap(
    first: impl IntoIterator<Item = Result<[u8; 32], DataError>>,
    second: impl IntoIterator<Item = Result<[u8; 32], DataError>>,
) -> Result<OverlapReport, DataError> {
    // Only looked things up in, never iterated: its order reaches nothing.
    let mut known: HashMap<[u8; 32], u64> = HashMap::new();
    let mut report = OverlapReport::default();
    for hash in first {
        known.entry(hash?).or_insert(report.first_set);
        report.first_set = report.first_set.saturating_add(1);
    }
    for hash in second {
        if let Some(&index) = known.get(&hash?) {
            report.count = report.count.saturating_add(1);
            if report.first.len() < EXAMPLES {
                report.first.push((index, report.second_set));
            }
        }
        report.second_set = report.second_set.saturating_add(1);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_samples_are_counted_and_named() {
        let set = |bytes: &[u8]| bytes.iter().map(|&byte| Ok([byte; 32])).collect::<Vec<_>>();
        let report = overlap(set(&[1, 2, 3, 3]), set(&[9, 3, 1, 8, 3])).unwrap();
        assert_eq!(report.count, 3);
        assert_eq!(report.first, [(2, 1), (0, 2), (2, 4)]);
        assert_eq!((report.first_set, report.second_set), (4, 5));
        assert_eq!(overlap(set(&[1]), set(&[2])).unwrap().count, 0);
        let failing = vec![Err(DataError::Labels("broken".into()))];
        assert!(overlap(failing, set(&[1])).is_err());
    }
}
