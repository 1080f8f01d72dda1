//! The kubelet: makes this node's pods what the API says they should be.
//!
//! ```text
//!            watch: pods of this node
//!  API ───────────────────────────────▶ pods ──spawns──▶ worker (one a pod) ──▶ actions ──▶ pith-podd
//!   ▲ ◀── status ── teller (one a pod) ◀──────────────────┘   ▲ supervisor's events, probes, timers
//!   ▲ ◀── Node, Lease ── node                                 │
//!   ▲ ◀── Event ── events             ConfigMaps, Secrets ── objects · Services ── services
//!  API server ──TLS──▶ server: logs, exec, attach, port-forward, statistics
//! ```
//!
//! Deciding is pure and in two places: [`mod@plan`] says what to do next, [`mod@status`] what to tell. A worker
//! is the only one who changes what is known of its pod. The kubelet may end at any time: pods go on under
//! their supervisors, and the next kubelet takes over from the files in the run folder (`adopt`).

mod actions;
mod adopt;
mod audit;
mod backoff;
mod checks;
mod config;
mod context;
mod desired;
mod downward;
mod env;
mod etc;
mod events;
mod exits;
mod hooks;
mod image_gc;
mod images;
mod kubelet;
mod logs;
mod machine;
mod network;
mod node;
mod objects;
mod observed;
mod plan;
mod pods;
mod probes;
mod process;
mod record;
mod resources;
mod sandbox;
mod security;
mod server;
mod services;
mod spec;
mod start;
mod status;
mod teller;
mod volumes;
mod worker;

pub use config::{Config, Deps, Serving};
pub use desired::{BadUid, PodId, PodUid};
pub use kubelet::{Kubelet, KubeletError};
pub use network::{NetworkError, PodNetwork};
pub use server::{ServerError, TlsError};
