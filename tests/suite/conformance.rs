//! The reference kernels against the operator cases of the ONNX standard.
//!
//! Every case is run node by node with `optix-ops`. A case may be out of reach (no kernel, a form that is
//! not supported), which `docs/operators.md` then says; a wrong result is never tolerated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use optix_ir::{DType, Model, Tensor};
use optix_ops::{Datum, OpError};

use crate::cases::{self, Case, DataSet, Sample};
use crate::models;
use crate::random::differences;

/// How a case ended when it did not pass.
pub enum Ending {
    /// We do not claim to compute it; the text says what is missing.
    Unsupported(String),
    /// We claim to, and are wrong.
    Wrong(String),
}

/// What became of the cases of one operator.
#[derive(Default)]
struct Tally {
    /// Passed and existing cases that are one node of the operator.
    direct: (usize, usize),
    /// The same for cases that write the operator out in simpler ones.
    expanded: (usize, usize),
    /// Why cases did not pass.
    reasons: BTreeSet<String>,
}

#[test]
fn kernels_agree_with_the_operator_cases() {
    let cases = cases::load();
    let models: Vec<Model> = cases.iter().map(|case| crate::models::read_model(&case.model)).collect();
    let own_operator: BTreeMap<&str, String> =
        cases.iter().zip(&models).map(|(case, model)| (case.name.as_str(), first_operator(model))).collect();
    let mut operators: BTreeMap<String, Tally> = BTreeMap::new();
    let mut wrong = Vec::new();
    let (mut passed, mut unsupported) = (0, 0);
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for (case, model) in cases.iter().zip(&models) {
        // `test_x_expanded_ver18` is `test_x` in simpler operators.
        let base = case.name.split_once("_expanded").map(|(base, _)| base);
        let operator =
            base.and_then(|base| own_operator.get(base)).unwrap_or(&own_operator[case.name.as_str()]);
        let tally = operators.entry(operator.clone()).or_default();
        let count = if base.is_some() { &mut tally.expanded } else { &mut tally.direct };
        count.1 += 1;
        let ending = catch_unwind(AssertUnwindSafe(|| run_case(case, model))).unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Ending::Wrong(format!("panicked: {said}")))
        });
        match ending {
            Ok(()) => {
                count.0 += 1;
                passed += 1;
            }
            Err(Ending::Unsupported(reason)) => {
                unsupported += 1;
                tally.reasons.insert(reason);
            }
            Err(Ending::Wrong(what)) => wrong.push(format!("{}: {what}", case.name)),
        }
    }
    std::panic::set_hook(quiet);
    assert!(
        wrong.is_empty(),
        "{} wrong, {passed} passed, {unsupported} out of reach:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    crate::generated::check("docs/operators.md", &document(&operators, passed, cases.len()));
}

/// The operator a case is about: that of the first node.
fn first_operator(model: &Model) -> String {
    let node = model.node(model.nodes_of(model.main()).next().expect("every case has a node"));
    if node.domain().is_empty() {
        node.op_type.clone()
    } else {
        format!("{}.{}", node.domain(), node.op_type)
    }
}

/// What the reference interpreter makes of one data set.
pub fn evaluate(model: &Model, set: &DataSet) -> Result<Vec<Datum>, Ending> {
    let inputs = set.inputs.iter().map(|sample| Some(models::read_sample(sample))).collect();
    optix_ops::interpret(model, inputs).map_err(|error| match error.source {
        OpError::NoKernel(op) => Ending::Unsupported(format!("no kernel for {op}")),
        OpError::Unsupported { .. } => Ending::Unsupported(error.source.to_string()),
        // The cases are valid by definition.
        OpError::Invalid { .. } | OpError::TooLarge { .. } | OpError::NoMemory { .. } => {
            Ending::Wrong(error.to_string())
        }
    })
}

fn run_case(case: &Case, model: &Model) -> Result<(), Ending> {
    for set in &case.sets {
        let read = |samples: &[Sample]| samples.iter().map(models::read_sample).collect::<Vec<Datum>>();
        let wrong = differences(case, &read(&set.inputs), &evaluate(model, set)?, &read(&set.outputs));
        if !wrong.is_empty() {
            return Err(Ending::Wrong(wrong.join("; ")));
        }
    }
    Ok(())
}

/// Where a result departs from what is expected.
pub fn difference(got: &Datum, expected: &Datum, case: &Case) -> Option<String> {
    match (got, expected) {
        (Datum::Tensor(got), Datum::Tensor(expected)) => tensor_difference(got, expected, case),
        (Datum::Sequence(got), Datum::Sequence(expected)) if got.len() == expected.len() => {
            let parts = got.iter().zip(expected).enumerate();
            parts.into_iter().find_map(|(index, (got, expected))| {
                difference(got, expected, case).map(|what| format!("element {index}: {what}"))
            })
        }
        (Datum::Optional(None), Datum::Optional(None)) => None,
        (Datum::Optional(Some(got)), Datum::Optional(Some(expected))) => difference(got, expected, case),
        _ => Some(format!("{got:?}, expected {expected:?}")),
    }
}

