//! `optix compare`: where two models part, or one model on two engines.

use std::collections::HashMap;
use std::path::Path;

use anyhow::bail;
use optix_base::escape_for_terminal;
use optix_data::Distance;
use optix_ir::{Model, ValueId};
use optix_pipeline::check::OpsEvaluator;
use optix_pipeline::{Oracle, OracleError, Progress};
use optix_runtime::{Proof, batching, stream, value_bytes};
use serde_json::{Value, json};

use super::evaluation::is_equal;
use super::pairs::{Pair, are_comparable, pairs};
use super::setup;
use crate::screen;
use optix::cli::Global;

/// Bytes of values of one sample that are kept at a time; more are looked at in several passes over the data.
const AT_ONCE: u64 = 256 << 20;

/// What was typed.
pub struct Options<'a> {
    pub a: &'a Path,
    pub b: &'a Path,
    pub data: &'a Path,
    pub vs_engine: Option<&'a str>,
    pub samples: u64,
    pub batch: Option<usize>,
    pub tolerance: f64,
    pub json: bool,
}

/// A value in both models.
struct Row<'a> {
    pair: &'a Pair,
    /// The operator that computes it.
    op_type: String,
    /// The node's name; empty where it has none.
    node: String,
    distance: Distance,
    /// Shapes, where they differ.
    shapes: Option<String>,
}

impl Row<'_> {
    /// Whether the values are different ones.
    fn parts(&self, tolerance: f64) -> bool {
        let error = self.distance.max_relative_error();
        self.shapes.is_some() || !error.is_none_or(|error| error <= tolerance)
    }

    /// What noise is left, infinite when none; worse than any where there is no such figure.
    fn decibels(&self) -> f64 {
        match self.distance.sqnr_db() {
            _ if is_equal(&self.distance) => f64::INFINITY,
            sqnr => sqnr.unwrap_or(f64::NEG_INFINITY),
        }
    }
}

/// Compares every common value on the data.
pub fn compare(global: &Global, options: &Options<'_>) -> anyhow::Result<()> {
    if options.tolerance.is_nan() || options.tolerance < 0.0 {
        bail!("--tolerance {}: a share of 0 or more", options.tolerance);
    }
    let (first, mut second) = (setup::load(global, options.a)?.model, setup::load(global, options.b)?.model);
    // Which integers stand for floats, their types say.
    optix_ir::infer::infer(&mut second, &OpsEvaluator);
    let (pairs, missing) = pairs(&first, &mut second);
    if pairs.is_empty() {
        let (a, b) = (options.a.display(), options.b.display());
        bail!("{a} and {b} have no value of the same name, and none that is computed the same way");
    }
    let data = setup::real_dataset(global, options.data, Some(options.samples))?;
    let oracle = setup::engine(global)?;
    let other = options.vs_engine.map(|name| setup::oracle_named(global, name)).transpose()?;
    let other = other.as_ref().unwrap_or(&oracle);
    let (cancel, bars) = (setup::cancel_on_interrupt(), screen::Bars::new(global));
    let inputs = setup::inputs(&first)?;
    let mut lanes =
        [setup::lane(global, &oracle, &first, Vec::new())?, setup::lane(global, other, &second, Vec::new())?];
    let single = data.bind(&inputs, 1)?;
    let Some(sample) = single.batches()?.next().transpose()? else { bail!("the data hold no samples") };
    let groups = groups(&pairs, &value_bytes(&first, &sample.feeds));
    // The proof is about outputs; the size about everything that is kept.
    let group = groups.first().cloned().unwrap_or_default();
    want(&mut lanes, &pairs[group.clone()], &first, &second);
    let batching = batching(&mut lanes, &data, &inputs, options.batch, Proof::Outputs)?;
    setup::note_batch(global, &batching.alone, batching.size());
    // The proof has run the first group's first batch.
    let mut tried = batching.first;
    let mut rows: Vec<Row<'_>> = pairs.iter().map(|pair| row(&first, pair)).collect();
    let (mut seen, mut done) = (0, 0);
    let total = batching.bound.len().unwrap_or(0) * groups.len() as u64;
    for group in groups {
        let own = &mut rows[group.clone()];
        want(&mut lanes, &pairs[group], &first, &second);
        let streamed = stream(&mut lanes, &batching.bound, tried.take(), &cancel, &mut |batch, results| {
            for (row, (a, b)) in own.iter_mut().zip(results[0].iter().zip(&results[1])) {
                if a.shape() != b.shape() {
                    row.shapes.get_or_insert(format!("{:?} and {:?}", a.shape(), b.shape()));
                } else if are_comparable(a.dtype(), b.dtype()) {
                    row.distance.add(a, b).map_err(OracleError::from)?;
                }
            }
            done += batch.count as u64;
            bars.tick("comparing", done, total);
            Ok(())
        });
        if streamed.is_err() {
            bars.finish();
        }
        seen = streamed?;
    }
    bars.finish();
    setup::lane_remarks(global, &lanes);
    rows.retain(|row| row.distance.elements() > 0 || row.shapes.is_some());
    let mut engines = vec![oracle.describe()];
    engines.extend(options.vs_engine.map(|_| other.describe()));
    if options.json {
        let document = document(options, &rows, &first, missing, seen, batching.bound.batch_size(), &engines);
        return screen::result(&screen::json_text(&document));
    }
    screen::result(&text(options, &rows, &first, missing, seen, &engines))
}

