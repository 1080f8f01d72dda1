//! What would happen to a packet, and why: it goes through the very functions that the programs are made of, hook by
//! hook, over the live maps. Nothing changes by it.
//!
//! ```text
//!  a pod of this node:  connect(2) ─► its link ─► another pod's link | the uplink | this node's stack
//!  from elsewhere:      the uplink ─► a pod's link | this node's stack | out again
//! ```

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use pith_abi::{NodeClass, NodeConfig, Tuple, proto};
use pith_core::{
    Tables, Verdict,
    host::{Buffer, wire},
    packet::tcp::SYN,
    pods,
    socket::{self, Place, Resolution},
    uplink,
};
use serde::Serialize;

use crate::{
    bpffs::Pins,
    datapath::DatapathError,
    live::{Live, address, place, words},
    maps::Maps,
};

/// What is asked about: the first packet of a connection, a datagram, or a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub source: Ipv4Addr,
    /// The port of a ping is its identifier.
    pub source_port: u16,
    pub destination: SocketAddrV4,
    pub protocol: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
    Ping,
}

/// What happened at one hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    pub hook: &'static str,
    /// The packet as it came there.
    pub packet: String,
    /// Every question to the maps, with its answer.
    pub lookups: Vec<String>,
    /// Name of the verdict's counter.
    pub reason: &'static str,
    pub meaning: &'static str,
    /// What becomes of the packet.
    pub fate: String,
}

/// Follows a packet through the maps of the datapath that is pinned in a folder.
pub fn why(bpffs: &Path, question: &Question) -> Result<Vec<Step>, DatapathError> {
    let maps = Maps::pinned(&Pins::existing(bpffs)?)?;
    let live = Live::new(&maps)?;
    let mut walk = Walk { node: maps.node()?, live, steps: Vec::new() };
    walk.begin(question);
    Ok(walk.steps)
}

struct Walk<'m> {
    live: Live<'m>,
    node: NodeConfig,
    steps: Vec<Step>,
}

type Program<'m> = fn(&mut Buffer, &Live<'m>) -> Verdict;

impl<'m> Walk<'m> {
    fn begin(&mut self, question: &Question) {
        let mut tuple = first_packet(question);
        if !self.node.is_local_pod(tuple.src_be) {
            self.enters_the_uplink(&tuple);
            return;
        }
        if matches!(question.protocol, Transport::Tcp | Transport::Udp) {
            match self.connect(&tuple) {
                Some(translated) => tuple = translated,
                None => return,
            }
        }
        let packet = self.at("the pod's link", &tuple, pods::from_pod);
        self.leaves_for(packet);
    }

    /// The socket call; what its packets are then. `None` where it is refused.
    fn connect(&mut self, tuple: &Tuple) -> Option<Tuple> {
        let asked = Place { addr_be: tuple.dst_be, port_be: tuple.dport_be };
        let resolution = socket::connect(&self.live, asked, tuple.proto);
        let (reason, fate, after) = match resolution {
            Resolution::Direct => {
                (pith_abi::Reason::SocketDirect, "goes to the address it asks for".to_owned(), Some(*tuple))
            }
            Resolution::To { peer, reason } => {
                let (addr_be, port_be) = (peer.backend_addr_be, peer.backend_port_be);
                let to = Tuple::new(tuple.src_be, tuple.sport_be, addr_be, port_be, tuple.proto);
                (
                    reason,
                    format!("connects to {}, none of its packets is rewritten", place(addr_be, port_be)),
                    Some(to),
                )
            }
            Resolution::Refuse(reason) => (reason, "fails at once: connection refused".to_owned(), None),
        };
        self.steps.push(Step {
            hook: "the socket call",
            packet: words(tuple),
            lookups: self.live.take_questions(),
            reason: reason.name(),
            meaning: reason.describe(),
            fate,
        });
        after
    }

    fn enters_the_uplink(&mut self, tuple: &Tuple) {
        let packet = self.at("the uplink, coming in", tuple, uplink::ingress);
        if let Some(tuple) = packet
            && self.node.is_local_pod(tuple.dst_be)
        {
            self.at("the pod's link, towards it", &tuple, pods::to_pod);
        }
    }

    fn leaves_for(&mut self, packet: Option<Tuple>) {
        let Some(tuple) = packet else { return };
        if self.node.is_local_pod(tuple.dst_be) {
            self.at("the pod's link, towards it", &tuple, pods::to_pod);
        } else if self.live.node_class(tuple.dst_be) & NodeClass::OWN == 0 {
            // Whether it is the node's own is not a question of the programs.
            self.live.take_questions();
            self.at("the uplink, going out", &tuple, uplink::egress);
        }
    }

    /// Runs one program; the packet afterwards, where it goes on by the stack.
    fn at(&mut self, hook: &'static str, tuple: &Tuple, program: Program<'m>) -> Option<Tuple> {
        let mut packet = wire::packet(tuple, if tuple.proto == proto::TCP { SYN } else { 0 }, b"");
        let verdict = program(&mut packet, &self.live);
        let after = wire::tuple(&packet);
        let becomes = if after == *tuple { String::new() } else { format!("becomes {} and ", words(&after)) };
        let node;
        let goes = match verdict {
            Verdict::HandOn(_, node_be) => {
                node = format!("is handed on as it came, to {}", address(node_be));
                &*node
            }
            Verdict::Pass(_) if after.dst_be == self.node.addr_be => "goes to this node's stack",
            Verdict::Pass(_) => "goes on",
            Verdict::Forward(_) => "leaves by the uplink",
            Verdict::Inward(_) => "goes to the pods' network",
            Verdict::Return(_) => "is answered",
            Verdict::Drop(_) => "is dropped",
            Verdict::Park(_) => "waits for the first piece of its datagram",
            Verdict::Release(_) => "goes round again, with the pieces that wait for it",
        };
        let reason = verdict.reason();
        self.steps.push(Step {
            hook,
            packet: words(tuple),
            lookups: self.live.take_questions(),
            reason: reason.name(),
            meaning: reason.describe(),
            fate: format!("{becomes}{goes}"),
        });
        matches!(verdict, Verdict::Pass(_)).then_some(after)
    }
}

fn first_packet(question: &Question) -> Tuple {
    let addr_be = |address: &Ipv4Addr| u32::from_ne_bytes(address.octets());
    let (number, dport) = match question.protocol {
        Transport::Tcp => (proto::TCP, question.destination.port()),
        Transport::Udp => (proto::UDP, question.destination.port()),
        Transport::Sctp => (proto::SCTP, question.destination.port()),
        // A request has its identifier where a source port would be.
        Transport::Ping => (proto::ICMP, 0),
    };
    let (source, destination) = (addr_be(&question.source), addr_be(question.destination.ip()));
    Tuple::new(source, question.source_port.to_be(), destination, dport.to_be(), number)
}
