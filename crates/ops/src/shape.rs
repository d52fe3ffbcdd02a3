//! Shapes, and tensors made from nothing but a shape or a few numbers: Shape, Size, Reshape, Flatten,
//! Squeeze, Unsqueeze, Constant, ConstantOfShape, Range, EyeLike.

use optix_ir::{AttributeValue, DType, StoredSparse, Tensor, element_count};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{self, Run, assemble, integers_or_attribute, product, sizes, strided};
use crate::numbers::{Numbers, float_tensor, integer_tensor, whole_tensor};

/// The kernels of this file.
pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Constant", 1, constant),
    KernelSpec::onnx("ConstantOfShape", 9, constant_of_shape),
    KernelSpec::onnx("EyeLike", 9, eye_like),
    KernelSpec::onnx("Flatten", 1, flatten),
    KernelSpec::onnx("Range", 11, range),
    KernelSpec::onnx("Reshape", 1, reshape),
    KernelSpec::onnx("Shape", 1, shape),
    KernelSpec::onnx("Size", 1, size),
    KernelSpec::onnx("Squeeze", 1, squeeze),
    KernelSpec::onnx("Unsqueeze", 1, unsqueeze),
];

type Outputs = Result<Vec<Tensor>, OpError>;

fn shape(call: &Call<'_>) -> Outputs {
    let shape = call.input(0)?.shape();
    let bound = |value: i64| {
        let from_end = if value < 0 { value.saturating_add_unsigned(shape.len() as u64) } else { value };
        from_end.clamp(0, shape.len() as i64) as usize
    };
    let start = bound(call.node.int("start").unwrap_or(0));
    let end = bound(call.node.int("end").unwrap_or(i64::MAX));
    let sizes: Vec<i64> = shape.get(start..end).unwrap_or(&[]).iter().map(|&size| size as i64).collect();
    Ok(vec![Tensor::from_i64s(&sizes)])
}

fn size(call: &Call<'_>) -> Outputs {
    Ok(vec![Tensor::scalar(call.input(0)?.len() as i64)])
}

fn reshaped(call: &Call<'_>, tensor: &Tensor, shape: Vec<usize>) -> Outputs {
    if element_count(&shape) != Some(tensor.len()) {
        return Err(call.invalid(format!("{:?} cannot take the shape {shape:?}", tensor.shape())));
    }
    tensor.reshaped(shape).map(|tensor| vec![tensor]).map_err(|error| call.tensor_error(error))
}

fn reshape(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let wanted = integers_or_attribute(call, 1, "shape")?.ok_or_else(|| call.invalid("no shape is given"))?;
    let keep_zero = call.node.int("allowzero").unwrap_or(0) != 0;
    let mut shape = Vec::with_capacity(wanted.len());
    let mut inferred = None;
    for (axis, &size) in wanted.iter().enumerate() {
        shape.push(match size {
            0 if !keep_zero => *data.shape().get(axis).ok_or_else(|| {
                call.invalid(format!("size 0 at axis {axis} copies an axis that the input does not have"))
            })?,
            -1 if inferred.is_some() => return Err(call.invalid("more than one size is -1")),
            -1 => {
                inferred = Some(axis);
                1
            }
            size => usize::try_from(size).map_err(|_| call.invalid(format!("{size} is no size")))?,
        });
    }
    if let Some(axis) = inferred {
        let rest = product(&shape);
        if rest == 0 || data.len() % rest != 0 {
            let what = format!("{:?} cannot take the shape {wanted:?}: no size fits for -1", data.shape());
            return Err(call.invalid(what));
        }
        shape[axis] = data.len() / rest;
    }
    reshaped(call, data, shape)
}

fn flatten(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let rank = data.rank() as i64;
    let axis = call.node.int("axis").unwrap_or(1);
    let positive = if axis < 0 { axis.saturating_add(rank) } else { axis };
    if !(0..=rank).contains(&positive) {
        return Err(call.invalid(format!("axis {axis} is outside a tensor of rank {rank}")));
    }
    let (outer, inner) = data.shape().split_at(positive as usize);
    reshaped(call, data, vec![product(outer), product(inner)])
}

