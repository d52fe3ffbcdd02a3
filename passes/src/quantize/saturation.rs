//! Weights that kernels without VNNI can add up.
//!
//! Where a processor has no VNNI instructions, onnxruntime multiplies uint8 activations by int8 weights with
//! `VPMADDUBSW`: the sum of two neighbouring products is clipped to int16. With activations up to 255 that
//! never happens while two neighbouring weights of one sign stay within 128 together. The usual cure is 7-bit
//! weights (`reduce_range`), which halves the precision of all of them. A scale that is just large enough for
//! the worst pair of its channel costs less and proves as much.

use optix_ir::{Model, NodeId};

/// What two neighbouring weights may add up to before rounding: rounding adds a half to each.
const MOST: f32 = 127.0;

/// Place of element `depth` of sum `channel` among the weights.
type Place = Box<dyn Fn(usize, usize) -> usize>;

/// Channels, depth and places in the order of the kernels: of a convolution, places of the window first and
/// input channels within; `None` for kernels that do not pair.
fn arrangement(model: &Model, id: NodeId, shape: &[usize]) -> Option<(usize, usize, Place)> {
    let node = model.node(id);
    match (node.op_type.as_str(), shape) {
        ("Conv", &[channels, inputs, ref window @ ..]) => {
            let places: usize = window.iter().product();
            let groups = node.int("group").unwrap_or(1);
            // Depthwise kernels add up single products.
            let is_depthwise = groups > 1 && inputs == 1 && i64::try_from(channels) == Ok(groups);
            let at = move |channel: usize, depth: usize| {
                let (place, input) = (depth / inputs.max(1), depth % inputs.max(1));
                (channel * inputs + input) * places + place
            };
            (!is_depthwise).then_some((channels, inputs * places, Box::new(at)))
        }
        ("Gemm", &[channels, depth]) if node.int("transB").unwrap_or(0) != 0 => {
            Some((channels, depth, Box::new(move |channel, place| channel * depth + place)))
        }
        ("Gemm" | "MatMul", &[depth, channels]) => {
            Some((channels, depth, Box::new(move |channel, place| place * channels + channel)))
        }
        // A stack of matrices has one scale: every column of every matrix is a sum.
        ("MatMul", &[ref matrices @ .., depth, columns]) => {
            let count: usize = matrices.iter().product();
            let at = move |sum: usize, place: usize| {
                let (matrix, column) = (sum / columns.max(1), sum % columns.max(1));
                (matrix * depth + place) * columns + column
            };
            Some((count * columns, depth, Box::new(at)))
        }
        _ => None,
    }
}

/// Widens symmetric int8 scales, one a channel or a single one, until no pair of weights can be clipped.
/// Returns how many were widened.
pub(super) fn widen(
    scales: &mut [f32],
    model: &Model,
    id: NodeId,
    weights: &[f32],
    shape: &[usize],
) -> usize {
    let Some((channels, depth, at)) = arrangement(model, id, shape) else { return 0 };
    if scales.is_empty() || channels * depth != weights.len() {
        return 0;
    }
    let single = scales.len() == 1;
    let mut worst = vec![0f32; scales.len()];
    for channel in 0..channels {
        let worst = &mut worst[if single { 0 } else { channel % scales.len() }];
        for first in (0..depth.saturating_sub(1)).step_by(2) {
            let (a, b) = (weights[at(channel, first)], weights[at(channel, first + 1)]);
            // Of two signs, neither can leave alone.
            if (a > 0.0) == (b > 0.0) {
                *worst = worst.max((a + b).abs());
            }
        }
    }
    let mut widened = 0;
    for (scale, worst) in scales.iter_mut().zip(worst) {
        let least = worst / MOST;
        if least > *scale && least.is_normal() {
            *scale = least;
            widened += 1;
        }
    }
    widened
}

#[cfg(test)]
mod tests {
    use optix_ir::{ModelBuilder, Tensor};

    use super::*;
    use crate::quantize::affine::Affine;

    /// Whether two weights stay within what the kernels can add up.
    fn fits(affine: &Affine, a: f32, b: f32) -> bool {
        (affine.quantize(a) + affine.quantize(b)).abs() <= 128
    }

    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 7u64;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// The scales of a node's weights before and after.
    fn widened(
        op: &str,
        shape: &[usize],
        attribute: Option<(&str, i64)>,
        channels: usize,
    ) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let weights = numbers(shape.iter().product());
        let mut builder = ModelBuilder::new(15)
            .input("x", "float[?, ?]")
            .constant("w", Tensor::from_vec(shape.to_vec(), weights.clone()))
            .node(op, ["x", "w"], ["y"]);
        if let Some((name, value)) = attribute {
            builder = builder.attr(name, value);
        }
        let model = builder.output("y", "").build();
        let id = model.walk().next().unwrap();
        let before = vec![1.0 / 127.0; channels];
        let mut after = before.clone();
        let count = widen(&mut after, &model, id, &weights, shape);
        assert_eq!(count, before.iter().zip(&after).filter(|(a, b)| a != b).count());
        (weights, before, after)
    }

    #[test]
    fn no_pair_leaves_and_no_scale_is_wider_than_seven_bits() {
        let (weights, before, after) = widened("MatMul", &[64, 5], None, 5);
        for (channel, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(before < after && *after <= 2.0 / 127.0, "{after}");
            let affine = Affine { scale: *after, zero_point: 0, low: -127, high: 127 };
            for pair in 0..32 {
                assert!(fits(&affine, weights[pair * 10 + channel], weights[pair * 10 + 5 + channel]));
            }
        }
        let (weights, _, after) = widened("Conv", &[6, 4, 3, 3], None, 6);
        for (channel, scale) in after.iter().enumerate() {
            let affine = Affine { scale: *scale, zero_point: 0, low: -127, high: 127 };
            let weight = |input: usize, place: usize| weights[(channel * 4 + input) * 9 + place];
            for place in 0..9 {
                assert!(fits(&affine, weight(0, place), weight(1, place)));
                assert!(fits(&affine, weight(2, place), weight(3, place)));
            }
        }
        let (weights, _, after) = widened("Gemm", &[3, 20], Some(("transB", 1)), 3);
        let affine = Affine { scale: after[2], zero_point: 0, low: -127, high: 127 };
        assert!((0..10).all(|pair| fits(&affine, weights[40 + 2 * pair], weights[41 + 2 * pair])));
    }

    #[test]
    fn depthwise_convolutions_keep_their_scales() {
        let (_, before, after) = widened("Conv", &[8, 1, 3, 3], Some(("group", 8)), 8);
        assert_eq!(before, after);
    }
}
