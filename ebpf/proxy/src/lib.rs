//! kube-proxy in eBPF: Services and EndpointSlices become entries of maps that programs at socket calls and
//! at the uplink look up.
//!
//! ```text
//!  API ──watch──► world ──► plan ──► table ──► maps ──► programs
//!                 parsed    pure     diff      pinned   pinned links
//! ```
//! - [`plan`](plan()) says what the maps should hold: a pure function.
//! - [`table::Table`] holds what they do hold and writes the difference, each Service at once.
//! - [`Datapath`] loads, pins, adopts and attaches. Everything outlives the process.
//! - [`run`] is the only task: it watches, batches and writes.

pub mod annotations;
pub mod bpffs;
mod cidr;
mod datapath;
mod filters;
mod flows;
mod gateway;
mod generation;
mod gone;
mod health;
mod http;
pub mod inspect;
mod kernel;
mod limit;
mod links;
mod live;
mod loaded;
mod maglev;
mod maps;
mod metrics;
mod neighbors;
mod news;
mod object;
mod plan;
mod pods;
mod run;
pub mod service;
mod slots;
mod standins;
pub mod table;
pub mod why;
pub mod world;
mod xdp;

#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod standins_tests;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod world_tests;

pub use bpffs::PinError;
pub use cidr::{Cidr, CidrError};
pub use datapath::{Config, DEFAULT_SNAT_PORTS, Datapath, DatapathError, Limits, Replayed, Uplink};
pub use filters::{Filter, FilterError, Side, filters};
pub use flows::{Asked, Collected};
pub use gateway::{Gateway, GatewayConfig};
pub use limit::{Limit, TableLimits};
pub use maps::{MapAccess, ServiceMaps};
pub use metrics::Metrics;
pub use plan::{
    Group, Group6, GroupKey, Health, NodeIdentity, Reach, ServicePlan, Six, plan, plan_host_ports,
    plan_service,
};
pub use run::{RunError, run};
pub use xdp::{NoXdp, Xdp};
