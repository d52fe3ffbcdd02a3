//! Matrices of block-quantized weights, and the tensors that files keep them in.

use optix_ir::{DType, Tensor};
use optix_pipeline::SignalNoise;
use rayon::prelude::*;

use super::blocks::{self, Algorithm, Grid, Parameters, ZeroPoint};

/// Rows treated by one thread at a time: fixed, so that results do not depend on the number of threads.
const ROWS: usize = 16;

/// Where the numbers that one output is made of stand in a row-major matrix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Layout {
    /// In a column: [depth, outputs], as MatMul reads its right operand.
    DepthFirst,
    /// In a row: [outputs, depth], as a Gemm with `transB` and a convolution do.
    OutputFirst,
}

/// Weights as integers in blocks along the depth.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    /// Outputs: rows of `integers`.
    pub outputs: usize,
    /// Numbers an output is made of.
    pub depth: usize,
    /// Weights that share a scale; the last block of a row may be shorter.
    pub block: usize,
    /// What the weights became.
    pub grid: Grid,
    /// [outputs, depth], from 0 to 2^bits - 1.
    pub integers: Vec<u8>,
    /// [outputs, blocks of a row].
    pub parameters: Vec<Parameters>,
    /// Sum of squares of the weights.
    pub signal: f64,
    /// Sum of squares of the errors.
    pub noise: f64,
}

