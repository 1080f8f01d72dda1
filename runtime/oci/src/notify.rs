//! Handing a seccomp listener to the agent that answers for the calls which the filter leaves to it.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::Spec;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::SPEC_VERSION;
use crate::error::{Error, Result};
use crate::state::{State, Status};

/// Sends the container process state, with the listener, to `linux.seccomp.listenerPath`.
pub(crate) fn hand_over(spec: &Spec, state: &State, pid: i32, listener: OwnedFd) -> Result<()> {
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let path = seccomp.and_then(|seccomp| seccomp.listener_path().clone()).unwrap_or_default();
    let metadata = seccomp.and_then(|seccomp| seccomp.listener_metadata().clone());
    let container: serde_json::Value =
        serde_json::from_slice(&state.for_hooks(Status::Creating, pid)).expect("it was just written as JSON");
    let mut message = serde_json::json!({
        "ociVersion": SPEC_VERSION,
        "fds": ["seccompFd"],
        "pid": pid,
        "state": container,
    });
    if let Some(metadata) = metadata {
        message["metadata"] = metadata.into();
    }
    send(&path, message.to_string().as_bytes(), &listener).map_err(|error| match error {
        Error::Io { path, source, .. } => Error::Agent { path, source },
        other => other,
    })
}

/// Sends bytes with one descriptor over a stream socket at a path.
pub(crate) fn send(path: &PathBuf, bytes: &[u8], fd: &OwnedFd) -> Result<()> {
    let failed = |errno: rustix::io::Errno| Error::Io {
        operation: "send a descriptor to",
        path: path.clone(),
        source: errno.into(),
    };
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(failed)?;
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address)).map_err(failed)?;
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let mut sent = rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .map_err(failed)?;
    while sent < bytes.len() {
        sent += rustix::net::send(&socket, &bytes[sent..], SendFlags::NOSIGNAL).map_err(failed)?;
    }
    Ok(())
}
