//! One node and the primary it talks to, in a network namespace of their own.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Event, Node as NodeObject, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use pith_apiserver::{Identity, Server, pki::Profile};
use pith_kubelet::{Config, Deps, Kubelet, KubeletError, NetworkError, PodId, PodNetwork, PodUid, Serving};
use pith_network::pods::PodNet;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::image;

pub(crate) const NODE: &str = "node-1";
/// What nothing in these tests takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const NODE_IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Runs a test in a network namespace of its own; says so when the machine does not allow it.
pub(crate) fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce(Node) -> F + Send) {
    if let Some(reason) = pith_tests::missing_right() {
        return eprintln!("SKIPPED: {name}: {reason}");
    }
    let programs = Programs::find();
    std::thread::scope(|scope| {
        // Threads that this one starts, the runtime's among them, are in its namespace.
        let body = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("ip is installed").success(), "the loopback comes up");
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async { test(Node::new(name, programs).await).await });
        };
        if let Err(panic) = scope.spawn(body).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

struct Programs {
    podd: PathBuf,
    probe: Vec<u8>,
}

impl Programs {
    fn find() -> Self {
        let dir = pith_tests::bin_dir();
        let probe = fs::read(dir.join("pith-probe")).expect("pith-probe is built with pith");
        Self { podd: dir.join("pith-podd"), probe }
    }
}

pub(crate) struct Node {
    dir: TempDir,
    pub(crate) run: PathBuf,
    pub(crate) cgroup: String,
    podd: PathBuf,
    images: pith_image::Store,
    pub(crate) server: Server,
    network: Arc<Network>,
    kubelet: Option<(CancellationToken, JoinHandle<Result<(), KubeletError>>)>,
    serving: Option<DropGuard>,
}

