//! Plots as inline SVG, drawn by hand: they need no script and no network.

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
        let short = shortened(&row.label);
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

/// One row of a chart of stacked bars.
pub struct Stack {
    /// Left of the bar.
    pub label: String,
    /// Lengths of its parts, in the order of the legend.
    pub parts: Vec<f64>,
    /// Right of the bar.
    pub note: String,
}

/// Horizontal bars from zero, each of parts that a legend names. At most four kinds of parts have colours.
pub fn stacked(title: &str, legend: &[&str], rows: &[Stack]) -> String {
    const ROW: usize = 18;
    const TOP: usize = 44;
    const LEFT: f64 = 300.0;
    const WIDTH: f64 = 420.0;
    let total = |row: &Stack| row.parts.iter().map(|part| part.max(0.0)).sum::<f64>();
    let greatest = rows.iter().map(total).fold(0.0f64, f64::max).max(f64::MIN_POSITIVE);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\"><text x=\"0\" y=\"14\" class=\"title\">{title}</text>",
        LEFT + WIDTH + 120.0,
        rows.len() * ROW + TOP + 6,
        title = escape(title)
    );
    for (index, name) in legend.iter().enumerate() {
        let x = LEFT + 105.0 * index as f64;
        let _ = write!(
            svg,
            "<rect x=\"{x}\" y=\"24\" width=\"11\" height=\"11\" class=\"part{index}\"/><text x=\"{}\" y=\"34\">{}</text>",
            x + 16.0,
            escape(name)
        );
    }
    for (index, row) in rows.iter().enumerate() {
        let y = index * ROW + TOP;
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" class=\"label\">{}<title>{}</title></text>",
            LEFT - 8.0,
            y + 12,
            escape(&shortened(&row.label)),
            escape(&row.label)
        );
        let mut x = LEFT;
        for (part, length) in row.parts.iter().enumerate() {
            let width = length.max(0.0) / greatest * WIDTH;
            let name = legend.get(part).copied().unwrap_or_default();
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" class=\"part{part}\"><title>{}</title></rect>",
                ROW - 4,
                escape(name)
            );
            x += width;
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" class=\"note\">{}</text>",
            x + 6.0,
            y + 12,
            escape(&row.note)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// The end of a long label, where names differ.
fn shortened(label: &str) -> String {
    if label.chars().count() <= 42 {
        return label.to_owned();
    }
    let tail: Vec<char> = label.chars().rev().take(40).collect();
    format!("…{}", tail.into_iter().rev().collect::<String>())
}

/// A dot in a plot with two logarithmic axes.
pub struct Dot {
    /// Shown when pointed at.
    pub label: String,
    /// Operations for every byte.
    pub x: f64,
    /// Operations a second.
    pub y: f64,
    /// Its size, 0 to 1.
    pub weight: f64,
}

/// The two lines that no dot should lie above.
#[derive(Clone, Copy)]
pub struct Roof {
    /// Bytes a second: `y = slope * x`.
    pub slope: f64,
    /// Operations a second.
    pub height: f64,
}

/// Powers of ten from below the least to above the greatest of some numbers above 0.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (low, high) = values
        .filter(|value| value.is_finite() && *value > 0.0)
        .fold((f64::INFINITY, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
    if high == 0.0 {
        return (0, 1);
    }
    let (low, high) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    (low, high.max(low + 1))
}

/// Lines across a plot at powers of ten, with their labels; `down` is where a height lies.
fn levels(svg: &mut String, (y0, y1): (i32, i32), (left, right): (f64, f64), down: impl Fn(f64) -> f64) {
    for power in y0..=y1 {
        let y = down(10f64.powi(power));
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" class=\"grid\"/><text x=\"{}\" y=\"{:.1}\" class=\"label\">{}</text>",
            left - 6.0,
            y + 4.0,
            power_of_ten(power)
        );
    }
}

/// A line through points, the second figure of each logarithmic.
pub fn curve(title: &str, points: &[[f64; 2]]) -> String {
    const LEFT: f64 = 70.0;
    const TOP: f64 = 30.0;
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 160.0;
    let points: Vec<[f64; 2]> =
        points.iter().copied().filter(|[x, y]| x.is_finite() && *y > 0.0 && y.is_finite()).collect();
    let end = points.iter().map(|point| point[0]).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let (y0, y1) = decades(points.iter().map(|point| point[1]));
    let across = |x: f64| LEFT + x / end * WIDTH;
    let down = |y: f64| TOP + HEIGHT - (y.log10() - f64::from(y0)) / f64::from(y1 - y0) * HEIGHT;
    let (bottom, right) = (TOP + HEIGHT, LEFT + WIDTH);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\"><text x=\"0\" y=\"14\" class=\"title\">{title}</text>",
        right + 50.0,
        bottom + 25.0,
        title = escape(title)
    );
    // Writing to a string cannot fail.
    levels(&mut svg, (y0, y1), (LEFT, right), down);
    let at = |point: &[f64; 2]| format!("{:.1},{:.1}", across(point[0]), down(point[1]));
    let line: Vec<String> = points.iter().map(at).collect();
    let _ = write!(svg, "<polyline points=\"{}\" class=\"roof\"/>", line.join(" "));
    for [x, y] in &points {
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" class=\"dot\"><title>{x}: {y:.3e}</title></circle>",
            across(*x),
            down(*y)
        );
    }
    let _ = write!(svg, "<text x=\"{right}\" y=\"{}\" class=\"middle\">{end}</text></svg>", bottom + 16.0);
    svg
}

