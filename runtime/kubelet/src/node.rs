//! The Node object and its lease: this node's announcement of itself, kept current.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{
            ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
            NodeStatus, NodeSystemInfo,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
    },
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    context::{Context, NetworkState, blocking},
    machine::{self, Machine},
};

pub(crate) const VERSION: &str = "v1.37.0+pith";
pub(crate) const RUNTIME: &str = concat!("pith://", env!("CARGO_PKG_VERSION"));

/// The kubelet's defaults: lease of 40 s renewed every 10 s; status looked at every 10 s and told on change,
/// or after 5 min.
const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(10);
const TELL: Duration = Duration::from_secs(300);
/// Attempts to register wait this long, doubling, up to [`RETRY_LONGEST`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// Images named in the status, as upstream.
const IMAGES_MAX: usize = 50;

/// Registers the node, then keeps its status and lease until `stop`.
pub(crate) async fn run(context: Arc<Context>, machine: Machine, stop: CancellationToken) {
    let keep = async {
        let node = register(&context, &machine).await;
        tokio::join!(
            keep_lease(&context, node.uid),
            keep_status(&context, &machine, node.has_range),
            follow_node(&context),
        );
    };
    tokio::select! {
        // Registration and status are idempotent; a request cut short is made again by the next kubelet.
        () = stop.cancelled() => {}
        () = keep => {}
    }
}

fn api(context: &Context) -> Api<Node> {
    Api::all(context.client.clone())
}

struct Registered {
    uid: Option<String>,
    /// It has its pod range from an earlier time.
    has_range: bool,
}

impl From<Node> for Registered {
    fn from(node: Node) -> Self {
        let has_range = node.spec.is_some_and(|spec| spec.pod_cidr.is_some_and(|range| !range.is_empty()));
        Self { uid: node.metadata.uid, has_range }
    }
}

/// Creates the Node, or brings an existing one's labels up to date.
async fn register(context: &Context, machine: &Machine) -> Registered {
    let mut pause = RETRY_FIRST;
    loop {
        match try_register(context, machine).await {
            Ok(node) => return node.into(),
            Err(error) => {
                tracing::warn!(%error, node = context.config.node_name, "registering the node");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
            }
        }
    }
}

async fn try_register(context: &Context, machine: &Machine) -> Result<Node, kube::Error> {
    let network = context.network_state.borrow().clone();
    let status = status(context, machine, &network, None, Timestamp::now(), vec![]);
    let name = &context.config.node_name;
    let node = Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels(context)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(status.clone()),
    };
    match api(context).create(&PostParams::default(), &node).await {
        Ok(made) => return Ok(made),
        Err(kube::Error::Api(e)) if e.code == 409 => {}
        Err(error) => return Err(error),
    }
    let patch = json!({"metadata": {"labels": labels(context)}});
    api(context).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
}

fn labels(context: &Context) -> BTreeMap<String, String> {
    let arch = machine::architecture();
    let standard = [
        ("kubernetes.io/hostname", context.config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ];
    let standard = standard.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
    context.config.labels.clone().into_iter().chain(standard).collect()
}

// --- lease

async fn keep_lease(context: &Context, uid: Option<String>) {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), "kube-node-lease");
    let mut ticks = tokio::time::interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut pause = RETRY_FIRST;
        while let Err(error) = renew(&api, &context.config.node_name, uid.as_deref()).await {
            tracing::warn!(%error, "renewing the node's lease");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LONGEST);
        }
    }
}

async fn renew(api: &Api<Lease>, node: &str, uid: Option<&str>) -> Result<(), kube::Error> {
    let now = MicroTime(Timestamp::now());
    let patch = json!({"spec": {
        "holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now,
    }});
    match api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(e)) if e.code == 404 => {}
        result => return result.map(|_| ()),
    }
    let owner = uid.map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.to_owned(),
        uid: uid.to_owned(),
        ..OwnerReference::default()
    });
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(|_| ())
}

// --- the pod range

/// Watches the Node for its pod range and sets the network up with it.
async fn follow_node(context: &Context) {
    let mut events = watcher::watch_object(api(context), &context.config.node_name).default_backoff().boxed();
    let mut configured: Vec<String> = vec![];
    while let Some(event) = events.next().await {
        let node = match event {
            Ok(Some(node)) => node,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%error, "watching the node");
                continue;
            }
        };
        let spec = node.spec.unwrap_or_default();
        let ranges =
            spec.pod_cidrs.filter(|r| !r.is_empty()).unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        if ranges.is_empty() || ranges == configured {
            continue;
        }
        let state = context.network.configure(&ranges).await.map_err(|e| e.chain());
        if state.is_ok() {
            configured = ranges;
        }
        drop(context.network_state.send_replace(state));
    }
}

// --- status

