//! QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, exact: division by the scale, rounding half
//! to even, saturation (onnx/docs/Operators.md). Per tensor and per axis, 8-bit numbers and int32 biases;
//! blocks and other types are left to the reference.

use optix_ir::{DType, Tensor};

use super::{Fast, Job, KernelSpec, floats_or_decline, parallel, size};
use crate::math::simd::vectorized;

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("QuantizeLinear", 10, quantize),
    KernelSpec::plain("DequantizeLinear", 10, dequantize),
    KernelSpec::plain("DynamicQuantizeLinear", 11, quantize_dynamically),
];

/// Scale and zero point of every run of elements.
struct Grid {
    scales: Vec<f32>,
    zeros: Vec<f32>,
    /// Adjacent elements that share a scale.
    run: usize,
}

/// Reads scale and zero point of a Q or DQ node; `None` for what is left to the reference.
fn grid(call: &Job<'_>, zero_type: DType) -> Option<Grid> {
    let (input, scale) = (call.optional(0)?, call.optional(1)?);
    let scales = super::floats(scale)?.into_owned();
    if call.node.int("block_size").unwrap_or(0) != 0 {
        return None;
    }
    let zeros = match call.optional(2) {
        Some(zero) if zero.dtype() != zero_type || zero.len() != scales.len() => return None,
        Some(zero) => zero.to_i64s().ok()?.into_iter().map(|zero| zero as f32).collect(),
        None => vec![0.0; scales.len()],
    };
    let run = if scales.len() == 1 {
        input.len()
    } else {
        let axis = call.axis(call.node.int("axis").unwrap_or(1), input.rank()).ok()?;
        if scale.rank() != 1 || input.shape()[axis] != scales.len() {
            return None;
        }
        size(&input.shape()[axis + 1..])
    };
    Some(Grid { scales, zeros, run })
}

/// Applies `function(element, scale, zero point)` run by run.
#[inline(always)]
fn apply<A: Copy + Sync, B: Send>(
    grid: &Grid,
    source: &[A],
    target: &mut [B],
    function: impl Fn(A, f32, f32) -> B + Send + Sync,
) {
    let run = |number: usize, start: usize, part: &mut [B]| {
        let (scale, zero) = (grid.scales[number], grid.zeros[number]);
        let source = &source[start..start + part.len()];
        vectorized(
            #[inline(always)]
            || {
                for (value, &x) in part.iter_mut().zip(source) {
                    *value = function(x, scale, zero);
                }
            },
        );
    };
    if grid.scales.len() == 1 {
        parallel::chunks(target, 2, |start, part| run(0, start, part));
    } else {
        parallel::rows(target, grid.run, 2, |row, part| run(row % grid.scales.len(), row * grid.run, part));
    }
}

/// Rounds half to even and limits; NaN becomes the lower limit.
#[inline(always)]
fn code(x: f32, scale: f32, zero: f32, low: f32, high: f32) -> f32 {
    let level = (x / scale).round_ties_even() + zero;
    let level = if level > low { level } else { low };
    if level < high { level } else { high }
}

fn quantize(call: &Job<'_>) -> Fast {
    let input = call.input(0)?;
    let dtype = match (call.optional(2), call.node.int("output_dtype").unwrap_or(0)) {
        (Some(zero), _) => zero.dtype(),
        (None, 0) => DType::U8,
        (None, code) => i32::try_from(code).ok().and_then(DType::from_onnx).unwrap_or(DType::F32),
    };
    if !matches!(dtype, DType::U8 | DType::I8) || call.node.int("precision").unwrap_or(0) > 1 {
        return Ok(None);
    }
    let Some(grid) = grid(call, dtype) else { return Ok(None) };
    let elements = floats_or_decline!(input);
    let shape = input.shape().to_vec();
    let result = if dtype == DType::U8 {
        let mut codes = vec![0u8; elements.len()];
        apply(&grid, &elements, &mut codes, |x, scale, zero| code(x, scale, zero, 0.0, 255.0) as u8);
        Tensor::from_vec(shape, codes)
    } else {
        let mut codes = vec![0i8; elements.len()];
        apply(&grid, &elements, &mut codes, |x, scale, zero| code(x, scale, zero, -128.0, 127.0) as i8);
        Tensor::from_vec(shape, codes)
    };
    Ok(Some(vec![result]))
}

fn dequantize(call: &Job<'_>) -> Fast {
    let input = call.input(0)?;
    let Some(grid) = grid(call, input.dtype()) else { return Ok(None) };
    if !matches!(call.node.int("output_dtype").unwrap_or(0), 0 | 1) {
        return Ok(None);
    }
    let mut output = call.scratch(input.len());
    match input.dtype() {
        DType::U8 => {
            apply(&grid, input.bytes(), &mut output, |x: u8, scale, zero| (f32::from(x) - zero) * scale);
        }
        DType::I8 => {
            apply(&grid, input.bytes(), &mut output, |x: u8, scale, zero| (f32::from(x as i8) - zero) * scale)
        }
        DType::I32 if grid.zeros.iter().all(|&zero| zero == 0.0) => {
            let elements = input.to_slice::<i32>().map_err(|error| call.tensor_error(error))?;
            apply(&grid, &elements, &mut output, |x: i32, scale, _| x as f32 * scale);
        }
        _ => return Ok(None),
    }
    call.one(input.shape().to_vec(), output)
}

fn quantize_dynamically(call: &Job<'_>) -> Fast {
    let input = call.input(0)?;
    let elements = floats_or_decline!(input);
    let (mut low, mut high) = (0.0f32, 0.0f32);
    for &x in elements.iter() {
        low = if x < low { x } else { low };
        high = if x > high { x } else { high };
    }
    let scale = (high - low) / 255.0;
    let zero = if scale == 0.0 { 0.0 } else { (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even() };
    if scale == 0.0 || !scale.is_finite() {
        return Ok(None);
    }
    let grid = Grid { scales: vec![scale], zeros: vec![zero], run: elements.len() };
    let mut codes = vec![0u8; elements.len()];
    apply(&grid, &elements, &mut codes, |x, scale, zero| code(x, scale, zero, 0.0, 255.0) as u8);
    Ok(Some(vec![
        Tensor::from_vec(input.shape().to_vec(), codes),
        Tensor::scalar(scale),
        Tensor::scalar(zero as u8),
    ]))
}
