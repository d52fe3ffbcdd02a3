//! Pad and CenterCropPad: elements around a tensor, or fewer of them.

use optix_ir::Tensor;

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{Run, assemble, integers, integers_or_attribute, product, strides};
use crate::numbers::float_tensor;

/// The kernels of this file.
pub(crate) static KERNELS: &[KernelSpec] =
    &[KernelSpec::onnx("CenterCropPad", 18, center_crop_pad), KernelSpec::onnx("Pad", 2, pad)];

type Outputs = Result<Vec<Tensor>, OpError>;

/// What stands beyond the edges.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Constant,
    Edge,
    Reflect,
    Wrap,
}

fn pad(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let pads = match call.opset {
        ..11 => call.node.ints("pads").map(<[i64]>::to_vec),
        _ => integers_or_attribute(call, 1, "pads")?,
    };
    let pads = pads.ok_or_else(|| call.invalid("no pads are given"))?;
    let axes = match call.optional(3) {
        Some(_) => integers(call, 3)?,
        None => (0..data.rank() as i64).collect(),
    };
    if pads.len() != axes.len() * 2 {
        return Err(call.invalid(format!(
            "{} pads for {} axes; two an axis are needed",
            pads.len(),
            axes.len()
        )));
    }
    let mode = match call.node.string("mode").unwrap_or("constant") {
        "constant" => Mode::Constant,
        "edge" => Mode::Edge,
        "reflect" => Mode::Reflect,
        "wrap" => Mode::Wrap,
        other => return Err(call.invalid(format!("there is no mode `{other}`"))),
    };
    let fill = match call.optional(2) {
        Some(value) if value.len() == 1 => value.clone(),
        Some(value) => return Err(call.invalid(format!("the constant has {} elements", value.len()))),
        None => match call.node.float("value") {
            Some(value) if value != 0.0 => float_tensor(call, data.dtype(), vec![], &[f64::from(value)])?,
            _ => Tensor::zeros(data.dtype(), vec![]).map_err(|error| call.tensor_error(error))?,
        },
    };
    let mut around = vec![(0i64, 0i64); data.rank()];
    for (index, &axis) in axes.iter().enumerate() {
        around[call.axis(axis, data.rank())?] = (pads[index], pads[index + axes.len()]);
    }
    padded(call, data, &fill, mode, &around)
}

/// The tensor with that many more (or fewer) elements before and after each axis.
fn padded(call: &Call<'_>, data: &Tensor, fill: &Tensor, mode: Mode, around: &[(i64, i64)]) -> Outputs {
    let mut shape = Vec::with_capacity(data.rank());
    for (&size, &(before, after)) in data.shape().iter().zip(around) {
        let padded = size as i128 + i128::from(before) + i128::from(after);
        let padded = usize::try_from(padded).map_err(|_| {
            call.invalid(format!("pads {before} and {after} take more than the {size} there are"))
        })?;
        if size == 0 && padded > 0 && mode != Mode::Constant {
            return Err(call.invalid("an axis without elements can only be padded with a constant"));
        }
        shape.push(padded);
    }
    call.check_size(data.dtype(), &shape)?;
    if product(&shape) == 0 {
        return Tensor::zeros(data.dtype(), shape)
            .map(|tensor| vec![tensor])
            .map_err(|error| call.tensor_error(error));
    }
    // Where each coordinate of the result comes from, axis by axis; sizes are within the limit here.
    let origins: Vec<Vec<Option<usize>>> = shape
        .iter()
        .zip(data.shape())
        .zip(around)
        .map(|((&padded, &size), &(before, _))| {
            (0..padded as i64).map(|at| origin(i128::from(at) - i128::from(before), size, mode)).collect()
        })
        .collect();
    let (inner_shape, outer) =
        (shape.last().copied().unwrap_or(1), product(&shape[..shape.len().max(1) - 1]));
    let steps = strides(data.shape());
    let inner = origins.last().cloned().unwrap_or_else(|| vec![Some(0)]);
    let rows = (0..outer).map(|row| {
        let (mut row, mut start) = (row, Some(0));
        for axis in (0..shape.len().saturating_sub(1)).rev() {
            let place = origins[axis][row % shape[axis]];
            row /= shape[axis];
            start = start.zip(place).map(|(start, place)| start + place * steps[axis]);
        }
        start
    });
    let runs = rows.flat_map(|start| {
        let inner = &inner;
        (0..inner_shape).map(move |at| match start.zip(inner[at]) {
            Some((start, at)) => Run::one(0, start + at),
            None => Run::one(1, 0),
        })
    });
    Ok(vec![assemble(call, &[data, fill], shape.clone(), runs)?])
}

