//! IPv6: an address becomes a number (`pith_abi::StandIn`), and from then on a packet is decided upon as one of IPv4.
//!
//! ```text
//!  packet ──read──► Packet6: addresses by number ──► uplink, pods ──► written back, numbers by address
//!  maps   ────────► Tables6: scopes of IPv6, and who begins a flow is given a number
//! ```
//! Whom nobody knows has no number but one that it would have: enough to look for a flow, of which there is none. It is
//! kept when a flow begins, so that packets that begin nothing leave nothing behind.
//!
//! Not in IPv6: packets that are handed on ([`crate::direct`]) and the fast way ([`crate::fast`]).

use pith_abi::{
    Address6, Affinity, AffinityKey, Backend, Flow, FlowState, Fragment, FragmentKey, Frontend,
    FrontendTarget, HandedOn, Known6, Networks6, NodeConfig, Reason, Scope, ServerKey, Service, StandIn,
    Tuple, proto,
};

use crate::{
    Bytes, Covered, NotAdded, Packet, PseudoHeader, Tables, Verdict, announce, checksum, flow,
    icmp::IcmpError,
    packet::{Header, L3, Transport},
    pods, quic,
    translate::{Hops, ports, sctp},
    uplink,
};

/// Length of the header (RFC 8200), and where in it hop limit and addresses lie.
const HEADER: u32 = 40;
const HOPS: u32 = 7;
const SOURCE: u32 = 8;
const DESTINATION: u32 = 24;
/// Length of an ICMPv6 error's own header (RFC 4443).
const ICMP_HEADER: u32 = 8;

/// Extension headers that are looked behind. Packets with more belong to no flow.
const EXTENSIONS: u32 = 3;

/// What may follow the header.
mod next {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const ICMP: u8 = 58;
    pub(super) const NOTHING: u8 = 59;
    pub(super) const OPTIONS: u8 = 60;
}

/// ICMPv6 types (RFC 4443, RFC 4861).
pub mod icmp6 {
    pub const UNREACHABLE: u8 = 1;
    pub const TOO_BIG: u8 = 2;
    pub const TIME_EXCEEDED: u8 = 3;
    pub const PARAMETER_PROBLEM: u8 = 4;
    pub const ECHO_REQUEST: u8 = 128;
    pub const ECHO_REPLY: u8 = 129;
    pub const NEIGHBOR_SOLICITATION: u8 = 135;
    pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
}

/// What IPv6 needs of the maps besides.
pub trait Addresses: Tables {
    /// The node's configuration for IPv6.
    fn node6(&self) -> Option<&NodeConfig>;
    fn networks(&self) -> Option<&Networks6>;
    /// Of [`StandIn::nth`].
    fn seed(&self) -> u64;
    fn known(&self, standin: StandIn) -> Option<Known6>;
    /// Gives an address a stand-in that is nobody's. What is there already stays, and no error is returned.
    fn keep(&self, standin: StandIn, known: &Known6) -> Result<(), NotAdded>;
    /// Writes the time into what is known of a stand-in.
    fn touch(&self, standin: StandIn, used_ns: u64);
    fn serves_source6(&self, service: u32, address: &Address6) -> bool;
}

/// The stand-in of an address, or the one that it would have. `UNKNOWN` where all that it could have are others'.
#[inline(always)]
fn number<A: Addresses>(maps: &A, address: &Address6) -> Number {
    let seed = maps.seed();
    let mut free = StandIn::UNKNOWN;
    let mut nth = 0;
    while nth < StandIn::TRIES {
        let standin = StandIn::nth(address, seed, nth);
        match maps.known(standin) {
            Some(known) if known.address == *address => return Number { standin, known: true },
            Some(_) => {}
            None if free.addr_be == StandIn::UNKNOWN.addr_be => free = standin,
            None => {}
        }
        nth += 1;
    }
    Number { standin: free, known: false }
}

/// The stand-in of an address, where it has one.
#[inline(always)]
pub fn stand_in<A: Addresses>(maps: &A, address: &Address6) -> Option<StandIn> {
    let number = number(maps, address);
    if number.known { Some(number.standin) } else { None }
}

#[derive(Clone, Copy)]
struct Number {
    standin: StandIn,
    known: bool,
}

/// The addresses of a packet, and what they are known by.
struct Ends {
    src: Address6,
    dst: Address6,
    source: Number,
    destination: Number,
}

