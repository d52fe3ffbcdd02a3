//! Elements rearranged, repeated, cut out and put together: Transpose, Concat, Split, Slice, Expand, Tile,
//! Trilu, DepthToSpace, SpaceToDepth, ReverseSequence.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{
    Run, assemble, broadcast_strides, common_shape, integers, integers_or_attribute, product, sizes, strided,
    strides,
};

/// The kernels of this file.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Concat", 1, concat),
    KernelSpec::onnx("DepthToSpace", 1, depth_to_space),
    KernelSpec::onnx("Expand", 8, expand),
    KernelSpec::onnx("ReverseSequence", 10, reverse_sequence),
    KernelSpec::onnx("Slice", 1, slice),
    KernelSpec::onnx("SpaceToDepth", 1, space_to_depth),
    KernelSpec::onnx("Split", 2, split),
    KernelSpec::onnx("Tile", 6, tile),
    KernelSpec::onnx("Transpose", 1, transpose),
    KernelSpec::onnx("Trilu", 14, trilu),
];

type Outputs = Result<Vec<Tensor>, OpError>;

fn signed(strides: Vec<usize>) -> Vec<isize> {
    strides.into_iter().map(|stride| stride as isize).collect()
}

fn transpose(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let rank = data.rank();
    let order: Vec<usize> = match call.node.ints("perm") {
        Some(order) => sizes(call, order)?,
        None => (0..rank).rev().collect(),
    };
    let mut seen = vec![false; rank];
    let is_permutation = order.len() == rank
        && order.iter().all(|&axis| axis < rank && !std::mem::replace(&mut seen[axis], true));
    if !is_permutation {
        return Err(call.invalid(format!("{order:?} is no permutation of the {rank} axes of its input")));
    }
    let from = strides(data.shape());
    let shape = order.iter().map(|&axis| data.shape()[axis]).collect();
    let steps: Vec<isize> = order.iter().map(|&axis| from[axis] as isize).collect();
    Ok(vec![strided(call, data, shape, 0, &steps)?])
}

fn concat(call: &Call<'_>) -> Outputs {
    let parts: Vec<&Tensor> =
        (0..call.inputs.len()).map(|slot| call.input(slot)).collect::<Result<_, _>>()?;
    let first = *parts.first().ok_or_else(|| call.invalid("it has no inputs"))?;
    let axis = match call.node.int("axis") {
        Some(axis) => axis,
        None if call.opset < 4 => 1,
        None => return Err(call.invalid("it has no axis")),
    };
    let axis = call.axis(axis, first.rank())?;
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    for part in &parts {
        let mut expected = shape.clone();
        expected[axis] = part.shape().get(axis).copied().unwrap_or(0);
        if part.shape() != expected {
            let what = format!("shapes {:?} and {:?} differ beside axis {axis}", first.shape(), part.shape());
            return Err(call.invalid(what));
        }
        shape[axis] = shape[axis].saturating_add(part.shape()[axis]);
    }
    let outer = product(&shape[..axis]);
    let lengths: Vec<usize> = parts.iter().map(|part| product(&part.shape()[axis..])).collect();
    // Shapes without elements may have an absurd number of empty rows.
    let outer = if lengths.iter().all(|&length| length == 0) { 0 } else { outer };
    let runs = (0..outer).flat_map(|row| {
        let run = move |(source, &length): (usize, &usize)| Run { source, start: row * length, length };
        lengths.iter().enumerate().map(run)
    });
    Ok(vec![assemble(call, &parts, shape, runs)?])
}

fn split(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let axis = call.axis(call.node.int("axis").unwrap_or(0), data.rank())?;
    let size = data.shape()[axis];
    let parts = match integers_or_attribute(call, 1, "split")? {
        Some(parts) => sizes(call, &parts)?,
        None => {
            let count = match call.node.int("num_outputs") {
                Some(count) => count,
                None => call.node.outputs().len() as i64,
            };
            let outputs = call.node.outputs().len().max(1) as i64;
            if count <= 0 || count > outputs.max(size as i64) {
                return Err(call.invalid(format!("axis {axis} of size {size} cannot be split in {count}")));
            }
            let count = count as usize;
            let part = size.div_ceil(count);
            (0..count).map(|index| part.min(size.saturating_sub(index * part))).collect()
        }
    };
    if parts.iter().try_fold(0usize, |sum, &part| sum.checked_add(part)) != Some(size) {
        return Err(
            call.invalid(format!("parts of {parts:?} do not add up to {size}, the size of axis {axis}"))
        );
    }
    let steps = signed(strides(data.shape()));
    let mut start = 0;
    let mut outputs = Vec::with_capacity(parts.len());
    for part in parts {
        let mut shape = data.shape().to_vec();
        shape[axis] = part;
        outputs.push(strided(call, data, shape, start * strides(data.shape())[axis], &steps)?);
        start += part;
    }
    Ok(outputs)
}

