//! Single-precision matrix products: one register-blocked tile and the loops around it.
//!
//! `C[m, n] = A[m, k] * B[k, n] + start`. `A` is packed by [`pack_rows`]; `B` is read through one offset a
//! row, so that a plain matrix, a packed copy of some of its columns and the shifted pictures of a
//! convolution are all the same to the tile.
//!
//! **Determinism.** Every element of `C` is one chain of multiply-adds over `k` in ascending order,
//! whatever the tile and however rows and columns are split among threads: results do not depend on the
//! number of threads.

use pulp::{Simd, WithSimd};

use super::simd::{dispatch, lanes, store};

/// Columns of a packed panel: three 512-bit vectors, or six of 256 bits.
pub(crate) const PANEL: usize = 48;

/// The rows of `A`, packed by [`pack_rows`].
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// Groups of rows, one after the other; within a group the elements of one column are adjacent.
    pub data: &'a [f32],
    /// Elements of a row: `k`.
    pub depth: usize,
}

impl<'a> Rows<'a> {
    /// The rows from number `first` on, which must be a multiple of [`ROWS`].
    pub(crate) fn from(self, first: usize) -> Rows<'a> {
        Rows { data: &self.data[first * self.depth..], depth: self.depth }
    }
}

/// Where the rows of `B` start.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    /// By row.
    starts: Vec<usize>,
    /// The greatest of them.
    last: usize,
}

impl Offsets {
    /// Forgets all rows.
    pub(crate) fn clear(&mut self) {
        self.starts.clear();
        self.last = 0;
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, start: usize) {
        self.starts.push(start);
        self.last = self.last.max(start);
    }
}

impl FromIterator<usize> for Offsets {
    fn from_iter<I: IntoIterator<Item = usize>>(starts: I) -> Offsets {
        let mut offsets = Offsets::default();
        starts.into_iter().for_each(|start| offsets.push(start));
        offsets
    }
}

/// `B`, a row at a time.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    data: &'a [f32],
    offsets: &'a Offsets,
    count: usize,
}

impl<'a> Columns<'a> {
    /// `count` columns. A tile reads whole vectors: from every row that number rounded up to [`PADDING`]
    /// should be readable.
    pub(crate) fn new(data: &'a [f32], offsets: &'a Offsets, count: usize) -> Columns<'a> {
        Columns { data, offsets, count }
    }
}

/// Up to [`PANEL`] columns of `B`, one row after the other: what is read is adjacent, so it stays in the
/// first-level cache whatever the size of the matrix it comes from.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    /// `k` rows of [`PANEL`] elements.
    pub data: &'a [f32],
    /// Number of columns.
    pub count: usize,
}

/// Where a tile reads `B` from. Implemented in this file only: tiles rely on what it says.
pub(crate) trait Source<'a>: Copy {
    /// Number of columns.
    fn count(self) -> usize;

    /// Number of rows.
    fn rows(self) -> usize;

    /// Columns that can be read of every row, those beyond the last one included.
    fn readable(self) -> usize;

    /// Of row `k` the `length` elements from column `from` on.
    ///
    /// # Safety
    /// `k` is less than [`Source::rows`], and `from + length` at most [`Source::readable`].
    #[allow(unsafe_code)]
    unsafe fn row(self, k: usize, from: usize, length: usize) -> &'a [f32];
}

impl<'a> Source<'a> for Columns<'a> {
    fn count(self) -> usize {
        self.count
    }

    fn rows(self) -> usize {
        self.offsets.starts.len()
    }

    fn readable(self) -> usize {
        self.data.len().saturating_sub(self.offsets.last)
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn row(self, k: usize, from: usize, length: usize) -> &'a [f32] {
        // SAFETY: the caller promises that there is a row `k`. None starts behind `last`, from which on there
        // are as many elements as `readable` says, at least `from + length` of them.
        unsafe {
            let start = self.offsets.starts.get_unchecked(k).wrapping_add(from);
            self.data.get_unchecked(start..start.wrapping_add(length))
        }
    }
}

impl<'a> Source<'a> for Panel<'a> {
    fn count(self) -> usize {
        self.count
    }

    fn rows(self) -> usize {
        self.data.len() / PANEL
    }

    fn readable(self) -> usize {
        PANEL
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn row(self, k: usize, from: usize, length: usize) -> &'a [f32] {
        let start = k.wrapping_mul(PANEL).wrapping_add(from);
        // SAFETY: the caller promises that row `k` lies inside `data`, and that the elements lie inside it.
        unsafe { self.data.get_unchecked(start..start.wrapping_add(length)) }
    }
}

/// What the number of readable columns is rounded up to: the widest vector.
pub(crate) const PADDING: usize = 16;

/// What a product starts from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Zero.
    Zero,
    /// One number a row of `C` (a convolution's bias).
    PerRow(&'a [f32]),
}

