//! One operand, element by element: mathematics, activations, tests.

use optix_ir::{AttributeValue, DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::numbers::{Numbers, float_tensor};

/// A kernel that applies a function to every element of a floating-point tensor.
macro_rules! floats {
    ($($name:ident = $function:expr;)*) => {$(
        fn $name(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> { map(call, $function) }
    )*};
}

/// A kernel with parameters from attributes.
macro_rules! with_attributes {
    ($($name:ident($($parameter:ident = $default:expr),*) = $function:expr;)*) => {$(
        fn $name(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
            $(let $parameter = f64::from(call.node.float(stringify!($parameter)).unwrap_or($default));)*
            let function = $function;
            map(call, |x| function(x, $($parameter),*))
        }
    )*};
}

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Abs", 6, abs),
    KernelSpec::onnx("Neg", 6, neg),
    KernelSpec::onnx("Sign", 9, sign),
    KernelSpec::onnx("Ceil", 6, ceil),
    KernelSpec::onnx("Floor", 6, floor),
    KernelSpec::onnx("Round", 11, round),
    KernelSpec::onnx("Sqrt", 6, sqrt),
    KernelSpec::onnx("Reciprocal", 6, reciprocal),
    KernelSpec::onnx("Exp", 6, exp),
    KernelSpec::onnx("Log", 6, log),
    KernelSpec::onnx("Erf", 9, erf),
    KernelSpec::onnx("Sin", 7, sin),
    KernelSpec::onnx("Cos", 7, cos),
    KernelSpec::onnx("Tan", 7, tan),
    KernelSpec::onnx("Asin", 7, asin),
    KernelSpec::onnx("Acos", 7, acos),
    KernelSpec::onnx("Atan", 7, atan),
    KernelSpec::onnx("Sinh", 9, sinh),
    KernelSpec::onnx("Cosh", 9, cosh),
    KernelSpec::onnx("Tanh", 6, tanh),
    KernelSpec::onnx("Asinh", 9, asinh),
    KernelSpec::onnx("Acosh", 9, acosh),
    KernelSpec::onnx("Atanh", 9, atanh),
    KernelSpec::onnx("IsNaN", 9, is_nan),
    KernelSpec::onnx("IsInf", 10, is_inf),
    KernelSpec::onnx("Not", 1, not),
    KernelSpec::onnx("BitwiseNot", 18, bitwise_not),
    KernelSpec::onnx("Identity", 1, identity),
    KernelSpec::onnx("Clip", 6, clip),
    KernelSpec::onnx("Relu", 6, relu),
    KernelSpec::onnx("LeakyRelu", 6, leaky_relu),
    KernelSpec::onnx("Elu", 6, elu),
    KernelSpec::onnx("Selu", 6, selu),
    KernelSpec::onnx("Celu", 12, celu),
    KernelSpec::onnx("Sigmoid", 6, sigmoid),
    KernelSpec::onnx("HardSigmoid", 6, hard_sigmoid),
    KernelSpec::onnx("HardSwish", 14, hard_swish),
    KernelSpec::onnx("Softplus", 1, softplus),
    KernelSpec::onnx("Softsign", 1, softsign),
    KernelSpec::onnx("ThresholdedRelu", 10, thresholded_relu),
    KernelSpec::onnx("Gelu", 20, gelu),
    KernelSpec::onnx("Mish", 18, mish),
    KernelSpec::onnx("Swish", 24, swish),
    KernelSpec::onnx("Shrink", 9, shrink),
];

fn map(call: &Call<'_>, function: impl Fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    match Numbers::of(call, x)? {
        Numbers::Floats(mut values) => {
            values.iter_mut().for_each(|value| *value = function(*value));
            Ok(vec![float_tensor(call, x.dtype(), x.shape().to_vec(), &values)?])
        }
        Numbers::Integers(_) => Err(call.wrong_type(0, x.dtype())),
    }
}

/// For floats and integers.
fn map_both(
    call: &Call<'_>,
    float: impl Fn(f64) -> f64,
    integer: impl Fn(i64) -> i64,
) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    if x.dtype() == DType::Bool {
        return Err(call.wrong_type(0, x.dtype()));
    }
    let numbers = match Numbers::of(call, x)? {
        Numbers::Floats(values) => Numbers::Floats(values.into_iter().map(float).collect()),
        Numbers::Integers(values) => Numbers::Integers(values.into_iter().map(integer).collect()),
    };
    Ok(vec![numbers.tensor(call, x.dtype(), x.shape().to_vec())?])
}

