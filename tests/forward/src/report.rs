//! What a run found: `report.json` holds exactly this, and `report.html` is drawn from it.
//!
//! Invariant: every figure carries the id of the run that measured it, and a report holds figures of one run only.
//! Figures of two runs were taken on machines in two states, and are not compared.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::contender::Contender;
use crate::statistics::Estimate;

/// What one run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) run: String,
    pub(crate) machine: Machine,
    pub(crate) quick: bool,
    /// Contenders and figures that this machine could not give, and why.
    pub(crate) left_out: Vec<String>,
    pub(crate) figures: Vec<Figure>,
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    /// Load average of the last minute when the run began: what else was running.
    pub(crate) load: String,
    /// Programs that took part, each with its version.
    pub(crate) versions: Vec<String>,
    /// Seconds since 1970.
    pub(crate) taken_at: u64,
}

/// Which end of the scale is the good one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// One picture's worth of measurements.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) run: String,
    pub(crate) part: String,
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// What the x axis counts; empty where `categories` are named in its place.
    pub(crate) x: String,
    pub(crate) categories: Vec<String>,
    /// How it was measured.
    pub(crate) how: String,
    pub(crate) points: Vec<Point>,
}

/// One contender at one place of the x axis.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) contender: Contender,
    /// A count, or an index into the figure's categories.
    pub(crate) x: f64,
    pub(crate) estimate: Estimate,
    /// This over what was measured straight to the pod, round by round.
    pub(crate) to_straight: Option<Estimate>,
    /// It was given up at `estimate`: the true value lies beyond.
    pub(crate) beyond: bool,
}

impl Figure {
    pub(crate) fn point(&self, contender: Contender, x: f64) -> Option<&Point> {
        self.points.iter().find(|point| point.contender == contender && (point.x - x).abs() < f64::EPSILON)
    }

    /// Contenders that have a point, in their usual order.
    pub(crate) fn contenders(&self) -> Vec<Contender> {
        let has = |contender: &Contender| self.points.iter().any(|point| point.contender == *contender);
        Contender::ALL.into_iter().filter(has).collect()
    }

    /// Places of the x axis, ascending.
    pub(crate) fn places(&self) -> Vec<f64> {
        let mut places: Vec<f64> = self.points.iter().map(|point| point.x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }

    /// The largest place at which a contender was measured.
    pub(crate) fn last(&self, contender: Contender) -> Option<&Point> {
        self.points.iter().filter(|point| point.contender == contender).max_by(|a, b| a.x.total_cmp(&b.x))
    }

    /// How this figure names a place of its x axis.
    pub(crate) fn place_name(&self, x: f64) -> String {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small index")]
        match self.categories.get(x as usize) {
            Some(category) => category.clone(),
            None => thousands(x),
        }
    }
}

impl Report {
    pub(crate) fn new(run: String, machine: Machine, quick: bool, left_out: Vec<String>) -> Self {
        Self { run, machine, quick, left_out, figures: Vec::new() }
    }

    /// Reads a report, and refuses one whose figures are not all of its own run.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let report: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))?;
        report.check()?;
        Ok(report)
    }

    pub(crate) fn check(&self) -> Result<()> {
        for figure in &self.figures {
            if figure.run != self.run {
                bail!(
                    "figure {} was measured in run {}, this report is of run {}: they are not compared",
                    figure.id,
                    figure.run,
                    self.run
                );
            }
        }
        Ok(())
    }

    pub(crate) fn figure(&self, id: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.id == id)
    }

    /// Where pith is behind a contender that it should be ahead of: the whole interval, not by chance.
    pub(crate) fn behind(&self) -> Vec<String> {
        let mut behind = Vec::new();
        for figure in &self.figures {
            for x in figure.places() {
                let Some(pith) = figure.point(Contender::Pith, x) else { continue };
                for rival in [Contender::Nftables, Contender::Iptables] {
                    let Some(other) = figure.point(rival, x) else { continue };
                    let worse = match figure.better {
                        Better::Lower => pith.estimate.low > other.estimate.high,
                        Better::Higher => pith.estimate.high < other.estimate.low,
                    };
                    if worse {
                        behind.push(format!(
                            "{} at {}: pith {}, {} {}",
                            figure.title,
                            figure.place_name(x),
                            quantity(pith.estimate.median, &figure.unit),
                            rival.label(),
                            quantity(other.estimate.median, &figure.unit),
                        ));
                    }
                }
            }
        }
        behind
    }
}

