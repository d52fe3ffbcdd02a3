//! Pictures changed a little, so that few of them show more. The teacher is asked about the changed picture.

use optix_ir::{DType, Tensor};
use optix_pipeline::Augmentation;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// A number below `end`, which is not 0.
pub(super) fn below(random: &mut ChaCha8Rng, end: usize) -> usize {
    // The bias of a remainder of 64 bits is nothing to a shuffle.
    (random.next_u64() % end.max(1) as u64) as usize
}

/// A number from `low` to below `high`.
fn between(random: &mut ChaCha8Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * (random.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// What becomes of a picture: where its pixels come from, and what they are multiplied with and what is added.
struct Look {
    is_flipped: bool,
    /// Places of the first pixel, and steps from each to the next, down and right.
    from: [f32; 2],
    step: [f32; 2],
    contrast: f32,
    /// In standard deviations.
    brighter: f32,
}

impl Look {
    fn drawn(wanted: &[Augmentation], [height, width]: [usize; 2], random: &mut ChaCha8Rng) -> Look {
        let mut look =
            Look { is_flipped: false, from: [0.0; 2], step: [1.0; 2], contrast: 1.0, brighter: 0.0 };
        for one in wanted {
            match one {
                Augmentation::Flip => look.is_flipped = below(random, 2) == 1,
                Augmentation::Shift => {
                    for (axis, size) in [height, width].into_iter().enumerate() {
                        let most = (size / 16).max(1);
                        look.from[axis] += below(random, 2 * most + 1) as f32 - most as f32;
                    }
                }
                Augmentation::Crop => {
                    let share = between(random, 0.75, 1.0);
                    for (axis, size) in [height, width].into_iter().enumerate() {
                        let all = size as f32 - 1.0;
                        look.step[axis] *= share;
                        look.from[axis] += between(random, 0.0, all * (1.0 - share));
                    }
                }
                Augmentation::Light => {
                    look.contrast = between(random, 0.8f32.ln(), 1.25f32.ln()).exp();
                    look.brighter = between(random, -0.1, 0.1);
                }
            }
        }
        look
    }

    fn plane(&self, plane: &[f32], [height, width]: [usize; 2], changed: &mut Vec<f32>) {
        let place = |axis: usize, at: usize, size: usize| {
            let exact = self.from[axis] + self.step[axis] * at as f32;
            let exact = exact.clamp(0.0, size as f32 - 1.0);
            let low = exact as usize;
            (low, (low + 1).min(size - 1), exact - low as f32)
        };
        // To the bit where nothing lies between two pixels.
        let mix = |a: f32, b: f32, share: f32| if share == 0.0 { a } else { a + (b - a) * share };
        for y in 0..height {
            let (up, down, of_down) = place(0, y, height);
            for x in 0..width {
                let x = if self.is_flipped { width - 1 - x } else { x };
                let (left, right, of_right) = place(1, x, width);
                let of_row =
                    |row: usize| mix(plane[row * width + left], plane[row * width + right], of_right);
                changed.push(mix(of_row(up), of_row(down), of_down));
            }
        }
    }

    fn light(&self, picture: &mut [f32]) {
        if self.contrast == 1.0 && self.brighter == 0.0 {
            return;
        }
        let count = picture.len().max(1) as f64;
        let mean = picture.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let variance = picture.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count;
        let (mean, add) = (mean as f32, self.brighter * variance.sqrt() as f32);
        picture.iter_mut().for_each(|x| *x = mean + (*x - mean) * self.contrast + add);
    }
}

/// Pictures `[N, C, H, W]` of 32-bit floats, each changed by chance; other tensors stay.
pub(super) fn augmented(tensor: Tensor, wanted: &[Augmentation], random: &mut ChaCha8Rng) -> Tensor {
    let [count, channels, height, width] = *tensor.shape() else { return tensor };
    if tensor.dtype() != DType::F32 || channels == 0 || height < 2 || width < 2 || wanted.is_empty() {
        return tensor;
    }
    let Ok(elements) = tensor.to_slice::<f32>() else { return tensor };
    let mut changed = Vec::with_capacity(elements.len());
    let size = [height, width];
    for picture in elements.chunks(channels * height * width).take(count) {
        let look = Look::drawn(wanted, size, random);
        let start = changed.len();
        picture.chunks(height * width).for_each(|plane| look.plane(plane, size, &mut changed));
        look.light(&mut changed[start..]);
    }
    Tensor::from_vec(tensor.shape().to_vec(), changed)
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.to_slice::<f32>().expect("floats").to_vec()
    }

    #[test]
    fn pictures_are_flipped_and_moved() {
        let picture = Tensor::from_vec(vec![1, 1, 2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let changed = augmented(picture.clone(), &[Augmentation::Flip, Augmentation::Shift], &mut random);
            let elements: Vec<i32> = floats(&changed).iter().map(|&x| x as i32).collect();
            assert!(elements.iter().all(|x| (1..=6).contains(x)));
            seen.insert(elements);
        }
        // Three places down, three to the right, two sides.
        assert!(seen.contains(&vec![1, 2, 3, 4, 5, 6]) && seen.contains(&vec![3, 2, 1, 6, 5, 4]));
        assert!(seen.contains(&vec![2, 3, 3, 5, 6, 6]) && seen.contains(&vec![4, 5, 6, 4, 5, 6]));
        let words = Tensor::from_vec(vec![2, 3], vec![1i64; 6]);
        assert_eq!(augmented(words.clone(), &[Augmentation::Flip], &mut random), words);
    }

    #[test]
    fn pictures_are_cropped_and_lit() {
        let (height, width) = (9, 13);
        let ramp: Vec<f32> = (0..height * width).map(|at| (at % width) as f32).collect();
        let picture = Tensor::from_vec(vec![1, 1, height, width], ramp.clone());
        let mut random = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..50 {
            let changed = floats(&augmented(picture.clone(), &[Augmentation::Crop], &mut random));
            // A ramp stays a ramp, flatter by up to a quarter, within what it was.
            let step = changed[1] - changed[0];
            assert!((0.7499..=1.0).contains(&step), "{step}");
            for row in changed.chunks(width) {
                assert!(row[0] >= 0.0 && row[width - 1] <= width as f32 - 1.0 + 1e-4);
                assert!(row.windows(2).all(|pair| (pair[1] - pair[0] - step).abs() < 1e-4));
            }
            let lit = floats(&augmented(picture.clone(), &[Augmentation::Light], &mut random));
            let factor = lit[1] - lit[0];
            assert!((0.79..=1.26).contains(&factor) && (factor - 1.0).abs() > 1e-6, "{factor}");
            let mean = |all: &[f32]| all.iter().sum::<f32>() / all.len() as f32;
            assert!((mean(&lit) - mean(&ramp)).abs() < 0.4, "{}", mean(&lit));
        }
    }
}
