//! The proxy is killed and begins again, over and over, while numbered records and datagrams take every way
//! that its programs are on. None may be lost, and no connection reset.
//!
//! ```text
//!   pod c ── connect(2) ──────► 10.96.0.10:80 ─┐
//!   pod b ── its link ────────► 10.96.0.10:80 ─┼─► pod a
//!   outside ── the uplink ────► node port ─────┘
//!   pod b ── masquerade ──────► outside
//! ```
//! The proxy is a process of its own: this very program, told by the environment to be one.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use pith_proxy::{Config, Datapath, NodeIdentity, run};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{
    DEADLINE, Namespace, Sandbox,
    api::{Api, NODES, SERVICES, SLICES},
    at,
    network::{A, CLUSTER_IP, NODE, NODE_PORT, Nodes, OUTSIDE, cidr},
};

const FOLDER: &str = "PITH_TEST_BPFFS";
const CGROUP: &str = "PITH_TEST_CGROUP";
/// What the process says when its programs are in place.
const ATTACHED: &str = "attached";
const KILLS: u64 = 20;
/// Answers on every way between a start and the kill, and between the kill and the next start.
const ANSWERS: u64 = 20;
const PORT: u16 = 8080;

/// Not a test but the process that the test kills.
#[test]
fn as_a_process() {
    let (Some(folder), Some(cgroup)) = (env::var_os(FOLDER), env::var_os(CGROUP)) else { return };
    let mut config = Config::new(PathBuf::from(folder), PathBuf::from(cgroup));
    config.cluster_cidr = Some(cidr("10.244.0.0/16"));
    config.pod_interfaces = Some("pod-".into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut datapath = Datapath::open(&config).expect("the datapath opens");
        datapath.attach_uplink("eth0", &[NODE.into()]).expect("the uplink is there");
        println!("\n{ATTACHED}");
        let driven = run(api().client(), datapath, NodeIdentity::new("here"), CancellationToken::new());
        panic!("it ends by being killed only: {:?}", driven.await);
    });
}

fn api() -> Api {
    let api = Api::default();
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    api.list(
        NODES,
        &[json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "here" },
            "spec": { "podCIDR": "10.244.1.0/24" }, "status": { "conditions": ready },
        })],
    );
    let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "nodePort": NODE_PORT });
    api.list(
        SERVICES,
        &[json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "namespace": "default", "name": "demo", "resourceVersion": "1" },
            "spec": { "type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                      "ports": [port("TCP"), port("UDP")] },
        })],
    );
    let port =
        |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": PORT });
    api.list(
        SLICES,
        &[json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "namespace": "default", "name": "demo-1", "resourceVersion": "1",
                          "labels": { "kubernetes.io/service-name": "demo" } },
            "addressType": "IPv4", "ports": [port("TCP"), port("UDP")],
            "endpoints": [{ "addresses": [at(A, 0).ip().to_string()] }],
        })],
    );
    api
}

/// The proxy as a process in the sandbox's namespaces.
struct Proxy {
    process: Child,
    says: mpsc::Receiver<String>,
}

impl Proxy {
    fn start(sandbox: &Sandbox) -> Self {
        let config = sandbox.config();
        let mut process = Command::new(env::current_exe().expect("this program has a file"))
            .args(["--exact", "restarts::as_a_process", "--nocapture", "--test-threads=1"])
            .env(FOLDER, &config.bpffs)
            .env(CGROUP, &config.cgroup)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let (say, says) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
        Self { process, says }
    }

    /// Whether it is attached within a time.
    fn attached(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        while let Ok(line) = self.says.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if line == ATTACHED {
                return true;
            }
        }
        false
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.process.kill().expect("it is our child");
        self.process.wait().expect("it is our child");
    }
}

/// Answers of both servers: what comes goes back.
fn serve(namespace: &Namespace, address: [u8; 4]) {
    crate::support::network::echo(namespace, address);
    namespace.run(move || {
        let socket = UdpSocket::bind(at(address, PORT)).expect("a server's address");
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((read, client)) = socket.recv_from(&mut buffer) {
                // A client that went away is its own business.
                let _ = socket.send_to(&buffer[..read], client);
            }
        });
    });
}

/// Traffic of one kind on one way, until it is told to stop.
struct Stream {
    name: String,
    answered: Arc<AtomicU64>,
    ended: mpsc::Receiver<()>,
}

/// Sends and awaits one number; an error is a number lost.
type Exchange = fn(SocketAddrV4, &mut Option<Talk>, u64) -> std::io::Result<()>;

enum Talk {
    Records(TcpStream),
    Datagrams(UdpSocket),
}

