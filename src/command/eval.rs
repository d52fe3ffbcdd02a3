//! `optix eval`: metrics of a model on data, alone or against another one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::bail;
use optix_base::escape_for_terminal;
use optix_data::{Measured, Metric, Needs, Verdict};
use optix_ir::Tensor;
use optix_pipeline::report::Requirement;
use optix_pipeline::{Batch, Oracle};
use serde_json::{Value, json};

use super::ceiling::Ceiling;
use super::evaluation::{self, Outcome};
use super::setup;
use crate::exit::Missed;
use crate::{report, screen};
use optix::cli::Global;

/// What was typed.
pub struct Options<'a> {
    pub model: &'a Path,
    pub data: &'a Path,
    pub metrics: &'a [String],
    pub output: Option<&'a str>,
    pub vs: Option<&'a Path>,
    pub train: Option<&'a Path>,
    pub samples: Option<u64>,
    pub batch: Option<usize>,
    pub ceiling: Option<Ceiling>,
    pub require: &'a [String],
    pub report: &'a [PathBuf],
    pub json: bool,
}

/// A threshold: of a metric, or of the drop of one that is a share, in points.
struct Threshold {
    name: String,
    metric: Metric,
    is_drop: bool,
    value: f64,
}

impl Threshold {
    fn parse(text: &str) -> anyhow::Result<Threshold> {
        // Behind the last sign: a command may have some.
        let parsed =
            text.rsplit_once('=').and_then(|(name, value)| Some((name.trim(), value.trim().parse().ok()?)));
        let Some((name, value)) = parsed.filter(|(_, value): &(&str, f64)| value.is_finite()) else {
            bail!("--require {text}: the form is metric=number, such as top1=0.9 or top1-drop=0.5");
        };
        let (of, is_drop) = match name.strip_suffix("-drop") {
            Some(of) => (of, true),
            None => (name, false),
        };
        let metric = Metric::parse(of).map_err(|what| anyhow::anyhow!("--require {text}: {what}"))?;
        if is_drop && !(metric.is_share() && metric.needs() == Needs::Labels) {
            bail!("--require {text}: a drop in points is that of a share, such as top1-drop");
        }
        Ok(Threshold { name: name.to_owned(), metric, is_drop, value })
    }

    fn check(&self, measured: &[Measured]) -> Requirement {
        let found = measured.iter().find(|measured| measured.metric == self.metric);
        let judged = found.and_then(|measured| match self.is_drop {
            true => measured.judge_drop(self.value),
            false => Some(measured.judge(self.value)),
        });
        let (name, threshold) = (self.name.clone(), self.value);
        match judged {
            Some((verdict, figure)) => Requirement {
                name,
                threshold,
                value: Some(figure).filter(|figure| figure.is_finite()),
                met: verdict == Verdict::Met,
                note: match figure {
                    figure if figure == f64::INFINITY => "nothing differs".to_owned(),
                    _ => evaluation::note(&verdict),
                },
            },
            None => {
                let note = "this drop has no interval to judge by: only accuracies have".to_owned();
                Requirement { name, threshold, value: None, met: false, note }
            }
        }
    }
}

/// Measures a model, or two.
pub fn eval(global: &Global, options: &Options<'_>) -> anyhow::Result<()> {
    let started = Instant::now();
    let cancel = setup::cancel_on_interrupt();
    let parse =
        |text: &String| Metric::parse(text).map_err(|what| anyhow::anyhow!("--metric {text}: {what}"));
    let mut metrics = options.metrics.iter().map(parse).collect::<anyhow::Result<Vec<_>>>()?;
    let thresholds =
        options.require.iter().map(|text| Threshold::parse(text)).collect::<anyhow::Result<Vec<_>>>()?;
    if thresholds.iter().any(|threshold| threshold.is_drop) && options.vs.is_none() {
        bail!("--require: a drop is from another model: give it with --vs");
    }
    metrics.extend(thresholds.iter().map(|threshold| threshold.metric.clone()));
    let mut distinct: Vec<Metric> = Vec::new();
    metrics.into_iter().for_each(|metric| {
        if !distinct.contains(&metric) {
            distinct.push(metric);
        }
    });
    let needs_train = distinct.contains(&Metric::Probe);
    if needs_train != options.train.is_some() {
        bail!("the metric `probe` and --train, the labelled data that it is fitted on, go together");
    }
    let loaded = setup::load(global, options.model)?;
    let other = options.vs.map(|vs| setup::load(global, vs)).transpose()?;
    let data = setup::real_dataset(global, options.data, options.samples)?;
    let train = options.train.map(|train| setup::real_dataset(global, train, None)).transpose()?;
    let files: Vec<PathBuf> =
        data.files().into_iter().chain(train.iter().flat_map(|train| train.files())).collect();
    let mut inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    inputs.extend(loaded.sources.iter().map(|source| source.path()));
    options.report.iter().try_for_each(|path| report::check(path, &inputs))?;
    let oracle = setup::engine(global)?;
    let bars = screen::Bars::new(global);
    let choose = |batch: &Batch, found: &Tensor| match distinct.is_empty() {
        true => by_default(batch, found, options),
        false => Ok(distinct.clone()),
    };
    let sources = loaded.sources.iter().chain(other.iter().flat_map(|other| &other.sources));
    let files: u64 = sources.map(|source| source.size()).sum();
    let plan = evaluation::Plan {
        global,
        model: &loaded.model,
        vs: other.as_ref().map(|other| &other.model),
        output: options.output,
        are_named: !distinct.is_empty(),
        metrics: &choose,
        data: &data,
        train: train.as_ref(),
        batch: options.batch,
        ceiling: options.ceiling,
        files,
    };
    let outcome = evaluation::measure(&oracle, &plan, &cancel, &bars);
    bars.finish();
    let outcome = outcome?;
    setup::note_batch(global, &outcome.alone, outcome.batch);
    let requirements: Vec<Requirement> =
        thresholds.iter().map(|threshold| threshold.check(&outcome.measured)).collect();
    let seconds = started.elapsed().as_secs_f64();
    let document = document(options, &oracle.describe(), &outcome, &requirements, seconds);
    let text = text(options, &oracle.describe(), &outcome, &requirements, seconds);
    for path in options.report {
        report::write_evaluation(path, &document, &text)?;
    }
    if options.json {
        screen::result(&screen::json_text(&document))?;
    } else if !global.quiet {
        screen::result(&text)?;
    }
    Ok(Missed::among(&requirements)?)
}

