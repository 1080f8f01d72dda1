//! Regressions, each named after what hurt the users of others (the third, of restarts, is in `uplink`).

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use crate::support::{
    DEADLINE, Demo, Sandbox, ask_tcp, ask_udp, at,
    network::{
        A, B, BALANCER_IP, C, CLUSTER_IP, EXTERNAL_IP, NODE, NODE_PORT, Nodes, OUTSIDE, REFUSED, REMOTE,
        echo, everywhere, serve,
    },
    raw::ping,
    until,
};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
    sockopt::{Linger, ReuseAddr},
};
use pith_abi::Reason;
use pith_proxy::{
    Limits, ServicePlan,
    inspect::inspect,
    service::{Policy, Protocol, ServiceName},
};

/// A connection from an address and port that others may use as well.
fn connect_from(from: SocketAddrV4, to: SocketAddrV4) -> nix::Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(TcpStream::from(socket))
}

/// A byte there and back.
fn talk(mut stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// UDP entry kept alive by one-way traffic sends to a dead pod for hours (kubernetes#139628); and the client's
/// socket, which holds on to the backend it was given, is led elsewhere untouched.
#[test]
fn pain_1_a_datagram_client_is_led_elsewhere() {
    Sandbox::run("pain1", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        for (pod, address) in [(&nodes.a, A), (&nodes.b, B)] {
            pod.run(move || {
                let socket = UdpSocket::bind(at(address, 8080)).expect("a server's address");
                thread::spawn(move || {
                    let mut buffer = [0; 16];
                    while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&address, client);
                    }
                });
            });
        }
        nodes.apply(&everywhere(Protocol::Udp, &[A]));
        let connect = |place: std::net::SocketAddrV4| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.set_read_timeout(Some(DEADLINE)).expect("set");
            socket.connect(place).expect("connected");
            socket
        };
        let ask = |socket: UdpSocket| {
            socket.send(b"?").expect("sent");
            let mut answer = [0; 4];
            socket.recv(&mut answer).expect("answered");
            (socket, answer)
        };
        let outside = nodes.outside.run(move || ask(connect(at(NODE, NODE_PORT))));
        let pod = nodes.c.run(move || ask(connect(at(CLUSTER_IP, 80))));
        let plain = nodes.b.run(move || ask(connect(at(CLUSTER_IP, 80))));
        assert_eq!([outside.1, pod.1, plain.1], [A; 3]);

        nodes.apply(&everywhere(Protocol::Udp, &[B]));
        nodes.collect();
        assert_eq!(nodes.outside.run(move || ask(outside.0)).1, B, "from outside");
        let (pod, answer) = nodes.c.run(move || ask(pod.0));
        assert_eq!(answer, B, "a connected socket of a pod");
        assert_eq!(pod.peer_addr().expect("connected"), SocketAddr::from(at(CLUSTER_IP, 80)));
        assert_eq!(nodes.b.run(move || ask(plain.0)).1, B, "a pod's plain packets");
        assert!(nodes.count(Reason::Resteered) > 0);
    });
}

/// Table eviction splits a translation pair: half-open flows (cilium#29305, #34833). Here a flow is one record, and
/// none makes room for another: who is there stays, who comes is refused and can see why.
#[test]
fn pain_2_a_full_table_refuses_and_leaves_live_flows_alone() {
    const FLOWS: u32 = 8;
    Sandbox::run("pain2", |sandbox| {
        let mut nodes = Nodes::with_limits(sandbox, Limits { flows: FLOWS, ..Limits::default() });
        echo(&nodes.a, A);
        nodes.apply(&everywhere(Protocol::Tcp, &[A]));
        let connect = || TcpStream::connect_timeout(&at(NODE, NODE_PORT).into(), DEADLINE);
        let streams: Vec<TcpStream> =
            nodes.outside.run(move || (0..FLOWS).map(|_| connect().expect("there is room")).collect());
        let streams = nodes.outside.run(move || {
            for _ in 0..100 {
                let error = connect().expect_err("the table is full");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "at once");
            }
            streams.into_iter().map(|stream| talk(stream).expect("a live flow")).collect::<Vec<_>>()
        });
        assert!(nodes.count(Reason::FlowTableFull) >= 100);
        drop(streams);
    });
}

