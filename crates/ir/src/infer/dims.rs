//! Arithmetic on dimensions and shapes, with the sizes that cannot be told apart from those that are wrong.

use crate::infer::expr::Expr;
use crate::types::{Dim, Shape};

/// Why an operator's outputs have no shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The inputs or attributes break the operator's rules.
    Wrong(String),
    /// A size beyond what can be addressed.
    TooLarge(String),
}

/// What a rule returns.
pub(super) type Outcome<T> = Result<T, Fault>;

pub(super) fn wrong<T>(what: impl Into<String>) -> Outcome<T> {
    Err(Fault::Wrong(what.into()))
}

/// A result of `Expr` arithmetic as a dimension: when all was fixed and there is none, it overflowed.
fn settle(result: Option<Expr>, all_fixed: bool, what: impl FnOnce() -> String) -> Outcome<Dim> {
    match result {
        Some(expr) if expr.constant().is_some_and(|size| size < 0) => {
            wrong(format!("{} is negative: {expr}", what()))
        }
        Some(expr) => Ok(expr.dim()),
        None if all_fixed => Err(Fault::TooLarge(format!("{} is larger than can be addressed", what()))),
        None => Ok(Dim::Unknown),
    }
}

/// The sum of dimensions.
pub(super) fn sum<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Outcome<Dim> {
    let (mut total, mut all_fixed, mut all_known) = (Some(Expr::from(0)), true, true);
    for dim in dims {
        all_fixed &= dim.fixed().is_some();
        let dim = Expr::of(dim);
        all_known &= dim.is_some();
        total = total.and_then(|total| total.add(&dim?));
    }
    if !all_known {
        return Ok(Dim::Unknown);
    }
    settle(total, all_fixed, || "a sum of sizes".into())
}

/// The product of dimensions.
pub(super) fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Outcome<Dim> {
    let dims: Vec<&Dim> = dims.into_iter().collect();
    // Zero times anything, known or not.
    if dims.iter().any(|dim| dim.fixed() == Some(0)) {
        return Ok(Dim::Fixed(0));
    }
    let mut total = Some(Expr::from(1));
    for dim in &dims {
        let Some(dim) = Expr::of(dim) else { return Ok(Dim::Unknown) };
        total = total.and_then(|total| total.mul(&dim));
    }
    settle(total, dims.iter().all(|dim| dim.fixed().is_some()), || "a product of sizes".into())
}

/// A dimension put through arithmetic.
pub(super) fn map(dim: &Dim, change: impl FnOnce(Expr) -> Option<Expr>) -> Outcome<Dim> {
    let Some(expr) = Expr::of(dim) else { return Ok(Dim::Unknown) };
    settle(change(expr), dim.fixed().is_some(), || format!("a size computed from {dim}"))
}

/// A dimension times a number.
pub(super) fn scale(dim: &Dim, by: i64) -> Outcome<Dim> {
    map(dim, |expr| expr.mul(&Expr::from(by)))
}

/// A number from an attribute or input as a dimension.
pub(super) fn size(number: i64, what: &str) -> Outcome<Dim> {
    usize::try_from(number).map(Dim::Fixed).or_else(|_| wrong(format!("{what} is negative: {number}")))
}

/// Two dimensions that must be the same size: the better known one.
pub(super) fn same(left: &Dim, right: &Dim, what: &str) -> Outcome<Dim> {
    match (left, right) {
        (Dim::Fixed(a), Dim::Fixed(b)) if a != b => wrong(format!("{what} differ: {a} and {b}")),
        (Dim::Fixed(_), _) | (_, Dim::Unknown) => Ok(left.clone()),
        (_, Dim::Fixed(_)) | (Dim::Unknown, _) => Ok(right.clone()),
        _ => Ok(left.clone()),
    }
}

/// An axis that may count from the end, as index into `rank` dimensions.
pub(super) fn axis(axis: i64, rank: usize) -> Outcome<usize> {
    let signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let index = if axis < 0 { axis.checked_add(signed) } else { Some(axis) };
    match index.and_then(|index| usize::try_from(index).ok()).filter(|&index| index < rank) {
        Some(index) => Ok(index),
        None => wrong(format!("axis {axis} is out of range for {rank} dimensions")),
    }
}

/// Several axes, no two alike, in the order given.
pub(super) fn axes(given: &[i64], rank: usize) -> Outcome<Vec<usize>> {
    // A mark an axis instead of a search through the others: lists may be long.
    let mut seen = vec![false; rank];
    let mut found = Vec::new();
    for &one in given {
        let index = axis(one, rank)?;
        if std::mem::replace(&mut seen[index], true) {
            return wrong(format!("axis {one} is given twice"));
        }
        found.push(index);
    }
    Ok(found)
}

