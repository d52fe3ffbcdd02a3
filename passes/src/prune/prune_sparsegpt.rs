//! Weights become zero, and those that stay take the loss back.

use optix_ir::Model;
use optix_linalg::{Moments, inverse_factor, subtract_from_columns};
use optix_pipeline::{
    Cx, DecisionError, Family, Interface, Named, Numerics, PackedFloats, Pass, PassError, Promises, Requires,
    Topology,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

use super::fitting::put_zeros;
use super::layers::{Prunable, prunable};
use super::mask::{Pattern, lanes, least, share_of};
use super::shares::{Shares, all_scores, batches, shares};
use crate::moments::{self, Read};
use crate::unroll::Unrolled;

/// Sets weights to zero that a layer's output misses least, and changes the others so that it misses them less
/// still (SparseGPT; Frantar and Alistarh 2023).
///
/// For each layer, second moments of its inputs on calibration data say what every weight is worth and which others
/// can stand in for it. Columns are treated from left to right, in blocks of 128 for the choice; what a zero costs
/// is moved to the columns behind it. Layers are treated in up to 16 parts, each on what the layers before it, with
/// their zeros, pass on. The lock of a run holds all new weights, since nothing else could give them back.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct PruneSparsegpt {
    /// Share of the weights that become zero.
    pub sparsity: f64,
    /// Where zeros may stand: `unstructured`, or `N:M` (N of every M neighbouring inputs are kept).
    pub pattern: Pattern,
    /// How sparsity is shared among layers, where the pattern is `unstructured`.
    pub shares: Shares,
    /// Calibration samples that are looked at, taken evenly from the data.
    pub samples: usize,
    /// Whether the channels of pruned layers are scaled and moved, by least squares, to what they gave before, where other
    /// samples show a gain.
    pub recover: bool,
    /// Leave these nodes alone: names, with `*` for any run of characters.
    pub exclude: Vec<String>,
}

impl Default for PruneSparsegpt {
    fn default() -> Self {
        PruneSparsegpt {
            sparsity: 0.5,
            pattern: Pattern::default(),
            shares: Shares::default(),
            samples: 128,
            recover: true,
            exclude: Vec::new(),
        }
    }
}

impl Named for PruneSparsegpt {
    const NAME: &'static str = "prune-sparsegpt";
    const FAMILY: Family = Family::Prune;
}

/// Parts that layers are treated in at most.
const PARTS: usize = 16;

/// Columns whose zeros are chosen at once.
const BLOCK: usize = 128;

/// Share of the mean of its diagonal that is added to a matrix of second moments; ten times as much where that
/// does not do, up to the mean itself.
const DAMPING: [f32; 3] = [0.01, 0.1, 1.0];

/// Which weights may be chosen.
#[derive(Clone, Copy)]
enum Choice {
    /// A share of all.
    Share(f64),
    /// All but so many of each run within lanes of so many neighbours.
    Runs { kept: usize, of: usize, lane: usize },
}

impl Choice {
    /// Columns that are treated together: no run lies in two of them.
    fn blocks(self, depth: usize) -> Vec<(usize, usize)> {
        let (lane, width) = match self {
            Choice::Share(_) => (depth, BLOCK),
            Choice::Runs { of, lane, .. } => (lane, BLOCK / of * of),
        };
        let of_lane = |start: usize| {
            (start..start + lane).step_by(width.max(1)).map(move |at| (at, (at + width).min(start + lane)))
        };
        (0..depth).step_by(lane.max(1)).flat_map(of_lane).collect()
    }
}

/// The factor of the inverse second moments, places in another order.
fn factor(moments: &Moments, order: &[usize]) -> Option<Vec<f32>> {
    let depth = order.len();
    let mut products: Vec<f32> = Vec::with_capacity(depth * depth);
    for &row in order {
        products.extend(order.iter().map(|&column| moments.products[row * depth + column]));
    }
    let diagonal = |products: &[f32], at: usize| products[at * depth + at];
    let mean = (0..depth).map(|at| diagonal(&products, at)).sum::<f32>() / depth.max(1) as f32;
    if mean <= 0.0 {
        return None;
    }
    let mut added = 0.0;
    DAMPING.iter().find_map(|damping| {
        (0..depth).for_each(|at| products[at * depth + at] += damping * mean - added);
        added = damping * mean;
        inverse_factor(&products, depth)
    })
}

