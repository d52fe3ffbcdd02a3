//! Operators that work element by element, with broadcasting.

use crate::dtype::DType;
use crate::infer::call::{Call, Rule, fixed, one};
use crate::infer::dims::{Outcome, broadcast_two, wrong};
use crate::infer::expr::Expr;
use crate::infer::fact::{Fact, MAX_CONTENTS};
use crate::types::{Dim, Shape};

pub(super) const RULES: &[(&str, Rule)] = &[
    ("Abs", absolute),
    ("Acos", same),
    ("Acosh", same),
    ("Add", |call| arithmetic(call, Expr::add)),
    ("And", |call| compare(call, |a, b| Some(a.constant()? != 0 && b.constant()? != 0))),
    ("Asin", same),
    ("Asinh", same),
    ("Atan", same),
    ("Atanh", same),
    ("Bernoulli", |call| one(call.dtype_attribute("dtype").or(call.dtype(0)), call.shape(0).cloned())),
    ("BitCast", |call| one(call.dtype_attribute("to"), call.shape(0).cloned())),
    ("BitShift", binary),
    ("BitwiseAnd", binary),
    ("BitwiseNot", same),
    ("BitwiseOr", binary),
    ("BitwiseXor", binary),
    ("Cast", |call| cast(call, call.dtype_attribute("to"))),
    ("CastLike", |call| cast(call, call.dtype(1))),
    ("Ceil", same),
    ("Celu", same),
    ("Clip", same),
    ("Cos", same),
    ("Cosh", same),
    ("CumProd", same),
    ("CumSum", same),
    ("Div", |call| arithmetic(call, divide)),
    ("Dropout", dropout),
    ("Elu", same),
    ("Equal", |call| compare(call, |a, b| Some(order(a, b)? == Order::Equal))),
    ("Erf", same),
    ("Exp", same),
    ("Floor", same),
    ("Gelu", same),
    ("Greater", |call| compare(call, |a, b| Some(order(a, b)? == Order::Greater))),
    ("GreaterOrEqual", |call| compare(call, |a, b| Some(order(a, b)? != Order::Less))),
    ("HardSigmoid", same),
    ("HardSwish", same),
    ("Identity", identity),
    ("IsInf", test),
    ("IsNaN", test),
    ("LeakyRelu", same),
    ("Less", |call| compare(call, |a, b| Some(order(a, b)? == Order::Less))),
    ("LessOrEqual", |call| compare(call, |a, b| Some(order(a, b)? != Order::Greater))),
    ("Log", same),
    ("Max", |call| {
        several(
            call,
            Some(|a, b| if order(a, b)? == Order::Less { Some(b.clone()) } else { Some(a.clone()) }),
        )
    }),
    ("Mean", |call| several(call, None)),
    ("Min", |call| {
        several(
            call,
            Some(|a, b| if order(a, b)? == Order::Less { Some(a.clone()) } else { Some(b.clone()) }),
        )
    }),
    ("Mish", same),
    ("Mod", |call| arithmetic(call, |a, b| modulo(call.int("fmod", 0) != 0, a, b))),
    ("Mul", |call| arithmetic(call, Expr::mul)),
    ("Neg", negate),
    ("Not", not),
    ("Or", |call| compare(call, |a, b| Some(a.constant()? != 0 || b.constant()? != 0))),
    ("PRelu", same),
    ("Pow", power),
    ("Reciprocal", same),
    ("Relu", same),
    ("Round", same),
    ("Selu", same),
    ("Shrink", same),
    ("Sigmoid", same),
    ("Sign", same),
    ("Sin", same),
    ("Sinh", same),
    ("Softplus", same),
    ("Softsign", same),
    ("Sqrt", same),
    ("Sub", |call| arithmetic(call, Expr::sub)),
    ("Sum", |call| several(call, Some(Expr::add))),
    ("Swish", same),
    ("Tan", same),
    ("Tanh", same),
    ("ThresholdedRelu", same),
    ("Where", select),
    ("Xor", |call| compare(call, |a, b| Some((a.constant()? != 0) != (b.constant()? != 0)))),
];

fn same(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    Ok(vec![call.like(0)])
}

/// Any type at all passes through, contents included.
fn identity(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    Ok(vec![call.input(0).cloned().unwrap_or_default()])
}

fn test(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    one(Some(DType::Bool), call.shape(0).cloned())
}

fn dropout(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let mask = if call.opset < 10 { call.dtype(0) } else { Some(DType::Bool) };
    Ok(vec![call.like(0), Fact::tensor(mask, call.shape(0).cloned())])
}

