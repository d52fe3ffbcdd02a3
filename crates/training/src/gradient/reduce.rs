//! Sums, means and extremes over axes; softmax.

use optix_ir::ValueId;

use super::Rule;
use super::back::{At, Back, axis};

pub(super) static RULES: &[(&str, Rule)] = &[
    ("ReduceSum", sum),
    ("ReduceMean", mean),
    ("ReduceMax", extreme),
    ("ReduceMin", extreme),
    ("ReduceSumSquare", sum_of_squares),
    ("ReduceL2", norm),
    ("Softmax", softmax),
    ("LogSoftmax", log_softmax),
];

/// The axes that a node reduces.
fn axes(back: &Back<'_>, at: &At) -> Result<Vec<usize>, String> {
    let rank = back.shape(at.input(0)?)?.len();
    let given: Option<Vec<i64>> = match at.node.input(1) {
        Some(value) => {
            let tensor = back.model.constant(value).ok_or("its axes are not constant")?;
            Some(tensor.to_i64s().map_err(|error| error.to_string())?)
        }
        None => at.node.ints("axes").map(<[i64]>::to_vec),
    };
    match given.filter(|axes| !axes.is_empty()) {
        Some(axes) => axes.into_iter().map(|given| axis(given, rank)).collect(),
        None if at.node.int("noop_with_empty_axes") == Some(1) => Ok(Vec::new()),
        None => Ok((0..rank).collect()),
    }
}

/// A value of the output's shape with size 1 where axes were reduced, and repeated to the input's shape.
fn spread(back: &mut Back<'_>, at: &At, value: ValueId) -> Result<ValueId, String> {
    let shape = back.shape(at.input(0)?)?;
    let axes = axes(back, at)?;
    let kept: Vec<usize> =
        shape.iter().enumerate().map(|(axis, &size)| if axes.contains(&axis) { 1 } else { size }).collect();
    let kept = back.reshape(value, &kept)?;
    back.expand(kept, &shape)
}

fn sum(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let share = spread(back, at, at.dy)?;
    back.give(at.input(0)?, share);
    Ok(())
}

fn mean(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let shape = back.shape(at.input(0)?)?;
    let count: usize = axes(back, at)?.iter().filter_map(|&axis| shape.get(axis)).product();
    let each = back.times(at.dy, 1.0 / count.max(1) as f32);
    let share = spread(back, at, each)?;
    back.give(at.input(0)?, share);
    Ok(())
}

fn extreme(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let (dy, y) = (spread(back, at, at.dy)?, spread(back, at, at.output()?)?);
    let share = back.where_equal(dy, at.input(0)?, y);
    back.give(at.input(0)?, share);
    Ok(())
}

fn sum_of_squares(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let dy = spread(back, at, at.dy)?;
    let twice = back.times(at.input(0)?, 2.0);
    let share = back.mul(dy, twice);
    back.give(at.input(0)?, share);
    Ok(())
}

fn norm(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let share = back.div(at.dy, at.output()?);
    let share = spread(back, at, share)?;
    let share = back.mul(share, at.input(0)?);
    back.give(at.input(0)?, share);
    Ok(())
}

/// The axis of a softmax.
fn softmax_axis(back: &Back<'_>, at: &At) -> Result<usize, String> {
    let rank = back.shape(at.input(0)?)?.len();
    let given = axis(at.node.int("axis").unwrap_or(if at.opset < 13 { 1 } else { -1 }), rank)?;
    if at.opset < 13 && given + 1 != rank {
        return Err("before operator set 13 it joins axes; raise the operator set".to_owned());
    }
    Ok(given)
}

fn softmax(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let axis = softmax_axis(back, at)?;
    let y = at.output()?;
    let weighted = back.mul(at.dy, y);
    let sum = back.sum(weighted, &[axis])?;
    let part = back.mul(sum, y);
    let share = back.sub(weighted, part);
    back.give(at.input(0)?, share);
    Ok(())
}

fn log_softmax(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let axis = softmax_axis(back, at)?;
    let probability = back.unary("Exp", at.output()?);
    let sum = back.sum(at.dy, &[axis])?;
    let part = back.mul(probability, sum);
    let share = back.sub(at.dy, part);
    back.give(at.input(0)?, share);
    Ok(())
}
