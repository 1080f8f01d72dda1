//! The binary `pith`: reads the command line and starts the role or the tool that it names.
//!
//! Exit codes are part of the contract: 0 done, 1 failed, 2 used wrongly (as clap has it).

use std::process::ExitCode;

use clap::Parser;

mod allocator;
mod cli;
mod cluster;
mod doctor;
mod image;
mod machine;
mod output;
mod roles;
mod services;
mod token;

use cli::{Cli, Command, UsedWrongly};

const USED_WRONGLY: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Replica(_) | Command::Proxy(_) = cli.command {
        allocator::give_back_at_once();
    }
    output::start_logging(cli.log.as_deref());
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pith: {error:#}");
            if error.is::<UsedWrongly>() { ExitCode::from(USED_WRONGLY) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => cluster::up::run(&args),
        Command::Down(args) => cluster::down::run(&args),
        Command::Status(args) => cluster::status::run(&args),
        Command::Services(args) => services::run(&args),
        Command::Primary(args) => roles::primary::run(args),
        Command::Replica(args) => roles::replica::run(args),
        Command::Proxy(args) => roles::proxy::run(args),
        Command::Token(args) => token::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }
}
