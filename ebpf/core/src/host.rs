//! The traits on the host: a packet in a vector, tables in memory. Tests run the core on them, and compare
//! the programs in the kernel with what comes out here.

use core::cell::{Cell, RefCell};
use std::{
    collections::{HashMap, VecDeque},
    vec::Vec,
};

use pith_abi::{
    Address6, Affinity, AffinityKey, Backend, Flow, FlowState, Fragment, FragmentKey, Frontend,
    FrontendTarget, HandedOn, Head, Known6, Networks6, NodeClass, NodeConfig, Scope, ServerKey, Service,
    SourceKey, SourceKey6, StandIn, Tuple,
};

use crate::{Bytes, Covered, NotAdded, Record, Tables, checksum, six::Addresses};

/// A packet from its Ethernet header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer(pub Vec<u8>);

impl Buffer {
    fn range(&self, offset: u32, length: usize) -> Option<core::ops::Range<usize>> {
        let start = offset as usize;
        (start + length <= self.0.len()).then(|| start..start + length)
    }

    fn update(&mut self, offset: u32, change: impl FnOnce(u16) -> u16) -> Option<()> {
        let field = u16::from_ne_bytes(self.load::<2>(offset)?);
        self.store(offset, &change(field).to_ne_bytes())
    }
}

impl Bytes for Buffer {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.get(self.range(offset, N)?)?.try_into().ok()
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> Option<()> {
        let range = self.range(offset, N)?;
        self.0.get_mut(range)?.copy_from_slice(bytes);
        Some(())
    }

    fn update_l4_checksum(&mut self, offset: u32, diff: u32, covered: Covered) -> Option<()> {
        self.update(offset, |field| match (covered.zero_is_none, checksum::apply(field, diff)) {
            (true, _) if field == 0 => 0,
            (true, 0) => 0xFFFF,
            (_, new) => new,
        })
    }

    fn crc_carry(&self, words: u32) -> Option<&crate::crc::Carry> {
        CARRIES.get_or_init(crate::crc::carries).get(words as usize)
    }
}

/// Computed once.
static CARRIES: std::sync::OnceLock<Vec<crate::crc::Carry>> = std::sync::OnceLock::new();

/// All tables in memory.
#[derive(Debug, Default)]
pub struct Memory {
    pub node: NodeConfig,
    pub node6: NodeConfig,
    pub networks: Networks6,
    pub addresses: RefCell<HashMap<StandIn, Known6>>,
    pub sources6: RefCell<Vec<(u8, SourceKey6)>>,
    pub node_classes: HashMap<u32, u32>,
    pub frontends: RefCell<HashMap<Frontend, FrontendTarget>>,
    pub services: RefCell<HashMap<u32, Service>>,
    pub backends: RefCell<HashMap<u32, Backend>>,
    pub servers: RefCell<HashMap<ServerKey, Backend>>,
    pub affinities: RefCell<HashMap<AffinityKey, Affinity>>,
    pub sources: RefCell<Vec<(u8, SourceKey)>>,
    pub fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    /// Pieces that wait for their first: who acts on verdicts keeps them here.
    pub parked: RefCell<HashMap<FragmentKey, Vec<Buffer>>>,
    pub flows: RefCell<HashMap<Tuple, Flow>>,
    pub forwards: RefCell<HashMap<Tuple, Tuple>>,
    pub handed_on: RefCell<HashMap<Tuple, HandedOn>>,
    /// Flows that began at pods' links and have not been found to be over.
    pub pod_flows: Cell<u64>,
    /// How many flows the table may hold; 0 is no limit.
    pub max_flows: usize,
    /// What chance brings next; then a simple sequence.
    pub chance: RefCell<VecDeque<u32>>,
    pub clock_ns: Cell<u64>,
    pub cookie: u64,
    /// Where the sequence is.
    pub sequence: Cell<u32>,
}

impl Memory {
    /// A node with an address, its pods' network and that of all pods, which masquerades.
    pub fn of_node(address: [u8; 4], pods: ([u8; 4], u8), cluster: ([u8; 4], u8)) -> Self {
        let mask = |prefix: u8| u32::from_ne_bytes((!(u32::MAX >> prefix)).to_be_bytes());
        let addr_be = u32::from_ne_bytes(address);
        let node = NodeConfig {
            addr_be,
            pod_net_be: u32::from_ne_bytes(pods.0),
            pod_mask_be: mask(pods.1),
            cluster_net_be: u32::from_ne_bytes(cluster.0),
            cluster_mask_be: mask(cluster.1),
            uplink: 1,
            inner: 0,
            flags: pith_abi::NodeFlags::MASQUERADE,
            snat_first: 1024,
            snat_last: 29_999,
            mac: [2, 0, 0, 0, 0, 9],
            zero: [0; 6],
            netns_cookie: 1,
            seed: 0x5EED,
        };
        Self { node, node_classes: HashMap::from([(addr_be, NodeClass::OWN)]), ..Self::default() }
    }

