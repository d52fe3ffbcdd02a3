//! Reductions.

use crate::dtype::DType;
use crate::infer::call::{Call, Given, Rule, one, rank_only};
use crate::infer::dims::{self, Outcome};
use crate::infer::expr::Expr;
use crate::infer::fact::Fact;
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("ArgMax", position),
    ("ArgMin", position),
    ("GlobalAveragePool", global_pool),
    ("GlobalLpPool", global_pool),
    ("GlobalMaxPool", global_pool),
    ("ReduceL1", reduce),
    ("ReduceL2", reduce),
    ("ReduceLogSum", reduce),
    ("ReduceLogSumExp", reduce),
    ("ReduceMax", reduce),
    ("ReduceMean", reduce),
    ("ReduceMin", reduce),
    ("ReduceProd", |call| reduce_contents(call, Expr::mul)),
    ("ReduceSum", |call| reduce_contents(call, Expr::add)),
    ("ReduceSumSquare", reduce),
];

fn reduce(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let keep = call.int("keepdims", 1) != 0;
    let dtype = call.dtype(0);
    let Some(shape) = call.shape(0) else { return one(dtype, None) };
    let axes = match call.list("axes", 1) {
        Given::Known(axes) if axes.is_empty() => Vec::new(),
        Given::Known(axes) => dims::axes(&axes, shape.len())?,
        Given::Absent => Vec::new(),
        Given::Unknown(_) if keep => {
            return Ok(vec![rank_only(dtype, shape.len())]);
        }
        Given::Unknown(Some(count)) if count > 0 && count <= shape.len() => {
            return Ok(vec![rank_only(dtype, shape.len() - count)]);
        }
        Given::Unknown(_) => return one(dtype, None),
    };
    if axes.is_empty() {
        if call.flag("noop_with_empty_axes") {
            return Ok(vec![call.like(0)]);
        }
        return one(dtype, Some(if keep { vec![Dim::Fixed(1); shape.len()] } else { Shape::new() }));
    }
    one(dtype, Some(reduced(shape, &axes, keep)))
}

/// A shape without some axes, or with these of size 1.
pub(super) fn reduced(shape: &[Dim], axes: &[usize], keep: bool) -> Shape {
    let mut shape: Vec<Option<Dim>> = shape.iter().cloned().map(Some).collect();
    for &axis in axes {
        shape[axis] = keep.then_some(Dim::Fixed(1));
    }
    shape.into_iter().flatten().collect()
}

/// As `reduce`, and the contents when all of a vector is reduced.
fn reduce_contents(call: &Call<'_>, combine: fn(&Expr, &Expr) -> Option<Expr>) -> Outcome<Vec<Fact>> {
    let mut facts = reduce(call)?;
    let whole = facts[0].shape().is_some_and(|shape| shape.iter().all(|dim| dim.fixed() == Some(1)));
    let vector = call.rank(0) == Some(1) && !call.flag("noop_with_empty_axes");
    if let (true, true, Some(elements)) = (whole, vector, call.contents(0)) {
        let mut rest = elements.iter();
        let result = rest.next().cloned().flatten();
        let result = result.and_then(|first| rest.try_fold(first, |sum, next| combine(&sum, next.as_ref()?)));
        if let (Some(result), Some(shape)) = (result, facts[0].shape().cloned()) {
            facts[0] = Fact::integers(call.dtype(0), shape, Some(vec![Some(result)]));
        }
    }
    Ok(facts)
}

fn position(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = Some(DType::I64);
    let Some(shape) = call.shape(0) else { return one(dtype, None) };
    let axis = call.axis(0, shape.len())?;
    one(dtype, Some(reduced(shape, &[axis], call.int("keepdims", 1) != 0)))
}

fn global_pool(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return one(call.dtype(0), None) };
    if shape.len() < 2 {
        return dims::wrong(format!("needs batch and channel dimensions, but the input has {}", shape.len()));
    }
    let axes: Vec<usize> = (2..shape.len()).collect();
    one(call.dtype(0), Some(reduced(shape, &axes, true)))
}