/// What follows for each element of the only input.
fn each(call: &Call<'_>, dtype: Option<DType>, change: impl Fn(&Expr) -> Option<Expr>) -> Outcome<Vec<Fact>> {
    let Some(shape) = call.shape(0) else { return one(dtype, None) };
    let contents = call
        .contents(0)
        .map(|elements| elements.iter().map(|element| fitting(dtype, change(element.as_ref()?)?)).collect());
    Ok(vec![Fact::integers(dtype, shape.clone(), contents)])
}

fn absolute(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    each(call, call.dtype(0), |element| match element.least() {
        Some(least) if least >= 0 => Some(element.clone()),
        _ => element.constant()?.checked_abs().map(Expr::from),
    })
}

fn negate(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    each(call, call.dtype(0), |element| element.mul(&Expr::from(-1)))
}

fn not(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    each(call, Some(DType::Bool), |element| Some(Expr::from(i64::from(element.constant()? == 0))))
}

fn cast(call: &Call<'_>, to: Option<DType>) -> Outcome<Vec<Fact>> {
    match to {
        Some(DType::Bool) => each(call, to, |element| match (element.constant(), element.least()) {
            (Some(constant), _) => Some(Expr::from(i64::from(constant != 0))),
            (None, Some(least)) if least > 0 => Some(Expr::from(1)),
            _ => None,
        }),
        Some(to) if to.is_integer() => each(call, Some(to), |element| Some(element.clone())),
        _ => one(to, call.shape(0).cloned()),
    }
}

/// The element, unless it is a number that the type cannot hold.
fn fitting(dtype: Option<DType>, element: Expr) -> Option<Expr> {
    let Some(constant) = element.constant() else { return Some(element) };
    let (least, greatest) =
        dtype.and_then(DType::integer_range).unwrap_or((i64::MIN.into(), i64::MAX.into()));
    (least..=greatest).contains(&i128::from(constant)).then_some(element)
}

/// The element type that the inputs `slots` share.
fn common(call: &Call<'_>, slots: impl Iterator<Item = usize>) -> Outcome<Option<DType>> {
    let mut common = None;
    for slot in slots {
        match (common, call.dtype(slot)) {
            (Some(one), Some(other)) if one != other => {
                return wrong(format!("inputs of types {one} and {other}, which must be the same"));
            }
            (known, found) => common = known.or(found),
        }
    }
    Ok(common)
}

/// The shape that the inputs `slots` broadcast to, when all are known.
fn broadcast(call: &Call<'_>, slots: impl Iterator<Item = usize>) -> Outcome<Option<Shape>> {
    let mut result = Shape::new();
    for slot in slots {
        match call.shape(slot) {
            Some(shape) => result = broadcast_two(&result, shape)?,
            None => return Ok(None),
        }
    }
    Ok(Some(result))
}

/// Before operator set 7 the second input was fitted to the first, at an axis given.
fn old_broadcasting(call: &Call<'_>) -> bool {
    call.opset < 7
}

fn binary(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = common(call, 0..2)?;
    one(dtype, broadcast(call, 0..2)?)
}

fn power(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let shape = if old_broadcasting(call) { call.shape(0).cloned() } else { broadcast(call, 0..2)? };
    one(call.dtype(0), shape)
}

fn arithmetic(call: &Call<'_>, combine: impl Fn(&Expr, &Expr) -> Option<Expr>) -> Outcome<Vec<Fact>> {
    let dtype = common(call, 0..2)?;
    if old_broadcasting(call) {
        return one(dtype, call.shape(0).cloned());
    }
    let Some(shape) = broadcast(call, 0..2)? else { return one(dtype, None) };
    let contents = elements(call, &[0, 1], &shape, |pair| fitting(dtype, combine(pair[0]?, pair[1]?)?));
    Ok(vec![Fact::integers(dtype, shape, contents)])
}

fn compare(call: &Call<'_>, decide: impl Fn(&Expr, &Expr) -> Option<bool>) -> Outcome<Vec<Fact>> {
    common(call, 0..2)?;
    if old_broadcasting(call) {
        return one(Some(DType::Bool), call.shape(0).cloned());
    }
    let Some(shape) = broadcast(call, 0..2)? else { return one(Some(DType::Bool), None) };
    let contents =
        elements(call, &[0, 1], &shape, |pair| Some(Expr::from(i64::from(decide(pair[0]?, pair[1]?)?))));
    Ok(vec![Fact::integers(Some(DType::Bool), shape, contents)])
}

type Combine = fn(&Expr, &Expr) -> Option<Expr>;

