//! Einsum: products of tensors summed over named axes; and Det and BitCast.
//!
//! <https://onnx.ai/onnx/operators/onnx__Einsum.html>, <https://onnx.ai/onnx/operators/onnx__Det.html>,
//! <https://onnx.ai/onnx/operators/onnx__BitCast.html>

use std::collections::BTreeMap;

use optix_ir::{DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::conv::MOST_STEPS;
use crate::movement::{places, product, strides};
use crate::numbers::{Numbers, float_tensor};

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("Einsum", 12, einsum),
    KernelSpec::onnx("Det", 11, determinant),
    KernelSpec::onnx("BitCast", 26, bit_cast),
];

/// The name of an axis: a letter, or a place in the dots counted from the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Dots(usize),
    Letter(u8),
}

/// A side of the equation: letters and at most one `...`, which is `None`.
fn term(call: &Call<'_>, text: &str) -> Result<Vec<Option<u8>>, OpError> {
    let text: String = text.chars().filter(|character| *character != ' ').collect();
    let (mut rest, mut labels) = (text.as_str(), Vec::new());
    while let Some(first) = rest.bytes().next() {
        if let Some(behind) = rest.strip_prefix("...") {
            if labels.contains(&None) {
                return Err(call.invalid(format!("`{text}` has more than one ellipsis")));
            }
            labels.push(None);
            rest = behind;
        } else if first.is_ascii_alphabetic() {
            labels.push(Some(first));
            rest = &rest[1..];
        } else {
            return Err(call.invalid(format!("`{text}` is no list of letters")));
        }
    }
    Ok(labels)
}

/// A tensor with named axes.
struct Operand<T> {
    labels: Vec<Label>,
    shape: Vec<usize>,
    values: Vec<T>,
}

impl<T> Operand<T> {
    /// How far apart elements along an axis of that name are; repeated names are walked together.
    fn stride(&self, label: Label) -> isize {
        let each = self.labels.iter().zip(&self.shape).zip(strides(&self.shape));
        // An axis of one element is broadcast.
        each.filter(|((own, size), _)| **own == label && **size != 1).map(|(_, stride)| stride as isize).sum()
    }

    /// The size of an axis; 1 of one that is not there.
    fn size(&self, label: Label) -> usize {
        self.labels.iter().position(|&own| own == label).map_or(1, |axis| self.shape[axis])
    }
}

/// Sum and product of an element type.
type Arithmetic<T> = (fn(T, T) -> T, fn(T, T) -> T);

/// Multiplies one or two tensors and sums over all axes that are not kept.
fn contract<T: Copy + Default>(
    call: &Call<'_>,
    (a, b): (&Operand<T>, Option<&Operand<T>>),
    kept: &[Label],
    (plus, times): Arithmetic<T>,
) -> Result<Operand<T>, OpError> {
    let all = a.labels.iter().chain(b.iter().flat_map(|b| &b.labels));
    let mut summed: Vec<Label> = all.filter(|label| !kept.contains(label)).copied().collect();
    summed.sort_unstable();
    summed.dedup();
    let size = |&label: &Label| match (a.size(label), b.map_or(1, |b| b.size(label))) {
        (1, other) => other,
        (size, _) => size,
    };
    let shape_of = |labels: &[Label]| labels.iter().map(size).collect::<Vec<usize>>();
    let (shape, inner) = (shape_of(kept), shape_of(&summed));
    call.check_size(DType::F64, &shape)?;
    call.check_size(DType::F64, &inner)?;
    let work = (product(&shape) as u64).saturating_mul(product(&inner) as u64);
    if work > MOST_STEPS {
        return Err(call.unsupported(format!("a sum of {work} products")));
    }
    let steps = |operand: &Operand<T>, labels: &[Label]| -> Vec<isize> {
        labels.iter().map(|&label| operand.stride(label)).collect()
    };
    let values = if product(&shape) == 0 {
        Vec::new()
    } else if product(&inner) == 0 {
        vec![T::default(); product(&shape)]
    } else {
        let (outer_a, inner_a) = (steps(a, kept), steps(a, &summed));
        let inner_a: Vec<usize> = places(&inner, 0, &inner_a).collect();
        match b {
            None => places(&shape, 0, &outer_a)
                .map(|start| inner_a.iter().fold(T::default(), |sum, at| plus(sum, a.values[start + at])))
                .collect(),
            Some(b) => {
                let (outer_b, inner_b) = (steps(b, kept), steps(b, &summed));
                let pairs: Vec<(usize, usize)> =
                    inner_a.into_iter().zip(places(&inner, 0, &inner_b)).collect();
                let starts = places(&shape, 0, &outer_a).zip(places(&shape, 0, &outer_b));
                let sum = |(from_a, from_b): (usize, usize)| {
                    pairs.iter().fold(T::default(), |sum, &(at_a, at_b)| {
                        plus(sum, times(a.values[from_a + at_a], b.values[from_b + at_b]))
                    })
                };
                starts.map(sum).collect()
            }
        }
    };
    Ok(Operand { labels: kept.to_vec(), shape, values })
}

