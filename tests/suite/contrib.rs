//! The reference kernels of onnxruntime's own operators, and forms of standard ones that the standard has
//! no cases of, against what onnxruntime computes (`fixtures/contrib`).

use std::collections::BTreeMap;

use optix_ir::infer::{NoEvaluator, analyse};
use optix_ir::{Model, Tensor};
use optix_ops::Datum;

use crate::cases::{self, Case};
use crate::conformance::{Ending, difference, evaluate};

/// Where onnxruntime rounds to integers in steps of its own, a result may be one unit away. How many of all
/// elements are, at most.
const OFF_BY_ONE: f64 = 0.01;

#[test]
fn kernels_agree_with_onnxruntime() {
    let (mut wrong, mut unsupported) = (Vec::new(), Vec::new());
    let (mut elements, mut off) = (0, BTreeMap::new());
    for case in cases::load_from("fixtures/contrib/cases.bin.gz") {
        let model = crate::models::read_model(&case.model);
        match run(&case, &model, &mut elements) {
            Ok(0) => {}
            Ok(units) => drop(off.insert(case.name, units)),
            Err(Ending::Unsupported(what)) => unsupported.push(format!("{}: {what}", case.name)),
            Err(Ending::Wrong(what)) => wrong.push(format!("{}: {what}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(unsupported.is_empty(), "{} out of reach:\n{}", unsupported.len(), unsupported.join("\n"));
    let total: usize = off.values().sum();
    assert!((total as f64) < OFF_BY_ONE * elements as f64, "{total} of {elements} are off by one: {off:?}");
}

#[test]
fn inference_agrees_with_onnxruntime() {
    for case in cases::load_from("fixtures/contrib/cases.bin.gz") {
        let model = crate::models::read_model(&case.model);
        let report = analyse(&model, &NoEvaluator).report;
        let problems: Vec<String> = report.problems.iter().map(|problem| problem.describe(&model)).collect();
        assert!(problems.is_empty(), "{}: {problems:?}", case.name);
        assert!(report.without_rule.is_empty(), "{}: no rule", case.name);
    }
}

/// How many quantized elements are off by one; `elements` counts all of them.
fn run(case: &Case, model: &Model, elements: &mut usize) -> Result<usize, Ending> {
    let mut off = 0;
    for set in &case.sets {
        let expected: Vec<Datum> = set.outputs.iter().map(crate::models::read_sample).collect();
        off += compare(case, &evaluate(model, set)?, &expected, elements).map_err(Ending::Wrong)?;
    }
    Ok(off)
}

/// How many of the quantized elements of outputs are off by one; an error where something differs more.
pub fn compare(
    case: &Case,
    outputs: &[Datum],
    expected: &[Datum],
    elements: &mut usize,
) -> Result<usize, String> {
    let mut off = 0;
    assert_eq!(outputs.len(), expected.len(), "outputs of the graph");
    for (index, (got, expected)) in outputs.iter().zip(expected).enumerate() {
        let tensors = got.as_tensor().zip(expected.as_tensor());
        match tensors.and_then(|(got, expected)| units(got, expected)) {
            Some((count, units)) => {
                *elements += count;
                off += units;
            }
            None => {
                if let Some(what) = difference(got, expected, case) {
                    return Err(format!("output {index}: {what}"));
                }
            }
        }
    }
    Ok(off)
}

/// For integers that are at most one apart: how many there are, and how many of them differ.
fn units(got: &Tensor, expected: &Tensor) -> Option<(usize, usize)> {
    let alike = (got.dtype(), got.shape()) == (expected.dtype(), expected.shape());
    // Counts and lengths are not quantized: they are of more bits, and equal.
    if !alike || !got.dtype().is_integer() || got.dtype().bits() > 16 {
        return None;
    }
    let (got, expected) = (got.to_i64s().ok()?, expected.to_i64s().ok()?);
    let apart = got.iter().zip(&expected).map(|(got, expected)| got.abs_diff(*expected));
    let differing = apart.clone().filter(|&units| units == 1).count();
    apart.max().is_none_or(|most| most <= 1).then_some((got.len(), differing))
}
