//! Operators that move elements: joined, cut, picked, padded and turned.

use optix_ir::view::{self, Parameter};

use super::places::Axes;
use super::relations::{At, Related, UNKNOWN, axis_of};

/// A part of a tensor along an axis, from a place on: gives back where the next one begins, or none where that is not
/// known.
fn part(here: &mut At<'_>, whole: &Axes, part: &Axes, axis: usize, from: usize) -> Option<usize> {
    for (_, (&a, &b)) in whole.iter().zip(part).enumerate().filter(|(at, _)| *at != axis) {
        here.same(a, b);
    }
    let (all, own) = (whole[axis]?, part[axis]?);
    let end = from + own.size;
    if end > all.size {
        return None;
    }
    (0..own.size).for_each(|index| here.unite(all.at(from + index), own.at(index)));
    Some(end)
}

pub(super) fn concat(here: &mut At<'_>) -> Related {
    let axis = here.model.node(here.node).int("axis").unwrap_or(1);
    let y = here.output(0)?;
    let axis = axis_of(axis, y.len())?;
    let mut from = 0;
    for slot in 0..here.model.node(here.node).inputs().len() {
        let x = here.input(slot)?;
        if x.len() != y.len() {
            return Err(UNKNOWN);
        }
        from = part(here, &y, &x, axis, from).ok_or("how long what it joins is, is not known")?;
    }
    Ok(())
}

pub(super) fn split(here: &mut At<'_>) -> Related {
    let split = view::Split::view(here.model, here.node).ok_or(UNKNOWN)?;
    if matches!(split.split, Parameter::Dynamic(_)) {
        return Err("the sizes of its parts are computed");
    }
    let x = here.input(0)?;
    let axis = axis_of(split.axis, x.len())?;
    let mut from = 0;
    for slot in 0..split.outputs.len() {
        let unknown = "the sizes of its parts are not known";
        let y = here.output(slot).map_err(|_| unknown)?;
        if y.len() != x.len() {
            return Err(UNKNOWN);
        }
        from = part(here, &x, &y, axis, from).ok_or(unknown)?;
    }
    Ok(())
}

pub(super) fn slice(here: &mut At<'_>) -> Related {
    let slice = view::Slice::view(here.model, here.node).ok_or(UNKNOWN)?;
    let (x, y) = (here.input(0)?, here.output(0)?);
    if x.len() != y.len() {
        return Err(UNKNOWN);
    }
    let (Some(starts), Some(ends)) = (slice.starts.known(), slice.ends.known()) else {
        return Err("what it cuts out is computed");
    };
    let axes =
        slice.axes.clone().known_or((0..starts.len() as i64).collect()).ok_or("its axes are computed")?;
    let steps = slice.steps.clone().known_or(vec![1; starts.len()]).ok_or("its steps are computed")?;
    if axes.len() != starts.len() || ends.len() != starts.len() || steps.len() != starts.len() {
        return Err(UNKNOWN);
    }
    let mut cut = vec![None; x.len()];
    for (at, &axis) in axes.iter().enumerate() {
        cut[axis_of(axis, x.len())?] = Some((starts[at], steps[at]));
    }
    for ((&a, &b), cut) in x.iter().zip(&y).zip(cut) {
        match (cut, a, b) {
            (None, a, b) => here.same(a, b),
            (Some((start, 1)), Some(a), Some(b)) => {
                let start = if start < 0 { start + a.size as i64 } else { start };
                let start = usize::try_from(start.max(0)).map_err(|_| UNKNOWN)?.min(a.size);
                if start + b.size > a.size {
                    return Err(UNKNOWN);
                }
                (0..b.size).for_each(|index| here.unite(a.at(start + index), b.at(index)));
            }
            (Some(_), a, b) => [a, b].into_iter().for_each(|axis| here.lock(axis, "it cuts along this axis")),
        }
    }
    Ok(())
}

pub(super) fn gather(here: &mut At<'_>) -> Related {
    let gather = view::Gather::view(here.model, here.node).ok_or(UNKNOWN)?;
    let (x, indices, y) = (here.input(0)?, here.input(1)?, here.output(0)?);
    let axis = axis_of(gather.axis, x.len())?;
    if y.len() + 1 != x.len() + indices.len() {
        return Err(UNKNOWN);
    }
    let (front, back) = (&y[..axis], &y[axis + indices.len()..]);
    x[..axis].iter().zip(front).for_each(|(&a, &b)| here.same(a, b));
    x[axis + 1..].iter().zip(back).for_each(|(&a, &b)| here.same(a, b));
    here.lock(x[axis], "it picks along this axis");
    y[axis..axis + indices.len()].iter().for_each(|&own| here.lock(own, "it is picked along this axis"));
    indices.into_iter().for_each(|own| here.lock(own, "its places are numbers to pick by"));
    Ok(())
}

pub(super) fn pad(here: &mut At<'_>) -> Related {
    let pad = view::Pad::view(here.model, here.node).ok_or(UNKNOWN)?;
    let pads = pad.pads.known().ok_or("how much it pads is computed")?.clone();
    let (x, y) = (here.input(0)?, here.output(0)?);
    if here.has(3) || pads.len() != 2 * x.len() || x.len() != y.len() {
        return Err("which axes it pads is not known");
    }
    for (at, (&a, &b)) in x.iter().zip(&y).enumerate() {
        if pads[at] == 0 && pads[at + x.len()] == 0 {
            here.same(a, b);
        } else {
            [a, b].into_iter().for_each(|axis| here.lock(axis, "it is padded along this axis"));
        }
    }
    Ok(())
}

pub(super) fn transpose(here: &mut At<'_>) -> Related {
    let (x, y) = (here.input(0)?, here.output(0)?);
    let order: Vec<i64> = match here.model.node(here.node).ints("perm") {
        Some(order) => order.to_vec(),
        None => (0..x.len() as i64).rev().collect(),
    };
    if order.len() != x.len() || y.len() != x.len() {
        return Err(UNKNOWN);
    }
    for (&from, &to) in order.iter().zip(&y) {
        let from = axis_of(from, x.len())?;
        here.same(x[from], to);
    }
    Ok(())
}
