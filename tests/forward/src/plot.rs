//! Pictures of figures as SVG: lines over a count, bars over names. No script, no font, no file besides.

use std::fmt::Write;

use crate::contender::Contender;
use crate::report::{Better, Figure, Point, quantity, thousands};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 54.0;
const FONT: &str = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif\"";

/// Colours that people who see red and green alike tell apart (Okabe and Ito).
fn colour(contender: Contender) -> &'static str {
    match contender {
        Contender::Straight | Contender::AtOnce => "#8a8f98",
        Contender::Pith => "#0072b2",
        Contender::Nftables => "#e69f00",
        Contender::Iptables => "#d55e00",
    }
}

/// A figure as one `<svg>` element, with a line below its title.
pub(crate) fn draw(figure: &Figure, below: &str) -> String {
    if figure.categories.is_empty() { lines(figure, below) } else { bars(figure, below) }
}

/// A logarithmic scale between two ends.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| *value > 0.0) {
            low = low.min(value);
            high = high.max(value);
        }
        if !low.is_finite() {
            (low, high) = (1.0, 10.0);
        }
        Self { low, high, from, to }
    }

    /// Leaves room at both ends.
    fn roomy(mut self) -> Self {
        self.low /= 1.25;
        self.high *= 1.25;
        self
    }

    fn place(&self, value: f64) -> f64 {
        let span = (self.high / self.low).ln();
        let share = if span > 0.0 { (value.max(self.low) / self.low).ln() / span } else { 0.5 };
        self.from + share * (self.to - self.from)
    }

    /// 1, 2, 5, 10 … within the scale; powers of ten alone where it is long.
    fn ticks(&self) -> Vec<f64> {
        let long = self.high / self.low > 300.0;
        let steps: &[f64] = if long { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let mut ticks = Vec::new();
        let mut power = 10_f64.powf(self.low.log10().floor());
        while power <= self.high {
            ticks.extend(steps.iter().map(|step| step * power));
            power *= 10.0;
        }
        ticks.retain(|tick| *tick >= self.low && *tick <= self.high);
        ticks
    }
}

