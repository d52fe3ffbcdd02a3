//! Operators that rearrange elements without changing them, and those that ask for a shape.

use crate::dtype::DType;
use crate::infer::call::{Call, Given, Rule, fixed, offset, one, picked, rank_only, row_major};
use crate::infer::dims::{self, Outcome, broadcast_two, product, show, unknowns, wrong};
use crate::infer::expr::Expr;
use crate::infer::fact::Fact;
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Concat", concat),
    ("Expand", expand),
    ("Flatten", flatten),
    ("Reshape", reshape),
    ("Shape", shape_of),
    ("Size", size_of),
    ("Split", split),
    ("Squeeze", squeeze),
    ("Tile", tile),
    ("Transpose", transpose),
    ("Unsqueeze", unsqueeze),
];

/// The first input's elements, in the same order, under another shape.
pub(super) fn same_elements(call: &Call<'_>, shape: Shape) -> Outcome<Vec<Fact>> {
    Ok(vec![Fact::integers(call.dtype(0), shape, call.contents(0).map(<[_]>::to_vec))])
}

fn shape_of(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return Ok(vec![rank_only(Some(DType::I64), 1)]) };
    let rank = i64::try_from(shape.len()).unwrap_or(i64::MAX);
    let bound = |name: &str, default: i64| {
        let at = call.int(name, default);
        let at = if at < 0 { at.saturating_add(rank) } else { at };
        usize::try_from(at.clamp(0, rank)).unwrap_or(0)
    };
    let (start, end) = (bound("start", 0), bound("end", rank));
    let sizes: Vec<Option<Expr>> = shape.get(start..end).unwrap_or(&[]).iter().map(Expr::of).collect();
    Ok(vec![Fact::integers(Some(DType::I64), vec![Dim::Fixed(sizes.len())], Some(sizes))])
}

fn size_of(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let count = call.shape(0).map(product).transpose()?;
    let contents = count.map(|count| vec![Expr::of(&count)]);
    Ok(vec![Fact::integers(Some(DType::I64), Vec::new(), contents)])
}

fn reshape(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let wanted: Vec<Option<Expr>> = match (call.contents(1), call.list("shape", 1)) {
        (Some(contents), _) => contents.to_vec(),
        (None, Given::Known(list)) => list.into_iter().map(|size| Some(Expr::from(size))).collect(),
        (None, Given::Unknown(Some(rank))) => vec![None; rank.min(MAX_TARGET)],
        (None, _) => return one(call.dtype(0), None),
    };
    let target = target_shape(call.shape(0), &wanted, call.flag("allowzero"))?;
    same_elements(call, target)
}

/// A shape input is never longer: its contents would not be followed.
const MAX_TARGET: usize = 1024;

/// The shape that `Reshape` to `wanted` gives.
fn target_shape(input: Option<&Shape>, wanted: &[Option<Expr>], zero_is_zero: bool) -> Outcome<Shape> {
    let mut shape = Shape::with_capacity(wanted.len());
    // Input dimensions not yet accounted for; those copied to the same place are, known or not.
    let mut left: Vec<Option<&Dim>> = input.map_or(Vec::new(), |input| input.iter().map(Some).collect());
    let mut right: Vec<Dim> = Vec::new();
    let mut holes = Vec::new();
    let mut inferred = false;
    for (index, element) in wanted.iter().enumerate() {
        match element.as_ref().map(|element| (element.constant(), element)) {
            Some((Some(0), _)) if !zero_is_zero => {
                shape.push(match input {
                    Some(input) => match input.get(index) {
                        Some(dim) => {
                            left[index] = None;
                            dim.clone()
                        }
                        None => {
                            return wrong(format!(
                                "size 0 at {index} copies from an input of {} dimensions",
                                input.len()
                            ));
                        }
                    },
                    None => Dim::Unknown,
                });
            }
            Some((Some(-1), _)) => {
                if std::mem::replace(&mut inferred, true) {
                    return wrong("the target shape has -1 twice");
                }
                holes.push(index);
                shape.push(Dim::Unknown);
            }
            Some((Some(size), _)) => {
                let dim = dims::size(size, "a size of the target shape")?;
                right.push(dim.clone());
                shape.push(dim);
            }
            // A symbolic size that might be 0 or -1 might mean something else.
            Some((None, expr)) if expr.least().is_some_and(|least| least > 0) => {
                right.push(expr.dim());
                shape.push(expr.dim());
            }
            _ => {
                holes.push(index);
                shape.push(Dim::Unknown);
            }
        }
    }
    if input.is_none() {
        return Ok(shape);
    }
    right.retain(|dim| match left.iter().position(|other| *other == Some(dim)) {
        Some(at) if *dim != Dim::Unknown => {
            left[at] = None;
            false
        }
        _ => true,
    });
    let (before, after) = (product(left.iter().copied().flatten())?, product(&right)?);
    match (holes.as_slice(), Expr::of(&before), Expr::of(&after)) {
        // One size is open: the count of elements stays, so it follows, whether it was -1 or just unknown.
        (&[hole], Some(before), Some(after)) => {
            shape[hole] = match (before.constant(), after.constant()) {
                (_, Some(0)) => Dim::Unknown,
                (Some(count), Some(divisor)) if count % divisor != 0 => {
                    let input = input.map_or(&[][..], |input| input);
                    return wrong(format!("{} cannot be reshaped to {}", show(input), show_wanted(wanted)));
                }
                (_, divisor) => {
                    let exact = before.exact_div(&after).or_else(|| before.floor_div(divisor?));
                    exact.map_or(Dim::Unknown, |size| size.dim())
                }
            };
        }
        ([], Some(before), Some(after))
            if before.constant().is_some() && after.constant().is_some() && before != after =>
        {
            let input = input.map_or(&[][..], |input| input);
            return wrong(format!("{} cannot be reshaped to {}", show(input), show_wanted(wanted)));
        }
        _ => {}
    }
    Ok(shape)
}