/// The same for tensors. Floats of 16 bits and more may differ by the case's
/// tolerance; everything else must be equal.
fn tensor_difference(got: &Tensor, expected: &Tensor, case: &Case) -> Option<String> {
    if (got.dtype(), got.shape()) != (expected.dtype(), expected.shape()) {
        return Some(format!(
            "{}{:?}, expected {}{:?}",
            got.dtype(),
            got.shape(),
            expected.dtype(),
            expected.shape()
        ));
    }
    use DType::*;
    let (got_numbers, expected_numbers) = match got.dtype() {
        F32 | F64 | F16 | BF16 => (got.to_f64s().ok()?, expected.to_f64s().ok()?),
        Complex64 => {
            (pairs(&got.to_slice::<[f32; 2]>().ok()?), pairs(&expected.to_slice::<[f32; 2]>().ok()?))
        }
        _ if got.bytes() == expected.bytes() => return None,
        String => return Some("strings differ".into()),
        _ => return Some(format!("{got:?}, expected {expected:?}")),
    };
    // A chain of operators in a type of 16 bits is rounded after each, and the reference's own chains are
    // cut differently: two units in the last place.
    let unit = match got.dtype() {
        BF16 if case.name.contains("_expanded") => 2f64.powi(-6),
        F16 if case.name.contains("_expanded") => 2f64.powi(-9),
        _ => 0.0,
    };
    // The reference transforms in binary32, which leaves a rounding error of the greatest element in all.
    let greatest = expected_numbers.iter().fold(0f64, |greatest, x| greatest.max(x.abs()));
    let absolute = if case.name.starts_with("test_dft") { greatest * 2f64.powi(-24) } else { 0.0 };
    let absolute = case.absolute.max(absolute);
    let far = |(got, expected): (&f64, &f64)| {
        let equal = got == expected || (got.is_nan() && expected.is_nan());
        let near = (got - expected).abs() <= absolute + case.relative.max(unit) * expected.abs();
        !(equal || (near && expected.is_finite()))
    };
    let wrong = got_numbers.iter().zip(&expected_numbers).filter(|pair| far(*pair)).count();
    let at = got_numbers.iter().zip(&expected_numbers).position(far)?;
    Some(format!(
        "{}{:?}: {wrong} elements are off, first [{at}]: {}, expected {}",
        got.dtype(),
        got.shape(),
        got_numbers[at],
        expected_numbers[at]
    ))
}

fn pairs(values: &[[f32; 2]]) -> Vec<f64> {
    values.iter().flatten().map(|&part| f64::from(part)).collect()
}

/// The text of `docs/operators.md`.
fn document(operators: &BTreeMap<String, Tally>, passed: usize, existing: usize) -> String {
    let mut text = format!(
        "# Operators\n\n\
         <!-- Generated by `UPDATE=1 cargo test --test suite conformance`; do not edit. -->\n\n\
         What the reference kernels (`crates/ops`) compute, checked against the operator cases of onnx 1.23.2\n\
         (`fixtures/node`): {passed} of {existing} cases pass, none gives a wrong result. Operators of the domain\n\
         `com.microsoft`, which has no cases there, agree with onnxruntime 1.32 (`fixtures/contrib`).\n\n\
         - *since*: the oldest version of the operator set whose form of the operator is computed.\n\
         - *cases*: passed of existing cases that are one node of the operator.\n\
         - *written out*: the same for cases that say the operator in simpler ones.\n\n\
         | operator | since | cases | written out | not passed because |\n\
         |---|---|---|---|---|\n"
    );
    let known = optix_ops::operators().map(|(domain, op_type, since)| match domain {
        "" => (op_type.to_owned(), since),
        domain => (format!("{domain}.{op_type}"), since),
    });
    let known: BTreeMap<String, i64> = known.collect();
    let names: BTreeSet<&String> = known.keys().chain(operators.keys()).collect();
    let none = Tally::default();
    let ratio = |(passed, existing): (usize, usize)| match existing {
        0 => "-".to_owned(),
        _ => format!("{passed}/{existing}"),
    };
    for name in names {
        let tally = operators.get(name).unwrap_or(&none);
        let since = known.get(name).map_or("-".to_owned(), i64::to_string);
        let reasons: Vec<&str> = tally.reasons.iter().map(String::as_str).collect();
        writeln!(
            text,
            "| {name} | {since} | {} | {} | {} |",
            ratio(tally.direct),
            ratio(tally.expanded),
            reasons.join("; ")
        )
        .expect("writing to a string");
    }
    text
}

#[test]
fn a_wrong_result_is_noticed() {
    let case =
        Case { name: String::new(), relative: 1e-3, absolute: 1e-7, model: Bytes::new(), sets: Vec::new() };
    let floats = |values: &[f32]| Tensor::from_vec(vec![values.len()], values.to_vec());
    let expected = floats(&[1.0, f32::INFINITY, f32::NAN]);
    assert_eq!(tensor_difference(&floats(&[1.0005, f32::INFINITY, f32::NAN]), &expected, &case), None);
    for off in [[1.002, f32::INFINITY, f32::NAN], [1.0, 1e30, f32::NAN], [1.0, f32::INFINITY, 0.0]] {
        assert!(tensor_difference(&floats(&off), &expected, &case).is_some(), "{off:?}");
    }
    assert!(tensor_difference(&Tensor::from_i64s(&[1000]), &Tensor::from_i64s(&[1001]), &case).is_some());
    assert!(tensor_difference(&Tensor::from_i64s(&[1]), &Tensor::scalar(1i64), &case).is_some());
}
