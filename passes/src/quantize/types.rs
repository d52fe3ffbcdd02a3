//! Types that are asked for.

use optix_ir::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Type of activations, or of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationType {
    /// 0 to 255: the fast one on x86.
    #[default]
    Uint8,
    /// -128 to 127.
    Int8,
    /// 0 to 65,535: hardly any loss, and kernels only on some devices.
    Uint16,
    /// -32,768 to 32,767: as uint16.
    Int16,
    /// Floats of 8 bits, 3 of them after the point: up to 448.
    Float8e4m3fn,
    /// Floats of 8 bits, 2 of them after the point: less precise, and wider than activations need.
    Float8e5m2,
}

/// What to do about kernels that clip sums of two products to int16: those of onnxruntime for uint8
/// activations and int8 weights on x86 processors without VNNI instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Saturation {
    /// Scales of weights are just wide enough that it cannot happen: the same results on all processors, for
    /// less than one bit of precision.
    #[default]
    Avoid,
    /// All 8 bits, for processors that are known to have VNNI.
    Allow,
}

/// Type of weights beside integer activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WeightType {
    /// -127 to 127: what kernels compute with.
    #[default]
    Int8,
    /// -8 to 7: half the bytes; engines make floats of them, so that nothing gets faster by it.
    Int4,
}

impl WeightType {
    /// The first operator set whose quantizers know four bits.
    pub const LEAST_OF_INT4: i64 = 21;

    /// The type in the file.
    pub fn dtype(self) -> DType {
        match self {
            WeightType::Int8 => DType::I8,
            WeightType::Int4 => DType::I4,
        }
    }
}