fn run<T: Copy + Default>(
    call: &Call<'_>,
    operands: Vec<Operand<T>>,
    output: &[Label],
    arithmetic: Arithmetic<T>,
) -> Result<Operand<T>, OpError> {
    // What each operand alone is summed over goes first, then two and two are multiplied.
    let wanted = |labels: Vec<Label>, later: &[Operand<T>]| -> Vec<Label> {
        let mut kept: Vec<Label> = Vec::new();
        for label in labels {
            let needed = output.contains(&label) || later.iter().any(|other| other.labels.contains(&label));
            if needed && !kept.contains(&label) {
                kept.push(label);
            }
        }
        kept
    };
    let mut result: Option<Operand<T>> = None;
    let mut rest = operands;
    while !rest.is_empty() {
        let next = rest.remove(0);
        let before: Vec<Label> = result.iter().flat_map(|operand| operand.labels.clone()).collect();
        let mut alone = wanted(next.labels.clone(), &rest);
        alone.extend(next.labels.iter().filter(|label| before.contains(label)));
        alone.sort_unstable();
        alone.dedup();
        let next = contract(call, (&next, None), &alone, arithmetic)?;
        result = Some(match result {
            None => next,
            Some(first) => {
                let kept = wanted([first.labels.clone(), next.labels.clone()].concat(), &rest);
                contract(call, (&first, Some(&next)), &kept, arithmetic)?
            }
        });
    }
    let result = result.ok_or_else(|| call.invalid("it has no inputs"))?;
    contract(call, (&result, None), output, arithmetic)
}