impl Node {
    async fn new(name: &str, programs: Programs) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = pith_store::Embedded::open(&dir.path().join("store")).expect("the store opens");
        let config = pith_apiserver::Config {
            dir: dir.path().join("primary"),
            cluster_name: "test".to_owned(),
            advertise: "127.0.0.1:6443".parse().expect("an address"),
            further_addresses: vec![],
            further_names: vec![],
            service_cidr: "10.96.0.0/16".parse().expect("a range"),
            certificate_lifetime: pith_apiserver::pki::CLIENT_LIFETIME,
            tolerations: Default::default(),
        };
        let server = Server::open(config, Arc::new(store)).await.expect("the server opens");
        let images = pith_image::Store::open(dir.path().join("images")).expect("the image store opens");
        image::import(&images, &programs.probe);
        let unique = format!("pith-test-{name}-{}", std::process::id());
        let node = Self {
            run: PathBuf::from("/dev/shm").join(&unique),
            cgroup: unique,
            podd: programs.podd,
            images,
            server,
            network: Arc::new(Network { state: dir.path().join("network"), net: Mutex::new(None) }),
            kubelet: None,
            serving: None,
            dir,
        };
        // What the controllers would make.
        let account = json!({"metadata": {"name": "default"}});
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = node.api();
        let account = serde_json::from_value(account).expect("an account");
        accounts.create(&PostParams::default(), &account).await.expect("the account is made");
        node.config_map("kube-root-ca.crt", json!({"ca.crt": "the authority"})).await;
        node
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.server.client(Identity::admin())
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client(), "default")
    }

    /// Makes a ConfigMap, or changes what it holds.
    pub(crate) async fn config_map(&self, name: &str, data: Value) {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data});
        let api: Api<k8s_openapi::api::core::v1::ConfigMap> = self.api();
        match api.get_opt(name).await.expect("the server answers") {
            Some(_) => api.patch(name, &PatchParams::default(), &Patch::Merge(map)).await,
            None => {
                let map = serde_json::from_value(map).expect("a ConfigMap");
                api.create(&PostParams::default(), &map).await
            }
        }
        .expect("the ConfigMap is written");
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        self.api()
    }

    pub(crate) fn config(&self) -> Config {
        let state = self.dir.path().join("replica");
        Config::new(NODE, NODE_IP, state, self.run.clone(), self.cgroup.clone())
    }

    /// Starts the kubelet and waits until the node is Ready.
    pub(crate) async fn start(&mut self) {
        let stop = CancellationToken::new();
        let deps = Deps {
            client: self.server.client(Identity::new(format!("system:node:{NODE}"), &["system:nodes"])),
            images: self.images.clone(),
            network: self.network.clone(),
            podd: self.podd.clone(),
            serving: Some(watch::Sender::new(self.serving()).subscribe()),
        };
        let kubelet = tokio::spawn(Kubelet::run(self.config(), deps, stop.clone()));
        self.kubelet = Some((stop, kubelet));
        let nodes: Api<NodeObject> = Api::all(self.client());
        within(await_condition(nodes.clone(), NODE, |n: Option<&NodeObject>| n.is_some())).await;
        let range = json!({"spec": {"podCIDR": "10.244.77.0/24", "podCIDRs": ["10.244.77.0/24"]}});
        nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(range)).await.expect("takes its range");
        let ready = |n: Option<&NodeObject>| {
            let conditions = n.and_then(|n| n.status.as_ref()?.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        within(await_condition(nodes, NODE, ready)).await;
    }

    fn serving(&self) -> Serving {
        let authority = &self.server.pki().authority;
        let year = Duration::from_secs(365 * 86400);
        let profile = Profile::server("system:node:node-1", Some("system:nodes"), &[], &[NODE_IP], year);
        let issued = authority.issue(&profile).expect("a certificate");
        Serving {
            certificate: issued.certificate_pem,
            key: issued.key_pem,
            client_ca: authority.certificate_pem().to_owned(),
        }
    }

    /// A client that reaches the primary over TLS, as kubectl does; for what upgrades its connection.
    pub(crate) async fn remote(&mut self) -> kube::Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (server, stop) = (self.server.clone(), CancellationToken::new());
        self.serving = Some(stop.clone().drop_guard());
        tokio::spawn(async move { server.serve(vec![listener], stop).await });
        let text = self.server.admin_kubeconfig(&format!("https://{address}")).expect("a kubeconfig");
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&text).expect("is one");
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("is usable");
        kube::Client::try_from(config).expect("a client")
    }

    /// Ends the kubelet; pods go on.
    pub(crate) async fn stop(&mut self) {
        if let Some((stop, kubelet)) = self.kubelet.take() {
            stop.cancel();
            within(kubelet).await.expect("the kubelet ends well");
        }
    }

    /// Creates a pod on this node. The spec's containers get the test image where they name none.
    pub(crate) async fn create(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!(NODE);
        // The programs of most tests do not mind SIGTERM: the usual 30 s would be waited for in full.
        let fields = spec.as_object_mut().expect("a spec is an object");
        fields.entry("terminationGracePeriodSeconds").or_insert(json!(1));
        for list in ["containers", "initContainers"] {
            for c in spec[list].as_array_mut().into_iter().flatten() {
                let c = c.as_object_mut().expect("a container is an object");
                c.entry("image").or_insert(json!(image::IMAGE));
                c.entry("imagePullPolicy").or_insert(json!("IfNotPresent"));
            }
        }
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        let pod = serde_json::from_value(pod).expect("a pod");
        self.pods().create(&PostParams::default(), &pod).await.expect("the pod is made")
    }

    /// Waits until the pod fulfils `condition`.
    pub(crate) async fn until(&self, name: &str, what: &str, condition: impl Fn(&Pod) -> bool) -> Pod {
        let check = |pod: Option<&Pod>| pod.is_some_and(&condition);
        let waiting = await_condition(self.pods(), name, check);
        match tokio::time::timeout(DEADLINE, waiting).await {
            Ok(pod) => pod.expect("the watch works").expect("it is there"),
            Err(_) => {
                let pod = self.pods().get_opt(name).await.expect("the server answers");
                let status = pod.and_then(|p| p.status);
                let status = serde_json::to_string_pretty(&status).expect("is JSON");
                panic!("{name}: not {what} in time: {status}\n{:#?}", self.events(name).await)
            }
        }
    }

    pub(crate) async fn until_phase(&self, name: &str, phase: &str) -> Pod {
        self.until(name, phase, |p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some(phase)).await
    }

    pub(crate) async fn delete(&self, name: &str, grace: Option<u32>) {
        let how = DeleteParams { grace_period_seconds: grace, ..DeleteParams::default() };
        self.pods().delete(name, &how).await.expect("is deleted");
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        let gone = await_condition(self.pods(), name, |p: Option<&Pod>| p.is_none());
        if tokio::time::timeout(DEADLINE, gone).await.is_err() {
            self.until(name, "gone", |_| false).await;
        }
    }

    /// `reason: message` of the events about a pod.
    pub(crate) async fn events(&self, name: &str) -> Vec<String> {
        let fields = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = self.api::<Event>().list(&fields).await.expect("the server answers");
        let line = |e: Event| format!("{}: {}", e.reason.unwrap_or_default(), e.message.unwrap_or_default());
        events.items.into_iter().map(line).collect()
    }

    /// Waits for an event; nothing announces that one was the last.
    pub(crate) async fn until_event(&self, name: &str, text: &str) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !self.events(name).await.iter().any(|e| e.contains(text)) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{name}: no {text:?} in {:#?}",
                self.events(name).await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The log of a container's attempt, without times and streams.
    pub(crate) fn log(&self, pod: &Pod, container: &str, attempt: u32) -> String {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let dir = self.config().state_dir.join(format!("logs/default_{name}_{uid}/{container}"));
        let text = fs::read_to_string(dir.join(format!("{attempt}.log"))).unwrap_or_default();
        text.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
    }

    pub(crate) fn pod_run_dir(&self, pod: &Pod) -> PathBuf {
        self.run.join("pods").join(pod.metadata.uid.as_deref().unwrap_or_default())
    }

    /// The pid of a container's first process.
    pub(crate) fn pid(&self, pod: &Pod, container: &str) -> i32 {
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
        let found = statuses.into_iter().flatten().find(|c| c.name == container).expect("has the container");
        let id = found.container_id.as_deref().and_then(|id| id.strip_prefix("pith://")).expect("has an id");
        let records = pith_container::supervisor::records::read(&self.pod_run_dir(pod)).expect("has records");
        records.into_iter().find(|r| r.id == id).expect("is on record").pid
    }

    /// The pid of a pod's supervisor.
    pub(crate) fn supervisor(&self, pod: &Pod) -> i32 {
        pith_container::supervisor::Supervisor::adopt(&self.pod_run_dir(pod)).expect("it answers").pid()
    }

    /// Waits until nothing is left of pods: those deleted with a grace of 0 leave the API before they leave the node.
    pub(crate) async fn until_no_leftovers(&self) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !self.leftovers().is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "left: {:#?}", self.leftovers());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What is left on this node: run folders and cgroups of pods.
    fn leftovers(&self) -> Vec<String> {
        let hierarchy = pith_cgroup::Hierarchy::detect().expect("has cgroups");
        let roots = hierarchy.v2_root().into_iter().chain(hierarchy.v1_roots());
        let mut dirs: Vec<_> = roots.map(|r| r.join(&self.cgroup)).collect();
        dirs.push(self.run.join("pods"));
        dirs.push(self.config().state_dir.join("pods"));
        dirs.push(self.config().state_dir.join("logs"));
        let entries = dirs.into_iter().flat_map(|d| fs::read_dir(d).into_iter().flatten().flatten());
        entries
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.path().display().to_string())
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some((stop, _)) = &self.kubelet {
            stop.cancel();
        }
        for entry in fs::read_dir(self.run.join("pods")).into_iter().flatten().flatten() {
            if let Ok(s) = pith_container::supervisor::Supervisor::adopt(&entry.path()) {
                s.kill();
            }
        }
        if let Ok(hierarchy) = pith_cgroup::Hierarchy::detect() {
            let _ = pith_cgroup::remove_tree(&Arc::new(hierarchy), &self.cgroup, Duration::from_secs(10));
        }
        let _ = fs::remove_dir_all(&self.run);
    }
}

