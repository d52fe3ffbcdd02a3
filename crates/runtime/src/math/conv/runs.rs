//! Copies of rectangles of pixels. Rows are short: a call of the library's copy would cost more than the
//! copy, so each row is a few whole blocks, the last of which overlaps the one before.

/// Rows of pixels that go from one picture into another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    /// Place of the first pixel in the target, and from one row to the next.
    pub to: usize,
    pub to_step: usize,
    /// The same in the source.
    pub from: usize,
    pub from_step: usize,
    pub rows: usize,
    /// Pixels of a row, of which every `stride`-th one of the source is taken.
    pub count: usize,
    pub stride: usize,
}

impl Runs {
    /// Copies the rows.
    ///
    /// # Panics
    /// When they do not lie inside the pictures.
    #[inline(always)]
    pub(super) fn copy(&self, target: &mut [f32], source: &[f32]) {
        if self.stride == 1 && self.to_step == self.count && self.from_step == self.count {
            // Rows without gaps are one row.
            let all = Runs { rows: 1.min(self.rows), count: self.rows * self.count, ..*self };
            return all.each(target, source, copy_pixels);
        }
        match (self.stride, self.count) {
            (1, 17..) => self.each(target, source, blocks::<8>),
            (1, 8..) => self.each(target, source, ends::<8>),
            (1, 4..) => self.each(target, source, ends::<4>),
            (1, _) => self.each(target, source, blocks::<1>),
            (2, _) => self.each(target, source, evens),
            _ => self.each(target, source, |target, source| {
                target.iter_mut().zip(source.iter().step_by(self.stride)).for_each(|(to, from)| *to = *from);
            }),
        }
    }

    #[inline(always)]
    fn each(&self, target: &mut [f32], source: &[f32], copy: impl Fn(&mut [f32], &[f32])) {
        let Some(last) = self.count.checked_sub(1) else { return };
        let extent = last * self.stride + 1;
        let (mut to, mut from, mut done) = (self.to, self.from, 0);
        while done < self.rows {
            let Some(target) = target.get_mut(to..to.wrapping_add(self.count)) else { break };
            let Some(source) = source.get(from..from.wrapping_add(extent)) else { break };
            copy(target, source);
            to = to.wrapping_add(self.to_step);
            from = from.wrapping_add(self.from_step);
            done += 1;
        }
        assert_eq!(done, self.rows, "rows lie inside the pictures");
    }
}

/// Copies a row.
#[inline(always)]
pub(super) fn copy_pixels(target: &mut [f32], source: &[f32]) {
    match target.len() {
        8.. => blocks::<8>(target, source),
        4.. => blocks::<4>(target, source),
        _ => blocks::<1>(target, source),
    }
}

/// Copies at least `N` pixels in blocks.
#[inline(always)]
fn blocks<const N: usize>(target: &mut [f32], source: &[f32]) {
    let (whole, _) = target.as_chunks_mut::<N>();
    whole.iter_mut().zip(source.as_chunks::<N>().0).for_each(|(to, from)| *to = *from);
    if let (Some(to), Some(from)) = (target.last_chunk_mut::<N>(), source.last_chunk::<N>()) {
        *to = *from;
    }
}

/// Copies from `N` to `2 * N` pixels as two blocks.
#[inline(always)]
fn ends<const N: usize>(target: &mut [f32], source: &[f32]) {
    if let (Some(to), Some(from)) = (target.first_chunk_mut::<N>(), source.first_chunk::<N>()) {
        *to = *from;
    }
    if let (Some(to), Some(from)) = (target.last_chunk_mut::<N>(), source.last_chunk::<N>()) {
        *to = *from;
    }
}

/// Copies every second pixel.
#[inline(always)]
fn evens(target: &mut [f32], source: &[f32]) {
    let (pairs, last) = source.as_chunks::<2>();
    target.iter_mut().zip(pairs).for_each(|(to, from)| *to = from[0]);
    if let (Some(to), Some(from)) = (target.last_mut(), last.last()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_what_the_definition_says() {
        for stride in 1..4 {
            for count in 0..40 {
                let source: Vec<f32> = (0..400).map(|i| i as f32 + 1.0).collect();
                let runs = Runs { to: 2, to_step: 41, from: 3, from_step: 131, rows: 3, count, stride };
                let mut want = vec![0.0; 130];
                for (row, pixel) in (0..3).flat_map(|row| (0..count).map(move |pixel| (row, pixel))) {
                    want[2 + row * 41 + pixel] = source[3 + row * 131 + pixel * stride];
                }
                let mut got = vec![0.0; 130];
                runs.copy(&mut got, &source);
                assert_eq!(got, want, "{runs:?}");
            }
        }
    }
}
