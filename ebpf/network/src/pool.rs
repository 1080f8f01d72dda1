//! Which pod of this replica has which address. Pure, but for reading and writing its file.
//!
//! Invariant: an address belongs to at most one pod, and one that was freed is used again only after all
//! others were: whoever still has it cached talks to nobody rather than to somebody else.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{addressing::nth, names::PodUid};

/// Network address, gateway and broadcast address are no pod's.
const RESERVED: u32 = 3;

/// All addresses are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {capacity} addresses of {net} are in use")]
pub struct Exhausted {
    /// The replica's pod CIDR.
    pub net: Ipv4Net,
    /// How many pods it can hold.
    pub capacity: u32,
}

/// The file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub struct PoolFileError {
    /// What was tried.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pool {
    net: Ipv4Net,
    /// Offset within `net` at which the next search begins.
    next: u32,
    pods: BTreeMap<PodUid, Ipv4Addr>,
}

impl Pool {
    pub(crate) fn new(net: Ipv4Net) -> Self {
        Self { net: net.trunc(), next: 2, pods: BTreeMap::new() }
    }

    /// The first address: the pods' gateway and name server.
    pub(crate) fn gateway(net: Ipv4Net) -> Ipv4Addr {
        nth(net.trunc(), 1)
    }

    pub(crate) fn get(&self, pod: &PodUid) -> Option<Ipv4Addr> {
        self.pods.get(pod).copied()
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = (&PodUid, Ipv4Addr)> {
        self.pods.iter().map(|(pod, address)| (pod, *address))
    }

    /// The pod's address; a new one unless it has one.
    pub(crate) fn allocate(&mut self, pod: &PodUid) -> Result<Ipv4Addr, Exhausted> {
        if let Some(address) = self.get(pod) {
            return Ok(address);
        }
        let size = 1_u64 << (32 - u32::from(self.net.prefix_len()));
        let capacity = u32::try_from(size).unwrap_or(u32::MAX).saturating_sub(RESERVED);
        for step in 0..capacity {
            let offset = 2 + (self.next.saturating_sub(2).wrapping_add(step)) % capacity;
            let address = nth(self.net, offset);
            if !self.pods.values().any(|used| *used == address) {
                self.next = offset + 1;
                self.pods.insert(pod.clone(), address);
                return Ok(address);
            }
        }
        Err(Exhausted { net: self.net, capacity })
    }

    pub(crate) fn free(&mut self, pod: &PodUid) -> Option<Ipv4Addr> {
        self.pods.remove(pod)
    }

    /// Reads the file that an earlier process wrote. A replica whose pod CIDR has changed keeps its
    /// running pods' addresses and gives new ones from the new subnet. Without a file, or with one that
    /// cannot be understood, the pool is empty: the caller compares it with the interfaces there are.
    pub(crate) fn load(path: &Path, net: Ipv4Net) -> Result<Self, PoolFileError> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new(net)),
            Err(source) => {
                return Err(PoolFileError { what: "read", path: path.to_owned(), source });
            }
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(pool) if pool.net == net.trunc() => Ok(pool),
            Ok(pool) => {
                tracing::warn!(was = %pool.net, now = %net, "the pod CIDR has changed");
                Ok(Self { pods: pool.pods, ..Self::new(net) })
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "addresses file is damaged: starting anew");
                Ok(Self::new(net))
            }
        }
    }

    /// Writes the file so that a process killed at any moment leaves the old or the new one. It is not
    /// forced to the disk: a power cut ends all pods, and with them the need for it.
    pub(crate) fn save(&self, path: &Path) -> Result<(), PoolFileError> {
        let failed = |what| move |source| PoolFileError { what, path: path.to_owned(), source };
        let text = serde_json::to_vec(self).expect("maps with text keys are JSON");
        let new = path.with_extension("new");
        fs::write(&new, text).map_err(failed("write beside"))?;
        fs::rename(&new, path).map_err(failed("replace"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: &str) -> PodUid {
        PodUid::parse(text).expect("valid")
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a subnet")
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_freed_address_waits_its_turn() {
        // Five pods fit: .2 to .6 of eight addresses.
        let mut pool = Pool::new(net("10.244.1.0/29"));
        assert_eq!(Pool::gateway(net("10.244.1.0/29")), ip("10.244.1.1"));
        assert_eq!(pool.allocate(&pod("a")), Ok(ip("10.244.1.2")));
        assert_eq!(pool.allocate(&pod("b")), Ok(ip("10.244.1.3")));
        assert_eq!(pool.allocate(&pod("a")), Ok(ip("10.244.1.2")), "the same again");
        assert_eq!(pool.free(&pod("a")), Some(ip("10.244.1.2")));
        assert_eq!(pool.free(&pod("a")), None);
        for (name, expect) in [("c", 4), ("d", 5), ("e", 6), ("f", 2)] {
            assert_eq!(pool.allocate(&pod(name)), Ok(Ipv4Addr::new(10, 244, 1, expect)), "{name}");
        }
        let error = pool.allocate(&pod("g")).expect_err("full");
        assert_eq!(error.to_string(), "all 5 addresses of 10.244.1.0/29 are in use");
        pool.free(&pod("d"));
        assert_eq!(pool.allocate(&pod("g")), Ok(ip("10.244.1.5")));
    }

    #[test]
    fn the_file_brings_everything_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("addresses.json");
        let subnet = net("10.244.1.0/24");
        assert_eq!(Pool::load(&path, subnet).expect("no file is fine"), Pool::new(subnet));

        let mut pool = Pool::new(subnet);
        pool.allocate(&pod("a")).expect("room");
        pool.allocate(&pod("b")).expect("room");
        pool.free(&pod("a"));
        pool.save(&path).expect("written");
        let mut back = Pool::load(&path, subnet).expect("read");
        assert_eq!(back, pool);
        assert_eq!(back.allocate(&pod("c")), Ok(ip("10.244.1.4")), "not a's at once");

        let mut moved = Pool::load(&path, net("10.244.9.0/24")).expect("read");
        assert_eq!(moved.get(&pod("b")), Some(ip("10.244.1.3")), "running pods keep theirs");
        assert_eq!(moved.allocate(&pod("c")), Ok(ip("10.244.9.2")));

        fs::write(&path, b"{").expect("written");
        assert_eq!(Pool::load(&path, subnet).expect("read"), Pool::new(subnet));
    }

    #[test]
    fn subnets_without_room_are_full() {
        for text in ["10.0.0.0/32", "10.0.0.0/31", "10.0.0.0/30"] {
            let mut pool = Pool::new(net(text));
            let room = pool.allocate(&pod("a")).is_ok();
            assert_eq!(room, text.ends_with("30"), "{text}");
        }
    }
}
