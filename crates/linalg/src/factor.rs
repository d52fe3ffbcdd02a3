//! Factors of matrices of second moments.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rayon::prelude::*;

/// Rows of a product that one thread computes at a time.
const BLOCK: usize = 64;

/// The upper triangular `U`, row by row, with `UᵀU` the inverse of a symmetric matrix; `None` where that is not
/// positive definite. Computed in f64.
///
/// With rows and columns in reverse order the matrix is `LLᵀ`, so in order it is `RRᵀ` with `R` upper triangular,
/// and its inverse `R⁻ᵀR⁻¹`: one Cholesky factor and one triangular inverse, where the usual way (Frantar et al.
/// 2023, GPTQ) inverts and factors twice.
///
/// # Panics
/// When the matrix has not `size x size` elements.
pub fn inverse_factor(matrix: &[f32], size: usize) -> Option<Vec<f32>> {
    assert_eq!(matrix.len(), size * size);
    let last = size.checked_sub(1)?;
    let reversed =
        Mat::<f64>::from_fn(size, size, |row, column| f64::from(matrix[(last - row) * size + last - column]));
    let factor = reversed.llt(Side::Lower).ok()?;
    let mut inverse = Mat::<f64>::identity(size, size);
    solve_lower_triangular_in_place(factor.L(), inverse.as_mut(), Par::Seq);
    let mut found = vec![0f32; size * size];
    for row in 0..size {
        for column in row..size {
            found[row * size + column] = inverse[(last - row, last - column)] as f32;
        }
    }
    found.iter().all(|x| x.is_finite()).then_some(found)
}

/// The inverse of a symmetric matrix, row by row; `None` where that is not positive definite. Computed in f64.
///
/// # Panics
/// When the matrix has not `size x size` elements.
pub fn inverse(matrix: &[f64], size: usize) -> Option<Vec<f64>> {
    assert_eq!(matrix.len(), size * size);
    let factor = MatRef::from_row_major_slice(matrix, size, size).llt(Side::Lower).ok()?;
    let mut below = Mat::<f64>::identity(size, size);
    solve_lower_triangular_in_place(factor.L(), below.as_mut(), Par::Seq);
    let mut found = vec![0f64; size * size];
    let into = MatMut::from_row_major_slice_mut(&mut found, size, size);
    matmul(into, Accum::Replace, below.transpose(), below.as_ref(), 1.0, Par::Seq);
    found.iter().all(|x| x.is_finite()).then_some(found)
}

/// The inverse of a symmetric matrix with a share of the mean of its diagonal added to that; `None` where the mean is not
/// positive, or the sum not positive definite.
///
/// # Panics
/// When the matrix has not `size x size` elements.
pub fn damped_inverse(mut matrix: Vec<f64>, size: usize, share: f64) -> Option<Vec<f64>> {
    let mean = (0..size).map(|at| matrix[at * size + at]).sum::<f64>() / size.max(1) as f64;
    if mean <= 0.0 || !mean.is_finite() {
        return None;
    }
    (0..size).for_each(|at| matrix[at * size + at] += share * mean);
    inverse(&matrix, size)
}

/// Subtracts `errors factor` from the columns of a matrix from `from` on: rows of the matrix and of `factor` have
/// `columns` elements, those of `errors` as many as `factor` has rows.
///
/// # Panics
/// When lengths do not fit.
pub fn subtract_from_columns(
    matrix: &mut [f32],
    columns: usize,
    from: usize,
    errors: &[f32],
    factor: &[f32],
) {
    let width = factor.len() / columns.max(1);
    if from >= columns || width == 0 {
        return;
    }
    let factor = MatRef::from_row_major_slice(factor, width, columns).subcols(from, columns - from);
    matrix.par_chunks_mut(BLOCK * columns).zip(errors.par_chunks(BLOCK * width)).for_each(
        |(matrix, errors)| {
            let height = errors.len() / width;
            let errors = MatRef::from_row_major_slice(errors, height, width);
            let matrix = MatMut::from_row_major_slice_mut(matrix, height, columns);
            let right = matrix.subcols_mut(from, columns - from);
            matmul(right, Accum::Add, errors, factor, -1.0, Par::Seq);
        },
    );
}

/// Eigenvalues of a symmetric matrix, the greatest first, and its eigenvectors, one a row in that order; `None` where
/// it has elements that are not finite. Computed in f64.
///
/// # Panics
/// When the matrix has not `size x size` elements.
pub fn eigen(matrix: &[f64], size: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    assert_eq!(matrix.len(), size * size);
    if matrix.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let found = MatRef::from_row_major_slice(matrix, size, size).self_adjoint_eigen(Side::Lower).ok()?;
    let (values, vectors) = (found.S().column_vector(), found.U());
    let last = size.checked_sub(1)?;
    let all = (0..size).map(|row| values[last - row]).collect();
    let rows = (0..size).flat_map(|row| (0..size).map(move |place| vectors[(place, last - row)]));
    Some((all, rows.collect()))
}

