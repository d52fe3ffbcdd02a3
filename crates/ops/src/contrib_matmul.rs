//! onnxruntime's own products and convolutions (domain `com.microsoft`): weights of few bits, integer
//! products with a real result, and products with something fused to them.

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::decoder::count;
use crate::movement::{broadcast, integers, product};
use crate::normalization::floats;
use crate::numbers::{float_tensor, integer_tensor};
use crate::recurrent::{expect, sigmoid};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::contrib("MatMulNBits", mat_mul_n_bits),
    KernelSpec::contrib("DynamicQuantizeMatMul", dynamic_quantize),
    KernelSpec::contrib("MatMulIntegerToFloat", integer_to_float),
    KernelSpec::contrib("FusedMatMul", fused_mat_mul),
    KernelSpec::contrib("FusedGemm", fused_gemm),
    KernelSpec::contrib("FusedConv", fused_conv),
    KernelSpec::contrib("QGemm", q_gemm),
];

/// The number at `index` of a row of numbers of `bits` bits, the first in the lowest bits.
fn unpack(row: &[u8], index: usize, bits: usize) -> f64 {
    let bit = index * bits;
    f64::from(row[bit / 8] >> (bit % 8) & (0xff_u8 >> (8 - bits)))
}

/// `A B^T + bias` where each row of B is cut into blocks of packed numbers with a scale and a zero point
/// each. `accuracy_level` allows less than is done here.
fn mat_mul_n_bits(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let needed =
        |name: &str| count(call, name)?.ok_or_else(|| call.invalid(format!("`{name}` is not positive")));
    let (depth, columns, block) = (needed("K")?, needed("N")?, needed("block_size")?);
    let bits = match call.node.int("bits").unwrap_or(4) {
        bits @ (2 | 4 | 8) => bits as usize,
        other => return Err(call.unsupported(format!("weights of {other} bits"))),
    };
    if call.node.int("weight_prepacked").unwrap_or(0) != 0 {
        return Err(call.unsupported("weights packed for a device"));
    }
    if !block.is_power_of_two() || !(16..=1 << 20).contains(&block) {
        return Err(call.invalid(format!("`block_size` is {block}")));
    }
    let (blocks, bytes) = (depth.div_ceil(block), block * bits / 8);
    let length = |slot: usize, row: usize| match call.input(slot)?.len() {
        found if columns.checked_mul(row) == Some(found) => Ok(()),
        found => Err(call.invalid(format!("input {slot} has {found} elements, not {columns} x {row}"))),
    };
    length(1, blocks.saturating_mul(bytes))?;
    length(2, blocks)?;
    let (Ok(codes), scales) = (b.to_slice::<u8>(), floats(call, 2)?) else {
        return Err(call.wrong_type(1, b.dtype()));
    };
    let zeros: Vec<f64> = match call.optional(3) {
        None => vec![f64::from(1u16 << (bits - 1)); columns * blocks],
        Some(zeros) if zeros.dtype() == DType::U8 => {
            let row_bytes = (blocks * bits).div_ceil(8);
            length(3, row_bytes)?;
            let packed = zeros.bytes();
            let zero = |index: usize| unpack(&packed[index / blocks * row_bytes..], index % blocks, bits);
            (0..columns * blocks).map(zero).collect()
        }
        Some(_) => {
            length(3, blocks)?;
            floats(call, 3)?
        }
    };
    let groups: Vec<usize> = match call.optional(4) {
        // Deprecated; onnxruntime's kernels disagree on what it means for zero points.
        Some(_) if call.optional(3).is_some() => {
            return Err(call.unsupported("an order of groups with zero points"));
        }
        Some(_) => {
            expect(call, 4, &[depth])?;
            integers(call, 4)?
                .into_iter()
                .map(|group| crate::movement::index(call, group, blocks))
                .collect::<Result<_, _>>()?
        }
        None => (0..depth).map(|at| at / block).collect(),
    };
    let bias = match call.optional(5) {
        Some(_) => {
            expect(call, 5, &[columns])?;
            floats(call, 5)?
        }
        None => vec![0.0; columns],
    };
    let Some((&last, rows)) = a.shape().split_last().filter(|&(&last, _)| last == depth) else {
        return Err(call.invalid(format!("shape {:?} for K = {depth}", a.shape())));
    };
    let shape = [rows, &[columns]].concat();
    call.check_size(DType::F64, &shape)?;
    let values = floats(call, 0)?;
    let mut out = vec![0.0; product(&shape)];
    for column in 0..columns {
        let packed = &codes[column * blocks * bytes..(column + 1) * blocks * bytes];
        let weight = |(at, &group): (usize, &usize)| {
            let block = column * blocks + group;
            (unpack(packed, at, bits) - zeros[block]) * scales[block]
        };
        let weights: Vec<f64> = groups.iter().enumerate().map(weight).collect();
        for (row, values) in values.chunks(last).enumerate() {
            let sum: f64 = values.iter().zip(&weights).map(|(a, b)| a * b).sum();
            out[row * columns + column] = sum + bias[column];
        }
    }
    Ok(vec![float_tensor(call, a.dtype(), shape, &out)?])
}

