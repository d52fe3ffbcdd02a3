//! A value in a running plan: on the host or on a device.

use optix_ir::Tensor;

use crate::burn::DeviceTensor;

/// A value in a running plan.
#[derive(Clone, Debug)]
pub(crate) enum RtValue {
    /// In host memory, any element type.
    Host(Tensor),
    /// On a device, 32-bit floats.
    Device(DeviceTensor),
}