fn show_wanted(wanted: &[Option<Expr>]) -> String {
    let sizes: Vec<String> =
        wanted.iter().take(16).map(|size| size.as_ref().map_or("?".into(), Expr::to_string)).collect();
    format!("[{}{}]", sizes.join(","), if wanted.len() > 16 { ",..." } else { "" })
}

fn flatten(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return Ok(vec![rank_only(call.dtype(0), 2)]) };
    // One past the last dimension is an axis here.
    let axis = call.int("axis", 1);
    let axis = match i64::try_from(shape.len()) {
        Ok(rank) if axis == rank => shape.len(),
        _ => dims::axis(axis, shape.len())?,
    };
    let (outer, inner) = shape.split_at(axis);
    same_elements(call, vec![product(outer)?, product(inner)?])
}

fn squeeze(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let axes = call.list("axes", 1);
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    match axes {
        Given::Known(axes) => {
            let axes = dims::axes(&axes, shape.len())?;
            let mut kept = shape.iter().cloned().map(Some).collect::<Vec<_>>();
            for axis in axes {
                if shape[axis].fixed().is_some_and(|size| size != 1) {
                    return wrong(format!(
                        "dimension {axis} of {} is not 1 and cannot be squeezed",
                        show(shape)
                    ));
                }
                kept[axis] = None;
            }
            same_elements(call, kept.into_iter().flatten().collect())
        }
        Given::Absent if shape.iter().all(|dim| dim.fixed().is_some()) => {
            same_elements(call, shape.iter().filter(|dim| dim.fixed() != Some(1)).cloned().collect())
        }
        Given::Unknown(Some(count)) if count <= shape.len() => {
            Ok(vec![rank_only(call.dtype(0), shape.len() - count)])
        }
        _ => one(call.dtype(0), None),
    }
}

fn unsqueeze(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let axes = call.list("axes", 1);
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    match axes {
        Given::Known(axes) => {
            let rank = shape.len().saturating_add(axes.len());
            let mut inserted = vec![false; rank];
            for axis in dims::axes(&axes, rank)? {
                inserted[axis] = true;
            }
            let mut given = shape.iter().cloned();
            let result = inserted
                .into_iter()
                .map(|new| if new { Dim::Fixed(1) } else { given.next().unwrap_or(Dim::Unknown) });
            same_elements(call, result.collect())
        }
        Given::Unknown(Some(count)) => {
            Ok(vec![rank_only(call.dtype(0), shape.len().saturating_add(count.min(MAX_TARGET)))])
        }
        _ => one(call.dtype(0), None),
    }
}

fn transpose(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let permutation = call.node.ints("perm");
    let Some(shape) = call.shape(0) else {
        let shape = permutation.map(|permutation| unknowns(permutation.len()));
        return one(call.dtype(0), shape);
    };
    let order: Vec<usize> = match permutation {
        Some(permutation) if permutation.len() != shape.len() => {
            return wrong(format!("`perm` has {} entries for {} dimensions", permutation.len(), shape.len()));
        }
        Some(permutation) => dims::axes(permutation, shape.len())?,
        None => (0..shape.len()).rev().collect(),
    };
    let result: Shape = order.iter().map(|&axis| shape[axis].clone()).collect();
    let contents = call.contents(0).and_then(|contents| {
        let strides = row_major(&fixed(shape)?);
        let strides: Vec<usize> = order.iter().map(|&axis| strides[axis]).collect();
        picked(contents, &result, |index| offset(index, &strides))
    });
    Ok(vec![Fact::integers(call.dtype(0), result, contents)])
}

