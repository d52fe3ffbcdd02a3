//! Matrix products on whole matrices: splitting, packing, and products of small integers.

use rayon::prelude::*;

use super::gemm::{Columns, PANEL, Rows, Start, multiply, pack_rows};
use super::simd::vectorized;
use super::threads;

/// A matrix in memory: element `(i, j)` is at `i * strides[0] + j * strides[1]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    /// Elements.
    pub data: &'a [f32],
    /// Distances between rows and between columns.
    pub strides: [usize; 2],
}

/// Multiply-adds below which splitting among threads does not pay.
const SPLIT: usize = 1 << 19;

/// Rows a task has at most; more share the packed columns less well than they fill the threads.
const ROWS: usize = 256;

/// `output[rows, columns] = left[rows, depth] * right[depth, columns]`, row-major. With `parallel` unset
/// the calling thread does it all (the caller has split the work already).
pub(crate) fn product(
    rows: usize,
    depth: usize,
    columns: usize,
    left: Matrix<'_>,
    right: Matrix<'_>,
    output: &mut [f32],
    parallel: bool,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        output.fill(0.0);
        return;
    }
    let mut packed = Vec::new();
    pack_rows(&mut packed, left.data, rows, depth, left.strides[0], left.strides[1]);
    let rows = Rows { data: &packed, depth };
    // Tasks are blocks of rows by runs of panels; each gets its piece of every row it writes.
    let threads = if parallel && rows.data.len() * columns >= SPLIT { threads::count() } else { 1 };
    let panels = columns.div_ceil(PANEL);
    let row_blocks = (output.len() / columns).div_ceil(ROWS);
    let runs = if threads == 1 { 1 } else { (2 * threads).div_ceil(row_blocks).clamp(1, panels) };
    let run = panels.div_ceil(runs) * PANEL;
    let mut tasks: Vec<Task<'_>> = Vec::new();
    for (block, output) in output.chunks_mut(ROWS * columns).enumerate() {
        let mut targets: Vec<Vec<&mut [f32]>> = (0..columns.div_ceil(run)).map(|_| Vec::new()).collect();
        for row in output.chunks_mut(columns) {
            for (piece, targets) in row.chunks_mut(run).zip(&mut targets) {
                targets.push(piece);
            }
        }
        for (index, targets) in targets.into_iter().enumerate() {
            tasks.push(Task { first_row: block * ROWS, first_column: index * run, targets });
        }
    }
    let compute = |scratch: &mut Vec<f32>, task: Task<'_>| compute(rows, right, scratch, task);
    if threads == 1 || tasks.len() == 1 {
        let mut scratch = Vec::new();
        tasks.into_iter().for_each(|task| compute(&mut scratch, task));
    } else {
        tasks.into_par_iter().for_each_init(Vec::new, compute);
    }
}

struct Task<'a> {
    first_row: usize,
    first_column: usize,
    targets: Vec<&'a mut [f32]>,
}

fn compute(rows: Rows<'_>, right: Matrix<'_>, scratch: &mut Vec<f32>, mut task: Task<'_>) {
    let depth = rows.depth;
    let count = task.targets.first().map_or(0, |target| target.len());
    let rows = rows.from(task.first_row);
    let offsets: Vec<usize> = (0..depth).map(|k| k * PANEL).collect();
    scratch.clear();
    scratch.resize(depth * PANEL, 0.0);
    let mut first = 0;
    while first < count {
        let width = PANEL.min(count - first);
        pack_panel(right, task.first_column + first, width, scratch);
        let mut targets: Vec<&mut [f32]> =
            task.targets.iter_mut().map(|target| &mut target[first..first + width]).collect();
        multiply(rows, Columns { data: scratch, offsets: &offsets, count: width }, Start::Zero, &mut targets);
        first += width;
    }
}