    /// Gives a Service its backends (address and port) as a new generation, and a frontend that is reached from
    /// everywhere.
    pub fn serve(&self, frontend: Frontend, index: u32, backends: &[([u8; 4], u16)]) {
        let first = index * 256;
        let old = self.service(index).map_or(0, |service| Head::unpack(service.head).tag);
        let head = Head { first, count: backends.len() as u16, tag: old.wrapping_add(1), flags: 0 };
        for (slot, (address, port)) in (first..).zip(backends) {
            let backend = Backend::new(u32::from_ne_bytes(*address), port.to_be(), head.tag);
            self.backends.borrow_mut().insert(slot, backend);
        }
        self.services.borrow_mut().insert(index, Service { head: head.pack(), affinity_ns: 0 });
        for scope in [Scope::INSIDE, Scope::OUTSIDE] {
            let frontend = frontend.scoped(scope);
            self.frontends.borrow_mut().insert(frontend, FrontendTarget::new(&frontend, index));
        }
    }
}

/// A flow's record in [`Memory`].
pub struct MemoryRecord<'a> {
    memory: &'a Memory,
    key: Tuple,
}

impl Record for MemoryRecord<'_> {
    fn get(&self) -> Flow {
        *self.memory.flows.borrow().get(&self.key).expect("nothing removes flows while one is at hand")
    }

    fn set_life(&self, state: FlowState, last_ns: u64) {
        self.replace(&Flow { state: state as u8, last_ns, ..self.get() });
    }

    fn replace(&self, flow: &Flow) {
        self.memory.flows.borrow_mut().insert(self.key, *flow);
    }
}

impl Tables for Memory {
    type Record<'a> = MemoryRecord<'a>;

    fn node(&self) -> Option<&NodeConfig> {
        Some(&self.node)
    }

    fn node_class(&self, addr_be: u32) -> u32 {
        self.node_classes.get(&addr_be).copied().unwrap_or(0)
    }

    fn frontend(&self, frontend: &Frontend) -> Option<FrontendTarget> {
        self.frontends.borrow().get(frontend).copied()
    }

    fn service(&self, index: u32) -> Option<Service> {
        self.services.borrow().get(&index).copied()
    }

    fn backend(&self, slot: u32) -> Option<Backend> {
        self.backends.borrow().get(&slot).copied()
    }

    fn serves_source(&self, service: u32, addr_be: u32) -> bool {
        self.sources.borrow().iter().any(|(prefix, key)| {
            let mask = !u32::MAX.checked_shr(u32::from(*prefix)).unwrap_or(0);
            key.service == service && u32::from_be(key.addr_be ^ addr_be) & mask == 0
        })
    }

    fn server(&self, key: &ServerKey) -> Option<Backend> {
        self.servers.borrow().get(key).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*key, *affinity);
    }

    fn flow(&self, key: &Tuple) -> Option<MemoryRecord<'_>> {
        self.flows.borrow().contains_key(key).then_some(MemoryRecord { memory: self, key: *key })
    }

    fn add_flow(&self, key: &Tuple, flow: &Flow) -> Result<(), NotAdded> {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Err(NotAdded::Exists);
        }
        if self.max_flows != 0 && flows.len() >= self.max_flows {
            return Err(NotAdded::Full);
        }
        flows.insert(*key, *flow);
        Ok(())
    }

    fn remove_flow(&self, key: &Tuple) {
        self.flows.borrow_mut().remove(key);
    }

    fn forward(&self, forward: &Tuple) -> Option<Tuple> {
        self.forwards.borrow().get(forward).copied()
    }

    fn set_forward(&self, forward: &Tuple, key: &Tuple) -> Result<(), NotAdded> {
        self.forwards.borrow_mut().insert(*forward, *key);
        Ok(())
    }

    fn handed_on(&self, tuple: &Tuple) -> Option<HandedOn> {
        self.handed_on.borrow().get(tuple).copied()
    }

    fn set_handed_on(&self, tuple: &Tuple, flow: &HandedOn) -> Result<(), NotAdded> {
        let mut flows = self.handed_on.borrow_mut();
        if self.max_flows != 0 && flows.len() >= self.max_flows && !flows.contains_key(tuple) {
            return Err(NotAdded::Full);
        }
        flows.insert(*tuple, *flow);
        Ok(())
    }

    fn note_handed_on(&self, tuple: &Tuple, state: FlowState, last_ns: u64) {
        if let Some(flow) = self.handed_on.borrow_mut().get_mut(tuple) {
            flow.state = state as u8;
            flow.last_ns = last_ns;
        }
    }

    fn pods_have_flows(&self) -> bool {
        self.pod_flows.get() > 0
    }

    fn pod_flow_begun(&self) {
        self.pod_flows.update(|flows| flows + 1);
    }

    fn any_gone(&self) -> bool {
        self.frontends.borrow().keys().any(|frontend| frontend.scope == Scope::GONE)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn any_parked(&self, key: &FragmentKey) -> bool {
        self.parked.borrow().contains_key(key)
    }

    fn random(&self) -> u32 {
        if let Some(next) = self.chance.borrow_mut().pop_front() {
            return next;
        }
        // Knuth's multiplicative sequence: spread, and the same in every run.
        self.sequence.set(self.sequence.get().wrapping_add(1));
        self.sequence.get().wrapping_mul(0x9E37_79B1)
    }

    fn now_ns(&self) -> u64 {
        self.clock_ns.get()
    }

    fn netns_cookie(&self) -> u64 {
        self.cookie
    }
}