/// The element of an axis that stands at a coordinate which may be beyond its edges.
fn origin(at: i128, size: usize, mode: Mode) -> Option<usize> {
    let last = size as i128 - 1;
    let place = match mode {
        Mode::Constant => return usize::try_from(at).ok().filter(|&at| at < size),
        Mode::Edge => at.clamp(0, last),
        Mode::Wrap => at.rem_euclid(last + 1),
        Mode::Reflect if last == 0 => 0,
        Mode::Reflect => {
            let folded = at.rem_euclid(2 * last);
            folded.min(2 * last - folded)
        }
    };
    Some(place as usize)
}

fn center_crop_pad(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let wanted = integers(call, 1)?;
    let axes = match call.node.ints("axes") {
        Some(axes) => axes.to_vec(),
        None => (0..data.rank() as i64).collect(),
    };
    if axes.len() != wanted.len() {
        return Err(call.invalid(format!("{} sizes for {} axes", wanted.len(), axes.len())));
    }
    let mut around = vec![(0, 0); data.rank()];
    for (&axis, &wanted) in axes.iter().zip(&wanted) {
        let axis = call.axis(axis, data.rank())?;
        let more = wanted.saturating_sub(data.shape()[axis] as i64);
        // The odd element goes, or is added, behind.
        let before = more / 2;
        around[axis] = (before, more - before);
    }
    let fill = Tensor::zeros(data.dtype(), vec![]).map_err(|error| call.tensor_error(error))?;
    padded(call, data, &fill, Mode::Constant, &around)
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, opset: i64, inputs: &[&Tensor]) -> Outputs {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|&tensor| Some(tensor)).collect();
        crate::evaluate_limited(node, opset, &inputs, 1 << 20)
    }

    #[test]
    fn every_mode_reaches_further_than_the_tensor() {
        let data = Tensor::from_vec([3], vec![1u8, 2, 3]);
        let pads = Tensor::from_i64s(&[4, 5]);
        for (mode, expected) in [
            ("constant", [0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0]),
            ("edge", [1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3]),
            ("reflect", [1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2]),
            ("wrap", [3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]),
        ] {
            let result = run(&Node::new("Pad", []).with("mode", mode), 19, &[&data, &pads]).unwrap();
            assert_eq!(result[0].bytes().as_ref(), expected, "{mode}");
        }
        let cut = run(&Node::new("Pad", []), 19, &[&data, &Tensor::from_i64s(&[-1, 1])]).unwrap();
        assert_eq!(cut[0].bytes().as_ref(), [2, 3, 0]);
    }

    #[test]
    fn the_old_form_has_attributes() {
        let data = Tensor::from_vec([1], vec![1f32]);
        let node = Node::new("Pad", []).with("pads", vec![1, 0]).with("value", 2.5f32);
        assert_eq!(run(&node, 2, &[&data]).unwrap()[0].to_slice::<f32>().unwrap().as_ref(), [2.5, 1.0]);
    }

    #[test]
    fn hostile_pads_are_refused() {
        let data = Tensor::from_vec([3], vec![1u8, 2, 3]);
        for pads in [&[1i64][..], &[-2, -2], &[i64::MAX, i64::MAX], &[i64::MIN, 0], &[1 << 40, 0]] {
            let result = run(&Node::new("Pad", []), 19, &[&data, &Tensor::from_i64s(pads)]);
            assert!(result.is_err(), "{pads:?}");
        }
        let node = Node::new("Pad", []).with("mode", "edge");
        let empty = Tensor::from_vec([0], Vec::<u8>::new());
        assert!(run(&node, 19, &[&empty, &Tensor::from_i64s(&[1, 0])]).is_err());
    }
}
