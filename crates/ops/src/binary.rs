//! Two operands, and more: arithmetic, comparison, logic, with ONNX's broadcasting.

use optix_ir::{DType, Tensor, element_count};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{broadcast, broadcast_strides, common_shape, places};
use crate::numbers::{Numbers, float_tensor};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Add", 7, add),
    KernelSpec::onnx("Sub", 7, sub),
    KernelSpec::onnx("Mul", 7, mul),
    KernelSpec::onnx("Div", 7, div),
    KernelSpec::onnx("Mod", 10, modulo),
    KernelSpec::onnx("Pow", 7, pow),
    KernelSpec::onnx("And", 7, and),
    KernelSpec::onnx("Or", 7, or),
    KernelSpec::onnx("Xor", 7, xor),
    KernelSpec::onnx("BitwiseAnd", 18, bitwise_and),
    KernelSpec::onnx("BitwiseOr", 18, bitwise_or),
    KernelSpec::onnx("BitwiseXor", 18, bitwise_xor),
    KernelSpec::onnx("BitShift", 11, bit_shift),
    KernelSpec::onnx("Equal", 7, equal),
    KernelSpec::onnx("Greater", 7, greater),
    KernelSpec::onnx("GreaterOrEqual", 12, greater_or_equal),
    KernelSpec::onnx("Less", 7, less),
    KernelSpec::onnx("LessOrEqual", 12, less_or_equal),
    KernelSpec::onnx("Max", 1, max),
    KernelSpec::onnx("Min", 1, min),
    KernelSpec::onnx("Sum", 1, sum),
    KernelSpec::onnx("Mean", 1, mean),
    KernelSpec::onnx("Where", 9, where_),
    KernelSpec::onnx("PRelu", 7, prelu),
];

/// Both operands broadcast to their common shape, after checking size and that types agree.
fn operands(call: &Call<'_>) -> Result<(Numbers, Numbers, Vec<usize>, DType), OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.dtype() != b.dtype() {
        return Err(call.invalid(format!("operands are {} and {}", a.dtype(), b.dtype())));
    }
    let shape = common_shape(call, a.shape(), b.shape())?;
    // The numbers in between take eight bytes each.
    call.check_size(DType::F64, &shape)?;
    Ok((spread(call, a, &shape)?, spread(call, b, &shape)?, shape, a.dtype()))
}

fn spread(call: &Call<'_>, tensor: &Tensor, shape: &[usize]) -> Result<Numbers, OpError> {
    let numbers = Numbers::of(call, tensor)?;
    if tensor.shape() == shape {
        return Ok(numbers);
    }
    Ok(match numbers {
        Numbers::Floats(values) => Numbers::Floats(broadcast(call, &values, tensor.shape(), shape)?),
        Numbers::Integers(values) => Numbers::Integers(broadcast(call, &values, tensor.shape(), shape)?),
    })
}

fn arithmetic(
    call: &Call<'_>,
    float: fn(f64, f64) -> f64,
    integer: fn(i64, i64) -> i64,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b, shape, dtype) = operands(call)?;
    let numbers = match (a, b) {
        (Numbers::Floats(a), Numbers::Floats(b)) => {
            Numbers::Floats(a.into_iter().zip(b).map(|(a, b)| float(a, b)).collect())
        }
        (Numbers::Integers(a), Numbers::Integers(b)) if dtype != DType::Bool => {
            Numbers::Integers(a.into_iter().zip(b).map(|(a, b)| integer(a, b)).collect())
        }
        _ => return Err(call.wrong_type(0, dtype)),
    };
    Ok(vec![numbers.tensor(call, dtype, shape)?])
}

fn add(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    arithmetic(call, |a, b| a + b, i64::wrapping_add)
}

fn sub(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    arithmetic(call, |a, b| a - b, i64::wrapping_sub)
}

fn mul(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    arithmetic(call, |a, b| a * b, i64::wrapping_mul)
}

fn refuse_zero_divisor(call: &Call<'_>) -> Result<(), OpError> {
    let divisor = call.input(1)?;
    if let Numbers::Integers(values) = Numbers::of(call, divisor)?
        && values.contains(&0)
    {
        return Err(call.invalid("an integer is divided by zero"));
    }
    Ok(())
}

fn div(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    refuse_zero_divisor(call)?;
    if call.input(0)?.dtype() == DType::U64 {
        return arithmetic(call, |a, b| a / b, |a, b| (a as u64 / b as u64) as i64);
    }
    arithmetic(call, |a, b| a / b, i64::wrapping_div)
}

