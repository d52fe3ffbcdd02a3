//! Products, element-wise functions and choices in burn's primitives.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::{ActivationOps, BoolTensor, BoolTensorOps, FloatTensorOps};
use burn::tensor::{BoolDType, FloatDType, Shape};
use optix_ir::DType;

use super::product::product;
use super::{B, DeviceCall, DeviceTensor, OnDevice, reshape, scalar};
use crate::kernels::elementwise::broadcast;

/// A tensor with dimensions of 1 put in front.
fn extend(tensor: DeviceTensor, rank: usize) -> DeviceTensor {
    let dims = tensor.shape().to_vec();
    if dims.len() == rank {
        return tensor;
    }
    let mut shape = vec![1; rank - dims.len()];
    shape.extend(dims);
    reshape(tensor, shape)
}

/// The two operands in shapes of equal rank, as the primitives broadcast only those.
fn equal_ranks(a: DeviceTensor, b: DeviceTensor) -> Option<(DeviceTensor, DeviceTensor)> {
    let (left, right) = (a.shape().to_vec(), b.shape().to_vec());
    broadcast(&left, &right)?;
    let rank = left.len().max(right.len());
    Some((extend(a, rank), extend(b, rank)))
}

/// Both in the shape of their broadcast: what some primitives ask for.
fn expanded(tensor: DeviceTensor, shape: &[usize]) -> DeviceTensor {
    let tensor = extend(tensor, shape.len());
    if tensor.shape().to_vec() == shape {
        return tensor;
    }
    B::float_expand(tensor, Shape::from(shape.to_vec()))
}

pub(crate) fn binary(
    call: &DeviceCall<'_>,
    function: fn(DeviceTensor, DeviceTensor) -> DeviceTensor,
) -> Option<DeviceTensor> {
    if call.shape(0)?.is_empty() && call.shape(1)?.is_empty() {
        return None;
    }
    let (a, b) = equal_ranks(call.operand(0)?, call.operand(1)?)?;
    Some(function(a, b))
}

