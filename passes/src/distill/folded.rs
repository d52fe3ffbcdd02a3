//! Trained weights, biases and scales back in a model in integers.

use std::collections::BTreeMap;

use optix_ir::{Model, NodeId, Tensor};

use super::unfolded::{Kind, Unfolded, reader};
use crate::quantize::{GREATEST_BIAS, PAIR, dequantized, partners, stored_weight};
use crate::unroll::Unrolled;

impl Unfolded {
    /// Parameters that the model has once they are written into it: what integers stand for. As they are where that cannot be
    /// told.
    pub(super) fn rounded(
        &self,
        quantized: &Model,
        elements: Vec<Vec<f32>>,
        exclude: &[String],
    ) -> Vec<Vec<f32>> {
        let mut folded = quantized.clone();
        if self.fold(&mut folded, &self.plain(elements.clone())).is_err() {
            return elements;
        }
        let again = Unfolded::of(&folded, None, exclude);
        match again.has_parts_of(self) {
            true => again.trained().into_iter().map(|one| one.elements).collect(),
            false => elements,
        }
    }

    /// Writes trained parts into the quantized model: scales first, for the integers depend on them. Says of each layer
    /// what changed.
    ///
    /// # Errors
    /// When numbers, which may be those of a lock, are none that can be written.
    pub(super) fn fold(
        &self,
        model: &mut Model,
        elements: &[Vec<f32>],
    ) -> Result<Vec<(NodeId, Change)>, String> {
        let mut changes: BTreeMap<NodeId, Change> = BTreeMap::new();
        let all = || self.parts.iter().zip(elements).zip(&self.parameters);
        // What kernels add up in pairs, as it is before scales change.
        let mut pairs: BTreeMap<NodeId, (Unrolled, Vec<usize>)> = BTreeMap::new();
        for ((part, _), _) in all() {
            if let Kind::Weights(_) = part.kind
                && let Ok(weight) = stored_weight(model, part.layer)
                && let Ok(unrolled) = Unrolled::of(model, part.layer, &weight.shape)
                && let Some(partners) = partners(model, part.layer, &unrolled, &weight)
            {
                pairs.insert(part.layer, (unrolled, partners));
            }
        }
        for ((part, elements), _) in all() {
            let nodes = match &part.kind {
                Kind::Scale(nodes) => &nodes[..],
                Kind::WeightScales(node) => std::slice::from_ref(node),
                _ => continue,
            };
            if elements.iter().any(|scale| !(scale.is_normal() && *scale > 0.0)) {
                return Err(format!("`{}` is no scale", part.name));
            }
            if let Kind::WeightScales(_) = part.kind {
                let ratio = elements.iter().zip(&part.start).map(|(a, b)| f64::from((a / b).ln().abs()));
                changes.entry(part.layer).or_default().scales =
                    ratio.sum::<f64>() / elements.len().max(1) as f64;
            }
            if elements != &part.start {
                replace(model, nodes, 1, elements);
            }
        }
        for ((part, elements), parameter) in all() {
            match part.kind {
                Kind::Weights(_) => {
                    let weight = stored_weight(model, part.layer)?;
                    let (low, high) = weight.range;
                    let round = |(at, &x): (usize, &f32)| {
                        let zero = weight.zero(at);
                        ((x / weight.steps[at]).round_ties_even() + zero as f32)
                            .clamp(low as f32, high as f32) as i32
                    };
                    let mut integers: Vec<i32> = elements.iter().enumerate().map(round).collect();
                    if let Some((unrolled, partners)) = pairs.get(&part.layer) {
                        integers = within_pairs(integers, unrolled, partners);
                    }
                    let moved = integers.iter().zip(&weight.integers).filter(|(a, b)| a != b).count();
                    changes.entry(part.layer).or_default().integers =
                        moved as f64 / integers.len().max(1) as f64;
                    model.set_tensor(weight.value, weight.tensor(&integers));
                }
                Kind::Floats if elements != &part.start => {
                    let shape = model.constant(parameter.value).map(|held| held.shape().to_vec());
                    let shape = shape.ok_or("a constant is gone")?;
                    model.set_tensor(parameter.value, Tensor::from_vec(shape, elements.clone()));
                }
                Kind::Bias(node) => fold_bias(model, node, elements, &part.start)?,
                _ => {}
            }
        }
        for (node, floats) in &self.fixed {
            fold_bias(model, *node, floats, floats)?;
        }
        Ok(changes.into_iter().collect())
    }
}

