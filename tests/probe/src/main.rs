//! `pith-probe`: the one program that demo and test images carry. A web server that says who it is, echo servers, a
//! client that counts who answered, ways to use up memory and time, and a toy shell for `kubectl exec -it`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod client;
mod echo;
mod load;
mod serve;
mod shell;
mod show;

#[derive(Parser)]
#[command(name = "pith-probe", version, about = "What pith's demo and test images run")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP: `/` says who answers; also /healthz, /readyz, /unready, /ready, /env, /slow?ms=N.
    Serve(serve::Options),
    /// Send back what arrives over TCP.
    TcpEcho {
        #[arg(long, default_value_t = 7)]
        port: u16,
    },
    /// Send back what arrives over UDP, after this host's name.
    UdpEcho {
        #[arg(long, default_value_t = 7)]
        port: u16,
    },
    /// Ask a URL again and again, with a new connection each time; print as JSON who answered.
    Client(client::Options),
    /// Print the addresses of a name, in order.
    Resolve { name: String },
    /// Send one datagram and print the answer.
    UdpClient {
        /// HOST:PORT
        address: String,
        message: String,
    },
    /// Keep one TCP connection open and send numbered lines over it; fails when one does not come back.
    Hold(echo::Hold),
    /// Take so many MiB of memory, touch all of it, and keep it.
    Mem { mib: usize },
    /// Use a whole processor.
    Cpu,
    /// Do nothing for so many seconds.
    Sleep { seconds: u64 },
    /// End with this exit code.
    Exit { code: u8 },
    /// Succeed.
    True,
    /// Copy files, or standard input, to standard output.
    Cat { files: Vec<String> },
    /// Write words to standard output.
    Echo { words: Vec<String> },
    /// Print the environment.
    Env,
    /// Print user, groups, capabilities and seccomp mode.
    Id,
    /// List a folder.
    Ls {
        #[arg(default_value = "/")]
        folder: String,
    },
    /// A toy shell: `help` lists what it knows.
    Sh,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pith-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(options) => serve::run(&options)?,
        Command::TcpEcho { port } => echo::tcp(port)?,
        Command::UdpEcho { port } => echo::udp(port)?,
        Command::Client(options) => return client::run(&options),
        Command::Resolve { name } => client::resolve(&name)?,
        Command::UdpClient { address, message } => echo::udp_client(&address, &message)?,
        Command::Hold(options) => echo::hold(&options)?,
        Command::Mem { mib } => load::memory(mib),
        Command::Cpu => load::processor(),
        Command::Sleep { seconds } => std::thread::sleep(Duration::from_secs(seconds)),
        Command::Exit { code } => return Ok(ExitCode::from(code)),
        Command::True => {}
        Command::Cat { files } => show::cat(&files)?,
        Command::Echo { words } => println!("{}", words.join(" ")),
        Command::Env => show::environment(),
        Command::Id => show::identity()?,
        Command::Ls { folder } => show::list(&folder)?,
        Command::Sh => return shell::run(),
    }
    Ok(ExitCode::SUCCESS)
}

/// This host's name: in a pod, the pod's.
fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
