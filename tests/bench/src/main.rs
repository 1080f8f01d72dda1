//! `pith-bench`: shows and measures pith on a running cluster, for `cargo xtask up` and `cargo xtask bench`.
//!
//! Measurements are never tests: they judge nothing, and print what was seen beside the numbers to hold.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod api;
mod container;
mod cpu;
mod demo;
mod kubernetes;
mod memory;
mod start;
mod table;

#[derive(Parser)]
#[command(name = "pith-bench", version, about = "Show and measure pith on this machine")]
struct Cli {
    /// The program to show or measure.
    #[arg(long)]
    pith: PathBuf,
    /// Folder of the image archives that `cargo xtask image` writes.
    #[arg(long)]
    images: PathBuf,
    /// Where reports go as JSON.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A primary alone: creates, watches, lists, scheduling.
    Api,
    /// Start a cluster with a demo workload behind a Service and leave it running.
    Demo,
    /// One container beside crun and runc, by their command lines.
    Container,
    /// Start times of clusters and pods, and memory.
    Start,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::Api => api::run(&cli.pith, &cli.output),
        Command::Container => container::run(&cli.pith),
        Command::Demo => demo::run(&cli.pith, &cli.images),
        Command::Start => start::run(&cli.pith, &cli.images, &cli.output),
    }
}

/// Runs a command with its output shown; an error names the command.
fn run(command: &mut std::process::Command) -> Result<()> {
    let status = command.status().map_err(|error| anyhow::anyhow!("start {command:?}: {error}"))?;
    anyhow::ensure!(status.success(), "{command:?} failed with {status}");
    Ok(())
}
