//! Values that operators of sequences, optionals and control flow pass around.

use optix_ir::{DType, Node, Tensor};

use crate::call::OpError;

/// A value of any type the standard has, but maps: a tensor, a sequence of values, or an optional one.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    /// A dense tensor.
    Tensor(Tensor),
    /// Values in order; the standard wants them of one type.
    Sequence(Vec<Datum>),
    /// A value or none.
    Optional(Option<Box<Datum>>),
}

impl Datum {
    /// The tensor, when it is one.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Datum::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Datum::Tensor(_) => "a tensor",
            Datum::Sequence(_) => "a sequence",
            Datum::Optional(_) => "an optional value",
        }
    }
}

impl From<Tensor> for Datum {
    fn from(tensor: Tensor) -> Datum {
        Datum::Tensor(tensor)
    }
}

/// A node about to be computed on values of any type; see [`crate::Call`] for tensors alone.
#[derive(Clone, Copy, Debug)]
pub struct DatumCall<'a> {
    /// The node: operator and attributes.
    pub node: &'a Node,
    /// Version of the operator set it belongs to.
    pub opset: i64,
    /// The inputs, by slot; `None` where omitted.
    pub inputs: &'a [Option<&'a Datum>],
}

impl<'a> DatumCall<'a> {
    /// Input `slot`, when given.
    pub fn optional(&self, slot: usize) -> Option<&'a Datum> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Input `slot`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn input(&self, slot: usize) -> Result<&'a Datum, OpError> {
        self.optional(slot).ok_or_else(|| self.invalid(format!("input {slot} is missing")))
    }

    /// Input `slot`, which must be a tensor.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn tensor(&self, slot: usize) -> Result<&'a Tensor, OpError> {
        let datum = self.input(slot)?;
        datum.as_tensor().ok_or_else(|| self.wrong_kind(slot, "a tensor", datum))
    }

    /// Input `slot`, which must be a sequence.
    ///
    /// # Errors
    /// When it is missing or something else.
    pub fn sequence(&self, slot: usize) -> Result<&'a [Datum], OpError> {
        match self.input(slot)? {
            Datum::Sequence(elements) => Ok(elements),
            other => Err(self.wrong_kind(slot, "a sequence", other)),
        }
    }

    /// The single whole number in input `slot`.
    ///
    /// # Errors
    /// When it is missing, no integer, or not one element.
    pub fn integer(&self, slot: usize) -> Result<i64, OpError> {
        let tensor = self.tensor(slot)?;
        match tensor.to_i64s().as_deref() {
            Ok([value]) => Ok(*value),
            _ => Err(self.invalid(format!(
                "input {slot} must be one integer, not {}{:?}",
                tensor.dtype(),
                tensor.shape()
            ))),
        }
    }

    /// The single truth value in input `slot`.
    ///
    /// # Errors
    /// When it is missing, not bool, or not one element.
    pub fn truth(&self, slot: usize) -> Result<bool, OpError> {
        truth(self.tensor(slot)?).map_err(|what| self.invalid(format!("input {slot} {what}")))
    }

    /// An error about inputs or attributes.
    pub fn invalid(&self, what: impl Into<String>) -> OpError {
        OpError::Invalid { op: self.node.op_type.clone(), what: what.into() }
    }

    /// An error about a form the kernel does not know.
    pub fn unsupported(&self, what: impl Into<String>) -> OpError {
        OpError::Unsupported { op: self.node.op_type.clone(), what: what.into() }
    }

    fn wrong_kind(&self, slot: usize, wanted: &str, found: &Datum) -> OpError {
        self.invalid(format!("input {slot} must be {wanted}, not {}", found.kind()))
    }
}

/// The truth value that a tensor of one bool holds, or what is wrong with it.
pub(crate) fn truth(tensor: &Tensor) -> Result<bool, String> {
    match (tensor.dtype(), tensor.bools().as_deref()) {
        (DType::Bool, Ok([value])) => Ok(*value),
        _ => Err(format!("must be one bool, not {}{:?}", tensor.dtype(), tensor.shape())),
    }
}

/// Computes all outputs of a node on values of any type.
pub type DatumKernel = fn(&DatumCall<'_>) -> Result<Vec<Datum>, OpError>;
