//! Steps on images: orientation, channels, crops, rims.

use optix_ir::{DType, Tensor};
use serde::Deserialize;

use super::state::{State, Value};
use super::{Size, numbers};

/// A set of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red, as OpenCV has them.
    Bgr,
    /// One channel, without an axis of its own.
    Gray,
}

/// Where an image goes when a rim is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Into the middle; an odd rest goes to the bottom and the right.
    #[default]
    Center,
    /// To the top left.
    TopLeft,
}

/// Height, width and channels of an image, and whether the channels have an axis.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    has_axis: bool,
}

impl Geometry {
    /// The shape with other edges.
    pub(super) fn shape(self, height: usize, width: usize) -> Vec<usize> {
        if self.has_axis { vec![height, width, self.channels] } else { vec![height, width] }
    }
}

/// The bytes of one element with this value.
pub(super) fn element(dtype: DType, value: f64) -> Result<Vec<u8>, String> {
    if dtype.is_packed() {
        return Err(format!("{dtype} elements cannot be moved: cast them first"));
    }
    let one = numbers::cast(&Tensor::scalar(value), dtype)?;
    Ok(one.bytes().to_vec())
}

/// An image put together from pixels of another: `at` tells which, `None` gives `fill`. A pixel is `unit`
/// elements of `values`.
fn gather<T: Copy>(
    values: &[T],
    (unit, width): (usize, usize),
    (out_height, out_width): (usize, usize),
    fill: &[T],
    at: &dyn Fn(usize, usize) -> Option<(usize, usize)>,
) -> Vec<T> {
    let mut result = Vec::with_capacity(out_height.saturating_mul(out_width).saturating_mul(unit));
    for y in 0..out_height {
        for x in 0..out_width {
            let pixel = at(y, x).and_then(|(y, x)| {
                let start = y.checked_mul(width)?.checked_add(x)?.checked_mul(unit)?;
                values.get(start..start.checked_add(unit)?)
            });
            match pixel {
                Some(pixel) => result.extend_from_slice(pixel),
                None => result.extend(fill.iter().copied().cycle().take(unit)),
            }
        }
    }
    result
}