/// A shape of which only the rank is known.
pub(super) fn unknowns(rank: usize) -> Shape {
    vec![Dim::Unknown; rank]
}

fn broadcast_dims(left: &Dim, right: &Dim) -> Outcome<Dim> {
    Ok(match (left, right) {
        (Dim::Fixed(1), other) | (other, Dim::Fixed(1)) => other.clone(),
        (Dim::Fixed(a), Dim::Fixed(b)) if a != b => {
            return wrong(format!("sizes {a} and {b} do not broadcast"));
        }
        // Whatever the other one is, it is 1 or the same.
        (Dim::Fixed(_), _) => left.clone(),
        (_, Dim::Fixed(_)) => right.clone(),
        (Dim::Symbol(a), Dim::Symbol(b)) if a == b => left.clone(),
        // What cannot be 1 wins as a number would.
        _ if beyond_one(left) => left.clone(),
        _ if beyond_one(right) => right.clone(),
        _ => Dim::Unknown,
    })
}

fn beyond_one(dim: &Dim) -> bool {
    Expr::of(dim).and_then(|size| size.least()).is_some_and(|least| least > 1)
}

pub(super) fn broadcast_two(left: &[Dim], right: &[Dim]) -> Outcome<Shape> {
    let (long, short) = if left.len() >= right.len() { (left, right) } else { (right, left) };
    let (head, tail) = long.split_at(long.len() - short.len());
    let mut shape = head.to_vec();
    for (left, right) in tail.iter().zip(short) {
        match broadcast_dims(left, right) {
            Ok(dim) => shape.push(dim),
            Err(_) => return wrong(format!("shapes {} and {} do not broadcast", show(long), show(short))),
        }
    }
    Ok(shape)
}

/// The shape that tensors of these shapes broadcast to (numpy's rule); `None` when they do not.
///
/// A fixed size other than 1 wins over a symbol; two different symbols give an unknown size, since either
/// may be 1.
pub fn broadcast(shapes: &[Shape]) -> Option<Shape> {
    shapes.iter().try_fold(Shape::new(), |result, shape| broadcast_two(&result, shape).ok())
}

/// For messages.
pub(super) fn show(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().take(16).map(Dim::to_string).collect();
    format!("[{}{}]", dims.join(","), if shape.len() > 16 { ",..." } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> Shape {
        let one = |text: &str| match text.parse() {
            Ok(size) => Dim::Fixed(size),
            Err(_) if text == "?" => Dim::Unknown,
            Err(_) => Dim::symbol(text),
        };
        text.split_whitespace().map(one).collect()
    }

    #[test]
    fn broadcasting() {
        for (shapes, result) in [
            (&["2 3", "3"][..], Some("2 3")),
            (&["2 1", "1 3", "1"], Some("2 3")),
            (&["N 1 3", "N 4 1"], Some("N 4 3")),
            (&["N", "M"], Some("?")),
            (&["N", "5"], Some("5")),
            (&["N", "2*M"], Some("2*M")),
            (&["?", "1"], Some("?")),
            (&["0", "1"], Some("0")),
            (&["2", "3"], None),
            (&[], Some("")),
        ] {
            let given: Vec<Shape> = shapes.iter().map(|text| shape(text)).collect();
            assert_eq!(broadcast(&given), result.map(shape), "{shapes:?}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        let huge = Dim::Fixed(i64::MAX as usize);
        assert!(matches!(sum([&huge, &huge]), Err(Fault::TooLarge(_))));
        assert!(matches!(product([&huge, &huge]), Err(Fault::TooLarge(_))));
        assert_eq!(product([&huge, &Dim::Fixed(0), &huge]), Ok(Dim::Fixed(0)));
        assert_eq!(product([&Dim::Unknown, &Dim::Fixed(0)]), Ok(Dim::Fixed(0)));
        assert_eq!(sum([&Dim::symbol("N"), &Dim::symbol("N")]), Ok(Dim::symbol("2*N")));
        let less = map(&Dim::Fixed(1), |size| size.sub(&Expr::from(2)));
        assert!(matches!(less, Err(Fault::Wrong(_))));
        assert!(axis(i64::MIN, 3).is_err());
        assert_eq!(axis(-1, 3), Ok(2));
        assert!(axes(&[0, -3], 3).is_err());
    }
}
