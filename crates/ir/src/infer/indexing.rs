//! Operators that pick elements, put them in place, or say where they are.

use crate::dtype::DType;
use crate::infer::call::{Call, Given, Rule, fixed, offset, one, picked, rank_only, row_major};
use crate::infer::dims::{self, Outcome, product, show, unknowns, wrong};
use crate::infer::expr::Expr;
use crate::infer::fact::Fact;
use crate::types::Dim;

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Compress", compress),
    ("Gather", gather),
    ("GatherElements", gather_elements),
    ("GatherND", gather_nd),
    ("NonMaxSuppression", |_| one(Some(DType::I64), Some(vec![Dim::Unknown, Dim::Fixed(3)]))),
    ("NonZero", non_zero),
    ("OneHot", one_hot),
    ("ReverseSequence", same),
    ("Scatter", same),
    ("ScatterElements", same),
    ("ScatterND", same),
    ("Slice", slice),
    ("TensorScatter", same),
    ("TopK", top_k),
    ("Trilu", same),
    ("Unique", unique),
];

fn same(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    Ok(vec![call.like(0)])
}

fn gather(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let Some(data) = call.shape(0) else { return one(dtype, None) };
    let axis = call.axis(0, data.len())?;
    let positions = match (call.integers(1), data[axis].fixed().and_then(|size| i64::try_from(size).ok())) {
        (Some(indices), Some(size)) => {
            let mut positions = Vec::new();
            for index in indices {
                let position = if index < 0 { index.saturating_add(size) } else { index };
                match usize::try_from(position).ok().filter(|_| position < size) {
                    Some(position) => positions.push(position),
                    None => return wrong(format!("index {index} is out of range for a dimension of {size}")),
                }
            }
            Some(positions)
        }
        _ => None,
    };
    let Some(indices) = call.shape(1) else { return one(dtype, None) };
    let result = [&data[..axis], indices.as_slice(), &data[axis + 1..]].concat();
    let contents = call.contents(0).zip(positions).and_then(|(contents, positions)| {
        let (strides, at) = (row_major(&fixed(data)?), row_major(&fixed(indices)?));
        picked(contents, &result, |index| {
            let (front, rest) = index.split_at(axis);
            let (middle, back) = rest.split_at(at.len());
            let position = positions.get(offset(middle, &at)).copied().unwrap_or(0);
            offset(front, &strides[..axis]) + position * strides[axis] + offset(back, &strides[axis + 1..])
        })
    });
    Ok(vec![Fact::integers(dtype, result, contents)])
}

fn gather_elements(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    one(call.dtype(0), call.shape(1).cloned().or_else(|| call.rank(0).map(unknowns)))
}

fn gather_nd(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let (Some(data), Some(indices)) = (call.shape(0), call.shape(1)) else { return one(dtype, None) };
    let Some((depth, front)) = indices.split_last() else { return wrong("the indices are a scalar") };
    let Some(depth) = depth.fixed() else { return one(dtype, None) };
    let batch = usize::try_from(call.int("batch_dims", 0)).ok();
    match batch.and_then(|batch| batch.checked_add(depth)).and_then(|taken| data.get(taken..)) {
        Some(rest) => one(dtype, Some([front, rest].concat())),
        None => wrong(format!("indices of {depth} numbers reach beyond the dimensions of {}", show(data))),
    }
}

fn non_zero(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let rank = call.rank(0).map_or(Dim::Unknown, Dim::Fixed);
    one(Some(DType::I64), Some(vec![rank, Dim::Unknown]))
}

fn compress(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(axis) = call.node.int("axis") else { return Ok(vec![rank_only(call.dtype(0), 1)]) };
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    let mut result = shape.clone();
    result[dims::axis(axis, shape.len())?] = Dim::Unknown;
    one(call.dtype(0), Some(result))
}

fn one_hot(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(2);
    let Some(indices) = call.shape(0) else { return one(dtype, None) };
    let depth = match (call.scalar(1), call.floats(1).as_deref()) {
        (Some(depth), _) if depth.constant().is_some_and(|depth| depth < 0) => {
            return wrong(format!("the depth is negative: {depth}"));
        }
        (Some(depth), _) => depth.dim(),
        // The depth may be of any numeric type.
        (None, Some([depth])) if (0.0..1e15).contains(depth) => Dim::Fixed(*depth as usize),
        _ => Dim::Unknown,
    };
    let axis = call.axis(-1, indices.len() + 1)?;
    let mut result = indices.clone();
    result.insert(axis, depth);
    one(dtype, Some(result))
}

