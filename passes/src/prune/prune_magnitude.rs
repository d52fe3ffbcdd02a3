//! The least weights become zero.

use optix_ir::Model;
use optix_pipeline::{Cx, Family, Interface, Named, Numerics, Pass, PassError, Promises, Requires, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use super::fitting::put_zeros;
use super::layers::{Prunable, prunable};
use super::mask::{Pattern, least, mask, share_of};

/// What weights are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Those of their own layer: all layers get the same share of zeros.
    Layer,
    /// Those of all layers.
    Global,
    /// Those of all layers, each weight's square by the sum of those in its layer that are no smaller: no layer
    /// is emptied (LAMP; Lee et al. 2021).
    #[default]
    Lamp,
}

/// Sets the least weights of Conv, Gemm and MatMul to zero.
///
/// Needs no data, and loses more than `prune-sparsegpt` does. By itself it makes nothing smaller or faster: the
/// report says what would.
///
/// ```text
/// <ir_version: 8, opset_import: ["" : 13]>
/// g (float[N, 4] x) => (float[N, 2] y)
/// <float[4, 2] w = {0.5, -2, 0.1, 3, -0.2, 0.3, 4, -5}>
/// { y = MatMul (x, w) }
/// ---
/// <ir_version: 8, opset_import: ["" : 13]>
/// g (float[N, 4] x) => (float[N, 2] y)
/// <float[4, 2] w = {0, -2, 0, 3, 0, 0, 4, -5}>
/// { y = MatMul (x, w) }
/// ```
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PruneMagnitude {
    /// Share of the weights that become zero.
    pub sparsity: f64,
    /// Where zeros may stand: `unstructured`, `N:M` (N of every M neighbouring inputs are kept), `RxC` (blocks of
    /// R output channels by C inputs).
    pub pattern: Pattern,
    /// What weights are compared with, where the pattern is `unstructured`.
    pub scope: Scope,
    /// Whether the channels of pruned layers are scaled and moved, by least squares, to what they gave before, where other
    /// samples show a gain. Needs calibration data; without, nothing is.
    pub recover: bool,
    /// Calibration samples that are looked at for that, taken evenly from the data.
    pub samples: usize,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for PruneMagnitude {
    fn default() -> Self {
        PruneMagnitude {
            sparsity: 0.5,
            pattern: Pattern::default(),
            scope: Scope::default(),
            recover: true,
            samples: 128,
            exclude: Vec::new(),
        }
    }
}

impl Named for PruneMagnitude {
    const NAME: &'static str = "prune-magnitude";
    const FAMILY: Family = Family::Prune;
}

/// Each weight's square by the sum of the squares that are no smaller.
fn lamp(weights: &[f32]) -> Vec<f32> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].abs().total_cmp(&weights[a].abs()).then(b.cmp(&a)));
    let (mut sum, mut scores) = (0f64, vec![0f32; weights.len()]);
    for place in order {
        let square = f64::from(weights[place]).powi(2);
        sum += square;
        scores[place] = if sum > 0.0 { (square / sum) as f32 } else { 0.0 };
    }
    scores
}

impl PruneMagnitude {
    fn masks(&self, layers: &[Prunable]) -> Vec<Result<Vec<bool>, String>> {
        let magnitudes =
            |layer: &Prunable| -> Vec<f32> { layer.weights.iter().map(|weight| weight.abs()).collect() };
        if self.pattern != Pattern::Unstructured || self.scope == Scope::Layer {
            let of = |layer: &Prunable| {
                mask(&magnitudes(layer), &layer.unrolled, self.pattern, self.sparsity, false)
            };
            return layers.iter().map(of).collect();
        }
        let scores: Vec<f32> = match self.scope {
            Scope::Lamp => layers.iter().flat_map(|layer| lamp(&layer.weights)).collect(),
            _ => layers.iter().flat_map(magnitudes).collect(),
        };
        let zeros = least(&scores, share_of(scores.len(), self.sparsity));
        let mut rest = &zeros[..];
        let of = |layer: &Prunable| {
            let (own, others) = rest.split_at(layer.weights.len());
            rest = others;
            Ok(own.to_vec())
        };
        layers.iter().map(of).collect()
    }
}

impl Pass for PruneMagnitude {
    fn requires(&self) -> Requires {
        Requires { inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Kept }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let layers = prunable(model, &self.exclude, (self.sparsity, self.pattern, false), cx)?;
        let of =
            |(layer, zeros): (&Prunable, Result<Vec<bool>, String>)| zeros.map(|zeros| layer.masked(&zeros));
        let found = layers.iter().zip(self.masks(&layers)).map(of).collect();
        let rescaled_by = self.recover.then_some(self.samples);
        put_zeros(model, (&layers, found), self.pattern, rescaled_by, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lamp_scores_are_those_of_the_definition() {
        let scores = lamp(&[1.0, -2.0, 3.0, 0.0]);
        assert_eq!(scores, [1.0 / 14.0, 4.0 / 13.0, 1.0, 0.0]);
        assert_eq!(lamp(&[0.0, 0.0]), [0.0, 0.0]);
    }
}
