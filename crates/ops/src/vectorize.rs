//! Features of classical machine learning: TfIdfVectorizer, and of `ai.onnx.ml` LabelEncoder,
//! OneHotEncoder, ArrayFeatureExtractor, Binarizer, Scaler and Normalizer.
//!
//! <https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html>,
//! <https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html> and its neighbours

use std::collections::HashMap;

use optix_ir::{AttributeValue, DType, Tensor};

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{Run, assemble, index, integers, product};
use crate::numbers::{Numbers, float_tensor, whole_tensor};
use crate::pooling::norm;

const DOMAIN: &str = "ai.onnx.ml";

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("TfIdfVectorizer", 9, tf_idf),
    KernelSpec::of(DOMAIN, "LabelEncoder", 2, label_encoder),
    KernelSpec::of(DOMAIN, "OneHotEncoder", 1, one_hot),
    KernelSpec::of(DOMAIN, "ArrayFeatureExtractor", 1, features),
    KernelSpec::of(DOMAIN, "Binarizer", 1, binarizer),
    KernelSpec::of(DOMAIN, "Scaler", 1, scaler),
    KernelSpec::of(DOMAIN, "Normalizer", 1, normalizer),
];

/// Most steps through a text: beyond it the numbers are hostile.
const MOST_STEPS: u64 = 1 << 36;

/// An element to look up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Whole(i64),
    /// Bits of a number; zero has one sign and NaN one form.
    Float(u64),
    Text(Vec<u8>),
}

fn float_key(value: f64) -> Key {
    Key::Float(if value.is_nan() { f64::NAN.to_bits() } else { (value + 0.0).to_bits() })
}

fn keys(call: &Call<'_>, tensor: &Tensor) -> Result<Vec<Key>, OpError> {
    if tensor.dtype() == DType::String {
        let strings = tensor.strings().map_err(|error| call.tensor_error(error))?;
        return Ok(strings.into_iter().map(|text| Key::Text(text.to_vec())).collect());
    }
    Ok(match Numbers::of(call, tensor)? {
        Numbers::Floats(values) => values.into_iter().map(float_key).collect(),
        Numbers::Integers(values) => values.into_iter().map(Key::Whole).collect(),
    })
}

fn texts<'a>(call: &Call<'a>, name: &str) -> Option<&'a [bytes::Bytes]> {
    match call.node.attribute(name) {
        Some(AttributeValue::Strings(texts)) => Some(texts),
        _ => None,
    }
}

/// A list that one of the attributes `name_floats`, `name_int64s`, `name_strings`, `name_tensor` holds.
fn list(call: &Call<'_>, name: &str) -> Result<Tensor, OpError> {
    let node = call.node;
    if let Some(tensor) = node.tensor(&format!("{name}_tensor")) {
        return tensor.reshaped(vec![tensor.len()]).map_err(|error| call.tensor_error(error));
    }
    if let Some(values) = node.floats(&format!("{name}_floats")) {
        return Ok(Tensor::from_vec(vec![values.len()], values.to_vec()));
    }
    if let Some(values) = node.ints(&format!("{name}_int64s")) {
        return Ok(Tensor::from_i64s(values));
    }
    let strings = texts(call, &format!("{name}_strings"));
    let strings = strings.ok_or_else(|| call.invalid(format!("`{name}_*` is missing")))?;
    Ok(Tensor::from_strings(vec![strings.len()], strings))
}

fn label_encoder(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let (labels, values) = (list(call, "keys")?, list(call, "values")?);
    if labels.len() != values.len() || labels.dtype() != x.dtype() {
        return Err(call.invalid(format!(
            "{} keys of {} and {} values for an input of {}",
            labels.len(),
            labels.dtype(),
            values.len(),
            x.dtype()
        )));
    }
    let default = match (call.node.tensor("default_tensor"), values.dtype()) {
        (Some(default), dtype) if default.dtype() == dtype && default.len() == 1 => default.clone(),
        (Some(_), _) => return Err(call.invalid("`default_tensor` is not one element of the values' type")),
        (None, DType::String) => {
            Tensor::from_strings(vec![1], &[call.node.string("default_string").unwrap_or("_Unused")])
        }
        (None, dtype) if dtype.is_integer() => {
            whole_tensor(call, dtype, vec![1], &[call.node.int("default_int64").unwrap_or(-1)])?
        }
        (None, dtype) => {
            let default = f64::from(call.node.float("default_float").unwrap_or(-0.0));
            float_tensor(call, dtype, vec![1], &[default])?
        }
    };
    // Of equal keys the last counts.
    let table: HashMap<Key, usize> =
        keys(call, &labels)?.into_iter().enumerate().map(|(at, key)| (key, at)).collect();
    let nan = float_key(f64::NAN);
    let wanted = keys(call, x)?;
    if call.opset < 4 && table.contains_key(&nan) && wanted.contains(&nan) {
        // Only since version 4 it is said that they are equal.
        return Err(call.unsupported("a key that is no number"));
    }
    let runs = wanted.into_iter().map(|key| match table.get(&key) {
        Some(&at) => Run::one(0, at),
        None => Run::one(1, 0),
    });
    Ok(vec![assemble(call, &[&values, &default], x.shape().to_vec(), runs)?])
}

