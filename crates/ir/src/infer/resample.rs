//! Operators that change the size of images, and those that trade space for channels.

use crate::infer::call::{Call, Given, Rule, one, rank_only};
use crate::infer::dims::{self, Outcome, product, show, unknowns, wrong};
use crate::infer::expr::Expr;
use crate::infer::fact::Fact;
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("AffineGrid", affine_grid),
    ("CenterCropPad", center_crop_pad),
    ("DepthToSpace", depth_to_space),
    ("GridSample", grid_sample),
    ("Pad", pad),
    ("Resize", resize),
    ("SpaceToDepth", space_to_depth),
    ("Upsample", upsample),
];

/// The axes that `axes` (attribute or input) names, or all of them.
fn chosen(call: &Call<'_>, slot: usize, rank: usize) -> Outcome<Option<Vec<usize>>> {
    match call.list("axes", slot) {
        Given::Absent => Ok(Some((0..rank).collect())),
        Given::Known(axes) => dims::axes(&axes, rank).map(Some),
        Given::Unknown(_) => Ok(None),
    }
}

fn pad(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    let attribute = call.node.ints("pads").or(call.node.ints("paddings"));
    let pads: Option<Vec<Option<Expr>>> = match attribute {
        Some(pads) => Some(pads.iter().map(|&amount| Some(Expr::from(amount))).collect()),
        None => call.contents(1).map(<[_]>::to_vec),
    };
    let axes =
        if attribute.is_some() { Some((0..shape.len()).collect()) } else { chosen(call, 3, shape.len())? };
    let (Some(pads), Some(axes)) = (pads, axes) else {
        return Ok(vec![rank_only(call.dtype(0), shape.len())]);
    };
    if pads.len() != axes.len() * 2 {
        return wrong(format!("{} amounts of padding for {} dimensions", pads.len(), axes.len()));
    }
    let mut result = shape.clone();
    for (index, &axis) in axes.iter().enumerate() {
        result[axis] = match (&pads[index], &pads[index + axes.len()]) {
            (Some(head), Some(tail)) => dims::map(&shape[axis], |size| size.add(head)?.add(tail))?,
            _ => Dim::Unknown,
        };
    }
    one(call.dtype(0), Some(result))
}

fn upsample(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    let scales = match call.node.floats("scales") {
        Some(scales) => Some(scales.to_vec()),
        None => floats(call, 1),
    };
    scaled(call, shape, scales, &(0..shape.len()).collect::<Vec<_>>())
}

fn floats(call: &Call<'_>, slot: usize) -> Option<Vec<f32>> {
    Some(call.floats(slot)?.into_iter().map(|scale| scale as f32).collect())
}

fn scaled(call: &Call<'_>, shape: &Shape, scales: Option<Vec<f32>>, axes: &[usize]) -> Outcome<Vec<Fact>> {
    let mut result = shape.clone();
    match scales {
        Some(scales) if scales.len() != axes.len() => {
            return wrong(format!("{} scales for {} dimensions", scales.len(), axes.len()));
        }
        Some(scales) => {
            for (&axis, scale) in axes.iter().zip(scales) {
                result[axis] = scale_one(&shape[axis], scale)?;
            }
        }
        None => axes.iter().for_each(|&axis| result[axis] = Dim::Unknown),
    }
    one(call.dtype(0), Some(result))
}

/// Size times scale, rounded down, in single precision as the standard's own inference does.
fn scale_one(dim: &Dim, scale: f32) -> Outcome<Dim> {
    if !scale.is_finite() || scale <= 0.0 {
        return wrong(format!("a scale is {scale}"));
    }
    if let Some(size) = dim.fixed() {
        let scaled = (size as f32 * scale).floor();
        // Single precision holds whole numbers to 2^24: beyond it sizes would be guesses, bar whole scales.
        return if scaled < 16_777_216.0 { Ok(Dim::Fixed(scaled as usize)) } else { whole_scale(dim, scale) };
    }
    whole_scale(dim, scale)
}

/// Scales that are whole numbers, or one over a whole number that is a power of two (and so exact).
fn whole_scale(dim: &Dim, scale: f32) -> Outcome<Dim> {
    let inverse = 1.0 / scale;
    if scale.fract() == 0.0 && scale < 65_536.0 {
        dims::scale(dim, scale as i64)
    } else if inverse.fract() == 0.0 && inverse < 65_536.0 && (inverse as u32).is_power_of_two() {
        dims::map(dim, |size| size.floor_div(inverse as i64))
    } else {
        Ok(Dim::Unknown)
    }
}

fn resize(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    if call.opset < 11 {
        return upsample(call);
    }
    let Some(axes) = chosen(call, usize::MAX, shape.len())? else {
        return Ok(vec![rank_only(call.dtype(0), shape.len())]);
    };
    let empty =
        |slot: usize| call.shape(slot).is_some_and(|shape| shape.first().and_then(Dim::fixed) == Some(0));
    if call.has(3) && !empty(3) {
        let Some(sizes) = call.contents(3) else {
            let mut result = shape.clone();
            axes.iter().for_each(|&axis| result[axis] = Dim::Unknown);
            return one(call.dtype(0), Some(result));
        };
        if sizes.len() != axes.len() {
            return wrong(format!("{} sizes for {} dimensions", sizes.len(), axes.len()));
        }
        return one(call.dtype(0), Some(resized(call, shape, &axes, sizes)));
    }
    // With this mode the size depends on the region of interest too.
    if call.node.string("coordinate_transformation_mode") == Some("tf_crop_and_resize") {
        let mut result = shape.clone();
        axes.iter().for_each(|&axis| result[axis] = Dim::Unknown);
        return one(call.dtype(0), Some(result));
    }
    scaled(call, shape, floats(call, 2), &axes)
}

