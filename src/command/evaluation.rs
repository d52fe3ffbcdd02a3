//! Models over data: metrics, fidelity of outputs, and the verdict on thresholds.

use anyhow::bail;
use optix_base::CancelToken;
use optix_data::{
    Dataset, Distance, LabelValues, Measured, Meter, Metric, PairedCounts, Probe, ProbeFit, Seen, Verdict,
    meter,
};
use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::report::{Accuracy, Evaluation, Interval, OutputFidelity, Report, Requirement};
use optix_pipeline::{Batch, OracleError, Progress, Requirements};
use optix_runtime::{Asked, EngineOracle, Proof, batching, stream};

use super::ceiling::{Ceiling, Copies, Task};
use super::setup;
use optix::cli::Global;

/// What is measured, on what.
pub struct Plan<'a> {
    pub global: &'a Global,
    /// The model.
    pub model: &'a Model,
    /// Another one, on the same samples.
    pub vs: Option<&'a Model>,
    /// Name of the output that metrics look at.
    pub output: Option<&'a str>,
    /// Whether somebody named the metrics: guesses are made of the first output only.
    pub are_named: bool,
    /// The metrics, once the first batch and what the model gave for it are known.
    pub metrics: &'a dyn Fn(&Batch, &Tensor) -> anyhow::Result<Vec<Metric>>,
    /// The data.
    pub data: &'a Dataset,
    /// Labelled data that probes are fitted on.
    pub train: Option<&'a Dataset>,
    /// Samples to run together; by rule without it.
    pub batch: Option<usize>,
    /// Most memory of the process.
    pub ceiling: Option<Ceiling>,
    /// Bytes of the models' files.
    pub files: u64,
}

/// What came of it.
pub struct Outcome {
    pub samples: u64,
    /// Samples run together.
    pub batch: usize,
    /// What the memory was predicted to be, with a limit.
    pub predicted: Option<u64>,
    /// Why they are run alone.
    pub alone: Option<String>,
    /// The output that was measured.
    pub output: String,
    pub measured: Vec<Measured>,
    /// Every output against the other model's.
    pub outputs: Vec<OutputFidelity>,
}

/// The outputs of a model, with their names.
pub fn outputs_of(model: &Model) -> Vec<(ValueId, String)> {
    let infos = model.graph(model.main()).outputs().iter();
    infos.map(|info| (info.value, model.value(info.value).name().to_owned())).collect()
}

/// The output that metrics look at: the named one; where the metrics are named, the first declared to be rows
/// of numbers; else the first.
fn chosen_output(model: &Model, named: Option<&str>, are_named: bool) -> anyhow::Result<usize> {
    let outputs = model.graph(model.main()).outputs();
    if outputs.is_empty() {
        bail!("the model has no outputs");
    }
    let Some(named) = named else {
        let rank =
            |index: usize| outputs[index].ty.as_ref().and_then(|ty| ty.shape()).map(|shape| shape.len());
        let rows = (0..outputs.len()).find(|&index| rank(index) == Some(2));
        return Ok(rows.filter(|_| are_named).unwrap_or(0));
    };
    let names: Vec<&str> = outputs.iter().map(|info| model.value(info.value).name()).collect();
    names.iter().position(|name| *name == named).ok_or_else(|| {
        let hint = optix_pipeline::did_you_mean(named, names.iter().copied());
        anyhow::anyhow!("--output {named}: the model has no such output{hint} (it has: {})", names.join(", "))
    })
}

