//! Matrix products of every element type.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{broadcast, common_shape, product};
use crate::numbers::{Numbers, float_tensor, integer_tensor};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("MatMul", 1, mat_mul),
    KernelSpec::onnx("Gemm", 7, gemm),
    KernelSpec::onnx("MatMulInteger", 10, mat_mul_integer),
    KernelSpec::onnx("QLinearMatMul", 10, q_linear),
];

/// A stack of matrices `[batch, rows, columns]` that is to be multiplied with another.
struct Shapes {
    batch: Vec<usize>,
    rows: usize,
    depth: usize,
    columns: usize,
    /// Shape of the product.
    out: Vec<usize>,
    a: Vec<usize>,
    b: Vec<usize>,
}

/// numpy's rules: vectors become matrices of one row or column, and that axis is gone afterwards.
fn shapes(call: &Call<'_>, a: &[usize], b: &[usize]) -> Result<Shapes, OpError> {
    if a.is_empty() || b.is_empty() {
        return Err(call.invalid("an operand is a scalar"));
    }
    let left = if a.len() == 1 { vec![1, a[0]] } else { a.to_vec() };
    let right = if b.len() == 1 { vec![b[0], 1] } else { b.to_vec() };
    let (left_batch, left_matrix) = left.split_at(left.len() - 2);
    let (right_batch, right_matrix) = right.split_at(right.len() - 2);
    if left_matrix[1] != right_matrix[0] {
        return Err(call.invalid(format!("shapes {a:?} and {b:?} do not multiply")));
    }
    let batch = common_shape(call, left_batch, right_batch)?;
    let (rows, depth, columns) = (left_matrix[0], left_matrix[1], right_matrix[1]);
    let mut out = batch.clone();
    if a.len() > 1 {
        out.push(rows);
    }
    if b.len() > 1 {
        out.push(columns);
    }
    call.check_size(DType::F64, &out)?;
    let full = |rows: usize, columns: usize| [batch.clone(), vec![rows, columns]].concat();
    let (a, b) = (full(rows, depth), full(depth, columns));
    call.check_size(DType::F64, &a)?;
    call.check_size(DType::F64, &b)?;
    // The operands as they are, for broadcasting.
    let _ = (left_batch, right_batch);
    Ok(Shapes { batch, rows, depth, columns, out, a, b })
}

/// `a` and `b` hold whole stacks of matrices.
fn multiply<T: Copy + Default>(shapes: &Shapes, a: &[T], b: &[T], plus_product: fn(T, T, T) -> T) -> Vec<T> {
    let (rows, depth, columns) = (shapes.rows, shapes.depth, shapes.columns);
    let mut out = vec![T::default(); product(&shapes.batch) * rows * columns];
    for (batch, target) in out.chunks_mut((rows * columns).max(1)).enumerate() {
        let (left, right) = (&a[batch * rows * depth..], &b[batch * depth * columns..]);
        for row in 0..rows {
            let target = &mut target[row * columns..(row + 1) * columns];
            for step in 0..depth {
                let factor = left[row * depth + step];
                let right = &right[step * columns..(step + 1) * columns];
                for (sum, &other) in target.iter_mut().zip(right) {
                    *sum = plus_product(*sum, factor, other);
                }
            }
        }
    }
    out
}

fn float_step(sum: f64, a: f64, b: f64) -> f64 {
    sum + a * b
}

/// numpy's product of floats; integers of up to 16 bits come out exact as well.
pub(crate) fn float_product(
    call: &Call<'_>,
    (a, a_shape): (&[f64], &[usize]),
    (b, b_shape): (&[f64], &[usize]),
) -> Result<(Vec<f64>, Vec<usize>), OpError> {
    let shapes = shapes(call, a_shape, b_shape)?;
    let a = broadcast(call, a, &as_matrix(a_shape, true), &shapes.a)?;
    let b = broadcast(call, b, &as_matrix(b_shape, false), &shapes.b)?;
    Ok((multiply(&shapes, &a, &b, float_step), shapes.out))
}

fn integer_step(sum: i64, a: i64, b: i64) -> i64 {
    sum.wrapping_add(a.wrapping_mul(b))
}

/// A shape with the axes that vectors lack.
fn as_matrix(shape: &[usize], left: bool) -> Vec<usize> {
    match shape {
        [size] if left => vec![1, *size],
        [size] => vec![*size, 1],
        other => other.to_vec(),
    }
}