fn expand(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let target: Shape = match (call.contents(1), call.shape(1).map(Vec::as_slice)) {
        (Some(contents), _) => {
            let mut target = Shape::new();
            for size in contents {
                if size.as_ref().and_then(Expr::constant).is_some_and(|size| size < 0) {
                    return wrong("the target shape has a negative size");
                }
                target.push(size.as_ref().map_or(Dim::Unknown, Expr::dim));
            }
            target
        }
        (None, Some([length])) if length.fixed().is_some_and(|length| length <= MAX_TARGET) => {
            unknowns(length.fixed().unwrap_or(0))
        }
        _ => return one(call.dtype(0), None),
    };
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    let result = broadcast_two(shape, &target)?;
    let contents = call.contents(0).and_then(|contents| {
        let sizes = fixed(shape)?;
        let mut strides = vec![0; result.len() - sizes.len()];
        strides.extend(
            row_major(&sizes).iter().zip(&sizes).map(|(&step, &size)| if size == 1 { 0 } else { step }),
        );
        picked(contents, &result, |index| offset(index, &strides))
    });
    Ok(vec![Fact::integers(call.dtype(0), result, contents)])
}

fn tile(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0).filter(|_| call.opset >= 6) else { return one(call.dtype(0), None) };
    let Some(repeats) = call.contents(1) else { return Ok(vec![rank_only(call.dtype(0), shape.len())]) };
    if repeats.len() != shape.len() {
        return wrong(format!("{} repeats for {} dimensions", repeats.len(), shape.len()));
    }
    let mut result = Shape::new();
    for (dim, repeat) in shape.iter().zip(repeats) {
        if repeat.as_ref().and_then(Expr::constant).is_some_and(|repeat| repeat < 0) {
            return wrong("a number of repeats is negative");
        }
        result.push(product([dim, &repeat.as_ref().map_or(Dim::Unknown, Expr::dim)])?);
    }
    let contents = call.contents(0).and_then(|contents| {
        let sizes = fixed(shape)?;
        let strides = row_major(&sizes);
        picked(contents, &result, |index| {
            let index: Vec<usize> = index.iter().zip(&sizes).map(|(index, size)| index % size).collect();
            offset(&index, &strides)
        })
    });
    Ok(vec![Fact::integers(call.dtype(0), result, contents)])
}

fn concat(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let slots = 0..call.inputs.len();
    let dtype = slots.clone().find_map(|slot| call.dtype(slot));
    let Some(rank) = slots.clone().find_map(|slot| call.rank(slot)) else { return one(dtype, None) };
    let axis = call.axis(1, rank)?;
    let mut result = unknowns(rank);
    let mut parts = Vec::new();
    for slot in slots.clone() {
        let Some(shape) = call.shape(slot) else {
            parts.push(Dim::Unknown);
            continue;
        };
        if shape.len() != rank {
            return wrong(format!("inputs of {rank} and of {} dimensions", shape.len()));
        }
        for (index, dim) in shape.iter().enumerate() {
            if index == axis {
                parts.push(dim.clone());
            } else {
                result[index] = dims::same(&result[index], dim, "sizes off the axis of concatenation")?;
            }
        }
    }
    result[axis] = dims::sum(&parts)?;
    let contents = concatenated(call, axis, &result);
    Ok(vec![Fact::integers(dtype, result, contents)])
}

/// Elements of a concatenation: blocks of each input in turn. An input whose contents are not followed is a
/// gap in them.
fn concatenated(call: &Call<'_>, axis: usize, result: &[Dim]) -> Option<Vec<Option<Expr>>> {
    let slots = 0..call.inputs.len();
    if !slots.clone().any(|slot| call.contents(slot).is_some()) {
        return None;
    }
    let count = crate::tensor::element_count(&fixed(result)?)?;
    if count > crate::infer::MAX_CONTENTS {
        return None;
    }
    let outer = crate::tensor::element_count(&fixed(&result[..axis])?)?;
    let mut elements = Vec::with_capacity(count);
    for block in 0..outer {
        for slot in slots.clone() {
            let length = crate::tensor::element_count(&fixed(&call.shape(slot)?[axis..])?)?;
            match call.contents(slot) {
                Some(contents) => {
                    elements.extend_from_slice(contents.get(block * length..(block + 1) * length)?)
                }
                None => elements.extend(std::iter::repeat_n(None, length)),
            }
        }
    }
    Some(elements)
}

