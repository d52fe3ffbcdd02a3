//! Ranges of activations: one pass over the calibration data, then one choice a tensor.

use std::cell::RefCell;
use std::collections::BTreeMap;

use optix_ir::{DType, Model, Tensor, ValueId};
use optix_pipeline::{Batches, Cx, OracleError, PassError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::affine::Affine;
use super::data_linter::{self, Seen, Watched};
use super::excerpts::Excerpts;
use super::observer::Observer;
use super::output_error::{cut_of, relative_errors};
use super::placement::Placement;
use super::statistics::Statistics;

/// Samples that excerpts are taken from when statistics were kept from an earlier run.
const EXCERPT_SAMPLES: u64 = 16;

/// Gain at a layer's output, as a share of the error, below which a choice is not worth leaving `mse` for.
const WORTHWHILE: f64 = 0.02;

/// How the range of an activation is chosen from what calibration saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RangeObserver {
    /// For each tensor the one of `mse`, `min-max`, `percentile`, `entropy` and `mean-extremes` that loses
    /// least at the outputs of the layers that read it, measured on a part of their inputs.
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
    /// Parts of the inputs of layers, where the choice is measured.
    excerpts: BTreeMap<ValueId, Excerpts>,
}

/// How ranges are chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) observer: RangeObserver,
    /// Share of values, in percent, that the percentile observer keeps.
    pub(super) percentile: f64,
    /// Integer type of activations.
    pub(super) dtype: DType,
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
const CANDIDATES: [(RangeObserver, &str); 5] = [
    (RangeObserver::Mse, "mse"),
    (RangeObserver::MinMax, "min-max"),
    (RangeObserver::Percentile, "percentile"),
    (RangeObserver::Entropy, "entropy"),
    (RangeObserver::MeanExtremes, "mean-extremes"),
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
    if choice.observer == RangeObserver::Auto {
        let cuts =
            placement.weighted.iter().filter_map(|weighted| Some((weighted.input, cut_of(model, weighted)?)));
        // Where layers cut differently, the last one's windows are the widest that are sure to fit it.
        calibrated.excerpts = cuts.map(|(value, cut)| (value, Excerpts::new(cut))).collect();
    }
    let kept = match cx.statistics() {
        Some(kept) if !kept.given.is_empty() => Some(Statistics::read(&kept.given, model)?),
        _ => None,
    };
    let (samples, seen) = match kept {
        Some(kept) => {
            calibrated.observers = kept.of(model, &roots)?;
            cx.count("calibration samples in statistics", kept.samples);
            if cx.has_calibration() && !calibrated.excerpts.is_empty() {
                stream(model, &mut calibrated, Some(EXCERPT_SAMPLES), cx)?;
            }
            (kept.samples, Seen::default())
        }
        None => {
            let observer = |value| (value, Observer::new(axes.get(&value).copied()));
            calibrated.observers = roots.iter().copied().map(observer).collect();
            let (samples, seen) = stream(model, &mut calibrated, None, cx)?;
            cx.count("calibration samples", samples);
            if samples == 0 {
                return Err(PassError::Options("the calibration data hold no samples".to_owned()));
            }
            if cx.statistics().is_some() {
                let bytes = Statistics::new(model, samples, &calibrated.observers)?.write();
                if let Some(kept) = cx.statistics() {
                    kept.made = Some(bytes);
                }
            }
            (samples, seen)
        }
    };
    data_linter::report(model, &calibrated.observers, samples, &seen, cx);
    Ok(calibrated)
}

