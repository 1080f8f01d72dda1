//! The API server: HTTP over the kinds of `pith-api` and a store.
//!
//! ```text
//!  TLS (tls) ─┐                       ┌ paths: version, health, discovery, OpenAPI
//!  in process ┴► router: authn ► authz ┤
//!                                     ├ verbs: get list watch create update patch delete ─► admission ─► store
//!                                     └ stream_proxy: logs, exec, attach, port-forward ─► kubelet
//! ```
//!
//! [`Server::open`] makes or reads the cluster's keys and its first objects, [`Server::client`] is a `kube` client
//! without a socket, [`Server::serve`] listens until it is told to stop.
//!
//! Tasks: one a listener and one a connection (`server`), one a proxied stream (`stream_proxy`), one that expires
//! events (`expiry`). All end with the token given to [`Server::serve`]. What is mutable is owned by the store's
//! writer thread, except which addresses and ports Services hold (`admission::services`, under a lock).

mod accept;
mod admission;
mod authn;
mod authz;
mod bootstrap;
mod expiry;
mod filter;
mod http;
mod identity;
mod metrics;
mod objects;
mod openapi;
mod parts;
mod paths;
pub mod pki;
mod render;
mod request;
mod router;
mod server;
mod service_tokens;
mod state;
mod stream_proxy;
mod tls;
mod verbs;

pub use self::{
    admission::{
        Tolerations,
        service_ranges::{NoCidr, ServiceCidr, ServiceCidrs},
    },
    authz::{Attributes, Authorizer, BuiltinRules},
    identity::Identity,
    server::{Config, Error, Server},
};