async fn keep_status(context: &Arc<Context>, machine: &Machine, has_range: bool) {
    let mut network = context.network_state.subscribe();
    // A restarted kubelet is not to call its node unready, which takes its pods out of their Services, before
    // it has taken up the network that they have been using all along.
    if has_range && network.changed().await.is_err() {
        return;
    }
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told: Option<(NodeStatus, Timestamp)> = None;
    loop {
        tokio::select! {
            // Both only say that it is time for a look.
            _ = ticks.tick() => {}
            changed = network.changed() => if changed.is_err() { return },
        }
        let now = Timestamp::now();
        let images = images(context).await;
        let state = network.borrow_and_update().clone();
        let before = told.as_ref().map(|(s, _)| s);
        let mut newest = status(context, machine, &state, before, now, images);
        if let Some((before, at)) = &told
            && same(before, &newest)
            && now.duration_since(*at).unsigned_abs() < TELL
        {
            continue;
        }
        for c in newest.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = Some(Time(now));
        }
        let patch = Patch::Strategic(patch(&newest));
        let name = &context.config.node_name;
        match api(context).patch_status(name, &PatchParams::default(), &patch).await {
            Ok(_) => told = Some((newest, now)),
            Err(error) => {
                tracing::warn!(%error, "telling the node's status");
                ticks.reset_after(RETRY_FIRST * 5);
            }
        }
    }
}

/// Conditions of others stay, as a merge has it; addresses are replaced, since they would be merged by their type, of
/// which a node of both families has two (upstream: `fixupPatchForNodeStatusAddresses`).
fn patch(newest: &NodeStatus) -> Value {
    let mut patch = json!({ "status": newest });
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
        addresses.push(json!({ "$patch": "replace" }));
    }
    patch
}

/// Equal but for the times of the heartbeats.
fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let timeless = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
        }
        s
    };
    timeless(a) == timeless(b)
}

async fn images(context: &Arc<Context>) -> Vec<ContainerImage> {
    let store = context.images.clone();
    let mut list = blocking(move || store.list().unwrap_or_default()).await;
    list.sort_by_key(|i| std::cmp::Reverse(i.bytes));
    list.truncate(IMAGES_MAX);
    list.into_iter()
        .map(|i| ContainerImage { names: Some(i.names.clone()), size_bytes: i64::try_from(i.bytes).ok() })
        .collect()
}

fn addresses(config: &Config) -> Vec<NodeAddress> {
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let internal = config.node_ips().into_iter().map(|ip| address("InternalIP", ip.to_string()));
    internal.chain([address("Hostname", config.node_name.clone())]).collect()
}

fn status(
    context: &Context,
    machine: &Machine,
    network: &NetworkState,
    before: Option<&NodeStatus>,
    now: Timestamp,
    images: Vec<ContainerImage>,
) -> NodeStatus {
    let config = &context.config;
    let capacity = capacity(context, machine);
    NodeStatus {
        addresses: Some(addresses(config)),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        conditions: Some(conditions(context, network, before, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.listen.port()) }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: machine::architecture().to_owned(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: RUNTIME.to_owned(),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.to_owned(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.machine_id.clone(),
            ..NodeSystemInfo::default()
        }),
        images: Some(images),
        ..NodeStatus::default()
    }
}

fn capacity(context: &Context, machine: &Machine) -> BTreeMap<String, Quantity> {
    let size = context.size;
    let cpu = match size.cpu_milli % 1000 {
        0 => (size.cpu_milli / 1000).to_string(),
        _ => format!("{}m", size.cpu_milli),
    };
    [
        ("cpu", cpu),
        ("memory", format!("{}Ki", size.memory / 1024)),
        ("pods", context.config.max_pods.to_string()),
        ("ephemeral-storage", format!("{}Ki", machine.disk / 1024)),
        ("hugepages-2Mi", "0".to_owned()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), Quantity(v)))
    .collect()
}

fn conditions(
    context: &Context,
    network: &NetworkState,
    before: Option<&NodeStatus>,
    now: Timestamp,
) -> Vec<NodeCondition> {
    let pressure = machine::pressure(&context.config.state_dir);
    let well = |kind: &'static str, bad: bool, reason: (&'static str, &'static str), words: (&str, &str)| {
        let (reason, message) = if bad { (reason.0, words.0) } else { (reason.1, words.1) };
        (kind, bad, reason, message.to_owned())
    };
    let ready = match network {
        Ok(()) => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Err(why) => (
            "Ready",
            false,
            "KubeletNotReady",
            format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{why}"
            ),
        ),
    };
    let all = [
        well(
            "MemoryPressure",
            pressure.memory,
            ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
            ("kubelet has insufficient memory available", "kubelet has sufficient memory available"),
        ),
        well(
            "DiskPressure",
            pressure.disk,
            ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure"),
            ("kubelet has disk pressure", "kubelet has no disk pressure"),
        ),
        well(
            "PIDPressure",
            pressure.pids,
            ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
            ("kubelet has insufficient PID available", "kubelet has sufficient PID available"),
        ),
        ready,
    ];
    let since = |kind: &str, status: &str| {
        let told = before.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let same = told.into_iter().find(|c| c.type_ == kind && c.status == status);
        same.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now))
    };
    all.into_iter()
        .map(|(kind, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(since(kind, status)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_type_are_not_merged_into_one() {
        let internal = |ip: &str| NodeAddress { type_: "InternalIP".to_owned(), address: ip.to_owned() };
        let status = NodeStatus {
            addresses: Some(vec![internal("10.0.0.1"), internal("fd00::1")]),
            ..NodeStatus::default()
        };
        let expect = json!([
            { "type": "InternalIP", "address": "10.0.0.1" },
            { "type": "InternalIP", "address": "fd00::1" },
            { "$patch": "replace" },
        ]);
        assert_eq!(patch(&status)["status"]["addresses"], expect);
    }
}