/// Runs of pairs whose values of one sample fit the memory that is kept for them.
fn groups(pairs: &[Pair], sizes: &HashMap<ValueId, u64>) -> Vec<std::ops::Range<usize>> {
    let (mut groups, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, pair) in pairs.iter().enumerate() {
        let own = sizes.get(&pair.a).copied().unwrap_or(0);
        if index > start && bytes + own > AT_ONCE {
            groups.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += own;
    }
    groups.push(start..pairs.len());
    groups
}

/// Lets the lanes look at these pairs, and at their outputs behind them: the proof of the batch is about
/// those.
fn want(lanes: &mut [optix_runtime::Lane<'_>; 2], pairs: &[Pair], first: &Model, second: &Model) {
    let [left, right] = lanes;
    for (lane, model, own) in [
        (left, first, pairs.iter().map(|pair| pair.a).collect::<Vec<_>>()),
        (right, second, pairs.iter().map(|pair| pair.b).collect()),
    ] {
        let mut wanted = own;
        let outputs = super::evaluation::outputs_of(model).into_iter().map(|(value, _)| value);
        wanted.extend(outputs);
        lane.want(wanted);
    }
}

fn row<'a>(model: &Model, pair: &'a Pair) -> Row<'a> {
    let producer = model.value(pair.a).producer().map(|(node, _)| model.node(node));
    let op_type = producer.map_or_else(String::new, |node| node.op_type.clone());
    let node = producer.map_or_else(String::new, |node| node.name.clone());
    Row { pair, op_type, node, distance: Distance::new(), shapes: None }
}

/// The first value that parts, the worst one, and the one that loses most against what it is computed from.
fn landmarks<'r, 'a>(
    rows: &'r [Row<'a>],
    model: &Model,
    tolerance: f64,
) -> (Option<&'r Row<'a>>, Option<&'r Row<'a>>, Option<(&'r Row<'a>, f64)>) {
    let first = rows.iter().find(|row| row.parts(tolerance));
    let different = rows.iter().filter(|row| !is_equal(&row.distance));
    let worst = different.min_by(|a, b| a.decibels().total_cmp(&b.decibels()));
    let known: HashMap<ValueId, f64> = rows.iter().map(|row| (row.pair.a, row.decibels())).collect();
    let loss = |row: &'r Row<'a>| {
        let (node, _) = model.value(row.pair.a).producer()?;
        let inputs = model.node(node).inputs().iter().flatten().filter_map(|input| known.get(input));
        let before = inputs.copied().reduce(f64::min).filter(|before| before.is_finite())?;
        Some((row, before - row.decibels())).filter(|(_, loss)| loss.is_finite() && *loss > 0.0)
    };
    let steepest = rows.iter().filter_map(loss).max_by(|a, b| a.1.total_cmp(&b.1));
    (first, worst, steepest)
}

