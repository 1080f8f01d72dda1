//! How good each of the nodes is that can take a pod: upstream's score plugins with their weights. Pure.

use pith_api::placement;

use crate::books::{Books, Count, Host, Slot};
use crate::pod::{Pending, Wish};
use crate::topology::Tally;

/// The best score of one plugin.
const BEST: i64 = 100;
const HOSTNAME: &str = "kubernetes.io/hostname";

/// One score a slot, in the same order; the highest is best.
pub(crate) fn scores(books: &Books, pending: &Pending, feasible: &[Slot]) -> Vec<i64> {
    let hosts: Vec<(Slot, &Host)> =
        feasible.iter().filter_map(|slot| Some((*slot, books.host(*slot)?))).collect();
    let mut total: Vec<i64> =
        hosts.iter().map(|(_, host)| least_allocated(host, pending) + balanced(host, pending)).collect();
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (total, score) in total.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    if hosts.iter().any(|(_, host)| !host.taints.is_empty()) {
        let repelling = hosts.iter().map(|(_, host)| repelling_taints(host, pending)).collect();
        add(3, lowest_best(repelling));
    }
    if !pending.preferred_nodes.is_empty() {
        add(2, highest_best(hosts.iter().map(|(_, host)| preferred_node(host, pending)).collect()));
    }
    if !pending.soft_spread.is_empty() {
        add(2, spread(books, pending, &hosts));
    }
    if let Some(wishes) = pod_wishes(books, pending, &hosts) {
        add(2, between(wishes));
    }
    total
}

/// The more is left, the better.
fn least_allocated(host: &Host, pending: &Pending) -> i64 {
    let left = |total: i64, used: i64| {
        if total <= 0 || used > total { 0 } else { (total - used) * BEST / total }
    };
    let pod = &pending.pod.weighed;
    let cpu = left(host.allocatable.milli_cpu, host.weighed.milli_cpu + pod.milli_cpu);
    let memory = left(host.allocatable.memory, host.weighed.memory + pod.memory);
    (cpu + memory) / 2
}

/// The more evenly CPU and memory are used, the better.
fn balanced(host: &Host, pending: &Pending) -> i64 {
    // In thousandths; both fit i64 by far, memory being at most 2^63 / 1000 bytes.
    let share = |total: i64, used: i64| {
        if total <= 0 { 1000 } else { (i128::from(used) * 1000 / i128::from(total)).min(1000) as i64 }
    };
    let pod = &pending.pod.requested;
    let cpu = share(host.allocatable.milli_cpu, host.used.milli_cpu + pod.milli_cpu);
    let memory = share(host.allocatable.memory, host.used.memory + pod.memory);
    // The standard deviation of two values is half their distance.
    (1000 - (cpu - memory).abs() / 2) * BEST / 1000
}

fn repelling_taints(host: &Host, pending: &Pending) -> i64 {
    let taints = host.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    let tolerated =
        |taint: &&_| pending.tolerations().iter().any(|toleration| placement::tolerates(toleration, taint));
    taints.filter(|taint| !tolerated(taint)).count() as i64
}

fn preferred_node(host: &Host, pending: &Pending) -> i64 {
    let terms = pending.preferred_nodes.iter();
    terms
        .filter(|term| placement::term_matches(&term.preference, &host.node))
        .map(|term| i64::from(term.weight))
        .sum()
}

/// The fewer members the node's domains have, the better; domains count the more, the more there are.
fn spread(books: &Books, pending: &Pending, hosts: &[(Slot, &Host)]) -> Vec<i64> {
    let mut crowd = vec![0.0f64; hosts.len()];
    let mut left_out = vec![false; hosts.len()];
    for constraint in &pending.soft_spread {
        let members = books.members(&constraint.group);
        if constraint.topology_key.as_ref() == HOSTNAME {
            let weight = (hosts.len() as f64 + 2.0).ln();
            for (index, (slot, _)) in hosts.iter().enumerate() {
                let here = members.and_then(|members| members.get(slot)).copied().unwrap_or(0);
                crowd[index] += f64::from(here) * weight + f64::from(constraint.max_skew - 1);
            }
            continue;
        }
        let Some(topology) = books.topology(&constraint.topology_key) else { continue };
        let domains = Tally::of(topology, members, 1);
        let mut compared = Tally::new(topology);
        hosts.iter().for_each(|(slot, _)| compared.add(*slot, 1));
        let weight = (compared.sums().count() as f64 + 2.0).ln();
        for (index, (slot, _)) in hosts.iter().enumerate() {
            if !domains.has(*slot) {
                left_out[index] |= !pending.default_spread;
                continue;
            }
            let here = domains.at(*slot).unwrap_or(0) as f64;
            crowd[index] += here * weight + f64::from(constraint.max_skew - 1);
        }
    }
    let taking_part =
        || crowd.iter().zip(&left_out).filter(|(_, out)| !**out).map(|(crowd, _)| crowd.round());
    let most = taking_part().fold(0.0, f64::max);
    let least = taking_part().fold(f64::INFINITY, f64::min);
    let score = |(crowd, out): (&f64, &bool)| {
        if *out {
            0
        } else if most == 0.0 {
            BEST
        } else {
            (BEST as f64 * (most + least - crowd.round()) / most) as i64
        }
    };
    crowd.iter().zip(&left_out).map(score).collect()
}

/// What the pod wishes of those that are there, and they of it; none where nobody wishes anything.
fn pod_wishes(books: &Books, pending: &Pending, hosts: &[(Slot, &Host)]) -> Option<Vec<i64>> {
    let mut tallies: Vec<Tally<'_>> = Vec::new();
    let mut note = |key: &str, count: &Count, weight: i32| {
        let Some(topology) = books.topology(key) else { return };
        let known = tallies.iter().position(|tally| tally.is_of(topology));
        let index = known.unwrap_or_else(|| {
            tallies.push(Tally::new(topology));
            tallies.len() - 1
        });
        tallies[index].add_count(Some(count), i64::from(weight));
    };
    for (term, weight) in &pending.preferred_pods {
        if let Some(count) = books.members(&term.group) {
            note(&term.topology_key, count, *weight);
        }
    }
    for carried in books.carried_about(&pending.pod) {
        if let Wish::Prefer(weight) = carried.wish {
            note(&carried.term.topology_key, &carried.count, weight);
        }
    }
    if tallies.iter().all(Tally::is_empty) {
        return None;
    }
    let sum = |slot: Slot| tallies.iter().filter_map(|tally| tally.at(slot)).sum();
    Some(hosts.iter().map(|(slot, _)| sum(*slot)).collect())
}

/// Scales so that the highest is best and zero is zero.
fn highest_best(raw: Vec<i64>) -> Vec<i64> {
    let most = raw.iter().copied().max().unwrap_or(0);
    raw.into_iter().map(|value| if most == 0 { 0 } else { value * BEST / most }).collect()
}

/// Scales so that zero is best and the highest is zero.
fn lowest_best(raw: Vec<i64>) -> Vec<i64> {
    let most = raw.iter().copied().max().unwrap_or(0);
    raw.into_iter().map(|value| if most == 0 { BEST } else { BEST - value * BEST / most }).collect()
}

/// Scales so that the lowest is zero and the highest is best.
fn between(raw: Vec<i64>) -> Vec<i64> {
    let (least, most) = (raw.iter().copied().min().unwrap_or(0), raw.iter().copied().max().unwrap_or(0));
    raw.into_iter()
        .map(|value| if most == least { 0 } else { (value - least) * BEST / (most - least) })
        .collect()
}