/// Prunes a layer: `weights` are rows of `depth` elements, `rows` of them for each of the `factors`.
fn prune(weights: &mut [f32], depth: usize, rows: usize, factors: &[Vec<f32>], choice: Choice) {
    let of_row = |row: usize| &factors[row / rows];
    let mut zeros = vec![false; weights.len()];
    for (start, end) in choice.blocks(depth) {
        let width = end - start;
        if let Choice::Share(share) = choice {
            let score = |(row, weights): (usize, &[f32])| -> Vec<f32> {
                let own = |at: usize| (weights[at] / of_row(row)[at * depth + at]).abs();
                (start..end).map(own).collect()
            };
            let scores: Vec<f32> = weights.chunks_exact(depth).enumerate().flat_map(score).collect();
            let chosen = least(&scores, share_of(scores.len(), share));
            for (zeros, chosen) in zeros.chunks_exact_mut(depth).zip(chosen.chunks_exact(width)) {
                zeros[start..end].copy_from_slice(chosen);
            }
        }
        let mut errors = vec![0f32; weights.len() / depth * width];
        let of_rows = weights.par_chunks_exact_mut(depth).zip(zeros.par_chunks_exact_mut(depth));
        of_rows.zip(errors.par_chunks_exact_mut(width)).enumerate().for_each(
            |(row, ((weights, zeros), errors))| {
                let factor = of_row(row);
                for at in start..end {
                    let line = &factor[at * depth..][..depth];
                    if let Choice::Runs { kept, of, lane } = choice
                        && (at % lane) % of == 0
                        && at % lane + of <= lane
                    {
                        let score = |at: usize| (weights[at] / factor[at * depth + at]).abs();
                        let scores: Vec<f32> = (at..at + of).map(score).collect();
                        zeros[at..at + of].copy_from_slice(&least(&scores, of - kept));
                    }
                    if !zeros[at] {
                        continue;
                    }
                    let error = weights[at] / line[at];
                    weights[at] = 0.0;
                    errors[at - start] = error;
                    let behind = weights[at + 1..end].iter_mut().zip(&line[at + 1..end]);
                    behind.for_each(|(weight, factor)| *weight -= error * factor);
                }
            },
        );
        // What lies behind the block is changed by all of its columns at once.
        let of_groups = weights.chunks_exact_mut(rows * depth).zip(errors.chunks_exact(rows * width));
        for ((weights, errors), factor) in of_groups.zip(factors) {
            subtract_from_columns(weights, depth, end, errors, &factor[start * depth..end * depth]);
        }
    }
}

/// New weights of a layer.
fn pruned(layer: &Prunable, moments: &[Moments], pattern: Pattern, share: f64) -> Result<Vec<f32>, String> {
    let Unrolled { depth, rows, .. } = layer.unrolled;
    let (order, lane) = lanes(&layer.unrolled);
    let choice = match pattern {
        Pattern::Unstructured => Choice::Share(share),
        Pattern::Runs { of, .. } if lane < of => {
            return Err(format!("an output has {lane} neighbouring inputs, a run of the pattern {of}"));
        }
        Pattern::Runs { kept, of } => Choice::Runs { kept, of, lane },
        Pattern::Blocks { .. } => return Err("blocks are for the other prune passes".to_owned()),
    };
    let factors: Option<Vec<Vec<f32>>> = moments.par_iter().map(|moments| factor(moments, &order)).collect();
    let factors = factors.ok_or("what it reads is all zero, or tells its weights too little apart")?;
    let ordered = |weights: &[f32]| -> Vec<f32> {
        weights.chunks_exact(depth).flat_map(|row| order.iter().map(|&place| row[place])).collect()
    };
    let mut weights = ordered(&layer.weights);
    prune(&mut weights, depth, rows, &factors, choice);
    let mut found = vec![0f32; weights.len()];
    for (found, row) in found.chunks_exact_mut(depth).zip(weights.chunks_exact(depth)) {
        order.iter().zip(row).for_each(|(&place, &weight)| found[place] = weight);
    }
    match found.iter().all(|weight| weight.is_finite()) {
        true => Ok(found),
        false => Err("its new weights would not be finite".to_owned()),
    }
}

impl PruneSparsegpt {
    /// New weights of all layers, part by part.
    fn search(
        &self,
        model: &Model,
        layers: &[Prunable],
        cx: &mut Cx<'_>,
    ) -> Result<Vec<Result<PackedFloats, String>>, PassError> {
        let batches = batches(model, self.samples, cx)?;
        let shares = match (self.pattern, self.shares) {
            (Pattern::Unstructured, Shares::Owl | Shares::Output) => {
                let scores = all_scores(model, layers, &batches, cx)?;
                shares(&scores, self.shares, self.sparsity)
            }
            _ => vec![self.sparsity; layers.len()],
        };
        let mut current = model.clone();
        let mut found: Vec<Result<PackedFloats, String>> = Vec::new();
        for part in layers.chunks(layers.len().div_ceil(PARTS).max(1)) {
            for part in moments::parts(part, &|layer| &layer.unrolled) {
                let start = found.len();
                let unrolled: Vec<&Unrolled> = part.iter().map(|layer| &layer.unrolled).collect();
                let mut of_part: Vec<Result<PackedFloats, String>> =
                    part.iter().map(|_| Err("what it reads is not finite".to_owned())).collect();
                for Read { layers: places, moments } in
                    moments::read(&current, &unrolled, &batches, "measuring what layers read", cx)?
                {
                    let Some(moments) = moments else { continue };
                    for place in places {
                        let share = shares[start + place];
                        of_part[place] =
                            pruned(&part[place], &moments, self.pattern, share).map(PackedFloats);
                    }
                }
                for (layer, weights) in part.iter().zip(&of_part) {
                    if let Ok(weights) = weights {
                        layer.put(&mut current, &weights.0);
                    }
                }
                found.extend(of_part);
            }
        }
        Ok(found)
    }
}