fn split(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let count = call.output_count();
    let Some(shape) = call.shape(0) else { return Ok(vec![Fact::tensor(call.dtype(0), None); count]) };
    let axis = call.axis(0, shape.len())?;
    let sizes: Vec<Dim> = match call.contents(1) {
        Some(sizes) => sizes.iter().map(|size| size.as_ref().map_or(Dim::Unknown, Expr::dim)).collect(),
        None => match call.list("split", 1) {
            Given::Known(sizes) => {
                sizes.iter().map(|&size| dims::size(size, "a size of the split")).collect::<Outcome<_>>()?
            }
            Given::Unknown(_) => unknowns(count),
            Given::Absent => equal_parts(&shape[axis], count)?,
        },
    };
    if sizes.len() != count {
        return wrong(format!("{} sizes for {count} outputs", sizes.len()));
    }
    if let (Some(whole), Dim::Fixed(total)) = (shape[axis].fixed(), dims::sum(&sizes)?)
        && whole != total
    {
        return wrong(format!("the parts add up to {total}, but the dimension has {whole}"));
    }
    let mut start = Some(0usize);
    let mut outputs = Vec::new();
    for size in sizes {
        let mut part = shape.clone();
        part[axis] = size.clone();
        let contents = call.contents(0).and_then(|contents| {
            let (start, strides) = (start?, row_major(&fixed(shape)?));
            picked(contents, &part, |index| {
                offset(index, &strides).saturating_add(start.saturating_mul(strides[axis]))
            })
        });
        start = start.and_then(|start| start.checked_add(size.fixed()?));
        outputs.push(Fact::integers(call.dtype(0), part, contents));
    }
    Ok(outputs)
}

/// As equal as can be: the last part may be smaller.
fn equal_parts(whole: &Dim, count: usize) -> Outcome<Vec<Dim>> {
    let Ok(signed) = i64::try_from(count.max(1)) else { return Ok(unknowns(count)) };
    let Some(size) = whole.fixed() else {
        // With something left over the last part would differ.
        let part = Expr::of(whole).and_then(|whole| whole.exact_div(&Expr::from(signed)));
        return Ok(part.map_or_else(|| unknowns(count), |part| vec![part.dim(); count]));
    };
    let part = dims::map(&Dim::Fixed(size), |size| size.ceil_div(signed))?.fixed().unwrap_or(0);
    let mut left = size;
    let sizes = (0..count).map(|_| {
        let taken = part.min(left);
        left -= taken;
        Dim::Fixed(taken)
    });
    Ok(sizes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshape_targets() {
        let shape = |text: &str| -> Vec<Dim> {
            let one = |text: &str| text.parse().map_or_else(|_| Dim::symbol(text), Dim::Fixed);
            text.split_whitespace().map(|text| if text == "?" { Dim::Unknown } else { one(text) }).collect()
        };
        let wanted = |text: &str| -> Vec<Option<Expr>> {
            let one = |text: &str| text.parse::<i64>().map_or_else(|_| Expr::symbol(text), Expr::from);
            text.split_whitespace().map(|text| (text != "?").then(|| one(text))).collect()
        };
        for (input, target, result) in [
            ("batch 12 seq 32", "batch seq 384", Some("batch seq 384")),
            ("batch seq 12 32", "batch seq -1", Some("batch seq 384")),
            ("batch seq 12 32", "0 0 -1", Some("batch seq 384")),
            ("batch seq 384", "batch -1 12 32", Some("batch seq 12 32")),
            ("? seq 12 32", "0 0 -1", Some("? seq 384")),
            ("batch 12 seq 32", "-1 seq 32", Some("12*batch seq 32")),
            ("batch seq 384", "batch ? 12 32", Some("batch seq 12 32")),
            ("2 3 4", "4 -1", Some("4 6")),
            ("2 3 4", "5 -1", None),
            ("2 3 4", "5 5", None),
            ("2 3 4", "-1 -1", None),
            ("2 3 4", "-2 3", None),
            ("2 3", "0 0 0", None),
            ("?", "-1 2", Some("? 2")),
            ("floor(N/2) 6", "-1 2", Some("3*floor(N/2) 2")),
            ("N 6", "-1 12", Some("floor(N/2) 12")),
        ] {
            let found = target_shape(Some(&shape(input)), &wanted(target), false);
            assert_eq!(found.ok(), result.map(shape), "{input} to {target}");
        }
        assert_eq!(target_shape(Some(&shape("0 3")), &wanted("3 0"), true).unwrap(), shape("3 0"));
    }
}
