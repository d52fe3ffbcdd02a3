//! `optix data`: data as a model would see them.

use optix_base::escape_for_terminal;

use super::setup;
use crate::screen;
use optix::cli::{DataCommand, Global};

/// Samples shown.
const SHOWN: usize = 3;

/// Checks data.
pub fn data(global: &Global, command: &DataCommand) -> anyhow::Result<()> {
    let DataCommand::Check { data, model } = command;
    let dataset = setup::dataset(global, data, None)?;
    let mut text = format!("{}\n", dataset.describe());
    for array in dataset.arrays() {
        text.push_str(&format!(
            "array  {}  {}{:?}\n",
            escape_for_terminal(&array.name),
            array.dtype,
            array.shape
        ));
    }
    text.push_str(if dataset.has_labels() { "labels: yes\n" } else { "labels: none\n" });
    let Some(model) = model else { return screen::result(&text) };
    let loaded = setup::load(global, model)?;
    let bound = dataset.bind(&setup::inputs(&loaded.model)?, 1)?;
    for note in bound.notes() {
        text.push_str(&format!("note: {note}\n"));
    }
    for (index, batch) in bound.batches()?.take(SHOWN).enumerate() {
        let batch = batch?;
        for (name, tensor) in &batch.feeds {
            let values = tensor.to_f64s().unwrap_or_default();
            let (min, max) =
                values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
            let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
            text.push_str(&format!(
                "sample {index}  {}  {}{:?}  least {min:.4}  mean {mean:.4}  greatest {max:.4}\n",
                escape_for_terminal(name),
                tensor.dtype(),
                tensor.shape()
            ));
        }
        if let Some(classes) = batch.labels.as_ref().and_then(|labels| labels.classes()) {
            text.push_str(&format!("sample {index}  label {classes:?}\n"));
        }
    }
    // Everything is read once, so that damage anywhere is found now.
    let mut count = 0u64;
    for batch in bound.batches()? {
        count += batch?.count as u64;
    }
    text.push_str(&format!("all {count} samples can be read and fit the model\n"));
    screen::result(&text)
}