fn top_k(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let mut shape = call.shape(0).cloned();
    if let Some(shape) = &mut shape {
        let axis = call.axis(-1, shape.len())?;
        let k = match call.node.int("k") {
            Some(k) => Some(Expr::from(k)),
            None => call.scalar(1),
        };
        if let (Some(k), Some(size)) = (k.as_ref().and_then(Expr::constant), shape[axis].fixed())
            && !usize::try_from(k).is_ok_and(|k| k <= size)
        {
            return wrong(format!("the {k} greatest of {size} elements"));
        }
        shape[axis] = k.map_or(Dim::Unknown, |k| k.dim());
    }
    Ok(vec![Fact::tensor(call.dtype(0), shape.clone()), Fact::tensor(Some(DType::I64), shape)])
}

fn unique(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let integers = |size: Dim| Fact::tensor(Some(DType::I64), Some(vec![size]));
    let (values, all) = match (call.node.int("axis"), call.shape(0)) {
        (None, shape) => {
            let all = shape.map_or(Ok(Dim::Unknown), product)?;
            (Some(vec![Dim::Unknown]), all)
        }
        (Some(axis), Some(shape)) => {
            let axis = dims::axis(axis, shape.len())?;
            let mut values = shape.clone();
            let all = std::mem::replace(&mut values[axis], Dim::Unknown);
            (Some(values), all)
        }
        (Some(_), None) => (None, Dim::Unknown),
    };
    let values = Fact::tensor(call.dtype(0), values);
    Ok(vec![values, integers(Dim::Unknown), integers(all), integers(Dim::Unknown)])
}

fn slice(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let Some(shape) = call.shape(0) else { return one(dtype, None) };
    let list = |attribute: &str, slot: usize| -> Option<Vec<Option<Expr>>> {
        match (call.node.ints(attribute), call.contents(slot)) {
            (Some(list), _) => Some(list.iter().map(|&number| Some(Expr::from(number))).collect()),
            (None, contents) => contents.map(<[_]>::to_vec),
        }
    };
    let (starts, ends) = (list("starts", 1), list("ends", 2));
    let count = starts.as_ref().or(ends.as_ref()).map(Vec::len);
    let count = count.or_else(|| call.shape(1)?.first()?.fixed());
    let axes = match (call.list("axes", 3), count) {
        (Given::Known(axes), _) => dims::axes(&axes, shape.len())?,
        (Given::Absent, Some(count)) if count <= shape.len() => (0..count).collect(),
        (Given::Absent, Some(count)) => {
            return wrong(format!("{count} ranges for {} dimensions", shape.len()));
        }
        // Which dimensions are cut is not known.
        _ => return Ok(vec![rank_only(dtype, shape.len())]),
    };
    if let Some(count) = count
        && count != axes.len()
    {
        return wrong(format!("{count} ranges for {} axes", axes.len()));
    }
    let steps = if call.has(4) { list("steps", 4) } else { Some(vec![Some(Expr::from(1)); axes.len()]) };
    let at = |list: &Option<Vec<Option<Expr>>>, index: usize| list.as_ref()?.get(index)?.clone();
    let mut result = shape.clone();
    let mut ranges: Option<Vec<(usize, i64)>> = Some(vec![(0, 1); shape.len()]);
    for (index, &axis) in axes.iter().enumerate() {
        let step = at(&steps, index).and_then(|step| step.constant());
        if step == Some(0) {
            return wrong("a step of the slice is 0");
        }
        let (size, start) = sliced(&shape[axis], at(&starts, index), at(&ends, index), step)?;
        result[axis] = size;
        match (&mut ranges, start, step) {
            (Some(ranges), Some(start), Some(step)) => ranges[axis] = (start, step),
            _ => ranges = None,
        }
    }
    let contents = call.contents(0).zip(ranges).and_then(|(contents, ranges)| {
        let strides = row_major(&fixed(shape)?);
        picked(contents, &result, |index| {
            let place = |axis: usize| {
                let (start, step) = ranges[axis];
                let moved = i64::try_from(index[axis]).ok().and_then(|index| index.checked_mul(step));
                let at = moved.and_then(|moved| i64::try_from(start).ok()?.checked_add(moved));
                at.and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX)
            };
            (0..index.len())
                .map(|axis| place(axis).saturating_mul(strides[axis]))
                .fold(0, usize::saturating_add)
        })
    });
    Ok(vec![Fact::integers(dtype, result, contents)])
}

