//! Recurrent layers.

use crate::infer::call::{Call, Rule, one};
use crate::infer::dims::{Outcome, same, size, wrong};
use crate::infer::fact::Fact;
use crate::types::Dim;

pub(super) const RULES: &[(&str, Rule)] =
    &[("GRU", |call| layer(call, 1)), ("LSTM", |call| layer(call, 2)), ("RNN", |call| layer(call, 1))];

/// All hidden states, then the last one, then with `states` 2 the last cell state.
fn layer(call: &Call<'_>, states: usize) -> Outcome<Vec<Fact>> {
    let dtype = call.dtype(0);
    let directions = match call.node.string("direction").unwrap_or("forward") {
        "forward" | "reverse" => Dim::Fixed(1),
        "bidirectional" => Dim::Fixed(2),
        other => return wrong(format!("`direction` is `{other}`, which is none")),
    };
    let mut hidden = match call.node.int("hidden_size") {
        Some(hidden) => size(hidden, "`hidden_size`")?,
        None => Dim::Unknown,
    };
    if let Some([_, _, found]) = call.shape(2).map(Vec::as_slice) {
        hidden = same(&hidden, found, "`hidden_size` and the last size of the recurrence weights")?;
    }
    let batch_first = call.flag("layout");
    let (length, batch) = match call.shape(0).map(Vec::as_slice) {
        Some([batch, length, _]) if batch_first => (length.clone(), batch.clone()),
        Some([length, batch, _]) => (length.clone(), batch.clone()),
        Some(shape) => return wrong(format!("the input has {} dimensions, but 3 are needed", shape.len())),
        None => (Dim::Unknown, Dim::Unknown),
    };
    let (all, last) = if batch_first {
        (vec![batch.clone(), length, directions.clone(), hidden.clone()], vec![batch, directions, hidden])
    } else {
        (vec![length, directions.clone(), batch.clone(), hidden.clone()], vec![directions, batch, hidden])
    };
    let mut facts = one(dtype, Some(all))?;
    facts.extend(std::iter::repeat_n(Fact::tensor(dtype, Some(last)), states));
    Ok(facts)
}
