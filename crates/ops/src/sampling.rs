//! Sampling images at computed positions: GridSample and AffineGrid.
//!
//! <https://onnx.ai/onnx/operators/onnx__GridSample.html>,
//! <https://onnx.ai/onnx/operators/onnx__AffineGrid.html>

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{integers, product, sizes, strides};
use crate::numbers::{Numbers, float_tensor};

pub(crate) static KERNELS: &[KernelSpec] =
    &[KernelSpec::onnx("GridSample", 16, grid_sample), KernelSpec::onnx("AffineGrid", 20, affine_grid)];

/// Most spatial axes: cubic interpolation takes 4 elements along each.
const MOST_AXES: usize = 6;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// Rounds to the type that positions are computed in. Where a position decides which element is taken, a
/// position more exact than the standard's own arithmetic would choose another one.
pub(crate) fn position(dtype: DType, value: f64) -> f64 {
    if dtype == DType::F64 { value } else { f64::from(value as f32) }
}

/// One spatial axis of the sampled image.
struct Axis {
    size: usize,
    low: f64,
    high: f64,
    padding: Padding,
}

impl Axis {
    /// Mirrors at the borders until inside.
    fn reflect(&self, x: f64) -> f64 {
        let range = self.high - self.low;
        if range <= 0.0 {
            return self.low;
        }
        let distance = if x < self.low { self.low - x } else { x - self.high };
        let within = distance % (2.0 * range);
        let within = if within > range { 2.0 * range - within } else { within };
        if x < self.low { self.low + within } else { self.high - within }
    }

    /// Where a position outside of the image is looked up.
    fn fold(&self, x: f64) -> f64 {
        if !(x < self.low || x > self.high) {
            return x;
        }
        match self.padding {
            Padding::Zeros => x,
            Padding::Border => x.clamp(0.0, self.size as f64 - 1.0),
            Padding::Reflection => self.reflect(x),
        }
    }

    /// The element at a whole position; `None` where it counts as zero.
    fn element(&self, at: f64) -> Option<usize> {
        let last = self.size as f64 - 1.0;
        if (0.0..=last).contains(&at) {
            return Some(at as usize);
        }
        match self.padding {
            Padding::Zeros => None,
            Padding::Border => Some(at.clamp(0.0, last) as usize),
            Padding::Reflection => {
                let folded = if at < self.low || at > self.high { self.reflect(at) } else { at };
                Some(folded.clamp(0.0, last) as usize)
            }
        }
    }

    /// Elements and weights for a position.
    fn taps(&self, x: f64, mode: Mode) -> Vec<(Option<usize>, f64)> {
        let low = x.floor();
        let part = x - low;
        let weights: &[f64] = match mode {
            Mode::Nearest => return vec![(self.element(x), 1.0)],
            Mode::Linear => &[1.0 - part, part],
            Mode::Cubic => &[cubic(part + 1.0), cubic(part), cubic(1.0 - part), cubic(2.0 - part)],
        };
        let first = if mode == Mode::Cubic { low - 1.0 } else { low };
        (0u8..).zip(weights).map(|(step, &weight)| (self.element(first + f64::from(step)), weight)).collect()
    }
}

/// The weight of an element at that distance in cubic convolution, with the coefficient -0.75.
fn cubic(distance: f64) -> f64 {
    const A: f64 = -0.75;
    let d = distance;
    if d <= 1.0 {
        ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0
    } else {
        ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A
    }
}

