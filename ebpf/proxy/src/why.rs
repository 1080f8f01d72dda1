//! What would happen to a packet, and why: it goes through the very functions that the programs are made of, hook by
//! hook, over the live maps. Nothing changes by it.
//!
//! ```text
//!  a pod of this node:  connect(2) ─► its link ─► another pod's link | the uplink | this node's stack
//!  from elsewhere:      the uplink ─► a pod's link | this node's stack | out again
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use pith_abi::{Address6, NodeClass, NodeConfig, StandIn, Tuple, proto};
use pith_core::{
    Packet, Tables, Verdict,
    icmp::IcmpError,
    packet::{Header, Transport as Parsed, tcp::SYN},
    pods,
    six::{self, Addresses},
    socket::{self, Place, Resolution},
    translate::Hops,
    uplink,
};
use serde::Serialize;

use crate::{bpffs::Pins, datapath::DatapathError, live::Live, maps::Maps};

/// What is asked about: the first packet of a connection, a datagram, or a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub source: IpAddr,
    /// The port of a ping is its identifier.
    pub source_port: u16,
    /// Of the source's family.
    pub destination: SocketAddr,
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
    let mut walk = Walk { node: maps.node(NodeConfig::IPV4)?, live, steps: Vec::new() };
    walk.begin(question);
    Ok(walk.steps)
}

struct Walk<'m> {
    live: Live<'m>,
    node: NodeConfig,
    steps: Vec<Step>,
}

/// The programs that a packet may come by.
#[derive(Clone, Copy)]
enum Program {
    Ingress,
    Egress,
    FromPod,
    ToPod,
}

impl Program {
    fn hook(self) -> &'static str {
        match self {
            Self::Ingress => "the uplink, coming in",
            Self::Egress => "the uplink, going out",
            Self::FromPod => "the pod's link",
            Self::ToPod => "the pod's link, towards it",
        }
    }

    fn run<T: Tables>(self, packet: &mut Sketch, tables: &T) -> Verdict {
        match self {
            Self::Ingress => uplink::ingress(packet, tables),
            Self::Egress => uplink::egress(packet, tables),
            Self::FromPod => pods::from_pod(packet, tables),
            Self::ToPod => pods::to_pod(packet, tables),
        }
    }
}

/// The first packet of a flow, of which there is no more than is asked about.
struct Sketch(Tuple);

impl Packet for Sketch {
    fn header(&self) -> Option<Header> {
        let Tuple { src_be, dst_be, proto, .. } = self.0;
        Some(Header {
            src_be,
            dst_be,
            proto,
            ttl: 64,
            checksum: 0,
            later_fragment: false,
            more_fragments: false,
            id_be: 0,
            family: if StandIn::of(src_be).is_some() { 6 } else { 4 },
            length: 0,
            l4: 0,
        })
    }

    fn transport(&self, header: &Header) -> Option<Parsed> {
        let tcp_flags = if header.proto == proto::TCP { SYN } else { 0 };
        Some(Parsed::Flow { tuple: self.0, tcp_flags })
    }

    fn translate(&mut self, _header: &Header, _from: &Tuple, to: &Tuple, _hops: Hops) -> Option<()> {
        self.0 = *to;
        Some(())
    }

    fn readdress(&mut self, _header: &Header, _src_be: u32, _dst_be: u32, _hops: Hops) -> Option<()> {
        None
    }

    fn inside(&self, _header: &Header) -> Option<Tuple> {
        None
    }

    fn translate_error(&mut self, _header: &Header, _error: &IcmpError, _hops: Hops) -> Option<()> {
        None
    }

    fn server(&self, _header: &Header) -> Option<u32> {
        // A first packet's connection has no ID of its server's yet.
        None
    }

    fn is_handed_on(&self) -> bool {
        false
    }

    fn hand_on(&mut self, _header: &Header, _begins: bool) -> Option<()> {
        Some(())
    }
}