impl Stream {
    fn begin(
        name: String,
        from: &Namespace,
        to: SocketAddrV4,
        exchange: Exchange,
        stop: &Arc<AtomicBool>,
    ) -> Self {
        let answered = Arc::new(AtomicU64::new(0));
        let (done, ended) = mpsc::channel();
        let (count, stop, what) = (Arc::clone(&answered), Arc::clone(stop), name.clone());
        from.run(move || {
            thread::spawn(move || {
                let mut talk = None;
                for number in 1.. {
                    if let Err(error) = exchange(to, &mut talk, number) {
                        panic!("{what}: number {number} was lost: {error}");
                    }
                    count.store(number, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        // The test may have failed meanwhile.
                        let _ = done.send(());
                        return;
                    }
                }
            });
        });
        Self { name, answered, ended }
    }

    fn progress(&self, answers: u64) {
        let (started, wanted) = (Instant::now(), self.answered.load(Ordering::Relaxed) + answers);
        while self.answered.load(Ordering::Relaxed) < wanted {
            assert!(started.elapsed() < DEADLINE, "{}: no answers any more", self.name);
            thread::yield_now();
        }
    }
}

fn connect(to: SocketAddrV4) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to.into(), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn round_trip(stream: &mut TcpStream, number: u64) -> std::io::Result<()> {
    stream.write_all(&number.to_be_bytes())?;
    let mut back = [0; 8];
    stream.read_exact(&mut back)?;
    assert_eq!(u64::from_be_bytes(back), number, "records stay in order");
    Ok(())
}

/// One connection for all.
fn records(to: SocketAddrV4, talk: &mut Option<Talk>, number: u64) -> std::io::Result<()> {
    if talk.is_none() {
        *talk = Some(Talk::Records(connect(to)?));
    }
    match talk {
        Some(Talk::Records(stream)) => round_trip(stream, number),
        _ => unreachable!("it was made a line ago"),
    }
}

/// A connection for each.
fn connections(to: SocketAddrV4, _talk: &mut Option<Talk>, number: u64) -> std::io::Result<()> {
    round_trip(&mut connect(to)?, number)
}

fn datagrams(to: SocketAddrV4, talk: &mut Option<Talk>, number: u64) -> std::io::Result<()> {
    if talk.is_none() {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(DEADLINE))?;
        *talk = Some(Talk::Datagrams(socket));
    }
    let Some(Talk::Datagrams(socket)) = talk else { unreachable!("it was made a line ago") };
    socket.send_to(&number.to_be_bytes(), to)?;
    let mut back = [0; 8];
    let (_, from) = socket.recv_from(&mut back)?;
    assert_eq!(
        (u64::from_be_bytes(back), from),
        (number, SocketAddr::from(to)),
        "nothing is lost or untranslated"
    );
    Ok(())
}

#[test]
fn nothing_is_lost_when_the_proxy_is_killed_and_begins_again() {
    Sandbox::run("restarts", |sandbox| {
        let Nodes { outside, a, b, c, datapath, .. } = Nodes::new(sandbox);
        drop(datapath);
        Datapath::remove(&sandbox.config().bpffs).expect("all pins are ours");
        serve(&a, A);
        serve(&outside, OUTSIDE);
        let first = Proxy::start(sandbox);
        assert!(first.attached(DEADLINE), "it starts");
        // The Services come a moment later.
        for from in [&b, &c] {
            crate::support::until("the Service answers", || from.run(|| connect(at(CLUSTER_IP, 80)).is_ok()));
        }

        let stop = Arc::new(AtomicBool::new(false));
        let ways = [
            ("socket", &c, at(CLUSTER_IP, 80)),
            ("pod's link", &b, at(CLUSTER_IP, 80)),
            ("node port", &outside, at(NODE, NODE_PORT)),
            ("masquerade", &b, at(OUTSIDE, PORT)),
        ];
        let kinds: [(&str, Exchange); 3] =
            [("records", records), ("datagrams", datagrams), ("connections", connections)];
        let streams: Vec<Stream> = ways
            .iter()
            .flat_map(|way| kinds.iter().map(move |kind| (way, kind)))
            .map(|((way, from, to), (kind, exchange))| {
                Stream::begin(format!("{kind} by {way}"), from, *to, *exchange, &stop)
            })
            .collect();
        let all_progress = || streams.iter().for_each(|stream| stream.progress(ANSWERS));
        all_progress();
        first.kill();
        for kill in 0..KILLS {
            all_progress();
            let proxy = Proxy::start(sandbox);
            if kill % 2 == 0 {
                assert!(proxy.attached(DEADLINE), "start {kill}");
                all_progress();
            } else {
                // Somewhere in its start, each time elsewhere: while it loads, adopts, replaces, lists.
                proxy.attached(Duration::from_millis(40 * kill));
            }
            proxy.kill();
        }
        all_progress();
        stop.store(true, Ordering::Relaxed);
        for stream in &streams {
            stream.ended.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{}: it broke off", stream.name));
            eprintln!("{}: {} answered", stream.name, stream.answered.load(Ordering::Relaxed));
        }
        Datapath::remove(&sandbox.config().bpffs).expect("all pins are ours");
    });
}
