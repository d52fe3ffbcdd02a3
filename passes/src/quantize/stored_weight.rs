//! Weights of a layer that stand as integers in a graph, behind what makes floats of them again.

use optix_ir::{DType, Model, NodeId, Tensor, Use, ValueId};

use super::certificate::{WeightLayout, pairs_can_saturate};
use super::pairs::is_dequantize;
use crate::unroll::Unrolled;

/// Integer weights with what they stand for, element by element in the order of the file.
#[derive(Clone, Debug)]
pub(crate) struct StoredWeight {
    /// The constant.
    pub(crate) value: ValueId,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) integers: Vec<i32>,
    /// Scale of each.
    pub(crate) steps: Vec<f32>,
    /// Zero point of each; none where all are 0.
    zeros: Option<Vec<i32>>,
    /// Least and greatest integer that may be used.
    pub(crate) range: (i32, i32),
}

impl StoredWeight {
    /// What an integer in the place of element `at` stands for.
    pub(crate) fn float(&self, at: usize, integer: i32) -> f32 {
        (integer - self.zero(at)) as f32 * self.steps[at]
    }

    /// The integer that stands for 0 in the place of element `at`.
    pub(crate) fn zero(&self, at: usize) -> i32 {
        self.zeros.as_ref().map_or(0, |zeros| zeros[at])
    }

    /// Other integers as a tensor of the same type.
    pub(crate) fn tensor(&self, integers: &[i32]) -> Tensor {
        // The bits of a narrow integer are the low ones of a wide one.
        let codes: Vec<u8> = integers.iter().map(|&integer| integer as u8).collect();
        Tensor::from_codes(self.dtype, self.shape.clone(), &codes)
    }
}