pub(crate) async fn within<T, E: std::fmt::Debug>(future: impl Future<Output = Result<T, E>>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time").expect("succeeds")
}

/// The real pod network, opened when the node's range is known.
struct Network {
    state: PathBuf,
    net: Mutex<Option<PodNet>>,
}

impl Network {
    fn net(&self) -> Result<PodNet, NetworkError> {
        let net = self.net.lock().expect("not poisoned").clone();
        net.ok_or_else(|| NetworkError::new("no pod range yet"))
    }
}

fn uid(pod: &PodUid) -> Result<pith_network::names::PodUid, NetworkError> {
    pith_network::names::PodUid::parse(pod.as_str()).map_err(NetworkError::new)
}

impl PodNetwork for Network {
    fn configure(&self, pod_cidrs: &[String]) -> BoxFuture<'_, Result<(), NetworkError>> {
        let range = pod_cidrs[0].parse();
        Box::pin(async move {
            let config = pith_network::pods::Config {
                state_dir: self.state.clone(),
                pod_cidr: range.map_err(NetworkError::new)?,
                pod_cidr6: None,
                uplink: None,
                netns: None,
            };
            let net = PodNet::open(config).await.map_err(NetworkError::new)?;
            *self.net.lock().expect("not poisoned") = Some(net);
            Ok(())
        })
    }

    fn attach(&self, pod: &PodId, netns: OwnedFd) -> BoxFuture<'_, Result<Vec<IpAddr>, NetworkError>> {
        let pod = uid(&pod.uid);
        Box::pin(async move {
            let attached = self.net()?.attach(&pod?, netns.as_fd()).await.map_err(NetworkError::new)?;
            Ok(vec![attached.address.into()])
        })
    }

    fn detach(&self, pod: &PodId) -> BoxFuture<'_, Result<(), NetworkError>> {
        let pod = uid(&pod.uid);
        Box::pin(async move { self.net()?.detach(&pod?).await.map_err(NetworkError::new) })
    }

    fn reconcile(&self, live: &[PodUid]) -> BoxFuture<'_, Result<(), NetworkError>> {
        let live: Result<Vec<_>, _> = live.iter().map(uid).collect();
        Box::pin(async move { self.net()?.reconcile(live?).await.map(|_| ()).map_err(NetworkError::new) })
    }

    fn name_servers(&self) -> Vec<IpAddr> {
        self.net().map(|n| vec![n.gateway().into()]).unwrap_or_default()
    }
}