fn modulo(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    refuse_zero_divisor(call)?;
    let unsigned = call.input(0)?.dtype() == DType::U64;
    if call.node.int("fmod").unwrap_or(0) != 0 {
        return if unsigned {
            arithmetic(call, |a, b| a % b, |a, b| (a as u64 % b as u64) as i64)
        } else {
            arithmetic(call, |a, b| a % b, i64::wrapping_rem)
        };
    }
    if unsigned {
        return arithmetic(call, |a, b| a % b, |a, b| (a as u64 % b as u64) as i64);
    }
    // The sign is the divisor's, as in Python.
    arithmetic(
        call,
        |a, b| {
            let rest = a % b;
            if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
        },
        |a, b| {
            let rest = a.wrapping_rem(b);
            if rest != 0 && (rest < 0) != (b < 0) { rest.wrapping_add(b) } else { rest }
        },
    )
}

/// The exponent may be of another type than the base, whose type the result has.
fn pow(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (base, exponent) = (call.input(0)?, call.input(1)?);
    let shape = common_shape(call, base.shape(), exponent.shape())?;
    call.check_size(DType::F64, &shape)?;
    let numbers = match (spread(call, base, &shape)?, spread(call, exponent, &shape)?) {
        (Numbers::Integers(base), Numbers::Integers(exponent)) => {
            let power = |base: i64, exponent: i64| match u32::try_from(exponent) {
                Ok(exponent) => base.wrapping_pow(exponent),
                // As C does it: a fraction is cut to 0, and only 1 and -1 have whole inverses.
                Err(_) => match base {
                    1 => 1,
                    -1 => {
                        if exponent % 2 == 0 {
                            1
                        } else {
                            -1
                        }
                    }
                    _ => 0,
                },
            };
            Numbers::Integers(base.into_iter().zip(exponent).map(|(b, e)| power(b, e)).collect())
        }
        (Numbers::Integers(base), Numbers::Floats(exponent)) => Numbers::Integers(
            base.into_iter().zip(exponent).map(|(b, e)| (b as f64).powf(e) as i64).collect(),
        ),
        (Numbers::Floats(base), exponent) => {
            let exponent = match exponent {
                Numbers::Floats(values) => values,
                Numbers::Integers(values) => values.into_iter().map(|value| value as f64).collect(),
            };
            Numbers::Floats(base.into_iter().zip(exponent).map(|(b, e)| b.powf(e)).collect())
        }
    };
    Ok(vec![numbers.tensor(call, base.dtype(), shape)?])
}

fn logic(call: &Call<'_>, wanted_bool: bool, function: fn(i64, i64) -> i64) -> Result<Vec<Tensor>, OpError> {
    let dtype = call.input(0)?.dtype();
    if (dtype == DType::Bool) != wanted_bool {
        return Err(call.wrong_type(0, dtype));
    }
    let (a, b, shape, dtype) = operands(call)?;
    match (a, b) {
        (Numbers::Integers(a), Numbers::Integers(b)) => {
            let values = a.into_iter().zip(b).map(|(a, b)| function(a, b)).collect();
            Ok(vec![Numbers::Integers(values).tensor(call, dtype, shape)?])
        }
        _ => Err(call.wrong_type(0, dtype)),
    }
}

fn and(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    logic(call, true, |a, b| a & b)
}

fn or(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    logic(call, true, |a, b| a | b)
}

fn xor(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    logic(call, true, |a, b| a ^ b)
}

fn bitwise_and(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    logic(call, false, |a, b| a & b)
}

fn bitwise_or(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    logic(call, false, |a, b| a | b)
}

fn bitwise_xor(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    logic(call, false, |a, b| a ^ b)
}

fn bit_shift(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let unsigned = call.input(0)?.dtype() == DType::U64;
    // A distance of the type's width or more, which negative ones count as, shifts everything out.
    match call.node.string("direction") {
        Some("LEFT") => {
            logic(call, false, |a, b| u32::try_from(b).ok().and_then(|b| a.checked_shl(b)).unwrap_or(0))
        }
        Some("RIGHT") if unsigned => logic(call, false, |a, b| {
            u32::try_from(b).ok().and_then(|b| (a as u64).checked_shr(b)).unwrap_or(0) as i64
        }),
        // The sign fills what comes in.
        Some("RIGHT") => logic(call, false, |a, b| a >> u32::try_from(b).unwrap_or(63).min(63)),
        _ => Err(call.invalid("`direction` must be LEFT or RIGHT")),
    }
}

fn comparison(
    call: &Call<'_>,
    float: fn(f64, f64) -> bool,
    integer: fn(i64, i64) -> bool,
    unsigned: fn(u64, u64) -> bool,
) -> Result<Vec<Tensor>, OpError> {
    let (a, b, shape, dtype) = operands(call)?;
    let bits: Vec<bool> = match (a, b) {
        (Numbers::Floats(a), Numbers::Floats(b)) => a.into_iter().zip(b).map(|(a, b)| float(a, b)).collect(),
        (Numbers::Integers(a), Numbers::Integers(b)) if dtype == DType::U64 => {
            a.into_iter().zip(b).map(|(a, b)| unsigned(a as u64, b as u64)).collect()
        }
        (Numbers::Integers(a), Numbers::Integers(b)) => {
            a.into_iter().zip(b).map(|(a, b)| integer(a, b)).collect()
        }
        _ => return Err(call.wrong_type(0, dtype)),
    };
    Ok(vec![Tensor::from_bools(shape, &bits)])
}