/// Runs the models over the data and measures.
pub fn measure(
    oracle: &EngineOracle,
    plan: &Plan<'_>,
    cancel: &CancelToken,
    progress: &dyn Progress,
) -> anyhow::Result<Outcome> {
    let names = outputs_of(plan.model);
    let chosen = chosen_output(plan.model, plan.output, plan.are_named)?;
    let output = names[chosen].1.clone();
    // Alone, only the output that is looked at is fetched; against another model all are.
    let own: Vec<ValueId> = match plan.vs {
        Some(_) => names.iter().map(|(value, _)| *value).collect(),
        None => vec![names[chosen].0],
    };
    let chosen = if plan.vs.is_some() { chosen } else { 0 };
    let mut lanes = vec![setup::lane(plan.global, oracle, plan.model, own)?];
    if let Some(vs) = plan.vs {
        lanes.push(setup::lane(plan.global, oracle, vs, counterparts(vs, &names)?)?);
    }
    let inputs = setup::inputs(plan.model)?;
    let fit = match plan.ceiling {
        None => None,
        Some(ceiling) => {
            let tasks: Vec<Task<'_>> =
                [Some(plan.model), plan.vs].into_iter().flatten().map(Task::outputs).collect();
            let at_once = setup::threads(plan.global);
            let most = plan.batch.unwrap_or(setup::BATCH);
            Some(ceiling.fit(&tasks, plan.files, plan.data, most, at_once, Copies::None)?)
        }
    };
    let asked = Asked { size: plan.batch, most: fit.map_or(usize::MAX, |fit| fit.samples) };
    let batching = batching(&mut lanes, plan.data, &inputs, asked, Proof::Wanted)?;
    let (batch, alone) = (batching.size(), batching.alone);
    let probes = match plan.train {
        None => Vec::new(),
        Some(train) => {
            let bound = train.bind(&inputs, batch)?;
            let mut fits: Vec<ProbeFit> = lanes.iter().map(|_| ProbeFit::default()).collect();
            let (mut done, total) = (0, bound.len().unwrap_or(0));
            stream(&mut lanes, &bound, None, cancel, &mut |batch, results| {
                for (fit, results) in fits.iter_mut().zip(results) {
                    fit.add(&Seen { batch, output: &output, found: &results[chosen], reference: None })?;
                }
                done += batch.count as u64;
                progress.tick("running on the training data", done, total);
                Ok(())
            })?;
            fits.into_iter().map(ProbeFit::finish).collect::<Result<Vec<Probe>, _>>()?
        }
    };
    let mut meters: Option<Vec<Box<dyn Meter>>> = None;
    let mut distances: Vec<Distance> = names.iter().map(|_| Distance::new()).collect();
    let total = batching.bound.len().unwrap_or(0);
    let mut done = 0;
    let mut failed = None;
    let samples = stream(&mut lanes, &batching.bound, batching.first, cancel, &mut |batch, results| {
        let reference = results.get(1);
        if let Some(reference) = reference {
            for ((distance, a), b) in distances.iter_mut().zip(reference).zip(&results[0]) {
                if a.dtype().is_float() {
                    distance.add(a, b)?;
                }
            }
        }
        let found = &results[0][chosen];
        let reference = reference.map(|reference| &reference[chosen]);
        let meters = match &mut meters {
            Some(meters) => meters,
            None => match start(plan, batch, found, &probes) {
                Ok(started) => meters.insert(started),
                Err(error) => {
                    let text = error.to_string();
                    failed = Some(error);
                    return Err(OracleError::Feeds(text));
                }
            },
        };
        let seen = Seen { batch, output: &output, found, reference };
        for meter in meters {
            meter.add(&seen)?;
        }
        done += batch.count as u64;
        progress.tick("evaluating", done, total);
        Ok(())
    });
    let samples = match failed {
        Some(error) => return Err(error),
        None => samples?,
    };
    if samples == 0 {
        return Err(OracleError::Feeds("the evaluation data hold no samples".to_owned()).into());
    }
    setup::lane_remarks(plan.global, &lanes);
    let measured = meters.into_iter().flatten().map(Meter::finish).collect::<Result<_, _>>()?;
    let outputs = names.into_iter().zip(&distances).filter(|(_, distance)| distance.elements() > 0);
    let outputs = outputs.map(|((_, name), distance)| fidelity(name, distance)).collect();
    let predicted = fit.map(|fit| fit.predicted);
    Ok(Outcome { samples, batch, predicted, alone, output, measured, outputs })
}