fn einsum(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let equation = call.node.string("equation").ok_or_else(|| call.invalid("`equation` is missing"))?;
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation, None),
    };
    let terms: Vec<Vec<Option<u8>>> =
        left.split(',').map(|text| term(call, text)).collect::<Result<_, _>>()?;
    if terms.len() != call.inputs.len() {
        return Err(call.invalid(format!("`{equation}` is for {} inputs", terms.len())));
    }
    let (mut sizes, mut most_dots) = (BTreeMap::<Label, usize>::new(), 0);
    let mut layouts: Vec<(Vec<Label>, Vec<usize>)> = Vec::new();
    for (slot, term) in terms.iter().enumerate() {
        let shape = call.input(slot)?.shape();
        let letters = term.iter().flatten().count();
        let has_dots = letters != term.len();
        let dots = shape.len().checked_sub(letters).filter(|&dots| dots == 0 || has_dots);
        let dots = dots.ok_or_else(|| {
            call.invalid(format!("`{equation}`: input {slot} has {} dimensions", shape.len()))
        })?;
        most_dots = most_dots.max(dots);
        let labels: Vec<Label> = term
            .iter()
            .flat_map(|part| match part {
                Some(letter) => vec![Label::Letter(*letter)],
                None => (0..dots).rev().map(Label::Dots).collect(),
            })
            .collect();
        for (axis, (&label, &size)) in labels.iter().zip(shape).enumerate() {
            if labels[..axis].iter().zip(shape).any(|(&other, &own)| other == label && own != size) {
                return Err(call.invalid(format!("`{equation}`: a diagonal of unequal sizes {shape:?}")));
            }
            let known = sizes.entry(label).or_insert(size);
            if *known == 1 {
                *known = size;
            } else if size != 1 && *known != size {
                return Err(call.invalid(format!("`{equation}`: sizes {known} and {size} do not fit")));
            }
        }
        layouts.push((labels, shape.to_vec()));
    }
    let all_dots = (0..most_dots).rev().map(Label::Dots);
    let output: Vec<Label> = match right {
        Some(right) => {
            let term = term(call, right)?;
            if most_dots > 0 && !term.contains(&None) {
                return Err(call.unsupported("a sum over the dimensions of an ellipsis"));
            }
            let labels = |part: &Option<u8>| match part {
                Some(letter) => vec![Label::Letter(*letter)],
                None => all_dots.clone().collect(),
            };
            term.iter().flat_map(labels).collect()
        }
        None => {
            let letters: Vec<u8> = terms.iter().flatten().flatten().copied().collect();
            let mut once: Vec<u8> = letters.clone();
            once.retain(|letter| letters.iter().filter(|other| *other == letter).count() == 1);
            once.sort_unstable();
            all_dots.chain(once.into_iter().map(Label::Letter)).collect()
        }
    };
    for (index, label) in output.iter().enumerate() {
        if !sizes.contains_key(label) || output[..index].contains(label) {
            return Err(call.invalid(format!("`{equation}`: an axis of the output is unknown or repeated")));
        }
    }
    let dtype = call.input(0)?.dtype();
    let (mut floats, mut whole) = (Vec::new(), Vec::new());
    for (slot, (labels, shape)) in layouts.into_iter().enumerate() {
        let tensor = call.input(slot)?;
        if tensor.dtype() != dtype || dtype == DType::Bool {
            return Err(call.wrong_type(slot, tensor.dtype()));
        }
        match Numbers::of(call, tensor)? {
            Numbers::Floats(values) => floats.push(Operand { labels, shape, values }),
            Numbers::Integers(values) => whole.push(Operand { labels, shape, values }),
        }
    }
    let result = if whole.is_empty() {
        let result = run(call, floats, &output, (|a, b| a + b, |a, b| a * b))?;
        (result.shape, Numbers::Floats(result.values))
    } else {
        let result = run(call, whole, &output, (i64::wrapping_add, i64::wrapping_mul))?;
        (result.shape, Numbers::Integers(result.values))
    };
    Ok(vec![result.1.tensor(call, dtype, result.0)?])
}

/// Gaussian elimination with the greatest pivot of each column.
fn determinant_of(mut matrix: Vec<f64>, size: usize) -> f64 {
    let mut result = 1.0;
    for column in 0..size {
        let greatest = (column..size)
            .max_by(|&a, &b| matrix[a * size + column].abs().total_cmp(&matrix[b * size + column].abs()));
        let pivot = greatest.unwrap_or(column);
        if pivot != column {
            for at in 0..size {
                matrix.swap(pivot * size + at, column * size + at);
            }
            result = -result;
        }
        let head = matrix[column * size + column];
        if head == 0.0 {
            return 0.0;
        }
        result *= head;
        for row in column + 1..size {
            let factor = matrix[row * size + column] / head;
            for at in column..size {
                matrix[row * size + at] -= factor * matrix[column * size + at];
            }
        }
    }
    result
}

