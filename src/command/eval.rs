//! `optix eval`: a model on labelled data.

use std::path::Path;

use anyhow::bail;
use optix_data::{check_labels, correct, wilson};
use optix_pipeline::report::Interval;
use optix_pipeline::{Oracle, Progress};
use serde_json::json;

use super::{evaluation, setup};
use crate::screen;
use optix::cli::Global;

/// Measures a model, or compares two.
pub fn eval(
    global: &Global,
    model: &Path,
    data: &Path,
    metric: &str,
    vs: Option<&Path>,
    samples: Option<u64>,
    as_json: bool,
) -> anyhow::Result<()> {
    let k = evaluation::top(metric)?;
    let loaded = setup::load(global, model)?;
    let dataset = setup::real_dataset(global, data, samples)?;
    let mut oracle = setup::engine(global)?;
    let bars = screen::Bars::new(global);
    if let Some(vs) = vs {
        let other = setup::load(global, vs)?;
        let evaluation =
            evaluation::evaluate(&mut oracle, &other.model, &loaded.model, &dataset, metric, &bars)?;
        bars.finish();
        setup::remarks(global, &oracle);
        if as_json {
            let document = json!({
                "schema": "optix-eval/1", "model": model.display().to_string(), "vs": vs.display().to_string(),
                "engine": oracle.describe(), "evaluation": evaluation,
            });
            return screen::result(&screen::json_text(&document));
        }
        let mut text = format!("{} against {} ({})\n", model.display(), vs.display(), oracle.describe());
        for line in crate::report::evaluation_lines(&evaluation) {
            text.push_str(&line);
            text.push('\n');
        }
        return screen::result(&text);
    }
    if !dataset.has_labels() {
        bail!(
            "{}: it has no labels, so there is no accuracy; `--vs MODEL` compares two models",
            data.display()
        );
    }
    let bound = dataset.bind(&setup::inputs(&loaded.model)?, setup::BATCH)?;
    let graph = loaded.model.graph(loaded.model.main());
    let Some(output) = graph.outputs().first().map(|info| info.value) else {
        bail!("{}: the model has no output", model.display());
    };
    let total = bound.len().unwrap_or(0);
    let (mut right, mut count) = (0u64, 0u64);
    // Observed batch by batch: one loaded session, one batch in memory.
    let mut labels = std::collections::VecDeque::new();
    let mut batches = bound.batches()?.inspect(|batch| {
        if let Ok(batch) = batch {
            labels_queue(&mut labels, batch);
        }
    });
    let mut scores = Vec::new();
    oracle.observe(&loaded.model, &[output], &mut batches, &mut |_, tensor| {
        scores.push(optix_data::top_classes(tensor).map(|_| tensor.clone())?);
        bars.tick("evaluating", scores.len() as u64 * setup::BATCH as u64, total);
        Ok(())
    })?;
    drop(batches);
    bars.finish();
    setup::remarks(global, &oracle);
    for (tensor, labels) in scores.iter().zip(labels) {
        let Some(labels) = labels else { bail!("{}: some samples have no labels", data.display()) };
        let classes = check_labels(&labels, tensor.shape().get(1).copied().unwrap_or(0))?;
        let verdicts = correct(tensor, classes, k)?;
        right += verdicts.iter().filter(|right| **right).count() as u64;
        count += verdicts.len() as u64;
    }
    let interval = wilson(right, count);
    let share = right as f64 / count.max(1) as f64;
    if as_json {
        let document = json!({
            "schema": "optix-eval/1", "model": model.display().to_string(), "engine": oracle.describe(),
            "samples": count, "metric": metric,
            "value": Interval { value: share, low: interval.low, high: interval.high },
        });
        return screen::result(&screen::json_text(&document));
    }
    screen::result(&format!(
        "{metric} {:.2}% (95% interval {:.2}% to {:.2}%) on {count} samples, {}\n",
        share * 100.0,
        interval.low * 100.0,
        interval.high * 100.0,
        oracle.describe()
    ))
}

fn labels_queue(
    queue: &mut std::collections::VecDeque<Option<optix_data::Labels>>,
    batch: &optix_data::Batch,
) {
    queue.push_back(batch.labels.clone());
}
