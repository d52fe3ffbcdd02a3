//! The operators that run on a device. Each kernel agrees with the operator's definition
//! (onnx/docs/Operators.md) or declines, and the host computes that form.

use burn::tensor::ops::{ActivationOps, FloatTensorOps};
use optix_ir::DType;

use super::elementwise as el;
use super::{B, DeviceCall, DeviceTensor, OnDevice, convolution, indexing, layout, quantize, reduce};

/// What a kernel makes of a node; `None` when this form is left to the host.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// One output of 32-bit floats.
    Float(fn(&DeviceCall<'_>) -> Option<DeviceTensor>),
    /// One output of truth values, as zeros and ones.
    Truth(fn(&DeviceCall<'_>) -> Option<DeviceTensor>),
    /// Elements of the first input in another order, whatever their type.
    Move(fn(&DeviceCall<'_>) -> Option<DeviceTensor>),
    /// Any outputs.
    General(fn(&DeviceCall<'_>) -> Option<Vec<OnDevice>>),
}

use Run::{Float, General, Move, Truth};

/// Operators with a device kernel, the oldest operator set version it knows, and the kernel.
pub(crate) static KERNELS: &[(&str, i64, Run)] = &[
    ("Conv", 1, Float(convolution::conv)),
    ("ConvTranspose", 1, Float(convolution::conv_transpose)),
    ("MaxPool", 1, Float(|call| convolution::pool(call, true))),
    ("AveragePool", 7, Float(|call| convolution::pool(call, false))),
    ("GlobalAveragePool", 1, Float(|call| reduce::global(call, B::float_mean_dim))),
    ("GlobalMaxPool", 1, Float(|call| reduce::global(call, reduce::greatest))),
    ("MatMul", 1, Float(el::matmul)),
    ("Gemm", 7, Float(el::gemm)),
    ("Add", 7, Float(|call| el::binary(call, B::float_add))),
    ("Sub", 7, Float(|call| el::binary(call, B::float_sub))),
    ("Mul", 7, Float(|call| el::binary(call, B::float_mul))),
    ("Div", 7, Float(|call| el::binary(call, B::float_div))),
    ("Pow", 7, Float(el::power)),
    ("PRelu", 9, Float(el::parametric_relu)),
    ("Sum", 8, Float(|call| el::variadic(call, |_, a, b| B::float_add(a, b)))),
    ("Max", 8, Float(|call| el::variadic(call, |call, a, b| el::extreme(call, a, b, true)))),
    ("Min", 8, Float(|call| el::variadic(call, |call, a, b| el::extreme(call, a, b, false)))),
    ("Mean", 8, Float(el::mean)),
    ("Where", 9, General(el::select)),
    ("Equal", 11, Truth(|call| el::compare(call, B::float_equal))),
    ("Greater", 9, Truth(|call| el::compare(call, B::float_greater))),
    ("GreaterOrEqual", 12, Truth(|call| el::compare(call, B::float_greater_equal))),
    ("Less", 9, Truth(|call| el::compare(call, B::float_lower))),
    ("LessOrEqual", 12, Truth(|call| el::compare(call, B::float_lower_equal))),
    ("Not", 1, Truth(el::not)),
    ("And", 7, Truth(|call| el::logic(call, B::float_mul))),
    ("Relu", 6, Float(|call| Some(B::relu(call.tensor(0)?)))),
    ("LeakyRelu", 6, Float(el::leaky_relu)),
    ("ThresholdedRelu", 10, Float(el::thresholded_relu)),
    ("Clip", 6, Float(el::clip)),
    ("Sigmoid", 6, Float(|call| Some(B::sigmoid(call.tensor(0)?)))),
    ("HardSigmoid", 6, Float(el::hard_sigmoid)),
    ("HardSwish", 14, Float(el::hard_swish)),
    ("Elu", 6, Float(el::elu)),
    ("Celu", 12, Float(el::celu)),
    ("Selu", 6, Float(el::selu)),
    ("Softplus", 1, Float(|call| Some(el::softplus(call.tensor(0)?)))),
    ("Softsign", 1, Float(el::softsign)),
    ("Gelu", 20, Float(el::gelu)),
    ("Mish", 18, Float(el::mish)),
    ("Swish", 24, Float(el::swish)),
    ("Tanh", 6, Float(|call| Some(B::float_tanh(call.tensor(0)?)))),
    ("Erf", 9, Float(|call| Some(B::float_erf(call.tensor(0)?)))),
    ("Exp", 6, Float(|call| Some(B::float_exp(call.tensor(0)?)))),
    ("Log", 6, Float(|call| Some(B::float_log(call.tensor(0)?)))),
    ("Sqrt", 6, Float(|call| Some(B::float_sqrt(call.tensor(0)?)))),
    ("Neg", 6, Float(|call| Some(B::float_neg(call.tensor(0)?)))),
    ("Abs", 6, Float(|call| Some(B::float_abs(call.tensor(0)?)))),
    ("Reciprocal", 6, Float(|call| Some(el::reciprocal(call.tensor(0)?)))),
    ("Sin", 7, Float(|call| Some(B::float_sin(call.tensor(0)?)))),
    ("Cos", 7, Float(|call| Some(B::float_cos(call.tensor(0)?)))),
    ("Floor", 6, Float(|call| Some(B::float_floor(call.tensor(0)?)))),
    ("Ceil", 6, Float(|call| Some(B::float_ceil(call.tensor(0)?)))),
    ("Round", 11, Float(|call| Some(B::float_round(call.tensor(0)?)))),
    ("Sign", 9, Float(|call| Some(B::float_sign(call.tensor(0)?)))),
    ("BatchNormalization", 9, Float(reduce::batch_normalization)),
    ("InstanceNormalization", 6, Float(reduce::instance_normalization)),
    ("LayerNormalization", 17, Float(reduce::layer_normalization)),
    ("RMSNormalization", 23, Float(reduce::rms_normalization)),
    ("LRN", 1, Float(reduce::local_response_normalization)),
    ("ReduceMean", 1, Float(|call| reduce::reduce(call, B::float_mean_dim))),
    ("ReduceSum", 1, Float(|call| reduce::reduce(call, B::float_sum_dim))),
    ("ReduceMax", 1, Float(|call| reduce::reduce(call, reduce::greatest))),
    ("ReduceMin", 1, Float(|call| reduce::reduce(call, reduce::least))),
    ("ReduceProd", 1, Float(|call| reduce::reduce(call, B::float_prod_dim))),
    ("ReduceL1", 1, Float(|call| reduce::around(call, B::float_abs, |x| x))),
    ("ReduceL2", 1, Float(|call| reduce::around(call, |x| B::float_mul(x.clone(), x), B::float_sqrt))),
    ("ReduceSumSquare", 1, Float(|call| reduce::around(call, |x| B::float_mul(x.clone(), x), |x| x))),
    ("ReduceLogSum", 1, Float(|call| reduce::around(call, |x| x, B::float_log))),
    ("Softmax", 1, Float(|call| reduce::softmax(call, B::softmax))),
    ("LogSoftmax", 1, Float(|call| reduce::softmax(call, B::log_softmax))),
    ("QuantizeLinear", 10, General(quantize::quantize)),
    ("DequantizeLinear", 10, Float(quantize::dequantize)),
    ("Identity", 1, Move(|call| Some(call.held(0)?.tensor))),
    ("Dropout", 7, Float(el::dropout)),
    ("Cast", 6, General(el::cast)),
    ("Transpose", 1, Move(layout::transpose)),
    ("Reshape", 5, Move(layout::reshaped)),
    ("Flatten", 1, Move(layout::flatten)),
    ("Squeeze", 1, Move(layout::squeeze)),
    ("Unsqueeze", 1, Move(layout::unsqueeze)),
    ("Concat", 4, Move(layout::concat)),
    ("Expand", 8, Move(layout::expand)),
    ("Tile", 6, Move(layout::tile)),
    ("Pad", 2, Float(layout::pad)),
    ("DepthToSpace", 1, Move(layout::depth_to_space)),
    ("SpaceToDepth", 1, Move(layout::space_to_depth)),
    ("Slice", 1, Move(indexing::slice)),
    ("Split", 1, General(indexing::split)),
    ("Gather", 1, Move(indexing::gather)),
    ("GatherElements", 11, Move(indexing::gather_elements)),
    ("Resize", 11, Float(indexing::resize)),
];

/// The device kernel of a standard operator.
pub(crate) fn find(domain: &str, op_type: &str, opset: i64) -> Option<Run> {
    if !domain.is_empty() {
        return None;
    }
    let mut kernels = KERNELS.iter();
    kernels.find(|(op, since, _)| *op == op_type && *since <= opset).map(|(_, _, run)| *run)
}

impl Run {
    /// The outputs, or `None` when this form is left to the host.
    pub(crate) fn run(self, call: &DeviceCall<'_>) -> Option<Vec<OnDevice>> {
        let one =
            |tensor: Option<DeviceTensor>, dtype: DType| Some(vec![OnDevice { tensor: tensor?, dtype }]);
        // These have a single output; a mask or statistics beside it are left to the host.
        if call.exceeds_dimensions() {
            return None;
        }
        if !matches!(self, General(_)) && call.node.outputs().iter().skip(1).any(Option::is_some) {
            return None;
        }
        match self {
            Float(kernel) => one(kernel(call), DType::F32),
            Truth(kernel) => one(kernel(call), DType::Bool),
            Move(kernel) => {
                let dtype = call.dtype(0)?;
                // What is no float is not worth a transfer.
                if dtype != DType::F32 && call.host(0).is_some() {
                    return None;
                }
                one(kernel(call), dtype)
            }
            General(kernel) => kernel(call),
        }
    }
}