fn one_hot(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let categories: Vec<Key> = match (call.node.ints("cats_int64s"), texts(call, "cats_strings")) {
        (Some(numbers), None) => numbers.iter().map(|&number| Key::Whole(number)).collect(),
        (None, Some(texts)) => texts.iter().map(|text| Key::Text(text.to_vec())).collect(),
        _ => return Err(call.invalid("it needs one of `cats_int64s` and `cats_strings`")),
    };
    let table: HashMap<&Key, usize> = categories.iter().enumerate().map(|(at, key)| (key, at)).collect();
    if table.len() != categories.len() {
        return Err(call.unsupported("repeated categories"));
    }
    let mut shape = x.shape().to_vec();
    shape.push(categories.len());
    call.check_size(DType::F32, &shape)?;
    let mut result = vec![0f32; product(&shape)];
    for (row, key) in keys(call, x)?.into_iter().enumerate() {
        let key = match key {
            // Numbers are cut to integers.
            Key::Float(bits) => Key::Whole(f64::from_bits(bits) as i64),
            key => key,
        };
        match table.get(&key) {
            Some(at) => result[row * categories.len() + at] = 1.0,
            None if call.node.int("zeros").unwrap_or(1) != 0 => {}
            None => return Err(call.invalid(format!("element {row} is of no category"))),
        }
    }
    Ok(vec![Tensor::from_vec(shape, result)])
}

/// Picks elements of the last axis; a vector counts as a matrix of one row.
fn features(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let Some((&size, outer)) = x.shape().split_last() else {
        return Err(call.invalid("a single number has no features"));
    };
    let places = integers(call, 1)?;
    let places: Vec<usize> = places.iter().map(|&at| index(call, at, size)).collect::<Result<_, _>>()?;
    let mut shape = if outer.is_empty() { vec![1] } else { outer.to_vec() };
    shape.push(places.len());
    let rows = if places.is_empty() { 0 } else { product(outer) };
    let runs = (0..rows).flat_map(|row| places.iter().map(move |at| Run::one(0, row * size + at)));
    Ok(vec![assemble(call, &[x], shape, runs)?])
}

fn binarizer(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let threshold = f64::from(call.node.float("threshold").unwrap_or(0.0));
    let bits: Vec<i64> = match Numbers::of(call, x)? {
        Numbers::Floats(values) => values.into_iter().map(|x| i64::from(x > threshold)).collect(),
        // Exact also where numbers are too large for a float.
        Numbers::Integers(values) => {
            values.into_iter().map(|x| i64::from(i128::from(x) > threshold.floor() as i128)).collect()
        }
    };
    Ok(vec![whole_tensor(call, x.dtype(), x.shape().to_vec(), &bits)?])
}

fn scaler(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let size = x.shape().last().copied().unwrap_or(1);
    let factors = |name: &str| match call.node.floats(name) {
        Some(values) if values.len() == 1 || values.len() == size => Ok(values),
        _ => Err(call.invalid(format!("`{name}` is neither one number nor one for each of {size} features"))),
    };
    let (offset, scale) = (factors("offset")?, factors("scale")?);
    let values = x.to_f64s().map_err(|error| call.tensor_error(error))?;
    let at = |list: &[f32], index: usize| f64::from(list[index % list.len().max(1)]);
    let scaled: Vec<f32> = values
        .iter()
        .enumerate()
        .map(|(index, x)| ((x - at(offset, index)) * at(scale, index)) as f32)
        .collect();
    Ok(vec![Tensor::from_vec(x.shape().to_vec(), scaled)])
}