/// Whether there are 32 vector registers, not 16: so it is where vectors have 512 bits.
#[inline(always)]
fn has_many_registers(lanes: usize) -> bool {
    lanes >= 16
}

/// How many rows the next group has when `left` are left.
#[inline(always)]
fn group_size(lanes: usize, left: usize) -> usize {
    let widest = if has_many_registers(lanes) { 8 } else { 6 };
    if left >= widest {
        widest
    } else if left >= 4 {
        4
    } else if left >= 2 {
        2
    } else {
        1
    }
}

/// How many vectors of columns the next tile of `rows` rows has when `left` are left. Sums, a row of `B` and a
/// factor have to fit the registers with one to spare: without it the compiler keeps a sum in memory.
#[inline(always)]
fn tile_width(rows: usize, lanes: usize, left: usize) -> usize {
    let fitting: &[usize] = match rows {
        // Four vectors are two and two: a tile of one vector waits for its own sums.
        8 if left == 4 => &[2],
        8 => &[3, 2, 1],
        6 => &[2, 1],
        4 if has_many_registers(lanes) && left != 4 => &[3, 2, 1],
        4 => &[2, 1],
        2 => &[4, 2, 1],
        _ => &[6, 3, 1],
    };
    fitting.iter().copied().find(|&width| width <= left).unwrap_or(1)
}

/// Rows from a multiple of this number on are packed as if they were the first ones.
pub(crate) const ROWS: usize = 24;

/// Appends `count` rows of `depth` elements to `packed`, in the order in which tiles read them. Element
/// `k` of row `i` is at `i * row_stride + k * column_stride` of `source`.
pub(crate) fn pack_rows(
    packed: &mut Vec<f32>,
    source: &[f32],
    count: usize,
    depth: usize,
    row_stride: usize,
    column_stride: usize,
) {
    let lanes = lanes();
    let begin = packed.len();
    packed.resize(begin + count * depth, 0.0);
    let mut left = &mut packed[begin..];
    let mut first = 0;
    while first < count {
        let size = group_size(lanes, count - first);
        let (target, rest) = std::mem::take(&mut left).split_at_mut(size * depth);
        left = rest;
        if column_stride == 1 {
            let rows = |r: usize| &source[(first + r) * row_stride..][..depth];
            match size {
                8 => interleave::<8>(std::array::from_fn(rows), target),
                6 => interleave::<6>(std::array::from_fn(rows), target),
                4 => interleave::<4>(std::array::from_fn(rows), target),
                2 => interleave::<2>(std::array::from_fn(rows), target),
                _ => target.copy_from_slice(rows(0)),
            }
        } else {
            for (k, column) in target.chunks_mut(size).enumerate() {
                for (i, value) in column.iter_mut().enumerate() {
                    *value = source[(first + i) * row_stride + k * column_stride];
                }
            }
        }
        first += size;
    }
}

/// `target[k * R + r] = rows[r][k]`.
fn interleave<const R: usize>(rows: [&[f32]; R], target: &mut [f32]) {
    let (columns, _) = target.as_chunks_mut::<R>();
    for (k, column) in columns.iter_mut().enumerate() {
        for (value, row) in column.iter_mut().zip(rows) {
            *value = row[k];
        }
    }
}

/// Computes `C`; `targets` has one slice a row, of at least as many elements as there are columns.
pub(crate) fn multiply<'a>(
    rows: Rows<'a>,
    columns: impl Source<'a>,
    start: Start<'a>,
    targets: &mut [&mut [f32]],
) {
    dispatch(Multiply { rows, columns, start, targets });
}

struct Multiply<'a, 't, 'u, B> {
    rows: Rows<'a>,
    columns: B,
    start: Start<'a>,
    targets: &'t mut [&'u mut [f32]],
}

impl<'a, B: Source<'a>> WithSimd for Multiply<'a, '_, '_, B> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Multiply { rows, columns, start, targets } = self;
        let lanes = S::F32_LANES;
        let vectors = columns.count().div_ceil(lanes);
        let mut first = 0;
        while first < targets.len() {
            let size = group_size(lanes, targets.len() - first);
            let group = &mut targets[first..first + size];
            let mut at = 0;
            while at < vectors {
                let width = tile_width(size, lanes, vectors - at);
                match (size, width) {
                    (8, 3) => tile::<S, B, 8, 3>(simd, rows, columns, start, first, at, group),
                    (8, 2) => tile::<S, B, 8, 2>(simd, rows, columns, start, first, at, group),
                    (8, _) => tile::<S, B, 8, 1>(simd, rows, columns, start, first, at, group),
                    (6, 2) => tile::<S, B, 6, 2>(simd, rows, columns, start, first, at, group),
                    (6, _) => tile::<S, B, 6, 1>(simd, rows, columns, start, first, at, group),
                    (4, 3) => tile::<S, B, 4, 3>(simd, rows, columns, start, first, at, group),
                    (4, 2) => tile::<S, B, 4, 2>(simd, rows, columns, start, first, at, group),
                    (4, _) => tile::<S, B, 4, 1>(simd, rows, columns, start, first, at, group),
                    (2, 4) => tile::<S, B, 2, 4>(simd, rows, columns, start, first, at, group),
                    (2, 2) => tile::<S, B, 2, 2>(simd, rows, columns, start, first, at, group),
                    (2, _) => tile::<S, B, 2, 1>(simd, rows, columns, start, first, at, group),
                    (_, 6) => tile::<S, B, 1, 6>(simd, rows, columns, start, first, at, group),
                    (_, 3) => tile::<S, B, 1, 3>(simd, rows, columns, start, first, at, group),
                    _ => tile::<S, B, 1, 1>(simd, rows, columns, start, first, at, group),
                }
                at += width;
            }
            first += size;
        }
    }
}