fn equal(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if let (Ok(left), Ok(right)) = (a.strings(), b.strings()) {
        let shape = common_shape(call, a.shape(), b.shape())?;
        call.check_size(DType::F64, &shape)?;
        let left = broadcast(call, &left, a.shape(), &shape)?;
        let right = broadcast(call, &right, b.shape(), &shape)?;
        let bits: Vec<bool> = left.iter().zip(&right).map(|(a, b)| a == b).collect();
        return Ok(vec![Tensor::from_bools(shape, &bits)]);
    }
    comparison(call, |a, b| a == b, |a, b| a == b, |a, b| a == b)
}

fn greater(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    comparison(call, |a, b| a > b, |a, b| a > b, |a, b| a > b)
}

fn greater_or_equal(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    comparison(call, |a, b| a >= b, |a, b| a >= b, |a, b| a >= b)
}

fn less(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    comparison(call, |a, b| a < b, |a, b| a < b, |a, b| a < b)
}

fn less_or_equal(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    comparison(call, |a, b| a <= b, |a, b| a <= b, |a, b| a <= b)
}

/// Folds any number of operands from the left.
fn variadic(
    call: &Call<'_>,
    float: fn(f64, f64) -> f64,
    integer: fn(i64, i64) -> i64,
) -> Result<(Numbers, Vec<usize>, DType), OpError> {
    let first = call.input(0)?;
    let dtype = first.dtype();
    let mut shape = first.shape().to_vec();
    for slot in 1..call.inputs.len() {
        let next = call.input(slot)?;
        if next.dtype() != dtype {
            return Err(call.invalid(format!("operands are {dtype} and {}", next.dtype())));
        }
        shape = common_shape(call, &shape, next.shape())?;
    }
    call.check_size(DType::F64, &shape)?;
    let mut result = spread(call, first, &shape)?;
    for slot in 1..call.inputs.len() {
        match (&mut result, spread(call, call.input(slot)?, &shape)?) {
            (Numbers::Floats(all), Numbers::Floats(next)) => {
                all.iter_mut().zip(next).for_each(|(a, b)| *a = float(*a, b));
            }
            (Numbers::Integers(all), Numbers::Integers(next)) => {
                all.iter_mut().zip(next).for_each(|(a, b)| *a = integer(*a, b));
            }
            _ => return Err(call.wrong_type(slot, dtype)),
        }
    }
    Ok((result, shape, dtype))
}

/// NaN wins, as in numpy's maximum.
fn max(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let unsigned = call.input(0)?.dtype() == DType::U64;
    let integer: fn(i64, i64) -> i64 =
        if unsigned { |a, b| (a as u64).max(b as u64) as i64 } else { i64::max };
    let (numbers, shape, dtype) = variadic(call, |a, b| if a.is_nan() || a > b { a } else { b }, integer)?;
    Ok(vec![numbers.tensor(call, dtype, shape)?])
}

fn min(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let unsigned = call.input(0)?.dtype() == DType::U64;
    let integer: fn(i64, i64) -> i64 =
        if unsigned { |a, b| (a as u64).min(b as u64) as i64 } else { i64::min };
    let (numbers, shape, dtype) = variadic(call, |a, b| if a.is_nan() || a < b { a } else { b }, integer)?;
    Ok(vec![numbers.tensor(call, dtype, shape)?])
}

fn sum(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (numbers, shape, dtype) = variadic(call, |a, b| a + b, i64::wrapping_add)?;
    Ok(vec![numbers.tensor(call, dtype, shape)?])
}

fn mean(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (numbers, shape, dtype) = variadic(call, |a, b| a + b, i64::wrapping_add)?;
    match numbers {
        Numbers::Floats(mut values) => {
            let count = call.inputs.len() as f64;
            values.iter_mut().for_each(|value| *value /= count);
            Ok(vec![float_tensor(call, dtype, shape, &values)?])
        }
        Numbers::Integers(_) => Err(call.wrong_type(0, dtype)),
    }
}