/// The only number of an input.
pub(crate) fn single(call: &Call<'_>, slot: usize) -> Result<f64, OpError> {
    let tensor = call.input(slot)?;
    tensor.single().ok_or_else(|| {
        call.unsupported(format!("input {slot} of shape {:?}: more than one number", tensor.shape()))
    })
}

/// Integers of an input minus their zero points, of which there is one or one a column.
fn shifted(call: &Call<'_>, slot: usize, zero_slot: usize) -> Result<Vec<f64>, OpError> {
    let tensor = call.input(slot)?;
    if !tensor.dtype().is_integer() {
        return Err(call.wrong_type(slot, tensor.dtype()));
    }
    let values = tensor.to_f64s().map_err(|error| call.tensor_error(error))?;
    match call.optional(zero_slot) {
        None => Ok(values),
        Some(zero) => {
            let zeros = per_column(call, zero_slot, zero, tensor.shape())?;
            Ok(values.iter().zip(zeros).map(|(value, zero)| value - zero).collect())
        }
    }
}

/// One number, or one for each of the last axis, spread to a shape.
fn per_column(call: &Call<'_>, slot: usize, tensor: &Tensor, to: &[usize]) -> Result<Vec<f64>, OpError> {
    let values = tensor.to_f64s().map_err(|error| call.tensor_error(error))?;
    if let [only] = values[..] {
        return Ok(vec![only; product(to)]);
    }
    match tensor.rank() {
        1 => broadcast(call, &values, tensor.shape(), to),
        _ => Err(call.unsupported(format!("input {slot} of shape {:?}", tensor.shape()))),
    }
}

/// Scales the sums of an integer product and adds a bias.
fn scaled(
    call: &Call<'_>,
    (mut sums, shape): (Vec<f64>, Vec<usize>),
    factor: f64,
    [scale_slot, bias_slot]: [usize; 2],
) -> Result<Vec<Tensor>, OpError> {
    let scales = per_column(call, scale_slot, call.input(scale_slot)?, &shape)?;
    sums.iter_mut().zip(scales).for_each(|(sum, scale)| *sum *= factor * scale);
    if let Some(bias) = call.optional(bias_slot) {
        let bias = per_column(call, bias_slot, bias, &shape)?;
        sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
    }
    Ok(vec![float_tensor(call, call.input(scale_slot)?.dtype(), shape, &sums)?])
}

/// The left operand is quantized to uint8 on the fly, as `DynamicQuantizeLinear` does.
fn dynamic_quantize(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let quantized = crate::quantize::dynamic(call)?;
    let number = |index: usize| quantized[index].to_f64s().map_err(|error| call.tensor_error(error));
    let (codes, scale, zero) = (number(0)?, number(1)?[0], number(2)?[0]);
    let left: Vec<f64> = codes.iter().map(|code| code - zero).collect();
    let right = shifted(call, 1, 3)?;
    let product = crate::matmul::float_product(call, (&left, a.shape()), (&right, b.shape()))?;
    scaled(call, product, scale, [2, 4])
}

