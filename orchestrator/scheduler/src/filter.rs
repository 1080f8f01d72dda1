//! Which nodes can take a pod, and what keeps each of the others from it. Pure.
//!
//! [`Filter::new`] gathers what is the same for all nodes once a pod; [`Filter::fits`] is then cheap a node.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{NodeSelectorTerm, PodSpec, Taint};
use pith_api::placement;

use crate::books::{Books, Count, Host, Slot};
use crate::pod::{Pending, Spread, Term, Wish};
use crate::topology::Tally;

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Why a node cannot take the pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reject {
    Unschedulable,
    NodeName,
    /// Key and value of the taint.
    Taint(String, String),
    NodeAffinity,
    /// The pod is bound to nodes by name, and this is none of them.
    NotNamed,
    Ports,
    /// What is lacking, and whether more is asked for than the node has at all.
    Resources(Vec<String>, bool),
    Spread,
    SpreadLabel,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
}

impl Reject {
    /// As upstream's plugins word it; lacking resources are counted one by one.
    pub(crate) fn texts(&self) -> Vec<String> {
        let text = match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::NodeName => "node(s) didn't match the requested node name",
            Self::Taint(key, value) => {
                return vec![format!("node(s) had untolerated taint {{{key}: {value}}}")];
            }
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::NotNamed => "node(s) didn't satisfy plugin(s) [NodeAffinity]",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::Resources(lacking, _) => return lacking.clone(),
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::PodAffinity => "node(s) didn't match pod affinity rules",
            Self::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        };
        vec![text.to_owned()]
    }

    /// Whether the node could take the pod if other pods went.
    pub(crate) fn is_resolvable(&self) -> bool {
        match self {
            Self::Ports | Self::Spread | Self::PodAntiAffinity | Self::ExistingAntiAffinity => true,
            Self::Resources(_, never) => !never,
            Self::Unschedulable
            | Self::NodeName
            | Self::Taint(..)
            | Self::NodeAffinity
            | Self::NotNamed
            | Self::SpreadLabel
            | Self::PodAffinity => false,
        }
    }
}

/// What is asked of every node.
pub(crate) struct Filter<'a> {
    pending: &'a Pending,
    /// Only then are the nodes' labels looked at, which lie far apart in memory.
    chooses_by_label: bool,
    /// Domains with pods that this one must not meet.
    forbidden: Vec<(Tally<'a>, Reject)>,
    /// Domains with pods that this one must be near.
    wanted: Vec<Tally<'a>>,
    /// No pod matches the affinity yet, but this one does itself: it may be the first anywhere.
    first_of_its_kind: bool,
    spread: Vec<SpreadState<'a>>,
}

/// How many members of a constraint's group each domain has.
struct SpreadState<'a> {
    constraint: &'a Spread,
    domains: Tally<'a>,
    least: i64,
    is_member: bool,
}

impl<'a> Filter<'a> {
    /// The books must be prepared for the pending pod.
    pub(crate) fn new(books: &'a Books, pending: &'a Pending) -> Self {
        let mut forbidden = Vec::new();
        for term in &pending.anti_affinity {
            let domains = domains_of(books, term, books.members(&term.group));
            forbidden.extend(domains.map(|domains| (domains, Reject::PodAntiAffinity)));
        }
        for carried in books.carried_about(&pending.pod).filter(|carried| carried.wish == Wish::Forbid) {
            let domains = domains_of(books, &carried.term, Some(&carried.count));
            forbidden.extend(domains.map(|domains| (domains, Reject::ExistingAntiAffinity)));
        }
        let terms = pending.affinity.iter();
        let wanted: Vec<Tally<'_>> =
            terms.filter_map(|term| domains_of(books, term, books.members(&term.group))).collect();
        let none_anywhere = wanted.iter().all(Tally::is_empty);
        let own = |term: &Term| term.group.contains(&pending.pod, books.namespaces());
        let first_of_its_kind = none_anywhere && pending.affinity.iter().all(own);
        let spread = spread_states(books, pending);
        let spec = &pending.spec;
        let chooses_by_label = spec.node_selector.is_some() || placement::required_affinity(spec).is_some();
        Self { pending, chooses_by_label, forbidden, wanted, first_of_its_kind, spread }
    }

    /// Whether the node can take the pod. Asks first what keeps most nodes out at the least cost.
    pub(crate) fn fits(&self, slot: Slot, host: &Host) -> bool {
        self.check_pods(slot).is_ok() && self.check_node(host).is_ok() && self.check_spread(slot).is_ok()
    }

    /// Why the node cannot take the pod: the first reason in upstream's order.
    pub(crate) fn check(&self, slot: Slot, host: &Host) -> Result<(), Reject> {
        self.check_node(host)?;
        self.check_spread(slot)?;
        self.check_pods(slot)
    }