fn mat_mul(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.dtype() != b.dtype() {
        return Err(call.invalid(format!("operands are {} and {}", a.dtype(), b.dtype())));
    }
    let shapes = shapes(call, a.shape(), b.shape())?;
    let (left, right) = (as_matrix(a.shape(), true), as_matrix(b.shape(), false));
    let numbers = match (Numbers::of(call, a)?, Numbers::of(call, b)?) {
        (Numbers::Floats(x), Numbers::Floats(y)) => {
            let (x, y) = (broadcast(call, &x, &left, &shapes.a)?, broadcast(call, &y, &right, &shapes.b)?);
            Numbers::Floats(multiply(&shapes, &x, &y, float_step))
        }
        (Numbers::Integers(x), Numbers::Integers(y)) => {
            let (x, y) = (broadcast(call, &x, &left, &shapes.a)?, broadcast(call, &y, &right, &shapes.b)?);
            Numbers::Integers(multiply(&shapes, &x, &y, integer_step))
        }
        _ => return Err(call.wrong_type(1, b.dtype())),
    };
    Ok(vec![numbers.tensor(call, a.dtype(), shapes.out)?])
}

pub(crate) fn transpose<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..rows * columns).map(|index| values[index % rows * columns + index / rows]).collect()
}

pub(crate) fn gemm(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let ([a_rows, a_columns], [b_rows, b_columns]) = (a.shape(), b.shape()) else {
        return Err(call.invalid(format!("shapes {:?} and {:?} are not matrices", a.shape(), b.shape())));
    };
    if a.dtype() != b.dtype() {
        return Err(call.invalid(format!("operands are {} and {}", a.dtype(), b.dtype())));
    }
    let flag = |name: &str| call.node.int(name).unwrap_or(0) != 0;
    let (turn_a, turn_b) = (flag("transA"), flag("transB"));
    let alpha = f64::from(call.node.float("alpha").unwrap_or(1.0));
    let beta = f64::from(call.node.float("beta").unwrap_or(1.0));
    let left = if turn_a { [*a_columns, *a_rows] } else { [*a_rows, *a_columns] };
    let right = if turn_b { [*b_columns, *b_rows] } else { [*b_rows, *b_columns] };
    let shapes = shapes(call, &left, &right)?;
    fn turned<T: Copy>(values: Vec<T>, turn: bool, rows: usize, columns: usize) -> Vec<T> {
        if turn { transpose(&values, rows, columns) } else { values }
    }
    let c = call.optional(2);
    let numbers = match (Numbers::of(call, a)?, Numbers::of(call, b)?) {
        (Numbers::Floats(x), Numbers::Floats(y)) => {
            let x = turned(x, turn_a, *a_rows, *a_columns);
            let y = turned(y, turn_b, *b_rows, *b_columns);
            let mut out = multiply(&shapes, &x, &y, float_step);
            out.iter_mut().for_each(|value| *value *= alpha);
            if let Some(c) = c {
                let added = c.to_f64s().map_err(|error| call.tensor_error(error))?;
                let added = broadcast(call, &added, c.shape(), &shapes.out)?;
                out.iter_mut().zip(added).for_each(|(value, added)| *value += beta * added);
            }
            Numbers::Floats(out)
        }
        (Numbers::Integers(x), Numbers::Integers(y)) => {
            let x = turned(x, turn_a, *a_rows, *a_columns);
            let y = turned(y, turn_b, *b_rows, *b_columns);
            let mut out = multiply(&shapes, &x, &y, integer_step);
            let scale = |factor: f64, value: i64| {
                if factor == 1.0 { value } else { (factor * value as f64) as i64 }
            };
            out.iter_mut().for_each(|value| *value = scale(alpha, *value));
            if let Some(c) = c {
                let added = c.to_i64s().map_err(|error| call.tensor_error(error))?;
                let added = broadcast(call, &added, c.shape(), &shapes.out)?;
                out.iter_mut()
                    .zip(added)
                    .for_each(|(value, added)| *value = value.wrapping_add(scale(beta, added)));
            }
            Numbers::Integers(out)
        }
        _ => return Err(call.wrong_type(1, b.dtype())),
    };
    Ok(vec![numbers.tensor(call, a.dtype(), shapes.out)?])
}

/// Elements minus their zero point, spread to a stack of matrices. A list of zero points goes along rows
/// for the left operand and along columns for the right one.
pub(crate) fn shifted(
    call: &Call<'_>,
    slot: usize,
    zero_slot: usize,
    left: bool,
    to: &[usize],
) -> Result<Vec<i64>, OpError> {
    let tensor = call.input(slot)?;
    let values = tensor.to_i64s().map_err(|error| call.tensor_error(error))?;
    let shape = as_matrix(tensor.shape(), left);
    let values = broadcast(call, &values, &shape, to)?;
    let Some(zero) = call.optional(zero_slot) else { return Ok(values) };
    let zeros = zero.to_i64s().map_err(|error| call.tensor_error(error))?;
    let zero_shape = match zero.shape() {
        [] | [1] => vec![],
        [size] if left => vec![*size, 1],
        other => other.to_vec(),
    };
    let zeros = broadcast(call, &zeros, &zero_shape, to)?;
    Ok(values.iter().zip(zeros).map(|(value, zero)| value - zero).collect())
}