/// The product of two matrices, row by row: `left` has rows of `depth` elements, and so has `right` where it is
/// `transposed`; otherwise rows of `columns` elements. In blocks of rows, each by one thread.
///
/// # Panics
/// When lengths do not fit.
pub fn product(left: &[f64], right: &[f64], depth: usize, columns: usize, transposed: bool) -> Vec<f64> {
    assert_eq!(right.len(), depth * columns);
    let right = match transposed {
        true => MatRef::from_row_major_slice(right, columns, depth).transpose(),
        false => MatRef::from_row_major_slice(right, depth, columns),
    };
    let rows = left.len() / depth.max(1);
    let mut found = vec![0f64; rows * columns];
    if depth == 0 || columns == 0 {
        return found;
    }
    found.par_chunks_mut(BLOCK * columns).zip(left.par_chunks(BLOCK * depth)).for_each(|(found, left)| {
        let height = left.len() / depth;
        let left = MatRef::from_row_major_slice(left, height, depth);
        let into = MatMut::from_row_major_slice_mut(found, height, columns);
        matmul(into, Accum::Replace, left, right, 1.0, Par::Seq);
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let size = 37;
        let inputs: Vec<f32> = (0..90 * size).map(|i| (i as f32 * 0.71).sin()).collect();
        let mut moments = crate::Gram::new(size);
        moments.add(&inputs);
        let mut matrix = moments.finish().products;
        (0..size).for_each(|at| matrix[at * size + at] += 0.5);
        let factor = inverse_factor(&matrix, size).expect("it is positive definite");
        // UᵀU times the matrix is one.
        let at = |m: &[f32], row: usize, column: usize| f64::from(m[row * size + column]);
        let inverse = |row: usize, column: usize| -> f64 {
            (0..size).map(|k| at(&factor, k, row) * at(&factor, k, column)).sum()
        };
        for row in 0..size {
            for column in 0..size {
                let product: f64 = (0..size).map(|k| inverse(row, k) * at(&matrix, k, column)).sum();
                assert!((product - f64::from(row == column)).abs() < 1e-3, "{row} {column} {product}");
                assert!(column >= row || at(&factor, row, column) == 0.0);
            }
        }
        assert_eq!(inverse_factor(&[1.0, 2.0, 2.0, 1.0], 2), None);
        assert_eq!(inverse_factor(&[], 0), None);
    }

    #[test]
    fn a_matrix_times_its_inverse_is_one() {
        let size = 9;
        let mut matrix: Vec<f64> = (0..size * size)
            .map(|at| ((at / size + 1) as f64 * (at % size + 1) as f64 * 0.3).cos())
            .collect();
        for row in 0..size {
            for column in 0..row {
                matrix[row * size + column] = matrix[column * size + row];
            }
            matrix[row * size + row] += 6.0;
        }
        let found = inverse(&matrix, size).expect("it is positive definite");
        for row in 0..size {
            for column in 0..size {
                let sum: f64 = (0..size).map(|k| matrix[row * size + k] * found[k * size + column]).sum();
                assert!((sum - f64::from(u8::from(row == column))).abs() < 1e-12, "{row} {column} {sum}");
            }
        }
        assert_eq!(inverse(&[1.0, 2.0, 2.0, 1.0], 2), None);
        assert_eq!(damped_inverse(vec![2.0, 0.0, 0.0, 4.0], 2, 0.5), inverse(&[3.5, 0.0, 0.0, 5.5], 2));
        assert_eq!(damped_inverse(vec![0.0; 4], 2, 0.5), None);
    }

    #[test]
    fn columns_behind_are_changed_alone() {
        let (rows, columns, width) = (70, 5, 2);
        let errors: Vec<f32> = (0..rows * width).map(|i| (i % 7) as f32).collect();
        let factor: Vec<f32> = (0..width * columns).map(|i| (i % 5) as f32 - 2.0).collect();
        let before: Vec<f32> = (0..rows * columns).map(|i| (i % 11) as f32).collect();
        let mut found = before.clone();
        subtract_from_columns(&mut found, columns, 3, &errors, &factor);
        for row in 0..rows {
            for column in 0..columns {
                let sum: f32 =
                    (0..width).map(|k| errors[row * width + k] * factor[k * columns + column]).sum();
                let expected = before[row * columns + column] - if column < 3 { 0.0 } else { sum };
                assert_eq!(found[row * columns + column], expected);
            }
        }
        subtract_from_columns(&mut found, columns, 5, &errors, &factor);
    }

    #[test]
    fn eigenvectors_put_a_matrix_together_again() {
        let size = 11;
        let half: Vec<f64> = (0..size * size).map(|at| (at as f64 * 0.37).sin()).collect();
        let matrix = product(&half, &half, size, size, true);
        for (at, &element) in matrix.iter().enumerate() {
            let (row, column) = (at / size, at % size);
            let sum: f64 = (0..size).map(|k| half[row * size + k] * half[column * size + k]).sum();
            assert!((element - sum).abs() < 1e-12);
        }
        let (values, vectors) = eigen(&matrix, size).expect("it is finite");
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        let scaled: Vec<f64> = vectors.iter().enumerate().map(|(at, x)| x * values[at / size]).collect();
        let mut turned = vec![0.0; size * size];
        (0..size * size).for_each(|at| turned[at % size * size + at / size] = vectors[at]);
        let again = product(&turned, &scaled, size, size, false);
        assert!(again.iter().zip(&matrix).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!(eigen(&[f64::NAN], 1).is_none() && product(&[], &[], 0, 0, false).is_empty());
    }
}
