//! One hash of all samples that were read.

use crate::batch::Batch;

/// Takes in batches and gives one hash of their samples: BLAKE3 of the samples' hashes
/// ([`Batch::hashes`]), one behind the other. How they are batched makes no difference.
#[derive(Clone, Debug, Default)]
pub struct Digest {
    hasher: blake3::Hasher,
    samples: u64,
}

impl Digest {
    /// Takes in the samples of a batch.
    pub fn add(&mut self, batch: &Batch) {
        batch.hashes.iter().for_each(|hash| {
            self.hasher.update(hash);
        });
        self.samples = self.samples.saturating_add(batch.hashes.len() as u64);
    }

    /// Samples taken in.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The hash, in hexadecimal.
    pub fn blake3(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_make_no_difference_and_order_does() {
        let batch = |bytes: &[u8]| Batch {
            hashes: bytes.iter().map(|&byte| [byte; 32]).collect(),
            count: bytes.len(),
            ..Batch::default()
        };
        let digest = |batches: &[&[u8]]| {
            let mut digest = Digest::default();
            batches.iter().for_each(|bytes| digest.add(&batch(bytes)));
            (digest.samples(), digest.blake3())
        };
        assert_eq!(digest(&[&[1, 2], &[3]]), digest(&[&[1], &[], &[2, 3]]));
        assert_ne!(digest(&[&[1, 2, 3]]), digest(&[&[1, 3, 2]]));
        assert_eq!(digest(&[&[1, 2, 3]]).0, 3);
    }
}