fn squeeze(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let mut gone = vec![false; data.rank()];
    match integers_or_attribute(call, 1, "axes")? {
        Some(axes) => {
            for axis in axes {
                let axis = call.axis(axis, data.rank())?;
                if data.shape()[axis] != 1 {
                    let what = format!("axis {axis} of {:?} is not 1 and cannot be removed", data.shape());
                    return Err(call.invalid(what));
                }
                gone[axis] = true;
            }
        }
        None => data.shape().iter().zip(&mut gone).for_each(|(&size, gone)| *gone = size == 1),
    }
    let left = data.shape().iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(&size, _)| size);
    reshaped(call, data, left.collect())
}

fn unsqueeze(call: &Call<'_>) -> Outputs {
    let data = call.input(0)?;
    let axes = integers_or_attribute(call, 1, "axes")?.ok_or_else(|| call.invalid("no axes are given"))?;
    let rank = data.rank() + axes.len();
    let mut added = vec![false; rank];
    for axis in axes {
        let axis = call.axis(axis, rank)?;
        if std::mem::replace(&mut added[axis], true) {
            return Err(call.invalid(format!("axis {axis} is given twice")));
        }
    }
    let mut sizes = data.shape().iter();
    let size = |&added: &bool| if added { 1 } else { *sizes.next().expect("as many as are not added") };
    let shape = added.iter().map(size).collect();
    reshaped(call, data, shape)
}

fn constant(call: &Call<'_>) -> Outputs {
    let forms = [
        "value",
        "value_float",
        "value_floats",
        "value_int",
        "value_ints",
        "value_string",
        "value_strings",
        "sparse_value",
    ];
    let found = forms.iter().find_map(|form| call.node.attribute(form));
    let tensor = match found {
        Some(AttributeValue::Tensor(stored)) => stored.tensor.clone(),
        Some(AttributeValue::Float(value)) => Tensor::scalar(*value),
        Some(AttributeValue::Floats(values)) => Tensor::from_vec(vec![values.len()], values.clone()),
        Some(AttributeValue::Int(value)) => Tensor::scalar(*value),
        Some(AttributeValue::Ints(values)) => Tensor::from_i64s(values),
        Some(AttributeValue::String(text)) => Tensor::from_strings(vec![], &[text]),
        Some(AttributeValue::Strings(texts)) => Tensor::from_strings(vec![texts.len()], texts),
        Some(AttributeValue::SparseTensor(sparse)) => dense(call, sparse)?,
        _ => return Err(call.invalid("it has no value")),
    };
    Ok(vec![tensor])
}

/// The dense form of a sparse tensor.
fn dense(call: &Call<'_>, sparse: &StoredSparse) -> Result<Tensor, OpError> {
    let (values, shape) = (&sparse.values.tensor, &sparse.shape);
    call.check_size(DType::U64, shape)?;
    let indices = sparse.indices.tensor.to_i64s().map_err(|error| call.tensor_error(error))?;
    let columns = if sparse.indices.tensor.rank() == 2 { shape.len() } else { 1 };
    if indices.len() != values.len().saturating_mul(columns) {
        return Err(call.invalid("a sparse tensor has not as many indices as values"));
    }
    let mut origin = vec![Run::one(1, 0); product(shape)];
    let strides = movement::strides(shape);
    for value in 0..values.len() {
        let place = if sparse.indices.tensor.rank() == 2 {
            let row = &indices[value * columns..][..columns];
            let mut place = 0;
            for ((&index, &size), stride) in row.iter().zip(shape).zip(&strides) {
                place += movement::index(call, index, size)? * stride;
            }
            place
        } else {
            movement::index(call, indices[value], origin.len())?
        };
        origin[place] = Run::one(0, value);
    }
    let zero = Tensor::zeros(values.dtype(), vec![]).map_err(|error| call.tensor_error(error))?;
    assemble(call, &[values, &zero], shape.clone(), origin)
}

