//! Normalizations.

use optix_ir::ValueId;

use super::Rule;
use super::back::{At, Back, axis};

pub(super) static RULES: &[(&str, Rule)] =
    &[("BatchNormalization", batch), ("LayerNormalization", layer), ("InstanceNormalization", instance)];

/// Mean and the reciprocal of the standard deviation over axes.
fn moments(back: &mut Back<'_>, x: ValueId, axes: &[usize], epsilon: f32) -> Result<[ValueId; 2], String> {
    let mean = back.mean(x, axes)?;
    let centered = back.sub(x, mean);
    let squares = back.mul(centered, centered);
    let variance = back.mean(squares, axes)?;
    Ok([centered, reciprocal_root(back, variance, epsilon)])
}

/// `1 / sqrt(variance + epsilon)`
fn reciprocal_root(back: &mut Back<'_>, variance: ValueId, epsilon: f32) -> ValueId {
    let variance = back.plus(variance, epsilon);
    let deviation = back.unary("Sqrt", variance);
    back.unary("Reciprocal", deviation)
}

/// What is normalized over `axes` and then multiplied by a scale and moved: `scale` broadcasts to the input,
/// `scale_axes` are those along which it is repeated.
fn normalized(
    back: &mut Back<'_>,
    at: &At,
    axes: &[usize],
    scale: ValueId,
    epsilon: f32,
) -> Result<(), String> {
    let x = at.input(0)?;
    let [centered, inverse] = moments(back, x, axes, epsilon)?;
    let normal = back.mul(centered, inverse);
    if back.wants(at.node.input(1)) {
        let share = back.mul(at.dy, normal);
        give_affine(back, at.input(1)?, scale, share)?;
    }
    if let Some(bias) = at.node.input(2).filter(|&bias| back.wants(Some(bias))) {
        give_affine(back, bias, scale, at.dy)?;
    }
    if back.wants(Some(x)) {
        let scaled = back.mul(at.dy, scale);
        let mean = back.mean(scaled, axes)?;
        let along = back.mul(scaled, normal);
        let along = back.mean(along, axes)?;
        let along = back.mul(normal, along);
        let rest = back.sub(scaled, mean);
        let rest = back.sub(rest, along);
        let share = back.mul(rest, inverse);
        back.give(x, share);
    }
    Ok(())
}

/// Gives the gradient of a scale or a bias, which broadcast to the output as `like` does.
fn give_affine(back: &mut Back<'_>, to: ValueId, like: ValueId, share: ValueId) -> Result<(), String> {
    let (broadcast, own) = (back.shape(like)?, back.shape(to)?);
    let summed = back.summed_to(share, &broadcast)?;
    let summed = back.reshape(summed, &own)?;
    back.give(to, summed);
    Ok(())
}

/// A number a channel as something that broadcasts to the input.
fn by_channel(back: &mut Back<'_>, value: ValueId, rank: usize) -> Result<ValueId, String> {
    let count = back.shape(value)?.iter().product();
    let shape: Vec<usize> = (0..rank).map(|axis| if axis == 1 { count } else { 1 }).collect();
    back.reshape(value, &shape)
}

fn batch(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let x = at.input(0)?;
    let rank = back.shape(x)?.len();
    let epsilon = at.node.float("epsilon").unwrap_or(1e-5);
    let scale = by_channel(back, at.input(1)?, rank)?;
    if at.node.int("training_mode").unwrap_or(0) != 0 {
        let axes: Vec<usize> = (0..rank).filter(|&axis| axis != 1).collect();
        return normalized(back, at, &axes, scale, epsilon);
    }
    // Statistics are constants: a scale and a shift of every channel.
    let (mean, variance) = (by_channel(back, at.input(3)?, rank)?, by_channel(back, at.input(4)?, rank)?);
    let inverse = reciprocal_root(back, variance, epsilon);
    if back.wants(Some(x)) {
        let slope = back.mul(scale, inverse);
        let share = back.mul(at.dy, slope);
        back.give(x, share);
    }
    if back.wants(at.node.input(1)) {
        let centered = back.sub(x, mean);
        let normal = back.mul(centered, inverse);
        let share = back.mul(at.dy, normal);
        give_affine(back, at.input(1)?, scale, share)?;
    }
    if back.wants(at.node.input(2)) {
        give_affine(back, at.input(2)?, scale, at.dy)?;
    }
    Ok(())
}

fn layer(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let rank = back.shape(at.input(0)?)?.len();
    let first = axis(at.node.int("axis").unwrap_or(-1), rank)?;
    let axes: Vec<usize> = (first..rank).collect();
    normalized(back, at, &axes, at.input(1)?, at.node.float("epsilon").unwrap_or(1e-5))
}

fn instance(back: &mut Back<'_>, at: &At) -> Result<(), String> {
    let rank = back.shape(at.input(0)?)?.len();
    let scale = by_channel(back, at.input(1)?, rank)?;
    let axes: Vec<usize> = (2..rank).collect();
    normalized(back, at, &axes, scale, at.node.float("epsilon").unwrap_or(1e-5))
}