/// Path-MTU ICMP with the inner tuple untranslated (cilium#47755).
#[test]
fn pain_4_path_mtu_discovery_works_through_a_service() {
    const BYTES: usize = 100_000;
    Sandbox::run("pain4", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        // The pod believes in 1500 bytes, and so tells its clients; the way to it takes less.
        crate::support::ip("link set pod-a mtu 1300");
        nodes.a.run(|| {
            let listener = TcpListener::bind(at(A, 8080)).expect("a server's address");
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { return };
                    let mut all = vec![0; BYTES];
                    let _ = stream.read_exact(&mut all).and_then(|()| stream.write_all(b"all"));
                }
            });
        });
        nodes.apply(&everywhere(Protocol::Tcp, &[A]));
        let send = |place: std::net::SocketAddrV4| {
            let mut stream = TcpStream::connect_timeout(&place.into(), DEADLINE).expect("answers");
            stream.set_read_timeout(Some(DEADLINE)).expect("set");
            stream.write_all(&vec![7; BYTES]).expect("sent");
            let mut answer = [0; 3];
            stream.read_exact(&mut answer).expect("everything arrived");
        };
        nodes.outside.run(move || send(at(BALANCER_IP, 80)));
        nodes.outside.run(move || send(at(NODE, NODE_PORT)));
        nodes.b.run(move || send(at(CLUSTER_IP, 80)));
        assert!(nodes.count(Reason::IcmpError) > 0, "somebody was told");
    });
}

/// Silent black hole in place of RST (calico#8882, #13570).
#[test]
fn pain_5_no_endpoints_are_refused_at_once() {
    Sandbox::run("pain5", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            nodes.apply(&everywhere(protocol, &[]));
            let ask = if protocol == Protocol::Tcp { ask_tcp } else { ask_udp };
            for place in [at(NODE, NODE_PORT), at(BALANCER_IP, 80), at(EXTERNAL_IP, 80), at(BALANCER_IP, 81)]
            {
                assert_eq!(nodes.outside.run(move || ask(place)), REFUSED, "{protocol:?} {place}");
            }
            for place in [at(CLUSTER_IP, 80), at(CLUSTER_IP, 81), at(BALANCER_IP, 80), at(EXTERNAL_IP, 81)] {
                assert_eq!(nodes.b.run(move || ask(place)), REFUSED, "{protocol:?} {place}");
                assert_eq!(nodes.c.run(move || ask(place)), REFUSED, "{protocol:?} {place}");
            }
        }
    });
}

/// Ping to a Service address loops (cilium#14118).
#[test]
fn pain_6_a_service_address_answers_a_ping() {
    Sandbox::run("pain6", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        nodes.apply(&everywhere(Protocol::Tcp, &[]));
        for address in [BALANCER_IP, EXTERNAL_IP] {
            assert_eq!(nodes.outside.run(move || ping(address)), Some(address));
        }
        for address in [CLUSTER_IP, BALANCER_IP, EXTERNAL_IP] {
            assert_eq!(nodes.b.run(move || ping(address)), Some(address));
        }
    });
}

/// Hairpin replies denied (cilium#27709); hairpin hides the pod's address (cilium#26100).
#[test]
fn pain_7_a_pod_reaches_itself_through_its_service() {
    Sandbox::run("pain7", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        serve(&nodes.a, A);
        serve(&nodes.c, C);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ask = if protocol == Protocol::Tcp { ask_tcp } else { ask_udp };
            nodes.apply(&everywhere(protocol, &[C]));
            assert_eq!(nodes.c.run(move || ask(at(CLUSTER_IP, 80))), Ok(C), "at the socket it sees itself");
            nodes.apply(&everywhere(protocol, &[A]));
            assert_eq!(
                nodes.a.run(move || ask(at(CLUSTER_IP, 80))),
                Ok(CLUSTER_IP),
                "by packets, the Service"
            );
        }
    });
}

