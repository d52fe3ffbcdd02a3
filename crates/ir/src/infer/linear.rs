//! Matrix products, plain and quantized, `Einsum` and other linear algebra.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, one};
use crate::infer::dims::{self, Outcome, broadcast_two, show, wrong};
use crate::infer::fact::Fact;
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Det", determinant),
    ("Einsum", einsum),
    ("Gemm", gemm),
    ("MatMul", |call| one(call.dtype(0).or(call.dtype(1)), product(call, 0, 1)?)),
    ("MatMulInteger", |call| one(Some(DType::I32), product(call, 0, 1)?)),
    ("QLinearMatMul", |call| one(call.dtype(7), product(call, 0, 3)?)),
];

/// numpy's `matmul`: vectors get a dimension of size 1, which the result loses again.
pub(super) fn product(call: &Call<'_>, left: usize, right: usize) -> Outcome<Option<Shape>> {
    let (Some(a), Some(b)) = (call.shape(left), call.shape(right)) else { return Ok(None) };
    product_of(a, b).map(Some)
}

pub(super) fn product_of(a: &Shape, b: &Shape) -> Outcome<Shape> {
    let (Some(a_last), Some(b_last)) = (a.last(), b.last()) else {
        return wrong("a scalar cannot be an operand of a matrix product");
    };
    let (a_batch, rows) = match a.len() {
        1 => (&[][..], None),
        rank => (&a[..rank - 2], Some(a[rank - 2].clone())),
    };
    let (b_batch, inner, columns) = match b.len() {
        1 => (&[][..], b_last, None),
        rank => (&b[..rank - 2], &b[rank - 2], Some(b_last.clone())),
    };
    if let (Some(left), Some(right)) = (a_last.fixed(), inner.fixed())
        && left != right
    {
        return wrong(format!(
            "{} and {} cannot be multiplied: {left} columns, {right} rows",
            show(a),
            show(b)
        ));
    }
    let mut shape = broadcast_two(a_batch, b_batch)?;
    shape.extend(rows.into_iter().chain(columns));
    Ok(shape)
}

pub(super) fn gemm(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let operand = |slot: usize, flag: &str| -> Outcome<(Dim, Dim)> {
        match call.shape(slot).map(Vec::as_slice) {
            Some([rows, columns]) if call.flag(flag) => Ok((columns.clone(), rows.clone())),
            Some([rows, columns]) => Ok((rows.clone(), columns.clone())),
            Some(shape) => {
                wrong(format!("operands need two dimensions, but input {slot} is {}", show(shape)))
            }
            None => Ok((Dim::Unknown, Dim::Unknown)),
        }
    };
    let (rows, inner) = operand(0, "transA")?;
    let (other, columns) = operand(1, "transB")?;
    dims::same(&inner, &other, "inner dimensions of the product")?;
    let shape = vec![rows, columns];
    if let Some(addend) = call.shape(2).filter(|_| call.opset >= 7)
        && !broadcast_two(&shape, addend).is_ok_and(|result| result.len() == 2)
    {
        return wrong(format!("the addend {} does not broadcast to {}", show(addend), show(&shape)));
    }
    one(call.dtype(0).or(call.dtype(1)), Some(shape))
}

fn determinant(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let shape = match call.shape(0) {
        Some(shape) if shape.len() < 2 => return wrong("the input is not a matrix"),
        Some(shape) => Some(shape[..shape.len() - 2].to_vec()),
        None => None,
    };
    one(call.dtype(0), shape)
}

/// Dimensions by letter; the ellipsis stands for the ones in front that broadcast.
fn einsum(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = (0..call.inputs.len()).find_map(|slot| call.dtype(slot));
    let equation: String = match call.node.string("equation") {
        Some(equation) => equation.chars().filter(|c| !c.is_whitespace()).collect(),
        None => return wrong("attribute `equation` is missing"),
    };
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs, Some(output)),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = inputs.split(',').collect();
    if terms.len() != call.inputs.len() {
        return wrong(format!(
            "equation `{equation}` is for {} inputs, not {}",
            terms.len(),
            call.inputs.len()
        ));
    }
    // Letters in order: without an output term they come sorted, and each only when it occurs once.
    let mut sizes = std::collections::BTreeMap::<char, (Dim, usize)>::new();
    let mut ellipsis = Some(Shape::new());
    for (slot, term) in terms.iter().enumerate() {
        let (head, tail, dots) = parts(term, &equation)?;
        let Some(shape) = call.shape(slot) else {
            for letter in head.chars().chain(tail.chars()) {
                sizes.entry(letter).or_insert((Dim::Unknown, 0)).1 += 1;
            }
            ellipsis = if dots { None } else { ellipsis };
            continue;
        };
        let letters = head.chars().count() + tail.chars().count();
        if shape.len() < letters || (!dots && shape.len() != letters) {
            return wrong(format!("term `{term}` does not describe an input of shape {}", show(shape)));
        }
        let (front, rest) = shape.split_at(head.chars().count());
        let (middle, back) = rest.split_at(rest.len() - tail.chars().count());
        if let (true, Some(so_far)) = (dots, &ellipsis) {
            ellipsis = Some(broadcast_two(so_far, middle)?);
        }
        for (letter, dim) in head.chars().zip(front).chain(tail.chars().zip(back)) {
            let entry = sizes.entry(letter).or_insert((Dim::Fixed(1), 0));
            entry.0 = broadcast_two(std::slice::from_ref(&entry.0), std::slice::from_ref(dim))?.remove(0);
            entry.1 += 1;
        }
    }
    let mut result = Shape::new();
    let result = match output {
        Some(output) => {
            let (head, tail, dots) = parts(output, &equation)?;
            for (letters, dots) in [(head, false), ("", dots), (tail, false)] {
                if dots {
                    match &ellipsis {
                        Some(ellipsis) => result.extend(ellipsis.iter().cloned()),
                        None => return one(dtype, None),
                    }
                }
                for letter in letters.chars() {
                    match sizes.get(&letter) {
                        Some((dim, _)) => result.push(dim.clone()),
                        None => {
                            return wrong(format!("`{letter}` in the output of `{equation}` is in no input"));
                        }
                    }
                }
            }
            result
        }
        None => {
            let Some(ellipsis) = ellipsis else { return one(dtype, None) };
            result.extend(ellipsis);
            result.extend(sizes.into_values().filter(|(_, count)| *count == 1).map(|(dim, _)| dim));
            result
        }
    };
    one(dtype, Some(result))
}

/// Letters before and after an ellipsis, and whether there is one.
fn parts<'t>(term: &'t str, equation: &str) -> Outcome<(&'t str, &'t str, bool)> {
    let (head, tail, dots) = match term.split_once("...") {
        Some((head, tail)) => (head, tail, true),
        None => (term, "", false),
    };
    if head.chars().chain(tail.chars()).all(|c| c.is_ascii_alphabetic()) {
        Ok((head, tail, dots))
    } else {
        wrong(format!("equation `{equation}` has something other than letters, commas, `...` and `->`"))
    }
}
