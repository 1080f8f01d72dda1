//! [`Topology`]: in which domain of a topology each node is, by number, so that a walk over thousands of nodes
//! compares numbers instead of looking up labels; and [`Tally`]: one sum a domain. Pure.

use std::collections::HashMap;

use crate::books::{Count, Slot};

/// Domains that no node is in any more are kept until they are this many more than the nodes.
const STALE: usize = 1024;

/// The number of a domain within its topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Domain(u32);

/// The values that the nodes have of one label.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    numbers: HashMap<String, Domain>,
    /// By slot.
    domains: Vec<Option<Domain>>,
}

impl Topology {
    pub(crate) fn of<'a>(nodes: impl Iterator<Item = (Slot, Option<&'a str>)>) -> Self {
        let mut topology = Self::default();
        for (slot, label) in nodes {
            topology.set(slot, label);
        }
        topology
    }

    /// The node's label is this one now.
    pub(crate) fn set(&mut self, slot: Slot, label: Option<&str>) {
        let next = Domain(self.numbers.len() as u32);
        let domain = label.map(|label| match self.numbers.get(label) {
            Some(domain) => *domain,
            None => *self.numbers.entry(label.to_owned()).or_insert(next),
        });
        let index = slot.0 as usize;
        if self.domains.len() <= index {
            self.domains.resize(index + 1, None);
        }
        self.domains[index] = domain;
    }

    /// Whether most domains are those of nodes that are gone: time to build it anew.
    pub(crate) fn is_stale(&self) -> bool {
        self.numbers.len() > self.domains.len() + STALE
    }

    fn domain(&self, slot: Slot) -> Option<Domain> {
        self.domains.get(slot.0 as usize).copied().flatten()
    }
}

/// A sum for each domain of a topology that anything was added for.
pub(crate) struct Tally<'a> {
    topology: &'a Topology,
    sums: Vec<Option<i64>>,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(topology: &'a Topology) -> Self {
        Self { topology, sums: vec![None; topology.numbers.len()] }
    }

    /// The pods of a group, each counting so much.
    pub(crate) fn of(topology: &'a Topology, count: Option<&Count>, weight: i64) -> Self {
        let mut tally = Self::new(topology);
        tally.add_count(count, weight);
        tally
    }

    pub(crate) fn add_count(&mut self, count: Option<&Count>, weight: i64) {
        for (slot, pods) in count.into_iter().flatten() {
            self.add(*slot, weight * i64::from(*pods));
        }
    }

    /// Adds to the sum of the domain that the node is in. A node in none changes nothing.
    pub(crate) fn add(&mut self, slot: Slot, number: i64) {
        if let Some(Domain(domain)) = self.topology.domain(slot) {
            *self.sums[domain as usize].get_or_insert(0) += number;
        }
    }

    /// The sum of the node's domain, if anything was added for it.
    pub(crate) fn at(&self, slot: Slot) -> Option<i64> {
        self.topology.domain(slot).and_then(|Domain(domain)| self.sums[domain as usize])
    }

    /// Whether the node is in any domain.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.topology.domain(slot).is_some()
    }

    /// The domains that anything was added for.
    pub(crate) fn sums(&self) -> impl Iterator<Item = i64> {
        self.sums.iter().flatten().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sums().next().is_none()
    }

    pub(crate) fn is_of(&self, topology: &Topology) -> bool {
        std::ptr::eq(self.topology, topology)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_kept_by_domain() {
        let labels = [Some("x"), Some("y"), None, Some("x")];
        let slots = (0..).map(Slot).zip(labels);
        let mut topology = Topology::of(slots);
        let count = Count::from_iter([(Slot(0), 2), (Slot(2), 5), (Slot(3), 1)]);
        let tally = Tally::of(&topology, Some(&count), 10);
        let shown: Vec<_> = (0..5).map(|slot| tally.at(Slot(slot))).collect();
        assert_eq!(shown, [Some(30), None, None, Some(30), None]);
        assert_eq!((tally.has(Slot(1)), tally.has(Slot(2)), tally.is_empty()), (true, false, false));
        topology.set(Slot(3), Some("y"));
        topology.set(Slot(0), None);
        let tally = Tally::of(&topology, Some(&count), 1);
        assert_eq!(tally.sums().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn domains_of_nodes_that_are_gone_are_noticed() {
        let mut topology = Topology::default();
        for number in 0..=STALE {
            topology.set(Slot(0), Some(&format!("host-{number}")));
            assert!(!topology.is_stale());
        }
        topology.set(Slot(0), Some("one more"));
        assert!(topology.is_stale());
    }
}