/// RST on a translated flow held for an hour (calico#13526).
#[test]
fn pain_8_a_reset_flow_is_over() {
    Sandbox::run("pain8", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        echo(&nodes.a, A);
        nodes.apply(&everywhere(Protocol::Tcp, &[A]));
        nodes.outside.run(|| {
            for _ in 0..20 {
                // Always from the same port: a record that stays in the way would be found.
                let stream = connect_from(at(OUTSIDE, 45_000), at(NODE, NODE_PORT)).expect("answered");
                let stream = talk(stream).expect("it lives");
                let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&stream, Linger, &reset).expect("set");
            }
        });
        until("the flow is forgotten soon, not after hours", || nodes.collect().live == 0);
    });
}

/// Same client port to one backend through two Service addresses collides (documented Cilium limit).
#[test]
fn pain_9_one_client_port_through_two_addresses() {
    Sandbox::run("pain9", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        echo(&nodes.a, A);
        nodes.apply(&everywhere(Protocol::Tcp, &[A]));
        nodes.outside.run(|| {
            let places = [at(BALANCER_IP, 80), at(EXTERNAL_IP, 80), at(NODE, NODE_PORT)];
            let mut streams = places.map(|place| connect_from(at(OUTSIDE, 45_000), place).expect("answered"));
            for round in 0..3 {
                for (number, stream) in streams.iter_mut().enumerate() {
                    let byte = [round * 10 + number as u8];
                    stream.write_all(&byte).expect("sent");
                    let mut back = [0];
                    stream.set_read_timeout(Some(DEADLINE)).expect("set");
                    stream.read_exact(&mut back).expect("answered");
                    assert_eq!(back, byte, "each connection is its own");
                }
            }
        });
    });
}

/// Flow-table-full cannot be debugged: no heavy hitters (cilium#20955).
#[test]
fn pain_10_a_full_table_says_who_fills_it() {
    const FLOWS: u32 = 8;
    Sandbox::run("pain10", |sandbox| {
        let mut nodes = Nodes::with_limits(sandbox, Limits { flows: FLOWS, ..Limits::default() });
        echo(&nodes.a, A);
        nodes.apply(&everywhere(Protocol::Tcp, &[A]));
        let connect = |place| TcpStream::connect_timeout(&SocketAddr::from(place), DEADLINE);
        let _one = nodes.b.run(move || connect(at(CLUSTER_IP, 80)).expect("there is room"));
        let _most = nodes.outside.run(move || -> Vec<_> {
            (0..FLOWS).filter_map(|_| connect(at(NODE, NODE_PORT)).ok()).collect()
        });
        let seen = inspect(&sandbox.config().bpffs).expect("the maps can be read");
        assert_eq!((seen.flows.live, seen.flows.limit), (FLOWS as usize, FLOWS));
        let heavy: Vec<_> = seen.flows.heaviest.iter().map(|sender| (sender.address, sender.flows)).collect();
        assert_eq!(heavy, [(OUTSIDE.into(), 7), (B.into(), 1)]);
        let full = seen.verdicts.iter().find(|verdict| verdict.reason == "flow_table_full");
        assert_eq!(full.map(|verdict| verdict.count), Some(1), "the last one was told");
    });
}

