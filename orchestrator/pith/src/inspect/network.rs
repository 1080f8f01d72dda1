//! The interfaces of a network namespace, the other end of a pod's, and the eBPF programs that run for them.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use pith_network::names::{ClusterName, PodUid, ReplicaNumber};
use pith_network::netns::{Netns, run_in};
use pith_proxy::Side;
use pith_sys::bpf::{self, Hook};
use serde::Serialize;

use super::target::Pod;

#[derive(Debug, Serialize)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) programs: Vec<Program>,
}

#[derive(Debug, Serialize)]
pub(super) struct Program {
    pub(super) hook: &'static str,
    pub(super) id: u32,
    pub(super) name: String,
}

/// The interfaces that a process sees.
pub(super) fn of(pid: i32) -> Result<Vec<Interface>> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
    run_in(namespace.as_fd(), interfaces).with_context(|| format!("enter {path}"))?
}

/// The replica's end of a pod's interface.
pub(super) fn other_end(cluster: &ClusterName, pod: &Pod) -> Result<Option<Interface>> {
    let number = pod.replica.strip_prefix("replica-").and_then(|number| number.parse().ok());
    let Some(number) = number.and_then(ReplicaNumber::new) else { return Ok(None) };
    let name = PodUid::parse(&pod.uid)?.interface();
    let Some(namespace) = Netns::open(&cluster.netns(number))? else { return Ok(None) };
    let found = namespace.run(interfaces)??;
    Ok(found.into_iter().find(|interface| interface.name == name))
}

/// The programs that run for what a cgroup's processes do: its own and those of the cgroups above.
pub(super) fn of_cgroup(dir: &Path) -> Result<Vec<Program>> {
    let cgroup = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    at(bpf::CGROUP_HOOKS, |hook| bpf::cgroup_programs(cgroup.as_fd(), hook))
}

/// Of the network namespace that this thread is in.
fn interfaces() -> Result<Vec<Interface>> {
    let mut addresses: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for entry in nix::ifaddrs::getifaddrs().context("list interfaces")? {
        let known = addresses.entry(entry.interface_name).or_default();
        let address = entry.address.as_ref();
        known.extend(address.and_then(|address| Some(IpAddr::V4(address.as_sockaddr_in()?.ip()))));
        known.extend(address.and_then(|address| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip()))));
    }
    let interface = |(name, addresses): (String, Vec<IpAddr>)| {
        let index = nix::net::if_::if_nametoindex(name.as_str()).with_context(|| format!("find {name}"))?;
        let mut programs = at(bpf::INTERFACE_HOOKS, |hook| bpf::interface_programs(index, hook))?;
        programs.extend(of_filters(index)?);
        Ok(Interface { name, index, addresses, programs })
    };
    addresses.into_iter().map(interface).collect()
}

/// The programs that filters of an interface run.
fn of_filters(index: u32) -> Result<Vec<Program>> {
    let mut found = Vec::new();
    for filter in pith_proxy::filters(index)? {
        let Some(id) = filter.program else { continue };
        let hook = match filter.side {
            Side::Ingress => "tc_ingress",
            Side::Egress => "tc_egress",
        };
        let bpf::Program { id, name } = bpf::program(id).with_context(|| format!("ask for program {id}"))?;
        found.push(Program { hook, id, name });
    }
    Ok(found)
}

fn at(hooks: &[Hook], ask: impl Fn(Hook) -> pith_sys::Result<Vec<bpf::Program>>) -> Result<Vec<Program>> {
    let mut found = Vec::new();
    for hook in hooks {
        let programs = ask(*hook).with_context(|| format!("ask for the programs at {}", hook.name))?;
        found.extend(programs.into_iter().map(|bpf::Program { id, name }| Program {
            hook: hook.name,
            id,
            name,
        }));
    }
    Ok(found)
}
