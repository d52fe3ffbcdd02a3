//! What is said when data do not fit a model.

use optix_ir::{DType, Tensor};

use crate::dataset::InputSpec;
use crate::source::is_8_bit;

/// Type and shape, as `float[N,1,28,28]`.
pub(crate) fn written(dtype: DType, dims: impl IntoIterator<Item = impl ToString>) -> String {
    let dims: Vec<String> = dims.into_iter().map(|dim| dim.to_string()).collect();
    format!("{dtype}[{}]", dims.join(","))
}

/// One line of the table of both sides.
pub(crate) struct Row {
    pub(crate) wanted: String,
    pub(crate) found: String,
}

/// Both sides, and what to do.
pub(crate) fn table(rows: &[Row], cures: &[String]) -> String {
    let width = rows.iter().map(|row| row.wanted.chars().count()).chain([18]).max().unwrap_or(0);
    let line = |left: &str, right: &str| {
        let padding = " ".repeat(width.saturating_sub(left.chars().count()));
        format!("\n  {left}{padding}  {right}")
    };
    let mut text = "the data do not fit the model".to_owned();
    text.push_str(&line("the model takes", "a sample of the data gives"));
    for row in rows {
        text.push_str(&line(&row.wanted, &row.found));
    }
    for cure in cures {
        text.push_str("\n  ");
        text.push_str(cure);
    }
    text
}

/// What to do about a sample that does not fit.
pub(crate) fn cure(input: &InputSpec, sample: &Tensor) -> Option<String> {
    let table = format!("under [input.{}] in a data.toml", input.name);
    if sample.dtype() != input.dtype {
        if sample.dtype() == DType::String {
            return Some(format!(
                "text becomes numbers by a tokenizer {table}, such as\n  \
                 steps = [ {{ tokenize = {{ file = \"tokenizer.json\", max-length = 128 }} }} ]"
            ));
        }
        if is_8_bit(sample.dtype()) && input.dtype.is_float() {
            return Some(format!(
                "8-bit data must not be guessed into floats (OX-D001): say what the model was trained on {table}, such as\n  \
                 steps = [ {{ to-float = {{}} }}, {{ scale = 0.003921569 }}, {{ layout = \"nchw\" }} ]"
            ));
        }
        return Some(format!("`steps = [ {{ cast = \"{}\" }} ]` {table} converts them", input.dtype));
    }
    let rank = input.shape.len();
    if sample.rank().checked_add(1) == Some(rank) || sample.rank() == rank {
        return Some(format!(
            "input `{}`: the sizes differ; the steps `layout` and `reshape` change them",
            input.name
        ));
    }
    Some(format!(
        "input `{}` has {rank} axes: a sample needs {} (fed in batches) or {rank} (fed one at a time)",
        input.name,
        rank.saturating_sub(1)
    ))
}
