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
/// The books must be prepared for the pending pod ([`Books::prepare`]).
pub(crate) fn plan(books: &Books, pending: &Pending, start: usize) -> Result<Chosen, Unfit> {
    let filter = Filter::new(books, pending);
    let fits = |slot: &Slot| books.host(*slot).is_some_and(|host| filter.fits(*slot, host));
    let slots = books.slots().max(1);
    let mut next = start % slots;
    let enough = nodes_to_find(books.len());
    let named: Option<Vec<Slot>> = named_nodes(&pending.spec)
        .map(|names| names.into_iter().filter_map(|name| books.slot_of(name)).collect());
    let feasible: Vec<Slot> = match &named {
        Some(named) => named.iter().copied().filter(fits).collect(),
        None => {
            let round = (0..books.slots()).map(|step| Slot(((start + step) % slots) as u32));
            let found: Vec<Slot> = round.filter(fits).take(enough).collect();
            if let Some(last) = found.last().filter(|_| found.len() == enough) {
                next = (last.0 as usize + 1) % slots;
            }
            found
        }
    };
    match best(books, pending, &feasible) {
        Some(slot) => Ok(Chosen { slot, next }),
        None => Err(unfit(books, &filter, named)),
    }
}

/// What keeps out each of the nodes.
fn unfit(books: &Books, filter: &Filter<'_>, named: Option<Vec<Slot>>) -> Unfit {
    let mut rejects: BTreeMap<Reject, usize> = BTreeMap::new();
    let others = named.as_ref().map_or(0, |named| books.len() - named.len());
    if others > 0 {
        rejects.insert(Reject::NotNamed, others);
    }
    let asked = named.unwrap_or_else(|| books.hosts().map(|(slot, _)| slot).collect());
    for slot in asked {
        let Some(host) = books.host(slot) else { continue };
        if let Err(reject) = filter.check(slot, host) {
            *rejects.entry(reject).or_default() += 1;
        }
    }
    Unfit { nodes: books.len(), rejects }
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