fn several(call: &Call<'_>, combine: Option<Combine>) -> Outcome<Vec<Fact>> {
    let count = call.inputs.len();
    if count == 0 {
        return wrong("no inputs: at least one is needed");
    }
    let dtype = common(call, 0..count)?;
    let Some(shape) = broadcast(call, 0..count)? else { return one(dtype, None) };
    let slots: Vec<usize> = (0..count).collect();
    let contents = combine.and_then(|combine| {
        elements(call, &slots, &shape, |all| {
            let mut rest = all.iter().copied();
            let first = rest.next()??.clone();
            let combined = rest.try_fold(first, |result, next| combine(&result, next?))?;
            fitting(dtype, combined)
        })
    });
    Ok(vec![Fact::integers(dtype, shape, contents)])
}

fn select(call: &Call<'_>) -> Outcome<Vec<Fact>> {
    let dtype = common(call, 1..3)?;
    let Some(shape) = broadcast(call, 0..3)? else { return one(dtype, None) };
    let contents = elements(call, &[0, 1, 2], &shape, |all| match all[0].and_then(Expr::constant) {
        Some(0) => all[2].cloned(),
        Some(_) => all[1].cloned(),
        // It does not matter which, when both are the same.
        None => all[1].filter(|_| all[1] == all[2]).cloned(),
    });
    Ok(vec![Fact::integers(dtype, shape, contents)])
}

/// What is known of the elements of a broadcast result, from those of the inputs.
fn elements(
    call: &Call<'_>,
    slots: &[usize],
    shape: &[Dim],
    combine: impl Fn(&[Option<&Expr>]) -> Option<Expr>,
) -> Option<Vec<Option<Expr>>> {
    let shape = fixed(shape)?;
    let count = crate::tensor::element_count(&shape).filter(|&count| count <= MAX_CONTENTS)?;
    let mut inputs = Vec::new();
    for &slot in slots {
        let contents = call.contents(slot)?;
        inputs.push((contents, strides(&fixed(call.shape(slot)?)?, shape.len())));
    }
    let mut result = Vec::with_capacity(count);
    let mut index = vec![0usize; shape.len()];
    let mut gathered = Vec::with_capacity(inputs.len());
    for _ in 0..count {
        gathered.clear();
        for (contents, strides) in &inputs {
            let at: usize = index.iter().zip(strides).map(|(index, stride)| index * stride).sum();
            gathered.push(contents.get(at).and_then(Option::as_ref));
        }
        result.push(combine(&gathered));
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Some(result)
}

/// Steps through a tensor's elements along the axes of a result of `rank` dimensions: 0 where it repeats.
fn strides(shape: &[usize], rank: usize) -> Vec<usize> {
    let mut strides = vec![0; rank];
    let mut step = 1usize;
    for (stride, &size) in strides.iter_mut().rev().zip(shape.iter().rev()) {
        if size != 1 {
            *stride = step;
        }
        step = step.saturating_mul(size);
    }
    strides
}

/// How two numbers compare, where that is certain.
#[derive(PartialEq, Eq)]
enum Order {
    Less,
    Equal,
    Greater,
}

fn order(a: &Expr, b: &Expr) -> Option<Order> {
    let difference = a.sub(b)?;
    if difference.constant() == Some(0) {
        return Some(Order::Equal);
    }
    if difference.least().is_some_and(|least| least > 0) {
        return Some(Order::Greater);
    }
    b.sub(a)?.least().filter(|&least| least > 0).map(|_| Order::Less)
}

/// The standard rounds quotients of integers towards zero.
fn divide(a: &Expr, b: &Expr) -> Option<Expr> {
    match (a.constant(), b.constant()) {
        (Some(a), Some(b)) => a.checked_div(b).map(Expr::from),
        (None, Some(b)) if b > 0 && a.least().is_some_and(|least| least >= 0) => a.floor_div(b),
        _ => a.exact_div(b),
    }
}

fn modulo(truncating: bool, a: &Expr, b: &Expr) -> Option<Expr> {
    match (a.constant(), b.constant()) {
        // The sign follows the divisor, or with `fmod` the dividend.
        (Some(a), Some(b)) => {
            let rest = a.checked_rem(b)?;
            let shift = !truncating && rest != 0 && (rest < 0) != (b < 0);
            Some(Expr::from(if shift { rest.checked_add(b)? } else { rest }))
        }
        (None, Some(b)) if b > 0 && a.least().is_some_and(|least| least >= 0) => {
            a.sub(&a.floor_div(b)?.mul(&Expr::from(b))?)
        }
        _ => None,
    }
}
