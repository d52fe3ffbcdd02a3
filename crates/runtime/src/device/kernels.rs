//! Convolutions, products, element-wise functions and pools in burn's primitives. Each agrees with the
//! operator's definition (onnx/docs/Operators.md) or declines.

use burn::tensor::Scalar;
use burn::tensor::TensorMetadata;
use burn::tensor::ops::{ActivationOps, ConvOptions, FloatTensorOps, ModuleOps};

use super::{B, DeviceCall, DeviceKernel, DeviceTensor, layout, reduce, reshape};
use crate::kernels::Window;
use crate::kernels::elementwise::broadcast;

/// Operators with a device kernel, the oldest operator set version it knows, and the kernel.
pub(crate) static KERNELS: &[(&str, i64, DeviceKernel)] = &[
    ("Conv", 1, conv),
    ("MatMul", 1, matmul),
    ("Gemm", 11, gemm),
    ("Add", 7, |call| binary(call, B::float_add)),
    ("Sub", 7, |call| binary(call, B::float_sub)),
    ("Mul", 7, |call| binary(call, B::float_mul)),
    ("Div", 7, |call| binary(call, B::float_div)),
    ("Relu", 6, |call| Some(B::relu(call.tensor(0)?))),
    ("Clip", 11, clip),
    ("Sigmoid", 6, |call| Some(B::sigmoid(call.tensor(0)?))),
    ("HardSigmoid", 6, |call| {
        let (alpha, beta) = (call.node.float("alpha").unwrap_or(0.2), call.node.float("beta").unwrap_or(0.5));
        Some(hard_sigmoid(call.tensor(0)?, alpha, beta))
    }),
    ("HardSwish", 14, |call| {
        let x = call.tensor(0)?;
        Some(B::float_mul(x.clone(), hard_sigmoid(x, 1.0 / 6.0, 0.5)))
    }),
    ("Tanh", 6, |call| Some(B::float_tanh(call.tensor(0)?))),
    ("Erf", 9, |call| Some(B::float_erf(call.tensor(0)?))),
    ("Exp", 6, |call| Some(B::float_exp(call.tensor(0)?))),
    ("Log", 6, |call| Some(B::float_log(call.tensor(0)?))),
    ("Sqrt", 6, |call| Some(B::float_sqrt(call.tensor(0)?))),
    ("Neg", 6, |call| Some(B::float_neg(call.tensor(0)?))),
    ("Abs", 6, |call| Some(B::float_abs(call.tensor(0)?))),
    ("Reciprocal", 6, |call| Some(B::float_recip(call.tensor(0)?))),
    ("BatchNormalization", 9, batch_normalization),
    ("MaxPool", 1, |call| pool(call, true)),
    ("AveragePool", 7, |call| pool(call, false)),
    ("GlobalAveragePool", 1, reduce::global_average),
    ("ReduceMean", 1, |call| reduce::reduce(call, B::float_mean_dim)),
    ("ReduceSum", 1, |call| reduce::reduce(call, B::float_sum_dim)),
    ("Softmax", 13, reduce::softmax),
    ("LayerNormalization", 17, reduce::layer_normalization),
    ("Transpose", 1, layout::transpose),
    ("Reshape", 5, layout::reshaped),
    ("Flatten", 9, layout::flatten),
    ("Squeeze", 13, layout::squeeze),
    ("Unsqueeze", 13, layout::unsqueeze),
    ("Identity", 1, |call| call.tensor(0)),
    ("Concat", 4, layout::concat),
];

/// The device kernel of a standard operator.
pub(crate) fn find(domain: &str, op_type: &str, opset: i64) -> Option<DeviceKernel> {
    if !domain.is_empty() {
        return None;
    }
    let mut kernels = KERNELS.iter();
    kernels.find(|(op, since, _)| *op == op_type && *since <= opset).map(|(_, _, kernel)| *kernel)
}

fn scalar(value: f32) -> Scalar {
    value.into()
}

fn conv(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (input, weights) = (call.shape(0)?, call.shape(1)?);
    let groups = usize::try_from(call.node.int("group").unwrap_or(1)).ok().filter(|&groups| groups > 0)?;
    let window = Window::resolve(call.node, input.get(2..)?, weights.get(2..)?)?;
    // The primitives pad both sides alike.
    if input.len() != weights.len() || window.before != window.after || input[1] != weights[1] * groups {
        return None;
    }
    let bias = if call.has(2) { Some(call.tensor(2)?) } else { None };
    let (x, w) = (call.tensor(0)?, call.tensor(1)?);
    match window.kernel.len() {
        1 => {
            let options =
                ConvOptions::new([window.strides[0]], [window.before[0]], [window.dilations[0]], groups);
            Some(B::conv1d(x, w, bias, options))
        }
        2 => {
            let options =
                ConvOptions::new(two(&window.strides), two(&window.before), two(&window.dilations), groups);
            Some(B::conv2d(x, w, bias, options))
        }
        _ => None,
    }
}

fn two(values: &[usize]) -> [usize; 2] {
    [values[0], values[1]]
}

/// The two operands in shapes of equal rank, as the primitives broadcast only those.
fn equal_ranks(a: DeviceTensor, b: DeviceTensor) -> Option<(DeviceTensor, DeviceTensor)> {
    let (left, right) = (a.shape().to_vec(), b.shape().to_vec());
    broadcast(&left, &right)?;
    let rank = left.len().max(right.len());
    let extend = |tensor: DeviceTensor, dims: Vec<usize>| {
        if dims.len() == rank {
            return tensor;
        }
        let mut shape = vec![1; rank - dims.len()];
        shape.extend(dims);
        reshape(tensor, shape)
    };
    Some((extend(a, left), extend(b, right)))
}