fn constant_of_shape(call: &Call<'_>) -> Outputs {
    let shape = sizes(call, &movement::integers(call, 0)?)?;
    let value = call.node.tensor("value").cloned().unwrap_or_else(|| Tensor::scalar(0f32));
    if value.len() != 1 {
        return Err(call.invalid(format!("its value has {} elements instead of one", value.len())));
    }
    let strides = vec![0; shape.len()];
    Ok(vec![strided(call, &value, shape, 0, &strides)?])
}

fn range(call: &Call<'_>) -> Outputs {
    let dtype = call.input(0)?.dtype();
    let number = |slot: usize| {
        let tensor = call.input(slot)?;
        if tensor.len() != 1 || tensor.dtype() != dtype {
            return Err(call.invalid(format!("input {slot} must be one {dtype}")));
        }
        Numbers::of(call, tensor)
    };
    match (number(0)?, number(1)?, number(2)?) {
        (Numbers::Integers(start), Numbers::Integers(limit), Numbers::Integers(delta)) => {
            let (start, limit, delta) = (start[0] as i128, limit[0] as i128, delta[0] as i128);
            if delta == 0 {
                return Err(call.invalid("the step is 0"));
            }
            let span = if delta > 0 { limit - start } else { start - limit };
            let count = (span.max(0) + delta.abs() - 1) / delta.abs();
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            call.check_size(DType::I64, &[count])?;
            let values: Vec<i64> = (0..count).map(|step| (start + step as i128 * delta) as i64).collect();
            Ok(vec![integer_tensor(call, dtype, vec![count], &values)?])
        }
        (Numbers::Floats(start), Numbers::Floats(limit), Numbers::Floats(delta)) => {
            let count = ((limit[0] - start[0]) / delta[0]).ceil();
            if !count.is_finite() {
                let what = format!("from {} to {} by {} has no end", start[0], limit[0], delta[0]);
                return Err(call.invalid(what));
            }
            let count = count.max(0.0) as usize;
            call.check_size(DType::F64, &[count])?;
            let values: Vec<f64> = (0..count).map(|step| start[0] + step as f64 * delta[0]).collect();
            Ok(vec![float_tensor(call, dtype, vec![count], &values)?])
        }
        _ => Err(call.wrong_type(0, dtype)),
    }
}

