//! Fast kernels, one file an operator family.
//!
//! [`KERNELS`] is the visible list; its order is that of docs/operators.md. A kernel takes what it is fast
//! at (mostly 32-bit floats) and declines the rest by returning `None`; what is declined, and every
//! operator without an entry here, runs on the host through `optix_ops`.
//!
//! Adding a kernel: write `fn(&Job) -> Fast`, or a type with [`Prepared`] when constants are worth
//! preparing once, and add a line to the family's `KERNELS`.

pub(crate) mod activation;
pub(crate) mod buffers;
pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod gradient;
pub(crate) mod job;
pub(crate) mod layout;
pub(crate) mod matmul;
pub(crate) mod normalization;
pub(crate) mod parallel;
pub(crate) mod pool;
pub(crate) mod quantize;
pub(crate) mod reduce;
pub(crate) mod resize;
pub(crate) mod softmax;
#[cfg(test)]
mod tests;
pub(crate) mod views;

use std::borrow::Cow;

use optix_ir::{DType, Node, Tensor};
use optix_ops::OpError;

pub(crate) use job::Job;

/// What a fast kernel answers: the outputs, or `None` when this call is not one it is made for.
pub(crate) type Fast = Result<Option<Vec<Tensor>>, OpError>;

/// Fast kernels by family.
pub(crate) static KERNELS: &[&[KernelSpec]] = &[
    conv::KERNELS,
    matmul::KERNELS,
    elementwise::KERNELS,
    activation::KERNELS,
    pool::KERNELS,
    normalization::KERNELS,
    reduce::KERNELS,
    softmax::KERNELS,
    views::KERNELS,
    layout::KERNELS,
    quantize::KERNELS,
    resize::KERNELS,
];

/// A kernel and what it is for.
pub(crate) struct KernelSpec {
    /// Operator of the standard domain, or of the family's own.
    pub op_type: &'static str,
    /// The oldest operator set version whose form of the operator the kernel knows.
    pub since: i64,
    /// How it is made.
    pub make: Make,
}

/// How the kernel of a node is made.
#[derive(Clone, Copy)]
pub(crate) enum Make {
    /// A function of the call.
    Plain(fn(&Job<'_>) -> Fast),
    /// An object that prepares constants when the plan is made; `None` when it is of no use to this node.
    Prepared(fn(&Setup<'_>) -> Option<Box<dyn Prepared>>),
}

impl KernelSpec {
    /// A kernel that is a function of the call.
    pub(crate) const fn plain(op_type: &'static str, since: i64, run: fn(&Job<'_>) -> Fast) -> KernelSpec {
        KernelSpec { op_type, since, make: Make::Plain(run) }
    }

    /// A kernel with prepared constants.
    pub(crate) const fn prepared(
        op_type: &'static str,
        since: i64,
        make: fn(&Setup<'_>) -> Option<Box<dyn Prepared>>,
    ) -> KernelSpec {
        KernelSpec { op_type, since, make: Make::Prepared(make) }
    }
}

/// A node when the plan is made.
pub(crate) struct Setup<'a> {
    /// The node.
    pub node: &'a Node,
    /// Version of its operator set.
    #[allow(dead_code, reason = "kernels of operators whose meaning changed read it")]
    pub opset: i64,
    /// Its inputs that are constant, by slot.
    pub constants: &'a [Option<&'a Tensor>],
}

impl<'a> Setup<'a> {
    /// The constant at `slot`.
    pub(crate) fn constant(&self, slot: usize) -> Option<&'a Tensor> {
        self.constants.get(slot).copied().flatten()
    }
}

/// A kernel with prepared constants.
pub(crate) trait Prepared: Send + Sync {
    /// Computes the outputs, or declines.
    fn run(&self, call: &Job<'_>) -> Fast;
}

/// The fast kernel of an operator, if there is one.
pub(crate) fn find(domain: &str, op_type: &str, opset: i64) -> Option<&'static KernelSpec> {
    let families = match domain {
        "" => KERNELS,
        "ai.optix" => &[gradient::KERNELS],
        _ => return None,
    };
    let mut all = families.iter().copied().flatten();
    all.find(|spec| spec.op_type == op_type && spec.since <= opset)
}

/// The elements of a 32-bit float tensor; `None` for other types.
pub(crate) fn floats(tensor: &Tensor) -> Option<Cow<'_, [f32]>> {
    if tensor.dtype() == DType::F32 { tensor.to_slice::<f32>().ok() } else { None }
}