/// What training changed of a layer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    /// Share of the integers that are others.
    pub(super) integers: f64,
    /// Mean of the logarithms' changes of scales.
    pub(super) scales: f64,
}

/// Gives nodes another constant in a slot, in place of one that they share.
fn replace(model: &mut Model, nodes: &[NodeId], slot: usize, elements: &[f32]) {
    let Some(old) = nodes.first().and_then(|&node| model.node(node).input(slot)) else { return };
    let shape = model.constant(old).map(|held| held.shape().to_vec()).unwrap_or_default();
    let name = model.value(old).name().to_owned();
    let new = model.add_constant(model.main(), &name, Tensor::from_vec(shape, elements.to_vec()));
    let mut replaced = Vec::new();
    for &node in nodes {
        replaced.extend(model.node(node).input(slot));
        model.set_input(node, slot, Some(new));
    }
    replaced.sort_unstable();
    replaced.dedup();
    crate::quantize::drop_unused(model, replaced);
}

/// Writes a bias with the scales that its layer has now.
fn fold_bias(model: &mut Model, node: NodeId, floats: &[f32], start: &[f32]) -> Result<(), String> {
    let gone = || "a bias is gone".to_owned();
    let output = model.node(node).output(0).ok_or_else(gone)?;
    let (layer, _) = reader(model, output).ok_or_else(gone)?;
    let scales = |slot: usize| -> Option<Vec<f32>> {
        Some(dequantized(model, model.node(layer).input(slot)?).ok()?.scales(model))
    };
    let (of_input, of_weights) = scales(0).zip(scales(1)).ok_or_else(gone)?;
    let input = *of_input.first().ok_or_else(gone)?;
    let wanted: Vec<f32> = of_weights.iter().map(|scale| scale * input).collect();
    let integers = dequantized(model, output)?;
    let old = integers.scales(model);
    if old.len() != wanted.len() || wanted.iter().any(|scale| !(*scale > 0.0 && scale.is_finite())) {
        return Err(format!("the bias `{}` has other scales than its layer", model.value(output).name()));
    }
    if floats == start && old == wanted {
        return Ok(());
    }
    let shape = model.constant(integers.value).map(|held| held.shape().to_vec()).unwrap_or_default();
    let round = |(at, &x): (usize, &f32)| {
        let ratio = f64::from(x) / f64::from(wanted[at % wanted.len()]);
        ratio.round_ties_even().clamp(-GREATEST_BIAS, GREATEST_BIAS) as i32
    };
    let held = Tensor::from_vec(shape, floats.iter().enumerate().map(round).collect::<Vec<i32>>());
    match reader(model, integers.value) {
        Some(_) => model.set_tensor(integers.value, held),
        None => {
            let name = model.value(integers.value).name().to_owned();
            let new = model.add_constant(model.main(), &name, held);
            model.set_input(node, 0, Some(new));
        }
    }
    if old != wanted {
        replace(model, &[node], 1, &wanted);
    }
    Ok(())
}

/// Brings weights back to what kernels can add up in pairs: of two that are too much together, the greater.
fn within_pairs(integers: Vec<i32>, unrolled: &Unrolled, partners: &[usize]) -> Vec<i32> {
    let mut rows = unrolled.by_rows(&integers);
    for row in rows.chunks_exact_mut(unrolled.depth) {
        for (place, &other) in partners.iter().enumerate() {
            let Some(&second) = row.get(other) else { continue };
            let first = row[place];
            let over = (first + second).abs() - PAIR;
            if (first > 0) == (second > 0) && over > 0 {
                let at = if first.abs() >= second.abs() { place } else { other };
                row[at] -= row[at].signum() * over;
            }
        }
    }
    unrolled.by_elements(&rows)
}

