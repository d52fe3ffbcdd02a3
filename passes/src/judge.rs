//! What a change costs, at the outputs of layers and of the model, on samples that nothing was learned from.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_pipeline::{Batch, Cx, PassError, SignalNoise};

use crate::{evenly, numbered};

/// Errors of a model beside another: sums of squared differences over sums of squares.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Errors {
    /// At the output of each layer that is looked at, in order.
    pub(crate) layers: Vec<f64>,
    /// At the model's outputs, for each sample: the mean over the outputs.
    pub(crate) samples: Vec<f64>,
}

/// An error as it is compared: below this there is none, what is left are last digits.
fn kept(error: f64) -> f64 {
    error.clamp(1e-12, 1e12)
}

/// Logarithms of errors by others, pair by pair.
fn logs(errors: &[f64], others: &[f64]) -> Vec<f64> {
    errors.iter().zip(others).map(|(&a, &b)| (kept(a) / kept(b)).ln()).collect()
}

impl Errors {
    /// The error at the model's outputs of the typical sample: the geometric mean, since a few samples near a decision
    /// would outweigh all others.
    pub(crate) fn typical(&self) -> f64 {
        let logs = self.samples.iter().map(|&error| kept(error).ln());
        (logs.sum::<f64>() / self.samples.len().max(1) as f64).exp()
    }

    /// By which factor these errors at the model's outputs are smaller or greater than others: the natural
    /// logarithm, its mean over the samples and the standard error of that. Logarithms, since a few samples
    /// near a decision would outweigh all others.
    pub(crate) fn beside(&self, others: &Errors) -> (f64, f64) {
        let logs = logs(&self.samples, &others.samples);
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
        let logs = logs(&self.layers, &others.layers);
        let logs = logs.get(from..).unwrap_or_default();
        logs.iter().sum::<f64>() / logs.len().max(1) as f64
    }

    /// The change of the error at the model's outputs from others that is to be expected of what layers from one
    /// on and outputs show: its natural logarithm. Layers show it within about a fifth, whatever the samples
    /// (measured on six models with 40 to 64 samples: the two differed by 0.2 on average); outputs by themselves
    /// and, of few samples, badly. Each counts by its precision.
    pub(crate) fn expected_change(&self, others: &Errors, from: usize) -> f64 {
        const SPREAD: f64 = 0.2;
        let (mean, error) = self.beside(others);
        let of_layers = SPREAD.powi(-2);
        let of_outputs = error.max(1e-3).powi(-2);
        (self.at_layers(others, from) * of_layers + mean * of_outputs) / (of_layers + of_outputs)
    }

    /// Whether these errors are smaller: at the typical sample and, for a few may lose more than all others
    /// gain, in sum.
    pub(crate) fn is_less_than(&self, others: &Errors) -> bool {
        let sum = |errors: &Errors| errors.samples.iter().sum::<f64>();
        self.beside(others).0 < 0.0 && sum(self) < sum(others)
    }

    /// The change from others as it is said.
    pub(crate) fn said_beside(&self, others: &Errors) -> String {
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

/// Elements of a layer's output that are compared in one sample, about; evenly apart when it has more.
const ELEMENTS: usize = 1 << 12;

/// The same of the model's outputs: probabilities of many classes are nearly all zero, and few of them would miss the
/// rest.
const OF_OUTPUTS: usize = 1 << 20;

/// What the float model gives on some samples, to judge others by: at the outputs of some of its layers, which
/// tell more than few outputs do, and at its own.
pub(crate) struct Judge<'a> {
    layers: Vec<NodeId>,
    samples: &'a [Batch],
    /// By place in the list of values looked at, and by sample.
    expected: BTreeMap<(usize, usize), Vec<f32>>,
}

impl<'a> Judge<'a> {
    /// Runs the float model over the samples.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(crate) fn new(
        float: &Model,
        layers: Vec<NodeId>,
        samples: &'a [Batch],
        cx: &mut Cx<'_>,
    ) -> Result<Judge<'a>, PassError> {
        let mut judge = Judge { layers, samples, expected: BTreeMap::new() };
        let mut expected = BTreeMap::new();
        judge.run(float, cx, &mut |place, sample, elements| {
            expected.insert((place, sample), elements);
        })?;
        judge.expected = expected;
        Ok(judge)
    }

    /// Runs a model and shows some elements of all that is looked at: its place and the sample's with them.
    fn run(
        &self,
        model: &Model,
        cx: &mut Cx<'_>,
        show: &mut dyn FnMut(usize, usize, Vec<f32>),
    ) -> Result<(), PassError> {
        let outputs = model.graph(model.main()).outputs().iter().map(|output| Some(output.value));
        let of_layer = |&node: &NodeId| model.get_node(node).and_then(|node| node.output(0));
        let mut places: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (place, value) in self.layers.iter().map(of_layer).chain(outputs).enumerate() {
            if let Some(value) = value {
                places.entry(value).or_default().push(place);
            }
        }
        let wanted: Vec<ValueId> = places.keys().copied().collect();
        let what = ("judging", self.samples.len());
        let batches = &mut self.samples.iter().cloned();
        numbered::observe(what, model, &wanted, batches, cx, &mut |sample, value, tensor| {
            if tensor.dtype() == DType::F32
                && let Ok(elements) = tensor.to_slice::<f32>()
            {
                for &place in &places[&value] {
                    let most = if place < self.layers.len() { ELEMENTS } else { OF_OUTPUTS };
                    let step = evenly::step(elements.len(), most);
                    show(place, sample, elements.iter().step_by(step).copied().collect());
                }
            }
            Ok(())
        })
    }

    /// Errors of a model: at the outputs of the layers over all samples, and at its own sample by sample.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(crate) fn errors(&self, model: &Model, cx: &mut Cx<'_>) -> Result<Errors, PassError> {
        let layers = self.layers.len();
        let mut sums = vec![SignalNoise::default(); layers];
        let mut of_samples = vec![(0f64, 0usize); self.samples.len()];
        self.run(model, cx, &mut |place, sample, found| {
            let expected = self.expected.get(&(place, sample)).filter(|known| known.len() == found.len());
            let Some(expected) = expected else { return };
            let error = SignalNoise::of(expected, &found);
            match sums.get_mut(place) {
                Some(sum) => *sum += error,
                None => {
                    let (sum, count) = &mut of_samples[sample];
                    (*sum, *count) = (*sum + error.ratio(), *count + 1);
                }
            }
        })?;
        Ok(Errors {
            layers: sums.iter().map(SignalNoise::ratio).collect(),
            samples: of_samples.iter().map(|&(sum, count)| sum / count.max(1) as f64).collect(),
        })
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
}
