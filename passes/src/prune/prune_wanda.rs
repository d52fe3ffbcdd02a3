//! The weights that matter least to what a layer reads become zero.

use optix_ir::Model;
use optix_linalg::Moments;
use optix_pipeline::{
    Batch, Cx, DecisionError, Family, Interface, Named, Numerics, PackedBits, Pass, PassError, Promises,
    Requires, Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::layers::{Prunable, prunable, say_what_runs_it, set_weights};
use super::mask::{Pattern, Shares, by_output, mask, outlier_weighed};
use crate::moments::{self, Read};
use crate::samples;
use crate::unroll::Unrolled;

/// Sets weights to zero whose products with what the layer reads are least: magnitude times the norm of the input
/// on calibration data, compared within each output channel (Wanda; Sun et al. 2024).
///
/// Nothing else changes; `prune-sparsegpt` takes what is lost back with the weights that stay.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PruneWanda {
    /// Share of the weights that become zero.
    pub sparsity: f64,
    /// Where zeros may stand: `unstructured`, `N:M` (N of every M neighbouring inputs are kept), `RxC` (blocks of
    /// R output channels by C inputs).
    pub pattern: Pattern,
    /// How sparsity is shared among layers, where the pattern is not `N:M`.
    pub shares: Shares,
    /// Calibration samples that are looked at, taken evenly from the data.
    pub samples: usize,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for PruneWanda {
    fn default() -> Self {
        PruneWanda {
            sparsity: 0.5,
            pattern: Pattern::default(),
            shares: Shares::default(),
            samples: 128,
            exclude: Vec::new(),
        }
    }
}

impl Named for PruneWanda {
    const NAME: &'static str = "prune-wanda";
    const FAMILY: Family = Family::Prune;
}

/// Magnitudes times the norms of what is read.
pub(super) fn scores(weights: &[f32], unrolled: &Unrolled, moments: &[Moments]) -> Vec<f32> {
    let depth = unrolled.depth;
    let norms: Vec<Vec<f32>> = moments
        .iter()
        .map(|moments| {
            (0..depth).map(|place| moments.products[place * depth + place].max(0.0).sqrt()).collect()
        })
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

impl Pass for PruneWanda {
    fn requires(&self) -> Requires {
        Requires { calibration: true, inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Kept }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let layers = prunable(model, &self.exclude, (self.sparsity, self.pattern, true), cx)?;
        let masks: Vec<Result<PackedBits, String>> = cx.decide("masks", |cx| {
            let batches = batches(model, self.samples, cx)?;
            let scores = all_scores(model, &layers, &batches, cx)?;
            let shares = shares(&scores, self.shares, self.sparsity);
            let of = |((layer, scores), share): ((&Prunable, &Option<Vec<f32>>), f64)| {
                let scores = scores.as_ref().ok_or("what it reads is not finite")?;
                mask(scores, &layer.unrolled, self.pattern, share, true).map(PackedBits)
            };
            Ok(layers.iter().zip(&scores).zip(shares).map(of).collect())
        })?;
        if masks.len() != layers.len() {
            let what = format!("{} masks for {} layers", masks.len(), layers.len());
            return Err(DecisionError::Unusable { key: "masks".to_owned(), what }.into());
        }
        for (layer, zeros) in layers.iter().zip(masks) {
            let zeros = match zeros {
                Ok(zeros) => zeros.0,
                Err(reason) => {
                    cx.skip(model, layer.node, reason);
                    continue;
                }
            };
            if zeros.len() != layer.weights.len() {
                let what = format!("`{}` has {} weights", layer.name, layer.weights.len());
                return Err(DecisionError::Unusable { key: "masks".to_owned(), what }.into());
            }
            if !cx.may_edit("prune-weights") {
                return Ok(());
            }
            let weights: Vec<f32> = layer
                .weights
                .iter()
                .zip(zeros)
                .map(|(&weight, zero)| if zero { 0.0 } else { weight })
                .collect();
            set_weights(model, layer, &weights, cx);
        }
        say_what_runs_it(self.pattern, cx);
        Ok(())
    }
}
