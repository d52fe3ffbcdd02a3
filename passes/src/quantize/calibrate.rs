//! Ranges of activations: one pass over the calibration data, then one choice a tensor.

use std::cell::RefCell;
use std::collections::BTreeMap;

use optix_ir::{DType, Model, Tensor, ValueId};
use optix_pipeline::{Batch, Batches, Cx, OracleError, PassError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::affine::Affine;
use super::data_linter::{self, Seen, Watched};
use super::observer::Observer;
use super::output_error::{Quantizers, Reference};
use super::placement::Placement;
use super::statistics::Statistics;
use crate::judge::Errors;

/// Samples that are looked through for ones to measure on when statistics were kept from an earlier run.
const LOOKED_THROUGH: u64 = 64;

/// Calibration samples for each one that is measured on: measuring is to cost a fifth of calibrating.
const CALIBRATED_FOR_EACH: u64 = 40;

/// Share of the error at the model's outputs that must be saved to leave `mse`.
const WORTHWHILE: f64 = 0.02;

/// Standard errors by which a gain must exceed that share: a few samples say little.
const SURE: f64 = 2.0;

/// How the range of an activation is chosen from what calibration saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RangeObserver {
    /// For each tensor the one of `mse`, `min-max` and `percentile` that loses least at the outputs of the
    /// layers that read it, or one of them for all where the model's outputs lose less by that: measured on
    /// some of the samples.
    #[default]
    Auto,
    /// The whole range seen.
    MinMax,
    /// Moving averages of the samples' least and greatest values: each sample moves them by a hundredth of the
    /// way.
    MovingAverage,
    /// Means of the samples' least and greatest values.
    MeanExtremes,
    /// The range that holds a share of all values: option `percentile`.
    Percentile,
    /// The range whose quantized distribution has the least Kullback-Leibler divergence.
    Entropy,
    /// The range with the least mean squared error.
    Mse,
}

/// What calibration found.
#[derive(Debug, Default)]
pub(super) struct Calibrated {
    /// Statistics of every value whose quantizer is its own.
    pub(super) observers: BTreeMap<ValueId, Observer>,
    /// Samples to measure choices on.
    samples: Vec<Batch>,
}

/// How ranges are chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) observer: RangeObserver,
    /// Share of values, in percent, that the percentile observer keeps.
    pub(super) percentile: f64,
    /// Type of activations.
    pub(super) dtype: DType,
    /// Whether zero points must be 0.
    pub(super) symmetric: bool,
}

impl Choice {
    pub(super) fn check(&self) -> Result<(), PassError> {
        if self.percentile > 50.0 && self.percentile <= 100.0 {
            return Ok(());
        }
        let what =
            format!("`percentile` is a share in percent above 50 and up to 100, not {}", self.percentile);
        Err(PassError::Options(what))
    }

    fn quantizer(&self, how: RangeObserver, observer: &Observer) -> Affine {
        let quantizer = self.asymmetric(how, observer);
        if self.symmetric { quantizer.made_symmetric(self.dtype) } else { quantizer }
    }

    fn asymmetric(&self, how: RangeObserver, observer: &Observer) -> Affine {
        match how {
            RangeObserver::MinMax => observer.min_max(self.dtype),
            RangeObserver::MovingAverage => observer.moving_average(self.dtype),
            RangeObserver::MeanExtremes => observer.mean_extremes(self.dtype),
            RangeObserver::Percentile => observer.percentile(self.percentile, self.dtype),
            RangeObserver::Entropy => observer.entropy(self.dtype).0,
            RangeObserver::Mse | RangeObserver::Auto => observer.mean_squared_error(self.dtype),
        }
    }
}

/// What `auto` chooses from; the first is kept where the others do not gain.
const CANDIDATES: [(RangeObserver, &str); 3] = [
    (RangeObserver::Mse, "mse"),
    (RangeObserver::MinMax, "min-max"),
    (RangeObserver::Percentile, "percentile"),
];

/// Where the channels of values lie that layers with weights read or convolutions give.
fn channel_axes(model: &Model, placement: &Placement) -> BTreeMap<ValueId, i64> {
    let mut axes = BTreeMap::new();
    for weighted in &placement.weighted {
        let is_conv = model.node(weighted.node).is("Conv");
        axes.entry(weighted.input).or_insert(if is_conv { 1 } else { -1 });
        if is_conv {
            axes.entry(weighted.output).or_insert(1);
        }
    }
    axes
}

