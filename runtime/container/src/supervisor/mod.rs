//! The supervisor of a pod, `pith-podd`, seen from outside.
//!
//! [`protocol`] is what goes over its socket, [`client`] starts, adopts and asks it, [`records`] reads what
//! it left on files. The supervisor itself is the crate `pith-podd`.

mod client;
pub mod protocol;
pub mod records;
pub mod wire;

pub use client::{Attachment, Error, Events, Exec, Streams, Supervisor};
