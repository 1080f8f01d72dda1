//! The few system calls that aya and nix do not offer as they are needed here.
//!
//! Invariant: descriptors come and go as `OwnedFd` and `BorrowedFd`; sizes passed to the kernel are those of
//! the structures beside them.

#![allow(
    unsafe_code,
    reason = "aya 0.14 cannot replace the program of a cgroup link, nor attach XDP by a link only, nor say what a link is attached to; raw sockets"
)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use tokio::io::unix::AsyncFd;

use crate::cidr::Cidr;

// Numbers of include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: i64 = 6;
const BPF_OBJ_GET: i64 = 7;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_UPDATE: i64 = 29;
const BPF_LINK_DETACH: i64 = 34;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_XDP: u32 = 37;
/// Of include/uapi/linux/if_link.h: in the driver or not at all.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    Cgroup {
        /// Inode number of the cgroup's folder; 0 once that is gone.
        id: u64,
    },
    Interface {
        /// 0 once the interface is gone.
        index: u32,
    },
    Other,
}

/// What a pin is a pin of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Map,
    Program,
    Link,
    Unknown,
}

#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct LinkDetach {
    link_fd: u32,
    flags: u32,
}

/// The beginning of `struct bpf_link_info`; the union holds `cgroup_id` or `ifindex` first.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    union: [u64; 4],
}

/// Opens a pinned object.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    owned(bpf(BPF_OBJ_GET, &mut ObjGet { pathname: name.as_ptr() as u64, ..ObjGet::default() })?)
}

/// Attaches an XDP program in the driver of an interface, and pins the link. aya would fall back to an attachment that
/// cannot be pinned, and that replaces what others have attached.
pub(crate) fn attach_xdp(program: BorrowedFd<'_>, interface: u32, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let prog_fd = program.as_raw_fd() as u32;
    let mut attr =
        LinkCreate { prog_fd, target_ifindex: interface, attach_type: BPF_XDP, flags: XDP_FLAGS_DRV_MODE };
    let link = owned(bpf(BPF_LINK_CREATE, &mut attr)?)?;
    let bpf_fd = link.as_raw_fd() as u32;
    bpf(BPF_OBJ_PIN, &mut ObjGet { pathname: name.as_ptr() as u64, bpf_fd, file_flags: 0 }).map(|_| ())
}

/// A descriptor that bpf(2) has just made.
fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|_| io::Error::other("a descriptor beyond i32"))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of a link at once: no call or packet finds none.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(|_| ())
}

/// Detaches a link at once. Removing its last name does the same, but some time later: after an RCU grace
/// period and on a kernel worker.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetach { link_fd: link.as_raw_fd() as u32, flags: 0 };
    match bpf(BPF_LINK_DETACH, &mut attr) {
        // What it was attached to is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        other => other.map(|_| ()),
    }
}

pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    let mut info = LinkInfo::default();
    let mut attr = InfoByFd {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<LinkInfo>() as u32,
        info: &raw mut info as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(match info.kind {
        BPF_LINK_TYPE_CGROUP => LinkTarget::Cgroup { id: info.union[0] },
        BPF_LINK_TYPE_TCX | BPF_LINK_TYPE_XDP => LinkTarget::Interface { index: info.union[0] as u32 },
        _ => LinkTarget::Other,
    })
}

/// What kind of object a descriptor of bpf(2) stands for, as /proc names it.
pub(crate) fn object_kind(fd: BorrowedFd<'_>) -> ObjectKind {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default();
    match link.to_str() {
        Some("anon_inode:bpf-map") => ObjectKind::Map,
        Some("anon_inode:bpf-prog") => ObjectKind::Program,
        Some("anon_inode:bpf_link" | "anon_inode:bpf-link") => ObjectKind::Link,
        _ => ObjectKind::Unknown,
    }
}

/// Cookie of the network namespace this thread is in, as eBPF programs see it.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has `length` bytes, and the kernel writes at most that many.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if failed == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The Ethernet address of an interface of this network namespace.
pub(crate) fn ethernet_address(interface: &str) -> io::Result<[u8; 6]> {
    let addresses = nix::ifaddrs::getifaddrs()?;
    let own = addresses.filter(|entry| entry.interface_name == interface);
    own.filter_map(|entry| entry.address?.as_link_addr()?.addr())
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "no Ethernet address"))
}

/// The networks that an interface of this network namespace is in.
pub(crate) fn networks(interface: &str) -> io::Result<Vec<Cidr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter(|entry| entry.interface_name == interface);
    let network = |entry: nix::ifaddrs::InterfaceAddress| {
        let mask = u32::from(entry.netmask?.as_sockaddr_in()?.ip());
        Cidr::new(entry.address?.as_sockaddr_in()?.ip(), mask.leading_ones() as u8)
    };
    Ok(addresses.filter_map(network).collect())
}

/// Sends a frame, from its Ethernet header on, out of an interface; `protocol` is its type.
pub(crate) fn send_frame(index: u32, protocol: u16, packet: &[u8]) -> io::Result<()> {
    // SAFETY: the call takes numbers; the kernel makes a descriptor that nobody else knows.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [packet[0], packet[1], packet[2], packet[3], packet[4], packet[5], 0, 0],
    };
    // SAFETY: packet and address live and are as long as said.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the runtime watch a socket, which it then owns; call it in a tokio runtime.
pub(crate) fn watched(socket: netlink_sys::Socket) -> io::Result<AsyncFd<netlink_sys::Socket>> {
    // SAFETY: the socket owns its descriptor, which therefore stays the same and open while it is watched.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

fn bpf<T>(command: i64, attr: &mut T) -> io::Result<i64> {
    // SAFETY: `attr` is the beginning of the union bpf_attr for `command` and as long as the size says;
    // the pointers inside it are to live memory of the caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
