//! Two models on the same samples: accuracy, agreement, fidelity, and the verdict on thresholds.

use anyhow::bail;
use optix_data::{Agreement, Dataset, Distance, PairedCounts, Verdict, correct, wilson};
use optix_ir::Model;
use optix_pipeline::report::{Accuracy, Evaluation, Interval, OutputFidelity, Report, Requirement};
use optix_pipeline::{Oracle, OracleError, Progress, Requirements};

use super::setup;

/// `top1` as 1.
pub fn top(metric: &str) -> anyhow::Result<usize> {
    match metric.strip_prefix("top").and_then(|k| k.parse::<usize>().ok()) {
        Some(k) if k > 0 => Ok(k),
        _ => bail!("--metric {metric}: the metrics are topN, such as top1 or top5"),
    }
}

/// Runs both models over the data.
pub fn evaluate(
    oracle: &mut dyn Oracle,
    before: &Model,
    after: &Model,
    dataset: &Dataset,
    metric: &str,
    progress: &dyn Progress,
) -> anyhow::Result<Evaluation> {
    let k = top(metric)?;
    let bound = dataset.bind(&setup::inputs(before)?, setup::BATCH)?;
    let total = bound.len().unwrap_or(0);
    let names: Vec<String> = before
        .graph(before.main())
        .outputs()
        .iter()
        .map(|info| before.value(info.value).name().to_owned())
        .collect();
    let mut distances: Vec<Distance> = names.iter().map(|_| Distance::new()).collect();
    let mut agreement = Agreement::new();
    let mut paired = PairedCounts::default();
    let mut done = 0;
    // Scores are a row a sample: a first output of rank 2 from samples that are batched.
    let mut has_scores = true;
    let samples = oracle.compare(before, after, &mut bound.batches()?, &mut |batch, expected, found| {
        for ((distance, a), b) in distances.iter_mut().zip(expected).zip(found) {
            if a.dtype().is_float() {
                distance.add(a, b)?;
            }
        }
        let (Some(a), Some(b)) = (expected.first(), found.first()) else { return Ok(()) };
        has_scores &= a.rank() == 2 && a.shape().first() == Some(&batch.count) && a.shape()[1] > 1;
        if has_scores {
            agreement.add(a, b)?;
            if let Some(labels) = &batch.labels
                && labels.classes().is_some()
            {
                let classes = optix_data::check_labels(labels, a.shape()[1])?;
                paired.add(&correct(a, classes, k)?, &correct(b, classes, k)?);
            }
        }
        done += batch.count as u64;
        progress.tick("evaluating", done, total);
        Ok(())
    })?;
    if samples == 0 {
        return Err(OracleError::Feeds("the evaluation data hold no samples".to_owned()).into());
    }
    let accuracy = paired.change().map(|change| Accuracy {
        metric: metric.to_owned(),
        before: change.reference,
        after: change.candidate,
        change_points: Interval {
            value: change.difference * 100.0,
            low: change.interval.low * 100.0,
            high: change.interval.high * 100.0,
        },
        lost: paired.only_reference,
        gained: paired.only_candidate,
    });
    let agreement = agreement.value().filter(|_| has_scores).map(|value| {
        let interval = wilson(agreement.same(), agreement.total());
        Interval { value, low: interval.low, high: interval.high }
    });
    let outputs = names
        .into_iter()
        .zip(&distances)
        .filter(|(_, distance)| distance.elements() > 0)
        .map(|(name, distance)| OutputFidelity {
            name,
            equal: is_equal(distance),
            sqnr_db: distance.sqnr_db().filter(|sqnr| sqnr.is_finite()),
            cosine: distance.cosine(),
            max_abs_error: distance.max_absolute_error().filter(|error| error.is_finite()),
        })
        .collect();
    Ok(Evaluation { samples, accuracy, agreement, outputs })
}

/// Whether nothing differs at all. No ratio of signal to noise says that: there is none as well when the
/// reference is zero everywhere, or when one side is infinite or NaN.
pub fn is_equal(distance: &Distance) -> bool {
    distance.max_absolute_error() == Some(0.0)
}

/// What a verdict that is not reached says.
fn note(verdict: &Verdict) -> String {
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
    verdicts
}
