//! Control flow: what `Loop`, `Scan` and `SequenceMap` do with a body that somebody else runs.
//!
//! The interpreter of this crate and the engines run bodies in their own ways; when and on what a body
//! runs is decided here once.

use optix_ir::{Tensor, Type};

use crate::call::{Call, OpError};
use crate::datum::{Datum, DatumCall, truth};
use crate::sequence::{nothing, slice, stack, without_axis};

/// Runs a body on its inputs, in order, and gives its outputs.
pub type Body<'a, E> = &'a mut dyn FnMut(Vec<Datum>) -> Result<Vec<Datum>, E>;

/// Operators of the standard set that run graphs of their own, and since which version.
pub(crate) const OPERATORS: &[(&str, i64)] = &[("If", 1), ("Loop", 1), ("Scan", 8), ("SequenceMap", 17)];

/// Most iterations of one loop: beyond that a file is hostile, not patient.
const MOST_ITERATIONS: u64 = 1 << 20;

fn too_few<T>(call: &DatumCall<'_>, what: &str) -> Result<T, OpError> {
    Err(call.invalid(format!("its body has too few {what}")))
}

/// The declared type of scan output `index`, for a loop that never ran: an empty tensor needs a type.
fn empty_scan(call: &DatumCall<'_>, ty: Option<&Type>, axis: usize) -> Result<Datum, OpError> {
    let ty = ty.and_then(Type::as_tensor);
    let shape = ty.and_then(|ty| ty.shape.as_ref());
    let mut sizes: Vec<usize> =
        shape.map_or_else(Vec::new, |shape| shape.iter().map(|dim| dim.fixed().unwrap_or(0)).collect());
    sizes.insert(axis.min(sizes.len()), 0);
    let tensor = ty.and_then(|ty| ty.dtype).and_then(|dtype| nothing(dtype, sizes));
    tensor.map(Datum::Tensor).ok_or_else(|| {
        call.unsupported("a scan output without iterations whose element type the body does not declare")
    })
}

fn stacked(call: &DatumCall<'_>, parts: &[Datum], axis: i64, back: bool) -> Result<Datum, OpError> {
    let tensors: Option<Vec<&Tensor>> = parts.iter().map(Datum::as_tensor).collect();
    let mut tensors = tensors.ok_or_else(|| call.invalid("a scan output of its body is not a tensor"))?;
    if back {
        tensors.reverse();
    }
    let inner = Call::new(call.node, call.opset, &[]);
    let axis = inner.axis(axis, tensors.first().map_or(0, |tensor| tensor.rank()) + 1)?;
    Ok(stack(&inner, &tensors, axis)?.into())
}

/// `Loop` (since 1): the final carried values, then the scan outputs. `types` are the declared types of
/// the body's outputs.
///
/// # Errors
/// When inputs or what the body gives break the operator's specification, and the body's own.
pub fn run_loop<E: From<OpError>>(
    call: &DatumCall<'_>,
    types: &[Option<Type>],
    body: Body<'_, E>,
) -> Result<Vec<Datum>, E> {
    let trips = match call.optional(0) {
        Some(_) => Some(call.integer(0)?.max(0) as u64),
        None => None,
    };
    let mut go_on = match call.optional(1) {
        Some(_) => call.truth(1)?,
        None => true,
    };
    let mut carried: Vec<Datum> =
        (2..call.inputs.len()).map(|slot| call.input(slot).cloned()).collect::<Result<_, _>>()?;
    let scans = match types.len().checked_sub(1 + carried.len()) {
        Some(scans) => scans,
        None => return Ok(too_few(call, "outputs")?),
    };
    let mut collected: Vec<Vec<Datum>> = vec![Vec::new(); scans];
    let mut iteration = 0u64;
    while go_on && trips.is_none_or(|trips| iteration < trips) {
        if iteration == MOST_ITERATIONS {
            return Err(call.invalid(format!("it did not end within {MOST_ITERATIONS} iterations")).into());
        }
        let mut inputs: Vec<Datum> =
            vec![Tensor::scalar(iteration as i64).into(), Tensor::from_bools([], &[true]).into()];
        inputs.append(&mut carried);
        let mut outputs = body(inputs)?.into_iter();
        let condition = outputs.next().and_then(|datum| datum.as_tensor().map(truth));
        go_on = match condition {
            Some(Ok(value)) => value,
            Some(Err(what)) => return Err(call.invalid(format!("the condition of its body {what}")).into()),
            None => return Err(call.invalid("the condition of its body is not a tensor").into()),
        };
        carried.extend(outputs.by_ref().take(types.len() - 1 - scans));
        for (parts, part) in collected.iter_mut().zip(outputs) {
            parts.push(part);
        }
        iteration += 1;
    }
    let declared = &types[types.len() - scans..];
    for (parts, ty) in collected.iter().zip(declared) {
        carried.push(match parts.is_empty() {
            true => empty_scan(call, ty.as_ref(), 0)?,
            false => stacked(call, parts, 0, false)?,
        });
    }
    Ok(carried)
}

