//! One call of a kernel: the node, its inputs, and the ways to refuse.

use optix_ir::{DType, Node, Tensor, TensorError};

/// Why a kernel did not compute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// There is no kernel for the operator.
    #[error("operator {0} is not supported")]
    NoKernel(String),
    /// The operator is known, but not in this form (a type, a mode, an old version).
    #[error("{op}: {what} is not supported")]
    Unsupported {
        /// The operator.
        op: String,
        /// The form that is missing.
        what: String,
    },
    /// Inputs or attributes break the operator's specification.
    #[error("{op}: {what}")]
    Invalid {
        /// The operator.
        op: String,
        /// What is wrong with them, and what is expected.
        what: String,
    },
    /// The result would be larger than the caller allows.
    #[error("{op}: the result would take {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The operator.
        op: String,
        /// Bytes the result would take; `u64::MAX` when beyond counting.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The machine has no memory for the result.
    #[error(
        "{op}: there is no memory for a result of {bytes} bytes; feed fewer samples or use a machine with more"
    )]
    NoMemory {
        /// The operator.
        op: String,
        /// Bytes the result would take.
        bytes: u64,
    },
}

/// Results smaller than this are allocated without asking first.
const ASKED: u64 = 64 << 20;

/// Computes all outputs of a node, in order. Trailing optional outputs may be left out of the vector.
pub type Kernel = fn(&Call<'_>) -> Result<Vec<Tensor>, OpError>;

/// A kernel and what it is for.
#[derive(Debug)]
pub struct KernelSpec {
    /// Domain of the operator; `""` for the standard one.
    pub domain: &'static str,
    /// Name of the operator.
    pub op_type: &'static str,
    /// The oldest version of the operator set whose form of the operator the kernel computes.
    pub since: i64,
    /// The kernel.
    pub run: Kernel,
}

impl KernelSpec {
    /// A kernel of the standard operator set.
    pub const fn onnx(op_type: &'static str, since: i64, run: Kernel) -> KernelSpec {
        KernelSpec { domain: "", op_type, since, run }
    }

    /// A kernel of onnxruntime's own operator set.
    pub const fn contrib(op_type: &'static str, run: Kernel) -> KernelSpec {
        KernelSpec { domain: "com.microsoft", op_type, since: 1, run }
    }

    /// A kernel of another operator set.
    pub const fn of(domain: &'static str, op_type: &'static str, since: i64, run: Kernel) -> KernelSpec {
        KernelSpec { domain, op_type, since, run }
    }
}

/// A node about to be computed.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The node: operator and attributes. Of its connections, only which outputs are left out is looked at.
    pub node: &'a Node,
    /// Version of the operator set it belongs to.
    pub opset: i64,
    /// The inputs, by slot; `None` where omitted.
    pub inputs: &'a [Option<&'a Tensor>],
    /// Bytes one output may take; kernels whose output size depends on input *values* check it before
    /// they allocate.
    pub limit: u64,
}

impl<'a> Call<'a> {
    /// A call with the default limit of 4 GiB an output.
    pub fn new(node: &'a Node, opset: i64, inputs: &'a [Option<&'a Tensor>]) -> Call<'a> {
        Call { node, opset, inputs, limit: 4 << 30 }
    }

    /// Input `slot`, when given.
    pub fn optional(&self, slot: usize) -> Option<&'a Tensor> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Input `slot`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn input(&self, slot: usize) -> Result<&'a Tensor, OpError> {
        self.optional(slot).ok_or_else(|| self.invalid(format!("input {slot} is missing")))
    }

    /// Whether the node names output `slot`: large ones that nobody wants need not be computed.
    pub fn wants(&self, slot: usize) -> bool {
        self.node.output(slot).is_some()
    }

    /// An error about inputs or attributes.
    pub fn invalid(&self, what: impl Into<String>) -> OpError {
        OpError::Invalid { op: self.node.op_type.clone(), what: what.into() }
    }

    /// An error about a form the kernel does not know.
    pub fn unsupported(&self, what: impl Into<String>) -> OpError {
        OpError::Unsupported { op: self.node.op_type.clone(), what: what.into() }
    }

    /// The error for an element type a kernel does not take.
    pub fn wrong_type(&self, slot: usize, found: DType) -> OpError {
        self.unsupported(format!("element type {found} of input {slot}"))
    }

    /// Turns a tensor's complaint into ours.
    pub fn tensor_error(&self, error: TensorError) -> OpError {
        self.invalid(error.to_string())
    }

    /// Checks the size of a result before it is allocated.
    ///
    /// # Errors
    /// [`OpError::TooLarge`] when `shape` of `dtype` takes more than the limit, [`OpError::NoMemory`] when
    /// there is not as much.
    pub fn check_size(&self, dtype: DType, shape: &[usize]) -> Result<(), OpError> {
        let count = optix_ir::element_count(shape);
        let bytes =
            count.and_then(|count| if dtype == DType::String { Some(count) } else { dtype.byte_len(count) });
        let bytes = bytes.map_or(u64::MAX, |bytes| bytes as u64);
        if bytes > self.limit {
            return Err(OpError::TooLarge { op: self.node.op_type.clone(), bytes, limit: self.limit });
        }
        // An allocation that fails ends the process. So a large one is tried first, and given back.
        let fits = bytes < ASKED
            || usize::try_from(bytes).is_ok_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok());
        if !fits {
            return Err(OpError::NoMemory { op: self.node.op_type.clone(), bytes });
        }
        Ok(())
    }

    /// An axis from an attribute or input, counted from the end when negative.
    ///
    /// # Errors
    /// When it is outside `-rank..rank`.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize, OpError> {
        let rank = rank as i64;
        let positive = if axis < 0 { axis + rank } else { axis };
        if (0..rank).contains(&positive) {
            Ok(positive as usize)
        } else {
            Err(self.invalid(format!("axis {axis} is outside a tensor of rank {rank}")))
        }
    }
}