/// The other model's outputs, in the order of the first one's: by name, else by place.
fn counterparts(vs: &Model, names: &[(ValueId, String)]) -> anyhow::Result<Vec<ValueId>> {
    let others = outputs_of(vs);
    let found = names.iter().enumerate().map(|(index, (_, name))| {
        let named = others.iter().find(|(_, other)| other == name);
        let other = named.or_else(|| others.get(index).filter(|_| others.len() == names.len()));
        other.map(|(value, _)| *value).ok_or_else(|| {
            let list: Vec<&str> = others.iter().map(|(_, other)| other.as_str()).collect();
            anyhow::anyhow!("the other model has no output `{name}`; it has {}", list.join(", "))
        })
    });
    found.collect()
}

/// The meters of the plan's metrics.
fn start(
    plan: &Plan<'_>,
    batch: &Batch,
    found: &Tensor,
    probes: &[Probe],
) -> anyhow::Result<Vec<Box<dyn Meter>>> {
    let metrics = (plan.metrics)(batch, found)?;
    let made = metrics.iter().map(|metric| {
        let own = if *metric == Metric::Probe { probes.to_vec() } else { Vec::new() };
        meter(metric, own)
    });
    Ok(made.collect::<Result<_, _>>()?)
}

/// Whether an output is rows of scores: one a sample, of more than one class.
pub fn are_scores(batch: &Batch, found: &Tensor) -> bool {
    matches!(found.shape(), [samples, classes] if *samples == batch.count && *classes > 1)
        && found.dtype().is_float()
}

/// Whether the labels are classes.
pub fn has_classes(batch: &Batch) -> bool {
    matches!(&batch.labels, Some(labels) if matches!(labels.values, LabelValues::Classes(_)))
}

fn fidelity(name: String, distance: &Distance) -> OutputFidelity {
    OutputFidelity {
        name,
        equal: is_equal(distance),
        sqnr_db: distance.sqnr_db().filter(|sqnr| sqnr.is_finite()),
        cosine: distance.cosine(),
        max_abs_error: distance.max_absolute_error().filter(|error| error.is_finite()),
    }
}

/// An interval around a value, as reports have it.
pub fn interval(value: f64, interval: optix_data::Interval, scale: f64) -> Interval {
    Interval { value: value * scale, low: interval.low * scale, high: interval.high * scale }
}

/// A model after a recipe against the one before: accuracy, agreement, fidelity.
pub fn evaluate(
    global: &Global,
    oracle: &EngineOracle,
    [before, after]: [&Model; 2],
    data: &Dataset,
    (ceiling, files): (Option<Ceiling>, u64),
    cancel: &CancelToken,
    progress: &dyn Progress,
) -> anyhow::Result<(Evaluation, Outcome)> {
    let metrics = |batch: &Batch, found: &Tensor| {
        let mut metrics = Vec::new();
        if are_scores(batch, found) {
            metrics.push(Metric::Agreement);
            metrics.extend(has_classes(batch).then_some(Metric::Top(1)));
        }
        Ok(metrics)
    };
    let plan = Plan {
        global,
        model: after,
        vs: Some(before),
        output: None,
        are_named: false,
        metrics: &metrics,
        data,
        train: None,
        batch: None,
        ceiling,
        files,
    };
    let outcome = measure(oracle, &plan, cancel, progress)?;
    let mut evaluation =
        Evaluation { samples: outcome.samples, outputs: outcome.outputs.clone(), ..Evaluation::default() };
    for measured in &outcome.measured {
        match (&measured.metric, &measured.change, measured.interval) {
            (Metric::Agreement, _, Some(found)) => {
                evaluation.agreement = Some(interval(measured.value, found, 1.0));
            }
            (Metric::Top(_), Some(change), _) => {
                let (Some(counts), Some(found)) = (change.counts, change.interval) else { continue };
                evaluation.accuracy = Some(Accuracy {
                    metric: measured.metric.name(),
                    before: measured.reference.unwrap_or(0.0),
                    after: measured.value,
                    change_points: interval(change.difference, found, 100.0),
                    lost: counts.only_reference,
                    gained: counts.only_candidate,
                });
            }
            _ => {}
        }
    }
    Ok((evaluation, outcome))
}