fn document(
    options: &Options<'_>,
    rows: &[Row<'_>],
    model: &Model,
    missing: usize,
    samples: u64,
    batch: usize,
    engines: &[String],
) -> Value {
    let finite = |value: Option<f64>| value.filter(|value| value.is_finite());
    let values: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "name": row.pair.name,
                "operator": row.op_type,
                "node": row.node,
                "equal": row.shapes.is_none() && is_equal(&row.distance),
                "parts": row.parts(options.tolerance),
                "shapes": row.shapes,
                "sqnr_db": finite(row.distance.sqnr_db()),
                "cosine": row.distance.cosine(),
                "max_abs_error": finite(row.distance.max_absolute_error()),
                "max_relative_error": finite(row.distance.max_relative_error()),
            })
        })
        .collect();
    let (first, worst, steepest) = landmarks(rows, model, options.tolerance);
    let name = |row: Option<&Row<'_>>| row.map(|row| row.pair.name.clone());
    json!({
        "schema": "optix-compare/1",
        "a": options.a.display().to_string(),
        "b": options.b.display().to_string(),
        "data": options.data.display().to_string(),
        "engine": engines.first(),
        "vs_engine": engines.get(1),
        "samples": samples,
        "batch": batch,
        "tolerance": options.tolerance,
        "without_counterpart": missing,
        "first": name(first),
        "worst": name(worst),
        "steepest": name(steepest.map(|(row, _)| row)),
        "values": values,
    })
}

fn text(
    options: &Options<'_>,
    rows: &[Row<'_>],
    model: &Model,
    missing: usize,
    samples: u64,
    engines: &[String],
) -> String {
    let shown = |path: &Path| escape_for_terminal(&path.display().to_string()).into_owned();
    let (a, b) = (shown(options.a), shown(options.b));
    let mut lines = vec![match engines {
        [own, other] => format!("{b} ({other}) against {a} ({own}) on {samples} samples"),
        _ => format!("{b} against {a} on {samples} samples, {}", engines.join("")),
    }];
    lines.push("       SQNR     cosine  greatest error  operator            value".to_owned());
    let (first, worst, steepest) = landmarks(rows, model, options.tolerance);
    for row in rows {
        let mark = match row.parts(options.tolerance) {
            _ if first.is_some_and(|first| std::ptr::eq(first, row)) => ">",
            true => "*",
            false => " ",
        };
        let name = escape_for_terminal(&row.pair.name);
        let op_type = escape_for_terminal(&row.op_type);
        if let Some(shapes) = &row.shapes {
            lines.push(format!("{mark} shapes differ: {shapes}  {op_type}  {name}"));
            continue;
        }
        let sqnr = match row.distance.sqnr_db() {
            _ if is_equal(&row.distance) => "equal".to_owned(),
            Some(sqnr) if sqnr.is_finite() => format!("{sqnr:.1} dB"),
            // Infinite or NaN in one of the models, or zero in the reference.
            _ => "none".to_owned(),
        };
        let cosine = row.distance.cosine().map_or_else(|| "-".to_owned(), |cosine| format!("{cosine:.6}"));
        let error = row.distance.max_absolute_error().unwrap_or(0.0);
        lines.push(format!("{mark} {sqnr:>9}  {cosine:>9}  {error:>14.3e}  {op_type:<18}  {name}"));
    }
    let at = |row: &Row<'_>| match row.decibels() {
        sqnr if sqnr.is_finite() => format!(" at {sqnr:.1} dB"),
        _ => String::new(),
    };
    let named = |row: &Row<'_>| {
        let node = match row.node.as_str() {
            "" => String::new(),
            node => format!(" of node {}", escape_for_terminal(node)),
        };
        format!("{} ({}{node})", escape_for_terminal(&row.pair.name), escape_for_terminal(&row.op_type))
    };
    match first {
        Some(first) => lines.push(format!("first to part (>): {}{}", named(first), at(first))),
        None => {
            lines.push(format!("nothing parts by more than {:e} of the greatest value", options.tolerance))
        }
    }
    if let Some((row, loss)) = steepest {
        lines.push(format!("steepest: {} loses {loss:.1} dB against its inputs", named(row)));
    }
    if let Some(worst) = worst {
        lines.push(format!("worst: {}{}", named(worst), at(worst)));
    }
    if missing > 0 {
        lines.push(format!("{missing} values of {a} have no counterpart"));
    }
    lines.join("\n")
}
