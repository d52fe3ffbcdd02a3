//! Images of another size, with the numbers that Pillow gives: separable filters, one pass along the rows
//! and one along the columns, each rounded to the element type. Bytes are mixed with weights of 22 bits
//! behind the point, as Pillow does, so that results are the same bit for bit.

#![allow(
    clippy::arithmetic_side_effects,
    reason = "edges are at most 65,536 and weights are normalized: the products stay below 2^31"
)]

use optix_ir::{DType, Tensor};
use serde::Deserialize;

use super::image::Geometry;
use super::state::{State, Value};
use super::{MAX_ELEMENTS, Size};

/// How pixels are mixed; names as in Pillow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The nearest pixel.
    Nearest,
    /// The mean of what is covered.
    Box,
    /// A triangle over two pixels.
    #[default]
    Bilinear,
    /// Hamming's window over two pixels.
    Hamming,
    /// A cubic over four pixels: a = -0.5, or -0.75 without antialiasing, as OpenCV and PyTorch have it.
    Bicubic,
    /// Lanczos' window over six pixels.
    Lanczos,
}

impl Mode {
    /// Half the width of the filter, in pixels.
    fn support(self) -> f64 {
        match self {
            Mode::Nearest | Mode::Box => 0.5,
            Mode::Bilinear | Mode::Hamming => 1.0,
            Mode::Bicubic => 2.0,
            Mode::Lanczos => 3.0,
        }
    }

    /// The filter at a distance from its middle. `a` is the parameter of the cubic.
    fn weight(self, x: f64, a: f64) -> f64 {
        let sinc = |x: f64| {
            if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
        };
        let distance = x.abs();
        match self {
            Mode::Nearest | Mode::Box => {
                if x > -0.5 && x <= 0.5 {
                    1.0
                } else {
                    0.0
                }
            }
            Mode::Bilinear => (1.0 - distance).max(0.0),
            Mode::Hamming if distance == 0.0 => 1.0,
            Mode::Hamming if distance >= 1.0 => 0.0,
            Mode::Hamming => {
                // Pillow has these two in 32 bits, which shows in the last bit of a byte now and then.
                let (mean, wave) = (f64::from(0.54f32), f64::from(0.46f32));
                sinc(distance) * (mean + wave * (distance * std::f64::consts::PI).cos())
            }
            Mode::Bicubic if distance < 1.0 => ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0,
            Mode::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * a,
            Mode::Bicubic => 0.0,
            Mode::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Mode::Lanczos => 0.0,
        }
    }
}

/// What one place of the result is mixed from: pixels from `start` on, with these weights.
struct Taps {
    start: usize,
    weights: Vec<f64>,
}

/// The weights for every place of an edge of `found` pixels that becomes `wanted`.
fn taps(found: usize, wanted: usize, mode: Mode, antialias: bool) -> Vec<Taps> {
    let scale = found as f64 / wanted as f64;
    let stretch = if antialias { scale.max(1.0) } else { 1.0 };
    let support = mode.support() * stretch;
    let a = if antialias { -0.5 } else { -0.75 };
    let last = found.saturating_sub(1);
    let place = |index: usize| {
        let center = (index as f64 + 0.5) * scale;
        if antialias {
            // Weights of pixels outside are left out and the others normalized.
            let start = ((center - support + 0.5).max(0.0)) as usize;
            let end = ((center + support + 0.5).max(0.0) as usize).min(found);
            let mut weights: Vec<f64> = (start..end)
                .map(|pixel| mode.weight((pixel as f64 - center + 0.5) * (1.0 / stretch), a))
                .collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|weight| *weight /= sum);
            }
            return Taps { start, weights };
        }
        // Pixels outside are those of the edge.
        let first = (center - support - 0.5).ceil() as i64;
        let count = (2.0 * support) as i64;
        let inside = |pixel: i64| usize::try_from(pixel.max(0)).unwrap_or(0).min(last);
        let start = inside(first);
        let mut weights = vec![0.0; inside(first + count - 1) - start + 1];
        for pixel in first..first + count {
            if let Some(slot) = weights.get_mut(inside(pixel) - start) {
                *slot += mode.weight(pixel as f64 + 0.5 - center, a);
            }
        }
        Taps { start, weights }
    };
    (0..wanted).map(place).collect()
}

/// Bits behind the point of integer weights.
const BITS: u32 = 22;

fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// What is mixed, and how sums become elements again.
trait Mixed: Copy {
    type Weight: Copy;
    type Sum: Copy;
    const ZERO: Self::Sum;
    fn weight(weight: f64) -> Self::Weight;
    fn add(sum: Self::Sum, value: Self, weight: Self::Weight) -> Self::Sum;
    fn done(sum: Self::Sum) -> Self;
}

impl Mixed for u8 {
    type Weight = i32;
    type Sum = i32;
    const ZERO: i32 = 1 << (BITS - 1);
    fn weight(weight: f64) -> i32 {
        fixed(weight)
    }
    fn add(sum: i32, value: u8, weight: i32) -> i32 {
        sum.wrapping_add(i32::from(value).wrapping_mul(weight))
    }
    fn done(sum: i32) -> u8 {
        (sum >> BITS).clamp(0, 255) as u8
    }
}

impl Mixed for u16 {
    type Weight = f64;
    type Sum = f64;
    const ZERO: f64 = 0.5;
    fn weight(weight: f64) -> f64 {
        weight
    }
    fn add(sum: f64, value: u16, weight: f64) -> f64 {
        sum + f64::from(value) * weight
    }
    fn done(sum: f64) -> u16 {
        sum.floor().clamp(0.0, 65_535.0) as u16
    }
}

impl Mixed for f32 {
    type Weight = f64;
    type Sum = f64;
    const ZERO: f64 = 0.0;
    fn weight(weight: f64) -> f64 {
        weight
    }
    fn add(sum: f64, value: f32, weight: f64) -> f64 {
        sum + f64::from(value) * weight
    }
    fn done(sum: f64) -> f32 {
        sum as f32
    }
}

/// Mixes along the rows of an image of `channels`.
fn along_rows<T: Mixed>(values: &[T], (width, channels): (usize, usize), taps: &[Taps]) -> Vec<T> {
    let row = width.saturating_mul(channels).max(1);
    let taps: Vec<(usize, Vec<T::Weight>)> = taps
        .iter()
        .map(|taps| (taps.start * channels, taps.weights.iter().map(|&weight| T::weight(weight)).collect()))
        .collect();
    let mut result = Vec::with_capacity(values.len() / row * taps.len() * channels);
    for row in values.chunks_exact(row) {
        for (start, weights) in &taps {
            let covered = row.get(*start..).unwrap_or_default();
            match channels {
                1 => mix::<T, 1>(covered, weights, &mut result),
                2 => mix::<T, 2>(covered, weights, &mut result),
                3 => mix::<T, 3>(covered, weights, &mut result),
                _ => mix::<T, 4>(covered, weights, &mut result),
            }
        }
    }
    result
}

fn mix<T: Mixed, const CHANNELS: usize>(covered: &[T], weights: &[T::Weight], result: &mut Vec<T>) {
    let mut sums = [T::ZERO; CHANNELS];
    let (pixels, _) = covered.as_chunks::<CHANNELS>();
    for (pixel, &weight) in pixels.iter().zip(weights) {
        for (sum, &value) in sums.iter_mut().zip(pixel) {
            *sum = T::add(*sum, value, weight);
        }
    }
    result.extend(sums.map(T::done));
}

/// Mixes along the columns; `row` elements are a row.
fn along_columns<T: Mixed>(values: &[T], row: usize, taps: &[Taps]) -> Vec<T> {
    let mut result = Vec::with_capacity(row * taps.len());
    let mut sums = vec![T::ZERO; row];
    for taps in taps {
        sums.fill(T::ZERO);
        let covered = values.chunks_exact(row.max(1)).skip(taps.start);
        for (pixels, &weight) in covered.zip(&taps.weights) {
            let weight = T::weight(weight);
            for (sum, &value) in sums.iter_mut().zip(pixels) {
                *sum = T::add(*sum, value, weight);
            }
        }
        result.extend(sums.iter().map(|&sum| T::done(sum)));
    }
    result
}