fn normalizer(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    if !(1..=2).contains(&x.rank()) {
        return Err(call.invalid(format!("shape {:?} is not that of features", x.shape())));
    }
    let size = x.shape()[x.rank() - 1];
    let values = x.to_f64s().map_err(|error| call.tensor_error(error))?;
    let kind = call.node.string("norm").unwrap_or("MAX");
    let mut result = Vec::with_capacity(values.len());
    for row in values.chunks(size.max(1)) {
        let divisor = match kind {
            "MAX" if row.iter().any(|x| *x < 0.0) => {
                // The greatest number or the greatest absolute one: implementations differ.
                return Err(call.unsupported("the greatest of negative numbers"));
            }
            "MAX" => row.iter().copied().fold(0.0, f64::max),
            "L1" => norm(row.iter().copied(), 1.0),
            "L2" => norm(row.iter().copied(), 2.0),
            other => return Err(call.invalid(format!("there is no norm `{other}`"))),
        };
        result.extend(row.iter().map(|x| if divisor == 0.0 { *x as f32 } else { (x / divisor) as f32 }));
    }
    Ok(vec![Tensor::from_vec(x.shape().to_vec(), result)])
}

/// The n-grams to count: a tree of their elements.
struct Grams {
    /// For each node and element the next node.
    next: HashMap<(usize, Key), usize>,
    /// For each node the place in the output of the n-gram that ends there.
    column: Vec<Option<usize>>,
}

fn tf_idf(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let attribute = |name: &str| {
        let value = call.node.int(name);
        let value = value.and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| call.invalid(format!("`{name}` is missing or negative")))
    };
    let (shortest, longest) = (attribute("min_gram_length")?, attribute("max_gram_length")?);
    let skips = attribute("max_skip_count")?;
    let (rows, size) = match *x.shape() {
        [] => (1, 1),
        [size] => (1, size),
        [rows, size] => (rows, size),
        _ => return Err(call.invalid(format!("shape {:?} is not that of texts", x.shape()))),
    };
    if shortest == 0 || longest < shortest {
        return Err(call.invalid(format!("there are no n-grams of {shortest} to {longest}")));
    }
    let pool: Vec<Key> = match (call.node.ints("pool_int64s"), texts(call, "pool_strings")) {
        (Some(numbers), None) => numbers.iter().map(|&number| Key::Whole(number)).collect(),
        (None, Some(texts)) => texts.iter().map(|text| Key::Text(text.to_vec())).collect(),
        _ => return Err(call.invalid("it needs one of `pool_int64s` and `pool_strings`")),
    };
    let lists = |name: &str| {
        let values = call.node.ints(name).ok_or_else(|| call.invalid(format!("`{name}` is missing")))?;
        let values = values.iter().map(|&value| usize::try_from(value)).collect::<Result<Vec<usize>, _>>();
        values.map_err(|_| call.invalid(format!("`{name}` has a negative number")))
    };
    let (starts, columns) = (lists("ngram_counts")?, lists("ngram_indexes")?);
    let width = columns.iter().max().map_or(0, |greatest| greatest.saturating_add(1));
    let mut shape = x.shape().to_vec();
    shape.truncate(x.rank().saturating_sub(1));
    shape.push(width);
    call.check_size(DType::F64, &shape)?;
    let weights = call.node.floats("weights").map(|weights| {
        // Each n-gram has its weight, yet implementations look it up by the place in the output.
        let agrees = |(at, &column): (usize, &usize)| weights.get(at) == weights.get(column);
        if weights.len() == columns.len() && columns.iter().enumerate().all(agrees) {
            Ok(weights)
        } else {
            Err(call.unsupported("weights in another order than the output"))
        }
    });
    let weight = |weights: Option<&[f32]>, column: usize| {
        weights.map_or(1.0, |weights| weights.get(column).copied().unwrap_or(1.0))
    };
    let (counted, weights) = match call.node.string("mode") {
        Some("TF") => (true, None),
        Some("IDF") => (false, weights.transpose()?),
        Some("TFIDF") => (true, weights.transpose()?),
        other => return Err(call.invalid(format!("there is no mode {other:?}"))),
    };
    let grams = grams(call, &pool, &starts, &columns, shortest, longest)?;
    let deepest = starts.len().min(longest) as u64;
    let work = (rows as u64).saturating_mul(size as u64).saturating_mul(deepest);
    if work.saturating_mul(skips.min(size) as u64 + 1) > MOST_STEPS {
        return Err(call.unsupported("a text of that many n-grams"));
    }
    let text = keys(call, x)?;
    let mut counts = vec![0u64; product(&shape)];
    for row in 0..rows {
        let text = &text[row * size..(row + 1) * size];
        for distance in 1..=skips.min(size).saturating_add(1) {
            // Single elements are the same at every distance and count once.
            let least = if distance == 1 { shortest } else { shortest.max(2) };
            for start in 0..size {
                let mut node = 0;
                let elements = text[start..].iter().step_by(distance).take(longest);
                for (length, key) in (1..).zip(elements) {
                    let Some(&next) = grams.next.get(&(node, key.clone())) else { break };
                    node = next;
                    if let Some(column) = grams.column[node].filter(|_| length >= least) {
                        counts[row * width + column] += 1;
                    }
                }
            }
        }
    }
    let result = counts.iter().enumerate().map(|(at, &count)| {
        let count = if counted { count } else { count.min(1) };
        (count as f64 * f64::from(weight(weights, at % width.max(1)))) as f32
    });
    Ok(vec![Tensor::from_vec(shape, result.collect())])
}

