//! MatMul and Gemm on 32-bit floats, and the integer products of dynamic quantization
//! (onnx/docs/Operators.md).

use optix_ir::{DType, Tensor};

use super::{Fast, Job, KernelSpec, Prepared, Setup, floats, floats_or_decline, size};
use crate::math::matmul::{Matrix, pack_columns, packed_size, product, product_integer};

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::prepared("MatMul", 1, MatMul::prepare),
    KernelSpec::prepared("Gemm", 7, Gemm::prepare),
    KernelSpec::plain("MatMulInteger", 10, matmul_integer),
];

/// How the two stacks of matrices of a MatMul meet, as numpy.matmul defines it.
struct Stacks {
    /// Dimensions of the result.
    result: Vec<usize>,
    /// Rows, depth, columns of one product.
    sizes: [usize; 3],
    /// For each product, which matrix of either stack it takes.
    pairs: Vec<(usize, usize)>,
}

fn stacks(a: &[usize], b: &[usize]) -> Option<Stacks> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let left = if a.len() == 1 { [1, a[0]] } else { [a[a.len() - 2], a[a.len() - 1]] };
    let right = if b.len() == 1 { [b[0], 1] } else { [b[b.len() - 2], b[b.len() - 1]] };
    if left[1] != right[0] {
        return None;
    }
    let (a_batch, b_batch) = (&a[..a.len().saturating_sub(2)], &b[..b.len().saturating_sub(2)]);
    let rank = a_batch.len().max(b_batch.len());
    let dim = |dims: &[usize], axis: usize| match (axis + dims.len()).checked_sub(rank) {
        Some(axis) => dims[axis],
        None => 1,
    };
    let mut batch = Vec::with_capacity(rank);
    for axis in 0..rank {
        batch.push(match (dim(a_batch, axis), dim(b_batch, axis)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => return None,
        });
    }
    let count: usize = batch.iter().product();
    let place = |dims: &[usize], mut index: usize| {
        let (mut place, mut stride) = (0, 1);
        for axis in (0..rank).rev() {
            let size = dim(dims, axis);
            place += if size == 1 { 0 } else { index % batch[axis] * stride };
            index /= batch[axis];
            stride *= size;
        }
        place
    };
    let pairs = (0..count).map(|index| (place(a_batch, index), place(b_batch, index))).collect();
    let mut result = batch.clone();
    if a.len() > 1 {
        result.push(left[0]);
    }
    if b.len() > 1 {
        result.push(right[1]);
    }
    Some(Stacks { result, sizes: [left[0], left[1], right[1]], pairs })
}

/// The right matrix of a product, packed once when it is constant.
struct Right(Option<Vec<f32>>);

impl Right {
    fn prepare(matrix: Option<&Tensor>, transposed: bool) -> Right {
        Right(matrix.and_then(|matrix| {
            let &[rows, columns] = matrix.shape() else { return None };
            let (depth, columns, strides) =
                if transposed { (columns, rows, [1, columns]) } else { (rows, columns, [columns, 1]) };
            let mut packed = vec![0.0; packed_size(depth, columns)];
            pack_columns(Matrix { data: &floats(matrix)?, strides }, depth, columns, &mut packed);
            Some(packed)
        }))
    }
}

/// MatMul. A constant right matrix is packed once.
struct MatMul {
    right: Right,
}

impl MatMul {
    fn prepare(setup: &Setup<'_>) -> Option<Box<dyn Prepared>> {
        Some(Box::new(MatMul { right: Right::prepare(setup.constant(1), false) }))
    }
}

impl Prepared for MatMul {
    fn run(&self, call: &Job<'_>) -> Fast {
        let (a, b) = (call.input(0)?, call.input(1)?);
        let Some(mut stacks) = stacks(a.shape(), b.shape()) else { return Ok(None) };
        let (left, right) = (floats_or_decline!(a), floats_or_decline!(b));
        let mut output = call.buffer(&stacks.result)?;
        if output.is_empty() {
            return call.one(stacks.result, output);
        }
        let [mut rows, depth, columns] = stacks.sizes;
        // One right matrix for all: the left ones are one tall matrix.
        if stacks.pairs.iter().enumerate().all(|(index, &(a, b))| a == index && b == 0) {
            rows *= stacks.pairs.len();
            stacks.pairs.truncate(1);
        }
        let chain = call.chain(&stacks.result);
        let compute = |index: usize, output: &mut [f32], parallel: bool| {
            let (a, b) = stacks.pairs[index];
            let left = Matrix { data: &left[a * rows * depth..][..rows * depth], strides: [depth, 1] };
            let right =
                Matrix { data: &right[b * depth * columns..][..depth * columns], strides: [columns, 1] };
            let first = index * rows * columns;
            let finish = |start: usize, part: &mut [f32]| {
                if let Some(chain) = &chain {
                    chain.apply(first + start, part);
                }
            };
            let sizes = [rows, depth, columns];
            match &self.right.0 {
                Some(packed) => product(sizes, left, packed, output, parallel, Some(&finish)),
                None => {
                    let mut packed = call.scratch(packed_size(depth, columns));
                    pack_columns(right, depth, columns, &mut packed);
                    product(sizes, left, &packed, output, parallel, Some(&finish));
                }
            }
        };
        if stacks.pairs.len() == 1 {
            compute(0, &mut output, true);
        } else {
            super::parallel::rows(&mut output, rows * columns, depth, |index, output| {
                compute(index, output, false);
            });
        }
        call.one(stacks.result, output)
    }
}

