//! A host as the way out of a network behind it: what leaves by its uplink leaves under its address.
//!
//! On one machine, replicas are behind a bridge that nobody else knows. Their packets come from the bridge
//! and take the host's routes; at the uplink they are given the host's address, and what is answered goes
//! back to the bridge past the host's stack. So the bridge is the only interface that has to forward, and
//! no setting of the host's changes.
//!
//! Invariant: pins and the one attached interface are all there is; [`Gateway::remove`] undoes everything.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use aya::programs::TcAttachType;
use pith_abi::{NodeClass, NodeConfig, NodeFlags, Reason};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    cidr::Cidr,
    datapath::{DEFAULT_SNAT_PORTS, Datapath, DatapathError, Limits, UPLINK_EGRESS, UPLINK_INGRESS, be},
    flows::{self, COLLECT_EVERY},
    loaded::{Loaded, interface_index},
    maps::Maps,
};

/// The maps of Services are there, because the object is one, but nothing is ever in them.
const LIMITS: Limits = Limits {
    frontends: 1,
    services: 1,
    backends: 1,
    affinity: 1,
    sockets: 1,
    nodes: 16,
    sources: 1,
    addresses: 1,
    ..Limits::DEFAULT
};

/// A network behind this host, and its way out.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Folder for the gateway's pins, on a BPF file system; made when missing.
    pub bpffs: PathBuf,
    /// The interface that leads to the network.
    pub inner: String,
    pub network: Cidr,
    /// The interface that leads out.
    pub uplink: String,
    /// The host's address there.
    pub address: Ipv4Addr,
}

/// A gateway in force.
pub struct Gateway {
    /// Its programs may be replaced by the next process, and are pinned until then.
    _loaded: Loaded,
    maps: Maps,
}

impl Gateway {
    /// Puts a gateway in force, or takes over the one that is; call it in the host's network namespace.
    pub fn open(config: &GatewayConfig) -> Result<Self, DatapathError> {
        let (mut loaded, mut maps) = Loaded::open(&config.bpffs, &LIMITS)?;
        forward_from(&config.inner)?;
        maps.set_node_class(be(config.address), NodeClass(NodeClass::OWN))?;
        maps.set_node(
            NodeConfig::IPV4,
            NodeConfig {
                addr_be: be(config.address),
                pod_net_be: be(config.network.net()),
                pod_mask_be: be(config.network.mask()),
                cluster_net_be: be(config.network.net()),
                cluster_mask_be: be(config.network.mask()),
                uplink: interface_index(&config.uplink)?,
                inner: interface_index(&config.inner)?,
                flags: NodeFlags::MASQUERADE,
                snat_first: *DEFAULT_SNAT_PORTS.start(),
                snat_last: *DEFAULT_SNAT_PORTS.end(),
                mac: [0; 6],
                zero: [0; 6],
                // No socket of the host sees a Service.
                netns_cookie: 0,
                // Nor is IPv6 looked at.
                seed: 0,
            },
        )?;
        let uplink = &config.uplink;
        loaded.attach_classifier(UPLINK_INGRESS, UPLINK_INGRESS, TcAttachType::Ingress, uplink)?;
        loaded.attach_classifier(UPLINK_EGRESS, UPLINK_EGRESS, TcAttachType::Egress, uplink)?;
        Ok(Self { _loaded: loaded, maps })
    }

    /// Collects flows that are over, until `cancel`. The gateway stays in force afterwards.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), DatapathError> {
        let mut collect = interval(COLLECT_EVERY);
        collect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Nothing is in flight between two ticks.
                () = cancel.cancelled() => return Ok(()),
                // A tick that is not taken comes again.
                _ = collect.tick() => match flows::collect(&mut self.maps, flows::now_ns(), |_, _, _| true, |_, _| true) {
                    Ok(collected) => debug!(?collected, "flows through the gateway"),
                    Err(error) => warn!(%error, "flows that are over were not collected; tried again soon"),
                },
            }
        }
    }

    /// How often a verdict was given since the maps were made.
    pub fn count(&self, reason: Reason) -> Result<u64, DatapathError> {
        Ok(self.maps.reason(reason)?)
    }

    /// Detaches a gateway and removes its pins.
    pub fn remove(bpffs: &Path) -> Result<(), DatapathError> {
        Datapath::remove(bpffs)
    }
}

/// Lets the stack forward what comes from an interface. It is ours; the host's own keep what they have.
fn forward_from(interface: &str) -> Result<(), DatapathError> {
    let path = Path::new("/proc/sys/net/ipv4/conf").join(interface).join("forwarding");
    let write = || -> io::Result<()> {
        // What is right already is not written: /proc/sys may be read-only.
        if fs::read_to_string(&path)?.trim() == "1" { Ok(()) } else { fs::write(&path, "1") }
    };
    write().map_err(|source| DatapathError::Forwarding { path: path.clone(), source })
}