/// A list of integers that an attribute gives for each of `count` things, `default` without it.
fn list(call: &DatumCall<'_>, name: &str, count: usize, default: i64) -> Result<Vec<i64>, OpError> {
    match call.node.ints(name) {
        None => Ok(vec![default; count]),
        Some(values) if values.len() == count => Ok(values.to_vec()),
        Some(values) => Err(call.invalid(format!("`{name}` has {} entries for {count}", values.len()))),
    }
}

/// `Scan` (since 8): the final states, then the scan outputs. `types` are the declared types of the
/// body's outputs.
///
/// # Errors
/// When inputs or what the body gives break the operator's specification, and the body's own.
pub fn run_scan<E: From<OpError>>(
    call: &DatumCall<'_>,
    types: &[Option<Type>],
    body: Body<'_, E>,
) -> Result<Vec<Datum>, E> {
    let count = call.node.int("num_scan_inputs").and_then(|count| usize::try_from(count).ok());
    let count = count.filter(|&count| count > 0);
    let count = count.ok_or_else(|| call.invalid("`num_scan_inputs` must be positive"))?;
    if call.opset >= 9 {
        return scan(call, 0, count, types, body);
    }
    // Version 8 has a batch axis in front of everything and lengths in input 0: a scan for each sample.
    if call.optional(0).is_some() {
        return Err(call.unsupported("sequence_lens of version 8").into());
    }
    let tensors: Vec<&Tensor> =
        (1..call.inputs.len()).map(|slot| call.tensor(slot)).collect::<Result<_, _>>()?;
    let batch = tensors.first().and_then(|tensor| tensor.shape().first()).copied().unwrap_or(0);
    let inner = Call::new(call.node, call.opset, &[]);
    let mut samples: Vec<Vec<Datum>> = Vec::with_capacity(batch);
    for sample in 0..batch {
        let mut inputs: Vec<Datum> = Vec::new();
        for tensor in &tensors {
            if tensor.shape().first() != Some(&batch) {
                return Err(call.invalid("its inputs have different batch sizes").into());
            }
            inputs.push(without_axis(&inner, &slice(&inner, tensor, 0, sample, 1)?, 0)?.into());
        }
        let inputs: Vec<Option<&Datum>> = inputs.iter().map(Some).collect();
        samples.push(scan(&DatumCall { inputs: &inputs, ..*call }, 0, count, types, &mut *body)?);
    }
    let outputs = samples.first().map_or(0, Vec::len);
    let mut results = Vec::new();
    for output in 0..outputs {
        let parts: Vec<Datum> = samples.iter().map(|sample| sample[output].clone()).collect();
        results.push(stacked(call, &parts, 0, false)?);
    }
    Ok(results)
}