/// Reads the header and those that follow it.
#[inline(always)]
fn read<B: Bytes, A: Addresses>(bytes: &B, maps: &A) -> Option<(Header, Ends)> {
    let ip = bytes.peek::<8>(L3)?;
    if ip[0] >> 4 != 6 {
        return None;
    }
    let (src, dst) = (address_at(bytes, L3 + SOURCE)?, address_at(bytes, L3 + DESTINATION)?);
    let ends = Ends { source: number(maps, &src), destination: number(maps, &dst), src, dst };
    let mut header = Header {
        src_be: ends.source.standin.addr_be,
        dst_be: ends.destination.standin.addr_be,
        proto: ip[6],
        ttl: ip[7],
        checksum: 0,
        later_fragment: false,
        more_fragments: false,
        id_be: 0,
        family: 6,
        length: u16::from_be_bytes([ip[4], ip[5]]).saturating_add(HEADER as u16),
        l4: L3 + HEADER,
    };
    let mut seen = 0;
    while seen < EXTENSIONS {
        seen += 1;
        let fragment = header.proto == next::FRAGMENT;
        if !fragment && !matches!(header.proto, next::HOP_BY_HOP | next::ROUTING | next::OPTIONS) {
            break;
        }
        let extension = bytes.load::<8>(header.l4)?;
        header.proto = extension[0];
        header.l4 += 8;
        if fragment {
            header.later_fragment = (extension[2] | (extension[3] & 0xF8)) != 0;
            header.more_fragments = extension[3] & 1 != 0;
            header.id_be = u32::from_ne_bytes([extension[4], extension[5], extension[6], extension[7]]);
            break;
        }
        header.l4 += u32::from(extension[1]) * 8;
    }
    // As flows know it. The number of ICMP for IPv4 is nothing here.
    header.proto = match header.proto {
        next::ICMP => proto::ICMP,
        proto::ICMP => next::NOTHING,
        other => other,
    };
    Some((header, ends))
}

#[inline(always)]
fn address_at<B: Bytes>(bytes: &B, offset: u32) -> Option<Address6> {
    Some(Address6::from_octets(bytes.load::<16>(offset)?))
}

/// An IPv6 packet, whose addresses are numbers.
pub struct Packet6<'a, B, A> {
    bytes: &'a mut B,
    maps: &'a A,
    header: Header,
}

/// The maps as a packet of IPv6 finds them.
pub struct Tables6<'a, A> {
    maps: &'a A,
    ends: Ends,
}

/// A packet arrives at the uplink.
#[inline(always)]
pub fn ingress<B: Bytes, A: Addresses>(bytes: &mut B, maps: &A) -> Verdict {
    if let Some(verdict) = announce::neighbor(bytes, maps) {
        return verdict;
    }
    let Some((header, ends)) = read(bytes, maps) else { return Verdict::Pass(Reason::UplinkMalformed) };
    // Whoever is asked for has a number: nodes and Services.
    if !ends.destination.known {
        return Verdict::Pass(Reason::UplinkPass);
    }
    uplink::ingress(&mut Packet6 { bytes, maps, header }, &Tables6 { maps, ends })
}

/// A packet leaves by the uplink.
#[inline(always)]
pub fn egress<B: Bytes, A: Addresses>(bytes: &mut B, maps: &A) -> Verdict {
    let Some((header, ends)) = read(bytes, maps) else { return Verdict::Pass(Reason::UplinkMalformed) };
    uplink::egress(&mut Packet6 { bytes, maps, header }, &Tables6 { maps, ends })
}

/// A packet comes from a pod.
#[inline(always)]
pub fn from_pod<B: Bytes, A: Addresses>(bytes: &mut B, maps: &A) -> Verdict {
    let Some((header, ends)) = read(bytes, maps) else { return Verdict::Pass(Reason::PodPass) };
    pods::from_pod(&mut Packet6 { bytes, maps, header }, &Tables6 { maps, ends })
}

/// A packet goes to a pod.
#[inline(always)]
pub fn to_pod<B: Bytes, A: Addresses>(bytes: &mut B, maps: &A) -> Verdict {
    if !maps.pods_have_flows() {
        return Verdict::Pass(Reason::PodPass);
    }
    let Some((header, ends)) = read(bytes, maps) else { return Verdict::Pass(Reason::PodPass) };
    pods::to_pod(&mut Packet6 { bytes, maps, header }, &Tables6 { maps, ends })
}

/// Under which its datagram is known at a hook, and how long the packet is.
#[inline(always)]
pub fn header<B: Bytes, A: Addresses>(bytes: &B, maps: &A) -> Option<Header> {
    Some(read(bytes, maps)?.0)
}