impl State<'_> {
    /// The sample as an image.
    pub(super) fn geometry(&self) -> Result<Geometry, String> {
        let shape = self.value.shape();
        if self.channels_first {
            return Err("the channels are in front already: put this step before `layout`".to_owned());
        }
        match *shape {
            [height, width] if height > 0 && width > 0 => {
                Ok(Geometry { height, width, channels: 1, has_axis: false })
            }
            [height, width, channels @ 1..=4] if height > 0 && width > 0 => {
                Ok(Geometry { height, width, channels, has_axis: true })
            }
            _ => Err(format!(
                "it needs an image, height x width or height x width x 1 to 4 channels; this sample has shape {shape:?}"
            )),
        }
    }

    /// Puts the image together anew; see [`gather`].
    pub(super) fn remap(
        &mut self,
        geometry: Geometry,
        out: (usize, usize),
        fill: f64,
        at: &dyn Fn(usize, usize) -> Option<(usize, usize)>,
    ) -> Result<(), String> {
        let shape = geometry.shape(out.0, out.1);
        let Geometry { width, channels, .. } = geometry;
        self.value = match self.take() {
            Value::Floats(_, values) => {
                Value::Floats(shape, gather(&values, (channels, width), out, &[fill as f32], at))
            }
            Value::Tensor(tensor) => {
                let one = element(tensor.dtype(), fill)?;
                let unit = channels.saturating_mul(one.len());
                let bytes = gather(tensor.bytes(), (unit, width), out, &one, at);
                Value::of_bytes(tensor.dtype(), shape, bytes)?
            }
        };
        Ok(())
    }

    /// Turns and mirrors as EXIF's eight orientations say.
    pub(super) fn exif_orientation(&mut self) -> Result<(), String> {
        if !self.is_first {
            return Err(
                "it must be the first step: the orientation is that of the whole picture as it was taken"
                    .to_owned(),
            );
        }
        let geometry = self.geometry()?;
        let Geometry { height, width, .. } = geometry;
        let (bottom, right) = (height.saturating_sub(1), width.saturating_sub(1));
        let up = move |y: usize| bottom.saturating_sub(y);
        let left = move |x: usize| right.saturating_sub(x);
        let (same, turned) = ((height, width), (width, height));
        match self.facts.orientation {
            2 => self.remap(geometry, same, 0.0, &|y, x| Some((y, left(x)))),
            3 => self.remap(geometry, same, 0.0, &|y, x| Some((up(y), left(x)))),
            4 => self.remap(geometry, same, 0.0, &|y, x| Some((up(y), x))),
            5 => self.remap(geometry, turned, 0.0, &|y, x| Some((x, y))),
            6 => self.remap(geometry, turned, 0.0, &|y, x| Some((up(x), y))),
            7 => self.remap(geometry, turned, 0.0, &|y, x| Some((up(x), left(y)))),
            8 => self.remap(geometry, turned, 0.0, &|y, x| Some((x, left(y)))),
            _ => Ok(()),
        }
    }

    /// Another set of channels.
    pub(super) fn channel(&mut self, channel: Channel) -> Result<(), String> {
        let geometry = self.geometry()?;
        let Geometry { height, width, channels, .. } = geometry;
        // One or two channels are grey, the second and the fourth are transparency.
        let is_color = channels >= 3;
        let order: &[usize] = match (channel, is_color) {
            (Channel::Gray, true) => return self.make_gray(geometry),
            (Channel::Gray, false) => &[0],
            (_, false) => &[0, 0, 0],
            (Channel::Rgb, true) => &[0, 1, 2],
            (Channel::Bgr, true) => &[2, 1, 0],
        };
        let shape = match channel {
            Channel::Gray => vec![height, width],
            _ => vec![height, width, 3],
        };
        self.value = match self.take() {
            Value::Floats(_, values) => Value::Floats(shape, select(&values, channels, 1, order)),
            Value::Tensor(tensor) => {
                let size = element(tensor.dtype(), 0.0)?.len();
                let bytes = select(tensor.bytes(), channels, size, order);
                Value::of_bytes(tensor.dtype(), shape, bytes)?
            }
        };
        Ok(())
    }

    /// ITU-R 601-2 luma: for bytes as Pillow computes it, in 16 bits behind the point.
    fn make_gray(&mut self, geometry: Geometry) -> Result<(), String> {
        let Geometry { height, width, channels, .. } = geometry;
        let shape = vec![height, width];
        if let Value::Tensor(tensor) = &self.value
            && tensor.dtype() == DType::U8
        {
            let luma = |pixel: &[u8]| {
                let weighted = pixel.iter().zip([19595u32, 38470, 7471]);
                let sum = weighted.fold(0x8000u32, |sum, (&value, weight)| {
                    sum.saturating_add(u32::from(value).saturating_mul(weight))
                });
                u8::try_from(sum >> 16).unwrap_or(u8::MAX)
            };
            let values: Vec<u8> = tensor.bytes().chunks_exact(channels).map(luma).collect();
            self.value = Value::Tensor(Tensor::from_vec(shape, values));
            return Ok(());
        }
        let values = match self.take() {
            Value::Floats(_, values) => values,
            Value::Tensor(tensor) if tensor.dtype() == DType::F32 => numbers::to_f32s(&tensor)?,
            Value::Tensor(tensor) => {
                let dtype = tensor.dtype();
                return Err(format!(
                    "grey is made of uint8 or floats, these are {dtype}: put `{{ to-float = {{}} }}` before it"
                ));
            }
        };
        let luma = |pixel: &[f32]| {
            pixel.iter().zip([0.299f32, 0.587, 0.114]).map(|(value, weight)| value * weight).sum()
        };
        self.value = Value::Floats(shape, values.chunks_exact(channels).map(luma).collect());
        Ok(())
    }

    /// Cuts out the middle.
    pub(super) fn center_crop(&mut self, size: Size) -> Result<(), String> {
        let geometry = self.geometry()?;
        let (height, width) = size.both();
        // First row of the image that is seen, or rows of rim above it; torchvision rounds halves to even.
        let offset = |found: usize, wanted: usize| {
            let extra = found.saturating_sub(wanted);
            let half = extra / 2;
            let start = if extra % 2 == 1 { half.saturating_add(half % 2) } else { half };
            (start, wanted.saturating_sub(found) / 2)
        };
        let ((top, above), (left, before)) = (offset(geometry.height, height), offset(geometry.width, width));
        let Geometry { height: rows, width: columns, .. } = geometry;
        self.remap(geometry, (height, width), 0.0, &|y, x| {
            let y = y.checked_add(top)?.checked_sub(above)?;
            let x = x.checked_add(left)?.checked_sub(before)?;
            (y < rows && x < columns).then_some((y, x))
        })
    }

    /// Cuts out a part.
    pub(super) fn crop(&mut self, (top, left): (usize, usize), out: (usize, usize)) -> Result<(), String> {
        let geometry = self.geometry()?;
        let inside = |start: usize, length: usize, edge: usize| {
            start.checked_add(length).is_some_and(|end| end <= edge)
        };
        if !inside(top, out.0, geometry.height) || !inside(left, out.1, geometry.width) {
            return Err(format!(
                "{} x {} from row {top}, column {left} is not within the image of {} x {}",
                out.0, out.1, geometry.height, geometry.width
            ));
        }
        self.remap(geometry, out, 0.0, &|y, x| Some((y.checked_add(top)?, x.checked_add(left)?)))
    }

    /// Adds a rim.
    pub(super) fn pad(&mut self, size: Size, value: f64, place: Place) -> Result<(), String> {
        let geometry = self.geometry()?;
        let (height, width) = size.both();
        let out = (height.max(geometry.height), width.max(geometry.width));
        let before = |wanted: usize, found: usize| match place {
            Place::Center => wanted.saturating_sub(found) / 2,
            Place::TopLeft => 0,
        };
        let (above, left) = (before(out.0, geometry.height), before(out.1, geometry.width));
        let Geometry { height: rows, width: columns, .. } = geometry;
        self.remap(geometry, out, value, &|y, x| {
            let (y, x) = (y.checked_sub(above)?, x.checked_sub(left)?);
            (y < rows && x < columns).then_some((y, x))
        })
    }
}

/// The channels of each pixel in another order; a channel is `size` elements of `values`.
fn select<T: Copy>(values: &[T], channels: usize, size: usize, order: &[usize]) -> Vec<T> {
    let pixels = values.chunks_exact(channels.saturating_mul(size).max(1));
    pixels
        .flat_map(|pixel| {
            order.iter().flat_map(move |&channel| {
                let start = channel.saturating_mul(size);
                pixel.get(start..start.saturating_add(size)).unwrap_or_default().iter().copied()
            })
        })
        .collect()
}
