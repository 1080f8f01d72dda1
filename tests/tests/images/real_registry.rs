//! Debian's docker-registry behind a password, filled by skopeo: pods pull from it with both kinds of secret and through
//! a mirror, and what no pod uses any more leaves a disk that is too full.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use pith_tests::images;
use pith_tests::{Cluster, Kubectl, debian, until};
use serde_json::json;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);
/// Of the replica's own loopback, where nothing else listens.
const PORT: u16 = 5000;
/// me:secret, as `htpasswd -B` writes it.
const PASSWORDS: &str = "me:$2y$05$gs0Z8mn/hgAsxhoL8Gol1uvHeDy5K8GwsQ9Afkz4JLPEVoQ1ZBDri\n";

/// docker-registry and skopeo as Debian has them, unpacked.
struct Programs {
    root: TempDir,
}

impl Programs {
    fn fetch() -> Result<Self> {
        let root = TempDir::with_prefix("pith-registry-")?;
        debian::unpack(&["docker-registry", "skopeo"], &root.path().join("apt"), &root.path().join("root"))?;
        Ok(Self { root })
    }

    /// A program of theirs with the libraries that came with it.
    fn command(&self, name: &str) -> Command {
        let root = self.root.path().join("root");
        let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path");
        command.arg(format!("{0}/lib/x86_64-linux-gnu:{0}/usr/lib/x86_64-linux-gnu", root.display()));
        command.arg(root.join("usr/bin").join(name));
        command
    }
}