fn lines(figure: &Figure, below: &str) -> String {
    let ends = |point: &Point| [point.estimate.low, point.estimate.high];
    let y = Scale::new(figure.points.iter().flat_map(ends), HEIGHT - BOTTOM, TOP).roomy();
    let x = Scale::new(figure.points.iter().map(|point| point.x), LEFT + 14.0, WIDTH - RIGHT);
    let mut svg = open(figure, below, HEIGHT);
    for tick in y.ticks() {
        let at = y.place(tick);
        put(
            &mut svg,
            format_args!(
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#e5e7eb\"/>",
                WIDTH - RIGHT + 10.0
            ),
        );
        text(&mut svg, LEFT - 8.0, at + 4.0, "end", "12", "#4b5563", &thousands(tick));
    }
    for place in figure.places() {
        text(&mut svg, x.place(place), HEIGHT - BOTTOM + 20.0, "middle", "12", "#4b5563", &thousands(place));
    }
    text(&mut svg, f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 12.0, "middle", "12", "#4b5563", &figure.x);
    let mut labels = Vec::new();
    for contender in figure.contenders() {
        let colour = colour(contender);
        let mut own: Vec<&Point> =
            figure.points.iter().filter(|point| point.contender == contender).collect();
        own.sort_by(|a, b| a.x.total_cmp(&b.x));
        let path: Vec<String> = own
            .iter()
            .map(|point| format!("{:.1},{:.1}", x.place(point.x), y.place(point.estimate.median)))
            .collect();
        let width = if contender == Contender::Pith { 3.5 } else { 2.0 };
        put(
            &mut svg,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>",
                path.join(" ")
            ),
        );
        for point in &own {
            let (at, low, high) =
                (x.place(point.x), y.place(point.estimate.low), y.place(point.estimate.high));
            put(
                &mut svg,
                format_args!(
                    "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
                ),
            );
            put(
                &mut svg,
                format_args!(
                    "<circle cx=\"{at:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"><title>{}</title></circle>",
                    y.place(point.estimate.median),
                    escape(&describe(figure, point))
                ),
            );
        }
        if let Some(last) = own.last() {
            labels.push((y.place(last.estimate.median), contender, describe_value(figure, last)));
        }
    }
    for (at, contender, value) in apart(labels) {
        let label = format!("{} {value}", contender.label());
        text(&mut svg, WIDTH - RIGHT + 14.0, at + 4.0, "start", "12", colour(contender), &label);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Moves labels apart that would lie on each other.
fn apart(mut labels: Vec<(f64, Contender, String)>) -> Vec<(f64, Contender, String)> {
    const LINE: f64 = 16.0;
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    for next in 1..labels.len() {
        labels[next].0 = labels[next].0.max(labels[next - 1].0 + LINE);
    }
    // Back up where the last ones were pushed below the picture.
    let mut floor = HEIGHT - BOTTOM;
    for label in labels.iter_mut().rev() {
        label.0 = label.0.min(floor);
        floor = label.0 - LINE;
    }
    labels
}

fn bars(figure: &Figure, below: &str) -> String {
    const BAR: f64 = 18.0;
    const GAP: f64 = 30.0;
    const NAMES: f64 = 190.0;
    #[expect(clippy::cast_precision_loss, reason = "a handful of bars")]
    let height = TOP + 24.0 + figure.points.len() as f64 * BAR + figure.places().len() as f64 * GAP;
    let largest = figure.points.iter().map(|point| point.estimate.high).fold(0.0, f64::max);
    let smallest = figure.points.iter().map(|point| point.estimate.low).fold(f64::INFINITY, f64::min);
    // Bars begin at nothing; where that would hide the small ones, lengths are logarithms and the text says so.
    let logarithmic = largest > 50.0 * smallest.max(f64::MIN_POSITIVE);
    let scale =
        Scale { low: (smallest / 2.0).max(f64::MIN_POSITIVE), high: largest, from: NAMES, to: WIDTH - 130.0 };
    let place = |value: f64| {
        if logarithmic { scale.place(value) } else { NAMES + value / largest * (WIDTH - 130.0 - NAMES) }
    };
    let mut svg = open(figure, below, height);
    let mut top = TOP + 6.0;
    for x in figure.places() {
        text(&mut svg, 16.0, top + 4.0, "start", "13", "#111827", &figure.place_name(x));
        top += 10.0;
        for contender in figure.contenders() {
            let Some(point) = figure.point(contender, x) else { continue };
            let (colour, end) = (colour(contender), place(point.estimate.median));
            text(&mut svg, NAMES - 8.0, top + 12.0, "end", "12", "#4b5563", contender.label());
            put(
                &mut svg,
                format_args!(
                    "<rect x=\"{NAMES}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{colour}\"><title>{}</title></rect>",
                    (end - NAMES).max(1.0),
                    BAR - 4.0,
                    escape(&describe(figure, point))
                ),
            );
            let (low, high, middle) =
                (place(point.estimate.low), place(point.estimate.high), top + (BAR - 4.0) / 2.0);
            put(
                &mut svg,
                format_args!(
                    "<line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" stroke=\"#111827\"/>"
                ),
            );
            text(
                &mut svg,
                high.max(end) + 8.0,
                top + 12.0,
                "start",
                "12",
                "#111827",
                &describe_value(figure, point),
            );
            top += BAR;
        }
        top += GAP - 10.0;
    }
    if logarithmic {
        text(&mut svg, 16.0, height - 8.0, "start", "11", "#6b7280", "lengths are logarithmic");
    }
    svg.push_str("</svg>\n");
    svg
}

fn open(figure: &Figure, below: &str, height: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" {FONT}>\n\
         <title>{}</title>\n<rect width=\"{WIDTH}\" height=\"{height}\" rx=\"8\" fill=\"#ffffff\"/>\n",
        escape(&figure.title)
    );
    text(&mut svg, 16.0, 26.0, "start", "17", "#111827", &figure.title);
    let better = match figure.better {
        Better::Lower => "lower is better",
        Better::Higher => "higher is better",
    };
    let unit = if figure.unit.is_empty() { String::new() } else { format!("{}, ", figure.unit) };
    let below = if below.is_empty() { String::new() } else { format!(" · {below}") };
    text(&mut svg, 16.0, 46.0, "start", "12", "#6b7280", &format!("{unit}{better}{below}"));
    svg
}

/// A point in words, shown where a pointer rests on it.
fn describe(figure: &Figure, point: &Point) -> String {
    format!(
        "{}, {} {}: {} (95 %: {} to {}, {} rounds)",
        point.contender.label(),
        figure.place_name(point.x),
        figure.x,
        describe_value(figure, point),
        thousands(point.estimate.low),
        thousands(point.estimate.high),
        point.estimate.rounds,
    )
}

fn describe_value(figure: &Figure, point: &Point) -> String {
    let beyond = if point.beyond { "> " } else { "" };
    format!("{beyond}{}", quantity(point.estimate.median, &figure.unit))
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, size: &str, fill: &str, content: &str) {
    put(
        svg,
        format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{fill}\">{}</text>",
            escape(content)
        ),
    );
}

fn put(svg: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(svg, "{line}").expect("writing to a string cannot fail");
}

/// Text as it may stand in XML and HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn lines_over_a_count() {
        insta::assert_snapshot!(draw(&example().figures[0], "an example"));
    }

    #[test]
    fn bars_over_names() {
        insta::assert_snapshot!(draw(&example().figures[1], ""));
    }

    #[test]
    fn labels_are_moved_apart() {
        let labels =
            vec![(100.0, Contender::Pith, String::new()), (101.0, Contender::Straight, String::new())];
        let places: Vec<f64> = apart(labels).into_iter().map(|(at, ..)| at).collect();
        assert_eq!(places, [100.0, 116.0]);
    }

    #[test]
    fn a_scale_has_ticks_inside() {
        let scale = Scale::new([3.0, 80.0].into_iter(), 0.0, 100.0);
        assert_eq!(scale.ticks(), [5.0, 10.0, 20.0, 50.0]);
        assert!((scale.place(3.0), scale.place(80.0)) == (0.0, 100.0));
        assert_eq!(Scale::new([1.0, 1000.0].into_iter(), 0.0, 1.0).ticks(), [1.0, 10.0, 100.0, 1000.0]);
    }
}