impl QuantizedMatrix {
    /// Quantizes a matrix of finite weights in blocks of `block` along its depth.
    ///
    /// # Panics
    /// When the weights are not outputs x depth many, or one of the three numbers is 0.
    pub fn new(
        weights: &[f32],
        layout: Layout,
        [outputs, depth, block]: [usize; 3],
        grid: Grid,
        algorithm: Algorithm,
    ) -> QuantizedMatrix {
        assert!(outputs > 0 && depth > 0 && block > 0 && Some(weights.len()) == outputs.checked_mul(depth));
        let blocks = depth.div_ceil(block);
        let mut integers = vec![0u8; weights.len()];
        let mut parameters = vec![Parameters { scale: 1.0, zero: 0.0 }; outputs * blocks];
        let sums: Vec<(f64, f64)> = integers
            .par_chunks_mut(ROWS * depth)
            .zip(parameters.par_chunks_mut(ROWS * blocks))
            .enumerate()
            .map(|(chunk, (integers, parameters))| {
                let (start, rows) = (chunk * ROWS, integers.len() / depth);
                let gathered;
                let weights = match layout {
                    Layout::OutputFirst => &weights[start * depth..(start + rows) * depth],
                    Layout::DepthFirst => {
                        gathered = columns(weights, outputs, start, rows);
                        &gathered
                    }
                };
                let (mut signal, mut noise) = (0.0, 0.0);
                let rows = weights.chunks_exact(depth).zip(integers.chunks_exact_mut(depth));
                for ((weights, integers), parameters) in rows.zip(parameters.chunks_exact_mut(blocks)) {
                    let parts = weights.chunks(block).zip(integers.chunks_mut(block));
                    for ((weights, integers), parameters) in parts.zip(parameters) {
                        let (found, power, error) = blocks::quantize(weights, grid, algorithm, integers);
                        *parameters = found;
                        signal += power;
                        noise += error;
                    }
                }
                (signal, noise)
            })
            .collect();
        let (signal, noise) = sums.iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        QuantizedMatrix { outputs, depth, block, grid, integers, parameters, signal, noise }
    }

    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.depth.div_ceil(self.block)
    }

    /// Signal-to-quantization-noise ratio in dB; `None` when nothing was lost.
    pub fn sqnr_db(&self) -> Option<f64> {
        SignalNoise::new(self.signal, self.noise).sqnr_db()
    }

    /// The weights that the integers stand for, [outputs, depth].
    pub fn dequantized(&self) -> Vec<f32> {
        let blocks = self.blocks();
        let mut weights = Vec::with_capacity(self.integers.len());
        for (row, integers) in self.integers.chunks_exact(self.depth).enumerate() {
            for (block, integers) in integers.chunks(self.block).enumerate() {
                let Parameters { scale, zero } = self.parameters[row * blocks + block];
                weights.extend(integers.iter().map(|&integer| (f32::from(integer) - zero) * scale));
            }
        }
        weights
    }

    /// Inputs 1 to 3 of `com.microsoft.MatMulNBits`: integers [outputs, blocks, bytes of a block], the
    /// first in the lowest bits and short blocks filled up; scales [outputs * blocks]; zero points, packed
    /// likewise row by row, or of float type if they are real, or none if they are the middle.
    pub fn matmul_n_bits(&self) -> (Tensor, Tensor, Option<Tensor>) {
        let (bits, blocks) = (self.grid.bits as usize, self.blocks());
        let row_bytes = blocks * self.block * bits / 8;
        let mut packed = vec![0u8; self.outputs * row_bytes];
        packed.par_chunks_mut(ROWS * row_bytes).zip(self.integers.par_chunks(ROWS * self.depth)).for_each(
            |(packed, integers)| {
                for (packed, integers) in
                    packed.chunks_exact_mut(row_bytes).zip(integers.chunks_exact(self.depth))
                {
                    pack(integers, bits, packed);
                }
            },
        );
        // What fills a short last block stands for zero.
        if !self.depth.is_multiple_of(self.block) {
            for (row, packed) in packed.chunks_exact_mut(row_bytes).enumerate() {
                let zero = self.parameters[(row + 1) * blocks - 1].zero;
                let zero = zero.round_ties_even().clamp(0.0, self.grid.top()) as u8;
                for at in self.depth..blocks * self.block {
                    packed[at * bits / 8] |= zero << (at * bits % 8);
                }
            }
        }
        let scales: Vec<f32> = self.parameters.iter().map(|p| p.scale).collect();
        let zeros = match self.grid.zero_point {
            ZeroPoint::Middle { .. } => None,
            ZeroPoint::Real => {
                let zeros: Vec<f32> = self.parameters.iter().map(|p| p.zero).collect();
                Some(Tensor::from_vec(vec![zeros.len()], zeros))
            }
            ZeroPoint::Integer => {
                let row_bytes = (blocks * bits).div_ceil(8);
                let mut packed = vec![0u8; self.outputs * row_bytes];
                let rows = packed.chunks_exact_mut(row_bytes).zip(self.parameters.chunks_exact(blocks));
                for (packed, parameters) in rows {
                    let zeros: Vec<u8> = parameters.iter().map(|p| p.zero as u8).collect();
                    pack(&zeros, bits, packed);
                }
                Some(Tensor::from_vec(vec![packed.len()], packed))
            }
        };
        let shape = vec![self.outputs, blocks, self.block * bits / 8];
        (Tensor::from_vec(shape, packed), Tensor::from_vec(vec![scales.len()], scales), zeros)
    }

    /// Inputs of `DequantizeLinear`: integers of `shape` (the matrix in `layout`), scales and zero points;
    /// none where they are 0. Symmetric weights are signed, others unsigned. Scales form a vector of one an
    /// output if `per_channel` (a block is a whole row then), else a matrix in the layout.
    pub fn dequantize_linear(
        &self,
        layout: Layout,
        shape: &[usize],
        per_channel: bool,
    ) -> (Tensor, Tensor, Option<Tensor>) {
        let signed = matches!(self.grid.zero_point, ZeroPoint::Middle { .. });
        let dtype = match (self.grid.bits, signed) {
            (2, true) => DType::I2,
            (2, false) => DType::U2,
            (4, true) => DType::I4,
            (4, false) => DType::U4,
            (_, true) => DType::I8,
            (_, false) => DType::U8,
        };
        // As bit patterns: the middle integer becomes 0.
        let flip = if signed { self.grid.middle() as u8 } else { 0 };
        let order = |rows: usize, columns: usize, read: &(dyn Fn(usize) -> u8 + Sync)| -> Vec<u8> {
            let mut out = vec![0u8; rows * columns];
            match layout {
                Layout::OutputFirst => {
                    out.par_chunks_mut(1 << 16).enumerate().for_each(|(chunk, out)| {
                        for (index, out) in out.iter_mut().enumerate() {
                            *out = read((chunk << 16) + index);
                        }
                    });
                }
                // [columns, rows] of what is [rows, columns], in tiles.
                Layout::DepthFirst => {
                    out.par_chunks_mut(ROWS * rows).enumerate().for_each(|(chunk, out)| {
                        let first = chunk * ROWS;
                        for row in 0..rows {
                            for (column, out) in out.iter_mut().skip(row).step_by(rows).enumerate() {
                                *out = read(row * columns + first + column);
                            }
                        }
                    });
                }
            }
            out
        };
        let codes = order(self.outputs, self.depth, &|index| self.integers[index] ^ flip);
        let integers = Tensor::from_codes(dtype, shape.to_vec(), &codes);
        let blocks = self.blocks();
        let shape = match layout {
            _ if per_channel && blocks == 1 => vec![self.outputs],
            Layout::OutputFirst => vec![self.outputs, blocks],
            Layout::DepthFirst => vec![blocks, self.outputs],
        };
        let at = |index: usize| match layout {
            Layout::OutputFirst => self.parameters[index],
            Layout::DepthFirst => self.parameters[index % self.outputs * blocks + index / self.outputs],
        };
        let ordered: Vec<Parameters> = (0..self.parameters.len()).map(at).collect();
        let scales: Vec<f32> = ordered.iter().map(|p| p.scale).collect();
        let zeros: Vec<u8> = ordered.iter().map(|p| p.zero as u8).collect();
        let zeros = (!signed).then(|| Tensor::from_codes(dtype, shape.clone(), &zeros));
        (integers, Tensor::from_vec(shape, scales), zeros)
    }
}

/// Some columns of a row-major matrix of `width` columns, each in a row.
fn columns(matrix: &[f32], width: usize, start: usize, count: usize) -> Vec<f32> {
    let depth = matrix.len() / width;
    let mut out = vec![0f32; depth * count];
    for (k, row) in matrix.chunks_exact(width).enumerate() {
        for (column, &value) in row[start..start + count].iter().enumerate() {
            out[column * depth + k] = value;
        }
    }
    out
}