fn resized(call: &Call<'_>, shape: &Shape, axes: &[usize], sizes: &[Option<Expr>]) -> Shape {
    let mut result = shape.clone();
    let policy = call.node.string("keep_aspect_ratio_policy").unwrap_or("stretch");
    if policy == "stretch" {
        for (&axis, size) in axes.iter().zip(sizes) {
            result[axis] = size.as_ref().map_or(Dim::Unknown, Expr::dim);
        }
        return result;
    }
    // One scale for all: the smallest or the largest of what the sizes ask for.
    let pairs: Option<Vec<(usize, f32)>> = axes
        .iter()
        .zip(sizes)
        .map(|(&axis, size)| Some((axis, size.as_ref()?.constant()? as f32 / shape[axis].fixed()? as f32)))
        .collect();
    let scales = pairs.iter().flatten().map(|(_, scale)| *scale);
    let scale = if policy == "not_larger" { scales.reduce(f32::min) } else { scales.reduce(f32::max) };
    for &axis in axes {
        let scaled = scale.zip(shape[axis].fixed()).map(|(scale, size)| (scale * size as f32 + 0.5).floor());
        result[axis] = match scaled {
            Some(scaled) if (0.0..16_777_216.0).contains(&scaled) => Dim::Fixed(scaled as usize),
            _ => Dim::Unknown,
        };
    }
    result
}

fn grid_sample(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let (Some(input), Some(grid)) = (call.shape(0), call.shape(1)) else {
        return one(call.dtype(0), call.rank(0).or(call.rank(1)).map(unknowns));
    };
    if input.len() < 3 || input.len() != grid.len() {
        return wrong(format!("the input is {}, the grid {}", show(input), show(grid)));
    }
    let mut result = vec![dims::same(&input[0], &grid[0], "batch sizes")?, input[1].clone()];
    result.extend_from_slice(&grid[1..grid.len() - 1]);
    one(call.dtype(0), Some(result))
}

/// `size` is `[N, C, H, W]` or `[N, C, D, H, W]`; the grid has a point of 2 or 3 coordinates for each place.
fn affine_grid(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(sizes) = call.contents(1) else { return one(call.dtype(0), None) };
    if !(4..=5).contains(&sizes.len()) {
        return wrong(format!("`size` has {} entries, but 4 or 5 are needed", sizes.len()));
    }
    let sizes: Vec<Dim> = sizes.iter().map(|size| size.as_ref().map_or(Dim::Unknown, Expr::dim)).collect();
    let mut result = vec![sizes[0].clone()];
    result.extend_from_slice(&sizes[2..]);
    result.push(Dim::Fixed(sizes.len() - 2));
    one(call.dtype(0), Some(result))
}

fn center_crop_pad(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    let Some(axes) = chosen(call, usize::MAX, shape.len())? else {
        return Ok(vec![rank_only(call.dtype(0), shape.len())]);
    };
    let mut result = shape.clone();
    for (index, &axis) in axes.iter().enumerate() {
        let size = call.contents(1).and_then(|sizes| sizes.get(index)?.clone());
        result[axis] = size.map_or(Dim::Unknown, |size| size.dim());
    }
    one(call.dtype(0), Some(result))
}

fn blocks(call: &Call<'_>) -> Outcome<i64> {
    match call.int("blocksize", 0) {
        size if (1..=1 << 20).contains(&size) => Ok(size),
        size => wrong(format!("`blocksize` is {size}")),
    }
}

fn image(shape: &Shape) -> Outcome<[&Dim; 4]> {
    match shape.as_slice() {
        [batch, channels, height, width] => Ok([batch, channels, height, width]),
        _ => wrong(format!("needs 4 dimensions, but the input is {}", show(shape))),
    }
}

/// A dimension divided by a number that must divide it.
fn divided(dim: &Dim, by: i64, what: &str) -> Outcome<Dim> {
    let result = dims::map(dim, |size| size.floor_div(by))?;
    match (dim.fixed(), result.fixed()) {
        (Some(_), Some(_)) if product([&result, &dims::size(by, what)?])? != *dim => {
            wrong(format!("{what} {dim} cannot be divided by {by}"))
        }
        _ => Ok(result),
    }
}

fn depth_to_space(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let block = blocks(call)?;
    let Some(shape) = call.shape(0) else { return Ok(vec![rank_only(call.dtype(0), 4)]) };
    let [batch, channels, height, width] = image(shape)?;
    let result = vec![
        batch.clone(),
        divided(channels, block * block, "the number of channels")?,
        dims::scale(height, block)?,
        dims::scale(width, block)?,
    ];
    one(call.dtype(0), Some(result))
}

fn space_to_depth(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let block = blocks(call)?;
    let Some(shape) = call.shape(0) else { return Ok(vec![rank_only(call.dtype(0), 4)]) };
    let [batch, channels, height, width] = image(shape)?;
    let result = vec![
        batch.clone(),
        dims::scale(channels, block * block)?,
        divided(height, block, "the height")?,
        divided(width, block, "the width")?,
    ];
    one(call.dtype(0), Some(result))
}