/// Gemm. A constant right matrix is packed once.
struct Gemm {
    right: Right,
}

impl Gemm {
    fn prepare(setup: &Setup<'_>) -> Option<Box<dyn Prepared>> {
        let transposed = setup.node.int("transB").unwrap_or(0) != 0;
        Some(Box::new(Gemm { right: Right::prepare(setup.constant(1), transposed) }))
    }
}

impl Prepared for Gemm {
    fn run(&self, call: &Job<'_>) -> Fast {
        let (a, b) = (call.input(0)?, call.input(1)?);
        let node = call.node;
        let (&[a0, a1], &[b0, b1]) = (a.shape(), b.shape()) else { return Ok(None) };
        let swapped = |name| node.int(name).unwrap_or(0) != 0;
        let (alpha, beta) = (node.float("alpha").unwrap_or(1.0), node.float("beta").unwrap_or(1.0));
        let (rows, depth, left_strides) =
            if swapped("transA") { (a1, a0, [1, a1]) } else { (a0, a1, [a1, 1]) };
        let (inner, columns, right_strides) =
            if swapped("transB") { (b1, b0, [1, b1]) } else { (b0, b1, [b1, 1]) };
        if inner != depth {
            return Ok(None);
        }
        let (left, right) = (floats_or_decline!(a), floats_or_decline!(b));
        // What is added: its elements and their strides.
        let added = match call.optional(2) {
            None => None,
            Some(c) => {
                let strides = match *c.shape() {
                    [] => [0, 0],
                    [s] if s == 1 || s == columns => [0, usize::from(s == columns && s != 1)],
                    [r, s] if (r == 1 || r == rows) && (s == 1 || s == columns) => {
                        [if r == 1 { 0 } else { s }, usize::from(s != 1)]
                    }
                    _ => return Ok(None),
                };
                Some((floats_or_decline!(c), strides))
            }
        };
        let shape = vec![rows, columns];
        let mut output = call.buffer(&shape)?;
        let chain = call.chain(&shape);
        let finish = |start: usize, part: &mut [f32]| {
            if alpha != 1.0 {
                part.iter_mut().for_each(|value| *value *= alpha);
            }
            if let Some((added, strides)) = &added {
                let (row, column) = (start / columns, start % columns);
                let first = row * strides[0] + column * strides[1];
                if strides[1] == 1 {
                    for (value, c) in part.iter_mut().zip(&added[first..]) {
                        *value += beta * c;
                    }
                } else {
                    part.iter_mut().for_each(|value| *value += beta * added[first]);
                }
            }
            if let Some(chain) = &chain {
                chain.apply(start, part);
            }
        };
        let left = Matrix { data: &left, strides: left_strides };
        let sizes = [rows, depth, columns];
        match &self.right.0 {
            Some(packed) => product(sizes, left, packed, &mut output, true, Some(&finish)),
            None => {
                let mut packed = call.scratch(packed_size(depth, columns));
                let right = Matrix { data: &right, strides: right_strides };
                pack_columns(right, depth, columns, &mut packed);
                product(sizes, left, &packed, &mut output, true, Some(&finish));
            }
        }
        call.one(shape, output)
    }
}

/// 8-bit matrices as 16-bit numbers less their zero points. Per-tensor zero points for the left side,
/// per tensor or per column for the right.
fn centred(tensor: &Tensor, zero: Option<&Tensor>, columns: usize) -> Option<Vec<i16>> {
    let zeros: Vec<i16> = match zero {
        None => vec![0],
        Some(zero) if zero.dtype() != tensor.dtype() => return None,
        Some(zero) => zero.to_i64s().ok()?.into_iter().map(|value| value as i16).collect(),
    };
    let widen: fn(u8) -> i16 = match tensor.dtype() {
        DType::U8 => i16::from,
        DType::I8 => |byte| i16::from(byte as i8),
        _ => return None,
    };
    let bytes = tensor.bytes();
    match zeros[..] {
        [zero] => Some(bytes.iter().map(|&byte| widen(byte) - zero).collect()),
        _ if columns == zeros.len() && columns > 0 => Some(
            bytes
                .chunks(columns)
                .flat_map(|row| row.iter().zip(&zeros).map(|(&byte, zero)| widen(byte) - zero))
                .collect(),
        ),
        _ => None,
    }
}

fn matmul_integer(call: &Job<'_>) -> Fast {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let Some(stacks) = stacks(a.shape(), b.shape()) else { return Ok(None) };
    let [rows, depth, columns] = stacks.sizes;
    // A zero point a row of the left side is rare: the reference does it.
    if call.optional(2).is_some_and(|zero| zero.len() != 1)
        || (b.rank() > 2 && call.optional(3).is_some_and(|zero| zero.len() != 1))
    {
        return Ok(None);
    }
    let (Some(left), Some(right)) = (centred(a, call.optional(2), 0), centred(b, call.optional(3), columns))
    else {
        return Ok(None);
    };
    call.check_size(DType::I32, &stacks.result)?;
    let mut output = vec![0i32; size(&stacks.result)];
    for (output, &(a, b)) in output.chunks_mut((rows * columns).max(1)).zip(&stacks.pairs) {
        product_integer(
            [rows, depth, columns],
            &left[a * rows * depth..][..rows * depth],
            &right[b * depth * columns..][..depth * columns],
            output,
        );
    }
    Ok(Some(vec![Tensor::from_vec(stacks.result, output)]))
}