/// Statistics of every value whose quantizer is its own: from one pass over the calibration data, or from
/// those kept of earlier runs. Says what is wrong with the data.
pub(super) fn calibrate(
    model: &Model,
    placement: &Placement,
    choice: &Choice,
    cx: &mut Cx<'_>,
) -> Result<Calibrated, PassError> {
    choice.check()?;
    let roots: Vec<ValueId> =
        placement.quantized.iter().filter(|(value, root)| value == root).map(|(value, _)| *value).collect();
    let axes = channel_axes(model, placement);
    let mut calibrated = Calibrated::default();
    let kept = match cx.statistics() {
        Some(kept) if !kept.given().is_empty() => Some(Statistics::read(kept.take(), model)?),
        _ => None,
    };
    let (samples, seen) = match kept {
        Some(kept) => {
            calibrated.observers = kept.of(model, &roots)?;
            cx.count("calibration samples in statistics", kept.samples);
            if cx.has_calibration() && choice.observer == RangeObserver::Auto {
                calibrated.samples = first_samples(model, kept.samples, cx)?;
            }
            (kept.samples, Seen::default())
        }
        None => {
            let observer = |value| (value, Observer::new(axes.get(&value).copied()));
            calibrated.observers = roots.iter().copied().map(observer).collect();
            let (samples, seen) = stream(model, &mut calibrated.observers, cx)?;
            calibrated.samples = seen.spread(measured(samples));
            cx.count("calibration samples", samples);
            if samples == 0 {
                return Err(PassError::Options("the calibration data hold no samples".to_owned()));
            }
            if cx.statistics().is_some() {
                let bytes = Statistics::new(model, samples, &calibrated.observers)?.write();
                if let Some(kept) = cx.statistics() {
                    kept.keep(&bytes).map_err(OracleError::Environment)?;
                }
            }
            (samples, seen)
        }
    };
    data_linter::report(model, &calibrated.observers, samples, &seen, cx);
    Ok(calibrated)
}

/// How many samples are measured on after so many were calibrated on.
fn measured(samples: u64) -> usize {
    (samples / CALIBRATED_FOR_EACH).clamp(4, 16) as usize
}

/// Samples to measure on, from the start of the data.
fn first_samples(model: &Model, calibrated: u64, cx: &mut Cx<'_>) -> Result<Vec<Batch>, PassError> {
    let (_, data) = cx.calibration()?;
    let batches = data.batches(model).map_err(OracleError::from)?;
    let seen = RefCell::new(Seen::default());
    for batch in (Watched { batches, seen: &seen, most: Some(LOOKED_THROUGH) }) {
        batch.map_err(OracleError::from)?;
    }
    Ok(seen.into_inner().spread(measured(calibrated)))
}

/// Runs the model over the calibration data.
fn stream(
    model: &Model,
    observers: &mut BTreeMap<ValueId, Observer>,
    cx: &mut Cx<'_>,
) -> Result<(u64, Seen), PassError> {
    let wanted: Vec<ValueId> = observers.keys().copied().collect();
    let (_, data) = cx.calibration()?;
    let batches = data.batches(model).map_err(OracleError::from)?;
    let seen = RefCell::new(Seen::default());
    let watched: Batches<'_> = &mut Watched { batches, seen: &seen, most: None };
    let total = data.samples().unwrap_or(0);
    let samples =
        cx.observe_batches("calibrating", total, model, &wanted, watched, &mut |value, tensor: &Tensor| {
            let elements = tensor.to_slice::<f32>().map_err(|error| {
                OracleError::Feeds(format!("value `{}`: {error}", model.value(value).name()))
            })?;
            if let Some(observer) = observers.get_mut(&value) {
                observer.observe(&elements, tensor.shape(), seen.borrow().batch());
            }
            Ok(())
        })?;
    Ok((samples, seen.into_inner()))
}

/// The quantizer of every value that gets one, from what calibration saw of its root.
pub(super) fn choose(
    choice: &Choice,
    model: &Model,
    placement: &Placement,
    calibrated: &Calibrated,
    cx: &mut Cx<'_>,
) -> Result<Quantizers, PassError> {
    if choice.observer == RangeObserver::Auto {
        return measured_best(choice, model, placement, calibrated, cx);
    }
    if choice.observer == RangeObserver::Entropy {
        let fixed =
            calibrated.observers.values().filter(|observer| observer.entropy(choice.dtype).1 < 2).count();
        if fixed > 0 {
            cx.warn(format!(
                "the entropy observer had nothing to choose from for {fixed} activations: their whole range is used"
            ));
        }
    }
    Ok(quantizers(placement, &|root| choice.quantizer(choice.observer, &calibrated.observers[&root])))
}

