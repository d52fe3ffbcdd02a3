//! Moving whole elements, whatever their type: the common part of all kernels that compute nothing.

use optix_ir::{DType, Tensor, element_count};

use crate::call::{Call, OpError};

/// Elements of a source tensor that follow each other in the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Which of the sources.
    pub(crate) source: usize,
    /// The first element, counted in row-major order.
    pub(crate) start: usize,
    /// How many.
    pub(crate) length: usize,
}

impl Run {
    /// One element.
    pub(crate) fn one(source: usize, start: usize) -> Run {
        Run { source, start, length: 1 }
    }
}

/// A tensor of that shape made of runs of elements of the sources, which are of one type.
///
/// # Errors
/// When the sources differ in type, a run reaches past its source, the runs do not fill the shape, or the
/// result is beyond the call's limit.
pub(crate) fn assemble(
    call: &Call<'_>,
    sources: &[&Tensor],
    shape: Vec<usize>,
    runs: impl IntoIterator<Item = Run>,
) -> Result<Tensor, OpError> {
    let Some(dtype) = sources.first().map(|tensor| tensor.dtype()) else {
        return Err(call.invalid("there is no input to take elements from"));
    };
    if let Some(other) = sources.iter().map(|tensor| tensor.dtype()).find(|&other| other != dtype) {
        return Err(call.invalid(format!("its inputs are of types {dtype} and {other}; they must be equal")));
    }
    call.check_size(dtype, &shape)?;
    match dtype.bits() {
        0 => assemble_strings(call, sources, shape, runs),
        2 | 4 | 6 => {
            let codes: Result<Vec<_>, _> = sources.iter().map(|tensor| tensor.codes()).collect();
            let codes = codes.map_err(|error| call.tensor_error(error))?;
            let codes: Vec<&[u8]> = codes.iter().map(AsRef::as_ref).collect();
            let taken = take(call, &codes, &shape, runs)?;
            Ok(Tensor::from_codes(dtype, shape, &taken))
        }
        8 => assemble_bytes::<1>(call, sources, shape, runs),
        16 => assemble_bytes::<2>(call, sources, shape, runs),
        32 => assemble_bytes::<4>(call, sources, shape, runs),
        64 => assemble_bytes::<8>(call, sources, shape, runs),
        _ => assemble_bytes::<16>(call, sources, shape, runs),
    }
}

fn assemble_bytes<const WIDTH: usize>(
    call: &Call<'_>,
    sources: &[&Tensor],
    shape: Vec<usize>,
    runs: impl IntoIterator<Item = Run>,
) -> Result<Tensor, OpError> {
    let elements: Vec<&[[u8; WIDTH]]> =
        sources.iter().map(|tensor| tensor.bytes().as_chunks::<WIDTH>().0).collect();
    let taken = take(call, &elements, &shape, runs)?;
    Tensor::new(sources[0].dtype(), shape, taken.into_flattened().into())
        .map_err(|error| call.tensor_error(error))
}

fn assemble_strings(
    call: &Call<'_>,
    sources: &[&Tensor],
    shape: Vec<usize>,
    runs: impl IntoIterator<Item = Run>,
) -> Result<Tensor, OpError> {
    // A reference takes 16 bytes.
    call.check_size(DType::Complex128, &shape)?;
    let strings: Result<Vec<_>, _> = sources.iter().map(|tensor| tensor.strings()).collect();
    let strings = strings.map_err(|error| call.tensor_error(error))?;
    let strings: Vec<&[&[u8]]> = strings.iter().map(Vec::as_slice).collect();
    let taken = take(call, &strings, &shape, runs)?;
    let bytes = taken.iter().fold(0usize, |sum, text| sum.saturating_add(text.len()).saturating_add(4));
    call.check_size(DType::U8, &[bytes])?;
    Ok(Tensor::from_strings(shape, &taken))
}

