//! `optix data`: data as a model would see them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;
use optix_base::escape_for_terminal;
use optix_data::{Bound, Dataset, Survey, Values};
use optix_pipeline::Progress;
use serde_json::{Value, json};

use super::setup;
use crate::screen;
use optix::cli::{DataCommand, Global};

/// Classes that are listed; of more only the least and the most frequent.
const CLASSES: usize = 24;

/// Shapes that are listed.
const SHAPES: usize = 6;

/// Checks data.
pub fn data(global: &Global, command: &DataCommand) -> anyhow::Result<()> {
    let DataCommand::Check { data, model, samples, json } = command;
    let dataset = setup::open_dataset(global, data, *samples, true)?;
    let bound = match model {
        Some(model) => Some(dataset.bind(&setup::inputs(&setup::load(global, model)?.model)?, setup::BATCH)?),
        None => None,
    };
    let bars = screen::Bars::new(global);
    let total = dataset.len().unwrap_or(0);
    let survey = dataset.survey(bound.as_ref(), &mut |done| bars.tick("reading", done, total))?;
    bars.finish();
    let dataset = bound.as_ref().map_or(&dataset, Bound::dataset);
    if *json {
        let document = document(dataset, model.as_deref(), bound.as_ref(), &survey);
        screen::result(&format!("{}\n", serde_json::to_string_pretty(&document)?))?;
    } else {
        screen::result(&text(dataset, model.as_deref(), bound.as_ref(), &survey)?)?;
    }
    if survey.broken == 0 {
        return Ok(());
    }
    let of = survey.good + survey.broken;
    let mut what = match (of, survey.errors.as_slice()) {
        (1, [error]) => bail!("{error}"),
        _ => format!("{} of {of} samples cannot be used", survey.broken),
    };
    for error in &survey.errors {
        write!(what, "\n  {error}")?;
    }
    let more = survey.broken - survey.errors.len() as u64;
    if more > 0 {
        write!(what, "\n  and {more} more")?;
    }
    if survey.stopped {
        what.push_str("\n  what follows could not be read");
    }
    bail!("{what}")
}

/// What the values of an input suggest.
fn hints(values: &Values, is_model: bool) -> Vec<String> {
    let mut hints = Vec::new();
    if values.nan + values.infinite > 0 {
        hints.push(format!("{} NaN and {} infinite values", values.nan, values.infinite));
    }
    if values.constant > 0 {
        hints.push(format!("{} samples whose values are all the same", values.constant));
    }
    if let Some((least, most)) = values.range
        && is_model
        && values.dtype.is_float()
        && least >= 0.0
        && most > 100.0
        && most <= 255.0
    {
        hints.push(
            "values up to 255 look like bytes: most models take less, was a `scale` or `normalize` forgotten?"
                .to_owned(),
        );
    }
    hints
}

fn name_of(name: &str) -> String {
    if name.is_empty() { "data".to_owned() } else { escape_for_terminal(name).into_owned() }
}

fn text(
    dataset: &Dataset,
    model: Option<&Path>,
    bound: Option<&Bound>,
    survey: &Survey,
) -> anyhow::Result<String> {
    let mut text = format!("{}\n", dataset.describe());
    for array in dataset.arrays() {
        writeln!(text, "array     {}  {}{:?}, first sample", name_of(&array.name), array.dtype, array.shape)?;
    }
    for note in dataset.notes() {
        writeln!(text, "note      {note}")?;
    }
    if let (Some(bound), Some(model)) = (bound, model) {
        writeln!(text, "model     {}", model.display())?;
        for binding in bound.bindings() {
            let steps =
                if binding.steps.is_empty() { "no steps".to_owned() } else { binding.steps.join(", ") };
            let from = format!("{} {}", name_of(&binding.array), binding.found);
            writeln!(
                text,
                "input     {}  {} <- {from}: {steps}",
                escape_for_terminal(&binding.input),
                binding.wanted
            )?;
        }
        writeln!(text, "batches   {}", batches(bound))?;
        for note in bound.notes() {
            writeln!(text, "note      {note}")?;
        }
    } else if dataset.is_synthetic() && dataset.arrays().is_empty() {
        text.push_str("note      the shapes come from the model: `--model` shows them\n");
    }
    for values in &survey.inputs {
        let shapes: Vec<String> =
            values
                .shapes
                .iter()
                .take(SHAPES)
                .map(|(shape, count)| {
                    if values.shapes.len() == 1 {
                        format!("{shape:?}")
                    } else {
                        format!("{shape:?} x{count}")
                    }
                })
                .collect();
        let more = if values.shapes.len() > SHAPES { ", ..." } else { "" };
        writeln!(text, "values    {}  {} {}{more}", name_of(&values.name), values.dtype, shapes.join(", "))?;
        if let Some((least, most)) = values.range {
            writeln!(
                text,
                "          least {least:.5}  mean {:.5}  greatest {most:.5}  deviation {:.5}",
                values.mean, values.std
            )?;
        }
        for hint in hints(values, bound.is_some()) {
            writeln!(text, "note      {}: {hint}", name_of(&values.name))?;
        }
    }
    text.push_str(&labels(dataset, survey));
    if survey.duplicates > 0 {
        let pairs: Vec<String> = survey.equal.iter().map(|(a, b)| format!("{a} = {b}")).collect();
        let more = if survey.duplicates > pairs.len() as u64 { ", ..." } else { "" };
        let looked = if survey.hashes_full { " among the first two million" } else { "" };
        writeln!(
            text,
            "equal     {} samples equal an earlier one{looked} ({}{more})",
            survey.duplicates,
            pairs.join(", ")
        )?;
    }
    for sample in &survey.first {
        let place = if sample.place.is_empty() { String::new() } else { format!("  {}", sample.place) };
        let label = sample.label.as_ref().map_or_else(String::new, |label| format!("  label {label}"));
        writeln!(text, "sample    {}{place}{label}", sample.index)?;
        for (values, shown) in survey.inputs.iter().zip(&sample.inputs) {
            writeln!(text, "          {}  {shown}", name_of(&values.name))?;
        }
    }
    if survey.broken == 0 {
        let fit = if bound.is_some() { " and fit the model" } else { "" };
        writeln!(text, "all {} samples can be read{fit}", survey.good)?;
    }
    Ok(text)
}

