//! How good each of the nodes is that can take a pod: upstream's score plugins with their weights. Pure.

use std::collections::HashMap;

use pith_api::placement;

use crate::books::{Books, Count, Host, Slot};
use crate::pod::{Pending, Spread, Wish};

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
    if hosts.iter().any(|(_, host)| !host.taints().is_empty()) {
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
    let taints = host.taints().iter().filter(|taint| taint.effect == "PreferNoSchedule");
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
        let empty = Count::default();
        let members = books.members(&constraint.group).unwrap_or(&empty);
        let by_host = constraint.topology_key.as_ref() == HOSTNAME;
        let domains = if by_host { HashMap::new() } else { by_domain(books, constraint, members) };
        let known: std::collections::HashSet<&str> = if by_host {
            Default::default()
        } else {
            hosts.iter().filter_map(|(_, host)| host.label(&constraint.topology_key)).collect()
        };
        let size = if by_host { hosts.len() } else { known.len() };
        let weight = (size as f64 + 2.0).ln();
        for (index, (slot, host)) in hosts.iter().enumerate() {
            let here = if by_host {
                members.get(slot).copied().unwrap_or(0)
            } else {
                match host.label(&constraint.topology_key) {
                    Some(domain) => domains.get(domain).copied().unwrap_or(0),
                    None if pending.default_spread => continue,
                    None => {
                        left_out[index] = true;
                        continue;
                    }
                }
            };
            crowd[index] += f64::from(here) * weight + f64::from(constraint.max_skew - 1);
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

fn by_domain<'a>(books: &'a Books, constraint: &Spread, members: &Count) -> HashMap<&'a str, u32> {
    let mut domains = HashMap::new();
    for (slot, count) in members {
        if let Some(domain) = books.host(*slot).and_then(|host| host.label(&constraint.topology_key)) {
            *domains.entry(domain).or_default() += count;
        }
    }
    domains
}

/// What the pod wishes of those that are there, and they of it; none where nobody wishes anything.
fn pod_wishes(books: &Books, pending: &Pending, hosts: &[(Slot, &Host)]) -> Option<Vec<i64>> {
    let mut domains: HashMap<(&str, &str), i64> = HashMap::new();
    let mut note = |key, count: &Count, weight: i32| {
        for (slot, pods) in count {
            if let Some(domain) = books.host(*slot).and_then(|host| host.label(key)) {
                *domains.entry((key, domain)).or_default() += i64::from(weight) * i64::from(*pods);
            }
        }
    };
    for (term, weight) in &pending.preferred_pods {
        if let Some(count) = books.members(&term.group) {
            note(term.topology_key.as_ref(), count, *weight);
        }
    }
    for carried in books.carried_about(&pending.pod) {
        if let Wish::Prefer(weight) = carried.wish {
            note(carried.term.topology_key.as_ref(), &carried.count, weight);
        }
    }
    if domains.is_empty() {
        return None;
    }
    let sum = |host: &Host| {
        let here = domains.iter().filter(|((key, domain), _)| host.label(key) == Some(domain));
        here.map(|(_, weight)| *weight).sum()
    };
    if domains.len() <= 8 {
        return Some(hosts.iter().map(|(_, host)| sum(host)).collect());
    }
    // Many domains (hosts, mostly): look up each host's own instead of going through all of them.
    let keys: std::collections::HashSet<&str> = domains.keys().map(|(key, _)| *key).collect();
    let own = |host: &Host| {
        let here = keys.iter().filter_map(|key| domains.get(&(*key, host.label(key)?)));
        here.sum()
    };
    Some(hosts.iter().map(|(_, host)| own(host)).collect())
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