fn integer_to_float(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if call.optional(4).is_some() {
        single(call, 4)?;
    }
    let (left, right) = (shifted(call, 0, 4)?, shifted(call, 1, 5)?);
    let product = crate::matmul::float_product(call, (&left, a.shape()), (&right, b.shape()))?;
    scaled(call, product, single(call, 2)?, [3, 6])
}

/// The matrices of a stack, transposed when `turn`.
fn turned(call: &Call<'_>, slot: usize, turn: bool) -> Result<(Vec<f64>, Vec<usize>), OpError> {
    let (values, mut shape) = (floats(call, slot)?, call.input(slot)?.shape().to_vec());
    if !turn {
        return Ok((values, shape));
    }
    let &[.., rows, columns] = shape.as_slice() else {
        return Err(call.unsupported("a vector to transpose"));
    };
    let rank = shape.len();
    shape.swap(rank - 2, rank - 1);
    let size = rows.saturating_mul(columns).max(1);
    let turned = values.chunks(size).flat_map(|matrix| crate::matmul::transpose(matrix, rows, columns));
    Ok((turned.collect(), shape))
}

fn fused_mat_mul(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let flag = |name: &str| call.node.int(name).unwrap_or(0) != 0;
    if flag("transBatchA") || flag("transBatchB") {
        return Err(call.unsupported("a transposed batch"));
    }
    let (a, b) = (turned(call, 0, flag("transA"))?, turned(call, 1, flag("transB"))?);
    let (mut values, shape) = crate::matmul::float_product(call, (&a.0, &a.1), (&b.0, &b.1))?;
    let alpha = f64::from(call.node.float("alpha").unwrap_or(1.0));
    values.iter_mut().for_each(|value| *value *= alpha);
    Ok(vec![float_tensor(call, call.input(0)?.dtype(), shape, &values)?])
}

/// The activation function a node names, with its parameters.
fn activation(
    call: &Call<'_>,
    name: &str,
    [first, second]: [Option<f32>; 2],
) -> Result<impl Fn(f64) -> f64 + use<>, OpError> {
    let needed = |value: Option<f32>| {
        value.map(f64::from).ok_or_else(|| call.invalid(format!("a parameter of `{name}` is missing")))
    };
    let function: fn(f64, f64, f64) -> f64 = match name {
        "" => |x, _, _| x,
        "Relu" => |x, _, _| x.max(0.0),
        "Tanh" => |x, _, _| x.tanh(),
        "Sigmoid" => |x, _, _| sigmoid(x),
        "LeakyRelu" => |x, alpha, _| if x >= 0.0 { x } else { alpha * x },
        "Clip" => |x, low, high| x.max(low).min(high),
        "HardSigmoid" => |x, alpha, beta| (alpha * x + beta).clamp(0.0, 1.0),
        other => return Err(call.unsupported(format!("activation `{other}`"))),
    };
    let two = matches!(name, "Clip" | "HardSigmoid");
    let first = if two || name == "LeakyRelu" { needed(first)? } else { 0.0 };
    let second = if two { needed(second)? } else { 0.0 };
    Ok(move |x| function(x, first, second))
}

/// Applies a function to what a kernel computed, after adding an input of the same shape.
fn followed(
    call: &Call<'_>,
    result: &Tensor,
    addend: Option<usize>,
    function: impl Fn(f64) -> f64,
) -> Result<Vec<Tensor>, OpError> {
    let mut values = result.to_f64s().map_err(|error| call.tensor_error(error))?;
    if let Some(slot) = addend {
        expect(call, slot, result.shape())?;
        values.iter_mut().zip(floats(call, slot)?).for_each(|(value, addend)| *value += addend);
    }
    values.iter_mut().for_each(|value| *value = function(*value));
    Ok(vec![float_tensor(call, result.dtype(), result.shape().to_vec(), &values)?])
}

