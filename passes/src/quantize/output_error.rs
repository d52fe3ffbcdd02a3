//! Which ranges lose least, measured where it counts: at the outputs of layers and of the model.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, ValueId};
use optix_pipeline::{Batch, Cx, PassError};

use super::affine::Affine;
use super::numbered;
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
    /// At the model's outputs, for each sample: the mean over the outputs.
    pub(super) samples: Vec<f64>,
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

impl Errors {
    /// By which factor these errors at the model's outputs are smaller or greater than others: the natural
    /// logarithm, its mean over the samples and the standard error of that. Logarithms, since a few samples
    /// near a decision would outweigh all others.
    pub(super) fn beside(&self, others: &Errors) -> (f64, f64) {
        // Errors below this are none: what is left are last digits.
        let floor = 1e-12;
        let pairs = self.samples.iter().zip(&others.samples);
        let logs: Vec<f64> = pairs.map(|(a, b)| (a.clamp(floor, 1e12) / b.clamp(floor, 1e12)).ln()).collect();
        let count = logs.len() as f64;
        if logs.len() < 2 {
            return (0.0, f64::INFINITY);
        }
        let mean = logs.iter().sum::<f64>() / count;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, (variance / count).sqrt())
    }

    /// By which factor the errors at layers from one on are smaller or greater than others: the natural logarithm,
    /// its mean over the layers. Layers count alike, however small their errors are.
    fn at_layers(&self, others: &Errors, from: usize) -> f64 {
        let floor = 1e-12;
        let pairs = self.layers.iter().zip(&others.layers).skip(from);
        let logs: Vec<f64> = pairs.map(|(a, b)| (a.clamp(floor, 1e12) / b.clamp(floor, 1e12)).ln()).collect();
        logs.iter().sum::<f64>() / logs.len().max(1) as f64
    }

    /// The change of the error at the model's outputs from others that is to be expected of what layers from one
    /// on and outputs show: its natural logarithm. Layers show it within about a fifth, whatever the samples
    /// (measured on six models with 40 to 64 samples: the two differed by 0.2 on average); outputs by themselves
    /// and, of few samples, badly. Each counts by its precision.
    pub(super) fn expected_change(&self, others: &Errors, from: usize) -> f64 {
        const SPREAD: f64 = 0.2;
        let (mean, error) = self.beside(others);
        let of_layers = SPREAD.powi(-2);
        let of_outputs = error.max(1e-3).powi(-2);
        (self.at_layers(others, from) * of_layers + mean * of_outputs) / (of_layers + of_outputs)
    }

    /// Whether these errors are smaller: at the typical sample and, for a few may lose more than all others
    /// gain, in sum.
    pub(super) fn is_less_than(&self, others: &Errors) -> bool {
        let sum = |errors: &Errors| errors.samples.iter().sum::<f64>();
        self.beside(others).0 < 0.0 && sum(self) < sum(others)
    }

    /// The change from others as it is said.
    pub(super) fn said_beside(&self, others: &Errors) -> String {
        let (mean, error) = self.beside(others);
        let percent = |log: f64| (log.exp() - 1.0) * 100.0;
        format!(
            "{:+.0}% of the error at the outputs on {} other samples (95% interval {:+.0} to {:+.0}%)",
            percent(mean),
            self.samples.len(),
            percent(mean - 1.96 * error),
            percent(mean + 1.96 * error)
        )
    }
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

    fn errors(samples: &[f64]) -> Errors {
        Errors { layers: Vec::new(), samples: samples.to_vec() }
    }

    #[test]
    fn one_odd_sample_does_not_decide() {
        let base = errors(&[1e-3, 2e-3, 1e-3, 4e-3, 2e-3, 1e-3]);
        let better = errors(&[0.8e-3, 1.5e-3, 0.9e-3, 3e-3, 1.6e-3, 0.8e-3]);
        let (mean, error) = better.beside(&base);
        assert!(mean + 2.0 * error < -0.1, "{mean} {error}");
        // A hundredth of the error in one sample, a little more in the others.
        let odd = errors(&[1e-5, 2.2e-3, 1.1e-3, 4.1e-3, 2.3e-3, 1.1e-3]);
        let (mean, error) = odd.beside(&base);
        assert!(mean + 2.0 * error > 0.0, "{mean} {error}");
        assert_eq!(errors(&[0.0, 0.0]).beside(&errors(&[0.0, 0.0])), (0.0, 0.0));
        assert_eq!(errors(&[0.1]).beside(&errors(&[0.2])), (0.0, f64::INFINITY));
        assert!(errors(&[f64::INFINITY, 1.0]).beside(&base).0 > 0.0);
    }

    #[test]
    fn layers_decide_where_outputs_say_little() {
        let with = |layers: &[f64], samples: &[f64]| Errors { layers: layers.to_vec(), ..errors(samples) };
        let before = with(&[1e-3, 1e-3], &[1e-3, 1e-3, 1e-3, 1e-3]);
        // Half the error at layers, outputs all over the place.
        let after = with(&[0.5e-3, 0.5e-3], &[5e-3, 0.1e-3, 8e-3, 0.3e-3]);
        assert!(after.expected_change(&before, 0) < -0.4);
        // Outputs that surely lose outweigh layers that gain.
        let after = with(&[0.9e-3, 0.9e-3], &[1.2e-3, 1.21e-3, 1.19e-3, 1.2e-3]);
        assert!(after.expected_change(&before, 0) > 0.1);
        // Layers before those that changed say nothing.
        let after = with(&[2e-3, 0.5e-3], &[1e-3, 1e-3]);
        assert!(after.at_layers(&before, 1) < -0.6 && after.at_layers(&before, 0).abs() < 1e-9);
    }

    #[test]
    fn elements_are_taken_from_all_columns() {
        let many: Vec<f32> = (0..1 << 18).map(|i| (i % 64) as f32).collect();
        let kept = some(&many);
        assert!(kept.len() <= ELEMENTS && kept.len() > ELEMENTS / 2);
        assert!((0..64).all(|column| kept.contains(&(column as f32))));
        assert_eq!(some(&many[..10]), many[..10]);
    }
}
