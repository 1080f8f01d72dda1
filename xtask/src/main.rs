//! `cargo xtask`: everything a developer or CI does with this repository, one file a command.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod ci;
mod codegen;
mod ebpf;
mod image;
mod test;
mod tidy;
mod tools;
mod up;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and check pith")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster on this machine with a demo workload that answers through eBPF.
    Up,
    /// Run every test.
    Test {
        /// Only tests whose name contains one of these.
        filter: Vec<String>,
    },
    /// Measure, beside the numbers to hold; `help` lists what.
    Bench {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check what must hold besides the tests: formatting, lints, layering, the origin of the eBPF object.
    Ci,
    /// Build the demo and probe images into target/images.
    Image,
    /// Build the eBPF programs, or check that the committed object is theirs.
    Ebpf {
        /// Build again and fail where the committed object differs.
        #[arg(long)]
        check: bool,
    },
    /// Check the layering between crates and the shape of files.
    Tidy,
    /// Write the table of API types (orchestrator/api/schema/types.txt) from what a stock kubectl carries.
    Codegen {
        /// A linux/amd64 kubectl, of the Kubernetes version to follow.
        #[arg(long)]
        kubectl: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    ebpf::rustc::become_it()?;
    match Cli::parse().command {
        Command::Up => up::up(),
        Command::Test { filter } => test::test(&filter),
        Command::Bench { arguments } => bench::bench(&arguments),
        Command::Ci => ci::ci(),
        Command::Image => image::build().map(drop),
        Command::Ebpf { check } => ebpf::run(check),
        Command::Tidy => tidy::run(),
        Command::Codegen { kubectl } => codegen::run(&kubectl),
    }
}