fn slice(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let missing = |what: &str| call.invalid(format!("no {what} are given"));
    let starts = integers_or_attribute(call, 1, "starts")?.ok_or_else(|| missing("starts"))?;
    let ends = integers_or_attribute(call, 2, "ends")?.ok_or_else(|| missing("ends"))?;
    let axes = integers_or_attribute(call, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = match call.optional(4) {
        Some(_) => integers(call, 4)?,
        None => vec![1; starts.len()],
    };
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(call.invalid("starts, ends, axes and steps are not equally many"));
    }
    let mut shape = data.shape().to_vec();
    let mut strides = signed(strides(data.shape()));
    let mut first = 0usize;
    let mut cut = vec![false; data.rank()];
    for index in 0..starts.len() {
        let axis = call.axis(axes[index], data.rank())?;
        if std::mem::replace(&mut cut[axis], true) {
            return Err(call.invalid(format!("axis {axis} is given twice")));
        }
        let (start, count) = cut_of(call, starts[index], ends[index], steps[index], data.shape()[axis])?;
        first += start * strides[axis] as usize;
        shape[axis] = count;
        // A step past the end of the axis is never taken.
        let step = steps[index].clamp(-(data.len() as i64), data.len() as i64);
        strides[axis] = strides[axis].saturating_mul(step as isize);
    }
    Ok(vec![strided(call, data, shape, first, &strides)?])
}

/// First element and number of elements of `start:end:step` on an axis of that size, as Python has it.
fn cut_of(call: &Call<'_>, start: i64, end: i64, step: i64, size: usize) -> Result<(usize, usize), OpError> {
    if step == 0 {
        return Err(call.invalid("a step is 0"));
    }
    let size = size as i64;
    let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
    let bound = |value: i64| {
        let from_end = if value < 0 { value.saturating_add(size) } else { value };
        from_end.clamp(low, high)
    };
    let (start, end) = (bound(start), bound(end));
    let span = if step > 0 { end - start } else { start - end };
    if span <= 0 {
        return Ok((0, 0));
    }
    let count = (span as u64).div_ceil(step.unsigned_abs());
    Ok((start as usize, count as usize))
}

fn expand(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let wanted = sizes(call, &integers(call, 1)?)?;
    let shape = common_shape(call, data.shape(), &wanted)?;
    let steps = broadcast_strides(call, data.shape(), &shape)?;
    Ok(vec![strided(call, data, shape, 0, &steps)?])
}

