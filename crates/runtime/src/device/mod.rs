//! Running on burn's backends: values that live on a device, and kernels made of burn's primitives.
//!
//! Which backend runs is chosen at run time through burn's `Dispatch`; [`B`] is the one place that names
//! it. Device values are 32-bit floats; everything else, and every operator or form without an entry in
//! [`kernels::KERNELS`], runs on the host kernels, with transfers where needed.

pub(crate) mod kernels;
mod layout;
mod reduce;

use std::sync::{Arc, OnceLock};

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{Shape, TensorData, TensorMetadata};
use optix_ir::{DType, Node, Tensor};
use optix_ops::{Datum, OpError};

/// The backend behind everything here.
pub(crate) type B = burn::Dispatch;

/// A device of one of burn's backends.
pub(crate) type Device = burn::DispatchDevice;

/// A tensor of 32-bit floats on a device.
pub(crate) type DeviceTensor = FloatTensor<B>;

/// A value in a running plan.
#[derive(Clone, Debug)]
pub(crate) enum RtValue {
    /// In host memory, any element type.
    Host(Tensor),
    /// On a device, 32-bit floats.
    Device(DeviceTensor),
    /// A sequence or an optional value, on the host.
    Datum(Arc<Datum>),
    /// A constant: on the host, and on the device too once something there has read it.
    Constant(Arc<Constant>),
}

/// A constant of a plan.
#[derive(Debug)]
pub(crate) struct Constant {
    host: Tensor,
    device: OnceLock<DeviceTensor>,
}

impl RtValue {
    /// A constant, nothing uploaded yet.
    pub(crate) fn constant(host: Tensor) -> RtValue {
        RtValue::Constant(Arc::new(Constant { host, device: OnceLock::new() }))
    }

    /// The value on the host, where it is already.
    pub(crate) fn host(&self) -> Option<&Tensor> {
        match self {
            RtValue::Host(tensor) => Some(tensor),
            RtValue::Constant(constant) => Some(&constant.host),
            RtValue::Device(_) | RtValue::Datum(_) => None,
        }
    }

    /// The value as operators of sequences and control flow take it, downloaded if need be.
    pub(crate) fn to_datum(&self) -> Result<Datum, OpError> {
        match self {
            RtValue::Datum(datum) => Ok((**datum).clone()),
            other => other.to_host().map(Datum::Tensor),
        }
    }

    /// The value on the host, downloaded if need be.
    pub(crate) fn to_host(&self) -> Result<Tensor, OpError> {
        match self {
            RtValue::Host(tensor) => Ok(tensor.clone()),
            RtValue::Constant(constant) => Ok(constant.host.clone()),
            RtValue::Device(tensor) => download(tensor.clone()),
            RtValue::Datum(datum) => Err(OpError::Invalid {
                op: "reading a value".into(),
                what: format!("it is {}, not a tensor", datum.kind()),
            }),
        }
    }

    /// The dimensions of a tensor; none for other values.
    pub(crate) fn shape(&self) -> Vec<usize> {
        match self {
            RtValue::Host(tensor) => tensor.shape().to_vec(),
            RtValue::Constant(constant) => constant.host.shape().to_vec(),
            RtValue::Device(tensor) => tensor.shape().to_vec(),
            RtValue::Datum(_) => Vec::new(),
        }
    }

    /// The value on the device; `None` for what does not live there: other types than 32-bit float, and
    /// tensors without dimensions or elements, which some backends cannot hold.
    fn on_device(&self, device: &Device) -> Option<DeviceTensor> {
        match self {
            RtValue::Device(tensor) => Some(tensor.clone()),
            RtValue::Host(tensor) => upload(tensor, device),
            RtValue::Datum(_) => None,
            RtValue::Constant(constant) => {
                if let Some(tensor) = constant.device.get() {
                    return Some(tensor.clone());
                }
                let tensor = upload(&constant.host, device)?;
                Some(constant.device.get_or_init(|| tensor).clone())
            }
        }
    }
}

impl From<Datum> for RtValue {
    fn from(datum: Datum) -> RtValue {
        match datum {
            Datum::Tensor(tensor) => RtValue::Host(tensor),
            other => RtValue::Datum(Arc::new(other)),
        }
    }
}

fn upload(tensor: &Tensor, device: &Device) -> Option<DeviceTensor> {
    if tensor.dtype() != DType::F32 || tensor.rank() == 0 || tensor.is_empty() {
        return None;
    }
    let data = tensor.to_slice::<f32>().ok()?.into_owned();
    Some(B::float_from_data(TensorData::new(data, Shape::from(tensor.shape().to_vec())), device))
}

fn download(tensor: DeviceTensor) -> Result<Tensor, OpError> {
    let failed = |what: String| OpError::Invalid { op: "transfer from the device".into(), what };
    let shape = tensor.shape().to_vec();
    let data =
        burn::tensor::read_sync(B::float_into_data(tensor)).map_err(|error| failed(format!("{error:?}")))?;
    let data = data.into_vec::<f32>().map_err(|error| failed(format!("{error:?}")))?;
    Ok(Tensor::from_vec(shape, data))
}

/// Waits until everything enqueued on a device is done.
pub(crate) fn synchronize(device: &Device) -> Result<(), String> {
    B::sync(device).map_err(|error| format!("{error:?}"))
}

/// A node about to be computed on a device.
pub(crate) struct DeviceCall<'a> {
    /// The node: operator and attributes.
    pub node: &'a Node,
    /// The inputs, by slot.
    pub inputs: &'a [Option<&'a RtValue>],
    /// Where to compute.
    pub device: &'a Device,
}

impl DeviceCall<'_> {
    /// Input `slot` on the device; `None` when missing or not for the device.
    pub(crate) fn tensor(&self, slot: usize) -> Option<DeviceTensor> {
        self.inputs.get(slot).copied().flatten()?.on_device(self.device)
    }

    /// Whether input `slot` is given.
    pub(crate) fn has(&self, slot: usize) -> bool {
        self.inputs.get(slot).copied().flatten().is_some()
    }

    /// Dimensions of input `slot`.
    pub(crate) fn shape(&self, slot: usize) -> Option<Vec<usize>> {
        Some(self.inputs.get(slot).copied().flatten()?.shape())
    }

    /// Input `slot`, when it is on the host already.
    pub(crate) fn host(&self, slot: usize) -> Option<&Tensor> {
        self.inputs.get(slot).copied().flatten()?.host()
    }

    /// An axis attribute counted from the front.
    pub(crate) fn axis(&self, name: &str, default: i64, rank: usize) -> Option<usize> {
        axis(self.node.int(name).unwrap_or(default), rank)
    }
}

/// An axis counted from the front; `None` outside `-rank..rank`.
pub(crate) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = rank as i64;
    let positive = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&positive).then_some(positive as usize)
}

/// A kernel on a device: the single output, or `None` when this form is left to the host.
pub(crate) type DeviceKernel = fn(&DeviceCall<'_>) -> Option<DeviceTensor>;

/// A device tensor in another shape of as many elements.
pub(crate) fn reshape(tensor: DeviceTensor, shape: Vec<usize>) -> DeviceTensor {
    B::float_reshape(tensor, Shape::from(shape))
}
