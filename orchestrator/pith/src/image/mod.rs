//! `pith image`: the image store of one replica, or with `--name` those of every replica of a cluster here.
//!
//! The stores are safe to share with running kubelets, so nothing has to be stopped.

mod progress;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::HumanBytes;
use pith_image::{Image, Keychain, Options, Platform, Policy, Reference, Removed, Store};
use serde_json::{Value, json};

use crate::cli::{ClusterArgs, DEFAULT_DIR, ImageArgs, ImageCommand, Output};
use crate::cluster::Cluster;
use crate::machine::require_root;

use progress::{Display, Reporter};

/// How much emptier than `gc --above` the disk is made, as the kubelet does it.
const GC_STEP_PERCENT: u8 = 5;

pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    require_root("image")?;
    let dirs = store_dirs(args)?;
    let display = Display::new();
    let reporter = |dir: &Path| display.reporter((dirs.len() > 1).then(|| replica_of(dir)));
    // Layers are unpacked by the processor: one store a thread makes use of all of them.
    let outcomes: Vec<Result<Outcome>> = thread::scope(|scope| {
        let workers: Vec<_> = dirs.iter().map(|dir| scope.spawn(|| act(args, dir, reporter(dir)))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker that panics aborts the command"))
            .collect()
    });
    let mut results = Vec::new();
    for (dir, outcome) in dirs.iter().zip(outcomes) {
        results.push((dir, outcome.with_context(|| format!("image store {}", dir.display()))?));
    }
    for (dir, outcome) in &results {
        match args.output {
            Output::Json => println!("{}", json!({ "store": dir, "result": outcome.to_json() })),
            Output::Text => outcome.print(results.len() > 1, &dir.display().to_string()),
        }
    }
    Ok(())
}

/// One store of a replica on its own; those of all replicas of a cluster with `--name`.
fn store_dirs(args: &ImageArgs) -> Result<Vec<PathBuf>> {
    let Some(name) = &args.name else {
        return Ok(vec![args.dir.clone().unwrap_or_else(|| DEFAULT_DIR.into()).join("images")]);
    };
    let cluster = Cluster::new(&ClusterArgs { name: name.clone(), dir: args.dir.clone() })?;
    if cluster.settings()?.is_none() {
        bail!("no cluster \"{name}\" in {}: start it with `pith up`", cluster.dir.display());
    }
    let replicas = cluster.dir.join("replicas");
    let entries = fs::read_dir(&replicas).with_context(|| format!("read {}", replicas.display()))?;
    let mut dirs = Vec::new();
    for entry in entries {
        dirs.push(entry.with_context(|| format!("read {}", replicas.display()))?.path().join("images"));
    }
    dirs.sort();
    Ok(dirs)
}

/// `…/replicas/replica-1/images`
fn replica_of(dir: &Path) -> String {
    let replica = dir.parent().and_then(Path::file_name).unwrap_or_default();
    replica.to_string_lossy().into_owned()
}

enum Outcome {
    Images(Vec<Image>),
    Removed(Removed),
}

fn act(args: &ImageArgs, dir: &Path, reporter: Reporter) -> Result<Outcome> {
    // A store comes into being with what is put into it, not by a mistyped path.
    match &args.command {
        ImageCommand::Import { file, .. } => check(file)?,
        ImageCommand::Pull { .. } => {}
        ImageCommand::Ls | ImageCommand::Rm { .. } | ImageCommand::Gc { .. } if dir.exists() => {}
        ImageCommand::Ls | ImageCommand::Rm { .. } | ImageCommand::Gc { .. } => bail!("it does not exist"),
    }
    let platform = match &args.command {
        ImageCommand::Import { platform, .. } | ImageCommand::Pull { platform, .. } => platform.clone(),
        ImageCommand::Ls | ImageCommand::Rm { .. } | ImageCommand::Gc { .. } => None,
    };
    let store = Store::open_with(
        dir,
        Options {
            platform: platform.unwrap_or_else(Platform::host),
            hosts_dir: Some(args.hosts_dir.clone()),
            ..Options::default()
        },
    )?;
    Ok(match &args.command {
        ImageCommand::Import { file, .. } => Outcome::Images(store.import(file, None, &reporter)?),
        ImageCommand::Pull { reference, .. } => {
            Outcome::Images(vec![pull_with(&store, reference, reporter)?])
        }
        ImageCommand::Ls => Outcome::Images(store.list()?),
        ImageCommand::Rm { reference } => Outcome::Removed(store.remove(reference)?),
        ImageCommand::Gc { min_age, above } => {
            Outcome::Removed(store.gc(&BTreeSet::new(), policy(min_age.duration(), *above))?)
        }
    })
}

fn policy(min_age: Duration, above_percent: Option<u8>) -> Policy {
    match above_percent {
        None => Policy::Unused { min_age },
        Some(high_percent) => {
            let low_percent = high_percent.saturating_sub(GC_STEP_PERCENT);
            Policy::Thresholds { high_percent, low_percent, min_age }
        }
    }
}

/// Whether there is a file to read.
pub(crate) fn check(file: &Path) -> Result<()> {
    File::open(file).map(drop).with_context(|| format!("open {}", file.display()))
}

/// The images of an archive, with progress.
pub(crate) fn import(store: &Store, file: &Path) -> Result<Vec<Image>> {
    Ok(store.import(file, None, &Display::new().reporter(None))?)
}

/// An image from its registry, with progress.
pub(crate) fn pull(store: &Store, reference: &Reference) -> Result<Image> {
    pull_with(store, reference, Display::new().reporter(None))
}

fn pull_with(store: &Store, reference: &Reference, reporter: Reporter) -> Result<Image> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let keychain = Keychain::of_user()?;
    Ok(runtime.block_on(store.pull(reference, &keychain, Arc::new(reporter)))?)
}

impl Outcome {
    fn to_json(&self) -> Value {
        match self {
            Self::Images(images) => images
                .iter()
                .map(|image| {
                    json!({
                        "id": image.id.to_string(),
                        "digest": image.digest.to_string(),
                        "names": image.names,
                        "bytes": image.bytes,
                    })
                })
                .collect(),
            Self::Removed(removed) => json!({
                "names": removed.names,
                "images": removed.images.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "bytes": removed.bytes,
                "shortOf": removed.short_of,
                "deferred": removed.deferred,
            }),
        }
    }

    fn print(&self, several: bool, dir: &str) {
        if several {
            println!("{dir}");
        }
        match self {
            Self::Images(images) => {
                let mut table = Table::new();
                table.load_style(NOTHING).set_header(["IMAGE", "ID", "SIZE"]);
                for image in images {
                    let id = image.id.to_string();
                    let short = id.trim_start_matches("sha256:").get(..12).unwrap_or_default().to_owned();
                    let size = HumanBytes(image.bytes).to_string();
                    for name in &image.names {
                        table.add_row([name, &short, &size]);
                    }
                }
                println!("{table}");
            }
            Self::Removed(removed) => {
                removed.names.iter().for_each(|name| println!("untagged {name}"));
                removed.images.iter().for_each(|image| println!("removed {image}"));
                println!("{} freed", HumanBytes(removed.bytes));
                if removed.short_of > 0 {
                    println!(
                        "{} too few: the other images are in use, too young, or came by a file",
                        HumanBytes(removed.short_of)
                    );
                }
                if removed.deferred {
                    println!("an import is under way: the rest goes with the next gc");
                }
            }
        }
    }
}