/// Runs until it is dropped.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        // Already gone, or gone now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// On a thread in that network namespace: what is started there is in it.
fn in_netns<T: Send>(netns: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let netns = File::open(Path::new("/run/netns").join(netns)).context("open the replica's namespace")?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn serve(programs: &Programs, netns: &str) -> Result<Registry> {
    let dir = programs.root.path();
    fs::write(dir.join("passwords"), PASSWORDS)?;
    let config = json!({
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": dir.join("data")}},
        "http": {"addr": format!("127.0.0.1:{PORT}")},
        "auth": {"htpasswd": {"realm": "pith", "path": dir.join("passwords")}},
    });
    // JSON is YAML.
    fs::write(dir.join("config.yml"), config.to_string())?;
    let mut command = programs.command("docker-registry");
    command.arg("serve").arg(dir.join("config.yml")).stdout(Stdio::null()).stderr(Stdio::null());
    let registry = in_netns(netns, || Ok(Registry(command.spawn().context("start docker-registry")?)))?;
    until("the registry listens", DEADLINE, || {
        in_netns(netns, || Ok(std::net::TcpStream::connect(("127.0.0.1", PORT))?)).map_err(|e| e.to_string())
    });
    Ok(registry)
}

fn push(programs: &Programs, netns: &str, archive: &Path, name: &str) -> Result<()> {
    let mut command = programs.command("skopeo");
    command.args(["--insecure-policy", "--tmpdir"]).arg(programs.root.path());
    command.args(["copy", "--dest-tls-verify=false", "--dest-creds", "me:secret"]);
    command.arg(format!("oci-archive:{}", archive.display()));
    command.arg(format!("docker://127.0.0.1:{PORT}/{name}"));
    let output = in_netns(netns, || command.output().context("run skopeo"))?;
    if !output.status.success() {
        bail!("skopeo: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Docker Hub's mirror is the registry.
fn mirrors() -> Result<TempDir> {
    let dir = TempDir::with_prefix("pith-hosts-")?;
    fs::create_dir(dir.path().join("docker.io"))?;
    let hosts = format!("server = \"http://127.0.0.1:9\"\n[host.\"http://127.0.0.1:{PORT}\"]\n");
    fs::write(dir.path().join("docker.io/hosts.toml"), hosts)?;
    Ok(dir)
}

#[test]
fn pods_pull_from_a_real_registry_and_leave_nothing() {
    let found =
        || Ok::<_, anyhow::Error>((Programs::fetch()?, images::busybox()?, images::nginx()?, mirrors()?));
    let (programs, used, unused, hosts) = match found() {
        Ok((programs, used, unused, hosts)) => (programs, used.path, unused.path, hosts),
        Err(error) => return eprintln!("SKIPPED: pulls from docker-registry: {error:#}"),
    };
    let hosts_dir = hosts.path().to_str().expect("paths of the tests are UTF-8");
    let collects =
        ["--image-gc-high-threshold=1", "--minimum-image-ttl-duration=5s", "--hosts-dir", hosts_dir];
    let Some(cluster) = Cluster::start(1, &collects) else { return };
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    let before = layers(&cluster);
    let netns = format!("pith-{}-r1", cluster.name);
    let _registry = serve(&programs, &netns).expect("the registry serves");
    push(&programs, &netns, &used, "team/busybox:v1").expect("skopeo pushes");
    push(&programs, &netns, &unused, "team/unused:v1").expect("skopeo pushes");

    secrets(&kubectl);
    let direct = format!("127.0.0.1:{PORT}/team/busybox:v1");
    for (name, image, secret) in [
        ("nobody", direct.as_str(), None),
        ("wrong", &direct, Some("wrong")),
        ("new", &direct, Some("new")),
        ("old", &direct, Some("old")),
        ("mirror", "team/busybox:v1", Some("new")),
    ] {
        pod(&kubectl, name, image, secret);
    }
    for name in ["new", "old", "mirror"] {
        kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
        let told = kubectl.run(&["events", "--for", &format!("pod/{name}")]);
        assert!(told.contains("Successfully pulled image"), "{told}");
    }
    for name in ["nobody", "wrong"] {
        until("the event says that the registry refuses", DEADLINE, || {
            let told = kubectl.run(&["events", "--for", &format!("pod/{name}")]);
            if told.contains("refuses access to team/busybox") { Ok(()) } else { Err(told) }
        });
    }
    collected(&cluster, &kubectl, before);
    cluster.down();
}

fn secrets(kubectl: &Kubectl) {
    let host = format!("127.0.0.1:{PORT}");
    let auths = |password: &str| {
        let mut auths = serde_json::Map::new();
        auths.insert(host.clone(), json!({"username": "me", "password": password}));
        serde_json::Value::from(auths)
    };
    for (name, kind, key, content) in [
        ("new", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", json!({"auths": auths("secret")})),
        ("old", "kubernetes.io/dockercfg", ".dockercfg", auths("secret")),
        ("wrong", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", json!({"auths": auths("guess")})),
    ] {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind,
            "stringData": {key: content.to_string()},
        });
        kubectl.apply(&secret.to_string());
    }
}

fn pod(kubectl: &Kubectl, name: &str, image: &str, secret: Option<&str>) {
    let secrets: Vec<_> = secret.iter().map(|secret| json!({"name": secret})).collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "imagePullSecrets": secrets,
            "containers": [{
                "name": "main", "image": image, "imagePullPolicy": "Always", "command": ["/bin/sleep", "1000"],
            }],
        },
    });
    kubectl.apply(&pod.to_string());
}

/// The disk is fuller than it may be: images go when their pods are gone, and not before.
fn collected(cluster: &Cluster, kubectl: &Kubectl, before: usize) {
    let names = || {
        let reply = cluster.pith(&["image", "ls"]);
        assert!(reply.ok, "{}", reply.stderr);
        reply.stdout
    };
    // It need not start for its image to be there.
    pod(kubectl, "brief", &format!("127.0.0.1:{PORT}/team/unused:v1"), Some("new"));
    until("it is pulled", DEADLINE, || if names().contains("unused") { Ok(()) } else { Err(names()) });
    kubectl.run(&["delete", "pod", "brief"]);
    until("what no pod uses is gone", DEADLINE, || {
        let left = names();
        if left.contains("unused") { Err(left) } else { Ok(()) }
    });
    assert!(names().contains("docker.io/team/busybox:v1"), "{}", names());
    until("the node says that its disk is full", DEADLINE, || {
        let told = kubectl.run(&["get", "events", "--field-selector", "involvedObject.kind=Node"]);
        if told.contains("FreeDiskSpaceFailed") { Ok(()) } else { Err(told) }
    });
    kubectl.run(&["exec", "new", "--", "/bin/busybox", "true"]);
    kubectl.run(&["delete", "pod", "--all"]);
    until("what the pods used is gone", DEADLINE, || {
        let left = names();
        if left.contains("busybox") { Err(left) } else { Ok(()) }
    });
    assert!(names().contains("pith.local/demo:v2"), "a file brought it, and no registry has it: {}", names());
    assert_eq!(layers(cluster), before);
}

fn layers(cluster: &Cluster) -> usize {
    let layers: PathBuf = cluster.dir().join("replicas/replica-1/images/layers");
    fs::read_dir(&layers).expect("the store's layers").count()
}