/// Packs integers of `bits` bits, the first in the lowest bits. What is left of `out` stays as it is.
pub fn pack(integers: &[u8], bits: usize, out: &mut [u8]) {
    match bits {
        8 => out[..integers.len()].copy_from_slice(integers),
        4 => {
            let (pairs, rest) = integers.as_chunks::<2>();
            for (out, [low, high]) in out.iter_mut().zip(pairs) {
                *out = low | high << 4;
            }
            if let [last] = rest {
                out[pairs.len()] |= last;
            }
        }
        _ => {
            for (index, &integer) in integers.iter().enumerate() {
                out[index * bits / 8] |= integer << (index * bits % 8);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7).sin() + (i as f32 * 0.013).cos()).collect()
    }

    fn matrix(bits: u32, zero_point: ZeroPoint, layout: Layout, sizes: [usize; 3]) -> QuantizedMatrix {
        let grid = Grid { bits, zero_point };
        QuantizedMatrix::new(&weights(sizes[0] * sizes[1]), layout, sizes, grid, Algorithm::Mse)
    }

    /// What a reader of the packed tensors makes of them.
    fn unpack(packed: &[u8], index: usize, bits: usize) -> f32 {
        f32::from((packed[index * bits / 8] >> (index * bits % 8)) & (0xff >> (8 - bits)))
    }

    #[test]
    fn packed_matrices_read_back() {
        for bits in [2, 4, 8] {
            for zero_point in [ZeroPoint::Middle { signed: true }, ZeroPoint::Integer, ZeroPoint::Real] {
                for sizes in [[3, 64, 16], [5, 50, 16], [33, 31, 32]] {
                    let [outputs, depth, block] = sizes;
                    let quantized = matrix(bits, zero_point, Layout::OutputFirst, sizes);
                    let (packed, scales, zeros) = quantized.matmul_n_bits();
                    let (bits, blocks) = (bits as usize, depth.div_ceil(block));
                    assert_eq!(packed.shape(), [outputs, blocks, block * bits / 8]);
                    let (packed, scales) = (packed.bytes(), scales.to_slice::<f32>().unwrap());
                    let zero_row = (blocks * bits).div_ceil(8);
                    let expected = quantized.dequantized();
                    for row in 0..outputs {
                        for k in 0..depth {
                            let group = row * blocks + k / block;
                            let zero = match &zeros {
                                None => f32::from(1u8 << (bits - 1)),
                                Some(zeros) if zeros.dtype() == DType::F32 => {
                                    zeros.to_slice::<f32>().unwrap()[group]
                                }
                                Some(zeros) => unpack(&zeros.bytes()[row * zero_row..], k / block, bits),
                            };
                            let integer = unpack(&packed[row * blocks * block * bits / 8..], k, bits);
                            assert_eq!((integer - zero) * scales[group], expected[row * depth + k]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn both_layouts_hold_the_same_numbers() {
        let sizes = [20, 48, 16];
        let [outputs, depth, _] = sizes;
        let data = weights(outputs * depth);
        let mut turned = vec![0.0; data.len()];
        for row in 0..outputs {
            for k in 0..depth {
                turned[k * outputs + row] = data[row * depth + k];
            }
        }
        let grid = Grid { bits: 4, zero_point: ZeroPoint::Integer };
        let a = QuantizedMatrix::new(&data, Layout::OutputFirst, sizes, grid, Algorithm::Mse);
        let b = QuantizedMatrix::new(&turned, Layout::DepthFirst, sizes, grid, Algorithm::Mse);
        assert_eq!((&a.integers, &a.parameters), (&b.integers, &b.parameters));
        let (rows, row_scales, row_zeros) =
            a.dequantize_linear(Layout::OutputFirst, &[outputs, depth], false);
        let (columns, scales, zeros) = b.dequantize_linear(Layout::DepthFirst, &[depth, outputs], false);
        let (rows, columns) = (rows.to_i64s().unwrap(), columns.to_i64s().unwrap());
        assert_eq!((row_scales.shape(), scales.shape()), (&[20, 3][..], &[3, 20][..]));
        for row in 0..outputs {
            for k in 0..depth {
                assert_eq!(rows[row * depth + k], columns[k * outputs + row]);
            }
            for block in 0..3 {
                let numbers = |t: &Tensor, at: usize| t.to_f64s().unwrap()[at];
                assert_eq!(numbers(&row_scales, row * 3 + block), numbers(&scales, block * outputs + row));
                let (a, b) = (row_zeros.as_ref().unwrap(), zeros.as_ref().unwrap());
                assert_eq!(numbers(a, row * 3 + block), numbers(b, block * outputs + row));
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| matrix(4, ZeroPoint::Integer, Layout::DepthFirst, [50, 100, 32]))
        };
        let (one, four) = (run(1), run(4));
        assert_eq!((&one.integers, &one.parameters), (&four.integers, &four.parameters));
        assert_eq!(
            (one.signal.to_bits(), one.noise.to_bits()),
            (four.signal.to_bits(), four.noise.to_bits())
        );
    }
}