fn take<T: Copy>(
    call: &Call<'_>,
    sources: &[&[T]],
    shape: &[usize],
    runs: impl IntoIterator<Item = Run>,
) -> Result<Vec<T>, OpError> {
    let count = element_count(shape).unwrap_or(usize::MAX);
    let mut taken: Vec<T> = Vec::with_capacity(count);
    for Run { source, start, length } in runs {
        let source = sources.get(source).copied().unwrap_or(&[]);
        if length == 1 {
            taken.push(*source.get(start).ok_or_else(|| outside(call, start, source.len()))?);
            continue;
        }
        let run = start.checked_add(length).and_then(|end| source.get(start..end));
        taken.extend_from_slice(run.ok_or_else(|| outside(call, start, source.len()))?);
    }
    if taken.len() != count {
        return Err(call.invalid(format!("{} elements for the shape {shape:?}", taken.len())));
    }
    Ok(taken)
}

fn outside(call: &Call<'_>, start: usize, length: usize) -> OpError {
    call.invalid(format!("element {start} is outside a tensor of {length} elements"))
}

/// How far apart the elements of each axis are in a row-major tensor.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        // Only shapes without elements can overflow.
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// Places in a buffer of the elements of a box, in row-major order of the box.
#[derive(Clone, Debug)]
pub(crate) struct Places<'a> {
    shape: &'a [usize],
    strides: &'a [isize],
    index: Vec<usize>,
    at: isize,
    left: usize,
}

/// Walks a box of `shape` whose first element is at `start` and whose axes step by `strides`.
pub(crate) fn places<'a>(shape: &'a [usize], start: usize, strides: &'a [isize]) -> Places<'a> {
    let left = element_count(shape).unwrap_or(0);
    Places { shape, strides, index: vec![0; shape.len()], at: start as isize, left }
}

impl Iterator for Places<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let place = self.at as usize;
        for axis in (0..self.shape.len()).rev() {
            self.index[axis] += 1;
            self.at = self.at.wrapping_add(self.strides[axis]);
            if self.index[axis] < self.shape[axis] {
                break;
            }
            self.at = self.at.wrapping_sub(self.strides[axis].wrapping_mul(self.index[axis] as isize));
            self.index[axis] = 0;
        }
        Some(place)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// A tensor of that shape whose elements are those of `source` that [`places`] names.
pub(crate) fn strided(
    call: &Call<'_>,
    source: &Tensor,
    shape: Vec<usize>,
    start: usize,
    strides: &[isize],
) -> Result<Tensor, OpError> {
    call.check_size(source.dtype(), &shape)?;
    if element_count(&shape) == Some(0) {
        return Tensor::zeros(source.dtype(), shape).map_err(|error| call.tensor_error(error));
    }
    // The innermost axes that lie densely move as one run.
    let mut axis = shape.len();
    let mut length = 1usize;
    while axis > 0 && (strides[axis - 1] == length as isize || shape[axis - 1] == 1) {
        axis -= 1;
        length *= shape[axis];
    }
    let outer = shape[..axis].to_vec();
    let runs = places(&outer, start, &strides[..axis]).map(|start| Run { source: 0, start, length });
    assemble(call, &[source], shape, runs)
}

/// Strides for reading a tensor of shape `from` as if it had shape `to`, by ONNX's broadcasting rules.
///
/// # Errors
/// When it cannot be broadcast to that shape.
pub(crate) fn broadcast_strides(
    call: &Call<'_>,
    from: &[usize],
    to: &[usize],
) -> Result<Vec<isize>, OpError> {
    let refused = || call.invalid(format!("shape {from:?} does not broadcast to {to:?}"));
    let missing = to.len().checked_sub(from.len()).ok_or_else(refused)?;
    let mut result = vec![0isize; to.len()];
    for (axis, (&size, stride)) in from.iter().zip(strides(from)).enumerate() {
        if size == to[missing + axis] {
            result[missing + axis] = if size == 1 { 0 } else { stride as isize };
        } else if size != 1 {
            return Err(refused());
        }
    }
    Ok(result)
}

/// The shape that two shapes broadcast to.
pub(crate) fn common_shape(call: &Call<'_>, a: &[usize], b: &[usize]) -> Result<Vec<usize>, OpError> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| match (axis + shape.len()).checked_sub(rank) {
        Some(axis) => shape[axis],
        None => 1,
    };
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (a, b) if a == b => Ok(a),
            (1, b) => Ok(b),
            (a, 1) => Ok(a),
            _ => Err(call.invalid(format!("shapes {a:?} and {b:?} do not broadcast together"))),
        })
        .collect()
}