/// Whether nothing differs at all. No ratio of signal to noise says that: there is none as well when the
/// reference is zero everywhere, or when one side is infinite or NaN.
pub fn is_equal(distance: &Distance) -> bool {
    distance.max_absolute_error() == Some(0.0)
}

/// What a verdict that is not reached says.
pub fn note(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Inconclusive { samples_needed: Some(n) } => {
            format!("inconclusive: about {n} samples would decide")
        }
        Verdict::Inconclusive { samples_needed: None } => "inconclusive: it sits on the threshold".to_owned(),
        _ => String::new(),
    }
}

/// Compares the figures of a report with thresholds.
pub fn check(require: &Requirements, report: &Report) -> Vec<Requirement> {
    let mut verdicts = Vec::new();
    let mut push = |name: &str, threshold: f64, value: Option<f64>, met: bool, note: String| {
        verdicts.push(Requirement { name: name.to_owned(), threshold, value, met, note });
    };
    let evaluation = report.evaluation.as_ref();
    if let Some(threshold) = require.accuracy_drop {
        match evaluation.and_then(|evaluation| evaluation.accuracy.as_ref()) {
            Some(accuracy) => {
                // Rebuilt from the counts the report holds, so that report and verdict cannot part.
                let samples = evaluation.map_or(0, |evaluation| evaluation.samples);
                let right_before = (accuracy.before * samples as f64).round() as u64;
                let both = right_before.saturating_sub(accuracy.lost);
                let counts = PairedCounts {
                    both,
                    only_reference: accuracy.lost,
                    only_candidate: accuracy.gained,
                    neither: samples.saturating_sub(both + accuracy.lost + accuracy.gained),
                };
                if let Some(change) = counts.change() {
                    let verdict = change.judge_drop(threshold / 100.0);
                    let met = verdict == Verdict::Met;
                    let drop = change.drop_upper_bound() * 100.0;
                    push("accuracy-drop", threshold, Some(drop), met, note(&verdict));
                }
            }
            None => {
                let why = "no accuracy was measured: the data have no labels or the model no scores";
                push("accuracy-drop", threshold, None, false, why.to_owned());
            }
        }
    }
    if let Some(threshold) = require.agreement {
        match evaluation.and_then(|evaluation| evaluation.agreement) {
            Some(agreement) => {
                let samples = evaluation.map_or(0, |evaluation| evaluation.samples);
                let same = (agreement.value * samples as f64).round() as u64;
                let verdict = optix_data::judge_share(same, samples, threshold);
                let met = verdict == Verdict::Met;
                push("agreement", threshold, Some(agreement.low), met, note(&verdict));
            }
            None => push("agreement", threshold, None, false, "the model has no rows of scores".to_owned()),
        }
    }
    if let Some(threshold) = require.sqnr_db {
        let outputs = evaluation.map_or(&[][..], |evaluation| &evaluation.outputs);
        let different: Vec<&OutputFidelity> = outputs.iter().filter(|output| !output.equal).collect();
        let figures: Option<Vec<f64>> = different.iter().map(|output| output.sqnr_db).collect();
        let (value, met, note) = match figures.map(|figures| figures.into_iter().reduce(f64::min)) {
            _ if outputs.is_empty() => (None, false, "no output is a tensor of floats"),
            None => (None, false, "an output is zero, infinite or NaN in one of the models only"),
            Some(None) => (None, true, "all outputs are equal"),
            Some(Some(least)) => (Some(least), least >= threshold, ""),
        };
        push("sqnr-db", threshold, value, met, note.to_owned());
    }
    if let Some(threshold) = require.size_ratio {
        let ratio = report.output.bytes as f64 / report.input.bytes.max(1) as f64;
        push("size-ratio", threshold, Some(ratio), ratio <= threshold, String::new());
    }
    if let Some(threshold) = require.latency_ratio {
        match &report.latency {
            Some(latency) => {
                let high = latency.ratio.high;
                push("latency-ratio", threshold, Some(high), high <= threshold, String::new());
            }
            None => {
                let why = "the latency was not measured: that needs an engine (--deploy) and inputs to feed";
                push("latency-ratio", threshold, None, false, why.to_owned());
            }
        }
    }
    verdicts
}