/// The quantizers of all values, each made once for its root.
fn quantizers(placement: &Placement, of_root: &dyn Fn(ValueId) -> Affine) -> Quantizers {
    let mut made = Quantizers::new();
    for &(value, root) in &placement.quantized {
        let quantizer = made.get(&root).copied().unwrap_or_else(|| of_root(root));
        made.insert(value, quantizer);
    }
    made
}

/// Quantizers that lose least at the model's outputs: of one observer for all, or of the observer with the
/// least error at the layers that read each tensor.
fn measured_best(
    choice: &Choice,
    model: &Model,
    placement: &Placement,
    calibrated: &Calibrated,
    cx: &mut Cx<'_>,
) -> Result<Quantizers, PassError> {
    let mut candidates: Vec<(&str, Quantizers)> = Vec::new();
    for (how, name) in CANDIDATES {
        let made = quantizers(placement, &|root| choice.quantizer(how, &calibrated.observers[&root]));
        if !candidates.iter().any(|(_, known)| *known == made) {
            candidates.push((name, made));
        }
    }
    let roots = placement.quantized.iter().filter(|(value, root)| value == root).count() as u64;
    if candidates.len() < 2 || calibrated.samples.is_empty() {
        cx.count(&format!("ranges by {}", candidates[0].0), roots);
        return Ok(candidates.swap_remove(0).1);
    }
    let reference = Reference::new(model, placement, &calibrated.samples, cx)?;
    let mut errors: Vec<Errors> = Vec::new();
    for (index, (_, quantizers)) in candidates.iter().enumerate() {
        cx.progress("choosing ranges", index as u64, candidates.len() as u64 + 1)?;
        errors.push(reference.errors(quantizers, choice.dtype, cx)?);
    }
    let root_of: BTreeMap<ValueId, ValueId> = placement.quantized.iter().copied().collect();
    // Errors of the layers that read each tensor; what no layer reads goes with the best for the model.
    let mut sums: BTreeMap<ValueId, Vec<f64>> = BTreeMap::new();
    for (layer, weighted) in placement.weighted.iter().enumerate() {
        if let Some(&root) = root_of.get(&weighted.input) {
            let sums = sums.entry(root).or_insert_with(|| vec![0.0; errors.len()]);
            sums.iter_mut().zip(&errors).for_each(|(sum, errors)| *sum += errors.layers[layer]);
        }
    }
    // How each differs from the first, where it surely does: 0 else.
    let gain = |errors: &Errors, first: &Errors| {
        let (mean, error) = errors.beside(first);
        if mean + SURE * error < (1.0 - WORTHWHILE).ln() { mean } else { 0.0 }
    };
    let gains: Vec<f64> = errors.iter().map(|candidate| gain(candidate, &errors[0])).collect();
    let uniform =
        (1..gains.len()).fold(0, |best, index| if gains[index] < gains[best] { index } else { best });
    let of_root = |root: ValueId| sums.get(&root).map_or(uniform, |sums| least(sums));
    let mixed = quantizers(placement, &|root| candidates[of_root(root)].1[&root]);
    if !candidates.iter().any(|(_, known)| *known == mixed) {
        let found = reference.errors(&mixed, choice.dtype, cx)?;
        if gain(&found, &errors[0]) < gains[uniform] && gain(&found, &errors[uniform]) < 0.0 {
            for (value, root) in &placement.quantized {
                if value == root {
                    cx.count(&format!("ranges by {}", candidates[of_root(*root)].0), 1);
                }
            }
            return Ok(mixed);
        }
    }
    let (name, quantizers) = candidates.swap_remove(uniform);
    cx.count(&format!("ranges by {name}"), roots);
    Ok(quantizers)
}

/// The place of the least error; the first unless another saves something worthwhile.
fn least(errors: &[f64]) -> usize {
    (1..errors.len()).fold(0, |best, index| {
        let bar = if best == 0 { errors[0] * (1.0 - WORTHWHILE) } else { errors[best] };
        if errors[index] < bar { index } else { best }
    })
}