/// Runs the model over the calibration data; with `most`, over so many samples and for excerpts alone.
fn stream(
    model: &Model,
    calibrated: &mut Calibrated,
    most: Option<u64>,
    cx: &mut Cx<'_>,
) -> Result<(u64, Seen), PassError> {
    let Calibrated { observers, excerpts } = calibrated;
    let mut wanted: Vec<ValueId> = excerpts.keys().copied().collect();
    if most.is_none() {
        wanted.extend(observers.keys().filter(|value| !excerpts.contains_key(value)));
    }
    wanted.sort_unstable();
    let (oracle, data) = cx.calibration()?;
    let batches = data.batches(model).map_err(OracleError::from)?;
    let seen = RefCell::new(Seen::default());
    let watched: Batches<'_> = &mut Watched { batches, seen: &seen, most };
    let samples = oracle.observe(model, &wanted, watched, &mut |value, tensor: &Tensor| {
        let elements = tensor
            .to_slice::<f32>()
            .map_err(|error| OracleError::Feeds(format!("value `{}`: {error}", model.value(value).name())))?;
        let (first, count) = seen.borrow().batch();
        if most.is_none()
            && let Some(observer) = observers.get_mut(&value)
        {
            observer.observe(&elements, tensor.shape(), count);
        }
        if let Some(excerpts) = excerpts.get_mut(&value) {
            excerpts.offer(&elements, tensor.shape(), first, count);
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
) -> Result<BTreeMap<ValueId, Affine>, PassError> {
    let roots: BTreeMap<ValueId, ValueId> = placement.quantized.iter().copied().collect();
    let mut quantizers = BTreeMap::new();
    let total = placement.quantized.len() as u64;
    for (index, &(value, root)) in placement.quantized.iter().enumerate() {
        let quantizer = match (quantizers.get(&root), calibrated.observers.get(&root)) {
            (Some(&quantizer), _) => quantizer,
            (None, Some(observer)) if choice.observer == RangeObserver::Auto => {
                cx.progress("choosing ranges", index as u64, total)?;
                let (name, quantizer) =
                    measured_best(choice, model, placement, calibrated, &roots, root, observer, cx)?;
                cx.count(&format!("ranges by {name}"), 1);
                quantizer
            }
            (None, Some(observer)) => choice.quantizer(choice.observer, observer),
            (None, None) => {
                // Roots are observed; a value without one would be a bug of the placement.
                cx.warn(format!("`{}` was not observed", model.value(value).name()));
                Affine::asymmetric(0.0, 0.0, choice.dtype)
            }
        };
        quantizers.insert(value, quantizer);
    }
    if choice.observer == RangeObserver::Entropy {
        let fixed =
            calibrated.observers.values().filter(|observer| observer.entropy(choice.dtype).1 < 2).count();
        if fixed > 0 {
            cx.warn(format!("the entropy observer had nothing to choose from for {fixed} activations: their whole range is used"));
        }
    }
    Ok(quantizers)
}

/// The candidate with the least error at the outputs of the layers that read the tensor, and its name. What
/// reads it otherwise counts with the error of the tensor itself.
#[expect(clippy::too_many_arguments, reason = "everything calibration knows, and what it is about")]
fn measured_best(
    choice: &Choice,
    model: &Model,
    placement: &Placement,
    calibrated: &Calibrated,
    roots: &BTreeMap<ValueId, ValueId>,
    root: ValueId,
    observer: &Observer,
    cx: &mut Cx<'_>,
) -> Result<(&'static str, Affine), PassError> {
    let mut candidates: Vec<(&str, Affine)> = Vec::new();
    for (how, name) in CANDIDATES {
        let quantizer = choice.quantizer(how, observer);
        let alike = |known: &Affine| {
            known.zero_point == quantizer.zero_point && (known.scale / quantizer.scale - 1.0).abs() < 0.005
        };
        if !candidates.iter().any(|(_, known)| alike(known)) {
            candidates.push((name, quantizer));
        }
    }
    let own = |value: ValueId| roots.get(&value) == Some(&root);
    let layers: Vec<_> = placement
        .weighted
        .iter()
        .filter(|weighted| own(weighted.input))
        .filter_map(|weighted| Some((weighted, calibrated.excerpts.get(&weighted.input)?)))
        .collect();
    if candidates.len() < 2 || layers.is_empty() {
        return Ok(candidates[0]);
    }
    let quantizers: Vec<Affine> = candidates.iter().map(|(_, quantizer)| *quantizer).collect();
    let mut errors = vec![0.0; candidates.len()];
    for (weighted, excerpts) in layers {
        let found = relative_errors(model, weighted, excerpts, &quantizers, cx)?;
        errors.iter_mut().zip(found).for_each(|(sum, error)| *sum += error);
    }
    let others = placement.reads.iter().filter(|(node, slot)| {
        placement.bridges.contains(node) && model.node(*node).input(*slot).is_some_and(own)
    });
    let others = others.count() as f64;
    if others > 0.0 {
        for (error, quantizer) in errors.iter_mut().zip(&quantizers) {
            let (signal, noise) = observer.signal_and_noise(quantizer);
            if signal > 0.0 {
                *error += others * noise / signal;
            }
        }
    }
    let best = (1..errors.len()).fold(0, |best, index| {
        let bar = if best == 0 { errors[0] * (1.0 - WORTHWHILE) } else { errors[best] };
        if errors[index] < bar { index } else { best }
    });
    Ok(candidates[best])
}
