//! What the maps of a running datapath hold, read from its pins. Nothing is changed, and no process is asked.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
};

use aya::maps::MapInfo;
use ipnet::IpNet;
use pith_abi::{FrontendTarget, Head, HeadFlags, Reason, Scope, Service, map_name};
use serde::Serialize;

use crate::{
    bpffs::Pins,
    datapath::DatapathError,
    maps::{MapAccess, Maps, ServiceMaps},
};

/// How many of the senders with most flows are named.
const HEAVIEST: usize = 10;

/// Everything that is there.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub services: Vec<Balanced>,
    pub flows: Flows,
    /// Verdicts that were given, since the maps were made.
    pub verdicts: Vec<Verdict>,
}

/// One port of a Service, as it is balanced for one kind of clients.
#[derive(Clone, Debug, Serialize)]
pub struct Balanced {
    /// `10.96.0.10:80/TCP` or `node port 30080/TCP`.
    pub inside: Vec<String>,
    /// The same, for packets from outside.
    pub outside: Vec<String>,
    /// The same, for packets from outside that another node has handed on.
    pub handed: Vec<String>,
    /// It grows with every change, and begins again at 0.
    pub generation: u16,
    /// `random`, `maglev` or `maglev-client`.
    pub balance: &'static str,
    /// What of a backend packets of no flow may name in a connection ID of QUIC.
    pub quic_server_id: Option<&'static str>,
    pub affinity_s: Option<u64>,
    /// Who is served; everybody where it is empty.
    pub sources: Vec<String>,
    pub backends: Vec<Backend>,
    /// Connections that sockets made since the Service has its place in the maps; datagrams of one socket count
    /// once for each backend they were led to.
    pub connections: u64,
    /// Flows that packets began; connections that are translated at the socket need none.
    pub flows: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// With port 0 a node that packets are handed on to as they came.
    pub address: SocketAddr,
    /// Slots that lead there: its weight.
    pub slots: usize,
}

/// The table of flows: how full it is, and who fills it.
#[derive(Clone, Debug, Serialize)]
pub struct Flows {
    pub live: usize,
    /// Besides those, flows that are handed on to other nodes.
    pub handed_on: usize,
    pub limit: u32,
    pub heaviest: Vec<Sender>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sender {
    pub address: IpAddr,
    pub flows: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub reason: &'static str,
    pub count: u64,
    pub meaning: &'static str,
}

/// Reads the maps of the datapath that is pinned in a folder.
pub fn inspect(bpffs: &Path) -> Result<Inspection, DatapathError> {
    let pins = Pins::existing(bpffs)?;
    let maps = Maps::pinned(&pins)?;
    let failed = |source| MapAccess::Kernel { map: map_name::FLOWS, source };
    let limit = MapInfo::from_pin(pins.map(map_name::FLOWS)).map_err(failed)?.max_entries();
    let mut of_service: HashMap<u32, usize> = HashMap::new();
    let mut of_sender: HashMap<IpAddr, usize> = HashMap::new();
    let mut live = 0;
    for flow in maps.flows.iter() {
        let (_, flow) = flow.map_err(failed)?;
        live += 1;
        *of_service.entry(flow.service).or_default() += 1;
        let sender = SocketAddrV4::new(Ipv4Addr::from(flow.forward.src_be.to_ne_bytes()), 0);
        *of_sender.entry(maps.real(sender).ip()).or_default() += 1;
    }
    let failed = |source| MapAccess::Kernel { map: map_name::HANDED_ON, source };
    let handed_on = maps.handed_on.keys().collect::<Result<Vec<_>, _>>().map_err(failed)?.len();
    let verdicts = Reason::ALL.iter().map(|reason| {
        Ok(Verdict { reason: reason.name(), count: maps.reason(*reason)?, meaning: reason.describe() })
    });
    let mut verdicts = verdicts.collect::<Result<Vec<_>, MapAccess>>()?;
    verdicts.retain(|verdict| verdict.count > 0);
    Ok(Inspection {
        services: services(&maps, &of_service)?,
        flows: Flows { live, handed_on, limit, heaviest: heaviest(of_sender) },
        verdicts,
    })
}

fn heaviest(of_sender: HashMap<IpAddr, usize>) -> Vec<Sender> {
    let mut senders: Vec<Sender> =
        of_sender.into_iter().map(|(address, flows)| Sender { address, flows }).collect();
    senders.sort_by_key(|sender| (std::cmp::Reverse(sender.flows), sender.address));
    senders.truncate(HEAVIEST);
    senders
}

fn services(maps: &Maps, flows: &HashMap<u32, usize>) -> Result<Vec<Balanced>, MapAccess> {
    let mut sources = maps.sources()?;
    let mut all: BTreeMap<u32, Balanced> = BTreeMap::new();
    for (frontend, target) in maps.frontends()? {
        let index = match target.service(&frontend) {
            // Addresses, and backends that are gone, are no places of a Service.
            _ if matches!(frontend.scope, Scope::GONE | Scope::GONE6) => continue,
            None | Some(FrontendTarget::NO_SERVICE) => continue,
            Some(index) => index,
        };
        let balanced = match all.entry(index) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => {
                let sources = sources.remove(&index).unwrap_or_default();
                let flows = flows.get(&index).copied().unwrap_or_default();
                let connections = maps.connections(index)?;
                new.insert(Balanced { connections, ..balanced(maps, maps.service(index)?, &sources, flows)? })
            }
        };
        let places = match frontend.scope {
            Scope::OUTSIDE | Scope::OUTSIDE6 => &mut balanced.outside,
            Scope::HANDED => &mut balanced.handed,
            _ => &mut balanced.inside,
        };
        places.push(maps.show(&frontend));
    }
    let mut all: Vec<Balanced> = all.into_values().collect();
    for balanced in &mut all {
        balanced.inside.sort();
        balanced.outside.sort();
        balanced.handed.sort();
    }
    all.sort_by(|a, b| (&a.inside, &a.outside, &a.handed).cmp(&(&b.inside, &b.outside, &b.handed)));
    Ok(all)
}

fn balanced(maps: &Maps, service: Service, sources: &[IpNet], flows: usize) -> Result<Balanced, MapAccess> {
    let head = Head::unpack(service.head);
    let mut slots: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for slot in head.first..head.first + u32::from(head.count) {
        let backend = maps.backend(slot)?;
        let address = Ipv4Addr::from(backend.addr_be().to_ne_bytes());
        let place = SocketAddrV4::new(address, u16::from_be(backend.port_be()));
        *slots.entry(maps.real(place)).or_default() += 1;
    }
    let has = |flag| head.flags & flag != 0;
    Ok(Balanced {
        inside: Vec::new(),
        outside: Vec::new(),
        handed: Vec::new(),
        generation: head.tag,
        balance: match (has(HeadFlags::HASH), has(HeadFlags::HASH_CLIENT)) {
            (false, _) => "random",
            (true, false) => "maglev",
            (true, true) => "maglev-client",
        },
        quic_server_id: has(HeadFlags::NAMED).then_some("pod-ip"),
        affinity_s: has(HeadFlags::AFFINITY).then_some(service.affinity_ns / 1_000_000_000),
        sources: sources.iter().map(ToString::to_string).collect(),
        backends: slots.into_iter().map(|(address, slots)| Backend { address, slots }).collect(),
        connections: 0,
        flows,
    })
}