fn grams(
    call: &Call<'_>,
    pool: &[Key],
    starts: &[usize],
    columns: &[usize],
    shortest: usize,
    longest: usize,
) -> Result<Grams, OpError> {
    let mut grams = Grams { next: HashMap::new(), column: vec![None] };
    let mut number = 0;
    for (at, &start) in starts.iter().enumerate() {
        let (length, end) = (at + 1, starts.get(at + 1).copied().unwrap_or(pool.len()));
        let part = pool.get(start..end).filter(|part| part.len().is_multiple_of(length));
        let part = part.ok_or_else(|| call.invalid("`ngram_counts` does not divide the pool in n-grams"))?;
        for gram in part.chunks(length) {
            let column = columns.get(number).copied();
            let column =
                column.ok_or_else(|| call.invalid("`ngram_indexes` has fewer entries than n-grams"))?;
            number += 1;
            if !(shortest..=longest).contains(&length) {
                continue;
            }
            let mut node = 0;
            for key in gram {
                let fresh = grams.column.len();
                node = *grams.next.entry((node, key.clone())).or_insert(fresh);
                if node == fresh {
                    grams.column.push(None);
                }
            }
            grams.column[node] = Some(column);
        }
    }
    Ok(grams)
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    #[test]
    fn labels_of_floats() {
        let node = Node::new("LabelEncoder", [])
            .with("keys_floats", vec![1.0f32, f32::NAN, -0.0, 1.0])
            .with("values_int64s", vec![1i64, 2, 3, 4]);
        let x = Tensor::from_vec(vec![4], vec![1.0f32, f32::NAN, 0.0, 5.0]);
        let run = |opset: i64| label_encoder(&Call::new(&node, opset, &[Some(&x)]));
        assert_eq!(run(4).unwrap()[0].to_i64s().unwrap(), [4, 2, 3, -1]);
        assert!(run(2).is_err());
    }

    #[test]
    fn hostile_counts_are_refused() {
        let node = |skips: i64, indexes: Vec<i64>| {
            Node::new("TfIdfVectorizer", [])
                .with("mode", "TF")
                .with("min_gram_length", 1)
                .with("max_gram_length", i64::MAX)
                .with("max_skip_count", skips)
                .with("ngram_counts", vec![0i64, 2])
                .with("ngram_indexes", indexes)
                .with("pool_int64s", vec![2i64, 3, 5, 4])
        };
        let x = Tensor::from_i64s(&[5, 2, 4, 2, 3]);
        let run = |node: &Node| {
            tf_idf(&Call::new(node, 9, &[Some(&x)])).map(|outputs| outputs[0].to_f64s().unwrap())
        };
        assert_eq!(run(&node(0, vec![0, 1, 2])).unwrap(), [2.0, 1.0, 0.0]);
        assert_eq!(run(&node(i64::MAX, vec![0, 1, 2])).unwrap(), [2.0, 1.0, 1.0]);
        for indexes in [vec![0, 1], vec![0, 1, -2], vec![0, 1, i64::MAX]] {
            assert!(run(&node(0, indexes.clone())).is_err(), "{indexes:?}");
        }
    }
}