/// Any element type: elements are copied, not looked at.
fn where_(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (condition, x, y) = (call.input(0)?, call.input(1)?, call.input(2)?);
    if x.dtype() != y.dtype() {
        return Err(call.invalid(format!("the choices are {} and {}", x.dtype(), y.dtype())));
    }
    let shape = common_shape(call, x.shape(), y.shape())?;
    let shape = common_shape(call, condition.shape(), &shape)?;
    call.check_size(x.dtype(), &shape)?;
    call.check_size(DType::Bool, &shape)?;
    let choose = condition.bools().map_err(|error| call.tensor_error(error))?;
    let choose = broadcast(call, &choose, condition.shape(), &shape)?;
    let x_strides = broadcast_strides(call, x.shape(), &shape)?;
    let y_strides = broadcast_strides(call, y.shape(), &shape)?;
    let picks = places(&shape, 0, &x_strides).zip(places(&shape, 0, &y_strides)).zip(&choose);
    if let (Ok(left), Ok(right)) = (x.strings(), y.strings()) {
        let chosen: Vec<&[u8]> =
            picks.map(|((a, b), &first)| if first { left[a] } else { right[b] }).collect();
        return Ok(vec![Tensor::from_strings(shape, &chosen)]);
    }
    if x.dtype().is_packed() {
        let (left, right) = (x.codes(), y.codes());
        let (Ok(left), Ok(right)) = (left, right) else { return Err(call.wrong_type(1, x.dtype())) };
        let chosen: Vec<u8> = picks.map(|((a, b), &first)| if first { left[a] } else { right[b] }).collect();
        return Ok(vec![Tensor::from_codes(x.dtype(), shape, &chosen)]);
    }
    let width = x.dtype().bits() / 8;
    let mut bytes = Vec::with_capacity(element_count(&shape).unwrap_or(0) * width);
    for ((a, b), &first) in picks {
        let (source, at) = if first { (x, a) } else { (y, b) };
        bytes.extend_from_slice(&source.bytes()[at * width..(at + 1) * width]);
    }
    Ok(vec![Tensor::new(x.dtype(), shape, bytes.into()).map_err(|error| call.tensor_error(error))?])
}

/// The slope broadcasts to the input, never the other way round.
fn prelu(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (x, slope) = (call.input(0)?, call.input(1)?);
    let shape = x.shape().to_vec();
    let numbers = match (spread(call, x, &shape)?, spread(call, slope, &shape)?) {
        (Numbers::Floats(x), Numbers::Floats(slope)) => {
            Numbers::Floats(x.into_iter().zip(slope).map(|(x, s)| if x < 0.0 { x * s } else { x }).collect())
        }
        (Numbers::Integers(x), Numbers::Integers(slope)) => Numbers::Integers(
            x.into_iter().zip(slope).map(|(x, s)| if x < 0 { x.wrapping_mul(s) } else { x }).collect(),
        ),
        _ => return Err(call.wrong_type(1, slope.dtype())),
    };
    Ok(vec![numbers.tensor(call, x.dtype(), shape)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, inputs: &[&Tensor]) -> Result<Tensor, OpError> {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|tensor| Some(*tensor)).collect();
        let spec = crate::find("", &node.op_type).unwrap();
        (spec.run)(&Call::new(node, 20, &inputs)).map(|mut outputs| outputs.remove(0))
    }

    #[test]
    fn integers_wrap_and_divide_like_the_standard() {
        let a = Tensor::from_vec(vec![3], vec![-7i8, 127, -128]);
        let b = Tensor::from_vec(vec![1], vec![2i8]);
        let div = run(&Node::new("Div", []), &[&a, &b]).unwrap();
        assert_eq!(div.to_i64s().unwrap(), [-3, 63, -64]);
        let add = run(&Node::new("Add", []), &[&a, &b]).unwrap();
        assert_eq!(add.to_i64s().unwrap(), [-5, -127, -126]);
        let modulo = run(&Node::new("Mod", []), &[&a, &b]).unwrap();
        assert_eq!(modulo.to_i64s().unwrap(), [1, 1, 0]);
        let zero = Tensor::from_vec(vec![1], vec![0i8]);
        for op in ["Div", "Mod"] {
            assert!(matches!(run(&Node::new(op, []), &[&a, &zero]), Err(OpError::Invalid { .. })), "{op}");
        }
    }

    #[test]
    fn nan_wins_in_max_and_min() {
        let a = Tensor::from_vec(vec![3], vec![f32::NAN, 1.0, 2.0]);
        let b = Tensor::from_vec(vec![3], vec![1.0, f32::NAN, 3.0]);
        for op in ["Max", "Min"] {
            let result = run(&Node::new(op, []), &[&a, &b]).unwrap().to_f64s().unwrap();
            assert!(result[0].is_nan() && result[1].is_nan() && !result[2].is_nan(), "{op}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let a = Tensor::from_vec(vec![2], vec![1f32, 2.0]);
        let b = Tensor::from_vec(vec![3], vec![1f32, 2.0, 3.0]);
        assert!(run(&Node::new("Add", []), &[&a, &b]).is_err());
        let c = Tensor::from_vec(vec![2], vec![1i32, 2]);
        assert!(run(&Node::new("Add", []), &[&a, &c]).is_err());
    }
}
