//! A machine of its own for a test: network namespace and /run of one thread, gone with it.

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use pith_network::netns::run_in;

/// How long anything that must happen may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `body` on a thread that has its own network and /run. Says so where rights are missing.
pub(crate) fn sandbox(test: &str, body: impl FnOnce() + Send) {
    let enter = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)
    };
    let outcome = std::thread::scope(|scope| {
        scope
            .spawn(|| match enter() {
                Ok(()) => body(),
                Err(errno) => eprintln!("SKIPPED: {test}: namespaces of its own: {}", errno.desc()),
            })
            .join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace without a name, as a pod has.
pub(crate) fn pod_netns() -> OwnedFd {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the sandbox could do it too");
        File::open("/proc/thread-self/ns/net").expect("every thread has one").into()
    })
    .join()
    .expect("no panic")
}

/// A TCP connection from one namespace to a server in another carries bytes both ways; returns the
/// client's address as the server saw it.
pub(crate) fn talk(server: BorrowedFd<'_>, at: impl Into<IpAddr>, client: BorrowedFd<'_>) -> IpAddr {
    let at = at.into();
    let listener = run_in(server, || TcpListener::bind((at, 0)))
        .expect("enter")
        .unwrap_or_else(|error| panic!("listen on {at}: {error}"));
    let target = listener.local_addr().expect("bound");
    let answering = std::thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("accept");
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("read");
        stream.write_all(&[byte[0] + 1]).expect("write");
        from
    });
    let mut stream = run_in(client, || TcpStream::connect_timeout(&target, DEADLINE))
        .expect("enter")
        .unwrap_or_else(|error| panic!("connect to {target}: {error}"));
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream.write_all(&[41]).expect("write");
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("read");
    assert_eq!(byte, [42]);
    answering.join().expect("no panic").ip()
}

/// Names of the interfaces in a namespace, sorted.
pub(crate) fn interfaces(netns: BorrowedFd<'_>) -> Vec<String> {
    let names = run_in(netns, || {
        let list = nix::net::if_::if_nameindex().expect("interfaces can be listed");
        list.iter().map(|it| it.name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    let mut names = names.expect("enter");
    names.sort();
    names
}

/// The namespace of the calling thread.
pub(crate) fn own_netns() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").expect("every thread has one").into()
}