/// The maps as a packet between two addresses would find them, and the numbers that it would have.
pub fn between<A: Addresses>(maps: &A, src: Address6, dst: Address6) -> (Tables6<'_, A>, [u32; 2]) {
    let ends = Ends { source: number(maps, &src), destination: number(maps, &dst), src, dst };
    let numbers = [ends.source, ends.destination].map(|number| number.standin.addr_be);
    (Tables6 { maps, ends }, numbers)
}

impl<B: Bytes, A: Addresses> Packet6<'_, B, A> {
    /// Puts the address that one number stands for in the place of another's. Returns the checksum difference.
    #[inline(always)]
    fn replace(&mut self, offset: u32, from_be: u32, to_be: u32) -> Option<u32> {
        if from_be == to_be {
            return Some(0);
        }
        let old = self.bytes.load::<16>(offset)?;
        let new = self.maps.known(StandIn { addr_be: to_be })?.address.octets();
        self.bytes.store(offset, &new)?;
        Some(checksum::diff_bytes(&old, &new))
    }

    /// The same for both ends of a header at `offset`.
    #[inline(always)]
    fn replace_both(&mut self, offset: u32, from: (u32, u32), to: (u32, u32)) -> Option<u32> {
        let source = self.replace(offset + SOURCE, from.0, to.0)?;
        Some(checksum::add(source, self.replace(offset + DESTINATION, from.1, to.1)?))
    }

    /// The same for the packet itself, whose hop is counted.
    #[inline(always)]
    fn network(&mut self, header: &Header, src_be: u32, dst_be: u32, hops: Hops) -> Option<u32> {
        if matches!(hops, Hops::Count) {
            self.bytes.store(L3 + HOPS, &[header.ttl.wrapping_sub(1)])?;
        }
        self.replace_both(L3, (header.src_be, header.dst_be), (src_be, dst_be))
    }
}

