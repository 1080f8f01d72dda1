//! Which nodes can take a pod, and what keeps each of the others from it. Pure.
//!
//! [`Filter::new`] gathers what is the same for all nodes once a pod; [`Filter::check`] is then cheap a node.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, PodSpec, Taint};
use pith_api::placement;

use crate::books::{Books, Count, Host, Slot};
use crate::pod::{Pending, Spread, Term, Wish};

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
    forbidden: Vec<(&'a str, HashSet<&'a str>, Reject)>,
    wanted: Vec<(&'a str, HashSet<&'a str>)>,
    /// No pod matches the affinity yet, but this one does itself: it may be the first anywhere.
    first_of_its_kind: bool,
    spread: Vec<SpreadState<'a>>,
}

/// How many members of a constraint's group each domain has.
struct SpreadState<'a> {
    constraint: &'a Spread,
    domains: HashMap<&'a str, u32>,
    least: u32,
    is_member: bool,
}

impl<'a> Filter<'a> {
    /// The pending pod's groups must be counted.
    pub(crate) fn new(books: &'a Books, pending: &'a Pending) -> Self {
        let mut forbidden = Vec::new();
        for term in &pending.anti_affinity {
            let domains = domains_of(books, term, books.members(&term.group));
            forbidden.push((term.topology_key.as_ref(), domains, Reject::PodAntiAffinity));
        }
        for carried in books.carried_about(&pending.pod).filter(|carried| carried.wish == Wish::Forbid) {
            let domains = domains_of(books, &carried.term, Some(&carried.count));
            forbidden.push((carried.term.topology_key.as_ref(), domains, Reject::ExistingAntiAffinity));
        }
        let wanted: Vec<_> = pending
            .affinity
            .iter()
            .map(|term| (term.topology_key.as_ref(), domains_of(books, term, books.members(&term.group))))
            .collect();
        let none_anywhere = wanted.iter().all(|(_, domains)| domains.is_empty());
        let own = |term: &Term| term.group.contains(&pending.pod, books.namespaces());
        let first_of_its_kind = none_anywhere && pending.affinity.iter().all(own);
        let spread = spread_states(books, pending);
        Self { pending, forbidden, wanted, first_of_its_kind, spread }
    }

    pub(crate) fn check(&self, host: &Host) -> Result<(), Reject> {
        let pending = self.pending;
        let spec = &pending.spec;
        if host.is_unschedulable() && !tolerates_unschedulable(spec) {
            return Err(Reject::Unschedulable);
        }
        if spec.node_name.as_deref().is_some_and(|name| !name.is_empty() && name != host.name()) {
            return Err(Reject::NodeName);
        }
        let effects = &["NoSchedule", "NoExecute"];
        if let Some(taint) = placement::untolerated(host.taints(), pending.tolerations(), effects) {
            return Err(Reject::Taint(taint.key.clone(), taint.value.clone().unwrap_or_default()));
        }
        if !placement::selects(spec, &host.node) {
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
        self.check_spread(host)?;
        self.check_pods(host)
    }

    fn check_spread(&self, host: &Host) -> Result<(), Reject> {
        for state in &self.spread {
            let Some(domain) = host.label(&state.constraint.topology_key) else {
                return Err(Reject::SpreadLabel);
            };
            let here = state.domains.get(domain).copied().unwrap_or(0) + u32::from(state.is_member);
            if i64::from(here) - i64::from(state.least) > i64::from(state.constraint.max_skew) {
                return Err(Reject::Spread);
            }
        }
        Ok(())
    }

    fn check_pods(&self, host: &Host) -> Result<(), Reject> {
        for (key, domains) in &self.wanted {
            let domain = host.label(key).ok_or(Reject::PodAffinity)?;
            if !domains.contains(domain) && !self.first_of_its_kind {
                return Err(Reject::PodAffinity);
            }
        }
        for (key, domains, reject) in &self.forbidden {
            if host.label(key).is_some_and(|domain| domains.contains(domain)) {
                return Err(reject.clone());
            }
        }
        Ok(())
    }
}

fn tolerates_unschedulable(spec: &PodSpec) -> bool {
    let taint =
        Taint { key: UNSCHEDULABLE_TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    spec.tolerations.iter().flatten().any(|toleration| placement::tolerates(toleration, &taint))
}

/// The domains of the term's topology in which `count` has pods.
fn domains_of<'a>(books: &'a Books, term: &Term, count: Option<&Count>) -> HashSet<&'a str> {
    let slots = count.into_iter().flat_map(|count| count.keys());
    slots.filter_map(|slot| books.host(*slot)?.label(&term.topology_key)).collect()
}

fn spread_states<'a>(books: &'a Books, pending: &'a Pending) -> Vec<SpreadState<'a>> {
    let constraints = &pending.hard_spread;
    if constraints.is_empty() {
        return Vec::new();
    }
    let has_all_keys =
        |host: &Host| constraints.iter().all(|constraint| host.label(&constraint.topology_key).is_some());
    let hosts: Vec<(Slot, &Host)> = books.hosts().filter(|(_, host)| has_all_keys(host)).collect();
    let state = |constraint: &'a Spread| {
        let mut domains: HashMap<&str, u32> = HashMap::new();
        let members = books.members(&constraint.group);
        for (slot, host) in &hosts {
            if constraint.honor_affinity && !placement::selects(&pending.spec, &host.node)
                || constraint.honor_taints && is_repelled(host, pending)
            {
                continue;
            }
            let Some(domain) = host.label(&constraint.topology_key) else { continue };
            let here = members.and_then(|members| members.get(slot)).copied().unwrap_or(0);
            *domains.entry(domain).or_default() += here;
        }
        let enough = domains.len() as i64 >= i64::from(constraint.min_domains);
        let least = if enough { domains.values().min().copied().unwrap_or(0) } else { 0 };
        let is_member = constraint.group.contains(&pending.pod, books.namespaces());
        SpreadState { constraint, domains, least, is_member }
    };
    constraints.iter().map(state).collect()
}

fn is_repelled(host: &Host, pending: &Pending) -> bool {
    placement::untolerated(host.taints(), pending.tolerations(), &["NoSchedule", "NoExecute"]).is_some()
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
