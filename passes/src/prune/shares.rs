//! How many weights of each layer become zero, by what they do for what the layer gives.

use optix_ir::Model;
use optix_linalg::Moments;
use optix_pipeline::{Batch, Cx, PassError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::layers::Prunable;
use super::mask::{least, share_of};
use crate::moments::{self, Read};
use crate::samples;
use crate::unroll::Unrolled;

/// How sparsity is shared among layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Shares {
    /// All layers get the same.
    Uniform,
    /// Layers with more outliers among products of weights and inputs get less, by up to 8 points (OWL; Yin et al.
    /// 2024).
    Owl,
    /// Weights of all layers are compared by their part in what their own layer gives: layers with few weights,
    /// such as depthwise convolutions, keep most of them.
    #[default]
    Output,
}

/// The share of each layer under [`Shares::Output`], from the scores of its weights: of all weights, those with the
/// least energy by that of their layer become zero.
fn by_output(scores: &[&[f32]], sparsity: f64) -> Vec<f64> {
    let of_layer = |scores: &&[f32]| -> Vec<f32> {
        let energy: f64 = scores.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let part = |&x: &f32| if energy > 0.0 { (f64::from(x) * f64::from(x) / energy) as f32 } else { 0.0 };
        scores.iter().map(part).collect()
    };
    let parts: Vec<f32> = scores.iter().flat_map(of_layer).collect();
    let zeros = least(&parts, share_of(parts.len(), sparsity));
    let mut rest = &zeros[..];
    let of = |scores: &&[f32]| {
        let (own, others) = rest.split_at(scores.len());
        rest = others;
        own.iter().filter(|zero| **zero).count() as f64 / own.len().max(1) as f64
    };
    scores.iter().map(of).collect()
}

/// The share of each layer under [`Shares::Owl`], from the scores of its weights. The mean over all weights is
/// `sparsity`.
fn outlier_weighed(scores: &[&[f32]], sparsity: f64) -> Vec<f64> {
    /// An outlier is so many times the mean.
    const TIMES: f64 = 5.0;
    /// Shares differ from the mean by no more than this.
    const MOST: f64 = 0.08;
    let outliers = |scores: &&[f32]| {
        let mean = scores.iter().map(|&x| f64::from(x)).sum::<f64>() / scores.len().max(1) as f64;
        let many = scores.iter().filter(|&&x| f64::from(x) > TIMES * mean).count();
        many as f64 / scores.len().max(1) as f64
    };
    let found: Vec<f64> = scores.iter().map(outliers).collect();
    let (least, most) =
        found.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
    let width = most - least;
    let raw: Vec<f64> = match width > 0.0 {
        true => found.iter().map(|x| -2.0 * MOST * (x - least) / width).collect(),
        false => vec![0.0; found.len()],
    };
    let total: f64 = scores.iter().map(|scores| scores.len() as f64).sum();
    let mean =
        raw.iter().zip(scores).map(|(x, scores)| x * scores.len() as f64).sum::<f64>() / total.max(1.0);
    raw.iter().map(|x| (sparsity + x - mean).clamp(0.0, 1.0)).collect()
}

/// Magnitudes times the norms of what is read.
fn scores(weights: &[f32], unrolled: &Unrolled, moments: &[Moments]) -> Vec<f32> {
    let depth = unrolled.depth;
    let norms: Vec<Vec<f32>> = moments
        .iter()
        .map(|moments| moments.diagonal().map(|square| square.max(0.0).sqrt()).collect())
        .collect();
    let of = |(at, weight): (usize, &f32)| weight.abs() * norms[at / depth / unrolled.rows][at % depth];
    weights.iter().enumerate().map(of).collect()
}

/// The calibration data to look at.
pub(super) fn batches(model: &Model, samples: usize, cx: &mut Cx<'_>) -> Result<Vec<Batch>, PassError> {
    let batches = samples::spread(model, samples, cx)?;
    let count: usize = batches.iter().map(|batch| batch.count).sum();
    cx.count("calibration samples", count as u64);
    match count {
        0 => Err(PassError::Options("the calibration data hold no samples".to_owned())),
        _ => Ok(batches),
    }
}

/// Scores of all layers, from one run of the model as it is; none for layers whose inputs are not finite.
pub(super) fn all_scores(
    model: &Model,
    layers: &[Prunable],
    batches: &[Batch],
    cx: &mut Cx<'_>,
) -> Result<Vec<Option<Vec<f32>>>, PassError> {
    let mut found: Vec<Option<Vec<f32>>> = layers.iter().map(|_| None).collect();
    let mut start = 0;
    for part in moments::parts(layers, &|layer| &layer.unrolled) {
        let unrolled: Vec<&Unrolled> = part.iter().map(|layer| &layer.unrolled).collect();
        for Read { layers: places, moments } in
            moments::read(model, &unrolled, batches, "measuring what layers read", cx)?
        {
            let Some(moments) = moments else { continue };
            for place in places {
                found[start + place] = Some(scores(&part[place].weights, unrolled[place], &moments));
            }
        }
        start += part.len();
    }
    Ok(found)
}

/// The share of each layer.
pub(super) fn shares(scores: &[Option<Vec<f32>>], shares: Shares, sparsity: f64) -> Vec<f64> {
    let known: Vec<&[f32]> = scores.iter().flatten().map(Vec::as_slice).collect();
    let found = match shares {
        Shares::Uniform => vec![sparsity; known.len()],
        Shares::Owl => outlier_weighed(&known, sparsity),
        Shares::Output => by_output(&known, sparsity),
    };
    let mut found = found.into_iter();
    scores.iter().map(|scores| scores.as_ref().and_then(|_| found.next()).unwrap_or(sparsity)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_outliers_keep_more() {
        let even = vec![1f32; 1000];
        let mut odd = even.clone();
        odd[..20].fill(50.0);
        let found = outlier_weighed(&[&even, &odd], 0.5);
        assert!((found[0] - 0.58).abs() < 1e-9 && (found[1] - 0.42).abs() < 1e-9, "{found:?}");
        assert_eq!(outlier_weighed(&[&even, &even], 0.3), [0.3, 0.3]);
        // The larger layer weighs more in the mean.
        let found = outlier_weighed(&[&even[..100], &odd], 0.5);
        assert!((found[0] * 100.0 + found[1] * 1000.0 - 550.0).abs() < 1e-6);
    }

    #[test]
    fn layers_with_few_weights_keep_most_of_them() {
        let (large, small) = (vec![1f32; 1000], vec![1f32; 10]);
        let found = by_output(&[&large, &small], 0.5);
        assert!((found[0] - 0.505).abs() < 1e-9 && found[1] == 0.0, "{found:?}");
        assert_eq!(by_output(&[&[0.0, 0.0], &[1.0, 2.0]], 0.5), [1.0, 0.0]);
    }
}
