//! Weights that kernels without VNNI can add up.
//!
//! Where a processor has no VNNI instructions, onnxruntime multiplies uint8 activations by int8 weights with
//! `VPMADDUBSW`: the sum of two neighbouring products is clipped to int16. With activations up to 255 that
//! never happens while two neighbouring weights of one sign stay within 128 together. The usual cure is 7-bit
//! weights (`reduce_range`), which halves the precision of all of them. A scale that is just large enough for
//! the worst pair of its channel costs less and proves as much.

use optix_ir::{Model, NodeId};

use super::certificate::{Arrangement, WeightLayout};

/// What two neighbouring weights may add up to before rounding: rounding adds a half to each.
const MOST: f32 = 127.0;

/// Widens symmetric int8 scales, one a channel or a single one, until no pair of weights can be clipped.
/// Returns how many were widened.
pub(super) fn widen(
    scales: &mut [f32],
    model: &Model,
    id: NodeId,
    weights: &[f32],
    shape: &[usize],
) -> usize {
    let arrangement = Arrangement::of(shape, WeightLayout::of(model.node(id)));
    let Some(arrangement) = arrangement.filter(|arrangement| arrangement.is_paired) else { return 0 };
    if scales.is_empty() || weights.is_empty() {
        return 0;
    }
    let count = scales.len();
    let mut worst = vec![0f32; count];
    let mut first = vec![0f32; arrangement.channels];
    arrangement.each(weights, |channel, depth, weight| {
        if depth % 2 == 0 {
            first[channel] = weight;
            return;
        }
        // Of two signs, neither can leave alone.
        let other = first[channel];
        if (other > 0.0) == (weight > 0.0) {
            let worst = &mut worst[channel % count];
            *worst = worst.max((other + weight).abs());
        }
    });
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
