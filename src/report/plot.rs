//! Plots as inline SVG, drawn by hand: a page needs no script and no network.

use std::fmt::Write;

/// Text inside SVG or HTML.
pub fn escape(text: &str) -> String {
    let text = optix_base::escape_for_terminal(text);
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// One row of a bar chart: label, value, and what to show behind it.
pub struct Bar {
    /// Left of the bar.
    pub label: String,
    /// Its length; none for an empty row.
    pub value: Option<f64>,
    /// Right of the bar.
    pub note: String,
    /// Drawn in the colour of trouble.
    pub bad: bool,
}

/// Horizontal bars from zero.
pub fn bars(title: &str, rows: &[Bar]) -> String {
    const ROW: usize = 18;
    const LEFT: usize = 300;
    const WIDTH: usize = 420;
    let height = rows.len() * ROW + 30;
    let greatest = rows.iter().filter_map(|row| row.value).fold(0.0f64, f64::max).max(f64::MIN_POSITIVE);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {height}\" role=\"img\" aria-label=\"{title}\"><text x=\"0\" y=\"14\" class=\"title\">{title}</text>",
        LEFT + WIDTH + 120,
        title = escape(title)
    );
    for (index, row) in rows.iter().enumerate() {
        let y = index * ROW + 24;
        let length = row.value.map_or(0.0, |value| value.max(0.0) / greatest * WIDTH as f64);
        let class = if row.bad { "bar bad" } else { "bar" };
        let short: String = if row.label.chars().count() > 42 {
            let tail: Vec<char> = row.label.chars().rev().take(40).collect();
            format!("…{}", tail.into_iter().rev().collect::<String>())
        } else {
            row.label.clone()
        };
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" class=\"label\">{}<title>{}</title></text><rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" class=\"{class}\"/><text x=\"{:.1}\" y=\"{}\" class=\"note\">{}</text>",
            LEFT - 8,
            y + 12,
            escape(&short),
            escape(&row.label),
            ROW - 4,
            LEFT as f64 + length + 6.0,
            y + 12,
            escape(&row.note)
        );
    }
    svg.push_str("</svg>");
    svg
}
