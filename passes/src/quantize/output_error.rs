//! Which ranges lose least, measured where it counts: at the outputs of layers and of the model.

use std::cell::Cell;
use std::collections::BTreeMap;

use optix_ir::{DType, Model, ValueId};
use optix_pipeline::{Batch, Batches, Cx, PassError};

use super::affine::Affine;
use super::placement::Placement;
use super::rewrite;

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

/// Errors of one set of quantizers: sums of squared differences over sums of squares.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Errors {
    /// At the output of each layer, in the placement's order.
    pub(super) layers: Vec<f64>,
    /// At the model's outputs: their mean.
    pub(super) model: f64,
}

/// Elements of a tensor, evenly apart.
fn some(elements: &[f32]) -> Vec<f32> {
    // An odd distance, so that it does not fall on the same column of every row.
    let step = elements.len().div_ceil(ELEMENTS).max(1) | 1;
    let step = if elements.len() <= ELEMENTS { 1 } else { step };
    elements.iter().step_by(step).copied().collect()
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
    let given = Cell::new(0usize);
    let batches: Batches<'_> = &mut samples.iter().map(|sample| {
        given.set(given.get() + 1);
        Ok(sample.clone())
    });
    cx.oracle().observe(model, &once, batches, &mut |value, tensor| {
        if tensor.dtype() == DType::F32
            && let Ok(elements) = tensor.to_slice::<f32>()
        {
            let kept = some(&elements);
            for &place in &places[&value] {
                show(place, given.get() - 1, kept.clone());
            }
        }
        Ok(())
    })?;
    Ok(())
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
        run(&model, &wanted, self.samples, cx, &mut |place, sample, found| {
            let Some(expected) =
                self.expected.get(&(place, sample)).filter(|known| known.len() == found.len())
            else {
                return;
            };
            for (&a, &b) in expected.iter().zip(&found) {
                sums[place].0 += f64::from(a) * f64::from(a);
                sums[place].1 += (f64::from(a) - f64::from(b)).powi(2);
            }
        })?;
        // What overflows or is not a number is the worst of all.
        let relative = |&(signal, noise): &(f64, f64)| match (signal > 0.0, noise.is_finite()) {
            (true, true) => noise / signal,
            (false, true) => 0.0,
            _ => f64::INFINITY,
        };
        let (layers, outputs) = sums.split_at(self.layers.len());
        let model = outputs.iter().map(relative).sum::<f64>() / outputs.len().max(1) as f64;
        Ok(Errors { layers: layers.iter().map(relative).collect(), model })
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