/// Reads the floats of a tensor or declines the call.
macro_rules! floats_or_decline {
    ($tensor:expr) => {
        match $crate::kernels::floats($tensor) {
            Some(elements) => elements,
            None => return Ok(None),
        }
    };
}
pub(crate) use floats_or_decline;

/// Product of dimensions already known to be those of an existing or checked tensor.
pub(crate) fn size(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Spatial attributes of convolutions and pools, resolved for one input.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Window {
    /// Kernel size an axis.
    pub kernel: Vec<usize>,
    /// Steps an axis.
    pub strides: Vec<usize>,
    /// Dilations an axis.
    pub dilations: Vec<usize>,
    /// Padding before, an axis.
    pub before: Vec<usize>,
    /// Padding after, an axis.
    pub after: Vec<usize>,
    /// Output size an axis.
    pub output: Vec<usize>,
}

impl Window {
    /// Resolves `strides`, `dilations`, `pads`, `auto_pad` and `ceil_mode` (operator Conv and the pools,
    /// onnx/docs/Operators.md) for a spatial input. `None` for what the fast kernels do not cover.
    pub(crate) fn resolve(node: &Node, input: &[usize], kernel: &[usize]) -> Option<Window> {
        let rank = input.len();
        let list = |name: &str| -> Option<Vec<usize>> {
            match node.ints(name) {
                None => Some(vec![1; rank]),
                Some(values) if values.len() == rank => {
                    values.iter().map(|&v| usize::try_from(v).ok().filter(|&v| v > 0)).collect()
                }
                Some(_) => None,
            }
        };
        let (strides, dilations) = (list("strides")?, list("dilations")?);
        let mut reach = Vec::with_capacity(rank);
        for (&size, &step) in kernel.iter().zip(&dilations) {
            reach.push(size.checked_sub(1)?.checked_mul(step)?.checked_add(1)?);
        }
        let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
        match node.string("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" => {
                if let Some(pads) = node.ints("pads") {
                    if pads.len() != 2 * rank {
                        return None;
                    }
                    for axis in 0..rank {
                        before[axis] = usize::try_from(pads[axis]).ok()?;
                        after[axis] = usize::try_from(pads[axis + rank]).ok()?;
                    }
                }
            }
            "VALID" => {}
            mode @ ("SAME_UPPER" | "SAME_LOWER") => {
                for axis in 0..rank {
                    let steps = input[axis].div_ceil(strides[axis]);
                    let needed =
                        steps.checked_sub(1)?.checked_mul(strides[axis])?.checked_add(reach[axis])?;
                    let total = needed.saturating_sub(input[axis]);
                    let less = total / 2;
                    (before[axis], after[axis]) =
                        if mode == "SAME_UPPER" { (less, total - less) } else { (total - less, less) };
                }
            }
            _ => return None,
        }
        let mut output = Vec::with_capacity(rank);
        for axis in 0..rank {
            let padded = input[axis].checked_add(before[axis])?.checked_add(after[axis])?;
            let room = padded.checked_sub(reach[axis])?;
            let mut steps = room / strides[axis] + 1;
            if node.int("ceil_mode").unwrap_or(0) != 0 {
                steps = room.div_ceil(strides[axis]) + 1;
                // A window that would start in the padding behind the input does not count.
                if (steps - 1) * strides[axis] >= input[axis] + before[axis] {
                    steps -= 1;
                }
            }
            output.push(steps);
        }
        Some(Window { kernel: kernel.to_vec(), strides, dilations, before, after, output })
    }
}
