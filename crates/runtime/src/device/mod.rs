//! Running on burn's backends: values that live on a device, and kernels made of burn's primitives.
//!
//! Which backend runs is chosen at run time through burn's `Dispatch`; [`B`] is the one place that names
//! it. A device holds 32-bit floats: values of that type, and those of 8-bit integers and truth values as
//! whole numbers, which is exact. Everything else (shapes, indices, wider integers), and every operator or
//! form without an entry in [`kernels::KERNELS`], runs on the host kernels, with transfers where needed;
//! [`Tally`] counts both.

mod convolution;
mod elementwise;
mod indexing;
pub(crate) mod kernels;
mod layout;
mod product;
mod quantize;
mod reduce;
mod tally;

use std::sync::{Arc, OnceLock};

use burn::tensor::backend::Backend;
use burn::tensor::ops::{BoolTensor, FloatTensor, FloatTensorOps, IntTensor, IntTensorOps};
use burn::tensor::{Scalar, Shape, TensorData, TensorMetadata};
use optix_ir::{DType, Node, Tensor};
use optix_ops::{Datum, OpError};

pub use tally::Placement;
pub(crate) use tally::Tally;

/// The backend behind everything here.
pub(crate) type B = burn::Dispatch;

/// A device of one of burn's backends.
pub(crate) type Device = burn::DispatchDevice;

/// A tensor of 32-bit floats on a device.
pub(crate) type DeviceTensor = FloatTensor<B>;

/// A value on a device.
#[derive(Clone, Debug)]
pub(crate) struct OnDevice {
    /// Its elements, as 32-bit floats.
    pub tensor: DeviceTensor,
    /// What they stand for: F32, or one of U8, I8 and Bool, whose values are whole numbers.
    pub dtype: DType,
}