/// What is measured when nobody says: what the data and the models allow.
fn by_default(batch: &Batch, found: &Tensor, options: &Options<'_>) -> anyhow::Result<Vec<Metric>> {
    let mut metrics = Vec::new();
    if evaluation::are_scores(batch, found) {
        metrics.extend(evaluation::has_classes(batch).then_some(Metric::Top(1)));
        metrics.extend(options.vs.is_some().then_some(Metric::Agreement));
    }
    let has_targets = batch.labels.is_some() && !evaluation::has_classes(batch);
    if options.vs.is_none() && has_targets {
        metrics.extend([Metric::SqnrDb, Metric::MaxAbsError]);
    }
    if metrics.is_empty() && options.vs.is_none() {
        let data = options.data.display();
        match batch.labels {
            None => {
                bail!("{data}: it has no labels, so there is no accuracy; `--vs MODEL` compares two models")
            }
            Some(_) => bail!(
                "the output has shape {:?} for {} samples: no rows of scores, so there is no accuracy; --metric says what \
                 to measure, --output on which output",
                found.shape(),
                batch.count
            ),
        }
    }
    Ok(metrics)
}

/// The result as JSON; what JSON has no number for is null.
fn document(
    options: &Options<'_>,
    engine: &str,
    outcome: &Outcome,
    requirements: &[Requirement],
    seconds: f64,
) -> Value {
    let metric = |measured: &Measured| {
        let mut entry = json!({ "name": measured.metric.name(), "value": measured.value });
        if let Some(interval) = measured.interval {
            entry["low"] = json!(interval.low);
            entry["high"] = json!(interval.high);
        }
        if let Some(reference) = measured.reference {
            entry["vs"] = json!(reference);
        }
        if let Some(change) = measured.change {
            let mut changed = json!({ "value": change.difference });
            if let Some(interval) = change.interval {
                changed["low"] = json!(interval.low);
                changed["high"] = json!(interval.high);
            }
            if let Some(counts) = change.counts {
                changed["lost"] = json!(counts.only_reference);
                changed["gained"] = json!(counts.only_candidate);
            }
            entry["change"] = changed;
        }
        entry
    };
    json!({
        "schema": "optix-eval/1",
        "model": options.model.display().to_string(),
        "vs": options.vs.map(|vs| vs.display().to_string()),
        "data": options.data.display().to_string(),
        "engine": engine,
        "samples": outcome.samples,
        "batch": outcome.batch,
        "memory": json!({
            "peak": super::memory::peak(),
            "predicted": outcome.predicted,
            "limit": options.ceiling.map(|ceiling| ceiling.bytes),
        }),
        "alone": outcome.alone,
        "output": outcome.output,
        "metrics": outcome.measured.iter().map(metric).collect::<Vec<_>>(),
        "outputs": outcome.outputs,
        "requirements": requirements,
        "seconds": seconds,
    })
}

/// The result for people.
fn text(
    options: &Options<'_>,
    engine: &str,
    outcome: &Outcome,
    requirements: &[Requirement],
    seconds: f64,
) -> String {
    let shown = |path: &Path| escape_for_terminal(&path.display().to_string()).into_owned();
    let mut lines = vec![format!(
        "{}{} on {}: {} samples, {} at a time, output `{}`",
        shown(options.model),
        options.vs.map_or_else(String::new, |vs| format!(" against {}", shown(vs))),
        shown(options.data),
        outcome.samples,
        outcome.batch,
        escape_for_terminal(&outcome.output)
    )];
    let width =
        outcome.measured.iter().map(|measured| measured.metric.name().chars().count()).max().unwrap_or(0);
    for measured in &outcome.measured {
        let name = escape_for_terminal(&measured.metric.name()).into_owned();
        lines.push(format!("{name:width$}  {}", report::measured(measured)));
    }
    lines.extend(report::fidelity_lines(&outcome.outputs));
    if let (Some(ceiling), Some(predicted), Some(peak)) =
        (options.ceiling, outcome.predicted, super::memory::peak())
    {
        let [peak, predicted, limit] = [peak, predicted, ceiling.bytes].map(report::format_bytes);
        lines.push(format!("memory {peak} at the peak, predicted {predicted}, at most {limit} allowed"));
    }
    lines.extend(requirements.iter().map(report::requirement_line));
    let rate = outcome.samples as f64 / seconds.max(1e-9);
    lines.push(format!("{engine}; {seconds:.1} s in all, {rate:.0} samples a second"));
    lines.join("\n")
}
