//! Convolution by filters of one pixel that meet every input pixel in place: a plain product.

use super::super::gemm::{PANEL, Panel, multiply};
use super::super::simd::lanes;
use super::runs::copy_pixels;
use super::{Convolution, Scratch};

/// The filters of a group on the rows of a picture from number `first` on; `targets` has one slice a filter.
pub(super) fn run(
    convolution: &Convolution<'_>,
    image: usize,
    group: usize,
    first: usize,
    scratch: &mut Scratch,
    targets: &mut [&mut [f32]],
) {
    let shape = convolution.shape;
    let plane = shape.plane();
    let begin = first * shape.output[1];
    let count = targets.first().map_or(0, |target| target.len());
    let image = convolution.image(image, group);
    let channels = image.len() / plane;
    scratch.padded.resize(channels * PANEL, 0.0);
    let mut at = 0;
    while at < count {
        // A last panel of one vector would take as long as one of two.
        let width = if count - at > PANEL && count - at <= PANEL + lanes() { PANEL - lanes() } else { PANEL };
        let width = width.min(count - at);
        // Read in place, the pixels of a panel would lie a plane apart and fall on few cache sets.
        for (row, channel) in scratch.padded.chunks_mut(PANEL).zip(image.chunks(plane)) {
            copy_pixels(&mut row[..width], &channel[begin + at..][..width]);
        }
        let panel = Panel { data: &scratch.padded[..channels * PANEL], count: width };
        let mut pieces: Vec<&mut [f32]> =
            targets.iter_mut().map(|target| &mut target[at..at + width]).collect();
        multiply(convolution.rows(group, 0), panel, convolution.start(group, 0), &mut pieces);
        at += width;
    }
}