/// A value in a running plan.
#[derive(Clone, Debug)]
pub(crate) enum RtValue {
    /// In host memory, any element type.
    Host(Tensor),
    /// On a device.
    Device(OnDevice),
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
            RtValue::Device(held) => download(held.clone()),
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
            RtValue::Device(held) => held.tensor.shape().to_vec(),
            RtValue::Datum(_) => Vec::new(),
        }
    }

    /// The element type of a tensor; `None` for other values.
    pub(crate) fn dtype(&self) -> Option<DType> {
        match self {
            RtValue::Host(tensor) => Some(tensor.dtype()),
            RtValue::Constant(constant) => Some(constant.host.dtype()),
            RtValue::Device(held) => Some(held.dtype),
            RtValue::Datum(_) => None,
        }
    }

    /// The value on the device; `None` for what does not live there: types that floats do not hold exactly,
    /// and tensors without elements. A lone number is carried in one dimension, as some backends have no
    /// tensors of rank 0.
    fn on_device(&self, device: &DevicePlace) -> Option<OnDevice> {
        match self {
            RtValue::Device(held) => Some(held.clone()),
            RtValue::Host(tensor) => upload(tensor, device),
            RtValue::Datum(_) => None,
            RtValue::Constant(constant) => {
                if let Some(tensor) = constant.device.get() {
                    return Some(OnDevice { tensor: tensor.clone(), dtype: constant.host.dtype() });
                }
                let held = upload(&constant.host, device)?;
                let tensor = constant.device.get_or_init(|| held.tensor).clone();
                Some(OnDevice { tensor, dtype: held.dtype })
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

/// A device of a session, and what has run there.
#[derive(Debug)]
pub(crate) struct DevicePlace {
    /// Where.
    pub device: Device,
    /// What ran, and what was moved.
    pub tally: Tally,
}

fn upload(tensor: &Tensor, device: &DevicePlace) -> Option<OnDevice> {
    if tensor.is_empty() {
        return None;
    }
    let data: Vec<f32> = match tensor.dtype() {
        DType::F32 => tensor.to_slice::<f32>().ok()?.into_owned(),
        DType::U8 => tensor.bytes().iter().map(|&code| f32::from(code)).collect(),
        DType::I8 => tensor.bytes().iter().map(|&code| f32::from(code as i8)).collect(),
        DType::Bool => tensor.bools().ok()?.into_iter().map(|truth| f32::from(u8::from(truth))).collect(),
        _ => return None,
    };
    let shape = if tensor.rank() == 0 { vec![1] } else { tensor.shape().to_vec() };
    device.tally.uploaded(4 * data.len());
    Some(OnDevice { tensor: from_floats(shape, data, &device.device), dtype: tensor.dtype() })
}

fn from_floats(shape: Vec<usize>, data: Vec<f32>, device: &Device) -> DeviceTensor {
    B::float_from_data(TensorData::new(data, Shape::from(shape)), device)
}

/// What errors of transfers name as their operator.
pub(crate) const TRANSFER: &str = "transfer from the device";

fn download(held: OnDevice) -> Result<Tensor, OpError> {
    let failed = |what: String| OpError::Invalid { op: TRANSFER.into(), what };
    let shape = held.tensor.shape().to_vec();
    let data = burn::tensor::read_sync(B::float_into_data(held.tensor))
        .map_err(|error| failed(format!("{error:?}")))?;
    let data = data.into_vec::<f32>().map_err(|error| failed(format!("{error:?}")))?;
    Ok(match held.dtype {
        DType::U8 => Tensor::from_vec(shape, data.into_iter().map(|x| x as u8).collect::<Vec<_>>()),
        DType::I8 => Tensor::from_vec(shape, data.into_iter().map(|x| x as i8).collect::<Vec<_>>()),
        DType::Bool => Tensor::from_bools(shape, &data.into_iter().map(|x| x != 0.0).collect::<Vec<_>>()),
        _ => Tensor::from_vec(shape, data),
    })
}

/// Waits until everything enqueued on a device is done.
pub(crate) fn synchronize(device: &Device) -> Result<(), String> {
    B::sync(device).map_err(|error| format!("{error:?}"))
}

/// Dimensions that a tensor of a backend can have.
fn most_dimensions(device: &Device) -> usize {
    match device {
        #[cfg(feature = "ndarray")]
        Device::NdArray(_) => 6,
        _ => usize::MAX,
    }
}

/// A node about to be computed on a device.
pub(crate) struct DeviceCall<'a> {
    /// The node: operator and attributes.
    pub node: &'a Node,
    /// Version of its operator set.
    pub opset: i64,
    /// The inputs, by slot.
    pub inputs: &'a [Option<&'a RtValue>],
    /// Where to compute.
    pub place: &'a DevicePlace,
}

impl DeviceCall<'_> {
    fn input(&self, slot: usize) -> Option<&RtValue> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Input `slot` on the device, of a type it holds; no lone number.
    pub(crate) fn held(&self, slot: usize) -> Option<OnDevice> {
        let input = self.input(slot)?;
        if input.shape().is_empty() { None } else { input.on_device(self.place) }
    }

    /// Input `slot` on the device; `None` when missing, a lone number or no 32-bit floats.
    pub(crate) fn tensor(&self, slot: usize) -> Option<DeviceTensor> {
        if self.dtype(slot)? != DType::F32 { None } else { Some(self.held(slot)?.tensor) }
    }

    /// The same, with a lone number in one dimension.
    pub(crate) fn operand(&self, slot: usize) -> Option<DeviceTensor> {
        self.operand_of(slot, &[DType::F32])
    }

    /// Input `slot` on the device when it is of one of some types, a lone number in one dimension.
    pub(crate) fn operand_of(&self, slot: usize, types: &[DType]) -> Option<DeviceTensor> {
        let input = self.input(slot)?;
        if types.contains(&input.dtype()?) { Some(input.on_device(self.place)?.tensor) } else { None }
    }

    /// Whether input `slot` is given.
    pub(crate) fn has(&self, slot: usize) -> bool {
        self.input(slot).is_some()
    }

    /// Dimensions of input `slot`.
    pub(crate) fn shape(&self, slot: usize) -> Option<Vec<usize>> {
        Some(self.input(slot)?.shape())
    }

    /// Element type of input `slot`.
    pub(crate) fn dtype(&self, slot: usize) -> Option<DType> {
        self.input(slot)?.dtype()
    }

    /// Input `slot`, when it is on the host already.
    pub(crate) fn host(&self, slot: usize) -> Option<&Tensor> {
        self.input(slot)?.host()
    }

    /// Integers of input `slot`, when it is on the host already.
    pub(crate) fn integers(&self, slot: usize) -> Option<Vec<i64>> {
        self.host(slot)?.to_i64s().ok()
    }

    /// Whether what goes in or comes out has more dimensions than tensors of the backend can have.
    pub(crate) fn exceeds_dimensions(&self) -> bool {
        let most = most_dimensions(&self.place.device);
        let rank = |slot: usize| self.shape(slot).map_or(0, |shape| shape.len());
        let first = |slot: usize| self.shape(slot).and_then(|shape| shape.first().copied()).unwrap_or(0);
        let result = match self.node.op_type.as_str() {
            "Reshape" | "Expand" => first(1),
            "Unsqueeze" => rank(0) + self.node.ints("axes").map_or_else(|| first(1), <[i64]>::len),
            "Gather" => rank(0) + rank(1),
            _ => 0,
        };
        (0..self.inputs.len()).map(rank).any(|rank| rank > most) || result > most
    }

    /// An axis attribute counted from the front.
    pub(crate) fn axis(&self, name: &str, default: i64, rank: usize) -> Option<usize> {
        axis(self.node.int(name).unwrap_or(default), rank)
    }

    /// Numbers of the host as a tensor of the device.
    pub(crate) fn floats(&self, shape: Vec<usize>, data: Vec<f32>) -> DeviceTensor {
        self.place.tally.uploaded(4 * data.len());
        from_floats(shape, data, &self.place.device)
    }

    /// Places along an axis as a tensor of the device.
    pub(crate) fn places(&self, places: &[usize]) -> Option<IntTensor<B>> {
        let places: Vec<i32> =
            places.iter().map(|&place| i32::try_from(place).ok()).collect::<Option<_>>()?;
        self.place.tally.uploaded(4 * places.len());
        let shape = Shape::from(vec![places.len()]);
        Some(B::int_from_data(TensorData::new(places, shape), &self.place.device))
    }

    /// How the device keeps truth values.
    pub(crate) fn truth_type(&self) -> burn::tensor::BoolDType {
        burn::tensor::get_device_settings::<B>(&self.place.device).bool_dtype
    }

    /// Where a tensor is not zero.
    pub(crate) fn mask(&self, tensor: DeviceTensor) -> BoolTensor<B> {
        B::float_not_equal_elem(tensor, scalar(0.0), self.truth_type())
    }
}

/// An axis counted from the front; `None` outside `-rank..rank`.
pub(crate) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = rank as i64;
    let positive = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&positive).then_some(positive as usize)
}

/// A device tensor in another shape of as many elements.
pub(crate) fn reshape(tensor: DeviceTensor, shape: Vec<usize>) -> DeviceTensor {
    B::float_reshape(tensor, Shape::from(shape))
}

/// A number as the primitives take it.
pub(crate) fn scalar(value: f32) -> Scalar {
    value.into()
}
