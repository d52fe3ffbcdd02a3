//! Functions of two elements with numpy's broadcasting, on 32-bit floats (onnx/docs/Broadcasting.md).

use optix_ir::DType;

use super::buffers::Block;
use super::{Fast, Job, KernelSpec, floats_or_decline, parallel, size};
use crate::fuse::program::Bound;
use crate::math::simd::vectorized;

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::plain("Add", 7, |call| binary(call, |x, y| x + y)),
    KernelSpec::plain("Sub", 7, |call| binary(call, |x, y| x - y)),
    KernelSpec::plain("Mul", 7, |call| binary(call, |x, y| x * y)),
    KernelSpec::plain("Div", 7, |call| binary(call, |x, y| x / y)),
    KernelSpec::plain("PRelu", 7, |call| binary(call, |x, y| if x < 0.0 { x * y } else { x })),
    KernelSpec::plain("Max", 8, |call| extreme(call, |x, y| if x > y || x.is_nan() { x } else { y })),
    KernelSpec::plain("Min", 8, |call| extreme(call, |x, y| if x < y || x.is_nan() { x } else { y })),
    KernelSpec::plain("Pow", 7, pow),
    KernelSpec::plain("Where", 9, select),
];

/// Shape of the broadcast of two shapes; `None` when they do not fit.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    (0..rank)
        .map(|axis| {
            let dim = |dims: &[usize]| (axis + dims.len()).checked_sub(rank).map_or(1, |axis| dims[axis]);
            match (dim(a), dim(b)) {
                (x, y) if x == y => Some(x),
                (1, y) => Some(y),
                (x, 1) => Some(x),
                _ => None,
            }
        })
        .collect()
}