fn resized<T: Mixed>(
    values: &[T],
    geometry: Geometry,
    (height, width): (usize, usize),
    mode: Mode,
    antialias: bool,
) -> Vec<T> {
    let Geometry { channels, .. } = geometry;
    let mut values = std::borrow::Cow::Borrowed(values);
    // The order shows in the last bit of bytes. Pillow 13 takes the columns first where that loses more than
    // twice as many rows as the rows lose columns; found by trying sizes, and held to by a test.
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    let rows_lost = lost(geometry.height, height);
    let columns_first = rows_lost > 0 && rows_lost > 2 * lost(geometry.width, width);
    for columns in [columns_first, !columns_first] {
        if columns && height != geometry.height {
            let taps = taps(geometry.height, height, mode, antialias);
            let now = if columns_first { geometry.width } else { width };
            values = along_columns(&values, now.saturating_mul(channels), &taps).into();
        } else if !columns && width != geometry.width {
            let taps = taps(geometry.width, width, mode, antialias);
            values = along_rows(&values, (geometry.width, channels), &taps).into();
        }
    }
    values.into_owned()
}

/// The pixel that each place shows, by steps that add up as Pillow's do.
fn nearest(found: usize, wanted: usize) -> Vec<usize> {
    let scale = found as f64 / wanted as f64;
    let mut at = scale * 0.5;
    let mut places = Vec::with_capacity(wanted);
    for _ in 0..wanted {
        places.push((at as usize).min(found.saturating_sub(1)));
        at += scale;
    }
    places
}

impl State<'_> {
    /// Another size.
    pub(super) fn resize(
        &mut self,
        size: Size,
        mode: Mode,
        antialias: bool,
        keep_aspect: Option<bool>,
    ) -> Result<(), String> {
        let geometry = self.geometry()?;
        let (height, width) = target(size, keep_aspect, geometry);
        let elements = height.saturating_mul(width).saturating_mul(geometry.channels);
        let between = geometry.height.max(height).saturating_mul(geometry.width.max(width));
        let between = between.saturating_mul(geometry.channels);
        if height == 0 || width == 0 || elements.max(between) > MAX_ELEMENTS {
            return Err(format!(
                "{} x {} would become {height} x {width}, which no image is",
                geometry.height, geometry.width
            ));
        }
        if mode == Mode::Nearest {
            let (rows, columns) = (nearest(geometry.height, height), nearest(geometry.width, width));
            return self
                .remap(geometry, (height, width), 0.0, &|y, x| Some((*rows.get(y)?, *columns.get(x)?)));
        }
        let shape = geometry.shape(height, width);
        let out = (height, width);
        self.value = match self.take() {
            Value::Floats(_, values) => {
                Value::Floats(shape, resized(&values, geometry, out, mode, antialias))
            }
            Value::Tensor(tensor) => {
                let fail = |error: optix_ir::TensorError| error.to_string();
                match tensor.dtype() {
                    DType::U8 => {
                        let values = resized::<u8>(tensor.bytes(), geometry, out, mode, antialias);
                        Value::Tensor(Tensor::from_vec(shape, values))
                    }
                    DType::U16 => {
                        let values = tensor.to_slice::<u16>().map_err(fail)?;
                        Value::Tensor(Tensor::from_vec(
                            shape,
                            resized(&values, geometry, out, mode, antialias),
                        ))
                    }
                    DType::F32 => {
                        let values = tensor.to_slice::<f32>().map_err(fail)?;
                        Value::Floats(shape, resized(&values, geometry, out, mode, antialias))
                    }
                    dtype => {
                        return Err(format!(
                            "uint8, uint16 and float images are resized, this is {dtype}: put `{{ to-float = {{}} }}` before it"
                        ));
                    }
                }
            }
        };
        Ok(())
    }
}

/// The size that an image gets.
fn target(size: Size, keep_aspect: Option<bool>, geometry: Geometry) -> (usize, usize) {
    let (height, width) = (geometry.height, geometry.width);
    match (size, keep_aspect) {
        // The shorter edge, as torchvision: the other one is cut to a whole number.
        (Size::One(edge), None | Some(true)) => {
            let (short, long) = (height.min(width), height.max(width));
            let long = edge.saturating_mul(long) / short.max(1);
            if height <= width { (edge, long) } else { (long, edge) }
        }
        // Fitted into the size, as Pillow's ImageOps.contain.
        (Size::Two([rows, columns]), Some(true)) => {
            let (is, wanted) = (width as f64 / height as f64, columns as f64 / rows as f64);
            let whole = |edge: f64| edge.round_ties_even() as usize;
            if is > wanted {
                (whole(height as f64 / width as f64 * columns as f64), columns)
            } else if is < wanted {
                (rows, whole(width as f64 / height as f64 * rows as f64))
            } else {
                (rows, columns)
            }
        }
        (size, _) => size.both(),
    }
}