impl Machine {
    pub(crate) fn here(versions: Vec<String>) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let after_colon = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(after_colon);
        let meminfo = read("/proc/meminfo");
        let kib = meminfo.lines().find(|line| line.starts_with("MemTotal")).and_then(after_colon);
        let kib = kib.and_then(|text| text.trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or_default();
        Self {
            cpu: cpu.unwrap_or_else(|| "unknown processor".to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib / 1024.0 / 1024.0).round(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            versions,
            taken_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }
}

/// 30000 as `30,000`; small numbers keep their decimals.
pub(crate) fn thousands(value: f64) -> String {
    if value.abs() < 1000.0 {
        return round(value);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is rounded to be printed")]
    let digits = (value.round() as i64).to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A value with its unit, in about three digits.
pub(crate) fn quantity(value: f64, unit: &str) -> String {
    format!("{} {unit}", thousands(value)).trim_end().to_owned()
}

fn round(value: f64) -> String {
    let text = if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report with one line figure and one bar figure.
    pub(crate) fn example() -> Report {
        let machine = Machine {
            cpu: "Example CPU <1>".to_owned(),
            cpus: 2,
            memory_gib: 24.0,
            kernel: "6.18.0".to_owned(),
            load: "0.10".to_owned(),
            versions: vec!["pith 0.1.0".to_owned(), "nftables v1.0.6".to_owned()],
            taken_at: 0,
        };
        let mut report =
            Report::new("run-1".to_owned(), machine, true, vec!["iptables: not here".to_owned()]);
        let estimate = |median: f64| Estimate { median, low: median * 0.9, high: median * 1.1, rounds: 10 };
        let point = |contender, x, median: f64, straight: f64| Point {
            contender,
            x,
            estimate: estimate(median),
            to_straight: Some(estimate(median / straight)),
            beyond: false,
        };
        let figure = |id: &str, better, x: &str, categories: &[&str], points| Figure {
            run: "run-1".to_owned(),
            part: "services".to_owned(),
            id: id.to_owned(),
            title: format!("title of {id}"),
            unit: "µs".to_owned(),
            better,
            x: x.to_owned(),
            categories: categories.iter().map(|&category| category.to_owned()).collect(),
            how: "as it is".to_owned(),
            points,
        };
        report.figures = vec![
            figure(
                "connect-p50",
                Better::Lower,
                "Services",
                &[],
                vec![
                    point(Contender::Straight, 1.0, 20.0, 20.0),
                    point(Contender::Straight, 30_000.0, 20.0, 20.0),
                    point(Contender::Pith, 1.0, 21.0, 20.0),
                    point(Contender::Pith, 30_000.0, 21.5, 20.0),
                    point(Contender::Nftables, 1.0, 30.0, 20.0),
                    point(Contender::Nftables, 30_000.0, 31.0, 20.0),
                ],
            ),
            figure(
                "cold",
                Better::Higher,
                "",
                &["small", "large"],
                vec![point(Contender::Pith, 0.0, 5.0, 1.0), point(Contender::Nftables, 1.0, 2_500.0, 1.0)],
            ),
        ];
        report
    }

    #[test]
    fn thousands_table() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (0.123, "0.12"),
            (12.34, "12.3"),
            (123.4, "123"),
            (999.6, "1000"),
            (1234.0, "1,234"),
            (30_000.0, "30,000"),
            (1_234_567.0, "1,234,567"),
        ];
        for (value, expect) in cases {
            assert_eq!(thousands(value), expect);
        }
    }

    #[test]
    fn figures_of_another_run_are_refused() {
        let mut report = example();
        report.check().expect("one run");
        report.figures[1].run = "run-2".to_owned();
        let error = report.check().expect_err("two runs").to_string();
        assert!(error.contains("run-2") && error.contains("not compared"), "{error}");
    }

    #[test]
    fn behind_is_said_when_the_intervals_part() {
        let mut report = example();
        assert_eq!(report.behind(), Vec::<String>::new());
        report.figures[0].points[3].estimate = Estimate { median: 90.0, low: 80.0, high: 99.0, rounds: 10 };
        let expect = "title of connect-p50 at 30,000: pith 90 µs, kube-proxy nftables 31 µs";
        assert_eq!(report.behind(), [expect]);
    }
}
