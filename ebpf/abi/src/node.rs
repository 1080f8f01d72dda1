//! What the programs know of the node they run on and of the others.

use crate::Address6;

/// What an address in NODES is: a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct NodeClass(pub u32);

impl NodeClass {
    /// An address of this node: its node ports answer there.
    pub const OWN: u32 = 1;
    /// An address of another node: pods reach it under their own address.
    pub const OTHER: u32 = 2;
    /// No node's address but one at which Services are reached from outside (load balancers, external
    /// addresses).
    pub const SERVICE: u32 = 4;
    /// This node answers for it by ARP, or as a neighbour of IPv6.
    pub const ANNOUNCED: u32 = 8;
}

/// Bits of [`NodeConfig::flags`].
pub struct NodeFlags;

impl NodeFlags {
    /// Pods reach what is neither a pod nor a node under the node's address.
    pub const MASQUERADE: u32 = 1;
    /// There are Services whose packets are handed on to their backends' nodes, or flows that were.
    pub const DIRECT: u32 = 2;
}

/// Configuration of the programs; all zero until the uplink is attached, when nothing is translated there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct NodeConfig {
    /// The address under which translated packets leave the uplink; 0 switches the uplink programs off.
    pub addr_be: u32,
    /// Addresses of this node's pods: `address & mask == net`. An empty mask means none.
    pub pod_net_be: u32,
    pub pod_mask_be: u32,
    /// Addresses of all pods.
    pub cluster_net_be: u32,
    pub cluster_mask_be: u32,
    /// Interface whose packets are translated.
    pub uplink: u32,
    /// Interface that leads to the pods' network, when translated packets for it are to go there past the
    /// host stack; 0 leaves them to the stack. A gateway's host need not forward then.
    pub inner: u32,
    /// [`NodeFlags`].
    pub flags: u32,
    /// Ports that translated sources are given, first and last, in the machine's byte order.
    pub snat_first: u16,
    pub snat_last: u16,
    /// Ethernet address of the uplink, under which Services' addresses are announced.
    pub mac: [u8; 6],
    pub zero: [u8; 6],
    /// Cookie of the node's network namespace: only there is 127.0.0.1 the node.
    pub netns_cookie: u64,
    /// Of [`crate::StandIn::nth`].
    pub seed: u64,
}

impl NodeConfig {
    /// Its elements in NODE: one for each family. That of IPv6 has stand-ins for addresses, no networks
    /// ([`Networks6`] has them), and no seed.
    pub const IPV4: u32 = 0;
    pub const IPV6: u32 = 1;

    #[inline(always)]
    pub const fn is_local_pod(&self, addr_be: u32) -> bool {
        self.pod_mask_be != 0 && addr_be & self.pod_mask_be == self.pod_net_be
    }

    #[inline(always)]
    pub const fn is_pod(&self, addr_be: u32) -> bool {
        self.cluster_mask_be != 0 && addr_be & self.cluster_mask_be == self.cluster_net_be
    }
}

/// IPv6 networks: this node's pods, and all pods. An empty mask means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Networks6 {
    pub pod_net: Address6,
    pub pod_mask: Address6,
    pub cluster_net: Address6,
    pub cluster_mask: Address6,
}

const _: () = {
    assert!(size_of::<NodeConfig>() == 64);
    assert!(size_of::<Networks6>() == 64);
};