impl Addresses for Memory {
    fn node6(&self) -> Option<&NodeConfig> {
        Some(&self.node6)
    }

    fn networks(&self) -> Option<&Networks6> {
        Some(&self.networks)
    }

    fn seed(&self) -> u64 {
        self.node.seed
    }

    fn known(&self, standin: StandIn) -> Option<Known6> {
        self.addresses.borrow().get(&standin).copied()
    }

    fn keep(&self, standin: StandIn, known: &Known6) -> Result<(), NotAdded> {
        self.addresses.borrow_mut().entry(standin).or_insert(*known);
        Ok(())
    }

    fn touch(&self, standin: StandIn, used_ns: u64) {
        if let Some(known) = self.addresses.borrow_mut().get_mut(&standin) {
            known.used_ns = used_ns;
        }
    }

    fn serves_source6(&self, service: u32, address: &Address6) -> bool {
        self.sources6.borrow().iter().any(|(prefix, key)| {
            let differ = u128::from_be_bytes(key.address.octets()) ^ u128::from_be_bytes(address.octets());
            let mask = !u128::MAX.checked_shr(u32::from(*prefix)).unwrap_or(0);
            key.service == service && differ & mask == 0
        })
    }
}

/// Builds packets with correct checksums, and checks them.
pub mod wire {
    use std::{vec, vec::Vec};

    use pith_abi::{Tuple, proto};

    use super::Buffer;
    use crate::{
        checksum, crc,
        packet::{Header, Transport},
    };

    /// A packet of a tuple: TCP with these flags, UDP, or an ICMP echo.
    pub fn packet(tuple: &Tuple, tcp_flags: u8, payload: &[u8]) -> Buffer {
        let l4 = match tuple.proto {
            proto::TCP => {
                let mut header = [0; 20];
                header[..4].copy_from_slice(&ports(tuple));
                header[12] = 5 << 4;
                header[13] = tcp_flags;
                [&header, payload].concat()
            }
            proto::UDP => {
                let mut header = [0; 8];
                header[..4].copy_from_slice(&ports(tuple));
                header[4..6].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
                [&header, payload].concat()
            }
            proto::SCTP => {
                let mut header = [0; 12];
                header[..4].copy_from_slice(&ports(tuple));
                header[4..8].copy_from_slice(b"vtag");
                [&header, payload].concat()
            }
            _ => {
                let request = tuple.dport_be == 0;
                let mut header = [if request { 8 } else { 0 }, 0, 0, 0, 0, 0, 0, 7];
                header[4..6].copy_from_slice(&(tuple.sport_be | tuple.dport_be).to_ne_bytes());
                [&header, payload].concat()
            }
        };
        finish(tuple.src_be, tuple.dst_be, tuple.proto, l4)
    }

    /// An ICMP error from one address to another about a packet, of which it holds 28 bytes and more.
    pub fn error(kind: u8, src_be: u32, dst_be: u32, about: &Buffer) -> Buffer {
        let inside = &about.0[14..about.0.len().min(14 + 20 + 28)];
        let l4 = [&[kind, 1, 0, 0, 0, 0, 0, 0], inside].concat();
        finish(src_be, dst_be, proto::ICMP, l4)
    }

    /// The packet inside an ICMP error, behind an Ethernet header of zeroes.
    pub fn inside(error: &Buffer) -> Buffer {
        Buffer([&[0; 14], &error.0[14 + 20 + 8..]].concat())
    }