impl Pass for PruneSparsegpt {
    fn requires(&self) -> Requires {
        Requires { calibration: true, inferred_types: true, ..Requires::default() }
    }

    fn promises(&self) -> Promises {
        Promises { numerics: Numerics::Lossy, interface: Interface::Kept, topology: Topology::Kept }
    }

    fn run(&self, model: &mut Model, cx: &mut Cx<'_>) -> Result<(), PassError> {
        let layers = prunable(model, &self.exclude, (self.sparsity, self.pattern, true), cx)?;
        let found = cx.decide("weights", |cx| self.search(model, &layers, cx))?;
        let unusable = |what| DecisionError::Unusable { key: "weights".to_owned(), what };
        if found.len() != layers.len() {
            return Err(unusable(format!("weights of {} of {} layers", found.len(), layers.len())).into());
        }
        let of = |(layer, weights): (&Prunable, Result<PackedFloats, String>)| match weights {
            Ok(PackedFloats(weights))
                if weights.len() != layer.weights.len()
                    || weights.iter().any(|weight| !weight.is_finite()) =>
            {
                Err(unusable(format!("`{}` has {} finite weights", layer.name, layer.weights.len())))
            }
            weights => Ok(weights.map(|PackedFloats(weights)| weights)),
        };
        let found = layers.iter().zip(found).map(of).collect::<Result<Vec<_>, _>>()?;
        let rescaled_by = self.recover.then_some(self.samples);
        put_zeros(model, (&layers, found), self.pattern, rescaled_by, cx)
    }
}

#[cfg(test)]
mod tests {
    use optix_linalg::Gram;

    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 9973) as f32 / 5000.0 - 1.0).collect()
    }

    /// Inputs that go together, and the error of some weights on them.
    fn inputs(depth: usize) -> Vec<f32> {
        let (own, shared) = (numbers(400 * depth, 1), numbers(400 * 4, 2));
        (0..400 * depth).map(|i| 0.3 * own[i] + shared[i / depth * 4 + i % depth % 4]).collect()
    }

    fn error(inputs: &[f32], before: &[f32], after: &[f32], depth: usize) -> f64 {
        let of_row = |(a, b): (&[f32], &[f32])| -> f64 {
            let off: Vec<f64> = a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect();
            let at = |x: &[f32]| x.iter().zip(&off).map(|(x, d)| f64::from(*x) * d).sum::<f64>().powi(2);
            inputs.chunks_exact(depth).map(at).sum()
        };
        before.chunks_exact(depth).zip(after.chunks_exact(depth)).map(of_row).sum()
    }

    #[test]
    fn what_stays_takes_the_loss_back() {
        let (depth, rows) = (160, 6);
        let inputs = inputs(depth);
        let mut gram = Gram::new(depth);
        gram.add(&inputs);
        let order: Vec<usize> = (0..depth).collect();
        let factors = [factor(&gram.finish(), &order).expect("it is positive definite")];
        let before = numbers(rows * depth, 3);
        for (choice, zeros) in [
            (Choice::Share(0.5), rows * depth / 2),
            (Choice::Runs { kept: 2, of: 4, lane: depth }, rows * depth / 2),
            (Choice::Runs { kept: 1, of: 4, lane: depth / 10 }, rows * depth * 3 / 4),
        ] {
            let mut found = before.clone();
            prune(&mut found, depth, rows, &factors, choice);
            assert_eq!(found.iter().filter(|weight| **weight == 0.0).count(), zeros);
            // The same zeros without the rest.
            let masked: Vec<f32> =
                before.iter().zip(&found).map(|(&a, &b)| if b == 0.0 { 0.0 } else { a }).collect();
            let (own, plain) =
                (error(&inputs, &before, &found, depth), error(&inputs, &before, &masked, depth));
            assert!(own < plain * 0.5, "{plain} -> {own}");
        }
    }

    #[test]
    fn runs_lie_within_blocks() {
        let of = |choice: Choice, depth: usize| choice.blocks(depth);
        assert_eq!(of(Choice::Share(0.5), 300), [(0, 128), (128, 256), (256, 300)]);
        let runs = Choice::Runs { kept: 1, of: 3, lane: 130 };
        assert_eq!(of(runs, 260), [(0, 126), (126, 130), (130, 256), (256, 260)]);
    }
}