fn logistic(x: f64) -> f64 {
    // Both forms never overflow.
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

fn log1p_exp(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

floats! {
    ceil = f64::ceil;
    floor = f64::floor;
    round = f64::round_ties_even;
    sqrt = f64::sqrt;
    reciprocal = |x| 1.0 / x;
    exp = f64::exp;
    log = f64::ln;
    erf = libm::erf;
    sin = f64::sin;
    cos = f64::cos;
    tan = f64::tan;
    asin = f64::asin;
    acos = f64::acos;
    atan = f64::atan;
    sinh = f64::sinh;
    cosh = f64::cosh;
    tanh = f64::tanh;
    asinh = f64::asinh;
    acosh = f64::acosh;
    atanh = f64::atanh;
    sigmoid = logistic;
    softplus = log1p_exp;
    softsign = |x| x / (1.0 + x.abs());
    hard_swish = |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0);
    mish = |x| x * log1p_exp(x).tanh();
}

with_attributes! {
    leaky_relu(alpha = 0.01) = |x: f64, alpha: f64| if x < 0.0 { alpha * x } else { x };
    elu(alpha = 1.0) = |x: f64, alpha: f64| if x < 0.0 { alpha * x.exp_m1() } else { x };
    selu(alpha = 1.673_263_2, gamma = 1.050_701) = |x: f64, alpha: f64, gamma: f64| {
        gamma * if x > 0.0 { x } else { alpha * x.exp_m1() }
    };
    celu(alpha = 1.0) = |x: f64, alpha: f64| x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0);
    hard_sigmoid(alpha = 0.2, beta = 0.5) = |x: f64, alpha: f64, beta: f64| (alpha * x + beta).clamp(0.0, 1.0);
    thresholded_relu(alpha = 1.0) = |x: f64, alpha: f64| if x > alpha { x } else { 0.0 };
    swish(alpha = 1.0) = |x: f64, alpha: f64| x * logistic(alpha * x);
}

fn relu(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    map_both(call, |x| if x < 0.0 { 0.0 } else { x }, |x| x.max(0))
}

fn abs(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let unsigned = call.input(0)?.dtype() == DType::U64;
    map_both(call, f64::abs, |x| if unsigned { x } else { x.wrapping_abs() })
}

fn neg(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    map_both(call, |x| -x, i64::wrapping_neg)
}

fn sign(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let unsigned = call.input(0)?.dtype() == DType::U64;
    let float = |x: f64| {
        if x > 0.0 {
            1.0
        } else if x < 0.0 {
            -1.0
        } else {
            x
        }
    };
    map_both(call, float, |x| if unsigned { i64::from(x != 0) } else { x.signum() })
}

fn shrink(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let bias = f64::from(call.node.float("bias").unwrap_or(0.0));
    let lambda = f64::from(call.node.float("lambd").unwrap_or(0.5));
    let shrunk = |x: f64| {
        if x < -lambda {
            x + bias
        } else if x > lambda {
            x - bias
        } else {
            0.0
        }
    };
    map_both(call, shrunk, |x| shrunk(x as f64) as i64)
}

fn gelu(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    match call.node.string("approximate").unwrap_or("none") {
        "none" => map(call, |x| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))),
        "tanh" => {
            let scale = (2.0 / std::f64::consts::PI).sqrt();
            map(call, |x| 0.5 * x * (1.0 + (scale * (x + 0.044_715 * x * x * x)).tanh()))
        }
        other => Err(call.unsupported(format!("approximate = `{other}`"))),
    }
}

fn test(call: &Call<'_>, function: impl Fn(f64) -> bool) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    if !x.dtype().is_float() {
        return Err(call.wrong_type(0, x.dtype()));
    }
    let values = x.to_f64s().map_err(|error| call.tensor_error(error))?;
    let bits: Vec<bool> = values.into_iter().map(function).collect();
    Ok(vec![Tensor::from_bools(x.shape().to_vec(), &bits)])
}