/// The values of `from` repeated to shape `to`.
pub(crate) fn broadcast<T: Copy>(
    call: &Call<'_>,
    values: &[T],
    from: &[usize],
    to: &[usize],
) -> Result<Vec<T>, OpError> {
    let strides = broadcast_strides(call, from, to)?;
    Ok(places(to, 0, &strides).map(|place| values[place]).collect())
}

/// Input `slot` as integers.
pub(crate) fn integers(call: &Call<'_>, slot: usize) -> Result<Vec<i64>, OpError> {
    call.input(slot)?.to_i64s().map_err(|_| {
        let found = call.optional(slot).map_or("nothing", |tensor| tensor.dtype().name());
        call.invalid(format!("input {slot} must hold integers, not {found}"))
    })
}

/// Input `slot` as integers, or the attribute of that name, which is where older versions have them.
pub(crate) fn integers_or_attribute(
    call: &Call<'_>,
    slot: usize,
    attribute: &str,
) -> Result<Option<Vec<i64>>, OpError> {
    match call.optional(slot) {
        Some(_) => integers(call, slot).map(Some),
        None => Ok(call.node.ints(attribute).map(<[i64]>::to_vec)),
    }
}

/// Sizes given as values.
pub(crate) fn sizes(call: &Call<'_>, values: &[i64]) -> Result<Vec<usize>, OpError> {
    let size = |&value: &i64| {
        usize::try_from(value).map_err(|_| call.invalid(format!("{value} is no size: it is negative")))
    };
    values.iter().map(size).collect()
}

/// An index along an axis of that size, counted from the end when negative.
pub(crate) fn index(call: &Call<'_>, index: i64, size: usize) -> Result<usize, OpError> {
    let positive = if index < 0 { index.saturating_add_unsigned(size as u64) } else { index };
    match usize::try_from(positive) {
        Ok(positive) if positive < size => Ok(positive),
        _ => Err(call.invalid(format!("index {index} is outside an axis of size {size}"))),
    }
}

/// Product of sizes; saturates where there can be no such tensor.
pub(crate) fn product(sizes: &[usize]) -> usize {
    element_count(sizes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    #[test]
    fn elements_of_every_width_move() {
        let node = Node::new("Test", []);
        let call = Call::new(&node, 18, &[]);
        for &dtype in DType::ALL {
            let source = match dtype {
                DType::String => Tensor::from_strings([3], &["a", "bc", ""]),
                _ if dtype.bits() <= 8 => Tensor::from_codes(dtype, [3], &[1, 0, 1]),
                _ => {
                    let bytes: Vec<u8> = (0..dtype.bits() / 8 * 3).map(|byte| byte as u8).collect();
                    Tensor::new(dtype, [3], bytes.into()).unwrap()
                }
            };
            let reversed = strided(&call, &source, vec![3], 2, &[-1]).unwrap();
            let again = strided(&call, &reversed, vec![3], 2, &[-1]).unwrap();
            assert_eq!(again, source, "{dtype}");
            let spread = strided(&call, &source, vec![2, 3], 0, &[0, 1]).unwrap();
            assert_eq!(strided(&call, &spread, vec![3], 3, &[1]).unwrap(), source, "{dtype}");
        }
    }

    #[test]
    fn runs_are_checked() {
        let node = Node::new("Test", []);
        let call = Call::new(&node, 18, &[]);
        let source = Tensor::from_i64s(&[1, 2, 3]);
        for run in [Run { source: 0, start: 2, length: 2 }, Run::one(0, 3), Run::one(1, 0), Run::one(0, 0)] {
            assert!(assemble(&call, &[&source], vec![2], [run]).is_err(), "{run:?}");
        }
        let limited = Call { limit: 100, ..call };
        assert!(matches!(
            strided(&limited, &source, vec![1 << 40], 0, &[0]),
            Err(OpError::TooLarge { limit: 100, .. })
        ));
    }
}