/// A roofline plot: rate over intensity, both logarithmic.
pub fn roofline(title: &str, roof: Roof, dots: &[Dot]) -> String {
    const LEFT: f64 = 70.0;
    const TOP: f64 = 40.0;
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 300.0;
    let ridge = roof.height / roof.slope.max(1.0);
    let (x0, x1) = decades(dots.iter().map(|dot| dot.x).chain([ridge, ridge * 10.0]));
    let (y0, y1) = decades(dots.iter().map(|dot| dot.y).chain([roof.height]));
    let across = |x: f64| LEFT + (x.log10() - f64::from(x0)) / f64::from(x1 - x0) * WIDTH;
    let down = |y: f64| TOP + HEIGHT - (y.log10() - f64::from(y0)) / f64::from(y1 - y0) * HEIGHT;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\"><text x=\"0\" y=\"14\" class=\"title\">{title}</text>",
        LEFT + WIDTH + 50.0,
        TOP + HEIGHT + 45.0,
        title = escape(title)
    );
    let (bottom, right) = (TOP + HEIGHT, LEFT + WIDTH);
    // Writing to a string cannot fail.
    for power in x0..=x1 {
        let x = across(10f64.powi(power));
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" class=\"grid\"/><text x=\"{x:.1}\" y=\"{}\" class=\"middle\">{}</text>",
            bottom + 16.0,
            power_of_ten(power)
        );
    }
    levels(&mut svg, (y0, y1), (LEFT, right), down);
    // The slope starts where it enters the picture, at the left or at the bottom.
    let first = 10f64.powi(x0).max(10f64.powi(y0) / roof.slope);
    let _ = write!(
        svg,
        "<polyline points=\"{:.1},{:.1} {:.1},{:.1} {right},{:.1}\" class=\"roof\"/>",
        across(first),
        down(first * roof.slope),
        across(ridge),
        down(roof.height),
        down(roof.height)
    );
    for dot in dots {
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{:.1}\" class=\"dot\"><title>{}</title></circle>",
            across(dot.x),
            down(dot.y),
            3.0 + 12.0 * dot.weight.clamp(0.0, 1.0).sqrt(),
            escape(&dot.label)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" class=\"middle\">operations for every byte</text><text x=\"{LEFT}\" y=\"{:.1}\">operations a second; a dot is as large as its share of the time</text></svg>",
        LEFT + WIDTH / 2.0,
        bottom + 36.0,
        TOP - 8.0
    );
    svg
}

fn power_of_ten(power: i32) -> String {
    match power {
        12.. => format!("{} T", 10f64.powi(power - 12)),
        9..12 => format!("{} G", 10f64.powi(power - 9)),
        6..9 => format!("{} M", 10f64.powi(power - 6)),
        3..6 => format!("{} k", 10f64.powi(power - 3)),
        _ => format!("{}", 10f64.powi(power)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_bars_lie_side_by_side_and_names_are_escaped() {
        let rows = [
            Stack { label: "<a>".into(), parts: vec![1.0, 3.0], note: "4".into() },
            Stack { label: "b".repeat(60), parts: vec![f64::NAN, 2.0], note: "&".into() },
        ];
        let svg = stacked("t", &["x", "<y>"], &rows);
        assert!(svg.contains("&lt;a&gt;") && svg.contains("&lt;y&gt;") && !svg.contains("<a>"), "{svg}");
        // The longest bar takes the whole width; its second part starts where the first ends.
        assert!(svg.contains("x=\"300.0\" y=\"44\" width=\"105.0\""), "{svg}");
        assert!(svg.contains("x=\"405.0\" y=\"44\" width=\"315.0\""), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn dots_lie_in_the_picture_and_names_are_escaped() {
        let dots = [
            Dot { label: "<a>".into(), x: 0.02, y: 3e7, weight: 0.5 },
            Dot { label: "b".into(), x: 300.0, y: 5e10, weight: 0.1 },
        ];
        let svg = roofline("t", Roof { slope: 1e10, height: 1e11 }, &dots);
        assert!(svg.contains("&lt;a&gt;") && !svg.contains("<a>"), "{svg}");
        for part in svg.split("<circle ").skip(1) {
            let number = |key: &str| -> f64 {
                let rest = part.split(&format!("{key}=\"")).nth(1).expect("the attribute");
                rest.split('"').next().and_then(|text| text.parse().ok()).expect("a number")
            };
            assert!(
                (70.0..=790.0).contains(&number("cx")) && (40.0..=340.0).contains(&number("cy")),
                "{part}"
            );
        }
        assert_eq!((decades([].into_iter()), decades([5.0, 20.0].into_iter())), ((0, 1), (0, 2)));
        assert_eq!((power_of_ten(10), power_of_ten(-2)), ("10 G".to_owned(), "0.01".to_owned()));
    }
}
