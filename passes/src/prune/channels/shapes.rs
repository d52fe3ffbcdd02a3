//! Nodes that give a tensor another shape, and those that read shapes.

use optix_ir::{Model, NodeId, Use, ValueId};

use super::places::{Axes, Axis};
use super::relations::{At, Related, is_read_by_nodes_alone};

/// Why an axis of a Reshape stays.
const WRITTEN: &str = "its size is part of a computed shape";

/// `Reshape`, `Flatten`, `Squeeze` and `Unsqueeze`: elements keep their order.
pub(in crate::prune) fn reshape(at: &mut At<'_>) -> Related {
    let (x, y) = (at.input(0)?, at.output(0)?);
    relate_in_order(at, &x, &y)?;
    if at.model.node(at.node).is("Reshape") {
        for (index, &axis) in y.iter().enumerate() {
            let is_one = axis.is_some_and(|axis| axis.size == 1);
            if !is_one && entry(at.model, at.node, index).is_none() {
                at.lock(axis, WRITTEN);
            }
        }
    }
    Ok(())
}

/// A number of the shape that a `Reshape` makes: the constant that holds it, which input of which node that is,
/// and where in it.
pub(in crate::prune) struct Entry {
    pub(in crate::prune) value: ValueId,
    pub(in crate::prune) reader: (NodeId, usize),
    pub(in crate::prune) at: usize,
}

/// Where the shape of a `Reshape` says the size of an axis of its output; none where that is computed.
pub(in crate::prune) fn entry(model: &Model, node: NodeId, axis: usize) -> Option<Entry> {
    let (mut reader, mut at) = ((node, 1), axis);
    loop {
        let value = model.node(reader.0).input(reader.1)?;
        if let Some(held) = model.constant(value) {
            return (held.rank() == 1 && at < held.len()).then_some(Entry { value, reader, at });
        }
        let (producer, _) = model.value(value).producer()?;
        let concat = model.node(producer);
        if !concat.is("Concat") || !is_read_by_one(model, value) {
            return None;
        }
        let mut slot = 0;
        loop {
            let part = concat.input(slot)?;
            let length = model.value(part).ty.as_ref()?.fixed_shape()?.first().copied()?;
            if at < length {
                break;
            }
            (at, slot) = (at - length, slot + 1);
        }
        reader = (producer, slot);
    }
}

fn is_read_by_one(model: &Model, value: ValueId) -> bool {
    is_read_by_nodes_alone(model, value) && model.value(value).uses().len() == 1
}

/// Relates the axes of two shapes whose elements lie in the same order.
fn relate_in_order(at: &mut At<'_>, x: &Axes, y: &Axes) -> Related {
    let is_one = |axis: &&Option<Axis>| axis.is_none_or(|axis| axis.size != 1);
    let x: Vec<Option<Axis>> = x.iter().filter(is_one).copied().collect();
    let y: Vec<Option<Axis>> = y.iter().filter(is_one).copied().collect();
    let size = |axis: &Option<Axis>| axis.map(|axis| axis.size);
    let mut front = 0;
    while front < x.len().min(y.len()) && size(&x[front]) == size(&y[front]) {
        front += 1;
    }
    let mut back = 0;
    while back < (x.len() - front).min(y.len() - front) {
        let (a, b) = (&x[x.len() - 1 - back], &y[y.len() - 1 - back]);
        if size(a) != size(b) || a.is_none() {
            break;
        }
        back += 1;
    }
    let (middle_x, middle_y) = (&x[front..x.len() - back], &y[front..y.len() - back]);
    let product = |axes: &[Option<Axis>]| axes.iter().map(size).product::<Option<usize>>();
    // The last axes are the same whatever lies before them; the first ones when the rest has as many elements.
    for back in 1..=back {
        at.same(x[x.len() - back], y[y.len() - back]);
    }
    if product(middle_x).is_none() || product(middle_x) != product(middle_y) {
        for &axis in x[..front].iter().chain(&y[..front]).chain(middle_x).chain(middle_y) {
            at.lock(axis, "what it makes of this axis is not known ahead");
        }
        return Ok(());
    }
    x[..front].iter().zip(&y[..front]).filter(|(a, _)| a.is_some()).for_each(|(&a, &b)| at.same(a, b));
    let known = |axes: &[Option<Axis>]| axes.iter().flatten().copied().collect::<Vec<Axis>>();
    blocks(at, &known(middle_x), &known(middle_y));
    Ok(())
}

/// Relates axes block by block: the shortest runs of both sides with as many elements. Of a block the first axes of
/// both sides go in step, the others stay.
fn blocks(at: &mut At<'_>, x: &[Axis], y: &[Axis]) {
    let (mut i, mut j) = (0, 0);
    while i < x.len() && j < y.len() {
        let (first, second) = (i, j);
        let (mut a, mut b) = (x[i].size, y[j].size);
        (i, j) = (i + 1, j + 1);
        while a != b {
            if a < b && i < x.len() {
                (a, i) = (a * x[i].size, i + 1);
            } else if b < a && j < y.len() {
                (b, j) = (b * y[j].size, j + 1);
            } else {
                break;
            }
        }
        let (outer, inner) = (x[first], y[second]);
        for axis in x[first + 1..i].iter().chain(&y[second + 1..j]) {
            at.lock(Some(*axis), "it is folded into another axis: whole runs of it go");
        }
        let (long, short) = if outer.size >= inner.size { (outer, inner) } else { (inner, outer) };
        if long.size % short.size != 0 {
            at.lock(Some(long), "it is cut across another axis");
            at.lock(Some(short), "it is cut across another axis");
            continue;
        }
        let times = long.size / short.size;
        (0..long.size).for_each(|index| at.unite(long.at(index), short.at(index / times)));
    }
}

/// `Shape`: only what is known to pick other axes from it lets an axis change.
pub(in crate::prune) fn shape(at: &mut At<'_>) -> Related {
    let x = at.input(0)?;
    let output = at.model.node(at.node).output(0).ok_or("nothing is known of it")?;
    let picked = picked(at.model, output).ok_or("its size is computed with")?;
    let start = at.model.node(at.node).int("start").unwrap_or(0);
    if start != 0 || at.model.node(at.node).attribute("end").is_some() {
        return Err("its size is computed with");
    }
    for (index, &axis) in x.iter().enumerate() {
        if picked.contains(&index) {
            at.lock(axis, "its size is computed with");
        }
    }
    Ok(())
}

/// The axes whose sizes are picked from a shape; none where that is not plain.
fn picked(model: &Model, shape: ValueId) -> Option<Vec<usize>> {
    let rank = model.value(shape).ty.as_ref()?.fixed_shape()?.first().copied()?;
    let index = |axis: i64| usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok();
    let mut found = Vec::new();
    for &used in model.value(shape).uses() {
        let Use::Node(node, 0) = used else { return None };
        if let Some(gather) = optix_ir::view::Gather::view(model, node) {
            for place in model.constant(gather.indices)?.to_i64s().ok()? {
                found.push(index(place)?);
            }
        } else {
            let slice = optix_ir::view::Slice::view(model, node)?;
            let (start, end) = (*slice.starts.known()?.first()?, *slice.ends.known()?.first()?);
            if slice.steps.known_or(vec![1])? != [1] {
                return None;
            }
            found.extend(index(start)?..index(end.min(rank as i64))?.min(rank));
        }
    }
    Some(found)
}
