//! The weights that matter least to what a layer reads become zero.

use optix_ir::Model;
use optix_pipeline::{
    Cx, DecisionError, Family, Interface, Named, Numerics, PackedBits, Pass, PassError, Promises, Requires,
    Topology,
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::fitting::put_zeros;
use super::layers::{Prunable, prunable};
use super::mask::{Pattern, mask};
use super::shares::{Shares, all_scores, batches, shares};

/// Sets weights to zero whose products with what the layer reads are least: magnitude times the norm of the input
/// on calibration data, compared within each output channel (Wanda; Sun et al. 2024).
///
/// Then channels are scaled and moved to what they gave before (`recover`); `prune-sparsegpt` takes what is lost back with the
/// weights that stay, too.
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
    /// Whether the channels of pruned layers are scaled and moved, by least squares, to what they gave before, where other
    /// samples show a gain.
    pub recover: bool,
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
            recover: true,
            exclude: Vec::new(),
        }
    }
}

impl Named for PruneWanda {
    const NAME: &'static str = "prune-wanda";
    const FAMILY: Family = Family::Prune;
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
        let unusable = |what| DecisionError::Unusable { key: "masks".to_owned(), what };
        if masks.len() != layers.len() {
            return Err(unusable(format!("{} masks for {} layers", masks.len(), layers.len())).into());
        }
        let of = |(layer, zeros): (&Prunable, Result<PackedBits, String>)| match zeros {
            Ok(PackedBits(zeros)) if zeros.len() != layer.weights.len() => {
                Err(unusable(format!("`{}` has {} weights", layer.name, layer.weights.len())))
            }
            zeros => Ok(zeros.map(|PackedBits(zeros)| layer.masked(&zeros))),
        };
        let found = layers.iter().zip(masks).map(of).collect::<Result<Vec<_>, _>>()?;
        let rescaled_by = self.recover.then_some(self.samples);
        put_zeros(model, (&layers, found), self.pattern, rescaled_by, cx)
    }
}
