//! The report as one page that needs nothing else: pictures first, then the numbers, then how they came about.

use std::fmt::Write;

use crate::contender::Contender;
use crate::plot::{draw, escape};
use crate::report::{Figure, Report, quantity, thousands};

/// Figures that make the headline, the first that a report has.
const HEADLINES: [&str; 3] = ["connect-p50", "change", "node-port-connect-p50"];

const STYLE: &str = "\
body{margin:0;background:#f3f4f6;color:#111827;font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}\
main{max-width:1180px;margin:0 auto;padding:24px}h1{margin:0 0 4px}h2{margin:32px 0 8px}\
.lead{font-size:19px}.muted{color:#6b7280}.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:16px}\
figure{margin:0;background:#fff;border-radius:8px;overflow:hidden}svg{display:block;width:100%;height:auto}\
details{padding:0 16px 12px}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:right;padding:3px 8px;border-bottom:1px solid #e5e7eb}th:first-child,td:first-child{text-align:left}\
.behind{background:#fff7ed;border-left:4px solid #d55e00;padding:8px 16px}";

/// The picture for the README: the headline figure, with the machine in it.
pub(crate) fn headline(report: &Report) -> Option<String> {
    let figure = HEADLINES.iter().find_map(|id| report.figure(id)).or_else(|| report.figures.first())?;
    Some(draw(figure, &machine(report)))
}

/// The page.
pub(crate) fn page(report: &Report) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>pith: forwarding benchmark</title><style>{STYLE}</style></head><body><main>\n\
         <h1>pith beside kube-proxy</h1>\n"
    );
    for sentence in sentences(report) {
        put(&mut html, format_args!("<p class=\"lead\">{}</p>", escape(&sentence)));
    }
    put(
        &mut html,
        format_args!("<p class=\"muted\">{} · run {}</p>", escape(&machine(report)), escape(&report.run)),
    );
    if let Some(headline) = headline(report) {
        put(&mut html, format_args!("<figure>{headline}</figure>"));
    }
    behind(&mut html, report);
    let mut parts: Vec<&str> = report.figures.iter().map(|figure| figure.part.as_str()).collect();
    parts.dedup();
    for part in parts {
        put(&mut html, format_args!("<h2>{}</h2><div class=\"grid\">", escape(part)));
        for figure in report.figures.iter().filter(|figure| figure.part == part) {
            put(&mut html, format_args!("<figure>{}{}</figure>", draw(figure, ""), table(figure)));
        }
        html.push_str("</div>\n");
    }
    method(&mut html, report);
    html.push_str("</main></body></html>\n");
    html
}

/// The headline in words.
fn sentences(report: &Report) -> Vec<String> {
    let mut sentences = Vec::new();
    for (id, what) in [
        ("connect-p50", "a new connection takes"),
        ("change", "a changed endpoint is in force after"),
        ("cold", "everything is in force from nothing after"),
    ] {
        let Some(figure) = report.figure(id) else { continue };
        let Some(pith) = figure.last(Contender::Pith) else { continue };
        let place = figure.place_name(pith.x);
        let place = if figure.x.is_empty() { place } else { format!("{place} {}", figure.x) };
        let mut parts = vec![format!("{} through pith", quantity(pith.estimate.median, &figure.unit))];
        for (contender, through) in [
            (Contender::Nftables, "through nftables"),
            (Contender::Iptables, "through iptables"),
            (Contender::Straight, "straight to the pod"),
        ] {
            if let Some(point) = figure.point(contender, pith.x) {
                let beyond = if point.beyond { "more than " } else { "" };
                parts.push(format!("{beyond}{} {through}", quantity(point.estimate.median, &figure.unit)));
            }
        }
        sentences.push(format!("At {place}, {what} {}.", parts.join(", ")));
    }
    sentences
}

/// What a reader must know before believing: where pith lost.
fn behind(html: &mut String, report: &Report) {
    let behind = report.behind();
    if behind.is_empty() {
        return;
    }
    html.push_str("<h2>Where pith is behind</h2><div class=\"behind\"><ul>");
    for line in behind {
        put(html, format_args!("<li>{}</li>", escape(&line)));
    }
    html.push_str("</ul></div>\n");
}

fn table(figure: &Figure) -> String {
    let mut html = format!(
        "<details><summary>Numbers, and how they were taken</summary><p>{}</p><table>",
        escape(&figure.how)
    );
    let what = if figure.x.is_empty() { "what" } else { figure.x.as_str() };
    put(
        &mut html,
        format_args!(
            "<tr><th>{}</th><th>who</th><th>median, {}</th><th>95 % interval</th><th>to straight</th><th>rounds</th></tr>",
            escape(what),
            escape(&figure.unit)
        ),
    );
    for x in figure.places() {
        for contender in figure.contenders() {
            let Some(point) = figure.point(contender, x) else { continue };
            let (estimate, beyond) = (point.estimate, if point.beyond { "&gt; " } else { "" });
            let ratio = match point.to_straight {
                Some(ratio) if contender != Contender::Straight => {
                    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.low, ratio.high)
                }
                _ => String::new(),
            };
            put(
                &mut html,
                format_args!(
                    "<tr><td>{}</td><td>{}</td><td>{beyond}{}</td><td>{} – {}</td><td>{ratio}</td><td>{}</td></tr>",
                    escape(&figure.place_name(x)),
                    contender.label(),
                    thousands(estimate.median),
                    thousands(estimate.low),
                    thousands(estimate.high),
                    estimate.rounds,
                ),
            );
        }
    }
    html.push_str("</table></details>");
    html
}

fn method(html: &mut String, report: &Report) {
    html.push_str("<h2>How this was measured</h2><p>All contenders stand side by side in network namespaces of their own and take turns, \
        round by round, in a changing order, within one run: what else the machine does touches all of them. \
        Each value is the median over rounds, with the interval that 2,000 bootstrap resamples give it; ratios are taken round by round. \
        Figures of different runs are not compared. kube-proxy's rules are written in its exact shape and loaded with its own tools.</p><ul>");
    let machine = &report.machine;
    put(
        html,
        format_args!(
            "<li>{} × {}, {:.0} GiB, Linux {}, load {} when the run began</li>",
            machine.cpus,
            escape(&machine.cpu),
            machine.memory_gib,
            escape(&machine.kernel),
            escape(&machine.load)
        ),
    );
    for version in &machine.versions {
        put(html, format_args!("<li>{}</li>", escape(version)));
    }
    for missing in &report.left_out {
        put(html, format_args!("<li>left out: {}</li>", escape(missing)));
    }
    html.push_str("</ul>\n");
}

/// The machine in one line.
fn machine(report: &Report) -> String {
    let machine = &report.machine;
    let quick = if report.quick { ", quick run" } else { "" };
    format!("{} CPUs {}, Linux {}{quick}", machine.cpus, machine.cpu, machine.kernel)
}

fn put(html: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(html, "{line}").expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn the_page() {
        insta::assert_snapshot!(page(&example()));
    }

    #[test]
    fn the_headline_names_the_machine() {
        let picture = headline(&example()).expect("the example has figures");
        assert!(picture.contains("title of connect-p50") && picture.contains("Linux 6.18.0"), "{picture}");
    }
}