fn eye_like(call: &Call<'_>) -> Outputs {
    let input = call.input(0)?;
    let &[rows, columns] = input.shape() else {
        return Err(call.invalid(format!("the input has shape {:?}; it must be a matrix", input.shape())));
    };
    let dtype = match call.node.int("dtype") {
        Some(code) => i32::try_from(code)
            .ok()
            .and_then(DType::from_onnx)
            .ok_or_else(|| call.invalid(format!("{code} is no element type")))?,
        None => input.dtype(),
    };
    let diagonal = call.node.int("k").unwrap_or(0);
    call.check_size(DType::I64, &[rows, columns])?;
    let mut values = vec![0i64; product(&[rows, columns])];
    for row in 0..rows {
        let column = diagonal.saturating_add(row as i64);
        if let Ok(column) = usize::try_from(column)
            && column < columns
        {
            values[row * columns + column] = 1;
        }
    }
    Ok(vec![whole_tensor(call, dtype, vec![rows, columns], &values)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(node: &Node, opset: i64, inputs: &[&Tensor]) -> Outputs {
        let inputs: Vec<Option<&Tensor>> = inputs.iter().map(|&tensor| Some(tensor)).collect();
        crate::evaluate_limited(node, opset, &inputs, 1 << 20)
    }

    #[test]
    fn old_versions_take_attributes() {
        let data = Tensor::from_vec([1, 6, 1], vec![0f32; 6]);
        let cases = [
            (Node::new("Reshape", []).with("shape", vec![2, -1]), vec![2, 3]),
            (Node::new("Squeeze", []).with("axes", vec![0]), vec![6, 1]),
            (Node::new("Squeeze", []), vec![6]),
            (Node::new("Unsqueeze", []).with("axes", vec![-1, 0]), vec![1, 1, 6, 1, 1]),
        ];
        for (node, shape) in cases {
            assert_eq!(run(&node, 1, &[&data]).unwrap()[0].shape(), shape, "{}", node.op_type);
        }
    }

    #[test]
    fn constants_of_every_form() {
        let strings = |texts: &[&'static str]| {
            AttributeValue::Strings(texts.iter().map(|text| text.as_bytes().into()).collect())
        };
        let sparse = AttributeValue::SparseTensor(Box::new(StoredSparse {
            values: Tensor::from_vec([2], vec![5u8, 6]).into(),
            indices: Tensor::from_vec([2, 2], vec![0i64, 1, 1, 0]).into(),
            shape: vec![2, 2],
            carry: Default::default(),
        }));
        let cases: Vec<(&str, AttributeValue, Tensor)> = vec![
            ("value", Tensor::scalar(1u8).into(), Tensor::scalar(1u8)),
            ("value_float", 1.5f32.into(), Tensor::scalar(1.5f32)),
            ("value_floats", vec![1.5f32].into(), Tensor::from_vec([1], vec![1.5f32])),
            ("value_int", 3i64.into(), Tensor::scalar(3i64)),
            ("value_ints", vec![3i64, 4].into(), Tensor::from_i64s(&[3, 4])),
            ("value_string", "a".into(), Tensor::from_strings([], &["a"])),
            ("value_strings", strings(&["a", "b"]), Tensor::from_strings([2], &["a", "b"])),
            ("sparse_value", sparse, Tensor::from_vec([2, 2], vec![0u8, 5, 6, 0])),
        ];
        for (name, value, expected) in cases {
            let node = Node::new("Constant", []).with(name, value);
            assert_eq!(run(&node, 13, &[]).unwrap(), [expected], "{name}");
        }
    }

    #[test]
    fn hostile_values_are_refused() {
        let x = Tensor::from_vec([2, 3], vec![0f32; 6]);
        let ints = |values: &[i64]| Tensor::from_i64s(values);
        let cases: Vec<(Node, Vec<Tensor>)> = vec![
            (Node::new("Reshape", []), vec![x.clone(), ints(&[4])]),
            (Node::new("Reshape", []), vec![x.clone(), ints(&[-1, -1])]),
            (Node::new("Reshape", []), vec![x.clone(), ints(&[-2, 3])]),
            (Node::new("Reshape", []), vec![x.clone(), ints(&[1 << 62, 1 << 62])]),
            (Node::new("Reshape", []), vec![x.clone(), ints(&[2, 3, 0])]),
            (Node::new("Reshape", []).with("allowzero", 1), vec![x.clone(), ints(&[0, -1])]),
            (Node::new("Flatten", []).with("axis", 3), vec![x.clone()]),
            (Node::new("Squeeze", []), vec![x.clone(), ints(&[0])]),
            (Node::new("Squeeze", []), vec![x.clone(), ints(&[i64::MIN])]),
            (Node::new("Unsqueeze", []), vec![x.clone(), ints(&[0, 0])]),
            (Node::new("ConstantOfShape", []), vec![ints(&[-1])]),
            (Node::new("ConstantOfShape", []), vec![ints(&[1 << 40, 1 << 40])]),
            (Node::new("ConstantOfShape", []), vec![ints(&[1 << 30])]),
            (Node::new("Range", []), [0i64, i64::MAX, 1].map(Tensor::scalar).into()),
            (Node::new("Range", []), [0i64, 1, 0].map(Tensor::scalar).into()),
            (Node::new("Range", []), [0f32, 1., 0.].map(Tensor::scalar).into()),
            (Node::new("Range", []), [0f32, f32::NAN, 1.].map(Tensor::scalar).into()),
            (Node::new("Constant", []), vec![]),
            (Node::new("EyeLike", []), vec![ints(&[1])]),
            (Node::new("Shape", []), vec![]),
        ];
        for (node, inputs) in cases {
            let inputs: Vec<&Tensor> = inputs.iter().collect();
            let error = run(&node, 18, &inputs).expect_err(&node.op_type);
            assert!(!matches!(error, OpError::NoKernel(_)), "{error}");
        }
    }
}
