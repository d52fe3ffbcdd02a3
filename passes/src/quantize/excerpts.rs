//! What a layer was fed, in small: a bounded part of its inputs, kept while calibration streams by.

use optix_ir::Tensor;

/// Samples that pieces are kept of, at most; half of them when room is made.
const SAMPLES: usize = 16;

/// Elements kept for a layer, about.
const ELEMENTS: usize = 1 << 17;

/// Rows of a matrix product kept of one sample at most.
const ROWS: usize = 32;

/// How an input is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Rows along the last axis: inputs of products.
    Rows,
    /// A window of the spatial axes, at least of these sizes: inputs of convolutions.
    Window(Vec<usize>),
}

/// Pieces of a layer's input from samples spread over the data: every first, second, fourth ... sample, so
/// that it does not depend on how samples are batched.
#[derive(Clone, Debug)]
pub(super) struct Excerpts {
    cut: Cut,
    /// Samples whose number this divides are kept.
    stride: u64,
    pieces: Vec<(u64, Vec<f32>)>,
    /// Shape of a piece but for the first axis, set by the first piece.
    rest: Vec<usize>,
}

/// A number that looks random, from a sample's.
fn scattered(number: u64, salt: u64) -> usize {
    let mixed = (number.wrapping_add(salt << 32)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as usize
}

impl Excerpts {
    pub(super) fn new(cut: Cut) -> Excerpts {
        Excerpts { cut, stride: 1, pieces: Vec::new(), rest: Vec::new() }
    }

    /// Takes in a tensor of `samples` samples, of which the first has this number (from 0), as
    /// [`Observer::observe`](super::observer::Observer::observe) does.
    pub(super) fn offer(&mut self, elements: &[f32], shape: &[usize], first: u64, samples: usize) {
        let apart = samples > 1 && shape.first() == Some(&samples) && elements.len().is_multiple_of(samples);
        if !apart {
            return self.offer_one(elements, shape, first);
        }
        let (mut one, size) = (shape.to_vec(), elements.len() / samples);
        one[0] = 1;
        for sample in 0..samples {
            self.offer_one(&elements[sample * size..(sample + 1) * size], &one, first + sample as u64);
        }
    }

    fn offer_one(&mut self, elements: &[f32], shape: &[usize], number: u64) {
        if !number.is_multiple_of(self.stride) || elements.is_empty() {
            return;
        }
        let piece = match &self.cut {
            Cut::Rows => rows(elements, shape, number),
            Cut::Window(least) => window(elements, shape, least, number),
        };
        let Some((rest, piece)) = piece else { return };
        if self.pieces.is_empty() {
            self.rest = rest;
        } else if self.rest != rest {
            return;
        }
        if piece.iter().all(|x| x.is_finite()) {
            self.pieces.push((number, piece));
        }
        while self.pieces.len() > SAMPLES {
            self.stride *= 2;
            let stride = self.stride;
            self.pieces.retain(|(number, _)| number.is_multiple_of(stride));
        }
    }

    /// All pieces along axis 0; `None` when there are none.
    pub(super) fn tensor(&self) -> Option<Tensor> {
        let size: usize = self.rest.iter().product();
        let elements: Vec<f32> = self.pieces.iter().flat_map(|(_, piece)| piece.iter().copied()).collect();
        if size == 0 || elements.is_empty() {
            return None;
        }
        let shape: Vec<usize> =
            std::iter::once(elements.len() / size).chain(self.rest.iter().copied()).collect();
        Some(Tensor::from_vec(shape, elements))
    }
}

/// Some rows, evenly apart.
fn rows(elements: &[f32], shape: &[usize], number: u64) -> Option<(Vec<usize>, Vec<f32>)> {
    let width = *shape.last()?;
    let count = elements.len().checked_div(width)?;
    let wanted = (ELEMENTS / SAMPLES / width).clamp(1, ROWS).min(count);
    let start = scattered(number, 0) % count.div_ceil(wanted);
    let mut kept = Vec::with_capacity(wanted * width);
    for index in 0..wanted {
        let row = (index * count / wanted + start).min(count - 1);
        kept.extend_from_slice(&elements[row * width..(row + 1) * width]);
    }
    Some((vec![width], kept))
}

/// A window of one sample in which the first two axes are samples and channels.
fn window(elements: &[f32], shape: &[usize], least: &[usize], number: u64) -> Option<(Vec<usize>, Vec<f32>)> {
    let (&[_, channels], spatial) = shape.split_at_checked(2)? else { return None };
    // Without an axis of samples there is more than one sample in it: the first.
    if spatial.len() != least.len() || spatial.is_empty() || channels == 0 {
        return None;
    }
    let budget = (ELEMENTS / SAMPLES / channels).max(1) as f64;
    let side = budget.powf(1.0 / spatial.len() as f64) as usize;
    let sizes: Vec<usize> =
        spatial.iter().zip(least).map(|(&size, &least)| side.max(least).min(size)).collect();
    let starts: Vec<usize> = (1..)
        .zip(spatial.iter().zip(&sizes))
        .map(|(axis, (&size, &kept))| scattered(number, axis) % (size - kept + 1))
        .collect();
    let area: usize = spatial.iter().product();
    let inner = *sizes.last()?;
    let runs: usize = sizes[..sizes.len() - 1].iter().product();
    let mut kept = Vec::with_capacity(channels * runs * inner);
    for channel in 0..channels {
        for run in 0..runs {
            // The run's place: its coordinates in the window, moved to where the window starts.
            let (mut left, mut place, mut stride) = (run, *starts.last()?, *spatial.last()?);
            for axis in (0..spatial.len() - 1).rev() {
                place += (left % sizes[axis] + starts[axis]) * stride;
                left /= sizes[axis];
                stride *= spatial[axis];
            }
            let from = channel * area + place;
            kept.extend_from_slice(elements.get(from..from + inner)?);
        }
    }
    let rest: Vec<usize> = std::iter::once(channels).chain(sizes).collect();
    Some((rest, kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_cut_from_where_they_lie() {
        let shape = [1, 40, 30, 20];
        let elements: Vec<f32> = (0..40 * 30 * 20).map(|i| i as f32).collect();
        let mut excerpts = Excerpts::new(Cut::Window(vec![3, 3]));
        excerpts.offer(&elements, &shape, 0, 1);
        let tensor = excerpts.tensor().expect("a piece");
        assert_eq!(tensor.shape(), [1, 40, 14, 14]);
        let found = tensor.to_slice::<f32>().expect("floats");
        let corner = found[0];
        let at = |c: usize, y: usize, x: usize| found[(c * 14 + y) * 14 + x];
        assert_eq!(at(7, 5, 3) - corner, (7 * 600 + 5 * 20 + 3) as f32);
        assert!(corner as usize % 20 <= 6 && corner as usize / 20 <= 16);
    }

    #[test]
    fn samples_are_spread_and_batches_do_not_matter() {
        let elements: Vec<f32> = (0..100 * 6).map(|i| i as f32).collect();
        let kept = |batch: usize| {
            let mut excerpts = Excerpts::new(Cut::Rows);
            for (first, part) in (0..).step_by(batch).zip(elements.chunks(6 * batch)) {
                excerpts.offer(part, &[part.len() / 6, 2, 3], first, part.len() / 6);
            }
            excerpts.tensor().expect("pieces").to_slice::<f32>().expect("floats").into_owned()
        };
        assert_eq!(kept(1), kept(7));
        assert_eq!(kept(1), kept(100));
        // 100 samples: every eighth, both rows of each.
        assert_eq!(kept(1).len(), 13 * 6);
        assert_eq!(kept(1)[6], 48.0);
    }

    #[test]
    fn odd_tensors_are_left_out() {
        let mut excerpts = Excerpts::new(Cut::Window(vec![3, 3]));
        excerpts.offer(&[], &[0, 3, 4, 4], 0, 1);
        excerpts.offer(&[1.0; 4], &[4], 0, 1);
        excerpts.offer(&[f32::NAN; 9], &[1, 1, 3, 3], 0, 1);
        assert!(excerpts.tensor().is_none());
        let mut rows = Excerpts::new(Cut::Rows);
        rows.offer(&[], &[2, 0], 0, 2);
        rows.offer(&[1.0], &[], 0, 1);
        assert!(rows.tensor().is_none());
    }
}