/// A function of two operands applied from left to right.
pub(crate) fn variadic(
    call: &DeviceCall<'_>,
    function: fn(&DeviceCall<'_>, DeviceTensor, DeviceTensor) -> DeviceTensor,
) -> Option<DeviceTensor> {
    if (0..call.inputs.len()).all(|slot| call.shape(slot).is_none_or(|shape| shape.is_empty())) {
        return None;
    }
    let mut result = call.operand(0)?;
    for slot in 1..call.inputs.len() {
        let (a, b) = equal_ranks(result, call.operand(slot)?)?;
        result = function(call, a, b);
    }
    Some(result)
}

pub(crate) fn mean(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let sum = variadic(call, |_, a, b| B::float_add(a, b))?;
    Some(B::float_div_scalar(sum, scalar(call.inputs.len() as f32)))
}

/// The greater or smaller of two; NaN where one of them is.
pub(crate) fn extreme(
    call: &DeviceCall<'_>,
    a: DeviceTensor,
    b: DeviceTensor,
    greatest: bool,
) -> DeviceTensor {
    let Some(shape) = broadcast(&a.shape().to_vec(), &b.shape().to_vec()) else { return a };
    let (a, b) = (expanded(a, &shape), expanded(b, &shape));
    let compare = if greatest { B::float_greater } else { B::float_lower };
    let better = compare(b.clone(), a.clone(), call.truth_type());
    let chosen = B::float_mask_where(a, better, b.clone());
    // A NaN is not better than anything.
    let nan = B::float_is_nan(b.clone(), call.truth_type());
    B::float_mask_where(chosen, nan, b)
}

/// One over a number. The primitive of that name is an estimate on some backends.
pub(crate) fn reciprocal(x: DeviceTensor) -> DeviceTensor {
    let ones = B::float_ones(x.shape(), &B::float_device(&x), FloatDType::F32);
    B::float_div(ones, x)
}

pub(crate) fn power(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let whole = call.host(1).and_then(|tensor| tensor.single());
    if call.shape(0)?.is_empty() {
        return None;
    }
    match whole {
        Some(exponent) if call.shape(1)?.len() <= call.shape(0)?.len() => {
            let x = call.tensor(0)?;
            // Products are exact to the last place where a device's power function is not.
            Some(match exponent {
                1.0 => x,
                2.0 => B::float_mul(x.clone(), x),
                3.0 => B::float_mul(B::float_mul(x.clone(), x.clone()), x),
                -1.0 => reciprocal(x),
                0.5 => B::float_sqrt(x),
                exponent => B::float_powf_scalar(x, scalar(exponent as f32)),
            })
        }
        _ => binary(call, B::float_powf),
    }
}

pub(crate) fn parametric_relu(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (x, slope) = equal_ranks(call.tensor(0)?, call.operand(1)?)?;
    let negative = B::float_lower_elem(x.clone(), scalar(0.0), call.truth_type());
    let shape = x.shape().to_vec();
    let scaled = B::float_mul(x.clone(), slope);
    (scaled.shape().to_vec() == shape).then(|| B::float_mask_where(x, negative, scaled))
}

/// `Where`: of 32-bit floats.
pub(crate) fn select(call: &DeviceCall<'_>) -> Option<Vec<OnDevice>> {
    let shape = broadcast(&broadcast(&call.shape(0)?, &call.shape(1)?)?, &call.shape(2)?)?;
    if shape.is_empty() {
        return None;
    }
    let (yes, no) = (call.operand(1)?, call.operand(2)?);
    let condition = expanded(call.operand_of(0, &[DType::Bool])?, &shape);
    let mask = call.mask(condition);
    let tensor = B::float_mask_where(expanded(no, &shape), mask, expanded(yes, &shape));
    Some(vec![OnDevice { tensor, dtype: DType::F32 }])
}

/// Truth values as zeros and ones.
fn truths(mask: BoolTensor<B>) -> DeviceTensor {
    B::bool_into_float(mask, FloatDType::F32)
}

pub(crate) fn compare(
    call: &DeviceCall<'_>,
    function: fn(DeviceTensor, DeviceTensor, BoolDType) -> BoolTensor<B>,
) -> Option<DeviceTensor> {
    if call.shape(0)?.is_empty() && call.shape(1)?.is_empty() {
        return None;
    }
    let (a, b) = equal_ranks(call.operand(0)?, call.operand(1)?)?;
    Some(truths(function(a, b, call.truth_type())))
}

pub(crate) fn not(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    // On the host truth values are cheaper than a transfer.
    if call.host(0).is_some() || call.shape(0)?.is_empty() {
        return None;
    }
    let x = call.operand_of(0, &[DType::Bool])?;
    Some(B::float_add_scalar(B::float_neg(x), scalar(1.0)))
}

pub(crate) fn logic(
    call: &DeviceCall<'_>,
    function: fn(DeviceTensor, DeviceTensor) -> DeviceTensor,
) -> Option<DeviceTensor> {
    if call.host(0).is_some() && call.host(1).is_some() {
        return None;
    }
    let operand = |slot: usize| call.operand_of(slot, &[DType::Bool]);
    let (a, b) = equal_ranks(operand(0)?, operand(1)?)?;
    Some(function(a, b))
}

pub(crate) fn matmul(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (mut left, mut right) = (call.shape(0)?, call.shape(1)?);
    let (row, column) = (left.len() == 1, right.len() == 1);
    if row {
        left.insert(0, 1);
    }
    if column {
        right.push(1);
    }
    if left.len() < 2 || right.len() < 2 || left[left.len() - 1] != right[right.len() - 2] {
        return None;
    }
    let mut shape = broadcast(&left[..left.len() - 2], &right[..right.len() - 2])?;
    let rank = left.len().max(right.len());
    let (m, n) = (left[left.len() - 2], right[right.len() - 1]);
    let (a, b) = (reshape(call.tensor(0)?, left), reshape(call.tensor(1)?, right));
    // Batches that share the right side are one product of more rows.
    let product = product(call, extend(a, rank), extend(b, rank));
    if !row {
        shape.push(m);
    }
    if !column {
        shape.push(n);
    }
    match (row || column, shape.is_empty()) {
        (_, true) => None,
        (true, _) => Some(reshape(product, shape)),
        (false, _) => Some(product),
    }
}

pub(crate) fn gemm(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    if call.shape(0)?.len() != 2 || call.shape(1)?.len() != 2 {
        return None;
    }
    let swapped = |name: &str, tensor: DeviceTensor| {
        if call.node.int(name).unwrap_or(0) != 0 { B::float_swap_dims(tensor, 0, 1) } else { tensor }
    };
    let (a, b) = (swapped("transA", call.tensor(0)?), swapped("transB", call.tensor(1)?));
    if a.shape()[1] != b.shape()[0] {
        return None;
    }
    let (alpha, beta) = (call.node.float("alpha").unwrap_or(1.0), call.node.float("beta").unwrap_or(1.0));
    let mut product = product(call, a, b);
    if alpha != 1.0 {
        product = B::float_mul_scalar(product, scalar(alpha));
    }
    if !call.has(2) {
        return Some(product);
    }
    let mut added = call.operand(2)?;
    if beta != 1.0 {
        added = B::float_mul_scalar(added, scalar(beta));
    }
    let (product, added) = equal_ranks(product, added)?;
    Some(B::float_add(product, added))
}

pub(crate) fn clip(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    // Bounds were attributes before version 11.
    let bound = |slot: usize, name: &str| {
        if call.opset < 11 {
            return Some(call.node.float(name));
        }
        match call.has(slot) {
            true => Some(Some(call.host(slot)?.single()? as f32)),
            false => Some(None),
        }
    };
    let mut x = call.tensor(0)?;
    if let Some(low) = bound(1, "min")? {
        x = B::float_clamp_min(x, scalar(low));
    }
    if let Some(high) = bound(2, "max")? {
        x = B::float_clamp_max(x, scalar(high));
    }
    Some(x)
}

fn line(x: DeviceTensor, alpha: f32, beta: f32) -> DeviceTensor {
    let line = B::float_add_scalar(B::float_mul_scalar(x, scalar(alpha)), scalar(beta));
    B::float_clamp(line, scalar(0.0), scalar(1.0))
}

pub(crate) fn hard_sigmoid(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (alpha, beta) = (call.node.float("alpha").unwrap_or(0.2), call.node.float("beta").unwrap_or(0.5));
    Some(line(call.tensor(0)?, alpha, beta))
}

pub(crate) fn hard_swish(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let x = call.tensor(0)?;
    Some(B::float_mul(x.clone(), line(x, 1.0 / 6.0, 0.5)))
}

/// `x` where it is positive (or NaN), else another tensor.
fn positive_or(call: &DeviceCall<'_>, x: DeviceTensor, other: DeviceTensor) -> DeviceTensor {
    let negative = B::float_lower_equal_elem(x.clone(), scalar(0.0), call.truth_type());
    B::float_mask_where(x, negative, other)
}

/// `scale · (exp(x / divisor) - 1)`, of the parts of `x` that are not positive.
fn exponential(x: DeviceTensor, divisor: f32, factor: f32) -> DeviceTensor {
    let x = B::float_clamp_max(x, scalar(0.0));
    let x = if divisor == 1.0 { x } else { B::float_div_scalar(x, scalar(divisor)) };
    B::float_mul_scalar(B::float_sub_scalar(B::float_exp(x), scalar(1.0)), scalar(factor))
}

pub(crate) fn elu(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (x, alpha) = (call.tensor(0)?, call.node.float("alpha").unwrap_or(1.0));
    Some(positive_or(call, x.clone(), exponential(x, 1.0, alpha)))
}

pub(crate) fn celu(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (x, alpha) = (call.tensor(0)?, call.node.float("alpha").unwrap_or(1.0));
    Some(positive_or(call, x.clone(), exponential(x, alpha, alpha)))
}

pub(crate) fn selu(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let x = call.tensor(0)?;
    let alpha = call.node.float("alpha").unwrap_or(1.673_263_2);
    let gamma = call.node.float("gamma").unwrap_or(1.050_701);
    let chosen = positive_or(call, x.clone(), exponential(x, 1.0, alpha));
    Some(B::float_mul_scalar(chosen, scalar(gamma)))
}

pub(crate) fn leaky_relu(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (x, alpha) = (call.tensor(0)?, call.node.float("alpha").unwrap_or(0.01));
    Some(positive_or(call, x.clone(), B::float_mul_scalar(x, scalar(alpha))))
}

pub(crate) fn thresholded_relu(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (x, alpha) = (call.tensor(0)?, call.node.float("alpha").unwrap_or(1.0));
    let below = B::float_lower_equal_elem(x.clone(), scalar(alpha), call.truth_type());
    Some(B::float_mask_fill(x, below, scalar(0.0)))
}

/// `ln(1 + exp(x))`, without overflow.
pub(crate) fn softplus(x: DeviceTensor) -> DeviceTensor {
    let small = B::float_exp(B::float_neg(B::float_abs(x.clone())));
    B::float_add(B::float_clamp_min(x, scalar(0.0)), B::float_log1p(small))
}

pub(crate) fn softsign(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let x = call.tensor(0)?;
    Some(B::float_div(x.clone(), B::float_add_scalar(B::float_abs(x), scalar(1.0))))
}

pub(crate) fn gelu(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let x = call.tensor(0)?;
    let inner = match call.node.string("approximate").unwrap_or("none") {
        "none" => B::float_erf(B::float_mul_scalar(x.clone(), scalar(std::f32::consts::FRAC_1_SQRT_2))),
        "tanh" => {
            let cube = B::float_mul(B::float_mul(x.clone(), x.clone()), x.clone());
            let sum = B::float_add(x.clone(), B::float_mul_scalar(cube, scalar(0.044_715)));
            B::float_tanh(B::float_mul_scalar(sum, scalar((2.0 / std::f32::consts::PI).sqrt())))
        }
        _ => return None,
    };
    let half = B::float_mul_scalar(x, scalar(0.5));
    Some(B::float_mul(half, B::float_add_scalar(inner, scalar(1.0))))
}

pub(crate) fn mish(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let x = call.tensor(0)?;
    Some(B::float_mul(x.clone(), B::float_tanh(softplus(x))))
}

pub(crate) fn swish(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (x, alpha) = (call.tensor(0)?, call.node.float("alpha").unwrap_or(1.0));
    Some(B::float_mul(x.clone(), B::sigmoid(B::float_mul_scalar(x, scalar(alpha)))))
}

/// Dropout outside of training hands its input on.
pub(crate) fn dropout(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let training = call.has(2) && call.host(2)?.bools().ok()?.first() != Some(&false);
    if training { None } else { call.tensor(0) }
}

/// Between the types a device holds. Truth values become zeros and ones, floats truth values.
pub(crate) fn cast(call: &DeviceCall<'_>) -> Option<Vec<OnDevice>> {
    let to = DType::from_onnx(i32::try_from(call.node.int("to")?).ok()?)?;
    // What is on the host already is converted there at less cost than a transfer.
    if call.host(0).is_some() {
        return None;
    }
    let held = call.held(0)?;
    let tensor = match (held.dtype, to) {
        (from, to) if from == to => held.tensor,
        (DType::Bool | DType::U8 | DType::I8, DType::F32) => held.tensor,
        (_, DType::Bool) => truths(call.mask(held.tensor)),
        _ => return None,
    };
    Some(vec![OnDevice { tensor, dtype: to }])
}