/// Updates in the wrong order: a lookup sees a Service without its backends. Endpoints change by the ten thousand
/// a second, and no connect(2) on any CPU finds a Service without one.
#[test]
fn pain_11_no_lookup_sees_half_a_service() {
    const SERVICES: u8 = 20;
    const CHANGES: u32 = 50_000;
    Sandbox::run("pain11", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        // Of eight endpoints one is missing, each time another one.
        let plans: Vec<ServicePlan> = (0..SERVICES * 8)
            .map(|step| {
                let (service, missing) = (step / 8, step % 8);
                let mut demo = Demo::new([10, 96, 1, service], Protocol::Udp, 53, 8053);
                demo.service.name = ServiceName::new("default", &format!("s{service}"));
                let there = (0..8).filter(|endpoint| *endpoint != missing);
                demo.endpoints(&there.map(|endpoint| [172, 30, 0, 100 + endpoint]).collect::<Vec<_>>());
                demo.plan()
            })
            .collect();
        let at_step = |step: u32| {
            let (service, turn) = (step % u32::from(SERVICES), step / u32::from(SERVICES) % 8);
            &plans[(service * 8 + turn) as usize]
        };
        (0..u32::from(SERVICES)).for_each(|step| nodes.apply_plan(at_step(step)));
        let over = AtomicBool::new(false);
        let (lookups, elapsed) = thread::scope(|scope| {
            let look = || {
                sandbox.join();
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                let mut lookups = 0u64;
                while !over.load(Ordering::Relaxed) {
                    let service = (lookups % u64::from(SERVICES)) as u8;
                    socket.connect(at([10, 96, 1, service], 53)).expect("there are endpoints at every time");
                    lookups += 1;
                }
                lookups
            };
            let clients = [scope.spawn(look), scope.spawn(look)];
            let begin = Instant::now();
            (0..CHANGES).for_each(|step| nodes.apply_plan(at_step(step)));
            let elapsed = begin.elapsed();
            over.store(true, Ordering::Relaxed);
            (clients.map(|client| client.join().expect("no lookup failed")).iter().sum::<u64>(), elapsed)
        });
        eprintln!("{:.0} changes/s, {lookups} lookups", f64::from(CHANGES) / elapsed.as_secs_f64());
        assert!(nodes.count(Reason::SocketTranslated) >= lookups);
        assert_eq!(
            [Reason::SocketNoEndpoints, Reason::GenerationRace].map(|reason| nodes.count(reason)),
            [0, 0]
        );
    });
}

/// Source address lost where externalTrafficPolicy is Local.
#[test]
fn pain_12_local_policy_keeps_the_source_and_drains() {
    Sandbox::run("pain12", |sandbox| {
        let mut nodes = Nodes::new(sandbox);
        serve(&nodes.a, A);
        serve(&nodes.outside, REMOTE);
        let mut demo = everywhere(Protocol::Tcp, &[A, REMOTE]);
        demo.service.external = Policy::Local;
        demo.slice.endpoints[0].node = Some("here".into());
        demo.slice.endpoints[1].node = Some("there".into());
        nodes.apply(&demo);
        for place in [at(NODE, NODE_PORT), at(BALANCER_IP, 80), at(EXTERNAL_IP, 80)] {
            for _ in 0..10 {
                assert_eq!(nodes.outside.run(move || ask_tcp(place)), Ok(OUTSIDE), "{place}");
            }
        }
        // The last local endpoint is told to end: it serves on, before the ready one elsewhere.
        demo.slice.endpoints[0].ready = false;
        demo.slice.endpoints[0].draining = true;
        nodes.apply(&demo);
        assert_eq!(nodes.outside.run(|| ask_tcp(at(NODE, NODE_PORT))), Ok(OUTSIDE));
        // None is left here.
        demo.slice.endpoints.remove(0);
        nodes.apply(&demo);
        assert_eq!(nodes.outside.run(|| ask_tcp(at(NODE, NODE_PORT))), REFUSED);
        assert_eq!(nodes.outside.run(|| ask_tcp(at(BALANCER_IP, 80))), REFUSED);
        assert_eq!(nodes.b.run(|| ask_tcp(at(BALANCER_IP, 80))), Ok(B), "pods take any endpoint");
    });
}
