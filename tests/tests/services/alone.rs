//! `pith proxy`: the proxy of a node whose pods nobody of pith runs, for the Services of this cluster.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use pith_network::netns::Netns;
use pith_tests::{Cluster, Kubectl, bin_dir, until};
use rustix::process::{Pid, Signal, kill_process};

use super::{SOON, get};

/// The network namespace of a replica and a cgroup beside the replica's: what a node is to a proxy.
struct Node {
    netns: Netns,
    cgroup: PathBuf,
    pins: PathBuf,
    proxy: Option<Child>,
}

impl Node {
    fn new(cluster: &Cluster) -> Self {
        let name = format!("pith-{}-alone", cluster.name);
        let netns =
            Netns::open(&format!("pith-{}-r2", cluster.name)).expect("to be opened").expect("replica 2");
        let hierarchy = pith_cgroup::Hierarchy::detect().expect("cgroups are mounted");
        let cgroup = hierarchy.v2_root().expect("the replicas have one").join(&name);
        fs::create_dir(&cgroup).expect("a cgroup is made");
        Self { netns, cgroup, pins: Path::new("/sys/fs/bpf").join(&name), proxy: None }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(bin_dir().join("pith"));
        command.arg("proxy").arg("--bpf-dir").arg(&self.pins).args(arguments);
        command
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).expect("the namespace is entered")
    }

    /// Asks a Service as a process of this node.
    fn ask(&self, service: &str) -> Output {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec 3<>/dev/tcp/{service}/80 && \
             printf 'GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n' >&3 && cat <&3",
            self.cgroup.display()
        );
        self.run(|| Command::new("timeout").args(["2", "bash", "-c", &script]).output()).expect("bash starts")
    }

    /// Lets the proxy end as a service manager does.
    fn stop(&mut self) {
        let Some(mut proxy) = self.proxy.take() else { return };
        let pid = Pid::from_raw(proxy.id().try_into().expect("a pid")).expect("not 0");
        kill_process(pid, Signal::TERM).expect("it is our child");
        let status = proxy.wait().expect("it is our child");
        assert!(status.success(), "{status}");
    }

    fn cleanup(&self) {
        let done = self.run(|| self.command(&["--cleanup"]).output()).expect("pith starts");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
        self.cleanup();
        fs::remove_dir(&self.cgroup).expect("nobody is in it any more");
    }
}

/// Services answer while it runs, go on when it has ended, and no longer when it is taken away.
pub(crate) fn serves_and_is_taken_away(cluster: &Cluster, kubectl: &Kubectl) {
    let mut node = Node::new(cluster);
    let primary = "jsonpath={.endpoints[0].addresses[0]}";
    let primary = kubectl.run(&["get", "endpointslice", "kubernetes", "-o", primary]);
    let kubeconfig = cluster.dir().join("alone.kubeconfig");
    let text = fs::read_to_string(cluster.kubeconfig()).expect("it is there");
    fs::write(&kubeconfig, text.replace("127.0.0.1", &primary)).expect("it is writable");

    let kubeconfig = kubeconfig.to_str().expect("UTF-8");
    let cgroup = node.cgroup.to_str().expect("UTF-8");
    let healthz: SocketAddr = ([127, 0, 0, 1], 20_256).into();
    let mut command = node.command(&["--kubeconfig", kubeconfig, "--cgroup", cgroup, "--uplink", "lo"]);
    command.args([
        "--metrics-bind-address",
        "127.0.0.1:20249",
        "--healthz-bind-address",
        &healthz.to_string(),
    ]);
    node.proxy = Some(node.run(|| command.spawn()).expect("pith starts"));
    until("the proxy has what it needs", SOON, || match node.run(|| get(healthz, "/healthz")) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
        Ok(answer) => Err(answer),
        Err(error) => Err(error.to_string()),
    });

    let web = kubectl.run(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let answered = |node: &Node| String::from_utf8_lossy(&node.ask(&web).stdout).contains("\nweb-");
    assert!(answered(&node), "{:?}", node.ask(&web));
    node.stop();
    assert!(answered(&node), "what it wrote stays in the kernel: {:?}", node.ask(&web));
    node.cleanup();
    assert!(!node.pins.exists());
    assert!(!answered(&node), "nothing answers any more");
}
