//! What was measured: printed as a table beside the numbers to hold, and kept as JSON for those who compare runs.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One thing that was measured, by one or several numbers.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) what: String,
    pub(crate) measured: Vec<Figure>,
    pub(crate) hold: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// Empty where the unit says enough.
    pub(crate) name: &'static str,
    pub(crate) number: f64,
    pub(crate) unit: &'static str,
}

impl Line {
    pub(crate) fn new(what: impl Into<String>, measured: Vec<Figure>, hold: &'static str) -> Self {
        Self { what: what.into(), measured, hold }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, number, unit } = self;
        let gap = if name.is_empty() { "" } else { " " };
        // Three digits are what a measurement is good for.
        let digits = if *number < 10.0 { 2 } else { usize::from(*number < 100.0) };
        write!(f, "{name}{gap}{number:.digits$} {unit}")
    }
}

/// Prints the lines, and writes them to `<output>/<name>.json`.
pub(crate) fn report(name: &str, lines: &[Line], output: &Path) -> Result<()> {
    println!("{:<62} {:>42}   to hold", "what", "measured");
    for line in lines {
        let measured: Vec<String> = line.measured.iter().map(Figure::to_string).collect();
        println!("{:<62} {:>42}   {}", line.what, measured.join(", "), line.hold);
    }
    fs::create_dir_all(output).with_context(|| format!("create {}", output.display()))?;
    let path = output.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(lines).context("the report as JSON")?;
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// Median, 99th percentile and largest of some times in milliseconds; nothing for none.
pub(crate) fn spread(times: &[f64]) -> Vec<Figure> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return Vec::new() };
    let at = |name, share: usize| {
        let number = sorted[(sorted.len() * share / 100).min(last)];
        Figure { name, number, unit: "ms" }
    };
    vec![at("p50", 50), at("p99", 99), at("max", 100)]
}

/// So many in that time, a second.
pub(crate) fn rate(count: usize, seconds: f64) -> Figure {
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
    let count = count as f64;
    Figure { name: "", number: count / seconds, unit: "/s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_table() {
        let cases: [(&str, &[f64], &str); 3] = [
            ("nothing", &[], ""),
            ("one", &[4.0], "p50 4.00 ms, p99 4.00 ms, max 4.00 ms"),
            ("unsorted", &[300.0, 1.0, 20.0], "p50 20.0 ms, p99 300 ms, max 300 ms"),
        ];
        for (name, times, expect) in cases {
            let shown: Vec<String> = spread(times).iter().map(Figure::to_string).collect();
            assert_eq!(shown.join(", "), expect, "{name}");
        }
    }

    #[test]
    fn a_rate_is_a_number_a_second() {
        assert_eq!(rate(500, 0.1).to_string(), "5000 /s");
    }
}
