//! Finds what no pod owns and removes it: supervisors, cgroups, network attachments, folders. Runs whenever
//! the list of this node's pods is known in full.

use std::{collections::HashSet, fs, path::Path, sync::Arc, time::Duration};

use pith_container::supervisor::Supervisor;

use crate::{
    context::{Context, blocking},
    desired::PodUid,
    network::chain,
};

const CGROUP_DEADLINE: Duration = Duration::from_secs(5);

/// Network attachments that no pod owns, once there is a network to ask. `live` is asked for then.
pub(crate) async fn sweep_network(node: Arc<Context>, live: impl Fn() -> Vec<PodUid>) {
    let mut state = node.network_state.subscribe();
    if state.wait_for(Result::is_ok).await.is_err() {
        return;
    }
    if let Err(error) = node.network.reconcile(&live()).await {
        tracing::warn!(error = error.chain(), "removing network attachments that no pod owns");
    }
}

pub(crate) async fn sweep(node: &Arc<Context>, live: HashSet<PodUid>) {
    let node = node.clone();
    blocking(move || {
        supervisors(&node, &live);
        cgroups(&node, &live);
        folders(&node.config.state_dir.join("pods"), |name| is_live(name, &live));
        folders(&node.config.state_dir.join("logs"), |name| {
            name.rsplit('_').next().is_some_and(|uid| is_live(uid, &live))
        });
    })
    .await;
}

fn is_live(name: &str, live: &HashSet<PodUid>) -> bool {
    PodUid::parse(name).is_ok_and(|uid| live.contains(&uid))
}

/// Run folders of pods that nobody knows any more, with the supervisor if one still runs there.
fn supervisors(node: &Context, live: &HashSet<PodUid>) {
    let dir = node.config.run_dir.join("pods");
    for name in names(&dir).into_iter().filter(|n| !is_live(n, live)) {
        let path = dir.join(&name);
        if let Ok(supervisor) = Supervisor::adopt(&path) {
            tracing::warn!(pod = name, "ending a supervisor that no pod owns");
            supervisor.kill();
        }
        remove(&path);
    }
}

fn cgroups(node: &Context, live: &HashSet<PodUid>) {
    let tree = &node.config.cgroup;
    let roots = node.hierarchy.v2_root().into_iter().chain(node.hierarchy.v1_roots());
    let found: HashSet<String> = roots
        .flat_map(|root| names(&root.join(tree)))
        .filter(|n| n.strip_prefix("pod").is_some_and(|uid| !is_live(uid, live)))
        .collect();
    for name in found {
        let path = format!("{tree}/{name}");
        if let Err(error) = pith_cgroup::remove_tree(&node.hierarchy, &path, CGROUP_DEADLINE) {
            tracing::warn!(path, error = chain(&error), "removing a cgroup that no pod owns");
        }
    }
}

fn folders(dir: &Path, keep: impl Fn(&str) -> bool) {
    for name in names(dir).into_iter().filter(|n| !keep(n)) {
        remove(&dir.join(name));
    }
}

/// Folders directly below `dir`; none if it does not exist.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(%error, path = %path.display(), "removing what no pod owns");
    }
}