fn mat_mul_integer(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let shapes = shapes(call, call.input(0)?.shape(), call.input(1)?.shape())?;
    let a = shifted(call, 0, 2, true, &shapes.a)?;
    let b = shifted(call, 1, 3, false, &shapes.b)?;
    let out = multiply(&shapes, &a, &b, integer_step);
    Ok(vec![integer_tensor(call, DType::I32, shapes.out, &out)?])
}

/// Scales of an operand spread over the product: along rows for the left one, columns for the right.
fn scales_of(call: &Call<'_>, slot: usize, left: bool, out: &[usize]) -> Result<Vec<f64>, OpError> {
    let scale = call.input(slot)?;
    let values = scale.to_f64s().map_err(|error| call.tensor_error(error))?;
    let shape = match scale.shape() {
        [] | [1] => vec![],
        [size] if left => vec![*size, 1],
        other => other.to_vec(),
    };
    broadcast(call, &values, &shape, out)
}

fn q_linear(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let shapes = shapes(call, call.input(0)?.shape(), call.input(3)?.shape())?;
    let a = shifted(call, 0, 2, true, &shapes.a)?;
    let b = shifted(call, 3, 5, false, &shapes.b)?;
    let sums = multiply(&shapes, &a, &b, integer_step);
    let (a_scales, b_scales) =
        (scales_of(call, 1, true, &shapes.out)?, scales_of(call, 4, false, &shapes.out)?);
    let y_scales = scales_of(call, 6, true, &shapes.out)?;
    let zero = call.input(7)?;
    let zeros = zero.to_i64s().map_err(|error| call.tensor_error(error))?;
    let zero_shape = if zero.len() == 1 { vec![] } else { vec![zero.len(), 1] };
    let zeros = broadcast(call, &zeros, &zero_shape, &shapes.out)?;
    let Some((low, high)) = zero.dtype().integer_range() else {
        let reals: Vec<f64> = sums
            .iter()
            .enumerate()
            .map(|(i, &sum)| sum as f64 * a_scales[i] * b_scales[i] / y_scales[i])
            .collect();
        return Ok(vec![float_tensor(call, zero.dtype(), shapes.out, &reals)?]);
    };
    let integers: Vec<i64> = sums
        .iter()
        .enumerate()
        .map(|(index, &sum)| {
            let real = sum as f64 * a_scales[index] * b_scales[index] / y_scales[index];
            (real.round_ties_even() + zeros[index] as f64).clamp(low as f64, high as f64) as i64
        })
        .collect();
    Ok(vec![integer_tensor(call, zero.dtype(), shapes.out, &integers)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(op: &str, inputs: &[&Tensor]) -> Result<Tensor, OpError> {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|tensor| Some(*tensor)).collect();
        let node = Node::new(op, []);
        (crate::find("", op).unwrap().run)(&Call::new(&node, 21, &inputs)).map(|mut out| out.remove(0))
    }

    #[test]
    fn vectors_and_stacks() {
        let vector = Tensor::from_vec(vec![2], vec![1f32, 2.0]);
        let matrix = Tensor::from_vec(vec![2, 2], vec![1f32, 2.0, 3.0, 4.0]);
        let dot = run("MatMul", &[&vector, &vector]).unwrap();
        assert_eq!((dot.shape(), dot.to_f64s().unwrap()), (&[][..], vec![5.0]));
        assert_eq!(run("MatMul", &[&vector, &matrix]).unwrap().to_f64s().unwrap(), [7.0, 10.0]);
        assert_eq!(run("MatMul", &[&matrix, &vector]).unwrap().to_f64s().unwrap(), [5.0, 11.0]);
        let stack = Tensor::from_vec(vec![2, 1, 2], vec![1f32, 0.0, 0.0, 1.0]);
        let product = run("MatMul", &[&stack, &matrix]).unwrap();
        assert_eq!((product.shape(), product.to_f64s().unwrap()), (&[2, 1, 2][..], vec![1.0, 2.0, 3.0, 4.0]));
        assert!(run("MatMul", &[&matrix, &Tensor::from_vec(vec![3], vec![0f32; 3])]).is_err());
        assert!(run("MatMul", &[&Tensor::scalar(1f32), &matrix]).is_err());
    }
}
