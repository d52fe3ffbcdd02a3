//! Pictures changed a little, so that few of them show more.

use optix_ir::{DType, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A change that leaves a picture what it is. The teacher is asked about the changed picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Left and right exchanged, half of the time.
    Flip,
    /// Moved by up to a sixteenth of its height and width, at least one pixel; the edge is repeated.
    Shift,
}

/// A number below `end`, which is not 0.
pub(super) fn below(random: &mut ChaCha8Rng, end: usize) -> usize {
    // The bias of a remainder of 64 bits is nothing to a shuffle.
    (random.next_u64() % end.max(1) as u64) as usize
}

/// Pictures `[N, C, H, W]` of 32-bit floats, each changed by chance; other tensors stay.
pub(super) fn augmented(tensor: Tensor, wanted: &[Augmentation], random: &mut ChaCha8Rng) -> Tensor {
    let [count, channels, height, width] = *tensor.shape() else { return tensor };
    if tensor.dtype() != DType::F32 || height < 2 || width < 2 || wanted.is_empty() {
        return tensor;
    }
    let Ok(elements) = tensor.to_slice::<f32>() else { return tensor };
    let mut changed = Vec::with_capacity(elements.len());
    for picture in elements.chunks(channels * height * width).take(count) {
        let (mut is_flipped, mut down, mut right) = (false, 0isize, 0isize);
        for one in wanted {
            match one {
                Augmentation::Flip => is_flipped = below(random, 2) == 1,
                Augmentation::Shift => {
                    let mut by = |size: usize| {
                        let most = (size / 16).max(1);
                        below(random, 2 * most + 1) as isize - most as isize
                    };
                    (down, right) = (by(height), by(width));
                }
            }
        }
        for plane in picture.chunks(height * width) {
            for y in 0..height {
                let from = (y as isize + down).clamp(0, height as isize - 1) as usize;
                let row = &plane[from * width..][..width];
                changed.extend((0..width).map(|x| {
                    let at = (x as isize + right).clamp(0, width as isize - 1) as usize;
                    row[if is_flipped { width - 1 - at } else { at }]
                }));
            }
        }
    }
    Tensor::from_vec(tensor.shape().to_vec(), changed)
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn pictures_are_flipped_and_moved() {
        let picture = Tensor::from_vec(vec![1, 1, 2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let changed = augmented(picture.clone(), &[Augmentation::Flip, Augmentation::Shift], &mut random);
            let elements: Vec<i32> =
                changed.to_slice::<f32>().expect("floats").iter().map(|&x| x as i32).collect();
            assert!(elements.iter().all(|x| (1..=6).contains(x)));
            seen.insert(elements);
        }
        // Three places down, three to the right, two sides.
        assert!(seen.contains(&vec![1, 2, 3, 4, 5, 6]) && seen.contains(&vec![3, 2, 1, 6, 5, 4]));
        assert!(seen.contains(&vec![2, 3, 3, 5, 6, 6]) && seen.contains(&vec![4, 5, 6, 4, 5, 6]));
        let words = Tensor::from_vec(vec![2, 3], vec![1i64; 6]);
        assert_eq!(augmented(words.clone(), &[Augmentation::Flip], &mut random), words);
    }
}
