//! `pith-forward`: measures how packets get to a Service's backend, through pith and through what one would use
//! instead, side by side in one run.
//!
//! ```text
//!  contender ── ground ── rules or maps ── load ── samples ── rounds ── figures ── report
//!              netns,     iptables,        one     one value  median,   one a      json,
//!              veth       nftables, pith   client  a round    interval  picture    html
//! ```
//! Measurements are never tests: they judge nothing. Every load is bounded in number and in time, and everything
//! that a run makes goes when it ends, in whatever way ([`ground`]).

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

mod cluster;
mod contender;
mod frames;
mod ground;
mod html;
mod interrupt;
mod iptables;
mod load;
mod names;
mod nftables;
mod packets;
mod pin;
mod pith;
mod plan;
mod plot;
mod programming;
mod progress;
mod report;
mod rounds;
mod rules;
mod server;
mod services;
mod statistics;
mod tools;

use contender::{Contestant, Tools};
use plan::Plan;
use report::{Machine, Report};
use services::Side;
use tools::Tool;

#[derive(Parser)]
#[command(
    name = "pith-forward",
    version,
    about = "Measure forwarding to Services, beside iptables and nftables"
)]
struct Cli {
    /// What to measure; all of it without one.
    #[command(subcommand)]
    part: Option<Part>,
    /// All parts in less than five minutes, with wider intervals.
    #[arg(long, global = true)]
    quick: bool,
    /// Numbers of Services to measure at, in place of the usual ones: `1,1000,30000`.
    #[arg(long, global = true, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=30_000))]
    services: Vec<u32>,
    /// Where report.json and report.html go.
    #[arg(long, global = true, default_value = "target/bench")]
    output: PathBuf,
    /// Also write the headline picture (SVG) to this file.
    #[arg(long, global = true)]
    picture: Option<PathBuf>,
    /// Where packages of nftables are unpacked that are not installed.
    #[arg(long, global = true)]
    unpacked: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// From a pod to a ClusterIP: latency, rate, throughput, at 1 to 30,000 Services.
    Services,
    /// From outside through a node port: the same measures.
    Forward,
    /// What pith's programs take for one packet of each kind.
    Packets,
    /// Changes of Services: latency, cold start, loss meanwhile.
    Programming,
    /// Draw a report.json again.
    Draw { report: PathBuf },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Part::Draw { report }) = &cli.part {
        return write(&cli, &Report::read(report)?);
    }
    ground::own_mounts()?;
    interrupt::catch()?;
    pin::prefer();
    let report = measure(&cli)?;
    write(&cli, &report)?;
    for line in report.behind() {
        println!("BEHIND: {line}");
    }
    Ok(())
}

fn measure(cli: &Cli) -> Result<Report> {
    let tools = Tools {
        iptables: Tool::find("iptables-legacy-restore", cli.unpacked.as_deref()),
        nft: Tool::find("nft", cli.unpacked.as_deref()),
    };
    let mut left_out = tools.left_out();
    let versions = [Some(format!("pith {}", env!("CARGO_PKG_VERSION")))]
        .into_iter()
        .chain([&tools.iptables, &tools.nft].map(|tool| tool.as_ref().map(|tool| tool.version.clone())))
        .flatten();
    let machine = Machine::here(versions.collect());
    // Unique enough to tell runs apart: nobody starts two in one second under one process id.
    let run = format!("{}-{}", machine.taken_at, std::process::id());
    let mut plan = if cli.quick { Plan::QUICK } else { Plan::FULL };
    if !cli.services.is_empty() {
        // Once a process, and wanted for as long as it runs.
        plan.counts = cli.services.clone().leak();
    }
    let sides: &[Side] = match &cli.part {
        None => &[Side::Pod, Side::Outside],
        Some(Part::Services) => &[Side::Pod],
        Some(Part::Forward) => &[Side::Outside],
        Some(Part::Packets | Part::Programming | Part::Draw { .. }) => &[],
    };
    let whole = cli.part.is_none();
    let mut figures = Vec::new();
    if !sides.is_empty() {
        let mut contestants = Contestant::all(&tools)?;
        figures.extend(services::run(sides, &run, &plan, &mut contestants, &mut left_out)?);
    }
    if whole || matches!(cli.part, Some(Part::Packets | Part::Forward)) {
        figures.extend(packets::run(&run, &plan)?);
    }
    if whole || matches!(cli.part, Some(Part::Programming)) {
        let mut contestants = Contestant::all(&tools)?;
        figures.extend(programming::run(&run, &plan, &mut contestants, &tools, &mut left_out)?);
    }
    let mut report = Report::new(run, machine, cli.quick, left_out);
    report.figures = figures;
    report.check()?;
    Ok(report)
}

fn write(cli: &Cli, report: &Report) -> Result<()> {
    std::fs::create_dir_all(&cli.output).with_context(|| format!("create {}", cli.output.display()))?;
    let json = serde_json::to_string_pretty(report).context("write the report")?;
    let mut files =
        vec![(cli.output.join("report.json"), json), (cli.output.join("report.html"), html::page(report))];
    if let (Some(path), Some(picture)) = (&cli.picture, html::headline(report)) {
        files.push((path.clone(), picture));
    }
    for (path, text) in files {
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    for missing in &report.left_out {
        println!("left out: {missing}");
    }
    Ok(())
}
