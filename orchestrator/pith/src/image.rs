//! `pith image`: the image store of one replica, or with `--name` those of every replica of a cluster here.
//!
//! The stores are safe to share with running kubelets, so nothing has to be stopped.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use pith_image::{Event, Image, Keychain, Policy, Progress, Reference, Removed, Step, Store};
use serde_json::{Value, json};

use crate::cli::{ClusterArgs, DEFAULT_DIR, ImageArgs, ImageCommand, Output};
use crate::cluster::Cluster;
use crate::machine::require_root;

/// `gc` spares what has just been imported: a pod that wants it may be on its way.
const GC_MIN_AGE: Duration = Duration::from_secs(120);

pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    require_root("image")?;
    let dirs = store_dirs(args)?;
    // Layers are unpacked by the processor: one store a thread makes use of all of them.
    let outcomes: Vec<Result<Outcome>> = thread::scope(|scope| {
        let workers: Vec<_> = dirs.iter().map(|dir| scope.spawn(|| act(&args.command, dir))).collect();
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

enum Outcome {
    Images(Vec<Image>),
    Removed(Removed),
}

fn act(command: &ImageCommand, dir: &Path) -> Result<Outcome> {
    // A store comes into being with what is put into it, not by a mistyped path.
    match command {
        ImageCommand::Import { file } => check(file)?,
        ImageCommand::Pull { .. } => {}
        ImageCommand::Ls | ImageCommand::Rm { .. } | ImageCommand::Gc if dir.exists() => {}
        ImageCommand::Ls | ImageCommand::Rm { .. } | ImageCommand::Gc => bail!("it does not exist"),
    }
    let store = Store::open(dir)?;
    Ok(match command {
        ImageCommand::Import { file } => Outcome::Images(import(&store, file)?),
        ImageCommand::Pull { reference } => Outcome::Images(vec![pull(&store, reference)?]),
        ImageCommand::Ls => Outcome::Images(store.list()?),
        ImageCommand::Rm { reference } => Outcome::Removed(store.remove(reference)?),
        ImageCommand::Gc => {
            let in_use: BTreeSet<_> = store.holds()?.into_iter().map(|(_, image)| image).collect();
            Outcome::Removed(store.gc(&in_use, Policy::Unused { min_age: GC_MIN_AGE })?)
        }
    })
}

/// Whether there is a file to read.
pub(crate) fn check(file: &Path) -> Result<()> {
    File::open(file).map(drop).with_context(|| format!("open {}", file.display()))
}

/// The images of an archive, with progress.
pub(crate) fn import(store: &Store, file: &Path) -> Result<Vec<Image>> {
    Ok(store.import(file, None, &Reporter::new())?)
}

/// An image from its registry, with progress.
pub(crate) fn pull(store: &Store, reference: &Reference) -> Result<Image> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let keychain = Keychain::of_user()?;
    Ok(runtime.block_on(store.pull(reference, &keychain, Arc::new(Reporter::new())))?)
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
                if removed.deferred {
                    println!("an import is under way: the rest goes with the next gc");
                }
            }
        }
    }
}

/// A bar on a terminal, a line an image otherwise.
struct Reporter {
    bar: Option<ProgressBar>,
}

impl Reporter {
    fn new() -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new_spinner().with_style(style)
        });
        Self { bar }
    }
}

impl Progress for Reporter {
    fn report(&self, event: &Event<'_>) {
        let line = match event {
            Event::Resolved { image, layers, bytes } => {
                format!("{image}: {layers} layers, {}", HumanBytes(*bytes))
            }
            Event::Layer { diff_id, step } => {
                let step = match step {
                    Step::Present => "already here".to_owned(),
                    Step::Receiving { received, total } => {
                        format!("{} of {}", HumanBytes(*received), HumanBytes(*total))
                    }
                    Step::Retrying { attempt } => format!("connection broke, attempt {attempt}"),
                    Step::Unpacking => "unpacking".to_owned(),
                    Step::Unpacked { bytes } => format!("unpacked, {}", HumanBytes(*bytes)),
                };
                format!("layer {diff_id}: {step}")
            }
            Event::Stored { image, .. } => format!("{image}: stored"),
        };
        match (&self.bar, event) {
            (Some(bar), _) => {
                bar.set_message(line);
                bar.tick();
            }
            // Without a terminal only the ends are worth a line.
            (None, Event::Stored { .. } | Event::Layer { step: Step::Retrying { .. }, .. }) => {
                eprintln!("{line}")
            }
            (None, _) => {}
        }
    }
}