/// Repeats a body for every row of a tile, unrolled by hand: the compiler would not unroll this much, and
/// sums indexed by a variable would live in memory.
macro_rules! for_each_row {
    ($r:ident, $count:ident, $body:block) => {
        for_each_row!(@ $r, $count, $body, 0 1 2 3 4 5 6 7)
    };
    (@ $r:ident, $count:ident, $body:block, $($number:literal)*) => {
        $(if $number < $count {
            let $r = $number;
            $body
        })*
    };
}

/// `R` rows times `V` vectors of columns, the sums in registers. `first` is the first row's number, `at`
/// the first vector's.
#[inline(always)]
fn tile<'a, S: Simd, B: Source<'a>, const R: usize, const V: usize>(
    simd: S,
    rows: Rows<'a>,
    columns: B,
    start: Start<'_>,
    first: usize,
    at: usize,
    targets: &mut [&mut [f32]],
) {
    let lanes = S::F32_LANES;
    let column = at * lanes;
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    if let Start::PerRow(bias) = start {
        for_each_row!(r, R, {
            sums[r] = [simd.splat_f32s(bias[first + r]); V];
        });
    }
    let (factors, _) = rows.data[first * rows.depth..(first + R) * rows.depth].as_chunks::<R>();
    assert!(
        factors.is_empty() || factors.len() <= columns.rows() && column + V * lanes <= columns.readable(),
        "every row of B is readable up to whole vectors"
    );
    // Nothing in this loop may panic: a way out other than its end would keep the sums in memory. Where the
    // machine shares its arithmetic with another thread, each check costs as much as a multiply-add.
    for (k, factors) in factors.iter().enumerate() {
        #[allow(unsafe_code)]
        // SAFETY: there are as many rows as factors and as many columns as are read, by the assertion above.
        // Vectors are plain numbers and are read from wherever they lie.
        let right: [S::f32s; V] = unsafe {
            let row = columns.row(k, column, V * lanes).as_ptr().cast::<[S::f32s; V]>();
            row.read_unaligned()
        };
        for_each_row!(r, R, {
            let factor = simd.splat_f32s(factors[r]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_e_f32s(factor, right[v], sums[r][v]);
            }
        });
    }
    for_each_row!(r, R, {
        let target = &mut *targets[r];
        for (v, &sum) in sums[r].iter().enumerate() {
            let from = column + v * lanes;
            if from + lanes <= columns.count() {
                store::<S>(&mut target[from..], sum);
            } else if from < columns.count() {
                simd.partial_store_f32s(&mut target[from..columns.count()], sum);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_plain_sum_for_every_tile_shape() {
        for m in [1, 2, 3, 5, 7, 8, 13, 17] {
            for n in [1, 15, 16, 17, 33, 48, 49, 100, 150] {
                for k in [0, 1, 2, 9] {
                    let a: Vec<f32> = (0..m * k).map(|i| ((i * 7 % 11) as f32) - 5.0).collect();
                    let stride = n + PADDING;
                    let b: Vec<f32> = (0..k * stride + PADDING).map(|i| (i * 5 % 13) as f32).collect();
                    let bias: Vec<f32> = (0..m).map(|i| i as f32).collect();
                    let offsets: Offsets = (0..k).map(|i| i * stride).collect();
                    let mut packed = Vec::new();
                    pack_rows(&mut packed, &a, m, k, k, 1);
                    let mut c = vec![f32::NAN; m * n];
                    let mut targets: Vec<&mut [f32]> = c.chunks_mut(n).collect();
                    multiply(
                        Rows { data: &packed, depth: k },
                        Columns::new(&b, &offsets, n),
                        Start::PerRow(&bias),
                        &mut targets,
                    );
                    for i in 0..m {
                        for j in 0..n {
                            let want = (0..k).fold(bias[i], |sum, t| sum + a[i * k + t] * b[t * stride + j]);
                            assert_eq!(c[i * n + j], want, "{m}x{k}x{n} at {i},{j}");
                        }
                    }
                }
            }
        }
    }
}
