//! Other people's programs as pods: Debian's nginx and redis serve traffic and are held to their limits; images
//! that cannot be had say why.

mod real_registry;
mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pith_tests::images::{self, Archive};
use pith_tests::{Cluster, Kubectl, until};
use registry::Registry;
use serde_json::Value;

const SERVERS: &str = include_str!("../manifests/servers.yaml");
const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn nginx_and_redis_serve_and_are_held_to_their_limits() {
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    for (name, archive) in
        [("busybox", images::busybox()), ("nginx", images::nginx()), ("redis", images::redis())]
    {
        match archive {
            Ok(Archive { path, .. }) => cluster.import(&path),
            Err(error) => return eprintln!("SKIPPED: third-party images: {name}: {error:#}"),
        }
    }
    kubectl.apply(SERVERS);
    for deployment in ["nginx", "redis", "burner"] {
        kubectl.run(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=60s"]);
    }
    nginx(&kubectl);
    redis(&kubectl);
    once_over_its_memory(&kubectl);
    cpu(&cluster, &kubectl);
    cluster.down();
}

/// Served through its Service to another container; its log is what it wrote to /dev/stdout.
fn nginx(kubectl: &Kubectl) {
    let page = until("nginx answers by name", DEADLINE, || {
        let reply = kubectl.try_run(&["exec", "deployment/burner", "--", "wget", "-qO-", "http://nginx/"]);
        if reply.ok { Ok(reply.stdout) } else { Err(reply.stderr) }
    });
    assert!(page.contains("Welcome to nginx!"), "{page}");
    until("the request is in the log", DEADLINE, || {
        let log = kubectl.run(&["logs", "-l", "app=nginx"]);
        if log.contains("\"GET / HTTP/1.1\" 200") { Ok(()) } else { Err(log) }
    });
    let version = kubectl.try_run(&["exec", "deployment/nginx", "--", "nginx", "-v"]);
    assert!(version.ok && version.stderr.contains("nginx version"), "{version:?}");
    let missing = kubectl.try_run(&["exec", "deployment/nginx", "--", "no-such-program"]);
    assert!(!missing.ok && missing.stderr.contains("no-such-program"), "{missing:?}");
}

/// Works, is killed when it takes more memory than it may, says so, and works again.
fn redis(kubectl: &Kubectl) {
    let cli = |command: &[&str]| {
        let mut all = vec!["exec", "deployment/redis", "--", "redis-cli"];
        all.extend(command);
        kubectl.try_run(&all)
    };
    let answered = |command: &[&str], expect: &str| {
        until("redis answers", DEADLINE, || {
            let reply = cli(command);
            if reply.stdout == expect { Ok(()) } else { Err(format!("{reply:?}")) }
        });
    };
    answered(&["set", "greeting", "hello"], "OK\n");
    answered(&["get", "greeting"], "hello\n");
    // One string of 200 MiB where 64 are allowed.
    let reply = cli(&["setrange", "large", "209715200", "x"]);
    assert!(!reply.stdout.contains("209715201"), "the limit did not hold: {reply:?}");
    let status = until("the kill is told", DEADLINE, || {
        let status = container_status(kubectl, "app=redis");
        let running = status["state"]["running"].is_object();
        if running && status["restartCount"] == 1 { Ok(status) } else { Err(status.to_string()) }
    });
    let last = &status["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&"OOMKilled".into(), &137.into()), "{status}");
    answered(&["get", "greeting"], "\n");
}

fn once_over_its_memory(kubectl: &Kubectl) {
    let status = until("the pod has ended", DEADLINE, || {
        let status = container_status(kubectl, "app=glutton");
        if status["state"]["terminated"].is_object() { Ok(status) } else { Err(status.to_string()) }
    });
    let end = &status["state"]["terminated"];
    assert_eq!((&end["reason"], &end["exitCode"]), (&"OOMKilled".into(), &137.into()), "{status}");
    let shown = kubectl.run(&["get", "pod", "glutton"]);
    assert!(shown.contains("OOMKilled"), "{shown}");
}

/// A loop that would take a whole processor gets a fifth of one.
fn cpu(cluster: &Cluster, kubectl: &Kubectl) {
    let group = CpuGroup::of(cluster, kubectl, "app=burner");
    let (began, before) = (Instant::now(), group.read());
    until("it was throttled 20 times", DEADLINE, || {
        let periods = group.read().throttled - before.throttled;
        if periods >= 20 { Ok(()) } else { Err(format!("{periods} times")) }
    });
    let used = group.read().usage.saturating_sub(before.usage);
    let took = began.elapsed();
    let share = used.as_secs_f64() / took.as_secs_f64();
    // A period's quota may be used up at both ends of the measurement.
    assert!(share <= 0.2 + 0.05, "a limit of 200m, and it took {share:.3} processors");
}

fn container_status(kubectl: &Kubectl, selector: &str) -> Value {
    kubectl.json(&["get", "pods", "-l", selector])["items"][0]["status"]["containerStatuses"][0].clone()
}

/// The `cpu.stat` files of a container: one, or with v1 beside v2 one that limits and one that counts.
struct CpuGroup {
    files: Vec<PathBuf>,
}

struct CpuTime {
    usage: Duration,
    throttled: u64,
}

impl CpuGroup {
    fn of(cluster: &Cluster, kubectl: &Kubectl, selector: &str) -> Self {
        let pod = kubectl.json(&["get", "pods", "-l", selector])["items"][0].clone();
        let text = |value: &Value| value.as_str().expect("a running pod has it").to_owned();
        let id = text(&pod["status"]["containerStatuses"][0]["containerID"]);
        let path = format!(
            "pith-{}/{}/pod{}/{}",
            cluster.name,
            text(&pod["spec"]["nodeName"]),
            text(&pod["metadata"]["uid"]),
            id.trim_start_matches("pith://"),
        );
        let roots = ["", "unified", "cpu", "cpu,cpuacct"].map(|root| Path::new("/sys/fs/cgroup").join(root));
        let files = roots.iter().map(|root| root.join(&path).join("cpu.stat")).filter(|file| file.exists());
        Self { files: files.collect() }
    }

    fn read(&self) -> CpuTime {
        let texts = self.files.iter().map(|file| fs::read_to_string(file).expect("the container runs"));
        let stat: String = texts.collect();
        let field = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok())
                .unwrap_or_else(|| panic!("no {name} in {:?}", self.files))
        };
        CpuTime { usage: Duration::from_micros(field("usage_usec")), throttled: field("nr_throttled") }
    }
}

