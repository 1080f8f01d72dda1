//! `pith run`: one container, no cluster.
//!
//! ```text
//! IMAGE ─ image.rs ─▶ layers, configuration ─ spec.rs ─▶ OCI specification ─ pith-oci ─▶ steps ─▶ the program
//!                                                                              └─▶ explain.rs (--explain)
//! ```
//!
//! The container lives and dies with this process: the kernel kills it when this process ends (PR_SET_PDEATHSIG, and its
//! pid namespace with it), however that comes about. What then stays behind (cgroups, its folder) is removed by the next
//! `pith run` (see `place.rs`).

mod explain;
mod image;
mod place;
mod spec;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use pith_oci::{Bundle, Extras, Inherited, Request};

use crate::cli::{DEFAULT_DIR, Output, Snapshotter};
use explain::Explain;
use place::Places;

#[derive(Args)]
pub(crate) struct RunArgs {
    /// Print each step as it is carried out: what the kernel is asked, what that changes, how long it took, and where
    /// in the code it is. On standard error: standard output is the program's.
    #[arg(long)]
    explain: bool,
    /// How --explain prints: `json` is one object a line.
    #[arg(long, value_enum, default_value_t, requires = "explain")]
    output: Output,
    /// The container's name, for `pith inspect` [default: run- and a number].
    #[arg(long, value_parser = place::id)]
    id: Option<String>,
    /// The program's network: a namespace with nothing but 127.0.0.1 in it, or the host's.
    #[arg(long, value_enum, default_value_t)]
    network: Network,
    /// Most memory it may use, such as 64Mi.
    #[arg(long, value_name = "BYTES", value_parser = spec::bytes)]
    memory: Option<i64>,
    /// Most processors it may use, such as 0.5.
    #[arg(long, value_name = "NUMBER", value_parser = spec::milli_cpus)]
    cpus: Option<i64>,
    /// Most processes it may have.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(1..))]
    pids: Option<i64>,
    /// A variable of its environment; may be given several times.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = spec::variable)]
    env: Vec<String>,
    /// Who the program runs as: `user[:group]`, names or numbers [default: the image's].
    #[arg(long, short)]
    user: Option<String>,
    /// Where it starts [default: the image's].
    #[arg(long, short, value_name = "DIR", value_parser = spec::directory)]
    workdir: Option<String>,
    /// Nothing can be written to its root file system.
    #[arg(long)]
    read_only: bool,
    /// What its root is made of: an overlay of the image's layers, or a copy of all files [default: overlayfs where the
    /// kernel has it].
    #[arg(long, value_enum)]
    snapshotter: Option<Snapshotter>,
    /// Where images and running containers are kept [default: /var/lib/pith, or a user's own folder].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// In the image store, or a path to an archive, or what a registry has.
    image: String,
    /// The program and its arguments [default: the image's].
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    #[default]
    None,
    Host,
}

/// Where `pith run` keeps images and containers unless `--dir` says otherwise.
pub(crate) fn default_dir() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(DEFAULT_DIR.into());
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let data = data.filter(|dir| dir.is_absolute()).or_else(home);
    Ok(data
        .context("neither HOME nor XDG_DATA_HOME is set: say with --dir where to keep images")?
        .join("pith"))
}

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let dir = args.dir.clone().map_or_else(default_dir, Ok)?;
    let dir = std::path::absolute(&dir).with_context(|| format!("find {}", dir.display()))?;
    let (store, image) = image::find(&dir, &args.image)?;
    let witness = Explain::new(args.explain.then_some(args.output));
    let places = Places::open(&dir)?;
    places.sweep(&store, &witness)?;
    let place = places.make(args.id.as_deref())?;
    store.hold(&place.id, &image.id)?;

    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let wanted = spec::Wanted {
        command: &args.command,
        env: &args.env,
        workdir: args.workdir.as_deref(),
        host_network: args.network == Network::Host,
        memory: args.memory,
        milli_cpus: args.cpus,
        pids: args.pids,
        read_only: args.read_only,
        terminal,
        id: &place.id,
        root: &place.root(),
        rootless: spec::rootless(),
    };
    if wanted.rootless.is_some() && wanted.has_limits() {
        bail!(
            "limits are files of a cgroup, and an ordinary user cannot make one here: leave them out or use sudo"
        );
    }
    let config = image.config.config().clone().unwrap_or_default();
    let spec = spec::spec(&wanted, &config)?;
    let copied = Snapshotter::copies(args.snapshotter);
    if copied {
        if args.snapshotter.is_none() {
            eprintln!(
                "pith: this kernel has no overlayfs: the container starts from a copy of the image's files"
            );
        }
        if let Err(error) = place.copy(&image) {
            store.release(&place.id)?;
            place.remove()?;
            return Err(error);
        }
    }
    let user = args.user.clone().or_else(|| config.user().clone()).filter(|user| !user.is_empty());
    let request = Request {
        root: places.states(),
        id: &place.id,
        bundle: Bundle::of(place.dir.clone(), spec),
        extras: Extras { overlay: (!copied).then(|| place.overlay(&image)), user, default_seccomp: true },
        console_socket: None,
        pid_file: None,
        inherited: &Inherited::default(),
        no_pivot: false,
        no_new_keyring: false,
        attached: true,
        tied: true,
        witness: &witness,
    };
    let ended = pith_oci::run(request, false, false);
    store.release(&place.id)?;
    place.remove()?;
    Ok(ExitCode::from(u8::try_from(ended?).unwrap_or(u8::MAX)))
}
