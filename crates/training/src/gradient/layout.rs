//! Operators that move elements.

use optix_ir::{Node, Tensor, ValueId};

use super::Rule;
use super::back::{At, Back, axis};

pub(super) static RULES: &[(&str, Rule)] = &[
    ("Reshape", reshaped),
    ("Flatten", reshaped),
    ("Squeeze", reshaped),
    ("Unsqueeze", reshaped),
    ("Transpose", transpose),
    ("Concat", concat),
    ("Split", split),
    ("Slice", slice),
    ("Pad", pad),
    ("Expand", expand),
    ("Gather", gather),
    ("DepthToSpace", depth_to_space),
    ("SpaceToDepth", space_to_depth),
];

fn reshaped(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let shape = back.shape(x)?;
    let share = back.reshape(at.dy, &shape)?;
    back.give(x, share);
    Ok(())
}

fn transpose(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let rank = back.shape(x)?.len();
    let order: Vec<usize> = match at.node.ints("perm") {
        Some(order) => order.iter().map(|&given| axis(given, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut inverse = vec![0; rank];
    order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
    let share = back.transpose(at.dy, &inverse)?;
    back.give(x, share);
    Ok(())
}

fn concat(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let rank = back.shape(at.dy)?.len();
    let axis = axis(at.node.int("axis").ok_or("it has no axis")?, rank)?;
    let mut start = 0;
    for &input in at.node.inputs().iter().flatten() {
        let size = back.shape(input)?.get(axis).copied().ok_or("an input without that axis")?;
        if back.wants(Some(input)) {
            let share = back.slice(at.dy, axis, start, start + size)?;
            back.give(input, share);
        }
        start += size;
    }
    Ok(())
}

fn split(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let axis = axis(at.node.int("axis").unwrap_or(0), back.shape(x)?.len())?;
    let mut parts = Vec::new();
    for &output in at.node.outputs() {
        let output = output.ok_or("an output that nobody names")?;
        parts.push(match back.gradient(output) {
            Some(gradient) => gradient,
            None => {
                let shape = back.shape(output)?;
                back.zeros(&shape)?
            }
        });
    }
    let share = back.concat(&parts, axis)?;
    back.give(x, share);
    Ok(())
}

/// The integers of a constant input, or of an attribute that had them before.
fn integers(back: &Back<'_>, at: &At, slot: usize, name: &str) -> Result<Option<Vec<i64>>, String> {
    match at.node.input(slot) {
        Some(value) => {
            let tensor = back.model.constant(value).ok_or_else(|| format!("its {name} are not constant"))?;
            tensor.to_i64s().map(Some).map_err(|error| error.to_string())
        }
        None => Ok(at.node.ints(name).map(<[i64]>::to_vec)),
    }
}

/// Puts zeros around a value.
fn padded(back: &mut Back<'_>, value: ValueId, before: &[usize], after: &[usize]) -> Result<ValueId, String> {
    let shape: Vec<usize> =
        back.shape(value)?.iter().zip(before).zip(after).map(|((size, a), b)| size + a + b).collect();
    let pads: Vec<usize> = before.iter().chain(after).copied().collect();
    let pads = back.integers(&pads);
    Ok(back.push(Node::new("Pad", [value, pads]), &shape))
}

fn slice(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let shape = back.shape(x)?;
    let starts = integers(back, at, 1, "starts")?.ok_or("it has no starts")?;
    let axes = integers(back, at, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = integers(back, at, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if steps.iter().any(|&step| step != 1) {
        return Err("it takes elements in steps".to_owned());
    }
    let kept = back.shape(at.dy)?;
    let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
    for (&start, &given) in starts.iter().zip(&axes) {
        let axis = axis(given, shape.len())?;
        let size = shape[axis] as i64;
        let start = if start < 0 { start + size } else { start }.clamp(0, size) as usize;
        before[axis] = start;
        after[axis] = (shape[axis] - start).checked_sub(kept[axis]).ok_or("it takes more than there is")?;
    }
    let share = padded(back, at.dy, &before, &after)?;
    back.give(x, share);
    Ok(())
}

fn pad(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    if at.node.string("mode").unwrap_or("constant") != "constant" {
        return Err("it pads with elements".to_owned());
    }
    let x = at.input(0)?;
    let shape = back.shape(x)?;
    let pads = integers(back, at, 1, "pads")?.ok_or("it has no pads")?;
    let axes = integers(back, at, 3, "axes")?.unwrap_or_else(|| (0..shape.len() as i64).collect());
    let mut share = at.dy;
    for (place, &given) in axes.iter().enumerate() {
        let axis = axis(given, shape.len())?;
        let before = usize::try_from(pads[place]).map_err(|_| "it takes elements off")?;
        if pads[place + axes.len()] < 0 {
            return Err("it takes elements off".to_owned());
        }
        if back.shape(share)?[axis] != shape[axis] {
            share = back.slice(share, axis, before, before + shape[axis])?;
        }
    }
    back.give(x, share);
    Ok(())
}

fn expand(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    back.give_summed(at.input(0)?, at.dy)
}

/// Adds rows up where the same one was taken several times.
fn gather(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    if at.opset < 16 {
        return Err("sums of rows need operator set 16: `convert-opset` raises it".to_owned());
    }
    let (data, indices) = (at.input(0)?, at.input(1)?);
    let (shape, places) = (back.shape(data)?, back.shape(indices)?);
    let axis = axis(at.node.int("axis").unwrap_or(0), shape.len())?;
    // The axis to the front, the rows that were taken behind each other.
    let rank = back.shape(at.dy)?.len();
    let taken: Vec<usize> = (axis..axis + places.len()).collect();
    let order: Vec<usize> =
        taken.iter().copied().chain((0..rank).filter(|axis| !taken.contains(axis))).collect();
    let rows = back.transpose(at.dy, &order)?;
    let count: usize = places.iter().product();
    let rest: Vec<usize> =
        shape.iter().enumerate().filter(|(other, _)| *other != axis).map(|(_, &size)| size).collect();
    let flat: Vec<usize> = std::iter::once(count).chain(rest.iter().copied()).collect();
    let rows = back.reshape(rows, &flat)?;
    // Indices may count from the end, which not every engine takes when it adds up.
    let own = back.model.value(indices).ty.as_ref().and_then(optix_ir::Type::dtype);
    let int64 = i64::from(optix_ir::DType::I64.onnx());
    let wide = match own {
        Some(optix_ir::DType::I64) => indices,
        _ => back.push(Node::new("Cast", [indices]).with("to", int64), &places),
    };
    let size = back.constant(Tensor::from_i64s(&[shape[axis] as i64]));
    let within = back.push(Node::new("Mod", [wide, size]), &places);
    let within = back.reshape(within, &[count, 1])?;
    let mut target = vec![shape[axis]];
    target.extend(&rest);
    let zeros = back.zeros(&target)?;
    let added = back.push(Node::new("ScatterND", [zeros, within, rows]).with("reduction", "add"), &target);
    // And back to its place.
    let mut order: Vec<usize> = (1..shape.len()).collect();
    order.insert(axis, 0);
    let share = back.transpose(added, &order)?;
    back.give(data, share);
    Ok(())
}

fn rearranged(back: &mut Back<'_>, at: &At, op_type: &str) -> Result<(), String> {
    let x = at.input(0)?;
    let shape = back.shape(x)?;
    let size = at.node.int("blocksize").ok_or("it has no blocksize")?;
    let share = back.push(Node::new(op_type, [at.dy]).with("blocksize", size), &shape);
    back.give(x, share);
    Ok(())
}

fn depth_to_space(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    if at.node.string("mode").unwrap_or("DCR") != "DCR" {
        return Err("its mode is not DCR".to_owned());
    }
    rearranged(back, at, "SpaceToDepth")
}

fn space_to_depth(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    rearranged(back, at, "DepthToSpace")
}