fn tile(call: &Call<'_>) -> Outputs {
    if call.opset < 6 {
        return Err(call.unsupported("the form of operator set 5 and before"));
    }
    let data = call.input(0)?;
    let repeats = sizes(call, &integers(call, 1)?)?;
    if repeats.len() != data.rank() {
        let what = format!("{} repeats for a tensor of rank {}", repeats.len(), data.rank());
        return Err(call.invalid(what));
    }
    let (mut shape, mut doubled, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    for ((&size, stride), repeats) in data.shape().iter().zip(strides(data.shape())).zip(repeats) {
        shape.push(size.saturating_mul(repeats));
        doubled.extend([repeats, size]);
        steps.extend([0, stride as isize]);
    }
    call.check_size(data.dtype(), &shape)?;
    let result = strided(call, data, doubled, 0, &steps)?;
    result.reshaped(shape).map(|tensor| vec![tensor]).map_err(|error| call.tensor_error(error))
}

fn trilu(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let &[.., rows, columns] = data.shape() else {
        return Err(call.invalid(format!("the input has shape {:?}; it must be matrices", data.shape())));
    };
    let diagonal = match call.optional(1) {
        Some(_) => *integers(call, 1)?.first().ok_or_else(|| call.invalid("the diagonal is empty"))?,
        None => 0,
    };
    let upper = call.node.int("upper").unwrap_or(1) != 0;
    let zero = Tensor::zeros(data.dtype(), vec![]).map_err(|error| call.tensor_error(error))?;
    let runs = (0..data.len()).map(|place| {
        let (row, column) = ((place / columns % rows) as i64, (place % columns) as i64);
        let above = column.saturating_sub(row);
        let kept = if upper { above >= diagonal } else { above <= diagonal };
        if kept { Run::one(0, place) } else { Run::one(1, 0) }
    });
    Ok(vec![assemble(call, &[data, &zero], data.shape().to_vec(), runs)?])
}

/// Batch, channels, rows, columns and block size of the operators between depth and space.
fn blocks(call: &Call<'_>) -> Result<([usize; 4], usize), OpError> {
    let shape = call.input(0)?.shape();
    let shape = <[usize; 4]>::try_from(shape)
        .map_err(|_| call.invalid(format!("the input has shape {shape:?}; it must have four axes")))?;
    match call.node.int("blocksize").map(usize::try_from) {
        Some(Ok(block)) if block > 0 && block < 1 << 16 => Ok((shape, block)),
        _ => Err(call.invalid("its block size must be a positive number")),
    }
}

fn depth_to_space(call: &Call<'_>) -> Outputs {
    let ([batch, channels, rows, columns], block) = blocks(call)?;
    if channels % (block * block) != 0 {
        return Err(call.invalid(format!("{channels} channels are no multiple of {block} x {block}")));
    }
    let depth = channels / (block * block);
    // Axes of the input: batch, two of the block and the depth in either order, rows, columns.
    let mode = call.node.string("mode").unwrap_or("DCR");
    let (split, order) = match mode {
        "DCR" => ([batch, block, block, depth, rows, columns], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([batch, depth, block, block, rows, columns], [0, 1, 4, 2, 5, 3]),
        _ => return Err(call.invalid(format!("there is no mode `{mode}`"))),
    };
    let shape = vec![batch, depth, rows.saturating_mul(block), columns.saturating_mul(block)];
    permuted(call, split, order, shape)
}

fn space_to_depth(call: &Call<'_>) -> Outputs {
    let ([batch, channels, rows, columns], block) = blocks(call)?;
    if rows % block != 0 || columns % block != 0 {
        return Err(call.invalid(format!("{rows} x {columns} is no multiple of {block} x {block}")));
    }
    let split = [batch, channels, rows / block, block, columns / block, block];
    let shape = vec![batch, channels.saturating_mul(block * block), rows / block, columns / block];
    match call.node.string("mode").unwrap_or("DCR") {
        "DCR" => permuted(call, split, [0, 3, 5, 1, 2, 4], shape),
        "CRD" => permuted(call, split, [0, 1, 3, 5, 2, 4], shape),
        mode => Err(call.invalid(format!("there is no mode `{mode}`"))),
    }
}

/// The input with its axes split, put in another order, and joined to `shape`.
fn permuted(call: &Call<'_>, split: [usize; 6], order: [usize; 6], shape: Vec<usize>) -> Outputs {
    let from = strides(&split);
    let steps = order.map(|axis| from[axis] as isize);
    let moved = strided(call, call.input(0)?, order.map(|axis| split[axis]).to_vec(), 0, &steps)?;
    moved.reshaped(shape).map(|tensor| vec![tensor]).map_err(|error| call.tensor_error(error))
}

fn reverse_sequence(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let batch_axis = call.axis(call.node.int("batch_axis").unwrap_or(1), data.rank())?;
    let time_axis = call.axis(call.node.int("time_axis").unwrap_or(0), data.rank())?;
    if batch_axis == time_axis {
        return Err(call.invalid("batch and time are the same axis"));
    }
    let lengths = sizes(call, &integers(call, 1)?)?;
    let (batch, time) = (data.shape()[batch_axis], data.shape()[time_axis]);
    if lengths.len() != batch || lengths.iter().any(|&length| length > time) {
        let what = format!("lengths {lengths:?} do not suit {batch} sequences of at most {time}");
        return Err(call.invalid(what));
    }
    let from = strides(data.shape());
    call.check_size(DType::U64, data.shape())?;
    let runs = (0..data.len()).map(|place| {
        let at = place / from[time_axis] % time;
        let length = lengths[place / from[batch_axis] % batch];
        if at >= length {
            return Run::one(0, place);
        }
        let mirrored = length - 1 - at;
        Run::one(0, place - at * from[time_axis] + mirrored * from[time_axis])
    });
    Ok(vec![assemble(call, &[data], data.shape().to_vec(), runs)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, opset: i64, inputs: &[&Tensor]) -> Outputs {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|&tensor| Some(tensor)).collect();
        crate::evaluate_limited(node, opset, &inputs, 1 << 20)
    }

    fn numbers(count: u8) -> Tensor {
        Tensor::from_vec([count as usize], (0..count).collect::<Vec<u8>>())
    }

    #[test]
    fn slices_are_pythons() {
        // start, end, step and what `list(range(5))[start:end:step]` gives.
        let cases: [(i64, i64, i64, &[u8]); 9] = [
            (0, 5, 1, &[0, 1, 2, 3, 4]),
            (-3, i64::MAX, 1, &[2, 3, 4]),
            (1, -1, 2, &[1, 3]),
            (-1, i64::MIN, -1, &[4, 3, 2, 1, 0]),
            (10, -10, -2, &[4, 2, 0]),
            (3, 1, 1, &[]),
            (0, 5, i64::MAX, &[0]),
            (4, 0, i64::MIN, &[4]),
            (i64::MIN, i64::MAX, 3, &[0, 3]),
        ];
        for (start, end, step, expected) in cases {
            let bounds = [start, end, 0, step].map(|value| Tensor::from_i64s(&[value]));
            let inputs = [&numbers(5), &bounds[0], &bounds[1], &bounds[2], &bounds[3]];
            let result = run(&Node::new("Slice", []), 13, &inputs).unwrap();
            assert_eq!(result[0].to_slice::<u8>().unwrap().as_ref(), expected, "{start}:{end}:{step}");
        }
        let node = Node::new("Slice", []).with("starts", vec![1]).with("ends", vec![3]);
        assert_eq!(run(&node, 1, &[&numbers(5)]).unwrap()[0].bytes().as_ref(), [1, 2]);
    }

    #[test]
    fn packed_elements_move() {
        let data = Tensor::from_codes(DType::I4, [2, 3], &[1, 2, 3, 4, 5, 6]);
        let result = run(&Node::new("Transpose", []), 21, &[&data]).unwrap();
        assert_eq!(result[0].codes().unwrap().as_ref(), [1, 4, 2, 5, 3, 6]);
    }

    #[test]
    fn hostile_values_are_refused() {
        let x = Tensor::from_vec([2, 3], vec![0f32; 6]);
        let image = Tensor::from_vec([1, 2, 2, 2], vec![0f32; 8]);
        let ints = |values: &[i64]| Tensor::from_i64s(values);
        let none = Tensor::zeros(DType::F32, [0, 1 << 40, 1 << 40]).unwrap();
        let cases: Vec<(Node, Vec<&Tensor>)> = vec![
            (Node::new("Transpose", []).with("perm", vec![0, 0]), vec![&x]),
            (Node::new("Transpose", []).with("perm", vec![0, 7]), vec![&x]),
            (Node::new("Concat", []).with("axis", 2), vec![&x, &x]),
            (Node::new("Concat", []).with("axis", 0), vec![]),
            (Node::new("Concat", []).with("axis", 0), vec![&x, &image]),
            (Node::new("Split", []).with("axis", 0).with("split", vec![1, 2]), vec![&x]),
            (Node::new("Split", []).with("num_outputs", i64::MAX), vec![&x]),
            (Node::new("Split", []).with("num_outputs", 0), vec![&x]),
            (Node::new("DepthToSpace", []).with("blocksize", 0), vec![&image]),
            (Node::new("DepthToSpace", []).with("blocksize", i64::MAX), vec![&image]),
            (Node::new("SpaceToDepth", []).with("blocksize", 3), vec![&image]),
            (Node::new("Trilu", []), vec![]),
        ];
        for (node, inputs) in cases {
            let error = run(&node, 13, &inputs).expect_err(&node.op_type);
            assert!(!matches!(error, OpError::NoKernel(_)), "{error}");
        }
        for (op, values) in [("Expand", [1 << 40, 1 << 40]), ("Expand", [-1, 3]), ("Tile", [1 << 40, 1])] {
            let one = Tensor::from_vec([1, 1], vec![0f32]);
            assert!(run(&Node::new(op, []), 13, &[&one, &ints(&values)]).is_err(), "{op}");
        }
        // Absurd shapes without elements are legal.
        let result = run(&Node::new("Concat", []).with("axis", 1), 13, &[&none, &none]).unwrap();
        assert_eq!(result[0].shape(), [0, 1 << 41, 1 << 40]);
        let result = run(&Node::new("Concat", []).with("axis", 0), 13, &[&none, &none]).unwrap();
        assert!(result[0].is_empty());
    }
}
