//! The replica's network apart from eBPF: links, namespaces, addresses, routes and names.
//!
//! - [`topology`]: bridge, namespaces and uplinks of a whole cluster on one machine (`pith up`)
//! - [`pods`]: a pod's interface and address; one thread, `pith-podnet`, behind the handle
//!   [`pods::PodNet`]
//! - [`dns`]: the replica's name server, [`dns::run`], and pods' resolv.conf
//! - [`peers`]: routes to the other replicas' pods; one task, [`peers::run`]
//!
//! All of it talks to the kernel through `pith_netlink`: many requests in one message, no other program started.

pub mod addressing;
pub mod dns;
mod message;
pub mod names;
pub mod netns;
pub mod peers;
pub mod pods;
mod pool;
mod sysctl;
pub mod topology;

pub use pool::{Exhausted, PoolFileError};
pub use sysctl::SysctlError;
