//! `cargo xtask`: everything a developer or CI does with this repository, one file a command.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod codegen;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and check pith")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
    match Cli::parse().command {
        Command::Tidy => tidy::run(),
        Command::Codegen { kubectl } => codegen::run(&kubectl),
    }
}