/// Size of a dimension cut to a range, and where the range starts when that is known.
fn sliced(
    dim: &Dim,
    start: Option<Expr>,
    end: Option<Expr>,
    step: Option<i64>,
) -> Outcome<(Dim, Option<usize>)> {
    let (Some(start), Some(end), Some(step)) = (start, end, step) else { return Ok((Dim::Unknown, None)) };
    let size = dim.fixed().and_then(|size| i64::try_from(size).ok());
    if let (Some(size), Some(start), Some(end)) = (size, start.constant(), end.constant()) {
        // Backwards the range may start at the last element and end before the first.
        let (low, high) = if step > 0 { (0, size) } else { (-1, size - 1) };
        let clamp = |at: i64| if at < 0 { at.saturating_add(size) } else { at }.clamp(low, high);
        let (start, end) = (clamp(start), clamp(end));
        let distance = if step > 0 { end - start } else { start - end };
        let stride = i64::try_from(step.unsigned_abs()).unwrap_or(i64::MAX);
        // Rounded up, and written so that it cannot overflow.
        let length = if distance <= 0 { 0 } else { (distance - 1) / stride + 1 };
        return Ok((Dim::Fixed(usize::try_from(length).unwrap_or(0)), usize::try_from(start).ok()));
    }
    let Some(size) = Expr::of(dim) else { return Ok((Dim::Unknown, None)) };
    if step < 0 {
        // Whole dimensions reversed, as exporters write it.
        let last = start.constant().is_some_and(|start| start == -1 || start >= FAR);
        let first = end.constant().is_some_and(|end| end <= -FAR);
        return Ok((if last && first && step == -1 { dim.clone() } else { Dim::Unknown }, None));
    }
    let (Some(start), Some(end)) = (position(&start, &size), position(&end, &size)) else {
        return Ok((Dim::Unknown, None));
    };
    let never_negative =
        |expr: &Option<Expr>| expr.as_ref().is_some_and(|expr| expr.least().is_some_and(|least| least >= 0));
    let (length, beyond) = (end.sub(&start), start.sub(&end));
    let result = if never_negative(&length) {
        length.and_then(|length| length.ceil_div(step)).map_or(Dim::Unknown, |length| length.dim())
    } else if never_negative(&beyond) {
        Dim::Fixed(0)
    } else {
        Dim::Unknown
    };
    Ok((result, None))
}

/// Numbers beyond this stand for "to the end": no dimension reaches it.
const FAR: i64 = i32::MAX as i64;

/// A bound of a range as a position within `size` elements, where that is certain.
fn position(bound: &Expr, size: &Expr) -> Option<Expr> {
    // Surely negative, so it counts from the end.
    let from_end = bound.mul(&Expr::from(-1)).and_then(|bound| bound.least()).is_some_and(|least| least > 0);
    let bound = match bound.constant() {
        Some(bound) if bound >= FAR => return Some(size.clone()),
        Some(bound) if bound <= -FAR => return Some(Expr::from(0)),
        _ if from_end => size.add(bound)?,
        _ => bound.clone(),
    };
    // What may be negative might count from the end.
    bound.least().filter(|&least| least >= 0)?;
    if size.sub(&bound)?.least().is_some_and(|room| room >= 0) {
        return Some(bound);
    }
    bound.sub(size)?.least().filter(|&least| least >= 0).map(|_| size.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices() {
        let expr = |text: &str| {
            text.parse::<i64>().map_or_else(|_| Expr::of(&Dim::symbol(text)).unwrap(), Expr::from)
        };
        let max = i64::MAX.to_string();
        let min = i64::MIN.to_string();
        for (size, start, end, step, result) in [
            ("10", "2", "5", 1, "3"),
            ("10", "-3", max.as_str(), 1, "3"),
            ("10", "0", "-1", 2, "5"),
            ("10", "-1", min.as_str(), -1, "10"),
            ("10", "7", "2", -2, "3"),
            ("10", "20", "30", 1, "0"),
            ("10", "0", "10", i64::MAX, "1"),
            ("10", "-1", min.as_str(), i64::MIN, "1"),
            ("0", "-1", min.as_str(), -1, "0"),
            ("seq", "0", max.as_str(), 1, "seq"),
            ("seq", "1", max.as_str(), 1, "seq - 1"),
            ("seq", "-1", max.as_str(), 1, "1"),
            ("seq", "0", "-1", 1, "seq - 1"),
            ("seq", "0", "1", 1, "1"),
            ("seq", "0", "2", 1, "?"),
            ("seq", "-seq", max.as_str(), 1, "seq"),
            ("seq", "0", "seq", 1, "seq"),
            ("seq + 4", "4", max.as_str(), 1, "seq"),
            ("seq + past", "past", max.as_str(), 1, "seq"),
            ("seq", "0", max.as_str(), 2, "floor((seq + 1)/2)"),
            ("512", "0", "seq", 1, "?"),
            ("seq", "-1", min.as_str(), -1, "seq"),
        ] {
            let dim = expr(size).dim();
            let (found, _) = sliced(&dim, Some(expr(start)), Some(expr(end)), Some(step)).unwrap();
            assert_eq!(found.to_string(), result, "{size}[{start}:{end}:{step}]");
        }
    }

    #[test]
    fn unknown_bounds_leave_the_rank() {
        assert_eq!(sliced(&Dim::Fixed(3), None, Some(Expr::from(1)), Some(1)), Ok((Dim::Unknown, None)));
    }
}
