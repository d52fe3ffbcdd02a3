//! `optix compare`: where two models part.

use std::collections::HashMap;
use std::path::Path;

use anyhow::bail;
use optix_base::escape_for_terminal;
use optix_data::Distance;
use optix_ir::{Model, Tensor, ValueId};
use optix_pipeline::{Oracle, OracleError};
use serde_json::json;

use super::evaluation::is_equal;
use super::setup;
use crate::screen;
use optix::cli::Global;

/// Samples whose values of one model are kept while the other runs.
const AT_ONCE: usize = 4;

/// Values of the main graphs that both models have under the same name, in the first one's order.
fn common_values(a: &Model, b: &Model) -> Vec<(ValueId, ValueId, String)> {
    let main = b.main();
    let names: HashMap<&str, ValueId> = b
        .values()
        .filter(|&id| b.value(id).graph() == main && b.value(id).initializer().is_none())
        .map(|id| (b.value(id).name(), id))
        .collect();
    let outputs = a.nodes_of(a.main()).flat_map(|node| a.node(node).outputs().iter().flatten().copied());
    outputs
        .filter_map(|id| {
            let name = a.value(id).name();
            // A quantized model keeps the name of a value for what goes into its quantizer; what its
            // users read is behind it.
            let dequantized = format!("{name}_dequantized");
            let other = names.get(dequantized.as_str()).or_else(|| names.get(name))?;
            Some((id, *other, name.to_owned()))
        })
        .collect()
}

/// Compares every common value on the data.
pub fn compare(
    global: &Global,
    a: &Path,
    b: &Path,
    data: &Path,
    samples: u64,
    as_json: bool,
) -> anyhow::Result<()> {
    let (first, second) = (setup::load(global, a)?.model, setup::load(global, b)?.model);
    let pairs = common_values(&first, &second);
    if pairs.is_empty() {
        bail!("{} and {} have no value of the same name", a.display(), b.display());
    }
    let dataset = setup::real_dataset(global, data, Some(samples))?;
    let bound = dataset.bind(&setup::inputs(&first)?, AT_ONCE)?;
    let mut oracle = setup::engine(global)?;
    let mut distances: Vec<Distance> = pairs.iter().map(|_| Distance::new()).collect();
    let left: Vec<ValueId> = pairs.iter().map(|(a, ..)| *a).collect();
    let right: Vec<ValueId> = pairs.iter().map(|(_, b, _)| *b).collect();
    let mut seen = 0u64;
    for batch in bound.batches()? {
        let batch = batch?;
        seen += batch.count as u64;
        let mut kept: HashMap<ValueId, Tensor> = HashMap::new();
        oracle.observe(&first, &left, &mut std::iter::once(Ok(batch.clone())), &mut |value, tensor| {
            kept.insert(value, tensor.clone());
            Ok(())
        })?;
        oracle.observe(&second, &right, &mut std::iter::once(Ok(batch)), &mut |value, tensor| {
            for (index, (a, b, _)) in pairs.iter().enumerate() {
                if *b == value
                    && let Some(expected) = kept.get(a)
                    && expected.dtype() == tensor.dtype()
                    && expected.shape() == tensor.shape()
                    && tensor.dtype().is_float()
                {
                    distances[index].add(expected, tensor).map_err(OracleError::from)?;
                }
            }
            Ok(())
        })?;
    }
    setup::remarks(global, &oracle);
    let rows: Vec<(&str, &Distance)> = pairs
        .iter()
        .zip(&distances)
        .filter(|(_, distance)| distance.elements() > 0)
        .map(|((_, _, name), distance)| (name.as_str(), distance))
        .collect();
    if as_json {
        let values: Vec<serde_json::Value> = rows
            .iter()
            .map(|(name, distance)| {
                json!({ "name": name, "equal": is_equal(distance), "sqnr_db": distance.sqnr_db().filter(|x| x.is_finite()), "cosine": distance.cosine(), "max_abs_error": distance.max_absolute_error().filter(|x| x.is_finite()) })
            })
            .collect();
        let document = json!({ "schema": "optix-compare/1", "a": a.display().to_string(), "b": b.display().to_string(), "samples": seen, "engine": oracle.describe(), "values": values });
        return screen::result(&screen::json_text(&document));
    }
    let mut text =
        format!("{} against {} on {seen} samples, {}\n", b.display(), a.display(), oracle.describe());
    for (name, distance) in &rows {
        let sqnr = match distance.sqnr_db() {
            _ if is_equal(distance) => "     equal".to_owned(),
            Some(sqnr) if sqnr.is_finite() => format!("{sqnr:7.1} dB"),
            // Infinite or NaN in one of the models, or zero in the reference.
            _ => "      none".to_owned(),
        };
        text.push_str(&format!(
            "{sqnr}  greatest error {:9.3e}  {}\n",
            distance.max_absolute_error().unwrap_or(0.0),
            escape_for_terminal(name)
        ));
    }
    let worst = rows
        .iter()
        .filter(|(_, distance)| !is_equal(distance))
        .map(|(name, distance)| (distance.sqnr_db().unwrap_or(f64::NEG_INFINITY), *name))
        .min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((sqnr, name)) = worst {
        let at = if sqnr.is_finite() { format!(" at {sqnr:.1} dB") } else { String::new() };
        text.push_str(&format!("worst: {}{at}\n", escape_for_terminal(name)));
    }
    screen::result(&text)
}