fn determinant(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let [batch @ .., rows, columns] = x.shape() else {
        return Err(call.invalid(format!("shape {:?} is not that of matrices", x.shape())));
    };
    if rows != columns {
        return Err(call.invalid(format!("a matrix of {rows} by {columns} has no determinant")));
    }
    call.check_size(DType::F64, batch)?;
    let Numbers::Floats(values) = Numbers::of(call, x)? else { return Err(call.wrong_type(0, x.dtype())) };
    let result: Vec<f64> = match rows {
        // Of no rows the determinant is the empty product.
        0 => vec![1.0; product(batch)],
        _ => values.chunks(rows * columns).map(|matrix| determinant_of(matrix.to_vec(), *rows)).collect(),
    };
    Ok(vec![float_tensor(call, x.dtype(), batch.to_vec(), &result)?])
}

fn bit_cast(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let to = call.node.int("to").and_then(|code| DType::from_onnx(i32::try_from(code).ok()?));
    let to = to.ok_or_else(|| call.invalid("`to` names no type"))?;
    Ok(vec![call.input(0)?.bitcast(to).map_err(|error| call.tensor_error(error))?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    fn run(equation: &str, inputs: &[&Tensor]) -> Result<Tensor, OpError> {
        let node = Node::new("Einsum", []).with("equation", equation);
        let inputs: Vec<Option<&Tensor>> = inputs.iter().copied().map(Some).collect();
        einsum(&Call::new(&node, 12, &inputs)).map(|mut outputs| outputs.remove(0))
    }

    #[test]
    fn equations_of_every_form() {
        let a = Tensor::from_vec(vec![2, 2], vec![1i32, 2, 3, 4]);
        let b = Tensor::from_vec(vec![2, 2], vec![5i32, 6, 7, 8]);
        for (equation, shape, expected) in [
            ("ij,jj->i", vec![2], vec![21, 47]),
            ("ij,jk", vec![2, 2], vec![19, 22, 43, 50]),
            ("ba,bc", vec![2, 2], vec![26, 30, 38, 44]),
            ("...,...->...", vec![2, 2], vec![5, 12, 21, 32]),
            ("ii,jj->", vec![], vec![65]),
            (" i j , j k -> k i ", vec![2, 2], vec![19, 43, 22, 50]),
        ] {
            let result = run(equation, &[&a, &b]).unwrap();
            assert_eq!((result.shape(), result.to_i64s().unwrap()), (&shape[..], expected), "{equation}");
        }
        let row = Tensor::from_vec(vec![1, 2], vec![10i32, 100]);
        assert_eq!(run("ij,ij->ij", &[&a, &row]).unwrap().to_i64s().unwrap(), [10, 200, 30, 400]);
    }

    #[test]
    fn equations_that_make_no_sense_are_refused() {
        let a = Tensor::from_vec(vec![2, 2], vec![1f32, 2.0, 3.0, 4.0]);
        for equation in
            ["", "i", "ijk", "i1", "ij,jk", "ij->k", "ij->ii", "i..j", "......", "...ij->ij->i", "é"]
        {
            assert!(run(equation, &[&a]).is_err(), "{equation}");
        }
        let long = Tensor::from_vec(vec![1 << 12], vec![1f32; 1 << 12]);
        let five = [&long, &long, &long, &long, &long];
        assert!(matches!(run("a,b,c,d,e->abcde", &five), Err(OpError::TooLarge { .. })));
    }

    #[test]
    fn determinants() {
        let node = Node::new("Det", []);
        let run = |shape: &[usize], values: &[f32]| {
            let x = Tensor::from_vec(shape.to_vec(), values.to_vec());
            determinant(&Call::new(&node, 11, &[Some(&x)])).unwrap()[0].to_f64s().unwrap()
        };
        assert_eq!(run(&[3, 3], &[0.0, 2.0, 1.0, 3.0, 0.0, 0.0, 1.0, 1.0, 5.0]), [-27.0]);
        assert_eq!(run(&[2, 0, 0], &[]), [1.0, 1.0]);
        assert_eq!(run(&[2, 2], &[1.0, 2.0, 2.0, 4.0]), [0.0]);
    }
}
