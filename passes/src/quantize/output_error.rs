//! Which ranges lose least, measured where it counts: at the outputs of layers and of the model.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, ValueId};
use optix_pipeline::{Batch, Cx, PassError};

use super::affine::Affine;
use super::placement::Placement;
use super::rewrite;
use crate::judge::Errors;
use crate::{evenly, numbered};

/// Elements of a value compared in one sample, about; evenly apart when it has more.
const ELEMENTS: usize = 1 << 14;

/// Quantizers of all activations.
pub(super) type Quantizers = BTreeMap<ValueId, Affine>;

/// What the float model gives on some samples, to compare others with.
pub(super) struct Reference<'a> {
    model: &'a Model,
    placement: &'a Placement,
    samples: &'a [Batch],
    /// Outputs of layers with weights, then of the model: looked at.
    layers: Vec<ValueId>,
    /// Some elements of each, by place in the lists above and by sample.
    expected: BTreeMap<(usize, usize), Vec<f32>>,
}

/// Elements of a tensor, evenly apart.
fn some(elements: &[f32]) -> Vec<f32> {
    elements.iter().step_by(evenly::step(elements.len(), ELEMENTS)).copied().collect()
}

fn outputs(model: &Model) -> Vec<ValueId> {
    model.graph(model.main()).outputs().iter().map(|info| info.value).collect()
}

/// Runs a model over samples; shows some elements of each wanted value that is float, with its place in
/// `wanted` and the sample's.
fn run(
    model: &Model,
    wanted: &[ValueId],
    samples: &[Batch],
    cx: &mut Cx<'_>,
    show: &mut dyn FnMut(usize, usize, Vec<f32>),
) -> Result<(), PassError> {
    let mut places: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (place, &value) in wanted.iter().enumerate() {
        places.entry(value).or_default().push(place);
    }
    let once: Vec<ValueId> = places.keys().copied().collect();
    let batches = &mut samples.iter().cloned();
    numbered::observe(
        ("judging ranges", samples.len()),
        model,
        &once,
        batches,
        cx,
        &mut |sample, value, tensor| {
            if tensor.dtype() == DType::F32
                && let Ok(elements) = tensor.to_slice::<f32>()
            {
                let kept = some(&elements);
                for &place in &places[&value] {
                    show(place, sample, kept.clone());
                }
            }
            Ok(())
        },
    )
}

impl<'a> Reference<'a> {
    /// Runs the float model over some samples.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(super) fn new(
        model: &'a Model,
        placement: &'a Placement,
        samples: &'a [Batch],
        cx: &mut Cx<'_>,
    ) -> Result<Reference<'a>, PassError> {
        let layers: Vec<ValueId> = placement.weighted.iter().map(|weighted| weighted.output).collect();
        let wanted: Vec<ValueId> = layers.iter().copied().chain(outputs(model)).collect();
        let mut expected = BTreeMap::new();
        run(model, &wanted, samples, cx, &mut |place, sample, elements| {
            expected.insert((place, sample), elements);
        })?;
        Ok(Reference { model, placement, samples, layers, expected })
    }

    /// Runs the model with these quantizers on its activations; weights stay float.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(super) fn errors(
        &self,
        quantizers: &Quantizers,
        dtype: DType,
        cx: &mut Cx<'_>,
    ) -> Result<Errors, PassError> {
        let model = self.with(quantizers, dtype)?;
        let wanted: Vec<ValueId> = self.layers.iter().copied().chain(outputs(&model)).collect();
        let mut sums = vec![(0f64, 0f64); wanted.len()];
        let layers = self.layers.len();
        let outputs = wanted.len() - layers;
        let mut of_samples = vec![0f64; self.samples.len()];
        // What overflows or is not a number is the worst of all.
        let relative = |(signal, noise): (f64, f64)| match (signal > 0.0, noise.is_finite()) {
            (true, true) => noise / signal,
            (false, true) => 0.0,
            _ => f64::INFINITY,
        };
        run(&model, &wanted, self.samples, cx, &mut |place, sample, found| {
            let Some(expected) =
                self.expected.get(&(place, sample)).filter(|known| known.len() == found.len())
            else {
                return;
            };
            let (mut signal, mut noise) = (0f64, 0f64);
            for (&a, &b) in expected.iter().zip(&found) {
                signal += f64::from(a) * f64::from(a);
                noise += (f64::from(a) - f64::from(b)).powi(2);
            }
            sums[place].0 += signal;
            sums[place].1 += noise;
            if place >= layers {
                of_samples[sample] += relative((signal, noise)) / outputs as f64;
            }
        })?;
        let layers = sums[..layers].iter().map(|&sums| relative(sums)).collect();
        Ok(Errors { layers, samples: of_samples })
    }

    /// The model with quantizers behind its activations and with float weights.
    fn with(&self, quantizers: &Quantizers, dtype: DType) -> Result<Model, PassError> {
        let mut model = self.model.clone();
        let reads: Vec<_> = self
            .placement
            .reads
            .iter()
            .filter_map(|&(node, slot)| Some((node, slot, model.node(node).input(slot)?)))
            .collect();
        let mut dequantized = BTreeMap::new();
        for &(value, _) in &self.placement.quantized {
            let Some(quantizer) = quantizers.get(&value) else { continue };
            let everybody = self.placement.resident.contains(&value);
            dequantized.insert(value, rewrite::insert_pair(&mut model, value, quantizer, dtype, everybody)?);
        }
        for (node, slot, value) in reads {
            if let Some(&new) = dequantized.get(&value) {
                model.set_input(node, slot, Some(new));
            }
        }
        Ok(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_taken_from_all_columns() {
        let many: Vec<f32> = (0..1 << 18).map(|i| (i % 64) as f32).collect();
        let kept = some(&many);
        assert!(kept.len() <= ELEMENTS && kept.len() > ELEMENTS / 2);
        assert!((0..64).all(|column| kept.contains(&(column as f32))));
        assert_eq!(some(&many[..10]), many[..10]);
    }
}
