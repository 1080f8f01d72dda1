//! The maps, and the core's view of them.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_sock_addr},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, lpm_trie},
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
    macros::btf_map,
};
use pith_abi::{
    Address6, Affinity, AffinityKey, AtPods, Backend, Connected, Flow, FlowState, Fragment, FragmentKey,
    Frontend, FrontendTarget, HandedOn, Known6, Networks6, NodeClass, NodeConfig, Parked, ParkedKey, Peers,
    REASON_COUNT, Reason, ServerKey, Service, SourceKey, SourceKey6, StandIn, Tuple, default_limit,
};
use pith_core::{
    NotAdded, Record, Tables,
    crc::{CARRIES, Carry},
    six::Addresses,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static FRONTENDS: HashMap<Frontend, FrontendTarget, { default_limit::FRONTENDS as usize }, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
static SERVICES: Array<Service, { default_limit::SERVICES as usize }> = Array::new();
#[btf_map]
static BACKENDS: Array<Backend, { default_limit::BACKENDS as usize }> = Array::new();
#[btf_map]
static AFFINITY: LruHashMap<AffinityKey, Affinity, { default_limit::AFFINITY as usize }> = LruHashMap::new();
#[btf_map]
pub(crate) static CONNECTED: Array<Connected, { default_limit::SOCKETS as usize }> = Array::new();
#[btf_map]
pub(crate) static PEERS: SkStorage<Peers> = SkStorage::new();
#[btf_map]
static ADDRESSES: HashMap<StandIn, Known6, { (default_limit::ADDRESSES + default_limit::FLOWS) as usize }, NO_PREALLOC> =
    HashMap::new();
#[btf_map]
static FLOWS: HashMap<Tuple, Flow, { default_limit::FLOWS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static FORWARD: HashMap<Tuple, Tuple, { default_limit::FLOWS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static HANDED_ON: HashMap<Tuple, HandedOn, { default_limit::FLOWS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static SOURCES: LpmTrie<SourceKey, u32, { default_limit::SOURCES as usize }> = LpmTrie::new();
#[btf_map]
static SOURCES6: LpmTrie<SourceKey6, u32, { default_limit::SOURCES as usize }> = LpmTrie::new();
#[btf_map]
static SERVERS: HashMap<ServerKey, Backend, { default_limit::SERVERS as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { default_limit::FRAGMENTS as usize }> =
    LruHashMap::new();
#[btf_map]
pub(crate) static PARKED: LruHashMap<ParkedKey, Parked, { default_limit::PARKED as usize }> =
    LruHashMap::new();
/// Where a piece is put together that is too large for the stack.
#[btf_map]
pub(crate) static PARKING: PerCpuArray<Parked, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static CARRY: Array<Carry, { CARRIES }> = Array::new();
#[btf_map]
static AT_PODS: Array<u64, { AtPods::WORDS as usize }> = Array::new();
#[btf_map]
static NODES: HashMap<u32, NodeClass, { default_limit::NODES as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static NODE: Array<NodeConfig, 2> = Array::new();
#[btf_map]
static NODE6: Array<Networks6, 1> = Array::new();
/// Connections that sockets made, by Service.
#[btf_map]
static CONNECTIONS: PerCpuArray<u64, { default_limit::SERVICES as usize }> = PerCpuArray::new();
#[btf_map]
static REASONS: PerCpuArray<u64, REASON_COUNT> = PerCpuArray::new();

/// Counts a verdict's reason on this CPU.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: the pointer is to this CPU's element. A program that preempts this one between load and
        // store may lose one count, which a counter of reasons can bear.
        unsafe { *counter += 1 };
    }
}

/// Counts a socket's connection to a Service on this CPU.
#[inline(always)]
pub(crate) fn count_connection(service: u32) {
    if let Some(counter) = CONNECTIONS.get_ptr_mut(service) {
        // SAFETY: as above.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
fn at_pods(word: u32) -> u64 {
    // SAFETY: array elements are never freed; one word, so it is whole.
    AT_PODS.get_ptr(word).map_or(0, |count| unsafe { ptr::read_volatile(count) })
}

/// The maps as the core asks for them.
#[derive(Clone, Copy)]
pub(crate) struct Maps {
    /// The context of a hook at a socket call; null for a packet.
    pub(crate) socket: *mut bpf_sock_addr,
}

impl Maps {
    pub(crate) const PACKET: Self = Self { socket: ptr::null_mut() };
}

/// A flow's record in FLOWS.
pub(crate) struct FlowRecord(*mut Flow);

impl Record for FlowRecord {
    #[inline(always)]
    fn get(&self) -> Flow {
        // SAFETY: the element stays mapped while the program runs. Other CPUs may change it at the same
        // time: its fields are words of which each is valid by itself.
        unsafe { *self.0 }
    }

    #[inline(always)]
    fn set_life(&self, state: FlowState, last_ns: u64) {
        // SAFETY: as above.
        unsafe {
            (*self.0).state = state as u8;
            (*self.0).last_ns = last_ns;
        }
    }

    #[inline(always)]
    fn replace(&self, flow: &Flow) {
        // SAFETY: as above.
        unsafe { *self.0 = *flow }
    }
}

impl Tables for Maps {
    type Record<'a> = FlowRecord;

    #[inline(always)]
    fn node(&self) -> Option<&NodeConfig> {
        NODE.get(NodeConfig::IPV4)
    }

    #[inline(always)]
    fn node_class(&self, addr_be: u32) -> u32 {
        match NODES.get_ptr(addr_be) {
            // SAFETY: a value in a hash map stays mapped while the program runs (RCU).
            Some(class) => unsafe { ptr::read_volatile(class) }.0,
            None => 0,
        }
    }

    #[inline(always)]
    fn frontend(&self, frontend: &Frontend) -> Option<FrontendTarget> {
        // SAFETY: as above; one word, so it is whole, and it says itself whether it is the right one.
        FRONTENDS.get_ptr(frontend).map(|target| unsafe { ptr::read_volatile(target) })
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<Service> {
        let service = SERVICES.get_ptr(index)?;
        // SAFETY: array elements are never freed. Volatile, so that the head is loaded exactly once.
        let head = unsafe { ptr::read_volatile(&raw const (*service).head) };
        // SAFETY: as above.
        let affinity_ns = unsafe { ptr::read_volatile(&raw const (*service).affinity_ns) };
        Some(Service { head, affinity_ns })
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<Backend> {
        // SAFETY: as above.
        BACKENDS.get_ptr(slot).map(|backend| unsafe { ptr::read_volatile(backend) })
    }

    #[inline(always)]
    fn server(&self, key: &ServerKey) -> Option<Backend> {
        // SAFETY: a value in a hash map stays mapped while the program runs; one word, so it is whole.
        SERVERS.get_ptr(key).map(|backend| unsafe { ptr::read_volatile(backend) })
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: the element stays mapped. An LRU map may give it to another key meanwhile: then a
        // backend is looked for in the generation that it is not in, and another one chosen.
        AFFINITY.get_ptr(key).map(|affinity| unsafe { *affinity })
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, affinity: &Affinity) {
        // An LRU map makes room by itself; should it fail, the client is balanced anew next time.
        let _ = AFFINITY.insert(key, affinity, BPF_ANY.into());
    }

    #[inline(always)]
    fn flow(&self, key: &Tuple) -> Option<FlowRecord> {
        FLOWS.get_ptr_mut(key).map(FlowRecord)
    }

    #[inline(always)]
    fn add_flow(&self, key: &Tuple, flow: &Flow) -> Result<(), NotAdded> {
        FLOWS.insert(key, flow, BPF_NOEXIST.into()).map_err(not_added)
    }

    #[inline(always)]
    fn remove_flow(&self, key: &Tuple) {
        // It may be gone already.
        let _ = FLOWS.remove(key);
    }

    #[inline(always)]
    fn forward(&self, forward: &Tuple) -> Option<Tuple> {
        // SAFETY: as for `flow`; whether the key leads to this flow is checked against its record.
        FORWARD.get_ptr(forward).map(|key| unsafe { *key })
    }

    #[inline(always)]
    fn set_forward(&self, forward: &Tuple, key: &Tuple) -> Result<(), NotAdded> {
        FORWARD.insert(forward, key, BPF_ANY.into()).map_err(not_added)
    }

    #[inline(always)]
    fn serves_source(&self, service: u32, addr_be: u32) -> bool {
        SOURCES.get(&lpm_trie::Key::new(64, SourceKey { service, addr_be })).is_some()
    }

    #[inline(always)]
    fn handed_on(&self, tuple: &Tuple) -> Option<HandedOn> {
        // SAFETY: the element stays mapped while the program runs. Its node is written once; the rest are words of
        // which each is valid by itself.
        HANDED_ON.get_ptr(tuple).map(|flow| unsafe { *flow })
    }

    #[inline(always)]
    fn set_handed_on(&self, tuple: &Tuple, flow: &HandedOn) -> Result<(), NotAdded> {
        HANDED_ON.insert(tuple, flow, BPF_ANY.into()).map_err(not_added)
    }

    #[inline(always)]
    fn note_handed_on(&self, tuple: &Tuple, state: FlowState, last_ns: u64) {
        if let Some(flow) = HANDED_ON.get_ptr_mut(tuple) {
            // SAFETY: as above.
            unsafe {
                (*flow).state = state as u8;
                (*flow).last_ns = last_ns;
            }
        }
    }

    #[inline(always)]
    fn pods_have_flows(&self) -> bool {
        at_pods(AtPods::BEGUN) != at_pods(AtPods::SETTLED)
    }

    #[inline(always)]
    fn pod_flow_begun(&self) {
        let mark = (u64::from(self.random()) << 32) | u64::from(self.random());
        if let Some(begun) = AT_PODS.get_ptr_mut(AtPods::BEGUN) {
            // SAFETY: array elements are never freed; one word, so it is written whole.
            unsafe { ptr::write_volatile(begun, mark) };
        }
    }

    #[inline(always)]
    fn any_gone(&self) -> bool {
        at_pods(AtPods::GONE) != 0
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: the element stays mapped. An LRU map may give it to another datagram meanwhile, whose
        // addresses the piece then gets, and is refused by: as if it had been lost.
        FRAGMENTS.get_ptr(key).map(|fragment| unsafe { *fragment })
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        // Where it fails the other pieces are lost, as pieces may be.
        let _ = FRAGMENTS.insert(key, fragment, BPF_ANY.into());
    }

    #[inline(always)]
    fn any_parked(&self, key: &FragmentKey) -> bool {
        PARKED.get_ptr(&ParkedKey { fragment: *key, nth: 0 }).is_some()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no precondition.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: the helper has no precondition.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        if self.socket.is_null() {
            return 0;
        }
        // SAFETY: the context is the one the kernel gave.
        unsafe { bpf_get_netns_cookie(self.socket.cast()) }
    }
}

/// -EEXIST means taken; -E2BIG and -ENOMEM mean that there is no room.
#[inline(always)]
fn not_added(errno: i32) -> NotAdded {
    const EEXIST: i32 = 17;
    if errno == -EEXIST { NotAdded::Exists } else { NotAdded::Full }
}

impl Addresses for Maps {
    #[inline(always)]
    fn node6(&self) -> Option<&NodeConfig> {
        NODE.get(NodeConfig::IPV6)
    }

    #[inline(always)]
    fn networks(&self) -> Option<&Networks6> {
        NODE6.get(0)
    }

    #[inline(always)]
    fn seed(&self) -> u64 {
        self.node().map_or(0, |node| node.seed)
    }

    #[inline(always)]
    fn known(&self, standin: StandIn) -> Option<Known6> {
        // SAFETY: the element stays mapped while the program runs. Its address is written once; it may be another's only
        // minutes after nothing has led here.
        ADDRESSES.get_ptr(&standin).map(|known| unsafe { *known })
    }

    #[inline(always)]
    fn keep(&self, standin: StandIn, known: &Known6) -> Result<(), NotAdded> {
        match ADDRESSES.insert(&standin, known, BPF_NOEXIST.into()).map_err(not_added) {
            Err(NotAdded::Exists) => Ok(()),
            other => other,
        }
    }

    #[inline(always)]
    fn touch(&self, standin: StandIn, used_ns: u64) {
        if let Some(known) = ADDRESSES.get_ptr_mut(&standin) {
            // SAFETY: as above; one word, so it is written whole.
            unsafe { ptr::write_volatile(&raw mut (*known).used_ns, used_ns) };
        }
    }

    #[inline(always)]
    fn serves_source6(&self, service: u32, address: &Address6) -> bool {
        SOURCES6.get(&lpm_trie::Key::new(160, SourceKey6 { service, address: *address })).is_some()
    }
}