impl<B: Bytes, A: Addresses> Packet for Packet6<'_, B, A> {
    #[inline(always)]
    fn header(&self) -> Option<Header> {
        Some(self.header)
    }

    #[inline(always)]
    fn transport(&self, header: &Header) -> Option<Transport> {
        match header.proto {
            proto::ICMP => {
                let bytes = self.bytes.load::<8>(header.l4)?;
                Some(match echo_ports(&bytes) {
                    Some((source, destination)) => header.flow(source, destination, 0),
                    None if matches!(bytes[0], icmp6::UNREACHABLE..=icmp6::PARAMETER_PROBLEM) => {
                        Transport::IcmpError
                    }
                    None => Transport::Other,
                })
            }
            _ => header.transport(self.bytes),
        }
    }

    #[inline(always)]
    fn translate(&mut self, header: &Header, from: &Tuple, to: &Tuple, hops: Hops) -> Option<()> {
        let addresses = self.network(header, to.src_be, to.dst_be, hops)?;
        let change = checksum::diff(ports(from), ports(to));
        if from.proto == proto::SCTP {
            return sctp(self.bytes, header, from, to);
        }
        let (field, place, value) = match from.proto {
            // The identifier of an echo message stands in one of the ports, the other is 0.
            proto::ICMP => (2, 4, u32::from(to.sport_be | to.dport_be)),
            proto::UDP => (6, 0, ports(to)),
            _ => (16, 0, ports(to)),
        };
        let zero_is_none = from.proto == proto::UDP;
        let field = header.l4 + field;
        let of = |pseudo_header| Covered { pseudo_header, zero_is_none };
        self.bytes.update_l4_checksum(field, addresses, of(PseudoHeader::Ipv6))?;
        self.bytes.update_l4_checksum(field, change, of(PseudoHeader::None))?;
        if from.proto == proto::ICMP {
            return self.bytes.store(header.l4 + place, &(value as u16).to_ne_bytes());
        }
        self.bytes.store(header.l4 + place, &value.to_ne_bytes())
    }

    #[inline(always)]
    fn readdress(&mut self, header: &Header, src_be: u32, dst_be: u32, hops: Hops) -> Option<()> {
        self.network(header, src_be, dst_be, hops).map(|_| ())
    }

    #[inline(always)]
    fn inside(&self, header: &Header) -> Option<Tuple> {
        let at = header.l4 + ICMP_HEADER;
        let head = self.bytes.load::<8>(at)?;
        let src = number(self.maps, &address_at(self.bytes, at + SOURCE)?);
        let dst = number(self.maps, &address_at(self.bytes, at + DESTINATION)?);
        let l4 = self.bytes.load::<8>(at + HEADER)?;
        let (proto, (source, destination)) = match head[6] {
            next::ICMP => (proto::ICMP, echo_ports(&l4)?),
            number @ (proto::TCP | proto::UDP | proto::SCTP) => (number, ([l4[0], l4[1]], [l4[2], l4[3]])),
            _ => return None,
        };
        let (sport, dport) = (u16::from_ne_bytes(source), u16::from_ne_bytes(destination));
        // What is not known is in no flow.
        if head[0] >> 4 != 6 || !src.known || !dst.known {
            return None;
        }
        Some(Tuple::new(src.standin.addr_be, sport, dst.standin.addr_be, dport, proto))
    }

    #[inline(always)]
    fn translate_error(&mut self, header: &Header, error: &IcmpError, hops: Hops) -> Option<()> {
        let IcmpError { inside, known, .. } = error;
        let at = header.l4 + ICMP_HEADER;
        let from = (inside.src_be, inside.dst_be);
        let addresses = self.replace_both(at, from, (known.src_be, known.dst_be))?;
        let l4 = at + HEADER;
        let change = checksum::diff(ports(inside), ports(known));
        let mut all = checksum::add(addresses, change);
        // TCP's checksum need not be there, and nobody looks at it.
        let field = match inside.proto {
            proto::ICMP => Some(2),
            proto::UDP => Some(6),
            _ => None,
        };
        if let Some(field) = field {
            let old = u16::from_ne_bytes(self.bytes.load::<2>(l4 + field)?);
            let new = checksum::apply(old, all);
            self.bytes.store(l4 + field, &new.to_ne_bytes())?;
            all = checksum::add(all, checksum::diff(old.into(), new.into()));
        }
        if inside.proto == proto::ICMP {
            self.bytes.store(l4 + 4, &(known.sport_be | known.dport_be).to_ne_bytes())?;
        } else {
            self.bytes.store(l4, &ports(known).to_ne_bytes())?;
        }
        let own = self.network(header, error.src_be, error.dst_be, hops)?;
        let of = |pseudo_header| Covered { pseudo_header, zero_is_none: false };
        self.bytes.update_l4_checksum(header.l4 + 2, all, of(PseudoHeader::None))?;
        self.bytes.update_l4_checksum(header.l4 + 2, own, of(PseudoHeader::Ipv6))
    }

    #[inline(always)]
    fn server(&self, header: &Header) -> Option<u32> {
        let mut octets = quic::beginning::<16, _>(self.bytes, header)?;
        octets[0] = self.maps.networks()?.pod_net.octets()[0];
        stand_in(self.maps, &Address6::from_octets(octets)).map(|standin| standin.addr_be)
    }

    #[inline(always)]
    fn is_handed_on(&self) -> bool {
        false
    }

    #[inline(always)]
    fn hand_on(&mut self, _header: &Header, _begins: bool) -> Option<()> {
        None
    }
}

/// As [`crate::packet::icmp_ports`].
#[inline(always)]
fn echo_ports(bytes: &[u8; 8]) -> Option<([u8; 2], [u8; 2])> {
    let id = [bytes[4], bytes[5]];
    match bytes[0] {
        icmp6::ECHO_REQUEST => Some((id, [0, 0])),
        icmp6::ECHO_REPLY if id != [0, 0] => Some(([0, 0], id)),
        _ => None,
    }
}

impl<A: Addresses> Tables6<'_, A> {
    /// The address that a number stands for, also one that is not kept.
    #[inline(always)]
    fn is_in(&self, addr_be: u32, net: &Address6, mask: &Address6) -> bool {
        if addr_be == self.ends.source.standin.addr_be {
            return self.ends.src.is_in(net, mask);
        }
        if addr_be == self.ends.destination.standin.addr_be {
            return self.ends.dst.is_in(net, mask);
        }
        self.maps.known(StandIn { addr_be }).is_some_and(|known| known.address.is_in(net, mask))
    }

    /// Keeps the number of one of the packet's ends.
    #[inline(always)]
    fn keep(&self, number: Number, address: &Address6) -> Result<(), NotAdded> {
        if number.standin == StandIn::UNKNOWN {
            return Err(NotAdded::Full);
        }
        let used_ns = self.maps.now_ns();
        if !number.known {
            self.maps.keep(number.standin, &Known6 { address: *address, used_ns })?;
        }
        // Another one may have been faster with this number.
        match self.maps.known(number.standin) {
            Some(known) if known.address == *address => {
                if flow::aged(known.used_ns, used_ns) {
                    self.maps.touch(number.standin, used_ns);
                }
                Ok(())
            }
            _ => Err(NotAdded::Full),
        }
    }
}