fn batches(bound: &Bound) -> String {
    if !bound.is_batched() {
        return "one sample at a time: samples have the rank of the model's inputs".to_owned();
    }
    match bound.batch_size() {
        1 => "one sample at a time: the model's first axis has the size 1".to_owned(),
        // The program's own number of samples means that the model leaves it open.
        setup::BATCH => "any number of samples at a time, along axis 0".to_owned(),
        size => format!("exactly {size} samples at a time: the model's first axis has that size"),
    }
}

fn labels(dataset: &Dataset, survey: &Survey) -> String {
    let classes = &survey.classes;
    let count: u64 = classes.values().sum();
    if classes.is_empty() {
        return match survey.other_labels {
            0 => "labels    none\n".to_owned(),
            other => format!("labels    {other}, no classes\n"),
        };
    }
    let name = |class: &i64| {
        let name = dataset.class_name(*class);
        name.map_or_else(|| class.to_string(), |name| format!("{class} {}", escape_for_terminal(name)))
    };
    let mut text = format!("labels    {count} in {} classes", classes.len());
    let missing = dataset.classes().len().saturating_sub(classes.len());
    if missing > 0 {
        text.push_str(&format!(", {missing} classes have no sample"));
    }
    text.push('\n');
    let mut listed: Vec<(&i64, &u64)> = classes.iter().collect();
    if listed.len() > CLASSES {
        listed.sort_by_key(|(class, count)| (**count, **class));
        let rarest: Vec<String> =
            listed.iter().take(3).map(|(class, count)| format!("{}: {count}", name(class))).collect();
        let most: Vec<String> =
            listed.iter().rev().take(3).map(|(class, count)| format!("{}: {count}", name(class))).collect();
        text.push_str(&format!(
            "          rarest {}; most frequent {}\n",
            rarest.join(", "),
            most.join(", ")
        ));
        return text;
    }
    let list: Vec<String> = listed.iter().map(|(class, count)| format!("{}: {count}", name(class))).collect();
    text.push_str(&format!("          {}\n", list.join(", ")));
    text
}

fn document(dataset: &Dataset, model: Option<&Path>, bound: Option<&Bound>, survey: &Survey) -> Value {
    let arrays: Vec<Value> = dataset
        .arrays()
        .iter()
        .map(|array| json!({ "name": array.name, "dtype": array.dtype.to_string(), "shape": array.shape }))
        .collect();
    let inputs: Vec<Value> = survey
        .inputs
        .iter()
        .map(|values| {
            let shapes: Vec<Value> = values
                .shapes
                .iter()
                .map(|(shape, count)| json!({ "shape": shape, "samples": count }))
                .collect();
            json!({
                "name": values.name,
                "dtype": values.dtype.to_string(),
                "shapes": shapes,
                "least": values.range.map(|range| range.0),
                "greatest": values.range.map(|range| range.1),
                "mean": values.mean,
                "std": values.std,
                "nan": values.nan,
                "infinite": values.infinite,
                "constant_samples": values.constant,
                "notes": hints(values, bound.is_some()),
            })
        })
        .collect();
    let classes: Vec<Value> = survey
        .classes
        .iter()
        .map(|(class, count)| {
            let name = dataset.class_name(*class);
            json!({ "class": class, "name": name, "samples": count })
        })
        .collect();
    let first: Vec<Value> = survey
        .first
        .iter()
        .map(|sample| {
            json!({ "index": sample.index, "place": sample.place, "label": sample.label, "inputs": sample.inputs })
        })
        .collect();
    let fit = bound.map(|bound| {
        let bindings: Vec<Value> = bound
            .bindings()
            .into_iter()
            .map(|binding| {
                json!({
                    "input": binding.input,
                    "wanted": binding.wanted,
                    "array": binding.array,
                    "found": binding.found,
                    "steps": binding.steps,
                })
            })
            .collect();
        json!({
            "model": model.map(|model| model.to_string_lossy()),
            "inputs": bindings,
            "batched": bound.is_batched(),
            "batches": batches(bound),
            "notes": bound.notes(),
        })
    });
    json!({
        "schema": "optix-data-check/1",
        "data": dataset.path().to_string_lossy(),
        "kind": dataset.kind().name(),
        "synthetic": dataset.is_synthetic(),
        "arrays": arrays,
        "notes": dataset.notes(),
        "samples": survey.good,
        "broken": survey.broken,
        "errors": survey.errors,
        "stopped": survey.stopped,
        "equal_samples": survey.duplicates,
        "labels": { "classes": classes, "other": survey.other_labels },
        "inputs": inputs,
        "first": first,
        "fit": fit,
    })
}