impl Walk<'_> {
    fn begin(&mut self, question: &Question) {
        let mut tuple = self.first_packet(question);
        if !self.is_local_pod(tuple.src_be) {
            self.enters_the_uplink(&tuple);
            return;
        }
        if matches!(question.protocol, Transport::Tcp | Transport::Udp) {
            match self.connect(&tuple) {
                Some(translated) => tuple = translated,
                None => return,
            }
        }
        let packet = self.at(Program::FromPod, &tuple);
        self.leaves_for(packet);
    }

    fn is_local_pod(&self, addr_be: u32) -> bool {
        let IpAddr::V6(address) = self.live.address(addr_be) else { return self.node.is_local_pod(addr_be) };
        let networks = self.live.networks();
        let address = Address6::from_octets(address.octets());
        networks.is_some_and(|networks| address.is_in(&networks.pod_net, &networks.pod_mask))
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
                    format!(
                        "connects to {}, none of its packets is rewritten",
                        self.live.place(addr_be, port_be)
                    ),
                    Some(to),
                )
            }
            Resolution::Refuse(reason) => (reason, "fails at once: connection refused".to_owned(), None),
        };
        self.steps.push(Step {
            hook: "the socket call",
            packet: self.live.words(tuple),
            lookups: self.live.take_questions(),
            reason: reason.name(),
            meaning: reason.describe(),
            fate,
        });
        after
    }

    fn enters_the_uplink(&mut self, tuple: &Tuple) {
        let packet = self.at(Program::Ingress, tuple);
        if let Some(tuple) = packet
            && self.is_local_pod(tuple.dst_be)
        {
            self.at(Program::ToPod, &tuple);
        }
    }

    fn leaves_for(&mut self, packet: Option<Tuple>) {
        let Some(tuple) = packet else { return };
        if self.is_local_pod(tuple.dst_be) {
            self.at(Program::ToPod, &tuple);
        } else if self.live.node_class(tuple.dst_be) & NodeClass::OWN == 0 {
            // Whether it is the node's own is not a question of the programs.
            self.live.take_questions();
            self.at(Program::Egress, &tuple);
        }
    }

    /// Runs one program; the packet afterwards, where it goes on by the stack.
    fn at(&mut self, program: Program, tuple: &Tuple) -> Option<Tuple> {
        let mut packet = Sketch(*tuple);
        let verdict = match (self.live.address(tuple.src_be), self.live.address(tuple.dst_be)) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let ends = [src, dst].map(|address| Address6::from_octets(address.octets()));
                program.run(&mut packet, &six::between(&self.live, ends[0], ends[1]).0)
            }
            _ => program.run(&mut packet, &self.live),
        };
        let after = packet.0;
        let becomes =
            if after == *tuple { String::new() } else { format!("becomes {} and ", self.live.words(&after)) };
        let node;
        let goes = match verdict {
            Verdict::HandOn(_, node_be) => {
                node = format!("is handed on as it came, to {}", self.live.address(node_be));
                &*node
            }
            Verdict::Pass(_) if self.is_own(after.dst_be) => "goes to this node's stack",
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
            hook: program.hook(),
            packet: self.live.words(tuple),
            lookups: self.live.take_questions(),
            reason: reason.name(),
            meaning: reason.describe(),
            fate: format!("{becomes}{goes}"),
        });
        matches!(verdict, Verdict::Pass(_)).then_some(after)
    }

    /// Whether this is the address under which the node answers what nobody serves.
    fn is_own(&self, addr_be: u32) -> bool {
        addr_be == self.node.addr_be || self.live.node6().is_some_and(|node| node.addr_be == addr_be)
    }

    fn first_packet(&self, question: &Question) -> Tuple {
        let (number, dport) = match question.protocol {
            Transport::Tcp => (proto::TCP, question.destination.port()),
            Transport::Udp => (proto::UDP, question.destination.port()),
            Transport::Sctp => (proto::SCTP, question.destination.port()),
            // A request has its identifier where a source port would be.
            Transport::Ping => (proto::ICMP, 0),
        };
        let [source, destination] = match (question.source, question.destination.ip()) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let ends = [source, destination].map(|address| Address6::from_octets(address.octets()));
                let numbers = six::between(&self.live, ends[0], ends[1]).1;
                self.live.name(numbers[0], source);
                self.live.name(numbers[1], destination);
                numbers
            }
            (source, destination) => [source, destination].map(|address| match address {
                IpAddr::V4(address) => u32::from_ne_bytes(address.octets()),
                IpAddr::V6(_) => StandIn::UNKNOWN.addr_be,
            }),
        };
        Tuple::new(source, question.source_port.to_be(), destination, dport.to_be(), number)
    }
}
