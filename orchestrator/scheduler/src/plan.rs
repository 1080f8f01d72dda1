//! [`plan`]: the node for a pod, or the reason why there is none. Pure.

use std::collections::BTreeMap;

use crate::books::{Books, Slot};
use crate::filter::{Filter, Reject, named_nodes};
use crate::pod::Pending;
use crate::score::scores;

/// Below this many nodes all are compared.
const COMPARE_ALL: usize = 100;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub slot: Slot,
    /// Where the next pod's search is to begin, so that all nodes get their turn.
    pub next: usize,
}

/// No node can take the pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    nodes: usize,
    /// How many nodes each reason keeps out.
    pub rejects: BTreeMap<Reject, usize>,
}

/// Chooses a node. `start` is where the search begins: it is the only thing that tells equal nodes apart.
/// The pending pod's groups must be counted ([`Books::count_groups`]).
pub(crate) fn plan(books: &Books, pending: &Pending, start: usize) -> Result<Chosen, Unfit> {
    let filter = Filter::new(books, pending);
    let mut rejects: BTreeMap<Reject, usize> = BTreeMap::new();
    let mut feasible = Vec::new();
    let mut check = |slot: Slot| {
        let Some(host) = books.host(slot) else { return 0 };
        match filter.check(host) {
            Ok(()) => feasible.push(slot),
            Err(reject) => *rejects.entry(reject).or_default() += 1,
        }
        feasible.len()
    };
    let slots = books.slots().max(1);
    let mut next = start % slots;
    match named_nodes(&pending.spec) {
        Some(names) => {
            let known: Vec<Slot> = names.into_iter().filter_map(|name| books.slot_of(name)).collect();
            let others = books.len() - known.len();
            for slot in known {
                check(slot);
            }
            if others > 0 {
                rejects.insert(Reject::NotNamed, others);
            }
        }
        None => {
            let enough = nodes_to_find(books.len());
            for _ in 0..books.slots() {
                let found = check(Slot(next as u32));
                next = (next + 1) % slots;
                if found >= enough {
                    break;
                }
            }
        }
    }
    match best(books, pending, &feasible) {
        Some(slot) => Ok(Chosen { slot, next }),
        None => Err(Unfit { nodes: books.len(), rejects }),
    }
}

fn best(books: &Books, pending: &Pending, feasible: &[Slot]) -> Option<Slot> {
    if let [only] = feasible {
        return Some(*only);
    }
    let scores = scores(books, pending, feasible);
    let mut best: Option<(i64, Slot)> = None;
    for (score, slot) in scores.into_iter().zip(feasible) {
        // The first of equals wins.
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, *slot));
        }
    }
    best.map(|(_, slot)| slot)
}

/// How many feasible nodes are enough to choose among: all of few, a tenth of thousands
/// (upstream's adaptive percentageOfNodesToScore).
fn nodes_to_find(nodes: usize) -> usize {
    if nodes < COMPARE_ALL {
        return nodes.max(1);
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(COMPARE_ALL)
}

impl Unfit {
    #[cfg(test)]
    pub(crate) fn new(nodes: usize, rejects: BTreeMap<Reject, usize>) -> Self {
        Self { nodes, rejects }
    }

    /// As upstream words it, for the pod's condition and event.
    pub(crate) fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (reject, nodes) in &self.rejects {
            for text in reject.texts() {
                *counts.entry(text).or_default() += nodes;
            }
        }
        let head = format!("0/{} nodes are available", self.nodes);
        format!("{head}: {}. preemption: {head}: {}.", listed(&counts), listed(&self.preemption()))
    }

    /// Pods are never preempted yet; this says whether that could have helped at all.
    fn preemption(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (reject, nodes) in &self.rejects {
            let text = if reject.is_resolvable() {
                "No preemption victims found for incoming pod"
            } else {
                "Preemption is not helpful for scheduling"
            };
            *counts.entry(text.to_owned()).or_default() += nodes;
        }
        counts
    }
}

/// `1 Insufficient cpu, 2 node(s) were unschedulable`, in the order of the texts with their numbers.
fn listed(counts: &BTreeMap<String, usize>) -> String {
    let mut texts: Vec<String> = counts.iter().map(|(text, nodes)| format!("{nodes} {text}")).collect();
    texts.sort();
    texts.join(", ")
}

#[cfg(test)]
mod tests;