fn scan<E: From<OpError>>(
    call: &DatumCall<'_>,
    first: usize,
    count: usize,
    types: &[Option<Type>],
    body: Body<'_, E>,
) -> Result<Vec<Datum>, E> {
    let states = match call.inputs.len().checked_sub(first + count) {
        Some(states) => states,
        None => return Err(call.invalid("it has fewer inputs than `num_scan_inputs`").into()),
    };
    let outputs = match types.len().checked_sub(states) {
        Some(outputs) => outputs,
        None => return Ok(too_few(call, "outputs")?),
    };
    let mut carried: Vec<Datum> =
        (first..first + states).map(|slot| call.input(slot).cloned()).collect::<Result<_, _>>()?;
    let scanned: Vec<&Tensor> =
        (first + states..call.inputs.len()).map(|slot| call.tensor(slot)).collect::<Result<_, _>>()?;
    let inner = Call::new(call.node, call.opset, &[]);
    let input_axes = list(call, "scan_input_axes", count, 0)?;
    let axes: Vec<usize> = input_axes
        .iter()
        .zip(&scanned)
        .map(|(&axis, tensor)| inner.axis(axis, tensor.rank()))
        .collect::<Result<_, _>>()?;
    let back_name = if call.opset >= 9 { "scan_input_directions" } else { "directions" };
    let backwards = list(call, back_name, count, 0)?;
    let output_axes = list(call, "scan_output_axes", outputs, 0)?;
    let output_backwards = list(call, "scan_output_directions", outputs, 0)?;
    let lengths: Vec<usize> = scanned.iter().zip(&axes).map(|(tensor, &axis)| tensor.shape()[axis]).collect();
    let length = lengths[0];
    if lengths.iter().any(|&other| other != length) {
        return Err(call.invalid(format!("its scan inputs have different lengths {lengths:?}")).into());
    }
    let mut collected: Vec<Vec<Datum>> = vec![Vec::new(); outputs];
    for step in 0..length {
        let mut inputs = std::mem::take(&mut carried);
        for ((tensor, &axis), &back) in scanned.iter().zip(&axes).zip(&backwards) {
            let at = if back != 0 { length - 1 - step } else { step };
            inputs.push(without_axis(&inner, &slice(&inner, tensor, axis, at, 1)?, axis)?.into());
        }
        let mut results = body(inputs)?.into_iter();
        carried.extend(results.by_ref().take(states));
        for (parts, part) in collected.iter_mut().zip(results) {
            parts.push(part);
        }
    }
    for (index, parts) in collected.iter().enumerate() {
        carried.push(match parts.is_empty() {
            true => {
                let axis = usize::try_from(output_axes[index]).unwrap_or(0);
                empty_scan(call, types[states + index].as_ref(), axis)?
            }
            false => stacked(call, parts, output_axes[index], output_backwards[index] != 0)?,
        });
    }
    Ok(carried)
}

/// `SequenceMap` (since 17): the body over the elements of the first input, and of every further input
/// that is a sequence; tensors are handed to each as they are.
///
/// # Errors
/// When inputs or what the body gives break the operator's specification, and the body's own.
pub fn run_map<E: From<OpError>>(
    call: &DatumCall<'_>,
    outputs: usize,
    body: Body<'_, E>,
) -> Result<Vec<Datum>, E> {
    let length = call.sequence(0)?.len();
    let mut results: Vec<Vec<Datum>> = vec![Vec::new(); outputs];
    for index in 0..length {
        let mut inputs = Vec::with_capacity(call.inputs.len());
        for slot in 0..call.inputs.len() {
            inputs.push(match call.input(slot)? {
                Datum::Sequence(elements) if elements.len() == length => elements[index].clone(),
                Datum::Sequence(elements) => {
                    let lengths = format!("{length} and {}", elements.len());
                    return Err(call.invalid(format!("its sequences have {lengths} elements")).into());
                }
                other => other.clone(),
            });
        }
        for (parts, part) in results.iter_mut().zip(body(inputs)?) {
            parts.push(part);
        }
    }
    Ok(results.into_iter().map(Datum::Sequence).collect())
}
