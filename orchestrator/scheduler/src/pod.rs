//! What the scheduler keeps of a pod: [`Placed`] for all that are on a node, and [`Pending`] with what one that
//! waits asks for. Both are parsed once, when the pod arrives. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodAffinityTerm, PodSpec, PreferredSchedulingTerm, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector, SelectorExt};
use pith_informer::{Key, Uid, uid_of};

use crate::resources::{self, Resources};

/// A host port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub protocol: String,
    /// `0.0.0.0` stands for all addresses.
    pub address: String,
    pub port: i32,
}

impl HostPort {
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let any = |port: &Self| port.address == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(self) || any(other) || self.address == other.address)
    }
}

/// Which pods a rule is about: those of these namespaces that the selector matches.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// Equal for equal groups, so that they share one count.
    pub id: Arc<str>,
    pub members: Members,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Members {
    /// The pods that this controller owns.
    Controller(Uid),
    Selected {
        namespaces: Namespaces,
        selector: Selector,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Namespaces {
    All,
    Named(Vec<String>),
    /// Those named, and those whose labels match.
    Labelled(Vec<String>, Selector),
}

/// Labels of each namespace.
pub(crate) type NamespaceLabels = BTreeMap<String, BTreeMap<String, String>>;

impl Group {
    pub(crate) fn new(members: Members) -> Self {
        Self { id: format!("{members:?}").into(), members }
    }

    pub(crate) fn contains(&self, pod: &Placed, namespaces: &NamespaceLabels) -> bool {
        match &self.members {
            Members::Controller(uid) => pod.controller.as_ref() == Some(uid),
            Members::Selected { namespaces: wanted, selector } => {
                wanted.contain(&pod.key.namespace, namespaces) && selector.matches(&pod.labels)
            }
        }
    }

    /// Whether the labels of namespaces decide who is a member.
    pub(crate) fn reads_namespace_labels(&self) -> bool {
        matches!(&self.members, Members::Selected { namespaces: Namespaces::Labelled(..), .. })
    }
}

impl Namespaces {
    fn contain(&self, namespace: &str, labels: &NamespaceLabels) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == namespace);
        match self {
            Self::All => true,
            Self::Named(names) => named(names),
            Self::Labelled(names, selector) => {
                named(names) || labels.get(namespace).is_some_and(|labels| selector.matches(labels))
            }
        }
    }
}

/// A pod affinity or anti-affinity term.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Term {
    pub group: Group,
    pub topology_key: Arc<str>,
}

/// What a pod on a node says about others that come to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Carried {
    pub term: Term,
    pub wish: Wish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Wish {
    /// No pod of the group may come into the topology domain.
    Forbid,
    /// Pods of the group are welcome (positive) or not (negative) there.
    Prefer(i32),
}

/// Upstream's hardPodAffinityWeight: what a required affinity of a placed pod counts for those that come.
const HARD_AFFINITY_WEIGHT: i32 = 1;

/// A pod as the nodes' books hold it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    pub key: Key,
    pub uid: Uid,
    pub labels: BTreeMap<String, String>,
    pub controller: Option<Uid>,
    pub requested: Resources,
    pub weighed: Resources,
    pub ports: Vec<HostPort>,
    pub carried: Vec<Carried>,
}

/// A topology spread constraint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    pub group: Group,
    pub topology_key: Arc<str>,
    pub max_skew: i32,
    pub min_domains: i32,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

/// A pod that waits for a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pending {
    pub pod: Arc<Placed>,
    pub priority: i32,
    pub gated: bool,
    /// The parts of the spec that choose among nodes: selector, node affinity, tolerations.
    pub spec: Box<PodSpec>,
    pub preferred_nodes: Vec<PreferredSchedulingTerm>,
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    /// Weights are negative for anti-affinity.
    pub preferred_pods: Vec<(Term, i32)>,
    pub hard_spread: Vec<Spread>,
    pub soft_spread: Vec<Spread>,
    /// The soft spread is the default one: nodes without the label still take part.
    pub default_spread: bool,
}

impl Pending {
    pub(crate) fn tolerations(&self) -> &[Toleration] {
        self.spec.tolerations.as_deref().unwrap_or_default()
    }

    /// All groups that are counted to place this pod.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.terms().map(|term| &term.group).chain(self.spreads().map(|spread| &spread.group))
    }

    /// All labels whose domains are asked for to place this pod.
    pub(crate) fn topology_keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.terms().map(|term| &term.topology_key).chain(self.spreads().map(|spread| &spread.topology_key))
    }

    fn terms(&self) -> impl Iterator<Item = &Term> {
        let preferred = self.preferred_pods.iter().map(|(term, _)| term);
        self.affinity.iter().chain(&self.anti_affinity).chain(preferred)
    }

    fn spreads(&self) -> impl Iterator<Item = &Spread> {
        self.hard_spread.iter().chain(&self.soft_spread)
    }
}

impl Placed {
    pub(crate) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let owner =
            pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        Self {
            key: Key::of(pod),
            uid: uid_of(pod),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            controller: owner.map(|owner| Uid(owner.uid.clone())),
            requested: spec.map(resources::requested).unwrap_or_default(),
            weighed: spec.map(resources::weighed).unwrap_or_default(),
            ports: spec.map(host_ports).unwrap_or_default(),
            carried: carried(pod),
        }
    }
}

