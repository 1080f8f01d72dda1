//! `pith-podd`: the supervisor of one pod.
//!
//! It is born by `pith_container::supervisor::Supervisor::spawn` inside the pod's namespaces, holds them,
//! forks the pod's containers, keeps their streams, writes their logs, collects their ends, and answers on
//! `podd.sock`. It outlives the kubelet. It has one thread, waits in one `poll`, and never blocks on
//! anybody: not on a client, a log disk that is full, or a container that does not read its input.
//!
//! ```text
//! main ─ boot (sandbox.rs) ─ loop: poll ─┬ clients.rs     requests, events
//!                                        ├ container.rs   set-up → created → running → exited
//!                                        ├ exec.rs        processes in running containers
//!                                        └ stream.rs      output → log.rs (CRI files) and attached clients
//! ```
//!
//! As the init process of the pid namespace above its containers', its end is theirs: the kernel kills
//! them, whatever they did to themselves.

mod clients;
mod container;
mod exec;
mod log;
mod sandbox;
mod server;
mod stream;
mod time;

use std::os::fd::AsFd;
use std::process::ExitCode;

use pith_container::supervisor::protocol::{Boot, SandboxSpec};
use pith_container::supervisor::wire;

/// The socket that the starter left open; see `Supervisor::spawn`.
const BOOT_SOCKET: u32 = 3;

fn main() -> ExitCode {
    let socket = match pith_sys::descriptor::inherited(BOOT_SOCKET) {
        Ok(socket) => socket,
        Err(_) => {
            eprintln!("pith-podd is started by pith, not by hand");
            return ExitCode::from(2);
        }
    };
    let spec: SandboxSpec = match wire::receive(socket.as_fd(), true) {
        Ok((spec, _)) => spec,
        Err(error) => {
            eprintln!("pith-podd: no sandbox: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (boot, server) = match sandbox::set_up(&spec).and_then(|sandbox| {
        let notices = sandbox.notices.clone();
        Ok((notices, server::Server::new(spec, sandbox)?))
    }) {
        Ok((notices, server)) => (Boot::Ready { notices }, Some(server)),
        Err(message) => (Boot::Failed { message }, None),
    };
    // The starter may have died meanwhile; the next kubelet finds this supervisor by its socket.
    let _ = wire::send(socket.as_fd(), &boot, &[], true);
    drop(socket);
    match server {
        Some(server) => server.run(),
        None => ExitCode::FAILURE,
    }
}