/// Along which axes numbers lie that stand for blocks of elements: by axis, how many elements share one and how
/// far its index moves.
fn spread<T: Copy>(numbers: &[T], shape: &[usize], strides: &[(usize, usize)]) -> Option<Vec<T>> {
    let count: usize = shape.iter().product();
    let mut at = vec![0usize; shape.len()];
    let mut found = Vec::with_capacity(count);
    for _ in 0..count {
        let index: usize =
            at.iter().zip(strides).map(|(place, (block, stride))| place / block * stride).sum();
        found.push(*numbers.get(index)?);
        for axis in (0..at.len()).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    Some(found)
}

/// How the elements of `of` lie along those of `shape`: one for all, one a place of `axis`, one a block of
/// `block` places of it, or broadcast from axes of size 1.
fn strides(of: &[usize], shape: &[usize], axis: usize, block: usize) -> Option<Vec<(usize, usize)>> {
    if of.iter().product::<usize>() == 1 {
        return Some(vec![(1, 0); shape.len()]);
    }
    if of.len() == 1 && block == 0 {
        let is_axis = |at: usize| usize::from(at == axis);
        return (shape.get(axis) == of.first())
            .then(|| (0..shape.len()).map(|at| (1, is_axis(at))).collect());
    }
    if of.len() != shape.len() {
        return None;
    }
    let (mut found, mut stride) = (vec![(1, 0); shape.len()], 1);
    for at in (0..shape.len()).rev() {
        let shared = if block > 0 && at == axis { block } else { 1 };
        if of[at] == shape[at].div_ceil(shared) {
            found[at] = (shared, if of[at] == 1 { 0 } else { stride });
        } else if of[at] != 1 {
            return None;
        }
        stride *= of[at];
    }
    Some(found)
}

/// Why a layer has no integer weights: it is none that anybody would expect them of.
pub(crate) const FLOAT: &str = "its weights are not stored in integers";

/// The integers of a layer's weights, which nothing else reads.
///
/// # Errors
/// Why there are none ([`FLOAT`]), or none that can be changed alone.
pub(crate) fn stored_weight(model: &Model, layer: NodeId) -> Result<StoredWeight, String> {
    let float = || FLOAT.to_owned();
    let floats = model.node(layer).input(1).ok_or_else(float)?;
    let only = |value: ValueId| matches!(model.value(value).uses(), [Use::Node(..)]);
    let (producer, _) = model.value(floats).producer().ok_or_else(float)?;
    let node = model.node(producer);
    let (value, scale, zero, axis, block) = if is_dequantize(node) {
        let axis = node.int("axis").unwrap_or(1);
        let block = usize::try_from(node.int("block_size").unwrap_or(0)).unwrap_or(0);
        (node.input(0), node.input(1), node.input(2), axis, block)
    } else if node.is("Mul") {
        // As weights are stored: a Cast, then the scales.
        let cast = |slot: usize| {
            let (cast, _) = model.value(node.input(slot)?).producer()?;
            model.node(cast).input(0).filter(|_| model.node(cast).is("Cast"))
        };
        match (cast(0), cast(1)) {
            (Some(value), None) => (Some(value), node.input(1), None, 0, 0),
            (None, Some(value)) => (Some(value), node.input(0), None, 0, 0),
            _ => return Err(float()),
        }
    } else {
        return Err(float());
    };
    let value = value.ok_or_else(float)?;
    let tensor = model.constant(value).ok_or_else(float)?;
    if !only(floats) || !only(value) {
        return Err("other nodes read its weights too: they are not rounded for one of them alone".to_owned());
    }
    let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
    let range = dtype.integer_range().filter(|_| dtype.bits() <= 8);
    let Some((low, high)) = range else {
        return Err(format!("its weights are {dtype}"));
    };
    let integers: Vec<i32> =
        tensor.to_i64s().map_err(|error| error.to_string())?.into_iter().map(|x| x as i32).collect();
    let scales = scale.and_then(|scale| model.constant(scale)).filter(|scale| scale.dtype() == DType::F32);
    let scales = scales.ok_or("its scales are not constant floats")?;
    let axis = usize::try_from(if axis < 0 { axis + shape.len() as i64 } else { axis }).unwrap_or(0);
    let places = strides(scales.shape(), &shape, axis, block).ok_or("its scales do not fit its weights")?;
    let of_scales = scales.to_slice::<f32>().map_err(|error| error.to_string())?;
    let misfit = || "its scales do not fit its weights".to_owned();
    let steps = spread(&of_scales, &shape, &places).ok_or_else(misfit)?;
    let zeros = match zero {
        None => None,
        Some(zero) => {
            let held = model.constant(zero).ok_or("its zero points are computed")?;
            let numbers: Vec<i32> =
                held.to_i64s().map_err(|error| error.to_string())?.into_iter().map(|x| x as i32).collect();
            match numbers.iter().any(|&zero| zero != 0) {
                true => Some(spread(&numbers, &shape, &places).ok_or_else(misfit)?),
                false => None,
            }
        }
    };
    // Symmetric int8 leaves out its least integer, and so do its changes.
    let low = low as i32;
    let low = if dtype == DType::I8 && !integers.contains(&low) { low + 1 } else { low };
    Ok(StoredWeight { value, dtype, shape, integers, steps, zeros, range: (low, high as i32) })
}

/// For each place in the depth of a layer the one whose product kernels add to it in int16, where such sums
/// cannot be clipped as the weights are and are to stay so; `None` where nothing is added in pairs.
pub(crate) fn partners(
    model: &Model,
    layer: NodeId,
    unrolled: &Unrolled,
    weight: &StoredWeight,
) -> Option<Vec<usize>> {
    let node = model.node(layer);
    let input = node.input(0).and_then(|input| model.value(input).producer());
    let is_integer = input.is_some_and(|(producer, _)| is_dequantize(model.node(producer)));
    let layout = WeightLayout::of(node);
    let is_depthwise = unrolled.groups > 1 && unrolled.rows == 1;
    let held = model.constant(weight.value)?;
    if !is_integer || weight.dtype != DType::I8 || is_depthwise || pairs_can_saturate(held, layout) {
        return None;
    }
    // Kernels run over the places of a convolution first, and over the channels within each.
    let places: usize = match layout {
        WeightLayout::Convolution { .. } => weight.shape.get(2..)?.iter().product(),
        WeightLayout::InOut | WeightLayout::OutIn => 1,
    };
    let depth = unrolled.depth;
    let inputs = depth / places.max(1);
    let partner = |place: usize| {
        let other = (place % places * inputs + place / places) ^ 1;
        // The last one of an odd depth has none.
        if other < depth { other % inputs * places + other / inputs } else { usize::MAX }
    };
    Some((0..depth).map(partner).collect())
}
