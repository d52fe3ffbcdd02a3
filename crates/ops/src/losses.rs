//! Losses over classes.

use optix_ir::Tensor;

use crate::call::{Call, KernelSpec, OpError};
use crate::movement::{integers, product};
use crate::normalization::floats;
use crate::numbers::float_tensor;
use crate::recurrent::expect;

pub(crate) static KERNELS: &[KernelSpec] = &[
    KernelSpec::onnx("NegativeLogLikelihoodLoss", 12, |call| {
        let scores = floats(call, 0)?;
        Ok(vec![loss(call, &scores)?])
    }),
    KernelSpec::onnx("SoftmaxCrossEntropyLoss", 12, cross_entropy),
];

/// The loss of scores that are logarithms of probabilities; classes are on axis 1. Targets equal to
/// `ignore_index` weigh nothing, and the mean is over the weights.
fn loss(call: &Call<'_>, scores: &[f64]) -> Result<Tensor, OpError> {
    let (x, target) = (call.input(0)?, call.input(1)?);
    let &[batch, classes, ref rest @ ..] = x.shape() else {
        return Err(call.invalid(format!("scores of shape {:?} have no axis of classes", x.shape())));
    };
    expect(call, 1, &[&[batch], rest].concat())?;
    let weights = match call.optional(2) {
        Some(_) => {
            expect(call, 2, &[classes])?;
            Some(floats(call, 2)?)
        }
        None => None,
    };
    let ignored = call.node.int("ignore_index");
    let inner = product(rest);
    let (mut losses, mut sum_of_weights) = (Vec::with_capacity(target.len()), 0.0);
    for (index, class) in integers(call, 1)?.into_iter().enumerate() {
        if ignored == Some(class) {
            losses.push(0.0);
            continue;
        }
        let known = usize::try_from(class).ok().filter(|&class| class < classes);
        let class = known.ok_or_else(|| call.invalid(format!("class {class} of {classes}")))?;
        let weight = weights.as_ref().map_or(1.0, |weights| weights[class]);
        sum_of_weights += weight;
        let (sample, place) = (index / inner, index % inner);
        losses.push(-scores[(sample * classes + class) * inner + place] * weight);
    }
    let sum: f64 = losses.iter().sum();
    match call.node.string("reduction").unwrap_or("mean") {
        "none" => float_tensor(call, x.dtype(), target.shape().to_vec(), &losses),
        "sum" => float_tensor(call, x.dtype(), vec![], &[sum]),
        "mean" => float_tensor(call, x.dtype(), vec![], &[sum / sum_of_weights]),
        other => Err(call.invalid(format!("reduction `{other}`"))),
    }
}

/// The same behind a log-softmax, which is the second output.
fn cross_entropy(call: &Call<'_>) -> Result<Vec<Tensor>, OpError> {
    let x = call.input(0)?;
    let &[_, classes, ref rest @ ..] = x.shape() else {
        return Err(call.invalid(format!("scores of shape {:?} have no axis of classes", x.shape())));
    };
    let inner = product(rest);
    let mut scores = floats(call, 0)?;
    for sample in scores.chunks_mut(product(&[classes, inner]).max(1)) {
        for place in 0..inner {
            let column = || (0..classes).map(|class| class * inner + place);
            let greatest = column().map(|at| sample[at]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = column().map(|at| (sample[at] - greatest).exp()).sum();
            column().for_each(|at| sample[at] = sample[at] - greatest - sum.ln());
        }
    }
    Ok(vec![loss(call, &scores)?, float_tensor(call, x.dtype(), x.shape().to_vec(), &scores)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use optix_ir::Node;

    #[test]
    fn targets_are_checked() {
        let x = Tensor::from_vec(vec![2, 3], vec![-1f32, -2.0, -3.0, -4.0, -5.0, -6.0]);
        let run = |classes: &[i64], node: Node| {
            loss(&Call::new(&node, 13, &[Some(&x), Some(&Tensor::from_i64s(classes))]), &x.to_f64s().unwrap())
                .map(|tensor| tensor.to_f64s().unwrap())
        };
        let node = || Node::new("NegativeLogLikelihoodLoss", []);
        assert_eq!(run(&[0, 2], node()).unwrap(), [3.5]);
        assert_eq!(run(&[0, -7], node().with("ignore_index", -7i64)).unwrap(), [1.0]);
        for bad in [&[0, 3][..], &[0, -1], &[0], &[i64::MIN, 0]] {
            assert!(run(bad, node()).is_err(), "{bad:?}");
        }
    }
}
