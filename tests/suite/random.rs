//! The operator cases whose results are random numbers: what must hold of them whatever the numbers are.
//!
//! Shapes and types must be equal, the values such as the operator gives, and the share of ones (Bernoulli)
//! or of kept elements (Dropout) within four standard deviations of its mean.

use optix_ir::Tensor;
use optix_ops::Datum;

use crate::cases::Case;
use crate::conformance::difference;

/// Where the outputs of a case depart from what is expected.
pub fn differences(case: &Case, inputs: &[Datum], got: &[Datum], expected: &[Datum]) -> Vec<String> {
    if got.len() != expected.len() {
        return vec![format!("{} outputs, expected {}", got.len(), expected.len())];
    }
    // Without a ratio nothing is dropped, and the result is that of no random number.
    let drops = case.name.starts_with("test_training_dropout") && !case.name.contains("zero_ratio");
    if !drops && !case.name.starts_with("test_bernoulli") {
        let pairs = got.iter().zip(expected).enumerate();
        return pairs
            .filter_map(|(index, (got, expected))| {
                difference(got, expected, case).map(|what| format!("output {index}: {what}"))
            })
            .collect();
    }
    let tensors =
        |data: &[Datum]| -> Vec<Tensor> { data.iter().filter_map(Datum::as_tensor).cloned().collect() };
    let (inputs, got, expected) = (tensors(inputs), tensors(got), tensors(expected));
    let form = |tensor: &Tensor| (tensor.dtype(), tensor.shape().to_vec());
    if got.iter().map(form).ne(expected.iter().map(form)) {
        return vec!["another type or shape".to_owned()];
    }
    let judged = if drops { dropout(&inputs, &got) } else { bernoulli(case, &inputs, &got) };
    judged.err().into_iter().collect()
}

/// Checks a number of successes of independent draws.
fn likely(successes: usize, probabilities: &[f64]) -> Result<(), String> {
    let mean: f64 = probabilities.iter().sum();
    let variance: f64 = probabilities.iter().map(|p| p * (1.0 - p)).sum();
    if (successes as f64 - mean).abs() > 4.0 * variance.sqrt() {
        return Err(format!("{successes} of {}, expected about {mean}", probabilities.len()));
    }
    Ok(())
}

fn bernoulli(case: &Case, inputs: &[Tensor], got: &[Tensor]) -> Result<(), String> {
    let mut probabilities = inputs[0].to_f64s().expect("probabilities are numbers");
    if case.name.contains("_expanded") {
        // Written out, the standard compares the other way around.
        probabilities.iter_mut().for_each(|p| *p = 1.0 - *p);
    }
    let bits = got[0].to_f64s().expect("the result holds numbers");
    if bits.iter().any(|bit| ![0.0, 1.0].contains(bit)) {
        return Err("something else than zeros and ones".to_owned());
    }
    likely(bits.iter().filter(|bit| **bit == 1.0).count(), &probabilities)
}

fn dropout(inputs: &[Tensor], got: &[Tensor]) -> Result<(), String> {
    let x = inputs[0].to_f64s().expect("the input holds numbers");
    let y = got[0].to_f64s().expect("the result holds numbers");
    let ratio = inputs[1].single().expect("the cases give the ratio");
    let kept: Vec<bool> = match got.get(1) {
        Some(mask) => mask.bools().map_err(|error| error.to_string())?,
        None => y.iter().map(|y| *y != 0.0).collect(),
    };
    for ((x, y), kept) in x.iter().zip(&y).zip(&kept) {
        let wanted = if *kept { x / (1.0 - ratio) } else { 0.0 };
        if (y - wanted).abs() > 1e-6 * wanted.abs() {
            return Err(format!("{y} for {x}, expected {wanted}"));
        }
    }
    likely(kept.iter().filter(|kept| **kept).count(), &vec![1.0 - ratio; x.len()])
}

#[test]
fn unlikely_numbers_are_noticed() {
    assert!(likely(50, &[0.5; 100]).is_ok());
    assert!(likely(80, &[0.5; 100]).is_err());
    let x = Tensor::from_vec(vec![4], vec![1f32, 2.0, 3.0, 4.0]);
    let inputs = [x, Tensor::scalar(0.5f32), Tensor::from_bools(vec![], &[true])];
    let result = |y: &[f32]| [Tensor::from_vec(vec![4], y.to_vec())];
    assert_eq!(dropout(&inputs, &result(&[2.0, 0.0, 6.0, 0.0])), Ok(()));
    assert!(dropout(&inputs, &result(&[1.0, 0.0, 3.0, 0.0])).is_err());
}