fn grid_sample(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, grid) = (call.input(0)?, call.input(1)?);
    // The names of version 16 are those of two dimensions.
    let mode = match call.node.string("mode").unwrap_or("linear") {
        "nearest" => Mode::Nearest,
        "linear" | "bilinear" => Mode::Linear,
        "cubic" | "bicubic" => Mode::Cubic,
        other => return Err(call.invalid(format!("there is no mode `{other}`"))),
    };
    let padding = match call.node.string("padding_mode").unwrap_or("zeros") {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return Err(call.invalid(format!("there is no padding_mode `{other}`"))),
    };
    let corners = call.node.int("align_corners").unwrap_or(0) != 0;
    let ([batch, channels, spatial @ ..], [grid_batch, out @ .., coordinates]) = (x.shape(), grid.shape())
    else {
        return Err(call.invalid(format!("shapes {:?} and {:?} do not fit", x.shape(), grid.shape())));
    };
    let rank = spatial.len();
    if rank == 0 || out.len() != rank || *coordinates != rank || grid_batch != batch {
        return Err(call.invalid(format!("shapes {:?} and {:?} do not fit", x.shape(), grid.shape())));
    }
    if rank > MOST_AXES {
        return Err(call.unsupported(format!("sampling in {rank} dimensions")));
    }
    let shape = [&[*batch, *channels], out].concat();
    call.check_size(DType::F64, &shape)?;
    if product(&shape) > 0 && product(spatial) == 0 {
        return Err(call.invalid("there is nothing to sample"));
    }
    if !grid.dtype().is_float() {
        return Err(call.wrong_type(1, grid.dtype()));
    }
    let axes: Vec<Axis> = spatial
        .iter()
        .map(|&size| {
            let (low, high) = if corners { (0.0, size as f64 - 1.0) } else { (-0.5, size as f64 - 0.5) };
            Axis { size, low, high, padding }
        })
        .collect();
    let points = grid.to_f64s().map_err(|error| call.tensor_error(error))?;
    let round = |value: f64| position(grid.dtype(), value);
    // For every sampled point the places in one image and their weights.
    let steps = strides(spatial);
    let mut beyond = false;
    let mut sample = |point: &[f64]| -> Vec<(usize, f64)> {
        let mut taps = vec![(0usize, 1f64)];
        for (axis, (info, step)) in axes.iter().zip(&steps).enumerate() {
            // The innermost axis comes first.
            let n = point[rank - 1 - axis];
            let size = info.size as f64;
            let x = if corners {
                round(round(round(n + 1.0) / 2.0) * (size - 1.0))
            } else {
                round(round(round(round(n + 1.0) * size) - 1.0) / 2.0)
            };
            let x = if mode == Mode::Nearest { x.round_ties_even() } else { x };
            beyond |= x < info.low || x > info.high;
            let along = info.taps(info.fold(x), mode);
            taps = taps
                .iter()
                .flat_map(|&(start, weight)| {
                    along.iter().filter_map(move |&(place, part)| {
                        place.map(|place| (start + place * step, weight * part))
                    })
                })
                .collect();
        }
        taps
    };
    let (size, out_size) = (product(spatial), product(out));
    if x.dtype() == DType::Bool && mode != Mode::Nearest {
        return Err(call.wrong_type(0, x.dtype()));
    }
    let numbers = Numbers::of(call, x)?;
    let count = product(&shape);
    let mut floats = vec![0f64; if matches!(numbers, Numbers::Floats(_)) { count } else { 0 }];
    let mut whole = vec![0i64; if matches!(numbers, Numbers::Integers(_)) { count } else { 0 }];
    if count > 0 {
        for (index, point) in points.chunks(rank).enumerate() {
            let taps = sample(point);
            let (sample, at) = (index / out_size, index % out_size);
            for channel in 0..*channels {
                let image = (sample * channels + channel) * size;
                let target = (sample * channels + channel) * out_size + at;
                match &numbers {
                    Numbers::Floats(values) if mode == Mode::Nearest => {
                        floats[target] = taps.first().map_or(0.0, |&(place, _)| values[image + place]);
                    }
                    Numbers::Floats(values) => {
                        floats[target] =
                            taps.iter().map(|&(place, weight)| values[image + place] * weight).sum();
                    }
                    Numbers::Integers(values) if mode == Mode::Nearest => {
                        whole[target] = taps.first().map_or(0, |&(place, _)| values[image + place]);
                    }
                    // Computed as floating point and cast at the end.
                    Numbers::Integers(values) => {
                        let unsigned = x.dtype() == DType::U64;
                        let real = |value: i64| if unsigned { value as u64 as f64 } else { value as f64 };
                        let sum: f64 =
                            taps.iter().map(|&(place, weight)| real(values[image + place]) * weight).sum();
                        whole[target] = match x.dtype().integer_range() {
                            _ if unsigned => sum as u64 as i64,
                            Some((low, high)) => (sum as i64).clamp(low as i64, high as i64),
                            None => sum as i64,
                        };
                    }
                }
            }
        }
    }
    if beyond && mode == Mode::Cubic && padding == Padding::Border {
        // Clamped as a place, or each of its elements for itself: implementations differ.
        return Err(call.unsupported("cubic interpolation beyond the border"));
    }
    let result = match numbers {
        Numbers::Floats(_) => Numbers::Floats(floats),
        Numbers::Integers(_) => Numbers::Integers(whole),
    };
    Ok(vec![result.tensor(call, x.dtype(), shape)?])
}

