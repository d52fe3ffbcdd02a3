//! Operators whose result shares its input's payload, or is known without computing: nothing is copied,
//! whatever the element type (onnx/docs/Operators.md).

use optix_ir::Tensor;

use super::{Fast, Job, KernelSpec, Prepared, Setup, size};

/// The kernels of this family.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::prepared("Constant", 1, constant),
    KernelSpec::plain("Identity", 1, |call| Ok(Some(vec![call.input(0)?.clone()]))),
    KernelSpec::plain("Shape", 1, shape),
    KernelSpec::plain("Reshape", 5, reshape),
    KernelSpec::plain("Flatten", 1, flatten),
    KernelSpec::plain("Squeeze", 1, squeeze),
    KernelSpec::plain("Unsqueeze", 1, unsqueeze),
];

/// Those of them whose result is a view of their first input.
pub(crate) const VIEWS: &[&str] = &["Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// The value of a Constant node with a dense tensor.
struct Held(Tensor);

impl Prepared for Held {
    fn run(&self, _: &Job<'_>) -> Fast {
        Ok(Some(vec![self.0.clone()]))
    }
}

fn constant(setup: &Setup<'_>) -> Option<Box<dyn Prepared>> {
    let tensor = setup.node.tensor("value")?;
    Some(Box::new(Held(crate::plan::aligned(tensor))))
}

fn shape(call: &Job<'_>) -> Fast {
    let dims: Vec<i64> = call.input(0)?.shape().iter().map(|&dim| dim as i64).collect();
    let rank = dims.len() as i64;
    // Bounds beyond the ends are cut off.
    let bound = |name: &str, default: i64| {
        let at = call.node.int(name).unwrap_or(default);
        (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize
    };
    let (start, end) = (bound("start", 0), bound("end", rank));
    Ok(Some(vec![Tensor::from_i64s(dims.get(start..end).unwrap_or_default())]))
}

fn viewed(call: &Job<'_>, shape: Vec<usize>) -> Fast {
    let view = call.input(0)?.reshaped(shape).map_err(|error| call.tensor_error(error))?;
    Ok(Some(vec![view]))
}

fn reshape(call: &Job<'_>) -> Fast {
    let input = call.input(0)?;
    let Ok(wanted) = call.input(1)?.to_i64s() else { return Ok(None) };
    let keep_zero = call.node.int("allowzero").unwrap_or(0) != 0;
    let mut free = None;
    let mut shape = Vec::with_capacity(wanted.len());
    for (axis, &dim) in wanted.iter().enumerate() {
        shape.push(match dim {
            0 if !keep_zero => match input.shape().get(axis) {
                Some(&dim) => dim,
                None => return Ok(None),
            },
            -1 if free.is_none() => {
                free = Some(axis);
                1
            }
            dim => match usize::try_from(dim) {
                Ok(dim) => dim,
                Err(_) => return Ok(None),
            },
        });
    }
    if let Some(axis) = free {
        let Some(known) = optix_ir::element_count(&shape).filter(|&known| known > 0) else { return Ok(None) };
        shape[axis] = input.len() / known;
    }
    viewed(call, shape)
}

fn flatten(call: &Job<'_>) -> Fast {
    let dims = call.input(0)?.shape();
    let axis = call.node.int("axis").unwrap_or(1);
    let axis = if axis == dims.len() as i64 { dims.len() } else { call.axis(axis, dims.len())? };
    viewed(call, vec![size(&dims[..axis]), size(&dims[axis..])])
}

/// Axes from attribute (before version 13) or input.
fn axes(call: &Job<'_>, rank: usize) -> Result<Option<Vec<usize>>, optix_ops::OpError> {
    let listed = match call.node.ints("axes") {
        Some(listed) => listed.to_vec(),
        None => match call.optional(1).map(Tensor::to_i64s) {
            Some(Ok(listed)) => listed,
            _ => return Ok(None),
        },
    };
    listed.into_iter().map(|axis| call.axis(axis, rank)).collect::<Result<_, _>>().map(Some)
}

fn squeeze(call: &Job<'_>) -> Fast {
    let dims = call.input(0)?.shape();
    let Some(axes) = axes(call, dims.len())? else { return Ok(None) };
    if axes.iter().any(|&axis| dims[axis] != 1) {
        return Ok(None);
    }
    let kept = (0..dims.len()).filter(|axis| !axes.contains(axis)).map(|axis| dims[axis]).collect();
    viewed(call, kept)
}

fn unsqueeze(call: &Job<'_>) -> Fast {
    let dims = call.input(0)?.shape();
    let count = match call.node.ints("axes") {
        Some(listed) => listed.len(),
        None => call.input(1)?.len(),
    };
    let rank = dims.len() + count;
    let Some(axes) = axes(call, rank)? else { return Ok(None) };
    let mut left = dims.iter().copied();
    let shape: Option<Vec<usize>> =
        (0..rank).map(|axis| if axes.contains(&axis) { Some(1) } else { left.next() }).collect();
    match shape {
        Some(shape) if left.next().is_none() => viewed(call, shape),
        // An axis named twice.
        _ => Ok(None),
    }
}