fn fused_gemm(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let parameters = ["activation_alpha", "activation_beta"].map(|name| call.node.float(name));
    let function = activation(call, call.node.string("activation").unwrap_or(""), parameters)?;
    followed(call, &crate::matmul::gemm(call)?[0], None, function)
}

fn fused_conv(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let given = call.node.floats("activation_params").unwrap_or(&[]);
    let parameters = [given.first().copied(), given.get(1).copied()];
    let function = activation(call, call.node.string("activation").unwrap_or(""), parameters)?;
    let inputs = &call.inputs[..call.inputs.len().min(3)];
    let result = crate::conv::conv(&Call { inputs, ..*call })?;
    followed(call, &result[0], call.optional(3).map(|_| 3), function)
}

/// A product of quantized matrices; the addend is in the unit of the product. Without a scale of the
/// result the result is real.
fn q_gemm(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let flag = |name: &str| call.node.int(name).unwrap_or(0) != 0;
    let mut operands = Vec::new();
    for (slot, name) in [(0, "transA"), (3, "transB")] {
        let &[rows, columns] = call.input(slot)?.shape() else {
            return Err(call.invalid(format!("input {slot} is no matrix")));
        };
        let zero = call.optional(slot + 2);
        if slot == 0 && zero.is_some_and(|zero| zero.len() > 1) {
            return Err(call.unsupported("more than one zero point"));
        }
        let tensor = call.input(slot)?;
        if !tensor.dtype().is_integer() {
            return Err(call.wrong_type(slot, tensor.dtype()));
        }
        let mut values = tensor.to_f64s().map_err(|error| call.tensor_error(error))?;
        let mut shape = vec![rows, columns];
        if flag(name) {
            values = crate::matmul::transpose(&values, rows, columns);
            shape = vec![columns, rows];
        }
        // Zero points go by outputs: columns once the matrix is turned.
        if let Some(zero) = zero {
            let zeros = per_column(call, slot + 2, zero, &shape)?;
            values.iter_mut().zip(zeros).for_each(|(value, zero)| *value -= zero);
        }
        operands.push((values, shape));
    }
    let [(a, a_shape), (b, b_shape)] = &operands[..] else { unreachable!("two operands") };
    let (mut sums, shape) = crate::matmul::float_product(call, (a, a_shape), (b, b_shape))?;
    if let Some(addend) = call.optional(6) {
        let addends = addend.to_f64s().map_err(|error| call.tensor_error(error))?;
        let addends = broadcast(call, &addends, addend.shape(), &shape)?;
        sums.iter_mut().zip(addends).for_each(|(sum, addend)| *sum += addend);
    }
    let alpha = f64::from(call.node.float("alpha").unwrap_or(1.0));
    let factor = alpha * single(call, 1)?;
    let scales = per_column(call, 4, call.input(4)?, &shape)?;
    let reals: Vec<f64> = sums.iter().zip(scales).map(|(sum, scale)| sum * factor * scale).collect();
    if call.optional(7).is_none() {
        return Ok(vec![float_tensor(call, DType::F32, shape, &reals)?]);
    }
    let dtype = call.optional(8).map_or(call.input(0)?.dtype(), Tensor::dtype);
    quantized(call, &reals, shape, [7, 8], dtype)
}

/// Quantizes results by the scale and the zero point in two slots.
pub(crate) fn quantized(
    call: &Call<'_>,
    reals: &[f64],
    shape: Vec<usize>,
    [scale_slot, zero_slot]: [usize; 2],
    dtype: DType,
) -> Result<Vec<Tensor>, OpError> {
    let scale = single(call, scale_slot)?;
    let zero = if call.optional(zero_slot).is_some() { single(call, zero_slot)? } else { 0.0 };
    let Some((low, high)) = dtype.integer_range() else { return Err(call.wrong_type(zero_slot, dtype)) };
    let code = |&real: &f64| ((real / scale).round_ties_even() + zero).clamp(low as f64, high as f64) as i64;
    Ok(vec![integer_tensor(call, dtype, shape, &reals.iter().map(code).collect::<Vec<_>>())?])
}
