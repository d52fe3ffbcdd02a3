//! Matrix products on whole matrices: splitting, packing, and products of small integers.

use std::cell::RefCell;

use rayon::prelude::*;

use super::conv::Finish;
use super::gemm::{PANEL, Panel, Rows, Start, multiply, pack_rows};
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

/// Rows a task has at most: with a depth of some hundreds they stay in the second-level cache beside a
/// panel of columns, and what they become stays there until it is finished.
const ROWS: usize = 72;

/// Floats that [`pack_columns`] writes.
pub(crate) fn packed_size(depth: usize, columns: usize) -> usize {
    depth * columns.div_ceil(PANEL) * PANEL
}

/// Copies a matrix of `depth` rows into panels of [`PANEL`] columns, one after the other, the last one
/// filled up with zeros.
///
/// # Panics
/// When `packed` is not of [`packed_size`].
pub(crate) fn pack_columns(right: Matrix<'_>, depth: usize, columns: usize, packed: &mut [f32]) {
    assert_eq!(packed.len(), packed_size(depth, columns), "size of the packed columns");
    if depth == 0 {
        return;
    }
    for (number, panel) in packed.chunks_mut(depth * PANEL).enumerate() {
        let width = PANEL.min(columns - number * PANEL);
        if width < PANEL {
            panel.fill(0.0);
        }
        pack_panel(right, number * PANEL, width, panel);
    }
}

/// `output[rows, columns] = left[rows, depth] * right[depth, columns]`, row-major, `right` packed by
/// [`pack_columns`]; then finished a row of columns at a time. With `parallel` unset the calling thread
/// does it all (the caller has split the work already).
pub(crate) fn product(
    [rows, depth, columns]: [usize; 3],
    left: Matrix<'_>,
    right: &[f32],
    output: &mut [f32],
    parallel: bool,
    finish: Finish<'_>,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    // Tasks are blocks of rows by runs of panels; each gets its piece of every row it writes.
    let threads = if parallel && rows * depth * columns >= threads::WORTH { threads::count() } else { 1 };
    let panels = columns.div_ceil(PANEL);
    let runs = if threads == 1 { 1 } else { (2 * threads).div_ceil(rows.div_ceil(ROWS)).clamp(1, panels) };
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
    let compute = |mut task: Task<'_>| {
        PACKED_ROWS.with_borrow_mut(|scratch| compute(left, depth, right, scratch, &mut task));
        if let Some(finish) = finish {
            for (row, target) in task.targets.iter_mut().enumerate() {
                finish((task.first_row + row) * columns + task.first_column, target);
            }
        }
    };
    if threads == 1 || tasks.len() == 1 {
        tasks.into_iter().for_each(compute);
    } else {
        tasks.into_par_iter().for_each(compute);
    }
}

thread_local! {
    /// Kept from call to call: fresh memory costs more than what is written to it.
    static PACKED_ROWS: RefCell<Vec<f32>> = RefCell::default();
}

struct Task<'a> {
    first_row: usize,
    first_column: usize,
    targets: Vec<&'a mut [f32]>,
}

fn compute(left: Matrix<'_>, depth: usize, right: &[f32], scratch: &mut Vec<f32>, task: &mut Task<'_>) {
    let (count, width) = (task.targets.len(), task.targets.first().map_or(0, |target| target.len()));
    let [row_stride, column_stride] = left.strides;
    scratch.clear();
    let source = left.data.get(task.first_row * row_stride..).unwrap_or_default();
    pack_rows(scratch, source, count, depth, row_stride, column_stride);
    let rows = Rows { data: scratch, depth };
    for first in (0..width).step_by(PANEL) {
        let panel = &right[(task.first_column + first) * depth..][..depth * PANEL];
        let panel = Panel { data: panel, count: PANEL.min(width - first) };
        let mut targets: Vec<&mut [f32]> =
            task.targets.iter_mut().map(|target| &mut target[first..first + panel.count]).collect();
        multiply(rows, panel, Start::Zero, &mut targets);
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
                let mut packed = vec![f32::NAN; packed_size(k, n)];
                pack_columns(Matrix { data: &b, strides: sb }, k, n, &mut packed);
                let left = Matrix { data: &a, strides: sa };
                let add = |start: usize, part: &mut [f32]| {
                    part.iter_mut().enumerate().for_each(|(i, value)| *value += (start + i) as f32);
                };
                product([m, k, n], left, &packed, &mut c, true, Some(&add));
                for i in 0..m {
                    for j in 0..n {
                        let terms = (0..k).map(|t| a[i * sa[0] + t * sa[1]] * b[t * sb[0] + j * sb[1]]);
                        let want = terms.sum::<f32>() + (i * n + j) as f32;
                        assert_eq!(c[i * n + j], want, "{m}x{k}x{n} at {i},{j}");
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