impl Pending {
    pub(crate) fn of(pod: &Pod) -> Self {
        let placed = Placed::of(pod);
        let spec = pod.spec.clone().unwrap_or_default();
        let affinity = spec.affinity.clone().unwrap_or_default();
        let (hard_spread, mut soft_spread) = spreads(pod, &spec);
        let default_spread = hard_spread.is_empty() && soft_spread.is_empty();
        if let (true, Some(controller)) = (default_spread, &placed.controller) {
            soft_spread = by_default(controller);
        }
        let node_affinity = affinity.node_affinity.clone().unwrap_or_default();
        Self {
            priority: spec.priority.unwrap_or(0),
            gated: spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty()),
            preferred_nodes: node_affinity
                .preferred_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            affinity: required(pod, &affinity, Side::With),
            anti_affinity: required(pod, &affinity, Side::Apart),
            preferred_pods: preferred(pod, &affinity),
            hard_spread,
            soft_spread,
            default_spread,
            spec: Box::new(PodSpec {
                node_name: spec.node_name,
                node_selector: spec.node_selector,
                affinity: spec.affinity,
                tolerations: spec.tolerations,
                ..PodSpec::default()
            }),
            pod: Arc::new(placed),
        }
    }
}

#[derive(Clone, Copy)]
enum Side {
    With,
    Apart,
}

fn required(pod: &Pod, affinity: &Affinity, side: Side) -> Vec<Term> {
    let terms = match side {
        Side::With => affinity
            .pod_affinity
            .as_ref()
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref()),
        Side::Apart => affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref()),
    };
    terms.into_iter().flatten().map(|term| compile(pod, term)).collect()
}

fn preferred(pod: &Pod, affinity: &Affinity) -> Vec<(Term, i32)> {
    let with = affinity
        .pod_affinity
        .as_ref()
        .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    let apart = affinity
        .pod_anti_affinity
        .as_ref()
        .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
    let with = with.into_iter().flatten().map(|term| (&term.pod_affinity_term, term.weight));
    let apart = apart.into_iter().flatten().map(|term| (&term.pod_affinity_term, -term.weight));
    with.chain(apart).map(|(term, weight)| (compile(pod, term), weight)).collect()
}

fn carried(pod: &Pod) -> Vec<Carried> {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else { return Vec::new() };
    let forbid = required(pod, affinity, Side::Apart).into_iter().map(|term| (term, Wish::Forbid));
    let welcome = required(pod, affinity, Side::With);
    let welcome = welcome.into_iter().map(|term| (term, Wish::Prefer(HARD_AFFINITY_WEIGHT)));
    let prefer = preferred(pod, affinity).into_iter().map(|(term, weight)| (term, Wish::Prefer(weight)));
    forbid.chain(welcome).chain(prefer).map(|(term, wish)| Carried { term, wish }).collect()
}

fn compile(pod: &Pod, term: &PodAffinityTerm) -> Term {
    let mut selector = selector(term.label_selector.as_ref());
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    for (keys, same) in [(&term.match_label_keys, true), (&term.mismatch_label_keys, false)] {
        for key in keys.iter().flatten() {
            let Some(value) = labels.get(key) else { continue };
            let values = [value.clone()].into();
            selector.extend(if same {
                Expression::In(key.clone(), values)
            } else {
                Expression::NotIn(key.clone(), values)
            });
        }
    }
    let own = pod.metadata.namespace.clone().unwrap_or_default();
    let named = term.namespaces.clone().unwrap_or_default();
    let namespaces = match &term.namespace_selector {
        None if named.is_empty() => Namespaces::Named(vec![own]),
        None => Namespaces::Named(named),
        Some(selector) => match Selector::try_from(selector.clone()) {
            Ok(selector) if selector.selects_all() => Namespaces::All,
            Ok(selector) => Namespaces::Labelled(named, selector),
            Err(_) => Namespaces::Named(named),
        },
    };
    Term {
        group: Group::new(Members::Selected { namespaces, selector }),
        topology_key: term.topology_key.as_str().into(),
    }
}

/// A selector that is absent selects nothing (one that is empty: everything).
fn selector(selector: Option<&LabelSelector>) -> Selector {
    let nothing = || Selector::from_iter([Expression::In("".into(), Default::default())]);
    selector.and_then(|selector| Selector::try_from(selector.clone()).ok()).unwrap_or_else(nothing)
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                address: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into()),
                port: port.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}

/// Hard and soft constraints.
fn spreads(pod: &Pod, spec: &PodSpec) -> (Vec<Spread>, Vec<Spread>) {
    let (mut hard, mut soft) = (Vec::new(), Vec::new());
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    for constraint in spec.topology_spread_constraints.iter().flatten() {
        let mut selector = selector(constraint.label_selector.as_ref());
        for key in constraint.match_label_keys.iter().flatten() {
            if let Some(value) = labels.get(key) {
                selector.extend(Expression::Equal(key.clone(), value.clone()));
            }
        }
        let namespaces = Namespaces::Named(vec![pod.metadata.namespace.clone().unwrap_or_default()]);
        let spread = Spread {
            group: Group::new(Members::Selected { namespaces, selector }),
            topology_key: constraint.topology_key.as_str().into(),
            max_skew: constraint.max_skew,
            min_domains: constraint.min_domains.unwrap_or(1),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        };
        let list = if constraint.when_unsatisfiable == "ScheduleAnyway" { &mut soft } else { &mut hard };
        list.push(spread);
    }
    (hard, soft)
}

/// Upstream's system defaults: the pods of one controller spread over hosts, and over zones less strictly.
fn by_default(controller: &Uid) -> Vec<Spread> {
    let group = Group::new(Members::Controller(controller.clone()));
    [("kubernetes.io/hostname", 3), ("topology.kubernetes.io/zone", 5)]
        .map(|(key, max_skew)| Spread {
            group: group.clone(),
            topology_key: key.into(),
            max_skew,
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        })
        .to_vec()
}