fn binary(
    call: &DeviceCall<'_>,
    function: fn(DeviceTensor, DeviceTensor) -> DeviceTensor,
) -> Option<DeviceTensor> {
    // A lone number among the inputs is carried as one dimension.
    let operand = |slot: usize| match call.host(slot).filter(|tensor| tensor.rank() == 0) {
        Some(tensor) => super::upload(&tensor.reshaped(vec![1]).ok()?, call.device),
        None => call.tensor(slot),
    };
    if call.shape(0)?.is_empty() && call.shape(1)?.is_empty() {
        return None;
    }
    let (a, b) = equal_ranks(operand(0)?, operand(1)?)?;
    Some(function(a, b))
}

fn matmul(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let (a, b) = (call.tensor(0)?, call.tensor(1)?);
    let (left, right) = (a.shape().to_vec(), b.shape().to_vec());
    if left.len() < 2 || right.len() < 2 || left[left.len() - 1] != right[right.len() - 2] {
        return None;
    }
    broadcast(&left[..left.len() - 2], &right[..right.len() - 2])?;
    let rank = left.len().max(right.len());
    let extend = |tensor: DeviceTensor, dims: Vec<usize>| {
        let mut shape = vec![1; rank - dims.len()];
        shape.extend(dims);
        reshape(tensor, shape)
    };
    Some(B::float_matmul(extend(a, left), extend(b, right)))
}

fn gemm(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let swapped = |name: &str, tensor: DeviceTensor| {
        if call.node.int(name).unwrap_or(0) != 0 { B::float_swap_dims(tensor, 0, 1) } else { tensor }
    };
    let (a, b) = (swapped("transA", call.tensor(0)?), swapped("transB", call.tensor(1)?));
    if a.shape().num_dims() != 2 || b.shape().num_dims() != 2 || a.shape()[1] != b.shape()[0] {
        return None;
    }
    let (alpha, beta) = (call.node.float("alpha").unwrap_or(1.0), call.node.float("beta").unwrap_or(1.0));
    let mut product = B::float_matmul(a, b);
    if alpha != 1.0 {
        product = B::float_mul_scalar(product, scalar(alpha));
    }
    if !call.has(2) {
        return Some(product);
    }
    let mut added = call.tensor(2)?;
    if beta != 1.0 {
        added = B::float_mul_scalar(added, scalar(beta));
    }
    let (product, added) = equal_ranks(product, added)?;
    Some(B::float_add(product, added))
}

fn clip(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let bound = |slot: usize, default: f32| {
        if !call.has(slot) {
            return Some(default);
        }
        call.host(slot)?.single().map(|value| value as f32)
    };
    let (low, high) = (bound(1, f32::MIN)?, bound(2, f32::MAX)?);
    Some(B::float_clamp(call.tensor(0)?, scalar(low), scalar(high)))
}

fn hard_sigmoid(x: DeviceTensor, alpha: f32, beta: f32) -> DeviceTensor {
    let line = B::float_add_scalar(B::float_mul_scalar(x, scalar(alpha)), scalar(beta));
    B::float_clamp(line, scalar(0.0), scalar(1.0))
}

fn batch_normalization(call: &DeviceCall<'_>) -> Option<DeviceTensor> {
    let shape = call.shape(0)?;
    if call.node.int("training_mode").unwrap_or(0) != 0 || call.node.outputs().len() > 1 || shape.len() < 2 {
        return None;
    }
    let mut channel = vec![1; shape.len()];
    channel[1] = shape[1];
    let parameter = |slot: usize| Some(reshape(call.tensor(slot)?, channel.clone()));
    let epsilon = call.node.float("epsilon").unwrap_or(1e-5);
    let deviation = B::float_sqrt(B::float_add_scalar(parameter(4)?, scalar(epsilon)));
    let factor = B::float_div(parameter(1)?, deviation);
    let shift = B::float_sub(parameter(2)?, B::float_mul(parameter(3)?, factor.clone()));
    Some(B::float_add(B::float_mul(call.tensor(0)?, factor), shift))
}

fn pool(call: &DeviceCall<'_>, greatest: bool) -> Option<DeviceTensor> {
    let input = call.shape(0)?;
    let kernel: Option<Vec<usize>> =
        call.node.ints("kernel_shape")?.iter().map(|&size| usize::try_from(size).ok()).collect();
    let kernel = kernel.filter(|kernel| kernel.len() == 2 && input.len() == 4)?;
    let window = Window::resolve(call.node, &input[2..], &kernel)?;
    let plain = window.before == window.after
        && window.before.iter().zip(&kernel).all(|(&pad, &size)| 2 * pad <= size)
        && call.node.int("ceil_mode").unwrap_or(0) == 0
        && call.node.outputs().len() == 1;
    if !plain {
        return None;
    }
    let (size, strides, pads) = (two(&kernel), two(&window.strides), two(&window.before));
    let x = call.tensor(0)?;
    if greatest {
        return Some(B::max_pool2d(x, size, strides, pads, two(&window.dilations), false));
    }
    let count_pads = call.node.int("count_include_pad").unwrap_or(0) != 0;
    (window.dilations == [1, 1]).then(|| B::avg_pool2d(x, size, strides, pads, count_pads, false))
}