fn affine_grid(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let theta = call.input(0)?;
    let size = sizes(call, &integers(call, 1)?)?;
    let corners = call.node.int("align_corners").unwrap_or(0) != 0;
    let ([batch, rows, columns], [size_batch, _, spatial @ ..]) = (theta.shape(), size.as_slice()) else {
        return Err(call.invalid(format!("shape {:?} and size {size:?} do not fit", theta.shape())));
    };
    let rank = spatial.len();
    if !(2..=3).contains(&rank) || *rows != rank || *columns != rank + 1 || batch != size_batch {
        return Err(call.invalid(format!("shape {:?} and size {size:?} do not fit", theta.shape())));
    }
    if corners && spatial.contains(&1) {
        return Err(call.unsupported("align_corners along an axis of one element"));
    }
    let shape = [&[*batch], spatial, &[rank]].concat();
    call.check_size(DType::F64, &shape)?;
    let Numbers::Floats(matrices) = Numbers::of(call, theta)? else {
        return Err(call.wrong_type(0, theta.dtype()));
    };
    let steps = strides(spatial);
    let mut result = Vec::with_capacity(product(&shape));
    for matrix in matrices.chunks(rank * (rank + 1)) {
        for place in 0..product(spatial) {
            // From -1 to 1, the innermost axis first.
            let point: Vec<f64> = (0..rank)
                .rev()
                .map(|axis| {
                    let at = (place / steps[axis] % spatial[axis]) as f64;
                    let size = spatial[axis] as f64;
                    if corners { at * 2.0 / (size - 1.0) - 1.0 } else { (2.0 * at + 1.0) / size - 1.0 }
                })
                .collect();
            for row in matrix.chunks(rank + 1) {
                let moved: f64 = row.iter().zip(&point).map(|(factor, x)| factor * x).sum();
                result.push(moved + row[rank]);
            }
        }
    }
    Ok(vec![float_tensor(call, theta.dtype(), shape, &result)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn image() -> Tensor {
        Tensor::from_vec(vec![1, 1, 2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 7.0])
    }

    fn sampled(mode: &str, padding: &str, points: &[f32]) -> Result<Vec<f64>, OpError> {
        let node = Node::new("GridSample", []).with("mode", mode).with("padding_mode", padding);
        let (image, grid) = (image(), Tensor::from_vec(vec![1, 1, points.len() / 2, 2], points.to_vec()));
        let inputs = [Some(&image), Some(&grid)];
        let call = Call::new(&node, 20, &inputs);
        grid_sample(&call).map(|outputs| outputs[0].to_f64s().unwrap())
    }

    #[test]
    fn places_outside_of_the_image_are_what_onnxruntime_makes_of_them() {
        let points = [-1.9, 0.2, 1.7, -2.5, 0.1, 0.9];
        for (mode, padding, expected) in [
            ("linear", "zeros", [0.0, 0.0, 3.180_000_3]),
            ("linear", "reflection", [3.95, 5.899_999_6, 5.3]),
            ("cubic", "zeros", [-0.052_371_707, 0.0, 3.671_469]),
            ("cubic", "reflection", [3.895_428_7, 5.989_719, 5.899_641]),
            ("nearest", "zeros", [0.0, 0.0, 5.0]),
            ("nearest", "reflection", [5.0, 5.0, 5.0]),
        ] {
            let result = sampled(mode, padding, &points).unwrap();
            for (got, expected) in result.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-5, "{mode} {padding}: {result:?}");
            }
        }
    }

    #[test]
    fn no_place_is_too_far() {
        for mode in ["nearest", "linear", "cubic"] {
            for padding in ["zeros", "border", "reflection"] {
                for far in [1e30, -1e30, f32::INFINITY, f32::NAN, f32::MAX] {
                    let result = sampled(mode, padding, &[far, -far]);
                    assert!(result.is_ok() || (mode, padding) == ("cubic", "border"), "{mode} {padding}");
                }
            }
        }
    }

    #[test]
    fn grids_are_checked() {
        let node = Node::new("AffineGrid", []);
        let theta = Tensor::from_vec(vec![1, 2, 3], vec![1f32, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let run = |size: &[i64]| {
            let size = Tensor::from_i64s(size);
            affine_grid(&Call::new(&node, 20, &[Some(&theta), Some(&size)]))
                .map(|outputs| outputs[0].to_f64s().unwrap())
        };
        assert_eq!(run(&[1, 1, 1, 2]).unwrap(), [-0.5, 0.0, 0.5, 0.0]);
        assert!(matches!(run(&[1, 1, 1 << 30, 1 << 30]), Err(OpError::TooLarge { .. })));
        assert!(run(&[1, 1, -1, 2]).is_err() && run(&[1, 1, 2, 2, 2]).is_err());
    }
}