impl<A: Addresses> Tables for Tables6<'_, A> {
    type Record<'r>
        = A::Record<'r>
    where
        Self: 'r;

    #[inline(always)]
    fn node(&self) -> Option<&NodeConfig> {
        self.maps.node6()
    }

    #[inline(always)]
    fn is_local_pod(&self, _node: &NodeConfig, addr_be: u32) -> bool {
        self.maps
            .networks()
            .is_some_and(|networks| self.is_in(addr_be, &networks.pod_net, &networks.pod_mask))
    }

    #[inline(always)]
    fn is_pod(&self, _node: &NodeConfig, addr_be: u32) -> bool {
        let networks = self.maps.networks();
        networks.is_some_and(|networks| self.is_in(addr_be, &networks.cluster_net, &networks.cluster_mask))
    }

    #[inline(always)]
    fn is_hosts(&self, addr_be: u32) -> bool {
        // Asked of destinations only; fe80::/10 and ff00::/8.
        let [first, second, ..] = self.ends.dst.octets();
        addr_be == self.ends.destination.standin.addr_be
            && first != 0xFF
            && !(first == 0xFE && second & 0xC0 == 0x80)
    }

    #[inline(always)]
    fn identity(&self, addr_be: u32) -> u64 {
        if addr_be == self.ends.source.standin.addr_be { self.ends.src.mixed(0) } else { addr_be.into() }
    }

    #[inline(always)]
    fn node_class(&self, addr_be: u32) -> u32 {
        self.maps.node_class(addr_be)
    }

    #[inline(always)]
    fn frontend(&self, frontend: &Frontend) -> Option<FrontendTarget> {
        let own = frontend.scoped(Scope::six(frontend.scope));
        // The word repeats a digest of its own frontend: it is checked here, and told as the asker's.
        let service = self.maps.frontend(&own)?.service(&own)?;
        Some(FrontendTarget::new(frontend, service))
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<Service> {
        self.maps.service(index)
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<Backend> {
        self.maps.backend(slot)
    }

    #[inline(always)]
    fn serves_source(&self, service: u32, _addr_be: u32) -> bool {
        self.maps.serves_source6(service, &self.ends.src)
    }

    #[inline(always)]
    fn server(&self, key: &ServerKey) -> Option<Backend> {
        self.maps.server(key)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.maps.affinity(key)
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.maps.set_affinity(key, affinity);
    }

    #[inline(always)]
    fn flow(&self, key: &Tuple) -> Option<Self::Record<'_>> {
        self.maps.flow(key)
    }

    #[inline(always)]
    fn add_flow(&self, key: &Tuple, flow: &Flow) -> Result<(), NotAdded> {
        self.maps.add_flow(key, flow)
    }

    /// Whom a flow begins with is kept by its number.
    #[inline(always)]
    fn begins(&self) -> Result<(), NotAdded> {
        self.keep(self.ends.source, &self.ends.src)?;
        self.keep(self.ends.destination, &self.ends.dst)
    }

    #[inline(always)]
    fn remove_flow(&self, key: &Tuple) {
        self.maps.remove_flow(key);
    }

    #[inline(always)]
    fn forward(&self, forward: &Tuple) -> Option<Tuple> {
        self.maps.forward(forward)
    }

    #[inline(always)]
    fn set_forward(&self, forward: &Tuple, key: &Tuple) -> Result<(), NotAdded> {
        self.maps.set_forward(forward, key)
    }

    #[inline(always)]
    fn handed_on(&self, _tuple: &Tuple) -> Option<HandedOn> {
        None
    }

    #[inline(always)]
    fn set_handed_on(&self, _tuple: &Tuple, _flow: &HandedOn) -> Result<(), NotAdded> {
        Err(NotAdded::Full)
    }

    #[inline(always)]
    fn note_handed_on(&self, _tuple: &Tuple, _state: FlowState, _last_ns: u64) {}

    #[inline(always)]
    fn pods_have_flows(&self) -> bool {
        self.maps.pods_have_flows()
    }

    #[inline(always)]
    fn pod_flow_begun(&self) {
        self.maps.pod_flow_begun();
    }

    #[inline(always)]
    fn any_gone(&self) -> bool {
        self.maps.any_gone()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.maps.fragment(key)
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.maps.set_fragment(key, fragment);
    }

    #[inline(always)]
    fn any_parked(&self, key: &FragmentKey) -> bool {
        self.maps.any_parked(key)
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        self.maps.random()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        self.maps.now_ns()
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        self.maps.netns_cookie()
    }
}