fn is_nan(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    test(call, f64::is_nan)
}

fn is_inf(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let positive = call.node.int("detect_positive").unwrap_or(1) != 0;
    let negative = call.node.int("detect_negative").unwrap_or(1) != 0;
    test(call, |x| (positive && x == f64::INFINITY) || (negative && x == f64::NEG_INFINITY))
}

fn not(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let bits = x.bools().map_err(|error| call.tensor_error(error))?;
    let bits: Vec<bool> = bits.into_iter().map(|bit| !bit).collect();
    Ok(vec![Tensor::from_bools(x.shape().to_vec(), &bits)])
}

fn bitwise_not(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    match Numbers::of(call, x)? {
        Numbers::Integers(values) if x.dtype() != DType::Bool => {
            let values = Numbers::Integers(values.into_iter().map(|value| !value).collect());
            Ok(vec![values.tensor(call, x.dtype(), x.shape().to_vec())?])
        }
        _ => Err(call.wrong_type(0, x.dtype())),
    }
}

fn identity(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    Ok(vec![call.input(0)?.clone()])
}

/// Bounds are attributes before version 11 and inputs since.
fn clip(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let bound = |slot: usize, name: &str| -> Result<Option<Tensor>, OpError> {
        if call.opset < 11 {
            return Ok(match call.node.attribute(name) {
                Some(AttributeValue::Float(value)) => Some(Tensor::scalar(*value)),
                _ => None,
            });
        }
        match call.optional(slot) {
            Some(tensor) if tensor.len() != 1 => {
                Err(call.invalid(format!("`{name}` is not a single number")))
            }
            other => Ok(other.cloned()),
        }
    };
    let (low, high) = (bound(1, "min")?, bound(2, "max")?);
    let numbers = match Numbers::of(call, x)? {
        Numbers::Floats(values) => {
            let low = low.and_then(|low| low.single()).unwrap_or(f64::NEG_INFINITY);
            let high = high.and_then(|high| high.single()).unwrap_or(f64::INFINITY);
            // The upper bound wins where they cross; NaN stays.
            Numbers::Floats(
                values.into_iter().map(|x| if x.is_nan() { x } else { x.max(low).min(high) }).collect(),
            )
        }
        Numbers::Integers(values) => {
            let whole =
                |tensor: Option<Tensor>| tensor.and_then(|tensor| tensor.to_i64s().ok()?.first().copied());
            let (low, high) = (whole(low), whole(high));
            let clipped = |x: i64| {
                let x = low.map_or(x, |low| x.max(low));
                high.map_or(x, |high| x.min(high))
            };
            Numbers::Integers(values.into_iter().map(clipped).collect())
        }
    };
    Ok(vec![numbers.tensor(call, x.dtype(), x.shape().to_vec())?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, x: &Tensor) -> Vec<f64> {
        let spec = crate::find("", &node.op_type).unwrap();
        (spec.run)(&Call::new(node, 20, &[Some(x)])).unwrap()[0].to_f64s().unwrap()
    }

    #[test]
    fn special_values() {
        let x = Tensor::from_vec(vec![4], vec![-0.0f32, f32::NAN, f32::INFINITY, -1.0]);
        let relu = run(&Node::new("Relu", []), &x);
        assert!(relu[1].is_nan() && relu[2] == f64::INFINITY && relu[3] == 0.0);
        assert_eq!(
            run(&Node::new("Round", []), &Tensor::from_vec(vec![3], vec![0.5f32, 1.5, -2.5])),
            [0.0, 2.0, -2.0]
        );
        assert_eq!(run(&Node::new("Abs", []), &Tensor::from_vec(vec![2], vec![i64::MIN, -3]))[1], 3.0);
        let sigmoid = run(&Node::new("Sigmoid", []), &Tensor::from_vec(vec![2], vec![-1e30f32, 1e30]));
        assert_eq!(sigmoid, [0.0, 1.0]);
        let softplus = run(&Node::new("Softplus", []), &Tensor::from_vec(vec![2], vec![-1e30f32, 1e30]));
        assert_eq!(softplus[0], 0.0);
        assert!((softplus[1] / 1e30 - 1.0).abs() < 1e-6);
    }
}
