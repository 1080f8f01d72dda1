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
mod inspect;
mod machine;
mod output;
mod roles;
mod run;
mod services;
mod token;
mod why;

use cli::{Cli, Command, UsedWrongly};

const USED_WRONGLY: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Run(_) = cli.command {
        // Before anything is opened: this file must not be within a container's reach.
        pith_oci::shield::raise();
    }
    if let Command::Replica(_) | Command::Proxy(_) = cli.command {
        allocator::give_back_at_once();
    }
    output::start_logging(cli.log.as_deref());
    match carry_out(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pith: {error:#}");
            if error.is::<UsedWrongly>() { ExitCode::from(USED_WRONGLY) } else { ExitCode::FAILURE }
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        // The one command whose exit code is somebody else's: the container's program's.
        Command::Run(args) => return run::run(&args),
        Command::Up(args) => cluster::up::run(&args),
        Command::Down(args) => cluster::down::run(&args),
        Command::Status(args) => cluster::status::run(&args),
        Command::Services(args) => services::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Primary(args) => roles::primary::run(args),
        Command::Replica(args) => roles::replica::run(args),
        Command::Proxy(args) => roles::proxy::run(args),
        Command::Token(args) => token::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }?;
    Ok(ExitCode::SUCCESS)
}