/// Copies `width` columns from number `column` on into rows of [`PANEL`] elements.
fn pack_panel(right: Matrix<'_>, column: usize, width: usize, panel: &mut [f32]) {
    let [row_stride, column_stride] = right.strides;
    if column_stride == 1 {
        for (k, row) in panel.chunks_mut(PANEL).enumerate() {
            row[..width].copy_from_slice(&right.data[k * row_stride + column..][..width]);
        }
    } else {
        // The columns are the contiguous ones: read along them, a block of rows at a time so that the
        // part of the panel written stays in cache.
        let depth = panel.len() / PANEL;
        for block in (0..depth).step_by(64) {
            let end = (block + 64).min(depth);
            for j in 0..width {
                let start = (column + j) * column_stride;
                for k in block..end {
                    panel[k * PANEL + j] = right.data[start + k * row_stride];
                }
            }
        }
    }
}

/// `output[rows, columns] = left[rows, depth] * right[depth, columns]` in 32-bit integers that wrap, on
/// numbers of at most 9 bits and sign. Exact, whatever the order.
pub(crate) fn product_integer(sizes: [usize; 3], left: &[i16], right: &[i16], output: &mut [i32]) {
    let [_, depth, columns] = sizes;
    if columns == 0 || depth == 0 {
        return;
    }
    /// Columns whose sums are kept at hand.
    const WIDTH: usize = 64;
    const ROWS: usize = 4;
    let block = |first: usize, output: &mut [i32]| {
        vectorized(
            #[inline(always)]
            || {
                for begin in (0..columns).step_by(WIDTH) {
                    let width = WIDTH.min(columns - begin);
                    let mut sums = [[0i32; WIDTH]; ROWS];
                    let count = output.len() / columns;
                    for k in 0..depth {
                        let row = &right[k * columns + begin..][..width];
                        for (i, sums) in sums.iter_mut().enumerate().take(count) {
                            let factor = i32::from(left[(first + i) * depth + k]);
                            for (sum, &value) in sums[..width].iter_mut().zip(row) {
                                *sum = sum.wrapping_add(factor * i32::from(value));
                            }
                        }
                    }
                    for (row, sums) in output.chunks_mut(columns).zip(&sums) {
                        row[begin..begin + width].copy_from_slice(&sums[..width]);
                    }
                }
            },
        );
    };
    if threads::count() == 1 {
        output.chunks_mut(ROWS * columns).enumerate().for_each(|(index, part)| block(index * ROWS, part));
    } else {
        let parts = output.par_chunks_mut(ROWS * columns).enumerate();
        parts.for_each(|(index, part)| block(index * ROWS, part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_strided_matrices() {
        for (m, k, n) in [(1, 1, 1), (3, 4, 5), (17, 9, 100), (300, 20, 130), (2, 70, 48)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 5) as f32 - 2.0).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i * 3 % 7) as f32 - 3.0).collect();
            for (ta, tb) in [(false, false), (true, false), (false, true), (true, true)] {
                let (sa, sb) = (if ta { [1, m] } else { [k, 1] }, if tb { [1, k] } else { [n, 1] });
                let mut c = vec![0.0; m * n];
                product(
                    m,
                    k,
                    n,
                    Matrix { data: &a, strides: sa },
                    Matrix { data: &b, strides: sb },
                    &mut c,
                    true,
                );
                for i in 0..m {
                    for j in 0..n {
                        let terms = (0..k).map(|t| a[i * sa[0] + t * sa[1]] * b[t * sb[0] + j * sb[1]]);
                        assert_eq!(c[i * n + j], terms.sum::<f32>(), "{m}x{k}x{n} at {i},{j}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_of_integers() {
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (9, 130, 70), (4, 3, 129)] {
            let a: Vec<i16> = (0..m * k).map(|i| (i * 37 % 511) as i16 - 255).collect();
            let b: Vec<i16> = (0..k * n).map(|i| (i * 91 % 511) as i16 - 255).collect();
            let mut c = vec![0; m * n];
            product_integer([m, k, n], &a, &b, &mut c);
            for i in 0..m {
                for j in 0..n {
                    let want: i32 = (0..k).map(|t| i32::from(a[i * k + t]) * i32::from(b[t * n + j])).sum();
                    assert_eq!(c[i * n + j], want);
                }
            }
        }
    }
}