#[test]
fn images_that_cannot_be_had_say_why() {
    let Some(cluster) = Cluster::start(1, &[]) else { return };
    let Some(kubectl) = cluster.kubectl("1.32") else { return };
    // In the namespace of the replica, so that its loopback, where a registry needs no TLS, is this one.
    let registry = Registry::start(&format!("pith-{}-r1", cluster.name));
    let cases = [
        ("absent", "absent:v1 not found"),
        ("corrupt", "corrupt"),
        ("mismatch", "has digest sha256:"),
        ("foreign", "is for linux/arm64, this machine needs linux/amd64"),
        ("silent", "127.0.0.1:9"),
    ];
    for (name, _) in cases {
        let image = match name {
            "silent" => "127.0.0.1:9/silent:v1".to_owned(),
            name => format!("127.0.0.1:{}/{name}:v1", registry.port),
        };
        kubectl.run(&["run", name, &format!("--image={image}"), "--labels", &format!("app={name}")]);
    }
    for (name, expect) in cases {
        until("the event gives the reason", DEADLINE, || {
            let events = kubectl.run(&["events", "--for", &format!("pod/{name}")]);
            let said = events.lines().any(|l| l.contains("Failed to pull image") && l.contains(expect));
            if said { Ok(()) } else { Err(format!("{name}: no {expect:?} in\n{events}")) }
        });
        until("the status gives the reason", DEADLINE, || {
            let status = container_status(&kubectl, &format!("app={name}"));
            let waiting = &status["state"]["waiting"];
            let shown = waiting["message"].as_str().is_some_and(|m| m.contains(expect));
            match waiting["reason"].as_str() {
                Some("ErrImagePull") if shown => Ok(()),
                Some("ImagePullBackOff") => Ok(()),
                _ => Err(format!("{name}: {status}")),
            }
        });
    }
    let broken = cluster.dir().join("broken.tar");
    fs::write(&broken, vec![b'x'; 4096]).expect("writes");
    let reply = cluster.pith(&["image", "import", broken.to_str().expect("UTF-8")]);
    assert!(!reply.ok && reply.stderr.contains("broken.tar"), "{}", reply.stderr);
    commands_that_cannot_be_run(&kubectl);
    cluster.down();
}

fn commands_that_cannot_be_run(kubectl: &Kubectl) {
    for (name, command, code, expect) in
        [("nosuch", "/no/such", 128, "/no/such"), ("nofile", "/etc", 128, "/etc")]
    {
        let labels = format!("app={name}");
        let arguments = ["--restart=Never", "--labels", &labels, "--command", "--", command];
        kubectl.run(&[&["run", name, "--image=pith.local/probe:latest"], &arguments[..]].concat());
        let end = until("the status says that the command cannot be run", DEADLINE, || {
            let status = container_status(kubectl, &labels);
            let end = status["state"]["terminated"].clone();
            if end.is_object() { Ok(end) } else { Err(status.to_string()) }
        });
        assert_eq!((&end["reason"], &end["exitCode"]), (&"StartError".into(), &code.into()), "{name}: {end}");
        assert!(end["message"].as_str().is_some_and(|m| m.contains(expect)), "{name}: {end}");
    }
}
