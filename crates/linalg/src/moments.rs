//! Sums of products over many positions: what the inputs of a layer have to do with each other, and with
//! something else.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Rows of a product that one thread computes at a time.
const BLOCK: usize = 128;

/// Subtracts `inputs weightsᵀ` from `outputs`: rows of `inputs` and of `weights` have `depth` elements, those
/// of `outputs` one for each row of the weights.
///
/// # Panics
/// When lengths do not fit.
pub fn subtract_product(outputs: &mut [f32], inputs: &[f32], weights: &[f32], depth: usize) {
    let channels = weights.len() / depth.max(1);
    let weights = MatRef::from_row_major_slice(weights, channels, depth).transpose();
    outputs.par_chunks_mut(BLOCK * channels).zip(inputs.par_chunks(BLOCK * depth)).for_each(
        |(outputs, inputs)| {
            let height = inputs.len() / depth;
            let inputs = MatRef::from_row_major_slice(inputs, height, depth);
            let outputs = MatMut::from_row_major_slice_mut(outputs, height, channels);
            matmul(outputs, Accum::Add, inputs, weights, -1.0, Par::Seq);
        },
    );
}

/// Adds `leftᵀ right` to sums, row by row: rows of both are positions, of `rows` and `depth` elements.
///
/// # Panics
/// When lengths do not fit.
pub fn add_products(sums: &mut [f32], left: &[f32], rows: usize, right: &[f32], depth: usize) {
    let positions = right.len() / depth.max(1);
    let left = MatRef::from_row_major_slice(left, positions, rows);
    let right = MatRef::from_row_major_slice(right, positions, depth);
    sums.par_chunks_mut(BLOCK * depth).enumerate().for_each(|(block, sums)| {
        let height = sums.len() / depth;
        let into = MatMut::from_row_major_slice_mut(sums, height, depth);
        matmul(into, Accum::Add, left.subcols(block * BLOCK, height).transpose(), right, 1.0, Par::Seq);
    });
}

/// Second moments of the inputs of a layer: the sum of `x xᵀ` over positions, `depth x depth`.
#[derive(Clone, Debug)]
pub struct Gram {
    depth: usize,
    /// The lower triangle, block by block, until it is finished.
    sums: Vec<f32>,
    /// The sum of `x`.
    total: Vec<f64>,
    positions: u64,
}

/// What a [`Gram`] comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// The sum of `x xᵀ`, row by row.
    pub products: Vec<f32>,
    /// The mean of `x`.
    pub mean: Vec<f32>,
    /// How many positions were added.
    pub positions: u64,
}

impl Moments {
    /// The sums of `x²`.
    pub fn diagonal(&self) -> impl Iterator<Item = f32> + '_ {
        self.products.iter().step_by(self.mean.len() + 1).copied()
    }

    /// The mean of `x xᵀ`, row by row; of `x` less its mean where that is taken off.
    pub fn average(&self, is_centered: bool) -> Vec<f64> {
        let (depth, count) = (self.mean.len(), self.positions.max(1) as f64);
        let mean = |at: usize| if is_centered { f64::from(self.mean[at]) } else { 0.0 };
        let of = |(at, &sum): (usize, &f32)| f64::from(sum) / count - mean(at / depth) * mean(at % depth);
        self.products.iter().enumerate().map(of).collect()
    }
}

impl Gram {
    /// Of nothing yet.
    pub fn new(depth: usize) -> Gram {
        Gram { depth, sums: vec![0.0; depth * depth], total: vec![0.0; depth], positions: 0 }
    }

    /// Bytes that one takes.
    pub fn bytes(depth: usize) -> u64 {
        4 * (depth as u64).saturating_mul(depth as u64)
    }

    /// Adds positions: rows of `depth` elements.
    ///
    /// # Panics
    /// When they are not whole rows.
    pub fn add(&mut self, inputs: &[f32]) {
        let depth = self.depth;
        for row in inputs.chunks_exact(depth) {
            self.total.iter_mut().zip(row).for_each(|(total, &x)| *total += f64::from(x));
            self.positions += 1;
        }
        let inputs = MatRef::from_row_major_slice(inputs, inputs.len() / depth, depth);
        self.sums.par_chunks_mut(BLOCK * depth).enumerate().for_each(|(block, sums)| {
            let height = sums.len() / depth;
            let (start, end) = (block * BLOCK, block * BLOCK + height);
            let into = MatMut::from_row_major_slice_mut(sums, height, depth);
            // The matrix is symmetric: what lies beyond its diagonal is filled in at the end.
            let into = into.subcols_mut(0, end);
            let left = inputs.subcols(start, height).transpose();
            matmul(into, Accum::Add, left, inputs.subcols(0, end), 1.0, Par::Seq);
        });
    }

    /// The whole matrix, and the rest.
    pub fn finish(mut self) -> Moments {
        for row in 0..self.depth {
            for column in row + 1..self.depth {
                self.sums[row * self.depth + column] = self.sums[column * self.depth + row];
            }
        }
        let count = self.positions.max(1) as f64;
        let mean = self.total.iter().map(|total| (total / count) as f32).collect();
        Moments { products: self.sums, mean, positions: self.positions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 31 + seed * 7) % 17) as f32 - 8.0).collect()
    }

    #[test]
    fn products_are_those_of_the_definition() {
        let (positions, rows) = (19, 150);
        let left = numbers(positions * rows, 1);
        let mut gram = Gram::new(rows);
        gram.add(&left);
        gram.add(&left[..rows]);
        let Moments { products: found, mean, positions: count } = gram.finish();
        assert_eq!(count, positions as u64 + 1);
        for a in 0..rows {
            let sum: f32 = (0..positions).map(|p| left[p * rows + a]).sum::<f32>() + left[a];
            assert_eq!(mean[a], sum / 20.0);
            for b in 0..rows {
                let sum: f32 = (0..positions).map(|p| left[p * rows + a] * left[p * rows + b]).sum();
                assert_eq!(found[a * rows + b], sum + left[a] * left[b]);
            }
        }
        let two = Moments { products: vec![10.0, 14.0, 14.0, 20.0], mean: vec![2.0, 3.0], positions: 2 };
        assert_eq!(two.average(false), [5.0, 7.0, 7.0, 10.0]);
        assert_eq!(two.average(true), [1.0, 1.0, 1.0, 1.0]);
        let right = numbers(positions * 5, 8);
        let mut sums = vec![1f32; rows * 5];
        add_products(&mut sums, &left, rows, &right, 5);
        for a in 0..rows {
            for b in 0..5 {
                let sum: f32 = (0..positions).map(|p| left[p * rows + a] * right[p * 5 + b]).sum();
                assert_eq!(sums[a * 5 + b], sum + 1.0);
            }
        }
        // 140 positions, more than one block.
        let (inputs, weights) = (numbers(140 * 5, 4), numbers(3 * 5, 5));
        let mut outputs = vec![1f32; 140 * 3];
        subtract_product(&mut outputs, &inputs, &weights, 5);
        for position in 0..140 {
            for row in 0..3 {
                let sum: f32 = (0..5).map(|k| inputs[position * 5 + k] * weights[row * 5 + k]).sum();
                assert_eq!(outputs[position * 3 + row], 1.0 - sum);
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let inputs: Vec<f32> = (0..300 * 260).map(|i| (i as f32 * 0.37).sin()).collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| {
                let mut gram = Gram::new(260);
                gram.add(&inputs);
                gram.finish()
            })
        };
        assert_eq!(on(1), on(3));
    }
}