#[cfg(test)]
mod tests {
    use optix_ir::Model;

    use super::*;

    const TEXT: &str = r#"<ir_version: 10, opset_import: ["" : 21]>
        net (float[N, 2] x) => (float[N, 2] y)
        <float s = {0.1}, uint8 z = {3}, int8[2, 2] w = {100, 28, -127, 5}, float[2] t = {0.02, 0.5}, int8[2] u = {0, 0},
         int32[2] b = {7, -9}, float[2] v = {0.002, 0.05}, int32[2] n = {0, 0}>
        {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            e = DequantizeLinear <axis = 1> (w, t, u)
            c = DequantizeLinear <axis = 0> (b, v, n)
            y = Gemm (d, e, c)
        }"#;

    fn unfolded() -> (Model, Unfolded) {
        let mut model = optix_ir::text::parse(TEXT).expect("it is a model");
        optix_ir::infer::infer(&mut model, &optix_ir::infer::NoEvaluator);
        let unfolded = Unfolded::of(&model, None, &[]);
        (model, unfolded)
    }

    fn held(model: &Model, node: &str, slot: usize) -> Vec<f64> {
        let node = model.walk().find(|&id| {
            let output = model.node(id).output(0);
            output.is_some_and(|output| model.value(output).name() == node)
        });
        let value = node.and_then(|node| model.node(node).input(slot)).expect("it is there");
        model.constant(value).and_then(|held| held.to_f64s().ok()).expect("it is constant")
    }

    #[test]
    fn what_was_not_trained_folds_back_to_the_same_model() {
        let (model, unfolded) = unfolded();
        let names: Vec<&str> = unfolded.parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["c_trained", "w", "w_scales", "q_scale"]);
        assert!(unfolded.has_integers() && !unfolded.is_coarse() && unfolded.left.is_empty());
        let kept = unfolded.trained().into_iter().map(|one| one.elements).collect();
        let mut folded = model.clone();
        let changes = unfolded.fold(&mut folded, &unfolded.plain(kept)).expect("it folds");
        assert!(changes.iter().all(|(_, change)| change.integers == 0.0 && change.scales == 0.0));
        assert_eq!(optix_ir::text::print(&folded), optix_ir::text::print(&model));
    }

    #[test]
    fn biases_follow_the_scales_of_their_layer() {
        let (model, unfolded) = unfolded();
        let mut kept: Vec<Vec<f32>> = unfolded.trained().into_iter().map(|one| one.elements).collect();
        // Scales doubled and halved; a weight moved to where its pair would be clipped.
        kept[1] = vec![2.4, 14.0, -2.0, 1.0];
        kept[2] = vec![0.02f32.ln(), 0.25f32.ln()];
        kept[3] = vec![0.2f32.ln()];
        let mut folded = model.clone();
        unfolded.fold(&mut folded, &unfolded.plain(kept)).expect("it folds");
        let near = |found: Vec<f64>, wanted: &[f64]| {
            assert!(
                found.iter().zip(wanted).all(|(a, b)| (a / b - 1.0).abs() < 1e-6),
                "{found:?} {wanted:?}"
            );
        };
        assert_eq!(held(&folded, "e", 0), [120.0, 56.0, -100.0, 4.0]);
        near(held(&folded, "q", 1), &[0.2]);
        near(held(&folded, "d", 1), &[0.2]);
        near(held(&folded, "c", 1), &[0.004, 0.05]);
        // 0.014 and -0.45 as they were.
        assert_eq!(held(&folded, "c", 0), [4.0, -9.0]);
        let broken = vec![vec![0.0, 0.0], vec![1.0; 4], vec![0.0, 1.0], vec![0.1]];
        assert!(
            unfolded
                .fold(&mut model.clone(), &broken)
                .expect_err("no scale")
                .contains("`w_scales` is no scale")
        );
    }
}