/// The dimensions of a result, neighbours merged where all operands walk alike (outermost first, never
/// empty), and for each operand, whose shape broadcasts to the result's, its strides along them (0 where it
/// repeats).
pub(crate) fn merged(shapes: &[&[usize]], result: &[usize]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let rank = result.len();
    let mut dims: Vec<usize> = Vec::new();
    let mut strides: Vec<Vec<usize>> = vec![Vec::new(); shapes.len()];
    let mut running = vec![1usize; shapes.len()];
    let mut step = vec![0; shapes.len()];
    for axis in (0..rank).rev() {
        for ((step, running), shape) in step.iter_mut().zip(&mut running).zip(shapes) {
            let own = (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
            *step = if own == 1 { 0 } else { *running };
            *running *= own;
        }
        if result[axis] == 1 {
            continue;
        }
        let last = dims.len().wrapping_sub(1);
        match dims.last_mut() {
            Some(inner)
                if strides.iter().zip(&step).all(|(strides, &step)| step == strides[last] * *inner) =>
            {
                *inner *= result[axis];
            }
            _ => {
                dims.push(result[axis]);
                strides.iter_mut().zip(&step).for_each(|(strides, &step)| strides.push(step));
            }
        }
    }
    if dims.is_empty() {
        dims.push(1);
        strides.iter_mut().for_each(|strides| strides.push(0));
    }
    dims.reverse();
    strides.iter_mut().for_each(|strides| strides.reverse());
    (dims, strides)
}

/// How an operand walks the result: the result's dimensions merged where all operands walk alike.
struct Walk<const N: usize> {
    /// Merged dimensions, outermost first; never empty.
    dims: Vec<usize>,
    /// For each operand, its stride an each merged dimension (0 where it repeats).
    strides: [Vec<usize>; N],
}

impl<const N: usize> Walk<N> {
    fn new(shapes: [&[usize]; N], result: &[usize]) -> Walk<N> {
        let (dims, mut strides) = merged(&shapes, result);
        Walk { dims, strides: std::array::from_fn(|operand| std::mem::take(&mut strides[operand])) }
    }

    /// Elements of the innermost merged dimension.
    fn inner(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }

    /// Stride of an operand along the innermost dimension: 0 or 1.
    fn inner_stride(&self, operand: usize) -> usize {
        self.strides[operand][self.dims.len() - 1]
    }

    /// Where each operand's run starts for run number `row` of the result.
    fn starts(&self, mut row: usize) -> [usize; N] {
        let mut at = [0; N];
        for axis in (0..self.dims.len() - 1).rev() {
            let index = row % self.dims[axis];
            row /= self.dims[axis];
            (0..N).for_each(|operand| at[operand] += index * self.strides[operand][axis]);
        }
        at
    }
}

#[inline(always)]
pub(super) fn binary(call: &Job<'_>, function: impl Fn(f32, f32) -> f32 + Send + Sync) -> Fast {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (left, right) = (floats_or_decline!(a), floats_or_decline!(b));
    let Some(shape) = broadcast(a.shape(), b.shape()) else { return Ok(None) };
    let chain = call.chain(&shape);
    let output = combine(call, &shape, (&left, a.shape()), (&right, b.shape()), &function, chain)?;
    call.one(shape, output)
}

#[inline(always)]
fn combine(
    call: &Job<'_>,
    shape: &[usize],
    (left, left_shape): (&[f32], &[usize]),
    (right, right_shape): (&[f32], &[usize]),
    function: &(impl Fn(f32, f32) -> f32 + Send + Sync),
    chain: Option<Bound<'_>>,
) -> Result<Block, optix_ops::OpError> {
    let mut output = call.buffer(shape)?;
    let walk = Walk::new([left_shape, right_shape], shape);
    let inner = walk.inner();
    let steps = (walk.inner_stride(0), walk.inner_stride(1));
    let run = |start: [usize; 2], part: &mut [f32]| {
        let count = part.len();
        vectorized(
            #[inline(always)]
            || match steps {
                (0, 0) => part.fill(function(left[start[0]], right[start[1]])),
                (0, _) => {
                    let x = left[start[0]];
                    for (value, &y) in part.iter_mut().zip(&right[start[1]..start[1] + count]) {
                        *value = function(x, y);
                    }
                }
                (_, 0) => {
                    let y = right[start[1]];
                    for (value, &x) in part.iter_mut().zip(&left[start[0]..start[0] + count]) {
                        *value = function(x, y);
                    }
                }
                _ => {
                    let left = &left[start[0]..start[0] + count];
                    let right = &right[start[1]..start[1] + count];
                    for ((value, &x), &y) in part.iter_mut().zip(left).zip(right) {
                        *value = function(x, y);
                    }
                }
            },
        );
    };
    if walk.dims.len() == 1 {
        parallel::chunks(&mut output, 1, |at, part| {
            chained(at, part, chain.as_ref(), |at, part| run([at * steps.0, at * steps.1], part));
        });
    } else {
        parallel::rows(&mut output, inner, 1, |row, part| {
            run(walk.starts(row), part);
            if let Some(chain) = &chain {
                chain.apply(row * inner, part);
            }
        });
    }
    Ok(output)
}

/// Computes `part`, the elements from number `at` on, and takes them through the chain, in pieces that are
/// still in the first-level cache when the chain reads them.
#[inline(always)]
pub(crate) fn chained(
    at: usize,
    part: &mut [f32],
    chain: Option<&Bound<'_>>,
    compute: impl Fn(usize, &mut [f32]),
) {
    const PIECE: usize = 4 << 10;
    let Some(chain) = chain else { return compute(at, part) };
    for (number, piece) in part.chunks_mut(PIECE).enumerate() {
        let at = at + number * PIECE;
        compute(at, piece);
        chain.apply(at, piece);
    }
}

/// Max and Min of any number of inputs, folded from the first.
#[inline(always)]
fn extreme(call: &Job<'_>, function: impl Fn(f32, f32) -> f32 + Send + Sync) -> Fast {
    let first = call.input(0)?;
    let mut shape = first.shape().to_vec();
    let elements = floats_or_decline!(first);
    let mut data: Option<Block> = None;
    for slot in 1..call.inputs.len() {
        let next = call.input(slot)?;
        let right = floats_or_decline!(next);
        let Some(joint) = broadcast(&shape, next.shape()) else { return Ok(None) };
        let left: &[f32] = data.as_deref().unwrap_or(&elements);
        data = Some(combine(call, &joint, (left, &shape), (&right, next.shape()), &function, None)?);
        shape = joint;
    }
    let data = data.unwrap_or_else(|| {
        let mut copy = call.scratch(elements.len());
        copy.copy_from_slice(&elements);
        copy
    });
    call.one(shape, data)
}

fn pow(call: &Job<'_>) -> Fast {
    let exponent = call.input(1)?;
    let exponent = match exponent.dtype() {
        DType::F32 | DType::I32 | DType::I64 => exponent.single(),
        _ => None,
    };
    // Powers worth their own loop; others go through the library function.
    let base = call.input(0)?;
    if let Some(exponent) = exponent
        && base.rank() >= call.input(1)?.rank()
    {
        let elements = floats_or_decline!(base);
        let mut output = call.scratch(elements.len());
        let function: fn(f32) -> f32 = match exponent {
            2.0 => |x| x * x,
            3.0 => |x| x * x * x,
            0.5 => f32::sqrt,
            -1.0 => |x| 1.0 / x,
            _ => return Ok(None),
        };
        // Not worth a vector loop each: the call is indirect but the work is memory-bound.
        parallel::chunks(&mut output, 2, |at, part| {
            for (value, &x) in part.iter_mut().zip(&elements[at..]) {
                *value = function(x);
            }
        });
        return call.one(base.shape().to_vec(), output);
    }
    if call.input(1)?.dtype() != DType::F32 {
        return Ok(None);
    }
    binary(call, f32::powf)
}

/// Where, for elements of any size of whole bytes.
fn select(call: &Job<'_>) -> Fast {
    let (condition, a, b) = (call.input(0)?, call.input(1)?, call.input(2)?);
    if condition.dtype() != DType::Bool || a.dtype() != DType::F32 || b.dtype() != DType::F32 {
        return Ok(None);
    }
    let Some(shape) = broadcast(a.shape(), b.shape()).and_then(|ab| broadcast(&ab, condition.shape())) else {
        return Ok(None);
    };
    let (left, right) = (floats_or_decline!(a), floats_or_decline!(b));
    let mut output = call.buffer(&shape)?;
    let walk = Walk::new([condition.shape(), a.shape(), b.shape()], &shape);
    let steps = [walk.inner_stride(0), walk.inner_stride(1), walk.inner_stride(2)];
    let bits = condition.bytes();
    parallel::rows(&mut output, walk.inner(), 2, |row, part| {
        let [c, x, y] = walk.starts(row);
        for (i, value) in part.iter_mut().enumerate() {
            let chosen = bits[c + i * steps[0]] != 0;
            *value = if chosen { left[x + i * steps[1]] } else { right[y + i * steps[2]] };
        }
    });
    debug_assert_eq!(output.len(), size(&shape));
    call.one(shape, output)
}