    fn check_node(&self, host: &Host) -> Result<(), Reject> {
        let pending = self.pending;
        let spec = &pending.spec;
        if host.is_unschedulable && !tolerates_unschedulable(spec) {
            return Err(Reject::Unschedulable);
        }
        if spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != host.name()) {
            return Err(Reject::NodeName);
        }
        let effects = &["NoSchedule", "NoExecute"];
        if let Some(taint) = placement::untolerated(&host.taints, pending.tolerations(), effects) {
            return Err(Reject::Taint(taint.key.clone(), taint.value.clone().unwrap_or_default()));
        }
        if self.chooses_by_label && !placement::selects(spec, &host.node) {
            return Err(Reject::NodeAffinity);
        }
        let wanted = &pending.pod.ports;
        if wanted.iter().any(|port| host.ports.iter().any(|taken| taken.conflicts(port))) {
            return Err(Reject::Ports);
        }
        if !host.allocatable.fits(&host.used, &pending.pod.requested) {
            let (lacking, never) = host.allocatable.lacking(&host.used, &pending.pod.requested);
            return Err(Reject::Resources(lacking, never));
        }
        Ok(())
    }

    fn check_spread(&self, slot: Slot) -> Result<(), Reject> {
        for state in &self.spread {
            if !state.domains.has(slot) {
                return Err(Reject::SpreadLabel);
            }
            let here = state.domains.at(slot).unwrap_or(0) + i64::from(state.is_member);
            if here - state.least > i64::from(state.constraint.max_skew) {
                return Err(Reject::Spread);
            }
        }
        Ok(())
    }

    fn check_pods(&self, slot: Slot) -> Result<(), Reject> {
        for domains in &self.wanted {
            if domains.at(slot).is_none() && !(self.first_of_its_kind && domains.has(slot)) {
                return Err(Reject::PodAffinity);
            }
        }
        match self.forbidden.iter().find(|(domains, _)| domains.at(slot).is_some()) {
            Some((_, reject)) => Err(reject.clone()),
            None => Ok(()),
        }
    }
}

fn tolerates_unschedulable(spec: &PodSpec) -> bool {
    let taint =
        Taint { key: UNSCHEDULABLE_TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    spec.tolerations.iter().flatten().any(|toleration| placement::tolerates(toleration, &taint))
}

/// The domains of the term's topology in which `count` has pods.
fn domains_of<'a>(books: &'a Books, term: &Term, count: Option<&Count>) -> Option<Tally<'a>> {
    Some(Tally::of(books.topology(&term.topology_key)?, count, 1))
}

fn spread_states<'a>(books: &'a Books, pending: &'a Pending) -> Vec<SpreadState<'a>> {
    let constraints = &pending.hard_spread;
    if constraints.is_empty() {
        return Vec::new();
    }
    let mut counted: Vec<(&Spread, Option<&Count>, Tally<'_>)> = constraints
        .iter()
        .filter_map(|constraint| {
            let domains = Tally::new(books.topology(&constraint.topology_key)?);
            Some((constraint, books.members(&constraint.group), domains))
        })
        .collect();
    for (slot, host) in books.hosts() {
        // Only nodes that have all the labels take part.
        if !counted.iter().all(|(.., domains)| domains.has(slot)) {
            continue;
        }
        for (constraint, members, domains) in &mut counted {
            if constraint.honor_affinity && !placement::selects(&pending.spec, &host.node)
                || constraint.honor_taints && is_repelled(host, pending)
            {
                continue;
            }
            let here = members.and_then(|members| members.get(&slot)).copied().unwrap_or(0);
            domains.add(slot, i64::from(here));
        }
    }
    let state = |(constraint, _, domains): (&'a Spread, Option<&Count>, Tally<'a>)| {
        let enough = domains.sums().count() as i64 >= i64::from(constraint.min_domains);
        let least = if enough { domains.sums().min().unwrap_or(0) } else { 0 };
        let is_member = constraint.group.contains(&pending.pod, books.namespaces());
        SpreadState { constraint, domains, least, is_member }
    };
    counted.into_iter().map(state).collect()
}

fn is_repelled(host: &Host, pending: &Pending) -> bool {
    placement::untolerated(&host.taints, pending.tolerations(), &["NoSchedule", "NoExecute"]).is_some()
}

/// The names of the only nodes the pod can run on, where its node affinity names them (as a DaemonSet's
/// pods do): then no other node need be looked at.
pub(crate) fn named_nodes(spec: &PodSpec) -> Option<HashSet<&str>> {
    let terms = &placement::required_affinity(spec)?.node_selector_terms;
    let mut names = HashSet::new();
    for term in terms {
        names.extend(names_in(term)?);
    }
    Some(names)
}

fn names_in(term: &NodeSelectorTerm) -> Option<impl Iterator<Item = &str>> {
    let mut fields = term.match_fields.iter().flatten();
    let field = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    Some(field.values.iter().flatten().map(String::as_str))
}
