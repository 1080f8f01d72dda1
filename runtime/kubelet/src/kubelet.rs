//! Puts the parts together and runs them until told to stop.

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use pith_cgroup::{Cgroup, Hierarchy};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Deps},
    context::Context,
    events, image_gc,
    machine::Machine,
    node,
    objects::Objects,
    pods::Pods,
    resources::NodeSize,
    server::{Server, ServerError},
    services,
};

#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error("{operation} {}", path.display())]
    Folder { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the facts of this machine cannot be read")]
    Machine(#[source] io::Error),
    #[error("this node's cgroups cannot be set up")]
    Cgroup(#[from] pith_cgroup::Error),
    #[error("the kubelet's server")]
    Server(#[from] ServerError),
}

/// Pods that come from elsewhere than the API, and wait to be taken up.
const LOCAL_PODS_MAX: usize = 64;
/// Starts at the same time for each processor: a start waits for the kernel about as long as it computes.
const STARTS_PER_CPU: usize = 4;

const COPIED_ROOTS: &str =
    "without overlayfs each container starts from a copy of its image's files, which takes time and disk";

pub struct Kubelet;

impl Kubelet {
    /// Runs the node's pods until `stop`; pods go on after it.
    pub async fn run(config: Config, deps: Deps, stop: CancellationToken) -> Result<(), KubeletError> {
        for dir in [&config.state_dir, &config.run_dir] {
            fs::create_dir_all(dir).map_err(|source| KubeletError::Folder {
                operation: "create",
                path: dir.clone(),
                source,
            })?;
        }
        let machine = Machine::read(&config.state_dir).map_err(KubeletError::Machine)?;
        let hierarchy = Arc::new(Hierarchy::detect()?);
        Cgroup::create(&hierarchy, &config.cgroup)?;
        let mut tasks = JoinSet::new();
        let client = deps.client.clone();
        let (events, sending) = events::recorder(client.clone(), config.node_name.clone(), stop.clone());
        tasks.spawn(sending);
        let (services, watching) = services::watch(client.clone(), stop.clone());
        tasks.spawn(watching);
        let size = NodeSize {
            cpu_milli: config.cpu_milli.unwrap_or(machine.cpus * 1000),
            memory: config.memory.unwrap_or(machine.memory),
        };
        let parallel = usize::try_from(machine.cpus).unwrap_or(1).saturating_mul(STARTS_PER_CPU);
        let context = Arc::new(Context {
            client: client.clone(),
            images: deps.images,
            network: deps.network,
            network_state: watch::Sender::new(Err("the node has no pod range yet".to_owned())),
            podd: deps.podd,
            hierarchy,
            size,
            events,
            objects: Objects::new(client),
            services,
            starts: Semaphore::new(parallel),
            resolv: fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            notices: Mutex::default(),
            config,
        });
        let cells = watch::Sender::new(HashMap::new());
        let (_local, local) = mpsc::channel(LOCAL_PODS_MAX);
        if let Some(serving) = deps.serving {
            let server = Server::bind(context.clone(), serving, cells.subscribe()).await?;
            tasks.spawn(server.run(stop.clone()));
        }
        tasks.spawn(node::run(context.clone(), machine, stop.clone()));
        if context.config.copy_roots {
            let node = events::Subject::node(&context.config.node_name);
            tracing::warn!("{COPIED_ROOTS}");
            context.events.warning(node, "NoOverlay", COPIED_ROOTS);
        }
        tasks.spawn(image_gc::run(context.clone(), stop.clone()));
        tasks.spawn(Pods::new(context, cells, stop.clone()).run(local));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                stop.cancel();
                std::panic::resume_unwind(error.into_panic());
            }
        }
        Ok(())
    }
}