    fn ports(tuple: &Tuple) -> [u8; 4] {
        let (source, destination) = (tuple.sport_be.to_ne_bytes(), tuple.dport_be.to_ne_bytes());
        [source[0], source[1], destination[0], destination[1]]
    }

    fn finish(src_be: u32, dst_be: u32, proto: u8, mut l4: Vec<u8>) -> Buffer {
        let mut l3 = [0u8; 20];
        l3[0] = 0x45;
        l3[2..4].copy_from_slice(&((20 + l4.len()) as u16).to_be_bytes());
        l3[8] = 64;
        l3[9] = proto;
        l3[12..16].copy_from_slice(&src_be.to_ne_bytes());
        l3[16..20].copy_from_slice(&dst_be.to_ne_bytes());
        let sum = !sum(&l3);
        l3[10..12].copy_from_slice(&sum.to_ne_bytes());
        if proto == proto::SCTP {
            let sum = crc::full(&l4).to_le_bytes();
            l4[8..12].copy_from_slice(&sum);
            return Buffer([&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0], &l3[..], &l4].concat());
        }
        let at = field(proto);
        let sum = match !checksum_l4(src_be, dst_be, proto, &l4) {
            0 if proto == proto::UDP => 0xFFFF,
            sum => sum,
        };
        l4[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
        let mut ethernet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        ethernet.extend_from_slice(&l3);
        ethernet.extend_from_slice(&l4);
        Buffer(ethernet)
    }

    /// Computes every checksum of a packet anew; of UDP none stays none.
    pub fn complete(packet: &mut Buffer) {
        let header = Header::parse(packet).expect("an IPv4 packet");
        let (start, field) = (header.l4 as usize, header.l4 as usize + field(header.proto));
        let bytes = &mut packet.0;
        bytes[24..26].fill(0);
        let l3 = !sum(&bytes[14..start]);
        bytes[24..26].copy_from_slice(&l3.to_ne_bytes());
        if header.proto == proto::SCTP {
            bytes[start + 8..start + 12].fill(0);
            let sum = crc::full(&bytes[start..]).to_le_bytes();
            bytes[start + 8..start + 12].copy_from_slice(&sum);
            return;
        }
        if header.proto == proto::UDP && bytes[field..field + 2] == [0, 0] {
            return;
        }
        bytes[field..field + 2].fill(0);
        let l4 = match !checksum_l4(header.src_be, header.dst_be, header.proto, &bytes[start..]) {
            0 if header.proto == proto::UDP => 0xFFFF,
            sum => sum,
        };
        bytes[field..field + 2].copy_from_slice(&l4.to_ne_bytes());
    }

    fn field(proto: u8) -> usize {
        match proto {
            proto::TCP => 16,
            proto::UDP => 6,
            _ => 2,
        }
    }

    fn sum(bytes: &[u8]) -> u16 {
        let word = |pair: &[u8]| u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        checksum::fold(bytes.chunks(2).map(word).fold(0, checksum::add))
    }

    fn checksum_l4(src_be: u32, dst_be: u32, proto: u8, l4: &[u8]) -> u16 {
        if proto == proto::ICMP {
            return sum(l4);
        }
        let length = (l4.len() as u16).to_be_bytes();
        let pseudo = [&src_be.to_ne_bytes()[..], &dst_be.to_ne_bytes(), &[0, proto], &length].concat();
        sum(&[&pseudo, l4].concat())
    }

    /// Whether every checksum of a packet is right: a sum over what it covers gives all ones.
    pub fn checksums_hold(packet: &Buffer) -> bool {
        let header = Header::parse(packet).expect("an IPv4 packet");
        let (l3, l4) = (&packet.0[14..header.l4 as usize], &packet.0[header.l4 as usize..]);
        if header.proto == proto::SCTP {
            let zeroed = [&l4[..8], &[0; 4], &l4[12..]].concat();
            return sum(l3) == 0xFFFF && l4[8..12] == crc::full(&zeroed).to_le_bytes();
        }
        let none = header.proto == proto::UDP && l4[6..8] == [0, 0];
        sum(l3) == 0xFFFF && (none || checksum_l4(header.src_be, header.dst_be, header.proto, l4) == 0xFFFF)
    }

    /// The tuple of a packet.
    pub fn tuple(packet: &Buffer) -> Tuple {
        match Header::parse(packet).and_then(|header| header.transport(packet)) {
            Some(Transport::Flow { tuple, .. }) => tuple,
            other => panic!("no packet of a flow: {other:?}"),
        }
    }
}
