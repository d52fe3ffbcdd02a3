//! Samples to learn from and others to judge by, both from all parts of the calibration data.

use std::collections::BTreeMap;

use optix_ir::{DType, Model, NodeId, ValueId};
use optix_pipeline::{Batch, Cx, OracleError, PassError, SignalNoise};

use super::numbered;
use super::output_error::Errors;
use crate::unroll;

/// Calibration samples in two parts.
pub(super) struct Divided {
    /// To learn from.
    pub(super) batches: Vec<Batch>,
    /// One sample each, none of those to learn from, where batches can be taken apart.
    pub(super) judged: Vec<Batch>,
}

/// Batches spread evenly over the calibration data, of about so many samples.
fn spread(model: &Model, samples: usize, cx: &mut Cx<'_>) -> Result<Vec<Batch>, PassError> {
    let (_, data) = cx.calibration()?;
    let (mut kept, mut step, mut count) = (Vec::<Batch>::new(), 1usize, 0usize);
    for (index, batch) in data.batches(model).map_err(OracleError::from)?.enumerate() {
        let batch = batch.map_err(OracleError::from)?;
        if index % step != 0 {
            continue;
        }
        count += batch.count;
        kept.push(batch);
        if count >= 2 * samples && kept.len() > 1 {
            kept = kept.into_iter().step_by(2).collect();
            count = kept.iter().map(|batch| batch.count).sum();
            step *= 2;
        }
    }
    Ok(kept)
}

/// About `learned` samples in batches, and up to `judged` others, at most a quarter of all.
///
/// # Errors
/// When the data cannot be read.
pub(super) fn divide(
    model: &Model,
    learned: usize,
    judged: usize,
    cx: &mut Cx<'_>,
) -> Result<Divided, PassError> {
    let mut batches = spread(model, learned + judged, cx)?;
    let samples: usize = batches.iter().map(|batch| batch.count).sum();
    let wanted = judged.min(samples / 4);
    let singles =
        |batch: &Batch| -> Vec<Batch> { (0..batch.count).filter_map(|index| batch.sample(index)).collect() };
    if batches.len() == 1 {
        let all = singles(&batches.remove(0));
        let step = (all.len() / wanted.max(1)).max(1);
        let (judged, batches): (Vec<_>, Vec<_>) =
            all.into_iter().enumerate().partition(|(index, _)| index % step == step - 1);
        let only = |part: Vec<(usize, Batch)>| part.into_iter().map(|(_, sample)| sample).collect();
        return Ok(Divided { batches: only(batches), judged: only(judged) });
    }
    let mut judged: Vec<Batch> = Vec::new();
    while batches.len() > 1 && judged.len() < wanted {
        // From the middle first, then from the end.
        let place = if judged.is_empty() { batches.len() / 2 } else { batches.len() - 1 };
        let batch = batches.remove(place);
        let of_batch = singles(&batch);
        judged.extend(if of_batch.is_empty() { vec![batch] } else { of_batch });
    }
    judged.truncate(wanted.max(1));
    Ok(Divided { batches, judged })
}

/// Elements of a value that are compared in one sample, about; evenly apart when it has more.
const ELEMENTS: usize = 1 << 12;

/// What the float model gives on some samples, to judge others by: at the outputs of some of its layers, which
/// tell more than few outputs do, and at its own.
pub(super) struct Judge<'a> {
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
    pub(super) fn new(
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
                let kept: Vec<f32> =
                    unroll::some(elements.len(), ELEMENTS).into_iter().map(|at| elements[at]).collect();
                for &place in &places[&value] {
                    show(place, sample, kept.clone());
                }
            }
            Ok(())
        })
    }

    /// Errors of a model: at the outputs of the layers over all samples, and at its own sample by sample.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(super) fn errors(&self, model: &Model, cx: &mut Cx<'_>) -> Result<Errors, PassError> {
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
