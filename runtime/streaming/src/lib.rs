//! The server's side of kubectl's streams: exec, attach and port-forward over one upgraded HTTP
//! connection. It knows bytes, sizes and exit codes; it does not know containers.
//!
//! | client | exec, attach | port-forward |
//! |---|---|---|
//! | kubectl ≥ 1.31 | WebSocket `v5.channel.k8s.io` | SPDY/3.1 inside a WebSocket |
//! | older kubectl | SPDY/3.1, `X-Stream-Protocol-Version` v4 … v1 | SPDY/3.1 |
//! | other clients | WebSocket `v4.channel.k8s.io` | WebSocket `v4.channel.k8s.io` |
//!
//! [`exec::accept`] and [`forward::accept`] take the upgrade request and give the answer to send and a
//! future of the session. Each session owns one task, which owns the connection; the session's byte
//! streams are bounded pipes to that task, so a side that does not read stops the other from writing, and
//! dropping the session ends the connection.
//!
//! Nothing a peer sends makes a buffer grow beyond its named maximum; what breaks the protocol ends that
//! connection with a [`SessionError`].

pub mod exec;
pub mod forward;
mod negotiate;
mod pipe;
mod session;
mod spdy;
mod status;
mod websocket;

pub use negotiate::{Accepted, Refusal};
pub use pipe::{Duplex, Input, Output};
pub use session::{ProtocolError, SessionError};
pub use status::Outcome;
