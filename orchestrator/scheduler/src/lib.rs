//! The scheduler: gives each pod a node.
//!
//! ```text
//!   watches ─▶ Desk ─▶ Waiting   which pod next          (pure)
//!                 │ ─▶ Books     what is where           (pure)
//!                 │ ─▶ plan      filter, score, choose   (pure)
//!                 ▼
//!              driver: bindings, conditions, events, at most 64 at once
//! ```
//!
//! Invariants: nothing is decided before pods, nodes and namespaces have been listed; a pod that was given a
//! node counts there at once; no decision walks over all pods. Only one primary may run this at a time: a
//! leader election belongs around [`run`].

mod books;
mod desk;
mod driver;
mod filter;
mod plan;
mod pod;
mod resources;
mod score;
mod topology;
mod waiting;

pub use desk::{Desk, Listed, PodRef, Step};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{Api, Client};
use pith_informer::{Full, Recorder, follow};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task of the scheduler panicked or was aborted.
    #[error("the scheduler ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

/// Schedules pods until cancelled.
pub async fn run(client: Client, cancel: CancellationToken) -> Result<(), Error> {
    let (recorder, events) = Recorder::new(client.clone(), "default-scheduler", cancel.clone());
    let shared = driver::Shared::default();
    let mut tasks = JoinSet::new();
    let pods = Full { api: Api::<Pod>::all(client.clone()) };
    tasks.spawn(follow(pods, "", shared.clone(), cancel.clone()));
    let nodes = Full { api: Api::<Node>::all(client.clone()) };
    tasks.spawn(follow(nodes, "", shared.clone(), cancel.clone()));
    let namespaces = Full { api: Api::<Namespace>::all(client.clone()) };
    tasks.spawn(follow(namespaces, "", shared.clone(), cancel.clone()));
    tasks.spawn(events);
    tasks.spawn(async move {
        // A binding under way at the end is either accepted, which the next start sees, or made again.
        let _cancelled = cancel.run_until_cancelled(driver::schedule(shared, client, recorder)).await;
    });
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(Error::Task)?;
    }
    Ok(())
}
